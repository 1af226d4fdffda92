//! Whatever is submitted and called off in whatever order: every request ends once, with the bits it has alone, and the cache's books
//! balance after each step.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{CONTEXT, adapter, dense, pool, tokens};
use proptest::prelude::*;
use russet_engine::{
    CacheSize, Engine, EngineConfig, Event, Finish, Flow, Generate, Generation, Request, RequestId,
    Reuse, Sampling,
};
use russet_kernels::random;
use russet_model::{Attention, Config, Decoder};

/// So many tokens of prompts are drawn from so few beginnings that requests often begin alike.
fn request(seed: u64) -> Request {
    let draw = |stream, below| random::below(seed, stream, 0, below) as usize;
    let mut prompt = tokens(draw(1, 3) as u64, [5, 64, 70, 130][draw(2, 4)]);
    prompt.extend(tokens(10 + draw(3, 2) as u64, draw(4, 20)));
    let embedding = draw(11, 3) == 0;
    Request {
        prompt,
        max_tokens: if embedding && draw(12, 2) == 0 {
            0
        } else {
            1 + draw(5, 60)
        },
        embedding,
        sampling: Sampling {
            seed: draw(6, 4) as u64,
            temperature: draw(7, 2) as f32,
            ..Sampling::default()
        },
        adapters: [vec![], vec!["a".to_owned()]][draw(8, 2)].clone(),
        tenant: [None, Some("t".to_owned())][draw(9, 2)].clone(),
        priority: draw(10, 3) as i32 - 1,
        ..Request::default()
    }
}

#[derive(Clone, Debug)]
enum Act {
    Submit(u64),
    Answers(u64, usize),
    Cancel(usize),
    Step(usize),
    Forget,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        5 => (0..400u64).prop_map(Act::Submit),
        1 => (0..400u64, 2..4usize).prop_map(|(seed, count)| Act::Answers(seed, count)),
        2 => (0..30usize).prop_map(Act::Cancel),
        4 => (1..12usize).prop_map(Act::Step),
        1 => Just(Act::Forget),
    ]
}

fn settings() -> impl Strategy<Value = EngineConfig> {
    let reuse = prop_oneof![Just(Reuse::Never), Just(Reuse::Prefix), Just(Reuse::Tenant)];
    (
        1..6usize,
        3..9usize,
        prop_oneof![Just(3), Just(40), Just(512)],
        reuse,
    )
        .prop_map(|(slots, blocks, prefill_chunk, reuse)| EngineConfig {
            cache: CacheSize::Tokens(64 * blocks),
            prefill_chunk,
            reuse,
            queue: 12,
            ..EngineConfig::new(CONTEXT, slots)
        })
}

/// What an engine with room for everything says to each request alone.
struct Oracle {
    engine: Engine,
    known: BTreeMap<String, Generation>,
}

impl Oracle {
    fn wanted(&mut self, request: &Request) -> &Generation {
        let plain = Request {
            tenant: None,
            priority: 0,
            ..request.clone()
        };
        let engine = &mut self.engine;
        self.known
            .entry(format!("{plain:?}"))
            .or_insert_with(|| engine.generate(&plain, &mut |_| Flow::Continue).unwrap())
    }
}

/// Ends that came, by request.
type Ends = BTreeMap<RequestId, Generation>;

fn step(engine: &mut Engine, ends: &mut Ends) -> bool {
    let more = engine.step(&mut |event| {
        if let Event::End(id, answer) = event {
            assert!(
                ends.insert(id, answer.unwrap()).is_none(),
                "{id:?} ends twice"
            );
        }
        Flow::Continue
    });
    engine.check_invariants();
    let stats = engine.stats();
    assert!(stats.free_blocks + stats.kept_blocks <= stats.blocks);
    more
}

