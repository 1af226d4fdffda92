//! The best low-rank stand-in for an error, as the inputs see it.
//!
//! ```text
//! given   E [F, D], what was lost of a weight, and S = Σ x xᵀ [D, D] of its inputs
//! least   Σ ‖(E − B A) x‖² = tr (E − B A) S (E − B A)ᵀ  over B [F, r], A [r, D]
//! is at   B = U,  A = Uᵀ E,  U the r leading eigenvectors of G = E S Eᵀ [F, F]
//! left    tr G − λ₁ − … − λᵣ
//! ```
//! That is the truncated SVD of E S^½ (Eckart and Young, 1936) without the root of S or its inverse: with E S^½ = U Σ Vᵀ, whose
//! left singular vectors are G's eigenvectors, U Σᵣ Vᵀ S^-½ = Uᵣ Uᵣᵀ E. So S may be singular.
//!
//! Errors of quantization have flat spectra, on which subspace iteration is slow. U comes from a block Krylov space instead
//! (arXiv 1504.05477): Q, G Q, G² Q, … of a random Q [F, r + 8], and the leading vectors of G in it; where that space is all of
//! [F] they are exact. Products are f32, what is orthogonal and what is diagonalised f64; nothing depends on threads.

use russet_kernels::{Mat, MatMut, Pool, matmul, random};

/// Columns of Q beyond the rank.
const MORE: usize = 8;

/// Blocks of the space.
const BLOCKS: usize = 5;

/// A column of which less than this is new is not new: f32 products are no more exact.
const NEW: f64 = 1e-5;

/// Sweeps of Jacobi's method at most; it converges quadratically, and ten do.
const SWEEPS: usize = 30;

/// A stand-in, B A.
pub(crate) struct LowRank {
    /// B, `[F, r]`.
    pub b: Vec<f32>,
    /// A, `[r, D]`.
    pub a: Vec<f32>,
    /// tr G: what is lost without it.
    pub energy: f64,
    /// What is lost with it.
    pub left: f64,
}

