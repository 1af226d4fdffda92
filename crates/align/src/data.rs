//! From rows to what a step learns: encoded, cut or dropped, packed, dealt.
//!
//! ```text
//! files ─▶ rows ─▶ tokens, the learnt ones known ─▶ sequences of T tokens at most ─▶ a mixture by weight ─▶ batches
//! ```
//! Each example is a segment of its own: attention stays within it and its positions begin anew, so what is packed together
//! does not talk. An example's input `n` predicts its token `n + 1`; targets that are not learnt are ignored. What follows the
//! last learnt token is left out, because nothing is learnt from it.
//!
//! A batch is a function of (files, settings, step). Conversations are packed by best fit, the longest first; each epoch meets
//! the sequences in another order. Two responses of a preference are one sequence together.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use russet_tensor::ops::IGNORE;
use russet_tokenizer::{Tokenizer, TokenizerError};
use russet_train::loader::{Shares, best_fit};
use russet_train::{Batch, Batches, Origin, Permutation, Result, TrainError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::reward::Strength;
use crate::rows::{Example, Graded, Rows, read_conversations, read_pairs};

/// Streams of random numbers that belong to a run's seed, apart from those of the weights.
const ORDER: u64 = 0x414c_4947_4e00_0000;

/// Templates that print a date print this one, 26 July 2024 in UTC (the one that Llama's have where they are given none), so
/// that the same files make the same tokens on every day.
pub(crate) const DATE: Duration = Duration::from_secs(1_721_952_000);

/// What becomes of an example that is longer than a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TooLong {
    /// Its end is cut off; it is dropped where nothing that is learnt is left.
    Cut,
    /// It is left out.
    Drop,
}

/// What a file's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// Conversations.
    Conversations,
    /// Preferences.
    Pairs,
    /// Preferences that a reward model reads: a response is an input to its last token, the one that ends it.
    Judged,
}

/// How rows become examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What they are.
    pub kind: RowKind,
    /// T, tokens of a sequence; of a preference, of each response.
    pub sequence_length: usize,
    /// What becomes of longer ones.
    pub too_long: TooLong,
    /// Whether rows that cannot be read are left out.
    pub skip_malformed: bool,
}

/// An example in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// `[N]`.
    pub inputs: Vec<u32>,
    /// The token that should follow each, `IGNORE` where it is not learnt, `[N]`.
    pub targets: Vec<u32>,
    /// Its row in the file, counted from 0.
    pub row: usize,
}

impl Encoded {
    /// Targets that are learnt.
    pub fn learnt(&self) -> usize {
        self.targets
            .iter()
            .filter(|&&target| target != IGNORE)
            .count()
    }

    /// The same with the last token that is learnt as an input too.
    pub(crate) fn whole(mut self) -> Encoded {
        self.inputs.extend(self.targets.last());
        self.targets.push(IGNORE);
        self
    }
}

/// What was said of a preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// How sure whoever compared was.
    pub strength: Option<Strength>,
    /// Grades of the chosen and the rejected response.
    pub grades: [Graded; 2],
}

/// What a file came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Rows that were read.
    pub rows: u64,
    /// Rows that could not be and were left out, because `data.skip_malformed` said so.
    pub malformed: u64,
    /// Examples whose end was cut off.
    pub cut: u64,
    /// Rows left out because they were too long.
    pub dropped: u64,
    /// Tokens of what is left.
    pub tokens: u64,
    /// Those of them that are learnt.
    pub learnt_tokens: u64,
    /// Sequences that they are packed into.
    pub sequences: u64,
}

/// A file, read and packed.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Its name in the log.
    pub label: String,
    /// Its examples in the order of rows; of preferences the chosen and the rejected response in turn.
    pub examples: Vec<Encoded>,
    /// The examples of each sequence.
    pub sequences: Vec<Vec<usize>>,
    /// Of preferences, what was said of each row.
    pub judgements: Vec<Judgement>,
    /// What it came to.
    pub counts: Counts,
}

