//! What palettized and 8-bit matrices share: weights in strips of 16 rows, and the product with
//! int8 activations that runs over them.
//!
//! A strip is 16 output rows. 64 bytes of it (a *line*) hold the same 16, 8 or 4 inputs of all 16
//! rows at 2, 4 or 8 bits: int32 lane r is row r, so one broadcast of 4 activations meets all rows.
//! At 3 bits three lines (a *unit*) hold 32 inputs: two lines of low bits as at 2 bits, 16 inputs
//! each, and one line of high bits, all 32. Pairs of weights that share an index lie the same way, an
//! index for two weights; see [`super`].
//!
//! ```text
//! y[n, r] = s[r] · fma-chain over blocks b of ( Σ_{i in b} w[r, i] · q[n, i] ) · scale[n, b]
//! ```
//! The inner sum is exact in int32 and, below 2^24, exact as f32; the chain over blocks is fused
//! multiply-adds in rising b from 0; the row scale comes last. Every body does exactly this, so a
//! result is the same bits on every instruction set, in every batch and on any number of threads.

use super::scalar;
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512};
use crate::adapter::Ways;
use crate::pool::Disjoint;
use crate::quantize::{BLOCK, PANEL, Panel, QuantizedRows};
use crate::simd::vectorize;
use crate::{Isa, Pool, swiglu};
use half::f16;

/// Output rows of a strip: the int32 lanes of 64 bytes.
pub(crate) const STRIP: usize = 16;
/// Bytes that hold the same few inputs of all rows of a strip.
pub(crate) const LINE: usize = 64;

/// Inputs from a pair's first weight to its second: those that a line's four bytes a row hold. So one look-up of
/// 64 indices gives the operand of a product, and the same indices in the other half of the palette the next one.
pub(crate) const HALF: usize = 4;

/// Bits of a weight, and whether an index stands for one weight or for a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Two,
    Three,
    Four,
    Eight,
    TwoPairs,
    ThreePairs,
    FourPairs,
}

impl Format {
    /// By number, so that bodies can be generic over a format.
    pub const ALL: [Format; 7] = [
        Format::Two,
        Format::Three,
        Format::Four,
        Format::Eight,
        Format::TwoPairs,
        Format::ThreePairs,
        Format::FourPairs,
    ];

    /// Bits of a weight; an index of a pair has twice as many.
    pub const fn bits(self) -> usize {
        match self {
            Format::Two | Format::TwoPairs => 2,
            Format::Three | Format::ThreePairs => 3,
            Format::Four | Format::FourPairs => 4,
            Format::Eight => 8,
        }
    }

    /// Whether an index stands for two weights, `HALF` inputs apart.
    pub const fn pairs(self) -> bool {
        matches!(
            self,
            Format::TwoPairs | Format::ThreePairs | Format::FourPairs
        )
    }

    /// Weights that an index stands for.
    pub const fn dims(self) -> usize {
        1 + self.pairs() as usize
    }

    /// Entries of a strip's palette; 8-bit weights have none.
    pub const fn entries(self) -> usize {
        match self {
            Format::Eight => 0,
            _ => 1 << (self.bits() * self.dims()),
        }
    }

    /// Numbers of a strip's palette: of pairs all first ones, then all second ones.
    pub const fn table(self) -> usize {
        self.entries() * self.dims()
    }

    /// Indices of a row of so many inputs. Where the last pairs lack their second inputs they are there nevertheless.
    pub const fn indices(self, cols: usize) -> usize {
        if !self.pairs() {
            return cols;
        }
        let rest = cols % (2 * HALF);
        cols / (2 * HALF) * HALF + if rest < HALF { rest } else { HALF }
    }

    /// The first input that index number `index` of a row stands for; a pair's second is `HALF` further.
    pub const fn input(self, index: usize) -> usize {
        if self.pairs() {
            index / HALF * 2 * HALF + index % HALF
        } else {
            index
        }
    }

    /// Inputs of a unit: the least that whole lines hold. Divides 128.
    pub const fn inputs(self) -> usize {
        self.unit() * 32 / self.bits()
    }

    /// Lines of a unit.
    pub const fn unit(self) -> usize {
        match self {
            Format::Three | Format::ThreePairs => 3,
            _ => 1,
        }
    }

