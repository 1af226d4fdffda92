//! Tables of four bits: packages whose embedding, and whose output table where it is another, are palettes as projections are.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use russet_kernels::palette::{self, Bits, STRIP};
use russet_kernels::{Pool, cross_entropy, int8, random};
use russet_model::config::RopeScaling;
use russet_model::package::{self, Package, PaletteTensors};
use russet_model::stored::Output;
use russet_model::{
    Config, Decoder, Embedding, Family, KvCache, ParameterKind, Weights, checkpoint,
};
use russet_tensor::ops::IGNORE;
use russet_tensor::{Ctx, DType, FrozenTable, Gradients, Segments, Tensor};
use tempfile::TempDir;

/// A vocabulary that fills no whole strip, and rows of one block of inputs and a piece of a line.
fn config(tied: bool) -> Config {
    Config {
        family: Family::Qwen3,
        vocab: 101,
        width: 132,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 80,
        norm_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: 128,
        tied,
        bos: Some(0),
        eos: vec![0],
    }
}

fn context(threads: usize) -> Ctx {
    Ctx::new(Arc::new(Pool::new(threads).unwrap()))
}

/// Random indices into evenly spread entries; rows have the length that an initialised decoder's have.
fn drawn(bits: Bits, rows: usize, cols: usize, seed: u64) -> PaletteTensors {
    let (sizes, count) = (palette::sizes(bits, rows, cols).unwrap(), bits.entries());
    let number = |at: usize| random::below(seed, 0, at as u64, count as u64) as u8;
    let indices: Vec<u8> = (0..rows * cols).map(number).collect();
    let entry = |at: usize| (at % count * 240 / (count - 1)) as i32 - 120 + (at / count % 7) as i32;
    let scale = |row: usize| (1.0 + (row % 5) as f32 / 10.0) / (75.0 * (cols as f32).sqrt());
    PaletteTensors {
        bits,
        indices: palette::pack(bits, rows, cols, &indices).unwrap(),
        palette: (0..sizes.palette).map(|at| entry(at) as i8).collect(),
        scales: (0..sizes.scales)
            .map(|row| f16::from_f32(scale(row)))
            .collect(),
    }
}

/// What palettes of single weights stand for, by the formula.
fn stand_for(made: &PaletteTensors, rows: usize, cols: usize) -> Vec<f32> {
    let indices = palette::unpack(made.bits, rows, cols, &made.indices).unwrap();
    let weight = |at: usize| {
        let row = at / cols;
        let entry = row / STRIP * made.bits.entries() + usize::from(indices[at]);
        made.scales[row].to_f32() * f32::from(made.palette[entry])
    };
    (0..rows * cols).map(weight).collect()
}

