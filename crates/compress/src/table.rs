//! The tables between tokens and vectors, which every row of text enters or leaves by: in eight bits, or in four as a projection.
//!
//! Four bits are the form that projections have, so the product with them is the same, and entries, scales and indices are chosen by the same
//! k-means. Every weight counts alike: a row is one token's, looked up exactly at one end and multiplied at the other, and no one
//! input is the more important at both. Left out: error feedback, which refines a product's output alone.

use half::f16;
use russet_kernels::palette::{self, Bits, LayoutError, STRIP};
use russet_kernels::{Pool, int8};
use russet_model::package::PaletteTensors;

use crate::CompressError;
use crate::matrix;
use crate::settings::TableBits;
use crate::strip::Importance;

/// Weights that are palettized between two looks at whether to stop: some seconds on two cores, and strips enough for many cores.
const PIECE: usize = 8 << 20;

/// A table as a package stores it.
pub(crate) enum Table {
    Int8(int8::Quantized),
    Palette(PaletteTensors),
}

/// Brings `weight [rows, cols]` to the bits that are asked for. `step` is told of weights that are done and may end it.
///
/// # Errors
/// When the size or a weight is one that the format does not offer, or `step` ends it.
pub(crate) fn make(
    pool: &Pool,
    bits: TableBits,
    name: &str,
    (rows, cols): (usize, usize),
    weight: &[f32],
    step: &mut dyn FnMut(usize) -> Result<(), CompressError>,
) -> Result<Table, CompressError> {
    let layout = |problem| CompressError::Layout {
        name: name.to_owned(),
        problem,
    };
    let Some(bits) = bits.palette() else {
        let table = int8::quantize(rows, cols, weight).map_err(layout)?;
        step(weight.len())?;
        return Ok(Table::Int8(table));
    };
    palette::sizes(bits, rows, cols).map_err(layout)?;
    let rows_each = (PIECE / cols).max(1).next_multiple_of(STRIP);
    by_pieces(pool, bits, cols, weight, rows_each, step, layout).map(Table::Palette)
}

/// Strips do not know of each other, so pieces of whole strips are palettized one after another and their tensors joined.
fn by_pieces(
    pool: &Pool,
    bits: Bits,
    cols: usize,
    weight: &[f32],
    rows_each: usize,
    step: &mut dyn FnMut(usize) -> Result<(), CompressError>,
    layout: impl Fn(LayoutError) -> CompressError,
) -> Result<PaletteTensors, CompressError> {
    let alike = vec![1.0; cols];
    let mut whole = PaletteTensors {
        bits,
        indices: Vec::new(),
        palette: Vec::new(),
        scales: Vec::new(),
    };
    for piece in weight.chunks(rows_each * cols) {
        let fit = matrix::palettize(pool, piece, cols, Importance::columns(&alike), bits);
        let made = fit.matrix.pack().map_err(&layout)?;
        whole.indices.extend(made.indices);
        whole.palette.extend(made.palette);
        whole.scales.extend(made.scales);
        step(piece.len())?;
    }
    Ok(whole)
}

/// Bytes that a table takes in a package.
pub(crate) fn stored_bytes(
    bits: TableBits,
    rows: usize,
    cols: usize,
) -> Result<usize, LayoutError> {
    match bits.palette() {
        Some(bits) => matrix::stored_bytes(bits, rows, cols),
        None => int8::sizes(rows, cols).map(|sizes| sizes.data + 2 * sizes.scales),
    }
}

