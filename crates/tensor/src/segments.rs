//! Which sequence each of the flat tokens `[N]` belongs to, and which adapters it goes through.

use std::ops::Range;
use std::sync::Arc;

use crate::ops::Adapter;

/// Adapters that act on the same rows, one after another.
pub type Stack = Arc<[Arc<Adapter>]>;

/// A run of neighbouring tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first of its rows in `[N, D]`.
    pub start: usize,
    /// How many rows.
    pub len: usize,
    /// Tokens of the sequence that lie in the cache before this run; 0 without a cache.
    pub past: usize,
    /// The sequence's slot in the cache; meaningless without one.
    pub slot: usize,
}

/// The segments of a batch in order, covering all its tokens. A packed training batch and a batch of
/// sequences being served are both this; tokens attend only within their segment and its past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    segments: Vec<Segment>,
    tokens: usize,
    adapted: Vec<Adapted>, // apart and in order; rows in none have no adapter
}

/// Neighbouring rows that go through the same adapters.
#[derive(Clone)]
pub struct Adapted {
    /// The rows.
    pub rows: Range<usize>,
    /// What they go through.
    pub stack: Stack,
}

/// Whether two stacks are the same adapters in the same order.
fn same(a: &Stack, b: &Stack) -> bool {
    a.len() == b.len() && a.iter().zip(&**b).all(|(a, b)| Arc::ptr_eq(a, b))
}

impl PartialEq for Adapted {
    fn eq(&self, other: &Adapted) -> bool {
        self.rows == other.rows && same(&self.stack, &other.stack)
    }
}

impl Eq for Adapted {}

impl std::fmt::Debug for Adapted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} adapters on rows {:?}", self.stack.len(), self.rows)
    }
}

impl Segments {
    /// Fresh sequences of the given lengths, one after another.
    pub fn packed(lengths: &[usize]) -> Segments {
        let mut all = Segments::default();
        for (slot, &len) in lengths.iter().enumerate() {
            all.push(len, 0, slot);
        }
        all
    }

    /// Adds a run of `len` tokens that continue the sequence in `slot` after its first `past`.
    pub fn push(&mut self, len: usize, past: usize, slot: usize) {
        if len > 0 {
            self.segments.push(Segment {
                start: self.tokens,
                len,
                past,
                slot,
            });
            self.tokens += len;
        }
    }

    /// As [`Segments::push`], through adapters. Runs of one stack should be neighbours: they are multiplied together.
    pub fn push_adapted(&mut self, len: usize, past: usize, slot: usize, stack: &Stack) {
        let rows = self.tokens..self.tokens + len;
        self.push(len, past, slot);
        match self.adapted.last_mut() {
            _ if stack.is_empty() || len == 0 => {}
            Some(last) if last.rows.end == rows.start && same(&last.stack, stack) => {
                last.rows.end = rows.end;
            }
            _ => self.adapted.push(Adapted {
                rows,
                stack: stack.clone(),
            }),
        }
    }

    /// The rows that go through adapters, apart and in order.
    pub fn adapted(&self) -> &[Adapted] {
        &self.adapted
    }

    /// The runs, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Segment> {
        self.segments.iter()
    }

    /// How many tokens, N.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Each token's place in its sequence, `[N]`.
    pub fn positions(&self) -> Vec<u32> {
        self.segments
            .iter()
            .flat_map(|s| (s.past..s.past + s.len).map(|p| p as u32))
            .collect()
    }
}
