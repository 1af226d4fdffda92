//! Attention forward over 8-bit pages, without making them wide in memory for a few rows.
//!
//! Keys and values are multiplied as they are stored: queries, and the exponentials times the scales of the values, are rounded to
//! 16 bits with a scale a row and tile, products of 16 and 8 bits add up exactly in 32 bits (64 · 127 · 32767 < 2²⁸ for values, K · 127 ·
//! 32767 < 2³¹ for keys as long as K ≤ 512), and f32 takes over from there: half the instructions of converting every number, and no
//! order of addition to keep. The rounding to 16 bits is 2⁻¹⁶ of the largest, 256 times finer than that of the pages.
//!
//! The softmax runs over spans of [`SPAN`] tiles, begun anew in each, and spans join in order. So the spans of a long sequence
//! can be shared out among threads and a row has the same bits as where one thread took them all: alone, in any batch and in any
//! chunk. AVX2 and AVX-512 give the same bits.

use std::ops::Range;

use super::forward::fade;
use super::pages8::{Pages8, value_width};
use super::tile::TILE;
use super::{Query, seen};
use crate::pool::{Disjoint, Pool};
use crate::quantize::{rounded, scale_of};
use crate::rope::HeadShape;
use crate::scratch::with_scratch;
use crate::simd::{Body, Simd, dispatch};

/// Rows of the products of one task, about, as over other keys.
const ROWS: usize = 96;

/// Scores are formed in so many columns at a time.
const CHUNK: usize = 32;

/// Tiles of a span: 2,048 keys.
const SPAN: usize = 32;

/// Numbers in 16 bits: symmetric.
const LARGEST: f32 = 32_767.0;

/// A query and its pages.
pub(super) type Query8<'a> = (Query<'a>, Pages8<'a>);

/// Some positions of one query.
#[derive(Clone)]
struct Run {
    query: usize,
    first: usize,
    positions: usize,
    /// From the one in which the first row's window begins.
    spans: Range<usize>,
}

/// See [`super::attention_forward`].
pub(super) fn forward(
    pool: &Pool,
    shape: HeadShape,
    q: &[f32],
    q_stride: usize,
    queries: &[Query8],
    out: &mut [f32],
    lse: &mut [f32],
) {
    shape.check();
    assert!(
        shape.head_dim <= super::WIDEST_HEAD8,
        "heads of {} overflow 32 bits over 8-bit keys",
        shape.head_dim
    );
    let step = (ROWS / shape.group()).clamp(8, 64);
    let mut runs = Vec::new();
    for (index, (query, _)) in queries.iter().enumerate() {
        for first in (0..query.len).step_by(step) {
            let positions = step.min(query.len - first);
            let begin = query.past + first;
            let tiles = (begin + positions).div_ceil(TILE);
            runs.push(Run {
                query: index,
                first,
                positions,
                spans: seen(begin, query.window).start / (SPAN * TILE)..tiles.div_ceil(SPAN),
            });
        }
    }
    let (out, lse) = (Disjoint::new(out), Disjoint::new(lse));
    let task = |run: &Run, kv_head| {
        let (query, pages) = &queries[run.query];
        Task {
            shape,
            q,
            q_stride,
            query,
            pages: *pages,
            first: run.first,
            positions: run.positions,
            kv_head,
            out: &out,
            lse: &lse,
        }
    };
    let heads = shape.kv_heads;
    // Few tasks with long histories would leave threads without work; the bits are the same either way.
    let spans: usize = runs.iter().map(|run| run.spans.len()).sum();
    if spans == runs.len() || runs.len() * heads >= 8 * pool.threads() {
        pool.run(runs.len() * heads, |at| {
            let run = &runs[at / heads];
            let attend = |scratch: &mut [f32]| {
                let to = To::Out;
                let task = task(run, at % heads);
                dispatch(
                    pool.isa(),
                    Attend {
                        task,
                        spans: run.spans.clone(),
                        to,
                        scratch,
                    },
                );
            };
            with_scratch(Scratch::len(shape, run.positions * shape.group()), attend);
        });
        return;
    }
    let each = runs.iter().map(|run| run.positions).max().unwrap_or(0) * shape.group();
    let part = each * (value_width(shape) + 2);
    // The runs with their spans, in order.
    let parts: Vec<(usize, usize)> = runs
        .iter()
        .enumerate()
        .flat_map(|(run, of)| of.spans.clone().map(move |span| (run, span)))
        .collect();
    with_scratch(parts.len() * heads * part, |memory| {
        let shared = Disjoint::new(memory);
        pool.run(parts.len() * heads, |at| {
            let (run, span) = parts[at / heads];
            let run = &runs[run];
            // SAFETY: a part of its own for each task.
            let to = To::Part(unsafe { shared.range(at * part, part) });
            let attend = |scratch: &mut [f32]| {
                let task = task(run, at % heads);
                dispatch(
                    pool.isa(),
                    Attend {
                        task,
                        spans: span..span + 1,
                        to,
                        scratch,
                    },
                );
            };
            with_scratch(Scratch::len(shape, run.positions * shape.group()), attend);
        });
        pool.run(runs.len() * heads, |at| {
            let before: usize = runs[..at / heads].iter().map(|run| run.spans.len()).sum();
            let parts = (before..before + runs[at / heads].spans.len())
                .map(|index| (index * heads + at % heads) * part)
                .collect();
            with_scratch(part, |scratch| {
                let join = Join {
                    task: task(&runs[at / heads], at % heads),
                    parts,
                    memory: &shared,
                    len: part,
                    scratch,
                };
                dispatch(pool.isa(), join);
            });
        });
    });
}

