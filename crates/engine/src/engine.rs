//! The engine: sequences in slots of one cache, continued in lock step.
//!
//! Every step runs one forward pass over one row of each sequence that is generating and, in what is left of
//! `prefill_chunk` rows, the next rows of prompts. Only rows that a token is drawn from meet the vocabulary. When a
//! sequence ends its slot goes to the next request in line, in the middle of the batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use russet_kernels::Pool;
use russet_model::{Decoder, KvCache};
use russet_tensor::{Ctx, Segments, ops};

use crate::{Error, Finish, Flow, Generate, Generation, Request, Result, Token};

/// How much an engine holds and does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// The most tokens of one sequence, prompt and answer together: 2 at least, at most the model's context.
    pub context: usize,
    /// How many sequences run at once, at least 1. The cache has room for a full context of each.
    pub slots: usize,
    /// The most rows of one forward pass while prompts are read, at least 1: bounds the memory of activations.
    pub prefill_chunk: usize,
    /// What is kept of a sequence that has ended.
    pub reuse: Reuse,
}

/// Whether a prompt may begin with what a slot still holds of an earlier sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// No: every prompt is computed whole, so no answer depends on earlier ones.
    Never,
    /// Yes, the longest beginning that is the same token by token. A chat passes its whole conversation each turn and
    /// pays for the new tokens only. The answer is the same to the bit, since a row's keys and values do not depend on
    /// the pass that they came from.
    Prefix,
}

impl EngineConfig {
    /// `slots` sequences of `context` tokens, prompts read 512 rows at a time, nothing reused.
    pub fn new(context: usize, slots: usize) -> EngineConfig {
        EngineConfig {
            context,
            slots,
            prefill_chunk: 512,
            reuse: Reuse::Never,
        }
    }

    fn check(&self, decoder: &Decoder) -> Result<()> {
        let most = decoder.config().context;
        if most < 2 {
            return Err(Error::NoRoom { context: most });
        }
        if !(2..=most).contains(&self.context) {
            return Err(Error::setting(
                "context",
                self.context,
                format!("from 2 to {most}, the context of the model"),
            ));
        }
        for (setting, value) in [("slots", self.slots), ("prefill_chunk", self.prefill_chunk)] {
            if value == 0 {
                return Err(Error::setting(setting, value, "at least 1"));
            }
        }
        cache_fits(decoder, self.slots, self.context)
    }
}

/// Whether a cache of `slots` sequences of `context` tokens can be had. Refused here with a sentence, one beyond all
/// memory would otherwise end the process.
pub(crate) fn cache_fits(decoder: &Decoder, slots: usize, context: usize) -> Result<()> {
    let page = russet_kernels::attention::PAGE_TOKENS as u128;
    let padded = (context as u128).next_multiple_of(page);
    let bytes =
        (slots as u128 * padded).saturating_mul(decoder.config().cache_bytes_per_token() as u128);
    let mut probe: Vec<u8> = Vec::new();
    let fits = usize::try_from(bytes).is_ok_and(|bytes| probe.try_reserve_exact(bytes).is_ok());
    std::hint::black_box(&probe);
    if fits {
        Ok(())
    } else {
        Err(Error::Memory {
            slots,
            context,
            bytes,
        })
    }
}

/// A decoder with a cache, continuing sequences.
pub struct Engine {
    decoder: Arc<Decoder>,
    ctx: Ctx,
    cache: KvCache,
    held: Vec<Vec<u32>>, // [slot] the tokens whose keys and values an ended sequence left in the cache
    config: EngineConfig,
}

