//! One row of logits at a time, on vectors.

use crate::isa::Isa;
use crate::simd::{Body, Scalar, Simd, dispatch};

use super::MAX_SPARSE;

/// The maximum of a row.
#[inline(always)]
fn maximum<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let mut highest = simd.splat(f32::NEG_INFINITY);
    let whole = row.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: a whole vector lies in the row.
        highest = simd.max(highest, unsafe { simd.load(row.as_ptr().add(i)) });
    }
    row[whole..]
        .iter()
        .fold(simd.maximum(highest), |a, &b| if a > b { a } else { b })
}

/// ln Σ exp.
pub(super) struct LogSumExp<'a>(pub &'a [f32]);

impl Body for LogSumExp<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let row = self.0;
        let highest = maximum(simd, row);
        let shift = simd.splat(highest);
        let mut sum = simd.splat(0.0);
        let whole = row.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: a whole vector lies in the row.
            let x = unsafe { simd.load(row.as_ptr().add(i)) };
            sum = simd.add(sum, simd.exp(simd.sub(x, shift)));
        }
        let tail: f32 = row[whole..].iter().map(|x| libm::expf(x - highest)).sum();
        highest + libm::logf(simd.sum(sum) + tail)
    }
}

/// row ← exp(row - maximum); returns the row's ln Σ exp and the sum of what it holds now.
pub(super) struct Exponentials<'a>(pub &'a mut [f32]);

impl Body for Exponentials<'_> {
    type Out = (f32, f32);
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> (f32, f32) {
        let row = self.0;
        let highest = maximum(simd, row);
        let shift = simd.splat(highest);
        let mut sum = simd.splat(0.0);
        let whole = row.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: a whole vector lies in the row.
            unsafe {
                let at = row.as_mut_ptr().add(i);
                let e = simd.exp(simd.sub(simd.load(at), shift));
                simd.store(at, e);
                sum = simd.add(sum, e);
            }
        }
        let mut total = simd.sum(sum);
        for x in &mut row[whole..] {
            *x = libm::expf(*x - highest);
            total += *x;
        }
        (highest + libm::logf(total), total)
    }
}

/// row ← factor · row
pub(super) struct Scale<'a> {
    pub row: &'a mut [f32],
    pub factor: f32,
}

impl Body for Scale<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for x in self.row {
            *x *= self.factor;
        }
    }
}

/// The sum of a row.
struct Sum<'a>(&'a [f32]);

impl Body for Sum<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let row = self.0;
        let mut sum = simd.splat(0.0);
        let whole = row.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: a whole vector lies in the row.
            sum = simd.add(sum, unsafe { simd.load(row.as_ptr().add(i)) });
        }
        simd.sum(sum) + row[whole..].iter().sum::<f32>()
    }
}

/// Where the greatest number stands; the first of several.
pub(super) fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in row.iter().enumerate() {
        if x > row[best] {
            best = i;
        }
    }
    best
}

/// Cross-entropy, z-loss and the divergence from a sparse teacher, but for the target's own share of the gradient.
pub(super) struct Sparse<'a> {
    pub ids: &'a [u32],
    pub log_probs: &'a [f32],
    pub weight: f32,
    pub z_loss: f32,
    pub mix: f32,
}

impl Sparse<'_> {
    /// row ← gradient; returns ln Σ exp and the divergence.
    ///
    /// With S the sum of the student's exponentials outside the K tokens and p_tail = S / Σ exp:
    /// dD/dz = p - q on the K tokens, p (1 - q_tail / p_tail) elsewhere.
    pub(super) fn run(self, isa: Isa, row: &mut [f32]) -> (f32, f32) {
        let Sparse { ids, mix, .. } = self;
        let (mut known, mut exponentials) = ([0.0f32; MAX_SPARSE], [0.0f32; MAX_SPARSE]);
        for (q, &log_prob) in known.iter_mut().zip(self.log_probs) {
            *q = libm::expf(log_prob);
        }
        let known = &mut known[..ids.len()];
        let sum: f32 = known.iter().sum();
        let mut tail = (1.0 - sum).max(0.0);
        if sum > 1.0 || ids.len() == row.len() {
            known.iter_mut().for_each(|q| *q /= sum);
            tail = 0.0;
        }
        // Σ q (ln q - z), and ln Σ exp(z) once for each unit of probability.
        let mut divergence: f64 = 0.0;
        for (&q, &id) in known.iter().zip(ids) {
            if q > 0.0 {
                divergence += f64::from(q) * f64::from(libm::logf(q) - row[id as usize]);
            }
        }
        let (log_sum, total) = dispatch(isa, Exponentials(row));
        divergence += (1.0 - f64::from(tail)) * f64::from(log_sum);
        let inside = 1.0 + 2.0 * self.z_loss * log_sum;
        let mut outside = inside;
        if tail > 0.0 {
            for (e, &id) in exponentials.iter_mut().zip(ids) {
                *e = std::mem::take(&mut row[id as usize]);
            }
            // Summed without the K tokens: their sum taken from the total would leave rounding errors alone where the
            // tail is thin. The floor keeps the quotient finite where every exponential outside has vanished.
            let rest = dispatch(isa, Sum(row)).max(total * 1e-30);
            for (&e, &id) in exponentials.iter().zip(ids) {
                row[id as usize] = e;
            }
            outside -= mix * (tail * (total / rest));
            let log_p_tail = f64::from(libm::logf(rest / total));
            divergence += f64::from(tail) * (f64::from(libm::logf(tail)) - log_p_tail);
        }
        for (e, &id) in exponentials.iter_mut().zip(ids) {
            *e = row[id as usize];
        }
        let factor = self.weight * outside / total;
        dispatch(isa, Scale { row, factor });
        for ((&e, &q), &id) in exponentials.iter().zip(&*known).zip(ids) {
            row[id as usize] = self.weight * (e / total * inside - mix * q);
        }
        (log_sum, divergence as f32)
    }
}

