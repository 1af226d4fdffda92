//! Next-token loss without the logits of all tokens at once.
//!
//! `loss = Σₙ weightₙ · (logsumexp(zₙ) − zₙ[targetₙ])` with `zₙ = hiddenₙ · tableᵀ`. The logits `[N, V]`
//! exist a chunk of rows at a time; while a tape runs, their gradient is formed in the same visit. [`LossTerms`] add z-loss
//! and a teacher, whose logits go through in the same chunks.

use russet_kernels::cross_entropy as kernel;
use russet_kernels::elementwise;

use crate::{Buffer, Ctx, Tensor};

/// What [`cross_entropy`] returns.
pub struct TokenLoss {
    /// The weighted sum, one number.
    pub loss: Tensor,
    /// Each token's own loss in nats, 0 where the target is ignored, `[N]`.
    pub per_token: Vec<f32>,
}

/// What a loss consists of besides the cross-entropy of the targets. By default nothing.
#[derive(Clone, Copy, Default)]
pub struct LossTerms<'a> {
    /// ζ of `ζ (ln Σ exp(z))²`.
    pub z_loss: f32,
    /// A teacher, and the share m of the loss that is his.
    pub teacher: Option<(LossTeacher<'a>, f32)>,
}

/// Whose predictions the loss draws towards; no gradient flows to him. The formulas stand at
/// [`russet_kernels::cross_entropy::Teacher`].
#[derive(Clone, Copy)]
pub enum LossTeacher<'a> {
    /// His likeliest token is a second label.
    Top1 {
        /// `[N, D]` of the teacher.
        hidden: &'a Tensor,
        /// `[V, D]`.
        table: &'a Tensor,
    },
    /// The divergence of all probabilities.
    Full {
        /// `[N, D]` of the teacher.
        hidden: &'a Tensor,
        /// `[V, D]`.
        table: &'a Tensor,
        /// What both models' logits are divided by.
        temperature: f32,
    },
    /// The divergence of K tokens' probabilities and what is left.
    Sparse {
        /// `[N, K]`.
        ids: &'a [u32],
        /// `[N, K]`.
        log_probs: &'a [f32],
    },
}

impl LossTerms<'_> {
    fn is_none(&self) -> bool {
        self.z_loss == 0.0 && self.teacher.is_none()
    }

    fn kernel(&self) -> kernel::Terms<'_> {
        let teacher = self.teacher.map(|(teacher, mix)| {
            let head = |hidden, table| head(hidden, table);
            let teacher = match teacher {
                LossTeacher::Top1 { hidden, table } => kernel::Teacher::Top1(head(hidden, table)),
                LossTeacher::Full {
                    hidden,
                    table,
                    temperature,
                } => kernel::Teacher::Full {
                    head: head(hidden, table),
                    temperature,
                },
                LossTeacher::Sparse { ids, log_probs } => {
                    kernel::Teacher::Sparse { ids, log_probs }
                }
            };
            (teacher, mix)
        });
        kernel::Terms {
            z_loss: self.z_loss,
            teacher,
        }
    }
}

fn head<'a>(hidden: &'a Tensor, table: &'a Tensor) -> kernel::Head<'a> {
    let ((_, width), (_, inputs)) = (hidden.dims2(), table.dims2());
    assert_eq!(width, inputs, "hidden states and the table that they meet");
    kernel::Head {
        hidden: hidden.data(),
        table: table.data(),
    }
}

/// The loss of `hidden [N, D]` against `targets [N]` through the output table `[V, D]`.
/// A target of [`crate::ops::IGNORE`] counts nothing.
pub fn cross_entropy(
    ctx: &mut Ctx,
    hidden: &Tensor,
    table: &Tensor,
    targets: &[u32],
    weights: &[f32],
    terms: &LossTerms,
) -> TokenLoss {
    let (tokens, _) = hidden.dims2();
    assert_eq!(
        (targets.len(), weights.len()),
        (tokens, tokens),
        "a target and a weight for each token"
    );
    let records = ctx.records(&[hidden, table]);
    if !records && terms.is_none() {
        let per_token = token_losses(ctx, hidden, table, targets);
        return TokenLoss {
            loss: weighted_sum(&per_token, weights),
            per_token,
        };
    }
    let mut per_token = vec![0.0; tokens];
    let mut made = records.then(|| {
        let d_table = ctx.records(&[table]).then(|| ctx.zeros(table.len()));
        (ctx.buffer(hidden.len()), d_table)
    });
    let gradients = made.as_mut().map(|(hidden, table)| kernel::HeadGradients {
        hidden,
        table: table.as_deref_mut(),
    });
    kernel::with_terms(
        &ctx.pool,
        ctx.compute,
        head(hidden, table),
        targets,
        weights,
        &terms.kernel(),
        &mut per_token,
        gradients,
    );
    of_tokens(ctx, per_token, weights, (hidden, table), made)
}

