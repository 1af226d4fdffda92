//! Judging by a model: every pair in both orders, since models prefer a place ("Judging LLM-as-a-Judge", arXiv 2306.05685).
//!
//! [`Judge`] is whoever says which of two responses is better; [`judge_both_ways`] shows it each pair twice, so that what it prefers
//! for its place alone comes out a tie. [`ModelJudge`] asks a model through [`Generate`], here or behind a server.

use russet_engine::{Generate, Request, Sampling};
use russet_tokenizer::{Message, Tokenizer};
use serde::Serialize;

use crate::letter::letter;
use crate::{Error, Result};

/// What a judge is shown: a prompt and two responses, by whom it is not told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What was asked.
    pub prompt: String,
    /// The response shown first.
    pub first: String,
    /// The response shown second.
    pub second: String,
}

impl Question {
    /// As a model is shown it: what to judge by, the prompt, both responses, and that one letter is the answer.
    pub fn shown(&self) -> String {
        let Question {
            prompt,
            first,
            second,
        } = self;
        format!(
            "{SYSTEM}\n\n[Prompt]\n{prompt}\n\n[Response A]\n{first}\n\n[Response B]\n{second}\n\n[Verdict: A, B or C]"
        )
    }
}

/// What a judge says.
#[derive(Clone, Debug, PartialEq)]
pub struct Opinion {
    /// How sure it is that the second is better, 0 to 1; none where it gave no verdict.
    pub second: Option<f64>,
    /// Its own words.
    pub words: String,
}

impl Opinion {
    /// Of words alone, where nobody tells how sure they are: the letter A, B or C that they come to.
    pub fn of_words(words: String) -> Opinion {
        let second = verdict(&words).map(|verdict| match verdict {
            'A' => 0.0,
            'B' => 1.0,
            _ => 0.5,
        });
        Opinion { second, words }
    }
}

/// Who compares responses.
pub trait Judge {
    /// An opinion on each question, in their order.
    ///
    /// # Errors
    /// When it cannot be asked; the sentence says why.
    fn judge(&mut self, questions: &[Question]) -> Result<Vec<Opinion>>;
}

/// An opinion formed in both orders.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BothWays {
    /// How much better the second is: the mean over orders; none where an order has no verdict.
    pub second: Option<f64>,
    /// Whether both orders point to the same response, or both to none.
    pub consistent: bool,
    /// The judge's words in either order.
    pub words: [String; 2],
}

/// Shows each pair in both orders.
///
/// # Errors
/// Those of the judge.
pub fn judge_both_ways(judge: &mut dyn Judge, questions: &[Question]) -> Result<Vec<BothWays>> {
    let swapped = questions.iter().map(|question| Question {
        prompt: question.prompt.clone(),
        first: question.second.clone(),
        second: question.first.clone(),
    });
    let shown: Vec<Question> = questions.iter().cloned().chain(swapped).collect();
    let opinions = judge.judge(&shown)?;
    assert_eq!(opinions.len(), shown.len(), "an opinion a question");
    let (straight, swapped) = opinions.split_at(questions.len());
    let both = straight.iter().zip(swapped).map(|(one, two)| {
        let turned = two.second.map(|second| 1.0 - second);
        let side = |score: f64| score.total_cmp(&0.5);
        let pair = one.second.zip(turned);
        BothWays {
            second: pair.map(|(one, two)| (one + two) / 2.0),
            consistent: pair.is_some_and(|(one, two)| side(one) == side(two)),
            words: [one.words.clone(), two.words.clone()],
        }
    });
    Ok(both.collect())
}

/// What a model is told before the question.
const SYSTEM: &str = "You compare two responses to a user's prompt. Judge by how well each follows the prompt, and by truth, help and safety; length \
and order do not count. Answer with one letter and nothing else: A if the first response is better, B if the second is better, C if \
they are equally good.";

/// A verdict is one letter; a model that talks around it has this many tokens to come to it.
const TOKENS: usize = 16;

