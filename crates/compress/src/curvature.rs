//! The second moments H = E[a x xᵀ] of a product's inputs, and what error feedback needs of them.
//!
//! - *H* itself, damped, relative to the mean of its diagonal;
//! - its *factor*, H = U D Uᵀ with U unit upper triangular, of which feedback is made;
//! - a *sketch*, H ≈ diag(rest) + V Vᵀ with a few columns, for which tables can be fitted without products by H: Nyström's approximation
//!   (Halko, Martinsson and Tropp, arXiv 0909.4061, §5.5): V Vᵀ never exceeds H, and the diagonal is H's.

use russet_kernels::palette::{Bits, COLUMNS};
use russet_kernels::{Mat, MatMut, Pool, matmul, random};

/// Added to H's diagonal, as a part of its mean: GPTQ's constant.
const DAMPING: f64 = 0.01;

/// What a column that only completes a pair weighs, over H's mean: nothing, but H stays positive.
const ABSENT: f32 = 1e-6;

/// Columns of the sketch.
pub(crate) const RANK: usize = 8;

/// Products by H that turn random directions into its largest ones.
const TURNS: usize = 3;

/// H of a product's inputs with its factor and its sketch, columns in the order of [`columns`].
pub(crate) struct Curvature {
    pub h: Vec<f32>,     // [D, D], damped
    pub upper: Vec<f32>, // [D, D], U above the diagonal and D on it
    pub near: Vec<f32>,  // [D, RANK], V
    pub rest: Vec<f32>,  // [D]
    pub width: usize,
    scale: f64,   // what the sum of squares was multiplied by
    damping: f64, // what was added to the diagonal then
}

/// The columns that a matrix of pairs has in error feedback, a pair's two side by side; nothing where a pair has only one.
pub(crate) fn columns(cols: usize) -> Vec<Option<usize>> {
    // All widths of pairs have the same ones.
    let bits = Bits::TwoPairs;
    let inputs = (0..bits.indices(cols)).flat_map(|index| bits.inputs(index));
    inputs
        .map(|input| (input < cols).then_some(input))
        .collect()
}

impl Curvature {
    /// Of a sum of weighted squares `[D, D]`, for matrices of pairs or of single weights.
    pub fn new(pool: &Pool, mut h: Vec<f32>, width: usize, pairs: bool) -> Curvature {
        let mean = (0..width).map(|i| f64::from(h[i * width + i])).sum::<f64>() / width as f64;
        // A product that never saw anything but zeros is as good with any indices.
        let (scale, damping) = if mean > 0.0 {
            (mean.recip(), DAMPING)
        } else {
            (0.0, 1.0)
        };
        pool.for_each_chunk(&mut h, width, |i, row| {
            row.iter_mut()
                .for_each(|h| *h = (f64::from(*h) * scale) as f32);
            row[i] += damping as f32;
        });
        let (h, width) = match pairs {
            true => in_pairs(&h, width),
            false => (h, width),
        };
        let upper = factor(pool, &h, width);
        let (near, rest) = sketch(pool, &h, width);
        Curvature {
            h,
            upper,
            near,
            rest,
            width,
            scale,
            damping,
        }
    }

    /// What the error would be if zeros were stored: Σ w H wᵀ over the rows of `weight`, of whose outputs `outputs` are the weighted sums of squares.
    pub fn energy(&self, outputs: &[f64], weight: &[f32]) -> f64 {
        let square = |w: &f32| f64::from(*w) * f64::from(*w);
        self.scale * outputs.iter().sum::<f64>()
            + self.damping * weight.iter().map(square).sum::<f64>()
    }
}

/// H in the order of [`columns`].
fn in_pairs(h: &[f32], width: usize) -> (Vec<f32>, usize) {
    let columns = columns(width);
    let mut out = vec![0.0; columns.len() * columns.len()];
    for (row, (out, from)) in out
        .chunks_exact_mut(columns.len())
        .zip(&columns)
        .enumerate()
    {
        match from {
            None => out[row] = ABSENT,
            Some(from) => {
                for (out, col) in out.iter_mut().zip(&columns) {
                    *out = col.map_or(0.0, |col| h[from * width + col]);
                }
            }
        }
    }
    (out, columns.len())
}

