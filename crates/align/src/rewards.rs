//! What an answer is worth, whoever says so: a reward model, or a rule.
//!
//! [`Reward`] is the one interface. Here are the reward model ([`ModelReward`]) and the rule of a pattern ([`Format`]); rules that
//! others know, an exact answer or instructions that a program checks, come in by [`Rules`] from the caller, as their checkers
//! belong to evaluation. Several rewards add up by weight.

use std::path::Path;
use std::time::SystemTime;

use fancy_regex::Regex;
use russet_artifact::{Inputs, Kind};
use russet_model::{Decoder, adapter, checkpoint};
use russet_tensor::{Ctx, Segments};
use russet_tokenizer::Tokenizer;
use russet_train::{Result, TrainError};
use serde_json::json;

use crate::data::DATE;
use crate::rlhf::settings::RewardSettings;
use crate::rows::Asked;
use crate::settings::refuse;
use crate::start::base_input;

/// An answer to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// What was asked, with what rules read.
    pub asked: &'a Asked,
    /// What was answered, without the token that ends it.
    pub text: &'a str,
}

/// Says what answers are worth.
pub trait Reward: Send + Sync {
    /// Whether answers to this can be judged at all.
    ///
    /// # Errors
    /// A sentence without file and line: what the row lacks.
    fn check(&self, asked: &Asked) -> std::result::Result<(), String>;

    /// Whether an answer can be judged: a reward model reads no more than its context.
    ///
    /// # Errors
    /// A sentence, when that cannot be told.
    fn takes(&self, _: &Answer) -> std::result::Result<bool, String> {
        Ok(true)
    }

    /// The reward of each answer.
    ///
    /// # Errors
    /// A sentence, when one cannot be judged.
    fn rewards(&self, ctx: &mut Ctx, answers: &[Answer]) -> std::result::Result<Vec<f64>, String>;
}

/// Rules that the caller knows.
pub trait Rules {
    /// Their names.
    fn kinds(&self) -> &[&'static str];

    /// The one of a name; none where there is none.
    fn rule(&self, kind: &str) -> Option<Box<dyn Reward>>;
}

/// No rules.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRules;

impl Rules for NoRules {
    fn kinds(&self) -> &[&'static str] {
        &[]
    }

    fn rule(&self, _: &str) -> Option<Box<dyn Reward>> {
        None
    }
}

/// 1 where a pattern matches the answer, else 0.
#[derive(Debug)]
pub struct Format(Regex);

impl Format {
    /// Of a regular expression, found anywhere in the answer unless it says `^` and `$`.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(pattern: &str) -> std::result::Result<Format, String> {
        Regex::new(pattern)
            .map(Format)
            .map_err(|error| error.to_string())
    }
}

impl Reward for Format {
    fn check(&self, _: &Asked) -> std::result::Result<(), String> {
        Ok(())
    }

    fn rewards(&self, _: &mut Ctx, answers: &[Answer]) -> std::result::Result<Vec<f64>, String> {
        // One that backtracks without end has not matched: no answer may stop a run.
        let one =
            |answer: &Answer| f64::from(u8::from(self.0.is_match(answer.text).unwrap_or(false)));
        Ok(answers.iter().map(one).collect())
    }
}

/// A reward model's reward, of the conversation as its own template writes it.
pub struct ModelReward {
    decoder: Decoder,
    tokenizer: Tokenizer,
}

/// Tokens of one pass of a reward model.
const PASS_TOKENS: usize = 8192;

impl ModelReward {
    /// Of a checkpoint with a reward head; or of an adapter with one, on its base.
    ///
    /// # Errors
    /// When a file is missing or damaged, or there is no reward head or chat template.
    pub fn open(folder: &Path, own: Option<&Path>) -> Result<ModelReward> {
        let (decoder, tokenizer) = open(folder, own)?;
        Ok(ModelReward { decoder, tokenizer })
    }

    /// Of a decoder with a reward head, and its tokenizer: see [`open`].
    pub fn new(decoder: Decoder, tokenizer: Tokenizer) -> ModelReward {
        ModelReward { decoder, tokenizer }
    }