impl Source {
    /// Reads and packs a file.
    ///
    /// # Errors
    /// When a row cannot be read or rendered and `skip_malformed` is not set, or nothing is left.
    pub fn read(
        path: &Path,
        label: String,
        tokenizer: &Tokenizer,
        reading: Reading,
    ) -> Result<Source> {
        let mut source = Source {
            path: path.to_owned(),
            label,
            examples: Vec::new(),
            sequences: Vec::new(),
            judgements: Vec::new(),
            counts: Counts::default(),
        };
        let skip = reading.skip_malformed;
        match reading.kind {
            RowKind::Conversations => {
                let rows = read_conversations(path, skip)?;
                source.take(rows, reading, |row| Ok(vec![encode(tokenizer, row)?]))?;
                let ranges: Vec<_> = source
                    .examples
                    .iter()
                    .map(|one| 0..one.inputs.len())
                    .collect();
                source.sequences = best_fit(&ranges, reading.sequence_length);
            }
            RowKind::Pairs | RowKind::Judged => {
                let rows = read_pairs(path, skip)?;
                let said = rows.rows.iter().map(|(_, row)| Judgement {
                    strength: row.strength,
                    grades: row.grades,
                });
                source.judgements = said.collect();
                let whole = reading.kind == RowKind::Judged;
                source.take(rows, reading, |row| {
                    let side = |example: &Example| -> std::result::Result<Encoded, String> {
                        let encoded = encode(tokenizer, example)?;
                        Ok(if whole { encoded.whole() } else { encoded })
                    };
                    Ok(vec![side(&row.chosen)?, side(&row.rejected)?])
                })?;
                let pairs = source.examples.len() / 2;
                source.sequences = (0..pairs)
                    .map(|pair| vec![2 * pair, 2 * pair + 1])
                    .collect();
            }
        }
        let counts = &mut source.counts;
        counts.sequences = source.sequences.len() as u64;
        for example in &source.examples {
            counts.tokens += example.inputs.len() as u64;
            counts.learnt_tokens += example.learnt() as u64;
        }
        if source.examples.is_empty() {
            let Counts {
                malformed, dropped, ..
            } = source.counts;
            let problem = format!(
                "nothing of it is left: {dropped} rows are longer than `train.sequence_length` {} and {malformed} cannot be \
                 read; raise that, or mend the rows",
                reading.sequence_length
            );
            return Err(TrainError::Data {
                place: path.to_owned(),
                problem,
            });
        }
        Ok(source)
    }

    /// Encodes rows, cuts them to length and counts. A row of which one example cannot stay goes as a whole.
    fn take<T>(
        &mut self,
        rows: Rows<T>,
        reading: Reading,
        encode: impl Fn(&T) -> std::result::Result<Vec<Encoded>, String>,
    ) -> Result<()> {
        self.counts.malformed = rows.malformed;
        for (number, (line, row)) in rows.rows.iter().enumerate() {
            let encoded = match encode(row) {
                Ok(encoded) => encoded,
                Err(_) if reading.skip_malformed => {
                    self.counts.malformed += 1;
                    continue;
                }
                Err(problem) => {
                    let problem = format!(
                        "line {line}: {problem}. Mend the row, or set `data.skip_malformed = true` to leave such rows out"
                    );
                    return Err(TrainError::Data {
                        place: self.path.clone(),
                        problem,
                    });
                }
            };
            self.counts.rows += 1;
            let mut kept = Vec::new();
            let mut cut = 0;
            for mut example in encoded {
                let room = reading.sequence_length;
                if example.inputs.len() > room && reading.too_long == TooLong::Cut {
                    example.inputs.truncate(room);
                    example.targets.truncate(room);
                    trim(&mut example);
                    cut += 1;
                }
                example.row = number;
                if example.inputs.len() <= room && !example.inputs.is_empty() {
                    kept.push(example);
                }
            }
            let whole = match reading.kind {
                RowKind::Conversations => 1,
                RowKind::Pairs | RowKind::Judged => 2,
            };
            match kept.len() == whole {
                true => {
                    self.counts.cut += cut;
                    self.examples.extend(kept);
                }
                false => self.counts.dropped += 1,
            }
        }
        Ok(())
    }

