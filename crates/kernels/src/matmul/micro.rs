//! The innermost product, in registers, and the packing that feeds it.

use super::bf16;
use crate::simd::Simd;

/// Depth of a block of f32: a panel of B, `DEPTH` x 32, is 32 KiB and lives in L1 or L2, one of A is 14 KiB.
/// It also fixes the order of summation, so it is the same for all instruction sets.
pub(crate) const DEPTH: usize = 256;

/// Depth of a block, in bf16 or f32: pairs of bf16 take the room of one f32.
pub(super) const fn block_depth<const BF16: bool>() -> usize {
    if BF16 { 2 * DEPTH } else { DEPTH }
}

/// Words of a panel for each row and so many numbers of depth.
///
/// bf16 goes in pairs, the second of the last being 0 where the depth is odd. Where the CPU multiplies pairs, a pair is
/// one word; elsewhere each number is a word, an f32 that has been rounded to bf16.
#[inline(always)]
pub(crate) fn words<S: Simd, const BF16: bool>(depth: usize) -> usize {
    match (BF16, S::PAIRS) {
        (false, _) => depth,
        (true, false) => depth.next_multiple_of(2),
        (true, true) => depth.div_ceil(2),
    }
}

/// How far the last store of [`pack`] may run over: the widest vector.
pub(crate) const SLACK: usize = 16;

/// How far ahead of itself [`pack`] asks for a row: four cache lines. Its sixteen streams are more than the
/// CPU follows by itself, and reading from L3 without asking tripled the time of packing.
pub(super) const AHEAD: usize = 64;

/// How far ahead [`thin`] asks, as it reads from memory: sixteen lines.
const THIN_AHEAD: usize = 256;

/// Columns of a panel of B: two vectors.
#[inline(always)]
pub(super) fn panel_cols<S: Simd>() -> usize {
    2 * S::LANES
}

/// Rows of a panel of A: as many as two accumulators a row, two vectors of B and one of A leave room for.
#[inline(always)]
pub(super) fn panel_rows<S: Simd>() -> usize {
    ((S::REGISTERS - 3) / 2).min(14)
}

/// C`[rows, cols]` (+)= A`[rows, depth]` B`[depth, cols]`, with A packed `[depth, rows]` and B packed `[depth, 2 LANES]`,
/// both in words of [`words`], in which `depth` is counted too.
///
/// Meanwhile it asks for memory at `next`, a line for each word of depth at a distance of `next_step`: without, each page of a
/// streamed panel began with a wait for L3.
///
/// # Safety
/// `a` and `b` are readable as described; `c`, with rows at a distance of `stride`, is readable and
/// writable for `rows` x `cols`; 1 ≤ `rows` ≤ `panel_rows`; 1 ≤ `cols` ≤ `panel_cols`. `next` is only asked for.
#[inline(always)]
pub(super) unsafe fn product<S: Simd, const BF16: bool>(
    simd: S,
    rows: usize,
    cols: usize,
    depth: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
    (next, next_step): (*const f32, usize),
) {
    // SAFETY: handed on.
    unsafe {
        let call = Call {
            simd,
            cols,
            depth,
            a,
            b,
            c,
            stride,
            accumulate,
            next,
            next_step,
        };
        match rows {
            1 => call.rows::<1, BF16>(),
            2 => call.rows::<2, BF16>(),
            3 => call.rows::<3, BF16>(),
            4 => call.rows::<4, BF16>(),
            5 => call.rows::<5, BF16>(),
            6 => call.rows::<6, BF16>(),
            7 => call.rows::<7, BF16>(),
            8 => call.rows::<8, BF16>(),
            9 => call.rows::<9, BF16>(),
            10 => call.rows::<10, BF16>(),
            11 => call.rows::<11, BF16>(),
            12 => call.rows::<12, BF16>(),
            13 => call.rows::<13, BF16>(),
            14 => call.rows::<14, BF16>(),
            _ => unreachable!("a panel of {rows} rows"),
        }
    }
}

/// The operands of [`product`] but the number of rows.
struct Call<S> {
    simd: S,
    cols: usize,
    depth: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
    next: *const f32,
    next_step: usize,
}

