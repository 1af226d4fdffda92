//! The language-model head and its loss in one: logits = hidden tableᵀ, `loss = -ln softmax(logits)[target]`.
//!
//! The logits of all tokens are never in memory together (8192 tokens x a vocabulary of 49,152
//! would be 1.6 GB): rows go through in chunks, and the backward product of a chunk follows while its
//! probabilities are still in cache. (Liger kernels' fused linear cross-entropy, arXiv 2410.10989.)
//!
//! ```text
//! loss = ln Σ exp(z) - z[t]      dz = w (softmax(z) - onehot(t))      d_hidden = dz · table      d_table += dzᵀ · hidden
//! ```
//!
//! [`Terms`] add to it: z-loss, `ζ (ln Σ exp)²`, which keeps logits from drifting (PaLM, arXiv 2204.02311, section 5),
//! and a teacher's opinion. A teacher in memory goes through in the same chunks, so neither its logits nor the student's
//! ever exist whole.
//!
//! ```text
//! loss = (1 - m) (ln Σ exp(z) - z[t]) + m D(teacher, student) + ζ (ln Σ exp(z))²
//! ```

use crate::isa::Isa;
use crate::matmul::{Compute, Mat, MatMut, matmul_in};
use crate::pool::{Disjoint, Pool};
use crate::profile::{Kernel, span};
use crate::scratch::with_scratch;
use crate::simd::dispatch;

mod part;
mod rows;

pub use part::of_part;

use rows::{Divergence, Exponentials, LogSumExp, Scale, Sparse, argmax};

/// The target of a token that has no loss.
pub const IGNORE: u32 = u32::MAX;

/// Logits of one chunk: 16 MiB. Each chunk packs the whole table anew and adds to the whole of its gradient.
const CHUNK_LOGITS: usize = 1 << 22;

/// The most tokens of a sparse target.
pub const MAX_SPARSE: usize = 256;

/// Hidden states and the table that makes logits of them.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `[N, D]`.
    pub hidden: &'a [f32],
    /// `[V, D]`.
    pub table: &'a [f32],
}

/// What a loss consists of besides the cross-entropy of the targets. By default nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms<'a> {
    /// ζ of `ζ (ln Σ exp(z))²`.
    pub z_loss: f32,
    /// A teacher, and the share m of the loss that is his; the target has the rest.
    pub teacher: Option<(Teacher<'a>, f32)>,
}

/// Whose predictions a student is drawn to. The width D of its hidden states need not be the student's; V must be.
#[derive(Clone, Copy, Debug)]
pub enum Teacher<'a> {
    /// `D = -ln p[a]` with a the teacher's likeliest token, the lower id where two are: the label is
    /// `m onehot(a) + (1 - m) onehot(t)`, AFM's hard mix.
    Top1(Head<'a>),
    /// `D = τ² Σ q (ln q - ln p)`, q and p the softmax of the teacher's and the student's logits over τ
    /// (Hinton et al., arXiv 1503.02531).
    Full {
        /// Its hidden states and table.
        head: Head<'a>,
        /// τ.
        temperature: f32,
    },
    /// K tokens of each position with the teacher's log-probabilities. What they leave of the probability, the tail, is one
    /// more outcome, "none of these", so that the student learns how much mass lies there and keeps its own opinion on
    /// how it is spread:
    /// `D = Σ_K q (ln q - ln p) + q_tail (ln q_tail - ln p_tail)`. It is never more than the full divergence and is 0 exactly
    /// where the student gives the K tokens their probabilities.
    Sparse {
        /// Distinct tokens, `[N, K]`.
        ids: &'a [u32],
        /// `[N, K]`; where their probabilities come to more than 1 they are shortened to it.
        log_probs: &'a [f32],
    },
}

/// Where the gradients of [`with_terms`] go.
#[derive(Debug)]
pub struct HeadGradients<'a> {
    /// `[N, D]`, written.
    pub hidden: &'a mut [f32],
    /// `[V, D]`, added to; `None` of a frozen table, whose product is then not formed.
    pub table: Option<&'a mut [f32]>,
}

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
    let _span = span(Kernel::CrossEntropy);
    let Some(Shape { width, vocab }) = check(hidden, table, targets, losses.len()) else {
        return;
    };
    let rows = rows_per_chunk(vocab);
    with_scratch(rows.min(targets.len()) * vocab, |logits| {
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
    });
}

