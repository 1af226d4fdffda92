//! Which sequence each of the flat tokens `[N]` belongs to.

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
