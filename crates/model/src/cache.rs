//! Keys and values of what sequences have seen, in a pool of blocks whose number never changes.
//!
//! A block is 64 tokens of every layer that has keys and values of its own; layers that share them read those of the layer that has
//! them. In each layer it is one page: keys then values, each kv head's together, so that
//! attention reads whole tiles and appending touches only the new tokens. All layers share one table of blocks a sequence.
//!
//! ```text
//! slot 0  [ 7 ][ 2 ][ 9 ]        a block that several hold is counted; the first that would
//! slot 1  [ 7 ][ 2 ][ 4 ]        write into it gets a copy of its own
//! kept      7    2               whoever keeps blocks beyond their sequences is another holder
//! ```
//!
//! [`Blocks`] counts and knows nothing of numbers; `Pages` has the numbers and knows nothing of sequences, so another format
//! of theirs changes nobody else. Which blocks are worth keeping is the engine's business.

use russet_kernels::attention::{self, KvFormat};
use russet_tensor::ops::{CachePages, CacheView};

use crate::{Config, ModelError};

/// Tokens of a block.
pub const BLOCK_TOKENS: usize = attention::PAGE_TOKENS;

/// The cache of all layers with keys and values of their own, for several sequences at once.
pub struct KvCache {
    blocks: Blocks,
    pages: Pages,
    tables: Vec<Vec<u32>>, // [slot] blocks in order
    lengths: Vec<usize>,   // [slot] tokens
}

impl KvCache {
    /// A cache for `slots` sequences of `tokens` tokens in all. The system commits its memory only as it is written.
    pub fn new(config: &Config, slots: usize, tokens: usize) -> KvCache {
        KvCache::sized(config, KvFormat::F32, slots, tokens)
    }

    /// As [`KvCache::new`], kept in `format`.
    pub fn sized(config: &Config, format: KvFormat, slots: usize, tokens: usize) -> KvCache {
        // Each sequence can leave one block half filled.
        let blocks = tokens.div_ceil(BLOCK_TOKENS) + slots - 1;
        KvCache::of_format(config, format, slots, blocks)
    }

    /// A cache for `slots` sequences of `blocks` blocks in all, in `f32`.
    pub fn with_blocks(config: &Config, slots: usize, blocks: usize) -> KvCache {
        KvCache::of_format(config, KvFormat::F32, slots, blocks)
    }

