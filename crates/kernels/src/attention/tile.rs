//! What forward and backward share: tiles of keys, and small products in registers.
//!
//! Operands lie in words of [`words`]: an f32, a pair of bf16 numbers, or, where the CPU has no product of pairs, an f32 rounded to bf16.
//! Words of pairs are what tiles of AMX are made of, too: they are loaded from where they lie.

use std::mem::MaybeUninit;

use half::f16;

use super::{Keys, PAGE_TOKENS, page_len};
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
            let page = &arena[table[tile] as usize * page_stride..][..page_len(shape)];
            let at = kv_head * TILE * head_dim;
            (&page[at..], &page[shape.kv_width() * TILE + at..], head_dim)
        }
        Keys::Pages16 { .. } | Keys::Pages8(_) => unreachable!("pages of other numbers than f32"),
    };
    let extent = (count - 1) * stride + head_dim;
    let rows = |at: &'a [f32]| Rows {
        at: &at[..extent],
        stride,
    };
    (rows(keys), rows(values))
}

/// As [`tile_of`] of pages of half precision, made f32 in `wide` `[2 (keys, values), TILE, K]`.
#[inline(always)]
pub(super) fn widened<'a, S: Simd>(
    simd: S,
    shape: HeadShape,
    (arena, table): (&[f16], &[u32]),
    (tile, count): (usize, usize),
    kv_head: usize,
    wide: &'a mut [f32],
) -> (Rows<'a>, Rows<'a>) {
    let head_dim = shape.head_dim;
    let page = &arena[table[tile] as usize * page_len(shape)..][..page_len(shape)];
    let at = kv_head * TILE * head_dim;
    let (keys, values) = wide.split_at_mut(TILE * head_dim);
    for (from, to) in [
        (&page[at..], &mut *keys),
        (&page[shape.kv_width() * TILE + at..], &mut *values),
    ] {
        let (from, to) = (&from[..count * head_dim], &mut to[..count * head_dim]);
        let whole = from.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: LANES numbers from `i` on lie in both.
            unsafe { simd.store(to.as_mut_ptr().add(i), simd.load_halves(from[i..].as_ptr())) };
        }
        for (to, from) in to[whole..].iter_mut().zip(&from[whole..]) {
            *to = from.to_f32();
        }
    }
    let rows = |at: &'a [f32]| Rows {
        at: &at[..count * head_dim],
        stride: head_dim,
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
/// bf16 numbers the second first as in dense products, however the rows and columns are blocked; on AMX of each 16 words the first
/// numbers and the second apart. `depth` is above 0.
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
    if BF16 && S::TILES {
        // SAFETY: as the caller promises.
        unsafe { product_in_tiles(simd, [rows, cols, depth], a, b, c, accumulate) };
        return;
    }
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

/// Rows, and columns, of a square: two tiles.
pub(super) const SQUARE: usize = 32;
/// Words of depth that are multiplied at once: as many as a tile of keys has.
const DEEP: usize = 32;