#[test]
fn every_request_ends_once_and_as_it_would_alone() {
    let folder = adapter(2, 5, "proj");
    let with_adapter = |config| {
        let engine = Engine::new(dense(), pool(1), config).unwrap();
        engine.adapters().load("a", folder.path()).unwrap();
        engine
    };
    let oracle = std::cell::RefCell::new(Oracle {
        engine: with_adapter(EngineConfig::new(CONTEXT, 1)),
        known: BTreeMap::new(),
    });
    let cases = std::env::var("RUSSET_CASES").map_or(40, |cases| cases.parse().unwrap());
    let acts = prop::collection::vec(act(), 1..25);
    proptest!(ProptestConfig::with_cases(cases), |(config in settings(), acts in acts)| {
        let mut engine = with_adapter(config);
        let mut asked: BTreeMap<RequestId, Request> = BTreeMap::new();
        let mut ends = Ends::new();
        for act in acts {
            match act {
                Act::Submit(seed) | Act::Answers(seed, _) => {
                    let count = if let Act::Answers(_, count) = act { count } else { 1 };
                    let request = request(seed);
                    let room = engine.stats().waiting + count <= 12;
                    let fits = request.prompt.len() + request.max_tokens.min(1) <= config_tokens(&config);
                    match engine.submit_answers(request.clone(), count) {
                        Ok(ids) => {
                            prop_assert!(room && fits);
                            for (n, id) in ids.into_iter().enumerate() {
                                let mut request = request.clone();
                                request.sampling.seed += n as u64;
                                request.embedding &= n == 0;
                                asked.insert(id, request);
                            }
                        }
                        Err(_) => prop_assert!(!room || !fits),
                    }
                }
                Act::Cancel(at) => {
                    let id = asked.keys().copied().nth(at);
                    if let Some(id) = id {
                        engine.cancel(id);
                        engine.check_invariants();
                    }
                }
                Act::Step(steps) => {
                    for _ in 0..steps {
                        step(&mut engine, &mut ends);
                    }
                }
                Act::Forget => {
                    engine.forget();
                    engine.check_invariants();
                }
            }
        }
        // Nothing that is computed twice takes longer than this.
        let mut left = 20_000;
        while step(&mut engine, &mut ends) {
            left -= 1;
            prop_assert!(left > 0, "requests do not end: {:?}", engine.stats());
        }
        prop_assert_eq!(ends.len(), asked.len());
        let stats = engine.stats();
        prop_assert_eq!(stats.free_blocks + stats.idle_blocks, stats.blocks);
        for (id, got) in &ends {
            let request = &asked[id];
            if request.max_tokens == 0 && !request.embedding {
                // The second of several answers to a prompt that is to have none.
                prop_assert!(got.tokens.is_empty() && got.embedding.is_empty());
                continue;
            }
            let mut oracle = oracle.borrow_mut();
            let wanted = oracle.wanted(request);
            let count = got.tokens.len();
            prop_assert_eq!(&got.tokens[..], &wanted.tokens[..count]);
            prop_assert_eq!(&got.logprobs[..], &wanted.logprobs[..count]);
            match got.finish {
                Finish::Cancelled => prop_assert!(got.embedding.is_empty() || got.embedding == wanted.embedding),
                _ if got.embedding != wanted.embedding => prop_assert!(false, "another embedding"),
                Finish::Context => prop_assert_eq!(request.prompt.len() + count, config_tokens(&config)),
                finish => prop_assert_eq!((finish, count), (wanted.finish, wanted.tokens.len())),
            }
        }
    });
}

/// The most tokens of one sequence.
fn config_tokens(config: &EngineConfig) -> usize {
    match config.cache {
        CacheSize::Tokens(tokens) => tokens.min(config.context),
        _ => config.context,
    }
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * status.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
}

