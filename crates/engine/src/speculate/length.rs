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
//! on, so that a text which becomes predictable is noticed and trying costs less and less; a try that was right is followed
//! by another.

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
}

/// Before anything is measured: a row beside the first costs a fifth of a step.
const SLOPE: f64 = 0.2;
/// What is left of a measurement's weight after each further one.
const FORGET: f64 = 0.97;

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock {
            sums: [0.0; 5],
            slope: SLOPE,
            draft: 0.0,
        }
    }

    /// A step of `rows` rows, all of them of sequences that generate, took so many seconds.
    pub(crate) fn step(&mut self, rows: usize, seconds: f64) {
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

    /// So many guesses of a draft model took so many seconds.
    pub(crate) fn guesses(&mut self, guesses: usize, seconds: f64) {
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
    rest: usize, // tokens until it tries again
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
            counted: Speculation::default(),
        }
    }

    /// How many guesses to make in a step that runs `others` rows beside this sequence's own.
    pub(crate) fn guesses(&mut self, clock: &Clock, others: usize) -> usize {
        if self.rest > 0 {
            return 0;
        }
        let best = self.best(clock, others);
        if best > 0 {
            self.pause = PAUSE;
            // Before anything is known of times and guesses, few.
            return match self.counted.steps {
                0..2 => best.min(2),
                2..4 => best.min(4),
                _ => best,
            };
        }
        // One try, whatever is thought of it; should it fail, the next comes after a pause.
        self.rest = self.pause;
        self.pause = (2 * self.pause).min(MOST_PAUSE);
        if self.tried > 4.0 {
            // What was long ago counts half.
            self.right /= 2.0;
            self.tried /= 2.0;
        }
        1.min(self.most)
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
        if accepted > 0 {
            self.rest = 0;
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

    /// A machine on which a step of r rows takes `a + b r` and a guess `d`, and guesses are right with chance `alpha`.
    struct Machine {
        a: f64,
        b: f64,
        d: f64,
        alpha: f64,
    }

    /// Seconds for `tokens` tokens with at most `most` guesses, and what was counted. Times jitter by a tenth.
    fn run(machine: &Machine, tokens: usize, most: usize, seed: u64) -> (f64, Speculation) {
        let (mut clock, mut lengths) = (Clock::new(), Lengths::new(most));
        let (mut made, mut total, mut step) = (0, 0.0, 0);
        while made < tokens {
            let guesses = lengths.guesses(&clock, 0);
            let drafting = machine.d * guesses as f64;
            let jitter = 0.9 + 0.2 * random::uniform(seed, 1, step) as f64;
            let seconds = jitter * (machine.a + machine.b * (1 + guesses) as f64);
            total += seconds + drafting;
            clock.step(1 + guesses, seconds);
            let right =
                |i: &usize| (random::uniform(seed, 2 + *i as u64, step) as f64) < machine.alpha;
            if guesses == 0 {
                lengths.plain();
                made += 1;
            } else {
                clock.guesses(guesses, drafting);
                let accepted = (0..guesses).take_while(right).count();
                lengths.tried(guesses, accepted);
                made += 1 + accepted;
            }
            step += 1;
        }
        (total * tokens as f64 / made as f64, lengths.counted(&clock))
    }

    fn plain(machine: &Machine, tokens: usize) -> f64 {
        (machine.a + machine.b) * tokens as f64
    }

    #[test]
    fn it_is_never_much_slower_than_without() {
        for (b, d) in [(0.05, 0.0), (0.3, 0.0), (1.0, 0.0), (0.1, 0.3), (0.5, 1.0)] {
            for alpha in [0.0, 0.1, 0.3, 0.5, 0.9] {
                let machine = Machine {
                    a: 1.0,
                    b,
                    d,
                    alpha,
                };
                for seed in 0..5 {
                    let (with, counted) = run(&machine, 300, 8, seed);
                    let share = with / plain(&machine, 300);
                    assert!(
                        share < 1.05,
                        "b {b}, d {d}, α {alpha}, seed {seed}: {share} times the time, {counted:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn good_guesses_are_worth_it() {
        for (b, d, alpha, least) in [
            (0.1, 0.0, 0.9, 2.5),
            (0.1, 0.1, 0.9, 1.8),
            (0.05, 0.0, 0.6, 1.5),
        ] {
            let machine = Machine {
                a: 1.0,
                b,
                d,
                alpha,
            };
            let (with, counted) = run(&machine, 500, 8, 1);
            let gain = plain(&machine, 500) / with;
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
            clock.step(rows, 0.01 + 0.002 * rows as f64);
        }
        clock.guesses(4, 0.004);
        let (a, b) = clock.line();
        assert!(
            (a - 0.01).abs() < 5e-4 && (b - 0.002).abs() < 1e-4,
            "{a}, {b}"
        );
        assert!((clock.break_even() - 0.003 / 0.012).abs() < 0.02);
        // One pause of a second moves it little.
        clock.step(3, 1.0);
        assert!(clock.seconds(1.0) < 0.02);
    }

    #[test]
    fn a_text_that_becomes_predictable_is_noticed() {
        let (mut clock, mut lengths) = (Clock::new(), Lengths::new(8));
        for _ in 0..400 {
            let guesses = lengths.guesses(&clock, 0);
            clock.step(1 + guesses, 1.0 + 0.3 * guesses as f64);
            match guesses {
                0 => lengths.plain(),
                _ => lengths.tried(guesses, 0),
            }
        }
        let before = lengths.counted(&clock);
        assert!(before.drafted < 30, "{before:?}");
        let mut tokens = 0;
        while lengths.best(&clock, 0) < 3 {
            let guesses = lengths.guesses(&clock, 0);
            clock.step(1 + guesses, 1.0 + 0.3 * guesses as f64);
            match guesses {
                0 => lengths.plain(),
                _ => lengths.tried(guesses, guesses),
            }
            tokens += 1 + guesses;
            assert!(tokens < 40_000, "it never noticed: {lengths:?}");
        }
    }
}
