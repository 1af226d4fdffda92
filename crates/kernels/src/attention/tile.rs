//! What forward and backward share: tiles of keys, and small products in registers.

use std::cell::RefCell;

use super::{Keys, PAGE_TOKENS};
use crate::rope::HeadShape;
use crate::simd::Simd;

/// Keys of a tile.
pub(super) const TILE: usize = PAGE_TOKENS;

/// Vectors of a block of columns where there are 32 registers, as on AVX-512.
const WIDE: usize = 4;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Floats of unspecified content, which the thread keeps for its next task.
///
/// A guard and not a function that takes a closure: what a closure does with vectors would be compiled without the
/// instruction set, a hundred times slower.
pub(super) struct Scratch(Vec<f32>);

impl Scratch {
    pub(super) fn take(len: usize) -> Scratch {
        let mut scratch = SCRATCH.take();
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        Scratch(scratch)
    }

    #[inline(always)]
    pub(super) fn floats(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.replace(std::mem::take(&mut self.0));
    }
}

/// Rows of keys or values of one tile: row i is `at[i * stride..][..head_dim]`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub at: &'a [f32],
    pub stride: usize,
}

/// Keys and values of the `count` positions from `tile * TILE` on.
pub(super) fn tile_of<'a>(
    shape: HeadShape,
    keys: Keys<'a>,
    tile: usize,
    count: usize,
    kv_head: usize,
) -> (Rows<'a>, Rows<'a>) {
    let head_dim = shape.head_dim;
    let (keys, values, stride) = match keys {
        Keys::Rows {
            keys,
            values,
            stride,
        } => {
            let at = tile * TILE * stride + kv_head * head_dim;
            (&keys[at..], &values[at..], stride)
        }
        Keys::Pages {
            arena,
            page_stride,
            table,
        } => {
            let page = &arena[table[tile] as usize * page_stride..][..super::page_len(shape)];
            let at = kv_head * TILE * head_dim;
            (&page[at..], &page[shape.kv_width() * TILE + at..], head_dim)
        }
    };
    let extent = (count - 1) * stride + head_dim;
    let rows = |at: &'a [f32]| Rows {
        at: &at[..extent],
        stride,
    };
    (rows(keys), rows(values))
}

/// `[count, head_dim]` rows to columns `[head_dim, TILE]`, zeros beyond `count`.
#[inline(always)]
pub(super) fn transpose(from: Rows, count: usize, head_dim: usize, to: &mut [f32]) {
    for i in 0..TILE {
        if i < count {
            let row = &from.at[i * from.stride..][..head_dim];
            for (k, &x) in row.iter().enumerate() {
                to[k * TILE + i] = x;
            }
        } else {
            for k in 0..head_dim {
                to[k * TILE + i] = 0.0;
            }
        }
    }
}

/// The left operand of a [`product`]: element (i, p) is `at[i * row + p * col]`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub at: *const f32,
    pub row: usize,
    pub col: usize,
}

/// C`[rows, cols]` (+)= A`[rows, depth]` B`[depth, cols]`. Each element is one chain in the order of depth, however the rows and
/// columns are blocked.
///
/// # Safety
/// All elements of A, B (rows at a distance of `b_stride`) and C (`c_stride`) are readable, those of C writable and
/// no one else's.
#[inline(always)]
pub(super) unsafe fn product<S: Simd>(
    simd: S,
    [rows, cols, depth]: [usize; 3],
    a: Left,
    (b, b_stride): (*const f32, usize),
    (c, c_stride): (*mut f32, usize),
    accumulate: bool,
) {
    let strip = WIDE * S::LANES;
    let mut col = 0;
    // SAFETY: blocks lie within `rows` and `cols`, so what they touch is what the caller vouches for.
    unsafe {
        while col < cols {
            let wide = cols - col >= strip;
            let mut row = 0;
            while row < rows {
                let a = Left {
                    at: a.at.add(row * a.row),
                    ..a
                };
                let at = (b.add(col), b_stride);
                let to = (c.add(row * c_stride + col), c_stride);
                let left = cols - col;
                match (wide, rows - row >= 4) {
                    (true, true) => {
                        block::<S, 4, WIDE, true>(simd, depth, left, a, at, to, accumulate)
                    }
                    (true, false) => {
                        block::<S, 1, WIDE, true>(simd, depth, left, a, at, to, accumulate)
                    }
                    (false, true) => {
                        block::<S, 4, 1, false>(simd, depth, left, a, at, to, accumulate)
                    }
                    (false, false) => {
                        block::<S, 1, 1, false>(simd, depth, left, a, at, to, accumulate)
                    }
                }
                row += if rows - row >= 4 { 4 } else { 1 };
            }
            col += if wide { strip } else { S::LANES };
        }
    }
}

/// `ROWS` rows by `VECTORS` vectors of C, of which `left` columns exist: all of them where it is `WHOLE`, so that
/// the loop has no branches.
///
/// # Safety
/// As for [`product`].
#[inline(always)]
unsafe fn block<S: Simd, const ROWS: usize, const VECTORS: usize, const WHOLE: bool>(
    simd: S,
    depth: usize,
    left: usize,
    a: Left,
    (b, b_stride): (*const f32, usize),
    (c, c_stride): (*mut f32, usize),
    accumulate: bool,
) {
    // SAFETY: the caller vouches for `ROWS` rows, and `left` bounds what of the last vector is touched.
    unsafe {
        let column = |v: usize| (v * S::LANES, left - (v * S::LANES).min(left));
        let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
        if accumulate {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let (at, left) = column(v);
                    let from = c.add(r * c_stride + at);
                    *sum = if WHOLE {
                        simd.load(from)
                    } else {
                        simd.load_up_to(from, left)
                    };
                }
            }
        }
        for p in 0..depth {
            let row = b.add(p * b_stride);
            let mut loaded = [simd.splat(0.0); VECTORS];
            for (v, loaded) in loaded.iter_mut().enumerate() {
                let (at, left) = column(v);
                let from = row.add(at);
                *loaded = if WHOLE {
                    simd.load(from)
                } else {
                    simd.load_up_to(from, left)
                };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = simd.splat(*a.at.add(r * a.row + p * a.col));
                for (sum, &loaded) in sums.iter_mut().zip(&loaded) {
                    *sum = simd.mul_add(x, loaded, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let (at, left) = column(v);
                let to = c.add(r * c_stride + at);
                if WHOLE {
                    simd.store(to, sum)
                } else {
                    simd.store_up_to(to, left, sum)
                }
            }
        }
    }
}