    /// Lines of a strip with so many inputs; nothing where they cannot be counted.
    const fn lines(self, cols: usize) -> Option<usize> {
        cols.div_ceil(self.inputs()).checked_mul(self.unit())
    }
}

/// Why bytes are no matrix. What is wrong, and with which shape; the reader adds file and tensor.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LayoutError {
    /// No rows or no columns.
    #[error("a {bits}-bit matrix of {rows} x {cols} has no weights; both sizes must be at least 1")]
    Empty {
        /// Bits of a weight.
        bits: usize,
        /// Output rows.
        rows: usize,
        /// Input columns.
        cols: usize,
    },
    /// More bytes than this machine can address.
    #[error(
        "a {bits}-bit matrix of {rows} x {cols} would not fit in memory; the sizes are probably damaged"
    )]
    TooLarge {
        /// Bits of a weight.
        bits: usize,
        /// Output rows.
        rows: usize,
        /// Input columns.
        cols: usize,
    },
    /// A buffer that does not fit the shape.
    #[error(
        "the {what} of a {bits}-bit matrix of {rows} x {cols} must have {expected} elements, not {found}; \
         the tensor does not belong to this shape, or its file is cut short"
    )]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Bits of a weight.
        bits: usize,
        /// Output rows.
        rows: usize,
        /// Input columns.
        cols: usize,
        /// Elements that the shape asks for.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// An index that its palette does not have.
    #[error("the index {index} at row {row}, column {col} is outside a palette of {entries} entries; use 0 to {last}", last = entries - 1)]
    Index {
        /// Output row.
        row: usize,
        /// Input column.
        col: usize,
        /// The index found.
        index: u8,
        /// Entries of the palette.
        entries: usize,
    },
    /// A weight that int8 and an f16 scale cannot express.
    #[error(
        "the weight {value} at row {row}, column {col} cannot be stored in 8 bits with an f16 scale; the largest is 8.3e6, and NaN and infinity have no place"
    )]
    Weight {
        /// Output row.
        row: usize,
        /// Input column.
        col: usize,
        /// The weight found.
        value: f32,
    },
}

/// Element counts of the buffers of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lengths {
    pub data: usize,
    pub palette: usize,
    pub scales: usize,
}

/// The lengths for a shape, refusing what does not fit `isize`.
pub(crate) fn lengths(format: Format, rows: usize, cols: usize) -> Result<Lengths, LayoutError> {
    let bits = format.bits();
    if rows == 0 || cols == 0 {
        return Err(LayoutError::Empty { bits, rows, cols });
    }
    let strips = rows.div_ceil(STRIP);
    let count = || {
        // The dense product too: dequantized and row-major buffers must be addressable as f32.
        rows.checked_mul(cols)?.checked_mul(4)?.checked_mul(STRIP)?;
        let lines = strips.checked_mul(format.lines(cols)?)?;
        let data = lines
            .checked_mul(LINE)
            .filter(|&bytes| isize::try_from(bytes).is_ok())?;
        Some(Lengths {
            data,
            palette: strips.checked_mul(format.table())?,
            scales: strips.checked_mul(STRIP)?,
        })
    };
    count().ok_or(LayoutError::TooLarge { bits, rows, cols })
}

/// A checked view of a matrix in strip order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strips<'a> {
    pub format: Format,
    pub rows: usize,
    pub cols: usize,
    pub data: &'a [u8],    // [strips, lines, 64]
    pub palette: &'a [i8], // [strips, entries], of pairs [strips, 2, entries]
    pub scales: &'a [f16], // [strips, 16]
}

