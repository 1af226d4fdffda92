//! The engine's settings, what it is made of, and the ways to ask it: all of them submit and step ([`crate::scheduler`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use russet_kernels::Pool;
use russet_model::cache::BLOCK_TOKENS;
use russet_model::{Decoder, KvCache, KvFormat};
use russet_tensor::{Ctx, Trace};

use crate::guide::Worker;
use crate::prefix::PrefixCache;
use crate::sequence::{Rank, Running, Sequence};
use crate::{
    Adapters, Error, Event, Finish, Flow, Generate, Generation, Propose, Request, RequestId,
    Result, Stats, Token,
};

/// How much an engine holds and does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// The most tokens of one sequence, prompt and answer together: 2 at least, at most the model's context.
    pub context: usize,
    /// How many sequences run at once, at least 1.
    pub slots: usize,
    /// The most rows of one forward pass while prompts are read, at least 1: bounds the memory of activations.
    pub prefill_chunk: usize,
    /// What is kept of a sequence that has ended.
    pub reuse: Reuse,
    /// The memory of keys and values, fixed from the beginning.
    pub cache: CacheSize,
    /// What keys and values are kept in. In 8 bits answers differ a little from those in `f32`; whatever else runs changes
    /// neither.
    pub format: KvFormat,
    /// How many requests may wait, at least 1.
    pub queue: usize,
    /// The most bytes of loaded adapters.
    pub adapter_bytes: usize,
}

/// How much an engine's cache holds. It is taken in blocks of 64 tokens, and no sequence gets more tokens than it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSize {
    /// A full context for each slot.
    Slots,
    /// So many tokens, rounded down to whole blocks.
    Tokens(usize),
    /// So many bytes, rounded down to whole blocks.
    Bytes(usize),
}

/// Whether a prompt may begin with what the cache still holds of other sequences. The answer is the same to the bit, since a row's
/// keys and values do not depend on the pass that they came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// No: every prompt is computed whole, and how long that takes tells nothing of others.
    Never,
    /// Yes, the longest beginning that is the same token by token, through the same adapters. A chat passes its whole
    /// conversation each turn and pays for the new tokens only.
    Prefix,
    /// As [`Reuse::Prefix`], of requests of the same tenant.
    Tenant,
}

impl EngineConfig {
    /// `slots` sequences of `context` tokens, prompts read 512 rows at a time, nothing reused; any number may wait.
    pub fn new(context: usize, slots: usize) -> EngineConfig {
        EngineConfig {
            context,
            slots,
            prefill_chunk: 512,
            reuse: Reuse::Never,
            cache: CacheSize::Slots,
            format: KvFormat::F32,
            queue: usize::MAX,
            adapter_bytes: usize::MAX,
        }
    }

    /// Checks the settings and says how many blocks they ask for.
    fn blocks(&self, decoder: &Decoder) -> Result<usize> {
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
        for (setting, value) in [
            ("slots", self.slots),
            ("prefill_chunk", self.prefill_chunk),
            ("queue", self.queue),
        ] {
            if value == 0 {
                return Err(Error::setting(setting, value, "at least 1"));
            }
        }
        format_fits(decoder, self.format)?;
        let bytes = KvCache::block_bytes(decoder.config(), self.format);
        let blocks = match self.cache {
            CacheSize::Slots => {
                cache_fits(decoder, self.format, self.slots, self.context)?;
                return Ok(self.slots * self.context.div_ceil(BLOCK_TOKENS));
            }
            CacheSize::Tokens(tokens) => tokens / BLOCK_TOKENS,
            CacheSize::Bytes(budget) => budget / bytes,
        };
        if blocks == 0 {
            let wanted = format!(
                "at least one block of {BLOCK_TOKENS} tokens, which takes {bytes} bytes in this model"
            );
            return Err(match self.cache {
                CacheSize::Bytes(budget) => Error::setting("cache bytes", budget, wanted),
                CacheSize::Tokens(tokens) => Error::setting("cache tokens", tokens, wanted),
                CacheSize::Slots => unreachable!("returned above"),
            });
        }
        cache_fits(decoder, self.format, 1, blocks.saturating_mul(BLOCK_TOKENS))?;
        Ok(blocks)
    }
}

/// Whether a format can keep the heads of this model.
fn format_fits(decoder: &Decoder, format: KvFormat) -> Result<()> {
    let (head, widest) = (decoder.config().head_dim, format.widest_head());
    if head > widest {
        let wanted = format!("f32: the model's heads are {head} wide, and this takes {widest}");
        return Err(Error::setting("format", "8 bits", wanted));
    }
    Ok(())
}

