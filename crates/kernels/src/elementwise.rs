//! Sums and scalings of whole slices, and reductions to a number.
//!
//! Work is cut into chunks of `CHUNK` elements; reductions add in f64 within a chunk and then over
//! the chunks in order, so they depend on the length alone. The loops are plain: the compiler turns
//! them into vectors, and memory is the limit.

use crate::ROW_BLOCK;
use crate::pool::Pool;
use crate::profile::{Kernel, span};

/// Elements of one task: 64 KiB, some microseconds of work.
const CHUNK: usize = 16 * 1024;

/// Rows of one task for an operation on rows of `width` elements: about [`CHUNK`] elements, and a divisor of [`ROW_BLOCK`].
pub(crate) fn rows_per_task(width: usize) -> usize {
    1 << (CHUNK / width.max(1)).clamp(1, ROW_BLOCK).ilog2()
}

/// `out = a + b`, all `[n]`.
///
/// # Panics
/// When the lengths differ.
pub fn add(pool: &Pool, a: &[f32], b: &[f32], out: &mut [f32]) {
    let _span = span(Kernel::Elementwise);
    assert!(
        a.len() == out.len() && b.len() == out.len(),
        "add: {} + {} into {}",
        a.len(),
        b.len(),
        out.len()
    );
    pool.for_each_chunk(out, CHUNK, |index, out| {
        let start = index * CHUNK;
        let (a, b) = (&a[start..][..out.len()], &b[start..][..out.len()]);
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a + b;
        }
    });
}

/// `out += x`, both `[n]`.
///
/// # Panics
/// When the lengths differ.
pub fn add_assign(pool: &Pool, out: &mut [f32], x: &[f32]) {
    let _span = span(Kernel::Elementwise);
    assert_eq!(out.len(), x.len(), "add_assign: lengths differ");
    pool.for_each_chunk(out, CHUNK, |index, out| {
        let x = &x[index * CHUNK..][..out.len()];
        for (out, x) in out.iter_mut().zip(x) {
            *out += x;
        }
    });
}

/// `out += factor · x`, both `[n]`.
///
/// # Panics
/// When the lengths differ.
pub fn add_scaled(pool: &Pool, out: &mut [f32], factor: f32, x: &[f32]) {
    let _span = span(Kernel::Elementwise);
    assert_eq!(out.len(), x.len(), "add_scaled: lengths differ");
    pool.for_each_chunk(out, CHUNK, |index, out| {
        let x = &x[index * CHUNK..][..out.len()];
        for (out, x) in out.iter_mut().zip(x) {
            *out += factor * x;
        }
    });
}

/// `to = from`, both `[n]`.
///
/// # Panics
/// When the lengths differ.
pub fn copy(pool: &Pool, from: &[f32], to: &mut [f32]) {
    let _span = span(Kernel::Elementwise);
    assert_eq!(from.len(), to.len(), "copy: lengths differ");
    pool.for_each_chunk(to, CHUNK, |index, to| {
        to.copy_from_slice(&from[index * CHUNK..][..to.len()]);
    });
}

/// `x = factor · x`.
pub fn scale_in_place(pool: &Pool, x: &mut [f32], factor: f32) {
    let _span = span(Kernel::Elementwise);
    pool.for_each_chunk(x, CHUNK, |_, x| {
        for x in x {
            *x *= factor;
        }
    });
}

/// Σ `a[i]` · `b[i]`, accumulated in f64.
///
/// # Panics
/// When the lengths differ.
pub fn dot(pool: &Pool, a: &[f32], b: &[f32]) -> f64 {
    let _span = span(Kernel::Elementwise);
    assert_eq!(a.len(), b.len(), "dot: lengths differ");
    let mut partial = vec![0.0f64; a.len().div_ceil(CHUNK)];
    pool.for_each_chunk(&mut partial, 1, |index, sum| {
        let start = index * CHUNK;
        let end = a.len().min(start + CHUNK);
        sum[0] = dot_chunk(&a[start..end], &b[start..end]);
    });
    partial.iter().sum()
}

