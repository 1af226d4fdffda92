//! The mean of a prompt's hidden states: that of a full pass, whatever else runs and however the work is cut.

mod common;

use std::sync::Arc;

use common::{CONTEXT, adapter, config, dense, finish, greedy, palettized, pool, sampled, tokens};
use russet_engine::{
    CacheSize, Engine, EngineConfig, Error, Finish, Flow, Generate, Request, Reuse,
};
use russet_model::Decoder;
use russet_tensor::{Ctx, Segments};

fn embedding(prompt: Vec<u32>) -> Request {
    Request {
        embedding: true,
        ..greedy(prompt, 0)
    }
}

fn vector(engine: &mut Engine, request: &Request) -> Vec<f32> {
    let answer = engine.generate(request, &mut |_| Flow::Continue).unwrap();
    assert_eq!((answer.finish, answer.tokens.len()), (Finish::Length, 0));
    answer.embedding
}

/// By hand: one pass without a cache, and a mean in f64.
fn mean(decoder: &Decoder, prompt: &[u32]) -> Vec<f32> {
    let segments = Segments::packed(&[prompt.len()]);
    let hidden = decoder.forward(&mut Ctx::new(pool(1)), prompt, &segments, None); // [T, D]
    let (rows, width) = hidden.dims2();
    let column = |d: usize| hidden.data()[d..].iter().step_by(width);
    let sums = (0..width).map(|d| column(d).map(|&value| f64::from(value)).sum::<f64>());
    sums.map(|sum| (sum / rows as f64) as f32).collect()
}

#[test]
fn it_is_the_mean_of_a_full_pass_to_the_bit() {
    for decoder in [dense(), palettized()] {
        let decoder = Arc::new(decoder);
        for length in [1, 2, 64, 150, CONTEXT] {
            let prompt = tokens(3, length);
            let wanted = mean(&decoder, &prompt);
            for prefill_chunk in [512, 37, 1] {
                let config = EngineConfig {
                    prefill_chunk,
                    reuse: Reuse::Prefix,
                    ..EngineConfig::new(CONTEXT, 2)
                };
                let mut engine = Engine::new(decoder.clone(), pool(2), config).unwrap();
                // The second time its blocks could lie in the cache.
                for _ in 0..2 {
                    let got = vector(&mut engine, &embedding(prompt.clone()));
                    assert_eq!(got, wanted, "{length} tokens in chunks of {prefill_chunk}");
                }
                assert_eq!(engine.stats().kept_blocks, 0, "nothing goes on from it");
            }
        }
    }
}

#[test]
fn whatever_else_runs_changes_neither_it_nor_what_else_runs() {
    let folder = adapter(2, 1, "proj");
    let engine = |config| {
        let engine = Engine::new(dense(), pool(2), config).unwrap();
        engine.adapters().load("a", folder.path()).unwrap();
        engine
    };
    let mut requests: Vec<Request> = (0..6)
        .map(|n| embedding(tokens(n, 20 + 35 * n as usize)))
        .collect();
    requests.extend((0..4).map(|n| sampled(tokens(10 + n, 30), 40, n)));
    for request in requests.iter_mut().step_by(2) {
        request.adapters = vec!["a".to_owned()];
    }
    // An answer and the vector of its prompt in one request.
    requests.push(Request {
        embedding: true,
        ..sampled(tokens(2, 90), 30, 5)
    });
    let mut alone = engine(EngineConfig::new(CONTEXT, 1));
    let wanted: Vec<_> = requests
        .iter()
        .map(|request| alone.generate(request, &mut |_| Flow::Continue).unwrap())
        .collect();
    assert!(
        wanted[0].embedding != vector(&mut alone, &embedding(tokens(0, 20))),
        "the adapter's"
    );
    assert_eq!(
        wanted[10].embedding,
        mean(&dense(), &requests[10].prompt[..]).clone()
    );
    let mut preempted = 0;
    for (blocks, prefill_chunk) in [(60, 512), (5, 40), (4, 7)] {
        let mut engine = engine(EngineConfig {
            cache: CacheSize::Tokens(64 * blocks),
            prefill_chunk,
            reuse: Reuse::Tenant,
            ..EngineConfig::new(CONTEXT, 6)
        });
        let ids: Vec<_> = requests
            .iter()
            .map(|request| engine.submit(request.clone()).unwrap())
            .collect();
        let answers = finish(&mut engine);
        for (id, wanted) in ids.iter().zip(&wanted) {
            let got = &answers[id];
            assert_eq!(got.embedding, wanted.embedding, "{id:?} of {blocks} blocks");
            assert_eq!(
                (&got.tokens, &got.logprobs),
                (&wanted.tokens, &wanted.logprobs)
            );
        }
        preempted += engine.stats().preemptions;
    }
    assert!(preempted > 0);
}

#[test]
fn one_that_makes_room_counts_each_token_once() {
    let config = EngineConfig {
        cache: CacheSize::Tokens(64 * 4),
        prefill_chunk: 24,
        ..EngineConfig::new(CONTEXT, 2)
    };
    let mut engine = Engine::new(dense(), pool(2), config).unwrap();
    let low = Request {
        priority: -1,
        ..embedding(tokens(1, 200))
    };
    let id = engine.submit(low.clone()).unwrap();
    for _ in 0..3 {
        engine.step(&mut |_| Flow::Continue);
    }
    engine.submit(greedy(tokens(2, 150), 20)).unwrap();
    let answers = finish(&mut engine);
    assert!(engine.stats().preemptions > 0);
    assert_eq!(answers[&id].embedding, mean(&dense(), &low.prompt));
}

#[test]
fn a_prompt_alone_may_fill_the_context_and_no_more() {
    let mut engine = Engine::new(dense(), pool(1), EngineConfig::new(40, 1)).unwrap();
    assert_eq!(
        vector(&mut engine, &embedding(tokens(1, 40))).len(),
        config().width
    );
    let said = engine
        .submit(embedding(tokens(1, 41)))
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("the prompt has 41 tokens, but the context holds 40"),
        "{said}"
    );
    let both = Request {
        max_tokens: 1,
        ..embedding(tokens(1, 40))
    };
    assert!(matches!(
        engine.submit(both),
        Err(Error::PromptTooLong { .. })
    ));
    // Its log-probabilities alone can be asked for in the same way.
    let scored = Request {
        prompt_logprobs: Some(0),
        ..greedy(tokens(1, 40), 0)
    };
    let answer = engine.generate(&scored, &mut |_| Flow::Continue).unwrap();
    assert_eq!((answer.prompt_logprobs.len(), answer.tokens.len()), (39, 0));
    assert!(answer.embedding.is_empty());
    let several = engine.submit_answers(embedding(tokens(1, 9)), 2).unwrap();
    let answers = finish(&mut engine);
    assert_eq!(answers[&several[0]].embedding.len(), config().width);
    assert!(answers[&several[1]].embedding.is_empty(), "told once");
}

#[test]
fn what_is_no_number_is_no_vector() {
    let mut decoder = Decoder::random(&config(), 1);
    decoder.visit_mut(&mut |tensor| {
        if let Some(value) = tensor.data_mut().last_mut() {
            *value = f32::NAN;
        }
    });
    let mut engine = Engine::new(decoder, pool(1), EngineConfig::new(CONTEXT, 1)).unwrap();
    let problem = engine.generate(&embedding(tokens(3, 9)), &mut |_| Flow::Continue);
    assert!(matches!(problem, Err(Error::NotFinite)));
}
