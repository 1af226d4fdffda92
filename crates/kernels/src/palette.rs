//! Palettized weights: indices of 2, 3 or 4 bits a weight into a small int8 table, multiplied without
//! unpacking them to memory.
//!
//! ```text
//! weight[r, i] = scales[r] · palette[r / 16][ index[r, i] ]
//! ```
//! Sixteen output rows share a palette of 4, 8 or 16 entries; each row has an f16 scale. The bytes are
//! stored in the order in which the product reads them, so a mapped file is used in place.
//!
//! Or an index stands for a *pair* of weights, and an entry has two numbers:
//! ```text
//! weight[r, 8g + j]     = scales[r] · palette[r / 16][0][ index[r, 4g + j] ]      j = 0 … 3
//! weight[r, 8g + 4 + j] = scales[r] · palette[r / 16][1][ index[r, 4g + j] ]
//! ```
//! with 16, 64 or 256 entries at 2, 3 or 4 bits a weight. Pairs are four inputs apart, not neighbours, so that one look-up of 64
//! indices is the operand of a product and nothing has to be interleaved. The order of bytes:
//!
//! - a *strip* is 16 rows; strips follow one another, rows padded to 16;
//! - inside a strip, each 64 bytes hold the same 8 (4-bit) or 16 (2-bit) inputs of all 16 rows,
//!   columns padded with index 0; bytes `4r..4r + 4` are row r of the strip;
//! - 4 bits: byte j of the four holds input j in its low nibble and input 4 + j in the high one;
//! - 2 bits: byte j holds inputs j, 4 + j, 8 + j, 12 + j in bits 0–1, 2–3, 4–5, 6–7;
//! - 3 bits: 192 bytes hold 32 inputs, columns padded to as many: the two low bits of inputs 0–15
//!   in the first 64 bytes and of 16–31 in the second, each as at 2 bits, and the high bits of all
//!   in the third, input 4k + j in bit k of byte j. So both planes are shifted into place whole;
//! - pairs of 2 bits a weight: 64 bytes hold 16 inputs; byte j holds index j in its low nibble and
//!   index 4 + j in the high one;
//! - pairs of 3 bits: 192 bytes hold 32 inputs; byte j of each 64 has index j, 4 + j or 8 + j in its
//!   six low bits, and the two high bits of the three, the lowest first, make index 12 + j;
//! - pairs of 4 bits: 64 bytes hold 8 inputs; byte j is index j.
//!
//! Activations come as [`QuantizedRows`] (int8, one scale for 128 inputs). Sums run in int32,
//! exactly, for each block of 128, and join in a fixed order in f32: a token's result is the same
//! bits alone, in any batch, on any number of threads and on every instruction set. The scheme is
//! palettization as in coremltools and SqueezeLLM (Kim et al., 2023), with int8 entries. Choosing
//! palettes is not done here, but for the loops over weights that it is made of ([`assign`], [`sweep`], [`nearest`]); there are no sparse outliers.

#[cfg(target_arch = "x86_64")]
mod amx;
mod assign;
mod avx2;
mod avx512;
mod columns;
pub(crate) mod dense;
mod nearest;
mod scalar;
pub(crate) mod strips;
#[cfg(test)]
mod tests;

pub use assign::{RowSums, assign};
pub use columns::{COLUMNS, Columns, Sweep, sweep};
pub use nearest::nearest;
pub use strips::LayoutError;

use crate::adapter::{self, AdaptedRows, Ways};
use crate::profile::{Kernel, span};
use crate::quantize::QuantizedRows;
use crate::{Mat, MatMut, Pool};
use half::f16;
use strips::{Format, Strips, Then};

/// Output rows that share a palette.
pub const STRIP: usize = strips::STRIP;

/// Bits of indices for each weight, and whether an index stands for one weight or for a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bits {
    /// Four entries.
    Two,
    /// Eight entries.
    Three,
    /// Sixteen entries.
    Four,
    /// Sixteen entries of two numbers, for two weights each.
    TwoPairs,
    /// 64 entries of two numbers.
    ThreePairs,
    /// 256 entries of two numbers.
    FourPairs,
}

