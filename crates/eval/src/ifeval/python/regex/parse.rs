//! A pattern of Python's `re` as a tree. What Python refuses is refused, with its words.

use super::super::is_word;
use super::BadPattern;
use super::class::{Class, Fold, Item};

/// Groups in groups; deeper ones are nobody's keyword.
const DEPTH: usize = 50;

/// The most that a counted repeat may ask for.
const COUNT: u32 = 1 << 20;

/// A piece of a pattern.
#[derive(Clone, Debug)]
pub enum Node {
    Empty,
    One(Class),
    At(At),
    /// A group that counts, by its number from 1.
    Group(usize, Box<Node>),
    Concat(Vec<Node>),
    Alternatives(Vec<Node>),
    Repeat {
        node: Box<Node>,
        min: u32,
        /// None without bound.
        max: Option<u32>,
        kind: Kind,
    },
    Back(usize, Fold),
    Look {
        ahead: bool,
        negate: bool,
        node: Box<Node>,
    },
    Atomic(Box<Node>),
    Conditional(usize, Box<Node>, Box<Node>),
}

/// Places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Start,
    LineStart,
    /// `$`: the end, or before a line feed that ends the text.
    End,
    LineEnd,
    /// `\Z`.
    VeryEnd,
    Boundary {
        negate: bool,
        ascii: bool,
    },
}

/// What a repeat does with more than it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Greedy,
    Lazy,
    Possessive,
}

/// The tree of a pattern, and how many groups it counts.
pub fn parse(pattern: &str) -> Result<(Node, usize), BadPattern> {
    let mut parser = Parser {
        chars: pattern.chars().collect(),
        at: 0,
        flags: Flags::default(),
        groups: Vec::new(),
        names: Vec::new(),
        depth: 0,
        empty_so_far: true,
    };
    let node = parser.alternatives()?;
    match parser.peek() {
        None => Ok((node, parser.groups.len())),
        Some(_) => Err(parser.bad("unbalanced parenthesis")),
    }
}

#[derive(Clone, Copy, Default)]
struct Flags {
    ignore_case: bool,
    multiline: bool,
    dot_all: bool,
    verbose: bool,
    ascii: bool,
}

impl Flags {
    fn fold(self) -> Fold {
        match (self.ignore_case, self.ascii) {
            (false, _) => Fold::None,
            (true, false) => Fold::Unicode,
            (true, true) => Fold::Ascii,
        }
    }
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    flags: Flags,
    /// Of each group that counts, whether it is closed.
    groups: Vec<bool>,
    names: Vec<(String, usize)>,
    depth: usize,
    /// Nothing but flags stands before this place: flags of the whole pattern may.
    empty_so_far: bool,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn eat(&mut self, wanted: char) -> bool {
        let there = self.peek() == Some(wanted);
        self.at += usize::from(there);
        there
    }

    fn next(&mut self, missing: &str) -> Result<char, BadPattern> {
        let c = self.peek().ok_or_else(|| self.bad(missing))?;
        self.at += 1;
        Ok(c)
    }

    fn bad(&self, what: &str) -> BadPattern {
        BadPattern(format!("{what} at position {}", self.at))
    }

