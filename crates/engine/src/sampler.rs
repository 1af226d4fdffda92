//! From logits to a token.
//!
//! The settings act in this order, each on what the one before left:
//! 1. `repetition_penalty` r: the logit of every token that stands in the prompt or the answer becomes l / r where it
//!    is above 0 and l · r where it is not (CTRL, arXiv 1909.05858; Hugging Face's definition).
//! 2. `frequency_penalty` f and `presence_penalty` p: a token that stands c > 0 times in the *answer* loses f · c + p
//!    (OpenAI's definition; the prompt does not count).
//! 3. `logit_bias` is added.
//! 4. A mask, where a guide gives one, leaves only the tokens in it.
//! 5. `temperature` divides the logits; 0 takes the highest logit and nothing below applies.
//! 6. `top_k` keeps the k most probable tokens.
//! 7. `top_p` keeps the fewest of the most probable tokens whose probabilities, those of step 6 scaled to sum to 1,
//!    reach p up to one part in 10⁵ (nucleus sampling, arXiv 1904.09751).
//! 8. `min_p` keeps those at least `min_p` times as probable as the most probable one (arXiv 2407.01082).
//!
//! Of equally probable tokens the lower id counts as the more probable one. The random number is a pure function of
//! (seed, position in the sequence), so neither the batch nor a restart changes it; requests that should differ need
//! different seeds. Log-probabilities are those of the model itself, before step 1.
//!
//! What is off costs nothing: without steps 1 to 4 the row of logits is read where it lies; with them, a copy of it is
//! changed at the tokens concerned, and under a mask only the tokens in it are looked at.

mod allowed;
mod ranked;
mod seen;

use russet_kernels::elementwise::highest;
use russet_kernels::{Isa, cross_entropy, random};

use crate::{Error, Result, Token};
pub use allowed::Allowed;
use ranked::Ranked;
use seen::Seen;

/// The most alternatives that are reported beside a token.
const MOST_TOP: usize = 256;

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 chooses the most probable token always.
    pub temperature: f32,
    /// How many of the most probable tokens stay; `None`: all.
    pub top_k: Option<usize>,
    /// The share of probability that stays, in (0, 1]; 1: all.
    pub top_p: f32,
    /// The least probability that stays, as a share of the highest, in [0, 1]; 0: all.
    pub min_p: f32,
    /// What every token that stands in the answer loses, from -2 to 2; 0: nothing.
    pub presence_penalty: f32,
    /// What a token loses for each time that it stands in the answer, from -2 to 2; 0: nothing.
    pub frequency_penalty: f32,
    /// What the logit of a token of the prompt or the answer is divided by where it is above 0 and multiplied by where
    /// it is below, from 0.01 to 100; 1: nothing.
    pub repetition_penalty: f32,
    /// How many of the most probable tokens are reported with their log-probabilities, at most 256; 0: none.
    pub top_logprobs: usize,
    /// Where the random numbers start from.
    pub seed: u64,
}

impl Default for Sampling {
    /// The model's own distribution, nothing changed or cut, seed 0.
    fn default() -> Sampling {
        Sampling {
            temperature: 1.0,
            ..Sampling::GREEDY
        }
    }
}