impl<'a> Strips<'a> {
    /// Checks every length against the shape; the bodies rely on it.
    pub fn new(
        format: Format,
        rows: usize,
        cols: usize,
        data: (&'static str, &'a [u8]),
        palette: &'a [i8],
        scales: &'a [f16],
    ) -> Result<Strips<'a>, LayoutError> {
        let expected = lengths(format, rows, cols)?;
        for (what, expected, found) in [
            (data.0, expected.data, data.1.len()),
            ("palette", expected.palette, palette.len()),
            ("scales", expected.scales, scales.len()),
        ] {
            if expected != found {
                return Err(LayoutError::Length {
                    what,
                    bits: format.bits(),
                    rows,
                    cols,
                    expected,
                    found,
                });
            }
        }
        Ok(Strips {
            format,
            rows,
            cols,
            data: data.1,
            palette,
            scales,
        })
    }

    /// How many strips there are.
    pub fn count(&self) -> usize {
        self.rows.div_ceil(STRIP)
    }

    /// Lines of 64 bytes in a strip.
    pub fn lines(&self) -> usize {
        self.format
            .lines(self.cols)
            .expect("checked when it was made")
    }

    /// The bytes of one strip.
    pub fn strip(&self, strip: usize) -> &'a [u8] {
        let bytes = self.lines() * LINE;
        &self.data[strip * bytes..(strip + 1) * bytes]
    }

    /// The palette of one strip.
    pub fn table(&self, strip: usize) -> &'a [i8] {
        let table = self.format.table();
        &self.palette[strip * table..(strip + 1) * table]
    }
}

/// Bits of a value that lie together: from bit `from` of the value on, in `data[byte]` from bit `shift` on.
#[derive(Clone, Copy, Debug)]
struct Piece {
    byte: usize,
    shift: usize,
    bits: usize,
    from: usize,
}

/// Where the value of (row, col) lies in strip order, in one to three pieces; both inputs of a pair have the same.
#[inline]
fn pieces(format: Format, cols: usize, row: usize, col: usize) -> impl Iterator<Item = Piece> {
    let units = cols.div_ceil(format.inputs());
    let unit = (row / STRIP) * units + col / format.inputs();
    let unit = unit * format.unit() * LINE + (row % STRIP) * 4 + col % 4;
    let input = col % format.inputs();
    let piece = |line: usize, shift, bits, from| {
        let byte = unit + line * LINE;
        Some(Piece {
            byte,
            shift,
            bits,
            from,
        })
    };
    let four = input / (2 * HALF); // of a pair: which four bytes of indices
    match format {
        Format::Two | Format::Four | Format::Eight => {
            let bits = format.bits();
            [piece(0, input / 4 * bits, bits, 0), None, None]
        }
        // Two low bits in one of two lines, the high bit in the third.
        Format::Three => [
            piece(input / 16, input % 16 / 4 * 2, 2, 0),
            piece(2, input / 4, 1, 2),
            None,
        ],
        Format::TwoPairs => [piece(0, four * 4, 4, 0), None, None],
        // Three fours lie in the six low bits of a line each, the fourth in what is left of them.
        Format::ThreePairs if four < 3 => [piece(four, 0, 6, 0), None, None],
        Format::ThreePairs => [piece(0, 6, 2, 0), piece(1, 6, 2, 2), piece(2, 6, 2, 4)],
        Format::FourPairs => [piece(0, 0, 8, 0), None, None],
    }
    .into_iter()
    .flatten()
}

/// The value at (row, col) of a matrix in strip order; of pairs the index of the pair that the input is in.
#[inline]
pub(crate) fn get(format: Format, cols: usize, data: &[u8], row: usize, col: usize) -> u8 {
    pieces(format, cols, row, col).fold(0, |value, piece| {
        let mask = (0xffu8) >> (8 - piece.bits);
        value | (data[piece.byte] >> piece.shift & mask) << piece.from
    })
}

/// What a row has in one unit of a strip, by the index's number there; bytes count from the unit's first of that row.
fn unit_pieces(format: Format) -> Vec<(usize, Piece)> {
    let inputs = format.inputs();
    let indices = 0..format.indices(inputs);
    let of =
        |index| pieces(format, inputs, 0, format.input(index)).map(move |piece| (index, piece));
    indices.flat_map(of).collect()
}

/// Calls `of` with each run of values that a row has in a unit, and where that row's first byte of the unit lies.
fn each_unit(
    format: Format,
    cols: usize,
    row: usize,
    mut of: impl FnMut(std::ops::Range<usize>, usize),
) {
    let (width, indices) = (format.indices(cols), format.indices(format.inputs()));
    let units = cols.div_ceil(format.inputs());
    for unit in 0..units {
        let byte = ((row / STRIP) * units + unit) * format.unit() * LINE + (row % STRIP) * 4;
        of(unit * indices..width.min((unit + 1) * indices), byte);
    }
}

