//! Products of bf16 on AMX tiles (see [`tiles`]), which sum the first numbers of pairs and the second apart, in order, then both to
//! what C's tile holds; sums below 2⁻¹²⁶ become 0. So an element of C depends on nothing but its row, its column and the depth here
//! too, but its last bits are not those of the other instruction sets.
//!
//! Many more products a byte than vectors make leave packing, not multiplying, to be watched: B is packed once for
//! all tasks, A by each task that needs it, so once for each piece of columns.

use std::ops::Range;

use super::{Mat, MatMut};
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};
use crate::scratch::with_scratch;
use crate::simd::tiles::{self, SIDE, TILE};
use crate::simd::{Body, Simd, dispatch_in};

/// Rows of A, or columns of B, that are multiplied at once: two tiles.
const PANEL: usize = 2 * SIDE;
/// Depth of a tile: a word is a pair.
const STEP: usize = 2 * SIDE;
/// Depth of a block: so much of a panel of B is 32 KiB and stays in L1.
const BLOCK: usize = 512;
/// Rows of a task: four panels, 128 KiB a block, which stay in L2.
const TASK_ROWS: usize = 128;
/// Words of B that are packed at a time: 4 MiB, or 512 columns where they are more.
const SLICE: usize = 1 << 20;

/// C (+)= A B into contiguous rows.
///
/// # Panics
/// When the pool's instruction set is not [`Isa::Amx`], or the depth is 0.
pub(super) fn product(pool: &Pool, a: Mat, b: Mat, c: MatMut, accumulate: bool) {
    in_slices(pool, a, b, c, accumulate, SLICE);
}

fn in_slices(pool: &Pool, a: Mat, b: Mat, c: MatMut, accumulate: bool, slice_words: usize) {
    assert!(pool.isa() == Isa::Amx && a.cols > 0);
    let (rows, cols, stride) = (c.rows, c.cols, c.row_stride);
    let steps = a.cols.div_ceil(STEP);
    let strip = 2 * steps * TILE;
    let slice_cols = (slice_words / (steps * SIDE))
        .next_multiple_of(512)
        .max(512);
    // Each piece packs its rows of A again, so pieces are narrow only where tasks would be too few.
    let down = rows.div_ceil(TASK_ROWS);
    let task_cols = if down >= 4 * pool.threads() {
        slice_cols
    } else if down * cols.div_ceil(512) >= 4 * pool.threads() {
        512
    } else {
        128
    };
    let c = Disjoint::new(c.data);
    for start in (0..cols).step_by(slice_cols) {
        let slice = start..cols.min(start + slice_cols);
        with_scratch(slice.len().div_ceil(PANEL) * strip, |packed| {
            pool.for_each_chunk(packed, strip, |index, packed| {
                let first = slice.start + index * PANEL;
                let operand = Operand {
                    whole: b.t(),
                    lines: first..slice.end.min(first + PANEL),
                    depth: 0..b.rows,
                };
                dispatch_in::<true, _>(Isa::Amx, Pack::<true> { operand, packed });
            });
            let packed = &*packed;
            pool.run(down * slice.len().div_ceil(task_cols), |task| {
                let (i, j) = (task % down, task / down);
                let rows = i * TASK_ROWS..rows.min((i + 1) * TASK_ROWS);
                let first = slice.start + j * task_cols;
                let cols = first..slice.end.min(first + task_cols);
                let b = &packed[j * task_cols / PANEL * strip..];
                let block = rows.len().div_ceil(PANEL) * steps.min(BLOCK / STEP) * 2 * TILE;
                with_scratch(PANEL * PANEL + block, |scratch| {
                    let (edge, local) = scratch.split_at_mut(PANEL * PANEL);
                    let tile = Tile {
                        a,
                        b: &b[..cols.len().div_ceil(PANEL) * strip],
                        c: &c,
                        stride,
                        rows,
                        cols,
                        accumulate,
                        edge,
                        local,
                    };
                    dispatch_in::<true, _>(Isa::Amx, tile);
                });
            });
        });
    }
}

/// Some lines (rows of A, columns of B) of an operand whose columns are the depth, and some of its depth.
struct Operand<'a> {
    whole: Mat<'a>,
    lines: Range<usize>,
    depth: Range<usize>,
}