/// Some positions of one query for the heads that share a kv head.
#[derive(Clone, Copy)]
struct Task<'a> {
    shape: HeadShape,
    q: &'a [f32],
    q_stride: usize,
    query: &'a Query<'a>,
    pages: Pages8<'a>,
    first: usize,
    positions: usize,
    kv_head: usize,
    out: &'a Disjoint<'a, f32>,
    lse: &'a Disjoint<'a, f32>,
}

impl Task<'_> {
    fn rows(&self) -> usize {
        self.positions * self.shape.group()
    }

    /// The row of `q` and the head of a row of the products.
    #[inline(always)]
    fn place(&self, row: usize) -> (usize, usize) {
        let group = self.shape.group();
        (
            self.query.start + self.first + row / group,
            self.kv_head * group + row % group,
        )
    }

    /// Writes what the rows have come to.
    #[inline(always)]
    fn finish(&self, softmax: &Softmax) {
        let (shape, width) = (self.shape, value_width(self.shape));
        for row in 0..self.rows() {
            let (n, head) = self.place(row);
            let at = n * shape.heads + head;
            // SAFETY: row n and head belong to this task alone: queries share no rows, tasks of a query share neither positions
            // nor heads, and spans of a task do not come here.
            let (out, lse) = unsafe {
                (
                    self.out.range(at * shape.head_dim, shape.head_dim),
                    self.lse.range(at, 1),
                )
            };
            let inverse = softmax.totals[row].recip();
            for (out, sum) in out.iter_mut().zip(&softmax.sums[row * width..]) {
                *out = sum * inverse;
            }
            lse[0] = softmax.highest[row] + libm::logf(softmax.totals[row]);
        }
    }
}

/// Where rows stand: Σ e^(score - highest) v, the highest score and Σ e^(score - highest).
struct Softmax<'a> {
    sums: &'a mut [f32], // [rows, W]
    highest: &'a mut [f32],
    totals: &'a mut [f32],
}