/// As [`forward`], and the gradient of `Σ weights[n] · loss[n]`: `d_hidden` `[N, D]` is written, `d_table` `[V, D]` is added to.
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
    let gradients = HeadGradients {
        hidden: d_hidden,
        table: Some(d_table),
    };
    with_terms(
        pool,
        compute,
        Head { hidden, table },
        targets,
        weights,
        &Terms::default(),
        losses,
        Some(gradients),
    );
}

/// Losses in nats with further [`Terms`], `[N]`, 0 where the target is [`IGNORE`], and where they are wanted the gradients of
/// `Σ weights[n] · loss[n]`.
///
/// # Panics
/// As [`forward`], or when the teacher's lengths do not fit.
pub fn with_terms(
    pool: &Pool,
    compute: Compute,
    head: Head,
    targets: &[u32],
    weights: &[f32],
    terms: &Terms,
    losses: &mut [f32],
    gradients: Option<HeadGradients>,
) {
    let rows = match check(head.hidden, head.table, targets, losses.len()) {
        Some(Shape { vocab, .. }) => rows_per_chunk(vocab),
        None => return,
    };
    in_chunks(
        pool, compute, rows, head, targets, weights, terms, losses, gradients,
    );
}

/// [`with_terms`] with `rows` rows of logits at a time.
fn in_chunks(
    pool: &Pool,
    compute: Compute,
    rows: usize,
    head: Head,
    targets: &[u32],
    weights: &[f32],
    terms: &Terms,
    losses: &mut [f32],
    mut gradients: Option<HeadGradients>,
) {
    let _span = span(Kernel::CrossEntropy);
    let Some(Shape { width, vocab }) = check(head.hidden, head.table, targets, losses.len()) else {
        return;
    };
    assert_eq!(
        weights.len(),
        targets.len(),
        "cross_entropy: a weight for each target"
    );
    if let Some(gradients) = &gradients {
        let table = gradients.table.as_ref().map(|table| table.len());
        assert!(
            gradients.hidden.len() == head.hidden.len()
                && table.is_none_or(|table| table == head.table.len()),
            "cross_entropy: d_hidden {} for hidden {}, d_table {table:?} for table {}",
            gradients.hidden.len(),
            head.hidden.len(),
            head.table.len()
        );
    }
    let (teacher, mix) = match &terms.teacher {
        Some((teacher, mix)) => (Some(Opinions::new(teacher, targets.len(), vocab)), *mix),
        None => (None, 0.0),
    };
    let most = rows.min(targets.len());
    let both = matches!(teacher, Some(Opinions::Logits { .. }));
    // Of each model whose logits are formed here.
    let len = most * vocab * if both { 2 } else { 1 };
    with_scratch(len, |all| {
        let (logits, teacher_logits) = all.split_at_mut(most * vocab);
        for start in (0..targets.len()).step_by(rows) {
            let end = targets.len().min(start + rows);
            let hidden = &head.hidden[start * width..end * width];
            let (targets, weights) = (&targets[start..end], &weights[start..end]);
            let logits = &mut logits[..(end - start) * vocab];
            project(pool, compute, hidden, head.table, width, logits);
            if let Some(Opinions::Logits { head, width, .. }) = &teacher {
                let hidden = &head.hidden[start * width..end * width];
                let logits = &mut teacher_logits[..(end - start) * vocab];
                project(pool, compute, hidden, head.table, *width, logits);
            }
            let losses = Disjoint::new(&mut losses[start..end]);
            let teacher_logits = Disjoint::new(&mut *teacher_logits);
            pool.for_each_chunk(logits, vocab, |n, row| {
                let loss = match targets[n] {
                    IGNORE => {
                        row.fill(0.0);
                        0.0
                    }
                    target => {
                        let opinion = teacher.as_ref().map(|teacher| match teacher {
                            // SAFETY: each task has its own row, which lies in the buffer.
                            Opinions::Logits { temperature, .. } => Opinion::Logits(
                                unsafe { teacher_logits.range(n * vocab, vocab) },
                                *temperature,
                            ),
                            Opinions::Sparse { ids, log_probs, k } => {
                                let range = (start + n) * k..(start + n + 1) * k;
                                Opinion::Sparse(&ids[range.clone()], &log_probs[range])
                            }
                        });
                        let (weight, z_loss) = (weights[n], terms.z_loss);
                        token(pool.isa(), row, target, weight, z_loss, opinion, mix)
                    }
                };
                // SAFETY: each task writes its own element.
                unsafe { losses.range(n, 1).copy_from_slice(&[loss]) };
            });
            if let Some(gradients) = &mut gradients {
                let d_hidden = &mut gradients.hidden[start * width..end * width];
                unproject(
                    pool,
                    compute,
                    logits,
                    hidden,
                    head.table,
                    width,
                    d_hidden,
                    gradients.table.as_deref_mut(),
                );
            }
        }
    });
}