impl Engine {
    /// An engine over `decoder`. The cache takes memory only as sequences fill it.
    ///
    /// # Errors
    /// When a setting is out of its range or the cache cannot fit this machine.
    pub fn new(
        decoder: impl Into<Arc<Decoder>>,
        pool: Arc<Pool>,
        config: EngineConfig,
    ) -> Result<Engine> {
        let decoder = decoder.into();
        config.check(&decoder)?;
        let cache = KvCache::new(
            decoder.config(),
            config.slots,
            config.slots * config.context,
        );
        Ok(Engine {
            decoder,
            ctx: Ctx::new(pool),
            cache,
            held: vec![Vec::new(); config.slots],
            config,
        })
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The settings.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Drops all that ended sequences left in the cache.
    pub fn forget(&mut self) {
        for (slot, held) in self.held.iter_mut().enumerate() {
            held.clear();
            self.cache.truncate(slot, 0);
        }
    }

    /// Continues several requests at once, showing `on_token` every token with the place of its request. The answers
    /// come in the order of the requests.
    ///
    /// # Errors
    /// When one of them cannot be answered, before any work is done; or when the model's logits are not finite.
    pub fn stream_batch(
        &mut self,
        requests: &[Request],
        on_token: &mut dyn FnMut(usize, Token) -> Flow,
    ) -> Result<Vec<Generation>> {
        for (index, request) in requests.iter().enumerate() {
            self.check(request).map_err(|problem| Error::Request {
                index,
                problem: Box::new(problem),
            })?;
        }
        self.run(requests, on_token)
    }

    /// Whether `request` can be answered at all.
    fn check(&self, request: &Request) -> Result<()> {
        let (prompt, context) = (request.prompt.len(), self.config.context);
        if prompt == 0 {
            return Err(Error::EmptyPrompt);
        }
        if prompt >= context {
            return Err(Error::PromptTooLong { prompt, context });
        }
        if request.max_tokens == 0 {
            return Err(Error::setting("max_tokens", 0, "at least 1"));
        }
        let vocab = self.decoder.config().vocab;
        for (place, tokens) in [
            ("the prompt", &request.prompt),
            ("the stop tokens", &request.stop_tokens),
        ] {
            if let Some(i) = tokens.iter().position(|&token| token as usize >= vocab) {
                let place = format!("token {i} of {place} (counted from 0)");
                return Err(Error::UnknownToken {
                    place,
                    token: tokens[i],
                    vocab,
                });
            }
        }
        request.sampling.check()
    }

    fn run(
        &mut self,
        requests: &[Request],
        on_token: &mut dyn FnMut(usize, Token) -> Flow,
    ) -> Result<Vec<Generation>> {
        let mut waiting: VecDeque<usize> = (0..requests.len()).collect();
        let mut free: Vec<usize> = (0..self.config.slots).collect();
        let mut active: Vec<Sequence> = Vec::new();
        let mut done: Vec<Option<Generation>> = vec![None; requests.len()];
        while !(waiting.is_empty() && active.is_empty()) {
            while let (false, Some(index)) = (free.is_empty(), waiting.front().copied()) {
                waiting.pop_front();
                active.push(self.admit(index, &requests[index], &mut free));
            }
            for (place, token) in self.step(&active)? {
                active[place].take(token, self.config.context, on_token);
            }
            active.retain_mut(|sequence| {
                let Some(finish) = sequence.finish else {
                    return true;
                };
                done[sequence.index] = Some(sequence.generation(finish));
                free.push(sequence.slot);
                sequence.tokens.truncate(self.cache.len(sequence.slot)); // the last token was never run
                self.held[sequence.slot] = std::mem::take(&mut sequence.tokens);
                false
            });
        }
        Ok(done
            .into_iter()
            .map(|generation| generation.expect("every request was admitted and ended"))
            .collect())
    }

    /// Gives a request the free slot that holds the longest beginning of its prompt; of several, the one that holds
    /// the least beside it.
    fn admit<'r>(
        &mut self,
        index: usize,
        request: &'r Request,
        free: &mut Vec<usize>,
    ) -> Sequence<'r> {
        let prompt = &request.prompt;
        let usable = |slot: usize| match self.config.reuse {
            Reuse::Never => 0,
            // The last token is run in any case: its row gives the first token's logits.
            Reuse::Prefix => common(&self.held[slot], &prompt[..prompt.len() - 1]),
        };
        let rank = |&place: &usize| {
            let slot = free[place];
            (std::cmp::Reverse(usable(slot)), self.held[slot].len(), slot)
        };
        let place = (0..free.len()).min_by_key(rank).expect("a slot is free");
        let reused = usable(free[place]);
        let slot = free.swap_remove(place);
        // What an active sequence holds is not listed: should a pass fail, nothing of it is taken for whole.
        self.held[slot].clear();
        self.cache.truncate(slot, reused);
        Sequence {
            index,
            request,
            slot,
            tokens: prompt.clone(),
            logprobs: Vec::new(),
            reused,
            finish: None,
            admitted: Instant::now(),
            first: None,
        }
    }

    /// One forward pass. Returns a token for each sequence whose prompt is read, by its place in `active`.
    fn step(&mut self, active: &[Sequence]) -> Result<Vec<(usize, Token)>> {
        let pending: Vec<usize> = active
            .iter()
            .map(|s| s.tokens.len() - self.cache.len(s.slot))
            .collect();
        let generating = pending.iter().filter(|&&rows| rows == 1).count();
        let mut room = self.config.prefill_chunk.saturating_sub(generating);
        let mut tokens = Vec::new();
        let mut segments = Segments::default();
        let mut ends = Vec::new(); // (place in `active`, row)
        for (place, sequence) in active.iter().enumerate() {
            let rows = match pending[place] {
                1 => 1,
                rows => rows.min(room),
            };
            if rows == 0 {
                continue;
            }
            let past = self.cache.extend(sequence.slot, rows)?;
            segments.push(rows, past, sequence.slot);
            tokens.extend_from_slice(&sequence.tokens[past..past + rows]);
            if pending[place] > 1 {
                room -= rows;
            }
            if rows == pending[place] {
                ends.push((place, tokens.len() - 1));
            }
        }
        let ctx = &mut self.ctx;
        let hidden = self
            .decoder
            .forward(ctx, &tokens, &segments, Some(&mut self.cache)); // [N, D]
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<usize> = ends.iter().map(|&(_, row)| row).collect();
        let hidden = ops::rows(ctx, &hidden, &rows); // [M, D]
        let logits = self.decoder.logits(ctx, &hidden); // [M, V]
        let vocab = self.decoder.config().vocab;
        let isa = ctx.pool.isa();
        let mut drawn: Vec<Option<Result<Token>>> = (0..ends.len()).map(|_| None).collect();
        ctx.pool.for_each_chunk(&mut drawn, 1, |m, out| {
            let sequence = &active[ends[m].0];
            let row = &logits.data()[m * vocab..][..vocab];
            out[0] = Some(
                sequence
                    .request
                    .sampling
                    .pick(isa, row, sequence.tokens.len() as u64),
            );
        });
        let token = |(&(place, _), token): (_, Option<Result<Token>>)| {
            Ok((place, token.expect("every chunk was visited")?))
        };
        ends.iter().zip(drawn).map(token).collect()
    }
}

