//! Low-rank adapters chosen by row: sequences of one batch go through different ones, or none.
//!
//! `y += scale · (x Aᵀ) Bᵀ` as in `lora`, to the same bits where 16 hold the matrices ([`russet_kernels::adapter`]), on the rows of each
//! run. Forward only: what is trained is part of the decoder.

use russet_kernels::adapter::{self, AdaptedRows, LowRank, LowRankPart, Numbers};
use russet_kernels::{Mat, MatMut};

use crate::segments::Adapted;
use crate::{Ctx, DType, Tensor};

use super::LoraPart;

pub(super) const INFERENCE: &str =
    "adapters by row are for inference: train one as part of the decoder";

/// Matrices for some of a decoder's products, in 16 bits.
pub struct Adapter {
    places: Vec<Option<LowRank>>, // in the order of the decoder's products
}

/// A matrix's numbers as they are stored.
///
/// # Panics
/// When they are integers.
fn numbers(matrix: &Tensor) -> Numbers<'_> {
    match matrix.dtype() {
        DType::F32 => Numbers::F32(matrix.bytes()),
        DType::F16 => Numbers::F16(matrix.bytes()),
        DType::BF16 => Numbers::Bf16(matrix.bytes()),
        DType::I8 | DType::U8 => panic!("an adapter of integers"),
    }
}

/// A matrix with the numbers that it has in an [`Adapter`], in f32.
///
/// # Panics
/// When they are integers.
pub fn as_adapted(matrix: &Tensor) -> Tensor {
    Tensor::new(matrix.shape(), numbers(matrix).rounded())
}

/// A part as it is stored.
fn stored(part: &LoraPart) -> LowRankPart<'_> {
    LowRankPart {
        columns: part.columns.clone(),
        rank: part.a.dims2().0,
        a: numbers(&part.a),
        b: numbers(&part.b),
        scale: part.scale,
    }
}

impl Adapter {
    /// An adapter of the parts of each product, in the order of the decoder's. Matrices may be of any type of floats.
    pub fn new(places: Vec<Vec<LoraPart>>) -> Adapter {
        let place = |parts: Vec<LoraPart>| {
            let (_, width) = parts.first()?.a.dims2();
            let parts: Vec<_> = parts.iter().map(stored).collect();
            Some(LowRank::new(width, &parts))
        };
        Adapter {
            places: places.into_iter().map(place).collect(),
        }
    }

    /// Bytes of its matrices.
    pub fn bytes(&self) -> usize {
        self.places.iter().flatten().map(LowRank::bytes).sum()
    }

    fn place(&self, place: usize) -> Option<&LowRank> {
        self.places.get(place)?.as_ref()
    }
}

/// What acts on the product at `place`: the first adapters of all runs, then the second, and so on, levels without any left out.
pub(super) fn levels(runs: &[Adapted], place: usize) -> Vec<Vec<AdaptedRows<'_>>> {
    let most = runs.iter().map(|run| run.stack.len()).max().unwrap_or(0);
    let mut levels = Vec::with_capacity(most);
    for level in 0..most {
        let mut acting = Vec::with_capacity(runs.len());
        for run in runs {
            let adapter = run.stack.get(level);
            if let Some(low_rank) = adapter.and_then(|adapter| adapter.place(place)) {
                let rows = run.rows.clone();
                acting.push(AdaptedRows { low_rank, rows });
            }
        }
        if !acting.is_empty() {
            levels.push(acting);
        }
    }
    levels
}

/// Bytes of matrices and operations of what [`adapt`] does at a place.
pub fn adapt_cost(runs: &[Adapted], place: usize) -> (u64, u64) {
    let acting = levels(runs, place).into_iter().flatten();
    acting.fold((0, 0), |(bytes, flops), AdaptedRows { low_rank, rows }| {
        let own = 2 * (low_rank.numbers() * rows.len()) as u64;
        (bytes + low_rank.bytes() as u64, flops + own)
    })
}

/// `y [N, F]`, the product at `place` of `x [N, D]`, with what the adapters of each run of rows add to it. Rows in no run
/// are left alone. The buffer of y is reused where nothing else holds it.
///
/// # Panics
/// When a gradient would have to pass.
pub fn adapt(ctx: &mut Ctx, y: Tensor, x: &Tensor, runs: &[Adapted], place: usize) -> Tensor {
    let levels = levels(runs, place);
    if levels.is_empty() {
        return y;
    }
    assert!(!ctx.is_recording(), "{INFERENCE}");
    let ((tokens, width), (_, features)) = (x.dims2(), y.dims2());
    let mut out = y.into_buffer(|len| ctx.buffer(len));
    for level in &levels {
        let x = Mat::new(x.data(), tokens, width);
        adapter::adapt(&ctx.pool, level, x, MatMut::new(&mut out, tokens, features));
    }
    Tensor::new(&[tokens, features], out)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use half::bf16;

    use super::*;
    use crate::ops::check::{context, random};
    use crate::ops::lora;
    use crate::segments::{Segments, Stack};

    /// Of bf16, which an adapter holds as they are.
    fn rounded(shape: &[usize], seed: u64) -> Tensor {
        let numbers = random(shape, seed);
        Tensor::from_fn(shape, |i| bf16::from_f32(numbers.data()[i]).to_f32())
    }

    fn part(columns: Range<usize>, rank: usize, seed: u64) -> LoraPart {
        LoraPart {
            a: rounded(&[rank, 7], seed),
            b: rounded(&[columns.len(), rank], seed + 1),
            scale: 0.5 + seed as f32,
            columns,
        }
    }

    #[test]
    fn each_run_gets_what_its_own_adapters_give_to_it_alone() {
        let parts = [
            vec![part(0..4, 2, 1), part(6..9, 3, 3)],
            vec![part(2..9, 1, 5)],
        ];
        let adapter = |at: usize| Arc::new(Adapter::new(vec![vec![], parts[at].clone()]));
        let (one, two): (Stack, Stack) = ([adapter(0)].into(), [adapter(0), adapter(1)].into());
        let mut segments = Segments::default();
        segments.push(2, 0, 0);
        segments.push_adapted(1, 0, 1, &one);
        segments.push_adapted(3, 0, 2, &one);
        segments.push(1, 0, 3);
        segments.push_adapted(2, 0, 4, &two);
        let rows: Vec<_> = segments.adapted().iter().map(|a| a.rows.clone()).collect();
        assert_eq!(rows, [2..6, 7..9]);
        let (x, y) = (random(&[9, 7], 8), random(&[9, 9], 9));
        let mut ctx = context();
        let got = adapt(&mut ctx, y.clone(), &x, segments.adapted(), 1);
        let mut wanted = y.data().to_vec();
        for (range, stack) in [(2..6, &parts[..1]), (7..9, &parts[..])] {
            for n in range {
                let row = |t: &Tensor| {
                    let width = t.dims2().1;
                    Tensor::new(&[1, width], t.data()[n * width..][..width].to_vec())
                };
                let (x, mut y) = (row(&x), row(&y));
                for parts in stack {
                    y = lora(&mut ctx, y, &x, parts);
                }
                wanted[n * 9..][..9].copy_from_slice(y.data());
            }
        }
        assert_eq!(got.data(), wanted);
        // A product that none of them acts on.
        let got = adapt(&mut ctx, y.clone(), &x, segments.adapted(), 0);
        assert_eq!(got.id(), y.id());
    }
}
