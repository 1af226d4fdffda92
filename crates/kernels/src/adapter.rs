//! Low-rank adapters of one product, `y += scale · (x Aᵀ) Bᵀ` (arXiv 2106.09685), with matrices of 16-bit floats.
//!
//! A and B rest as f16 in *panels* of sixteen rows, element (r, k) of a matrix at `[r / 16][k][r % 16]`, so that a panel is read as a
//! stream and its rows are the lanes of a vector. Each matrix is first multiplied by the power of two that takes its largest number to
//! the upper end of f16, and what comes down is divided by it, so the eleven bits of f16 hold the eight of bf16 exactly down to 2⁻²⁹ of the
//! largest number, and round f32.
//!
//! Products are of f32, in the order of [`matmul`](mod@crate::matmul): blocks of 256 along the depth, each a chain, added up in order. So a row has
//! the bits that [`crate::matmul()`] gives of the same numbers, alone or in any batch and on any number of threads. The matrices of
//! several adapters, each for some of the rows, are multiplied in two jobs: all ways down, then all ways up. Beside a palettized product
//! of few rows they take part in its own job ([`crate::palette::matmul_adapted`]): while tokens are generated a job is some microseconds, and one more would be felt.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::matmul::{BLOCK, PACK_SLACK, pack};
use crate::pool::{Disjoint, Pool, prefetch};
use crate::profile::{Kernel, span};
use crate::scratch::with_scratch;
use crate::simd::{Body, Simd, dispatch, vectorize};
use crate::{Isa, Mat, MatMut};
use meeting::Meeting;

mod meeting;

/// Rows of a panel.
const PANEL: usize = 16;

/// Tokens of a task, a multiple of those that are multiplied at once.
const TASK_TOKENS: usize = 48;

/// Panels of a task on the way up.
const TASK_PANELS: usize = 64;

/// Up to so many tokens the blocks of depth are tasks of their own: the matrices come from memory, which takes all threads to read.
const FEW: usize = 8;

/// Blocks of depth of such a task.
const TASK_BLOCKS: usize = 4;

/// How far ahead of itself the way down of a few tokens asks for a panel, in numbers: across the end of a page, where hardware stops.
const AHEAD: usize = 4096;

