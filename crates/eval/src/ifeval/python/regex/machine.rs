//! Running a pattern: one way at a time, coming back to what was left open.
//!
//! A class that repeats without bound is where texts cost the square of their length: from each place of a long run of spaces, `\s*x` would
//! look through all that are left, and come back through them. What led nowhere once leads nowhere again, so each such repeat keeps the run in
//! which it failed, and goes only where it has not been. That holds where going on depends on the place alone: not behind back references,
//! conditionals and loops that watch their rounds, which are run plainly.

use super::super::is_word;
use super::class::folded;
use super::parse::{At, Kind};
use super::program::{Op, Program};
use super::{Endless, Match};

/// Operations of one search at most: tenths of a second.
const STEPS: usize = 20_000_000;

/// Places to come back to at most.
const BRANCHES: usize = 1 << 20;

/// Characters of a run up to which it is no use to know that it failed.
const SHORT: usize = 8;

/// Where to go on when the present way leads nowhere, or what to put back before that.
enum Undo {
    Go(usize, usize),
    /// Go on at `pc` with one character less each time, down to `low`.
    Shorter {
        pc: usize,
        low: usize,
        high: usize,
    },
    /// Go on at `pc` with one character more each time, up to `high`, as long as the class before `pc` takes it, from `from` on.
    Longer {
        pc: usize,
        from: usize,
        next: usize,
        high: usize,
    },
    /// All ways from the repeat at `pc` through this run have led nowhere.
    Failed(usize, Run),
    Slot(usize, Option<usize>),
    Mark(usize, usize),
}

/// A whole run of a repeat's class, from a place in it to its end.
#[derive(Clone, Copy)]
struct Run {
    from: usize,
    to: usize,
}

impl Run {
    fn has(&self, place: usize) -> bool {
        (self.from..=self.to).contains(&place)
    }
}

/// A search under way.
pub struct Machine<'a> {
    program: &'a [Op],
    text: &'a [char],
    /// Of each operation the run through which it failed last; empty where that is not to be known.
    failed: Vec<Option<Run>>,
    slots: Vec<Option<usize>>,
    marks: Vec<usize>,
    steps: usize,
}

