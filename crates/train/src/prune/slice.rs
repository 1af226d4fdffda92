//! A decoder with fewer hidden dims, cut out of a larger one.

use russet_model::{Config, Decoder, Parameter};

use super::mask::is_mask;

/// The decoder with hidden dims `kept[layer]` alone; column i of a layer's `down` is multiplied by `factors[layer][i]`.
pub(super) fn slice(decoder: &Decoder, kept: &[Vec<usize>], factors: &[Vec<f32>]) -> Decoder {
    let config = Config {
        ffn: kept[0].len(),
        ..decoder.config().clone()
    };
    let parameters = decoder.parameters();
    let mut parameters = parameters.iter().filter(|parameter| !is_mask(parameter));
    let mut small = Decoder::random(&config, 0);
    let ffn = decoder.config().ffn;
    let (width, mut layer) = (config.width, 0);
    small.visit_mut(&mut |tensor| {
        let parameter = parameters.next().expect("as many parameters as before");
        let (from, to) = (parameter.tensor.data(), tensor.data_mut());
        match part(parameter) {
            Part::GateUp => {
                let (gate, up) = (kept[layer].iter(), kept[layer].iter().map(|i| ffn + i));
                let rows = gate.copied().chain(up);
                for (row, to) in rows.zip(to.chunks_exact_mut(width)) {
                    to.copy_from_slice(&from[row * width..][..width]);
                }
            }
            Part::Down => {
                let (kept, factors) = (&kept[layer], &factors[layer]);
                for (from, to) in from.chunks_exact(ffn).zip(to.chunks_exact_mut(kept.len())) {
                    for ((to, &i), factor) in to.iter_mut().zip(kept).zip(factors) {
                        *to = from[i] * factor;
                    }
                }
                layer += 1;
            }
            Part::Other => to.copy_from_slice(from),
        }
    });
    assert!(parameters.next().is_none(), "all parameters were cut");
    small
}

/// ‖gate row‖ · ‖up row‖ · ‖down column‖ of each hidden dim, a layer each.
pub(super) fn magnitudes(decoder: &Decoder) -> Vec<Vec<f32>> {
    let (ffn, width) = (decoder.config().ffn, decoder.config().width);
    let mut all: Vec<Vec<f64>> = Vec::new();
    for parameter in decoder.parameters() {
        let weights = parameter.tensor.data();
        match part(&parameter) {
            Part::GateUp => {
                let norm = |row: &[f32]| {
                    row.iter()
                        .map(|&w| f64::from(w) * f64::from(w))
                        .sum::<f64>()
                        .sqrt()
                };
                let norms: Vec<f64> = weights.chunks_exact(width).map(norm).collect();
                all.push((0..ffn).map(|i| norms[i] * norms[ffn + i]).collect());
            }
            Part::Down => {
                let mut squares = vec![0.0f64; ffn];
                for row in weights.chunks_exact(ffn) {
                    for (sum, &w) in squares.iter_mut().zip(row) {
                        *sum += f64::from(w) * f64::from(w);
                    }
                }
                let layer = all.last_mut().expect("gate and up come before");
                for (score, square) in layer.iter_mut().zip(squares) {
                    *score *= square.sqrt();
                }
            }
            Part::Other => {}
        }
    }
    all.into_iter()
        .map(|layer| layer.into_iter().map(|score| score as f32).collect())
        .collect()
}

enum Part {
    GateUp,
    Down,
    Other,
}

fn part(parameter: &Parameter) -> Part {
    let name = &parameter.parts[0].0;
    if name.ends_with(".mlp.gate_proj.weight") {
        Part::GateUp
    } else if name.ends_with(".mlp.down_proj.weight") {
        Part::Down
    } else {
        Part::Other
    }
}
