//! Prompt lookup: what followed the same few tokens before.

use std::collections::HashMap;

use russet_kernels::random;

use super::MOST;
use super::length::{Clock, Lengths, Speculation};
use crate::{Propose, Request, RequestId};

/// Guesses by what followed the last few tokens when they stood in the sequence before: for answers that quote their prompt
/// or themselves. Costs no model and next to no time.
pub struct PromptLookup {
    clock: Clock,
    others: usize, // rows of other requests in a step
    requests: HashMap<RequestId, (Lookup, Lengths)>,
}

impl PromptLookup {
    /// One that knows nothing yet.
    pub fn new() -> PromptLookup {
        PromptLookup {
            clock: Clock::new(),
            others: 0,
            requests: HashMap::new(),
        }
    }
}

impl Default for PromptLookup {
    fn default() -> PromptLookup {
        PromptLookup::new()
    }
}

impl Propose for PromptLookup {
    fn begin(&mut self, id: RequestId, _: &Request) {
        let fresh = (Lookup::default(), Lengths::new(MOST));
        self.requests.insert(id, fresh);
    }

    fn propose(&mut self, request: RequestId, tokens: &[u32], most: usize) -> Vec<u32> {
        let Some((lookup, lengths)) = self.requests.get_mut(&request) else {
            return Vec::new(); // it came before this proposer
        };
        lookup.follow(tokens);
        let mut guess = lookup.guess(most.min(MOST));
        if !guess.is_empty() {
            guess.truncate(lengths.guesses(&self.clock, self.others));
        }
        if guess.is_empty() {
            lengths.plain();
        }
        guess
    }

    fn learn(&mut self, request: RequestId, proposed: usize, right: usize) {
        self.clock.right(right);
        if let Some((_, lengths)) = self.requests.get_mut(&request) {
            lengths.tried(proposed, right);
        }
    }

    fn stepped(&mut self, sequences: usize, rows: usize, seconds: f64) {
        self.clock.step(sequences, rows, seconds);
        self.others = sequences - 1;
    }

    fn end(&mut self, request: RequestId) -> Option<Speculation> {
        let (_, lengths) = self.requests.remove(&request)?;
        Some(lengths.counted(&self.clock))
    }
}

/// Lengths of the beginnings that are looked up, the longest first.
const LENGTHS: [usize; 3] = [5, 3, 2];

/// Where each short run of tokens last stood, in a sequence that grows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lookup {
    tokens: Vec<u32>,
    // For each of LENGTHS: the hash of a run -> the place behind its last occurrence before the end.
    behind: [HashMap<u64, u32>; LENGTHS.len()],
}

impl Lookup {
    /// Takes in what `tokens` has beyond what it knows; the beginning must be the same.
    pub(crate) fn follow(&mut self, tokens: &[u32]) {
        debug_assert!(tokens.starts_with(&self.tokens));
        for &token in &tokens[self.tokens.len()..] {
            // Runs that end before this token: the one at the very end is not in the index, so it finds an earlier one.
            let place = self.tokens.len();
            for (length, behind) in LENGTHS.into_iter().zip(&mut self.behind) {
                if let Some(run) = place.checked_sub(length) {
                    behind.insert(hash(&self.tokens[run..]), place as u32);
                }
            }
            self.tokens.push(token);
        }
    }

    /// The `most` tokens that followed the longest known end of the sequence when it stood there before; none where it
    /// did not. A repetition that runs into the end goes on repeating.
    pub(crate) fn guess(&self, most: usize) -> Vec<u32> {
        let end = self.tokens.len();
        for (length, behind) in LENGTHS.into_iter().zip(&self.behind) {
            let Some(run) = end.checked_sub(length) else {
                continue;
            };
            if let Some(&place) = behind.get(&hash(&self.tokens[run..])) {
                let place = place as usize;
                let mut guess: Vec<u32> = Vec::with_capacity(most);
                for at in place..place + most {
                    guess.push(match self.tokens.get(at) {
                        Some(&token) => token,
                        None => guess[at - end],
                    });
                }
                return guess;
            }
        }
        Vec::new()
    }
}

/// Two runs of one hash are as good as never met; a wrong guess costs a row and changes nothing.
fn hash(run: &[u32]) -> u64 {
    run.iter().fold(run.len() as u64, |hash, &token| {
        random::hash(hash, 0, u64::from(token))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(tokens: &[u32]) -> Lookup {
        let mut lookup = Lookup::default();
        lookup.follow(tokens);
        lookup
    }

    #[test]
    fn what_followed_before_is_guessed() {
        let index = lookup(&[1, 2, 3, 4, 5, 9, 1, 2]);
        assert_eq!(index.guess(3), [3, 4, 5]);
        assert_eq!(index.guess(0), [0; 0]);
        assert_eq!(lookup(&[1, 2, 3, 4]).guess(3), [0; 0]);
        assert_eq!(lookup(&[7]).guess(3), [0; 0]);
        assert_eq!(lookup(&[]).guess(3), [0; 0]);
    }

    #[test]
    fn a_longer_run_goes_before_a_later_one() {
        // 2 3 stood last before 8, but 1 2 3 before 4.
        assert_eq!(lookup(&[1, 2, 3, 4, 2, 3, 8, 1, 2, 3]).guess(1), [4]);
        // Of equally long ones the last counts.
        assert_eq!(lookup(&[2, 3, 4, 2, 3, 8, 2, 3]).guess(1), [8]);
    }

    #[test]
    fn a_repetition_goes_on() {
        assert_eq!(lookup(&[1, 2, 1, 2, 1, 2]).guess(5), [1, 2, 1, 2, 1]);
        assert_eq!(lookup(&[6, 6, 6]).guess(4), [6; 4]);
    }

    /// The plain version: the last place before the end where each run stood.
    fn oracle(tokens: &[u32], most: usize) -> Vec<u32> {
        for length in LENGTHS {
            let Some(run) = tokens.len().checked_sub(length) else {
                continue;
            };
            let found = (0..run)
                .rev()
                .find(|&at| tokens[at..at + length] == tokens[run..]);
            if let Some(at) = found {
                let mut whole = tokens.to_vec();
                for i in 0..most {
                    whole.push(whole[at + length + i]);
                }
                return whole[tokens.len()..].to_vec();
            }
        }
        Vec::new()
    }

    #[test]
    fn growing_token_by_token_is_searching_anew() {
        for seed in 0..40 {
            let tokens: Vec<u32> = (0..120)
                .map(|i| random::below(seed, 0, i, 2 + seed % 5) as u32)
                .collect();
            let mut grown = Lookup::default();
            for end in 0..tokens.len() {
                grown.follow(&tokens[..end]);
                assert_eq!(
                    grown.guess(6),
                    oracle(&tokens[..end], 6),
                    "seed {seed}, {end}"
                );
            }
        }
    }
}
