//! Palettized weights: 2-, 3- or 4-bit indices into a small int8 table, multiplied without unpacking
//! them to memory.
//!
//! ```text
//! weight[r, i] = scales[r] · palette[r / 16][ index[r, i] ]
//! ```
//! Sixteen output rows share a palette of 4, 8 or 16 entries; each row has an f16 scale. The bytes are
//! stored in the order in which the product reads them, so a mapped file is used in place:
//!
//! - a *strip* is 16 rows; strips follow one another, rows padded to 16;
//! - inside a strip, each 64 bytes hold the same 8 (4-bit) or 16 (2-bit) inputs of all 16 rows,
//!   columns padded with index 0; bytes `4r..4r + 4` are row r of the strip;
//! - 4 bits: byte j of the four holds input j in its low nibble and input 4 + j in the high one;
//! - 2 bits: byte j holds inputs j, 4 + j, 8 + j, 12 + j in bits 0–1, 2–3, 4–5, 6–7;
//! - 3 bits: 192 bytes hold 32 inputs, columns padded to as many: the two low bits of inputs 0–15
//!   in the first 64 bytes and of 16–31 in the second, each as at 2 bits, and the high bits of all
//!   in the third, input 4k + j in bit k of byte j. So both planes are shifted into place whole.
//!
//! Activations come as [`QuantizedRows`] (int8, one scale for 128 inputs). Sums run in int32,
//! exactly, for each block of 128, and join in a fixed order in f32: a token's result is the same
//! bits alone, in any batch, on any number of threads and on every instruction set. The scheme is
//! palettization as in coremltools and SqueezeLLM (Kim et al., 2023), with int8 entries. Choosing
//! palettes and indices is not done here, and neither are sparse outliers or vector palettes.

#[cfg(target_arch = "x86_64")]
mod amx;
mod avx2;
mod avx512;
pub(crate) mod dense;
mod scalar;
pub(crate) mod strips;
#[cfg(test)]
mod tests;

pub use strips::LayoutError;

use crate::Pool;
use crate::profile::{Kernel, span};
use crate::quantize::QuantizedRows;
use half::f16;
use strips::{Format, Strips};

/// Output rows that share a palette.
pub const STRIP: usize = strips::STRIP;

/// Bits of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bits {
    /// Four entries.
    Two,
    /// Eight entries.
    Three,
    /// Sixteen entries.
    Four,
}

impl Bits {
    /// Every width that there is, the narrowest first.
    pub const ALL: [Bits; 3] = [Bits::Two, Bits::Three, Bits::Four];

    /// 2, 3 or 4.
    pub const fn bits(self) -> usize {
        self.format().bits()
    }

    /// Entries of a palette: 4, 8 or 16.
    pub const fn entries(self) -> usize {
        self.format().entries()
    }

    /// The variant for 2, 3 or 4; nothing for other numbers.
    pub const fn from_bits(bits: usize) -> Option<Bits> {
        match bits {
            2 => Some(Bits::Two),
            3 => Some(Bits::Three),
            4 => Some(Bits::Four),
            _ => None,
        }
    }

    const fn format(self) -> Format {
        match self {
            Bits::Two => Format::Two,
            Bits::Three => Format::Three,
            Bits::Four => Format::Four,
        }
    }
}

/// Element counts of the three tensors of a matrix; see [`sizes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of packed indices.
    pub indices: usize,
    /// Int8 palette entries, `[strips, entries]`.
    pub palette: usize,
    /// F16 row scales, rows padded to 16.
    pub scales: usize,
}

/// What a `[rows, cols]` matrix takes.
///
/// # Errors
/// When a size is 0, or the bytes could not be addressed.
pub fn sizes(bits: Bits, rows: usize, cols: usize) -> Result<Sizes, LayoutError> {
    let lengths = strips::lengths(bits.format(), rows, cols)?;
    Ok(Sizes {
        indices: lengths.data,
        palette: lengths.palette,
        scales: lengths.scales,
    })
}

/// A palettized matrix `[rows, cols]` in somebody else's memory, checked.
#[derive(Clone, Copy, Debug)]
pub struct PaletteMatrix<'a> {
    bits: Bits,
    strips: Strips<'a>,
}

impl<'a> PaletteMatrix<'a> {
    /// A view of three buffers whose lengths must be those of [`sizes`].
    ///
    /// # Errors
    /// When a size is 0 or absurd, or a buffer has another length. Never panics.
    pub fn new(
        bits: Bits,
        rows: usize,
        cols: usize,
        indices: &'a [u8],
        palette: &'a [i8],
        scales: &'a [f16],
    ) -> Result<PaletteMatrix<'a>, LayoutError> {
        let strips = Strips::new(
            bits.format(),
            rows,
            cols,
            ("indices", indices),
            palette,
            scales,
        )?;
        Ok(PaletteMatrix { bits, strips })
    }

    /// Bits of an index.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.strips.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.strips.cols
    }

    /// The packed indices.
    pub fn indices(&self) -> &'a [u8] {
        self.strips.data
    }

    /// The palettes, `[strips, entries]`.
    pub fn palette(&self) -> &'a [i8] {
        self.strips.palette
    }

    /// The row scales, rows padded to 16.
    pub fn scales(&self) -> &'a [f16] {
        self.strips.scales
    }
}

/// Row-major indices `[rows, cols]`, one a byte, to the packed order.
///
/// # Errors
/// When a size is 0 or absurd, there are not `rows · cols` indices, or one is not in the palette.
pub fn pack(bits: Bits, rows: usize, cols: usize, indices: &[u8]) -> Result<Vec<u8>, LayoutError> {
    let format = bits.format();
    let lengths = strips::lengths(format, rows, cols)?;
    strips::check_values("row-major indices", format, rows, cols, indices.len())?;
    let entries = bits.entries();
    if let Some(at) = indices
        .iter()
        .position(|&index| usize::from(index) >= entries)
    {
        return Err(LayoutError::Index {
            row: at / cols,
            col: at % cols,
            index: indices[at],
            entries,
        });
    }
    let mut packed = vec![0; lengths.data];
    strips::pack(format, rows, cols, indices, &mut packed);
    Ok(packed)
}

/// The inverse of [`pack`].
///
/// # Errors
/// When a size is 0 or absurd, or `packed` has another length than [`sizes`] says.
pub fn unpack(bits: Bits, rows: usize, cols: usize, packed: &[u8]) -> Result<Vec<u8>, LayoutError> {
    strips::unpack(bits.format(), rows, cols, ("indices", packed))
}

/// Writes the dense weights of `matrix` into `out`: `[rows, cols]`, exact.
///
/// # Panics
/// When `out` has another length.
pub fn dequantize(pool: &Pool, matrix: PaletteMatrix<'_>, out: &mut [f32]) {
    let _span = span(Kernel::Palette);
    dense::all(pool, &matrix.strips, out);
}

/// `out[n] = [ W₀ x[n] | W₁ x[n] | … ]`: `[N, Σ rows]`, in one job for all parts.
///
/// The parts (say q, k and v, each with its own bits) share their inputs. A few tokens stream the
/// weights once; many decode them in registers, 12 tokens x 32 rows at a time, or on AMX for tiles of 32 tokens x 32 rows.
///
/// # Panics
/// When a part has other columns than `x`, or `out` is not `[N, Σ rows]`.
pub fn matmul(pool: &Pool, parts: &[PaletteMatrix<'_>], x: &QuantizedRows, out: &mut [f32]) {
    let _span = span(Kernel::Palette);
    strips::product(pool, parts.len(), |part| &parts[part].strips, x, out);
}
