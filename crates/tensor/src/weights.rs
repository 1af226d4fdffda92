//! Weights that are used in the form they are stored in.

use half::f16;
use russet_kernels::Pool;
use russet_kernels::int8::{self, Int8Matrix};
use russet_kernels::palette::{self, Bits, PaletteMatrix};
use russet_kernels::quantize::QuantizedRows;

use crate::tensor::{DType, Tensor, TensorError};

/// A palettized matrix `[rows, cols]`: `weight[r][c] = scale[r] · palette[r / 16][index[r][c]]`, with the indices in
/// strip order as `russet_kernels::palette` lays them out, or an index for two weights, as stands there.
#[derive(Clone, Debug)]
pub struct PaletteWeight {
    bits: Bits,
    rows: usize,
    cols: usize,
    indices: Tensor, // u8
    palette: Tensor, // i8 [strips, entries], of pairs [strips, 2, entries]
    scales: Tensor,  // f16 [rows padded to 16]
}

/// An 8-bit matrix `[rows, cols]`: `weight[r][c] = scale[r] · value[r][c]`, in the strip order of
/// `russet_kernels::int8`.
#[derive(Clone, Debug)]
pub struct Int8Weight {
    rows: usize,
    cols: usize,
    values: Tensor, // i8
    scales: Tensor, // f16 [rows padded to 16]
}

/// A vocabulary's table `[V, D]` that is used as it is stored and not trained. Whatever its form, rows are looked up exactly and
/// products take activations of 8 bits.
#[derive(Clone, Debug)]
pub enum FrozenTable {
    /// Eight bits with a scale a row.
    Int8(Int8Weight),
    /// Indices into a palette for every 16 rows, with a scale a row.
    Palette(PaletteWeight),
}

impl PaletteWeight {
    /// A weight over its three stored tensors.
    ///
    /// # Errors
    /// When a tensor has not the number of elements that the format asks for.
    pub fn new(
        bits: Bits,
        rows: usize,
        cols: usize,
        indices: Tensor,
        palette: Tensor,
        scales: Tensor,
    ) -> Result<PaletteWeight, TensorError> {
        let sizes = palette::sizes(bits, rows, cols)
            .map_err(|_| TensorError::TooLarge(vec![rows, cols]))?;
        expect(&indices, DType::U8, sizes.indices)?;
        expect(&palette, DType::I8, sizes.palette)?;
        expect(&scales, DType::F16, sizes.scales)?;
        Ok(PaletteWeight {
            bits,
            rows,
            cols,
            indices,
            palette,
            scales: aligned(scales),
        })
    }

    /// Bits a weight, of single weights or of pairs.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of indices, palettes and scales.
    pub fn stored_bytes(&self) -> usize {
        self.indices.bytes().len() + self.palette.bytes().len() + self.scales.bytes().len()
    }

    /// What the kernels work on.
    pub fn view(&self) -> PaletteMatrix<'_> {
        let palette = bytemuck::cast_slice(self.palette.bytes());
        PaletteMatrix::new(
            self.bits,
            self.rows,
            self.cols,
            self.indices.bytes(),
            palette,
            halves(&self.scales),
        )
        .expect("the sizes were checked when the weight was made")
    }
}

impl Int8Weight {
    /// A weight over its two stored tensors.
    ///
    /// # Errors
    /// When a tensor has not the number of elements that the format asks for.
    pub fn new(
        rows: usize,
        cols: usize,
        values: Tensor,
        scales: Tensor,
    ) -> Result<Int8Weight, TensorError> {
        let sizes = int8::sizes(rows, cols).map_err(|_| TensorError::TooLarge(vec![rows, cols]))?;
        expect(&values, DType::I8, sizes.data)?;
        expect(&scales, DType::F16, sizes.scales)?;
        Ok(Int8Weight {
            rows,
            cols,
            values,
            scales: aligned(scales),
        })
    }