    /// Appends a sequence to a batch. Weights stay to be set.
    pub fn append(&self, batch: &mut Batch, source: usize, sequence: usize) {
        for &example in &self.sequences[sequence] {
            self.append_example(batch, source, example);
        }
    }

    /// Appends an example to a batch.
    pub fn append_example(&self, batch: &mut Batch, source: usize, example: usize) {
        let Encoded {
            inputs,
            targets,
            row,
        } = &self.examples[example];
        batch.tokens.extend_from_slice(inputs);
        batch.targets.extend_from_slice(targets);
        batch.segments.push(inputs.len(), 0, 0);
        batch.origins.push(Origin {
            source,
            documents: *row..row + 1,
            targets: 0..inputs.len(),
        });
    }
}

/// A conversation's inputs and targets.
pub(crate) fn encode(
    tokenizer: &Tokenizer,
    example: &Example,
) -> std::result::Result<Encoded, String> {
    let conversation = &example.conversation;
    let calls = |message: &serde_json::Map<String, Value>| message.contains_key("tool_calls");
    let template = tokenizer
        .chat_template()
        .map_or("", |template| template.source());
    if !conversation.tools.is_empty() && !template.contains("tools")
        || conversation.messages.iter().any(calls) && !template.contains("tool_calls")
    {
        return Err("it has tools, but the chat template knows none, so they would not be seen; name one that does as \
                    `data.chat_template`"
            .to_owned());
    }
    let turns = tokenizer
        .encode_turns(conversation, SystemTime::UNIX_EPOCH + DATE)
        .map_err(|error: TokenizerError| error.to_string())?;
    let mut targets: Vec<u32> = vec![IGNORE; turns.ids.len()];
    for span in turns.spans {
        let learnt = match span.message {
            Some(message) => example.learnt[message],
            None if example.learnt.iter().all(|&learnt| learnt) => true,
            None => {
                return Err("some of its answers are not to be learnt, but the template's marks are not one for each answer"
                    .to_owned());
            }
        };
        if learnt {
            targets[span.tokens.clone()].copy_from_slice(&turns.ids[span.tokens]);
        }
    }
    // The first token follows nothing.
    targets.drain(..1.min(targets.len()));
    let mut inputs = turns.ids;
    inputs.pop();
    let mut encoded = Encoded {
        inputs,
        targets,
        row: 0,
    };
    trim(&mut encoded);
    match encoded.inputs.is_empty() {
        false => Ok(encoded),
        true => Err("the template shows nothing of what the assistant says in it".to_owned()),
    }
}

/// Leaves out what follows the last learnt target.
fn trim(example: &mut Encoded) {
    let last = example.targets.iter().rposition(|&target| target != IGNORE);
    let length = last.map_or(0, |last| last + 1);
    example.inputs.truncate(length);
    example.targets.truncate(length);
}

/// What a step's loss is a mean over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mean {
    /// All learnt tokens of the step.
    Tokens,
    /// The step's sequences, whatever they hold.
    Sequences,
}

/// How sequences are dealt to steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dealing {
    /// Sequences of a step.
    pub batch_sequences: usize,
    /// Sequences of a micro-batch; divides `batch_sequences`.
    pub micro_batch_sequences: usize,
    /// What the order follows from.
    pub seed: u64,
    /// What the weights make of them.
    pub mean: Mean,
}

/// Sources as an endless row of batches, by weight.
#[derive(Debug)]
pub struct Dealt<'a> {
    sources: &'a [Source],
    shares: Shares,
    dealing: Dealing,
    step: u64,
}