/// [`product`] in squares of 32 x 32, in blocks of 32 words of depth. What is no whole square, or lies across, goes through a copy,
/// with zeros for what it lacks.
///
/// # Safety
/// As for [`product`].
#[inline(always)]
unsafe fn product_in_tiles<S: Simd>(
    simd: S,
    [rows, cols, depth]: [usize; 3],
    a: Left,
    b: Right<*const f32>,
    c: Right<*mut f32>,
    accumulate: bool,
) {
    const WORDS: usize = SQUARE * DEEP;
    assert!(S::LANES == 16);
    let mut copies = [MaybeUninit::<[f32; WORDS]>::uninit(); 3];
    let [a_copy, b_copy, c_copy] = &mut copies;
    let (a_copy, b_copy) = (
        a_copy.as_mut_ptr().cast::<f32>(),
        b_copy.as_mut_ptr().cast::<f32>(),
    );
    let c_copy = c_copy.as_mut_ptr().cast::<f32>();
    // SAFETY: squares and blocks lie within the product, or are copied as far as they do; a copy has room for a square. Rows of a
    // copied A beyond the product's may hold anything: they make rows of C that are not kept.
    unsafe {
        for row in (0..rows).step_by(SQUARE) {
            let height = SQUARE.min(rows - row);
            for k in (0..depth).step_by(DEEP) {
                let left = DEEP.min(depth - k);
                let steps = left.div_ceil(16);
                let whole_depth = left == 16 * steps;
                let from = a.at.add(row * a.row + k * a.col);
                let left_square = if a.col != 1 {
                    copy_across(simd, from, a.col, height, left, a_copy);
                    (a_copy.cast_const(), DEEP)
                } else if height < SQUARE || !whole_depth {
                    copy(
                        simd,
                        from,
                        a.row,
                        [height, left],
                        [SQUARE, 16 * steps],
                        a_copy,
                    );
                    (a_copy.cast_const(), DEEP)
                } else {
                    (from, a.row)
                };
                for col in (0..cols).step_by(SQUARE) {
                    let width = SQUARE.min(cols - col);
                    let from = b.at.add(k * b.stride + col);
                    let right_square = if width < SQUARE || !whole_depth {
                        copy(
                            simd,
                            from,
                            b.stride,
                            [left, width],
                            [16 * steps, SQUARE],
                            b_copy,
                        );
                        (b_copy.cast_const(), SQUARE)
                    } else {
                        (from, b.stride)
                    };
                    let accumulate = accumulate || k > 0;
                    let to = c.at.add(row * c.stride + col);
                    if height == SQUARE && width == SQUARE {
                        let to = (to, c.stride);
                        simd.multiply_square(steps, left_square, right_square, to, accumulate);
                        continue;
                    }
                    if accumulate {
                        copy(simd, to, c.stride, [height, width], [SQUARE; 2], c_copy);
                    }
                    let square = (c_copy, SQUARE);
                    simd.multiply_square(steps, left_square, right_square, square, accumulate);
                    for i in 0..height {
                        for j in (0..width).step_by(16) {
                            let v = simd.load(c_copy.add(i * SQUARE + j));
                            simd.store_up_to(to.add(i * c.stride + j), width - j, v);
                        }
                    }
                }
            }
        }
    }
}

/// Copies `[rows, cols]` to the beginning of `[all_rows, all_cols]` at a distance of [`SQUARE`], the rest of which becomes zeros.
///
/// # Safety
/// `from` is readable for the first, `to` writable for the second, whose columns are a multiple of 16.
#[inline(always)]
unsafe fn copy<S: Simd>(
    simd: S,
    from: *const f32,
    stride: usize,
    [rows, cols]: [usize; 2],
    [all_rows, all_cols]: [usize; 2],
    to: *mut f32,
) {
    for i in 0..all_rows {
        for j in (0..all_cols).step_by(16) {
            // SAFETY: as the caller promises.
            unsafe {
                let v = if i < rows && j < cols {
                    simd.load_up_to(from.add(i * stride + j), cols - j)
                } else {
                    simd.splat(0.0)
                };
                simd.store(to.add(i * SQUARE + j), v);
            }
        }
    }
}