/// The best of rank `rank` for `error [F, D]` under `inputs [D, D]`. Columns of B and rows of A have the same lengths; where E has
/// a lower rank, further rows of A are random and further columns of B zero, as of a new adapter.
///
/// # Panics
/// When the sizes do not fit.
pub(crate) fn low_rank(
    pool: &Pool,
    error: &[f32],
    cols: usize,
    inputs: &[f32],
    rank: usize,
) -> LowRank {
    let rows = error.len() / cols;
    assert!(
        error.len() == rows * cols && inputs.len() == cols * cols && rank <= rows.min(cols),
        "rank {rank} of [{rows}, {cols}]"
    );
    let e = Mat::new(error, rows, cols);
    let mut through = vec![0.0; rows * cols]; // E S
    let whole = MatMut::new(&mut through, rows, cols);
    matmul(pool, e, Mat::new(inputs, cols, cols), whole, false);
    let dot = |(&a, &b): (&f32, &f32)| f64::from(a) * f64::from(b);
    let energy: f64 = error.iter().zip(&through).map(dot).sum();

    // G times columns.
    let apply = |columns: &[Vec<f64>]| -> Vec<Vec<f64>> {
        let count = columns.len();
        let q: Vec<f32> = (0..rows * count)
            .map(|i| columns[i % count][i / count] as f32)
            .collect();
        let mut down = vec![0.0; cols * count]; // Eᵀ Q
        let out = MatMut::new(&mut down, cols, count);
        matmul(pool, e.t(), Mat::new(&q, rows, count), out, false);
        let mut up = vec![0.0; rows * count]; // E S Eᵀ Q
        matmul(
            pool,
            Mat::new(&through, rows, cols),
            Mat::new(&down, cols, count),
            MatMut::new(&mut up, rows, count),
            false,
        );
        let column = |c: usize| (0..rows).map(|r| f64::from(up[r * count + c])).collect();
        (0..count).map(column).collect()
    };
    let mut basis: Vec<Vec<f64>> = Vec::new();
    let block = (rank + MORE).min(rows);
    let mut next: Vec<Vec<f64>> = (0..block)
        .map(|c| {
            let normal = |r| f64::from(random::normal(0, c as u64, r as u64));
            (0..rows).map(normal).collect()
        })
        .collect();
    for _ in 0..BLOCKS {
        let first = basis.len();
        for column in next {
            extend(&mut basis, column);
        }
        if basis.len() == first {
            break;
        }
        next = apply(&basis[first..]);
    }
    let images = apply(&basis);
    let size = basis.len();
    let mut small = vec![0.0; size * size];
    for i in 0..size {
        for j in 0..=i {
            // G is symmetric but for rounding.
            let both = inner(&basis[i], &images[j]) + inner(&basis[j], &images[i]);
            (small[i * size + j], small[j * size + i]) = (0.5 * both, 0.5 * both);
        }
    }
    let (values, vectors) = eigen(small, size);
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(rank);

    let mut u = vec![0.0f32; rows * rank];
    for (k, &which) in order.iter().enumerate() {
        for row in 0..rows {
            let part = |i: usize| basis[i][row] * vectors[i * size + which];
            u[row * rank + k] = (0..size).map(part).sum::<f64>() as f32;
        }
    }
    let mut a = vec![0.0; rank * cols];
    let left = MatMut::new(&mut a, rank, cols);
    matmul(pool, Mat::new(&u, rows, rank).t(), e, left, false);
    for k in 0..rank {
        let row = &mut a[k * cols..(k + 1) * cols];
        let length = row
            .iter()
            .map(|&x| f64::from(x) * f64::from(x))
            .sum::<f64>()
            .sqrt();
        // Rounding of what is nothing; and what the inputs do not see.
        let share = match order.get(k) {
            Some(&which) if length > 0.0 && values[which] > 1e-12 * energy => length.sqrt(),
            _ => {
                let deviation = (cols as f32).sqrt().recip();
                for (i, x) in row.iter_mut().enumerate() {
                    *x = deviation * random::normal(1, k as u64, i as u64);
                }
                (0..rows).for_each(|r| u[r * rank + k] = 0.0);
                continue;
            }
        };
        row.iter_mut().for_each(|x| *x /= share as f32);
        (0..rows).for_each(|r| u[r * rank + k] *= share as f32);
    }
    let captured: f64 = order.iter().map(|&which| values[which].max(0.0)).sum();
    LowRank {
        b: u,
        a,
        energy,
        left: (energy - captured).max(0.0),
    }
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Adds what is new of a column to an orthonormal basis, if anything is.
fn extend(basis: &mut Vec<Vec<f64>>, mut column: Vec<f64>) {
    let before = inner(&column, &column).sqrt();
    // Twice is enough (Kahan and Parlett).
    for _ in 0..2 {
        for one in &*basis {
            let along = inner(one, &column);
            column
                .iter_mut()
                .zip(one)
                .for_each(|(x, one)| *x -= along * one);
        }
    }
    let after = inner(&column, &column).sqrt();
    if basis.len() < column.len() && after > NEW * before {
        column.iter_mut().for_each(|x| *x /= after);
        basis.push(column);
    }
}

/// Eigenvalues and, in columns, eigenvectors of a symmetric matrix `[n, n]`, by Jacobi's method: rotations that make one
/// element after another zero.
pub(crate) fn eigen(mut matrix: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    let all: f64 = matrix.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let mut off = 0.0;
        for p in 0..n {
            for q in p + 1..n {
                let value = matrix[p * n + q];
                off += value * value;
                if value * value <= 1e-30 * all {
                    continue;
                }
                let theta = (matrix[q * n + q] - matrix[p * n + p]) / (2.0 * value);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let t = if theta == 0.0 { 1.0 } else { t };
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for k in 0..n {
                    let (a, b) = (matrix[k * n + p], matrix[k * n + q]);
                    (matrix[k * n + p], matrix[k * n + q]) = (c * a - s * b, s * a + c * b);
                }
                for k in 0..n {
                    let (a, b) = (matrix[p * n + k], matrix[q * n + k]);
                    (matrix[p * n + k], matrix[q * n + k]) = (c * a - s * b, s * a + c * b);
                }
                for k in 0..n {
                    let (a, b) = (vectors[k * n + p], vectors[k * n + q]);
                    (vectors[k * n + p], vectors[k * n + q]) = (c * a - s * b, s * a + c * b);
                }
            }
        }
        if off <= 1e-26 * all {
            break;
        }
    }
    ((0..n).map(|i| matrix[i * n + i]).collect(), vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error of uneven columns, and the second moments of correlated inputs of which some are nearly nothing.
    fn data(rows: usize, cols: usize, seen: usize) -> (Vec<f32>, Vec<f32>) {
        let error = |i: usize| 0.1 * random::normal(1, 0, i as u64) * (1 + i % cols % 3) as f32;
        let error = (0..rows * cols).map(error).collect();
        let x: Vec<f64> = (0..seen * cols)
            .map(|i| {
                let (token, c) = (i / cols, i % cols);
                let common = f64::from(random::normal(2, 0, token as u64));
                let own = f64::from(random::normal(2, 1, i as u64));
                (common + own) / (1 + c) as f64
            })
            .collect();
        let product = |i: usize| -> f32 {
            let (a, b) = (i / cols, i % cols);
            (0..seen)
                .map(|n| x[n * cols + a] * x[n * cols + b])
                .sum::<f64>() as f32
        };
        (error, (0..cols * cols).map(product).collect())
    }

    /// tr M S Mᵀ by its definition.
    fn lost(m: &[f64], cols: usize, inputs: &[f32]) -> f64 {
        let row = |m: &[f64]| -> f64 {
            (0..cols * cols)
                .map(|i| m[i / cols] * f64::from(inputs[i]) * m[i % cols])
                .sum()
        };
        m.chunks_exact(cols).map(row).sum()
    }

    /// What the truncated SVD of E S^½ leaves: the squares of the singular values behind the first `rank`, of M = E S^½ by the
    /// eigenvalues of Mᵀ M, with S^½ by those of S.
    fn promised(error: &[f32], cols: usize, inputs: &[f32], rank: usize) -> f64 {
        let (values, vectors) = eigen(inputs.iter().map(|&x| f64::from(x)).collect(), cols);
        let root = |i: usize, j: usize| -> f64 {
            let term = |k: usize| {
                vectors[i * cols + k] * values[k].max(0.0).sqrt() * vectors[j * cols + k]
            };
            (0..cols).map(term).sum()
        };
        let m: Vec<f64> = error
            .chunks_exact(cols)
            .flat_map(|row| {
                let column = move |j| (0..cols).map(|i| f64::from(row[i]) * root(i, j)).sum();
                (0..cols).map(column).collect::<Vec<f64>>()
            })
            .collect();
        let gram = |i: usize| -> f64 {
            m.chunks_exact(cols)
                .map(|row| row[i / cols] * row[i % cols])
                .sum()
        };
        let (mut squares, _) = eigen((0..cols * cols).map(gram).collect(), cols);
        squares.sort_by(|a, b| b.total_cmp(a));
        squares[rank..].iter().sum()
    }

    fn check(rows: usize, cols: usize, seen: usize, rank: usize, tolerance: f64) {
        let (error, inputs) = data(rows, cols, seen);
        let fit = |threads| {
            let pool = Pool::new(threads).unwrap();
            low_rank(&pool, &error, cols, &inputs, rank)
        };
        let (one, two) = (fit(1), fit(2));
        assert_eq!((&one.a, &one.b), (&two.a, &two.b), "threads changed it");
        let without: Vec<f64> = error.iter().map(|&x| f64::from(x)).collect();
        let with: Vec<f64> = (0..rows * cols)
            .map(|i| {
                let (r, c) = (i / cols, i % cols);
                let term = |k| f64::from(one.b[r * rank + k]) * f64::from(one.a[k * cols + c]);
                without[i] - (0..rank).map(term).sum::<f64>()
            })
            .collect();
        let (before, after) = (lost(&without, cols, &inputs), lost(&with, cols, &inputs));
        let promised = promised(&error, cols, &inputs, rank);
        let what =
            format!("[{rows}, {cols}] rank {rank}: {before} to {after}, promised {promised}");
        assert!((one.energy - before).abs() < 1e-4 * before, "{what}");
        assert!(
            (one.left - after).abs() < 1e-4 * before,
            "{what}, said {}",
            one.left
        );
        assert!(
            after >= promised - 1e-6 * before,
            "{what}: better than the best"
        );
        assert!(after - promised <= tolerance * before, "{what}");
        for k in 0..rank {
            let a: f32 = one.a[k * cols..(k + 1) * cols].iter().map(|x| x * x).sum();
            let b: f32 = (0..rows).map(|r| one.b[r * rank + k].powi(2)).sum();
            assert!(
                (a - b).abs() <= 1e-3 * a || b == 0.0,
                "column {k}: {a} and {b}"
            );
        }
    }

    #[test]
    fn what_is_left_is_what_the_svd_promises() {
        // The space is all of [F]: f32 products are what is between them.
        for (rows, cols, rank) in [(24, 40, 4), (40, 24, 8), (16, 16, 16), (60, 33, 1)] {
            check(rows, cols, 300, rank, 1e-5);
        }
        // Fewer tokens than inputs: S is singular.
        check(24, 40, 7, 4, 1e-5);
        check(24, 40, 3, 6, 1e-5);
    }

    #[test]
    fn where_the_space_is_not_everything_little_is_missed() {
        // 200 rows, 60 columns of the space. The bound is that of the paper's guarantee at this size, many times what is missed.
        check(200, 160, 400, 4, 1e-3);
    }

    #[test]
    fn an_error_of_low_rank_is_made_good_and_nothing_stays_nothing() {
        let (_, inputs) = data(1, 20, 100);
        let (u, v) = data(12, 20, 1);
        let error: Vec<f32> = (0..12 * 20).map(|i| u[i / 20] * v[i % 20]).collect();
        let pool = Pool::new(2).unwrap();
        let fit = low_rank(&pool, &error, 20, &inputs, 3);
        assert!(
            fit.left < 1e-5 * fit.energy,
            "{} of {}",
            fit.left,
            fit.energy
        );
        let nothing = low_rank(&pool, &[0.0; 240], 20, &inputs, 3);
        assert!(nothing.b.iter().all(|&x| x == 0.0) && nothing.a.iter().any(|&x| x != 0.0));
        assert_eq!((nothing.energy, nothing.left), (0.0, 0.0));
    }

    #[test]
    fn jacobi_finds_what_makes_up_a_matrix() {
        let n = 9;
        let half: Vec<f64> = (0..n * n)
            .map(|i| f64::from(random::normal(3, 0, i as u64)))
            .collect();
        let matrix: Vec<f64> = (0..n * n)
            .map(|i| half[i] + half[i % n * n + i / n])
            .collect();
        let (values, vectors) = eigen(matrix.clone(), n);
        for i in 0..n {
            for j in 0..n {
                let term = |k: usize| vectors[i * n + k] * values[k] * vectors[j * n + k];
                let got: f64 = (0..n).map(term).sum();
                assert!((got - matrix[i * n + j]).abs() < 1e-12, "{i} {j}");
                let unit: f64 = (0..n)
                    .map(|k| vectors[k * n + i] * vectors[k * n + j])
                    .sum();
                assert!((unit - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
    }
}
