//! A running mean of the weights over the steps, which predicts a little better than the last step's weights do while the
//! rate is high (Polyak and Juditsky, 1992).
//!
//! ```text
//! mean ← mean + (1 - β) / (1 - βᵗ) · (weights - mean)          after the t-th update
//! ```
//! The quotient makes it the mean of the weights after all updates so far, weighted by β to the power of their age: the
//! random weights that training begins with have no part in it, and after the first update it is that update's weights.

use russet_kernels::{Pool, optimizer as kernel};
use russet_model::Decoder;
use russet_model::stored::Output;

use crate::Result;
use crate::named::{self, Named};
use crate::pieces::Pieces;

/// The mean, and how it is formed.
#[derive(Clone, Debug)]
pub struct Average {
    decay: f64,
    values: Vec<Named>, // in the order of `decoder.parameters()`
}

impl Average {
    /// Before the first update; `decay` is β.
    pub fn new(decay: f64, decoder: &Decoder) -> Average {
        Average {
            decay,
            values: Named::weights(decoder),
        }
    }

    /// Takes the weights after the update of the given number, counted from 1, in.
    pub fn take(&mut self, pool: &Pool, decoder: &Decoder, update: u64) {
        let gain = (1.0 - self.decay) / (1.0 - libm::pow(self.decay, update as f64));
        for (mean, parameter) in self.values.iter_mut().zip(decoder.parameters()) {
            kernel::average_step(pool, &mut mean.values, parameter.tensor.data(), gain as f32);
        }
    }

    /// Exchanges the decoder's weights and the mean. Twice is nothing.
    pub fn swap(&mut self, decoder: &mut Decoder) {
        let mut means = self.values.iter_mut();
        decoder.visit_mut(&mut |tensor| {
            let mean = means
                .next()
                .expect("a decoder with the parameters of the mean's");
            tensor.data_mut().swap_with_slice(&mut mean.values);
        });
    }

    /// Hands out each parameter's mean, to be changed in place.
    pub(crate) fn each(&mut self, change: &mut dyn FnMut(&mut [f32])) {
        self.values
            .iter_mut()
            .for_each(|mean| change(&mut mean.values));
    }

    /// Bytes of the mean.
    pub fn bytes(&self) -> usize {
        self.values
            .iter()
            .map(|mean| size_of_val(&mean.values[..]))
            .sum()
    }

    /// Adds the mean to the tensors of a file, under the parameters' names with `.mean` added.
    pub(crate) fn outputs<'a>(&'a self, outputs: &mut Vec<Output<'a>>) {
        for Named { cut, values } in &self.values {
            named::write(cut, values, ".mean", outputs);
        }
    }

    /// Reads what [`Average::outputs`] wrote, on whatever mesh.
    ///
    /// # Errors
    /// When something is missing, damaged, or of another decoder.
    pub(crate) fn load(&mut self, saved: &mut Pieces) -> Result<()> {
        for (number, Named { cut, values }) in self.values.iter_mut().enumerate() {
            *values = saved.read(number, cut, ".mean")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pieces::{self, ONE_RANK};
    use crate::run::tests::{context, tiny};

    fn values(decoder: &Decoder) -> Vec<f32> {
        let parameters = decoder.parameters();
        let data = parameters.iter().map(|parameter| parameter.tensor.data());
        data.flatten().copied().collect()
    }

    /// Weights of step t are t · the first ones.
    fn grow(decoder: &mut Decoder, t: f32) {
        let mut first = tiny();
        let mut all = Vec::new();
        first.visit_mut(&mut |tensor| all.push(tensor.data().to_vec()));
        let mut all = all.into_iter();
        decoder.visit_mut(&mut |tensor| {
            let from = all.next().unwrap();
            for (to, from) in tensor.data_mut().iter_mut().zip(from) {
                *to = t * from;
            }
        });
    }

    #[test]
    fn it_is_the_mean_weighted_by_age_without_the_first_weights() {
        let ctx = context(2);
        let mut decoder = tiny();
        let first = values(&decoder);
        let mut average = Average::new(0.5, &decoder);
        for t in 1..=3 {
            grow(&mut decoder, t as f32);
            average.take(&ctx.pool, &decoder, t);
        }
        average.swap(&mut decoder);
        // (1/4 · 1 + 1/2 · 2 + 1 · 3) / (1/4 + 1/2 + 1) = 17/7
        for (found, first) in values(&decoder).iter().zip(&first) {
            let want = 17.0 / 7.0 * first;
            assert!((found - want).abs() <= 1e-6 * want.abs(), "{found} {want}");
        }
        average.swap(&mut decoder);
        let third: Vec<f32> = first.iter().map(|first| 3.0 * first).collect();
        assert_eq!(values(&decoder), third, "twice is nothing");
    }

    #[test]
    fn it_reads_back_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let ctx = context(1);
        let mut decoder = tiny();
        let mut average = Average::new(0.9, &decoder);
        for t in 1..=3 {
            grow(&mut decoder, t as f32);
            average.take(&ctx.pool, &decoder, t);
        }
        let mut outputs = Vec::new();
        average.outputs(&mut outputs);
        pieces::write(dir.path(), 0, &outputs).unwrap();
        let mut again = Average::new(0.9, &tiny());
        let mut saved = Pieces::open(dir.path(), decoder.config(), ONE_RANK).unwrap();
        again.load(&mut saved).unwrap();
        saved.finish().unwrap();
        for (a, b) in average.values.iter().zip(&again.values) {
            assert_eq!(a.values, b.values);
        }
        assert_eq!(average.bytes(), 4 * decoder.config().parameters());
    }
}