impl<'a> Softmax<'a> {
    fn in_memory(memory: &'a mut [f32], rows: usize, width: usize) -> Softmax<'a> {
        let (sums, rest) = memory.split_at_mut(rows * width);
        let (highest, rest) = rest.split_at_mut(rows);
        Softmax {
            sums,
            highest,
            totals: &mut rest[..rows],
        }
    }

    fn clear(&mut self) {
        self.sums.fill(0.0);
        self.highest.fill(f32::NEG_INFINITY);
        self.totals.fill(0.0);
    }

    /// Adds a later span. A row that saw nothing of it stays as it is.
    #[inline(always)]
    fn join<S: Simd>(&mut self, simd: S, part: &Softmax) {
        let width = self.sums.len() / self.totals.len();
        for row in 0..self.totals.len() {
            if part.totals[row] == 0.0 {
                continue;
            }
            let new = self.highest[row].max(part.highest[row]);
            let fade = |highest: f32| simd.exp(simd.splat(highest - new));
            let (old, added) = (fade(self.highest[row]), fade(part.highest[row]));
            let total = simd.mul(simd.splat(self.totals[row]), old);
            let total = simd.mul_add(simd.splat(part.totals[row]), added, total);
            (self.highest[row], self.totals[row]) = (new, simd.first(total));
            let sums = &mut self.sums[row * width..][..width];
            let part = &part.sums[row * width..][..width];
            for (sums, part) in sums
                .chunks_exact_mut(S::LANES)
                .zip(part.chunks_exact(S::LANES))
            {
                // SAFETY: both chunks have LANES numbers.
                unsafe {
                    let sum = simd.mul(simd.load(sums.as_ptr()), old);
                    let sum = simd.mul_add(simd.load(part.as_ptr()), added, sum);
                    simd.store(sums.as_mut_ptr(), sum);
                }
            }
        }
    }
}

/// Joins the spans of a task that were shared out.
struct Join<'a> {
    task: Task<'a>,
    parts: Vec<usize>,
    memory: &'a Disjoint<'a, f32>,
    len: usize,
    scratch: &'a mut [f32],
}

impl Body for Join<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (rows, width) = (self.task.rows(), value_width(self.task.shape));
        let mut whole = Softmax::in_memory(self.scratch, rows, width);
        whole.clear();
        for at in self.parts {
            // SAFETY: the parts of a task are read by it alone, after they were written.
            let part = unsafe { self.memory.range(at, self.len) };
            whole.join(simd, &Softmax::in_memory(part, rows, width));
        }
        self.task.finish(&whole);
    }
}

/// Where the result of a task goes.
enum To<'a> {
    /// To the rows of `out` and `lse`.
    Out,
    /// One span, to be joined with others.
    Part(&'a mut [f32]),
}

/// What a task works in.
struct Scratch<'a> {
    whole: &'a mut [f32],
    part: &'a mut [f32],
    operands: Operands<'a>,
}

/// The left sides of products, and scores.
struct Operands<'a> {
    q: &'a mut [i16],         // [rows, K]
    q_factors: &'a mut [f32], // [rows], with 1 / √K
    scores: &'a mut [f32],    // [rows, TILE]
    weights: &'a mut [i16],   // [rows, TILE]
    weight_factors: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn lengths(shape: HeadShape, rows: usize) -> [usize; 7] {
        let softmax = rows * (value_width(shape) + 2);
        // Of f32, which are two numbers of 16 bits each; whole cache lines.
        [
            softmax,
            softmax,
            rows * shape.head_dim / 2,
            rows,
            rows * TILE,
            rows * TILE / 2,
            rows,
        ]
        .map(|len| len.next_multiple_of(16))
    }

    fn len(shape: HeadShape, rows: usize) -> usize {
        Scratch::lengths(shape, rows).iter().sum()
    }

    fn in_memory(memory: &'a mut [f32], shape: HeadShape, rows: usize) -> Scratch<'a> {
        let [whole, part, q, q_factors, scores, weights, _] = Scratch::lengths(shape, rows);
        let (whole, memory) = memory.split_at_mut(whole);
        let (part, memory) = memory.split_at_mut(part);
        let (q, memory) = memory.split_at_mut(q);
        let (q_factors, memory) = memory.split_at_mut(q_factors);
        let (scores, memory) = memory.split_at_mut(scores);
        let (weights, weight_factors) = memory.split_at_mut(weights);
        let operands = Operands {
            q: bytemuck::cast_slice_mut(q),
            q_factors,
            scores,
            weights: bytemuck::cast_slice_mut(weights),
            weight_factors,
        };
        Scratch {
            whole,
            part,
            operands,
        }
    }
}

struct Attend<'a> {
    task: Task<'a>,
    spans: Range<usize>,
    to: To<'a>,
    scratch: &'a mut [f32],
}

