//! A reward model: the losses of [`crate::reward`] on a decoder with a head, and how good one is on pairs that it has not seen.
//!
//! ```text
//! [prompt, response, its end] ─▶ decoder ─▶ last token's state ─▶ head ─▶ r, four grades of three levels
//! loss of a pair = soft comparison of r_c and r_r + λ Σ cross-entropy of the grades that its row has
//! ```
//! As AFM has it (arXiv 2407.21075): the last token that is no padding is read, and nothing is padded here. A pair is two
//! neighbouring segments of a batch. The head's few numbers are differentiated by hand, and from there the tape takes over.

use russet_artifact::{Interrupt, Progress};
use russet_model::reward::{GRADES, LEVELS};
use russet_model::{Decoder, Judged};
use russet_tensor::ops::{IGNORE, TokenLoss, given};
use russet_tensor::{Ctx, Tensor};
use russet_train::validation::GoesOn;
use russet_train::{Batch, Measured, Objective, Result, TrainError, VALIDATION_LOSS};
use serde_json::{Value, json};

use crate::data::{Judgement, Source, held_out};
use crate::preference::{sigmoid, softplus};
use crate::reward::{Strength, grade, soft_preference};
use crate::settings::RewardSettings;

/// The rows that end segments.
fn last_rows(batch: &Batch) -> Vec<usize> {
    let last = |segment: &russet_tensor::Segment| segment.start + segment.len - 1;
    batch.segments.iter().map(last).collect()
}

/// Rewards and grades of a batch's segments, with the hidden states that they were read off recorded.
fn judge(ctx: &mut Ctx, decoder: &Decoder, batch: &Batch) -> Judged {
    let hidden = decoder.forward(ctx, &batch.tokens, &batch.segments, None); // [N, D]
    decoder.judge(ctx, &hidden, &last_rows(batch))
}

/// What a pair comes to.
struct Pair {
    loss: f64,
    rewards: [f64; 2],      // chosen, rejected
    slopes: [f64; 2],       // ∂loss/∂reward
    grades: Vec<GradeLoss>, // of both sides
}

struct GradeLoss {
    side: usize,
    place: usize, // of GRADES
    right: bool,
    slopes: [f64; LEVELS],
}

/// The loss of a reward model on preferences.
pub struct Rewards<'a> {
    settings: RewardSettings,
    sources: &'a [Source],
}

impl<'a> Rewards<'a> {
    /// Of the rows of these files.
    pub fn new(settings: RewardSettings, sources: &'a [Source]) -> Rewards<'a> {
        Rewards { settings, sources }
    }

    fn judgement(&self, batch: &Batch, pair: usize) -> &'a Judgement {
        let origin = &batch.origins[2 * pair];
        &self.sources[origin.source].judgements[origin.documents.start]
    }

    /// A batch's pairs, in order.
    fn pairs(&self, batch: &Batch, judged: &Judged) -> Vec<Pair> {
        let rewards = judged.rewards.data();
        let one = |pair: usize| {
            let said = self.judgement(batch, pair);
            let own = [2 * pair, 2 * pair + 1];
            let rewards = own.map(|at| f64::from(rewards[at]));
            let target = said.strength.unwrap_or(self.settings.strength).target();
            let (mut loss, slopes) = soft_preference(rewards[0], rewards[1], target);
            let mut grades = Vec::new();
            for (side, levels) in said.grades.iter().enumerate() {
                for (place, logits) in judged.grades.iter().enumerate() {
                    let Some(level) = levels[place] else { continue };
                    let row = &logits.data()[own[side] * LEVELS..][..LEVELS];
                    let logits: [f64; LEVELS] = std::array::from_fn(|at| f64::from(row[at]));
                    let (own, slopes) = grade(logits, level);
                    loss += self.settings.grade_weight * own;
                    let others = (0..LEVELS).filter(|&other| other != level);
                    grades.push(GradeLoss {
                        side,
                        place,
                        right: others
                            .into_iter()
                            .all(|other| logits[other] < logits[level]),
                        slopes: slopes.map(|slope| self.settings.grade_weight * slope),
                    });
                }
            }
            Pair {
                loss,
                rewards,
                slopes,
                grades,
            }
        };
        (0..batch.origins.len() / 2).map(one).collect()
    }

