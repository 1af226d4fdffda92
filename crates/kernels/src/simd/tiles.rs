//! AMX's tile registers: eight of 16 rows of 64 bytes, and an instruction that multiplies two of them (TDPBF16PS).
//!
//! A tile of A holds 16 rows of 16 words, pairs of bf16 along the depth; one of B 16 such words down the depth of 16 columns. Two of
//! each make four of C, as many as eight registers allow: four loads for four products, so that loads from L2 hide.

/// Rows of a tile, and words of one.
pub(crate) const SIDE: usize = 16;
/// Words of a tile.
pub(crate) const TILE: usize = SIDE * SIDE;
/// Words of the next panel of B that each step of [`multiply_panels`] asks for: all of it in four panels of A.
pub(crate) const AHEAD: usize = 128;

/// `asm!` that may change any tile register, as each of these does.
macro_rules! tile_asm {
    ($($part:tt)*) => {
        std::arch::asm!(
            $($part)*
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        )
    };
}
pub(crate) use tile_asm;

/// This thread's tile registers, set to eight of 16 rows of 64 bytes; given back when dropped, as they would else be saved at every
/// switch of threads.
pub(crate) struct Tiles {
    /// Neither sent to another thread nor shared.
    _here: std::marker::PhantomData<*mut ()>,
}

impl Tiles {
    /// # Safety
    /// There are tiles, and the process may use them: [`Isa::best`] says so.
    pub(crate) unsafe fn new() -> Tiles {
        #[repr(align(64))]
        struct Config([u8; 64]);
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        for tile in 0..8 {
            config.0[16 + 2 * tile] = 64;
            config.0[48 + tile] = SIDE as u8;
        }
        // SAFETY: the caller's promise; the configuration is 64 bytes.
        unsafe { tile_asm!("ldtilecfg [{}]", in(reg) config.0.as_ptr(),) };
        Tiles {
            _here: std::marker::PhantomData,
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the tiles are this thread's own.
        unsafe { tile_asm!("tilerelease",) };
    }
}

/// C`[32, 32]` (+)= A`[32, depth]` B`[depth, 32]` of packed panels, step by step two tiles, one after the other; rows of C at a
/// distance of `stride`.
///
/// Meanwhile it asks for [`AHEAD`] words a step from `next` on, and for the rows of C, so that neither is waited for.
///
/// # Safety
/// `c` is readable and writable for 32 rows of 32 numbers at that distance; there are [`Tiles`] in this thread.
#[inline(always)]
pub(crate) unsafe fn multiply_panels(
    a: &[f32],
    b: &[f32],
    c: *mut f32,
    stride: usize,
    accumulate: bool,
    next: *const f32,
) {
    let steps = a.len() / (2 * TILE);
    assert!(a.len() == steps * 2 * TILE && b.len() == a.len() && steps > 0);
    // SAFETY: the panels hold `steps` times two tiles; C is the caller's promise; what is only asked for may be anywhere.
    unsafe {
        tile_asm!(
            "test {accumulate:e}, {accumulate:e}",
            "jz 3f",
            "tileloadd tmm0, [{c} + {stride}]",
            "tileloadd tmm1, [{c} + {stride} + 64]",
            "tileloadd tmm2, [{below} + {stride}]",
            "tileloadd tmm3, [{below} + {stride} + 64]",
            "jmp 2f",
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
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
            accumulate = in(reg) u32::from(accumulate),
            a = inout(reg) a.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            steps = inout(reg) steps => _,
            next = inout(reg) next => _,
            row = inout(reg) c => _,
            line = in(reg) 64usize,
            c = in(reg) c,
            below = in(reg) c.wrapping_add(SIDE * stride),
            stride = in(reg) stride * 4,
        );
    }
}

/// C`[32, 32]` (+)= A`[32, 16 steps]` B`[16 steps, 32]` in words of pairs, each in rows at a distance.
///
/// # Safety
/// A and B are readable and C is readable and writable in that extent; there are [`Tiles`] in this thread.
#[inline(always)]
pub(crate) unsafe fn multiply_rows(
    steps: usize,
    (a, a_stride): (*const f32, usize),
    (b, b_stride): (*const f32, usize),
    (c, c_stride): (*mut f32, usize),
    accumulate: bool,
) {
    assert!(steps > 0);
    // SAFETY: the caller's promise.
    unsafe {
        tile_asm!(
            "test {accumulate:e}, {accumulate:e}",
            "jz 3f",
            "tileloadd tmm0, [{c} + {c_stride}]",
            "tileloadd tmm1, [{c} + {c_stride} + 64]",
            "tileloadd tmm2, [{c_below} + {c_stride}]",
            "tileloadd tmm3, [{c_below} + {c_stride} + 64]",
            "jmp 2f",
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a} + {a_stride}]",
            "tileloadd tmm6, [{b} + {b_stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {b_stride} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a_below} + {a_stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "add {a}, 64",
            "add {a_below}, 64",
            "add {b}, {b_step}",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c} + {c_stride}], tmm0",
            "tilestored [{c} + {c_stride} + 64], tmm1",
            "tilestored [{c_below} + {c_stride}], tmm2",
            "tilestored [{c_below} + {c_stride} + 64], tmm3",
            accumulate = in(reg) u32::from(accumulate),
            a = inout(reg) a => _,
            a_below = inout(reg) a.wrapping_add(SIDE * a_stride) => _,
            a_stride = in(reg) a_stride * 4,
            b = inout(reg) b => _,
            b_stride = in(reg) b_stride * 4,
            b_step = in(reg) SIDE * b_stride * 4,
            steps = inout(reg) steps => _,
            c = in(reg) c,
            c_below = in(reg) c.wrapping_add(SIDE * c_stride),
            c_stride = in(reg) c_stride * 4,
        );
    }
}

/// Multiplies registers of int8 alone, `rounds` times four tiles by others: how many operations that were.
///
/// # Safety
/// There are tiles, and the process may use them.
pub(crate) unsafe fn multiply_registers(rounds: usize) -> u64 {
    // SAFETY: the caller's promise; nothing touches memory.
    unsafe {
        let _tiles = Tiles::new();
        tile_asm!(
            "tilezero tmm4",
            "tilezero tmm5",
            "tilezero tmm6",
            "tilezero tmm7",
            "2:",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
        );
    }
    (rounds.max(1) * 4 * 2 * SIDE * SIDE * 4 * SIDE) as u64
}
