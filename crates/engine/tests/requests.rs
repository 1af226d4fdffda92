//! How answers end, and what is refused.

mod common;

use common::{CONTEXT, VOCAB, config, dense, greedy, pool, tokens};
use russet_engine::{
    Engine, EngineConfig, Error, Finish, Flow, Generate, Generation, Request, Result, Sampling,
    Token,
};
use russet_model::{Config, Decoder};

fn engine(context: usize, slots: usize) -> Engine {
    Engine::new(dense(), pool(1), EngineConfig::new(context, slots)).unwrap()
}

/// The answer and the tokens that the callback saw.
fn watch(engine: &mut Engine, request: &Request) -> (Generation, Vec<u32>) {
    let mut seen = Vec::new();
    let generation = engine.generate(request, &mut |token| {
        seen.push(token.id);
        Flow::Continue
    });
    (generation.unwrap(), seen)
}

#[test]
fn an_answer_ends_at_its_length_its_stop_token_the_context_or_the_callers_wish() {
    let mut engine = engine(40, 1);
    let request = greedy(tokens(1, 10), 12);
    let (length, seen) = watch(&mut engine, &request);
    assert_eq!(
        (length.finish, length.tokens.len(), length.prompt_tokens),
        (Finish::Length, 12, 10)
    );
    assert_eq!(
        (length.content(), &seen),
        (&length.tokens[..], &length.tokens)
    );

    // The stop token belongs to the answer, but is neither shown nor content.
    let stop = length.tokens[7];
    let first = length
        .tokens
        .iter()
        .position(|&token| token == stop)
        .unwrap();
    let (stopped, seen) = watch(
        &mut engine,
        &Request {
            stop_tokens: vec![stop],
            ..request.clone()
        },
    );
    assert_eq!(
        (stopped.finish, &stopped.tokens[..]),
        (Finish::Stop, &length.tokens[..=first])
    );
    assert_eq!(
        (stopped.content(), &seen[..]),
        (&length.tokens[..first], &length.tokens[..first])
    );
    assert_eq!(stopped.logprobs.len(), stopped.tokens.len());

    let (full, _) = watch(
        &mut engine,
        &Request {
            max_tokens: usize::MAX,
            ..request.clone()
        },
    );
    assert_eq!((full.finish, full.tokens.len()), (Finish::Context, 30));
    assert_eq!(full.tokens[..12], length.tokens);
    // Exactly to the context's end, as asked, is the length.
    assert_eq!(
        watch(
            &mut engine,
            &Request {
                max_tokens: 30,
                ..request.clone()
            }
        )
        .0
        .finish,
        Finish::Length
    );

    let mut left = 3;
    let called_off = engine.generate(&request, &mut |_| {
        left -= 1;
        if left == 0 {
            Flow::Stop
        } else {
            Flow::Continue
        }
    });
    let called_off = called_off.unwrap();
    assert_eq!(
        (called_off.finish, &called_off.tokens[..]),
        (Finish::Callback, &length.tokens[..3])
    );
}

#[test]
fn the_largest_prompt_gets_one_token() {
    let (answer, _) = watch(&mut engine(40, 1), &greedy(tokens(1, 39), 5));
    assert_eq!((answer.finish, answer.tokens.len()), (Finish::Context, 1));
    assert_eq!(answer.decode_tokens_per_second(), 0.0);
    assert!(answer.prefill_tokens_per_second() > 0.0);
    // Every slot can hold a full context, whatever the pages.
    let batch = engine(CONTEXT, 5)
        .generate_batch(&vec![greedy(tokens(2, CONTEXT - 2), usize::MAX); 5])
        .unwrap();
    assert!(
        batch
            .iter()
            .all(|answer| answer.tokens.len() == 2 && answer.finish == Finish::Context)
    );
}

#[test]
fn a_batch_shows_each_token_with_its_request() {
    let requests: Vec<Request> = (0..5)
        .map(|i| greedy(tokens(i, 4), 3 + i as usize))
        .collect();
    let mut seen = vec![Vec::new(); 5];
    let answers = engine(40, 2).stream_batch(&requests, &mut |index, Token { id, logprob }| {
        seen[index].push((id, logprob));
        if index == 4 {
            Flow::Stop
        } else {
            Flow::Continue
        }
    });
    for (i, (answer, seen)) in answers.unwrap().iter().zip(&seen).enumerate() {
        assert_eq!(answer.tokens.len(), if i == 4 { 1 } else { 3 + i });
        let pairs: Vec<_> = answer
            .tokens
            .iter()
            .copied()
            .zip(answer.logprobs.iter().copied())
            .collect();
        assert_eq!(&pairs, seen);
    }
    assert_eq!(engine(40, 2).generate_batch(&[]).unwrap(), []);
}

fn refused(request: Request, sentence: &str) {
    let mut engine = engine(40, 2);
    let mut ignore = |_| Flow::Continue;
    let problem = engine
        .generate(&request, &mut ignore)
        .unwrap_err()
        .to_string();
    assert!(problem.contains(sentence), "{problem}");
    let fine = greedy(vec![1], 1);
    let problem = engine
        .generate_batch(&[fine, request])
        .unwrap_err()
        .to_string();
    assert!(
        problem.starts_with("request 1") && problem.contains(sentence),
        "{problem}"
    );
}