/// Σ `x[i]`², accumulated in f64.
pub fn sum_of_squares(pool: &Pool, x: &[f32]) -> f64 {
    let _span = span(Kernel::Elementwise);
    dot(pool, x, x)
}

/// The dot product in eight interleaved f64 sums, which the compiler can keep in vectors.
fn dot_chunk(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for lane in 0..8 {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    let rest: f64 = a_rest
        .iter()
        .zip(b_rest)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum();
    sums.iter().sum::<f64>() + rest
}

/// The index of the highest number, the lowest of several; 0 where there is none. A NaN is never higher.
pub fn highest(numbers: &[f32]) -> usize {
    let Some(&first) = numbers.first() else {
        return 0;
    };
    // In lanes, which the compiler turns into vectors; a NaN at the beginning stays in all of them, and none is higher than it.
    let mut lanes = [first; 64];
    let (chunks, rest) = numbers.as_chunks::<64>();
    for chunk in chunks {
        for (highest, &number) in lanes.iter_mut().zip(chunk) {
            *highest = if number > *highest { number } else { *highest };
        }
    }
    let highest =
        lanes.iter().chain(rest).fold(
            first,
            |highest, &number| {
                if number > highest { number } else { highest }
            },
        );
    numbers
        .iter()
        .position(|&number| number == highest)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, random};

    fn values(stream: u64, len: usize) -> Vec<f32> {
        (0..len as u64)
            .map(|i| random::normal(1, stream, i))
            .collect()
    }

    #[test]
    fn each_operation_is_its_formula_at_every_length() {
        let pool = Pool::with_isa(2, Isa::Scalar);
        for len in [0, 1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5] {
            let (a, b) = (values(1, len), values(2, len));
            let check = |name: &str, got: &[f32], want: &dyn Fn(usize) -> f32| {
                assert!(
                    (0..len).all(|i| got[i] == want(i)),
                    "{name} at length {len}"
                );
            };
            let mut out = vec![f32::NAN; len];
            add(&pool, &a, &b, &mut out);
            check("add", &out, &|i| a[i] + b[i]);
            copy(&pool, &a, &mut out);
            check("copy", &out, &|i| a[i]);
            add_assign(&pool, &mut out, &b);
            check("add_assign", &out, &|i| a[i] + b[i]);
            copy(&pool, &a, &mut out);
            add_scaled(&pool, &mut out, 0.5, &b);
            check("add_scaled", &out, &|i| a[i] + 0.5 * b[i]);
            copy(&pool, &a, &mut out);
            scale_in_place(&pool, &mut out, -3.0);
            check("scale_in_place", &out, &|i| a[i] * -3.0);
        }
    }

    #[test]
    fn of_equal_highest_numbers_the_first_is_named() {
        for (numbers, index) in [
            (&[1.0, 3.0, 2.0, 3.0][..], 1),
            (&[f32::NEG_INFINITY, -2.0, f32::NAN], 1),
            (&[0.0, -0.0], 0),
            (&[f32::NAN, 1.0], 0),
            (&[], 0),
        ] {
            assert_eq!(highest(numbers), index, "{numbers:?}");
        }
        for len in [63, 64, 200] {
            let mut numbers = values(5, len);
            for place in [len - 1, len / 2, 3] {
                numbers[place] = 10.0;
                assert_eq!(highest(&numbers), place, "of {len}");
            }
        }
    }

    #[test]
    fn reductions_are_accurate_and_independent_of_threads() {
        let len = 5 * CHUNK + 77;
        let (a, b) = (values(3, len), values(4, len));
        let naive: f64 = a
            .iter()
            .zip(&b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum();
        let results: Vec<f64> = [1, 2, 3]
            .map(|threads| dot(&Pool::with_isa(threads, Isa::Scalar), &a, &b))
            .into();
        // The products are exact in f64; sums of 8e4 terms of size 1 differ by rounding only.
        assert!((results[0] - naive).abs() < 1e-9);
        assert!(results.iter().all(|r| r.to_bits() == results[0].to_bits()));
        assert_eq!(
            sum_of_squares(&Pool::with_isa(1, Isa::Scalar), &[3.0, 4.0]),
            25.0
        );
    }
}
