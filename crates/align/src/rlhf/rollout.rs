//! Batches of answers, drawn by the model that learns.
//!
//! A batch is a function of (weights, seed, its number): prompts come in an order that the seed gives, and the random numbers of an
//! answer are a function of (seed, batch, answer, position). So a run goes on from the border between two batches with two integers,
//! and a wish to stop in the middle of one is heard behind its last step.
//!
//! The engine holds the loop's weights themselves while it generates. Afterwards the same weights run over the answers as training
//! does, which gives the `log π_θk` that steps compare with; that the engine said the same within [`TOLERANCE`] is looked at for
//! every token, and a run where it did not ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use russet_artifact::Interrupt;
use russet_engine::{Engine, EngineConfig, Event, Finish, Flow, Generation, Request, Sampling};
use russet_model::{Decoder, Embedding};
use russet_tensor::ops::IGNORE;
use russet_tensor::{Ctx, Segments, Tensor};
use russet_tokenizer::Tokenizer;
use russet_train::{Batch, Batches, Origin, Result, TrainError};
use serde_json::{Value, json};

use super::prompts::{Prompt, Prompts, drawn};
use super::settings::{Algorithm, Divergence, RlhfSettings};
use super::{Rolled, SharedBoard, locked};
use crate::advantage::{group_normalised, leave_one_out, regularised_rewards};
use crate::rewards::{Answer, ModelReward, Reward, Sum, sum};

/// How far a token's log-probability may be in generation from what it is in training, in nats: both compute in f32, the same
/// products in the same order.
pub const TOLERANCE: f32 = 1e-4;

/// ε of group advantages (arXiv 2402.03300's code).
const EPSILON: f64 = 1e-4;

/// What answers are drawn with and judged by.
pub(crate) struct Drawer<'a> {
    pub settings: &'a RlhfSettings,
    pub tokenizer: &'a Tokenizer,
    pub rules: &'a Sum,
    pub models: &'a [(f64, Arc<ModelReward>)],
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
    /// Tokens of prompt and answer.
    pub length: usize,
    pub interrupt: &'a Interrupt,
}

/// Answers that were judged.
pub(crate) struct Judged {
    pub generations: Vec<Generation>,
    pub rewards: Vec<f64>,
}

impl Drawer<'_> {
    /// `count` answers to each prompt, one prompt's after another's, with the seed of each prompt; none where someone asked to stop.
    pub fn draw(
        &self,
        ctx: &Ctx,
        decoder: &Decoder,
        prompts: &[(&Prompt, u64)],
        count: usize,
    ) -> Result<Option<Vec<Generation>>> {
        let slots = self.settings.slots.min(prompts.len() * count);
        let config = EngineConfig::new(self.length, slots);
        let failed = |error: russet_engine::Error| TrainError::Task(Box::new(error));
        let mut engine = Engine::new(decoder.share(), ctx.pool.clone(), config).map_err(failed)?;
        let mut places = BTreeMap::new();
        for (prompt, seed) in prompts {
            let request = Request {
                prompt: prompt.tokens.clone(),
                max_tokens: self.settings.max_tokens,
                sampling: Sampling {
                    seed: *seed,
                    ..Sampling::default()
                },
                stop_tokens: self.ends.clone(),
                ..Request::default()
            };
            for id in engine.submit_answers(request, count).map_err(failed)? {
                places.insert(id, places.len());
            }
        }
        let mut answers: Vec<Option<Generation>> = vec![None; places.len()];
        let mut problem = None;
        loop {
            if self.interrupt.is_raised() {
                return Ok(None);
            }
            let goes_on = engine.step(&mut |event| {
                if let Event::End(id, answer) = event {
                    match answer {
                        Ok(answer) => answers[places[&id]] = Some(answer),
                        Err(error) => drop(problem.get_or_insert(error)),
                    }
                }
                Flow::Continue
            });
            if let Some(error) = problem {
                return Err(failed(error));
            }
            if !goes_on {
                break;
            }
        }
        let ended = answers
            .into_iter()
            .map(|answer| answer.expect("every request ends"));
        Ok(Some(ended.collect()))
    }

    /// What they are worth.
    pub fn judge(
        &self,
        ctx: &mut Ctx,
        prompts: &Prompts,
        asked: &[(&Prompt, u64)],
        count: usize,
        generations: Vec<Generation>,
    ) -> Result<Judged> {
        let texts: Vec<String> = generations
            .iter()
            .map(|generation| self.tokenizer.decode(generation.content(), true))
            .collect();
        let answers: Vec<Answer> = texts
            .iter()
            .enumerate()
            .map(|(at, text)| Answer {
                asked: &asked[at / count].0.asked,
                text,
            })
            .collect();
        let rules = self.rules.0.iter().map(|(weight, rule)| (*weight, &**rule));
        let models = self.models.iter();
        let models = models.map(|(weight, model)| (*weight, &**model as &dyn Reward));
        let rewards = sum(ctx, &rules.chain(models).collect::<Vec<_>>(), &answers);
        let mut rewards = rewards.map_err(|problem| prompts.error(asked[0].0, &problem))?;
        for (reward, generation) in rewards.iter_mut().zip(&generations) {
            if generation.finish != Finish::Stop {
                *reward += self.settings.unfinished;
            }
        }
        Ok(Judged {
            generations,
            rewards,
        })
    }
}

