//! AVX2 and AVX-512 vectors.

use super::tiles::{self, Tiles};
use super::{Body, Simd};
use crate::isa::Isa;
use half::f16;
use std::arch::x86_64::*;

/// AVX2 with FMA: eight lanes. Exists only where the CPU has them.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// AVX-512 F, BW, VL and VNNI, with `BF16` also that, with `AMX` also tile registers: sixteen lanes. Exists only where the CPU has
/// them, and the last only while [`run_amx`] has set the tiles.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool, const AMX: bool>(());

/// Runs `body` on AVX2.
#[inline]
pub(super) fn run_avx2<B: Body>(body: B) -> B::Out {
    #[target_feature(enable = "avx,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn inner<B: Body>(body: B) -> B::Out {
        body.run(Avx2(()))
    }
    assert!(Isa::best() >= Isa::Avx2);
    // SAFETY: just checked.
    unsafe { inner(body) }
}

/// Runs `body` on AVX-512.
#[inline]
pub(super) fn run_avx512<B: Body>(body: B) -> B::Out {
    #[target_feature(enable = "avx,avx2,fma,f16c,bmi1,bmi2,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn inner<B: Body>(body: B) -> B::Out {
        body.run(Avx512::<false, false>(()))
    }
    assert!(Isa::best() >= Isa::Avx512);
    // SAFETY: just checked.
    unsafe { inner(body) }
}

/// Runs `body` on AVX-512 with BF16.
#[inline]
pub(super) fn run_avx512_bf16<B: Body>(body: B) -> B::Out {
    #[target_feature(
        enable = "avx,avx2,fma,f16c,bmi1,bmi2,avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16"
    )]
    unsafe fn inner<B: Body>(body: B) -> B::Out {
        body.run(Avx512::<true, false>(()))
    }
    assert!(Isa::best() >= Isa::Avx512 && Isa::has_bf16());
    // SAFETY: just checked.
    unsafe { inner(body) }
}

/// Runs `body` on AVX-512 with BF16 and tiles.
#[inline]
pub(super) fn run_amx<B: Body>(body: B) -> B::Out {
    #[target_feature(
        enable = "avx,avx2,fma,f16c,bmi1,bmi2,avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16"
    )]
    unsafe fn inner<B: Body>(body: B) -> B::Out {
        body.run(Avx512::<true, true>(()))
    }
    assert!(Isa::best() >= Isa::Amx);
    // SAFETY: just checked.
    unsafe {
        let _tiles = Tiles::new();
        inner(body)
    }
}

/// The mask of the first `count` of eight lanes.
#[inline(always)]
unsafe fn first_of_eight(count: usize) -> __m256i {
    // SAFETY: called from AVX2 bodies only.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes)
    }
}

