//! Who runs when: priorities, deadlines, cancellation, budgets, answers that share a prompt, guesses.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{CONTEXT, VOCAB, config, dense, finish, greedy, pool, sampled, tokens};
use russet_engine::{
    CacheSize, Engine, EngineConfig, Error, Event, Finish, Flow, Generate, Generation, Propose,
    Request, RequestId, Reuse,
};
use russet_model::{Config, Decoder};

fn engine(config: EngineConfig) -> Engine {
    Engine::new(dense(), pool(2), config).unwrap()
}

fn alone(request: &Request) -> Generation {
    engine(EngineConfig::new(CONTEXT, 1))
        .generate(request, &mut |_| Flow::Continue)
        .unwrap()
}

fn check(got: &Generation, wanted: &Generation) {
    assert_eq!(
        (&got.tokens, &got.logprobs),
        (&wanted.tokens, &wanted.logprobs)
    );
}

/// The requests in the order in which they end.
fn order(engine: &mut Engine) -> Vec<RequestId> {
    let mut ended = Vec::new();
    while engine.step(&mut |event| {
        if let Event::End(id, answer) = event {
            answer.unwrap();
            ended.push(id);
        }
        Flow::Continue
    }) {
        engine.check_invariants();
    }
    ended
}

#[test]
fn the_higher_priority_goes_first_and_takes_the_place_of_a_lower_one() {
    let mut engine = engine(EngineConfig::new(CONTEXT, 1));
    let submit = |priority, engine: &mut Engine| {
        let request = Request {
            priority,
            ..greedy(tokens(7, 20), 6)
        };
        engine.submit(request).unwrap()
    };
    let first = submit(0, &mut engine);
    engine.step(&mut |_| Flow::Continue);
    let (low, high, second) = (
        submit(-1, &mut engine),
        submit(5, &mut engine),
        submit(0, &mut engine),
    );
    assert_eq!(order(&mut engine), [high, first, second, low]);
    assert_eq!(engine.stats().preemptions, 1);
    let wanted = alone(&greedy(tokens(7, 20), 6));
    assert_eq!(wanted.tokens.len(), 6);
}

#[test]
fn a_deadline_ends_what_runs_and_what_waits() {
    let mut engine = engine(EngineConfig::new(CONTEXT, 1));
    let request = |deadline| Request {
        deadline: Some(deadline),
        ..greedy(tokens(7, 20), usize::MAX)
    };
    let past = Instant::now();
    let waits = engine.submit(request(past)).unwrap();
    let answers = finish(&mut engine);
    assert_eq!(answers[&waits].finish, Finish::Deadline);
    assert!(answers[&waits].tokens.is_empty());
    assert_eq!(answers[&waits].decode_tokens_per_second(), 0.0);

    let runs = engine
        .submit(request(past + Duration::from_secs(3600)))
        .unwrap();
    let soon = engine
        .submit(request(Instant::now() + Duration::from_millis(5)))
        .unwrap();
    let mut ended = BTreeMap::new();
    let begun = Instant::now();
    while !ended.contains_key(&soon) && begun.elapsed().as_secs() < 60 {
        engine.step(&mut |event| {
            if let Event::End(id, answer) = event {
                ended.insert(id, answer.unwrap().finish);
            }
            Flow::Continue
        });
    }
    assert_eq!(ended[&soon], Finish::Deadline);
    engine.cancel(runs);
    finish(&mut engine);
}

#[test]
fn what_is_called_off_ends_in_the_next_step_and_gives_its_blocks_back_at_once() {
    let mut engine = engine(EngineConfig::new(CONTEXT, 1));
    let runs = engine.submit(greedy(tokens(1, 100), 50)).unwrap();
    let waits = engine.submit(greedy(tokens(2, 100), 50)).unwrap();
    for _ in 0..3 {
        engine.step(&mut |_| Flow::Continue);
    }
    assert!(engine.stats().free_blocks < engine.stats().blocks);
    assert!(engine.cancel(runs) && engine.cancel(waits));
    assert!(!engine.cancel(runs));
    assert_eq!(engine.stats().free_blocks, engine.stats().blocks);
    let mut ends = Vec::new();
    let more = engine.step(&mut |event| {
        match event {
            Event::End(id, answer) => ends.push((id, answer.unwrap())),
            Event::Top(..) | Event::Token(..) => panic!("nobody runs"),
        }
        Flow::Continue
    });
    assert!(!more);
    assert_eq!((ends[0].0, ends[1].0), (runs, waits));
    assert_eq!((ends[0].1.tokens.len(), ends[1].1.tokens.len()), (3, 0));
    assert!(
        ends.iter()
            .all(|(_, answer)| answer.finish == Finish::Cancelled)
    );
}

