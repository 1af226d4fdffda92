//! Scores against hand values and plain oracles.

mod common;

use common::{CONTEXT, VOCAB, bigram, ctx, dense, palettized, tokens};
use russet_artifact::{Interrupt, NoProgress, Progress};
use russet_eval::{Comparison, Document, Error, Scores, Settings};
use russet_model::Decoder;
use russet_tensor::Segments;

fn perplexity(
    decoder: &Decoder,
    threads: usize,
    documents: &[Document],
    settings: &Settings,
) -> russet_eval::Result<Scores> {
    russet_eval::perplexity(
        decoder,
        &mut ctx(threads),
        documents,
        settings,
        &mut NoProgress,
        &Interrupt::new(),
    )
}

fn compare(
    models: [&Decoder; 2],
    threads: usize,
    documents: &[Document],
    settings: &Settings,
) -> russet_eval::Result<Comparison> {
    let [reference, other] = models;
    russet_eval::compare(
        reference,
        other,
        &mut ctx(threads),
        documents,
        settings,
        &mut NoProgress,
        &Interrupt::new(),
    )
}

fn document(tokens: Vec<u32>, bytes: u64) -> Document {
    Document { tokens, bytes }
}

fn close(what: &str, got: f64, wanted: f64, tolerance: f64) {
    assert!(
        (got - wanted).abs() <= tolerance * wanted.abs().max(1.0),
        "{what} is {got}, wanted {wanted}"
    );
}

const P: [&[f32]; 4] = [
    &[0.1, 0.2, 0.3, 0.4],
    &[0.25, 0.25, 0.25, 0.25],
    &[0.7, 0.1, 0.1, 0.1],
    &[0.05, 0.05, 0.6, 0.3],
];
const Q: [&[f32]; 4] = [
    &[0.4, 0.3, 0.2, 0.1],
    &[0.25, 0.25, 0.25, 0.25],
    &[0.4, 0.2, 0.2, 0.2],
    &[0.1, 0.1, 0.5, 0.3],
];

#[test]
fn scores_equal_hand_values() {
    // Token 0 begins each text; what is read is 0→3→2→0 and 0→1.
    let documents = [document(vec![3, 2, 0], 5), document(vec![1], 2)];
    let settings = Settings::new(0, 16);
    let scores = perplexity(&bigram(&P), 1, &documents, &settings).unwrap();
    let probability: f64 = 0.4 * 0.6 * 0.7 * 0.2;
    close("nats", scores.nats, -probability.ln(), 1e-5);
    assert_eq!((scores.tokens, scores.bytes), (4, 7));
    close(
        "perplexity",
        scores.perplexity,
        probability.powf(-0.25),
        1e-5,
    );
    close(
        "bits per byte",
        scores.bits_per_byte,
        -probability.log2() / 7.0,
        1e-5,
    );
}

#[test]
fn divergence_equals_hand_values() {
    let documents = [document(vec![3, 2, 0], 5), document(vec![1], 2)];
    let comparison = compare(
        [&bigram(&P), &bigram(&Q)],
        1,
        &documents,
        &Settings::new(0, 16),
    )
    .unwrap();
    // The last tokens that predictions are made from are 0, 3, 2, and 0.
    let divergence = |p: [&[f32]; 4], q: [&[f32]; 4]| -> f64 {
        let cell = |(&p, &q): (&f32, &f32)| f64::from(p) * (f64::from(p) / f64::from(q)).ln();
        [0, 3, 2, 0]
            .iter()
            .map(|&row: &usize| p[row].iter().zip(q[row]).map(cell).sum::<f64>() / 4.0)
            .sum()
    };
    close("kld", comparison.kld, divergence(P, Q), 1e-5);
    // After 0 the models expect 3 and 0, after 3 both expect 2, after 2 both expect 0.
    assert_eq!(comparison.same_top, 0.5);
    close(
        "reference",
        comparison.reference.nats,
        -(0.4f64 * 0.6 * 0.7 * 0.2).ln(),
        1e-5,
    );
    close(
        "other",
        comparison.other.nats,
        -(0.1f64 * 0.5 * 0.4 * 0.3).ln(),
        1e-5,
    );
    // The divergence is not symmetric.
    let back = compare(
        [&bigram(&Q), &bigram(&P)],
        1,
        &documents,
        &Settings::new(0, 16),
    )
    .unwrap();
    close("kld from the other side", back.kld, divergence(Q, P), 1e-5);
    assert!(
        (back.kld - comparison.kld).abs() > 1e-3,
        "{} and {}",
        back.kld,
        comparison.kld
    );
}

