//! How a product is cut into tasks, and what a task does.
//!
//! Few rows (decoding): A is packed for all, and a task packs the columns of B that it owns, each once.
//! Many rows: a slice of B is packed for all, and a task packs the rows of A that it owns. Either way
//! the operand that a task packs for itself stays in its L2, and the shared one streams past it.

use std::ops::Range;

use super::micro::{self, SLACK, block_depth, words};
use super::{Mat, MatMut};
use crate::elementwise::rows_per_task;
use crate::pool::{Disjoint, Pool};
use crate::scratch::with_scratch;
use crate::simd::{Body, Simd, dispatch_in};

/// Up to here, rows are few.
const FEW_ROWS: usize = 128;
/// Rows of a task when rows are many: nine panels, 126 KiB a block.
const TASK_ROWS: usize = 126;
/// Words of B that are packed at a time when rows are many: 4 MiB, or 512 columns where they are more.
const SLICE: usize = 1 << 20;

/// C (+)= A B into contiguous rows, of f32 or of f32 rounded to bf16.
pub(super) fn product<const BF16: bool>(pool: &Pool, a: Mat, b: Mat, c: MatMut, accumulate: bool) {
    let (rows, cols, depth, stride) = (c.rows, c.cols, a.cols, c.row_stride);
    if depth == 0 {
        if !accumulate {
            c.data
                .chunks_mut(stride.max(1))
                .take(rows)
                .for_each(|row| row[..cols].fill(0.0));
        }
        return;
    }
    let size = dispatch_in::<BF16, _>(pool.isa(), AskSize::<BF16> { depth });
    let c = Disjoint::new(c.data);
    let whole = Product {
        a,
        b,
        c: &c,
        stride,
        accumulate,
    };
    if rows <= FEW_ROWS {
        few_rows::<BF16>(pool, size, whole);
    } else {
        many_rows::<BF16>(pool, size, whole);
    }
}

fn few_rows<const BF16: bool>(pool: &Pool, size: PanelSize, whole: Product) {
    let (rows, cols) = (whole.a.rows, whole.b.cols);
    let panels = Panels::new(rows, size.rows, size.depth);
    with_scratch(panels.count * panels.stride, |packed| {
        let per_task = rows_per_task(panels.stride);
        pool.for_each_chunk(packed, per_task * panels.stride, |task, packed| {
            dispatch_in::<BF16, _>(
                pool.isa(),
                PackA::<BF16> {
                    a: whole.a,
                    panels,
                    first: task * per_task,
                    packed,
                },
            );
        });
        let packed = &*packed;
        // Enough columns to amortise reading A; few enough that threads share evenly.
        let task_cols = if rows <= 16 { 64 } else { 128 };
        pool.run(cols.div_ceil(task_cols), |task| {
            let cols = task * task_cols..((task + 1) * task_cols).min(cols);
            let tile = Tile {
                whole,
                panels,
                following: rows,
                rows: 0..rows,
                cols,
                shared: Shared::A(packed),
            };
            with_scratch(task_cols * size.block, |local| {
                dispatch_in::<BF16, _>(pool.isa(), Multiply::<BF16> { tile, local })
            });
        });
    });
}

