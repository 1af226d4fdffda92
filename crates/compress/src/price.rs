//! What palettizing costs: memory and arithmetic, by formula, before anything is run.

use russet_model::Config;
use serde::Serialize;

use crate::calibration::BATCH;
use crate::refine::BYTES as COVARIANCES;
use crate::sensitivity::TOKENS as MEASURED_TOKENS;
use crate::settings::{Sensitivity, Settings, Weighting};

/// What choosing entries costs a weight beside products (k-means with two and with four bits, of the work of [`ENTRIES`] entries; packing and
/// writing what it made), in products of the same time. On 15.7 M weights of the 0.6B shape, three widths, one thread of a busy machine (Zen 5), the whole took
/// 176 ns a weight, of which products by [`Settings::price`]'s count were a little more than half.
const SEARCH_FLOPS: f64 = 10_000.0;

/// Entries of the tables that the work of [`SEARCH_FLOPS`] fits; that of others is taken to go with their entries.
const ENTRIES: usize = 4 + 16;

/// The price of palettizing one decoder.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Price {
    /// All weights of the decoder.
    pub parameters: usize,
    /// Those of the projections, which are palettized.
    pub weights: usize,
    /// Tokens of calibration text, at most.
    pub calibration_tokens: usize,
    /// Floating-point operations, or what costs the time of so many.
    pub flops: f64,
    /// Bytes at one time: weights and their importance (of a block, or of all where sensitivities are measured), covariances, what refines a
    /// projection, and a batch's activations.
    pub memory_bytes: usize,
}

impl Settings {
    /// What it costs to palettize a decoder of this shape.
    pub fn price(&self, config: &Config) -> Price {
        // Where the decoder cannot be rotated, [`Settings::check`] says so.
        let packaged = self.packaged(config);
        let config = packaged.as_ref().unwrap_or(config);
        let Config {
            width,
            layers,
            heads,
            head_dim,
            ffn,
            vocab,
            ..
        } = *config;
        let (attention, floats) = (heads * head_dim, size_of::<f32>());
        let parameters = config.parameters();
        let weights = config.projection_parameters();
        let tokens = self.calibration_tokens as f64;
        let fisher =
            self.weighting == Weighting::Fisher || self.sensitivity == Sensitivity::Predicted;
        let forward = config.forward_flops(self.sequence.min(config.context) / 2);
        // [D, D] of each product's inputs: qkv and gate_up read the width, output the heads, down the ffn.
        let covariances: usize = 2 * width * width + attention * attention + ffn * ffn;
        let mut passes = 2.0; // before, and the package at the end
        let fitted = self.fitted();
        let entries: usize = fitted.iter().map(|bits| bits.entries()).sum();
        let search = |weights: usize, entries: usize| {
            SEARCH_FLOPS * weights as f64 * entries as f64 / ENTRIES as f64
        };
        let mut flops = search(weights, entries);
        if let Some(bits) = self.table_bits.palette() {
            flops += search(config.embedding_parameters(), bits.entries());
        }
        if fisher {
            // The gradient's way back, and a product of squares.
            flops += tokens * (forward + 2.0 * weights as f64);
        }
        if self.error_feedback {
            let rounds = match self.sensitivity {
                Sensitivity::Predicted => 1, // hidden states are kept
                Sensitivity::Measured => (layers * covariances * floats).div_ceil(COVARIANCES),
            };
            passes += rounds as f64;
            flops += tokens * 2.0 * (layers * covariances) as f64;
            // Five operations a weight and input; a third of D² for the factor of each product's covariance.
            let qkv = config.qkv_width();
            let products = [
                (qkv, width),
                (width, attention),
                (2 * ffn, width),
                (width, ffn),
            ];
            let each = products.map(|(outputs, inputs)| {
                let (outputs, inputs) = (outputs as f64, inputs as f64);
                inputs * inputs * (5.0 * outputs + inputs / 3.0)
            });
            flops += layers as f64 * each.iter().sum::<f64>();
        }
        if self.sensitivity == Sensitivity::Measured {
            // Each width for each of the seven projections of a block, five without keys and values.
            let share = (MEASURED_TOKENS as f64 / tokens).min(1.0);
            let projections = 5 * layers + 2 * config.kv_layers();
            passes += share * (fitted.len() * projections) as f64;
        }
        if fisher && self.sensitivity == Sensitivity::Predicted {
            passes += 1.0; // forward once more on the way back, a block at a time
        }
        flops += passes * tokens * forward;

        let rows = BATCH.max(self.sequence.min(config.context));
        let block = 4 * width + 2 * config.qkv_width() + attention + 3 * ffn;
        let streamed = self.sensitivity == Sensitivity::Predicted;
        // Block by block the weights, Fisher information and fits of one are held, and a table where the text enters and leaves.
        let held = match streamed {
            true => {
                let of_block = weights / layers.max(1);
                let ends = config.embedding_parameters() * floats;
                ends.max(of_block * (3 * floats + fitted.len()))
            }
            false => parameters * floats + if fisher { weights * floats } else { 0 } + weights,
        };
        // Without a tape only one block's activations live.
        let blocks = if fisher && !streamed { layers } else { 1 };
        // Beside covariances the factor of one, and of one projection its errors, their products, and how both change.
        let widest = width.max(attention).max(ffn);
        let refined = (widest * widest + 4 * width * ffn.max(attention)) * floats;
        let kept = match (self.error_feedback, streamed) {
            (true, true) => covariances * floats + refined,
            (true, false) => {
                let all = layers * covariances * floats;
                all.min(COVARIANCES.max(ffn * ffn * floats)) + refined
            }
            (false, _) => 0,
        };
        let activations = rows * (blocks * block + 4 * width + 3 * ffn) * floats;
        // A chunk of logits and its gradient.
        let logits = 2 * rows.min(256) * vocab * floats;
        Price {
            parameters,
            weights,
            calibration_tokens: self.calibration_tokens,
            flops,
            memory_bytes: held + kept + activations + logits,
        }
    }
}

impl Price {
    /// How long it takes where products run at so many GFLOP/s: whole passes reach some three quarters of that.
    pub fn seconds(&self, gflops: f64) -> f64 {
        self.flops / (0.75 * gflops * 1e9)
    }
}