/// Thousands of tiny requests with cancels, deadlines and adapters that come and go. `RUSSET_SOAK` is their number.
#[test]
#[allow(
    clippy::print_stdout,
    reason = "a figure for whoever asks for it with --nocapture"
)]
fn a_soak_leaves_no_block_and_no_memory_behind() {
    let count: u64 = std::env::var("RUSSET_SOAK").map_or(600, |count| count.parse().unwrap());
    let tiny = Config {
        width: 16,
        ffn: 16,
        layers: 2,
        attention: Attention::new(50, vec![true; 2], 1),
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        ..common::config()
    };
    let folders: Vec<_> = (0..3)
        .map(|seed| {
            let mut adapted =
                russet_model::adapter::attach_new(Decoder::random(&tiny, 1), 2, 4.0, seed, |_| {
                    true
                })
                .freeze();
            adapted.visit_mut(&mut |tensor| tensor.data_mut().iter_mut().for_each(|v| *v += 0.1));
            let folder = tempfile::tempdir().unwrap();
            russet_model::adapter::save(&adapted, "tiny", folder.path()).unwrap();
            folder
        })
        .collect();
    let decoder = Arc::new(Decoder::random(&tiny, 1));
    let config = EngineConfig {
        cache: CacheSize::Tokens(64 * 24),
        reuse: Reuse::Tenant,
        prefill_chunk: 64,
        queue: 40,
        adapter_bytes: 10_000, // two of three
        ..EngineConfig::new(CONTEXT, 8)
    };
    let mut engine = Engine::new(decoder, pool(2), config).unwrap();
    for (name, folder) in ["a", "b", "c"].iter().zip(&folders) {
        engine.adapters().register(name, folder.path());
    }
    let mut open: Vec<RequestId> = Vec::new();
    let (mut submitted, mut ended, mut cancelled) = (0, 0, 0);
    let mut early = 0;
    let begun = Instant::now();
    while ended < count {
        while submitted < count && engine.stats().waiting < 30 {
            let number = submitted;
            let draw = |stream, below| random::below(77, stream, number, below);
            let mut request = Request {
                prompt: tokens(draw(0, 40), 1 + draw(1, 150) as usize),
                max_tokens: 1 + draw(2, 12) as usize,
                priority: draw(3, 3) as i32,
                tenant: Some(format!("tenant {}", draw(4, 50))),
                ..Request::default()
            };
            if draw(5, 30) == 0 {
                request.adapters = vec![["a", "b", "c"][draw(6, 3) as usize].to_owned()];
            }
            if draw(7, 20) == 0 {
                request.deadline = Some(Instant::now() + Duration::from_millis(draw(8, 30)));
            }
            match engine.submit(request) {
                Ok(id) => open.push(id),
                // Of three adapters two have room, and both may be in use.
                Err(russet_engine::Error::AdapterBudget { .. }) => ended += 1,
                Err(other) => panic!("{other}"),
            }
            submitted += 1;
            if draw(9, 12) == 0
                && let Some(&id) = open.get(draw(10, 30) as usize)
            {
                cancelled += u64::from(engine.cancel(id));
            }
        }
        engine.step(&mut |event| {
            if let Event::End(id, answer) = event {
                answer.unwrap();
                open.retain(|&other| other != id);
                ended += 1;
            }
            Flow::Continue
        });
        if early == 0 && ended > count / 4 {
            early = resident();
        }
    }
    engine.check_invariants();
    let (stats, adapters) = (engine.stats(), engine.adapters().stats());
    assert!(open.is_empty() && stats.waiting + stats.running == 0);
    assert!(
        stats.preemptions > 0 && adapters.evictions > 0 && cancelled > 0,
        "{stats:?}"
    );
    engine.forget();
    assert_eq!(engine.stats().free_blocks, stats.blocks);
    let grown = resident().saturating_sub(early);
    println!(
        "{count} requests in {:.1} s, {cancelled} called off, {} preemptions, {} adapters loaded; {} bytes resident, {grown} more than \
         after a quarter",
        begun.elapsed().as_secs_f64(),
        stats.preemptions,
        adapters.loads,
        resident(),
    );
    assert!(grown < 2 << 20, "{grown} bytes more than after a quarter");
}
