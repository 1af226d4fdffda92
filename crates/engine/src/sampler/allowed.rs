//! A set of tokens: what a guide allows at one place.

/// Token ids, one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    words: Vec<u32>, // token t is bit t % 32 of word t / 32
}

impl Allowed {
    /// A set from its bits: token t is bit t % 32 of word t / 32.
    pub fn from_words(words: Vec<u32>) -> Allowed {
        Allowed { words }
    }

    /// The set of these tokens.
    pub fn of(ids: &[u32]) -> Allowed {
        let words = ids.iter().max().map_or(0, |&id| id as usize / 32 + 1);
        let mut set = Allowed {
            words: vec![0; words],
        };
        for &id in ids {
            set.words[id as usize / 32] |= 1 << (id % 32);
        }
        set
    }

    /// Whether the token is in it.
    pub fn has(&self, id: u32) -> bool {
        let word = self.words.get(id as usize / 32).copied().unwrap_or(0);
        word >> (id % 32) & 1 == 1
    }

    /// How many tokens are in it.
    pub fn count(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// Its tokens below `vocab`, rising.
    pub fn ids(&self, vocab: usize) -> impl Iterator<Item = u32> + '_ {
        let words = self.words.iter().zip(0..);
        words
            .flat_map(|(&word, place): (&u32, u32)| {
                // Each round clears the lowest bit.
                std::iter::successors(Some(word), |left| Some(left & left.wrapping_sub(1)))
                    .take_while(|&left| left != 0)
                    .map(move |left| 32 * place + left.trailing_zeros())
            })
            .take_while(move |&id| (id as usize) < vocab)
    }
}