#[test]
fn an_event_that_nobody_waited_for_comes_with_the_next_step() {
    let mut engine = engine(EngineConfig::new(CONTEXT, 2));
    let other = engine.submit(greedy(tokens(1, 10), 3)).unwrap();
    let own = greedy(tokens(2, 10), 8);
    check(
        &engine.generate(&own, &mut |_| Flow::Continue).unwrap(),
        &alone(&own),
    );
    let mut seen = Vec::new();
    let mut end = None;
    while engine.step(&mut |event| {
        match event {
            Event::Token(id, token) => seen.push((id, token.id)),
            Event::Top(..) => {}
            Event::End(id, answer) => end = Some((id, answer.unwrap())),
        }
        Flow::Continue
    }) {}
    let wanted = alone(&greedy(tokens(1, 10), 3));
    let wanted_seen: Vec<_> = wanted.tokens.iter().map(|&token| (other, token)).collect();
    assert_eq!(seen, wanted_seen);
    check(&end.unwrap().1, &wanted);
}

#[test]
fn what_can_never_run_or_finds_the_queue_full_is_refused() {
    let mut small = engine(EngineConfig {
        cache: CacheSize::Tokens(130),
        queue: 2,
        ..EngineConfig::new(CONTEXT, 4)
    });
    let problem = small.submit(greedy(tokens(1, 128), 1)).unwrap_err();
    assert!(
        matches!(
            problem,
            Error::NeverFits {
                prompt: 128,
                capacity: 128
            }
        ),
        "{problem}"
    );
    assert!(problem.to_string().contains("the whole cache holds 128"));
    // The largest that fits gets what is left of the cache.
    let largest = small.submit(greedy(tokens(1, 120), usize::MAX)).unwrap();
    small.submit(greedy(tokens(1, 3), 1)).unwrap();
    let problem = small.submit(greedy(tokens(1, 3), 1)).unwrap_err();
    assert!(
        matches!(problem, Error::QueueFull { waiting: 2 }),
        "{problem}"
    );
    let answers = finish(&mut small);
    let wanted = alone(&greedy(tokens(1, 120), 8));
    check(&answers[&largest], &wanted);
    assert_eq!(answers[&largest].finish, Finish::Context);
    assert_eq!((small.stats().refused, small.stats().finished), (2, 2));
    // A batch waits for its turn instead.
    let batch = vec![greedy(tokens(1, 3), 2); 9];
    assert_eq!(small.generate_batch(&batch).unwrap().len(), 9);

    let problem = |cache| {
        let config = EngineConfig {
            cache,
            ..EngineConfig::new(CONTEXT, 1)
        };
        Engine::new(dense(), pool(1), config)
            .err()
            .unwrap()
            .to_string()
    };
    assert!(
        problem(CacheSize::Tokens(63))
            .starts_with("cache tokens is 63, but it must be at least one block")
    );
    assert!(problem(CacheSize::Bytes(1000)).contains("takes 32768 bytes in this model"));
    assert!(problem(CacheSize::Bytes(usize::MAX)).contains("more than this machine gives"));
    let exact = EngineConfig {
        cache: CacheSize::Bytes(5 * 32768 + 1),
        ..EngineConfig::new(CONTEXT, 1)
    };
    assert_eq!(engine(exact).stats().blocks, 5);
}

