//! Which of a committee's answers are kept: functions of texts and scores.
//!
//! ```text
//! rank         of each prompt's answers by themselves: the score, the highest first; of equal ones a hash of the seed
//! filters      finished, length, repetition, a floor of the score
//! duplicates   an answer that says what a better one says: the same text, or J(a, b) = |A ∩ B| / |A ∪ B| ≥ d, A and B the sets of
//!              three words in a row
//! caps         the best `answers` a prompt; of all that is kept at most a share of one member
//! ```
//! A score is compared with others to the same prompt only: what a reward model says has no meaning between prompts.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use russet_kernels::random;
use serde::Serialize;

use super::settings::{FilterSettings, KeepSettings};

/// Words in a row that two texts are compared by.
const SHINGLE: usize = 3;
/// Words in a row that repeat themselves.
const REPEATED: usize = 4;

/// An answer of a member.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Whose, by number.
    pub member: usize,
    /// Which of the member's answers to the prompt, from 0.
    pub sample: usize,
    /// What its random numbers follow from.
    pub seed: u64,
    /// What was said.
    pub text: String,
    /// Whether it ended by itself.
    pub finished: bool,
    /// What it is worth; none where the judge cannot read it.
    pub score: Option<f64>,
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It is kept.
    Kept,
    /// It did not end by itself.
    Unfinished,
    /// It has too few characters.
    TooShort,
    /// It has too many.
    TooLong,
    /// It repeats itself.
    Repetitive,
    /// It is longer than the judge reads.
    Unscored,
    /// Its score is below the floor.
    BelowFloor,
    /// A better one is the same.
    Duplicate,
    /// A better one is nearly the same.
    NearDuplicate,
    /// As many better ones are kept as a prompt may have.
    NotAmongBest,
    /// Its member has its share.
    MemberShare,
}

impl Fate {
    /// As files have it.
    pub fn word(self) -> &'static str {
        match self {
            Fate::Kept => "kept",
            Fate::Unfinished => "unfinished",
            Fate::TooShort => "too_short",
            Fate::TooLong => "too_long",
            Fate::Repetitive => "repetitive",
            Fate::Unscored => "unscored",
            Fate::BelowFloor => "below_floor",
            Fate::Duplicate => "duplicate",
            Fate::NearDuplicate => "near_duplicate",
            Fate::NotAmongBest => "not_among_best",
            Fate::MemberShare => "member_share",
        }
    }
}

/// What is said of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What became of it.
    pub fate: Fate,
    /// Its place among the prompt's answers that pass filters and say something of their own, from 1.
    pub rank: Option<usize>,
    /// The better answer that it is a duplicate of, by its place in the list.
    pub of: Option<usize>,
}