/// A teacher whose lengths were checked.
enum Opinions<'a> {
    Logits {
        head: Head<'a>,
        width: usize,
        temperature: Option<f32>, // none: the likeliest token alone counts
    },
    Sparse {
        ids: &'a [u32],
        log_probs: &'a [f32],
        k: usize,
    },
}

/// What the teacher says of one token.
enum Opinion<'a> {
    Logits(&'a mut [f32], Option<f32>),
    Sparse(&'a [u32], &'a [f32]),
}

impl<'a> Opinions<'a> {
    fn new(teacher: &Teacher<'a>, tokens: usize, vocab: usize) -> Opinions<'a> {
        let (head, temperature) = match *teacher {
            Teacher::Sparse { ids, log_probs } => {
                let k = ids.len() / tokens;
                assert!(
                    (1..=MAX_SPARSE.min(vocab)).contains(&k)
                        && ids.len() == tokens * k
                        && log_probs.len() == ids.len(),
                    "cross_entropy: {} ids and {} log-probabilities of a teacher for {tokens} tokens",
                    ids.len(),
                    log_probs.len()
                );
                assert!(
                    ids.iter().all(|&id| (id as usize) < vocab),
                    "cross_entropy: a teacher's token lies outside the vocabulary of {vocab}"
                );
                return Opinions::Sparse { ids, log_probs, k };
            }
            Teacher::Top1(head) => (head, None),
            Teacher::Full { head, temperature } => {
                assert!(
                    temperature > 0.0 && temperature.is_finite(),
                    "cross_entropy: a temperature of {temperature}"
                );
                (head, Some(temperature))
            }
        };
        let width = head.hidden.len() / tokens;
        assert!(
            head.hidden.len() == tokens * width && head.table.len() == vocab * width,
            "cross_entropy: the teacher's hidden {} and table {} for {tokens} tokens in a vocabulary of {vocab}",
            head.hidden.len(),
            head.table.len()
        );
        Opinions::Logits {
            head,
            width,
            temperature,
        }
    }
}

/// The loss of one token; its row of logits becomes the row's gradient times `weight`.
fn token(
    isa: Isa,
    row: &mut [f32],
    target: u32,
    weight: f32,
    z_loss: f32,
    opinion: Option<Opinion>,
    mix: f32,
) -> f32 {
    let target = target as usize;
    let logit = row[target];
    let (log_sum, divergence) = match opinion {
        None => {
            let (log_sum, total) = dispatch(isa, Exponentials(row));
            let factor = weight * (1.0 + 2.0 * z_loss * log_sum) / total;
            dispatch(isa, Scale { row, factor });
            row[target] -= weight;
            return log_sum - logit + z_loss * log_sum * log_sum;
        }
        Some(Opinion::Logits(teacher, None)) => {
            let likeliest = argmax(teacher) as u32;
            Sparse {
                ids: &[likeliest],
                log_probs: &[0.0],
                weight,
                z_loss,
                mix,
            }
            .run(isa, row)
        }
        Some(Opinion::Sparse(ids, log_probs)) => Sparse {
            ids,
            log_probs,
            weight,
            z_loss,
            mix,
        }
        .run(isa, row),
        Some(Opinion::Logits(teacher, Some(temperature))) => dispatch(
            isa,
            Divergence {
                row,
                teacher,
                temperature,
                weight,
                z_loss,
                mix,
            },
        ),
    };
    row[target] -= weight * (1.0 - mix);
    (1.0 - mix) * (log_sum - logit) + mix * divergence + z_loss * log_sum * log_sum
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

/// d_hidden = d_logits · table, and where it is wanted d_table += d_logitsᵀ · hidden
fn unproject(
    pool: &Pool,
    compute: Compute,
    d_logits: &[f32],
    hidden: &[f32],
    table: &[f32],
    width: usize,
    d_hidden: &mut [f32],
    d_table: Option<&mut [f32]>,
) {
    let (rows, vocab) = (hidden.len() / width, table.len() / width);
    let d_logits = Mat::new(d_logits, rows, vocab);
    matmul_in(
        pool,
        compute,
        d_logits,
        Mat::new(table, vocab, width),
        MatMut::new(d_hidden, rows, width),
        false,
    );
    let Some(d_table) = d_table else { return };
    matmul_in(
        pool,
        compute,
        d_logits.t(),
        Mat::new(hidden, rows, width),
        MatMut::new(d_table, vocab, width),
        true,
    );
}

#[cfg(test)]
mod tests;
