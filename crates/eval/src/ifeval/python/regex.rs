//! Python's `re` on text: the reference's patterns verbatim, and keywords that it uses as patterns without escaping.
//!
//! A backtracking matcher over characters, because that is what decides in Python: which alternative is tried first, what
//! a group holds, where an empty match may stand. `\w`, `\s`, `\b` and letter case are Python's and not the `regex` crate's
//! (whose `\w` takes combining marks and whose case folding keeps `i` and `ı` apart); compiling takes microseconds, where
//! Unicode classes of an automaton take milliseconds a keyword. Matching that backtracks without end, which in Python
//! hangs, is an error here.
//!
//! Left out: bytes patterns, locales and `\N{name}`, which is refused.

use super::regex_parse::{At, Kind, Node, folded, parse, same_capital, width};
use super::{is_space, is_word};

/// Operations of one search at most: tenths of a second.
const STEPS: usize = 20_000_000;

/// Places to come back to at most, and operations of a pattern.
const BRANCHES: usize = 1 << 20;
const PROGRAM: usize = 1 << 16;

/// Why a pattern is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPattern(pub String);

/// A search that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("matching backtracks without end")]
pub struct Endless;

/// How letter case is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    None,
    Unicode,
    Ascii,
}

/// One character out of these.
#[derive(Clone, Debug)]
pub enum Class {
    Any,
    NotLineFeed,
    Literal(char),
    Set {
        items: Vec<Item>,
        negate: bool,
        fold: Fold,
    },
}

/// A part of a set.
#[derive(Clone, Copy, Debug)]
pub enum Item {
    Range(char, char),
    /// The letter of `\d`, `\s` or `\w`, and whether it is the other characters.
    Category {
        letter: char,
        negate: bool,
        ascii: bool,
    },
}

impl Item {
    pub fn range(low: char, high: char) -> Item {
        Item::Range(low, high)
    }

    pub fn category(letter: char, ascii: bool) -> Item {
        Item::Category {
            letter: letter.to_ascii_lowercase(),
            negate: letter.is_ascii_uppercase(),
            ascii,
        }
    }

    fn takes(&self, c: char) -> bool {
        match *self {
            Item::Range(low, high) => (low..=high).contains(&c),
            Item::Category {
                ascii: true,
                negate,
                ..
            } if !c.is_ascii() => negate,
            Item::Category { letter, negate, .. } => {
                negate
                    != match letter {
                        'd' => is_decimal(c),
                        's' => is_space(c),
                        _ => is_word(c),
                    }
            }
        }
    }
}

/// `\d`: Unicode's decimal digits. Numbers that are no digits of a decimal system, as ² and Ⅷ, are none.
pub fn is_decimal(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_digit();
    }
    // Decimal digits come in runs of ten that begin at these.
    const ZEROS: [u32; 65] = [
        0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6,
        0xE50, 0xED0, 0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90,
        0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0,
        0xFF10, 0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0,
        0x11650, 0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x16A60, 0x16AC0,
        0x16B50, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0,
    ];
    let code = u32::from(c);
    let after = ZEROS.partition_point(|zero| *zero <= code);
    after > 0 && code - ZEROS[after - 1] < 10
}

impl Class {
    pub fn literal(c: char, fold: Fold) -> Class {
        match fold {
            Fold::None => Class::Literal(c),
            _ => Class::set(vec![Item::range(c, c)], false, fold),
        }
    }

    pub fn category(letter: char, ascii: bool) -> Class {
        Class::Set {
            items: vec![Item::category(letter, ascii)],
            negate: false,
            fold: Fold::None,
        }
    }

    /// A set. Under `fold` the characters of its ranges become what they are compared as.
    pub fn set(items: Vec<Item>, negate: bool, fold: Fold) -> Class {
        if fold == Fold::None {
            return Class::Set {
                items,
                negate,
                fold,
            };
        }
        let mut all: Vec<Item> = Vec::new();
        let mut add = |c: char| match all.last_mut() {
            Some(Item::Range(low, high)) if (*low..=*high).contains(&c) => {}
            Some(Item::Range(_, high)) if u32::from(*high) + 1 == u32::from(c) => *high = c,
            _ => all.push(Item::Range(c, c)),
        };
        let mut categories = Vec::new();
        for item in items {
            match item {
                Item::Range(low, high) => {
                    for c in low..=high {
                        let lower = folded(c, fold);
                        add(lower);
                        if fold == Fold::Unicode {
                            same_capital(lower).iter().for_each(|c| add(*c));
                        }
                    }
                }
                category => categories.push(category),
            }
        }
        all.extend(categories);
        Class::Set {
            items: all,
            negate,
            fold,
        }
    }