    /// Output features: the vocabulary.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of values and scales.
    pub fn stored_bytes(&self) -> usize {
        self.values.bytes().len() + self.scales.bytes().len()
    }

    /// What the kernels work on.
    pub fn view(&self) -> Int8Matrix<'_> {
        Int8Matrix::new(
            self.rows,
            self.cols,
            bytemuck::cast_slice(self.values.bytes()),
            halves(&self.scales),
        )
        .expect("the sizes were checked when the weight was made")
    }
}

impl FrozenTable {
    /// V.
    pub fn rows(&self) -> usize {
        match self {
            FrozenTable::Int8(table) => table.rows(),
            FrozenTable::Palette(table) => table.rows(),
        }
    }

    /// D.
    pub fn cols(&self) -> usize {
        match self {
            FrozenTable::Int8(table) => table.cols(),
            FrozenTable::Palette(table) => table.cols(),
        }
    }

    /// Bytes of the whole table.
    pub fn stored_bytes(&self) -> usize {
        match self {
            FrozenTable::Int8(table) => table.stored_bytes(),
            FrozenTable::Palette(table) => table.stored_bytes(),
        }
    }

    /// Bytes that a look-up of one row reads: what stands for its weights, its scale, and a palette where there is one.
    pub fn row_bytes(&self) -> usize {
        let scale = size_of::<f16>();
        match self {
            FrozenTable::Int8(table) => table.cols() + scale,
            FrozenTable::Palette(table) => {
                let bits = table.bits();
                let indices = bits.indices(table.cols()) * bits.bits() * bits.dims();
                indices.div_ceil(8) + bits.table() + scale
            }
        }
    }

    /// `out[n] = table[tokens[n]]`: `[N, D]`, exact.
    ///
    /// # Panics
    /// When a token is not below V, or `out` has another length.
    pub fn gather(&self, pool: &Pool, tokens: &[u32], out: &mut [f32]) {
        match self {
            FrozenTable::Int8(table) => int8::gather(pool, table.view(), tokens, out),
            FrozenTable::Palette(table) => palette::gather(pool, table.view(), tokens, out),
        }
    }

    /// `out[n] = table · x[n]`: `[N, V]`.
    ///
    /// # Panics
    /// When `x` has another width than D, or `out` another length.
    pub fn multiply(&self, pool: &Pool, x: &QuantizedRows, out: &mut [f32]) {
        match self {
            FrozenTable::Int8(table) => int8::matmul(pool, table.view(), x, out),
            FrozenTable::Palette(table) => palette::matmul(pool, &[table.view()], x, out),
        }
    }

    /// Writes all weights into `out`: `[V, D]`, exact.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn dequantize(&self, pool: &Pool, out: &mut [f32]) {
        match self {
            FrozenTable::Int8(table) => int8::dequantize(pool, table.view(), out),
            FrozenTable::Palette(table) => palette::dequantize(pool, table.view(), out),
        }
    }
}

fn expect(tensor: &Tensor, dtype: DType, elements: usize) -> Result<(), TensorError> {
    if tensor.dtype() == dtype && tensor.len() == elements {
        return Ok(());
    }
    let needed = elements.saturating_mul(dtype.bytes());
    Err(TensorError::Length {
        shape: vec![elements],
        dtype,
        needed,
        found: tensor.bytes().len(),
    })
}

/// Scales from a file may lie at an odd address; they are small, so a copy is made once.
fn aligned(scales: Tensor) -> Tensor {
    if bytemuck::try_cast_slice::<u8, f16>(scales.bytes()).is_ok() {
        return scales;
    }
    let copy: Vec<f16> = scales
        .bytes()
        .as_chunks()
        .0
        .iter()
        .map(|&b| f16::from_le_bytes(b))
        .collect();
    Tensor::from_halves(scales.shape(), copy)
}

fn halves(scales: &Tensor) -> &[f16] {
    bytemuck::cast_slice(scales.bytes())
}
