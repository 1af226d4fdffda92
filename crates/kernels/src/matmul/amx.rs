//! Products of bf16 on AMX tiles: registers of 16 rows of 64 bytes, and an instruction that multiplies two of them.
//!
//! A tile of A holds 16 rows of 16 pairs along the depth, one of B 16 such pairs of 16 columns. The instruction
//! (TDPBF16PS) sums the first numbers of the pairs and the second apart, in order, then both to what C's tile holds; sums below
//! 2⁻¹²⁶ become 0. So an element of C depends on nothing but its row, its column and the depth here too, but its last bits
//! are not those of the other instruction sets.
//!
//! Two tiles of A and two of B make four of C, which is as many as eight registers allow: four loads for four products, so that
//! loads from L2 hide. Many more products a byte than vectors make leave packing, not multiplying, to be watched: each
//! operand is packed once, B for all tasks, A by the task that needs it.

use std::ops::Range;

use super::{Mat, MatMut};
use crate::pool::{Disjoint, Pool};
use crate::scratch::with_scratch;
use crate::simd::{Body, Simd, dispatch_pairs};

/// Rows of a tile, and words of one.
const SIDE: usize = 16;
/// Words of a tile.
const TILE: usize = SIDE * SIDE;
/// Rows of A, or columns of B, that are multiplied at once: two tiles.
const PANEL: usize = 2 * SIDE;
/// Depth of a tile: a word is a pair.
const STEP: usize = 2 * SIDE;
/// Depth of a block: so much of a panel of B is 32 KiB and stays in L1.
const BLOCK: usize = 512;
/// Rows of a task: four panels, 128 KiB a block, which stay in L2.
const TASK_ROWS: usize = 128;
/// Words of the next panel of B that each step asks for: all of it in four panels of A.
const AHEAD: usize = 128;
/// Words of B that are packed at a time: 4 MiB.
const SLICE: usize = 1 << 20;

/// C (+)= A B into contiguous rows.
///
/// # Panics
/// When the pool's instruction set is not [`crate::Isa::Amx`], or the depth is 0.
pub(super) fn product(pool: &Pool, a: Mat, b: Mat, c: MatMut, accumulate: bool) {
    assert!(pool.isa() == crate::Isa::Amx && a.cols > 0);
    let (rows, cols, stride) = (c.rows, c.cols, c.row_stride);
    let steps = a.cols.div_ceil(STEP);
    let strip = 2 * steps * TILE;
    let slice_cols = (SLICE / (steps * SIDE)).next_multiple_of(512);
    // Each piece packs its rows of A again, so pieces are narrow only where tasks would be too few.
    let down = rows.div_ceil(TASK_ROWS);
    let task_cols = if down >= 4 * pool.threads() {
        slice_cols
    } else if down * cols.div_ceil(512) >= 4 * pool.threads() {
        512
    } else {
        128
    };
    let c = Disjoint::new(c.data);
    for start in (0..cols).step_by(slice_cols) {
        let slice = start..cols.min(start + slice_cols);
        with_scratch(slice.len().div_ceil(PANEL) * strip, |packed| {
            pool.for_each_chunk(packed, strip, |index, packed| {
                let first = slice.start + index * PANEL;
                let operand = Operand {
                    whole: b.t(),
                    lines: first..slice.end.min(first + PANEL),
                    depth: 0..b.rows,
                };
                dispatch_pairs(Pack::<true> { operand, packed });
            });
            let packed = &*packed;
            pool.run(down * slice.len().div_ceil(task_cols), |task| {
                let (i, j) = (task % down, task / down);
                let rows = i * TASK_ROWS..rows.min((i + 1) * TASK_ROWS);
                let first = slice.start + j * task_cols;
                let cols = first..slice.end.min(first + task_cols);
                let b =
                    &packed[j * task_cols / PANEL * strip..][..cols.len().div_ceil(PANEL) * strip];
                let tile = Tile {
                    a,
                    b,
                    c: &c,
                    stride,
                    rows,
                    cols,
                    accumulate,
                };
                dispatch_pairs(tile);
            });
        });
    }
}

/// Some lines (rows of A, columns of B) of an operand whose columns are the depth, and some of its depth.
struct Operand<'a> {
    whole: Mat<'a>,
    lines: Range<usize>,
    depth: Range<usize>,
}

/// Packs an operand, panel by panel, step by step, two tiles of [`SIDE`] lines each: a row of a tile is a line, or, with
/// `ACROSS`, a pair of depths. What a step lacks in depth is 0; what a panel lacks in lines is of no meaning.
struct Pack<'a, const ACROSS: bool> {
    operand: Operand<'a>,
    packed: &'a mut [f32],
}

impl<const ACROSS: bool> Body for Pack<'_, ACROSS> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        pack::<S, ACROSS>(simd, &self.operand, self.packed);
    }
}