impl<S: Simd> Call<S> {
    /// Each element is one chain of products in the order of depth, whatever `ROWS` and `cols`: a row's
    /// result does not depend on its neighbours. Of a pair of bf16 the second comes first, as the CPU does it; a product of
    /// two of them is exact in f32, so fused or not the bits are the same.
    #[inline(always)]
    unsafe fn rows<const ROWS: usize, const BF16: bool>(&self) {
        let simd = self.simd;
        // SAFETY: `product`'s caller promises the extents.
        unsafe {
            for row in 0..ROWS {
                // Needed after the loop; two lines and the third that an unaligned row reaches.
                let at = self.c.wrapping_add(row * self.stride);
                simd.prefetch(at);
                simd.prefetch(at.wrapping_add(16));
            }
            let mut sums = [[simd.splat(0.0); 2]; ROWS];
            let mut next = self.next;
            for depth in 0..self.depth {
                simd.prefetch(next);
                next = next.wrapping_add(self.next_step);
                let depth = if BF16 && !S::PAIRS { depth ^ 1 } else { depth };
                let (a, b) = (self.a.add(depth * ROWS), self.b.add(depth * 2 * S::LANES));
                let b0 = simd.load(b);
                let b1 = simd.load(b.add(S::LANES));
                for (row, [sum0, sum1]) in sums.iter_mut().enumerate() {
                    let a = simd.splat(*a.add(row));
                    if BF16 && S::PAIRS {
                        *sum0 = simd.mul_add_pairs(a, b0, *sum0);
                        *sum1 = simd.mul_add_pairs(a, b1, *sum1);
                    } else {
                        *sum0 = simd.mul_add(a, b0, *sum0);
                        *sum1 = simd.mul_add(a, b1, *sum1);
                    }
                }
            }
            if self.cols == 2 * S::LANES {
                // Apart from the case below, which goes through memory, so that sums stay in registers here.
                for (row, [sum0, sum1]) in sums.iter().enumerate() {
                    let at = self.c.add(row * self.stride);
                    let next = at.add(S::LANES);
                    if self.accumulate {
                        simd.store(at, simd.add(simd.load(at), *sum0));
                        simd.store(next, simd.add(simd.load(next), *sum1));
                    } else {
                        simd.store(at, *sum0);
                        simd.store(next, *sum1);
                    }
                }
                return;
            }
            for (row, sums) in sums.into_iter().enumerate() {
                for (half, sum) in sums.into_iter().enumerate() {
                    let left = self.cols.saturating_sub(half * S::LANES);
                    if left == 0 {
                        continue;
                    }
                    let at = self.c.add(row * self.stride + half * S::LANES);
                    let sum = if self.accumulate {
                        simd.add(simd.load_up_to(at, left), sum)
                    } else {
                        sum
                    };
                    simd.store_up_to(at, left, sum);
                }
            }
        }
    }
}

/// As many rows as [`thin`] takes: their sums and a block must fit in registers.
#[inline(always)]
pub(super) fn thin_rows<S: Simd>() -> usize {
    S::REGISTERS / 4
}

/// C`[rows, cols]` (+)= A`[rows, depth]` B`[depth, cols]` for few rows, with A packed `[depth, rows]` and
/// column j of B contiguous at `b[j * b_stride..]`, which passes through registers only.
///
/// The order of summation is that of [`product`] over blocks of [`DEPTH`].
///
/// # Safety
/// Extents as described, rows of `c` at a distance of `stride`; 1 ≤ `rows` ≤ [`thin_rows`]; 1 ≤ `cols` ≤ `LANES`.
#[inline(always)]
pub(super) unsafe fn thin<S: Simd>(
    simd: S,
    rows: usize,
    cols: usize,
    depth: usize,
    a: *const f32,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    // SAFETY: handed on.
    unsafe {
        match rows {
            1 => few::<S, 1>(simd, cols, depth, a, b, b_stride, c, stride, accumulate),
            2 => few::<S, 2>(simd, cols, depth, a, b, b_stride, c, stride, accumulate),
            3 => few::<S, 3>(simd, cols, depth, a, b, b_stride, c, stride, accumulate),
            4 => few::<S, 4>(simd, cols, depth, a, b, b_stride, c, stride, accumulate),
            5 => few::<S, 5>(simd, cols, depth, a, b, b_stride, c, stride, accumulate),
            6 => few::<S, 6>(simd, cols, depth, a, b, b_stride, c, stride, accumulate),
            7 => few::<S, 7>(simd, cols, depth, a, b, b_stride, c, stride, accumulate),
            8 => few::<S, 8>(simd, cols, depth, a, b, b_stride, c, stride, accumulate),
            _ => unreachable!("{rows} rows are not few"),
        }
    }
}