    /// A cache for `slots` sequences of `blocks` blocks in all.
    pub fn of_format(config: &Config, format: KvFormat, slots: usize, blocks: usize) -> KvCache {
        KvCache {
            blocks: Blocks::new(blocks),
            pages: Pages::new(config, format, blocks),
            tables: vec![Vec::new(); slots],
            lengths: vec![0; slots],
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(config: &Config, format: KvFormat) -> usize {
        config.kv_layers() * format.page_bytes(config.head_shape())
    }

    /// Tokens that the sequence in `slot` has.
    pub fn len(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    /// Whether the sequence in `slot` has no tokens.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.lengths[slot] == 0
    }

    /// The blocks of the sequence in `slot`, in order.
    pub fn table(&self, slot: usize) -> &[u32] {
        &self.tables[slot]
    }

    /// How many blocks there are, how many nobody holds, who holds which.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Whether the next token of `slot` goes into a block that somebody else holds too.
    fn must_copy(&self, slot: usize) -> bool {
        let partial = !self.lengths[slot].is_multiple_of(BLOCK_TOKENS);
        let last = self.tables[slot].last();
        partial && last.is_some_and(|&block| self.blocks.holders(block) > 1)
    }

    /// Makes room for `tokens` more of the sequence in `slot` and returns how many it had. The next forward pass
    /// must bring exactly these.
    ///
    /// # Errors
    /// When too few blocks are free; nothing has changed then.
    pub fn extend(&mut self, slot: usize, tokens: usize) -> Result<usize, ModelError> {
        let past = self.lengths[slot];
        let copy = tokens > 0 && self.must_copy(slot);
        let grown = (past + tokens).div_ceil(BLOCK_TOKENS) - self.tables[slot].len();
        if grown + usize::from(copy) > self.blocks.free() {
            return Err(ModelError::CacheFull {
                capacity: self.blocks.count() * BLOCK_TOKENS,
            });
        }
        if copy {
            let own = self.blocks.take();
            let last = self.tables[slot].last_mut().expect("what must be copied");
            let shared = std::mem::replace(last, own);
            self.pages.copy(shared, own);
            self.blocks.release(shared);
        }
        for _ in 0..grown {
            let block = self.blocks.take();
            self.tables[slot].push(block);
        }
        self.lengths[slot] = past + tokens;
        Ok(past)
    }

    /// Forgets the sequence in `slot` beyond its first `tokens`.
    pub fn truncate(&mut self, slot: usize, tokens: usize) {
        if tokens < self.lengths[slot] {
            let kept = tokens.div_ceil(BLOCK_TOKENS);
            for block in self.tables[slot].drain(kept..).rev() {
                self.blocks.release(block);
            }
            self.lengths[slot] = tokens;
        }
    }

    /// Lets the empty `slot` begin with the first `tokens` of `blocks`, which it holds from now on beside others.
    ///
    /// # Panics
    /// When the slot is not empty, or `tokens` do not end in the last of the blocks.
    pub fn share(&mut self, slot: usize, blocks: &[u32], tokens: usize) {
        assert!(self.is_empty(slot), "slot {slot} holds a sequence already");
        assert_eq!(
            tokens.div_ceil(BLOCK_TOKENS),
            blocks.len(),
            "{tokens} tokens"
        );
        for &block in blocks {
            self.blocks.hold(block);
        }
        self.tables[slot].extend_from_slice(blocks);
        self.lengths[slot] = tokens;
    }

    /// Replaces the block at `index` of the sequence in `slot` by one that holds the same tokens, computed elsewhere.
    pub fn replace(&mut self, slot: usize, index: usize, block: u32) {
        self.blocks.hold(block);
        let own = std::mem::replace(&mut self.tables[slot][index], block);
        self.blocks.release(own);
    }

    /// Keeps a block beyond the sequences that hold it, until [`KvCache::drop_kept`].
    ///
    /// # Panics
    /// When nobody holds it, or it is kept already.
    pub fn keep(&mut self, block: u32) {
        self.blocks.keep(block);
    }

    /// Ends [`KvCache::keep`].
    ///
    /// # Panics
    /// When the block is not kept.
    pub fn drop_kept(&mut self, block: u32) {
        self.blocks.drop_kept(block);
    }

    /// The part of a layer that has keys and values, for the attention operation.
    pub(crate) fn layer(&mut self, layer: usize) -> CacheView<'_> {
        self.pages.layer(layer, &self.tables)
    }
}

/// The numbers: a page a block and layer with keys.
enum Pages {
    F32 {
        layers: Vec<Vec<f32>>, // [layer][block · stride]
        stride: usize,         // floats of a page
    },
    F16 {
        layers: Vec<Vec<u16>>, // bits: the system hands out zeros of integers without touching them
        stride: usize,
    },
    Int8 {
        layers: Vec<(Vec<i8>, Vec<f32>)>, // [layer] numbers and scales, [block · stride] each
        strides: (usize, usize),
    },
}

impl Pages {
    fn new(config: &Config, format: KvFormat, blocks: usize) -> Pages {
        let shape = config.head_shape();
        let layers = 0..config.kv_layers();
        match format {
            KvFormat::F32 => {
                let stride = attention::page_len(shape);
                Pages::F32 {
                    layers: layers.map(|_| vec![0.0; blocks * stride]).collect(),
                    stride,
                }
            }
            KvFormat::F16 => {
                let stride = attention::page_len(shape);
                Pages::F16 {
                    layers: layers.map(|_| vec![0; blocks * stride]).collect(),
                    stride,
                }
            }
            KvFormat::Int8 => {
                let strides = (attention::page8_len(shape), attention::page8_scales(shape));
                let layer = |_| (vec![0; blocks * strides.0], vec![0.0; blocks * strides.1]);
                Pages::Int8 {
                    layers: layers.map(layer).collect(),
                    strides,
                }
            }
        }
    }