/// The batches of a run.
pub(crate) struct Rollouts<'a> {
    pub drawer: Drawer<'a>,
    pub prompts: &'a Prompts,
    /// The model that training begins with, where it is asked.
    pub reference: Option<Arc<Decoder>>,
    pub seed: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Answers of a batch, and of a micro-batch.
    pub answers: usize,
    pub micro: usize,
    pub board: SharedBoard,
    /// Why the run ends here.
    pub ended: Option<String>,
}

impl Rollouts<'_> {
    fn steps_per_batch(&self) -> u64 {
        self.drawer.settings.steps_per_batch.unwrap_or(1)
    }

    /// Log-probabilities of each answer's tokens under a decoder, and its hidden states before them where they are wanted.
    fn score(
        &self,
        ctx: &mut Ctx,
        decoder: &Decoder,
        rolled: &[Rolled],
        mut each: impl FnMut(usize, Vec<f32>, &[f32]),
    ) {
        for (chunk, group) in rolled.chunks(self.micro).enumerate() {
            let lengths: Vec<usize> = group.iter().map(|one| one.inputs.len()).collect();
            let tokens: Vec<u32> = group.iter().flat_map(|one| one.inputs.clone()).collect();
            let targets: Vec<u32> = group.iter().flat_map(|one| one.targets.clone()).collect();
            let segments = Segments::packed(&lengths);
            let hidden = decoder.forward(ctx, &tokens, &segments, None); // [N, D]
            let losses = decoder.token_losses(ctx, &hidden, &targets);
            let width = hidden.dims2().1;
            for (number, (segment, one)) in segments.iter().zip(group).enumerate() {
                let answer = one
                    .targets
                    .iter()
                    .filter(|&&target| target != IGNORE)
                    .count();
                let end = segment.start + segment.len;
                let rows = end - answer..end;
                let log_probs = losses[rows.clone()].iter().map(|loss| -loss).collect();
                let states = &hidden.data()[rows.start * width..rows.end * width];
                each(chunk * self.micro + number, log_probs, states);
            }
        }
    }

    /// Draws, judges and weighs a batch; `false` where someone asked to stop.
    fn roll(&mut self, ctx: &mut Ctx, decoder: &Decoder, batch: u64, step: u64) -> Result<bool> {
        let settings = self.drawer.settings;
        let count = settings.samples;
        let asked: Vec<(&Prompt, u64)> = (0..(self.answers / count) as u64)
            .map(|number| {
                let place = batch * (self.answers / count) as u64 + number;
                let prompt = self.prompts.at(place, self.seed);
                (prompt, drawn(self.seed, batch, number))
            })
            .collect();
        let Some(generations) = self.drawer.draw(ctx, decoder, &asked, count)? else {
            return Ok(false);
        };
        let drawer = &self.drawer;
        let judged = drawer.judge(ctx, self.prompts, &asked, count, generations)?;
        let mut rolled: Vec<Rolled> = Vec::new();
        for (at, generation) in judged.generations.iter().enumerate() {
            let prompt = &asked[at / count].0.tokens;
            let mut inputs = prompt.clone();
            inputs.extend_from_slice(&generation.tokens);
            inputs.pop();
            let mut targets = vec![IGNORE; prompt.len() - 1];
            targets.extend_from_slice(&generation.tokens);
            rolled.push(Rolled {
                inputs,
                targets,
                ..Rolled::default()
            });
        }
        let keeps = settings.divergence == Some(Divergence::Vocabulary);
        let mut own: Vec<(Vec<f32>, Vec<f32>)> = Vec::new();
        self.score(ctx, decoder, &rolled, |_, log_probs, hidden| {
            let hidden = if keeps { hidden.to_vec() } else { Vec::new() };
            own.push((log_probs, hidden));
        });
        let gap = self.check_gap(step, &own, &judged.generations)?;
        let sum = |log_probs: &[f32]| log_probs.iter().map(|&one| f64::from(one)).sum::<f64>();
        let log_probs: Vec<f64> = own.iter().map(|(own, _)| sum(own)).collect();
        let mut references = log_probs.clone();
        if let Some(reference) = self.reference.clone() {
            self.score(ctx, &reference, &rolled, |at, log_probs, _| {
                references[at] = sum(&log_probs)
            });
        }
        let beta = settings.beta.at(step, self.steps);
        let regularised = regularised_rewards(&judged.rewards, &log_probs, &references, beta);
        let advantages: Vec<f64> = regularised
            .chunks_exact(count)
            .flat_map(|group| match settings.algorithm {
                Algorithm::Grpo => group_normalised(group, EPSILON),
                _ => leave_one_out(group),
            })
            .collect();
        for ((one, advantage), (log_probs, hidden)) in rolled.iter_mut().zip(advantages).zip(own) {
            (one.advantage, one.log_probs, one.hidden) = (advantage, log_probs, hidden);
        }
        let all = rolled.len() as f64;
        let tokens: usize = rolled.iter().map(|one| one.log_probs.len()).sum();
        let cut = |generation: &&Generation| generation.finish != Finish::Stop;
        let unfinished = judged.generations.iter().filter(cut).count();
        let kl = log_probs
            .iter()
            .zip(&references)
            .map(|(own, reference)| own - reference);
        let kl = kl.sum::<f64>() / all;
        let mut facts = vec![
            ("reward", judged.rewards.iter().sum::<f64>() / all),
            ("length", tokens as f64 / all),
            ("entropy", -log_probs.iter().sum::<f64>() / tokens as f64),
            ("unfinished", unfinished as f64 / all),
            ("rollout_gap", f64::from(gap)),
        ];
        if self.reference.is_some() {
            facts.push(("kl", kl));
        }
        if let Some(limit) = settings.stop_kl.filter(|&limit| kl > limit) {
            self.ended = Some(format!(
                "the policy is {kl:.3} nats an answer from the reference, beyond `rlhf.stop_kl` {limit}; the run ends after step {step}"
            ));
        }
        let table = match decoder.output_table() {
            Embedding::Dense(table) if keeps => {
                Some(Tensor::new(table.shape(), table.data().to_vec())) // the weights move on
            }
            _ => None,
        };
        let mut board = locked(&self.board);
        (board.answers, board.table, board.facts) = (rolled, table, facts);
        Ok(true)
    }

    /// The furthest that generation was from training; an error where that is beyond [`TOLERANCE`].
    fn check_gap(
        &self,
        step: u64,
        own: &[(Vec<f32>, Vec<f32>)],
        generations: &[Generation],
    ) -> Result<f32> {
        let mut most = 0.0f32;
        for ((own, _), generation) in own.iter().zip(generations) {
            for (own, said) in own.iter().zip(&generation.logprobs) {
                let gap = (own - said).abs();
                if gap <= TOLERANCE {
                    most = most.max(gap);
                    continue;
                }
                let sentence = format!(
                    "before step {}: a token\'s log-probability was {said} when it was generated and is {own} in training, further \
                     apart than {TOLERANCE}, so the answers are not the policy\'s; this is a bug of Russet, or the machine computes \
                     wrongly",
                    step + 1
                );
                return Err(TrainError::Task(sentence.into()));
            }
        }
        Ok(most)
    }
}