// SAFETY of all blocks below: an `Avx2` or `Avx512` is made only in the four functions above, after
// the CPU was asked; pointers are as the trait's methods demand.
impl Simd for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    type V = __m256;
    type I = __m256i;
    type Block = [__m256; 8];

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn load_first(self, at: *const f32, count: usize) -> __m256 {
        // SAFETY: masked lanes are not read.
        unsafe { _mm256_maskload_ps(at, first_of_eight(count)) }
    }
    #[inline(always)]
    unsafe fn load_halves(self, at: *const f16) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: __m256) {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_storeu_ps(at, v) }
    }
    #[inline(always)]
    unsafe fn store_halves(self, at: *mut f16, v: __m256) {
        // SAFETY: see the top of the implementation.
        unsafe { _mm_storeu_si128(at.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn store_first(self, at: *mut f32, count: usize, v: __m256) {
        // SAFETY: masked lanes are not written.
        unsafe { _mm256_maskstore_ps(at, first_of_eight(count), v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, x: __m256) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn exp2_integer(self, n: __m256) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn zero_where_below(self, x: __m256, bound: __m256, value: __m256) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, bound), value) }
    }
    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn first(self, v: __m256) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_cvtss_f32(v) }
    }
    #[inline(always)]
    fn maximum(self, v: __m256) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        // SAFETY: a prefetch reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn no_integers(self) -> __m256i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn splat_two(self, at: *const i16) -> __m256i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_set1_epi32(at.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_twos_of_8(self, at: *const i8) -> __m256i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())) }
    }
    #[inline(always)]
    fn mul_add_twos(self, a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_add_epi32(c, _mm256_madd_epi16(a, b)) }
    }
    #[inline(always)]
    fn integers(self, x: __m256i) -> __m256 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn store_rounded(self, at: *mut i16, v: __m256) {
        // SAFETY: see the top of the implementation.
        unsafe {
            let x = _mm256_cvtps_epi32(v);
            let x = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
            _mm_storeu_si128(at.cast(), x);
        }
    }
    #[inline(always)]
    unsafe fn load_transposed(
        self,
        at: *const f32,
        stride: usize,
        rows: usize,
        cols: usize,
    ) -> [__m256; 8] {
        // SAFETY: rows beyond the last repeat it, so every read lies in the block.
        unsafe {
            let mut r = [_mm256_setzero_ps(); 8];
            for (i, r) in r.iter_mut().enumerate() {
                *r = self.load_up_to(at.add(i.min(rows - 1) * stride), cols);
            }
            // Pairs of numbers.
            let mut t = r;
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            // Pairs of pairs: u[4 h + j] has columns j and 4 + j in its halves, rows 4 h .. 4 h + 4.
            let mut u = t;
            for h in 0..2 {
                for j in 0..2 {
                    let a = _mm256_castps_pd(t[4 * h + j]);
                    let b = _mm256_castps_pd(t[4 * h + 2 + j]);
                    u[4 * h + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                    u[4 * h + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
                }
            }
            let mut columns = u;
            for j in 0..4 {
                columns[j] = _mm256_permute2f128_ps::<0x20>(u[j], u[4 + j]);
                columns[4 + j] = _mm256_permute2f128_ps::<0x31>(u[j], u[4 + j]);
            }
            columns
        }
    }
}

impl<const BF16: bool, const AMX: bool> Simd for Avx512<BF16, AMX> {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const PAIRS: bool = BF16;
    const TILES: bool = AMX;
    type V = __m512;
    type I = __m512i;
    type Block = [__m512; 16];

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn load_first(self, at: *const f32, count: usize) -> __m512 {
        // SAFETY: masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps((1u16 << count).wrapping_sub(1), at) }
    }
    #[inline(always)]
    unsafe fn load_halves(self, at: *const f16) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: __m512) {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_storeu_ps(at, v) }
    }
    #[inline(always)]
    unsafe fn store_halves(self, at: *mut f16, v: __m512) {
        // SAFETY: see the top of the implementation.
        unsafe { _mm256_storeu_si256(at.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn store_first(self, at: *mut f32, count: usize, v: __m512) {
        // SAFETY: masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(at, (1u16 << count).wrapping_sub(1), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn exp2_integer(self, n: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn zero_where_below(self, x: __m512, bound: __m512, value: __m512) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound), value) }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    fn first(self, v: __m512) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_cvtss_f32(v) }
    }
    #[inline(always)]
    fn maximum(self, v: __m512) -> f32 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        // SAFETY: a prefetch reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn no_integers(self) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn splat_two(self, at: *const i16) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_set1_epi32(at.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_twos_of_8(self, at: *const i8) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(at.cast())) }
    }
    #[inline(always)]
    fn mul_add_twos(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        // SAFETY: see the top of the implementation.
        unsafe { dpwssd(a, b, c) }
    }
    #[inline(always)]
    fn integers(self, x: __m512i) -> __m512 {
        // SAFETY: see the top of the implementation.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn store_rounded(self, at: *mut i16, v: __m512) {
        // SAFETY: see the top of the implementation.
        unsafe {
            let x = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v));
            _mm256_storeu_si256(at.cast(), x);
        }
    }
    #[inline(always)]
    unsafe fn load_transposed(
        self,
        at: *const f32,
        stride: usize,
        rows: usize,
        cols: usize,
    ) -> [__m512; 16] {
        // SAFETY: rows beyond the last repeat it, so every read lies in the block.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for (i, r) in r.iter_mut().enumerate() {
                *r = self.load_up_to(at.add(i.min(rows - 1) * stride), cols);
            }
            transposed(r)
        }
    }
    #[inline(always)]
    unsafe fn multiply_square(
        self,
        steps: usize,
        a: (*const f32, usize),
        b: (*const f32, usize),
        c: (*mut f32, usize),
        accumulate: bool,
    ) {
        assert!(AMX);
        // SAFETY: the caller's promise; as `AMX` says, the tiles of this thread are set.
        unsafe { tiles::multiply_rows(steps, a, b, c, accumulate) }
    }
    #[inline(always)]
    fn pairs(self, even: __m512, odd: __m512) -> __m512 {
        assert!(BF16);
        // SAFETY: as `BF16` says, the CPU has it.
        unsafe {
            let halves = _mm512_cvtne2ps_pbh(odd, even); // evens, then odds
            let order = _mm512_loadu_epi16(INTERLEAVE.as_ptr());
            let pairs = _mm512_permutexvar_epi16(order, as_integers(halves));
            _mm512_castsi512_ps(pairs)
        }
    }
    #[inline(always)]
    fn neighbours(self, first: __m512, second: __m512) -> __m512 {
        assert!(BF16);
        // SAFETY: as `BF16` says, the CPU has it.
        unsafe { _mm512_castsi512_ps(as_integers(_mm512_cvtne2ps_pbh(second, first))) }
    }
    #[inline(always)]
    fn mul_add_pairs(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        assert!(BF16);
        // SAFETY: as `BF16` says, the CPU has it.
        unsafe { _mm512_dpbf16_ps(c, as_bf16(a), as_bf16(b)) }
    }
    #[inline(always)]
    unsafe fn load_pairs_transposed(
        self,
        at: *const f32,
        stride: usize,
        rows: usize,
        cols: usize,
    ) -> [__m512; 16] {
        assert!(BF16);
        // SAFETY: rows beyond the last repeat it, so every read lies in the block; as `BF16` says, the CPU has it.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for (i, r) in r.iter_mut().enumerate() {
                let at = at.add(i.min(rows - 1) * stride);
                let first = self.load_up_to(at, cols);
                let second = if cols > 16 {
                    self.load_up_to(at.add(16), cols - 16)
                } else {
                    _mm512_setzero_ps()
                };
                *r = _mm512_castsi512_ps(as_integers(_mm512_cvtne2ps_pbh(second, first)));
            }
            transposed(r)
        }
    }
}