/// Whether a cache of `slots` sequences of `context` tokens can be had. Refused here with a sentence, one beyond all
/// memory would otherwise end the process.
pub(crate) fn cache_fits(
    decoder: &Decoder,
    format: KvFormat,
    slots: usize,
    context: usize,
) -> Result<()> {
    format_fits(decoder, format)?;
    let blocks = (context as u128).div_ceil(BLOCK_TOKENS as u128);
    let block = KvCache::block_bytes(decoder.config(), format) as u128;
    let bytes = (slots as u128 * blocks).saturating_mul(block);
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
    decoder: Option<Arc<Decoder>>, // away only while it is being replaced
    pub(crate) weights: u64,       // generation
    pub(crate) ctx: Ctx,
    pub(crate) cache: KvCache,
    pub(crate) prefix: PrefixCache,
    pub(crate) adapters: Adapters,
    pub(crate) config: EngineConfig,
    pub(crate) limit: usize, // tokens of one sequence
    pub(crate) waiting: BTreeMap<Rank, Sequence>,
    pub(crate) running: Vec<Running>, // by rank
    pub(crate) free_slots: Vec<usize>,
    pub(crate) unheard: VecDeque<Event>, // what came while nobody who wanted it listened
    pub(crate) proposer: Option<Box<dyn Propose>>,
    pub(crate) worker: Option<Worker>, // where a request was guided
    pub(crate) next: u64,              // request
    pub(crate) stats: Stats,
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
        let blocks = config.blocks(&decoder)?;
        // A sequence holds a block at least.
        let slots = config.slots.min(blocks);
        Ok(Engine {
            cache: KvCache::of_format(decoder.config(), config.format, slots, blocks),
            adapters: Adapters::new(decoder.layouts(), config.adapter_bytes),
            decoder: Some(decoder),
            weights: 0,
            ctx: Ctx::new(pool),
            prefix: PrefixCache::default(),
            config,
            limit: config.context.min(blocks * BLOCK_TOKENS),
            waiting: BTreeMap::new(),
            running: Vec::new(),
            free_slots: (0..slots).rev().collect(),
            unheard: VecDeque::new(),
            proposer: None,
            worker: None,
            next: 0,
            stats: Stats::default(),
        })
    }

    /// The decoder.
    pub fn decoder(&self) -> &Arc<Decoder> {
        self.decoder.as_ref().expect("back since it was replaced")
    }

    /// The settings.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The adapters that requests may name.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// Lets `proposer` guess tokens, which are checked several at a time; `None`: no more. Answers stay the same.
    pub fn set_proposer(&mut self, proposer: Option<Box<dyn Propose>>) {
        self.proposer = proposer;
    }

    /// Writes down what runs from now on, or no longer; the trace so far, where there was one.
    pub fn set_trace(&mut self, trace: Option<Trace>) -> Option<Trace> {
        std::mem::replace(&mut self.ctx.trace, trace)
    }

    /// Drops all that ended sequences left in the cache.
    pub fn forget(&mut self) {
        self.prefix.clear(&mut self.cache);
    }

    /// Lets `update` take the decoder, the engine's own hold on it with it, and bring the one to go on with: a trainer changes
    /// its weights in place where nobody else holds them. What is cached of the former weights is dropped, and numbered so that
    /// no request finds it.
    ///
    /// # Errors
    /// When requests are on their way; nothing has happened then.
    ///
    /// # Panics
    /// When the new decoder is of another shape.
    pub fn replace_weights(
        &mut self,
        update: impl FnOnce(Arc<Decoder>) -> Arc<Decoder>,
    ) -> Result<()> {
        let requests = self.running.len() + self.waiting.len();
        if requests > 0 {
            return Err(Error::Busy { requests });
        }
        self.forget();
        self.weights += 1;
        let former = self.decoder.take().expect("back since it was replaced");
        let shape = (former.config().clone(), former.layouts());
        let decoder = update(former);
        assert_eq!(
            (decoder.config(), decoder.layouts()),
            (&shape.0, shape.1),
            "new weights are of the same model"
        );
        self.decoder = Some(decoder);
        Ok(())
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

    fn run(
        &mut self,
        requests: &[Request],
        on_token: &mut dyn FnMut(usize, Token) -> Flow,
    ) -> Result<Vec<Generation>> {
        let mut own: BTreeMap<RequestId, usize> = BTreeMap::new();
        let mut done: Vec<Option<Generation>> = vec![None; requests.len()];
        let (mut problem, mut others) = (None, Vec::new());
        let (mut submitted, mut open) = (0, requests.len());
        while open > 0 && problem.is_none() {
            while submitted < requests.len() && self.waiting.len() < self.config.queue {
                match self.submit(requests[submitted].clone()) {
                    Ok(id) => drop(own.insert(id, submitted)),
                    Err(error) => {
                        problem = Some(error);
                        break;
                    }
                }
                submitted += 1;
            }
            self.step(&mut |event| {
                match event {
                    Event::Token(id, token) if own.contains_key(&id) => {
                        return on_token(own[&id], token);
                    }
                    Event::End(id, answer) if own.contains_key(&id) => {
                        open -= 1;
                        match answer {
                            Ok(generation) => done[own[&id]] = Some(generation),
                            Err(error) => drop(problem.get_or_insert(error)),
                        }
                    }
                    Event::Top(id, _) if own.contains_key(&id) => {} // the answer has them too
                    other => others.push(other),
                }
                Flow::Continue
            });
        }
        self.unheard.extend(others);
        if let Some(problem) = problem {
            for (&id, &index) in &own {
                if done[index].is_none() {
                    self.drop_request(id, Finish::Cancelled);
                }
            }
            return Err(problem);
        }
        Ok(done
            .into_iter()
            .map(|generation| generation.expect("every request was admitted and ended"))
            .collect())
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
