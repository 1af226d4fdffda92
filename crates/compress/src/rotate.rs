//! A rotation of what flows between the matrices, folded into them before they are palettized (QuaRot, arXiv 2404.00456; SpinQuant,
//! arXiv 2405.16406). The decoder says what it said, nothing is done at run time, and a channel that stands out is spread over all.
//!
//! ```text
//! residual stream      x → x Q              Q [D, D]; a norm without gain does not see it, so gains g go into what reads the stream
//! values of a head     v → v R              R [K, K], one for all heads: query heads that share values, and layers that borrow them, agree
//! embedding            E → E Q
//! q, k, gate, up       W → W diag(g) Q      g of the norm before, which becomes ones; so with the output table
//! v                    W → Rᵀ W diag(g) Q   a head at a time
//! o                    W → Qᵀ W R           the same
//! down                 W → Qᵀ W
//! Q = S H              S random signs; H Walsh-Hadamard matrices of n, the largest power of two that divides D, over √n
//! ```
//! An output table is rotated by more than the embedding, so a decoder that has one table for both has two afterwards. Norms of queries
//! and keys lie within a head and stay.
//!
//! Left out: what would have to be done at run time (the inputs of `down_proj`, queries and keys behind their positions), and rotations
//! that are learnt.

use russet_kernels::{Pool, random};
use russet_model::checkpoint::Blocks;
use russet_model::{Config, Decoder, Layout, ModelError, ParameterKind};
use russet_tensor::Tensor;

use crate::CompressError;
use crate::model::check_finite;
use crate::settings::{Rotation, Settings};

/// Whose signs Q and R have. Part of what "hadamard" means: a package says no more of its rotation.
const SEED: u64 = 1;

/// Rows or columns of a task of the pool.
const PANEL: usize = 16;

/// x → x Q for vectors of one length.
struct Hadamard {
    signs: Vec<f32>, // ±1 / √n, one a number
    block: usize,    // n
}

impl Hadamard {
    fn new(len: usize, stream: u64) -> Hadamard {
        let block = 1 << len.trailing_zeros();
        let size = (block as f32).sqrt().recip();
        let sign = |i: usize| match random::hash(SEED, stream, i as u64) & 1 {
            0 => size,
            _ => -size,
        };
        Hadamard {
            signs: (0..len).map(sign).collect(),
            block,
        }
    }

    fn len(&self) -> usize {
        self.signs.len()
    }

    /// x → x Q, of one vector after another. Sums are of two numbers in an order that the length gives, so the bits are the same
    /// whoever does it.
    fn apply(&self, x: &mut [f32]) {
        for x in x.chunks_exact_mut(self.len()) {
            x.iter_mut().zip(&self.signs).for_each(|(x, s)| *x *= s);
            x.chunks_exact_mut(self.block).for_each(walsh_hadamard);
        }
    }

    /// W → W Q, of `weight [rows, cols]`; where rows are several vectors long, of each.
    fn inputs(&self, pool: &Pool, weight: &mut [f32], cols: usize) {
        pool.for_each_chunk(weight, PANEL * cols, |_, rows| self.apply(rows));
    }

    /// W → Qᵀ W, of `weight [rows, cols]`; where columns are several vectors long, of each.
    fn outputs(&self, pool: &Pool, weight: &mut [f32], cols: usize) {
        let rows = weight.len() / cols;
        let mut turned = vec![0.0; weight.len()]; // [cols, rows]
        let from = &*weight;
        pool.for_each_chunk(&mut turned, PANEL * rows, |panel, turned| {
            let start = panel * PANEL;
            let columns = start..start + turned.len() / rows;
            for (row, from) in from.chunks_exact(cols).enumerate() {
                for (column, &w) in from[columns.clone()].iter().enumerate() {
                    turned[column * rows + row] = w;
                }
            }
            self.apply(turned);
        });
        pool.for_each_chunk(weight, PANEL * cols, |panel, weight| {
            for (row, weight) in weight.chunks_exact_mut(cols).enumerate() {
                let row = panel * PANEL + row;
                for (w, column) in weight.iter_mut().zip(turned.chunks_exact(rows)) {
                    *w = column[row];
                }
            }
        });
    }
}

