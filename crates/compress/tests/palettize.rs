//! The stage as a whole, on small checkpoints of both families.

mod common;

use std::path::{Path, PathBuf};

use common::{Cut, divergence, files, golden, noise, pool, run, stories, target, width, widths};
use russet_artifact::{Interrupt, Progress};
use russet_compress::{
    CompressError, Sensitivity, Settings, State, TableBits, Weighting, Width, lossless, palettize,
};
use russet_kernels::palette::Bits;
use russet_model::{Config, Decoder, checkpoint, package};
use russet_tensor::{Ctx, Segments, Tensor};

fn hidden(decoder: &Decoder, tokens: &[u32]) -> Tensor {
    decoder.forward(
        &mut Ctx::new(pool(2)),
        tokens,
        &Segments::packed(&[tokens.len()]),
        None,
    )
}

#[test]
fn every_family_becomes_a_package_of_at_most_the_bits_asked_for() {
    let mut threes = 0;
    for name in [
        "qwen3-gqa-tied",
        "qwen3-mha-untied",
        "qwen3-bf16",
        "llama-gqa-tied",
        "llama-mha-untied",
        "llama-gqa-sharded",
    ] {
        let from = golden("models").join(name);
        let config = Config::open(&from).unwrap();
        let three = name.ends_with("-tied"); // half of them
        let settings = Settings {
            target_bpw: target(&config, 0.6),
            bits: widths(if three { &[2, 3, 4] } else { &[2, 4] }),
            ..Settings::default()
        };
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let documents = noise(&config);
        let report = run(1, &settings, &from, &documents, one.path()).unwrap();
        run(2, &settings, &from, &documents, two.path()).unwrap();
        assert!(
            files(one.path()) == files(two.path()),
            "{name}: the number of threads changed a file"
        );

        let package = package::load(one.path()).unwrap();
        let stored: usize = package.linears().map(|linear| linear.stored_bytes()).sum();
        let bpw = 8.0 * stored as f64 / config.projection_parameters() as f64;
        assert!(
            (report.bpw - bpw).abs() < 1e-9 && bpw <= settings.target_bpw,
            "{name}: {} reported, {bpw} stored",
            report.bpw
        );
        let header = 4096;
        let on_disk = files(one.path())["model.safetensors"].len() as u64;
        assert!(
            report.bytes <= on_disk && on_disk < report.bytes + 3 * header,
            "{name}: {} of {on_disk}",
            report.bytes
        );
        assert_eq!(
            report.bits_per_parameter,
            8.0 * report.bytes as f64 / config.parameters() as f64
        );
        assert_eq!(
            (report.layers.len(), report.weights),
            (7 * config.layers, config.projection_parameters() as u64)
        );
        let some = |bits| report.layers.iter().any(|layer| layer.bits == width(bits));
        assert!(some(4) && (three || some(2)), "{name}");
        threes += usize::from(some(3));
        assert!(
            report
                .layers
                .iter()
                .all(|layer| settings.bits.contains(&layer.bits))
        );
        assert!(
            report
                .layers
                .iter()
                .all(|layer| layer.rises.is_empty() != three)
        );
        assert!(
            report
                .layers
                .iter()
                .all(|layer| layer.error > 0.0 && layer.error < 0.5),
            "{:?}",
            report.layers
        );
        // Random models know nothing, so being compressed cannot cost them much.
        assert!(
            (report.loss_after - report.loss_before).abs() < 0.5
                && report.calibration_tokens == 6 * 19
        );
        assert!(report.seconds > 0.0);
    }
    // Where the columns are so few that three bits take as much as four, nobody chooses them.
    assert!(threes > 0, "no package has three bits");
}