/// Words of a text: runs of letters and digits, in lower case. From U+2E80 on, where words have no blanks between them, each character
/// is one.
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        let alone = c >= '\u{2e80}';
        if alone || !c.is_alphanumeric() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            if alone && c.is_alphanumeric() {
                words.push(c.to_string());
            }
        } else {
            word.extend(c.to_lowercase());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// The sets of `n` words in a row; of fewer words, all of them as one.
fn shingles(words: &[String], n: usize) -> BTreeSet<&[String]> {
    match words.len() {
        0 => BTreeSet::new(),
        few if few < n => BTreeSet::from([words]),
        _ => words.windows(n).collect(),
    }
}

/// The Jaccard similarity of two texts' sets of three words in a row, from 0 to 1; 0 where one has no word.
pub fn similarity(one: &[String], other: &[String]) -> f64 {
    jaccard(&shingles(one, SHINGLE), &shingles(other, SHINGLE))
}

fn jaccard(one: &BTreeSet<&[String]>, other: &BTreeSet<&[String]>) -> f64 {
    let both = one.intersection(other).count();
    let any = one.len() + other.len() - both;
    if any == 0 {
        0.0
    } else {
        both as f64 / any as f64
    }
}

/// The share of four words in a row that stood before: 0 of a text that says nothing twice, towards 1 of one that runs in a circle.
pub fn repetition(words: &[String]) -> f64 {
    if words.len() < REPEATED {
        return 0.0;
    }
    let all = words.len() - REPEATED + 1;
    1.0 - shingles(words, REPEATED).len() as f64 / all as f64
}

/// Why an answer does not pass by itself; none where it does.
fn refused(candidate: &Candidate, words: &[String], filter: &FilterSettings) -> Option<Fate> {
    let length = candidate.text.trim().chars().count();
    if filter.finished && !candidate.finished {
        return Some(Fate::Unfinished);
    }
    if length < filter.min_characters {
        return Some(Fate::TooShort);
    }
    if filter.max_characters.is_some_and(|most| length > most) {
        return Some(Fate::TooLong);
    }
    if repetition(words) > filter.max_repetition {
        return Some(Fate::Repetitive);
    }
    let Some(score) = candidate.score else {
        return Some(Fate::Unscored);
    };
    let low = filter.min_score.is_some_and(|floor| score < floor);
    low.then_some(Fate::BelowFloor)
}

/// The better first; of equal scores whom the hash of its seed says, so that no member wins by its place in the recipe.
fn better_first(one: &Candidate, other: &Candidate) -> Ordering {
    let score = |candidate: &Candidate| candidate.score.unwrap_or(f64::NEG_INFINITY);
    let lot = |candidate: &Candidate| random::hash(candidate.seed, 0, candidate.sample as u64);
    score(other)
        .total_cmp(&score(one))
        .then_with(|| lot(one).cmp(&lot(other)))
        .then_with(|| (one.member, one.sample).cmp(&(other.member, other.sample)))
}

/// The answers to one prompt: filters, rank, duplicates, and the best of them.
fn of_prompt(
    candidates: &[Candidate],
    filter: &FilterSettings,
    keep: &KeepSettings,
) -> Vec<Verdict> {
    let of_texts: Vec<Vec<String>> = candidates.iter().map(|one| words(&one.text)).collect();
    let mut verdicts: Vec<Verdict> = candidates
        .iter()
        .zip(&of_texts)
        .map(|(candidate, words)| Verdict {
            fate: refused(candidate, words, filter).unwrap_or(Fate::NotAmongBest),
            rank: None,
            of: None,
        })
        .collect();
    let mut order: Vec<usize> = (0..candidates.len())
        .filter(|&at| verdicts[at].fate == Fate::NotAmongBest)
        .collect();
    order.sort_by(|&one, &other| better_first(&candidates[one], &candidates[other]));
    let sets: Vec<BTreeSet<&[String]>> = of_texts
        .iter()
        .map(|words| shingles(words, SHINGLE))
        .collect();
    let mut own: Vec<usize> = Vec::new();
    for at in order {
        let same = |&&better: &&usize| candidates[better].text.trim() == candidates[at].text.trim();
        let near = |&&better: &&usize| jaccard(&sets[better], &sets[at]) >= filter.near_duplicate;
        let found = match own.iter().find(same) {
            Some(better) => Some((Fate::Duplicate, *better)),
            None => {
                let better = own.iter().find(near);
                better.map(|better| (Fate::NearDuplicate, *better))
            }
        };
        match found {
            Some((fate, better)) => (verdicts[at].fate, verdicts[at].of) = (fate, Some(better)),
            None => {
                own.push(at);
                verdicts[at].rank = Some(own.len());
                if own.len() <= keep.answers {
                    verdicts[at].fate = Fate::Kept;
                }
            }
        }
    }
    verdicts
}

/// What becomes of the answers to each prompt.
pub fn select(
    prompts: &[Vec<Candidate>],
    members: usize,
    filter: &FilterSettings,
    keep: &KeepSettings,
) -> Vec<Vec<Verdict>> {
    let mut verdicts: Vec<Vec<Verdict>> = prompts
        .iter()
        .map(|candidates| of_prompt(candidates, filter, keep))
        .collect();
    share_out(prompts, members, keep.member_share, &mut verdicts);
    verdicts
}

/// How many of so many one member may have.
fn most(share: f64, all: usize) -> usize {
    // What rounding takes from a whole number: 0.3 · 10 is 3.
    (share * all as f64 + 1e-9).floor() as usize
}

/// Holds each member to its share of all that is kept. The member that is furthest above it gives up answers where that costs least: first
/// those for which the prompt has another member's, which takes the place, by how much lower that one's score is; where none has,
/// those of the lowest scores, until the rest is within the share.
fn share_out(
    prompts: &[Vec<Candidate>],
    members: usize,
    share: f64,
    verdicts: &mut [Vec<Verdict>],
) {
    if share >= 1.0 {
        return;
    }
    let mut counts = vec![0usize; members];
    for (candidates, verdicts) in prompts.iter().zip(verdicts.iter()) {
        for (candidate, verdict) in candidates.iter().zip(verdicts) {
            counts[candidate.member] += usize::from(verdict.fate == Fate::Kept);
        }
    }
    loop {
        let all: usize = counts.iter().sum();
        let cap = most(share, all);
        let above = (0..members).max_by_key(|&member| (counts[member], members - member));
        let Some(member) = above.filter(|&member| counts[member] > cap) else {
            return;
        };
        let kept: Vec<(usize, usize)> = places(prompts, verdicts, member);
        let mut costs: Vec<(f64, usize, usize)> = Vec::new();
        for &(prompt, at) in &kept {
            if let Some(other) = stand_in(&prompts[prompt], &verdicts[prompt], &counts, cap) {
                let score = |at: usize| prompts[prompt][at].score.unwrap_or(f64::NEG_INFINITY);
                costs.push((score(at) - score(other), prompt, at));
            }
        }
        costs.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
        let mut changed = false;
        for (_, prompt, at) in costs {
            if counts[member] <= cap {
                break;
            }
            // Members fill up on the way, and a prompt has each answer once.
            if let Some(other) = stand_in(&prompts[prompt], &verdicts[prompt], &counts, cap) {
                verdicts[prompt][at].fate = Fate::MemberShare;
                verdicts[prompt][other].fate = Fate::Kept;
                counts[member] -= 1;
                counts[prompts[prompt][other].member] += 1;
                changed = true;
            }
        }
        if changed {
            continue;
        }
        let mut lowest = kept;
        lowest.sort_by(|one, other| {
            let candidate = |&(prompt, at): &(usize, usize)| &prompts[prompt][at];
            better_first(candidate(other), candidate(one)).then(one.cmp(other))
        });
        let mut left = all;
        for (prompt, at) in lowest {
            if counts[member] <= most(share, left) {
                break;
            }
            verdicts[prompt][at].fate = Fate::MemberShare;
            counts[member] -= 1;
            left -= 1;
        }
    }
}

/// Where a member's answers are kept.
fn places(
    prompts: &[Vec<Candidate>],
    verdicts: &[Vec<Verdict>],
    member: usize,
) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (prompt, (candidates, verdicts)) in prompts.iter().zip(verdicts).enumerate() {
        for (at, (candidate, verdict)) in candidates.iter().zip(verdicts).enumerate() {
            if candidate.member == member && verdict.fate == Fate::Kept {
                found.push((prompt, at));
            }
        }
    }
    found
}

