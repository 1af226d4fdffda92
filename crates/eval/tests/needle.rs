//! Needle retrieval on decoders whose answers are known.

mod common;

use common::{CONTEXT, bigram, ctx, dense};
use russet_artifact::{Interrupt, NoProgress};
use russet_eval::needle::{Haystack, NeedleScores, NeedleSettings, needle};
use russet_eval::{Error, Result};
use russet_model::Decoder;

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
