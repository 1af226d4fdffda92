//! Palettized weights that learn: what is stored of them in the end is what the forward pass multiplies by.
//!
//! ```text
//! p = round(127 e), as an int8      s = f16(s₀ f)      ŵ by [`russet_kernels::codebook`]
//! ```
//! Both roundings are passed straight through (arXiv 1308.3432), and so is that of activations.

use std::sync::Arc;

use half::f16;
use russet_kernels::Pool;
use russet_kernels::codebook::{self, Codebook};
use russet_kernels::palette::Bits;

use crate::{Ctx, Tensor};

/// What an entry is counted in.
const UNIT: f32 = 127.0;

/// A palettized matrix `[rows, cols]` that learns.
#[derive(Clone)]
pub struct Learnt {
    /// Bits a weight, of single weights or of pairs.
    pub bits: Bits,
    /// e: entries over 127, flat in the order of [`Codebook`]'s.
    pub entries: Tensor,
    /// f of each row.
    pub factors: Tensor,
    /// s₀ of each row.
    pub scales: Arc<[f32]>,
    /// What chooses entries.
    pub from: LearntFrom,
}

/// What chooses the entries that a [`Learnt`] matrix is made of.
#[derive(Clone)]
pub enum LearntFrom {
    /// Indices as they are, `[rows, indices of a row]`.
    Indices(Arc<[u8]>),
    /// The nearest to weights `[rows, cols]`, which learn.
    Nearest(Tensor),
    /// While gradients are recorded all entries softly, by their distance from weights that learn; else the nearest. The temperature is that of
    /// [`Codebook::softness`].
    Soft(Tensor, f32),
}

impl Learnt {
    /// Output features.
    pub fn rows(&self) -> usize {
        self.scales.len()
    }

    /// p and s as they would be stored.
    pub fn stored(&self) -> (Vec<f32>, Vec<f16>) {
        let (least, most) = (f32::from(i8::MIN), f32::from(i8::MAX));
        let entry = |e: &f32| (UNIT * e).round().clamp(least, most);
        let entries = self.entries.data().iter().map(entry).collect();
        let scales = self.scales.iter().zip(self.factors.data());
        let scales = scales.map(|(s, f)| f16::from_f32(s * f)).collect();
        (entries, scales)
    }

    /// The indices that would be stored.
    pub fn indices(&self, pool: &Pool, cols: usize) -> Arc<[u8]> {
        self.with_book(cols, |book| self.indices_of(pool, book))
    }

    fn indices_of(&self, pool: &Pool, book: &Codebook) -> Arc<[u8]> {
        match &self.from {
            LearntFrom::Indices(indices) => indices.clone(),
            LearntFrom::Nearest(weights) | LearntFrom::Soft(weights, _) => {
                let mut indices = vec![0; book.rows * book.bits.indices(book.cols)];
                codebook::nearest(pool, book, weights.data(), &mut indices);
                indices.into()
            }
        }
    }

    fn with_book<R>(&self, cols: usize, body: impl FnOnce(&Codebook) -> R) -> R {
        let (entries, scales) = self.stored();
        let scales: Vec<f32> = scales.iter().map(|s| s.to_f32()).collect();
        body(&Codebook {
            bits: self.bits,
            rows: self.rows(),
            cols,
            entries: &entries,
            scales: &scales,
        })
    }

    /// Whether a gradient must flow to any of its numbers.
    fn learns(&self, ctx: &Ctx) -> bool {
        let weights = match &self.from {
            LearntFrom::Indices(_) => None,
            LearntFrom::Nearest(weights) | LearntFrom::Soft(weights, _) => Some(weights),
        };
        ctx.records(&[&self.entries, &self.factors])
            || weights.is_some_and(|weights| ctx.records(&[weights]))
    }
}