/// Row-major values (one a byte, a pair's once) to strip order; padding is 0.
pub(crate) fn pack(format: Format, rows: usize, cols: usize, values: &[u8], data: &mut [u8]) {
    let width = format.indices(cols);
    // By byte, so that each is written once.
    let mut by_byte: Vec<(usize, Vec<(usize, Piece)>)> = Vec::new();
    for (index, piece) in unit_pieces(format) {
        match by_byte.iter_mut().find(|(byte, _)| *byte == piece.byte) {
            Some((_, members)) => members.push((index, piece)),
            None => by_byte.push((piece.byte, vec![(index, piece)])),
        }
    }
    for row in 0..rows {
        let values = &values[row * width..(row + 1) * width];
        each_unit(format, cols, row, |run, first| {
            let values = &values[run];
            for (byte, members) in &by_byte {
                data[first + byte] = members.iter().fold(0, |all, (index, piece)| {
                    let value = values.get(*index).copied().unwrap_or(0);
                    all | (value >> piece.from & 0xff >> (8 - piece.bits)) << piece.shift
                });
            }
        });
    }
}

/// Strip order to row-major values, one a byte, a pair's once.
pub(crate) fn unpack(
    format: Format,
    rows: usize,
    cols: usize,
    (what, data): (&'static str, &[u8]),
) -> Result<Vec<u8>, LayoutError> {
    let expected = lengths(format, rows, cols)?.data;
    if data.len() != expected {
        let (bits, found) = (format.bits(), data.len());
        return Err(LayoutError::Length {
            what,
            bits,
            rows,
            cols,
            expected,
            found,
        });
    }
    let width = format.indices(cols);
    let mut values = vec![0; rows * width];
    let pieces = unit_pieces(format);
    for (row, values) in values.chunks_exact_mut(width).enumerate() {
        each_unit(format, cols, row, |run, first| {
            let values = &mut values[run];
            for (index, piece) in &pieces {
                if let Some(value) = values.get_mut(*index) {
                    let bits = data[first + piece.byte] >> piece.shift & 0xff >> (8 - piece.bits);
                    *value |= bits << piece.from;
                }
            }
        });
    }
    Ok(values)
}

/// Refuses a row-major buffer that has not a value for each weight or pair; call after [`lengths`].
pub(crate) fn check_values(
    what: &'static str,
    format: Format,
    rows: usize,
    cols: usize,
    found: usize,
) -> Result<(), LayoutError> {
    let expected = rows * format.indices(cols);
    let bits = format.bits();
    if found == expected {
        Ok(())
    } else {
        Err(LayoutError::Length {
            what,
            bits,
            rows,
            cols,
            expected,
            found,
        })
    }
}

/// Strips whose results are gathered before they are written.
const TOGETHER: usize = 8;

/// Results of up to 12 tokens x 8 strips, and of as many of another part. Tiles write here, and whole runs of 512 bytes go out: a
/// tile of its own would touch twelve pages for 128 bytes each, at a stride that is often a power
/// of two, and that costs a fifth of the GEMM's speed.
#[repr(align(64))]
pub(super) struct Results(pub [[f32; WIDTH]; PANEL]);

const WIDTH: usize = 2 * TOGETHER * STRIP;

/// One or two neighbouring strips times one panel, to `results[token][column..]`, 16 columns for
/// each strip (those of rows that do not exist have no meaning).
///
/// # Safety
/// `first + count <= strips.count()`; `count` is 1 or 2; the panel belongs to activations with
/// `strips.cols` columns; the CPU has the instructions of the body.
pub(super) type Tile = unsafe fn(
    &Strips<'_>,
    first: usize,
    count: usize,
    &Panel<'_>,
    results: &mut Results,
    column: usize,
);

fn tile(isa: Isa) -> Tile {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::tile,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => avx512::tile,
        _ => scalar::tile,
    }
}