    fn takes(&self, c: char) -> bool {
        match self {
            Class::Any => true,
            Class::NotLineFeed => c != '\n',
            Class::Literal(literal) => c == *literal,
            Class::Set {
                items,
                negate,
                fold,
            } => {
                let c = folded(c, *fold);
                *negate != items.iter().any(|item| item.takes(c))
            }
        }
    }
}

#[derive(Debug)]
enum Op {
    One(Class),
    /// A class many times, without an operation a time.
    Many {
        class: Class,
        min: usize,
        max: usize,
        kind: Kind,
    },
    At(At),
    /// Goes on at the first, and at the second when that leads nowhere.
    Split(usize, usize),
    Jump(usize),
    Save(usize),
    /// Remembers where a round of a loop began.
    Mark(usize),
    /// Leaves the loop at `out` when the round took nothing.
    Progress {
        mark: usize,
        out: usize,
    },
    Back(usize, Fold),
    /// What follows, up to an `Accept` before `out`, must match (or not) here; `back` characters before for a look-behind.
    Look {
        back: usize,
        negate: bool,
        out: usize,
    },
    Atomic {
        out: usize,
    },
    /// Goes on at `no` where the group holds nothing.
    Conditional {
        group: usize,
        no: usize,
    },
    Accept,
}

/// A compiled pattern.
#[derive(Debug)]
pub struct Regex {
    program: Vec<Op>,
    groups: usize,
    marks: usize,
}

/// Where a pattern matched.
#[derive(Clone, Debug)]
pub struct Match {
    pub start: usize,
    pub end: usize,
    slots: Vec<Option<usize>>,
}

impl Match {
    /// What a group holds; 0 is the whole.
    pub fn group(&self, group: usize) -> Option<(usize, usize)> {
        match group {
            0 => Some((self.start, self.end)),
            _ => Some((self.slots[2 * group - 2]?, self.slots[2 * group - 1]?)),
        }
    }
}

impl Regex {
    /// `re.compile(pattern)`; flags stand in the pattern, as in `(?i)` before it.
    pub fn new(pattern: &str) -> Result<Regex, BadPattern> {
        let (node, groups) = parse(pattern)?;
        let mut compiler = Compiler {
            program: Vec::new(),
            marks: 0,
            visited: 0,
        };
        compiler.node(&node)?;
        compiler.push(Op::Accept)?;
        Ok(Regex {
            program: compiler.program,
            groups,
            marks: compiler.marks,
        })
    }

    /// Groups that count.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// `search`: the first match.
    pub fn search(&self, text: &[char]) -> Result<Option<Match>, Endless> {
        self.find(text, 0, false)
    }

    /// `match`: at the beginning only.
    pub fn match_start(&self, text: &[char]) -> Result<Option<Match>, Endless> {
        let mut machine = self.machine(text);
        machine.try_at(0, false)
    }

    /// `finditer`.
    pub fn find_all(&self, text: &[char]) -> Result<Vec<Match>, Endless> {
        let mut all = Vec::new();
        let (mut from, mut must_advance) = (0, false);
        while let Some(found) = self.find(text, from, must_advance)? {
            from = found.end;
            // Behind an empty match a longer one may begin at the same place, but no second empty one.
            must_advance = found.start == found.end;
            all.push(found);
        }
        Ok(all)
    }

    /// `sub`; `template` knows `\0` (the whole) to `\9`.
    pub fn replace_all(&self, text: &[char], template: &str) -> Result<Vec<char>, Endless> {
        let found = self.find_all(text)?;
        if found.is_empty() {
            return Ok(text.to_vec());
        }
        let (mut out, mut copied) = (Vec::with_capacity(text.len() + 2 * found.len()), 0);
        for one in &found {
            out.extend_from_slice(&text[copied..one.start]);
            let mut pieces = template.chars();
            while let Some(c) = pieces.next() {
                match (
                    c,
                    pieces.as_str().chars().next().and_then(|c| c.to_digit(10)),
                ) {
                    ('\\', Some(group)) => {
                        pieces.next();
                        if let Some((start, end)) = one.group(group as usize) {
                            out.extend_from_slice(&text[start..end]);
                        }
                    }
                    _ => out.push(c),
                }
            }
            copied = one.end;
        }
        out.extend_from_slice(&text[copied..]);
        Ok(out)
    }