fn many_rows<const BF16: bool>(pool: &Pool, size: PanelSize, whole: Product) {
    let (rows, cols, depth) = (whole.a.rows, whole.b.cols, whole.a.cols);
    let slice_cols = (SLICE / size.depth).next_multiple_of(512).max(512);
    // Each piece packs its rows of A again, so pieces are narrow only where tasks would be too few. How a product is cut
    // changes no result, so here threads may count.
    let (down, threads) = (rows.div_ceil(TASK_ROWS), pool.threads());
    let task_cols = if down >= 8 * threads {
        slice_cols
    } else if down * cols.div_ceil(512) < 10 {
        256
    } else {
        512
    };
    for start in (0..cols).step_by(slice_cols) {
        let slice = start..cols.min(start + slice_cols);
        let strip = size.cols * size.depth;
        with_scratch(slice.len().div_ceil(size.cols) * strip, |packed| {
            // Where a row of B is contiguous a task takes several strips of it, so as to read longer runs.
            let strips = if whole.b.row_stride == 1 { 1 } else { 4 };
            pool.for_each_chunk(packed, strips * strip, |index, packed| {
                let width = strips * size.cols;
                let col = slice.start + index * width;
                let cols = col..slice.end.min(col + width);
                dispatch_in::<BF16, _>(
                    pool.isa(),
                    PackB::<BF16> {
                        b: whole.b,
                        cols,
                        depth: 0..depth,
                        packed,
                    },
                );
            });
            let packed = &*packed;
            pool.run(down * slice.len().div_ceil(task_cols), |task| {
                let (i, j) = (task % down, task / down);
                // Whole panels, and what is left comes last: a small task to even threads out.
                let rows = i * TASK_ROWS..rows.min((i + 1) * TASK_ROWS);
                let panels = Panels::new(rows.len(), size.rows, size.block);
                let col = slice.start + j * task_cols;
                let cols = col..slice.end.min(col + task_cols);
                let shared = Shared::B(&packed[j * task_cols * size.depth..]);
                let tile = Tile {
                    whole,
                    panels,
                    following: rows.start + threads * TASK_ROWS,
                    rows,
                    cols,
                    shared,
                };
                with_scratch(panels.count * panels.stride, |local| {
                    dispatch_in::<BF16, _>(pool.isa(), Multiply::<BF16> { tile, local })
                });
            });
        });
    }
}

/// The operands of the whole product.
#[derive(Clone, Copy)]
struct Product<'a> {
    a: Mat<'a>,
    b: Mat<'a>,
    c: &'a Disjoint<'a, f32>,
    stride: usize,
    accumulate: bool,
}

/// A tile of C, the work of one task.
struct Tile<'a> {
    whole: Product<'a>,
    /// How the tile's rows are cut.
    panels: Panels,
    rows: Range<usize>,
    /// Where the next tile begins that this thread is likely to take.
    following: usize,
    cols: Range<usize>,
    shared: Shared<'a>,
}

/// The operand that is packed already, over the whole depth: all rows of A, or the columns of B from the tile's first on.
#[derive(Clone, Copy)]
enum Shared<'a> {
    A(&'a [f32]),
    B(&'a [f32]),
}

/// How rows are cut into panels: as evenly as can be.
#[derive(Clone, Copy)]
struct Panels {
    rows: usize,
    count: usize,
    /// Distance between packed panels, with room for the last store of [`micro::pack`].
    stride: usize,
}

impl Panels {
    /// Panels of at most `most` rows and `depth` words.
    fn new(rows: usize, most: usize, depth: usize) -> Panels {
        let count = rows.div_ceil(most);
        Panels {
            rows,
            count,
            stride: rows.div_ceil(count) * depth + SLACK,
        }
    }

    /// The rows of panel `index`.
    #[inline(always)]
    fn range(&self, index: usize) -> Range<usize> {
        index * self.rows / self.count..(index + 1) * self.rows / self.count
    }
}

/// The size of panels on an instruction set.
#[derive(Clone, Copy)]
struct PanelSize {
    rows: usize,
    cols: usize,
    /// Words of the whole depth.
    depth: usize,
    /// Words of a block of depth.
    block: usize,
}

struct AskSize<const BF16: bool> {
    depth: usize,
}

impl<const BF16: bool> Body for AskSize<BF16> {
    type Out = PanelSize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> PanelSize {
        PanelSize {
            rows: micro::panel_rows::<S>(),
            cols: micro::panel_cols::<S>(),
            depth: words::<S, BF16>(self.depth),
            block: words::<S, BF16>(block_depth::<BF16>()),
        }
    }
}

/// Depth to pack before turning to the next panel: where each step in depth is another page of memory,
/// the neighbouring panels read the same pages while they are known to the translation cache.
#[inline(always)]
fn pace(depth_stride: usize, depth: usize) -> usize {
    if depth_stride == 1 { depth } else { 32 }
}

/// Packs the panels of A from `first` on, over the whole depth, until `packed` is full.
struct PackA<'a, const BF16: bool> {
    a: Mat<'a>,
    panels: Panels,
    first: usize,
    packed: &'a mut [f32],
}

impl<const BF16: bool> Body for PackA<'_, BF16> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let PackA {
            a,
            panels,
            first,
            packed,
        } = self;
        let count = packed.len() / panels.stride;
        pack_rows::<S, BF16>(simd, a, panels, first..first + count, 0..a.cols, packed);
    }
}

