//! A product that can be listened to and replaced while the decoder stays one and the same.
//!
//! Every product of the decoder is put behind a [`Tap`] once; what follows (gathering statistics, trying two bits on
//! one projection, running under what is palettized so far) is said to the taps between runs. Diagonal Fisher
//! information is gathered a token at a time: with x the product's input and g the loss's gradient at its output,
//! ```text
//! F[r, c] = 1/N Σₙ g[n, r]² x[n, c]²
//! ```
//! which is one matrix product of squares. Squaring the gradient of a whole batch instead, as a plain tape would
//! allow, estimates the same from far fewer samples: one a batch and not one a token.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russet_kernels::{Compute, Mat, MatMut, Pool, matmul_in};
use russet_model::{Decoder, Layout, Linear, Parameter};
use russet_tensor::{Ctx, Tensor};

/// What a tap does besides its product.
#[derive(Default)]
pub(crate) enum Listen {
    /// Nothing.
    #[default]
    Nothing,
    /// Adds up moments of inputs and, on a tape, of gradients.
    Moments(Moments),
    /// Adds up the inputs' covariance.
    Covariance(Covariance),
}

/// Sums over tokens.
#[derive(Default)]
pub(crate) struct Moments {
    /// Σ x², `[D]`.
    pub inputs: Vec<f64>,
    /// Σ g²x², `[F, D]`; empty without a tape.
    pub fisher: Vec<f32>,
    /// Each token's mean of g² over the outputs, `[N]`; empty without a tape.
    pub token_weights: Vec<f32>,
}

/// Σ a x xᵀ over tokens with weights a.
pub(crate) struct Covariance {
    /// `[D, D]`.
    pub sum: Vec<f32>,
    /// Σ a y² of the product's outputs y, `[F]`.
    pub outputs: Vec<f64>,
    /// a, `[N]`, or empty where all are 1.
    pub token_weights: Arc<Vec<f32>>,
    /// Tokens seen.
    pub seen: usize,
}

#[derive(Default)]
struct State {
    listen: Listen,
    replacement: Option<Arc<dyn Linear>>,
}

/// The handle of one tap.
#[derive(Clone, Default)]
pub(crate) struct Handle(Arc<Mutex<State>>);

/// A product behind a tap.
struct Tap {
    inner: Box<dyn Linear>,
    handle: Handle,
}

/// The decoder with every product behind a tap, and the taps in the order of the forward pass.
pub(crate) fn tapped(decoder: Decoder) -> (Decoder, Vec<Handle>) {
    let mut handles = Vec::new();
    let decoder = decoder.map_linears(|inner| {
        let handle = Handle::default();
        handles.push(handle.clone());
        Box::new(Tap { inner, handle })
    });
    (decoder, handles)
}

impl Handle {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens from now on; returns what was listened to before.
    pub fn listen(&self, listen: Listen) -> Listen {
        std::mem::replace(&mut self.state().listen, listen)
    }

    /// Uses other weights from now on, or its own again.
    pub fn replace(&self, replacement: Option<Arc<dyn Linear>>) {
        self.state().replacement = replacement;
    }
}

impl Linear for Tap {
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        let replacement = self.handle.state().replacement.clone();
        let y = match replacement {
            Some(replacement) => replacement.forward(ctx, x),
            None => self.inner.forward(ctx, x),
        };
        match &mut self.handle.state().listen {
            Listen::Nothing => {}
            Listen::Moments(moments) => {
                add_squares(&mut moments.inputs, x);
                if ctx.is_recording() {
                    let (x, output, handle) = (x.clone(), y.handle(), self.handle.clone());
                    let compute = ctx.compute;
                    // Walked backwards this comes before the product's own step, so the gradient is put back for it.
                    ctx.record(&y, move |back, d_y| {
                        if let Listen::Moments(moments) = &mut handle.state().listen {
                            moments.add_gradient(back.pool, compute, &x, &d_y);
                        }
                        back.accumulate(&output, d_y);
                    });
                }
            }
            Listen::Covariance(covariance) => covariance.add(&ctx.pool, ctx.compute, x, &y),
        }
        y
    }

    fn layout(&self) -> &Layout {
        self.inner.layout()
    }

    fn stored_bytes(&self) -> usize {
        self.inner.stored_bytes()
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(Parameter<'a>)) {
        self.inner.visit(visit);
    }

    fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        self.inner.visit_mut(visit);
    }
}