    fn find(
        &self,
        text: &[char],
        from: usize,
        must_advance: bool,
    ) -> Result<Option<Match>, Endless> {
        let mut machine = self.machine(text);
        for start in from..=text.len() {
            // Most places fail at the first character, which needs no machine.
            if let Op::One(class) = &self.program[0]
                && !text.get(start).is_some_and(|c| class.takes(*c))
            {
                continue;
            }
            if let Some(found) = machine.try_at(start, must_advance && start == from)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn machine<'a>(&'a self, text: &'a [char]) -> Machine<'a> {
        Machine {
            program: &self.program,
            text,
            slots: vec![None; 2 * self.groups],
            marks: vec![0; self.marks],
            steps: 0,
        }
    }
}

struct Compiler {
    program: Vec<Op>,
    marks: usize,
    /// Nodes visited: copies of nothing cost time although they are no operations.
    visited: usize,
}

fn too_long() -> BadPattern {
    BadPattern("its repeats make it too long".to_owned())
}

impl Compiler {
    fn push(&mut self, op: Op) -> Result<usize, BadPattern> {
        if self.program.len() == PROGRAM {
            return Err(too_long());
        }
        self.program.push(op);
        Ok(self.program.len() - 1)
    }

    fn here(&self) -> usize {
        self.program.len()
    }

    fn node(&mut self, node: &Node) -> Result<(), BadPattern> {
        self.visited += 1;
        if self.visited > 4 * PROGRAM {
            return Err(too_long());
        }
        match node {
            Node::Empty => {}
            Node::One(class) => {
                self.push(Op::One(class.clone()))?;
            }
            Node::At(at) => {
                self.push(Op::At(*at))?;
            }
            Node::Group(number, node) => {
                self.push(Op::Save(2 * number - 2))?;
                self.node(node)?;
                self.push(Op::Save(2 * number - 1))?;
            }
            Node::Concat(nodes) => nodes.iter().try_for_each(|node| self.node(node))?,
            Node::Alternatives(nodes) => {
                let mut ends = Vec::new();
                for (i, node) in nodes.iter().enumerate() {
                    if i + 1 == nodes.len() {
                        self.node(node)?;
                        break;
                    }
                    let split = self.push(Op::Split(0, 0))?;
                    self.node(node)?;
                    ends.push(self.push(Op::Jump(0))?);
                    self.program[split] = Op::Split(split + 1, self.here());
                }
                for end in ends {
                    self.program[end] = Op::Jump(self.here());
                }
            }
            Node::Back(group, fold) => {
                self.push(Op::Back(*group, *fold))?;
            }
            Node::Look {
                ahead,
                negate,
                node,
            } => {
                let back = match ahead {
                    true => 0,
                    false => width(node)
                        .ok_or_else(|| BadPattern("a look-behind without width".into()))?,
                };
                let look = self.push(Op::Accept)?;
                self.node(node)?;
                self.push(Op::Accept)?;
                self.program[look] = Op::Look {
                    back,
                    negate: *negate,
                    out: self.here(),
                };
            }
            Node::Atomic(node) => self.atomic(|compiler| compiler.node(node))?,
            Node::Conditional(group, yes, no) => {
                let condition = self.push(Op::Accept)?;
                self.node(yes)?;
                let end = self.push(Op::Jump(0))?;
                self.program[condition] = Op::Conditional {
                    group: *group,
                    no: self.here(),
                };
                self.node(no)?;
                self.program[end] = Op::Jump(self.here());
            }
            Node::Repeat {
                node,
                min,
                max,
                kind,
            } => self.repeat(node, *min, *max, *kind)?,
        }
        Ok(())
    }

    fn atomic(
        &mut self,
        inside: impl FnOnce(&mut Compiler) -> Result<(), BadPattern>,
    ) -> Result<(), BadPattern> {
        let atomic = self.push(Op::Accept)?;
        inside(self)?;
        self.push(Op::Accept)?;
        self.program[atomic] = Op::Atomic { out: self.here() };
        Ok(())
    }

    fn repeat(
        &mut self,
        node: &Node,
        min: u32,
        max: Option<u32>,
        kind: Kind,
    ) -> Result<(), BadPattern> {
        if let Node::One(class) = node {
            self.push(Op::Many {
                class: class.clone(),
                min: min as usize,
                max: max.map_or(usize::MAX, |max| max as usize),
                kind,
            })?;
            return Ok(());
        }
        if kind == Kind::Possessive {
            return self.atomic(|compiler| compiler.repeat(node, min, max, Kind::Greedy));
        }
        let split = |into: usize, out: usize| match kind {
            Kind::Lazy => Op::Split(out, into),
            _ => Op::Split(into, out),
        };
        for _ in 0..min {
            self.node(node)?;
        }
        let Some(max) = max else {
            let head = self.push(Op::Split(0, 0))?;
            let mark = self.marks;
            self.marks += 1;
            self.push(Op::Mark(mark))?;
            self.node(node)?;
            let progress = self.push(Op::Accept)?;
            self.push(Op::Jump(head))?;
            let out = self.here();
            self.program[progress] = Op::Progress { mark, out };
            self.program[head] = split(head + 1, out);
            return Ok(());
        };
        let mut splits = Vec::new();
        for _ in min..max {
            splits.push(self.push(Op::Split(0, 0))?);
            self.node(node)?;
        }
        let out = self.here();
        for at in splits {
            self.program[at] = split(at + 1, out);
        }
        Ok(())
    }
}

/// Where to go on when the present way leads nowhere, or what to put back before that.
enum Undo {
    Go(usize, usize),
    /// Go on at `pc` with one character less each time, down to `low`.
    Shorter {
        pc: usize,
        low: usize,
        high: usize,
    },
    /// Go on at `pc` with one character more each time, up to `high`, as long as the class before `pc` takes it.
    Longer {
        pc: usize,
        next: usize,
        high: usize,
    },
    Slot(usize, Option<usize>),
    Mark(usize, usize),
}

struct Machine<'a> {
    program: &'a [Op],
    text: &'a [char],
    slots: Vec<Option<usize>>,
    marks: Vec<usize>,
    steps: usize,
}

impl Machine<'_> {
    fn try_at(&mut self, start: usize, must_advance: bool) -> Result<Option<Match>, Endless> {
        self.slots.fill(None);
        let end = self.run(0, start, must_advance.then_some(start))?;
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
                    let wanted = match kind {
                        Kind::Lazy => here.saturating_add(*min).min(most),
                        _ => most,
                    };
                    let mut end = here;
                    while end < wanted && class.takes(text[end]) {
                        end += 1;
                    }
                    self.steps += end - here;
                    if end - here < *min {
                        None
                    } else {
                        match kind {
                            Kind::Greedy if end > here + min => undo.push(Undo::Shorter {
                                pc: pc + 1,
                                low: here + min,
                                high: end - 1,
                            }),
                            Kind::Lazy if end < most => undo.push(Undo::Longer {
                                pc: pc + 1,
                                next: end,
                                high: most,
                            }),
                            _ => {}
                        }
                        here = end;
                        Some(pc + 1)
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
                Undo::Longer { pc, next, high } => {
                    let Op::Many { class, .. } = &self.program[pc - 1] else {
                        unreachable!("only `Many` leaves this");
                    };
                    if class.takes(self.text[next]) {
                        if next + 1 < high {
                            undo.push(Undo::Longer {
                                pc,
                                next: next + 1,
                                high,
                            });
                        }
                        return Some((pc, next + 1));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chars(text: &str) -> Vec<char> {
        text.chars().collect()
    }

    /// `re.findall` as the whole matches.
    fn all(pattern: &str, text: &str) -> Vec<String> {
        let text = chars(text);
        let found = Regex::new(pattern).unwrap().find_all(&text).unwrap();
        found
            .iter()
            .map(|one| text[one.start..one.end].iter().collect())
            .collect()
    }

    #[test]
    fn matches_what_python_matches() {
        // (pattern, text, [m.group() for m in re.finditer(pattern, text)])
        let cases: &[(&str, &str, &[&str])] = &[
            (r"a|ab", "abab", &["a", "a"]),
            (r"a*", "baac", &["", "aa", "", ""]),
            (r"a*?", "aa", &["", "a", "", "a", ""]),
            (r"(?:a|b)*?c", "abcbc", &["abc", "bc"]),
            (r"(a)|b", "ab", &["a", "b"]),
            (r"(\w)\1", "aabbc", &["aa", "bb"]),
            (r"(?i)(\w)\1", "aAbB", &["aA", "bB"]),
            (r"(?<=a)b", "abcb", &["b"]),
            (r"(?<!a)b", "abcb", &["b"]),
            (r"a(?!b)", "abac", &["a"]),
            (r"a++b", "aab", &["aab"]),
            (r"a++ab", "aab", &[]),
            (r"(?>a|ab)c", "abc", &[]),
            (r"(a)?b(?(1)c|d)", "abc bd abd", &["abc", "bd", "bd"]),
            (r"x{2,3}", "xxxxx", &["xxx", "xx"]),
            (r"x{,2}y", "xxxy", &["xxy"]),
            (r"x{a}", "x{a}", &["x{a}"]),
            (r"[]a]+", "]a[", &["]a"]),
            (r"[^\W\d_]+", "ab1c_d", &["ab", "c", "d"]),
            (r"[a-]+", "a-b", &["a-"]),
            (r"(?m)^.*$", "ab\n\ncd", &["ab", "", "cd"]),
            (r"(?m)^\s*-.*$", "-a\n\n -b", &["-a", "\n -b"]),
            (r".$", "ab\n", &["b"]),
            (r".\Z", "ab\n", &[]),
            (r"(?s)a.b", "a\nb", &["a\nb"]),
            (r"(?x) a b # c", "ab", &["ab"]),
            (r"\bé\w*", "été Été", &["été"]),
            (r"(?i)é\w*", "Été", &["Été"]),
            (r"(?i)straße", "STRASSE STRAẞE", &["STRAẞE"]),
            (r"(?i)i", "Iıİi", &["I", "ı", "İ", "i"]),
            (r"(?i)[^k]", "kK\u{212a}x", &["x"]),
            (r"(?i)[H-J]+", "hıJ", &["hıJ"]),
            (r"(?i:A)b", "ab aB", &["ab"]),
            (r"\d+", "3٣ ²", &["3٣"]),
            (r"(?a)\w+", "aé", &["a"]),
            (r"(a*)*", "b", &["", ""]),
            (r"(?:a?)*?b", "aab", &["aab"]),
            (r"(?:(a)|b)*", "abx", &["ab", "", ""]),
            (r"\x41\u0042\103", "ABC", &["ABC"]),
            (
                r#"(?P<q>["']).*?(?P=q)"#,
                r#"'a"' "b""#,
                &["'a\"'", "\"b\""],
            ),
            (r"c(?#comment)d", "cd", &["cd"]),
            (r"", "ab", &["", "", ""]),
            (r"|a", "a", &["", "a", ""]),
            (r"\B", "", &[]),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(all(pattern, text), *expected, "{pattern:?} on {text:?}");
        }
    }

    #[test]
    fn refuses_what_python_refuses() {
        for pattern in [
            "(", ")", "[", "a**", "*a", "+", "?", "a{2}{3}", "(?P<a", "(?P=a)", "\\1", "(\\1)",
            "\\q", "\\", "[b-a]", "[\\w-z]", "x(?i)y", "(?z)", "(?<=a*)b", "a{3,2}", "(?L)a", "^*",
            "(?(1)a)", "\\N{DOG}", "[\\8]", "(?", "(?-:a)", "(?i-)",
        ] {
            assert!(Regex::new(pattern).is_err(), "{pattern:?}");
        }
        // Neither time nor memory for what a stranger may write.
        assert!(Regex::new("((((a|b){1000}){1000}){1000})").is_err());
        assert!(Regex::new("((((((){99999}){99999}){99999}){99999}){99999})").is_err());
        assert!(Regex::new(&"(".repeat(100_000)).is_err());
        let endless = Regex::new("(a|aa)*(a|aa)*(a|aa)*c").unwrap();
        assert!(endless.search(&chars(&"a".repeat(200))).is_err());
    }

    #[test]
    fn templates_put_groups_back() {
        let replaced = |pattern: &str, text: &str, template: &str| {
            let regex = Regex::new(pattern).unwrap();
            regex
                .replace_all(&chars(text), template)
                .unwrap()
                .iter()
                .collect::<String>()
        };
        assert_eq!(replaced("(b)(c)?", "abcab", r"<\1\2>"), "a<bc>a<b>");
        assert_eq!(replaced("-", "a-b", r" \0 "), "a - b");
        assert_eq!(replaced("x*", "abc", "-"), "-a-b-c-");
    }
}
