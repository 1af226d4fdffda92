//! Low-rank adapters chosen by row: sequences of one batch go through different ones, or none.
//!
//! `y += scale · (x Aᵀ) Bᵀ` as in `lora`, to the same bits, on the rows of each run. The matrices A of one product's projections
//! stand below one another, so x is read once for all of them. Forward only: what is trained is part of the decoder.

use std::ops::Range;

use russet_kernels::{Mat, MatMut, matmul_in};

use crate::segments::Adapted;
use crate::{Ctx, Tensor};

use super::LoraPart;

/// Matrices for some of a decoder's products.
pub struct Adapter {
    places: Vec<Option<Place>>, // in the order of the decoder's products
}

/// What acts on one product.
struct Place {
    down: Tensor, // [sum of ranks, D]
    ups: Vec<Up>,
}

struct Up {
    columns: Range<usize>, // of the product
    ranks: Range<usize>,   // of what comes down
    matrix: Tensor,        // [columns, R]
    scale: f32,
}

impl Adapter {
    /// An adapter of the parts of each product, in the order of the decoder's.
    pub fn new(places: Vec<Vec<LoraPart>>) -> Adapter {
        let place = |parts: Vec<LoraPart>| {
            let width = parts.first()?.a.dims2().1;
            let (mut down, mut ups, mut ranks) = (Vec::new(), Vec::new(), 0);
            for part in parts {
                let (rank, _) = part.a.dims2();
                down.extend_from_slice(part.a.data());
                ups.push(Up {
                    columns: part.columns,
                    ranks: ranks..ranks + rank,
                    matrix: part.b,
                    scale: part.scale,
                });
                ranks += rank;
            }
            let down = Tensor::new(&[ranks, width], down);
            Some(Place { down, ups })
        };
        Adapter {
            places: places.into_iter().map(place).collect(),
        }
    }

    /// Bytes of its matrices.
    pub fn bytes(&self) -> usize {
        let place = |place: &Place| {
            let ups: usize = place.ups.iter().map(|up| up.matrix.bytes().len()).sum();
            place.down.bytes().len() + ups
        };
        self.places.iter().flatten().map(place).sum()
    }

    fn place(&self, place: usize) -> Option<&Place> {
        self.places.get(place)?.as_ref()
    }
}

/// Rows, bytes of matrices and operations of what [`adapt`] does at a place.
pub fn adapt_cost(runs: &[Adapted], place: usize) -> (usize, u64, u64) {
    let (mut rows, mut bytes, mut flops) = (0, 0, 0);
    for run in runs {
        let mut numbers = 0;
        for Place { down, ups } in run.stack.iter().filter_map(|a| a.place(place)) {
            numbers += down.len() + ups.iter().map(|up| up.matrix.len()).sum::<usize>();
        }
        if numbers > 0 {
            rows += run.rows.len();
            bytes += 4 * numbers as u64;
            flops += 2 * (numbers * run.rows.len()) as u64;
        }
    }
    (rows, bytes, flops)
}

/// `y [N, F]`, the product at `place` of `x [N, D]`, with what the adapters of each run of rows add to it. Rows in no run
/// are left alone. The buffer of y is reused where nothing else holds it.
///
/// # Panics
/// When a gradient would have to pass.
pub fn adapt(ctx: &mut Ctx, y: Tensor, x: &Tensor, runs: &[Adapted], place: usize) -> Tensor {
    let acts = |run: &&Adapted| run.stack.iter().any(|a| a.place(place).is_some());
    if !runs.iter().any(|run| acts(&run)) {
        return y;
    }
    assert!(
        !ctx.is_recording(),
        "adapters by row are for inference: train one as part of the decoder"
    );
    let ((tokens, width), (_, features)) = (x.dims2(), y.dims2());
    let mut out = y.into_buffer(|len| ctx.buffer(len));
    let mut rest = &mut out[..];
    let (mut begin, mut tasks) = (0, Vec::new());
    for run in runs.iter().filter(acts) {
        let (_, after) = rest.split_at_mut((run.rows.start - begin) * features);
        let (own, after) = after.split_at_mut(run.rows.len() * features);
        (rest, begin) = (after, run.rows.end);
        let ranks = run.stack.iter().filter_map(|a| a.place(place));
        let most = ranks.map(|place| place.down.dims2().0).max().unwrap_or(0);
        tasks.push((run, own, ctx.buffer(run.rows.len() * most)));
    }
    let (pool, compute) = (&ctx.pool, ctx.compute);
    // One run is multiplied by all threads; of several each has a thread, on which the products inside run by themselves.
    pool.for_each_chunk(&mut tasks, 1, |_, task| {
        let (run, y, downs) = &mut task[0];
        let rows = run.rows.len();
        let x = Mat::new(x.data(), tokens, width).rows(run.rows.clone());
        for Place { down, ups } in run.stack.iter().filter_map(|a| a.place(place)) {
            let (ranks, inputs) = down.dims2();
            let downs = &mut downs[..rows * ranks]; // x Aᵀ, scaled
            let a = Mat::new(down.data(), ranks, inputs);
            let to = MatMut::new(downs, rows, ranks);
            matmul_in(pool, compute, x, a.t(), to, false);
            for row in downs.chunks_exact_mut(ranks) {
                for up in ups {
                    row[up.ranks.clone()]
                        .iter_mut()
                        .for_each(|v| *v *= up.scale);
                }
            }
            for up in ups {
                let b = Mat::new(up.matrix.data(), up.columns.len(), up.ranks.len());
                let from = Mat::new(downs, rows, ranks).cols(up.ranks.clone());
                let y = MatMut::new(y, rows, features).cols(up.columns.clone());
                matmul_in(pool, compute, from, b.t(), y, true);
            }
        }
    });
    drop(tasks);
    Tensor::new(&[tokens, features], out)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ops::check::{context, random};
    use crate::ops::lora;
    use crate::segments::{Segments, Stack};

    fn part(columns: Range<usize>, rank: usize, seed: u64) -> LoraPart {
        LoraPart {
            a: random(&[rank, 7], seed),
            b: random(&[columns.len(), rank], seed + 1),
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