/// Words 0, 16, 1, 17, …: one from each half in turn.
static INTERLEAVE: [i16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as i16;
        i += 1;
    }
    order
};

#[inline(always)]
fn as_integers(v: __m512bh) -> __m512i {
    // SAFETY: 64 bytes either way, and any bits are integers.
    unsafe { std::mem::transmute(v) }
}

#[inline(always)]
fn as_bf16(v: __m512) -> __m512bh {
    // SAFETY: 64 bytes either way, and any bits are bf16 numbers.
    unsafe { std::mem::transmute(v) }
}

/// Vector j of the result holds lane j of each vector.
///
/// # Safety
/// The CPU has AVX-512.
#[inline(always)]
unsafe fn transposed(r: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: the caller's promise.
    unsafe {
        // Pairs of numbers.
        let mut t = r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        // Pairs of pairs: u[4 h + j] has columns j, 4 + j, 8 + j, 12 + j in its quarters, rows 4 h .. 4 h + 4.
        let mut u = t;
        for h in 0..4 {
            for j in 0..2 {
                let a = _mm512_castps_pd(t[4 * h + j]);
                let b = _mm512_castps_pd(t[4 * h + 2 + j]);
                u[4 * h + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                u[4 * h + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
            }
        }
        // Quarters, twice: w[4 h + j] has columns j and 8 + j, w[8 + 4 h + j] columns 4 + j and 12 + j,
        // rows 8 h .. 8 h + 8.
        let mut w = u;
        for h in 0..2 {
            for j in 0..4 {
                let (a, b) = (u[8 * h + j], u[8 * h + 4 + j]);
                w[4 * h + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                w[8 + 4 * h + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
            }
        }
        let mut columns = w;
        for q in 0..2 {
            for j in 0..4 {
                let (a, b) = (w[8 * q + j], w[8 * q + 4 + j]);
                columns[4 * q + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                columns[8 + 4 * q + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
            }
        }
        columns
    }
}

/// c + a · b, twos of 16 bits. Of the intrinsic the compiler makes two instructions, as if latency mattered where sums are many.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dpwssd(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    let mut sum = c;
    // SAFETY: it reads and writes these registers alone.
    unsafe {
        core::arch::asm!(
            "vpdpwssd {sum}, {a}, {b}",
            sum = inout(zmm_reg) sum,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
