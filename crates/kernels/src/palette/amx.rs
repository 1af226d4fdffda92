//! The product with AMX: TDPBSSD multiplies a tile of 16 tokens x 64 inputs by one of 64 inputs x 16 rows.
//!
//! Four inputs of a strip's 16 rows are 64 bytes once they are looked up, and so a row of the second tile as they stand. A panel of
//! activations (`QuantizedRows` makes them of up to 512 tokens here) is cut into first tiles, their rows 128 bytes apart. What tiles sum for a
//! block of 128 inputs is exact; it goes through memory to the same fused multiply-adds that every body makes, so bits are
//! the same here too.
//!
//! Two strips' weights are looked up for [`CHUNK`] blocks at a time, and all tokens of a task meet them there.

use super::avx512::{AHEAD, decode, table};
use super::strips::{Cut, Format, LINE, STRIP, Strips};
use crate::pool::Disjoint;
use crate::quantize::{BLOCK, Panel};
use crate::scratch::with_scratch;
use crate::simd::tiles::{SIDE, Tiles, tile_asm};
use std::arch::x86_64::*;

/// Blocks whose weights are looked up together: 4 KiB each of two strips, which stay in L1.
const CHUNK: usize = 4;
/// Tiles of tokens that pass one after another while a block's weights are in tiles: so many that their totals stay in L1.
const GROUP: usize = 8;
/// Bytes of a block of two strips, looked up: four tiles.
const TILES_OF_BLOCK: usize = 2 * STRIP * BLOCK;
/// Sums of a tile of tokens and two strips.
const SUMS: usize = SIDE * 2 * STRIP;

/// `out[n, column..]` of the strips of a cut, for the tokens of a panel, which begin with number `token`; rows of `out` are `width` apart.
///
/// # Safety
/// The CPU has AMX's integer tiles and this process may use them; the cut's strips are the part's, whose columns are those of the
/// panel, which is tiled; nobody else uses these rows and columns of `out`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) unsafe fn task(
    part: &Strips<'_>,
    cut: &Cut,
    panel: &Panel<'_>,
    token: usize,
    out: &Disjoint<'_, f32>,
    width: usize,
) {
    let pairs = (cut.end - cut.start).div_ceil(2);
    let blocks = part.cols.div_ceil(BLOCK);
    let weights = CHUNK.min(blocks) * TILES_OF_BLOCK / 4; // f32
    let each = panel.tokens.div_ceil(SIDE) * SUMS; // totals of a pair
    with_scratch(
        (LAG + 1) * SUMS + SIDE + weights + pairs * each,
        |scratch| {
            let (sums, scratch) = scratch.split_at_mut(LAG * SUMS);
            // What is pending at first: whatever it is, nobody reads where it is added to.
            let (nowhere, scratch) = scratch.split_at_mut(SUMS + SIDE);
            let (weights, totals) = scratch.split_at_mut(weights);
            let weights: &mut [u8] = bytemuck::cast_slice_mut(weights);
            totals.fill(0.0);
            // SAFETY: the caller's promise.
            let tiles = unsafe { Tiles::new() };
            let mut pending = Pending {
                sums,
                to: [(nowhere[SUMS..].as_ptr(), nowhere.as_mut_ptr()); LAG],
                next: 0,
            };
            for chunk in (0..blocks).step_by(CHUNK) {
                let chunk = chunk..blocks.min(chunk + CHUNK);
                for (pair, totals) in totals.chunks_exact_mut(each).enumerate() {
                    let first = cut.start + 2 * pair;
                    for strip in 0..2 {
                        // An odd strip at the end stands for two.
                        let strip_in = (first + strip).min(cut.end - 1);
                        let weights = &mut weights[strip * STRIP * BLOCK / 2..];
                        look_up(part, strip_in, chunk.clone(), weights);
                    }
                    for (group, totals) in totals.chunks_mut(GROUP * SUMS).enumerate() {
                        let token = group * GROUP * SIDE;
                        // SAFETY: there are tiles; the panel has the tokens and the chunk's blocks; totals are read when nothing is pending.
                        unsafe {
                            multiply(panel, token, chunk.clone(), weights, totals, &mut pending)
                        };
                    }
                }
            }
            for _ in 0..LAG {
                // SAFETY: all that is pending is there; of what comes in its place nothing is added.
                unsafe { pending.turn(std::ptr::null(), std::ptr::null_mut()) };
            }
            drop(tiles);
            let rows = part.rows.min(cut.end * STRIP) - cut.start * STRIP;
            let scales = &part.scales[cut.start * STRIP..cut.end * STRIP];
            for index in 0..panel.tokens {
                let at = (token + index) * width + cut.column + cut.start * STRIP;
                // SAFETY: these rows and columns are the caller's alone.
                let out = unsafe { out.range(at, rows) };
                for (pair, (out, scales)) in out
                    .chunks_mut(2 * STRIP)
                    .zip(scales.chunks(2 * STRIP))
                    .enumerate()
                {
                    let from = pair * each + index * 2 * STRIP;
                    scaled(&totals[from..][..2 * STRIP], scales, out);
                }
            }
        },
    );
}

