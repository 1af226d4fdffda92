//! Needle retrieval: a fact is put somewhere into a text, and asked for at the end.
//!
//! ```text
//! ⏹ filler … The secret word of the KEY is VALUE . … filler The secret word of the KEY is    ─▶ log p(value), of several
//!            └── at a depth of 0 to 1 ──────┘
//! ```
//! Small models do not answer questions, so nothing is generated: keys and values are single tokens, and the values' log-probabilities after
//! the last token are ranked. The right value competes with distractors that do not stand in the prompt; what it gains over the same
//! prompt with filler in the fact's place is what the model has found, apart from how likely the word is anyway. (After
//! "needle in a haystack" and RULER, arXiv 2404.06654, both for models that answer.)
//!
//! Words and phrases come as tokens: this crate does not read text.

use russet_artifact::{Interrupt, Progress};
use russet_kernels::{cross_entropy, random};
use russet_model::Decoder;
use russet_tensor::{Ctx, Segments, ops};
use serde::Serialize;

use crate::{Error, Result, stats};

/// Tokens of one forward pass, or one prompt where that is longer.
const PASS_TOKENS: usize = 4096;

/// Streams of random numbers of a trial.
const WORDS: u64 = 0x4e45_4544_4c45_0000;
const PLACES: u64 = 0x4e45_4544_4c45_0001;

/// The text and the words of the facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Haystack {
    /// What fills the prompts; begun anew where it ends.
    pub filler: Vec<u32>,
    /// Tokens that are words, distinct: keys and values.
    pub words: Vec<u32>,
    /// What stands before the key, between key and value, and behind the value.
    pub phrase: [Vec<u32>; 3],
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct NeedleSettings {
    /// The token before each prompt.
    pub bos: u32,
    /// Tokens of the prompts.
    pub lengths: Vec<usize>,
    /// Where the fact stands: 0 at the beginning, 1 just before the question.
    pub depths: Vec<f64>,
    /// Prompts of each length and depth.
    pub trials: usize,
    /// Values that compete, the right one among them.
    pub values: usize,
    /// What words and places follow from.
    pub seed: u64,
}

/// How well facts were found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NeedleScores {
    /// Values that competed.
    pub values: usize,
    /// Prompts of each length and depth.
    pub trials: usize,
    /// The accuracy of a guess.
    pub chance: f64,
    /// Of all prompts.
    pub found: Found,
    /// The standard error of its accuracy over trials, which have their own facts; none of one.
    pub accuracy_stderr: Option<f64>,
    /// By length.
    pub lengths: Vec<LengthScores>,
}

/// The scores of one length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LengthScores {
    /// Tokens of the prompts.
    pub length: usize,
    /// Of all its prompts.
    pub found: Found,
    /// The standard error of its accuracy over trials; none of one.
    pub accuracy_stderr: Option<f64>,
    /// By depth.
    pub depths: Vec<DepthScores>,
}

/// The scores of one depth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DepthScores {
    /// 0 to 1.
    pub depth: f64,
    /// Of its prompts.
    pub found: Found,
}

/// Means over prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Found {
    /// The share of prompts in which the right value is the likeliest.
    pub accuracy: f64,
    /// Its place among the values, 1 the likeliest; a guess comes to (values + 1) / 2.
    pub mean_rank: f64,
    /// Its log-probability among all tokens, in nats.
    pub log_prob: f64,
    /// What that is above the same without the fact.
    pub gain: f64,
}

/// One key, the value that belongs to it, and values that do not.
struct Fact {
    key: u32,
    values: Vec<u32>, // the right one first
    start: usize,     // in the filler
}

