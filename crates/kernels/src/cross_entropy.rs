//! The language-model head and its loss in one: logits = hidden tableᵀ, loss = -ln softmax(logits)[target].
//!
//! The logits of all tokens are never in memory together (8192 tokens x a vocabulary of 49,152
//! would be 1.6 GB): rows go through in chunks, and the backward product of a chunk follows while its
//! probabilities are still in cache. (Liger kernels' fused linear cross-entropy, arXiv 2410.10989.)
//!
//! ```text
//! loss = ln Σ exp(z) - z[t]      dz = w (softmax(z) - onehot(t))      d_hidden = dz · table      d_table += dzᵀ · hidden
//! ```

use crate::isa::Isa;
use crate::matmul::{Compute, Mat, MatMut, matmul_in};
use crate::pool::{Disjoint, Pool};
use crate::simd::{Body, Simd, dispatch};

/// The target of a token that has no loss.
pub const IGNORE: u32 = u32::MAX;

/// Logits of one chunk: 16 MiB. Each chunk packs the whole table anew and adds to the whole of its gradient.
const CHUNK_LOGITS: usize = 1 << 22;

/// Losses in nats, `[N]`, 0 where the target is [`IGNORE`]. `hidden` `[N, D]`, `table` `[V, D]`, `targets` `[N]`. Logits and their
/// products multiply in the type `compute`.
///
/// # Panics
/// When the lengths do not fit or a target lies outside the vocabulary.
pub fn forward(
    pool: &Pool,
    compute: Compute,
    hidden: &[f32],
    table: &[f32],
    targets: &[u32],
    losses: &mut [f32],
) {
    let Some(Shape { width, vocab }) = check(hidden, table, targets, losses.len()) else {
        return;
    };
    let rows = rows_per_chunk(vocab);
    let mut logits = vec![0.0; rows.min(targets.len()) * vocab];
    let chunks = hidden
        .chunks(rows * width)
        .zip(targets.chunks(rows))
        .zip(losses.chunks_mut(rows));
    for ((hidden, targets), losses) in chunks {
        let logits = &mut logits[..targets.len() * vocab];
        project(pool, compute, hidden, table, width, logits);
        pool.for_each_chunk(losses, 1, |n, loss| {
            let row = &logits[n * vocab..][..vocab];
            loss[0] = match targets[n] {
                IGNORE => 0.0,
                target => log_sum_exp(pool.isa(), row) - row[target as usize],
            };
        });
    }
}

/// As [`forward`], and the gradient of Σ `weights[n]` · loss[n]: `d_hidden` `[N, D]` is written, `d_table` `[V, D]` is added to.
///
/// # Panics
/// As [`forward`].
pub fn forward_backward(
    pool: &Pool,
    compute: Compute,
    hidden: &[f32],
    table: &[f32],
    targets: &[u32],
    weights: &[f32],
    losses: &mut [f32],
    d_hidden: &mut [f32],
    d_table: &mut [f32],
) {
    assert!(
        weights.len() == targets.len()
            && d_hidden.len() == hidden.len()
            && d_table.len() == table.len(),
        "cross_entropy: {} weights for {} targets, d_hidden {} for hidden {}, d_table {} for table {}",
        weights.len(),
        targets.len(),
        d_hidden.len(),
        hidden.len(),
        d_table.len(),
        table.len()
    );
    let Some(Shape { width, vocab }) = check(hidden, table, targets, losses.len()) else {
        return;
    };
    let rows = rows_per_chunk(vocab);
    let mut logits = vec![0.0; rows.min(targets.len()) * vocab];
    let inputs = hidden
        .chunks(rows * width)
        .zip(targets.chunks(rows))
        .zip(weights.chunks(rows));
    let outputs = losses
        .chunks_mut(rows)
        .zip(d_hidden.chunks_mut(rows * width));
    for (((hidden, targets), weights), (losses, d_hidden)) in inputs.zip(outputs) {
        let count = targets.len();
        let logits = &mut logits[..count * vocab];
        project(pool, compute, hidden, table, width, logits);
        let losses = Disjoint::new(losses);
        pool.for_each_chunk(logits, vocab, |n, row| {
            let loss = match targets[n] {
                IGNORE => {
                    row.fill(0.0);
                    0.0
                }
                target => {
                    let logit = row[target as usize];
                    let log_sum = dispatch(
                        pool.isa(),
                        Softmax {
                            row,
                            factor: weights[n],
                        },
                    );
                    row[target as usize] -= weights[n];
                    log_sum - logit
                }
            };
            // SAFETY: each task writes its own element.
            unsafe { losses.range(n, 1).copy_from_slice(&[loss]) };
        });
        let d_logits = Mat::new(logits, count, vocab);
        matmul_in(
            pool,
            compute,
            d_logits,
            Mat::new(table, vocab, width),
            MatMut::new(d_hidden, count, width),
            false,
        );
        matmul_in(
            pool,
            compute,
            d_logits.t(),
            Mat::new(hidden, count, width),
            MatMut::new(d_table, vocab, width),
            true,
        );
    }
}