impl Sampling {
    /// The most probable token always.
    pub const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: None,
        top_p: 1.0,
        min_p: 0.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repetition_penalty: 1.0,
        top_logprobs: 0,
        seed: 0,
    };

    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::setting(
                "temperature",
                self.temperature,
                "0 (greedy) or a number above it",
            ));
        }
        if self.top_k == Some(0) {
            return Err(Error::setting(
                "top_k",
                0,
                "at least 1; leave it out to keep all tokens",
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::setting(
                "top_p",
                self.top_p,
                "above 0 and at most 1 (1 keeps all tokens)",
            ));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(Error::setting(
                "min_p",
                self.min_p,
                "from 0 (keeps all tokens) to 1",
            ));
        }
        for (setting, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            if !(-2.0..=2.0).contains(&value) {
                return Err(Error::setting(setting, value, "from -2 to 2 (0 is off)"));
            }
        }
        if !(0.01..=100.0).contains(&self.repetition_penalty) {
            return Err(Error::setting(
                "repetition_penalty",
                self.repetition_penalty,
                "from 0.01 to 100 (1 is off)",
            ));
        }
        check_top("top_logprobs", self.top_logprobs)
    }

    /// Whether tokens that came before matter.
    fn remembers(&self) -> bool {
        (self.presence_penalty, self.frequency_penalty) != (0.0, 0.0)
            || self.repetition_penalty != 1.0
    }

    /// The token at `position` of a sequence, from its logits `[V]`, by steps 5 to 8 alone. Its log-probability is that
    /// of the model itself: what a trainer computes for it.
    ///
    /// # Errors
    /// When a logit is not finite.
    pub fn pick(&self, isa: Isa, logits: &[f32], position: u64) -> Result<Token> {
        let log_sum = cross_entropy::log_sum_exp(isa, logits);
        if !log_sum.is_finite() {
            return Err(Error::NotFinite);
        }
        let id = self.choose(isa, logits, position);
        Ok(Token {
            id: id as u32,
            logprob: logits[id] - log_sum,
        })
    }

    /// The index of the token at `position` among `logits`, on which steps 1 to 4 have acted.
    fn choose(&self, isa: Isa, logits: &[f32], position: u64) -> usize {
        if self.temperature == 0.0 {
            highest(logits)
        } else {
            self.draw(isa, logits, uniform(self.seed, position))
        }
    }

    /// The token below which a share `uniform` of the kept probability lies, most probable tokens first.
    fn draw(&self, isa: Isa, logits: &[f32], uniform: f64) -> usize {
        let mut ranked = Ranked::new(logits, self.temperature);
        let mut kept = logits.len();
        let mut mass = match self.top_k {
            Some(k) if k < kept => {
                kept = k;
                ranked.mass(k)
            }
            _ => ranked.total(isa),
        };
        if self.top_p < 1.0 {
            (kept, mass) = ranked.reaching(f64::from(self.top_p) * mass, kept);
        }
        if self.min_p > 0.0 {
            let least = f64::from(self.min_p); // the weight of the most probable token is 1
            kept = (1..kept)
                .find(|&rank| ranked.weight(rank) < least)
                .unwrap_or(kept);
            mass = ranked.mass(kept);
        }
        // Rounding can leave the sum of the walk just below the mass; then it is the last token of any weight.
        let (mut sum, mut last) = (0.0, ranked.id(0));
        for rank in 0..kept {
            let weight = ranked.weight(rank);
            if weight == 0.0 {
                break;
            }
            sum += weight;
            last = ranked.id(rank);
            if sum > uniform * mass {
                break;
            }
        }
        last
    }
}

/// What one sequence's tokens are drawn with: its settings, its biases, and what it needs to know of the tokens before.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    bias: Vec<(u32, f32)>,
    seen: Option<Seen>, // where a penalty asks for it
    prompt: usize,      // tokens of it
    logits: Vec<f32>,   // scratch: the row after steps 1 to 3; under a mask, of the tokens in it
    ids: Vec<u32>,      // scratch: the tokens of a mask
}

/// A drawn token, and what stood beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The token.
    pub token: Token,
    /// The `top_logprobs` most probable tokens under the model itself, the most probable first.
    pub top: Vec<Token>,
}

impl Sampler {
    /// A sampler of a sequence that begins with `prompt`. What is in `bias` is added to the logits of its tokens; of
    /// several entries for one token each is added.
    ///
    /// # Errors
    /// When a setting is out of its range, or a bias names a token beyond `vocab` or is not from -100 to 100.
    pub fn new(
        sampling: Sampling,
        bias: &[(u32, f32)],
        prompt: &[u32],
        vocab: usize,
    ) -> Result<Sampler> {
        sampling.check()?;
        check_bias(bias, vocab)?;
        Ok(Sampler {
            sampling,
            bias: bias.to_vec(),
            seen: sampling
                .remembers()
                .then(|| Seen::new(prompt, sampling.repetition_penalty != 1.0)),
            prompt: prompt.len(),
            logits: Vec::new(),
            ids: Vec::new(),
        })
    }