impl NeedleSettings {
    fn check(&self, haystack: &Haystack, decoder: &Decoder) -> Result<()> {
        let wrong = |setting, value, wanted: String| {
            Err(Error::Setting {
                setting,
                value,
                wanted,
            })
        };
        if self.trials == 0 {
            return wrong("trials", 0, "at least 1".to_owned());
        }
        let words = haystack.words.len();
        if !(2..words.max(2)).contains(&self.values) {
            let wanted = format!(
                "from 2 to {}: the text has {words} words that are one token each, and the key is one of them",
                words.saturating_sub(1)
            );
            return wrong("values", self.values, wanted);
        }
        if self.depths.is_empty() || self.lengths.is_empty() {
            return wrong("lengths or depths", 0, "at least one of each".to_owned());
        }
        for &depth in &self.depths {
            if !(0.0..=1.0).contains(&depth) {
                return wrong(
                    "depth in percent",
                    (depth * 100.0) as usize,
                    "from 0 to 100".to_owned(),
                );
            }
        }
        let (least, context) = (haystack.overhead() + 1, decoder.config().context);
        for &length in &self.lengths {
            if !(least..=context).contains(&length) {
                let wanted = format!(
                    "from {least}, which hold the fact and the question, to {context}, the context of the model"
                );
                return wrong("length", length, wanted);
            }
        }
        let vocab = decoder.config().vocab;
        let all = [&haystack.filler, &haystack.words]
            .into_iter()
            .chain(&haystack.phrase);
        match all
            .flatten()
            .chain([&self.bos])
            .find(|&&token| token as usize >= vocab)
        {
            Some(&token) => Err(Error::UnknownToken {
                place: "a token of the haystack".to_owned(),
                token,
                vocab,
            }),
            None if haystack.filler.is_empty() => Err(Error::Empty {
                tokens: 0,
                bytes: 0,
            }),
            None => Ok(()),
        }
    }
}

impl Haystack {
    fn fact(&self, key: u32, value: u32) -> Vec<u32> {
        let [before, between, after] = &self.phrase;
        [before, &[key][..], between, &[value], after].concat()
    }

    fn question(&self, key: u32) -> Vec<u32> {
        let [before, between, _] = &self.phrase;
        [before, &[key][..], between].concat()
    }

    /// Tokens of a prompt that are not filler.
    fn overhead(&self) -> usize {
        1 + self.fact(0, 0).len() + self.question(0).len()
    }

    fn filler(&self, start: usize, count: usize) -> impl Iterator<Item = u32> + '_ {
        (start..start + count).map(|i| self.filler[i % self.filler.len()])
    }

    /// A prompt of `length` tokens with the fact at `depth`, or without it.
    fn prompt(&self, bos: u32, length: usize, fact: &Fact, depth: Option<f64>) -> Vec<u32> {
        let room = length - self.overhead();
        let needle = self.fact(fact.key, fact.values[0]);
        let mut prompt = vec![bos];
        match depth {
            None => prompt.extend(self.filler(fact.start, room + needle.len())),
            Some(depth) => {
                let before = (depth * room as f64).round() as usize;
                prompt.extend(self.filler(fact.start, before));
                prompt.extend(needle);
                prompt.extend(self.filler(fact.start + before, room - before));
            }
        }
        prompt.extend(self.question(fact.key));
        prompt
    }

    /// The words and the place of a trial: the same for every length and depth.
    fn trial(&self, seed: u64, trial: u64, values: usize) -> Fact {
        let mut order: Vec<(u64, u32)> = self
            .words
            .iter()
            .map(|&word| (random::hash(seed ^ WORDS, trial, u64::from(word)), word))
            .collect();
        order.sort_unstable();
        let mut words = order.into_iter().map(|(_, word)| word);
        Fact {
            key: words.next().expect("there are more words than values"),
            values: words.take(values).collect(),
            start: random::below(seed ^ PLACES, trial, 0, self.filler.len() as u64) as usize,
        }
    }
}