impl Bits {
    /// Every width that there is: those of single weights, then those of pairs, the narrowest first.
    pub const ALL: [Bits; 6] = [
        Bits::Two,
        Bits::Three,
        Bits::Four,
        Bits::TwoPairs,
        Bits::ThreePairs,
        Bits::FourPairs,
    ];

    /// 2, 3 or 4, of indices for each weight.
    pub const fn bits(self) -> usize {
        self.format().bits()
    }

    /// Weights that an index stands for: 1 or 2.
    pub const fn dims(self) -> usize {
        self.format().dims()
    }

    /// Entries of a palette: 4, 8 or 16, of pairs 16, 64 or 256.
    pub const fn entries(self) -> usize {
        self.format().entries()
    }

    /// Numbers of a palette: entries times what an index stands for.
    pub const fn table(self) -> usize {
        self.format().table()
    }

    /// Indices of a row of so many inputs. The pairs at a row's end may lack their second inputs.
    pub const fn indices(self, cols: usize) -> usize {
        self.format().indices(cols)
    }

    /// The inputs that index number `index` of a row stands for, the first twice where there is one. A pair's second
    /// may lie past the row's end.
    pub const fn inputs(self, index: usize) -> [usize; 2] {
        let first = self.format().input(index);
        [first, first + (self.dims() - 1) * strips::HALF]
    }

    /// The width of so many bits a weight for single weights (1) or pairs (2); nothing for other numbers.
    pub fn new(bits: usize, dims: usize) -> Option<Bits> {
        let is = |width: &Bits| width.bits() == bits && width.dims() == dims;
        Bits::ALL.into_iter().find(is)
    }

    /// That of single weights for 2, 3 or 4; nothing for other numbers.
    pub const fn from_bits(bits: usize) -> Option<Bits> {
        match bits {
            2 => Some(Bits::Two),
            3 => Some(Bits::Three),
            4 => Some(Bits::Four),
            _ => None,
        }
    }

    /// How a person writes it: `2`, `3`, `4`, and `2v`, `3v`, `4v` for pairs.
    pub const fn name(self) -> &'static str {
        match self {
            Bits::Two => "2",
            Bits::Three => "3",
            Bits::Four => "4",
            Bits::TwoPairs => "2v",
            Bits::ThreePairs => "3v",
            Bits::FourPairs => "4v",
        }
    }

    /// The width of that [`Bits::name`].
    pub fn from_name(name: &str) -> Option<Bits> {
        Bits::ALL.into_iter().find(|bits| bits.name() == name)
    }

    const fn format(self) -> Format {
        match self {
            Bits::Two => Format::Two,
            Bits::Three => Format::Three,
            Bits::Four => Format::Four,
            Bits::TwoPairs => Format::TwoPairs,
            Bits::ThreePairs => Format::ThreePairs,
            Bits::FourPairs => Format::FourPairs,
        }
    }
}

/// Element counts of the three tensors of a matrix; see [`sizes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of packed indices.
    pub indices: usize,
    /// Int8 palette entries, `[strips, entries]`, of pairs `[strips, 2, entries]`.
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

    /// Bits a weight, and whether an index stands for a pair.
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

    /// The palettes, `[strips, entries]`, of pairs `[strips, 2, entries]`.
    pub fn palette(&self) -> &'a [i8] {
        self.strips.palette
    }

    /// The row scales, rows padded to 16.
    pub fn scales(&self) -> &'a [f16] {
        self.strips.scales
    }
}

