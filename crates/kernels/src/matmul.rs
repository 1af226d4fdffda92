//! Dense matrix products C (+)= A B over strided operands: of f32, or of f32 rounded to bf16, summed in f32.
//!
//! The scheme is that of Goto and van de Geijn ("Anatomy of high-performance matrix multiplication",
//! 2008): operands are packed into panels that registers can stream (see `micro`), one of them once for
//! all tasks, the other by each task for its tile (see `tile`). Either may lie row- or column-major:
//! packing transposes blocks in registers.
//!
//! Each element of C is summed in one fixed order (blocks of 256 along the depth, each a chain in order)
//! that depends on nothing but K. So a row of the result has the same bits alone or in any batch, with
//! any number of threads, and on AVX2 as on AVX-512.
//!
//! Operands stay f32 in memory; bf16 exists in panels only, where numbers are rounded and go in pairs along the depth, as
//! AVX-512 BF16 multiplies them: twice the rate of f32. CPUs without it multiply the rounded numbers in f32, in the same
//! order. A product of two bf16 numbers is exact in f32, so each step rounds once, at its sum, on every instruction set,
//! and the bits are the same on all, except that AVX-512 BF16 takes sums below 2⁻¹²⁶ for 0. Blocks are of 512 here. AMX tiles,
//! at eight times the rate again, sum in an order of their own (see `amx`).
//!
//! The `gemm` crate stood here first. Beside it on two threads of a Zen 4 machine (`bench/peers/gemm`, GFLOP/s):
//! x Wᵀ at [2048, 512] x [2816, 512] 205 against 207, at [512, 512] x [512, 512] 200 against 93, at 128 rows
//! 192 against 63, at 16 rows 129 against 13; and its results depend on the batch.

use std::ops::Range;

use crate::pool::Pool;
use crate::profile::{Kernel, span};

#[cfg(target_arch = "x86_64")]
mod amx;
pub(crate) mod bf16;
mod micro;
mod tile;

pub(crate) use micro::{DEPTH as BLOCK, SLACK as PACK_SLACK, pack, words};

/// A matrix `[rows, cols]` somewhere in a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    /// The elements, from (0, 0) on.
    pub data: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

/// A matrix to be written; as [`Mat`], and no two of its elements share a place.
#[derive(Debug)]
pub struct MatMut<'a> {
    /// The elements, from (0, 0) on.
    pub data: &'a mut [f32],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

/// One more than the last place that a matrix reaches; 0 for an empty one.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 {
        0
    } else {
        (rows - 1) * row_stride + (cols - 1) * col_stride + 1
    }
}

impl<'a> Mat<'a> {
    /// Row-major `[rows, cols]` over the whole of `data`.
    ///
    /// # Panics
    /// When `data` does not hold exactly `rows * cols` elements.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(
            data.len(),
            rows * cols,
            "a {rows} x {cols} matrix from {} elements",
            data.len()
        );
        Mat {
            data,
            rows,
            cols,
            row_stride: cols,
            col_stride: 1,
        }
    }

    /// A matrix with the given distances between rows and columns.
    ///
    /// # Panics
    /// When it would reach beyond `data`.
    pub fn strided(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        let need = extent(rows, cols, row_stride, col_stride);
        assert!(
            data.len() >= need,
            "a {rows} x {cols} matrix of strides {row_stride}, {col_stride} needs {need} elements, not {}",
            data.len()
        );
        Mat {
            data,
            rows,
            cols,
            row_stride,
            col_stride,
        }
    }

    /// Its fields are public: what the constructors have checked may have been changed since.
    ///
    /// # Panics
    /// When it reaches beyond its elements.
    pub(crate) fn check_within(&self) {
        let need = extent(self.rows, self.cols, self.row_stride, self.col_stride);
        assert!(
            need <= self.data.len(),
            "a matrix of {need} elements in {}",
            self.data.len()
        );
    }

    /// The transpose, in place.
    pub fn t(self) -> Self {
        Mat {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn rows(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "rows {range:?} of {}",
            self.rows
        );
        let data = if range.is_empty() {
            &[]
        } else {
            &self.data[range.start * self.row_stride..]
        };
        Mat {
            data,
            rows: range.len(),
            ..self
        }
    }

    /// Some of the columns.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn cols(self, range: Range<usize>) -> Self {
        self.t().rows(range).t()
    }
}

