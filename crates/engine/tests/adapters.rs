//! Adapters by name: which bits they give, who keeps which generation, and what is let go for others.

mod common;

use common::{CONTEXT, adapter, config, dense, finish, greedy, palettized, pool, tokens};
use russet_engine::{Engine, EngineConfig, Error, Flow, Generate, Generation, Request, Reuse};
use russet_model::{Config, Decoder, adapter as peft};

fn through(names: &[&str]) -> Request {
    Request {
        adapters: names.iter().map(|name| (*name).to_owned()).collect(),
        ..greedy(tokens(4, 30), 12)
    }
}

fn engine(decoder: Decoder, adapter_bytes: usize) -> Engine {
    let config = EngineConfig {
        adapter_bytes,
        reuse: Reuse::Prefix,
        ..EngineConfig::new(CONTEXT, 4)
    };
    Engine::new(decoder, pool(2), config).unwrap()
}

fn say(engine: &mut Engine, request: &Request) -> Generation {
    engine.generate(request, &mut |_| Flow::Continue).unwrap()
}

fn bits(generation: &Generation) -> (&[u32], Vec<u32>) {
    let logprobs = generation.logprobs.iter().map(|l| l.to_bits()).collect();
    (&generation.tokens, logprobs)
}

#[test]
fn an_adapter_by_name_gives_the_bits_of_one_in_the_decoder() {
    for decoder in [dense, palettized] {
        let (one, two) = (adapter(3, 1, "self_attn"), adapter(2, 2, "proj"));
        let mut named = engine(decoder(), usize::MAX);
        named.adapters().load("one", one.path()).unwrap();
        named.adapters().load("two", two.path()).unwrap();
        for stack in [
            vec![],
            vec!["one"],
            vec!["two"],
            vec!["one", "two"],
            vec!["two", "one"],
        ] {
            let mut inside = decoder();
            for name in &stack {
                let folder = if *name == "one" { &one } else { &two };
                inside = peft::attach_as_served(inside, folder.path(), None).unwrap();
            }
            let wanted = say(&mut engine(inside, usize::MAX), &through(&[]));
            let got = say(&mut named, &through(&stack));
            assert_eq!(bits(&got), bits(&wanted), "{stack:?}");
            assert_eq!(got.reused_tokens, 0, "{stack:?} has keys of its own");
        }
    }
}

#[test]
fn who_runs_keeps_its_generation_and_who_comes_gets_the_new_one() {
    let (old, new) = (adapter(2, 1, "proj"), adapter(2, 9, "proj"));
    let mut engine = engine(dense(), usize::MAX);
    let mut wanted = Vec::new();
    for folder in [&old, &new] {
        engine.adapters().load("a", folder.path()).unwrap();
        wanted.push(say(&mut engine, &through(&["a"])));
    }
    assert!(wanted[0].tokens != wanted[1].tokens);
    engine.adapters().load("a", old.path()).unwrap();
    let before = engine.submit(through(&["a"])).unwrap();
    for _ in 0..4 {
        engine.step(&mut |_| Flow::Continue);
    }
    engine.adapters().load("a", new.path()).unwrap();
    let one = engine.adapters().stats().bytes / 2;
    let after = engine.submit(through(&["a"])).unwrap();
    engine.step(&mut |_| Flow::Continue);
    assert!(engine.adapters().remove("a") && !engine.adapters().remove("a"));
    assert_eq!(engine.adapters().stats().bytes, 2 * one);
    let answers = finish(&mut engine);
    assert_eq!(bits(&answers[&before]), bits(&wanted[0]));
    assert_eq!(bits(&answers[&after]), bits(&wanted[1]));
    assert_eq!(engine.adapters().stats().bytes, 0);
    let problem = engine.submit(through(&["a"])).unwrap_err().to_string();
    assert_eq!(problem, "there is no adapter `a`; none is loaded");
}

