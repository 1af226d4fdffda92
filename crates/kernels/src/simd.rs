//! One vocabulary of vector operations for three instruction sets, so that a kernel is written once.
//!
//! A kernel body is a generic function over [`Simd`], compiled three times by [`dispatch`]; loops
//! that the compiler vectorises by itself need no vocabulary and go through [`vectorize`]. A value of
//! type [`Avx2`] or [`Avx512`] proves that the CPU has the instructions, so operations on registers
//! are safe; those that take pointers are not. Everything is `inline(always)`: a call left standing
//! would lose the instruction set of its caller.
//!
//! Of integers it has what attention over 8-bit pages needs, one product and rounding to 16 bits; it leaves out permutations: the palettized
//! kernels have their own.

use crate::isa::Isa;
use crate::quantize::rounded;
use half::f16;

#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86;

/// f32 vectors of one instruction set.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Numbers in a vector, 1, 8 or 16.
    const LANES: usize;
    /// Vector registers to plan for.
    const REGISTERS: usize;
    /// Whether [`Simd::mul_add_pairs`] and its kin exist: lanes that hold two bf16 numbers each.
    const PAIRS: bool = false;
    /// Whether [`Simd::multiply_square`] exists: tile registers, of the thread that the body runs in and for as long as it does. Such a
    /// body neither takes its vectors to another thread nor dispatches to tiles within itself: the inner one would give them back.
    const TILES: bool = false;
    /// A vector.
    type V: Copy;
    /// `LANES` integers of 32 bits.
    type I: Copy;
    /// `LANES` vectors.
    type Block: Copy + AsRef<[Self::V]>;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `at` is readable for `LANES` numbers.
    unsafe fn load(self, at: *const f32) -> Self::V;
    /// The first `count` < `LANES` numbers, zeros after.
    /// # Safety
    /// `at` is readable for `count` numbers.
    unsafe fn load_first(self, at: *const f32, count: usize) -> Self::V;
    /// `LANES` numbers of half precision.
    /// # Safety
    /// `at` is readable for as many.
    unsafe fn load_halves(self, at: *const f16) -> Self::V;
    /// # Safety
    /// `at` is writable for `LANES` numbers.
    unsafe fn store(self, at: *mut f32, v: Self::V);
    /// Rounds to half precision.
    /// # Safety
    /// `at` is writable for `LANES` numbers.
    unsafe fn store_halves(self, at: *mut f16, v: Self::V);
    /// # Safety
    /// `at` is writable for `count` < `LANES` numbers.
    unsafe fn store_first(self, at: *mut f32, count: usize, v: Self::V);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The greater; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c; rounded once, except in the portable body, where a fused product would be a call.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The nearest integers, halves to even; |x| < 2²².
    fn round(self, x: Self::V) -> Self::V;
    /// 2ⁿ for integers -126 ≤ n ≤ 127.
    fn exp2_integer(self, n: Self::V) -> Self::V;
    /// 0 where `x` < `bound`, `value` elsewhere (also where `x` is NaN).
    fn zero_where_below(self, x: Self::V, bound: Self::V, value: Self::V) -> Self::V;
    /// The sum over lanes, by halving.
    fn sum(self, v: Self::V) -> f32;
    /// Lane 0.
    fn first(self, v: Self::V) -> f32;
    /// The maximum over lanes.
    fn maximum(self, v: Self::V) -> f32;
    /// Asks for the cache line at `at`, which need not be a valid address.
    fn prefetch(self, at: *const f32);
    /// Reads a block of `rows` x `cols` (each 1..=`LANES`), rows at a distance of `stride`, and
    /// transposes it: lane i of vector j is `at[i * stride + j]`. Lanes from `rows` on and vectors
    /// from `cols` on hold numbers of no meaning.
    /// # Safety
    /// The block is readable.
    unsafe fn load_transposed(
        self,
        at: *const f32,
        stride: usize,
        rows: usize,
        cols: usize,
    ) -> Self::Block;

    /// Lane i: `even[i]` and `odd[i]` rounded to bf16, the even one in the lower half.
    #[inline(always)]
    fn pairs(self, _even: Self::V, _odd: Self::V) -> Self::V {
        unreachable!("no pairs of bf16 here")
    }
    /// Lane i: numbers 2 i and 2 i + 1 of `first` and then `second`, rounded to bf16, the even one in the lower half.
    #[inline(always)]
    fn neighbours(self, _first: Self::V, _second: Self::V) -> Self::V {
        unreachable!("no pairs of bf16 here")
    }
    /// Lane i: c + a.odd · b.odd, rounded, then + a.even · b.even, rounded; results below 2⁻¹²⁶ become 0.
    #[inline(always)]
    fn mul_add_pairs(self, _a: Self::V, _b: Self::V, _c: Self::V) -> Self::V {
        unreachable!("no pairs of bf16 here")
    }
    /// As [`Simd::load_transposed`] of `cols` (up to 2 `LANES`) numbers a row, neighbours joined as by [`Simd::pairs`]
    /// with 0 after an odd number of them: lane i of vector j is `at[i * stride + 2 j]` and the one after it.
    /// # Safety
    /// The block is readable.
    #[inline(always)]
    unsafe fn load_pairs_transposed(
        self,
        _at: *const f32,
        _stride: usize,
        _rows: usize,
        _cols: usize,
    ) -> Self::Block {
        unreachable!("no pairs of bf16 here")
    }

    /// C`[32, 32]` (+)= A`[32, 16 steps]` B`[16 steps, 32]` in words of pairs, each as where it begins and the distance of its rows.
    /// Of each 16 words the first numbers and the second are summed apart, in order, then both added to C; sums below 2⁻¹²⁶
    /// become 0.
    /// # Safety
    /// A and B are readable, and C is readable and writable, in that extent.
    #[inline(always)]
    unsafe fn multiply_square(
        self,
        _steps: usize,
        _a: (*const f32, usize),
        _b: (*const f32, usize),
        _c: (*mut f32, usize),
        _accumulate: bool,
    ) {
        unreachable!("no tiles here")
    }

    /// Zeros.
    fn no_integers(self) -> Self::I;
    /// In every lane the two numbers at `at`.
    /// # Safety
    /// `at` is readable for 2 numbers.
    unsafe fn splat_two(self, at: *const i16) -> Self::I;
    /// Lane i: numbers 2 i and 2 i + 1, made 16 bits wide.
    /// # Safety
    /// `at` is readable for 2 `LANES` numbers.
    unsafe fn load_twos_of_8(self, at: *const i8) -> Self::I;
    /// Lane i: c + a.first · b.first + a.second · b.second, exact where it fits 32 bits and no product is of two -2¹⁵.
    fn mul_add_twos(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I;
    /// The nearest f32 of each integer.
    fn integers(self, x: Self::I) -> Self::V;
    /// The nearest integer of each number, ties to even; any at all of one that 16 bits have no place for.
    /// # Safety
    /// `at` is writable for `LANES` numbers.
    unsafe fn store_rounded(self, at: *mut i16, v: Self::V);

    /// eˣ to 2 units in the last place. 0 below -87.3 (where the result would be subnormal), finite
    /// above 88.3 (clamped), NaN for NaN.
    ///
    /// x = n ln 2 + r with |r| ≤ ln 2 / 2, then 2ⁿ times the polynomial of Cephes' `expf`.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let lowest = self.splat(-87.3);
        // The order of operands lets NaN through.
        let clamped = self.min(self.splat(88.3), self.max(lowest, x));
        let n = self.round(self.mul(clamped, self.splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts; the first has few enough bits that n times it is exact.
        let r = self.mul_add(n, self.splat(-0.693_359_4), clamped);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let mut y = self.splat(1.987_569_1e-4);
        for coefficient in [
            1.398_2e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ] {
            y = self.mul_add(y, r, self.splat(coefficient));
        }
        let y = self.add(self.mul_add(y, self.mul(r, r), r), self.splat(1.0));
        self.zero_where_below(x, lowest, self.mul(y, self.exp2_integer(n)))
    }

    /// As many numbers as a loop over a slice has left: a full vector or its beginning.
    /// # Safety
    /// `at` is readable for `min(left, LANES)` numbers.
    #[inline(always)]
    unsafe fn load_up_to(self, at: *const f32, left: usize) -> Self::V {
        // SAFETY: as the caller promises.
        unsafe {
            if left >= Self::LANES {
                self.load(at)
            } else {
                self.load_first(at, left)
            }
        }
    }

    /// The counterpart of [`Simd::load_up_to`].
    /// # Safety
    /// `at` is writable for `min(left, LANES)` numbers.
    #[inline(always)]
    unsafe fn store_up_to(self, at: *mut f32, left: usize, v: Self::V) {
        // SAFETY: as the caller promises.
        unsafe {
            if left >= Self::LANES {
                self.store(at, v)
            } else {
                self.store_first(at, left, v)
            }
        }
    }
}

/// A body that runs on any instruction set.
///
/// Its `run`, and every generic function it calls with the vectors, must be `inline(always)`, and it
/// must not use vectors in a closure that it hands to another function: what is not inlined is
/// compiled without the instruction set, a hundred times slower.
pub(crate) trait Body {
    /// What it returns.
    type Out;
    /// The body.
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

/// Runs `body` on `isa`.
///
/// # Panics
/// When the CPU lacks `isa`; a [`crate::Pool`] never holds such a one.
#[inline]
pub(crate) fn dispatch<B: Body>(isa: Isa, body: B) -> B::Out {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Scalar => body.run(Scalar),
        Isa::Avx2 => x86::run_avx2(body),
        Isa::Avx512 | Isa::Amx => x86::run_avx512(body),
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        assert_eq!(isa, Isa::Scalar);
        body.run(Scalar)
    }
}

/// As [`dispatch`], for `BF16` on vectors with [`Simd::PAIRS`] where the CPU multiplies them, and on AMX with [`Simd::TILES`].
#[inline]
pub(crate) fn dispatch_in<const BF16: bool, B: Body>(isa: Isa, body: B) -> B::Out {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512 if BF16 && Isa::has_bf16() => return x86::run_avx512_bf16(body),
        Isa::Amx if BF16 => return x86::run_amx(body),
        _ => {}
    }
    dispatch(isa, body)
}