#[test]
fn each_idea_makes_a_trained_model_lose_less() {
    let (decoder, stories) = stories();
    let from = tempfile::tempdir().unwrap();
    checkpoint::save(&decoder, from.path()).unwrap();
    let rise = |settings: &Settings| {
        let to = tempfile::tempdir().unwrap();
        let report = run(2, settings, from.path(), &stories, to.path()).unwrap();
        report.loss_after - report.loss_before
    };
    let best = Settings {
        target_bpw: target(decoder.config(), 0.75),
        ..Settings::default()
    };
    let without_feedback = Settings {
        error_feedback: false,
        ..best.clone()
    };
    let (with, without) = (rise(&best), rise(&without_feedback));
    assert!(
        with < 0.9 * without,
        "a rise of {with} nats with error feedback, {without} without"
    );
    // The least bits cost far more than the most.
    let rises = [0.0, 1.0].map(|share| {
        rise(&Settings {
            target_bpw: target(decoder.config(), share) * (1.0 + 1e-12 * (1.0 - 2.0 * share)),
            ..best.clone()
        })
    });
    assert!(
        rises[1] > 0.0 && rises[1] < with && with < 0.3 * rises[0],
        "{rises:?}, {with} between"
    );
    let by_size = rise(&Settings {
        weighting: Weighting::None,
        ..without_feedback.clone()
    });
    // On a model this small weighting alone is within the noise of its training; what stands is the whole against neither.
    assert!(
        with < 0.95 * by_size,
        "a rise of {with} nats with both ideas, {by_size} with neither"
    );
}

#[test]
fn three_bits_among_the_choice_lose_no_more() {
    let (decoder, stories) = stories();
    let from = tempfile::tempdir().unwrap();
    checkpoint::save(&decoder, from.path()).unwrap();
    let made = |bits: &[u32]| {
        let settings = Settings {
            target_bpw: target(decoder.config(), 0.45), // 3.0 on a model so wide that its scales do not count
            bits: widths(bits),
            ..Settings::default()
        };
        let to = tempfile::tempdir().unwrap();
        let report = run(2, &settings, from.path(), &stories, to.path()).unwrap();
        assert!(report.bpw <= settings.target_bpw);
        let package = package::load(to.path()).unwrap();
        let widths = report
            .layers
            .iter()
            .map(|layer| layer.bits)
            .collect::<Vec<_>>();
        (divergence(&decoder, &package, &stories[..8]), widths)
    };
    let ((with, widths), (without, _)) = (made(&[2, 3, 4]), made(&[2, 4]));
    assert!(widths.contains(&width(3)), "{widths:?}");
    assert!(
        with <= without,
        "{with} nats with three bits, {without} without"
    );
}