/// Packs an operand, panel by panel, step by step, two tiles of [`SIDE`] lines each: a row of a tile is a line, or, with
/// `ACROSS`, a pair of depths. What a step lacks in depth is 0; what a panel lacks in lines is of no meaning.
struct Pack<'a, const ACROSS: bool> {
    operand: Operand<'a>,
    packed: &'a mut [f32],
}

impl<const ACROSS: bool> Body for Pack<'_, ACROSS> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        pack::<S, ACROSS>(simd, &self.operand, self.packed);
    }
}

#[inline(always)]
fn pack<S: Simd, const ACROSS: bool>(simd: S, operand: &Operand, packed: &mut [f32]) {
    assert!(S::PAIRS && S::LANES == SIDE);
    let Operand {
        whole,
        lines,
        depth,
    } = operand;
    let panel = depth.len().div_ceil(STEP) * 2 * TILE;
    for (first, packed) in lines
        .clone()
        .step_by(PANEL)
        .zip(packed.chunks_exact_mut(panel))
    {
        for (half, first) in [first, first + SIDE].into_iter().enumerate() {
            let count = SIDE.min(lines.end.saturating_sub(first));
            if count == 0 {
                continue;
            }
            for (k, step) in depth
                .clone()
                .step_by(STEP)
                .zip(packed.chunks_exact_mut(2 * TILE))
            {
                let from = whole.data[first * whole.row_stride + k * whole.col_stride..].as_ptr();
                let to = step[half * TILE..][..TILE].as_mut_ptr();
                let left = STEP.min(depth.end - k);
                // SAFETY: lines and depths lie in `whole`, whose extent its construction has checked; `to` is a tile.
                unsafe {
                    let across = pack_tile(
                        simd,
                        from,
                        whole.row_stride,
                        whole.col_stride,
                        count,
                        left,
                        to,
                    );
                    if across != ACROSS {
                        let block = simd.load_transposed(to, SIDE, SIDE, SIDE);
                        for (row, &v) in block.as_ref().iter().enumerate() {
                            simd.store(to.add(row * SIDE), v);
                        }
                    }
                }
            }
        }
    }
}

/// A tile in whichever order the operand lies in: whether its rows are pairs of depths.
///
/// # Safety
/// `from` is readable for `count` lines (1 to [`SIDE`]) and `depth` (1 to [`STEP`]) at the given distances; `to` is writable for
/// a tile.
#[inline(always)]
unsafe fn pack_tile<S: Simd>(
    simd: S,
    from: *const f32,
    line_stride: usize,
    depth_stride: usize,
    count: usize,
    depth: usize,
    to: *mut f32,
) -> bool {
    // SAFETY: as the caller promises; `load_up_to` reads no further than it is told.
    unsafe {
        if depth_stride == 1 {
            for line in 0..count {
                let at = from.add(line * line_stride);
                let words = if depth == STEP {
                    simd.neighbours(simd.load(at), simd.load(at.add(SIDE)))
                } else {
                    simd.neighbours(
                        simd.load_up_to(at, depth),
                        simd.load_up_to(at.wrapping_add(SIDE), depth.saturating_sub(SIDE)),
                    )
                };
                simd.store(to.add(line * SIDE), words);
            }
            return false;
        }
        for pair in 0..SIDE {
            let number = |k: usize| {
                if k >= depth {
                    return simd.splat(0.0);
                }
                let at = from.add(k * depth_stride);
                if line_stride == 1 {
                    return simd.load_up_to(at, count);
                }
                let mut numbers = [0.0; SIDE];
                for (line, number) in numbers.iter_mut().take(count).enumerate() {
                    *number = *at.add(line * line_stride);
                }
                simd.load(numbers.as_ptr())
            };
            let words = simd.pairs(number(2 * pair), number(2 * pair + 1));
            simd.store(to.add(pair * SIDE), words);
        }
        true
    }
}