/// Random documents, some much longer than a window.
fn documents() -> Vec<Document> {
    [5, 100, 0, 33, 1, 64, 32]
        .iter()
        .zip(1..)
        .map(|(&len, seed)| document(tokens(seed, len), len as u64 * 3))
        .collect()
}

/// Each token's loss by a pass of its own over exactly the context that the settings promise.
fn oracle(decoder: &Decoder, settings: &Settings) -> f64 {
    let mut ctx = ctx(1);
    let mut nats = 0.0;
    for document in documents() {
        let mut inputs = vec![settings.bos];
        inputs.extend(&document.tokens);
        for (i, &target) in document.tokens.iter().enumerate() {
            // The first window that reaches input i.
            let start = (i + 1)
                .saturating_sub(settings.window)
                .div_ceil(settings.stride)
                * settings.stride;
            let inputs = &inputs[start..=i];
            let hidden =
                decoder.forward(&mut ctx, inputs, &Segments::packed(&[inputs.len()]), None);
            let mut targets = vec![u32::MAX; inputs.len()];
            targets[inputs.len() - 1] = target;
            nats += f64::from(
                decoder
                    .token_losses(&mut ctx, &hidden, &targets)
                    .iter()
                    .sum::<f32>(),
            );
        }
    }
    nats
}

#[test]
fn windows_see_the_context_they_should() {
    for decoder in [dense(1), palettized(&dense(1))] {
        let mut all = Vec::new();
        for (window, stride, batch_tokens) in
            [(CONTEXT, 32, 64), (32, 32, 70), (20, 7, 500), (1, 1, 1)]
        {
            let settings = Settings {
                bos: 0,
                window,
                stride,
                batch_tokens,
                ..Settings::new(0, 1)
            };
            let scores = perplexity(&decoder, 2, &documents(), &settings).unwrap();
            close(
                &format!("{settings:?}"),
                scores.nats,
                oracle(&decoder, &settings),
                1e-5,
            );
            all.push(scores.nats);
        }
        all.dedup();
        assert_eq!(
            all.len(),
            4,
            "windows of other sizes must matter, or nothing was tested: {all:?}"
        );
    }
}

#[test]
fn a_text_shorter_than_the_window_is_seen_whole() {
    let decoder = dense(1);
    let text = tokens(8, 40);
    let mut ctx = ctx(1);
    let mut inputs = vec![0];
    inputs.extend(&text[..39]);
    let hidden = decoder.forward(&mut ctx, &inputs, &Segments::packed(&[40]), None);
    let whole: f64 = decoder
        .token_losses(&mut ctx, &hidden, &text)
        .iter()
        .map(|&loss| f64::from(loss))
        .sum();
    for (window, stride) in [(40, 20), (40, 1), (64, 64), (41, 3)] {
        let settings = Settings {
            stride,
            ..Settings::new(0, window)
        };
        let scores = perplexity(&decoder, 1, &[document(text.clone(), 40)], &settings).unwrap();
        assert_eq!(scores.nats, whole, "{settings:?}");
    }
}

#[test]
fn a_random_model_is_nearly_as_good_as_none() {
    // Logits of unit variance cost half a nat more than none at all, ln V.
    let scores = perplexity(
        &dense(3),
        2,
        &[document(tokens(9, 2000), 2000)],
        &Settings::new(0, CONTEXT),
    )
    .unwrap();
    let nats = scores.nats / 2000.0;
    let none = (VOCAB as f64).ln();
    assert!(nats > none && nats < none + 1.0, "{nats}, ln V is {none}");
}

