//! How much an engine has to do and has done, and whether its books balance.

use russet_model::cache::BLOCK_TOKENS;

use crate::Engine;

/// A moment's numbers, and sums since the engine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that wait, preempted ones among them.
    pub waiting: usize,
    /// Sequences that run.
    pub running: usize,
    /// Blocks of the cache.
    pub blocks: usize,
    /// Blocks that nobody holds.
    pub free_blocks: usize,
    /// Blocks that are kept for requests that begin alike, whoever else holds them.
    pub kept_blocks: usize,
    /// Of those the ones that no sequence holds: they go where blocks are wanted.
    pub idle_blocks: usize,
    /// Forward passes.
    pub steps: u64,
    /// Rows of all passes: prompts, what was generated, and what was computed again or guessed.
    pub rows: u64,
    /// Tokens that sequences found in the cache when they were admitted.
    pub reused_tokens: u64,
    /// Tokens drawn.
    pub generated_tokens: u64,
    /// Tokens that a proposer guessed.
    pub proposed_tokens: u64,
    /// Of those the ones that were right.
    pub accepted_tokens: u64,
    /// Answers that came to an end of their own; not those called off or past their deadline.
    pub finished: u64,
    /// Requests that were not taken in.
    pub refused: u64,
    /// Times that a sequence had to make room.
    pub preemptions: u64,
}

impl Engine {
    /// How much there is, and how much was done.
    pub fn stats(&self) -> Stats {
        let blocks = self.cache.blocks();
        Stats {
            waiting: self.waiting.len(),
            running: self.running.len(),
            blocks: blocks.count(),
            free_blocks: blocks.free(),
            kept_blocks: blocks.kept(),
            idle_blocks: blocks.idle(),
            ..self.stats
        }
    }

    /// Compares what is known in several places, for tests.
    ///
    /// # Panics
    /// When it disagrees.
    pub fn check_invariants(&self) {
        let blocks = self.cache.blocks();
        let mut holders = vec![0; blocks.count()];
        for running in &self.running {
            let table = self.cache.table(running.slot);
            assert_eq!(
                table.len(),
                self.cache.len(running.slot).div_ceil(BLOCK_TOKENS)
            );
            table.iter().for_each(|&block| holders[block as usize] += 1);
        }
        let mut free = vec![0; blocks.count()];
        blocks
            .free_list()
            .iter()
            .for_each(|&b| free[b as usize] += 1);
        let mut kept = 0;
        for (block, &running) in holders.iter().enumerate() {
            let all = blocks.holders(block as u32);
            assert!(all == running || all == running + 1, "block {block}");
            kept += (all - running) as usize;
            assert_eq!(free[block], usize::from(all == 0), "block {block}");
        }
        assert_eq!(kept, blocks.kept());
        self.prefix.check(&self.cache);
        let ranks: Vec<_> = self.running.iter().map(|r| r.sequence.rank()).collect();
        assert!(ranks.is_sorted());
        assert!(ranks.iter().all(|rank| !self.waiting.contains_key(rank)));
        for slot in &self.free_slots {
            assert!(self.cache.is_empty(*slot));
            assert!(self.running.iter().all(|running| running.slot != *slot));
        }
    }
}
