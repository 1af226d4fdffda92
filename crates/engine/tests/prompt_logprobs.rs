//! What a prompt's own tokens cost: the same bits as those of tokens that were generated.

mod common;

use common::{CONTEXT, adapter, config, dense, finish, greedy, palettized, pool, tokens};
use russet_engine::{
    CacheSize, Engine, EngineConfig, Error, Flow, Generate, Generation, Request, Reuse, Sampling,
    Token,
};
use russet_model::Decoder;

fn engine(decoder: Decoder, config: EngineConfig) -> Engine {
    Engine::new(decoder, pool(2), config).unwrap()
}

fn say(engine: &mut Engine, request: &Request) -> Generation {
    engine.generate(request, &mut |_| Flow::Continue).unwrap()
}

fn scored(prompt: Vec<u32>, top: usize) -> Request {
    Request {
        prompt_logprobs: Some(top),
        ..greedy(prompt, 1)
    }
}

/// A prompt that ends in an answer, and what that answer's tokens were generated with.
fn written(adapters: &[String]) -> (Vec<u32>, Generation) {
    let mut engine = engine(dense(), EngineConfig::new(CONTEXT, 1));
    let folder = adapter(2, 1, "proj");
    engine.adapters().load("a", folder.path()).unwrap();
    let request = Request {
        sampling: Sampling {
            top_logprobs: 3,
            seed: 5,
            ..Sampling::default()
        },
        adapters: adapters.to_vec(),
        ..greedy(tokens(3, 70), 100)
    };
    let answer = say(&mut engine, &request);
    let prompt = [&request.prompt[..], &answer.tokens].concat();
    (prompt, answer)
}

#[track_caller]
fn check(got: &Generation, prompt: &[u32], answer: &Generation) {
    assert_eq!(got.prompt_logprobs.len(), prompt.len() - 1);
    assert_eq!(got.prompt_top.len(), prompt.len() - 1);
    let ids: Vec<u32> = got.prompt_logprobs.iter().map(|token| token.id).collect();
    assert_eq!(ids, prompt[1..]);
    let from = prompt.len() - 1 - answer.tokens.len();
    let bits = |token: &Token| (token.id, token.logprob.to_bits());
    for (place, logprob) in answer.logprobs.iter().enumerate() {
        let at = from + place;
        assert_eq!(got.prompt_logprobs[at].logprob.to_bits(), logprob.to_bits());
        let (top, wanted) = (&got.prompt_top[at], &answer.top[place]);
        assert!(top.iter().map(bits).eq(wanted.iter().map(bits)));
    }
}

#[test]
fn a_token_costs_in_a_prompt_what_it_cost_when_it_was_generated() {
    for adapters in [vec![], vec!["a".to_owned()]] {
        let (prompt, answer) = written(&adapters);
        for prefill_chunk in [512, 50, 1] {
            let config = EngineConfig {
                prefill_chunk,
                reuse: Reuse::Prefix,
                ..EngineConfig::new(CONTEXT, 2)
            };
            let mut engine = engine(dense(), config);
            let folder = adapter(2, 1, "proj");
            engine.adapters().load("a", folder.path()).unwrap();
            let request = Request {
                adapters: adapters.clone(),
                ..scored(prompt.clone(), 3)
            };
            // The second time its blocks lie in the cache.
            for _ in 0..2 {
                let got = say(&mut engine, &request);
                check(&got, &prompt, &answer);
                assert_eq!(got.reused_tokens, 0);
            }
        }
    }
}

#[test]
fn they_survive_making_room_and_are_told_once_among_several_answers() {
    let (prompt, answer) = written(&[]);
    // Two prompts of 170 tokens do not fit 4 blocks at once, once they have grown.
    let config = EngineConfig {
        cache: CacheSize::Tokens(6 * 64),
        prefill_chunk: 40,
        ..EngineConfig::new(CONTEXT, 2)
    };
    let mut engine = engine(dense(), config);
    let request = Request {
        max_tokens: 40,
        ..scored(prompt.clone(), 3)
    };
    let first = engine.submit(request.clone()).unwrap();
    let second = engine.submit(request.clone()).unwrap();
    let family = engine.submit_answers(request, 2).unwrap();
    let answers = finish(&mut engine);
    assert!(engine.stats().preemptions > 0);
    for id in [first, second, family[0]] {
        check(&answers[&id], &prompt, &answer);
    }
    assert!(answers[&family[1]].prompt_logprobs.is_empty());
    assert_eq!(answers[&family[0]].tokens, answers[&first].tokens);
}

#[test]
fn nobody_gets_them_unasked_and_bounds_hold() {
    let mut engine = engine(palettized(), EngineConfig::new(CONTEXT, 1));
    let plain = say(&mut engine, &greedy(tokens(3, 9), 2));
    assert!(plain.prompt_logprobs.is_empty() && plain.prompt_top.is_empty());
    let one = say(&mut engine, &scored(vec![7], 2));
    assert!(one.prompt_logprobs.is_empty());
    let none = say(&mut engine, &scored(tokens(3, 9), 0));
    assert_eq!(none.prompt_logprobs.len(), 8);
    assert!(none.prompt_top.iter().all(Vec::is_empty));
    let problem = engine.submit(scored(tokens(3, 9), 257)).unwrap_err();
    assert!(problem.to_string().starts_with("prompt_logprobs is 257"));
}

#[test]
fn logits_that_are_no_numbers_end_the_request() {
    let mut decoder = Decoder::random(&config(), 1);
    decoder.visit_mut(&mut |tensor| {
        if let Some(value) = tensor.data_mut().last_mut() {
            *value = f32::NAN;
        }
    });
    let mut engine = engine(decoder, EngineConfig::new(CONTEXT, 1));
    let problem = engine.generate(&scored(tokens(3, 9), 1), &mut |_| Flow::Continue);
    assert!(matches!(problem, Err(Error::NotFinite)));
}