#[test]
fn the_one_used_longest_ago_makes_room_unless_it_is_pinned_or_in_use() {
    let folders: Vec<_> = (0..3).map(|seed| adapter(2, seed, "proj")).collect();
    let probe = engine(dense(), usize::MAX);
    probe.adapters().load("a", folders[0].path()).unwrap();
    let one = probe.adapters().stats().bytes;
    // All projections of a layer, in and out, by rank 2; on the way down the ranks of a product are padded to 16.
    let sizes = [(48, 64 + 32 + 32), (64, 48), (48, 80 + 80), (80, 48)];
    let halves: usize = sizes.iter().map(|(i, o)| 16 * i + 2 * o).sum();
    assert_eq!(one, 2 * 2 * halves);

    let mut engine = engine(dense(), 2 * one + one / 2);
    for (name, folder) in ["a", "b", "c"].iter().zip(&folders) {
        engine.adapters().register(name, folder.path());
    }
    assert_eq!(engine.adapters().stats().loaded, 0);
    let wanted: Vec<_> = ["a", "b", "c", "a"]
        .map(|name| say(&mut engine, &through(&[name])))
        .into();
    let stats = engine.adapters().stats();
    assert_eq!(
        (stats.known, stats.loaded, stats.loads, stats.evictions),
        (3, 2, 4, 2)
    );
    assert_eq!(bits(&wanted[0]), bits(&wanted[3]));
    assert!(stats.bytes <= 2 * one);

    // `c` and `a` are there. Pinned and in use neither goes for `b`.
    engine.adapters().pin("a", true);
    let runs = engine.submit(through(&["c"])).unwrap();
    let problem = engine.submit(through(&["b"])).unwrap_err();
    assert!(matches!(problem, Error::AdapterBudget { .. }), "{problem}");
    assert!(problem.to_string().contains("are pinned or in use"));
    assert_eq!(bits(&finish(&mut engine)[&runs]), bits(&wanted[2]));
    assert_eq!(bits(&say(&mut engine, &through(&["b"]))), bits(&wanted[1]));
    assert!(engine.adapters().pin("a", false) && !engine.adapters().pin("d", true));
    say(&mut engine, &through(&["c"]));
    // What was refused had been read too.
    assert_eq!(engine.adapters().stats().loads, 7);
}

#[test]
fn what_does_not_fit_is_refused_with_a_reason() {
    let engine = engine(dense(), usize::MAX);
    let wide = Config {
        ffn: 96,
        ..config()
    };
    let other = peft::attach_new(Decoder::random(&wide, 1), 2, 4.0, 1, |_| true).freeze();
    let folder = tempfile::tempdir().unwrap();
    peft::save(&other, "other", folder.path()).unwrap();
    let problem = engine
        .adapters()
        .load("a", folder.path())
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("has the shape [96, 2], but the configuration asks for [80, 2]"),
        "{problem}"
    );

    let fine = adapter(2, 1, "proj");
    let path = fine.path().join("adapter_config.json");
    let json = std::fs::read_to_string(&path).unwrap();
    let named = json.replacen('{', "{\"russet_base\": \"abc\",", 1);
    std::fs::write(&path, named).unwrap();
    engine.adapters().load("a", fine.path()).unwrap();
    engine.adapters().name_base("abc");
    engine.adapters().load("a", fine.path()).unwrap();
    engine.adapters().name_base("xyz");
    let problem = engine
        .adapters()
        .load("a", fine.path())
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("was trained on the base abc, but this one is xyz"),
        "{problem}"
    );
    // What was there before is still there.
    let mut engine = engine;
    say(&mut engine, &through(&["a"]));
    let problem = engine.submit(through(&["b"])).unwrap_err().to_string();
    assert_eq!(problem, "there is no adapter `b`; there are a");
}

#[test]
fn a_number_that_is_none_is_found_by_its_tensor() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut adapted = peft::attach_new(dense(), 2, 8.0, 1, |_| true).freeze();
        let mut tensors = 0;
        adapted.visit_mut(&mut |tensor| {
            tensors += 1;
            if tensors == 4 {
                tensor.data_mut()[5] = bad;
            }
        });
        let folder = tempfile::tempdir().unwrap();
        peft::save(&adapted, "base", folder.path()).unwrap();
        let engine = engine(dense(), usize::MAX);
        let refused = engine.adapters().load("a", folder.path());
        let problem = refused.unwrap_err().to_string();
        assert!(
            problem.contains("adapter_model.safetensors: tensor `base_model.model.")
                && problem.contains("holds a number that is not finite, at place 5 "),
            "{problem}"
        );
    }
}

#[test]
fn what_is_held_stays() {
    let folders: Vec<_> = (0..2).map(|seed| adapter(2, seed, "proj")).collect();
    let probe = engine(dense(), usize::MAX);
    probe.adapters().load("a", folders[0].path()).unwrap();
    let one = probe.adapters().stats().bytes;
    let engine = engine(dense(), one + one / 2);
    let adapters = engine.adapters();
    adapters.register("a", folders[0].path());
    let held = adapters.hold("a").unwrap();
    assert_eq!(adapters.stats().loads, 1);
    let problem = adapters.load("b", folders[1].path()).unwrap_err();
    assert!(matches!(problem, Error::AdapterBudget { .. }), "{problem}");
    drop(held);
    adapters.load("b", folders[1].path()).unwrap();
    assert_eq!(adapters.stats().evictions, 1);
    let unknown = adapters.hold("c").map(drop).unwrap_err().to_string();
    assert_eq!(unknown, "there is no adapter `c`; there are a, b");
}