/// Numbers of one of the types that files have, as their bytes, little-endian and aligned to nothing.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// IEEE single precision.
    F32(&'a [u8]),
    /// IEEE half precision.
    F16(&'a [u8]),
    /// The upper half of an f32.
    Bf16(&'a [u8]),
}

impl Numbers<'_> {
    /// How many whole ones.
    fn len(&self) -> usize {
        match self {
            Numbers::F32(bytes) => bytes.len() / 4,
            Numbers::F16(bytes) | Numbers::Bf16(bytes) => bytes.len() / 2,
        }
    }

    /// Writes those from `start` on, at most [`CHUNK`], as f32.
    #[inline(always)]
    fn read(&self, start: usize, to: &mut [f32]) {
        match self {
            Numbers::F32(bytes) => {
                let (from, _) = bytes[4 * start..].as_chunks();
                for (to, &from) in to.iter_mut().zip(from) {
                    *to = f32::from_le_bytes(from);
                }
            }
            Numbers::F16(bytes) => {
                let (from, _) = bytes[2 * start..].as_chunks();
                let mut halves = [f16::ZERO; CHUNK];
                for (half, &from) in halves[..to.len()].iter_mut().zip(from) {
                    *half = f16::from_le_bytes(from);
                }
                halves[..to.len()].convert_to_f32_slice(to);
            }
            Numbers::Bf16(bytes) => {
                let (from, _) = bytes[2 * start..].as_chunks();
                for (to, &from) in to.iter_mut().zip(from) {
                    *to = f32::from_bits(u32::from(u16::from_le_bytes(from)) << 16);
                }
            }
        }
    }

    /// The greatest magnitude of the finite ones.
    fn largest(&self) -> f32 {
        vectorize!(Isa::best(), || {
            let mut lanes = [0u32; PANEL];
            let mut chunk = [0f32; CHUNK];
            for start in (0..self.len()).step_by(CHUNK) {
                let chunk = &mut chunk[..CHUNK.min(self.len() - start)];
                self.read(start, chunk);
                for numbers in chunk.chunks(PANEL) {
                    for (lane, x) in lanes.iter_mut().zip(numbers) {
                        // Magnitudes are in the order of their bits.
                        let bits = x.to_bits() & 0x7fff_ffff;
                        *lane = (*lane).max(if x.is_finite() { bits } else { 0 });
                    }
                }
            }
            f32::from_bits(lanes.into_iter().fold(0, u32::max))
        })
    }

    /// The numbers as an adapter holds them.
    pub fn rounded(&self) -> Vec<f32> {
        let power = self.power();
        let mut numbers = vec![0.0; self.len()];
        for (chunk, numbers) in numbers.chunks_mut(CHUNK).enumerate() {
            self.read(chunk * CHUNK, numbers);
            for number in numbers {
                *number = f16::from_f32(*number * power).to_f32() / power;
            }
        }
        numbers
    }

    /// The power of two that takes the largest number to 2¹⁴ … 2¹⁵.
    fn power(&self) -> f32 {
        let largest = self.largest();
        if largest == 0.0 {
            return 1.0;
        }
        2f32.powi((14 - largest.log2().floor() as i32).clamp(-126, 126))
    }
}

/// Numbers of a row that are converted at once.
const CHUNK: usize = 64;

/// A matrix `[rows, cols]` in panels.
struct Panels {
    rows: usize,
    cols: usize,
    values: Vec<f16>, // [rows / 16, cols, 16]
}

impl Panels {
    /// Of matrices below one another, each `[its rows, cols]` and multiplied by its factor.
    fn new(isa: Isa, cols: usize, matrices: &[(Numbers<'_>, f32)]) -> Panels {
        let rows: usize = matrices.iter().map(|(m, _)| m.len() / cols).sum();
        let mut values = vec![f16::ZERO; rows.next_multiple_of(PANEL) * cols];
        // Where each row begins.
        let sources = matrices.iter().flat_map(|&(matrix, factor)| {
            (0..matrix.len() / cols).map(move |row| (matrix, row * cols, factor))
        });
        let sources: Vec<_> = sources.collect();
        let panels = values.chunks_exact_mut(cols * PANEL);
        for (sources, panel) in sources.chunks(PANEL).zip(panels) {
            dispatch(isa, Fill { sources, panel });
        }
        Panels { rows, cols, values }
    }

    /// Panels.
    fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Blocks of depth.
    fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }
}

/// Fills a panel with its rows: the numbers that each begins in, and where, and its factor.
struct Fill<'a> {
    sources: &'a [(Numbers<'a>, usize, f32)],
    panel: &'a mut [f16],
}

impl Body for Fill<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Rows that there are not stay zero.
        let mut rows = [[0.0; CHUNK]; PANEL];
        for (chunk, to) in self.panel.chunks_mut(CHUNK * PANEL).enumerate() {
            let (start, count) = (chunk * CHUNK, to.len() / PANEL);
            for (row, &(numbers, begin, factor)) in rows.iter_mut().zip(self.sources) {
                let row = &mut row[..count];
                numbers.read(begin + start, row);
                for x in row {
                    *x *= factor;
                }
            }
            for col in (0..count).step_by(S::LANES) {
                let cols = S::LANES.min(count - col);
                for lane in (0..PANEL).step_by(S::LANES) {
                    // SAFETY: LANES rows of `cols` numbers, which lie CHUNK apart in one array, and as many columns of a panel, which has
                    // 16 lanes.
                    unsafe {
                        let at = rows.as_flattened()[lane * CHUNK + col..].as_ptr();
                        let block = simd.load_transposed(at, CHUNK, S::LANES, cols);
                        for (j, &v) in block.as_ref()[..cols].iter().enumerate() {
                            simd.store_halves(to.as_mut_ptr().add((col + j) * PANEL + lane), v);
                        }
                    }
                }
            }
        }
    }
}