    /// The token after `answer`, from its logits `[V]`; one of `allowed`, where that is given. Its log-probability is
    /// that of the model itself: what a trainer computes for it. `answer` may be longer or shorter than the time
    /// before: rows of drafts are drawn in any order.
    ///
    /// # Errors
    /// When a logit is not finite, or no token of the vocabulary is allowed.
    pub fn pick(
        &mut self,
        isa: Isa,
        logits: &[f32],
        answer: &[u32],
        allowed: Option<&Allowed>,
    ) -> Result<Drawn> {
        let log_sum = cross_entropy::log_sum_exp(isa, logits);
        if !log_sum.is_finite() {
            return Err(Error::NotFinite);
        }
        let position = (self.prompt + answer.len()) as u64;
        let shaped = self.shape(logits, answer);
        let id = match allowed {
            None => {
                let row = if shaped { &self.logits } else { logits };
                self.sampling.choose(isa, row, position)
            }
            Some(allowed) => {
                self.ids.clear();
                self.ids.extend(allowed.ids(logits.len()));
                if self.ids.is_empty() {
                    return Err(Error::NoneAllowed);
                }
                if shaped {
                    // In rising order nothing is read after it was written: the i-th id is at least i.
                    for (place, &id) in self.ids.iter().enumerate() {
                        self.logits[place] = self.logits[id as usize];
                    }
                    self.logits.truncate(self.ids.len());
                } else {
                    self.logits.clear();
                    let kept = self.ids.iter().map(|&id| logits[id as usize]);
                    self.logits.extend(kept);
                }
                self.ids[self.sampling.choose(isa, &self.logits, position)] as usize
            }
        };
        let token = |id: usize| Token {
            id: id as u32,
            logprob: logits[id] - log_sum,
        };
        Ok(Drawn {
            token: token(id),
            top: most_probable(logits, log_sum, self.sampling.top_logprobs),
        })
    }

    /// Steps 1 to 3, into `self.logits`. Returns whether there was anything to do.
    fn shape(&mut self, logits: &[f32], answer: &[u32]) -> bool {
        if self.seen.is_none() && self.bias.is_empty() {
            return false;
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        if let Some(seen) = &mut self.seen {
            seen.follow(answer);
            seen.penalise(&self.sampling, &mut self.logits);
        }
        for &(id, bias) in &self.bias {
            self.logits[id as usize] += bias;
        }
        true
    }
}

/// A token that was given and not drawn, with its log-probability under the model and the `top` most probable ones at its place.
///
/// # Errors
/// When a logit is not finite.
pub(crate) fn score(isa: Isa, logits: &[f32], id: u32, top: usize) -> Result<Drawn> {
    let log_sum = cross_entropy::log_sum_exp(isa, logits);
    if !log_sum.is_finite() {
        return Err(Error::NotFinite);
    }
    let logprob = logits[id as usize] - log_sum;
    Ok(Drawn {
        token: Token { id, logprob },
        top: most_probable(logits, log_sum, top),
    })
}

/// The `count` most probable tokens, the most probable first.
fn most_probable(logits: &[f32], log_sum: f32, count: usize) -> Vec<Token> {
    if count == 0 {
        return Vec::new();
    }
    let mut ranked = Ranked::new(logits, 1.0);
    let token = |rank| {
        let id = ranked.id(rank);
        Token {
            id: id as u32,
            logprob: logits[id] - log_sum,
        }
    };
    (0..count.min(logits.len())).map(token).collect()
}

/// Whether so many alternatives may be reported.
pub(crate) fn check_top(setting: &'static str, count: usize) -> Result<()> {
    if count > MOST_TOP {
        let wanted = format!("from 0 (none) to {MOST_TOP}");
        return Err(Error::setting(setting, count, wanted));
    }
    Ok(())
}

/// Whether every bias is of a token that the model has and in OpenAI's range.
pub(crate) fn check_bias(bias: &[(u32, f32)], vocab: usize) -> Result<()> {
    for (index, &(token, value)) in bias.iter().enumerate() {
        if token as usize >= vocab {
            let place = format!("token {index} of logit_bias (counted from 0)");
            return Err(Error::UnknownToken {
                place,
                token,
                vocab,
            });
        }
        if !(-100.0..=100.0).contains(&value) {
            return Err(Error::setting(
                "logit_bias",
                value,
                format!("from -100 to 100; it is that of token {token}"),
            ));
        }
    }
    Ok(())
}

/// Uniform on [0, 1), a multiple of 2⁻⁵³: tokens far rarer than one in 2²⁴ keep their chance.
fn uniform(seed: u64, position: u64) -> f64 {
    const STREAM: u64 = u64::from_be_bytes(*b"\0sampler");
    (random::hash(seed, STREAM, position) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests;