    /// The conversation with the answer, to the token that ends it.
    fn tokens(&self, answer: &Answer) -> std::result::Result<Vec<u32>, String> {
        let mut conversation = answer.asked.conversation.clone();
        let said = json!({"role": "assistant", "content": answer.text});
        conversation.messages.extend(said.as_object().cloned());
        let now = SystemTime::UNIX_EPOCH + DATE;
        if let Ok(mut turns) = self.tokenizer.encode_turns(&conversation, now) {
            if let Some(last) = turns.spans.last() {
                turns.ids.truncate(last.tokens.end);
            }
            return Ok(turns.ids);
        }
        // A policy can say what a template changes, and then borders are not known; the whole still is.
        let whole = self
            .tokenizer
            .encode_conversation(&conversation, false, now);
        whole.map_err(|error| format!("an answer cannot be shown to the reward model: {error}"))
    }
}

/// A reward model with its tokenizer.
///
/// # Errors
/// As [`ModelReward::open`].
pub fn open(folder: &Path, own: Option<&Path>) -> Result<(Decoder, Tokenizer)> {
    let decoder = checkpoint::open(folder)?;
    let decoder = match own {
        Some(own) => adapter::attach(decoder, own, None)?,
        None => decoder,
    };
    if decoder.reward_head().is_none() {
        return Err(TrainError::Data {
            place: own.unwrap_or(folder).to_owned(),
            problem:
                "has no reward head, so it is no reward model; make one with `russet reward RECIPE`"
                    .to_owned(),
        });
    }
    let (tokenizer, _) = crate::start::tokenizer(folder, None)?;
    Ok((decoder, tokenizer))
}

impl Reward for ModelReward {
    fn check(&self, _: &Asked) -> std::result::Result<(), String> {
        Ok(())
    }

    fn takes(&self, answer: &Answer) -> std::result::Result<bool, String> {
        Ok(self.tokens(answer)?.len() <= self.decoder.config().context)
    }

    fn rewards(&self, ctx: &mut Ctx, answers: &[Answer]) -> std::result::Result<Vec<f64>, String> {
        let mut rewards = Vec::new();
        let (mut tokens, mut lengths) = (Vec::new(), Vec::new());
        let mut pass = |tokens: &mut Vec<u32>, lengths: &mut Vec<usize>| {
            if lengths.is_empty() {
                return;
            }
            let segments = Segments::packed(lengths);
            let hidden = self.decoder.forward(ctx, tokens, &segments, None); // [N, D]
            let last: Vec<usize> = segments.iter().map(|s| s.start + s.len - 1).collect();
            let judged = self.decoder.judge(ctx, &hidden, &last);
            rewards.extend(
                judged
                    .rewards
                    .data()
                    .iter()
                    .map(|&reward| f64::from(reward)),
            );
            tokens.clear();
            lengths.clear();
        };
        for answer in answers {
            let own = self.tokens(answer)?;
            let context = self.decoder.config().context;
            if own.len() > context {
                return Err(format!(
                    "an answer makes a conversation of {} tokens, but the reward model was made for {context}; lower \
                     `max_tokens` or take another reward model",
                    own.len()
                ));
            }
            if tokens.len() + own.len() > PASS_TOKENS {
                pass(&mut tokens, &mut lengths);
            }
            lengths.push(own.len());
            tokens.extend(own);
        }
        pass(&mut tokens, &mut lengths);
        Ok(rewards)
    }
}

/// What the keys of a recipe's rewards are called.
pub(crate) struct RewardKeys {
    pub rewards: &'static str,
    pub kind: &'static str,
    pub weight: &'static str,
    pub pattern: &'static str,
}

/// Whether a reward model is among them.
pub(crate) fn asks_model(settings: &[RewardSettings]) -> bool {
    settings.iter().any(|reward| reward.kind == "model")
}