/// The adapter of one named projection, which is a range of the product's columns.
#[derive(Clone, Debug)]
pub struct LowRankPart<'a> {
    /// The columns of y that it adds to.
    pub columns: Range<usize>,
    /// The rank, R.
    pub rank: usize,
    /// `[R, D]`, the way down.
    pub a: Numbers<'a>,
    /// `[columns, R]`, the way up.
    pub b: Numbers<'a>,
    /// What the product is multiplied by, `alpha / rank`.
    pub scale: f32,
}

/// Low-rank matrices for projections that are packed into one product.
pub struct LowRank {
    down: Panels,      // [sum of ranks, D]
    factors: Vec<f32>, // [sum of ranks, padded], of what comes down
    ups: Vec<Up>,
}

/// One projection's way up.
struct Up {
    columns: Range<usize>, // of the product
    first: usize,          // of its ranks
    matrix: Panels,        // [columns, R]
}

impl Up {
    /// Tasks for a tile of tokens.
    fn tasks(&self) -> usize {
        self.matrix.panels().div_ceil(TASK_PANELS)
    }
}

impl LowRank {
    /// Matrices of each part, whose inputs are `width`.
    ///
    /// # Panics
    /// When `width` or a rank is 0, a matrix has another size, or two parts have a column in common.
    pub fn new(width: usize, parts: &[LowRankPart<'_>]) -> LowRank {
        let isa = Isa::best(); // all round alike
        let (mut downs, mut factors, mut ups) = (Vec::new(), Vec::new(), Vec::new());
        for (index, part) in parts.iter().enumerate() {
            let shares = |other: &&LowRankPart<'_>| {
                other.columns.start < part.columns.end && part.columns.start < other.columns.end
            };
            assert!(
                !parts[..index].iter().any(|other| shares(&other)),
                "columns {:?} twice",
                part.columns
            );
            let rank = part.rank;
            assert!(
                width > 0
                    && rank > 0
                    && part.a.len() == rank * width
                    && part.b.len() == part.columns.len() * rank,
                "an adapter of rank {rank} for [{width}] to {:?} from {} and {} numbers",
                part.columns,
                part.a.len(),
                part.b.len()
            );
            let (a, b) = (part.a.power(), part.b.power());
            downs.push((part.a, a));
            ups.push(Up {
                columns: part.columns.clone(),
                first: factors.len(),
                matrix: Panels::new(isa, rank, &[(part.b, b)]),
            });
            // Powers of two, so that these products round as if there were none.
            let factor = f64::from(part.scale) / f64::from(a) / f64::from(b);
            factors.resize(factors.len() + rank, factor as f32);
        }
        let down = Panels::new(isa, width, &downs);
        factors.resize(down.panels() * PANEL, 0.0);
        LowRank { down, factors, ups }
    }

    /// Numbers in the matrices, without what pads them.
    pub fn numbers(&self) -> usize {
        let ups = self.ups.iter().map(|up| up.matrix.rows * up.matrix.cols);
        self.down.rows * self.down.cols + ups.sum::<usize>()
    }

    /// Bytes that the matrices take.
    pub fn bytes(&self) -> usize {
        let ups: usize = self.ups.iter().map(|up| up.matrix.values.len()).sum();
        size_of::<f16>() * (self.down.values.len() + ups)
    }
}

impl std::fmt::Debug for LowRank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} low-rank projections", self.ups.len())
    }
}

/// Rows of a product that go through the same matrices.
#[derive(Clone, Debug)]
pub struct AdaptedRows<'a> {
    /// The matrices.
    pub low_rank: &'a LowRank,
    /// The rows.
    pub rows: Range<usize>,
}

/// What some rows need on their way: sums of each block apart, or of all.
struct Plan {
    start: usize,       // of its sums
    ranks: usize,       // padded
    apart: usize,       // blocks whose sums are kept apart, or 1
    down_tasks: usize,  // a tile of tokens, a panel and some blocks each
    block_tasks: usize, // of them for the same tile and panel
    up_tasks: usize,    // a tile of tokens and some panels of one way up each
}

