//! Answers as they come from the engine: tokens to text, stop strings, log-probabilities that go with the text they belong to.
//!
//! Streaming and waiting for the whole read the same [`Answers`], so they cannot say different things.

use std::collections::VecDeque;
use std::time::Instant;

use russet_engine::{Finish, Generation, Token};
use russet_tokenizer::{Detokenizer, StopFilter, Tokenizer};

use crate::error::{ApiError, ApiResult};
use crate::metrics::{Cut, Metrics};
use crate::worker::{Ticket, Told};

/// A token with the most probable ones at its place.
#[derive(Clone, Debug)]
pub(crate) struct Scored {
    pub token: Token,
    pub top: Vec<Token>,
    /// Where its text begins, in characters of the answer.
    pub at: usize,
}

/// Text that is certain, and the tokens that it came from, where their log-probabilities are wanted.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    pub text: String,
    pub scored: Vec<Scored>,
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.scored.is_empty()
    }
}

/// How an answer ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// OpenAI's word for it.
    pub reason: &'static str,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Tokens of the prompt that lay in the cache.
    pub cached: usize,
    /// The engine's account, where the answer went as far as the engine let it.
    pub generation: Option<Box<Generation>>,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Said {
    /// The answer at this place goes on.
    More(usize, Delta),
    /// It has ended, with what was held back.
    End(usize, Delta, Ended),
}

/// OpenAI's word for how an answer ended, where it did so in peace.
pub(crate) fn finished(generation: &Generation) -> Result<&'static str, (Cut, ApiError)> {
    match generation.finish {
        Finish::Stop | Finish::Guide | Finish::Callback => Ok("stop"),
        Finish::Length | Finish::Context => Ok("length"),
        Finish::Deadline => Err((Cut::Deadline, ApiError::deadline())),
        Finish::Cancelled => {
            let down = ApiError::unavailable("the server is going down");
            Err((Cut::Shutdown, down))
        }
    }
}

/// How answers are to be written.
#[derive(Clone, Debug)]
pub(crate) struct Style {
    pub stops: Vec<String>,
    /// Whether log-probabilities are wanted.
    pub scored: bool,
    /// Whether control tokens are text: where they begin calls of tools.
    pub specials: bool,
}

/// The answers to the requests of a ticket.
pub(crate) struct Answers<'a> {
    ticket: Ticket,
    writers: Vec<Writer<'a>>,
    open: usize,
    metrics: &'a Metrics,
    begun: Instant,
    first: bool, // token still to come
}

impl<'a> Answers<'a> {
    /// Answers in places that begin a text or go on from one.
    pub fn new(
        ticket: Ticket,
        tokenizer: &'a Tokenizer,
        begins: &[bool],
        style: &Style,
        metrics: &'a Metrics,
        begun: Instant,
    ) -> Answers<'a> {
        let writer = |&begins: &bool| Writer::new(tokenizer, begins, style);
        Answers {
            ticket,
            open: begins.len(),
            writers: begins.iter().map(writer).collect(),
            metrics,
            begun,
            first: true,
        }
    }

    /// What comes next; `None`: all answers have ended. An error cuts off those that are open.
    pub async fn next(&mut self) -> ApiResult<Option<Said>> {
        let next = self.step().await;
        next.map_err(|(why, error)| {
            self.cut(why);
            error
        })
    }

    async fn step(&mut self) -> Result<Option<Said>, (Cut, ApiError)> {
        while self.open > 0 {
            let Some(told) = self.ticket.next().await else {
                let gone = ApiError::unavailable("the engine is gone");
                return Err((Cut::Error, gone));
            };
            match told {
                Told::Token(place, token, top) => {
                    if self.writers[place].over {
                        continue; // drawn before the engine heard of the stop string
                    }
                    self.time(place);
                    let (delta, stopped) = self.writers[place].push(token, top);
                    if stopped {
                        self.ticket.cancel(place);
                        let ended = self.end(place, "stop", None);
                        return Ok(Some(Said::End(place, delta, ended)));
                    }
                    if !delta.is_empty() {
                        return Ok(Some(Said::More(place, delta)));
                    }
                }
                Told::End(place, _) if self.writers[place].over => {}
                Told::End(_, None) => return Err((Cut::Error, ApiError::bug())),
                Told::End(_, Some(Err(error))) => {
                    return Err((Cut::Error, ApiError::of_engine(&error, "prompt")));
                }
                Told::End(place, Some(Ok(generation))) => {
                    let (delta, stopped) = self.writers[place].finish();
                    let reason = match stopped {
                        true => "stop",
                        false => finished(&generation)?,
                    };
                    let ended = self.end(place, reason, Some(generation));
                    return Ok(Some(Said::End(place, delta, ended)));
                }
            }
        }
        self.metrics.whole(self.begun.elapsed());
        Ok(None)
    }

    fn time(&mut self, place: usize) {
        let now = Instant::now();
        if std::mem::take(&mut self.first) {
            self.metrics.first_token(now - self.begun);
        }
        if let Some(before) = self.writers[place].last.replace(now) {
            self.metrics.next_token(now - before);
        }
    }

    fn end(&mut self, place: usize, reason: &'static str, generation: Option<Generation>) -> Ended {
        let writer = &mut self.writers[place];
        writer.over = true;
        self.open -= 1;
        let tokens = generation
            .as_ref()
            .map_or(writer.tokens, |g| g.tokens.len());
        let cached = generation.as_ref().map_or(0, |g| g.reused_tokens);
        self.metrics.answered(reason, cached, tokens);
        Ended {
            reason,
            tokens,
            cached,
            generation: generation.map(Box::new),
        }
    }
}