#[test]
fn a_package_has_the_bytes_that_were_asked_for_and_the_bits_that_were_pinned() {
    let from = golden("models/qwen3-gqa-tied");
    let config = Config::open(&from).unwrap();
    let documents = vec![
        (0..20)
            .map(|i| i % config.vocab as u32)
            .collect::<Vec<u32>>();
        3
    ];
    let all = |bits: u32| Settings {
        pins: [("*".to_owned(), width(bits))].into(),
        target_bytes: Some(u64::from(bits)),
        ..Settings::default()
    };
    // What all twos and all fours take is what the refusals say.
    let [least, most] = [2, 4].map(|bits| {
        let said = all(bits).check(&config).unwrap_err().to_string();
        let number = said
            .split("takes ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        number.parse::<u64>().unwrap()
    });
    let settings = Settings {
        pins: [
            ("*.v_proj".to_owned(), width(2)),
            ("*.k_proj".to_owned(), width(3)),
            ("*.layers.1.mlp.*".to_owned(), width(4)),
        ]
        .into(),
        bits: widths(&[2, 4]),
        target_bytes: Some((least + 2 * most) / 3),
        ..Settings::default()
    };
    let to = tempfile::tempdir().unwrap();
    let report = run(2, &settings, &from, &documents, to.path()).unwrap();
    let stored = std::fs::metadata(to.path().join("model.safetensors"))
        .unwrap()
        .len();
    assert!(report.bytes <= (least + 2 * most) / 3 && report.bytes < stored);
    for layer in &report.layers {
        if layer.name.ends_with("v_proj") {
            assert_eq!(layer.bits, width(2), "{}", layer.name);
        } else if layer.name.ends_with("k_proj") {
            assert_eq!(layer.bits, width(3), "{}", layer.name);
        } else if layer.name.contains("layers.1.mlp") {
            assert_eq!(layer.bits, width(4), "{}", layer.name);
        } else {
            assert_ne!(layer.bits, width(3), "{}", layer.name); // pinned, not chosen
        }
    }
    // The curve passes by the package, and says of it what its layers say.
    let rise = |layer: &russet_compress::LayerReport| layer.rises.get(layer.bits.0.name()).copied();
    let rise: f64 = report.layers.iter().filter_map(rise).sum();
    let lighter = report
        .curve
        .iter()
        .find(|point| point.bytes <= report.bytes)
        .unwrap();
    let heavier = report
        .curve
        .iter()
        .rfind(|point| point.bytes >= report.bytes)
        .unwrap();
    assert!(
        heavier.rise <= rise + 1e-12 && rise <= lighter.rise + 1e-12,
        "{rise} {:?}",
        report.curve
    );
    let plot = std::fs::read_to_string(to.path().join("trade-off.svg")).unwrap();
    assert!(
        plot.starts_with("<svg") && plot.trim_end().ends_with("</svg>") && !plot.contains("NaN")
    );
}

#[test]
fn tables_of_four_bits_make_a_smaller_package_that_loses_little() {
    for name in ["qwen3-gqa-tied", "llama-mha-untied"] {
        let from = golden("models").join(name);
        let config = Config::open(&from).unwrap();
        let made = |table_bits: TableBits, threads: usize, sensitivity: Sensitivity| {
            let settings = Settings {
                target_bpw: target(&config, 0.6),
                table_bits,
                sensitivity,
                ..Settings::default()
            };
            let to = tempfile::tempdir().unwrap();
            let report = run(threads, &settings, &from, &noise(&config), to.path()).unwrap();
            (to, report)
        };
        use Sensitivity::{Measured, Predicted};
        let (eight, before) = made(TableBits::Eight, 1, Predicted);
        let (four, report) = made(TableBits::Four, 1, Predicted);
        let (again, _) = made(TableBits::Four, 2, Predicted);
        assert!(
            files(four.path()) == files(again.path()),
            "{name}: the number of threads changed a file"
        );
        // Only the tables are others: the same bits a weight, and fewer of the whole.
        assert_eq!((report.bpw, &report.layers), (before.bpw, &before.layers));
        let tables = if config.tied { 1 } else { 2 };
        let bytes = |bits: usize| config.vocab.div_ceil(16) * 64 * config.width.div_ceil(32 / bits);
        let saved = bytes(8) - bytes(4) - config.vocab.div_ceil(16) * 16;
        assert_eq!(before.bytes - report.bytes, (tables * saved) as u64);
        assert_eq!(
            report.bits_per_parameter,
            8.0 * report.bytes as f64 / config.parameters() as f64
        );
        let on_disk = files(four.path())["model.safetensors"].len() as u64;
        assert!(report.bytes <= on_disk && on_disk < report.bytes + 3 * 4096);
        let point = report.curve.iter().map(|point| point.bytes);
        let lower = before
            .curve
            .iter()
            .map(|point| point.bytes - (tables * saved) as u64);
        assert!(
            point.eq(lower),
            "the curve has the bytes of the whole package"
        );
        let card = String::from_utf8(files(four.path())["README.md"].clone()).unwrap();
        assert!(card.contains("whose embedding has 4 bits"), "{card}");
        let [four, eight] = [&four, &eight].map(|to| package::load(to.path()).unwrap());
        assert_eq!(
            eight.stored_bytes() - four.stored_bytes(),
            tables * saved,
            "{name}"
        );
        assert!((report.loss_after - report.loss_before).abs() < 0.5);
        // The way for a whole decoder writes the same tables.
        let (whole, measured) = made(TableBits::Four, 2, Measured);
        assert_eq!(measured.bytes.cmp(&before.bytes), std::cmp::Ordering::Less);
        let whole = package::load(whole.path()).unwrap();
        let tokens: Vec<u32> = (0..config.vocab as u32).collect();
        let rows = [&whole, &four].map(|decoder| decoder.first(&mut Ctx::new(pool(1)), &tokens));
        assert_eq!(rows[0].data(), rows[1].data());
    }
}

#[test]
fn pairs_become_a_package_that_runs_and_is_the_same_on_any_number_of_threads() {
    let (decoder, stories) = stories();
    let from = tempfile::tempdir().unwrap();
    checkpoint::save(&decoder, from.path()).unwrap();
    let mut lost = Vec::new();
    for (bits, error_feedback) in [
        (Bits::Two, true),
        (Bits::TwoPairs, true),
        (Bits::TwoPairs, false),
    ] {
        let settings = Settings {
            target_bpw: 3.9,
            bits: vec![Width(bits)],
            pins: [("*.1.mlp.up_proj".to_owned(), Width(Bits::ThreePairs))].into(),
            error_feedback,
            ..Settings::default()
        };
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let report = run(1, &settings, from.path(), &stories, one.path()).unwrap();
        run(2, &settings, from.path(), &stories, two.path()).unwrap();
        assert!(files(one.path()) == files(two.path()), "{bits:?}");
        for layer in &report.layers {
            let pinned = layer.name.ends_with("1.mlp.up_proj");
            let want = if pinned { Bits::ThreePairs } else { bits };
            assert_eq!(layer.bits, Width(want), "{}", layer.name);
            assert!(layer.rises.contains_key("3v") && layer.rises.contains_key(bits.name()));
        }
        let package = package::load(one.path()).unwrap();
        lost.push(divergence(&decoder, &package, &stories[..8]));
    }
    assert!(
        lost[1] < lost[0] && lost[1] < lost[2],
        "single weights, pairs, pairs without feedback: {lost:?} nats"
    );
}

/// A decoder of ragged sizes whose weights are drawn from palettes of two bits in q and gate, three in down, four elsewhere.
fn exact(family: &str, seed: u64, table: TableBits) -> (Decoder, russet_compress::Compressed) {
    let json = serde_json::json!({
        "architectures": [family], "vocab_size": 50, "hidden_size": 36, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 20, "intermediate_size": 70,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "hidden_act": "silu",
        "tie_word_embeddings": seed.is_multiple_of(2), "bos_token_id": 0, "eos_token_id": 0,
    });
    let config = Config::parse(json.as_object().unwrap()).unwrap();
    let two = |name: &str| name.ends_with("q_proj") || name.ends_with("gate_proj");
    let bits = |name: &str| match () {
        () if two(name) => Bits::Two,
        () if name.ends_with("down_proj") => Bits::Three,
        () => Bits::Four,
    };
    lossless::decoder(&pool(2), &config, seed, bits, table).unwrap()
}

#[test]
fn a_lossless_package_equals_its_dense_form_but_for_rounded_activations() {
    use TableBits::{Eight, Four};
    for (family, seed, table) in [
        ("Qwen3ForCausalLM", 1, Eight),
        ("LlamaForCausalLM", 2, Eight),
        ("Qwen3ForCausalLM", 3, Four),
    ] {
        let (dense, compressed) = exact(family, seed, table);
        let folder = tempfile::tempdir().unwrap();
        compressed.write(folder.path()).unwrap();
        let package = package::load(folder.path()).unwrap();
        let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 50).collect();
        let (got, want) = (hidden(&package, &tokens), hidden(&dense, &tokens));
        let squares =
            |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
        let off = squares(&mut got.data().iter().zip(want.data()).map(|(a, b)| a - b));
        let size = squares(&mut want.data().iter().copied());
        // Activations round to 1/127 of a block's largest: 0.3 % of their size at a product, about 1 % after two layers of four.
        assert!(
            off > 0.0 && (off / size).sqrt() < 0.03,
            "{family}: off by {}",
            (off / size).sqrt()
        );
    }
}