/// Rows on their way through adapters: all ways down, which any thread may take, then a join, then the ways up.
pub(crate) struct Ways<'a> {
    isa: Isa,
    runs: &'a [AdaptedRows<'a>],
    x: Mat<'a>,
    plans: Vec<Plan>,
    sums: Disjoint<'a, f32>,
    /// Of the ways down, whose sums are joined before any way up.
    down: Meeting,
}

/// The tile, and what is left of the number of a task, where each tile has `each`.
fn tile(task: usize, each: usize, tokens: usize) -> (Range<usize>, usize) {
    let start = task / each * TASK_TOKENS;
    (start..tokens.min(start + TASK_TOKENS), task % each)
}

/// Which of several counts a number falls into, and how far.
fn located(mut task: usize, counts: impl Iterator<Item = usize>) -> (usize, usize) {
    for (index, count) in counts.enumerate() {
        if task < count {
            return (index, task);
        }
        task -= count;
    }
    unreachable!("a task more than there are")
}

/// Asks for numbers that will be read soon.
fn ask(numbers: &[f16]) {
    let at = numbers.as_ptr().addr();
    (at..at + size_of_val(numbers))
        .step_by(64)
        .for_each(prefetch);
}

/// Adds to rows of `y` `[N, F]` what their matrices make of those of `x` `[N, D]`; rows contiguous. A row is in one run at most.
///
/// # Panics
/// When a width does not fit, there are no such rows, or rows are not contiguous.
pub fn adapt(pool: &Pool, runs: &[AdaptedRows<'_>], x: Mat<'_>, y: MatMut<'_>) {
    let _span = span(Kernel::Adapter);
    assert!(x.rows == y.rows && y.col_stride == 1, "rows of x and y");
    y.check_apart();
    y.as_ref().check_within();
    check_level(runs);
    let (features, stride) = (y.cols, y.row_stride);
    let y = Disjoint::new(y.data);
    Ways::begin(pool.isa(), runs, x, features, |ways| {
        pool.run(ways.down_tasks(), |task| ways.down(task));
        let tasks = ways.plans.iter().map(|plan| plan.up_tasks).sum();
        pool.run(tasks, |task| ways.up(task, &y, stride));
    });
}

/// # Panics
/// When a row is in two runs, or they are out of order.
pub(crate) fn check_level(runs: &[AdaptedRows<'_>]) {
    let apart = runs
        .windows(2)
        .all(|two| two[0].rows.end <= two[1].rows.start);
    assert!(apart, "runs of rows that overlap: {runs:?}");
}

impl<'a> Ways<'a> {
    /// Calls `body` with rows that stand at the beginning of their ways.
    ///
    /// # Panics
    /// As [`adapt`].
    pub(crate) fn begin<R>(
        isa: Isa,
        runs: &[AdaptedRows<'_>],
        x: Mat<'_>,
        features: usize,
        body: impl FnOnce(&Ways<'_>) -> R,
    ) -> R {
        x.check_within();
        let mut start = 0;
        let mut plans = Vec::with_capacity(runs.len());
        for AdaptedRows { low_rank, rows } in runs {
            let last = low_rank.ups.iter().map(|up| up.columns.end).max();
            assert!(
                x.cols == low_rank.down.cols
                    && x.col_stride == 1
                    && last.unwrap_or(0) <= features
                    && !rows.is_empty()
                    && rows.end <= x.rows,
                "{low_rank:?} of {} inputs and columns up to {last:?}, on rows {rows:?} of {} x {} to {features}",
                low_rank.down.cols,
                x.rows,
                x.cols,
            );
            let (tokens, ranks) = (rows.len(), low_rank.factors.len());
            let blocks = low_rank.down.blocks();
            let (apart, block_tasks) = match tokens {
                ..=FEW => (blocks, blocks.div_ceil(TASK_BLOCKS)),
                _ => (1, 1),
            };
            let tiles = tokens.div_ceil(TASK_TOKENS);
            plans.push(Plan {
                start,
                ranks,
                apart,
                down_tasks: tiles * low_rank.down.panels() * block_tasks,
                block_tasks,
                up_tasks: tiles * low_rank.ups.iter().map(Up::tasks).sum::<usize>(),
            });
            start += apart * tokens * ranks;
        }
        let tasks = plans.iter().map(|plan| plan.down_tasks).sum();
        with_scratch(start, |sums| {
            body(&Ways {
                isa,
                runs,
                x,
                plans,
                sums: Disjoint::new(sums),
                down: Meeting::of(tasks),
            })
        })
    }

    /// How many tasks the ways down are.
    pub(crate) fn down_tasks(&self) -> usize {
        self.down.left()
    }

    /// One of the ways down: x Aᵀ of some rows. The last to end joins what came down.
    pub(crate) fn down(&self, task: usize) {
        let (run, task) = located(task, self.plans.iter().map(|plan| plan.down_tasks));
        let (plan, AdaptedRows { low_rank, rows }) = (&self.plans[run], &self.runs[run]);
        let matrix = &low_rank.down;
        let (tokens, task) = tile(task, matrix.panels() * plan.block_tasks, rows.len());
        let (panel, part) = (task / plan.block_tasks, task % plan.block_tasks);
        let blocks = match plan.block_tasks {
            1 => 0..matrix.blocks(),
            _ => part * TASK_BLOCKS..matrix.blocks().min((part + 1) * TASK_BLOCKS),
        };
        let block_stride = match plan.apart {
            1 => 0,
            _ => rows.len() * plan.ranks,
        };
        let first = blocks.start * block_stride + tokens.start * plan.ranks + panel * PANEL;
        let reach = (blocks.len() - 1) * block_stride + (tokens.len() - 1) * plan.ranks + PANEL;
        if rows.len() <= FEW {
            let from = (panel * matrix.cols + blocks.start * BLOCK) * PANEL;
            let beginning = &matrix.values[from..];
            ask(&beginning[..AHEAD.min(beginning.len())]);
        }
        let x = self.x.rows(rows.clone()).rows(tokens.clone());
        let product = Product {
            x,
            matrix,
            panels: panel..panel + 1,
            blocks,
            to: self.sums.pointer(plan.start + first, reach),
            stride: plan.ranks,
            block_stride,
            width: PANEL,
            accumulate: false,
        };
        dispatch(self.isa, product);
        self.down.arrive(|| self.join());
    }

    /// Adds up what blocks have come to, and multiplies it by its factors.
    fn join(&self) {
        for (plan, AdaptedRows { low_rank, rows }) in self.plans.iter().zip(self.runs) {
            let len = rows.len() * plan.ranks;
            // SAFETY: all ways down have ended, and none up has begun.
            let sums = unsafe { self.sums.range(plan.start, plan.apart * len) };
            let (total, others) = sums.split_at_mut(len);
            for block in others.chunks_exact(len) {
                total.iter_mut().zip(block).for_each(|(t, b)| *t += b);
            }
            for row in total.chunks_exact_mut(plan.ranks) {
                let factors = row.iter_mut().zip(&low_rank.factors);
                factors.for_each(|(v, f)| *v *= f);
            }
        }
    }

    /// Waits until everything has come down, or a task of the job on `pool` has panicked; whether it has come. Whoever waits must have seen
    /// every way down taken.
    pub(crate) fn wait(&self, pool: &Pool) -> bool {
        self.down.wait(|| pool.has_failed())
    }

    /// One of the ways up: adds some rows' Bᵀ of what came down to y, some columns of one projection.
    fn up(&self, task: usize, y: &Disjoint<'_, f32>, stride: usize) {
        let (run, task) = located(task, self.plans.iter().map(|plan| plan.up_tasks));
        let AdaptedRows { low_rank, rows } = &self.runs[run];
        let tasks = || low_rank.ups.iter().map(Up::tasks);
        let (tokens, task) = tile(task, tasks().sum(), rows.len());
        let (index, part) = located(task, tasks());
        let up = &low_rank.ups[index];
        let panels = part * TASK_PANELS..up.matrix.panels().min((part + 1) * TASK_PANELS);
        self.add(run, up, tokens, panels, y, stride);
    }

    /// Asks for what [`Ways::up_to`] will read of these rows.
    pub(crate) fn ask(&self, column: usize, first: usize, end: usize) {
        for AdaptedRows { low_rank, .. } in self.runs {
            let mut ups = low_rank.ups.iter();
            if let Some(up) = ups.find(|up| up.columns.start == column) {
                let rows = first..end.min(up.matrix.values.len() / up.matrix.cols);
                ask(&up.matrix.values[rows.start * up.matrix.cols..rows.end * up.matrix.cols]);
            }
        }
    }

    /// Whether each projection that is adapted is one of those that the product packs, given by their columns.
    pub(crate) fn fits(&self, is_projection: impl Fn(&Range<usize>) -> bool) -> bool {
        let mut ups = self.runs.iter().flat_map(|run| &run.low_rank.ups);
        ups.all(|up| is_projection(&up.columns))
    }

    /// All ways up to rows `first..end` of the projection that begins at `column`, the first a multiple of 16 and so the end, but for the last.
    pub(crate) fn up_to(
        &self,
        column: usize,
        (first, end): (usize, usize),
        y: &Disjoint<'_, f32>,
        stride: usize,
    ) {
        for (run, AdaptedRows { low_rank, rows }) in self.runs.iter().enumerate() {
            let mut ups = low_rank.ups.iter();
            if let Some(up) = ups.find(|up| up.columns.start == column) {
                let panels = first / PANEL..end.div_ceil(PANEL).min(up.matrix.panels());
                self.add(run, up, 0..rows.len(), panels, y, stride);
            }
        }
    }

    /// Adds some panels of a way up to some tokens of a run.
    fn add(
        &self,
        run: usize,
        up: &Up,
        tokens: Range<usize>,
        panels: Range<usize>,
        y: &Disjoint<'_, f32>,
        stride: usize,
    ) {
        let (plan, rows) = (&self.plans[run], &self.runs[run].rows);
        let column = panels.start * PANEL;
        let width = up.matrix.rows.min(panels.end * PANEL) - column;
        let at = (rows.start + tokens.start) * stride + up.columns.start + column;
        let len = rows.len() * plan.ranks;
        // SAFETY: all ways down have ended and are joined; from then on nobody writes there.
        let downs = unsafe { std::slice::from_raw_parts(self.sums.pointer(plan.start, len), len) };
        let x = Mat::new(downs, rows.len(), plan.ranks).rows(tokens.clone());
        let product = Product {
            x: x.cols(up.first..up.first + up.matrix.cols),
            matrix: &up.matrix,
            panels,
            blocks: 0..up.matrix.blocks(),
            to: y.pointer(at, (tokens.len() - 1) * stride + width),
            stride,
            block_stride: 0,
            width,
            accumulate: true,
        };
        dispatch(self.isa, product);
    }
}

/// Some tokens by some panels, over some blocks of depth.
struct Product<'a> {
    x: Mat<'a>, // [tokens, the matrix' columns], rows contiguous
    matrix: &'a Panels,
    panels: Range<usize>,
    blocks: Range<usize>,
    /// Where the first token's sum for the first of the panels' rows goes, of the first block.
    to: *mut f32,
    /// Between tokens.
    stride: usize,
    /// Between the sums of blocks; 0 where they are added up.
    block_stride: usize,
    /// Numbers from `to` on that a token has.
    width: usize,
    /// Whether to add to what is there.
    accumulate: bool,
}

// SAFETY of the blocks below: whoever makes a `Product` says by `Disjoint::pointer` that `to` is writable in the extent that its
// fields tell, and alone writes there; what is read of x and of panels is within the slices, whose lengths were checked.
impl Body for Product<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let tokens = self.x.rows;
        let mut token = 0;
        while token < tokens {
            token += match tokens - token {
                12.. if S::LANES == 16 => self.packed::<S, 12>(simd, token),
                8.. => self.packed::<S, 8>(simd, token),
                4.. => self.direct::<S, 4>(simd, token),
                2.. => self.direct::<S, 2>(simd, token),
                _ => self.direct::<S, 1>(simd, token),
            };
        }
    }
}