/// The weights that several matrices of `cols` columns stand for, one below another: `[Σ rows, cols]`.
pub fn learnt_weight(ctx: &mut Ctx, cols: usize, parts: &[Learnt]) -> Tensor {
    let rows: usize = parts.iter().map(Learnt::rows).sum();
    let mut out = ctx.buffer(rows * cols);
    let records = parts.iter().any(|part| part.learns(ctx));
    let soft = ctx.is_recording();
    let mut chosen = Vec::new(); // of each part, where entries are not chosen softly
    let mut rest = &mut out[..];
    for part in parts {
        let (own, below) = std::mem::take(&mut rest).split_at_mut(part.rows() * cols);
        rest = below;
        chosen.push(part.with_book(cols, |book| match &part.from {
            LearntFrom::Soft(weights, temperature) if soft => {
                let tau = book.softness(*temperature);
                codebook::soften(&ctx.pool, book, weights.data(), &tau, own);
                None
            }
            _ => {
                let indices = part.indices_of(&ctx.pool, book);
                codebook::expand(&ctx.pool, book, &indices, own);
                Some(indices)
            }
        }));
    }
    let out = Tensor::new(&[rows, cols], out);
    if records {
        let parts = parts.to_vec();
        ctx.record(&out, move |back, d_out| {
            let mut rest = d_out.data();
            for (part, chosen) in parts.into_iter().zip(chosen) {
                let (d_own, below) = rest.split_at(part.rows() * cols);
                rest = below;
                let (d_weights, (d_entries, d_scales)) =
                    part.with_book(cols, |book| match (&part.from, chosen) {
                        (LearntFrom::Soft(weights, temperature), None) => {
                            let tau = book.softness(*temperature);
                            let mut d_weights = vec![0.0; d_own.len()];
                            let weights = weights.data();
                            let rest = codebook::soften_backward(
                                back.pool,
                                book,
                                weights,
                                &tau,
                                d_own,
                                &mut d_weights,
                            );
                            (d_weights, rest)
                        }
                        (_, chosen) => {
                            let chosen = chosen.expect("not chosen softly");
                            let rest = codebook::expand_backward(back.pool, book, &chosen, d_own);
                            (d_own.to_vec(), rest)
                        }
                    });
                match &part.from {
                    LearntFrom::Indices(_) => {}
                    LearntFrom::Nearest(weights) | LearntFrom::Soft(weights, _) => {
                        back.accumulate(weights, Tensor::new(weights.shape(), d_weights));
                    }
                }
                let d_entries: Vec<f32> = d_entries.into_iter().map(|d| UNIT * d).collect();
                back.accumulate(&part.entries, Tensor::new(part.entries.shape(), d_entries));
                let d_factors = d_scales.iter().zip(&part.scales[..]);
                let d_factors: Vec<f32> = d_factors.map(|(d, s)| d * s).collect();
                back.accumulate(&part.factors, Tensor::new(part.factors.shape(), d_factors));
            }
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{context, gradient, random};
    use crate::ops::{linear, palette_linear, rounded};
    use crate::{DType, PaletteWeight};
    use russet_kernels::palette;

    const SHAPE: [usize; 2] = [20, 130];

    /// A matrix that learns, at numbers that a file could hold.
    fn learnt(bits: Bits, from: LearntFrom) -> Learnt {
        let [rows, _] = SHAPE;
        let table = rows.div_ceil(palette::STRIP) * bits.table();
        let entry = |i: usize| ((i * 37 % 255) as f32 - 127.0) / 127.0;
        let scale = |r: usize| f16::from_f32(0.001 * (1 + r % 3) as f32).to_f32();
        Learnt {
            bits,
            entries: Tensor::from_fn(&[table], entry),
            factors: Tensor::new(&[rows], vec![1.0; rows]),
            scales: (0..rows).map(scale).collect(),
            from,
        }
    }

    fn stored(part: &Learnt) -> PaletteWeight {
        let [rows, cols] = SHAPE;
        let pool = Pool::new(1).unwrap();
        let indices = part.indices(&pool, cols);
        let packed = palette::pack(part.bits, rows, cols, &indices).unwrap();
        let (entries, mut scales) = part.stored();
        scales.resize(rows.next_multiple_of(palette::STRIP), f16::ZERO);
        let entries: Vec<u8> = entries.iter().map(|&p| p as i8 as u8).collect();
        PaletteWeight::new(
            part.bits,
            rows,
            cols,
            Tensor::from_bytes(DType::U8, &[packed.len()], packed).unwrap(),
            Tensor::from_bytes(DType::I8, &[entries.len()], entries).unwrap(),
            Tensor::from_halves(&[scales.len()], scales),
        )
        .unwrap()
    }

    #[test]
    fn every_number_that_a_file_can_hold_is_its_own() {
        let all = i8::MIN..=i8::MAX;
        let part = Learnt {
            entries: Tensor::new(
                &[256],
                all.clone().map(|p| f32::from(p) / UNIT).collect::<Vec<_>>(),
            ),
            ..learnt(Bits::Two, LearntFrom::Indices(Arc::new([])))
        };
        let (entries, scales) = part.stored();
        assert!(entries.into_iter().eq(all.map(f32::from)));
        assert!(
            scales
                .iter()
                .map(|s| s.to_f32())
                .eq(part.scales.iter().copied())
        );
    }

    #[test]
    fn what_is_trained_is_what_is_served() {
        let x = random(&[5, SHAPE[1]], 3);
        for bits in Bits::ALL {
            let drawn = random(&SHAPE, 4);
            let weights = Tensor::from_fn(&SHAPE, |i| 0.1 * drawn.data()[i]);
            for from in [
                LearntFrom::Nearest(weights.clone()),
                LearntFrom::Soft(weights, 0.1), // hard, as nothing is recorded
            ] {
                let part = learnt(bits, from);
                let mut ctx = context();
                let served = palette_linear(&mut ctx, &x, &[stored(&part)]);
                let weight = learnt_weight(&mut ctx, SHAPE[1], &[part]);
                let x = rounded(&mut ctx, &x);
                let trained = linear(&mut ctx, &x, &weight);
                for (got, want) in trained.data().iter().zip(served.data()) {
                    // Sums of 130 terms of up to 1 in two orders.
                    assert!((got - want).abs() < 1e-5, "{bits:?}: {got}, served {want}");
                }
            }
        }
    }

    #[test]
    fn gradients_pass_straight_through_the_choice_and_the_rounding() {
        let weights = random(&SHAPE, 5);
        let through = gradient(&weights, |ctx, weights| {
            let part = learnt(Bits::Two, LearntFrom::Nearest(weights.clone()));
            learnt_weight(ctx, SHAPE[1], &[part])
        });
        let own = gradient(&weights, |_, weights| weights.clone());
        assert_eq!(through, own, "that at the palette's weights");
        let x = random(&[3, 130], 6);
        let own = gradient(&x, |_, x| x.clone());
        assert_eq!(gradient(&x, rounded), own, "that at the rounded rows");
    }

    #[test]
    fn gradients_of_entries_and_factors_are_those_of_what_they_make() {
        let [rows, cols] = SHAPE;
        let indices: Arc<[u8]> = (0..rows * cols).map(|i| (i * 7 % 4) as u8).collect();
        let part = learnt(Bits::Two, LearntFrom::Indices(indices.clone()));
        let d = |of: &Tensor, put: &dyn Fn(&Tensor) -> Learnt| {
            gradient(of, |ctx, of| learnt_weight(ctx, cols, &[put(of)]))
        };
        let d_entries = d(&part.entries, &|entries| Learnt {
            entries: entries.clone(),
            ..part.clone()
        });
        let d_factors = d(&part.factors, &|factors| Learnt {
            factors: factors.clone(),
            ..part.clone()
        });
        // The same by the dense numbers: ŵ = 127 s₀ f e[i], linear in each.
        let weight = |ctx: &mut Ctx| learnt_weight(ctx, cols, std::slice::from_ref(&part));
        let own = gradient(&Tensor::new(&SHAPE, vec![0.0; rows * cols]), |_, w| {
            w.clone()
        });
        let made = weight(&mut context());
        let mut want_entries = vec![0.0f64; part.entries.len()];
        let mut want_factors = vec![0.0f64; rows];
        for (at, d) in own.iter().enumerate() {
            let (row, d) = (at / cols, f64::from(*d));
            let entry = row / palette::STRIP * 4 + usize::from(indices[at]);
            want_entries[entry] += 127.0 * f64::from(part.scales[row]) * d;
            want_factors[row] += f64::from(made.data()[at]) * d;
        }
        for (got, want) in [(d_entries, want_entries), (d_factors, want_factors)] {
            for (got, want) in got.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() < 1e-3, "{got}, {want}");
            }
        }
    }
}