#[test]
fn what_cannot_be_answered_is_refused_with_a_sentence() {
    let fine = greedy(tokens(1, 4), 3);
    refused(greedy(Vec::new(), 3), "the prompt has no tokens");
    refused(
        greedy(tokens(1, 40), 3),
        "the prompt has 40 tokens, but the context holds 40",
    );
    refused(
        greedy(vec![1, VOCAB as u32], 3),
        "token 1 of the prompt (counted from 0) is 97",
    );
    refused(
        Request {
            max_tokens: 0,
            ..fine.clone()
        },
        "max_tokens is 0",
    );
    refused(
        Request {
            stop_tokens: vec![u32::MAX],
            ..fine.clone()
        },
        "token 0 of the stop tokens",
    );
    refused(
        Request {
            sampling: Sampling {
                top_p: 2.0,
                ..Sampling::GREEDY
            },
            ..fine
        },
        "top_p is 2",
    );
}

#[test]
fn a_model_without_room_for_an_answer_is_refused_in_its_own_words() {
    let context = 1;
    let narrow = Decoder::random(
        &Config {
            context,
            ..config()
        },
        1,
    );
    let problem = Engine::new(narrow, pool(1), EngineConfig::new(context, 1))
        .err()
        .expect("no setting would do")
        .to_string();
    assert!(
        problem.starts_with("the model's context holds 1 token, but"),
        "{problem}"
    );
}

#[test]
fn settings_of_the_engine_are_checked() {
    let problem = |config| {
        Engine::new(dense(), pool(1), config)
            .err()
            .expect("must be refused")
            .to_string()
    };
    let fine = EngineConfig::new(CONTEXT, 1);
    assert!(
        problem(EngineConfig {
            context: CONTEXT + 1,
            ..fine
        })
        .starts_with("context is 257, but it must be from 2 to 256")
    );
    assert!(problem(EngineConfig { context: 1, ..fine }).starts_with("context is 1"));
    assert!(problem(EngineConfig { slots: 0, ..fine }).starts_with("slots is 0"));
    assert!(
        problem(EngineConfig {
            prefill_chunk: 0,
            ..fine
        })
        .starts_with("prefill_chunk is 0")
    );
    for slots in [1 << 50, usize::MAX] {
        assert!(problem(EngineConfig { slots, ..fine }).contains("more than this machine gives"));
    }
}

#[test]
fn a_failed_request_leaves_the_engine_usable() {
    // One row of the embedding is damaged; the output table, being another, is not.
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
    let damaged = std::sync::Arc::new(damaged);
    let engine = || Engine::new(damaged.clone(), pool(1), EngineConfig::new(40, 2)).unwrap();
    let fine = vec![
        Request {
            sampling: Sampling::default(),
            ..greedy(vec![1, 2, 3], 5)
        };
        3
    ];
    let wanted = engine().generate_batch(&fine).unwrap();
    let mut engine = engine();
    // The damaged rows stay in the cache's pages, beyond those that the next answers write.
    let failed = engine.generate_batch(&[
        greedy(vec![1; 30], 4),
        greedy([vec![1], vec![7; 30]].concat(), 4),
    ]);
    assert!(matches!(failed, Err(Error::NotFinite)), "{failed:?}");
    for (got, wanted) in engine.generate_batch(&fine).unwrap().iter().zip(&wanted) {
        assert_eq!(
            (&got.tokens, &got.logprobs),
            (&wanted.tokens, &wanted.logprobs)
        );
    }
}

/// A teacher behind a wire, as the trait sees it.
struct Echo;

impl Generate for Echo {
    fn generate(
        &mut self,
        request: &Request,
        on_token: &mut dyn FnMut(Token) -> Flow,
    ) -> Result<Generation> {
        let id = *request.prompt.last().ok_or(Error::EmptyPrompt)?;
        on_token(Token { id, logprob: 0.0 });
        Ok(Generation {
            tokens: vec![id],
            logprobs: vec![0.0],
            top: Vec::new(),
            prompt_logprobs: Vec::new(),
            prompt_top: Vec::new(),
            embedding: Vec::new(),
            speculation: None,
            finish: Finish::Length,
            prompt_tokens: request.prompt.len(),
            reused_tokens: 0,
            prefill_seconds: 0.0,
            decode_seconds: 0.0,
        })
    }
}

#[test]
fn other_generators_answer_batches_one_by_one() {
    let teacher: &mut dyn Generate = &mut Echo;
    let answers = teacher
        .generate_batch(&[greedy(vec![3], 1), greedy(vec![1, 4], 1)])
        .unwrap();
    assert_eq!(
        answers
            .iter()
            .map(|answer| answer.tokens[0])
            .collect::<Vec<_>>(),
        [3, 4]
    );
    let problem = teacher
        .generate_batch(&[greedy(vec![3], 1), greedy(vec![], 1)])
        .unwrap_err();
    assert!(problem.to_string().starts_with("request 1"), "{problem}");
}