/// The loss of all tokens, with the gradients of `hidden` and, where it learns, `table` that were formed with it.
pub(super) fn of_tokens(
    ctx: &mut Ctx,
    per_token: Vec<f32>,
    weights: &[f32],
    (hidden, table): (&Tensor, &Tensor),
    made: Option<(Buffer, Option<Buffer>)>,
) -> TokenLoss {
    let loss = weighted_sum(&per_token, weights);
    if let Some((d_hidden, d_table)) = made {
        let mut gradients = vec![(hidden, Tensor::new(hidden.shape(), d_hidden))];
        gradients.extend(d_table.map(|d_table| (table, Tensor::new(table.shape(), d_table))));
        record_gradients(ctx, &loss, gradients);
    }
    TokenLoss { loss, per_token }
}

/// Records a loss whose gradients were formed with it.
pub(super) fn record_gradients(ctx: &mut Ctx, loss: &Tensor, inputs: Vec<(&Tensor, Tensor)>) {
    let inputs: Vec<_> = inputs
        .into_iter()
        .map(|(input, gradient)| (input.handle(), gradient))
        .collect();
    ctx.record(loss, move |back, d_loss| {
        let factor = d_loss.data()[0];
        for (input, mut gradient) in inputs {
            if back.wants(&input) {
                if factor != 1.0 {
                    elementwise::scale_in_place(back.pool, gradient.data_mut(), factor);
                }
                back.accumulate(&input, gradient);
            }
        }
    });
}

/// Each token's loss in nats, `[N]`, without gradients.
pub fn token_losses(ctx: &mut Ctx, hidden: &Tensor, table: &Tensor, targets: &[u32]) -> Vec<f32> {
    let mut losses = vec![0.0; targets.len()];
    kernel::forward(
        &ctx.pool,
        ctx.compute,
        hidden.data(),
        table.data(),
        targets,
        &mut losses,
    );
    losses
}

pub(super) fn weighted_sum(losses: &[f32], weights: &[f32]) -> Tensor {
    let sum: f64 = losses
        .iter()
        .zip(weights)
        .map(|(&l, &w)| l as f64 * w as f64)
        .sum();
    Tensor::new(&[1], vec![sum as f32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::IGNORE;
    use crate::ops::check::{check_gradients, random};

    const TARGETS: [u32; 4] = [3, IGNORE, 10, 0];
    const WEIGHTS: [f32; 4] = [0.5, 1.0, 0.25, 2.0];

    fn check(terms: &LossTerms) {
        check_gradients(&[random(&[4, 6], 1), random(&[11, 6], 2)], |ctx, x| {
            cross_entropy(ctx, &x[0], &x[1], &TARGETS, &WEIGHTS, terms).loss
        });
    }

    #[test]
    fn gradients_equal_finite_differences() {
        check(&LossTerms::default());
    }

    #[test]
    fn gradients_of_the_z_loss_equal_finite_differences() {
        check(&LossTerms {
            z_loss: 0.05,
            teacher: None,
        });
    }

    #[test]
    fn gradients_under_a_teacher_equal_finite_differences() {
        let (hidden, table) = (&random(&[4, 3], 5), &random(&[11, 3], 6));
        let ids = [3, 4, 0, 10, 9, 8, 7, 6];
        let log_probs = [-0.5, -2.0, -1.0, -1.5, -0.7, -0.7, -3.0, -4.0];
        for teacher in [
            LossTeacher::Top1 { hidden, table },
            LossTeacher::Full {
                hidden,
                table,
                temperature: 1.0,
            },
            LossTeacher::Full {
                hidden,
                table,
                temperature: 2.0,
            },
            LossTeacher::Sparse {
                ids: &ids,
                log_probs: &log_probs,
            },
        ] {
            for mix in [0.9, 1.0] {
                check(&LossTerms {
                    z_loss: 0.01,
                    teacher: Some((teacher, mix)),
                });
            }
        }
    }

    /// The student in the teacher's place: nothing to learn from him, and the loss says so.
    #[test]
    fn a_student_that_is_its_teacher_has_no_divergence_and_no_gradient() {
        let mut ctx = crate::ops::check::context();
        let (hidden, table) = (random(&[4, 6], 1), random(&[11, 6], 2));
        let teacher = LossTeacher::Full {
            hidden: &hidden,
            table: &table,
            temperature: 3.0,
        };
        let terms = LossTerms {
            z_loss: 0.0,
            teacher: Some((teacher, 1.0)),
        };
        ctx.start_tape([hidden.id(), table.id()]);
        let made = cross_entropy(&mut ctx, &hidden, &table, &TARGETS, &WEIGHTS, &terms);
        assert!(
            made.per_token.iter().all(|loss| loss.abs() < 1e-5),
            "{:?}",
            made.per_token
        );
        let mut gradients = crate::Gradients::default();
        ctx.backward(&made.loss, 1.0, &mut gradients);
        for tensor in [&hidden, &table] {
            let gradient = gradients.get(tensor).unwrap();
            assert!(
                gradient.data().iter().all(|g| g.abs() < 1e-5),
                "{:?}",
                gradient.data()
            );
        }
    }
}
