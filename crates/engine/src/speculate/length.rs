//! How many guesses pay.
//!
//! With a chance α that a guess is right where the one before was, k guesses bring
//!
//! ```text
//! E(α, k) = 1 + α + α² + … + αᵏ
//! ```
//! tokens a step (arXiv 2211.17192, equation 1). A step of r rows takes a + b · r seconds, a guess of a draft model d more.
//! a, b, d are measured as the engine runs, α is counted for each sequence, and k is the number that brings the most tokens
//! a second; 0 where guessing does not pay. A sequence that has stopped guessing tries again after 16 tokens, 32, 64 and so
//! on, one guess and, while all are right, 2, 4, 8: a text that becomes predictable is noticed, trying costs less and less.
//!
//! Whatever is thought of a, b, d and α, there is an account. A step without guesses says what a token costs; every step
//! with guesses is charged with what it took beyond that for the tokens it brought, and credited with what it saved. Once
//! guessing has cost 3 in 100 of the time without it, nobody guesses until that is made up for; 64 tokens are lent at the
//! beginning.

use std::collections::HashMap;

/// How guesses fared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speculation {
    /// Guesses that were run.
    pub drafted: usize,
    /// Those that were right.
    pub accepted: usize,
    /// Steps with guesses.
    pub steps: usize,
    /// The share of right guesses from which on a single guess a step pays, by the times measured; above 1: never.
    pub break_even: f64,
}

impl Speculation {
    /// The share of guesses that were right; 0 where there were none.
    pub fn acceptance(&self) -> f64 {
        match self.drafted {
            0 => 0.0,
            drafted => self.accepted as f64 / drafted as f64,
        }
    }
}

/// What rows and guesses cost, measured.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    // Weighted sums of 1, rows, seconds, rows², rows · seconds over steps: a line through them is a + b · rows.
    sums: [f64; 5],
    slope: f64, // b as a share of a step of one row, as last measured
    draft: f64, // seconds a guess
    plain: HashMap<usize, (f64, u32)>, // sequences -> seconds of a step without guesses, and how many there were
    worth: f64,   // seconds that all tokens so far would have taken without guesses
    debt: f64,    // seconds that guesses have cost beyond what they saved
    spent: f64,   // seconds that the guesses of this step took
    right: usize, // guesses of this step that were right
    streak: u32,  // steps with guesses since the last without
}