#[test]
fn weights_that_come_from_tables_come_back_exactly() {
    use TableBits::{Eight, Four};
    for (seed, weighting, error_feedback, table_bits) in [
        (3, Weighting::Fisher, true, Eight),
        (4, Weighting::Activation, false, Four),
        (5, Weighting::None, true, Eight),
        (7, Weighting::None, false, Four),
    ] {
        let (dense, compressed) = exact("Qwen3ForCausalLM", seed, table_bits);
        let (from, want, to) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        checkpoint::save(&dense, from.path()).unwrap();
        compressed.write(want.path()).unwrap();
        let package = package::load(want.path()).unwrap();
        let stored: usize = package.linears().map(|linear| linear.stored_bytes()).sum();
        let settings = Settings {
            // Just what the tables take: a byte less would have to spoil something.
            target_bpw: 8.0 * (stored as f64 + 0.5) / dense.config().projection_parameters() as f64,
            bits: widths(&[2, 3, 4]),
            table_bits,
            weighting,
            error_feedback,
            sensitivity: if seed == 4 {
                Sensitivity::Measured
            } else {
                Sensitivity::Predicted
            },
            ..Settings::default()
        };
        let report = run(2, &settings, from.path(), &noise(dense.config()), to.path()).unwrap();
        assert!(
            report.layers.iter().all(|layer| layer.error < 1e-9),
            "{:?}",
            report.layers
        );
        let again = package::load(to.path()).unwrap();
        let tokens = [3, 1, 4, 1, 5, 9, 2, 6];
        let both = [&again, &package].map(|decoder| hidden(decoder, &tokens));
        assert_eq!(both[0].data(), both[1].data());
        let mut ctx = Ctx::new(pool(2));
        let [got, want] =
            [&again, &package].map(|decoder| decoder.logits(&mut ctx, &both[0]).data().to_vec());
        assert_eq!(got, want);
    }
}

