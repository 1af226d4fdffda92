//! A pattern as operations, which the machine runs.

use super::BadPattern;
use super::class::{Class, Fold};
use super::parse::{At, Kind, Node, parse, width};

/// Operations of a pattern at most.
const PROGRAM: usize = 1 << 16;

#[derive(Debug)]
pub enum Op {
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
pub struct Program {
    pub ops: Vec<Op>,
    /// Groups that count.
    pub groups: usize,
    /// Loops whose rounds are watched.
    pub marks: usize,
    /// Whether what can follow depends on the place alone, and not on what groups hold or where a round began.
    pub by_place: bool,
}

/// Reads and compiles a pattern.
pub fn compile(pattern: &str) -> Result<Program, BadPattern> {
    let (node, groups) = parse(pattern)?;
    let mut compiler = Compiler {
        program: Vec::new(),
        marks: 0,
        visited: 0,
    };
    compiler.node(&node)?;
    compiler.push(Op::Accept)?;
    let remembers = |op: &Op| {
        matches!(
            op,
            Op::Back(..) | Op::Conditional { .. } | Op::Progress { .. }
        )
    };
    Ok(Program {
        by_place: !compiler.program.iter().any(remembers),
        ops: compiler.program,
        groups,
        marks: compiler.marks,
    })
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