/// Packs some depths of some panels of A, panel by panel at a distance of `panels.stride`.
#[inline(always)]
fn pack_rows<S: Simd, const BF16: bool>(
    simd: S,
    a: Mat,
    panels: Panels,
    which: Range<usize>,
    depth: Range<usize>,
    to: &mut [f32],
) {
    let pace = pace(a.col_stride, depth.len());
    for k in depth.clone().step_by(pace) {
        let count = pace.min(depth.end - k);
        for (index, to) in which.clone().zip(to.chunks_exact_mut(panels.stride)) {
            let rows = panels.range(index);
            let from = a.data[rows.start * a.row_stride + k * a.col_stride..].as_ptr();
            let to = to[words::<S, BF16>(k - depth.start) * rows.len()..].as_mut_ptr();
            // SAFETY: rows and depths lie in `a`, whose extent its construction has checked; a panel
            // has room for its rows times the depth, and the slack.
            unsafe {
                micro::pack::<S, BF16>(
                    simd,
                    from,
                    a.row_stride,
                    a.col_stride,
                    rows.len(),
                    count,
                    to,
                    rows.len(),
                )
            };
        }
    }
}

/// Packs one strip of B, over the whole depth.
struct PackB<'a, const BF16: bool> {
    b: Mat<'a>,
    cols: Range<usize>,
    depth: Range<usize>,
    packed: &'a mut [f32],
}

impl<const BF16: bool> Body for PackB<'_, BF16> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        pack_cols::<S, BF16>(simd, self.b, self.cols, self.depth, self.packed);
    }
}

/// Packs some depths of some columns of B into strips.
#[inline(always)]
fn pack_cols<S: Simd, const BF16: bool>(
    simd: S,
    b: Mat,
    cols: Range<usize>,
    depth: Range<usize>,
    to: &mut [f32],
) {
    let width = micro::panel_cols::<S>();
    let strip = width * words::<S, BF16>(depth.len());
    assert!(to.len() >= cols.len().div_ceil(width) * strip);
    let pace = pace(b.row_stride, depth.len());
    for k in depth.clone().step_by(pace) {
        let count = pace.min(depth.end - k);
        for (index, col) in cols.clone().step_by(width).enumerate() {
            let from = b.data[k * b.row_stride + col * b.col_stride..].as_ptr();
            let to = to[index * strip + words::<S, BF16>(k - depth.start) * width..].as_mut_ptr();
            let cols = width.min(cols.end - col);
            // SAFETY: columns and depths lie in `b`, whose extent its construction has checked; `to`
            // holds every strip, and stores do not leave one, as its width is whole vectors.
            unsafe {
                micro::pack::<S, BF16>(
                    simd,
                    from,
                    b.col_stride,
                    b.row_stride,
                    cols,
                    count,
                    to,
                    width,
                )
            };
        }
    }
}

/// A block of A that is to be packed next, asked for while the one before multiplies: packing would else wait for memory.
struct Ahead<'a> {
    a: Mat<'a>,
    /// Its first row and column.
    from: (usize, usize),
    rows: usize,
    depth: usize,
    /// Lines that a call of [`micro::product`] asks for.
    words: usize,
}

impl Ahead<'_> {
    /// Where the lines begin that call `turn` asks for, and their distance; of no use where there are no more.
    #[inline(always)]
    fn lines(&self, turn: usize) -> (*const f32, usize) {
        let Mat {
            data,
            row_stride,
            col_stride,
            ..
        } = self.a;
        let (row, col) = self.from;
        let at = row.wrapping_mul(row_stride) + col * col_stride;
        let (line, at, step) = if row_stride == 1 {
            // Depths are apart: a line of each, in as many calls as a word has numbers.
            let apart = self.depth.div_ceil(self.words);
            let (line, first) = (turn / apart, turn % apart);
            (line, at + first * col_stride, apart * col_stride)
        } else {
            (turn, at, row_stride)
        };
        let length = if row_stride == 1 {
            self.rows
        } else {
            self.depth
        };
        if line * 16 < length {
            (data.as_ptr().wrapping_add(at + line * 16), step)
        } else {
            (data.as_ptr(), 0)
        }
    }
}

/// Computes a tile, with memory for what it packs.
struct Multiply<'a, const BF16: bool> {
    tile: Tile<'a>,
    local: &'a mut [f32],
}