impl Body for Attend<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Attend {
            task,
            spans,
            to,
            scratch,
        } = self;
        let (shape, rows) = (task.shape, task.rows());
        let (head_dim, width) = (shape.head_dim, value_width(shape));
        let Scratch {
            whole,
            part,
            mut operands,
        } = Scratch::in_memory(scratch, shape, rows);
        let root = (head_dim as f32).sqrt().recip();
        for (row, to) in operands.q.chunks_exact_mut(head_dim).take(rows).enumerate() {
            let (n, head) = task.place(row);
            let from = &task.q[n * task.q_stride + head * head_dim..][..head_dim];
            operands.q_factors[row] = root * to_16_bits(from, to);
        }
        let (part, whole) = match to {
            To::Part(part) => (part, None),
            To::Out => (part, Some(whole)),
        };
        let mut part = Softmax::in_memory(part, rows, width);
        let mut whole = whole.map(|whole| Softmax::in_memory(whole, rows, width));
        if let Some(whole) = &mut whole {
            whole.clear();
        }
        for span in spans {
            part.clear();
            task.span(simd, span, &mut operands, &mut part);
            if let Some(whole) = &mut whole {
                whole.join(simd, &part);
            }
        }
        if let Some(whole) = &whole {
            task.finish(whole);
        }
    }
}

impl Task<'_> {
    /// One span of keys.
    #[inline(always)]
    fn span<S: Simd>(&self, simd: S, span: usize, operands: &mut Operands, softmax: &mut Softmax) {
        let shape = self.shape;
        let (group, head_dim, width) = (shape.group(), shape.head_dim, value_width(shape));
        let begin = self.query.past + self.first; // position of the first row
        let end = begin + self.positions; // keys that the last row sees
        let tiles = end.div_ceil(TILE);
        let window = self.query.window;
        let from = (seen(begin, window).start / TILE).max(span * SPAN);
        let mut next = self.pages.tile(shape, from, self.kv_head);
        for tile in from..tiles.min((span + 1) * SPAN) {
            let at = next;
            if tile + 1 < tiles {
                next = self.pages.tile(shape, tile + 1, self.kv_head);
            }
            let count = TILE.min(end - tile * TILE);
            // Scores beyond are of keys that no row sees.
            let cols = count.next_multiple_of(CHUNK);
            // Rows before `skip` see no key of the tile, nor do those from `until` on, whose windows begin behind it.
            let skip = (tile * TILE).saturating_sub(begin) * group;
            let reach = window.saturating_add(tile * TILE + count - 1);
            let until = reach.saturating_sub(begin).min(self.positions) * group;
            // SAFETY: [rows, K] numbers of q times [K / 2, cols, 2] of the keys to [rows, cols] at a distance of TILE, factors for
            // each row and column: all of them within the scratch and the tile, whose keys are [K / 2, TILE, 2].
            unsafe {
                let product = Product {
                    rows: until - skip,
                    cols,
                    twos: head_dim / 2,
                    a: operands.q[skip * head_dim..].as_ptr(),
                    a_stride: head_dim,
                    b: at.keys.as_ptr(),
                    b_cols: TILE,
                    ahead: next.keys.as_ptr(),
                    row_factors: operands.q_factors[skip..].as_ptr(),
                    col_factors: at.key_scales.as_ptr(),
                    c: operands.scores[skip * TILE..].as_mut_ptr(),
                    c_stride: TILE,
                };
                product.multiply::<S, true>(simd);
            }
            let scales = ValueScales::of(at.value_scales, count);
            for row in skip..until {
                let seen = seen(begin + row / group, window);
                let (first, end) = (
                    seen.start.saturating_sub(tile * TILE),
                    (seen.end - tile * TILE).min(count),
                );
                let scores = &mut operands.scores[row * TILE..][..cols];
                scores[..first].fill(f32::NEG_INFINITY);
                scores[end..].fill(f32::NEG_INFINITY);
                let weights = Weights {
                    scales: &scales.finite,
                    to: &mut operands.weights[row * TILE..][..cols],
                };
                let factor = soften(
                    simd,
                    scores,
                    weights,
                    &mut softmax.sums[row * width..][..width],
                    &mut softmax.highest[row],
                    &mut softmax.totals[row],
                );
                operands.weight_factors[row] = match scales.faultless(first, end) {
                    true => factor,
                    false => f32::NAN,
                };
            }
            // SAFETY: [rows, TILE] weights, those of keys that a row does not see 0, times [TILE / 2, W, 2] of the values to [rows, W].
            unsafe {
                let product = Product {
                    rows: until - skip,
                    cols: width,
                    twos: count.div_ceil(2),
                    a: operands.weights[skip * TILE..].as_ptr(),
                    a_stride: TILE,
                    b: at.values.as_ptr(),
                    b_cols: width,
                    ahead: next.values.as_ptr(),
                    row_factors: operands.weight_factors[skip..].as_ptr(),
                    col_factors: std::ptr::null(),
                    c: softmax.sums[skip * width..].as_mut_ptr(),
                    c_stride: width,
                };
                product.multiply::<S, false>(simd);
            }
        }
    }
}

