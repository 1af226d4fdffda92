//! Generation from weights that are being trained: log-probabilities equal the trainer's after every update.

mod common;

use std::sync::Arc;

use common::{CONTEXT, dense, palettized, pool, sampled, tokens};
use russet_engine::{Engine, EngineConfig, Error, Flow, Generate, Reuse};
use russet_model::{Decoder, adapter};
use russet_tensor::{Ctx, Gradients, Segments};

/// One step of plain gradient descent on the tokens, through the same decoder.
fn train(decoder: &mut Decoder, tokens: &[u32]) {
    let mut ctx = Ctx::new(pool(2));
    let ids: Vec<_> = decoder.parameters().iter().map(|p| p.tensor.id()).collect();
    ctx.start_tape(ids);
    let inputs = &tokens[..tokens.len() - 1];
    let segments = Segments::packed(&[inputs.len()]);
    let hidden = decoder.forward(&mut ctx, inputs, &segments, None);
    let weights = vec![1.0 / inputs.len() as f32; inputs.len()];
    let loss = decoder.loss(&mut ctx, &hidden, &tokens[1..], &weights).loss;
    let mut gradients = Gradients::default();
    ctx.backward(&loss, 1.0, &mut gradients);
    decoder.visit_mut(&mut |tensor| {
        let Some(gradient) = gradients.get(tensor) else {
            return;
        };
        let gradient = gradient.data().to_vec();
        for (value, gradient) in tensor.data_mut().iter_mut().zip(gradient) {
            *value -= 0.5 * gradient;
        }
    });
}

#[test]
fn log_probabilities_equal_the_trainers_after_every_update() {
    let adapted = adapter::attach_new(palettized(), 2, 4.0, 3, |_| true).freeze();
    for (decoder, trains) in [(dense(), true), (adapted, false)] {
        let config = EngineConfig {
            reuse: Reuse::Prefix,
            ..EngineConfig::new(CONTEXT, 4)
        };
        let mut engine = Engine::new(decoder, pool(2), config).unwrap();
        let request = sampled(tokens(3, 70), 30, 1);
        let mut before: Option<Vec<f32>> = None;
        for round in 0..3 {
            let answers =
                [0, 1].map(|_| engine.generate(&request, &mut |_| Flow::Continue).unwrap());
            // What the former weights left is not found; what these left is.
            assert_eq!(answers[0].reused_tokens, 0, "round {round}");
            assert_eq!(answers[1].reused_tokens, 69);
            assert_eq!(answers[0].logprobs, answers[1].logprobs);
            let all = [&request.prompt[..], &answers[0].tokens].concat();
            let decoder = engine.decoder();
            let mut ctx = Ctx::new(pool(1));
            let inputs = &all[..all.len() - 1];
            let segments = Segments::packed(&[inputs.len()]);
            let hidden = decoder.forward(&mut ctx, inputs, &segments, None);
            let losses = decoder.token_losses(&mut ctx, &hidden, &all[1..]);
            for (logprob, loss) in answers[0].logprobs.iter().zip(&losses[69..]) {
                assert!(
                    (logprob + loss).abs() <= 1e-4,
                    "{logprob}, trainer {}",
                    -loss
                );
            }
            assert_ne!(before.as_ref(), Some(&answers[0].logprobs), "round {round}");
            before = Some(answers[0].logprobs.clone());
            let replaced = engine.replace_weights(|decoder| {
                // The engine holds nothing of it meanwhile, so it can be changed in place.
                let mut decoder = Arc::into_inner(decoder).expect("nobody else holds it");
                if trains {
                    train(&mut decoder, &all);
                } else {
                    decoder.visit_mut(&mut |t| t.data_mut().iter_mut().for_each(|v| *v += 0.01));
                }
                Arc::new(decoder)
            });
            replaced.unwrap();
        }
    }
}

#[test]
fn weights_stay_while_answers_are_on_their_way() {
    let mut engine = Engine::new(dense(), pool(1), EngineConfig::new(CONTEXT, 1)).unwrap();
    engine.submit(sampled(tokens(3, 70), 30, 1)).unwrap();
    let problem = engine
        .replace_weights(|_| panic!("must not be asked"))
        .unwrap_err();
    assert!(matches!(problem, Error::Busy { requests: 1 }), "{problem}");
    common::finish(&mut engine);
    engine.replace_weights(|decoder| decoder).unwrap();
}
