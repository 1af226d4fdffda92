//! The win rate if all responses were of one length, as AlpacaEval 2 defines it ("Length-Controlled AlpacaEval", arXiv 2404.04475).
//!
//! ```text
//! p(second is better) = σ(θ₀ + θ₁ · tanh((length first − length second) / deviation) + θ₂ · difficulty of the instruction)
//! win rate            = mean σ(θ₀ + θ₂ · difficulty)
//! ```
//! Lengths are characters. The regression takes scores as they are, between 0 and 1, with a penalty |θ|₁ against C times the
//! loss; C is one of ten from 10⁻⁴ to 10⁴, that with the least loss on held-out fifths. That is alpaca_eval's
//! `fit_LogisticRegressionCV` (scikit-learn over liblinear), solved here by Newton steps on three numbers. Difficulties come
//! with the rows (`instruction_difficulty`); where they do not, the term is left out (`length_controlled_minimal` there). Rows
//! of a gamed baseline count 0.2 / 2 each and have no θ₀.

use serde::Serialize;

use super::strength::solve;
use crate::stats::{self, logistic, softplus};
use crate::{Error, Result};

/// Weight of a row of the gamed baselines, of which there are two.
const GAMED: f64 = 0.2 / 2.0;

pub(super) const FOLDS: usize = 5;

/// A game of one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LengthRow {
    /// 1 where the second is better.
    pub score: f64,
    /// How much longer the first is, in characters; of a gamed row in deviations.
    pub longer: f64,
    /// The instruction's.
    pub difficulty: Option<f64>,
}

/// What the regression gives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LengthControlled {
    /// Of the second, in per cent.
    pub win_rate: f64,
    /// The deviation of the predictions over √n, in per cent.
    pub standard_error: Option<f64>,
    /// θ₁, of the length.
    pub length: f64,
    /// θ₂, of the difficulty, where it is known.
    pub difficulty: Option<f64>,
    /// θ₀.
    pub model: f64,
    /// The inverse strength of the penalty that was chosen.
    pub c: f64,
}

/// One row of the regression; the features are length, own effect and, where known, difficulty.
struct Sample {
    x: [f64; 3],
    y: f64,
    weight: f64,
}

/// Fits and predicts.
///
/// # Errors
/// When some rows have a difficulty and others none.
pub fn length_controlled(rows: &[LengthRow], gamed: &[LengthRow]) -> Result<LengthControlled> {
    let known = rows.iter().filter(|row| row.difficulty.is_some()).count();
    let whole = known == rows.len();
    if known != 0 && (!whole || gamed.iter().any(|row| row.difficulty.is_none())) {
        return Err(Error::Difficulty {
            known,
            rows: rows.len(),
        });
    }
    let longer: Vec<f64> = rows.iter().map(|row| row.longer).collect();
    let unit = stats::deviation(&longer).filter(|unit| *unit > 0.0);
    let unit = unit.unwrap_or(f64::INFINITY); // All differ alike: length explains nothing.
    let sample = |row: &LengthRow, unit: f64, own: f64, weight: f64| Sample {
        x: [
            libm::tanh(row.longer / unit),
            own,
            row.difficulty.unwrap_or(0.0),
        ],
        y: row.score,
        weight,
    };
    let samples: Vec<Sample> = gamed
        .iter()
        .map(|row| sample(row, 1.0, 0.0, GAMED))
        .chain(rows.iter().map(|row| sample(row, unit, 1.0, 1.0)))
        .collect();
    let (theta, c) = fit_best(&samples);
    let predicted: Vec<f64> = rows
        .iter()
        .map(|row| logistic(theta[1] + theta[2] * row.difficulty.unwrap_or(0.0)))
        .collect();
    Ok(LengthControlled {
        win_rate: 100.0 * stats::mean(&predicted),
        standard_error: stats::standard_error(&predicted).map(|error| 100.0 * error),
        length: theta[0],
        difficulty: (known > 0).then_some(theta[2]),
        model: theta[1],
        c,
    })
}

/// Chooses C on held-out fifths, and fits all with it. Of equal losses the smaller C wins, the first.
fn fit_best(samples: &[Sample]) -> ([f64; 3], f64) {
    let choices: Vec<f64> = (0..10)
        .map(|i| libm::pow(10.0, -4.0 + 8.0 * f64::from(i) / 9.0))
        .collect();
    // As GroupKFold deals groups of equal size: from the last to the first.
    let fold = |place: usize| (samples.len() - 1 - place) % FOLDS;
    let mut losses = vec![0.0; choices.len()];
    if samples.len() >= FOLDS {
        for held in 0..FOLDS {
            let (test, train): (Vec<_>, Vec<_>) =
                (0..samples.len()).partition(|place| fold(*place) == held);
            let [test, train] = [test, train].map(|places| -> Vec<&Sample> {
                places.into_iter().map(|place| &samples[place]).collect()
            });
            for (loss, c) in losses.iter_mut().zip(&choices) {
                let theta = fit(&train, *c);
                let sum: f64 = test
                    .iter()
                    .map(|s| s.weight * cross_entropy(s, &theta))
                    .sum();
                *loss += sum / test.len() as f64;
            }
        }
    }
    let best = (0..choices.len())
        .min_by(|a, b| losses[*a].total_cmp(&losses[*b]))
        .expect("there are ten");
    let all: Vec<&Sample> = samples.iter().collect();
    (fit(&all, choices[best]), choices[best])
}