/// `sums[c] += Σₙ x[n, c]²`
fn add_squares(sums: &mut Vec<f64>, x: &Tensor) {
    let (_, width) = x.dims2();
    sums.resize(width, 0.0);
    for row in x.data().chunks_exact(width) {
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
}

impl Moments {
    fn add_gradient(&mut self, pool: &Pool, compute: Compute, x: &Tensor, d_y: &Tensor) {
        let ((tokens, width), (_, features)) = (x.dims2(), d_y.dims2());
        self.fisher.resize(features * width, 0.0);
        let squares =
            |tensor: &Tensor| -> Vec<f32> { tensor.data().iter().map(|x| x * x).collect() };
        let (x, g) = (squares(x), squares(d_y));
        let (x, g_rows) = (Mat::new(&x, tokens, width), Mat::new(&g, tokens, features));
        matmul_in(
            pool,
            compute,
            g_rows.t(),
            x,
            MatMut::new(&mut self.fisher, features, width),
            true,
        );
        let mean =
            |row: &[f32]| (row.iter().map(|&g| f64::from(g)).sum::<f64>() / features as f64) as f32;
        self.token_weights
            .extend(g.chunks_exact(features).map(mean));
    }
}

impl Covariance {
    /// Of inputs of width `width`; `token_weights` are those of the tokens that will come, or none.
    pub fn new(width: usize, token_weights: Arc<Vec<f32>>) -> Covariance {
        Covariance {
            sum: vec![0.0; width * width],
            outputs: Vec::new(),
            token_weights,
            seen: 0,
        }
    }

    fn add(&mut self, pool: &Pool, compute: Compute, x: &Tensor, y: &Tensor) {
        let ((tokens, width), (_, features)) = (x.dims2(), y.dims2());
        self.outputs.resize(features, 0.0);
        for (token, row) in y.data().chunks_exact(features).enumerate() {
            let all = self.token_weights.get(self.seen + token);
            let weight = all.map_or(1.0, |&weight| f64::from(weight));
            for (sum, &y) in self.outputs.iter_mut().zip(row) {
                *sum += weight * f64::from(y) * f64::from(y);
            }
        }
        let mut scaled = x.data().to_vec();
        if !self.token_weights.is_empty() {
            let weights = &self.token_weights[self.seen..self.seen + tokens];
            for (row, weight) in scaled.chunks_exact_mut(width).zip(weights) {
                let root = weight.sqrt();
                row.iter_mut().for_each(|x| *x *= root);
            }
        }
        self.seen += tokens;
        let x = Mat::new(&scaled, tokens, width);
        matmul_in(
            pool,
            compute,
            x.t(),
            x,
            MatMut::new(&mut self.sum, width, width),
            true,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russet_artifact::{Interrupt, NoProgress};
    use russet_model::Config;
    use russet_tensor::{Gradients, Segments};

    use crate::calibration::Calibration;
    use crate::model::Model;
    use crate::watch::Watch;

    fn config() -> Config {
        let json = serde_json::json!({
            "architectures": ["Qwen3ForCausalLM"], "vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6, "intermediate_size": 20,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 32, "hidden_act": "silu",
            "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0,
        });
        Config::parse(json.as_object().unwrap()).unwrap()
    }

    fn close(got: &[f32], want: &[f32], what: &str) {
        let largest = want
            .iter()
            .fold(1e-30f32, |largest, x| largest.max(x.abs()));
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!(
                (got - want).abs() < 1e-4 * largest,
                "{what}, element {i}: {got}, not {want}"
            );
        }
        assert_eq!(got.len(), want.len(), "{what}");
    }

    /// With one token a sequence, the gradient of a sequence's loss is that of a token.
    #[test]
    fn fisher_information_is_the_mean_square_of_single_tokens_gradients() {
        let pool = Arc::new(Pool::new(2).unwrap());
        let documents: Vec<[u32; 2]> = (0..9).map(|i| [i * 3, i * 5 % 30]).collect();
        let mut calibration = Calibration::new(&documents, 8, 100, 30).unwrap();
        calibration.compute = Compute::F32;
        let mut model = Model::new(Decoder::random(&config(), 1)).unwrap();
        let interrupt = Interrupt::new();
        let mut progress = NoProgress;
        let mut watch = Watch::new(&mut progress, &interrupt);
        let loss = model.gather(&pool, &calibration, true, &mut watch).unwrap();
        // With a tape a softmax is kept, without one only its sum is: the last bit of a loss may differ.
        let measured = calibration
            .loss(&pool, &model.decoder, &mut |_| Ok(()))
            .unwrap();
        assert!(
            (measured - loss).abs() < 1e-6 * loss,
            "{measured} and {loss}"
        );

        let decoder = Decoder::random(&config(), 1);
        let mut sums: Vec<Vec<f32>> = model
            .products
            .iter()
            .map(|product| vec![0.0; product.weight.len()])
            .collect();
        for [token, target] in documents {
            let mut ctx = Ctx::new(Arc::clone(&pool));
            let mut gradients = Gradients::default();
            ctx.start_tape(
                decoder
                    .parameters()
                    .iter()
                    .map(|parameter| parameter.tensor.id()),
            );
            let hidden = decoder.forward(&mut ctx, &[token], &Segments::packed(&[1]), None);
            let loss = decoder.loss(&mut ctx, &hidden, &[target], &[1.0]).loss;
            ctx.backward(&loss, 1.0, &mut gradients);
            for (linear, sum) in decoder.linears().zip(&mut sums) {
                linear.visit(&mut |parameter| {
                    let gradient = gradients.get(parameter.tensor).unwrap();
                    sum.iter_mut()
                        .zip(gradient.data())
                        .for_each(|(sum, g)| *sum += g * g);
                });
            }
        }
        for (product, want) in model.products.iter().zip(&sums) {
            assert_eq!(product.moments.token_weights.len(), 9);
            close(
                &product.moments.fisher,
                want,
                &product.layout.projections[0].name,
            );
        }
        assert_eq!(model.tokens, 9);
    }

    #[test]
    fn moments_and_covariances_are_of_the_products_inputs() {
        struct Keep(Layout, Arc<Mutex<Vec<f32>>>);
        impl Linear for Keep {
            fn forward(&self, _: &mut Ctx, x: &Tensor) -> Tensor {
                self.1.lock().unwrap().extend_from_slice(x.data());
                Tensor::new(
                    &[x.dims2().0, self.0.rows()],
                    vec![0.0; x.dims2().0 * self.0.rows()],
                )
            }
            fn layout(&self) -> &Layout {
                &self.0
            }
            fn stored_bytes(&self) -> usize {
                0
            }
            fn visit<'a>(&'a self, _: &mut dyn FnMut(Parameter<'a>)) {}
            fn visit_mut(&mut self, _: &mut dyn FnMut(&mut Tensor)) {}
        }
        let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
        let (decoder, taps) = tapped(Decoder::random(&config(), 1));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let layout = decoder.linears().nth(5).unwrap().layout().clone();
        let width = layout.inputs;
        taps[5].replace(Some(Arc::new(Keep(layout, Arc::clone(&seen)))));
        let mut run = |listen| {
            taps[5].listen(listen);
            for tokens in [[1, 2, 3], [4, 5, 6]] {
                decoder.forward(&mut ctx, &tokens, &Segments::packed(&[2, 1]), None);
            }
            taps[5].listen(Listen::Nothing)
        };
        let Listen::Moments(moments) = run(Listen::Moments(Moments::default())) else {
            panic!("moments")
        };
        let x = std::mem::take(&mut *seen.lock().unwrap());
        let squares: Vec<f32> = moments.inputs.iter().map(|&sum| sum as f32).collect();
        let square = |i: usize| x.chunks_exact(width).map(|row| row[i] * row[i]).sum();
        close(
            &squares,
            &(0..width).map(square).collect::<Vec<f32>>(),
            "squares",
        );
        for weights in [vec![], vec![0.5, 2.0, 0.0, 3.0, 1.0, 0.25]] {
            let weight = |token: usize| weights.get(token).copied().unwrap_or(1.0);
            let asked = Covariance::new(width, Arc::new(weights.clone()));
            let Listen::Covariance(covariance) = run(Listen::Covariance(asked)) else {
                panic!("covariance")
            };
            let product = |i: usize, j: usize| -> f32 {
                x.chunks_exact(width)
                    .enumerate()
                    .map(|(token, row)| weight(token) * row[i] * row[j])
                    .sum()
            };
            let want: Vec<f32> = (0..width * width)
                .map(|k| product(k / width, k % width))
                .collect();
            close(&covariance.sum, &want, "covariance");
        }
    }
}