/// Runs a closure `|| …` compiled for an instruction set, for loops that the compiler vectorises by itself.
///
/// Such loops contain no fused multiply-add and no reduction but over arrays of lanes, so they give
/// the same bits on every instruction set. The closure is written out once for each set, which is why this is a macro: the compiler
/// leaves one closure that all of them call standing where it is long, and compiles it without any.
macro_rules! vectorize {
    ($isa:expr, $body:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx2 => $crate::simd::plain_avx2($body),
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512 | $crate::Isa::Amx => $crate::simd::plain_avx512($body),
            _ => $body(),
        }
    };
}
pub(crate) use vectorize;

/// A loop that uses no vectors of ours.
#[cfg(target_arch = "x86_64")]
struct Plain<F>(F);

#[cfg(target_arch = "x86_64")]
impl<R, F: FnOnce() -> R> Body for Plain<F> {
    type Out = R;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> R {
        (self.0)()
    }
}

/// For [`vectorize`].
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn plain_avx2<R>(body: impl FnOnce() -> R) -> R {
    x86::run_avx2(Plain(body))
}

/// For [`vectorize`].
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn plain_avx512<R>(body: impl FnOnce() -> R) -> R {
    x86::run_avx512(Plain(body))
}

/// The portable body: one number at a time, in plain Rust. Also the oracle.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    const LANES: usize = 1;
    const REGISTERS: usize = 16;
    type V = f32;
    type I = i32;
    type Block = [f32; 1];

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *at }
    }
    #[inline(always)]
    unsafe fn load_first(self, _: *const f32, _: usize) -> f32 {
        0.0
    }
    #[inline(always)]
    unsafe fn load_halves(self, at: *const f16) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { f16::to_f32_const(*at) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: f32) {
        // SAFETY: the caller's promise.
        unsafe { *at = v }
    }
    #[inline(always)]
    unsafe fn store_first(self, _: *mut f32, _: usize, _: f32) {}
    #[inline(always)]
    unsafe fn store_halves(self, at: *mut f16, v: f32) {
        // SAFETY: the caller's promise.
        unsafe { at.write(f16::from_f32(v)) }
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    fn round(self, x: f32) -> f32 {
        // Adding 1.5 · 2²³ leaves no bits for a fraction.
        const MAGIC: f32 = 12_582_912.0;
        (x + MAGIC) - MAGIC
    }
    #[inline(always)]
    fn exp2_integer(self, n: f32) -> f32 {
        f32::from_bits(((n as i32 + 127) as u32) << 23)
    }
    #[inline(always)]
    fn zero_where_below(self, x: f32, bound: f32, value: f32) -> f32 {
        if x < bound { 0.0 } else { value }
    }
    #[inline(always)]
    fn sum(self, v: f32) -> f32 {
        v
    }
    #[inline(always)]
    fn first(self, v: f32) -> f32 {
        v
    }
    #[inline(always)]
    fn maximum(self, v: f32) -> f32 {
        v
    }
    #[inline(always)]
    fn prefetch(self, _: *const f32) {}
    #[inline(always)]
    unsafe fn load_transposed(self, at: *const f32, _: usize, _: usize, _: usize) -> [f32; 1] {
        // SAFETY: the caller's promise.
        [unsafe { *at }]
    }
    #[inline(always)]
    fn no_integers(self) -> i32 {
        0
    }
    #[inline(always)]
    unsafe fn splat_two(self, at: *const i16) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<i32>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_twos_of_8(self, at: *const i8) -> i32 {
        // SAFETY: the caller's promise.
        let [first, second] = unsafe { at.cast::<[i8; 2]>().read() };
        two(first.into(), second.into())
    }
    #[inline(always)]
    fn mul_add_twos(self, a: i32, b: i32, c: i32) -> i32 {
        let halves = |x: i32| bytemuck::cast::<i32, [i16; 2]>(x).map(i32::from);
        let ([a, a_second], [b, b_second]) = (halves(a), halves(b));
        c + a * b + a_second * b_second
    }
    #[inline(always)]
    fn integers(self, x: i32) -> f32 {
        x as f32
    }
    #[inline(always)]
    unsafe fn store_rounded(self, at: *mut i16, x: f32) {
        // SAFETY: the caller's promise.
        unsafe { at.write(rounded(x, 1.0) as i16) }
    }
}