    /// Mean loss of held-out pairs, as [`VALIDATION_LOSS`]; the share of pairs whose chosen response has the higher reward, ties
    /// half; how far that share is from what the differences promise (the expected calibration error); and the share of grades that are right,
    /// where there are any. None where told to stop.
    pub fn measure(
        &self,
        passes: &[Batch],
        ctx: &mut Ctx,
        decoder: &Decoder,
        goes_on: &mut GoesOn,
    ) -> Option<Measured> {
        let (mut loss, mut margins) = (0.0, Vec::new());
        let (mut graded, mut right) = (0u64, 0u64);
        for (number, pass) in passes.iter().enumerate() {
            if !goes_on(number as f64 / passes.len() as f64) {
                return None;
            }
            let judged = judge(ctx, decoder, pass);
            for pair in self.pairs(pass, &judged) {
                loss += pair.loss;
                margins.push(pair.rewards[0] - pair.rewards[1]);
                graded += pair.grades.len() as u64;
                right += pair.grades.iter().filter(|grade| grade.right).count() as u64;
            }
        }
        let count = margins.len().max(1) as f64;
        let mut measured = vec![
            (VALIDATION_LOSS, loss / count),
            ("preference_accuracy", accuracy(&margins)),
            ("reward_margin", margins.iter().sum::<f64>() / count),
            ("calibration_error", calibration(&margins).error),
        ];
        if graded > 0 {
            measured.push(("grade_accuracy", right as f64 / graded as f64));
        }
        Some(measured)
    }
}

impl Objective for Rewards<'_> {
    fn loss(&self, decoder: &Decoder, ctx: &mut Ctx, batch: &Batch) -> TokenLoss {
        let judged = judge(ctx, decoder, batch);
        let segments: Vec<_> = batch.segments.iter().collect();
        let mut d_rewards = vec![0.0; segments.len()];
        let mut d_grades = vec![vec![0.0; segments.len() * LEVELS]; judged.grades.len()];
        let (mut value, mut per_token) = (0.0, vec![0.0; batch.tokens.len()]);
        for (number, pair) in self.pairs(batch, &judged).iter().enumerate() {
            let chosen = segments[2 * number];
            let rows = chosen.start..chosen.start + chosen.len;
            // 1 / pairs of the step, on what is learnt.
            let share = batch.weights[rows.clone()]
                .iter()
                .fold(0.0f32, |most, &w| most.max(w));
            value += f64::from(share) * pair.loss;
            per_token[rows.end - 1] = pair.loss as f32;
            for side in 0..2 {
                d_rewards[2 * number + side] = share * pair.slopes[side] as f32;
            }
            for grade in &pair.grades {
                let at = (2 * number + grade.side) * LEVELS;
                for (level, slope) in grade.slopes.iter().enumerate() {
                    d_grades[grade.place][at + level] = share * *slope as f32;
                }
            }
        }
        let shaped = |like: &Tensor, numbers: Vec<f32>| Tensor::new(like.shape(), numbers);
        let mut inputs = vec![(&judged.rewards, shaped(&judged.rewards, d_rewards))];
        for (logits, gradient) in judged.grades.iter().zip(d_grades) {
            inputs.push((logits, shaped(logits, gradient)));
        }
        TokenLoss {
            loss: given(ctx, value as f32, inputs),
            per_token,
        }
    }
}

/// The share of margins above 0, of which ties are half.
fn accuracy(margins: &[f64]) -> f64 {
    let right = margins.iter().map(|&margin| match margin {
        above if above > 0.0 => 1.0,
        0.0 => 0.5,
        _ => 0.0,
    });
    right.sum::<f64>() / margins.len().max(1) as f64
}

/// Bins of confidence.
const BINS: usize = 10;

/// How often a model is right where it says how sure it is.
struct Calibration {
    error: f64,
    bins: Vec<Value>,
}