/// `out = totals · scales`, of one or two strips, the last of which may have fewer rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn scaled(totals: &[f32], scales: &[half::f16], out: &mut [f32]) {
    for ((out, totals), scales) in out
        .chunks_mut(STRIP)
        .zip(totals.chunks_exact(STRIP))
        .zip(scales.chunks_exact(STRIP))
    {
        let mask = (u32::MAX >> (32 - out.len())) as u16;
        // SAFETY: 16 scales of 2 bytes, 16 totals; as many places as `out` has are written.
        unsafe {
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().cast()));
            let total = _mm512_loadu_ps(totals.as_ptr());
            _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_mul_ps(total, scale));
        }
    }
}

/// Looks the weights of one strip up, block by block: `[block, 2 halves, (2 strips), 16 groups of 4 inputs, 64]`, 0 past the last input.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn look_up(strips: &Strips<'_>, strip: usize, blocks: std::ops::Range<usize>, out: &mut [u8]) {
    macro_rules! by_format {
        ($($format:ident)*) => {
            match strips.format {
                $(Format::$format => {
                    look_up_as::<{ Format::$format as usize }>(strips, strip, blocks, out)
                })*
            }
        };
    }
    by_format!(Two Three Four Eight TwoPairs ThreePairs FourPairs)
}

/// FORMAT is the number of the strips' format.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn look_up_as<const FORMAT: usize>(
    strips: &Strips<'_>,
    strip: usize,
    blocks: std::ops::Range<usize>,
    out: &mut [u8],
) {
    let unit = strips.format.unit(); // lines
    let groups = strips.format.inputs() / 4; // of a unit
    let per_block = BLOCK / 4 / groups; // units
    let table = table::<FORMAT, 0>(strips, strip);
    let units = strips.strip(strip).chunks_exact(unit * LINE);
    let mut units = units.skip(blocks.start * per_block);
    for (_, out) in blocks.zip(out.chunks_mut(TILES_OF_BLOCK)) {
        for place in 0..per_block {
            let mut packed = [_mm512_setzero_si512(); 3];
            let Some(lines) = units.next() else {
                for group in place * groups..(place + 1) * groups {
                    out[tile_row(group)..][..LINE].fill(0);
                }
                continue;
            };
            for (line, packed) in packed[..unit].iter_mut().enumerate() {
                let from = lines[line * LINE..].as_ptr();
                // SAFETY: a unit has so many lines; prefetching may name any address.
                unsafe {
                    *packed = _mm512_loadu_si512(from.cast());
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
                }
            }
            macro_rules! groups {
                ($($group:literal)*) => {$(
                    if const { $group < Format::ALL[FORMAT].inputs() / 4 } {
                        let to = &mut out[tile_row(place * groups + $group)..][..LINE];
                        let weights = decode::<FORMAT, $group>(&packed, &table);
                        // SAFETY: `to` is a line.
                        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), weights) };
                    }
                )*};
            }
            groups!(0 1 2 3 4 5 6 7);
        }
    }
}

/// Where the row of a tile lies that holds a block's group of four inputs: a half's tiles are those of both strips.
#[inline(always)]
fn tile_row(group: usize) -> usize {
    group / SIDE * TILES_OF_BLOCK / 2 + group % SIDE * LINE
}

/// Sums of the last few tiles of tokens and two strips, which wait to be added. They go out of tiles through memory, and are there when
/// two products have been made and stored; so the next ones begin before.
struct Pending<'a> {
    sums: &'a mut [f32],               // [LAG, 16, 2 strips], int32
    to: [(*const f32, *mut f32); LAG], // scales [16] and totals [16, 2 strips] of each
    next: usize,
}

/// Tiles of tokens whose sums wait.
const LAG: usize = 2;

