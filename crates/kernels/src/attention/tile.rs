//! What forward and backward share: tiles of keys, and small products in registers.
//!
//! Operands lie in words of [`words`]: an f32, a pair of bf16 numbers, or, where the CPU has no product of pairs, an f32 rounded to bf16.

use super::{Keys, PAGE_TOKENS};
use crate::rope::HeadShape;
use crate::simd::Simd;

/// Keys of a tile.
pub(super) const TILE: usize = PAGE_TOKENS;

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
        Keys::Pages8(_) => unreachable!("8-bit pages have a kernel of their own"),
    };
    let extent = (count - 1) * stride + head_dim;
    let rows = |at: &'a [f32]| Rows {
        at: &at[..extent],
        stride,
    };
    (rows(keys), rows(values))
}

/// The left operand of a [`product`]: element (i, p) is `at[i * row + p * col]`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub at: *const f32,
    pub row: usize,
    pub col: usize,
}

/// The right operand, or the result, of a [`product`]: rows at a distance of `stride`.
#[derive(Clone, Copy)]
pub(super) struct Right<P> {
    pub at: P,
    pub stride: usize,
}

/// C`[rows, cols]` (+)= A`[rows, depth]` B`[depth, cols]`, depth in words. Each element is one chain in the order of depth, of two
/// bf16 numbers the second first as in dense products, however the rows and columns are blocked.
///
/// # Safety
/// All elements of A, B and C are readable, those of C writable and no one else's.
#[inline(always)]
pub(super) unsafe fn product<S: Simd, const BF16: bool>(
    simd: S,
    [rows, cols, depth]: [usize; 3],
    a: Left,
    b: Right<*const f32>,
    c: Right<*mut f32>,
    accumulate: bool,
) {
    let mut col = 0;
    // SAFETY: strips lie within `cols`, so what they touch is what the caller vouches for.
    unsafe {
        while col < cols {
            let strip = Strip {
                simd,
                rows,
                depth,
                left: cols - col,
                a,
                b: Right {
                    at: b.at.add(col),
                    ..b
                },
                c: Right {
                    at: c.at.add(col),
                    ..c
                },
                accumulate,
            };
            // As many vectors as leave room for six rows of sums, one of B and one of A.
            if S::REGISTERS >= 32 && strip.left >= 4 * S::LANES {
                strip.multiply::<4, BF16>();
                col += 4 * S::LANES;
            } else if strip.left >= 2 * S::LANES {
                strip.multiply::<2, BF16>();
                col += 2 * S::LANES;
            } else {
                strip.multiply::<1, BF16>();
                col += S::LANES;
            }
        }
    }
}

/// Some columns of a product.
#[derive(Clone, Copy)]
struct Strip<S> {
    simd: S,
    rows: usize,
    depth: usize,
    /// Columns from the first on that exist.
    left: usize,
    a: Left,
    b: Right<*const f32>,
    c: Right<*mut f32>,
    accumulate: bool,
}

impl<S: Simd> Strip<S> {
    /// `VECTORS` vectors of columns.
    ///
    /// # Safety
    /// As for [`product`].
    #[inline(always)]
    unsafe fn multiply<const VECTORS: usize, const BF16: bool>(&self) {
        let mut row = 0;
        // SAFETY: blocks lie within `rows`.
        unsafe {
            while self.rows - row >= 6 {
                self.block::<6, VECTORS, BF16>(row);
                row += 6;
            }
            while self.rows - row >= 2 {
                self.block::<2, VECTORS, BF16>(row);
                row += 2;
            }
            if row < self.rows {
                self.block::<1, VECTORS, BF16>(row);
            }
        }
    }

    /// `ROWS` rows from `row` on.
    ///
    /// # Safety
    /// As for [`product`]; the rows exist.
    #[inline(always)]
    unsafe fn block<const ROWS: usize, const VECTORS: usize, const BF16: bool>(&self, row: usize) {
        let Strip {
            simd,
            depth,
            left,
            a,
            b,
            c,
            accumulate,
            ..
        } = *self;
        // Only a strip of one vector may be partial.
        let left = if VECTORS == 1 { left } else { S::LANES };
        // SAFETY: the caller vouches for `ROWS` rows, and `left` bounds what of a vector is touched.
        unsafe {
            let a = a.at.add(row * a.row);
            let c_at = c.at.add(row * c.stride);
            let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
            if accumulate {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = simd.load_up_to(c_at.add(r * c.stride + v * S::LANES), left);
                    }
                }
            }
            for p in 0..depth {
                let p = if BF16 && !S::PAIRS { p ^ 1 } else { p };
                let at = b.at.add(p * b.stride);
                let mut loaded = [simd.splat(0.0); VECTORS];
                for (v, loaded) in loaded.iter_mut().enumerate() {
                    *loaded = simd.load_up_to(at.add(v * S::LANES), left);
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = simd.splat(*a.add(r * self.a.row + p * self.a.col));
                    for (sum, &loaded) in sums.iter_mut().zip(&loaded) {
                        *sum = if BF16 && S::PAIRS {
                            simd.mul_add_pairs(x, loaded, *sum)
                        } else {
                            simd.mul_add(x, loaded, *sum)
                        };
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, &sum) in sums.iter().enumerate() {
                    simd.store_up_to(c_at.add(r * c.stride + v * S::LANES), left, sum);
                }
            }
        }
    }
}