#[test]
fn a_long_prompt_delays_neither_who_generates_nor_a_short_prompt() {
    let mut engine = engine(EngineConfig {
        prefill_chunk: 16,
        ..EngineConfig::new(CONTEXT, 4)
    });
    let generates = engine.submit(greedy(tokens(1, 2), 100)).unwrap();
    engine.step(&mut |_| Flow::Continue);
    let long = engine.submit(greedy(tokens(2, 200), 1)).unwrap();
    engine.step(&mut |_| Flow::Continue);
    let short = engine.submit(greedy(tokens(3, 10), 1)).unwrap();
    let mut ends = BTreeMap::new();
    let mut tokens_of_first = 0;
    for step in 0..60 {
        engine.step(&mut |event| {
            match event {
                Event::Token(id, _) => tokens_of_first += usize::from(id == generates),
                Event::Top(..) => {}
                Event::End(id, _) => drop(ends.insert(id, step)),
            }
            Flow::Continue
        });
        assert_eq!(tokens_of_first, step + 1, "one token a step");
    }
    // 15 rows beside the one that generates: 7 and 8 of two prompts, so 10 rows take two steps, and 200 take 15 and a bit.
    assert_eq!(ends[&short], 1);
    assert!((12..=14).contains(&ends[&long]), "{}", ends[&long]);
}

#[test]
fn prompts_come_forward_however_many_generate() {
    let mut engine = engine(EngineConfig {
        prefill_chunk: 2,
        ..EngineConfig::new(CONTEXT, 6)
    });
    for i in 0..5 {
        engine.submit(greedy(tokens(i, 1), 200)).unwrap();
    }
    engine.step(&mut |_| Flow::Continue);
    let prompt = engine.submit(greedy(tokens(9, 12), 1)).unwrap();
    let mut ended = None;
    for step in 0..20 {
        engine.step(&mut |event| {
            if let Event::End(id, _) = event {
                ended = Some((id, step));
            }
            Flow::Continue
        });
    }
    assert_eq!(ended, Some((prompt, 11)));
}

#[test]
fn answers_to_one_prompt_share_its_blocks() {
    for (prompt, reuse) in [
        (130, Reuse::Never),
        (128, Reuse::Never),
        (130, Reuse::Prefix),
    ] {
        let request = sampled(tokens(5, prompt), 20, 40);
        let mut engine = engine(EngineConfig {
            reuse,
            ..EngineConfig::new(CONTEXT, 4)
        });
        let ids = engine.submit_answers(request.clone(), 4).unwrap();
        engine.step(&mut |_| Flow::Continue); // the prompt, once
        assert_eq!(engine.stats().rows, prompt as u64);
        engine.step(&mut |_| Flow::Continue);
        // Whole blocks are shared; each has a last one of its own.
        let used = engine.stats().blocks - engine.stats().free_blocks - engine.stats().idle_blocks;
        assert_eq!(used, prompt / 64 + 4, "{prompt} tokens");
        assert_eq!(engine.stats().rows, prompt as u64 + 4);
        let answers = finish(&mut engine);
        for (n, id) in ids.iter().enumerate() {
            let mut one = request.clone();
            one.sampling.seed += n as u64;
            check(&answers[id], &alone(&one));
        }
        assert!(answers[&ids[0]].tokens != answers[&ids[1]].tokens);
        assert!(engine.submit_answers(request, 0).is_err());
    }
    // The first called off while it reads the prompt: the others do without it.
    let request = sampled(tokens(5, 130), 5, 40);
    let mut engine = engine(EngineConfig {
        prefill_chunk: 50,
        ..EngineConfig::new(CONTEXT, 4)
    });
    let ids = engine.submit_answers(request, 3).unwrap();
    engine.step(&mut |_| Flow::Continue);
    engine.cancel(ids[0]);
    let answers = finish(&mut engine);
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[&ids[2]].tokens.len(), 5);
}

#[test]
fn tenants_do_not_find_what_others_left() {
    let mut engine = engine(EngineConfig {
        reuse: Reuse::Tenant,
        ..EngineConfig::new(CONTEXT, 1)
    });
    let mut reused = |tenant: Option<&str>| {
        let request = Request {
            tenant: tenant.map(str::to_owned),
            ..greedy(tokens(1, 40), 2)
        };
        let answer = engine.generate(&request, &mut |_| Flow::Continue).unwrap();
        answer.reused_tokens
    };
    assert_eq!(reused(Some("a")), 0);
    assert_eq!(reused(Some("b")), 0);
    assert_eq!(reused(None), 0);
    assert_eq!(reused(Some("a")), 39);
    assert_eq!(reused(None), 39);
}