/// Rounds `from` to 16 bits at the beginning of `to`; what one step is worth.
#[inline(always)]
fn to_16_bits(from: &[f32], to: &mut [i16]) -> f32 {
    let (scale, inverse) = scale_of(from, LARGEST);
    for (to, from) in to.iter_mut().zip(from) {
        *to = rounded(*from, inverse) as i16;
    }
    scale
}

/// The scales of a tile's values, as weights take them in.
struct ValueScales<'a> {
    /// 0 of values that hold a NaN or an infinity and of those that are not there.
    finite: [f32; TILE],
    /// Of the values that are there.
    own: &'a [f32],
    /// Whether all of `own` are finite.
    faultless: bool,
}

impl<'a> ValueScales<'a> {
    #[inline(always)]
    fn of(scales: &'a [f32], count: usize) -> ValueScales<'a> {
        let own = &scales[..count];
        let mut finite = [0.0; TILE];
        let mut faultless = true;
        for (to, &scale) in finite.iter_mut().zip(own) {
            faultless &= scale.is_finite();
            *to = if scale.is_finite() { scale } else { 0.0 };
        }
        ValueScales {
            finite,
            own,
            faultless,
        }
    }

    /// Whether the values that a row sees are.
    #[inline(always)]
    fn faultless(&self, first: usize, end: usize) -> bool {
        self.faultless || self.own[first..end].iter().all(|scale| scale.is_finite())
    }
}

/// Where the weights of a row's values go, `e^(score - highest of the tile) · scale` in 16 bits.
struct Weights<'a> {
    scales: &'a [f32],
    to: &'a mut [i16],
}

/// Makes weights of the scores of a tile, whose place what comes between takes. `highest` is raised to the tile's, and what was summed under
/// the old one is scaled; what a step of the weights is worth comes back. The total adds up in sixteen lanes on AVX2 as on AVX-512.
#[inline(always)]
fn soften<S: Simd>(
    simd: S,
    scores: &mut [f32],
    weights: Weights,
    sums: &mut [f32],
    highest: &mut f32,
    total: &mut f32,
) -> f32 {
    // Not from -∞, which scores may be: the difference of two has no value.
    let mut top = simd.splat(f32::MIN);
    for scores in scores.chunks_exact(S::LANES) {
        // SAFETY: the chunk has LANES numbers.
        top = simd.max(top, unsafe { simd.load(scores.as_ptr()) });
    }
    let highest_here = simd.maximum(top);
    let top = simd.splat(highest_here);
    let (mut parts, mut largest) = ([simd.splat(0.0); 2], simd.splat(0.0));
    let chunks = scores.chunks_exact_mut(S::LANES);
    let chunks = chunks.zip(weights.scales.chunks_exact(S::LANES));
    for (i, (scores, scales)) in chunks.enumerate() {
        // SAFETY: the chunks have LANES numbers each.
        unsafe {
            let e = simd.exp(simd.sub(simd.load(scores.as_ptr()), top));
            let part = &mut parts[if S::LANES < 16 { i % 2 } else { 0 }];
            *part = simd.add(*part, e);
            let weight = simd.mul(e, simd.load(scales.as_ptr()));
            largest = simd.max(largest, weight);
            simd.store(scores.as_mut_ptr(), weight);
        }
    }
    let (worth, inverse) = scale_of(&[simd.maximum(largest)], LARGEST);
    let inverse = simd.splat(inverse);
    let to = weights.to.chunks_exact_mut(S::LANES);
    for (weights, to) in scores.chunks_exact(S::LANES).zip(to) {
        // SAFETY: the chunks have LANES numbers each.
        unsafe {
            let weight = simd.mul(simd.load(weights.as_ptr()), inverse);
            simd.store_rounded(to.as_mut_ptr(), weight);
        }
    }
    let part = if highest_here < *highest {
        simd.first(simd.exp(simd.splat(highest_here - *highest)))
    } else {
        fade(simd, highest_here, sums, highest, total);
        1.0
    };
    *total += simd.sum(simd.add(parts[0], parts[1])) * part;
    worth * part
}

