//! Keys and values of what a sequence has seen, in pages.
//!
//! A page holds 64 tokens of one layer, keys then values, each kv head's together, so that attention reads
//! whole tiles and appending touches only the new tokens. All layers share one table of pages a sequence.

use russet_kernels::attention;
use russet_tensor::ops::CacheView;

use crate::{Config, ModelError};

/// The cache of all layers, for several sequences at once.
pub struct KvCache {
    layers: Vec<Vec<f32>>, // [layer][page · page_stride]
    page_stride: usize,    // floats of a page
    tables: Vec<Vec<u32>>, // [slot] pages in order
    lengths: Vec<usize>,   // [slot] tokens
    free: Vec<u32>,        // pages nobody has
    pages: usize,
}

impl KvCache {
    /// A cache for `slots` sequences of `tokens` tokens in all. The system commits its memory only as it is written.
    pub fn new(config: &Config, slots: usize, tokens: usize) -> KvCache {
        // Each sequence can leave one page half filled.
        let pages = tokens.div_ceil(attention::PAGE_TOKENS) + slots - 1;
        let page_stride = attention::page_len(config.head_shape());
        KvCache {
            layers: (0..config.layers)
                .map(|_| vec![0.0; pages * page_stride])
                .collect(),
            page_stride,
            tables: vec![Vec::new(); slots],
            lengths: vec![0; slots],
            free: (0..pages as u32).rev().collect(),
            pages,
        }
    }

    /// Tokens that the sequence in `slot` has.
    pub fn len(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    /// Whether the sequence in `slot` has no tokens.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.lengths[slot] == 0
    }

    /// Makes room for `tokens` more of the sequence in `slot` and returns how many it had. The next forward pass
    /// must bring exactly these.
    ///
    /// # Errors
    /// When too few pages are free; nothing has changed then.
    pub fn extend(&mut self, slot: usize, tokens: usize) -> Result<usize, ModelError> {
        let past = self.lengths[slot];
        let needed = (past + tokens).div_ceil(attention::PAGE_TOKENS) - self.tables[slot].len();
        if needed > self.free.len() {
            return Err(ModelError::CacheFull {
                capacity: self.pages * attention::PAGE_TOKENS,
            });
        }
        let keep = self.free.len() - needed;
        self.tables[slot].extend(self.free.drain(keep..).rev());
        self.lengths[slot] = past + tokens;
        Ok(past)
    }

    /// Forgets the sequence in `slot` beyond its first `tokens`.
    pub fn truncate(&mut self, slot: usize, tokens: usize) {
        if tokens < self.lengths[slot] {
            let kept = tokens.div_ceil(attention::PAGE_TOKENS);
            self.free.extend(self.tables[slot].drain(kept..).rev());
            self.lengths[slot] = tokens;
        }
    }

    /// One layer's part, for the attention operation.
    pub(crate) fn layer(&mut self, layer: usize) -> CacheView<'_> {
        CacheView {
            arena: &mut self.layers[layer],
            page_stride: self.page_stride,
            tables: &self.tables,
        }
    }
}