#[inline(always)]
fn pack<S: Simd, const ACROSS: bool>(simd: S, operand: &Operand, packed: &mut [f32]) {
    assert!(S::PAIRS && S::LANES == SIDE);
    let Operand {
        whole,
        lines,
        depth,
    } = operand;
    let panel = depth.len().div_ceil(STEP) * 2 * TILE;
    for (first, packed) in lines
        .clone()
        .step_by(PANEL)
        .zip(packed.chunks_exact_mut(panel))
    {
        for (half, first) in [first, first + SIDE].into_iter().enumerate() {
            let count = SIDE.min(lines.end.saturating_sub(first));
            if count == 0 {
                continue;
            }
            for (k, step) in depth
                .clone()
                .step_by(STEP)
                .zip(packed.chunks_exact_mut(2 * TILE))
            {
                let from = whole.data[first * whole.row_stride + k * whole.col_stride..].as_ptr();
                let to = step[half * TILE..][..TILE].as_mut_ptr();
                let left = STEP.min(depth.end - k);
                // SAFETY: lines and depths lie in `whole`, whose extent its construction has checked; `to` is a tile.
                unsafe {
                    let across = pack_tile(
                        simd,
                        from,
                        whole.row_stride,
                        whole.col_stride,
                        count,
                        left,
                        to,
                    );
                    if across != ACROSS {
                        let block = simd.load_transposed(to, SIDE, SIDE, SIDE);
                        for (row, &v) in block.as_ref().iter().enumerate() {
                            simd.store(to.add(row * SIDE), v);
                        }
                    }
                }
            }
        }
    }
}

/// A tile in whichever order the operand lies in: whether its rows are pairs of depths.
///
/// # Safety
/// `from` is readable for `count` lines (1 to [`SIDE`]) and `depth` (1 to [`STEP`]) at the given distances; `to` is writable for
/// a tile.
#[inline(always)]
unsafe fn pack_tile<S: Simd>(
    simd: S,
    from: *const f32,
    line_stride: usize,
    depth_stride: usize,
    count: usize,
    depth: usize,
    to: *mut f32,
) -> bool {
    // SAFETY: as the caller promises; `load_up_to` reads no further than it is told.
    unsafe {
        if depth_stride == 1 {
            for line in 0..count {
                let at = from.add(line * line_stride);
                let words = if depth == STEP {
                    simd.neighbours(simd.load(at), simd.load(at.add(SIDE)))
                } else {
                    simd.neighbours(
                        simd.load_up_to(at, depth),
                        simd.load_up_to(at.wrapping_add(SIDE), depth.saturating_sub(SIDE)),
                    )
                };
                simd.store(to.add(line * SIDE), words);
            }
            return false;
        }
        for pair in 0..SIDE {
            let number = |k: usize| {
                if k >= depth {
                    return simd.splat(0.0);
                }
                let at = from.add(k * depth_stride);
                if line_stride == 1 {
                    return simd.load_up_to(at, count);
                }
                let mut numbers = [0.0; SIDE];
                for (line, number) in numbers.iter_mut().take(count).enumerate() {
                    *number = *at.add(line * line_stride);
                }
                simd.load(numbers.as_ptr())
            };
            let words = simd.pairs(number(2 * pair), number(2 * pair + 1));
            simd.store(to.add(pair * SIDE), words);
        }
        true
    }
}

/// A tile of C, the work of one task, with the columns of B that it needs, packed over the whole depth.
struct Tile<'a> {
    a: Mat<'a>,
    b: &'a [f32],
    c: &'a Disjoint<'a, f32>,
    stride: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    accumulate: bool,
}

impl Body for Tile<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Tile {
            a,
            b,
            c,
            stride,
            rows,
            cols,
            accumulate,
        } = self;
        let strip = a.cols.div_ceil(STEP) * 2 * TILE;
        let panels = rows.len().div_ceil(PANEL);
        let block_words = BLOCK.min(a.cols).div_ceil(STEP) * 2 * TILE;
        with_scratch(panels * block_words + PANEL * PANEL, |scratch| {
            let (edge, packed) = scratch.split_at_mut(PANEL * PANEL);
            let tiles = Tiles::new();
            for k in (0..a.cols).step_by(BLOCK) {
                let depth = k..a.cols.min(k + BLOCK);
                let steps = depth.len().div_ceil(STEP);
                let operand = Operand {
                    whole: a,
                    lines: rows.clone(),
                    depth,
                };
                pack::<S, false>(simd, &operand, packed);
                let accumulate = accumulate || k > 0;
                for (col, b) in cols.clone().step_by(PANEL).zip(b.chunks_exact(strip)) {
                    let b = &b[k / STEP * 2 * TILE..][..steps * 2 * TILE];
                    let mut next = b.as_ptr().wrapping_add(strip);
                    for (row, a) in rows
                        .clone()
                        .step_by(PANEL)
                        .zip(packed.chunks_exact(steps * 2 * TILE))
                    {
                        let (down, across) = (PANEL.min(rows.end - row), PANEL.min(cols.end - col));
                        let c = c.pointer(row * stride + col, 1);
                        // SAFETY: this task alone touches this tile of C, which lies in bounds by `MatMut`'s construction.
                        unsafe {
                            if (down, across) == (PANEL, PANEL) {
                                tiles.multiply(a, b, c, stride, accumulate, next);
                                next = next.wrapping_add(steps * AHEAD);
                                continue;
                            }
                            // The edge goes through a tile of its own.
                            for i in 0..down {
                                for j in (0..across).step_by(S::LANES) {
                                    let v = simd.load_up_to(c.add(i * stride + j), across - j);
                                    simd.store(edge[i * PANEL + j..].as_mut_ptr(), v);
                                }
                            }
                            tiles.multiply(a, b, edge.as_mut_ptr(), PANEL, accumulate, next);
                            for i in 0..down {
                                for j in (0..across).step_by(S::LANES) {
                                    let v = simd.load(edge[i * PANEL + j..].as_ptr());
                                    simd.store_up_to(c.add(i * stride + j), across - j, v);
                                }
                            }
                        }
                    }
                }
            }
        });
    }
}

