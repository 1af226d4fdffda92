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

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russet_kernels::{Mat, MatMut, Pool, matmul};
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
    /// Σ g², `[F]`; empty without a tape.
    pub outputs: Vec<f64>,
    /// Each token's mean of g² over the outputs, `[N]`; empty without a tape.
    pub token_weights: Vec<f32>,
}

/// Σ a x xᵀ over tokens with weights a.
pub(crate) struct Covariance {
    /// `[D, D]`.
    pub sum: Vec<f32>,
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
                    // Walked backwards this comes before the product's own step, so the gradient is put back for it.
                    ctx.record(&y, move |back, d_y| {
                        if let Listen::Moments(moments) = &mut handle.state().listen {
                            moments.add_gradient(back.pool, &x, &d_y);
                        }
                        back.accumulate(&output, d_y);
                    });
                }
            }
            Listen::Covariance(covariance) => covariance.add(&ctx.pool, x),
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
    fn add_gradient(&mut self, pool: &Pool, x: &Tensor, d_y: &Tensor) {
        let ((tokens, width), (_, features)) = (x.dims2(), d_y.dims2());
        self.fisher.resize(features * width, 0.0);
        let squares =
            |tensor: &Tensor| -> Vec<f32> { tensor.data().iter().map(|x| x * x).collect() };
        let (x, g) = (squares(x), squares(d_y));
        let (x, g_rows) = (Mat::new(&x, tokens, width), Mat::new(&g, tokens, features));
        matmul(
            pool,
            g_rows.t(),
            x,
            MatMut::new(&mut self.fisher, features, width),
            true,
        );
        let mean =
            |row: &[f32]| (row.iter().map(|&g| f64::from(g)).sum::<f64>() / features as f64) as f32;
        self.token_weights
            .extend(g.chunks_exact(features).map(mean));
        add_squares(&mut self.outputs, d_y);
    }

    /// The rows' mean squares of gradients, relative to the mean of all; 1 where there is no gradient at all.
    pub fn row_weights(&self, rows: Range<usize>) -> Vec<f32> {
        let mean = self.outputs.iter().sum::<f64>() / self.outputs.len() as f64;
        self.outputs[rows]
            .iter()
            .map(|&g| if mean > 0.0 { (g / mean) as f32 } else { 1.0 })
            .collect()
    }
}

impl Covariance {
    /// Of inputs of width `width`; `token_weights` are those of the tokens that will come, or none.
    pub fn new(width: usize, token_weights: Arc<Vec<f32>>) -> Covariance {
        Covariance {
            sum: vec![0.0; width * width],
            token_weights,
            seen: 0,
        }
    }

    fn add(&mut self, pool: &Pool, x: &Tensor) {
        let (tokens, width) = x.dims2();
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
        matmul(
            pool,
            x.t(),
            x,
            MatMut::new(&mut self.sum, width, width),
            true,
        );
    }
}
