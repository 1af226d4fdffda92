//! Dense f32 matrix products.
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};
use std::ops::Range;

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
        let (inner, outer) = if row_stride >= col_stride {
            ((cols, col_stride), (rows, row_stride))
        } else {
            ((rows, row_stride), (cols, col_stride))
        };
        assert!(
            (inner.0 <= 1 || inner.1 > 0)
                && (outer.0 <= 1 || outer.1 >= extent(1, inner.0, 0, inner.1).max(1)),
            "elements of a {rows} x {cols} matrix of strides {row_stride}, {col_stride} would overlap"
        );
        MatMut {
            data,
            rows,
            cols,
            row_stride,
            col_stride,
        }
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

/// C = A B, or C += A B where `accumulate`. A `[M, K]`, B `[K, N]`, C `[M, N]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul(pool: &Pool, a: Mat, b: Mat, c: MatMut, accumulate: bool) {
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
    let (tile_m, tile_n) = (256, 512);
    let (tiles_m, tiles_n) = (c.rows.div_ceil(tile_m), c.cols.div_ceil(tile_n));
    let (rows, cols, rs, cs) = (c.rows, c.cols, c.row_stride, c.col_stride);
    let start = Pointer(c.data.as_mut_ptr());
    let _ = Disjoint::<f32>::new(&mut []);
    let isa = pool.isa();
    pool.run(tiles_m * tiles_n, |task| {
        let (i, j) = ((task % tiles_m) * tile_m, (task / tiles_m) * tile_n);
        let (m, n) = (tile_m.min(rows - i), tile_n.min(cols - j));
        let a = a.rows(i..i + m);
        let b = b.cols(j..j + n);
        let out = start.at(i * rs + j * cs);
        if isa == Isa::Scalar {
            for i in 0..m {
                for j in 0..n {
                    let mut sum = 0.0;
                    for k in 0..a.cols {
                        sum += a.data[i * a.row_stride + k * a.col_stride]
                            * b.data[k * b.row_stride + j * b.col_stride];
                    }
                    // SAFETY: element (i, j) of this task's tile of C, in bounds by `MatMut`'s construction.
                    unsafe {
                        let place = out.add(i * rs + j * cs);
                        *place = if accumulate { *place + sum } else { sum };
                    }
                }
            }
            return;
        }
        // SAFETY: all three operands lie in bounds by construction; tiles of C do not overlap.
        unsafe {
            gemm::gemm(
                m,
                n,
                a.cols,
                out,
                cs as isize,
                rs as isize,
                accumulate,
                a.data.as_ptr(),
                a.col_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr(),
                b.col_stride as isize,
                b.row_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    });
}

/// Where C begins, shared by the tasks that write its tiles.
#[derive(Clone, Copy)]
struct Pointer(*mut f32);
// SAFETY: tasks write disjoint tiles.
unsafe impl Sync for Pointer {}

impl Pointer {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}