/// U with H = U D Uᵀ, unit upper triangular, and D on its diagonal: Cholesky from the last column to the first, in blocks.
fn factor(pool: &Pool, h: &[f32], width: usize) -> Vec<f32> {
    let mut a = h.to_vec();
    let blocks = width.div_ceil(COLUMNS);
    for block in (0..blocks).rev() {
        let (start, end) = (block * COLUMNS, width.min((block + 1) * COLUMNS));
        let size = end - start;
        // The block on the diagonal, in f64: [size, size], row by row.
        let mut diagonal: Vec<f64> = (0..size * size)
            .map(|i| f64::from(a[(start + i / size) * width + start + i % size]))
            .collect();
        for j in (0..size).rev() {
            let root = diagonal[j * size + j].max(1e-12).sqrt();
            for i in 0..=j {
                diagonal[i * size + j] /= root;
            }
            diagonal[j * size + j] = root;
            for i in 0..j {
                for k in 0..=i {
                    diagonal[k * size + i] -= diagonal[k * size + j] * diagonal[i * size + j];
                }
            }
        }
        // The rows above it: x with x Rᵀ = a, from the last column on, each taken from all those before it.
        let columns: Vec<f64> = (0..size * size)
            .map(|at| diagonal[at % size * size + at / size])
            .collect(); // Rᵀ
        let mut above = vec![0.0f32; start * size];
        pool.for_each_chunk(&mut above, size, |row, x| {
            let mut left = [0.0f64; COLUMNS];
            for (left, &a) in left.iter_mut().zip(&a[row * width + start..][..size]) {
                *left = f64::from(a);
            }
            for j in (0..size).rev() {
                let value = left[j] / diagonal[j * size + j];
                x[j] = value as f32;
                let column = &columns[j * size..][..j];
                for (left, r) in left[..j].iter_mut().zip(column) {
                    *left -= value * r;
                }
            }
        });
        let negative: Vec<f32> = above.iter().map(|x| -x).collect();
        let rest = MatMut::strided(&mut a, start, start, width, 1);
        matmul(
            pool,
            Mat::new(&negative, start, size),
            Mat::new(&above, start, size).t(),
            rest,
            true,
        );
        // Columns over their diagonals are U's.
        for j in 0..size {
            let root = diagonal[j * size + j];
            let inverse = root.recip();
            a[(start + j) * width + start + j] = (root * root) as f32;
            for i in 0..j {
                a[(start + i) * width + start + j] = (diagonal[i * size + j] * inverse) as f32;
            }
            for i in 0..start {
                a[i * width + start + j] = (f64::from(above[i * size + j]) * inverse) as f32;
            }
        }
    }
    a
}

/// V and the diagonal that it leaves: with Ω some directions near H's largest, V Vᵀ = H Ω (Ωᵀ H Ω)⁻¹ Ωᵀ H.
fn sketch(pool: &Pool, h: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let rank = RANK.min(width);
    let mut omega: Vec<f32> = (0..width * rank)
        .map(|i| random::normal(1, 0, i as u64))
        .collect();
    let mut image = vec![0.0f32; width * rank];
    for turn in 0..TURNS {
        if turn > 0 {
            omega.copy_from_slice(&image);
        }
        orthonormalize(&mut omega, rank);
        matmul(
            pool,
            Mat::new(h, width, width),
            Mat::new(&omega, width, rank),
            MatMut::new(&mut image, width, rank),
            false,
        );
    }
    let rows = |x: &[f32], row: usize| -> [f64; RANK] {
        std::array::from_fn(|k| match k < rank {
            true => f64::from(x[row * rank + k]),
            false => 0.0,
        })
    };
    // Ωᵀ H Ω and its Cholesky factor L; what is not positive is rounding.
    let mut core = [[0.0f64; RANK]; RANK];
    for row in 0..width {
        let (omega, image) = (rows(&omega, row), rows(&image, row));
        for i in 0..rank {
            for j in 0..rank {
                core[i][j] += 0.5 * (omega[i] * image[j] + omega[j] * image[i]);
            }
        }
    }
    let mut root = [[0.0f64; RANK]; RANK];
    for i in 0..rank {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| root[i][k] * root[j][k]).sum();
            root[i][j] = match i == j {
                true => (core[i][i] - sum).max(1e-12).sqrt(),
                false => (core[i][j] - sum) / root[j][j],
            };
        }
    }
    // V = H Ω L⁻ᵀ, a row at a time.
    let mut near = vec![0.0; width * RANK];
    let mut rest = vec![0.0; width];
    for row in 0..width {
        let image = rows(&image, row);
        let mut v = [0.0f64; RANK];
        for i in 0..rank {
            let sum: f64 = (0..i).map(|k| root[i][k] * v[k]).sum();
            v[i] = (image[i] - sum) / root[i][i];
        }
        let square: f64 = v.iter().map(|v| v * v).sum();
        rest[row] = (f64::from(h[row * width + row]) - square).max(0.0) as f32;
        for (to, v) in near[row * RANK..][..RANK].iter_mut().zip(v) {
            *to = v as f32;
        }
    }
    (near, rest)
}