/// C`[rows, cols]` of A`[rows, 2 twos]` in 16 bits and B`[twos, cols, 2]` in 8.
#[derive(Clone, Copy)]
struct Product {
    rows: usize,
    cols: usize,
    twos: usize,
    a: *const i16,
    a_stride: usize,
    b: *const i8,
    b_cols: usize,
    /// What will be read next, laid out as B.
    ahead: *const i8,
    row_factors: *const f32,
    col_factors: *const f32,
    c: *mut f32,
    c_stride: usize,
}

impl Product {
    /// C = (A B) · row factor · column factor where `SCORES`, C += (A B) · row factor elsewhere.
    ///
    /// # Safety
    /// All elements of A, B and C and the factors are readable, those of C writable and no one else's; `cols` is a multiple of 16.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const SCORES: bool>(&self, simd: S) {
        let mut col = 0;
        // SAFETY: strips lie within `cols`.
        unsafe {
            while col < self.cols {
                let left = self.cols - col;
                // As many vectors as leave room for six rows of sums, one of B and one of A.
                if S::REGISTERS >= 32 && left >= 4 * S::LANES {
                    self.strip::<S, SCORES, 4>(simd, col);
                    col += 4 * S::LANES;
                } else if left >= 2 * S::LANES {
                    self.strip::<S, SCORES, 2>(simd, col);
                    col += 2 * S::LANES;
                } else {
                    self.strip::<S, SCORES, 1>(simd, col);
                    col += S::LANES;
                }
            }
        }
    }

    /// `VECTORS` vectors of columns.
    ///
    /// # Safety
    /// As for [`Product::multiply`].
    #[inline(always)]
    unsafe fn strip<S: Simd, const SCORES: bool, const VECTORS: usize>(&self, simd: S, col: usize) {
        let mut row = 0;
        // SAFETY: blocks lie within `rows`.
        unsafe {
            while self.rows - row >= 6 {
                self.block::<S, SCORES, VECTORS, 6>(simd, row, col);
                row += 6;
            }
            while self.rows - row >= 2 {
                self.block::<S, SCORES, VECTORS, 2>(simd, row, col);
                row += 2;
            }
            if row < self.rows {
                self.block::<S, SCORES, VECTORS, 1>(simd, row, col);
            }
        }
    }

    /// `ROWS` rows from `row` on.
    ///
    /// # Safety
    /// As for [`Product::multiply`]; the rows and columns exist.
    #[inline(always)]
    unsafe fn block<S: Simd, const SCORES: bool, const VECTORS: usize, const ROWS: usize>(
        &self,
        simd: S,
        row: usize,
        col: usize,
    ) {
        let mut sums = [[simd.no_integers(); VECTORS]; ROWS];
        // SAFETY: the caller vouches for the block; what lies ahead need not be there to be asked for.
        unsafe {
            let a = self.a.add(row * self.a_stride);
            for two in 0..self.twos {
                let at = 2 * (two * self.b_cols + col);
                if row == 0 {
                    for byte in (0..2 * VECTORS * S::LANES).step_by(64) {
                        simd.prefetch(self.ahead.wrapping_add(at + byte).cast());
                    }
                }
                let mut loaded = [simd.no_integers(); VECTORS];
                for (v, loaded) in loaded.iter_mut().enumerate() {
                    *loaded = simd.load_twos_of_8(self.b.add(at + 2 * v * S::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = simd.splat_two(a.add(r * self.a_stride + 2 * two));
                    for (sum, &loaded) in sums.iter_mut().zip(&loaded) {
                        *sum = simd.mul_add_twos(x, loaded, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let factor = simd.splat(*self.row_factors.add(row + r));
                for (v, &sum) in sums.iter().enumerate() {
                    let col = col + v * S::LANES;
                    let c = self.c.add((row + r) * self.c_stride + col);
                    let sum = simd.integers(sum);
                    let result = if SCORES {
                        let factor = simd.mul(factor, simd.load(self.col_factors.add(col)));
                        simd.mul(sum, factor)
                    } else {
                        simd.mul_add(sum, factor, simd.load(c))
                    };
                    simd.store(c, result);
                }
            }
        }
    }
}