impl Table {
    /// The bytes of one of its tensors, by the last part of that one's name.
    pub fn bytes(&self, part: &str) -> Vec<u8> {
        let signed = |values: &[i8]| values.iter().map(|&value| value as u8).collect();
        let halves = |scales: &[f16]| {
            scales
                .iter()
                .flat_map(|scale| scale.to_le_bytes())
                .collect()
        };
        match (self, part) {
            (Table::Int8(table), "values") => signed(&table.data),
            (Table::Int8(table), _) => halves(&table.scales),
            (Table::Palette(table), "indices") => table.indices.clone(),
            (Table::Palette(table), "palette") => signed(&table.palette),
            (Table::Palette(table), _) => halves(&table.scales),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russet_kernels::palette::PaletteMatrix;
    use russet_kernels::random;

    /// Rows of a vocabulary that fills no whole strip, of very different sizes, one of zeros.
    fn weight(rows: usize, cols: usize) -> Vec<f32> {
        let size = |row: usize| {
            if row == 5 {
                0.0
            } else {
                0.01 * (1 + row % 7) as f32
            }
        };
        (0..rows * cols)
            .map(|at| size(at / cols) * random::normal(3, 0, at as u64))
            .collect()
    }

    fn made(bits: TableBits, rows: usize, cols: usize, threads: usize) -> Table {
        let (pool, mut done) = (Pool::new(threads).unwrap(), 0);
        let table = make(
            &pool,
            bits,
            "t",
            (rows, cols),
            &weight(rows, cols),
            &mut |more| {
                done += more;
                Ok(())
            },
        );
        assert_eq!(done, rows * cols);
        table.unwrap()
    }

    #[test]
    fn four_bits_take_half_the_bytes_and_stay_near() {
        let (rows, cols) = (101, 200);
        let Table::Palette(table) = made(TableBits::Four, rows, cols, 2) else {
            panic!("four bits are palettes")
        };
        assert_eq!(
            table.bytes(),
            stored_bytes(TableBits::Four, rows, cols).unwrap()
        );
        let Table::Int8(eight) = made(TableBits::Eight, rows, cols, 2) else {
            panic!("eight bits are none")
        };
        let bytes = eight.data.len() + 2 * eight.scales.len();
        assert_eq!(bytes, stored_bytes(TableBits::Eight, rows, cols).unwrap());
        // Half the indices, the same scales, and 16 entries for each of seven strips.
        assert_eq!(
            table.bytes(),
            eight.data.len() / 2 + 2 * eight.scales.len() + 7 * 16
        );
        let mut stored = vec![0.0; rows * cols];
        let pool = Pool::new(1).unwrap();
        let PaletteTensors {
            bits,
            indices,
            palette: entries,
            scales,
        } = &table;
        let view = PaletteMatrix::new(*bits, rows, cols, indices, entries, scales).unwrap();
        palette::dequantize(&pool, view, &mut stored);
        let weight = weight(rows, cols);
        for (row, (stored, weight)) in stored.chunks(cols).zip(weight.chunks(cols)).enumerate() {
            let square = |x: f32| f64::from(x) * f64::from(x);
            let off: f64 = stored.iter().zip(weight).map(|(a, b)| square(a - b)).sum();
            let size: f64 = weight.iter().map(|&w| square(w)).sum();
            // The best sixteen levels for a normal distribution leave 1.15 % of its variance (Max, 1960); shared by 16 rows with an
            // own scale each they leave little more.
            assert!(off <= 0.02 * size, "row {row}: {off} of {size}");
        }
    }

    #[test]
    fn pieces_and_threads_change_nothing() {
        let (rows, cols) = (101, 36);
        let weight = weight(rows, cols);
        let parts = |table: &PaletteTensors| {
            (
                table.indices.clone(),
                table.palette.clone(),
                table.scales.clone(),
            )
        };
        let by = |rows_each, threads| {
            let pool = Pool::new(threads).unwrap();
            let fails = |problem: LayoutError| panic!("{problem}");
            let step = &mut |_| Ok(());
            let made = by_pieces(&pool, Bits::Four, cols, &weight, rows_each, step, fails);
            parts(&made.unwrap())
        };
        let whole = by(112, 1);
        for (rows_each, threads) in [(112, 2), (16, 1), (48, 2)] {
            assert!(
                by(rows_each, threads) == whole,
                "{rows_each} rows on {threads} threads"
            );
        }
    }

    #[test]
    fn who_asks_it_to_stop_is_heard() {
        let pool = Pool::new(1).unwrap();
        let mut stop = |_| Err(CompressError::Interrupted);
        for bits in [TableBits::Eight, TableBits::Four] {
            let made = make(&pool, bits, "t", (20, 8), &weight(20, 8), &mut stop);
            assert!(matches!(made.err(), Some(CompressError::Interrupted)));
        }
        let wrong = make(&pool, TableBits::Four, "lm_head", (0, 8), &[], &mut stop);
        let said = wrong.err().unwrap().to_string();
        assert!(
            said.contains("`lm_head`") && said.contains("no weights"),
            "{said}"
        );
    }
}