#[test]
fn a_sequence_that_fails_ends_alone() {
    let mut damaged = Decoder::random(
        &Config {
            tied: false,
            ..config()
        },
        1,
    );
    let mut first = true;
    damaged.visit_mut(&mut |tensor| {
        if std::mem::take(&mut first) {
            let width = tensor.dims2().1;
            tensor.data_mut()[7 * width] = f32::NAN;
        }
    });
    let mut engine = Engine::new(
        damaged,
        pool(1),
        EngineConfig {
            reuse: Reuse::Prefix,
            ..EngineConfig::new(CONTEXT, 3)
        },
    )
    .unwrap();
    let stop = Request {
        stop_tokens: vec![7],
        ..greedy(vec![1, 2, 3], 30)
    };
    let wanted = engine.generate(&stop, &mut |_| Flow::Continue).unwrap();
    let fails = engine.submit(greedy(vec![1, 7], 4)).unwrap();
    let fine = engine.submit(stop).unwrap();
    let mut ends = BTreeMap::new();
    while engine.step(&mut |event| {
        if let Event::End(id, answer) = event {
            ends.insert(id, answer);
        }
        Flow::Continue
    }) {
        engine.check_invariants();
    }
    assert!(matches!(ends[&fails], Err(Error::NotFinite)));
    check(ends[&fine].as_ref().unwrap(), &wanted);
}

/// Knows what will be said, but is wrong at every third token; or guesses at random.
struct Guess {
    right: Vec<u32>,
    learned: std::sync::Arc<std::sync::Mutex<(usize, usize)>>,
}

impl Propose for Guess {
    fn propose(&mut self, _: RequestId, known: &[u32], most: usize) -> Vec<u32> {
        let next = self.right.iter().skip(known.len()).take(most.min(5));
        let mut guess: Vec<u32> = next.copied().collect();
        if let Some(third) = guess.get_mut(3) {
            *third = third.wrapping_add(1) % VOCAB as u32;
        }
        guess
    }

    fn learn(&mut self, _: RequestId, proposed: usize, right: usize) {
        let mut learned = self.learned.lock().unwrap();
        *learned = (learned.0 + proposed, learned.1 + right);
    }
}

#[test]
fn guessed_tokens_change_nothing_but_the_number_of_steps() {
    for request in [greedy(tokens(1, 30), 60), sampled(tokens(2, 62), 60, 5)] {
        let wanted = alone(&request);
        let learned = std::sync::Arc::default();
        for (right, reuse) in [
            ([&request.prompt[..], &wanted.tokens].concat(), Reuse::Never),
            (
                [&request.prompt[..], &wanted.tokens].concat(),
                Reuse::Prefix,
            ),
            (tokens(77, 200), Reuse::Prefix),
            (vec![u32::MAX; 200], Reuse::Never),
        ] {
            let mut engine = engine(EngineConfig {
                reuse,
                ..EngineConfig::new(CONTEXT, 2)
            });
            let told = right[30] == wanted.tokens[0] || right.get(62) == wanted.tokens.first();
            engine.set_proposer(Some(Box::new(Guess {
                right,
                learned: std::sync::Arc::clone(&learned),
            })));
            let id = engine.submit(request.clone()).unwrap();
            let beside = engine.submit(greedy(tokens(8, 9), 40)).unwrap();
            let answers = finish(&mut engine);
            check(&answers[&id], &wanted);
            check(&answers[&beside], &alone(&greedy(tokens(8, 9), 40)));
            let stats = engine.stats();
            if told {
                assert!(stats.accepted_tokens > 20, "{stats:?}");
            }
            // Once more with what is kept.
            let id = engine.submit(request.clone()).unwrap();
            check(&finish(&mut engine)[&id], &wanted);
        }
        let (proposed, right) = *learned.lock().unwrap();
        assert!(right > 0 && right < proposed);
    }
}
