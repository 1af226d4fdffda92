//! What the bench counts, and what it refuses. How fast this machine is, no test asserts.

mod common;

use common::{CONTEXT, VOCAB, config, dense, palettized, pool};
use russet_engine::{BenchConfig, bench, bytes_per_token};
use russet_kernels::palette::Bits;
use russet_model::{Config, Decoder, KvFormat, adapter as peft, package};
use russet_tensor::{Ctx, Segments, Stack};

/// Rows and columns of the projections of one layer.
const PROJECTIONS: [(usize, usize); 7] = [
    (64, 48),
    (32, 48),
    (32, 48),
    (48, 64),
    (80, 48),
    (80, 48),
    (48, 80),
];
/// Norms of one layer: two of the width, two of a head; and the last.
const NORM_BYTES: usize = 4 * (2 * (2 * 48 + 2 * 16) + 48);

#[test]
fn bytes_of_a_token_are_those_of_the_weights_it_reads() {
    let weights: usize = PROJECTIONS.iter().map(|(rows, cols)| rows * cols).sum();
    assert_eq!(
        bytes_per_token(&dense()),
        4 * (2 * weights + VOCAB * 48 + 48) + NORM_BYTES
    );
    // An own output table is read whole, and of the other one row as before.
    let untied = Decoder::random(
        &Config {
            tied: false,
            ..config()
        },
        1,
    );
    assert_eq!(bytes_per_token(&untied), bytes_per_token(&dense()));

    // Lines of 64 bytes, entries and sixteen half-precision scales a strip; all rows here are whole strips. Three bits in the
    // first and the last, two in the last but one, four elsewhere.
    let layer: usize = PROJECTIONS
        .iter()
        .enumerate()
        .map(|(number, (rows, cols))| {
            let strip = match number {
                0 | 6 => 3 * 64 * cols.div_ceil(32) + 8,
                5 => 64 * cols.div_ceil(16) + 4,
                _ => 64 * cols.div_ceil(8) + 16,
            };
            rows / 16 * (strip + 32)
        })
        .sum();
    // 97 rows of the table fill six strips and one row of a seventh, which is stored whole.
    let table = 7 * (16 * 48 + 32);
    assert_eq!(
        bytes_per_token(&palettized()),
        2 * layer + table + (48 + 2) + NORM_BYTES
    );
}

#[test]
fn every_repeat_is_reported_and_the_median_counts() {
    let config = BenchConfig {
        prompt: CONTEXT,
        generate: 8,
        repeats: 3,
        sequences: 1,
        ..BenchConfig::default()
    };
    let measured = bench(&palettized(), &pool(2), &config, &[]).unwrap();
    for (rates, median) in [
        (&measured.prefill, measured.prefill_tokens_per_second),
        (&measured.decode, measured.decode_tokens_per_second),
    ] {
        assert_eq!(rates.len(), 3);
        assert!(
            rates.iter().all(|rate| rate.is_finite() && *rate > 0.0),
            "{rates:?}"
        );
        assert_eq!(
            rates.iter().filter(|&&rate| rate < median).count(),
            1,
            "{rates:?}, median {median}"
        );
    }
    let gb_s = measured.decode_tokens_per_second * bytes_per_token(&palettized()) as f64 / 1e9;
    assert_eq!(measured.decode_gb_s(), gb_s);
    for shares in &measured.profile {
        let all: f64 = shares.kernels.iter().map(|(_, share)| share).sum();
        assert!(all > 0.0 && (all + shares.outside - 1.0).abs() < 0.05);
    }
}

#[test]
fn sequences_generate_together_and_read_the_weights_once() {
    let config = BenchConfig {
        prompt: 1,
        generate: 70,
        repeats: 1,
        sequences: 5,
        ..BenchConfig::default()
    };
    let measured = bench(&palettized(), &pool(2), &config, &[]).unwrap();
    let steps = measured.decode_tokens_per_second / 5.0;
    let gb_s = steps * bytes_per_token(&palettized()) as f64 / 1e9;
    assert!((measured.decode_gb_s() / gb_s - 1.0).abs() < 1e-12);
}

#[test]
fn a_random_package_has_its_bits_and_finite_logits() {
    let config = Config {
        width: 256,
        ffn: 512,
        layers: 4,
        ..config()
    };
    let plain = [Bits::Two, Bits::Four];
    let refused = package::random(&config, 2.0, &plain, 1, &pool(2))
        .err()
        .unwrap();
    let refused = refused.to_string();
    assert!(refused.contains("2 bits a weight are too few"), "{refused}");
    for (asked, bits) in [
        (2.2, &plain[..]),
        (3.5, &plain),
        (4.2, &plain),
        (3.2, &[Bits::Three]),
        (3.0, &Bits::ALL),
    ] {
        let decoder = package::random(&config, asked, bits, 1, &pool(2)).unwrap();
        let bytes: usize = decoder.linears().map(|linear| linear.stored_bytes()).sum();
        let got = 8.0 * bytes as f64 / config.projection_parameters() as f64;
        assert!(got <= asked && got > asked - 0.25, "{got} bits for {asked}");
        let mut ctx = Ctx::new(pool(2));
        let tokens = [1, 2, 3];
        let hidden = decoder.forward(&mut ctx, &tokens, &Segments::packed(&[3]), None);
        let logits = decoder.logits(&mut ctx, &hidden);
        let size = logits.data().iter().map(|x| x * x).sum::<f32>() / logits.len() as f32;
        assert!((0.01..100.0).contains(&size), "mean square {size}");
    }
}