/// What of a recipe's rewards can be checked without knowing the rules.
pub(crate) fn check_rewards(settings: &[RewardSettings], keys: &RewardKeys) -> Result<()> {
    if settings.is_empty() {
        let problem = format!(
            "is missing; write [[{}]] with kind = \"model\" and name the reward model as `inputs.reward`, or a rule",
            keys.rewards
        );
        return refuse(keys.rewards, problem);
    }
    for reward in settings {
        if !(reward.weight.is_finite() && reward.weight != 0.0) {
            let problem = format!(
                "of {} is {}; leave the reward out, or weigh it",
                reward.kind, reward.weight
            );
            return refuse(keys.weight, problem);
        }
        if (reward.kind == "format") != reward.pattern.is_some() {
            return refuse(
                keys.pattern,
                "is a regular expression, of the kind \"format\" and no other",
            );
        }
    }
    Ok(())
}

/// The rewards of a recipe, but for reward models.
pub(crate) fn rules(
    settings: &[RewardSettings],
    known: &dyn Rules,
    keys: &RewardKeys,
) -> Result<Sum> {
    let mut sum = Vec::new();
    for RewardSettings {
        kind,
        weight,
        pattern,
    } in settings
    {
        let reward: Box<dyn Reward> = match (kind.as_str(), pattern) {
            ("model", _) => continue,
            ("format", Some(pattern)) => match Format::new(pattern) {
                Ok(format) => Box::new(format),
                Err(problem) => {
                    return refuse(keys.pattern, format!("is no regular expression: {problem}"));
                }
            },
            (kind, _) => match known.rule(kind) {
                Some(rule) => rule,
                None => {
                    let mut names = vec!["model", "format"];
                    names.extend(known.kinds());
                    let problem = format!("is {kind:?}; it must be one of {}", names.join(", "));
                    return refuse(keys.kind, problem);
                }
            },
        };
        sum.push((*weight, reward));
    }
    Ok(Sum(sum))
}

/// The reward model of a recipe as an input: `inputs.reward` and `inputs.reward_adapter`, there where a reward `asks` for it and
/// nowhere else.
pub(crate) fn reward_inputs(
    mut inputs: Inputs,
    asks: bool,
    reward: Option<&Path>,
    own: Option<&Path>,
) -> Result<Inputs> {
    match (reward, asks) {
        (None, true) => {
            return refuse(
                "inputs.reward",
                "is missing, but a reward is of the kind \"model\"; name the reward model",
            );
        }
        (Some(_), false) => {
            return refuse(
                "inputs.reward",
                "names a reward model, but no reward is of the kind \"model\"; add one, or leave this out",
            );
        }
        (Some(folder), true) => inputs = base_input(inputs, "reward", folder, own.is_some())?,
        (None, false) => {}
    }
    let Some(own) = own else {
        return Ok(inputs);
    };
    if reward.is_none() {
        return refuse(
            "inputs.reward_adapter",
            "stands without `inputs.reward`, which names its base",
        );
    }
    Ok(inputs.artifact_or_path("reward_adapter", own, Kind::Adapter)?)
}

/// Several rewards, added up by weight.
pub(crate) struct Sum(pub(crate) Vec<(f64, Box<dyn Reward>)>);

impl Sum {
    pub(crate) fn check(&self, asked: &Asked) -> std::result::Result<(), String> {
        self.0
            .iter()
            .try_for_each(|(_, reward)| reward.check(asked))
    }
}

/// The sum of all rewards of each answer.
pub(crate) fn sum(
    ctx: &mut Ctx,
    rewards: &[(f64, &dyn Reward)],
    answers: &[Answer],
) -> std::result::Result<Vec<f64>, String> {
    let mut sums = vec![0.0; answers.len()];
    for (weight, reward) in rewards {
        let own = reward.rewards(ctx, answers)?;
        sums.iter_mut()
            .zip(own)
            .for_each(|(sum, own)| *sum += weight * own);
    }
    match sums.iter().position(|sum| !sum.is_finite()) {
        Some(at) => Err(format!(
            "the reward of an answer is {}, which is no number to learn from; the answer is {:?}",
            sums[at],
            answers[at].text.chars().take(80).collect::<String>()
        )),
        None => Ok(sums),
    }
}
