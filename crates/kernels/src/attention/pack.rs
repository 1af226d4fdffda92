//! Rows of q, k, v and gradients as operands of a product, in words of [`words`].
//!
//! Pairs of bf16 go along the depth: along a row for q kᵀ and dO vᵀ, down the rows for p v and the gradients of k, v and q.

use super::tile::{Rows, TILE};
use crate::matmul::{bf16, words};
use crate::simd::Simd;

/// `[count, K]` rows to columns `[words(K), TILE]`, zeros beyond `count`. K is even.
#[inline(always)]
pub(super) fn columns<S: Simd, const BF16: bool>(
    simd: S,
    from: Rows,
    count: usize,
    head_dim: usize,
    to: &mut [f32],
) {
    let depth = words::<S, BF16>(head_dim);
    assert!(count <= TILE && (count == 0 || from.at.len() >= (count - 1) * from.stride + head_dim));
    assert!(to.len() >= depth * TILE);
    // Numbers of a word.
    let width = if BF16 && S::PAIRS { 2 } else { 1 };
    for row in (0..count).step_by(S::LANES) {
        let rows = S::LANES.min(count - row);
        for k in (0..head_dim).step_by(width * S::LANES) {
            let cols = (width * S::LANES).min(head_dim - k);
            // SAFETY: the block lies in `from` and its transpose in `to`, by the assertions; LANES divides TILE.
            unsafe {
                let at = from.at.as_ptr().add(row * from.stride + k);
                let block = if BF16 && S::PAIRS {
                    simd.load_pairs_transposed(at, from.stride, rows, cols)
                } else {
                    simd.load_transposed(at, from.stride, rows, cols)
                };
                let to = to.as_mut_ptr().add(k / width * TILE + row);
                let columns = block.as_ref();
                let columns = if cols == width * S::LANES {
                    &columns[..S::LANES]
                } else {
                    &columns[..cols / width]
                };
                for (j, &column) in columns.iter().enumerate() {
                    simd.store(to.add(j * TILE), column);
                }
            }
        }
    }
    if count < TILE {
        for column in to.chunks_exact_mut(TILE).take(depth) {
            column[count..].fill(0.0);
        }
    }
    if BF16 && !S::PAIRS {
        round(&mut to[..depth * TILE]);
    }
}

/// `[count, K]` rows to `[words(count), K]`, pairs down the rows, with a row of zeros after an odd number of them in bf16.
///
/// In f32 a copy: a row of the packed qkv begins a power of two or nearly after the one before, so that the rows of a tile
/// would share few sets of L1.
#[inline(always)]
pub(super) fn down<S: Simd, const BF16: bool>(
    simd: S,
    from: Rows,
    count: usize,
    head_dim: usize,
    to: &mut [f32],
) {
    if !(BF16 && S::PAIRS) {
        for (row, to) in to.chunks_exact_mut(head_dim).take(count).enumerate() {
            to.copy_from_slice(&from.at[row * from.stride..][..head_dim]);
        }
        if BF16 {
            round(&mut to[..count * head_dim]);
            to[count * head_dim..words::<S, BF16>(count) * head_dim].fill(0.0);
        }
        return;
    }
    for (pair, to) in to
        .chunks_exact_mut(head_dim)
        .take(count.div_ceil(2))
        .enumerate()
    {
        let even = &from.at[2 * pair * from.stride..][..head_dim];
        let odd = if 2 * pair + 1 < count {
            &from.at[(2 * pair + 1) * from.stride..][..head_dim]
        } else {
            &[]
        };
        for k in (0..head_dim).step_by(S::LANES) {
            let left = head_dim - k;
            // SAFETY: `even`, `to` and, where it is there, `odd` are rows of K numbers.
            unsafe {
                let even = simd.load_up_to(even.as_ptr().add(k), left);
                let odd = if odd.is_empty() {
                    simd.splat(0.0)
                } else {
                    simd.load_up_to(odd.as_ptr().add(k), left)
                };
                simd.store_up_to(to.as_mut_ptr().add(k), left, simd.pairs(even, odd));
            }
        }
    }
}

/// `[count, K]` rows to `[count, words(K)]`, pairs along a row. K is even.
#[inline(always)]
pub(super) fn along<S: Simd, const BF16: bool>(
    simd: S,
    from: Rows,
    count: usize,
    head_dim: usize,
    to: &mut [f32],
) {
    let depth = words::<S, BF16>(head_dim);
    for (row, to) in to.chunks_exact_mut(depth).take(count).enumerate() {
        let from = &from.at[row * from.stride..][..head_dim];
        if !(BF16 && S::PAIRS) {
            to.copy_from_slice(from);
            if BF16 {
                round(to);
            }
            continue;
        }
        for k in (0..head_dim).step_by(2 * S::LANES) {
            let left = head_dim - k;
            // SAFETY: `from` has K numbers, `to` a word for two of them.
            unsafe {
                let at = from.as_ptr().add(k);
                let first = simd.load_up_to(at, left);
                let second = if left > S::LANES {
                    simd.load_up_to(at.add(S::LANES), left - S::LANES)
                } else {
                    simd.splat(0.0)
                };
                let to = to.as_mut_ptr().add(k / 2);
                simd.store_up_to(to, left / 2, simd.neighbours(first, second));
            }
        }
    }
}

/// Each number to the nearest bf16.
#[inline(always)]
pub(super) fn round(numbers: &mut [f32]) {
    for number in numbers {
        *number = bf16::round(*number);
    }
}