/// Cross-entropy, z-loss and the full divergence, but for the target's own share of the gradient.
///
/// ```text
/// dz = w ((1 - m + 2 ζ ln Σ exp(z)) p + m τ (p_τ - q))
/// ```
/// `row` becomes the gradient; `teacher` is used up. Returns ln Σ exp and the divergence.
pub(super) struct Divergence<'a> {
    pub row: &'a mut [f32],
    pub teacher: &'a mut [f32],
    pub temperature: f32,
    pub weight: f32,
    pub z_loss: f32,
    pub mix: f32,
}

impl Body for Divergence<'_> {
    type Out = (f32, f32);
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> (f32, f32) {
        let Divergence { row, teacher, .. } = self;
        assert_eq!(row.len(), teacher.len());
        let shift = Shift {
            row: maximum(simd, row),
            teacher: maximum(simd, teacher),
            inverse: 1.0 / self.temperature,
        };
        let whole = row.len() / S::LANES * S::LANES;
        let (head, head_teacher) = (&mut row[..whole], &mut teacher[..whole]);
        let mut sums = shift.sums(simd, head, head_teacher);
        let last = shift.sums(Scalar, &mut row[whole..], &mut teacher[whole..]);
        for (sum, last) in sums.iter_mut().zip(last) {
            *sum += last;
        }
        let [plain, tempered, others, cross] = sums;
        let log_sum = shift.row + libm::logf(plain);
        let square = self.temperature * self.temperature;
        let divergence = square * (cross / others - libm::logf(others) + libm::logf(tempered));
        let (weight, strength) = (self.weight, self.weight * self.mix * self.temperature);
        let factors = [
            weight * (1.0 - self.mix + 2.0 * self.z_loss * log_sum) / plain,
            strength / tempered,
            strength / others,
        ];
        let (head, head_teacher) = (&mut row[..whole], &teacher[..whole]);
        shift.gradient(simd, head, head_teacher, factors);
        shift.gradient(Scalar, &mut row[whole..], &teacher[whole..], factors);
        (log_sum, divergence)
    }
}

/// What both rows are shortened by before they are exponents.
struct Shift {
    row: f32,
    teacher: f32,
    inverse: f32, // 1 / τ
}

impl Shift {
    /// teacher ← e = exp(shifted teacher / τ), and row ← exp(shifted row) where τ is 1. Returns the sums of exp(shifted row), of
    /// exp(shifted row / τ), of e, and of e · (shifted teacher - shifted row) / τ.
    #[inline(always)]
    fn sums<S: Simd>(&self, simd: S, row: &mut [f32], teacher: &mut [f32]) -> [f32; 4] {
        let (row_shift, teacher_shift) = (simd.splat(self.row), simd.splat(self.teacher));
        let inverse = simd.splat(self.inverse);
        let mut sums = [simd.splat(0.0); 4];
        for i in (0..row.len()).step_by(S::LANES) {
            // SAFETY: both rows are whole vectors, of the same number.
            unsafe {
                let (at, of) = (row.as_mut_ptr().add(i), teacher.as_mut_ptr().add(i));
                let student = simd.sub(simd.load(at), row_shift);
                let tempered = simd.mul(student, inverse);
                let other = simd.mul(simd.sub(simd.load(of), teacher_shift), inverse);
                let e = simd.exp(other);
                simd.store(of, e);
                let plain = simd.exp(student);
                sums[0] = simd.add(sums[0], plain);
                if self.inverse == 1.0 {
                    simd.store(at, plain);
                } else {
                    sums[1] = simd.add(sums[1], simd.exp(tempered));
                }
                sums[2] = simd.add(sums[2], e);
                sums[3] = simd.mul_add(e, simd.sub(other, tempered), sums[3]);
            }
        }
        if self.inverse == 1.0 {
            sums[1] = sums[0];
        }
        sums.map(|sum| simd.sum(sum))
    }

    /// row ← factors · (exp(shifted row), exp(shifted row / τ), -e)
    #[inline(always)]
    fn gradient<S: Simd>(&self, simd: S, row: &mut [f32], teacher: &[f32], factors: [f32; 3]) {
        let shift = simd.splat(self.row);
        let inverse = simd.splat(self.inverse);
        let [plain, tempered, other] = factors;
        let both = simd.splat(plain + tempered);
        let (plain, tempered) = (simd.splat(plain), simd.splat(tempered));
        let other = simd.splat(-other);
        for i in (0..row.len()).step_by(S::LANES) {
            // SAFETY: both rows are whole vectors, of the same number.
            unsafe {
                let at = row.as_mut_ptr().add(i);
                let x = simd.load(at);
                let student = if self.inverse == 1.0 {
                    simd.mul(x, both)
                } else {
                    let x = simd.sub(x, shift);
                    let warm = simd.mul(simd.exp(simd.mul(x, inverse)), tempered);
                    simd.mul_add(simd.exp(x), plain, warm)
                };
                let e = simd.load(teacher.as_ptr().add(i));
                simd.store(at, simd.mul_add(e, other, student));
            }
        }
    }
}