/// A tile of C, the work of one task, with the columns of B that it needs, packed over the whole depth.
struct Tile<'a> {
    a: Mat<'a>,
    b: &'a [f32],
    c: &'a Disjoint<'a, f32>,
    stride: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    accumulate: bool,
    /// Room for a tile of C that is not whole.
    edge: &'a mut [f32],
    /// Room for a block of the rows of A.
    local: &'a mut [f32],
}

impl Body for Tile<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Tile {
            a,
            b,
            c,
            stride,
            rows,
            cols,
            accumulate,
            edge,
            local,
        } = self;
        let strip = a.cols.div_ceil(STEP) * 2 * TILE;
        assert!(S::TILES);
        for k in (0..a.cols).step_by(BLOCK) {
            let depth = k..a.cols.min(k + BLOCK);
            let steps = depth.len().div_ceil(STEP);
            let operand = Operand {
                whole: a,
                lines: rows.clone(),
                depth,
            };
            pack::<S, false>(simd, &operand, local);
            let accumulate = accumulate || k > 0;
            for (col, b) in cols.clone().step_by(PANEL).zip(b.chunks_exact(strip)) {
                let b = &b[k / STEP * 2 * TILE..][..steps * 2 * TILE];
                let mut next = b.as_ptr().wrapping_add(strip);
                let panels = local.chunks_exact(steps * 2 * TILE);
                for (row, a) in rows.clone().step_by(PANEL).zip(panels) {
                    let (down, across) = (PANEL.min(rows.end - row), PANEL.min(cols.end - col));
                    let c = c.pointer(row * stride + col, 1);
                    // SAFETY: this task alone touches this tile of C, which lies in bounds by `MatMut`'s construction; tile registers
                    // are set, as `TILES` says.
                    unsafe {
                        if (down, across) == (PANEL, PANEL) {
                            tiles::multiply_panels(a, b, c, stride, accumulate, next);
                            next = next.wrapping_add(steps * tiles::AHEAD);
                            continue;
                        }
                        for i in 0..down {
                            for j in (0..across).step_by(S::LANES) {
                                let v = simd.load_up_to(c.add(i * stride + j), across - j);
                                simd.store(edge[i * PANEL + j..].as_mut_ptr(), v);
                            }
                        }
                        tiles::multiply_panels(a, b, edge.as_mut_ptr(), PANEL, accumulate, next);
                        for i in 0..down {
                            for j in (0..across).step_by(S::LANES) {
                                let v = simd.load(edge[i * PANEL + j..].as_ptr());
                                simd.store_up_to(c.add(i * stride + j), across - j, v);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compute, matmul_in, random};

    /// However a product is cut into slices, pieces and tasks, it is the product of its parts, which the tests of `matmul` compare
    /// with the formula.
    #[test]
    fn a_product_is_that_of_its_parts() {
        if !Isa::available().any(|isa| isa == Isa::Amx) {
            eprintln!("not tested: this CPU has no AMX, or the system does not allow it");
            return;
        }
        let (m, n, k) = (1100, 1090, 40);
        let values = |stream: u64, len: usize| -> Vec<f32> {
            let numbers = 0..len as u64;
            numbers.map(|i| random::normal(8, stream, i)).collect()
        };
        let (a, b) = (values(1, m * k), values(2, k * n));
        let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, k, n));
        let mut parts = vec![f32::NAN; m * n];
        for (row, col) in (0..m)
            .step_by(100)
            .flat_map(|row| (0..n).step_by(109).map(move |col| (row, col)))
        {
            let c = MatMut::new(&mut parts, m, n).rows(row..row + 100);
            matmul_in(
                &Pool::with_isa(1, Isa::Amx),
                Compute::Bf16,
                a.rows(row..row + 100),
                b.cols(col..col + 109),
                c.cols(col..col + 109),
                false,
            );
        }
        // Whole slices, 512 and 128 columns a task; one slice and three.
        for (threads, slice_words) in [(1, SLICE), (2, 1), (3, 1), (8, SLICE)] {
            let mut c = vec![f32::NAN; m * n];
            let pool = Pool::with_isa(threads, Isa::Amx);
            in_slices(&pool, a, b, MatMut::new(&mut c, m, n), false, slice_words);
            assert!(c == parts, "{threads} threads, slices of {slice_words}");
        }
    }
}
