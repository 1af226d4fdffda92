//! The gated activation of the feed-forward layer (Shazeer, arXiv 2002.05202): silu(gate) · up, silu(g) = g · σ(g).

use crate::elementwise::rows_per_task;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::profile::{Kernel, span};
use crate::simd::{Body, Simd, dispatch};

/// `out = silu(gate) · up`. A row of `gate_up` `[N, 2F]` holds F gates, then F ups; `out` `[N, F]`; F = `ffn`.
///
/// # Panics
/// When the lengths do not fit.
pub fn forward(pool: &Pool, gate_up: &[f32], ffn: usize, out: &mut [f32]) {
    let _span = span(Kernel::SwiGlu);
    assert!(
        ffn > 0 && gate_up.len() == 2 * out.len() && out.len().is_multiple_of(ffn),
        "swiglu: {} of gate_up into {} of out, ffn {ffn}",
        gate_up.len(),
        out.len()
    );
    let step = rows_per_task(2 * ffn);
    pool.for_each_chunk(out, step * ffn, |task, out| {
        let gate_up = &gate_up[task * step * 2 * ffn..];
        dispatch(pool.isa(), Forward { gate_up, ffn, out });
    });
}

/// `d_gate_up` `[N, 2F]` from the forward's `gate_up` and `d_out` `[N, F]`.
///
/// With s = σ(gate): d_up = d · gate · s; d_gate = d · up · s (1 + gate (1 - s)).
///
/// # Panics
/// When the lengths do not fit.
pub fn backward(pool: &Pool, gate_up: &[f32], ffn: usize, d_out: &[f32], d_gate_up: &mut [f32]) {
    let _span = span(Kernel::SwiGlu);
    assert!(
        ffn > 0
            && gate_up.len() == 2 * d_out.len()
            && d_gate_up.len() == gate_up.len()
            && d_out.len().is_multiple_of(ffn),
        "swiglu backward: gate_up {}, d_out {}, d_gate_up {}, ffn {ffn}",
        gate_up.len(),
        d_out.len(),
        d_gate_up.len()
    );
    let step = rows_per_task(2 * ffn);
    pool.for_each_chunk(d_gate_up, step * 2 * ffn, |task, d_gate_up| {
        let gate_up = &gate_up[task * step * 2 * ffn..][..d_gate_up.len()];
        let d_out = &d_out[task * step * ffn..][..d_gate_up.len() / 2];
        dispatch(
            pool.isa(),
            Backward {
                gate_up,
                ffn,
                d_out,
                d_gate_up,
            },
        );
    });
}

struct Forward<'a> {
    gate_up: &'a [f32],
    ffn: usize,
    out: &'a mut [f32],
}

impl Body for Forward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self
            .gate_up
            .chunks_exact(2 * self.ffn)
            .zip(self.out.chunks_exact_mut(self.ffn));
        for (gate_up, out) in rows {
            let (gate, up) = gate_up.split_at(self.ffn);
            // SAFETY: each of the three has F numbers.
            unsafe { row(simd, gate.as_ptr(), up.as_ptr(), self.ffn, out.as_mut_ptr()) };
        }
    }
}

/// `count` numbers of a row.
///
/// # Safety
/// So many are readable of gate and up, and writable of `out`, which may be the gate.
#[inline(always)]
unsafe fn row<S: Simd>(simd: S, gate: *const f32, up: *const f32, count: usize, out: *mut f32) {
    let (one, zero) = (simd.splat(1.0), simd.splat(0.0));
    for i in (0..count).step_by(S::LANES) {
        let left = count - i;
        // SAFETY: `left` numbers remain in each of the three.
        unsafe {
            let g = simd.load_up_to(gate.add(i), left);
            let u = simd.load_up_to(up.add(i), left);
            let denominator = simd.add(one, simd.exp(simd.sub(zero, g)));
            let silu = simd.div(g, denominator);
            simd.store_up_to(out.add(i), left, simd.mul(silu, u));
        }
    }
}

/// The first `count` numbers of each row are gates, those from `up` on are ups; what they come to takes the gates' places.
pub(crate) fn in_rows<const W: usize>(isa: Isa, rows: &mut [[f32; W]], count: usize, up: usize) {
    assert!(
        count <= up && up + count <= W,
        "{count} gates and ups in {W}"
    );
    dispatch(isa, InRows { rows, count, up });
}

struct InRows<'a, const W: usize> {
    rows: &'a mut [[f32; W]],
    count: usize,
    up: usize,
}

impl<const W: usize> Body for InRows<'_, W> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for numbers in self.rows {
            let gate = numbers.as_mut_ptr();
            // SAFETY: checked by `in_rows`.
            unsafe { row(simd, gate, gate.add(self.up), self.count, gate) };
        }
    }
}

struct Backward<'a> {
    gate_up: &'a [f32],
    ffn: usize,
    d_out: &'a [f32],
    d_gate_up: &'a mut [f32],
}

impl Body for Backward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let one = simd.splat(1.0);
        let zero = simd.splat(0.0);
        let width = 2 * self.ffn;
        let rows = self
            .gate_up
            .chunks_exact(width)
            .zip(self.d_gate_up.chunks_exact_mut(width));
        for ((gate_up, d_gate_up), d_out) in rows.zip(self.d_out.chunks_exact(self.ffn)) {
            let (gate, up) = gate_up.split_at(self.ffn);
            let (d_gate, d_up) = d_gate_up.split_at_mut(self.ffn);
            for i in (0..self.ffn).step_by(S::LANES) {
                let left = self.ffn - i;
                // SAFETY: `left` numbers remain in each of the five.
                unsafe {
                    let g = simd.load_up_to(gate.as_ptr().add(i), left);
                    let u = simd.load_up_to(up.as_ptr().add(i), left);
                    let d = simd.load_up_to(d_out.as_ptr().add(i), left);
                    let s = simd.div(one, simd.add(one, simd.exp(simd.sub(zero, g))));
                    let ds = simd.mul(d, s);
                    simd.store_up_to(d_up.as_mut_ptr().add(i), left, simd.mul(ds, g));
                    let slope = simd.mul_add(g, simd.sub(one, s), one);
                    let d_g = simd.mul(simd.mul(ds, u), slope);
                    simd.store_up_to(d_gate.as_mut_ptr().add(i), left, d_g);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