#[test]
fn tokenizer_and_settings_of_generation_travel_along() {
    let from = tempfile::tempdir().unwrap();
    for (name, bytes) in files(&golden("models/qwen3-gqa-tied"))
        .iter()
        .filter(|(name, _)| *name != "expected.safetensors")
    {
        std::fs::write(from.path().join(name), bytes).unwrap();
    }
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ] {
        std::fs::write(from.path().join(name), format!("the {name} of this model")).unwrap();
    }
    let to = tempfile::tempdir().unwrap();
    let config = Config::open(from.path()).unwrap();
    let settings = Settings {
        target_bpw: target(&config, 0.5),
        ..Settings::default()
    };
    run(2, &settings, from.path(), &noise(&config), to.path()).unwrap();
    let files = files(to.path());
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ] {
        assert_eq!(
            files[name],
            format!("the {name} of this model").into_bytes()
        );
    }
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    let from = golden("models/qwen3-gqa-tied");
    let config = Config::open(&from).unwrap();
    let refused = |settings: Settings, from: &Path, documents: &[Vec<u32>], part: &str| {
        let to = tempfile::tempdir().unwrap();
        let problem = run(1, &settings, from, documents, to.path())
            .unwrap_err()
            .to_string();
        // What the shape alone tells is told before there is a model.
        if part.contains("this model can") {
            let early = settings.check(&Config::open(from).unwrap());
            assert_eq!(early.unwrap_err().to_string(), problem);
        }
        assert!(problem.contains(part), "{problem}");
        assert!(files(to.path()).is_empty());
    };
    let documents = noise(&config);
    for target_bpw in [0.5, 16.0] {
        let range = format!(
            "this model can have {:.3}",
            (target(&config, 0.0) * 1000.0).ceil() / 1000.0
        );
        refused(
            Settings {
                target_bpw,
                ..Settings::default()
            },
            &from,
            &documents,
            &range,
        );
    }
    let possible = Settings {
        target_bpw: target(&config, 0.5),
        ..Settings::default()
    };
    refused(
        possible.clone(),
        &from,
        &[],
        "the calibration text has no document",
    );
    refused(possible.clone(), &from, &[vec![1, 2, 9999]], "token 9999");
    refused(
        possible.clone(),
        &golden("models/none"),
        &documents,
        "config.json",
    );
    refused(
        Settings {
            sequence: 0,
            ..possible.clone()
        },
        &from,
        &documents,
        "`sequence` is 0",
    );

    let package = tempfile::tempdir().unwrap();
    run(2, &possible, &from, &documents, package.path()).unwrap();
    refused(
        possible.clone(),
        package.path(),
        &documents,
        "palettized already",
    );

    let mut diverged = checkpoint::load(&from).unwrap();
    let mut number = 0;
    diverged.visit_mut(&mut |tensor| {
        number += 1;
        if number == 3 {
            tensor.data_mut()[33] = f32::NAN; // the first packed product, second row
        }
    });
    let folder = tempfile::tempdir().unwrap();
    checkpoint::save(&diverged, folder.path()).unwrap();
    refused(
        possible.clone(),
        folder.path(),
        &documents,
        "tensor `model.layers.0.self_attn.q_proj.weight` holds NaN at row 1, column 1",
    );

    // Finite weights so large that what comes of them is not: in turn of the first product and of all tensors.
    for all in [false, true] {
        let mut diverged = checkpoint::load(&from).unwrap();
        let mut number = 0;
        diverged.visit_mut(&mut |tensor| {
            number += 1;
            if all || number == 3 {
                tensor.data_mut().iter_mut().for_each(|w| *w *= 1e30);
            }
        });
        let folder = tempfile::tempdir().unwrap();
        checkpoint::save(&diverged, folder.path()).unwrap();
        for sensitivity in [Sensitivity::Predicted, Sensitivity::Measured] {
            let settings = Settings {
                sensitivity,
                ..possible.clone()
            };
            refused(settings, folder.path(), &documents, "of a diverged run");
        }
    }
}