/// x → x H, for a power of two and not yet divided by its root.
fn walsh_hadamard(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// The rotations of a decoder.
pub(crate) struct Turn {
    stream: Hadamard, // Q
    values: Hadamard, // R
}

impl Turn {
    /// Those of a decoder of this shape, if it is rotated.
    pub fn new(rotation: Rotation, config: &Config) -> Option<Turn> {
        match rotation {
            Rotation::None => None,
            Rotation::Hadamard => Some(Turn {
                stream: Hadamard::new(config.width, 0),
                values: Hadamard::new(config.head_dim, 1),
            }),
        }
    }

    /// Rotates a dense decoder, whole or a part of one: its ends, or a block alone.
    ///
    /// # Errors
    /// When a weight is not a number, or the decoder has a head that would read what is rotated.
    pub fn decoder(&self, pool: &Pool, decoder: Decoder) -> Result<Decoder, CompressError> {
        if decoder.reward_head().is_some() {
            return Err(CompressError::Checkpoint(
                "this is a reward model, whose head is not palettized, so what it reads cannot be rotated; give a model that \
                 writes text, or leave `palettize.rotation` out"
                    .to_owned(),
            ));
        }
        let mut decoder = decoder.untied();
        let mut named = Vec::new();
        for parameter in decoder.parameters() {
            let (data, mut at) = (parameter.tensor.data(), 0);
            let cols = *parameter.tensor.shape().last().expect("a shape");
            for (name, rows) in &parameter.parts {
                check_finite(name, &data[at..at + rows * cols], cols)?;
                at += rows * cols;
            }
            named.push((parameter.kind, parameter.parts, cols));
        }
        let (mut named, mut gain) = (named.into_iter(), Vec::new());
        decoder.visit_mut(&mut |tensor| {
            let (kind, parts, cols) = named.next().expect("as many as were shown");
            if kind == ParameterKind::Norm {
                if !of_head(&parts[0].0) {
                    gain = tensor.data().to_vec();
                    tensor.data_mut().fill(1.0);
                }
                return;
            }
            let mut rest = tensor.data_mut();
            for (name, rows) in parts {
                let (weight, after) = rest.split_at_mut(rows * cols);
                rest = after;
                self.weight(pool, &name, weight, cols, &gain);
            }
        });
        Ok(decoder)
    }

    /// Rotates one table or projection `[rows, cols]`, of which `gain` is that of the norm before; what reads no norm takes no notice of it.
    ///
    /// # Panics
    /// When it is none that a decoder has.
    pub fn weight(&self, pool: &Pool, name: &str, weight: &mut [f32], cols: usize, gain: &[f32]) {
        let name = name.strip_suffix(".weight").unwrap_or(name);
        let kind = name.rsplit('.').next().unwrap_or(name);
        if reads(kind) {
            for row in weight.chunks_exact_mut(cols) {
                row.iter_mut().zip(gain).for_each(|(w, g)| *w *= g);
            }
        }
        match kind {
            "embed_tokens" | "lm_head" | "q_proj" | "k_proj" | "gate_proj" | "up_proj" => {
                self.stream.inputs(pool, weight, cols);
            }
            "v_proj" => {
                self.stream.inputs(pool, weight, cols);
                self.values.outputs(pool, weight, cols);
            }
            "o_proj" => {
                self.values.inputs(pool, weight, cols);
                self.stream.outputs(pool, weight, cols);
            }
            "down_proj" => self.stream.outputs(pool, weight, cols),
            _ => panic!("`{name}` is no table and no projection"),
        }
    }
}

/// Whether a table or projection reads the stream through a norm.
fn reads(kind: &str) -> bool {
    [
        "lm_head",
        "q_proj",
        "k_proj",
        "v_proj",
        "gate_proj",
        "up_proj",
    ]
    .contains(&kind)
}

/// Whether a norm is of queries or keys.
fn of_head(norm: &str) -> bool {
    norm.ends_with(".q_norm.weight") || norm.ends_with(".k_norm.weight")
}

/// The norm that a product reads the stream through, if it does.
pub(crate) fn norm_before(layout: &Layout) -> Option<String> {
    let (place, kind) = layout.projections[0].name.rsplit_once('.')?;
    let (block, half) = place.rsplit_once('.')?;
    let norm = match half {
        "self_attn" => "input_layernorm",
        _ => "post_attention_layernorm",
    };
    reads(kind).then(|| format!("{block}.{norm}.weight"))
}

impl Settings {
    /// The shape of the package of a decoder of this shape: a rotation gives input and output tables of their own.
    ///
    /// # Errors
    /// When the decoder cannot be rotated as asked.
    pub fn packaged(&self, config: &Config) -> Result<Config, CompressError> {
        let tied = config.tied && self.rotation == Rotation::None;
        if self.rotation != Rotation::None && !config.width.is_multiple_of(2) {
            return Err(CompressError::Setting {
                key: "rotation",
                value: "\"hadamard\"".to_owned(),
                problem: format!(
                    "the model is {} wide, and no Hadamard matrix but that of 1 divides an odd width; leave it out",
                    config.width
                ),
            });
        }
        Ok(Config {
            tied,
            ..config.clone()
        })
    }
}

/// What is palettized block by block: a dense checkpoint of which only a part is in memory at a time, rotated where that is asked for.
pub(crate) struct Source<'a> {
    pool: &'a Pool,
    blocks: &'a Blocks,
    turn: Option<Turn>,
    config: Config, // the package's
}