impl Generate for Engine {
    fn generate(
        &mut self,
        request: &Request,
        on_token: &mut dyn FnMut(Token) -> Flow,
    ) -> Result<Generation> {
        self.check(request)?;
        let mut generations = self.run(std::slice::from_ref(request), &mut |_, token| {
            on_token(token)
        })?;
        Ok(generations.pop().expect("one request, one answer"))
    }

    fn generate_batch(&mut self, requests: &[Request]) -> Result<Vec<Generation>> {
        self.stream_batch(requests, &mut |_, _| Flow::Continue)
    }
}

/// A request being answered.
struct Sequence<'r> {
    index: usize, // of the request
    request: &'r Request,
    slot: usize,
    tokens: Vec<u32>, // prompt and answer; the cache holds the first `cache.len(slot)` of them
    logprobs: Vec<f32>, // of the answer
    reused: usize,
    finish: Option<Finish>,
    admitted: Instant,
    first: Option<Instant>, // when the first token came
}

impl Sequence<'_> {
    /// Appends a token and decides whether it is the last.
    fn take(
        &mut self,
        token: Token,
        context: usize,
        on_token: &mut dyn FnMut(usize, Token) -> Flow,
    ) {
        self.first.get_or_insert_with(Instant::now);
        self.tokens.push(token.id);
        self.logprobs.push(token.logprob);
        self.finish = if self.request.stop_tokens.contains(&token.id) {
            Some(Finish::Stop)
        } else if on_token(self.index, token) == Flow::Stop {
            Some(Finish::Callback)
        } else if self.logprobs.len() == self.request.max_tokens {
            Some(Finish::Length)
        } else if self.tokens.len() == context {
            Some(Finish::Context)
        } else {
            None
        };
    }

    fn generation(&self, finish: Finish) -> Generation {
        let first = self.first.expect("an ended sequence has a token");
        Generation {
            tokens: self.tokens[self.request.prompt.len()..].to_vec(),
            logprobs: self.logprobs.clone(),
            finish,
            prompt_tokens: self.request.prompt.len(),
            reused_tokens: self.reused,
            prefill_seconds: (first - self.admitted).as_secs_f64(),
            decode_seconds: first.elapsed().as_secs_f64(),
        }
    }
}

/// How many tokens two sequences have in common at their beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