#[test]
fn an_interrupt_stops_every_part_and_leaves_nothing() {
    /// Raises the interrupt when a part begins.
    struct Impatient {
        parts: usize,
        patience: usize,
        open: i32,
        interrupt: Interrupt,
    }
    impl Progress for Impatient {
        fn begin(&mut self, _: &str, total: Option<u64>, _: &str) {
            assert!(total.is_some_and(|total| total > 0));
            self.open += 1;
            self.parts += 1;
            if self.parts > self.patience {
                self.interrupt.raise();
            }
        }
        fn update(&mut self, _: u64, _: &[(&str, f64)]) {
            assert_eq!(self.open, 1);
        }
        fn message(&mut self, _: &str) {}
        fn end(&mut self) {
            self.open -= 1;
        }
    }
    let from = golden("models/qwen3-gqa-tied");
    let config = Config::open(&from).unwrap();
    let settings = Settings {
        target_bpw: target(&config, 0.5),
        ..Settings::default()
    };
    for patience in 0..6 {
        let to = tempfile::tempdir().unwrap();
        let interrupt = Interrupt::new();
        let mut progress = Impatient {
            parts: 0,
            patience,
            open: 0,
            interrupt: interrupt.clone(),
        };
        let state = State {
            folder: &to.path().join("state"),
            key: "one",
        };
        let result = palettize(
            &pool(1),
            &settings,
            &from,
            &noise(&config),
            to.path(),
            state,
            &mut progress,
            &interrupt,
        );
        assert_eq!(progress.open, 0);
        match result {
            Err(CompressError::Interrupted) => assert!(patience < 5),
            Ok(_) => assert_eq!((patience, progress.parts), (5, 5)),
            Err(other) => panic!("{other}"),
        }
    }
}

/// Every step that a state keeps is a place to be killed at: whatever files are there, the rest is made, and the package is the same to the byte.
#[test]
fn work_that_was_cut_off_anywhere_goes_on_to_the_same_package() {
    let (_place, folder, go) = cut_off(Sensitivity::Predicted);
    // A file that is damaged is said to be.
    std::fs::remove_file(folder.join("block-00001.safetensors")).unwrap();
    std::fs::write(folder.join("hidden-00001"), "not what was written").unwrap();
    let problem = go().unwrap_err().to_string();
    assert!(problem.contains("is not as it was written"), "{problem}");
}

