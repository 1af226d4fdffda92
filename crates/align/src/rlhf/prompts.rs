//! Files of prompts in tokens, and the order in which they are met.

use std::path::PathBuf;

use russet_kernels::random;
use russet_tokenizer::Tokenizer;
use russet_train::{Permutation, Result, TrainError};
use serde::Serialize;

use crate::rewards::Sum;
use crate::rows::{Asked, read_checked};

/// Streams of random numbers that belong to a run's seed.
const ORDER: u64 = 0x524c_4f52_4445_5200;
const DRAWN: u64 = 0x524c_4452_4157_4e00;

/// A prompt.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    /// What was asked.
    pub asked: Asked,
    /// As the template writes it, ready to be answered.
    pub tokens: Vec<u32>,
    /// Where it stands.
    pub place: (usize, u64), // file, line
}

/// What files came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Prompts that are met.
    pub prompts: u64,
    /// Rows that could not be read and were left out.
    pub malformed: u64,
    /// Rows left out because they leave no room for an answer.
    pub dropped: u64,
    /// Tokens of the prompts.
    pub tokens: u64,
}

/// Prompts of several files.
#[derive(Debug)]
pub(crate) struct Prompts {
    pub files: Vec<PathBuf>,
    pub all: Vec<Prompt>,
    pub counts: Counts,
}

impl Prompts {
    /// Reads files, of which prompts of more than `most` tokens are left out.
    pub fn read(
        files: &[PathBuf],
        tokenizer: &Tokenizer,
        most: usize,
        skip_malformed: bool,
        rewards: &Sum,
    ) -> Result<Prompts> {
        let mut prompts = Prompts {
            files: files.to_vec(),
            all: Vec::new(),
            counts: Counts::default(),
        };
        let checked = |asked: &Asked| rewards.check(asked).and_then(|()| asked.encode(tokenizer));
        let (read, malformed) = read_checked(files, skip_malformed, checked)?;
        prompts.counts.malformed = malformed;
        for (place, asked, tokens) in read {
            if tokens.len() > most {
                prompts.counts.dropped += 1;
                continue;
            }
            prompts.counts.tokens += tokens.len() as u64;
            prompts.all.push(Prompt {
                asked,
                tokens,
                place,
            });
        }
        prompts.counts.prompts = prompts.all.len() as u64;
        if let (true, Some(path)) = (prompts.all.is_empty(), files.first()) {
            let Counts {
                malformed, dropped, ..
            } = prompts.counts;
            let problem = format!(
                "no prompt is left: {dropped} have more than {most} tokens, which is what `train.sequence_length` leaves beside \
                 `rlhf.max_tokens`, and {malformed} cannot be read; raise the first, or mend the rows"
            );
            return Err(TrainError::Data {
                place: path.clone(),
                problem,
            });
        }
        Ok(prompts)
    }

    /// The prompt at a place of an endless row; each round is another order.
    pub fn at(&self, place: u64, seed: u64) -> &Prompt {
        let count = self.all.len() as u64;
        let order = Permutation::new(count, seed ^ ORDER, place / count);
        &self.all[order.at(place % count) as usize]
    }

    /// An error at a prompt's line.
    pub fn error(&self, prompt: &Prompt, problem: &str) -> TrainError {
        TrainError::Data {
            place: self.files[prompt.place.0].clone(),
            problem: format!("line {}: {problem}", prompt.place.1),
        }
    }
}

/// What the random numbers of an answer follow from.
pub(crate) fn drawn(seed: u64, batch: u64, number: u64) -> u64 {
    random::hash(seed ^ DRAWN, batch, number)
}
