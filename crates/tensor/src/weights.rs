//! Weights that are used in the form they are stored in.

use half::f16;
use russet_kernels::int8::{self, Int8Matrix};
use russet_kernels::palette::{self, Bits, PaletteMatrix};

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