/// As [`copy`], of `[rows, cols]` whose columns are at a distance and whose rows are neighbours, to whole tiles. Rows beyond hold anything.
///
/// # Safety
/// Likewise; `rows` are at most [`SQUARE`], `cols` at most [`DEEP`].
#[inline(always)]
unsafe fn copy_across<S: Simd>(
    simd: S,
    from: *const f32,
    distance: usize,
    rows: usize,
    cols: usize,
    to: *mut f32,
) {
    for j in (0..cols).step_by(16) {
        for i in (0..rows).step_by(16) {
            // SAFETY: as the caller promises.
            unsafe {
                let (across, down) = ((cols - j).min(16), (rows - i).min(16));
                let from = from.add(j * distance + i);
                let block = if across == 16 {
                    simd.load_transposed(from, distance, 16, down)
                } else {
                    // Words beyond the depth meet zeros of the right operand, and must be numbers.
                    let mut padded = [0.0; 256];
                    for word in 0..across {
                        let v = simd.load_up_to(from.add(word * distance), down);
                        simd.store(padded[word * 16..].as_mut_ptr(), v);
                    }
                    simd.load_transposed(padded.as_ptr(), 16, 16, 16)
                };
                for (row, &v) in block.as_ref().iter().enumerate() {
                    simd.store(to.add((i + row) * SQUARE + j), v);
                }
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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::{Body, dispatch_in};

    struct Multiply<'a> {
        size: [usize; 3],
        a: &'a [f32],
        across: bool,
        b: &'a [f32],
        c: &'a mut [f32],
        accumulate: bool,
    }

    /// More than any size below, so that rows do not touch.
    const STRIDE: usize = 80;

    impl Body for Multiply<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let (row, col) = if self.across {
                (1, STRIDE)
            } else {
                (STRIDE, 1)
            };
            let a = Left {
                at: self.a.as_ptr(),
                row,
                col,
            };
            let b = Right {
                at: self.b.as_ptr(),
                stride: STRIDE,
            };
            let c = Right {
                at: self.c.as_mut_ptr(),
                stride: STRIDE,
            };
            // SAFETY: all three hold `STRIDE` rows of `STRIDE`.
            unsafe { product::<S, true>(simd, self.size, a, b, c, self.accumulate) };
        }
    }

    /// Of small integers every order of sums is exact, so nothing but the right elements in the right places will do; what lies beyond
    /// an operand is NaN, and beyond the result must stay.
    #[test]
    fn squares_of_tiles_are_the_product_at_every_edge() {
        if !Isa::available().any(|isa| isa == Isa::Amx) {
            eprintln!("not tested: this CPU has no AMX, or the system does not allow it");
            return;
        }
        let pair = |low: f32, high: f32| f32::from_bits(low.to_bits() >> 16 | high.to_bits());
        let number = |seed: usize| (seed * 7919 % 17) as f32 - 8.0;
        for rows in [1, 16, 17, 31, 32, 33, 64] {
            for (cols, depth) in [(16, 1), (32, 15), (64, 16), (20, 17), (33, 33), (64, 64)] {
                let numbers = |salt: usize, i: usize, j: usize| {
                    [0, 1].map(|half| number(salt + (i * STRIDE + j) * 2 + half))
                };
                for (across, accumulate) in
                    [(false, false), (false, true), (true, false), (true, true)]
                {
                    let mut a = vec![f32::NAN; STRIDE * STRIDE];
                    let mut b = a.clone();
                    let mut c = vec![3.0; STRIDE * STRIDE];
                    let mut want = c.clone();
                    for k in 0..depth {
                        for i in 0..rows {
                            let [low, high] = numbers(1, i, k);
                            a[if across {
                                k * STRIDE + i
                            } else {
                                i * STRIDE + k
                            }] = pair(low, high);
                        }
                        for j in 0..cols {
                            let [low, high] = numbers(2, k, j);
                            b[k * STRIDE + j] = pair(low, high);
                        }
                    }
                    for i in 0..rows {
                        for j in 0..cols {
                            let sum: f32 = (0..depth)
                                .flat_map(|k| {
                                    let (a, b) = (numbers(1, i, k), numbers(2, k, j));
                                    [a[0] * b[0], a[1] * b[1]]
                                })
                                .sum();
                            want[i * STRIDE + j] = if accumulate { 3.0 + sum } else { sum };
                        }
                    }
                    let multiply = Multiply {
                        size: [rows, cols, depth],
                        a: &a,
                        across,
                        b: &b,
                        c: &mut c,
                        accumulate,
                    };
                    dispatch_in::<true, _>(Isa::Amx, multiply);
                    assert!(
                        c == want,
                        "[{rows}, {depth}] x [{depth}, {cols}], across {across}, accumulating {accumulate}"
                    );
                }
            }
        }
    }
}
