//! Needle retrieval on decoders whose answers are known.

mod common;

use common::{CONTEXT, bigram, ctx, dense};
use russet_artifact::{Interrupt, NoProgress};
use russet_eval::needle::{Haystack, NeedleScores, NeedleSettings, needle};
use russet_eval::{Error, Result};
use russet_kernels::random;
use russet_model::Decoder;
use russet_tensor::ops::IGNORE;
use russet_tensor::{Gradients, Segments};

const STEPS: i32 = 400;
const BATCH: usize = 64;

fn haystack() -> Haystack {
    Haystack {
        filler: vec![4, 5],
        words: vec![0, 1, 2, 3],
        phrase: [vec![4], vec![5], vec![4]],
    }
}

fn settings() -> NeedleSettings {
    NeedleSettings {
        bos: 0,
        lengths: vec![12, 20],
        depths: vec![0.0, 0.5, 1.0],
        trials: 30,
        values: 3,
        seed: 1,
    }
}

fn ask(decoder: &Decoder, threads: usize, settings: &NeedleSettings) -> Result<NeedleScores> {
    needle(
        decoder,
        &mut ctx(threads),
        &haystack(),
        settings,
        &mut NoProgress,
        &Interrupt::new(),
    )
}

/// What follows " is" (5) depends on nothing else: the ranks are those of fixed probabilities, and a fact brings nothing.
#[test]
fn a_model_that_sees_only_the_last_token_finds_nothing() {
    let last: &[f32] = &[0.4, 0.3, 0.15, 0.05, 0.05, 0.05];
    let rows = [last; 6];
    let scores = ask(&bigram(&rows), 2, &settings()).unwrap();
    assert_eq!((scores.values, scores.trials), (3, 30));
    let all = scores.lengths.iter().flat_map(|length| &length.depths);
    for depth in all {
        assert!(depth.found.gain.abs() < 1e-5, "{depth:?}");
        assert_eq!(
            depth.found.accuracy, scores.found.accuracy,
            "the same words at each depth"
        );
        assert!((1.0..=3.0).contains(&depth.found.mean_rank));
    }
    // Thirty right values drawn evenly out of four: about a third are the likeliest of their three.
    assert!(
        (scores.found.accuracy - scores.chance).abs() < 0.25,
        "{scores:?}"
    );
    assert_eq!(
        scores.lengths.iter().map(|l| l.length).collect::<Vec<_>>(),
        [12, 20]
    );
    // The log-probabilities of the four words alone.
    let (most, least) = (0.4f64.ln(), 0.05f64.ln());
    assert!(scores.found.log_prob < most && scores.found.log_prob > least);
}

#[test]
fn threads_change_no_score_and_seeds_do() {
    let decoder = dense(3);
    let one = ask(&decoder, 1, &settings()).unwrap();
    assert_eq!(one, ask(&decoder, 2, &settings()).unwrap());
    let other = NeedleSettings {
        seed: 2,
        ..settings()
    };
    assert_ne!(one, ask(&decoder, 1, &other).unwrap());
    // A random decoder sees its context: the fact changes something.
    assert!(one.found.gain != 0.0);
}

#[test]
fn what_cannot_be_asked_is_refused_with_a_sentence() {
    let refused = |change: &dyn Fn(&mut NeedleSettings), sentence: &str| {
        let mut settings = settings();
        change(&mut settings);
        let problem = ask(&dense(1), 1, &settings).unwrap_err().to_string();
        assert!(problem.contains(sentence), "{problem}");
    };
    refused(
        &|s| s.lengths = vec![CONTEXT + 1],
        "the context of the model",
    );
    refused(
        &|s| s.lengths = vec![9],
        "which hold the fact and the question",
    );
    refused(&|s| s.values = 4, "from 2 to 3");
    refused(&|s| s.values = 1, "from 2 to 3");
    refused(&|s| s.trials = 0, "trials is 0");
    refused(&|s| s.depths = vec![1.5], "depth in percent is 150");
    refused(&|s| s.bos = 1000, "a token of the haystack is 1000");
    let raised = Interrupt::new();
    raised.raise();
    let stopped = needle(
        &dense(1),
        &mut ctx(1),
        &haystack(),
        &settings(),
        &mut NoProgress,
        &raised,
    );
    assert!(matches!(stopped, Err(Error::Interrupted)));
}

/// A decoder that has learnt to look back for what was said of a key: prompts of the same make, one right answer. Plain Adam, so
/// that nothing but the decoder and its gradients is needed.
fn retriever() -> Decoder {
    const LENGTH: usize = 16;
    let (mut decoder, mut ctx) = (dense(5), ctx(2));
    let mut moments: Vec<Vec<[f32; 2]>> = decoder
        .parameters()
        .iter()
        .map(|parameter| vec![[0.0; 2]; parameter.tensor.len()])
        .collect();
    for step in 1..=STEPS {
        let (mut tokens, mut targets) = (Vec::new(), Vec::new());
        for row in 0..BATCH {
            let draw = |i: u64, n: u64| random::below(step as u64, row as u64, i, n) as u32;
            let (key, value) = (draw(0, 4), draw(1, 4));
            let place = draw(2, LENGTH as u64 - 8) as usize;
            let mut prompt: Vec<u32> = (0..LENGTH as u64 - 8).map(|i| 4 + draw(3 + i, 2)).collect();
            prompt.splice(place..place, [4, key, 5, value, 4]);
            prompt.extend([4, key, 5]);
            targets.extend(vec![IGNORE; LENGTH - 1]);
            targets.push(value);
            tokens.extend(prompt);
        }
        let segments = Segments::packed(&[LENGTH; BATCH]);
        let weights = vec![1.0 / BATCH as f32; tokens.len()];
        ctx.start_tape(
            decoder
                .parameters()
                .iter()
                .map(|parameter| parameter.tensor.id()),
        );
        let hidden = decoder.forward(&mut ctx, &tokens, &segments, None);
        let loss = decoder.loss(&mut ctx, &hidden, &targets, &weights).loss;
        let mut gradients = Gradients::default();
        ctx.backward(&loss, 1.0, &mut gradients);
        let mut moments = moments.iter_mut();
        decoder.visit_mut(&mut |tensor| {
            let moments = moments.next().unwrap();
            let gradient = gradients.get(tensor).unwrap().data();
            for ((w, g), [m, v]) in tensor.data_mut().iter_mut().zip(gradient).zip(moments) {
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.98 * *v + 0.02 * g * g;
                let debiased = (*v / (1.0 - 0.98f32.powi(step))).sqrt() + 1e-8;
                *w -= 3e-3 * *m / (1.0 - 0.9f32.powi(step)) / debiased;
            }
        });
    }
    decoder
}

#[test]
fn a_model_that_looks_back_finds_the_fact_at_every_depth() {
    let asked = NeedleSettings {
        lengths: vec![16],
        ..settings()
    };
    let scores = ask(&retriever(), 2, &asked).unwrap();
    for depth in &scores.lengths[0].depths {
        assert!(depth.found.accuracy > 0.75, "{depth:?}");
        assert!(
            depth.found.mean_rank < 1.5 && depth.found.gain > 0.5,
            "{depth:?}"
        );
    }
}
