//! The loss through a part of the vocabulary, whose other parts other ranks have.
//!
//! With l the ln Σ exp over the own part of a row, all that the parts must tell one another of a row are two numbers, l and
//! the target's logit where it is theirs:
//!
//! ```text
//! L = ln Σ exp(l)  over the parts        loss = L - z[t]        dz = w (exp(z - L) - onehot(t)) = w (softmax_part(z) exp(l - L) - onehot(t))
//! ```

use super::{
    Exponentials, HeadGradients, IGNORE, Scale, dispatch, log_sum_exp, project, rows_per_chunk,
    unproject,
};
use super::{Head, Kernel, span};
use crate::matmul::Compute;
use crate::pool::{Disjoint, Pool};
use crate::scratch::with_scratch;

/// What the parts tell one another of a row.
const SAID: usize = 2;

/// As [`super::with_terms`] without a teacher, of a table that holds the rows of a vocabulary from `first` on.
/// `gradients.hidden` becomes this part's summand. `exchange` is called once for each chunk of rows, with numbers that it
/// returns of all parts, in their order.
///
/// # Panics
/// When the lengths do not fit.
pub fn of_part(
    pool: &Pool,
    compute: Compute,
    head: Head,
    first: usize,
    targets: &[u32],
    weights: &[f32],
    z_loss: f32,
    losses: &mut [f32],
    mut gradients: Option<HeadGradients>,
    exchange: &mut dyn FnMut(Vec<f32>) -> Vec<Vec<f32>>,
) {
    let _span = span(Kernel::CrossEntropy);
    let tokens = targets.len();
    assert!(
        losses.len() == tokens && weights.len() == tokens,
        "cross_entropy: {} losses and {} weights for {tokens} targets",
        losses.len(),
        weights.len()
    );
    let Some(width) = head.hidden.len().checked_div(tokens) else {
        return;
    };
    let vocab = head.table.len() / width;
    assert!(
        head.hidden.len() == tokens * width && head.table.len() == vocab * width && vocab > 0,
        "cross_entropy: {} of hidden for {tokens} targets, and a table of {}",
        head.hidden.len(),
        head.table.len()
    );
    let own = |target: u32| {
        let row = (target as usize).checked_sub(first)?;
        (target != IGNORE && row < vocab).then_some(row)
    };
    let rows = rows_per_chunk(vocab);
    with_scratch(rows.min(tokens) * vocab, |all| {
        for start in (0..tokens).step_by(rows) {
            let end = tokens.min(start + rows);
            let hidden = &head.hidden[start * width..end * width];
            let (targets, weights) = (&targets[start..end], &weights[start..end]);
            let logits = &mut all[..(end - start) * vocab];
            project(pool, compute, hidden, head.table, width, logits);

            let mut said = vec![0.0; SAID * (end - start)];
            let mut totals = vec![0.0; end - start];
            {
                let (said, totals) = (Disjoint::new(&mut said), Disjoint::new(&mut totals));
                let wanted = gradients.is_some();
                pool.for_each_chunk(logits, vocab, |n, row| {
                    if targets[n] == IGNORE {
                        row.fill(0.0);
                        return;
                    }
                    let logit = own(targets[n]).map_or(0.0, |target| row[target]);
                    let (log_sum, total) = match wanted {
                        true => dispatch(pool.isa(), Exponentials(row)),
                        false => (log_sum_exp(pool.isa(), row), 1.0),
                    };
                    // SAFETY: each task writes the numbers of its own row.
                    unsafe {
                        said.range(SAID * n, SAID)
                            .copy_from_slice(&[log_sum, logit]);
                        totals.range(n, 1).copy_from_slice(&[total]);
                    }
                });
            }
            let heard = exchange(said.clone());
            let losses = Disjoint::new(&mut losses[start..end]);
            pool.for_each_chunk(logits, vocab, |n, row| {
                let loss = match targets[n] {
                    IGNORE => 0.0,
                    target => {
                        let (log_sum, logit) = join(&heard, n);
                        if gradients.is_some() {
                            let share = libm::expf(said[SAID * n] - log_sum);
                            let strength = weights[n] * (1.0 + 2.0 * z_loss * log_sum);
                            let factor = strength / totals[n] * share;
                            dispatch(pool.isa(), Scale { row, factor });
                            if let Some(target) = own(target) {
                                row[target] -= weights[n];
                            }
                        }
                        log_sum - logit + z_loss * log_sum * log_sum
                    }
                };
                // SAFETY: each task writes its own element.
                unsafe { losses.range(n, 1).copy_from_slice(&[loss]) };
            });
            if let Some(gradients) = &mut gradients {
                let d_hidden = &mut gradients.hidden[start * width..end * width];
                let d_table = gradients.table.as_deref_mut();
                unproject(
                    pool, compute, logits, hidden, head.table, width, d_hidden, d_table,
                );
            }
        }
    });
}

/// ln Σ exp over all parts and the target's logit, of the given row.
fn join(heard: &[Vec<f32>], row: usize) -> (f32, f32) {
    let of = |k: usize| heard.iter().map(move |said| said[SAID * row + k]);
    let highest = of(0).fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = of(0).map(|log_sum| libm::expf(log_sum - highest)).sum();
    (highest + libm::logf(sum), of(1).sum())
}