impl Batches for Rollouts<'_> {
    fn prepare(&mut self, ctx: &mut Ctx, decoder: &Decoder) -> Result<()> {
        if !self.is_whole() {
            return Ok(()); // the next step on the same answers
        }
        let (batch, step) = {
            let mut board = locked(&self.board);
            if board.used > 0 {
                board.batch += 1;
            }
            (board.used, board.over) = (0, false);
            board.answers.clear();
            (board.batch, board.step)
        };
        self.roll(ctx, decoder, batch, step)?;
        Ok(())
    }

    fn ends(&self) -> Option<String> {
        self.ended.clone()
    }

    fn is_whole(&self) -> bool {
        let board = locked(&self.board);
        board.used == 0 || board.used >= self.steps_per_batch() || board.over
    }

    fn next(&mut self) -> Result<Vec<Batch>> {
        let mut board = locked(&self.board);
        board.used += 1;
        board.step += 1;
        let first = board.batch as usize * self.answers;
        let mut batches = Vec::new();
        for (chunk, group) in board.answers.chunks(self.micro).enumerate() {
            let mut batch = Batch::default();
            for (number, one) in group.iter().enumerate() {
                let document = first + chunk * self.micro + number;
                batch.tokens.extend_from_slice(&one.inputs);
                batch.targets.extend_from_slice(&one.targets);
                batch.segments.push(one.inputs.len(), 0, 0);
                batch.origins.push(Origin {
                    source: 0,
                    documents: document..document + 1,
                    targets: 0..one.inputs.len(),
                });
            }
            batch.weights = vec![0.0; batch.tokens.len()]; // the objective knows them
            batches.push(batch);
        }
        Ok(batches)
    }

    fn state(&self) -> Value {
        let done = self.is_whole();
        let board = locked(&self.board);
        let next = u64::from(done && board.used > 0);
        json!({"batch": board.batch + next, "step": board.step})
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let (Some(batch), Some(step)) = (state["batch"].as_u64(), state["step"].as_u64()) else {
            return Err(TrainError::Data {
                place: self.prompts.files[0].clone(),
                problem: format!(
                    "{state} is no place in its batches; the saved state belongs to other data"
                ),
            });
        };
        let mut board = locked(&self.board);
        (board.batch, board.step, board.used, board.over) = (batch, step, 0, false);
        board.answers.clear();
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        let files: Vec<String> = self
            .prompts
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        vec![format!("the answers to {}", files.join(", "))]
    }

    fn labels(&self) -> Vec<String> {
        vec!["answers".to_owned()]
    }
}