/// # Safety
/// As [`thin`].
#[inline(always)]
unsafe fn few<S: Simd, const ROWS: usize>(
    simd: S,
    cols: usize,
    depth: usize,
    mut a: *const f32,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    // SAFETY: as the caller promises; prefetches may go anywhere.
    unsafe {
        let mut totals = [simd.splat(0.0); ROWS];
        if accumulate {
            for (row, total) in totals.iter_mut().enumerate() {
                *total = simd.load_up_to(c.add(row * stride), cols);
            }
        }
        for start in (0..depth).step_by(DEPTH) {
            let end = depth.min(start + DEPTH);
            let mut sums = [simd.splat(0.0); ROWS];
            for k in (start..end).step_by(S::LANES) {
                for col in 0..cols {
                    simd.prefetch(b.wrapping_add(col * b_stride + k + THIN_AHEAD));
                }
                let count = S::LANES.min(end - k);
                let block = simd.load_transposed(b.add(k), b_stride, cols, count);
                // A known count keeps the block in registers.
                let columns = block.as_ref();
                let columns = if count == S::LANES {
                    &columns[..S::LANES]
                } else {
                    &columns[..count]
                };
                for &column in columns {
                    for (row, sum) in sums.iter_mut().enumerate() {
                        *sum = simd.mul_add(simd.splat(*a.add(row)), column, *sum);
                    }
                    a = a.add(ROWS);
                }
            }
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = if accumulate || start > 0 {
                    simd.add(*total, sum)
                } else {
                    sum
                };
            }
        }
        for (row, total) in totals.into_iter().enumerate() {
            simd.store_up_to(c.add(row * stride), cols, total);
        }
    }
}

/// Packs `rows` x `depth` numbers, element (r, k) at `from[r * row_stride + k * depth_stride]`, to `to[k * width + r]`;
/// bf16 in [`words`] instead, word (r, k) at `to[k * width + r]`.
///
/// `to` needs `words(depth) * width + SLACK` places, as stores are whole vectors; places beyond `rows` in each
/// group of `width` get numbers of no meaning.
///
/// # Safety
/// `from` is readable for those elements and `to` writable; 1 ≤ `rows` ≤ `width`; `width` is below
/// `LANES` or a multiple of it.
#[inline(always)]
pub(crate) unsafe fn pack<S: Simd, const BF16: bool>(
    simd: S,
    from: *const f32,
    row_stride: usize,
    depth_stride: usize,
    rows: usize,
    depth: usize,
    to: *mut f32,
    width: usize,
) {
    // SAFETY: as the caller promises; see the bounds beside each loop.
    unsafe {
        if BF16 && S::PAIRS {
            bf16::pack_pairs(simd, from, row_stride, depth_stride, rows, depth, to, width);
            return;
        }
        if depth_stride == 1 {
            // A width below LANES has one strip, in which every store that runs over its group is
            // repaired by the next; masked stores would be slow on AVX2.
            for strip in (0..rows).step_by(S::LANES) {
                let count = S::LANES.min(rows - strip);
                let from = from.add(strip * row_stride);
                for k in (0..depth).step_by(S::LANES) {
                    for row in 0..count {
                        simd.prefetch(from.wrapping_add(row * row_stride + k + AHEAD));
                    }
                    let cols = S::LANES.min(depth - k);
                    let block = simd.load_transposed(from.add(k), row_stride, count, cols);
                    let to = to.add(k * width + strip);
                    for (j, &v) in block.as_ref().iter().take(cols).enumerate() {
                        simd.store(to.add(j * width), v);
                    }
                }
            }
        } else if row_stride == 1 {
            for k in 0..depth {
                for strip in (0..rows).step_by(S::LANES) {
                    let v = simd.load_up_to(from.add(k * depth_stride + strip), rows - strip);
                    simd.store(to.add(k * width + strip), v);
                }
            }
        } else {
            for k in 0..depth {
                for r in 0..rows {
                    *to.add(k * width + r) = *from.add(r * row_stride + k * depth_stride);
                }
            }
        }
        if BF16 {
            let places = depth * width;
            if depth % 2 == 1 {
                std::slice::from_raw_parts_mut(to.add(places), width).fill(0.0);
            }
            for number in std::slice::from_raw_parts_mut(to, places) {
                *number = bf16::round(*number);
            }
        }
    }
}