impl<'a> Machine<'a> {
    pub fn new(program: &'a Program, text: &'a [char]) -> Machine<'a> {
        Machine {
            program: &program.ops,
            text,
            failed: match program.by_place {
                true => vec![None; program.ops.len()],
                false => Vec::new(),
            },
            slots: vec![None; 2 * program.groups],
            marks: vec![0; program.marks],
            steps: 0,
        }
    }

    /// The match that begins at `start`; an empty one only where `must_advance` is not set.
    pub fn try_at(&mut self, start: usize, must_advance: bool) -> Result<Option<Match>, Endless> {
        self.slots.fill(None);
        let end = self.run(0, start, must_advance.then_some(start))?;
        if must_advance {
            self.failed.fill(None); // an empty match may be one from the next place
        }
        Ok(end.map(|end| Match {
            start,
            end,
            slots: self.slots.clone(),
        }))
    }

    fn at(&self, at: At, here: usize) -> bool {
        let text = self.text;
        let (before, after) = (
            here.checked_sub(1).map(|i| text[i]),
            text.get(here).copied(),
        );
        match at {
            At::Start => here == 0,
            At::LineStart => before.is_none_or(|c| c == '\n'),
            At::VeryEnd => after.is_none(),
            At::End => after.is_none() || (after == Some('\n') && here + 1 == text.len()),
            At::LineEnd => after.is_none_or(|c| c == '\n'),
            At::Boundary { negate, ascii } => {
                let word =
                    |c: Option<char>| c.is_some_and(|c| is_word(c) && (!ascii || c.is_ascii()));
                // Python finds no boundary in an empty text, nor its opposite.
                !text.is_empty() && negate != (word(before) != word(after))
            }
        }
    }

    /// Runs from `pc` at `here` to an `Accept`; the end must not be `never`.
    fn run(
        &mut self,
        mut pc: usize,
        mut here: usize,
        never: Option<usize>,
    ) -> Result<Option<usize>, Endless> {
        let text = self.text;
        let program = self.program;
        let mut undo: Vec<Undo> = Vec::new();
        loop {
            self.steps += 1;
            if self.steps > STEPS || undo.len() > BRANCHES {
                return Err(Endless);
            }
            let next = match &program[pc] {
                Op::One(class) => match text.get(here) {
                    Some(c) if class.takes(*c) => {
                        here += 1;
                        Some(pc + 1)
                    }
                    _ => None,
                },
                Op::Many {
                    class,
                    min,
                    max,
                    kind,
                } => {
                    let most = text.len().min(here.saturating_add(*max));
                    let unbounded = *max == usize::MAX;
                    let failed = self.failed(pc).filter(|_| unbounded);
                    let wanted = match kind {
                        Kind::Lazy => here.saturating_add(*min).min(most),
                        _ => most,
                    };
                    let (mut end, mut looked) = (here, 0);
                    while end < wanted {
                        if let Some(run) = failed.filter(|run| run.has(end)) {
                            end = run.to.min(wanted);
                            break;
                        }
                        if !class.takes(text[end]) {
                            break;
                        }
                        end += 1;
                        looked += 1;
                    }
                    self.steps += looked;
                    // Where it goes on first: not where it has been.
                    let first = match failed {
                        Some(run) if (run.from + min..=run.to).contains(&end) => match kind {
                            Kind::Greedy => (run.from + min).checked_sub(1),
                            _ => None,
                        },
                        _ => Some(end),
                    };
                    match first.filter(|first| end - here >= *min && *first >= here + min) {
                        None => None,
                        Some(first) => {
                            let run = Run {
                                from: here,
                                to: end,
                            };
                            if unbounded && *kind != Kind::Lazy && end - here > SHORT {
                                undo.push(Undo::Failed(pc, run));
                            }
                            match kind {
                                Kind::Greedy if first > here + min => undo.push(Undo::Shorter {
                                    pc: pc + 1,
                                    low: here + min,
                                    high: first - 1,
                                }),
                                Kind::Lazy if end < most => undo.push(Undo::Longer {
                                    pc: pc + 1,
                                    from: here,
                                    next: end,
                                    high: most,
                                }),
                                _ => {}
                            }
                            here = first;
                            Some(pc + 1)
                        }
                    }
                }
                Op::At(at) => self.at(*at, here).then_some(pc + 1),
                Op::Split(first, second) => {
                    undo.push(Undo::Go(*second, here));
                    Some(*first)
                }
                Op::Jump(to) => Some(*to),
                Op::Save(slot) => {
                    undo.push(Undo::Slot(*slot, self.slots[*slot]));
                    self.slots[*slot] = Some(here);
                    Some(pc + 1)
                }
                Op::Mark(mark) => {
                    undo.push(Undo::Mark(*mark, self.marks[*mark]));
                    self.marks[*mark] = here;
                    Some(pc + 1)
                }
                Op::Progress { mark, out } => Some(match self.marks[*mark] == here {
                    true => *out,
                    false => pc + 1,
                }),
                Op::Back(group, fold) => {
                    let held = (self.slots[2 * group - 2], self.slots[2 * group - 1]);
                    match held {
                        (Some(start), Some(end))
                            if start <= end && end - start <= text.len() - here =>
                        {
                            let same = text[start..end]
                                .iter()
                                .zip(&text[here..])
                                .all(|(a, b)| folded(*a, *fold) == folded(*b, *fold));
                            same.then(|| {
                                here += end - start;
                                pc + 1
                            })
                        }
                        _ => None,
                    }
                }
                Op::Look { back, negate, out } => {
                    let before = self.slots.clone();
                    let held = match here.checked_sub(*back) {
                        Some(from) => self.run(pc + 1, from, None)?.is_some(),
                        None => false,
                    };
                    if *negate || !held {
                        self.slots = before;
                    } else {
                        self.keep(&mut undo, &before);
                    }
                    (held != *negate).then_some(*out)
                }
                Op::Atomic { out } => {
                    let before = self.slots.clone();
                    match self.run(pc + 1, here, None)? {
                        Some(end) => {
                            self.keep(&mut undo, &before);
                            here = end;
                            Some(*out)
                        }
                        None => None,
                    }
                }
                Op::Conditional { group, no } => Some(match self.slots[2 * group - 1] {
                    Some(_) => pc + 1,
                    None => *no,
                }),
                Op::Accept if never != Some(here) => return Ok(Some(here)),
                Op::Accept => None,
            };
            match next {
                Some(next) => pc = next,
                None => match self.undo(&mut undo) {
                    Some(resumed) => (pc, here) = resumed,
                    None => return Ok(None),
                },
            }
        }
    }

    /// What a nested run has put into groups is undone with the rest.
    fn keep(&self, undo: &mut Vec<Undo>, before: &[Option<usize>]) {
        for (slot, old) in before.iter().enumerate() {
            if self.slots[slot] != *old {
                undo.push(Undo::Slot(slot, *old));
            }
        }
    }

    fn failed(&self, pc: usize) -> Option<Run> {
        self.failed.get(pc).copied().flatten()
    }

    fn fail(&mut self, pc: usize, run: Run) {
        if let Some(failed) = self.failed.get_mut(pc) {
            *failed = Some(run);
        }
    }

    fn undo(&mut self, undo: &mut Vec<Undo>) -> Option<(usize, usize)> {
        loop {
            match undo.pop()? {
                Undo::Go(pc, here) => return Some((pc, here)),
                Undo::Slot(slot, old) => self.slots[slot] = old,
                Undo::Mark(mark, old) => self.marks[mark] = old,
                Undo::Shorter { pc, low, high } => {
                    if high > low {
                        undo.push(Undo::Shorter {
                            pc,
                            low,
                            high: high - 1,
                        });
                    }
                    return Some((pc, high));
                }
                Undo::Failed(pc, run) => self.fail(pc, run),
                Undo::Longer {
                    pc,
                    from,
                    next,
                    high,
                } => {
                    let Op::Many {
                        class, min, max, ..
                    } = &self.program[pc - 1]
                    else {
                        unreachable!("only `Many` leaves this");
                    };
                    let unbounded = *max == usize::MAX;
                    let been = |run: &Run| (run.from + min..=run.to).contains(&(next + 1));
                    let failed = self.failed(pc - 1).filter(|run| unbounded && been(run));
                    if failed.is_none() && next < high && class.takes(self.text[next]) {
                        undo.push(Undo::Longer {
                            pc,
                            from,
                            next: next + 1,
                            high,
                        });
                        return Some((pc, next + 1));
                    }
                    let to = failed.map_or(next, |run| run.to);
                    if unbounded && to - from > SHORT {
                        self.fail(pc - 1, Run { from, to });
                    }
                }
            }
        }
    }
}