/// The best answer to a prompt that is not kept and could be: of a member that has room below the cap.
fn stand_in(
    candidates: &[Candidate],
    verdicts: &[Verdict],
    counts: &[usize],
    cap: usize,
) -> Option<usize> {
    let free = |at: &usize| {
        verdicts[*at].fate == Fate::NotAmongBest && counts[candidates[*at].member] < cap
    };
    (0..candidates.len())
        .filter(free)
        .min_by_key(|&at| verdicts[at].rank)
}

/// The better and the worse answer of each preference that a prompt's answers make: the best that is kept against the worst that can be
/// compared with it, the lowest first.
///
/// An answer that was cut off, is empty or too long is none to compare with, since learning would take it for whole; one that repeats
/// itself or lies below the floor is. Nor is one that says what the better one says.
pub fn pairs(
    candidates: &[Candidate],
    verdicts: &[Verdict],
    filter: &FilterSettings,
    keep: &KeepSettings,
) -> Vec<(usize, usize)> {
    let kept = (0..candidates.len()).filter(|&at| verdicts[at].fate == Fate::Kept);
    let Some(best) = kept.min_by_key(|&at| verdicts[at].rank) else {
        return Vec::new();
    };
    let Some(score) = candidates[best].score else {
        return Vec::new();
    };
    let compared = |fate: Fate| {
        !matches!(
            fate,
            Fate::Unfinished | Fate::TooShort | Fate::TooLong | Fate::Unscored
        )
    };
    let mut worse: Vec<usize> = (0..candidates.len())
        .filter(|&at| compared(verdicts[at].fate))
        .filter(|&at| {
            let other = candidates[at].score;
            other.is_some_and(|other| other < score && score - other >= keep.min_margin)
        })
        .collect();
    worse.sort_by(|&one, &other| better_first(&candidates[other], &candidates[one]));
    let chosen = words(&candidates[best].text);
    let own = |at: &usize| {
        let text = &candidates[*at].text;
        text.trim() != candidates[best].text.trim()
            && similarity(&chosen, &words(text)) < filter.near_duplicate
    };
    let mut seen = BTreeSet::new();
    worse.retain(|&at| seen.insert(candidates[at].text.trim()));
    worse
        .into_iter()
        .filter(own)
        .take(keep.pairs)
        .map(|at| (best, at))
        .collect()
}