/// Gram and Schmidt over the columns of `x [rows, rank]`, twice, since once is not enough for columns that are nearly alike.
fn orthonormalize(x: &mut [f32], rank: usize) {
    for j in (0..rank).flat_map(|j| [j, j]) {
        for i in 0..j {
            let dot: f64 = x
                .chunks_exact(rank)
                .map(|row| f64::from(row[i]) * f64::from(row[j]))
                .sum();
            x.chunks_exact_mut(rank)
                .for_each(|row| row[j] -= (dot * f64::from(row[i])) as f32);
        }
        let square: f64 = x
            .chunks_exact(rank)
            .map(|row| f64::from(row[j]).powi(2))
            .sum();
        let inverse = square.max(1e-30).sqrt().recip();
        x.chunks_exact_mut(rank)
            .for_each(|row| row[j] = (f64::from(row[j]) * inverse) as f32);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// H of correlated inputs: few directions and a little noise.
    pub(crate) fn correlated(pool: &Pool, width: usize, seed: u64) -> Vec<f32> {
        let (tokens, directions) = (2 * width, 1 + width / 8);
        let normal = |stream: u64, i: usize| random::normal(seed, stream, i as u64);
        let mix: Vec<f32> = (0..directions * width).map(|i| normal(0, i)).collect();
        let sources: Vec<f32> = (0..tokens * directions).map(|i| normal(1, i)).collect();
        let mut x: Vec<f32> = (0..tokens * width).map(|i| 0.3 * normal(2, i)).collect();
        let (sources, mix) = (
            Mat::new(&sources, tokens, directions),
            Mat::new(&mix, directions, width),
        );
        matmul(pool, sources, mix, MatMut::new(&mut x, tokens, width), true);
        let mut h = vec![0.0; width * width];
        let x = Mat::new(&x, tokens, width);
        matmul(pool, x.t(), x, MatMut::new(&mut h, width, width), false);
        h
    }

    #[test]
    fn the_factor_multiplies_back_to_h() {
        let pool = Pool::new(2).unwrap();
        for width in [1, 5, 128, 130, 300] {
            let Curvature { h, upper, .. } =
                Curvature::new(&pool, correlated(&pool, width, 1), width, false);
            let unit = |i: usize, j: usize| match i.cmp(&j) {
                std::cmp::Ordering::Less => f64::from(upper[i * width + j]),
                std::cmp::Ordering::Equal => 1.0,
                std::cmp::Ordering::Greater => 0.0,
            };
            // U⁻¹ H U⁻ᵀ is diagonal; the last column of U is H's over its corner, and so on upwards.
            let mut rest: Vec<f64> = h.iter().map(|&h| f64::from(h)).collect();
            for j in (0..width).rev() {
                let d = rest[j * width + j];
                assert!(d > 0.0, "D[{j}] is {d}");
                for i in 0..=j {
                    for k in 0..=j {
                        rest[i * width + k] -= unit(i, j) * d * unit(k, j);
                    }
                }
            }
            let largest = rest.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
            assert!(
                largest < 1e-4,
                "width {width}: U D Uᵀ is off by {largest}, where H's diagonal is about 1"
            );
        }
    }

    #[test]
    fn the_sketch_has_hs_diagonal_and_most_of_its_largest_directions() {
        let pool = Pool::new(2).unwrap();
        for width in [1, 5, 64, 300] {
            let curvature = Curvature::new(&pool, correlated(&pool, width, 1), width, false);
            let at = |i: usize, j: usize| -> f64 {
                let v = |row: usize| &curvature.near[row * RANK..][..RANK];
                let near: f64 = v(i).iter().zip(v(j)).map(|(a, b)| f64::from(a * b)).sum();
                near + if i == j {
                    f64::from(curvature.rest[i])
                } else {
                    0.0
                }
            };
            let (mut left, mut all) = (0.0, 0.0);
            for i in 0..width {
                let h = |j: usize| f64::from(curvature.h[i * width + j]);
                assert!((at(i, i) - h(i)).abs() < 1e-4 * h(i), "{width}: {i}");
                for j in (0..width).filter(|&j| j != i) {
                    left += (at(i, j) - h(j)).powi(2);
                    all += h(j).powi(2);
                }
            }
            // Of as many columns or fewer nothing is lost; of more what a few directions cannot hold.
            let most = if width <= RANK { 1e-6 } else { 0.7 };
            assert!(left <= most * all, "{width}: {left} of {all} is lost");
        }
    }
}