/// Before anything is measured: a row beside the first costs a fifth of a step.
const SLOPE: f64 = 0.2;
/// What is left of a measurement's weight after each further one.
const FORGET: f64 = 0.97;
/// What guessing may cost at most, as a share of the time without it,
const SHARE: f64 = 0.03;
/// and for how many tokens that is lent at the beginning.
const LENT: f64 = 64.0;
/// How many tokens' time may be saved up for later tries.
const SAVED: f64 = 8.0;
/// After how many steps with guesses one without shows again what that takes.
const STREAK: u32 = 64;

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock {
            sums: [0.0; 5],
            slope: SLOPE,
            draft: 0.0,
            plain: HashMap::new(),
            worth: 0.0,
            debt: 0.0,
            spent: 0.0,
            right: 0,
            streak: 0,
        }
    }

    /// A step of `rows` rows of `sequences` that all generate took so many seconds.
    pub(crate) fn step(&mut self, sequences: usize, rows: usize, seconds: f64) {
        self.account(sequences, rows, seconds);
        let rows = rows as f64;
        // A pause of the whole machine is no cost of rows.
        let seconds = match self.sums[0] > 0.0 {
            true => seconds.min(3.0 * self.seconds(rows)),
            false => seconds,
        };
        let new = [1.0, rows, seconds, rows * rows, rows * seconds];
        for (sum, new) in self.sums.iter_mut().zip(new) {
            *sum = FORGET * *sum + new;
        }
        // Steps of one height say nothing of the slope: what was known of it stays.
        let (a, b) = self.line();
        self.slope = b / (a + b);
    }

    /// Charges or credits a step.
    fn account(&mut self, sequences: usize, rows: usize, seconds: f64) {
        let spent = std::mem::take(&mut self.spent);
        let right = std::mem::take(&mut self.right);
        if rows == sequences {
            let (plain, count) = self.plain.entry(sequences).or_insert((seconds, 0));
            *count += 1;
            *plain += (seconds.min(3.0 * *plain) - *plain) * (1.0 / f64::from(*count)).max(0.1);
            self.worth += *plain;
            self.debt += spent; // for guesses that were not run
            self.streak = 0;
        } else if let Some(&(plain, _)) = self.plain.get(&sequences) {
            let token = plain / sequences as f64;
            let worth = token * (sequences + right) as f64;
            self.worth += worth;
            self.debt = (self.debt + seconds + spent - worth).max(-SAVED * token);
            self.streak += 1;
        }
    }

    /// Of the guesses of this step so many were right.
    pub(crate) fn right(&mut self, right: usize) {
        self.right += right;
    }

    /// How many guesses, of `most`, the account allows one of so many sequences, should none of them be right; 0 while it is
    /// not known what a step without takes.
    fn allows(&self, sequences: usize, most: usize) -> usize {
        match self.plain.get(&sequences) {
            Some(&(plain, count)) if count >= 2 && self.streak < STREAK => {
                let lent = LENT * plain / sequences as f64;
                let room = SHARE * (self.worth + lent) - self.debt;
                let each = self.line().1 + self.draft;
                let fits = |guesses: &usize| *guesses as f64 * each <= room;
                (0..=most).rev().find(fits).unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// So many guesses of a draft model took so many seconds.
    pub(crate) fn guesses(&mut self, guesses: usize, seconds: f64) {
        self.spent += seconds;
        let each = seconds / guesses as f64;
        self.draft = match self.draft > 0.0 {
            true => 0.9 * self.draft + 0.1 * each.min(3.0 * self.draft),
            false => each,
        };
    }

    /// a and b.
    fn line(&self) -> (f64, f64) {
        let [n, r, t, rr, rt] = self.sums;
        if n == 0.0 {
            return (1.0, SLOPE);
        }
        // What was known of the slope, as strong as a spread of one row over one step.
        let (mean_r, mean_t) = (r / n, t / n);
        let (spread, common) = (rr - r * mean_r, rt - r * mean_t);
        let known = self.slope * mean_t / (1.0 + self.slope * (mean_r - 1.0));
        let b = ((common + known) / (spread + 1.0)).clamp(0.0, 0.999 * mean_t / mean_r);
        (mean_t - b * mean_r, b)
    }

    fn seconds(&self, rows: f64) -> f64 {
        let (a, b) = self.line();
        a + b * rows
    }

    /// From which share of right guesses on one guess a step pays: 1 + α tokens for a second row and a guess.
    pub(crate) fn break_even(&self) -> f64 {
        let (a, b) = self.line();
        (b + self.draft) / (a + b)
    }
}

/// How many guesses one sequence makes.
#[derive(Clone, Debug)]
pub(crate) struct Lengths {
    most: usize,
    right: f64, // guesses that were right and
    tried: f64, // that were tried with all before them right, older ones counting less
    pause: usize,
    rest: usize,   // tokens until it tries again
    trying: usize, // guesses of a try; 0: none is made
    counted: Speculation,
}

/// What is thought of a guess before any was made, and how many guesses that counts for.
const HOPE: (f64, f64) = (0.7, 3.0);
/// What is left of a guess's weight after each further one: the last thirty count.
const FADE: f64 = 0.97;
/// How much more a step must bring to be preferred to one with fewer guesses: what is measured is never exact.
const MARGIN: f64 = 1.1;
/// The first pause, in tokens.
const PAUSE: usize = 16;
/// The longest.
const MOST_PAUSE: usize = 1024;

impl Lengths {
    /// At most so many guesses a step.
    pub(crate) fn new(most: usize) -> Lengths {
        Lengths {
            most,
            right: HOPE.0 * HOPE.1,
            tried: HOPE.1,
            pause: PAUSE,
            rest: 0,
            trying: 0,
            counted: Speculation::default(),
        }
    }

    /// How many guesses to make in a step that runs `others` rows beside this sequence's own.
    pub(crate) fn guesses(&mut self, clock: &Clock, others: usize) -> usize {
        let allowed = clock.allows(1 + others, self.most);
        if self.rest > 0 || allowed == 0 {
            return 0;
        }
        let best = self.best(clock, others);
        if best > 0 {
            (self.pause, self.trying) = (PAUSE, 0);
            // Before anything is known of times and guesses, few.
            let few = match self.counted.steps {
                0..2 => 2,
                2..4 => 4,
                _ => self.most,
            };
            return best.min(few).min(allowed);
        }
        // A try, whatever is thought of it. More guesses than one can pay where one does not, unless each costs a token.
        self.trying = (2 * self.trying).max(1);
        let hopeless = self.trying > 1 && MARGIN * clock.draft >= clock.seconds(1.0);
        if self.trying > self.most || hopeless {
            self.wait(4);
            return 0;
        }
        self.trying.min(allowed)
    }

    /// Begins a pause, `times` as long as it would be.
    fn wait(&mut self, times: usize) {
        self.rest = (times * self.pause).min(MOST_PAUSE);
        self.pause = (2 * self.rest).min(MOST_PAUSE);
        self.trying = 0;
        if self.tried > 4.0 {
            // What was long ago counts half.
            self.right /= 2.0;
            self.tried /= 2.0;
        }
    }

    fn best(&self, clock: &Clock, others: usize) -> usize {
        let chance = self.right / self.tried;
        let (a, b) = clock.line();
        let rate = |guesses: usize| {
            // 1 + α + … + αᵏ
            let tokens: f64 = (0..=guesses).map(|i| chance.powi(i as i32)).sum();
            let seconds = a + b * (others + 1 + guesses) as f64 + clock.draft * guesses as f64;
            (others as f64 + tokens) / seconds
        };
        (0..=self.most).fold(0, |best, guesses| {
            if rate(guesses) > MARGIN * rate(best) {
                guesses
            } else {
                best
            }
        })
    }

    /// A step without guesses, or for which there were none, brought a token.
    pub(crate) fn plain(&mut self) {
        self.rest = self.rest.saturating_sub(1);
    }

    /// Of `drafted` guesses the first `accepted` were right.
    pub(crate) fn tried(&mut self, drafted: usize, accepted: usize) {
        for guess in 0..drafted.min(accepted + 1) {
            self.right = FADE * self.right + if guess < accepted { 1.0 } else { 0.0 };
            self.tried = FADE * self.tried + 1.0;
        }
        if self.trying > 0 && accepted < drafted {
            self.wait(1);
        }
        self.counted.drafted += drafted;
        self.counted.accepted += accepted;
        self.counted.steps += 1;
    }

    pub(crate) fn counted(&self, clock: &Clock) -> Speculation {
        Speculation {
            break_even: clock.break_even(),
            ..self.counted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russet_kernels::random;

    /// A machine on which a step of one row takes 1, one of r rows `jump + b (r - 1)` more, and a guess `d`; guesses are
    /// right with chance `alpha`. Times jitter by a seventh, and what is done for the first time takes half as long again.
    struct Machine {
        jump: f64,
        b: f64,
        d: f64,
        alpha: f64,
    }

    /// The time for `tokens` tokens with guesses as a share of that without, and what was counted.
    fn run(machine: &Machine, tokens: usize, seed: u64) -> (f64, Speculation) {
        let (mut clock, mut lengths) = (Clock::new(), Lengths::new(8));
        let (mut made, mut total, mut step) = (0, 0.0, 0);
        let (mut rows_seen, mut drafted) = ([false; 16], false);
        let random = |stream, step| f64::from(random::uniform(seed, stream, step));
        while made < tokens {
            let guesses = lengths.guesses(&clock, 0);
            let more = match guesses {
                0 => 0.0,
                _ => machine.jump + machine.b * guesses as f64,
            };
            let mut seconds = (0.85 + 0.3 * random(1, step)) * (1.0 + more);
            let mut drafting = (0.9 + 0.2 * random(2, step)) * machine.d * guesses as f64;
            if guesses > 0 {
                if !std::mem::replace(&mut rows_seen[guesses], true) {
                    seconds *= 1.5;
                }
                if !std::mem::replace(&mut drafted, true) {
                    drafting *= 1.5;
                }
            }
            total += seconds + drafting;
            if guesses == 0 {
                lengths.plain();
                made += 1;
            } else {
                if machine.d > 0.0 {
                    clock.guesses(guesses, drafting);
                }
                let right = |i: &usize| random(3 + *i as u64, step) < machine.alpha;
                let accepted = (0..guesses).take_while(right).count();
                clock.right(accepted);
                lengths.tried(guesses, accepted);
                made += 1 + accepted;
            }
            clock.step(1, 1 + guesses, seconds);
            step += 1;
        }
        (total / made as f64, lengths.counted(&clock))
    }

    #[test]
    fn it_is_never_much_slower_than_without() {
        for (jump, b) in [(0.0, 0.05), (0.0, 0.3), (0.0, 1.0), (0.8, 0.05), (1.5, 0.1)] {
            for d in [0.0, 0.1, 0.3, 1.0, 2.0] {
                for alpha in [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0] {
                    let machine = Machine { jump, b, d, alpha };
                    for seed in 0..5 {
                        let (share, counted) = run(&machine, 400, seed);
                        // 3 in 100, for 64 tokens more than there are: 3.5; and what jitter leaves unseen.
                        assert!(
                            share < 1.05,
                            "{jump} + {b} a row, d {d}, α {alpha}, seed {seed}: {share} times the time, {counted:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn good_guesses_are_worth_it() {
        for (b, d, alpha, least) in [
            (0.1, 0.0, 0.9, 2.3),
            (0.1, 0.1, 0.9, 1.7),
            (0.05, 0.0, 0.6, 1.4),
        ] {
            let jump = 0.0;
            let machine = Machine { jump, b, d, alpha };
            let (share, counted) = run(&machine, 500, 1);
            let gain = 1.0 / share;
            assert!(
                gain > least,
                "b {b}, d {d}, α {alpha}: {gain} times as fast, {counted:?}"
            );
            assert!((counted.acceptance() - alpha).abs() < 0.5, "{counted:?}");
        }
    }

    #[test]
    fn the_line_through_the_times_is_found() {
        let mut clock = Clock::new();
        for step in 0..200 {
            let rows = 1 + step % 6;
            clock.step(1, rows, 0.01 + 0.002 * rows as f64);
        }
        clock.guesses(4, 0.004);
        let (a, b) = clock.line();
        assert!(
            (a - 0.01).abs() < 2e-4 && (b - 0.002).abs() < 5e-5,
            "{a}, {b}"
        );
        assert!((clock.break_even() - 0.003 / 0.012).abs() < 0.02);
        // One pause of a second moves it little.
        clock.step(1, 3, 1.0);
        assert!(clock.seconds(1.0) < 0.02);
    }

    #[test]
    fn the_account_stops_what_costs_and_lends_a_little() {
        let mut clock = Clock::new();
        assert_eq!(clock.allows(1, 8), 0, "what a token takes is not known yet");
        clock.step(1, 1, 1.0);
        clock.step(1, 1, 1.0);
        assert!(clock.allows(1, 8) > 1 && clock.allows(2, 8) == 0);
        clock.step(1, 3, 2.5); // one token, 1.5 too late; 0.03 · 67 may be owed
        assert_eq!(clock.allows(1, 1), 0, "another could owe too much");
        clock.right(2);
        clock.step(1, 3, 1.5); // three tokens, 1.5 saved
        assert!(clock.allows(1, 1) == 1);
        // A guess that a model made and nobody ran is charged too.
        clock.guesses(1, 5.0);
        clock.step(1, 1, 1.0);
        assert_eq!(clock.allows(1, 1), 0);
    }

    #[test]
    fn a_text_that_becomes_predictable_is_noticed() {
        let (mut clock, mut lengths) = (Clock::new(), Lengths::new(8));
        let mut step = |right: bool, lengths: &mut Lengths| {
            let guesses = lengths.guesses(&clock, 0);
            match guesses {
                0 => lengths.plain(),
                _ => lengths.tried(guesses, if right { guesses } else { 0 }),
            }
            clock.right(if right { guesses } else { 0 });
            clock.step(1, 1 + guesses, 1.0 + 0.3 * guesses as f64);
            guesses
        };
        for _ in 0..400 {
            step(false, &mut lengths);
        }
        assert!(lengths.counted.drafted < 30, "{lengths:?}");
        let mut tokens = 0;
        while step(true, &mut lengths) < 8 {
            tokens += 1;
            assert!(tokens < 2 * MOST_PAUSE, "it never noticed: {lengths:?}");
        }
    }
}
