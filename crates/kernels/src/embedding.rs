//! Rows of a table by token, and the gradient back into it.

use std::ops::Range;

use crate::elementwise::rows_per_task;
use crate::pool::{Disjoint, Pool};
use crate::profile::{Kernel, span};

/// Columns of one task of [`scatter_add`]: whole cache lines, and tasks enough for a few threads.
const COLUMNS: usize = 64;

/// `out[n] = table[tokens[n]]`. `table` `[V, D]`, `out` `[N, D]` with N = `tokens.len()`.
///
/// # Panics
/// When `out` does not divide into N rows, or a token lies outside the table.
pub fn gather(pool: &Pool, table: &[f32], tokens: &[u32], out: &mut [f32]) {
    let _span = span(Kernel::Embedding);
    let width = width(table, tokens, out.len());
    if width == 0 {
        return;
    }
    let rows = rows_per_task(width);
    pool.for_each_chunk(out, rows * width, |index, out| {
        for (out, &token) in out.chunks_exact_mut(width).zip(&tokens[index * rows..]) {
            out.copy_from_slice(&table[token as usize * width..][..width]);
        }
    });
}

/// `d_table[tokens[n]] += d_out[n]`, in the order of n. `d_out` `[N, D]`, `d_table` `[V, D]`.
///
/// Tasks own columns, not tokens, so that a token which occurs twice is added in order.
///
/// # Panics
/// As [`gather`].
pub fn scatter_add(pool: &Pool, tokens: &[u32], d_out: &[f32], d_table: &mut [f32]) {
    let _span = span(Kernel::Embedding);
    let width = width(d_table, tokens, d_out.len());
    if width == 0 {
        return;
    }
    let table = Disjoint::new(d_table);
    pool.run(width.div_ceil(COLUMNS), |task| {
        let start = task * COLUMNS;
        let len = COLUMNS.min(width - start);
        for (d_out, &token) in d_out.chunks_exact(width).zip(tokens) {
            // SAFETY: only this task touches these columns of any row.
            let row = unsafe { table.range(token as usize * width + start, len) };
            for (sum, d) in row.iter_mut().zip(&d_out[start..]) {
                *sum += d;
            }
        }
    });
}

/// As [`gather`], of the rows of a larger table from `first` on: what lies outside of them is 0.
///
/// # Panics
/// When `out` does not divide into N rows, or the table into rows of that length.
pub fn gather_part(pool: &Pool, table: &[f32], first: usize, tokens: &[u32], out: &mut [f32]) {
    let _span = span(Kernel::Embedding);
    let Some((width, part)) = part(table, first, tokens, out.len()) else {
        return;
    };
    let rows = rows_per_task(width);
    pool.for_each_chunk(out, rows * width, |index, out| {
        for (out, &token) in out.chunks_exact_mut(width).zip(&tokens[index * rows..]) {
            match part.contains(&(token as usize)) {
                true => out.copy_from_slice(&table[(token as usize - first) * width..][..width]),
                false => out.fill(0.0),
            }
        }
    });
}

/// As [`scatter_add`], into the rows of a larger table from `first` on; what belongs to others is left out.
///
/// # Panics
/// As [`gather_part`].
pub fn scatter_add_part(
    pool: &Pool,
    first: usize,
    tokens: &[u32],
    d_out: &[f32],
    d_table: &mut [f32],
) {
    let _span = span(Kernel::Embedding);
    let Some((width, part)) = part(d_table, first, tokens, d_out.len()) else {
        return;
    };
    let table = Disjoint::new(d_table);
    pool.run(width.div_ceil(COLUMNS), |task| {
        let start = task * COLUMNS;
        let len = COLUMNS.min(width - start);
        for (d_out, &token) in d_out.chunks_exact(width).zip(tokens) {
            if !part.contains(&(token as usize)) {
                continue;
            }
            // SAFETY: only this task touches these columns of any row.
            let row = unsafe { table.range((token as usize - first) * width + start, len) };
            for (sum, d) in row.iter_mut().zip(&d_out[start..]) {
                *sum += d;
            }
        }
    });
}

/// D and the tokens whose rows there are; `None` without tokens.
fn part(
    table: &[f32],
    first: usize,
    tokens: &[u32],
    rows_len: usize,
) -> Option<(usize, Range<usize>)> {
    let width = rows_len.checked_div(tokens.len())?;
    assert!(
        width > 0 && width * tokens.len() == rows_len && table.len().is_multiple_of(width),
        "{rows_len} elements for {} tokens and {} of a table",
        tokens.len(),
        table.len()
    );
    Some((width, first..first + table.len() / width))
}

/// D, after checking that the lengths agree and every token is a row of the table.
fn width(table: &[f32], tokens: &[u32], rows_len: usize) -> usize {
    if tokens.is_empty() {
        assert_eq!(rows_len, 0, "no tokens, but {rows_len} elements");
        return 0;
    }
    let width = rows_len / tokens.len();
    assert!(
        width > 0 && width * tokens.len() == rows_len,
        "{rows_len} elements for {} tokens",
        tokens.len()
    );
    let rows = table.len() / width;
    assert_eq!(
        rows * width,
        table.len(),
        "a table of {} elements has no rows of {width}",
        table.len()
    );
    let highest = tokens.iter().copied().max().unwrap_or(0);
    assert!(
        (highest as usize) < rows,
        "token {highest} is outside a table of {rows} rows"
    );
    width
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, random};

    #[test]
    fn gather_copies_and_scatter_adds_in_order() {
        for threads in [1, 2, 3] {
            let pool = Pool::with_isa(threads, Isa::Scalar);
            for width in [1, 5, 64, 200] {
                let values = |stream: u64, len: usize| -> Vec<f32> {
                    (0..len as u64)
                        .map(|i| random::normal(1, stream, i))
                        .collect()
                };
                let (vocab, tokens) = (11, [3u32, 0, 10, 3, 3, 7]);
                let table = values(1, vocab * width);
                let mut out = vec![0.0; tokens.len() * width];
                gather(&pool, &table, &tokens, &mut out);
                let d_out = values(2, out.len());
                let mut d_table = table.clone();
                scatter_add(&pool, &tokens, &d_out, &mut d_table);
                let mut want = table.clone();
                for (n, &token) in tokens.iter().enumerate() {
                    for i in 0..width {
                        assert_eq!(out[n * width + i], table[token as usize * width + i]);
                        want[token as usize * width + i] += d_out[n * width + i];
                    }
                }
                assert_eq!(d_table, want, "{threads} threads, width {width}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "token 4 is outside a table of 4 rows")]
    fn a_token_outside_the_table_is_named() {
        gather(
            &Pool::with_isa(1, Isa::Scalar),
            &[0.0; 8],
            &[1, 4],
            &mut [0.0; 4],
        );
    }
}