/// Asks `decoder` for facts in prompts of every length and depth.
///
/// # Errors
/// When a setting or a token is out of range, a logit is not finite, or `interrupt` is raised.
pub fn needle(
    decoder: &Decoder,
    ctx: &mut Ctx,
    haystack: &Haystack,
    settings: &NeedleSettings,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<NeedleScores> {
    settings.check(haystack, decoder)?;
    let per_length = settings.trials * (settings.depths.len() + 1);
    let total = per_length * settings.lengths.len();
    progress.begin("needle", Some(total as u64), "prompts");
    let mut done = 0;
    // Of each trial, which has the same fact everywhere: the share of its prompts in which the right value is the likeliest.
    let mut of_trials = vec![0.0; settings.trials];
    let mut measure = || -> Result<Vec<LengthScores>> {
        let mut lengths = Vec::new();
        for &length in &settings.lengths {
            // Without the fact, then at each depth; trial by trial.
            let mut prompts = Vec::with_capacity(per_length);
            let mut facts = Vec::with_capacity(settings.trials);
            for trial in 0..settings.trials as u64 {
                let fact = haystack.trial(settings.seed, trial, settings.values);
                let depths = [None]
                    .into_iter()
                    .chain(settings.depths.iter().copied().map(Some));
                prompts.extend(
                    depths.map(|depth| haystack.prompt(settings.bos, length, &fact, depth)),
                );
                facts.push(fact);
            }
            let mut asked = Vec::with_capacity(per_length);
            for prompts in prompts.chunks((PASS_TOKENS / length).max(1)) {
                if interrupt.is_raised() {
                    return Err(Error::Interrupted);
                }
                let first = asked.len();
                for (row, logits) in last_logits(decoder, ctx, prompts).enumerate() {
                    let fact = &facts[(first + row) / (settings.depths.len() + 1)];
                    asked.push(rank(&logits, fact).ok_or(Error::NotFinite)?);
                }
                done += prompts.len() as u64;
                progress.update(done, &[]);
            }
            let depths = settings.depths.iter().enumerate().map(|(at, &depth)| {
                let trials = asked.chunks_exact(settings.depths.len() + 1);
                let found = trials.map(|trial| {
                    let ((rank, log_prob), (_, without)) = (trial[at + 1], trial[0]);
                    Found {
                        accuracy: f64::from(u8::from(rank == 1)),
                        mean_rank: rank as f64,
                        log_prob,
                        gain: log_prob - without,
                    }
                });
                let found = mean(found);
                DepthScores { depth, found }
            });
            let depths: Vec<DepthScores> = depths.collect();
            let found = mean(depths.iter().map(|depth| depth.found));
            let trials = asked.chunks_exact(settings.depths.len() + 1).map(|trial| {
                let right = trial[1..].iter().filter(|(rank, _)| *rank == 1).count();
                right as f64 / settings.depths.len() as f64
            });
            let trials: Vec<f64> = trials.collect();
            for (all, one) in of_trials.iter_mut().zip(&trials) {
                *all += one / settings.lengths.len() as f64;
            }
            lengths.push(LengthScores {
                length,
                found,
                accuracy_stderr: stats::standard_error(&trials),
                depths,
            });
        }
        Ok(lengths)
    };
    let lengths = measure();
    progress.end();
    let lengths = lengths?;
    Ok(NeedleScores {
        values: settings.values,
        trials: settings.trials,
        chance: 1.0 / settings.values as f64,
        found: mean(lengths.iter().map(|length| length.found)),
        accuracy_stderr: stats::standard_error(&of_trials),
        lengths,
    })
}

/// Log-probabilities after the last token of each prompt, `[V]` each.
fn last_logits(
    decoder: &Decoder,
    ctx: &mut Ctx,
    prompts: &[Vec<u32>],
) -> impl Iterator<Item = Vec<f32>> + use<> {
    let tokens = prompts.concat();
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let last: Vec<usize> = lengths
        .iter()
        .scan(0, |end, length| {
            *end += length;
            Some(*end - 1)
        })
        .collect();
    let hidden = decoder.forward(ctx, &tokens, &Segments::packed(&lengths), None); // [N, D]
    let hidden = ops::rows(ctx, &hidden, &last); // [prompts, D]
    let logits = decoder.logits(ctx, &hidden); // [prompts, V]
    let (isa, vocab) = (ctx.pool.isa(), decoder.config().vocab);
    (0..prompts.len()).map(move |row| {
        let mut row = logits.data()[row * vocab..][..vocab].to_vec();
        cross_entropy::log_softmax(isa, &mut row);
        row
    })
}

/// The right value's place among all values, 1 the likeliest, and its log-probability. One as likely as it counts as
/// likelier: a model that tells nothing apart finds nothing.
fn rank(log_probs: &[f32], fact: &Fact) -> Option<(usize, f64)> {
    let of = |value: &u32| log_probs[*value as usize];
    let right = of(&fact.values[0]);
    let finite = fact.values.iter().all(|value| of(value).is_finite());
    let above = fact.values[1..]
        .iter()
        .filter(|value| of(value) >= right)
        .count();
    finite.then_some((1 + above, f64::from(right)))
}

fn mean(all: impl Iterator<Item = Found>) -> Found {
    let (mut sum, mut count) = (Found::default(), 0.0);
    for found in all {
        sum.accuracy += found.accuracy;
        sum.mean_rank += found.mean_rank;
        sum.log_prob += found.log_prob;
        sum.gain += found.gain;
        count += 1.0;
    }
    Found {
        accuracy: sum.accuracy / count,
        mean_rank: sum.mean_rank / count,
        log_prob: sum.log_prob / count,
        gain: sum.gain / count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn haystack() -> Haystack {
        Haystack {
            filler: (100..120).collect(),
            words: vec![1, 2, 3, 4, 5, 6],
            phrase: [vec![50, 51], vec![60], vec![70]],
        }
    }

    #[test]
    fn prompts_have_their_length_and_the_fact_at_its_depth() {
        let haystack = haystack();
        let fact = Fact {
            key: 1,
            values: vec![2, 3],
            start: 18,
        };
        let whole = haystack.prompt(0, 17, &fact, Some(0.5));
        // 17 = 1 + 6 of the fact + 4 of the question + 6 of filler, which begins anew behind 119.
        assert_eq!(
            whole,
            [
                0, 118, 119, 100, 50, 51, 1, 60, 2, 70, 101, 102, 103, 50, 51, 1, 60
            ]
        );
        let at = |depth| haystack.prompt(0, 17, &fact, Some(depth));
        assert_eq!(at(0.0)[1..7], [50, 51, 1, 60, 2, 70]);
        assert_eq!(at(1.0)[7..13], [50, 51, 1, 60, 2, 70]);
        let without = haystack.prompt(0, 17, &fact, None);
        assert_eq!(without.len(), 17);
        assert!(!without.contains(&2) && without[13..] == [50, 51, 1, 60]);
    }

    #[test]
    fn a_trial_draws_distinct_words_and_every_trial_others() {
        let haystack = haystack();
        let mut keys = std::collections::BTreeSet::new();
        for trial in 0..40 {
            let fact = haystack.trial(7, trial, 5);
            let mut all = [&[fact.key][..], &fact.values].concat();
            keys.insert(fact.key);
            all.sort_unstable();
            assert_eq!(all, haystack.words);
        }
        assert_eq!(keys.len(), 6);
    }

    #[test]
    fn ranks_count_what_is_as_likely_as_likelier() {
        let fact = |values: &[u32]| Fact {
            key: 0,
            values: values.to_vec(),
            start: 0,
        };
        let log_probs = [-1.0, -2.0, -2.0, -0.5, f32::NAN];
        assert_eq!(rank(&log_probs, &fact(&[0, 1, 2])), Some((1, -1.0)));
        assert_eq!(rank(&log_probs, &fact(&[1, 0, 2, 3])), Some((4, -2.0)));
        assert_eq!(rank(&log_probs, &fact(&[0, 4])), None);
    }
}