/// This thread's tile registers, set to eight of 16 rows of 64 bytes; given back when dropped, as they would else be saved at every
/// switch of threads.
struct Tiles {
    /// Neither sent to another thread nor shared.
    _here: std::marker::PhantomData<*mut ()>,
}

impl Tiles {
    fn new() -> Tiles {
        #[repr(align(64))]
        struct Config([u8; 64]);
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        for tile in 0..8 {
            config.0[16 + 2 * tile] = 64;
            config.0[48 + tile] = SIDE as u8;
        }
        // SAFETY: `product` has checked that there are tiles, which `Isa::best` found, and asked the system for.
        unsafe {
            std::arch::asm!("ldtilecfg [{}]", in(reg) config.0.as_ptr(), options(nostack, readonly, preserves_flags));
        }
        Tiles {
            _here: std::marker::PhantomData,
        }
    }

    /// C`[32, 32]` (+)= A`[32, depth]` B`[depth, 32]` of packed panels, rows of C at a distance of `stride`.
    ///
    /// Meanwhile it asks for [`AHEAD`] words a step from `next` on, and for the rows of C, so that neither is waited for.
    ///
    /// # Safety
    /// `c` is readable and writable for 32 rows of 32 numbers at that distance.
    #[inline(always)]
    unsafe fn multiply(
        &self,
        a: &[f32],
        b: &[f32],
        c: *mut f32,
        stride: usize,
        accumulate: bool,
        next: *const f32,
    ) {
        let steps = a.len() / (2 * TILE);
        assert!(a.len() == steps * 2 * TILE && b.len() == a.len() && steps > 0);
        let below = c.wrapping_add(SIDE * stride);
        // SAFETY: the panels hold `steps` times two tiles; C is the caller's promise.
        unsafe {
            if accumulate {
                std::arch::asm!(
                    "tileloadd tmm0, [{c} + {stride}]",
                    "tileloadd tmm1, [{c} + {stride} + 64]",
                    "tileloadd tmm2, [{below} + {stride}]",
                    "tileloadd tmm3, [{below} + {stride} + 64]",
                    c = in(reg) c, below = in(reg) below, stride = in(reg) stride * 4,
                    options(nostack, readonly, preserves_flags),
                );
            } else {
                std::arch::asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem, preserves_flags),
                );
            }
            std::arch::asm!(
                "2:",
                "tileloadd tmm4, [{a} + {line}]",
                "tileloadd tmm6, [{b} + {line}]",
                "prefetchw [{row}]",
                "prefetchw [{row} + 64]",
                "prefetchw [{row} + {stride}]",
                "prefetchw [{row} + {stride} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {line} + 1024]",
                "prefetcht1 [{next}]",
                "prefetcht1 [{next} + 64]",
                "prefetcht1 [{next} + 128]",
                "prefetcht1 [{next} + 192]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a} + {line} + 1024]",
                "prefetcht1 [{next} + 256]",
                "prefetcht1 [{next} + 320]",
                "prefetcht1 [{next} + 384]",
                "prefetcht1 [{next} + 448]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "lea {row}, [{row} + 2 * {stride}]",
                "add {next}, 512",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 2048",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c} + {stride}], tmm0",
                "tilestored [{c} + {stride} + 64], tmm1",
                "tilestored [{below} + {stride}], tmm2",
                "tilestored [{below} + {stride} + 64], tmm3",
                a = inout(reg) a.as_ptr() => _,
                b = inout(reg) b.as_ptr() => _,
                steps = inout(reg) steps => _,
                next = inout(reg) next => _,
                row = inout(reg) c => _,
                line = in(reg) 64usize,
                c = in(reg) c,
                below = in(reg) below,
                stride = in(reg) stride * 4,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the tiles are this thread's own.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}