/// Row-major indices `[rows, cols]`, of pairs `[rows, indices(cols)]`, one a byte, to the packed order.
///
/// # Errors
/// When a size is 0 or absurd, there are not so many indices, or one is not in the palette.
pub fn pack(bits: Bits, rows: usize, cols: usize, indices: &[u8]) -> Result<Vec<u8>, LayoutError> {
    let format = bits.format();
    let lengths = strips::lengths(format, rows, cols)?;
    strips::check_values("row-major indices", format, rows, cols, indices.len())?;
    let entries = bits.entries();
    if let Some(at) = indices
        .iter()
        .position(|&index| usize::from(index) >= entries)
    {
        let width = bits.indices(cols);
        return Err(LayoutError::Index {
            row: at / width,
            col: bits.inputs(at % width)[0],
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

/// `out[n] = weight[rows[n]]`: `[N, cols]`, exact; the look-up where the matrix is an embedding.
///
/// # Panics
/// When a number is none of a row, or `out` is not `[N, cols]`.
pub fn gather(pool: &Pool, matrix: PaletteMatrix<'_>, rows: &[u32], out: &mut [f32]) {
    let _span = span(Kernel::Palette);
    dense::gather(pool, &matrix.strips, rows, out);
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
    product(pool, parts, x, out, Then::Store);
}

/// As [`matmul`], and `to` `[N, Σ rows]` added to each product, while it is at hand.
///
/// # Panics
/// As [`matmul`], or when `to` is not as large as `out`.
pub fn matmul_added(
    pool: &Pool,
    parts: &[PaletteMatrix<'_>],
    x: &QuantizedRows,
    to: &[f32],
    out: &mut [f32],
) {
    product(pool, parts, x, out, Then::Add(to));
}

/// Whether [`matmul_gated`] takes these rows: of few, and on tiles, weights had better stream.
pub fn takes_gated(x: &QuantizedRows) -> bool {
    x.panels() > 1 && !x.tiled()
}

/// As [`matmul`] of two parts of F rows and then [`crate::swiglu::forward`], to the same bits: `[N, F]`, and gates and ups never lie in
/// memory.
///
/// # Panics
/// As [`matmul`], or when there are not two parts of as many rows, or the rows are none that it takes ([`takes_gated`]).
pub fn matmul_gated(
    pool: &Pool,
    parts: &[PaletteMatrix<'_>; 2],
    x: &QuantizedRows,
    out: &mut [f32],
) {
    product(pool, parts, x, out, Then::Gate);
}

fn product(
    pool: &Pool,
    parts: &[PaletteMatrix<'_>],
    x: &QuantizedRows,
    out: &mut [f32],
    then: Then<'_>,
) {
    let _span = span(Kernel::Palette);
    let part = |part: usize| &parts[part].strips;
    strips::product(pool, parts.len(), part, x, out, then, None);
}

/// As [`matmul`], with what adapters add to some of the rows, of the same inputs before they were rounded: `x` `[N, cols]`.
/// The bits are those of [`matmul`] followed by [`adapter::adapt`] for each of `levels`, which are adapters one after another.
///
/// # Panics
/// As these.
pub fn matmul_adapted(
    pool: &Pool,
    parts: &[PaletteMatrix<'_>],
    quantized: &QuantizedRows,
    out: &mut [f32],
    x: Mat<'_>,
    levels: &[Vec<AdaptedRows<'_>>],
) {
    let _span = span(Kernel::Palette);
    let features = parts.iter().map(PaletteMatrix::rows).sum();
    let part = |index: usize| &parts[index].strips;
    // Of many rows the products take long enough that jobs more are not felt.
    if quantized.panels() == 1 && !quantized.tiled() {
        levels.iter().for_each(|runs| adapter::check_level(runs));
        let mut begin = 0;
        let mut columns = Vec::with_capacity(parts.len());
        for part in parts {
            columns.push(begin..begin + part.rows());
            begin += part.rows();
        }
        let runs = levels.concat();
        let done = Ways::begin(pool.isa(), &runs, x, features, |ways| {
            let fits = ways.fits(|own| columns.contains(own));
            if fits {
                let ways = Some(ways);
                strips::product(pool, parts.len(), part, quantized, out, Then::Store, ways);
            }
            fits
        });
        if done {
            return;
        }
    }
    strips::product(pool, parts.len(), part, quantized, out, Then::Store, None);
    for runs in levels {
        adapter::adapt(pool, runs, x, MatMut::new(out, x.rows, features));
    }
}
