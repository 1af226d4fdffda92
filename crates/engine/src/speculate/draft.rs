//! A small model that goes ahead.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use russet_kernels::Pool;
use russet_model::{Decoder, KvCache, KvFormat};
use russet_tensor::{Ctx, Segments, ops};

use super::MOST;
use super::length::{Clock, Lengths, Speculation};
use crate::engine::cache_fits;
use crate::{Error, Propose, Request, RequestId, Result, Sampling, Token};

/// Rows of one pass over what the draft model has not read yet.
const CHUNK: usize = 512;

/// Guesses by a draft model of the same vocabulary, with a cache of its own. It draws as the request does, with the random
/// numbers of the same positions; of a guess that was wrong its cache goes back.
pub struct DraftModel {
    decoder: Arc<Decoder>,
    ctx: Ctx,
    cache: KvCache,
    context: usize,
    free: Vec<usize>, // slots of the cache
    clock: Clock,
    others: usize, // rows of other requests in a step
    requests: HashMap<RequestId, Ahead>,
}

/// One request.
struct Ahead {
    sampling: Sampling,
    lengths: Lengths,
    slot: Option<usize>, // from its first guess on
    read: Vec<u32>,      // what the cache holds
}

impl DraftModel {
    /// A draft model for as many requests at a time as `slots`, of at most `context` tokens each, whose keys and values are kept in
    /// `format`; further ones go without.
    ///
    /// # Errors
    /// When its cache cannot fit this machine, or the format its heads.
    pub fn new(
        decoder: impl Into<Arc<Decoder>>,
        pool: Arc<Pool>,
        slots: usize,
        context: usize,
        format: KvFormat,
    ) -> Result<DraftModel> {
        let decoder = decoder.into();
        if slots == 0 {
            return Err(Error::setting("slots", slots, "at least 1"));
        }
        let context = context.min(decoder.config().context);
        cache_fits(&decoder, format, slots, context)?;
        Ok(DraftModel {
            cache: KvCache::sized(decoder.config(), format, slots, slots * context),
            ctx: Ctx::new(pool),
            decoder,
            context,
            free: (0..slots).rev().collect(),
            clock: Clock::new(),
            others: 0,
            requests: HashMap::new(),
        })
    }

    /// Reads `tokens` on from what the cache holds, and draws the one that follows.
    fn next(&mut self, slot: usize, tokens: &[u32], sampling: &Sampling) -> Result<Token> {
        let past = self
            .cache
            .extend(slot, tokens.len() - self.cache.len(slot))?;
        let rows = &tokens[past..];
        let mut segments = Segments::default();
        segments.push(rows.len(), past, slot);
        let ctx = &mut self.ctx;
        let cache = Some(&mut self.cache);
        let hidden = self.decoder.forward(ctx, rows, &segments, cache); // [N, D]
        let hidden = ops::rows(ctx, &hidden, &[rows.len() - 1]); // [1, D]
        let logits = self.decoder.logits(ctx, &hidden); // [1, V]
        sampling.pick(ctx.pool.isa(), logits.data(), tokens.len() as u64)
    }

    /// Guesses on from `tokens`, in `slot`, where the cache holds the beginning of them. Fewer than `count` where a number is
    /// not finite: the model itself will say so, if it is its fault.
    fn ahead(
        &mut self,
        slot: usize,
        tokens: &[u32],
        count: usize,
        sampling: &Sampling,
    ) -> Vec<u32> {
        let mut known = tokens.to_vec();
        // Catching up is no cost of these guesses: it is paid once, and less often the fewer are made.
        while known.len() - self.cache.len(slot) > CHUNK {
            let end = self.cache.len(slot) + CHUNK;
            if self.next(slot, &known[..end], sampling).is_err() {
                return Vec::new();
            }
        }
        if known.len() - self.cache.len(slot) > MOST + 1
            && self
                .next(slot, &known[..known.len() - 1], sampling)
                .is_err()
        {
            return Vec::new();
        }
        let began = Instant::now();
        while known.len() < tokens.len() + count {
            match self.next(slot, &known, sampling) {
                Ok(token) => known.push(token.id),
                Err(_) => break,
            }
        }
        let guess = known.split_off(tokens.len());
        if !guess.is_empty() {
            self.clock
                .guesses(guess.len(), began.elapsed().as_secs_f64());
        }
        guess
    }
}

impl Propose for DraftModel {
    fn begin(&mut self, id: RequestId, request: &Request) {
        let ahead = Ahead {
            sampling: request.sampling,
            lengths: Lengths::new(MOST),
            slot: None,
            read: Vec::new(),
        };
        self.requests.insert(id, ahead);
    }

    fn propose(&mut self, request: RequestId, tokens: &[u32], most: usize) -> Vec<u32> {
        let vocab = self.decoder.config().vocab;
        let room = self.context.saturating_sub(tokens.len());
        let Some(mut ahead) = self.requests.remove(&request) else {
            return Vec::new(); // it came before this proposer
        };
        ahead.slot = ahead.slot.or_else(|| self.free.pop());
        let mut guess = Vec::new();
        if let Some(slot) = ahead.slot {
            let count = match most.min(room) {
                0 => 0,
                most => ahead.lengths.guesses(&self.clock, self.others).min(most),
            };
            let same = ahead.read.iter().zip(tokens).take_while(|(a, b)| a == b);
            let same = same.count().min(tokens.len() - 1);
            let known = tokens[same..].iter().all(|&token| (token as usize) < vocab);
            if count > 0 && known {
                self.cache.truncate(slot, same);
                guess = self.ahead(slot, tokens, count, &ahead.sampling);
                ahead.read = [tokens, &guess].concat();
                ahead.read.truncate(self.cache.len(slot)); // the last guess was not read
            }
        }
        if guess.is_empty() {
            ahead.lengths.plain();
        }
        self.requests.insert(request, ahead);
        guess
    }

    fn learn(&mut self, request: RequestId, proposed: usize, right: usize) {
        self.clock.right(right);
        if let Some(ahead) = self.requests.get_mut(&request) {
            ahead.lengths.tried(proposed, right);
        }
    }

    fn stepped(&mut self, sequences: usize, rows: usize, seconds: f64) {
        self.clock.step(sequences, rows, seconds);
        self.others = sequences - 1;
    }

    fn end(&mut self, request: RequestId) -> Option<Speculation> {
        let ahead = self.requests.remove(&request)?;
        if let Some(slot) = ahead.slot {
            self.cache.truncate(slot, 0);
            self.free.push(slot);
        }
        Some(ahead.lengths.counted(&self.clock))
    }
}