#[test]
fn a_model_compared_with_itself_does_not_differ() {
    for decoder in [dense(1), palettized(&dense(1))] {
        let comparison =
            compare([&decoder, &decoder], 2, &documents(), &Settings::new(0, 32)).unwrap();
        assert_eq!((comparison.kld, comparison.same_top), (0.0, 1.0));
        assert_eq!(comparison.reference, comparison.other);
    }
}

#[test]
fn comparing_scores_each_model_as_perplexity_does() {
    let reference = dense(1);
    let other = palettized(&reference);
    let settings = Settings {
        batch_tokens: 1000,
        ..Settings::new(0, 32)
    }; // more rows than one chunk of logits
    let comparison = compare([&reference, &other], 2, &documents(), &settings).unwrap();
    for (decoder, scores) in [
        (&reference, comparison.reference),
        (&other, comparison.other),
    ] {
        close(
            "nats",
            scores.nats,
            perplexity(decoder, 2, &documents(), &settings)
                .unwrap()
                .nats,
            1e-6,
        );
    }
    // Four even-stepped bits hurt, and far less than another model would.
    let stranger = compare([&reference, &dense(2)], 2, &documents(), &settings).unwrap();
    assert!(
        comparison.kld > 1e-4 && comparison.kld < 0.2 * stranger.kld,
        "{} and {}",
        comparison.kld,
        stranger.kld
    );
    assert!(
        comparison.same_top > 3.0 * stranger.same_top,
        "{} and {}",
        comparison.same_top,
        stranger.same_top
    );
}

#[test]
fn threads_change_nothing() {
    let reference = dense(1);
    let other = palettized(&reference);
    let settings = Settings::new(0, 32);
    for decoder in [&reference, &other] {
        let run = |threads| perplexity(decoder, threads, &documents(), &settings).unwrap();
        assert_eq!(run(1), run(2));
    }
    let run = |threads| compare([&reference, &other], threads, &documents(), &settings).unwrap();
    assert_eq!(run(1), run(2));
}

#[test]
fn what_cannot_be_scored_is_refused_with_a_sentence() {
    let decoder = dense(1);
    let fine = Settings::new(0, 32);
    let texts = documents();
    let refused = |documents: &[Document], settings: Settings, sentence: &str| {
        for problem in [
            perplexity(&decoder, 1, documents, &settings).unwrap_err(),
            compare([&decoder, &decoder], 1, documents, &settings).unwrap_err(),
        ] {
            assert!(problem.to_string().starts_with(sentence), "{problem}");
        }
    };
    refused(
        &texts,
        Settings::new(0, 65),
        "window is 65, but it must be from 1 to 64",
    );
    refused(&texts, Settings { window: 0, ..fine }, "window is 0");
    refused(
        &texts,
        Settings { stride: 33, ..fine },
        "stride is 33, but it must be from 1 to 32",
    );
    refused(&texts, Settings { stride: 0, ..fine }, "stride is 0");
    refused(
        &texts,
        Settings {
            batch_tokens: 31,
            ..fine
        },
        "batch_tokens is 31, but it must be at least 32",
    );
    refused(&texts, Settings { bos: 53, ..fine }, "bos is 53");
    refused(
        &[document(vec![1], 1), document(vec![2, 53], 1)],
        fine,
        "token 1 of document 1 (both counted from 0) is 53",
    );
    refused(&[], fine, "the documents hold 0 tokens");
    refused(
        &[document(vec![1, 2], 0)],
        fine,
        "the documents hold 2 tokens of 0 bytes",
    );

    let problem = compare([&decoder, &bigram(&P)], 1, &texts, &fine).unwrap_err();
    assert!(
        problem
            .to_string()
            .starts_with("the reference model has 53 tokens in its vocabulary and the other 4")
    );
}