    fn copy(&mut self, from: u32, to: u32) {
        fn within<T: Copy>(numbers: &mut [T], stride: usize, from: u32, to: u32) {
            let (from, to) = (from as usize * stride, to as usize * stride);
            numbers.copy_within(from..from + stride, to);
        }
        match self {
            Pages::F32 { layers, stride } => {
                for layer in layers {
                    within(layer, *stride, from, to);
                }
            }
            Pages::F16 { layers, stride } => {
                for layer in layers {
                    within(layer, *stride, from, to);
                }
            }
            Pages::Int8 { layers, strides } => {
                for (numbers, scales) in layers {
                    within(numbers, strides.0, from, to);
                    within(scales, strides.1, from, to);
                }
            }
        }
    }

    fn layer<'a>(&'a mut self, layer: usize, tables: &'a [Vec<u32>]) -> CacheView<'a> {
        let pages = match self {
            Pages::F32 { layers, stride } => CachePages::F32 {
                arena: &mut layers[layer],
                stride: *stride,
            },
            Pages::F16 { layers, .. } => CachePages::F16 {
                arena: bytemuck::cast_slice_mut(&mut layers[layer]),
            },
            Pages::Int8 { layers, .. } => {
                let (numbers, scales) = &mut layers[layer];
                CachePages::Int8 { numbers, scales }
            }
        };
        CacheView { pages, tables }
    }
}

/// Who holds which block.
pub struct Blocks {
    holders: Vec<u32>, // [block] sequences that have it, and one more where it is kept
    kept: Vec<bool>,   // [block]
    free: Vec<u32>,    // blocks without holders
    idle: usize,       // blocks that are kept and have no other holder
    kept_count: usize,
}

impl Blocks {
    fn new(count: usize) -> Blocks {
        Blocks {
            holders: vec![0; count],
            kept: vec![false; count],
            free: (0..count as u32).rev().collect(),
            idle: 0,
            kept_count: 0,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.holders.len()
    }

    /// How many nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many are kept.
    pub fn kept(&self) -> usize {
        self.kept_count
    }

    /// How many are kept and have no other holder: what could be had by keeping less.
    pub fn idle(&self) -> usize {
        self.idle
    }

    /// How many hold `block`, whoever keeps it among them.
    pub fn holders(&self, block: u32) -> u32 {
        self.holders[block as usize]
    }

    /// Whether `block` is kept and has no other holder.
    pub fn is_idle(&self, block: u32) -> bool {
        self.kept[block as usize] && self.holders(block) == 1
    }

    /// The blocks that nobody holds.
    pub fn free_list(&self) -> &[u32] {
        &self.free
    }

    fn take(&mut self) -> u32 {
        let block = self.free.pop().expect("a block is free");
        self.holders[block as usize] = 1;
        block
    }

    fn hold(&mut self, block: u32) {
        assert!(self.holders(block) > 0, "block {block} is free");
        self.idle -= usize::from(self.is_idle(block));
        self.holders[block as usize] += 1;
    }

    fn release(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders = holders.checked_sub(1).expect("a holder lets go once");
        if *holders == 0 {
            assert!(!self.kept[block as usize], "block {block} is kept");
            self.free.push(block);
        }
        self.idle += usize::from(self.is_idle(block));
    }

    fn keep(&mut self, block: u32) {
        assert!(!self.kept[block as usize], "block {block} is kept already");
        self.hold(block);
        self.kept[block as usize] = true;
        self.kept_count += 1;
    }

    fn drop_kept(&mut self, block: u32) {
        assert!(self.kept[block as usize], "block {block} is not kept");
        self.idle -= usize::from(self.is_idle(block));
        self.kept[block as usize] = false;
        self.kept_count -= 1;
        self.release(block);
    }
}