impl<'a> MatMut<'a> {
    /// Row-major `[rows, cols]` over the whole of `data`.
    ///
    /// # Panics
    /// When `data` does not hold exactly `rows * cols` elements.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(
            data.len(),
            rows * cols,
            "a {rows} x {cols} matrix from {} elements",
            data.len()
        );
        MatMut {
            data,
            rows,
            cols,
            row_stride: cols,
            col_stride: 1,
        }
    }

    /// A matrix with the given distances between rows and columns.
    ///
    /// # Panics
    /// When it would reach beyond `data`, or rows would overlap.
    pub fn strided(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        let need = extent(rows, cols, row_stride, col_stride);
        assert!(
            data.len() >= need,
            "a {rows} x {cols} matrix of strides {row_stride}, {col_stride} needs {need} elements, not {}",
            data.len()
        );
        let matrix = MatMut {
            data,
            rows,
            cols,
            row_stride,
            col_stride,
        };
        matrix.check_apart();
        matrix
    }

    /// # Panics
    /// When two elements share a place.
    pub(crate) fn check_apart(&self) {
        let MatMut {
            rows,
            cols,
            row_stride,
            col_stride,
            ..
        } = *self;
        let ((inner, step), (outer, stride)) = if row_stride >= col_stride {
            ((cols, col_stride), (rows, row_stride))
        } else {
            ((rows, row_stride), (cols, col_stride))
        };
        // A line along the smaller stride must end before the next one begins.
        let apart =
            (inner <= 1 || step > 0) && (outer <= 1 || stride > inner.saturating_sub(1) * step);
        assert!(
            apart,
            "elements of a {rows} x {cols} matrix of strides {row_stride}, {col_stride} would overlap"
        );
    }

    /// The transpose, in place.
    pub fn t(self) -> Self {
        MatMut {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn rows(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "rows {range:?} of {}",
            self.rows
        );
        let data = if range.is_empty() {
            &mut []
        } else {
            &mut self.data[range.start * self.row_stride..]
        };
        MatMut {
            data,
            rows: range.len(),
            ..self
        }
    }

    /// Some of the columns.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn cols(self, range: Range<usize>) -> Self {
        self.t().rows(range).t()
    }

    /// The same matrix, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
        }
    }

    /// The same matrix, to be read.
    pub fn as_ref(&self) -> Mat<'_> {
        Mat {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
        }
    }
}

/// The type in which products multiply. Operands and sums are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// IEEE single precision.
    #[default]
    F32,
    /// The upper half of an f32; operands are rounded to it.
    Bf16,
}

/// C = A B, or C += A B where `accumulate`. A `[M, K]`, B `[K, N]`, C `[M, N]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul(pool: &Pool, a: Mat, b: Mat, c: MatMut, accumulate: bool) {
    matmul_in(pool, Compute::F32, a, b, c, accumulate);
}