/// Of pairs by the confidence `σ(|r_c - r_r|)`, from 1/2 to 1, in ten bins of equal width: the expected calibration error, the mean
/// over pairs of how far a bin's accuracy is from its mean confidence (arXiv 1706.04599).
fn calibration(margins: &[f64]) -> Calibration {
    let mut sums = [[0.0; 3]; BINS]; // pairs, confidence, right
    for &margin in margins {
        let confidence = sigmoid(margin.abs());
        let bin = ((confidence - 0.5) * 2.0 * BINS as f64) as usize;
        let sum = &mut sums[bin.min(BINS - 1)];
        let one = [1.0, confidence, accuracy(&[margin])];
        sum.iter_mut().zip(one).for_each(|(sum, one)| *sum += one);
    }
    let all = margins.len().max(1) as f64;
    let error = sums.map(|[_, confidence, right]| (confidence - right).abs());
    let bin = |(number, [count, confidence, right]): (usize, [f64; 3])| {
        let width = 0.5 / BINS as f64;
        (count > 0.0).then(|| {
            json!({
                "from": 0.5 + number as f64 * width, "to": 0.5 + (number + 1) as f64 * width, "pairs": count,
                "confidence": confidence / count, "accuracy": right / count,
            })
        })
    };
    Calibration {
        error: error.iter().sum::<f64>() / all,
        bins: sums.into_iter().enumerate().filter_map(bin).collect(),
    }
}