impl Product<'_> {
    /// So many tokens whose inputs are packed first, `[depth, TOKENS]`: rows of a power of two apart would drive one another out of L1.
    #[inline(always)]
    fn packed<S: Simd, const TOKENS: usize>(&self, simd: S, token: usize) -> usize {
        let mut packed = [0.0; BLOCK * 12 + PACK_SLACK];
        for block in self.blocks.clone() {
            let depth = BLOCK.min(self.matrix.cols - block * BLOCK);
            let x = &self.x.data[token * self.x.row_stride + block * BLOCK..];
            // SAFETY: see above; the array holds a block of the most tokens.
            unsafe {
                let (from, to) = (x.as_ptr(), packed.as_mut_ptr());
                pack::<S, false>(simd, from, self.x.row_stride, 1, TOKENS, depth, to, TOKENS);
            }
            for vector in self.vectors::<S>() {
                let sums = self.sums::<S, TOKENS>(simd, (&packed, 1, TOKENS), vector, block);
                self.store(simd, sums, token, vector, block);
            }
        }
        TOKENS
    }

    /// So many tokens whose inputs are read where they lie.
    #[inline(always)]
    fn direct<S: Simd, const TOKENS: usize>(&self, simd: S, token: usize) -> usize {
        let x = &self.x.data[token * self.x.row_stride..];
        for vector in self.vectors::<S>() {
            for block in self.blocks.clone() {
                let from = (&x[block * BLOCK..], self.x.row_stride, 1);
                let sums = self.sums::<S, TOKENS>(simd, from, vector, block);
                self.store(simd, sums, token, vector, block);
            }
        }
        TOKENS
    }

    /// Each vector of rows, as its panel and its place in it.
    #[inline(always)]
    fn vectors<S: Simd>(&self) -> impl Iterator<Item = (usize, usize)> {
        let (first, width) = (self.panels.start, self.width);
        (0..width)
            .step_by(S::LANES)
            .map(move |row| (first + row / PANEL, row % PANEL))
    }

    /// Of the tokens in `x` (numbers, the distance of tokens, that of depth), the chains of a block.
    #[inline(always)]
    fn sums<S: Simd, const TOKENS: usize>(
        &self,
        simd: S,
        (x, between, along): (&[f32], usize, usize),
        (panel, lane): (usize, usize),
        block: usize,
    ) -> [S::V; TOKENS] {
        let cols = self.matrix.cols;
        let depth = BLOCK.min(cols - block * BLOCK);
        let values = &self.matrix.values[(panel * cols + block * BLOCK) * PANEL + lane..];
        let last = (TOKENS - 1) * between + (depth - 1) * along;
        assert!(values.len() >= (depth - 1) * PANEL + S::LANES && x.len() > last);
        let mut sums = [simd.splat(0.0); TOKENS];
        // SAFETY: the last places were just checked; any address may be asked for.
        unsafe {
            for k in 0..depth {
                let rows = values.as_ptr().add(k * PANEL);
                if TOKENS <= 4 && k % 2 == 0 {
                    simd.prefetch(rows.wrapping_add(AHEAD).cast());
                }
                let rows = simd.load_halves(rows);
                for (token, sum) in sums.iter_mut().enumerate() {
                    let x = x.as_ptr().add(k * along + token * between);
                    *sum = simd.mul_add(simd.splat(*x), rows, *sum);
                }
            }
        }
        sums
    }

    /// Writes or adds the sums of a block.
    #[inline(always)]
    fn store<S: Simd, const TOKENS: usize>(
        &self,
        simd: S,
        sums: [S::V; TOKENS],
        token: usize,
        (panel, lane): (usize, usize),
        block: usize,
    ) {
        let column = (panel - self.panels.start) * PANEL + lane;
        let left = self.width - column;
        let block = block - self.blocks.start;
        let adds = self.accumulate || self.block_stride == 0 && block > 0;
        for (token, sum) in (token..).zip(sums) {
            // SAFETY: see above.
            unsafe {
                let at = token * self.stride + block * self.block_stride + column;
                let at = self.to.add(at);
                let sum = if adds {
                    simd.add(simd.load_up_to(at, left), sum)
                } else {
                    sum
                };
                simd.store_up_to(at, left, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests;