/// As [`matmul`], multiplying in the given type.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul_in(pool: &Pool, compute: Compute, a: Mat, b: Mat, c: MatMut, accumulate: bool) {
    let _span = span(Kernel::Matmul);
    assert!(
        a.cols == b.rows && c.rows == a.rows && c.cols == b.cols,
        "matmul: [{}, {}] x [{}, {}] into [{}, {}]",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        c.rows,
        c.cols
    );
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    // The fields are public: what the constructors have checked may have been changed since.
    for (name, len, extent) in [
        (
            "A",
            a.data.len(),
            extent(a.rows, a.cols, a.row_stride, a.col_stride),
        ),
        (
            "B",
            b.data.len(),
            extent(b.rows, b.cols, b.row_stride, b.col_stride),
        ),
        (
            "C",
            c.data.len(),
            extent(c.rows, c.cols, c.row_stride, c.col_stride),
        ),
    ] {
        assert!(
            extent <= len,
            "matmul: {name} reaches {extent} elements into {len}"
        );
    }
    c.check_apart();
    let product = match compute {
        Compute::F32 => tile::product::<false>,
        #[cfg(target_arch = "x86_64")]
        Compute::Bf16 if pool.isa() == crate::Isa::Amx && a.cols > 0 => amx::product,
        Compute::Bf16 => tile::product::<true>,
    };
    if c.col_stride == 1 || c.cols == 1 {
        product(pool, a, b, c, accumulate);
    } else if c.row_stride == 1 || c.rows == 1 {
        product(pool, b.t(), a.t(), c.t(), accumulate);
    } else {
        panic!(
            "matmul: neither rows nor columns of the result are contiguous (strides {}, {})",
            c.row_stride, c.col_stride
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, random};
    use proptest::prelude::*;

    /// How a matrix lies in memory.
    #[derive(Clone, Copy, Debug)]
    enum Layout {
        Rows,
        Columns,
        Apart,
    }

    /// `[rows, cols]` of normal numbers, with gaps.
    fn matrix(stream: u64, rows: usize, cols: usize, layout: Layout) -> (Vec<f32>, usize, usize) {
        let (row_stride, col_stride) = match layout {
            Layout::Rows => (cols + 2, 1),
            Layout::Columns => (1, rows + 3),
            Layout::Apart => (2 * cols + 3, 2),
        };
        let len = rows.max(1) * row_stride + cols.max(1) * col_stride + 8;
        (
            (0..len as u64)
                .map(|i| random::normal(9, stream, i))
                .collect(),
            row_stride,
            col_stride,
        )
    }

    /// Each element against f64, on every instruction set and 1, 2 and 3 threads.
    fn check(
        compute: Compute,
        m: usize,
        n: usize,
        k: usize,
        layouts: [Layout; 3],
        accumulate: bool,
    ) {
        let (a, a_rs, a_cs) = matrix(1, m, k, layouts[0]);
        let (b, b_rs, b_cs) = matrix(2, k, n, layouts[1]);
        let (c0, c_rs, c_cs) = matrix(3, m, n, layouts[2]);
        let (a, b) = (
            Mat::strided(&a, m, k, a_rs, a_cs),
            Mat::strided(&b, k, n, b_rs, b_cs),
        );
        let at = |m: &Mat, i: usize, j: usize| {
            let x = m.data[i * m.row_stride + j * m.col_stride];
            f64::from(match compute {
                Compute::F32 => x,
                Compute::Bf16 => bf16::round(x),
            })
        };
        let mut fused: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let mut first: Option<Vec<f32>> = None;
            for threads in [1, 2, 3] {
                let mut c = c0.clone();
                let out = MatMut::strided(&mut c, m, n, c_rs, c_cs);
                matmul_in(
                    &Pool::with_isa(threads, isa),
                    compute,
                    a,
                    b,
                    out,
                    accumulate,
                );
                assert_eq!(
                    first.get_or_insert_with(|| c.clone()),
                    &c,
                    "{isa:?}, {threads} threads"
                );
            }
            let c = first.unwrap();
            let mut untouched = c0.clone();
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let place = i * c_rs + j * c_cs;
                let start = if accumulate {
                    f64::from(c0[place])
                } else {
                    0.0
                };
                let terms = (0..k).map(|p| at(&a, i, p) * at(&b, p, j));
                let (sum, size) =
                    terms.fold((start, start.abs()), |(s, z), t| (s + t, z + t.abs()));
                // Each term passes through at most 256 (512) roundings in its block, one per block, one for
                // its product and one for C; each is half an ulp of a partial sum no greater than `size`.
                let block = match compute {
                    Compute::F32 => micro::block_depth::<false>(),
                    Compute::Bf16 => micro::block_depth::<true>(),
                };
                let roundings = 2 + block.min(k) + k / block;
                let bound = roundings as f64 * f64::from(f32::EPSILON) / 2.0 * size;
                let got = f64::from(c[place]);
                assert!(
                    (got - sum).abs() <= bound,
                    "{isa:?} [{m},{n},{k}] ({i},{j}): {got}, not {sum}"
                );
                untouched[place] = c[place];
            }
            assert_eq!(untouched, c, "{isa:?} wrote beside the matrix");
            let apart = match compute {
                Compute::F32 => isa == Isa::Scalar,
                Compute::Bf16 => isa == Isa::Amx,
            };
            if !apart {
                // The same chains of fused, or exact, products: the same bits.
                assert_eq!(
                    fused.get_or_insert_with(|| c.clone()),
                    &c,
                    "{isa:?} [{m},{n},{k}]"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_small_product_equals_the_formula(
            m in 1usize..40, n in 1usize..150, k in 0usize..70,
            (a, b, c) in (0usize..3, 0usize..3, 0usize..2), accumulate in any::<bool>(),
        ) {
            let layouts = [a, b, c].map(|i| [Layout::Rows, Layout::Columns, Layout::Apart][i]);
            check(Compute::F32, m, n, k, layouts, accumulate);
            check(Compute::Bf16, m, n, k, layouts, accumulate);
        }
    }

    #[test]
    fn products_of_many_blocks_equal_the_formula() {
        for (index, (m, n, k)) in [
            (1, 70, 600),
            (3, 33, 513),
            (130, 40, 300),
            (257, 96, 256),
            (140, 300, 7),
            (131, 17, 530),
            (129, 64, 1057),
            (16, 96, 1024),
        ]
        .into_iter()
        .enumerate()
        {
            let columns = |yes| if yes { Layout::Columns } else { Layout::Rows };
            let layouts = [
                columns(index % 2 == 1),
                columns(index % 3 != 0),
                Layout::Rows,
            ];
            check(Compute::F32, m, n, k, layouts, index % 2 == 0);
            check(Compute::Bf16, m, n, k, layouts, index % 2 == 0);
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_any_batch() {
        let (n, k, most) = (70, 300, 150);
        let values = |stream: u64, len: usize| -> Vec<f32> {
            (0..len as u64)
                .map(|i| random::normal(5, stream, i))
                .collect()
        };
        let (x, w) = (values(1, most * k), values(2, n * k));
        let both = [Compute::F32, Compute::Bf16];
        for (isa, compute) in Isa::available().flat_map(|isa| both.map(|compute| (isa, compute))) {
            let pool = Pool::with_isa(2, isa);
            let product = |rows: usize| {
                let mut y = vec![0.0; rows * n];
                let x = Mat::new(&x, most, k).rows(0..rows);
                matmul_in(
                    &pool,
                    compute,
                    x,
                    Mat::new(&w, n, k).t(),
                    MatMut::new(&mut y, rows, n),
                    false,
                );
                y
            };
            let whole = product(most);
            for rows in [1, 2, 5, 8, 9, 14, 15, 33, 128, 129] {
                assert_eq!(
                    product(rows),
                    whole[..rows * n],
                    "{isa:?}, {compute:?}, {rows} rows"
                );
            }
        }
    }

    #[test]
    fn parts_of_a_matrix_are_its_elements() {
        let data: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let part = Mat::new(&data, 3, 4).rows(1..3).cols(1..3);
        assert_eq!(
            (
                part.rows,
                part.cols,
                part.data[0],
                part.data[part.row_stride + part.col_stride]
            ),
            (2, 2, 5.0, 10.0)
        );
        let part = part.t();
        assert_eq!(
            (part.row_stride, part.col_stride, part.data[part.row_stride]),
            (1, 4, 6.0)
        );
        assert_eq!(Mat::new(&data, 3, 4).rows(3..3).rows, 0);
        let mut data = data;
        let mut c = MatMut::new(&mut data, 3, 4);
        c.reborrow().rows(2..3).cols(3..4).data[0] = 100.0;
        assert_eq!(c.as_ref().data[11], 100.0);
    }

    #[test]
    #[should_panic(expected = "matmul: [2, 3] x [2, 3] into [2, 3]")]
    fn shapes_that_do_not_fit_are_named() {
        let x = [0.0; 6];
        let a = Mat::new(&x, 2, 3);
        matmul(
            &Pool::with_isa(1, Isa::Scalar),
            a,
            a,
            MatMut::new(&mut [0.0; 6], 2, 3),
            false,
        );
    }

    #[test]
    #[should_panic(expected = "would overlap")]
    fn a_result_whose_rows_overlap_is_refused() {
        MatMut::strided(&mut [0.0; 20], 3, 4, 3, 1);
    }
}