/// A package of which `eight` names the tables that have eight bits, with the tables of four by name.
fn packaged(config: &Config, eight: &[&str]) -> (TempDir, BTreeMap<String, Vec<f32>>) {
    let decoder = Decoder::random(config, 1);
    let (mut modules, mut tables, mut norms) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut four = BTreeMap::new();
    for parameter in decoder.parameters() {
        for (name, rows) in &parameter.parts {
            let cols = *parameter.tensor.shape().last().unwrap();
            let module = name.trim_end_matches(".weight").to_owned();
            if parameter.kind == ParameterKind::Norm {
                norms.insert(name.clone(), parameter.tensor.data());
            } else if eight.contains(&&module[..]) {
                let table = int8::quantize(*rows, cols, parameter.tensor.data()).unwrap();
                tables.insert(module, table);
            } else {
                let made = drawn(Bits::Four, *rows, cols, modules.len() as u64);
                if parameter.kind == ParameterKind::Embedding {
                    four.insert(module.clone(), stand_for(&made, *rows, cols));
                }
                modules.insert(module, made);
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let package = Package {
        config,
        tables,
        modules,
        norms,
    };
    package::write(&package, folder.path()).unwrap();
    (folder, four)
}

fn is_palette(table: &Embedding) -> bool {
    matches!(table, Embedding::Frozen(FrozenTable::Palette(_)))
}

/// The dense checkpoint of a package, as `convert` makes it.
fn dense(folder: &Path) -> Decoder {
    let mut weights = Weights::open(folder).unwrap();
    let pool = Pool::new(1).unwrap();
    let named = weights.tensors().unwrap();
    let tensors: Vec<Tensor> = named
        .iter()
        .map(|(name, shape)| Tensor::new(shape, weights.take(&pool, name, shape).unwrap()))
        .collect();
    let outputs: Vec<Output> = named
        .iter()
        .zip(&tensors)
        .map(|((name, shape), tensor)| Output {
            name: name.clone(),
            dtype: DType::F32,
            shape: shape.clone(),
            bytes: tensor.bytes(),
        })
        .collect();
    let to = tempfile::tempdir().unwrap();
    checkpoint::save_tensors(weights.config(), &outputs, to.path()).unwrap();
    weights.finish().unwrap();
    checkpoint::load(to.path()).unwrap()
}

#[test]
fn a_row_that_is_looked_up_is_what_the_formula_says() {
    for (tied, eight) in [
        (true, &[][..]),
        (false, &[]),
        (false, &["lm_head"]),
        (false, &["model.embed_tokens"]),
    ] {
        let config = config(tied);
        let (folder, four) = packaged(&config, eight);
        let package = checkpoint::open(folder.path()).unwrap();
        assert_eq!(four.len(), if tied { 1 } else { 2 } - eight.len());
        assert_eq!(
            is_palette(package.output_table()),
            four.contains_key("lm_head") || tied
        );
        let mut weights = Weights::open(folder.path()).unwrap();
        for (name, want) in &four {
            let (pool, shape) = (Pool::new(2).unwrap(), [config.vocab, config.width]);
            let got = weights.take(&pool, &format!("{name}.weight"), &shape);
            assert!(got.unwrap() == *want, "{name}");
        }
        if let Some(table) = four.get("model.embed_tokens") {
            let tokens = [100, 0, 15, 16, 96, 100];
            let got = package.first(&mut context(2), &tokens);
            for (got, token) in got.data().chunks(config.width).zip(tokens) {
                let want = &table[token as usize * config.width..][..config.width];
                assert_eq!(got, want, "token {token}");
            }
        }
    }
}

#[test]
fn a_token_alone_is_the_token_among_others_to_the_bit() {
    for tied in [true, false] {
        let (folder, _) = packaged(&config(tied), &[]);
        let package = checkpoint::open(folder.path()).unwrap();
        let tokens: Vec<u32> = (0..40).map(|i| i * 37 % 101).collect();
        let mut ctx = context(2);
        let all = package.forward(&mut ctx, &tokens, &Segments::packed(&[40]), None);
        let all = package.logits(&mut ctx, &all);
        for threads in [1, 3] {
            let mut ctx = context(threads);
            let mut cache = KvCache::new(package.config(), 1, 40);
            for (token, want) in tokens.iter().zip(all.data().chunks(101)) {
                let mut segments = Segments::default();
                segments.push(1, cache.extend(0, 1).unwrap(), 0);
                let hidden = package.forward(&mut ctx, &[*token], &segments, Some(&mut cache));
                let got = package.logits(&mut ctx, &hidden);
                assert!(got.data() == want, "token {token} on {threads} threads");
            }
        }
    }
}

/// Hidden states that rounding to eight bits leaves as they are: multiples of 1/32 with 127/32 in every block.
fn round(rows: usize, width: usize) -> Tensor {
    Tensor::from_fn(&[rows, width], |at| match at % width {
        0 | 128 => 127.0 / 32.0,
        _ => (random::below(9, 0, at as u64, 255) as f32 - 127.0) / 32.0,
    })
}

#[test]
fn losses_and_their_gradients_are_those_of_a_dense_table() {
    for tied in [true, false] {
        let config = config(tied);
        let (folder, four) = packaged(&config, &[]);
        let package = checkpoint::open(folder.path()).unwrap();
        let dense = dense(folder.path());
        let Embedding::Dense(table) = dense.output_table() else {
            panic!("a checkpoint's table is dense")
        };
        let name = if tied {
            "model.embed_tokens"
        } else {
            "lm_head"
        };
        assert!(table.data() == four[name]);
        let hidden = round(300, config.width);
        let targets: Vec<u32> = (0..300)
            .map(|i| if i % 50 == 3 { IGNORE } else { i * 31 % 101 })
            .collect();
        let weights: Vec<f32> = (0..300).map(|i| 0.01 * (i % 3) as f32).collect();
        let learn = |decoder: &Decoder| {
            let (mut ctx, mut gradients) = (context(2), Gradients::default());
            ctx.start_tape([hidden.id()]);
            let loss = decoder.loss(&mut ctx, &hidden, &targets, &weights);
            ctx.backward(&loss.loss, 1.0, &mut gradients);
            let gradient = gradients.take(&hidden).unwrap();
            (loss.per_token, gradient.data().to_vec())
        };
        // The rounding is exact here, so nothing is left between the two.
        let (got, want) = (learn(&package), learn(&dense));
        assert!(got == want);
        assert!(want.1.iter().any(|&d| d != 0.0));
        let mut ctx = context(2);
        let logits = package.logits(&mut ctx, &hidden);
        let losses = package.token_losses(&mut ctx, &hidden, &targets);
        for ((row, target), (loss, trained)) in logits
            .data()
            .chunks(101)
            .zip(&targets)
            .zip(losses.iter().zip(&got.0))
        {
            if *target == IGNORE {
                assert_eq!((*loss, *trained), (0.0, 0.0));
                continue;
            }
            let served = cross_entropy::log_sum_exp(ctx.pool.isa(), row) - row[*target as usize];
            assert_eq!(*loss, served);
            // Logits of some units, whose sums of 132 terms are rounded in another order.
            assert!((loss - trained).abs() < 2e-5, "{loss}, trained {trained}");
        }
    }
}

#[test]
fn four_bits_take_half_of_eight() {
    let config = config(true);
    let (four, _) = packaged(&config, &[]);
    let (eight, _) = packaged(&config, &["model.embed_tokens"]);
    let [four, eight] = [four, eight].map(|folder| checkpoint::open(folder.path()).unwrap());
    // Seven strips of 16 rows: 17 lines of 8 inputs or 33 of 4, a palette or none, 16 scales.
    let bytes = |decoder: &Decoder| {
        let table = decoder.output_table();
        (table.stored_bytes(), table.row_bytes())
    };
    assert_eq!(bytes(&four), (7 * (17 * 64 + 16 + 32), 66 + 16 + 2));
    assert_eq!(bytes(&eight), (7 * (33 * 64 + 32), 132 + 2));
}