/// Weight bytes of a task when the weights pass once (at most a panel of tokens). A task begins with
/// a wait for memory and ends by prefetching what another thread will read: 64 KiB cost a tenth of
/// the bandwidth of two threads against 256 KiB. But of large tasks the last one keeps the others waiting, so towards the end a
/// task is a quarter of what is left.
const STREAM_TASK: std::ops::RangeInclusive<usize> = 48 << 10..=256 << 10;
/// Activation bytes that a task keeps in L2 while its strips pass.
const PANEL_TASK: usize = 384 << 10;
/// Multiply-adds of a task at most: some tens of microseconds.
const GEMM_TASK: usize = 48 << 20;
/// The same on tiles, which take a third of the time.
const TILED_TASK: usize = 128 << 20;

/// What becomes of products while they are at hand.
#[derive(Clone, Copy)]
pub(crate) enum Then<'a> {
    /// They are the result.
    Store,
    /// These are added to them: `[N, Σ rows]`.
    Add(&'a [f32]),
    /// There are two parts of F rows, gate and up, and the result is silu(gate) · up, `[N, F]`. Of several panels, not on tiles.
    Gate,
}

impl Then<'_> {
    /// Of the products of some tokens, in their first `rows` places and, of a second part, from its place on, what is to be written; the
    /// first of a token goes to place `at(token)`.
    fn apply(
        self,
        isa: Isa,
        results: &mut [[f32; WIDTH]],
        rows: usize,
        at: impl Fn(usize) -> usize,
    ) {
        match self {
            Then::Store => {}
            Then::Add(to) => {
                for (token, results) in results.iter_mut().enumerate() {
                    add(isa, &mut results[..rows], &to[at(token)..]);
                }
            }
            Then::Gate => swiglu::in_rows(isa, results, rows, TOGETHER * STRIP),
        }
    }
}

/// `sums += to`, whose first numbers they are.
fn add(isa: Isa, sums: &mut [f32], to: &[f32]) {
    vectorize!(isa, || {
        for (sum, to) in sums.iter_mut().zip(to) {
            *sum += to;
        }
    });
}

