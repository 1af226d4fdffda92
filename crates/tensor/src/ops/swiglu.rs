//! The gated unit of the feed-forward layer, `silu(gate) · up` (arXiv 2002.05202).

use std::sync::Arc;

use russet_kernels::swiglu as kernel;

use crate::tensor::Recipe;
use crate::{Ctx, Tensor};

/// `[N, 2F]`, gate columns then up columns, to `[N, F]`.
pub fn swiglu(ctx: &mut Ctx, gate_up: &Tensor) -> Tensor {
    let (tokens, both) = gate_up.dims2();
    let ffn = both / 2;
    let mut out = ctx.buffer(tokens * ffn);
    kernel::forward(&ctx.pool, gate_up.data(), ffn, &mut out);
    let mut out = Tensor::new(&[tokens, ffn], out);
    if ctx.records(&[gate_up]) {
        let gate_up = gate_up.clone();
        let recipe: Arc<Recipe> = Arc::new({
            // Half of gate and up, which are kept for the derivative here: cheaper to compute again than to keep.
            let gate_up = gate_up.clone();
            move |pool, workspace| {
                let mut out = workspace.take(tokens * ffn);
                kernel::forward(pool, gate_up.data(), ffn, &mut out);
                Tensor::new(&[tokens, ffn], out)
            }
        });
        out = out.computed_by(&recipe);
        ctx.record(&out, move |back, d_out| {
            drop(recipe);
            let mut d_gate_up = back.buffer(gate_up.len());
            kernel::backward(back.pool, gate_up.data(), ffn, d_out.data(), &mut d_gate_up);
            let d_gate_up = Tensor::new(gate_up.shape(), d_gate_up);
            back.accumulate(&gate_up, d_gate_up);
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::ops::check::{check_gradients, random};

    #[test]
    fn gradients_equal_finite_differences() {
        check_gradients(&[random(&[3, 34], 1)], |ctx, x| super::swiglu(ctx, &x[0]));
    }
}