impl<'a> Dealt<'a> {
    /// Begins at the first step.
    ///
    /// # Panics
    /// When there are no sources or too many, or not a positive weight for each: plans check that.
    pub fn new(sources: &'a [Source], weights: &[f64], dealing: Dealing) -> Dealt<'a> {
        assert_eq!(sources.len(), weights.len(), "a weight for each source");
        Dealt {
            sources,
            shares: Shares::new(weights, dealing.seed),
            dealing,
            step: 0,
        }
    }

    /// The micro-batches of a step, whatever was taken before.
    pub fn at(&self, step: u64) -> Vec<Batch> {
        let Dealing {
            batch_sequences,
            micro_batch_sequences,
            seed,
            mean,
        } = self.dealing;
        let mut batches = vec![Batch::default(); batch_sequences / micro_batch_sequences];
        for number in 0..batch_sequences {
            let (source, index) = self
                .shares
                .locate(step * batch_sequences as u64 + number as u64);
            let of = &self.sources[source];
            let count = of.sequences.len() as u64;
            let stream = ((source as u64) << 40) | (index / count);
            let order = Permutation::new(count, seed ^ ORDER, stream);
            let sequence = order.at(index % count) as usize;
            of.append(
                &mut batches[number / micro_batch_sequences],
                source,
                sequence,
            );
        }
        weigh(&mut batches, mean, batch_sequences);
        batches
    }
}

/// Gives each learnt target its weight.
fn weigh(batches: &mut [Batch], mean: Mean, sequences: usize) {
    match mean {
        Mean::Tokens => russet_train::loader::weigh_evenly(batches),
        Mean::Sequences => {
            let weight = 1.0 / sequences as f32;
            for batch in batches {
                let weigh = |&target: &u32| if target == IGNORE { 0.0 } else { weight };
                batch.weights = batch.targets.iter().map(weigh).collect();
            }
        }
    }
}

impl Batches for Dealt<'_> {
    fn next(&mut self) -> Result<Vec<Batch>> {
        let batches = self.at(self.step);
        self.step += 1;
        Ok(batches)
    }

    fn state(&self) -> Value {
        json!({ "step": self.step })
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        match state["step"].as_u64() {
            Some(step) => {
                self.step = step;
                Ok(())
            }
            None => Err(TrainError::Data {
                place: self.sources[0].path.clone(),
                problem: format!(
                    "{state} is no place in its batches; the saved state belongs to other data"
                ),
            }),
        }
    }

    fn names(&self) -> Vec<String> {
        self.sources
            .iter()
            .map(|source| source.path.display().to_string())
            .collect()
    }

    fn labels(&self) -> Vec<String> {
        self.sources
            .iter()
            .map(|source| source.label.clone())
            .collect()
    }
}

/// Held-out sequences as passes of about `pass_tokens` tokens: from all over each file, always the same ones, until they have
/// `budget` tokens, all of them where that is absent.
pub fn held_out(sources: &[Source], budget: Option<u64>, pass_tokens: usize) -> Vec<Batch> {
    let mut passes = vec![Batch::default()];
    for (number, source) in sources.iter().enumerate() {
        let order = Permutation::new(source.sequences.len() as u64, 0, number as u64);
        let mut chosen = Vec::new();
        let mut tokens = 0;
        for index in 0..source.sequences.len() as u64 {
            if budget.is_some_and(|budget| tokens >= budget) {
                break;
            }
            let sequence = order.at(index) as usize;
            let lengths = source.sequences[sequence]
                .iter()
                .map(|&one| source.examples[one].inputs.len());
            tokens += lengths.sum::<usize>() as u64;
            chosen.push(sequence);
        }
        chosen.sort_unstable();
        for sequence in chosen {
            let full = passes
                .last()
                .is_some_and(|pass| pass.tokens.len() >= pass_tokens);
            if full {
                passes.push(Batch::default());
            }
            source.append(passes.last_mut().expect("at least one"), number, sequence);
        }
    }
    passes
}

#[cfg(test)]
mod tests;