/// `out[n, ·] = x[n, ·] · (the parts' rows, one part after another)ᵀ`, and what is to be done then.
///
/// Tasks are cut by shape: runs of strips within a part, times runs of panels. Adapters of a few rows take their ways in the same
/// job: down in the tasks before, which all have been taken when the first of these is; up behind each task, on its own columns.
pub(crate) fn product<'m, 's: 'm>(
    pool: &Pool,
    parts: usize,
    part: impl Fn(usize) -> &'m Strips<'s> + Sync,
    x: &QuantizedRows,
    out: &mut [f32],
    then: Then<'_>,
    ways: Option<&Ways<'_>>,
) {
    let part_of = |index| {
        let part: &Strips<'_> = part(index);
        part
    };
    let mut width = 0;
    for part in (0..parts).map(part_of) {
        assert_eq!(
            part.cols,
            x.cols(),
            "a part of {} rows has other columns than x",
            part.rows
        );
        width += part.rows;
    }
    // Parts that a task has the same rows of.
    let members = match then {
        Then::Gate => 2,
        _ => 1,
    };
    if let Then::Gate = then {
        assert!(
            parts == 2 && 2 * part_of(0).rows == width && ways.is_none(),
            "gate and up are two parts of as many rows, without adapters"
        );
        assert!(
            x.panels() > 1 && !x.tiled(),
            "of few rows, and on tiles, gates are formed later"
        );
        width /= 2;
    }
    assert_eq!(
        out.len(),
        x.rows() * width,
        "the product is [{}, {width}]",
        x.rows()
    );
    if let Then::Add(to) = then {
        assert!(
            to.len() == out.len() && ways.is_none(),
            "what is added is as large as the product, and adapters come before it"
        );
    }
    if out.is_empty() {
        return;
    }

    let panels = x.panels();
    let panel_bytes = x.width() * x.cols().next_multiple_of(BLOCK);
    let tiled = x.tiled();
    assert!(
        !tiled || pool.isa() == Isa::Amx,
        "activations for AMX's tiles meet a pool without"
    );
    let (panels_each, most) = if tiled {
        (1, TILED_TASK)
    } else {
        ((PANEL_TASK / panel_bytes).clamp(1, panels), GEMM_TASK)
    };
    let runs = panels.div_ceil(panels_each);
    let mut left: usize = (0..parts).map(part_of).map(|part| part.data.len()).sum(); // bytes
    let stream = (left / 4).clamp(*STREAM_TASK.start(), *STREAM_TASK.end());
    let (mut cuts, mut column) = (Vec::new(), 0);
    for index in (0..parts).step_by(members) {
        let own = (index..index + members).map(part_of);
        let bytes = own.map(|part| part.lines() * LINE).sum::<usize>(); // of a strip
        let part = part_of(index);
        let work = members * STRIP * part.cols * panels_each * x.width();
        let mut start = 0;
        while start < part.count() {
            let stream = match panels {
                1 => stream.min((left / 4).max(*STREAM_TASK.start())),
                _ => stream,
            };
            let wanted = (stream / bytes).min(most / work).max(2);
            let end = part.count().min(start + wanted.next_multiple_of(2));
            cuts.push(Cut {
                part: index,
                column,
                start,
                end,
            });
            left -= (end - start) * bytes;
            start = end;
        }
        column += part.rows;
    }
    // With few tokens the tile is bound by memory, and one stream of bytes arrives faster than two.
    let pair = if x.rows() <= 4 { 1 } else { 2 };
    let tile = tile(pool.isa());
    let out = Disjoint::new(out);
    if panels == 1 {
        let first = part_of(0);
        let task = cuts[0].end * first.lines() * LINE;
        pool.streams(first.data.as_ptr(), task);
    }

    let downs = ways.map_or(0, Ways::down_tasks);
    pool.run(downs + cuts.len() * runs, |task| {
        if let (Some(ways), true) = (ways, task < downs) {
            ways.down(task);
            return;
        }
        let task = task - downs;
        let run = task / cuts.len();
        let cut = &cuts[task % cuts.len()];
        let part = part_of(cut.part);
        #[cfg(target_arch = "x86_64")]
        if tiled {
            // SAFETY: the pool vouches for its instructions; (run, cut) names this task alone, and with it tokens and columns.
            unsafe { amx::task(part, cut, &x.panel(run), run * x.width(), &out, width) };
            if let Then::Add(to) = then {
                let rows = part.rows.min(cut.end * STRIP) - cut.start * STRIP;
                for token in 0..x.panel(run).tokens {
                    let at = (run * x.width() + token) * width + cut.column + cut.start * STRIP;
                    // SAFETY: as for the task, which has ended.
                    add(pool.isa(), unsafe { out.range(at, rows) }, &to[at..]);
                }
            }
            return;
        }
        let Cut {
            column,
            start: begin,
            end: last,
            ..
        } = *cut;
        let mut results = Results([[0.0; WIDTH]; PANEL]);
        for start in (begin..last).step_by(TOGETHER) {
            let end = last.min(start + TOGETHER);
            let rows = part.rows.min(end * STRIP) - start * STRIP;
            if let Some(ways) = ways {
                ways.ask(column, start * STRIP, end * STRIP);
            }
            for index in run * panels_each..panels.min((run + 1) * panels_each) {
                let panel = x.panel(index);
                for member in 0..members {
                    let part = part_of(cut.part + member);
                    for first in (start..end).step_by(pair) {
                        let column = (member * TOGETHER + first - start) * STRIP;
                        let count = pair.min(end - first);
                        // SAFETY: first + count <= end <= part.count(), which members have in common; count is 1 or 2; columns
                        // were compared above; the pool vouches for its instructions.
                        unsafe { tile(part, first, count, &panel, &mut results, column) };
                    }
                }
                let results = &mut results.0[..panel.tokens];
                let at = |token| (index * x.width() + token) * width + column + start * STRIP;
                then.apply(pool.isa(), results, rows, at);
                for (token, results) in results.iter().enumerate() {
                    // SAFETY: (run, cut) names this task alone; its panels, hence tokens, and
                    // its strips of this part, hence columns, are its own.
                    unsafe { out.range(at(token), rows) }.copy_from_slice(&results[..rows]);
                }
            }
        }
        if let Some(ways) = ways
            && ways.wait(pool)
        {
            ways.up_to(column, (begin * STRIP, last * STRIP), &out, width);
        }
    });
}

/// Strips of a part that one task multiplies.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    part: usize,
    /// Of the part in the product.
    pub column: usize,
    pub start: usize,
    pub end: usize,
}