/// A model that is asked for one letter.
///
/// Its confidence is the probability that it gives the letter's token: a verdict at 0.6 for B is a score of 0.6.
pub struct ModelJudge<'a> {
    /// What answers.
    pub model: &'a mut dyn Generate,
    /// Its tokenizer, with a chat template.
    pub tokenizer: &'a Tokenizer,
    /// Tokens that end its answer.
    pub stop_tokens: Vec<u32>,
    /// The most tokens that it sees; a question that leaves no room is not asked.
    pub context: usize,
}

impl Judge for ModelJudge<'_> {
    fn judge(&mut self, questions: &[Question]) -> Result<Vec<Opinion>> {
        let prompts = questions.iter().map(|question| self.encode(question));
        let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_>>()?;
        let fits = |prompt: &&Vec<u32>| prompt.len() < self.context;
        let requests: Vec<Request> = prompts
            .iter()
            .filter(fits)
            .map(|prompt| Request {
                prompt: prompt.clone(),
                max_tokens: TOKENS,
                sampling: Sampling::GREEDY,
                stop_tokens: self.stop_tokens.clone(),
                ..Request::default()
            })
            .collect();
        let made = self.model.generate_batch(&requests);
        let mut made = made
            .map_err(|error| Error::Model(error.to_string()))?
            .into_iter();
        let opinion = |prompt: &Vec<u32>| {
            let Some(generation) = Some(prompt).filter(fits).and_then(|_| made.next()) else {
                return Opinion {
                    second: None,
                    words: "the question is longer than the model's context".to_owned(),
                };
            };
            let content = generation.content();
            let words = self.tokenizer.decode(content, true);
            // The token that brings the letter for good, which the whole answer decides: a token may be half a word, and a letter
            // may be the beginning of one.
            let told = verdict(&words).map(|letter| {
                let other = |count: &usize| {
                    verdict(&self.tokenizer.decode(&content[..*count], true)) != Some(letter)
                };
                let before = (0..content.len()).rev().find(other).unwrap_or(0);
                let sure = libm::exp(f64::from(generation.logprobs[before]));
                (letter, sure)
            });
            let second = told.map(|(verdict, sure)| match verdict {
                'A' => (1.0 - sure).min(0.5),
                'B' => sure.max(0.5),
                _ => 0.5,
            });
            Opinion { second, words }
        };
        Ok(prompts.iter().map(opinion).collect())
    }
}

impl ModelJudge<'_> {
    fn encode(&self, question: &Question) -> Result<Vec<u32>> {
        Ok(self
            .tokenizer
            .encode_chat(&[Message::new("user", question.shown())], true)?)
    }
}

/// A, B or C, as the words come to it.
fn verdict(words: &str) -> Option<char> {
    letter(words, 'C')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prefers the response with more letters a, but the first one where it is asked to think of place.
    struct Counting;

    impl Judge for Counting {
        fn judge(&mut self, questions: &[Question]) -> Result<Vec<Opinion>> {
            let count = |text: &str| text.matches('a').count();
            let opinion = |question: &Question| Opinion {
                second: match question.prompt.as_str() {
                    "place" => Some(0.0),
                    "silence" => None,
                    _ => Some(f64::from(u8::from(
                        count(&question.second) > count(&question.first),
                    ))),
                },
                words: question.first.clone(),
            };
            Ok(questions.iter().map(opinion).collect())
        }
    }

    #[test]
    fn a_preference_for_a_place_is_a_tie() {
        let question = |prompt: &str| Question {
            prompt: prompt.to_owned(),
            first: "a".to_owned(),
            second: "aa".to_owned(),
        };
        let asked = ["letters", "place", "silence"].map(question);
        let both = judge_both_ways(&mut Counting, &asked).unwrap();
        let summary: Vec<_> = both
            .iter()
            .map(|both| (both.second, both.consistent))
            .collect();
        assert_eq!(
            summary,
            [(Some(1.0), true), (Some(0.5), false), (None, false)]
        );
        assert_eq!(both[0].words, ["a", "aa"]);
    }

    #[test]
    fn a_verdict_is_a_letter_that_stands_alone() {
        let of = |words: &str| Opinion::of_words(words.to_owned()).second;
        assert_eq!(
            [
                of("A"),
                of("A careful reading shows B is better."),
                of("C"),
                of("neither")
            ],
            [Some(0.0), Some(1.0), Some(0.5), None]
        );
    }
}