/// ln Σ exp over one row of logits.
pub fn log_sum_exp(isa: Isa, row: &[f32]) -> f32 {
    dispatch(isa, LogSumExp(row))
}

/// Turns one row of logits into log-probabilities.
pub fn log_softmax(isa: Isa, row: &mut [f32]) {
    let log_sum = log_sum_exp(isa, row);
    for logit in row {
        *logit -= log_sum;
    }
}

struct Shape {
    width: usize,
    vocab: usize,
}

/// Checks the lengths; `None` when there are no tokens.
fn check(hidden: &[f32], table: &[f32], targets: &[u32], losses: usize) -> Option<Shape> {
    let rows = targets.len();
    assert_eq!(
        losses, rows,
        "cross_entropy: {losses} losses for {rows} targets"
    );
    if rows == 0 {
        assert!(
            hidden.is_empty(),
            "cross_entropy: no targets, but {} of hidden",
            hidden.len()
        );
        return None;
    }
    let width = hidden.len() / rows;
    assert!(
        width > 0 && hidden.len() == rows * width,
        "cross_entropy: {} of hidden for {rows} targets",
        hidden.len()
    );
    let vocab = table.len() / width;
    assert!(
        vocab > 0 && table.len() == vocab * width,
        "cross_entropy: a table of {} for rows of {width}",
        table.len()
    );
    for (n, &target) in targets.iter().enumerate() {
        assert!(
            target == IGNORE || (target as usize) < vocab,
            "target {target} of token {n} in a vocabulary of {vocab}"
        );
    }
    Some(Shape { width, vocab })
}

fn rows_per_chunk(vocab: usize) -> usize {
    (CHUNK_LOGITS / vocab).clamp(64, 1008)
}

/// logits = hidden tableᵀ
fn project(
    pool: &Pool,
    compute: Compute,
    hidden: &[f32],
    table: &[f32],
    width: usize,
    logits: &mut [f32],
) {
    let (rows, vocab) = (hidden.len() / width, table.len() / width);
    let table = Mat::new(table, vocab, width);
    matmul_in(
        pool,
        compute,
        Mat::new(hidden, rows, width),
        table.t(),
        MatMut::new(logits, rows, vocab),
        false,
    );
}

/// The maximum of a row.
#[inline(always)]
fn maximum<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let mut highest = simd.splat(f32::NEG_INFINITY);
    let whole = row.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: a whole vector lies in the row.
        highest = simd.max(highest, unsafe { simd.load(row.as_ptr().add(i)) });
    }
    row[whole..]
        .iter()
        .fold(simd.maximum(highest), |a, &b| if a > b { a } else { b })
}

struct LogSumExp<'a>(&'a [f32]);

impl Body for LogSumExp<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let row = self.0;
        let highest = maximum(simd, row);
        let shift = simd.splat(highest);
        let mut sum = simd.splat(0.0);
        let whole = row.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: a whole vector lies in the row.
            let x = unsafe { simd.load(row.as_ptr().add(i)) };
            sum = simd.add(sum, simd.exp(simd.sub(x, shift)));
        }
        let tail: f32 = row[whole..].iter().map(|x| libm::expf(x - highest)).sum();
        highest + libm::logf(simd.sum(sum) + tail)
    }
}

/// row ← factor · softmax(row); returns the row's ln Σ exp.
struct Softmax<'a> {
    row: &'a mut [f32],
    factor: f32,
}

impl Body for Softmax<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let row = self.row;
        let highest = maximum(simd, row);
        let shift = simd.splat(highest);
        let mut sum = simd.splat(0.0);
        let whole = row.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: a whole vector lies in the row.
            unsafe {
                let at = row.as_mut_ptr().add(i);
                let e = simd.exp(simd.sub(simd.load(at), shift));
                simd.store(at, e);
                sum = simd.add(sum, e);
            }
        }
        let mut total = simd.sum(sum);
        for x in &mut row[whole..] {
            *x = libm::expf(*x - highest);
            total += *x;
        }
        let scale = self.factor / total;
        for x in row {
            *x *= scale;
        }
        highest + libm::logf(total)
    }
}