    fn alternatives(&mut self) -> Result<Node, BadPattern> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.bad("too many groups in groups"));
        }
        let mut branches = vec![self.concat()?];
        while self.eat('|') {
            self.empty_so_far = false;
            branches.push(self.concat()?);
        }
        self.depth -= 1;
        Ok(match branches.len() {
            1 => branches.remove(0),
            _ => Node::Alternatives(branches),
        })
    }

    fn concat(&mut self) -> Result<Node, BadPattern> {
        let mut items: Vec<Node> = Vec::new();
        while let Some(c) = self.peek() {
            if matches!(c, '|' | ')') {
                break;
            }
            self.at += 1;
            if self.flags.verbose && (c.is_ascii_whitespace() || c == '\u{b}') {
                continue;
            }
            if self.flags.verbose && c == '#' {
                while self.peek().is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
                continue;
            }
            match c {
                '*' | '+' | '?' => self.repeat(&mut items, c)?,
                '{' => match self.counts()? {
                    Some(counts) => self.repeated(&mut items, counts)?,
                    None => items.push(self.literal('{')),
                },
                _ => items.extend(self.item(c)?),
            }
            self.empty_so_far &= items.is_empty();
        }
        Ok(match items.len() {
            0 => Node::Empty,
            1 => items.remove(0),
            _ => Node::Concat(items),
        })
    }

    fn literal(&self, c: char) -> Node {
        Node::One(Class::literal(c, self.flags.fold()))
    }

    /// One thing that may be repeated; nothing where it was a comment or flags.
    fn item(&mut self, c: char) -> Result<Option<Node>, BadPattern> {
        let multiline = self.flags.multiline;
        Ok(Some(match c {
            '.' => Node::One(match self.flags.dot_all {
                true => Class::Any,
                false => Class::NotLineFeed,
            }),
            '^' if multiline => Node::At(At::LineStart),
            '^' => Node::At(At::Start),
            '$' if multiline => Node::At(At::LineEnd),
            '$' => Node::At(At::End),
            '(' => return self.group(),
            '[' => Node::One(self.set()?),
            '\\' => self.escape()?,
            _ => self.literal(c),
        }))
    }

    /// `{m}`, `{m,}`, `{,n}`, `{m,n}` behind the bracket, or nothing where it stands for itself.
    fn counts(&mut self) -> Result<Option<(u32, Option<u32>)>, BadPattern> {
        let begin = self.at;
        let low = self.digits();
        let (comma, high) = match self.eat(',') {
            true => (true, self.digits()),
            false => (false, String::new()),
        };
        if !self.eat('}') || (!comma && low.is_empty()) {
            self.at = begin;
            return Ok(None);
        }
        let number = |digits: &str| {
            let number = digits.parse::<u32>().ok().filter(|number| *number <= COUNT);
            number.ok_or_else(|| BadPattern(format!("the repeat {digits} is too large")))
        };
        let min = match low.is_empty() {
            true => 0,
            false => number(&low)?,
        };
        let max = match (comma, high.is_empty()) {
            (false, _) => Some(min),
            (true, true) => None,
            (true, false) => Some(number(&high)?),
        };
        match max {
            Some(max) if max < min => Err(self.bad("min repeat greater than max repeat")),
            _ => Ok(Some((min, max))),
        }
    }

    fn digits(&mut self) -> String {
        let mut digits = String::new();
        while let Some(c) = self.peek().filter(char::is_ascii_digit) {
            digits.push(c);
            self.at += 1;
        }
        digits
    }

    fn repeat(&mut self, items: &mut Vec<Node>, sign: char) -> Result<(), BadPattern> {
        let counts = match sign {
            '*' => (0, None),
            '+' => (1, None),
            _ => (0, Some(1)),
        };
        self.repeated(items, counts)
    }

    fn repeated(
        &mut self,
        items: &mut Vec<Node>,
        (min, max): (u32, Option<u32>),
    ) -> Result<(), BadPattern> {
        let node = match items.pop() {
            None | Some(Node::At(_) | Node::Empty) => return Err(self.bad("nothing to repeat")),
            Some(Node::Repeat { .. }) => return Err(self.bad("multiple repeat")),
            Some(node) => Box::new(node),
        };
        let kind = if self.eat('?') {
            Kind::Lazy
        } else if self.eat('+') {
            Kind::Possessive
        } else {
            Kind::Greedy
        };
        items.push(Node::Repeat {
            node,
            min,
            max,
            kind,
        });
        Ok(())
    }

    /// What follows `(`.
    fn group(&mut self) -> Result<Option<Node>, BadPattern> {
        let unended = "missing ), unterminated subpattern";
        let outer = self.flags;
        if !self.eat('?') {
            return self.counted(None).map(Some);
        }
        let c = self.next("unexpected end of pattern")?;
        let node = match c {
            'P' => match self.next("unexpected end of pattern")? {
                '<' => {
                    let name = self.name('>')?;
                    return self.counted(Some(name)).map(Some);
                }
                '=' => {
                    let name = self.name(')')?;
                    let group = self.named(&name)?;
                    return self.back(group).map(Some);
                }
                other => return Err(self.bad(&format!("unknown extension ?P{other}"))),
            },
            '#' => {
                while self.next("missing ), unterminated comment")? != ')' {}
                return Ok(None);
            }
            ':' => self.alternatives()?,
            '>' => Node::Atomic(Box::new(self.alternatives()?)),
            '=' | '!' => self.look(true, c == '!')?,
            '<' => match self.next("unexpected end of pattern")? {
                sign @ ('=' | '!') => self.look(false, sign == '!')?,
                other => return Err(self.bad(&format!("unknown extension ?<{other}"))),
            },
            '(' => {
                let name = self.name(')')?;
                let group = match name.parse::<usize>() {
                    Ok(number) if number >= 1 && number <= self.groups.len() => number,
                    Ok(_) => return Err(self.bad("invalid group reference")),
                    Err(_) => self.named(&name)?,
                };
                let yes = self.branch()?;
                let no = match self.eat('|') {
                    true => self.branch()?,
                    false => Node::Empty,
                };
                if self.peek() == Some('|') {
                    return Err(self.bad("conditional backref with more than two branches"));
                }
                Node::Conditional(group, Box::new(yes), Box::new(no))
            }
            'a' | 'i' | 'L' | 'm' | 's' | 'u' | 'x' | '-' => {
                self.at -= 1;
                match self.flag_letters()? {
                    true => return Ok(None),
                    false => self.alternatives()?,
                }
            }
            other => return Err(self.bad(&format!("unknown extension ?{other}"))),
        };
        self.flags = outer;
        match self.eat(')') {
            // A group that does not count is one thing: `(?:a*)*` is no repeat of a repeat.
            true => Ok(Some(match node {
                node @ (Node::Repeat { .. } | Node::At(_) | Node::Empty) => {
                    Node::Concat(vec![node])
                }
                node => node,
            })),
            false => Err(self.bad(unended)),
        }
    }

    fn branch(&mut self) -> Result<Node, BadPattern> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.bad("too many groups in groups"));
        }
        self.empty_so_far = false;
        let node = self.concat();
        self.depth -= 1;
        node
    }

    fn look(&mut self, ahead: bool, negate: bool) -> Result<Node, BadPattern> {
        let node = Box::new(self.alternatives()?);
        if !ahead && width(&node).is_none() {
            return Err(self.bad("look-behind requires fixed-width pattern"));
        }
        Ok(Node::Look {
            ahead,
            negate,
            node,
        })
    }

    /// A group that counts, behind its opening.
    fn counted(&mut self, name: Option<String>) -> Result<Node, BadPattern> {
        let outer = self.flags;
        self.groups.push(false);
        let number = self.groups.len();
        if let Some(name) = name {
            if self.names.iter().any(|(other, _)| *other == name) {
                return Err(self.bad(&format!("redefinition of group name {name:?}")));
            }
            self.names.push((name, number));
        }
        self.empty_so_far = false;
        let node = self.alternatives()?;
        if !self.eat(')') {
            return Err(self.bad("missing ), unterminated subpattern"));
        }
        self.flags = outer;
        self.groups[number - 1] = true;
        Ok(Node::Group(number, Box::new(node)))
    }

    fn name(&mut self, end: char) -> Result<String, BadPattern> {
        let mut name = String::new();
        loop {
            match self.next("missing group name")? {
                c if c == end => break,
                c => name.push(c),
            }
        }
        let fine = name.chars().all(is_word) && !name.is_empty();
        fine.then_some(name)
            .ok_or_else(|| self.bad("bad character in group name"))
    }

    fn named(&self, name: &str) -> Result<usize, BadPattern> {
        let found = self.names.iter().find(|(other, _)| other == name);
        found
            .map(|(_, number)| *number)
            .ok_or_else(|| self.bad(&format!("unknown group name {name:?}")))
    }

    fn back(&self, group: usize) -> Result<Node, BadPattern> {
        match self.groups.get(group.wrapping_sub(1)) {
            Some(true) => Ok(Node::Back(group, self.flags.fold())),
            Some(false) => Err(self.bad("cannot refer to an open group")),
            None => Err(self.bad(&format!("invalid group reference {group}"))),
        }
    }

    /// Letters behind `(?`; true where they were of the whole pattern, `(?i)`, false where a group follows, `(?i:`.
    fn flag_letters(&mut self) -> Result<bool, BadPattern> {
        let (mut on, mut any, outermost) = (true, false, self.depth == 1 && self.empty_so_far);
        loop {
            let c = self.next("missing -, : or )")?;
            match c {
                'i' => self.flags.ignore_case = on,
                'm' => self.flags.multiline = on,
                's' => self.flags.dot_all = on,
                'x' => self.flags.verbose = on,
                'a' if on => self.flags.ascii = true,
                'u' if on => self.flags.ascii = false,
                '-' if on => on = false,
                ':' if on || any => return Ok(false),
                ')' if on && any && outermost => return Ok(true),
                ')' if on && any => {
                    return Err(self.bad("global flags not at the start of the expression"));
                }
                'L' => {
                    return Err(
                        self.bad("bad inline flags: cannot use 'L' flag with a str pattern")
                    );
                }
                _ => return Err(self.bad("unknown flag")),
            }
            any = c != '-';
        }
    }

    /// What follows a backslash outside a set.
    fn escape(&mut self) -> Result<Node, BadPattern> {
        let c = self.next("bad escape (end of pattern)")?;
        let ascii = self.flags.ascii;
        Ok(match c {
            'A' => Node::At(At::Start),
            'Z' => Node::At(At::VeryEnd),
            'b' | 'B' => Node::At(At::Boundary {
                negate: c == 'B',
                ascii,
            }),
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => Node::One(Class::category(c, ascii)),
            '0' => self.octal(0, 2),
            '1'..='9' => {
                let first = c as u32 - '0' as u32;
                let Some(second) = self.peek().filter(char::is_ascii_digit) else {
                    return self.back(first as usize);
                };
                let third = self.chars.get(self.at + 1).copied();
                let octal = |c: char| ('0'..='7').contains(&c);
                if octal(c) && octal(second) && third.is_some_and(octal) {
                    return match first > 3 {
                        true => Err(self.bad("octal escape value outside of range 0-0o377")),
                        false => Ok(self.octal(first, 2)),
                    };
                }
                self.at += 1;
                return self.back((first * 10 + second as u32 - '0' as u32) as usize);
            }
            c => {
                let c = self.character(c)?;
                self.literal(c)
            }
        })
    }

    fn octal(&mut self, mut value: u32, most: usize) -> Node {
        for _ in 0..most {
            let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else {
                break;
            };
            value = value * 8 + digit;
            self.at += 1;
        }
        self.literal(char::from_u32(value).unwrap_or('\0'))
    }

    /// An escaped character that is the same in and outside a set.
    fn character(&mut self, c: char) -> Result<char, BadPattern> {
        Ok(match c {
            'a' => '\u{7}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            'x' => self.hexadecimal(2)?,
            'u' => self.hexadecimal(4)?,
            'U' => self.hexadecimal(8)?,
            c if c.is_ascii_alphabetic() => return Err(self.bad(&format!("bad escape \\{c}"))),
            c => c,
        })
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<char, BadPattern> {
        let mut value = 0u32;
        for _ in 0..digits {
            let digit = self.peek().and_then(|c| c.to_digit(16));
            value = digit
                .and_then(|digit| value.checked_mul(16)?.checked_add(digit))
                .ok_or_else(|| self.bad("incomplete escape"))?;
            self.at += 1;
        }
        char::from_u32(value).ok_or_else(|| self.bad("bad escape: no character"))
    }

    /// What follows `[`.
    fn set(&mut self) -> Result<Class, BadPattern> {
        let unended = "unterminated character set";
        let negate = self.eat('^');
        let mut items = Vec::new();
        let mut first = true;
        loop {
            let c = self.next(unended)?;
            if c == ']' && !first {
                break;
            }
            first = false;
            let low = self.set_item(c)?;
            if self.peek() != Some('-') {
                items.push(low);
                continue;
            }
            self.at += 1;
            let c = self.next(unended)?;
            if c == ']' {
                items.extend([low, Item::range('-', '-')]);
                break;
            }
            match (low, self.set_item(c)?) {
                (Item::Range(low, same), Item::Range(high, _)) if low == same && low <= high => {
                    items.push(Item::Range(low, high));
                }
                _ => return Err(self.bad("bad character range")),
            }
        }
        Ok(Class::set(items, negate, self.flags.fold()))
    }

    fn set_item(&mut self, c: char) -> Result<Item, BadPattern> {
        if c != '\\' {
            return Ok(Item::range(c, c));
        }
        let c = self.next("bad escape (end of pattern)")?;
        let c = match c {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => {
                return Ok(Item::category(c, self.flags.ascii));
            }
            'b' => '\u{8}',
            '0'..='7' => {
                let mut value = c as u32 - '0' as u32;
                for _ in 0..2 {
                    if let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) {
                        value = value * 8 + digit;
                        self.at += 1;
                    }
                }
                match char::from_u32(value) {
                    Some(c) if value <= 0o377 => c,
                    _ => return Err(self.bad("octal escape value outside of range 0-0o377")),
                }
            }
            '8' | '9' => return Err(self.bad(&format!("bad escape \\{c}"))),
            c => self.character(c)?,
        };
        Ok(Item::range(c, c))
    }
}

/// The characters that a piece takes, where that is always the same number.
pub fn width(node: &Node) -> Option<usize> {
    match node {
        Node::Empty | Node::At(_) | Node::Look { .. } => Some(0),
        Node::One(_) => Some(1),
        Node::Group(_, node) | Node::Atomic(node) => width(node),
        Node::Concat(nodes) => nodes
            .iter()
            .try_fold(0usize, |sum, node| sum.checked_add(width(node)?)),
        Node::Alternatives(nodes) => {
            let first = width(nodes.first()?)?;
            let same = nodes.iter().all(|node| width(node) == Some(first));
            same.then_some(first)
        }
        Node::Repeat { node, min, max, .. } if *max == Some(*min) => {
            width(node)?.checked_mul(*min as usize)
        }
        Node::Repeat { .. } | Node::Back(..) => None,
        Node::Conditional(_, yes, no) => width(yes).filter(|yes| width(no) == Some(*yes)),
    }
}