#[test]
fn what_was_measured_before_a_cut_is_not_measured_again() {
    let (_place, folder, go) = cut_off(Sensitivity::Measured);
    std::fs::write(folder.join("rises-00003"), "not what was written").unwrap();
    let problem = go().unwrap_err().to_string();
    assert!(problem.contains("is not as it was written"), "{problem}");
}

type Again = Box<dyn Fn() -> Result<(), CompressError>>;

/// Cuts work off after more and more updates. The folder of its state at the end, and how to go on from there.
fn cut_off(sensitivity: Sensitivity) -> (tempfile::TempDir, PathBuf, Again) {
    let from = golden("models/qwen3-gqa-tied");
    let config = Config::open(&from).unwrap();
    let settings = Settings {
        target_bpw: target(&config, 0.5),
        bits: widths(&[2, 3, 4]),
        pins: [("*.k_proj".to_owned(), Width(Bits::TwoPairs))].into(),
        table_bits: TableBits::Four,
        sensitivity,
        ..Settings::default()
    };
    let documents = noise(&config);
    let whole = tempfile::tempdir().unwrap();
    run(2, &settings, &from, &documents, whole.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("state");
    let state = folder.clone();
    let go = move |updates: usize, key: &str, to: &Path| {
        let interrupt = Interrupt::new();
        let state = State {
            folder: &state,
            key,
        };
        let mut progress = Cut(updates, interrupt.clone());
        palettize(
            &pool(1),
            &settings,
            &from,
            &documents,
            to,
            state,
            &mut progress,
            &interrupt,
        )
    };
    let mut cuts = 0;
    for updates in 2.. {
        let to = tempfile::tempdir().unwrap();
        let mut done = go(updates, "one", to.path());
        while let Err(problem) = done {
            assert!(matches!(problem, CompressError::Interrupted), "{problem}");
            cuts += 1;
            // What a kill leaves of a file that was being written.
            std::fs::write(folder.join("hidden-00001.part"), "half").unwrap();
            done = go(updates + cuts, "one", to.path());
        }
        assert!(
            files(to.path()) == files(whole.path()),
            "cut after {updates} updates, the package is another"
        );
        if cuts > 30 {
            break;
        }
        State::clear(&folder).unwrap();
    }
    // Files of nobody are neither gone on with nor removed.
    State::clear(&folder).unwrap();
    assert!(!folder.exists());
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("hidden-00001"), "of another model").unwrap();
    let to = tempfile::tempdir().unwrap();
    let problem = go(usize::MAX, "one", to.path()).unwrap_err().to_string();
    assert!(problem.contains("holds other files"), "{problem}");
    // Nor are those of a folder with a key of its own.
    std::fs::write(folder.join("key"), "to the cellar").unwrap();
    State::clear(&folder).unwrap();
    let problem = go(usize::MAX, "one", to.path()).unwrap_err().to_string();
    assert!(problem.contains("holds other files"), "{problem}");
    let kept = std::fs::read(folder.join("hidden-00001")).unwrap();
    assert_eq!(kept, b"of another model");
    std::fs::remove_dir_all(&folder).unwrap();
    go(2, "one", to.path()).unwrap_err();
    // One process at a time; and whoever is at work keeps its files.
    let held = russet_artifact::Hold::take(&folder, &folder).unwrap();
    let problem = go(usize::MAX, "one", to.path()).unwrap_err().to_string();
    assert!(problem.contains("another process is at work"), "{problem}");
    State::clear(&folder).unwrap();
    assert!(folder.join("key").is_file());
    drop(held);
    // Of other work nothing is taken over.
    std::fs::write(folder.join("hidden-00001"), "of another model").unwrap();
    let to = tempfile::tempdir().unwrap();
    go(usize::MAX, "another", to.path()).unwrap();
    assert!(files(to.path()) == files(whole.path()));
    let again = move || {
        let to = tempfile::tempdir().unwrap();
        go(usize::MAX, "another", to.path()).map(drop)
    };
    (place, folder, Box::new(again))
}