/// The rewards of the chosen and the rejected response of each pair, in order.
///
/// # Errors
/// When the decoder has no reward head, or someone asked to stop.
pub fn pair_rewards(
    ctx: &mut Ctx,
    decoder: &Decoder,
    source: &Source,
    pass_tokens: usize,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Vec<[f64; 2]>> {
    let pairs = judged_pairs(ctx, decoder, source, pass_tokens, progress, interrupt)?;
    Ok(pairs.into_iter().map(|(pair, _)| pair.rewards).collect())
}

/// All pairs of a file as the model judges them, each with what people said of it.
fn judged_pairs<'a>(
    ctx: &mut Ctx,
    decoder: &Decoder,
    source: &'a Source,
    pass_tokens: usize,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Vec<(Pair, &'a Judgement)>> {
    if decoder.reward_head().is_none() {
        return Err(TrainError::Task(
            "the model has no reward head; train one with `russet reward`".into(),
        ));
    }
    let sources = std::slice::from_ref(source);
    let rewards = Rewards::new(RewardSettings::default(), sources);
    let (passes, mut all) = (held_out(sources, None, pass_tokens), Vec::new());
    progress.begin("reward", Some(passes.len() as u64), "passes");
    for (number, pass) in passes.iter().enumerate() {
        if interrupt.is_raised() {
            progress.end();
            return Err(TrainError::Interrupted);
        }
        let judged = judge(ctx, decoder, pass);
        for (place, pair) in rewards.pairs(pass, &judged).into_iter().enumerate() {
            all.push((pair, rewards.judgement(pass, place)));
        }
        progress.update(number as u64 + 1, &[]);
    }
    progress.end();
    Ok(all)
}

/// What a reward model makes of a file of preferences: `pairs`, `accuracy`, `log_loss` and `brier` of `σ(r_c - r_r)` against
/// certainty, `calibration` {`error`, `bins`}, `strengths` with what their differences promise beside the target, `grades`.
///
/// # Errors
/// When the decoder has no reward head, or someone asked to stop.
pub fn evaluate(
    ctx: &mut Ctx,
    decoder: &Decoder,
    source: &Source,
    pass_tokens: usize,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Value> {
    let (mut margins, mut strengths, mut grades) = (Vec::new(), Vec::new(), Vec::new());
    for (pair, said) in judged_pairs(ctx, decoder, source, pass_tokens, progress, interrupt)? {
        margins.push(pair.rewards[0] - pair.rewards[1]);
        strengths.push(said.strength);
        grades.extend(pair.grades.iter().map(|grade| (grade.place, grade.right)));
    }
    let count = margins.len().max(1) as f64;
    let mean = |of: &dyn Fn(f64) -> f64| margins.iter().map(|&m| of(m)).sum::<f64>() / count;
    let calibrated = calibration(&margins);
    let mut by_strength = serde_json::Map::new();
    for strength in Strength::ALL {
        let own: Vec<f64> = margins
            .iter()
            .zip(&strengths)
            .filter(|(_, other)| **other == Some(strength))
            .map(|(margin, _)| *margin)
            .collect();
        if own.is_empty() {
            continue;
        }
        let promised = own.iter().map(|&margin| sigmoid(margin)).sum::<f64>() / own.len() as f64;
        let json = json!({
            "pairs": own.len(), "accuracy": accuracy(&own), "probability": promised, "target": strength.target(),
        });
        by_strength.insert(strength.word().to_owned(), json);
    }
    let mut by_grade = serde_json::Map::new();
    for (place, name) in GRADES.iter().enumerate() {
        let own: Vec<bool> = grades
            .iter()
            .filter(|one| one.0 == place)
            .map(|one| one.1)
            .collect();
        if !own.is_empty() {
            let right = own.iter().filter(|right| **right).count();
            let json = json!({"responses": own.len(), "accuracy": right as f64 / own.len() as f64});
            by_grade.insert((*name).to_owned(), json);
        }
    }
    Ok(json!({
        "pairs": margins.len(),
        "accuracy": accuracy(&margins),
        "margin": mean(&|margin| margin),
        "log_loss": mean(&|margin| softplus(-margin)),
        "brier": mean(&|margin| sigmoid(-margin) * sigmoid(-margin)),
        "calibration": {"error": calibrated.error, "bins": calibrated.bins},
        "strengths": by_strength,
        "grades": by_grade,
    }))
}

/// What a logistic regression on bags of tokens comes to: trained on the pairs of one file, its accuracy on those of another. A
/// reward model that does not beat it has learnt words, not answers.
///
/// A pair is the difference of the two responses' counts of each token; 300 steps of gradient descent on all pairs, with a ridge of
/// 1e-3. The prompt is in neither.
pub fn bag_of_words(train: &Source, held_out: &Source, vocab: usize) -> f64 {
    let train = bags(train);
    let mut weights = vec![0.0f64; vocab];
    let margin = |weights: &[f64], bag: &[(u32, f64)]| -> f64 {
        bag.iter()
            .map(|&(token, count)| weights[token as usize] * count)
            .sum()
    };
    const RATE: f64 = 2.0; // below 4, from where steps on such short vectors could overshoot
    for _ in 0..300 {
        let mut pull: Vec<f64> = weights.iter().map(|weight| -1e-3 * weight).collect();
        for bag in &train {
            let slope = sigmoid(-margin(&weights, bag)) / train.len() as f64;
            for &(token, count) in bag {
                pull[token as usize] += slope * count;
            }
        }
        for (weight, pull) in weights.iter_mut().zip(pull) {
            *weight += RATE * pull;
        }
    }
    let margins: Vec<f64> = bags(held_out)
        .iter()
        .map(|bag| margin(&weights, bag))
        .collect();
    accuracy(&margins)
}

/// Each pair as counts of tokens, the chosen response's less the rejected one's, as shares of the response's length.
fn bags(source: &Source) -> Vec<Vec<(u32, f64)>> {
    let bag = |pair: &[crate::data::Encoded]| {
        let mut counts = std::collections::BTreeMap::<u32, f64>::new();
        for (example, sign) in pair.iter().zip([1.0, -1.0]) {
            let share = sign / example.learnt().max(1) as f64;
            for &token in example.targets.iter().filter(|&&target| target != IGNORE) {
                *counts.entry(token).or_default() += share;
            }
        }
        counts.into_iter().collect()
    };
    source.examples.chunks_exact(2).map(bag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calibration_is_the_distance_of_what_is_promised_from_what_is_kept() {
        // σ(1.0986) = 0.75: three of four right is exactly what was promised.
        let sure = libm::log(3.0);
        let kept = calibration(&[sure, sure, sure, -sure]);
        assert!(kept.error < 1e-12, "{}", kept.error);
        assert_eq!(kept.bins.len(), 1);
        let boasted = calibration(&[sure, -sure]);
        assert!((boasted.error - 0.25).abs() < 1e-12, "{}", boasted.error);
        assert_eq!(accuracy(&[1.0, 0.0, -1.0, 2.0]), 0.625);
    }
}