impl<'a> Source<'a> {
    /// # Errors
    /// When the decoder cannot be rotated as asked.
    pub fn new(
        pool: &'a Pool,
        settings: &Settings,
        blocks: &'a Blocks,
    ) -> Result<Source<'a>, CompressError> {
        Ok(Source {
            pool,
            blocks,
            turn: Turn::new(settings.rotation, blocks.config()),
            config: settings.packaged(blocks.config())?,
        })
    }

    /// The package's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// As [`Blocks::ends`].
    pub fn ends(&self) -> Result<Decoder, CompressError> {
        self.turned(self.blocks.ends()?)
    }

    /// As [`Blocks::block`].
    pub fn block(&self, layer: usize) -> Result<Decoder, CompressError> {
        self.turned(self.blocks.block(layer)?)
    }

    fn turned(&self, decoder: Decoder) -> Result<Decoder, CompressError> {
        match &self.turn {
            None => Ok(decoder),
            Some(turn) => turn.decoder(self.pool, decoder),
        }
    }

    /// A norm by its full name.
    pub fn norm(&self, name: &str) -> Result<Tensor, ModelError> {
        let Config {
            width, head_dim, ..
        } = self.config;
        match (of_head(name), &self.turn) {
            (true, _) => self.blocks.tensor(name, &[head_dim]),
            (false, None) => self.blocks.tensor(name, &[width]),
            (false, Some(_)) => Ok(Tensor::new(&[width], vec![1.0; width])),
        }
    }

    /// A table, `[V, D]`: `model.embed_tokens`, or `lm_head` where the package has one.
    pub fn table(&self, name: &str) -> Result<Tensor, ModelError> {
        let (rows, cols) = (self.config.vocab, self.config.width);
        let stored = match self.blocks.config().tied {
            true => "model.embed_tokens",
            false => name,
        };
        let mut weight = self
            .blocks
            .tensor(&format!("{stored}.weight"), &[rows, cols])?;
        if let Some(turn) = &self.turn {
            let gain = self.blocks.tensor("model.norm.weight", &[cols])?;
            turn.weight(self.pool, name, weight.data_mut(), cols, gain.data());
        }
        Ok(weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russet_kernels::random::normal;
    use russet_model::{Attention, checkpoint};
    use russet_tensor::{Ctx, Segments};
    use std::path::Path;
    use std::sync::Arc;

    fn noise(seed: u64, len: usize) -> Vec<f32> {
        (0..len).map(|i| normal(seed, 0, i as u64)).collect()
    }

    /// Q of so many channels, `[D, D]`.
    fn matrix(len: usize) -> Vec<f32> {
        let mut q = vec![0.0; len * len];
        q.iter_mut().step_by(len + 1).for_each(|x| *x = 1.0);
        Hadamard::new(len, 0).apply(&mut q);
        q
    }

    #[test]
    fn a_rotation_is_orthogonal_and_as_it_is_written_down() {
        for (len, block) in [(2, 2), (8, 8), (12, 4), (48, 16), (256, 256), (3072, 1024)] {
            let turn = Hadamard::new(len, 0);
            assert_eq!(turn.block, block);
            let x = noise(1, len);
            let mut y = x.clone();
            turn.apply(&mut y);
            let square = |x: &[f32]| x.iter().map(|x| f64::from(x * x)).sum::<f64>();
            assert!((square(&y) / square(&x) - 1.0).abs() < 1e-6, "{len}");
            if len > 256 {
                continue;
            }
            let q = matrix(len);
            for (a, row) in q.chunks_exact(len).enumerate() {
                for (b, other) in q.chunks_exact(len).enumerate() {
                    let product: f32 = row.iter().zip(other).map(|(x, y)| x * y).sum();
                    let want = f32::from(u8::from(a == b));
                    assert!((product - want).abs() < 1e-5, "{len}: {a}, {b}: {product}");
                }
                // As it is written down: a sign a row, times a Walsh-Hadamard matrix of each block.
                for (b, &x) in row.iter().enumerate() {
                    let odd = ((a % block) & (b % block)).count_ones() % 2 == 1;
                    let want = if odd { -turn.signs[a] } else { turn.signs[a] };
                    let there = a / block == b / block;
                    assert_eq!(x, if there { want } else { 0.0 }, "{len}: {a}, {b}");
                }
            }
        }
    }

    /// What "hadamard" means, and packages that were written rely on.
    #[test]
    fn the_signs_are_those_that_packages_have() {
        let signs = |stream| -> String {
            let sign = |x: &f32| if *x > 0.0 { '+' } else { '-' };
            Hadamard::new(16, stream).signs.iter().map(sign).collect()
        };
        assert_eq!(signs(0), "---+-+----++-+--");
        assert_eq!(signs(1), "-+-++-++----++--");
    }

    #[test]
    fn inputs_and_outputs_are_products_with_the_matrix_on_any_threads() {
        for (len, rows, cols) in [(8, 40, 24), (12, 36, 12), (6, 6, 70), (64, 64, 64)] {
            let (turn, q) = (Hadamard::new(len, 0), matrix(len));
            let weight = noise(2, rows * cols);
            let made = |threads| {
                let pool = Pool::new(threads).unwrap();
                let (mut inputs, mut outputs) = (weight.clone(), weight.clone());
                if cols % len == 0 {
                    turn.inputs(&pool, &mut inputs, cols);
                }
                if rows % len == 0 {
                    turn.outputs(&pool, &mut outputs, cols);
                }
                (inputs, outputs)
            };
            let (inputs, outputs) = made(1);
            assert!(made(2) == (inputs.clone(), outputs.clone()), "threads");
            let at = |row: usize, column: usize| weight[row * cols + column];
            for row in 0..rows {
                for column in 0..cols {
                    let (block, inside) = (column / len * len, column % len);
                    let want = (0..len).map(|i| at(row, block + i) * q[i * len + inside]);
                    let got = inputs[row * cols + column];
                    if cols % len == 0 {
                        assert!((got - want.sum::<f32>()).abs() < 1e-5, "{row}, {column}");
                    }
                    let (block, inside) = (row / len * len, row % len);
                    let want = (0..len).map(|i| at(block + i, column) * q[i * len + inside]);
                    let got = outputs[row * cols + column];
                    if rows % len == 0 {
                        assert!((got - want.sum::<f32>()).abs() < 1e-5, "{row}, {column}");
                    }
                }
            }
        }
    }

    #[test]
    fn channels_that_stand_out_are_spread_over_all() {
        let (rows, cols) = (64, 256);
        let mut weight = noise(3, rows * cols);
        for row in weight.chunks_exact_mut(cols) {
            for channel in [7, 100, 201] {
                row[channel] *= 50.0;
            }
        }
        let pool = Pool::new(1).unwrap();
        let mut turned = weight.clone();
        Hadamard::new(cols, 0).inputs(&pool, &mut turned, cols);
        // Of each row the largest over the root mean square, in the mean; that of 256 normal numbers is 2.9.
        let ratio = |weight: &[f32]| {
            let of_row = |row: &[f32]| {
                let most = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                most / (row.iter().map(|x| x * x).sum::<f32>() / cols as f32).sqrt()
            };
            weight.chunks_exact(cols).map(of_row).sum::<f32>() / rows as f32
        };
        let (before, after) = (ratio(&weight), ratio(&turned));
        assert!(
            before > 10.0 && after < 3.0,
            "{before} before, {after} after"
        );
    }

    fn logits(decoder: &Decoder) -> Vec<f32> {
        let tokens: Vec<u32> = (0..24)
            .map(|i| i * 7 % decoder.config().vocab as u32)
            .collect();
        let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
        let segments = Segments::packed(&[15, 9]);
        let hidden = decoder.forward(&mut ctx, &tokens, &segments, None);
        decoder.logits(&mut ctx, &hidden).data().to_vec()
    }

    /// The decoder with gains that are not one.
    fn with_gains(mut decoder: Decoder) -> Decoder {
        let is_norm = |p: &russet_model::Parameter| p.kind == ParameterKind::Norm;
        let norms: Vec<bool> = decoder.parameters().iter().map(is_norm).collect();
        let mut norms = norms.into_iter().enumerate();
        decoder.visit_mut(&mut |tensor| {
            if let Some((number, true)) = norms.next() {
                let data = tensor.data_mut().iter_mut().enumerate();
                data.for_each(|(i, g)| *g *= 1.0 + 0.5 * normal(4, number as u64, i as u64));
            }
        });
        decoder
    }

    #[test]
    fn a_rotated_decoder_says_what_it_said() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models");
        let load = |name: &str| checkpoint::load(&golden.join(name)).unwrap();
        let mut decoders = Vec::new();
        for name in [
            "llama-gqa-sharded",
            "llama-gqa-tied",
            "llama-mha-untied",
            "llama-rope-scaling",
            "qwen3-bf16",
            "qwen3-gqa-tied",
            "qwen3-mha-untied",
            "qwen3-sliding",
            "qwen3-sliding-last",
        ] {
            decoders.push((name, load(name)));
            decoders.push((name, with_gains(load(name))));
        }
        // Of six layers the first two lend their keys and values to the last four, in turns; widths that no power of two divides far.
        let config = Config {
            layers: 6,
            width: 36,
            head_dim: 12,
            ffn: 50,
            attention: Attention::new(5, [true, false].repeat(3), 4),
            ..load("qwen3-sliding").config().clone()
        };
        decoders.push(("shared keys", with_gains(Decoder::random(&config, 1))));
        let pool = Pool::new(2).unwrap();
        for (name, decoder) in decoders {
            let want = logits(&decoder);
            let first = decoder.parameters()[0].tensor.data().to_vec();
            let turn = Turn::new(Rotation::Hadamard, decoder.config()).unwrap();
            let turned = turn.decoder(&pool, decoder).unwrap();
            assert!(!turned.config().tied);
            assert!(turned.parameters()[0].tensor.data() != first, "{name}");
            for parameter in turned.parameters() {
                let norm = parameter.kind == ParameterKind::Norm;
                if norm && !of_head(&parameter.parts[0].0) {
                    assert!(parameter.tensor.data().iter().all(|g| *g == 1.0));
                }
            }
            let largest = want.iter().fold(1.0f32, |most, z| most.max(z.abs()));
            for (got, want) in logits(&turned).iter().zip(&want) {
                // Sums of f32 in another basis; logits are of the size of `largest`.
                assert!(
                    (got - want).abs() < 1e-4 * largest,
                    "{name}: {got}, not {want}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_rotated_is_refused_with_a_sentence() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models");
        let decoder = checkpoint::load(&golden.join("qwen3-gqa-tied")).unwrap();
        let settings = Settings {
            rotation: Rotation::Hadamard,
            ..Settings::default()
        };
        let odd = Config {
            width: 35,
            ..decoder.config().clone()
        };
        let problem = settings.check(&odd).unwrap_err().to_string();
        assert!(
            problem.contains("`rotation` is") && problem.contains("35 wide"),
            "{problem}"
        );
        assert_eq!(Settings::default().packaged(&odd).unwrap(), odd);

        let pool = Pool::new(1).unwrap();
        let turn = Turn::new(Rotation::Hadamard, decoder.config()).unwrap();
        let head = russet_model::RewardHead::random(decoder.config(), 1);
        let judge = decoder.with_reward(head);
        let problem = turn.decoder(&pool, judge).err().expect("refused");
        assert!(problem.to_string().contains("reward model"), "{problem}");

        let mut diverged = checkpoint::load(&golden.join("qwen3-gqa-tied")).unwrap();
        let mut number = 0;
        diverged.visit_mut(&mut |tensor| {
            number += 1;
            if number == 3 {
                tensor.data_mut()[33] = f32::NAN; // the first packed product, second row
            }
        });
        let problem = turn.decoder(&pool, diverged).err().expect("refused");
        let said = "tensor `model.layers.0.self_attn.q_proj.weight` holds NaN at row 1, column 1";
        assert!(problem.to_string().contains(said), "{problem}");
    }
}