#[test]
fn a_model_that_computes_no_numbers_is_refused() {
    let fine = dense(1);
    let mut damaged = dense(1);
    let mut first = true;
    damaged.visit_mut(&mut |tensor| {
        if std::mem::take(&mut first) {
            tensor.data_mut()[40] = f32::NAN;
        }
    });
    let settings = Settings::new(0, 32);
    assert!(matches!(
        perplexity(&damaged, 1, &documents(), &settings),
        Err(Error::NotFinite)
    ));
    for models in [[&fine, &damaged], [&damaged, &fine]] {
        assert!(matches!(
            compare(models, 1, &documents(), &settings),
            Err(Error::NotFinite)
        ));
    }
}

/// Keeps what it is told, and asks to stop after so many updates.
struct Listener {
    told: Vec<String>,
    patience: usize,
    interrupt: Interrupt,
}

impl Progress for Listener {
    fn begin(&mut self, stage: &str, total: Option<u64>, unit: &str) {
        self.told
            .push(format!("{stage} of {} {unit}", total.unwrap()));
    }
    fn update(&mut self, done: u64, fields: &[(&str, f64)]) {
        assert!(fields.iter().all(|(_, value)| value.is_finite()));
        self.told.push(format!(
            "{done} {:?}",
            fields.iter().map(|field| field.0).collect::<Vec<_>>()
        ));
        self.patience -= 1;
        if self.patience == 0 {
            self.interrupt.raise();
        }
    }
    fn message(&mut self, _: &str) {}
    fn end(&mut self) {
        self.told.push("end".into());
    }
}

#[test]
fn progress_is_told_and_interruption_heard() {
    let decoder = dense(1);
    let settings = Settings {
        batch_tokens: 40,
        ..Settings::new(0, 40)
    };
    let texts = [
        document(tokens(1, 30), 1),
        document(tokens(2, 40), 1),
        document(tokens(3, 10), 1),
    ];
    for patience in [9, 2] {
        let interrupt = Interrupt::new();
        let mut listener = Listener {
            told: Vec::new(),
            patience,
            interrupt: interrupt.clone(),
        };
        let scores = russet_eval::perplexity(
            &decoder,
            &mut ctx(1),
            &texts,
            &settings,
            &mut listener,
            &interrupt,
        );
        let mut wanted = vec![
            "perplexity of 80 tokens",
            "30 [\"perplexity\"]",
            "70 [\"perplexity\"]",
            "80 [\"perplexity\"]",
            "end",
        ];
        if patience == 2 {
            wanted.remove(3);
            assert!(matches!(scores, Err(Error::Interrupted)));
        } else {
            assert_eq!(scores.unwrap().tokens, 80);
        }
        assert_eq!(listener.told, wanted);

        let interrupt = Interrupt::new();
        let mut listener = Listener {
            told: Vec::new(),
            patience,
            interrupt: interrupt.clone(),
        };
        let comparison = russet_eval::compare(
            &decoder,
            &decoder,
            &mut ctx(1),
            &texts,
            &settings,
            &mut listener,
            &interrupt,
        );
        assert_eq!(comparison.is_err(), patience == 2);
        assert_eq!(
            listener.told[..2],
            ["compare of 80 tokens", "30 [\"perplexity\", \"kld\"]"]
        );
        assert_eq!(listener.told.last().unwrap(), "end");
    }
}

#[test]
fn scores_travel_as_json() {
    let scores = perplexity(
        &bigram(&P),
        1,
        &[document(vec![1], 2)],
        &Settings::new(0, 8),
    )
    .unwrap();
    let json = serde_json::to_value(scores).unwrap();
    let mut keys: Vec<_> = json
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable(); // how JSON's maps order them is a feature that any dependency may switch
    assert_eq!(
        keys,
        ["bits_per_byte", "bytes", "nats", "perplexity", "tokens"]
    );
    assert_eq!(serde_json::from_value::<Scores>(json).unwrap().tokens, 1);
}