impl Answers<'_> {
    /// Counts what is open as cut off.
    fn cut(&mut self, why: Cut) {
        for writer in self.writers.iter_mut().filter(|writer| !writer.over) {
            writer.over = true;
            self.metrics.cut(why, writer.tokens);
        }
        self.open = 0;
    }
}

impl Drop for Answers<'_> {
    fn drop(&mut self) {
        self.cut(Cut::dropped());
    }
}

/// Tokens of one answer becoming text.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    pieces: Option<Detokenizer<'a>>, // until the end
    filter: Option<StopFilter>,      // until the end
    scored: bool,
    pending: VecDeque<(usize, Scored)>, // with the byte of the text that each begins at
    length: usize,                      // bytes of text so far
    shown: usize,                       // of those the ones let through
    characters: usize,                  // of text so far
    tokens: usize,
    last: Option<Instant>,
    over: bool,
}

impl<'a> Writer<'a> {
    fn new(tokenizer: &'a Tokenizer, begins: bool, style: &Style) -> Writer<'a> {
        let skip = !style.specials;
        Writer {
            tokenizer,
            pieces: Some(match begins {
                true => tokenizer.detokenizer(skip),
                false => tokenizer.detokenizer_continuing(skip),
            }),
            filter: Some(StopFilter::new(&style.stops)),
            scored: style.scored,
            pending: VecDeque::new(),
            length: 0,
            shown: 0,
            characters: 0,
            tokens: 0,
            last: None,
            over: false,
        }
    }

    /// What a token makes certain, and whether a stop string has come.
    fn push(&mut self, token: Token, top: Vec<Token>) -> (Delta, bool) {
        self.tokens += 1;
        let (Some(pieces), Some(filter)) = (&mut self.pieces, &mut self.filter) else {
            return (Delta::default(), false);
        };
        let (start, before) = (self.length, self.characters);
        let piece = pieces.push(token.id);
        self.characters += piece.chars().count();
        if self.scored {
            // What was broken before it turns out to be so with it, and is none of its text.
            let own = std::str::from_utf8(self.tokenizer.token_bytes(token.id));
            let own = own.map_or(usize::MAX, |text| text.chars().count());
            let at = before.max(self.characters.saturating_sub(own));
            self.pending.push_back((start, Scored { token, top, at }));
        }
        self.length += piece.len();
        let (text, stopped) = filter.push(&piece);
        self.shown += text.len();
        (self.delta(text, stopped, false), stopped)
    }

    /// What was held back when the tokens ended, and whether a stop string has come with it.
    fn finish(&mut self) -> (Delta, bool) {
        let (Some(pieces), Some(mut filter)) = (self.pieces.take(), self.filter.take()) else {
            return (Delta::default(), false);
        };
        let (mut text, stopped) = filter.push(&pieces.finish());
        if !stopped {
            text += &filter.finish();
        }
        self.shown += text.len();
        (self.delta(text, stopped, !stopped), stopped)
    }

    /// Text with the tokens that begin in what was let through: none that belongs to a stop string.
    fn delta(&mut self, text: String, stopped: bool, all: bool) -> Delta {
        let clear = !stopped && self.length == self.shown;
        let mut scored = Vec::new();
        while let Some((start, _)) = self.pending.front() {
            if !(all || *start < self.shown || clear) {
                break;
            }
            scored.extend(self.pending.pop_front().map(|(_, scored)| scored));
        }
        Delta { text, scored }
    }
}