#[test]
fn a_trace_has_every_pass_of_one_round() {
    let config = BenchConfig {
        prompt: 20,
        generate: 8,
        sequences: 2,
        repeats: 1,
        ..BenchConfig::default()
    };
    let trace = bench::trace(&palettized(), &pool(2), &config, &[]).unwrap();
    let rows = |name: &str| -> Vec<usize> {
        let of = trace.events().iter().filter(|event| event.op.name == name);
        of.map(|event| event.op.rows).collect()
    };
    let steps = [vec![20; 2], vec![2; 16]].concat(); // of two layers
    assert_eq!(rows("qkv"), steps);
    assert_eq!((rows("prompt"), rows("generate")), (vec![20], vec![16]));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let fine = BenchConfig {
        prompt: 4,
        generate: 4,
        repeats: 1,
        sequences: 1,
        ..BenchConfig::default()
    };
    for (config, sentence) in [
        (
            BenchConfig { prompt: 0, ..fine },
            "prompt is 0, but it must be from 1 to 256",
        ),
        (
            BenchConfig {
                prompt: CONTEXT + 1,
                ..fine
            },
            "prompt is 257",
        ),
        (
            BenchConfig {
                generate: 0,
                ..fine
            },
            "generate is 0",
        ),
        (
            BenchConfig {
                generate: CONTEXT + 1,
                ..fine
            },
            "generate is 257",
        ),
        (BenchConfig { repeats: 0, ..fine }, "repeats is 0"),
        (
            BenchConfig {
                sequences: 0,
                ..fine
            },
            "sequences is 0",
        ),
    ] {
        let problem = bench(&dense(), &pool(1), &config, &[])
            .unwrap_err()
            .to_string();
        assert!(problem.starts_with(sentence), "{problem}");
    }
    // A context that the file claims and no machine has.
    let decoder = Decoder::random(
        &Config {
            context: 1 << 40,
            ..config()
        },
        1,
    );
    for config in [
        BenchConfig {
            prompt: 1 << 40,
            ..fine
        },
        BenchConfig {
            generate: 1 << 40,
            ..fine
        },
    ] {
        let problem = bench(&decoder, &pool(1), &config, &[])
            .unwrap_err()
            .to_string();
        assert!(
            problem.contains("more than this machine gives"),
            "{problem}"
        );
    }
}

#[test]
fn adapters_are_measured_beside_their_base_and_eight_bits_take_a_quarter_of_the_cache() {
    let config = BenchConfig {
        prompt: 20,
        generate: 6,
        sequences: 2,
        repeats: 2,
        format: KvFormat::Int8,
    };
    let decoder = palettized();
    let folder = common::adapter(3, 1, "self_attn");
    let one = peft::load(&decoder.layouts(), folder.path(), None).unwrap();
    let two = peft::random(&decoder.layouts(), 2, 7);
    let bytes = one.bytes() + two.bytes();
    // Two sequences meet two of three.
    let through = [one, two, peft::random(&decoder.layouts(), 5, 7)];
    let through = through.map(|adapter| Stack::from([std::sync::Arc::new(adapter)]));
    let measured = bench(&decoder, &pool(1), &config, &through).unwrap();
    let adapted = measured.adapted.unwrap();
    assert_eq!((adapted.prefill.len(), adapted.decode.len()), (2, 2));
    assert_eq!(adapted.bytes_per_token, measured.bytes_per_token + bytes);
    assert!(bytes > 0 && adapted.decode_tokens_per_second > 0.0);
    assert_eq!((measured.prefill.len(), measured.dram.len()), (2, 2));

    // 2 layers of 2 heads, keys and values of 16 numbers each, in 8 bits with a scale of 4 bytes.
    assert_eq!(measured.cache_bytes_per_token, 2 * 2 * 2 * (16 + 4));
    let config = BenchConfig {
        format: KvFormat::F32,
        ..config
    };
    let measured = bench(&decoder, &pool(1), &config, &[]).unwrap();
    assert_eq!(measured.cache_bytes_per_token, 2 * 2 * 2 * 64);
    assert_eq!(measured.adapted, None);
}