fn margin(x: &[f64; 3], theta: &[f64; 3]) -> f64 {
    x.iter().zip(theta).map(|(x, theta)| x * theta).sum()
}

fn cross_entropy(sample: &Sample, theta: &[f64; 3]) -> f64 {
    let z = margin(&sample.x, theta);
    sample.y * softplus(-z) + (1.0 - sample.y) * softplus(z)
}

/// Minimises |θ|₁ + C Σ weight · loss: each step minimises the quadratic model with the penalty, coordinate by coordinate.
fn fit(samples: &[&Sample], c: f64) -> [f64; 3] {
    let objective = |theta: &[f64; 3]| {
        let losses = samples.iter().map(|s| s.weight * cross_entropy(s, theta));
        theta.iter().map(|value| value.abs()).sum::<f64>() + c * losses.sum::<f64>()
    };
    let mut theta = [0.0; 3];
    let mut now = objective(&theta);
    for _ in 0..200 {
        let (mut gradient, mut bend) = ([0.0; 3], [[0.0; 3]; 3]);
        for sample in samples {
            let p = logistic(margin(&sample.x, &theta));
            let slope = c * sample.weight * (p - sample.y);
            let curve = c * sample.weight * p * (1.0 - p);
            for (i, one) in sample.x.iter().enumerate() {
                gradient[i] += slope * one;
                for (j, two) in sample.x.iter().enumerate() {
                    bend[i][j] += curve * one * two;
                }
            }
        }
        for (i, row) in bend.iter_mut().enumerate() {
            row[i] += 1e-12;
        }
        let step = penalised_step(&theta, &gradient, &bend);
        let size = step.iter().fold(0.0f64, |most, step| most.max(step.abs()));
        if size < 1e-12 {
            break;
        }
        let mut rate = 1.0;
        let next = loop {
            let next = std::array::from_fn(|i| theta[i] + rate * step[i]);
            let then = objective(&next);
            if then <= now + 1e-13 * now || rate < 1e-9 {
                now = then;
                break next;
            }
            rate /= 2.0;
        };
        theta = next;
    }
    theta
}

/// The step d that minimises g·d + d·H·d / 2 + |θ + d|₁.
fn penalised_step(theta: &[f64; 3], gradient: &[f64; 3], bend: &[[f64; 3]; 3]) -> [f64; 3] {
    let mut step = [0.0f64; 3];
    for _ in 0..5000 {
        let mut moved = 0.0f64;
        for (i, row) in bend.iter().enumerate() {
            let slope = gradient[i] + row.iter().zip(&step).map(|(b, s)| b * s).sum::<f64>();
            // Of θᵢ + dᵢ alone: a parabola about `at` beside the penalty.
            let at = theta[i] + step[i] - slope / row[i];
            let soft = at.signum() * (at.abs() - 1.0 / row[i]).max(0.0);
            let next = soft - theta[i];
            moved = moved.max((next - step[i]).abs());
            step[i] = next;
        }
        if moved < 1e-14 {
            break;
        }
    }
    polish(theta, gradient, bend, step)
}

/// Coordinates may creep where features are nearly the same; where the signs are settled, the step has a closed form.
fn polish(theta: &[f64; 3], gradient: &[f64; 3], bend: &[[f64; 3]; 3], step: [f64; 3]) -> [f64; 3] {
    let free: Vec<usize> = (0..3).filter(|&i| theta[i] + step[i] != 0.0).collect();
    let fixed = |i: usize| if free.contains(&i) { 0.0 } else { -theta[i] };
    let right: Vec<f64> = free
        .iter()
        .map(|&i| {
            let pulled: f64 = (0..3).map(|j| bend[i][j] * fixed(j)).sum();
            -gradient[i] - (theta[i] + step[i]).signum() - pulled
        })
        .collect();
    let mut matrix: Vec<f64> = free
        .iter()
        .flat_map(|&i| free.iter().map(move |&j| bend[i][j]))
        .collect();
    let solved = solve(&mut matrix, right);
    let mut polished: [f64; 3] = std::array::from_fn(fixed);
    for (&i, value) in free.iter().zip(solved) {
        polished[i] = value;
    }
    let same = |i: &usize| (theta[*i] + polished[*i]) * (theta[*i] + step[*i]) > 0.0;
    match free.iter().all(same) {
        true => polished,
        false => step,
    }
}