impl<const BF16: bool> Body for Multiply<'_, BF16> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Multiply {
            tile:
                Tile {
                    whole,
                    panels,
                    rows,
                    following,
                    cols,
                    shared,
                },
            local,
        } = self;
        let Product {
            a,
            b,
            c,
            stride,
            accumulate,
        } = whole;
        let width = micro::panel_cols::<S>();
        let strips = cols.len().div_ceil(width);
        if let Shared::A(packed) = shared
            && !BF16
            && rows.len() <= micro::thin_rows::<S>()
            && b.row_stride == 1
        {
            for col in cols.clone().step_by(S::LANES) {
                let count = S::LANES.min(cols.end - col);
                let from = b.data[col * b.col_stride..].as_ptr();
                let c = c.pointer(rows.start * stride + col, 1);
                // SAFETY: the columns lie in `b` and in the tile of C, which only this task touches;
                // one panel holds these few rows of A.
                unsafe {
                    micro::thin(
                        simd,
                        rows.len(),
                        count,
                        a.cols,
                        packed.as_ptr(),
                        from,
                        b.col_stride,
                        c,
                        stride,
                        accumulate,
                    );
                }
            }
            return;
        }
        for k in (0..a.cols).step_by(block_depth::<BF16>()) {
            let depth = k..a.cols.min(k + block_depth::<BF16>());
            // In words: of the block, and before it.
            let (block, before) = (words::<S, BF16>(depth.len()), words::<S, BF16>(k));
            // Where the panels of this block of depth lie, and how far apart.
            let (a_panels, b_strips, b_strip) = match shared {
                Shared::A(packed) => {
                    pack_cols::<S, BF16>(simd, b, cols.clone(), depth.clone(), local);
                    (packed, &*local, width * block)
                }
                Shared::B(packed) => {
                    pack_rows::<S, BF16>(
                        simd,
                        a.rows(rows.clone()),
                        panels,
                        0..panels.count,
                        depth.clone(),
                        local,
                    );
                    (
                        &*local,
                        &packed[before * width..],
                        width * words::<S, BF16>(a.cols),
                    )
                }
            };
            // The depth at which the block begins in a panel of A.
            let skip = if matches!(shared, Shared::A(_)) {
                before
            } else {
                0
            };
            let ahead = Ahead {
                a: whole.a,
                from: if depth.end < a.cols {
                    (rows.start, depth.end)
                } else {
                    (following, 0)
                },
                rows: rows.len(),
                depth: depth.len(),
                words: block,
            };
            let (outer, inner) = match shared {
                Shared::A(_) => (panels.count, strips),
                Shared::B(_) => (strips, panels.count),
            };
            for outer in 0..outer {
                for inner in 0..inner {
                    let (index, strip) = match shared {
                        Shared::A(_) => (outer, inner),
                        Shared::B(_) => (inner, outer),
                    };
                    let panel = panels.range(index);
                    let a = &a_panels[index * panels.stride + skip * panel.len()..]
                        [..block * panel.len()];
                    let b = &b_strips[strip * b_strip..][..block * width];
                    // What the next turn of the outer loop streams, a line of it each time, and then what is packed next.
                    let lines = width.div_ceil(16);
                    let next = match shared {
                        Shared::A(_) => (a.as_ptr().wrapping_add(panels.stride), panel.len()),
                        Shared::B(_) if inner < lines => {
                            let at = b_strip + inner * block * 16;
                            (b.as_ptr().wrapping_add(at), 16)
                        }
                        Shared::B(_) => {
                            let turn = outer * (panels.count - lines) + inner - lines;
                            ahead.lines(turn)
                        }
                    };
                    let col = cols.start + strip * width;
                    let c = c.pointer((rows.start + panel.start) * stride + col, 1);
                    let count = width.min(cols.end - col);
                    let accumulate = accumulate || k > 0;
                    // SAFETY: the panels are as long as the slices say; only this task touches this tile
                    // of C, which lies in bounds by `MatMut`'s construction.
                    unsafe {
                        micro::product::<S, BF16>(
                            simd,
                            panel.len(),
                            count,
                            block,
                            a.as_ptr(),
                            b.as_ptr(),
                            c,
                            stride,
                            accumulate,
                            next,
                        );
                    }
                }
            }
        }
    }
}