impl Pending<'_> {
    /// `totals[token, 32] += sums · scale[token]` of the oldest.
    ///
    /// # Safety
    /// Its 16 scales and as many tokens' totals are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    unsafe fn add(&self) {
        let sums = self.sums[self.next * SUMS..][..SUMS].as_ptr();
        let (scales, totals) = self.to[self.next];
        for token in 0..SIDE {
            // SAFETY: the caller's promise; sums are of 16 tokens, too.
            unsafe {
                let scale = _mm512_set1_ps(*scales.add(token));
                for strip in [0, STRIP] {
                    let place = token * 2 * STRIP + strip;
                    let sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.add(place).cast()));
                    let total = totals.add(place);
                    let new = _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(total));
                    _mm512_storeu_ps(total, new);
                }
            }
        }
    }

    /// Those of a new product in place of the oldest, which is added; where they are to be stored.
    ///
    /// # Safety
    /// As for [`Pending::add`], and `scales` and `totals` stay until they are the oldest.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    unsafe fn turn(&mut self, scales: *const f32, totals: *mut f32) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.add() };
        self.to[self.next] = (scales, totals);
        let sums = self.sums[self.next * SUMS..][..SUMS].as_mut_ptr();
        self.next = (self.next + 1) % LAG;
        sums
    }
}

/// Products of some tiles of tokens, from `token` on, and two strips, block by block: a block's weights stay in four tiles while
/// all tokens pass.
///
/// # Safety
/// There are [`Tiles`] in this thread; the panel has the tokens and the blocks. What the last call left pending is still there, and nobody
/// else touches `totals` before what is pending was added.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn multiply(
    panel: &Panel<'_>,
    token: usize,
    blocks: std::ops::Range<usize>,
    weights: &[u8],
    totals: &mut [f32],
    pending: &mut Pending<'_>,
) {
    for (block, weights) in blocks.zip(weights.chunks_exact(TILES_OF_BLOCK)) {
        // SAFETY: the weights are four tiles.
        unsafe { load_weights(weights.as_ptr()) };
        let first = block * panel.width + token;
        for (tile, totals) in totals.chunks_exact_mut(SUMS).enumerate() {
            let at = first + tile * SIDE;
            let x = panel.values[at * BLOCK..][..SIDE * BLOCK].as_ptr();
            let scales = panel.scales[at..][..SIDE].as_ptr();
            // SAFETY: x has 16 rows of 128 bytes, and so have sums; what is pending was set below, or by the caller.
            // What is asked for may be anywhere.
            unsafe {
                let sums = pending.turn(scales, totals.as_mut_ptr());
                multiply_tiles(x, sums);
                for line in (0..SIDE * BLOCK).step_by(LINE) {
                    _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(SIDE * BLOCK + line));
                }
            }
        }
    }
}

/// The weights of a block: 64 inputs of one strip and of the other, and the next 64.
///
/// # Safety
/// `weights` is readable for four tiles; there are [`Tiles`] in this thread.
#[inline(always)]
unsafe fn load_weights(weights: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        tile_asm!(
            "tileloadd tmm4, [{w} + {line}]",
            "tileloadd tmm5, [{w} + {line} + 1024]",
            "tileloadd tmm6, [{w} + {line} + 2048]",
            "tileloadd tmm7, [{w} + {line} + 3072]",
            w = in(reg) weights,
            line = in(reg) 64usize,
        );
    }
}

/// Sums `[16 tokens, 2 strips]` of a block, as int32, of the weights that [`load_weights`] has loaded: nothing but `tile_asm!` changes
/// tile registers, so they are still there. This order, whose loads are half of its products, comes within a fifth of the rate of products
/// alone; two by two tiles with a load for each product take a third longer.
///
/// # Safety
/// `x` is readable and `sums` writable for 16 rows of 128 bytes; there are [`Tiles`] in this thread.
#[inline(always)]
unsafe fn multiply_tiles(x: *const i8, sums: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        tile_asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tileloadd tmm2, [{x} + {row}]",
            "tileloadd tmm3, [{x} + {row} + 64]",
            "tdpbssd tmm0, tmm2, tmm4",
            "tdpbssd tmm1, tmm2, tmm5",
            "tdpbssd tmm0, tmm3, tmm6",
            "tdpbssd tmm1, tmm3, tmm7",
            "tilestored [{sums} + {row}], tmm0",
            "tilestored [{sums} + {row} + 64], tmm1",
            x = in(reg) x,
            sums = in(reg) sums,
            row = in(reg) 128usize,
        );
    }
}