/// Two numbers in the order of memory.
#[inline(always)]
fn two(first: i16, second: i16) -> i32 {
    bytemuck::cast([first, second])
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a [f32], &'a mut [f32]);
    impl Body for Exp<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for (x, y) in self.0.chunks(S::LANES).zip(self.1.chunks_mut(S::LANES)) {
                // SAFETY: both chunks hold `x.len()` numbers.
                unsafe {
                    let v = simd.exp(simd.load_up_to(x.as_ptr(), x.len()));
                    simd.store_up_to(y.as_mut_ptr(), x.len(), v);
                }
            }
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let x: Vec<f32> = (-87_299..88_299)
            .map(|i| i as f32 * 1e-3 + 1.7e-4)
            .collect();
        for isa in Isa::available() {
            let mut y = vec![0.0; x.len()];
            dispatch(isa, Exp(&x, &mut y));
            for (&x, &y) in x.iter().zip(&y) {
                let want = f64::from(x).exp();
                let error = (f64::from(y) - want).abs() / want;
                assert!(
                    error < 2.0 * f64::from(f32::EPSILON),
                    "{isa:?}: exp({x}) = {y}, not {want}"
                );
            }
        }
    }

    #[test]
    fn exp_at_the_ends_of_its_range() {
        for isa in Isa::available() {
            let x = [
                f32::NEG_INFINITY,
                -1e30,
                -87.4,
                0.0,
                -0.0,
                1e30,
                f32::INFINITY,
                f32::NAN,
            ];
            let mut y = [0.5; 8];
            dispatch(isa, Exp(&x, &mut y));
            assert_eq!(y[..5], [0.0, 0.0, 0.0, 1.0, 1.0], "{isa:?}");
            assert!(
                y[5] > 2e38 && y[5].is_finite() && y[6] == y[5] && y[7].is_nan(),
                "{isa:?}"
            );
        }
    }

    struct Reduce<'a>(&'a [f32]);
    impl Body for Reduce<'_> {
        type Out = (f32, f32);
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> (f32, f32) {
            // SAFETY: the test passes 16 numbers, the widest vector.
            let v = unsafe { simd.load(self.0.as_ptr()) };
            (simd.sum(v), simd.maximum(v))
        }
    }

    #[test]
    fn reductions_see_every_lane_once() {
        for isa in Isa::available() {
            let lanes = match isa {
                Isa::Scalar => 1,
                Isa::Avx2 => 8,
                Isa::Avx512 | Isa::Amx => 16,
            };
            for lane in 0..lanes {
                let mut x = [-1.0; 16];
                x[lane] = 4.0;
                let got = dispatch(isa, Reduce(&x));
                assert_eq!(got, (4.0 - (lanes - 1) as f32, 4.0), "{isa:?}, lane {lane}");
            }
        }
    }

    #[test]
    fn rounding_goes_to_even() {
        struct Round<'a>(&'a mut [f32; 16]);
        impl Body for Round<'_> {
            type Out = ();
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                for i in (0..16).step_by(S::LANES) {
                    // SAFETY: the vector lies inside the sixteen.
                    unsafe {
                        let at = self.0.as_mut_ptr().add(i);
                        simd.store(at, simd.round(simd.load(at)));
                    }
                }
            }
        }
        let x: [f32; 16] = std::array::from_fn(|i| i as f32 * 0.5 - 4.0);
        for isa in Isa::available() {
            let mut y = x;
            dispatch(isa, Round(&mut y));
            assert_eq!(y, x.map(f32::round_ties_even), "{isa:?}");
        }
    }
}
