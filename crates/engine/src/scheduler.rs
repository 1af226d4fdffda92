//! Who runs, and with how many rows: requests come, wait, are admitted, run step by step, make room, end.
//!
//! A step is one forward pass. Every sequence that is generating has one row in it (more where tokens are guessed), and what is
//! left of `prefill_chunk` rows is shared out among prompts: those that need less than an even share get what they need, so a
//! long prompt delays neither the sequences that generate nor other prompts. Only rows that a token is drawn from meet the
//! vocabulary.
//!
//! Requests are admitted by rank (priority, then arrival) while there is a slot and the cache has room for all their tokens so far;
//! none overtakes one that it ranks behind. Where a running sequence then finds no block, in this order: blocks that nobody holds,
//! blocks kept for others that no sequence holds, and the blocks of the sequence that ranks last, which waits and computes its tokens
//! once more later. The bits are the same, since a row does not depend on the pass that it is in. The first by rank always gets
//! what it needs, so every request ends.

use std::time::Instant;

use russet_model::Decoder;
use russet_model::cache::BLOCK_TOKENS;
use russet_tensor::{Op, Segments, Tensor, ops};

use crate::guide::Worker;
use crate::prefix::Hit;
use crate::sequence::{Choice, Running, Sequence};
use crate::{
    Drawn, Engine, Event, Finish, Flow, Request, RequestId, Result, Reuse, Speculation, sampler,
};

/// Guesses the tokens that come next, so that one forward pass checks several. Exact whatever it guesses: a token stays where it
/// is what would have been chosen anyway, drawn with the same random number.
pub trait Propose: Send {
    /// A request has come.
    fn begin(&mut self, id: RequestId, request: &Request) {
        let _ = (id, request);
    }

    /// At most `most` tokens that may follow `tokens`.
    fn propose(&mut self, request: RequestId, tokens: &[u32], most: usize) -> Vec<u32>;

    /// Of `proposed` tokens so many were right, so that a proposer can learn how far to guess.
    fn learn(&mut self, request: RequestId, proposed: usize, right: usize) {
        let _ = (request, proposed, right);
    }

    /// A step of `sequences`, all of them generating, took so long for so many rows, guessing apart.
    fn stepped(&mut self, sequences: usize, rows: usize, seconds: f64) {
        let _ = (sequences, rows, seconds);
    }

    /// The request is over: how its guesses fared.
    fn end(&mut self, request: RequestId) -> Option<Speculation> {
        let _ = request;
        None
    }
}

/// A running sequence's part of a step.
struct Part {
    at: usize, // of the running
    rows: usize,
    proposed: Vec<u32>,
    ends: bool, // with a row that a token is drawn from
}

/// How many rows of logits of prompts exist together.
const SCORED_AT_ONCE: usize = 64;

/// A token of a prompt whose log-probability is asked for.
struct Score {
    at: usize,  // of the running
    row: usize, // of the step: the token before it
    next: u32,
    scored: Option<Result<Drawn>>,
}

/// A part whose last rows have logits.
struct Draw {
    at: usize,
    first: usize, // row of the logits
    proposed: Vec<u32>,
    chosen: Option<Result<Choice>>, // before the others: nothing, where no token is asked for
}

impl Engine {
    /// One forward pass, and what it brought: `on_event` sees every token and every end, and a [`Flow::Stop`] for a token ends that
    /// answer. Whether anything is left to do. A sequence that fails ends alone.
    pub fn step(&mut self, on_event: &mut dyn FnMut(Event) -> Flow) -> bool {
        while let Some(event) = self.unheard.pop_front() {
            let id = match &event {
                Event::Token(id, _) => Some(*id),
                Event::Top(..) | Event::End(..) => None,
            };
            if let (Flow::Stop, Some(id)) = (on_event(event), id)
                && let Some(generation) = self.drop_request(id, Finish::Callback)
            {
                on_event(Event::End(id, Ok(generation)));
            }
        }
        let begun = Instant::now();
        self.expire(on_event);
        self.admit();
        let parts = self.reserve();
        let rows = parts.iter().map(|part| part.rows).sum();
        self.traced("schedule", rows, begun);
        if !parts.is_empty() {
            self.stats.steps += 1;
            let sequences = parts.len();
            let generating = |part: &Part| part.rows == 1 + part.proposed.len();
            let generates = parts.iter().all(generating);
            let timed = Instant::now();
            let draws = self.compute(parts);
            let seconds = timed.elapsed().as_secs_f64(); // whoever listens may take his time
            self.hand_out(draws, on_event);
            if let (true, Some(proposer)) = (generates, &mut self.proposer) {
                proposer.stepped(sequences, rows, seconds);
            }
            self.traced("step", rows, begun);
        }
        !(self.running.is_empty() && self.waiting.is_empty() && self.unheard.is_empty())
    }

    /// Writes down what began at `begun`, where there is a trace.
    fn traced(&mut self, name: &'static str, rows: usize, begun: Instant) {
        if let Some(trace) = &mut self.ctx.trace {
            let op = Op {
                name,
                rows,
                ..Op::default()
            };
            trace.add(op, begun);
        }
    }

    /// Ends what has reached its deadline.
    fn expire(&mut self, on_event: &mut dyn FnMut(Event) -> Flow) {
        let now = Instant::now();
        let running = self.running.iter().map(|running| &running.sequence);
        let expired: Vec<RequestId> = running
            .chain(self.waiting.values())
            .filter(|sequence| sequence.is_expired(now))
            .map(|sequence| sequence.id)
            .collect();
        for id in expired {
            let generation = self.drop_request(id, Finish::Deadline);
            let generation = generation.expect("found just now");
            on_event(Event::End(id, Ok(generation)));
        }
    }

    /// Lets requests begin, or go on, as long as there is room.
    fn admit(&mut self) {
        loop {
            let next = self.waiting.values().find(|s| !self.awaits_sibling(s));
            let Some(rank) = next.map(Sequence::rank) else {
                return;
            };
            // Only the first by rank may take from others, and only from those below its priority.
            let outranks = |r: &Running| r.sequence.rank().0 > rank.0;
            let may_take = self.running.last().is_some_and(outranks);
            if self.free_slots.is_empty() && !may_take {
                return;
            }
            let sequence = self.waiting.remove(&rank).expect("found just now");
            let (start, kept) = self.beginning(&sequence);
            let blocks = self.cache.blocks();
            let shared = start.blocks.iter().filter(|&&block| !blocks.is_idle(block));
            // A last block that is not whole will be copied.
            let whole = shared.count().min(start.tokens / BLOCK_TOKENS);
            let needs = (sequence.tokens.len() + 1).div_ceil(BLOCK_TOKENS) - whole;
            let fits = self.running.is_empty() || needs <= self.unclaimed();
            if fits && !self.free_slots.is_empty() {
                self.begin(sequence, start, kept);
                continue;
            }
            self.waiting.insert(rank, sequence);
            if !may_take {
                return;
            }
            self.preempt(self.running.len() - 1);
        }
    }

    /// Whether the prompt of `sequence` is being computed for another answer to it.
    fn awaits_sibling(&self, sequence: &Sequence) -> bool {
        let prompt = sequence.request.prompt.len();
        let computes = |running: &Running| {
            running.sequence.family == sequence.family && self.cache.len(running.slot) + 1 < prompt
        };
        sequence.family.is_some()
            && sequence.tokens.len() == prompt
            && self.running.iter().any(computes)
    }

    /// Where `sequence` may begin: what is cached of its tokens but the last, which is run in any case since its row gives the
    /// next one's logits; and how many whole blocks of that the prefix cache has.
    fn beginning(&mut self, sequence: &Sequence) -> (Hit, usize) {
        if sequence.request.prompt_logprobs.is_some() || sequence.request.embedding {
            return (Hit::default(), 0);
        }
        let tokens = &sequence.tokens[..sequence.tokens.len() - 1];
        let mut hit = match self.config.reuse {
            Reuse::Never => Hit::default(),
            Reuse::Prefix | Reuse::Tenant => self.prefix.find(&sequence.scope, tokens),
        };
        let kept = hit.tokens / BLOCK_TOKENS;
        let prompt = sequence.request.prompt.len() - 1;
        let computed = |running: &&Running| {
            running.sequence.family == sequence.family && self.cache.len(running.slot) >= prompt
        };
        if sequence.family.is_some()
            && prompt > hit.tokens
            && let Some(sibling) = self.running.iter().find(computed)
        {
            let blocks = &self.cache.table(sibling.slot)[..prompt.div_ceil(BLOCK_TOKENS)];
            (hit.blocks, hit.tokens) = (blocks.to_vec(), prompt);
        }
        (hit, kept)
    }

    /// Blocks that are free or could be, less those that running sequences still need for the tokens they have.
    fn unclaimed(&self) -> usize {
        let claims = self.running.iter().map(|running| {
            let wanted = (running.sequence.tokens.len() + 1).div_ceil(BLOCK_TOKENS);
            wanted.saturating_sub(self.cache.table(running.slot).len())
        });
        let blocks = self.cache.blocks();
        (blocks.free() + blocks.idle()).saturating_sub(claims.sum())
    }

    fn begin(&mut self, mut sequence: Sequence, start: Hit, kept: usize) {
        let slot = self.free_slots.pop().expect("a slot is free");
        self.cache.share(slot, &start.blocks, start.tokens);
        if sequence.admitted.is_none() {
            sequence.admitted = Some(Instant::now());
            sequence.reused = start.tokens;
        }
        self.stats.reused_tokens += start.tokens as u64;
        let place = self
            .running
            .partition_point(|running| running.sequence.rank() < sequence.rank());
        // What is never continued is no beginning for others.
        let keeps = self.config.reuse != Reuse::Never && sequence.request.max_tokens > 0;
        let running = Running {
            sequence,
            slot,
            node: start.node,
            kept,
            keeps,
        };
        self.running.insert(place, running);
    }

    /// Takes a running sequence off its slot. Its blocks are kept for others where that is wanted.
    pub(crate) fn stop(&mut self, at: usize) -> Sequence {
        self.keep(at, true);
        let running = self.running.remove(at);
        self.cache.truncate(running.slot, 0);
        self.free_slots.push(running.slot);
        running.sequence
    }

    /// Lets the sequence that ranks last wait for better times.
    fn preempt(&mut self, at: usize) {
        let sequence = self.stop(at);
        self.stats.preemptions += 1;
        self.waiting.insert(sequence.rank(), sequence);
    }

    /// Gives the prefix cache the blocks that have become whole, and at the end what is left.
    fn keep(&mut self, at: usize, last: bool) {
        let running = &mut self.running[at];
        let cached = self.cache.len(running.slot);
        while running.keeps && running.kept * BLOCK_TOKENS < cached {
            let start = running.kept * BLOCK_TOKENS;
            let end = cached.min(start + BLOCK_TOKENS);
            if end - start < BLOCK_TOKENS && !last {
                return;
            }
            let Running { sequence, .. } = &running;
            let (scope, tokens) = (&sequence.scope, &sequence.tokens[start..end]);
            let place = (running.slot, running.kept);
            let (cache, parent) = (&mut self.cache, running.node);
            let node = self.prefix.insert(cache, scope, parent, tokens, place);
            (running.node, running.keeps) = (node, node.is_some());
            running.kept += 1;
        }
    }

    /// How many rows each running sequence gets.
    fn shares(&self) -> Vec<usize> {
        let pending = |running: &Running| {
            let cached = self.cache.len(running.slot);
            running.sequence.tokens.len() - cached
        };
        let mut shares: Vec<usize> = self.running.iter().map(pending).collect();
        let mut prompts: Vec<usize> = (0..shares.len()).filter(|&at| shares[at] > 1).collect();
        let generating = shares.len() - prompts.len();
        // However many generate, a prompt comes forward by a row.
        let mut room = self.config.prefill_chunk.saturating_sub(generating).max(1);
        let late = prompts.split_off(prompts.len().min(room)); // of so little room the first by rank have a row
        late.into_iter().for_each(|at| shares[at] = 0);
        prompts.sort_by_key(|&at| shares[at]);
        for (done, &at) in prompts.iter().enumerate() {
            shares[at] = shares[at].min(room / (prompts.len() - done));
            room -= shares[at];
        }
        shares
    }

    /// Makes room in the cache for the rows of a step, in the order of rank, by whatever it takes.
    fn reserve(&mut self) -> Vec<Part> {
        let (shares, vocab) = (self.shares(), self.decoder().config().vocab);
        let mut parts = Vec::new();
        for (at, rows) in shares.into_iter().enumerate() {
            if at >= self.running.len() {
                break; // made room
            }
            if rows == 0 {
                continue;
            }
            let Running { sequence, slot, .. } = &self.running[at];
            let (slot, pending) = (*slot, sequence.tokens.len() - self.cache.len(*slot));
            let mut proposed = Vec::new();
            if pending == 1
                && let Some(proposer) = &mut self.proposer
            {
                // The last token is none that has to be checked.
                let most = sequence.left(self.limit).saturating_sub(1);
                proposed = proposer.propose(sequence.id, &sequence.tokens, most);
                let known = |&token: &u32| (token as usize) < vocab;
                let known = proposed.iter().take(most).take_while(|t| known(t)).count();
                proposed.truncate(known);
            }
            while self.cache.extend(slot, rows + proposed.len()).is_err() {
                if !proposed.is_empty() {
                    proposed.clear(); // no guess is worth a block
                } else if !self.find_block(slot) {
                    self.preempt(self.running.len() - 1);
                    if at >= self.running.len() {
                        return parts;
                    }
                }
            }
            parts.push(Part {
                at,
                rows: rows + proposed.len(),
                proposed,
                ends: rows == pending,
            });
        }
        parts
    }

    /// Frees a block that is kept for nobody in particular; whether there was one.
    fn find_block(&mut self, slot: usize) -> bool {
        if self.prefix.evict(&mut self.cache) {
            return true;
        }
        // The sequence may be about to copy its last block, which is kept for others: alone it needs no copy.
        let last = self.cache.table(slot).last().copied();
        last.is_some_and(|last| self.prefix.let_go(&mut self.cache, last))
    }

    /// Runs the rows of a step, and draws tokens where they end.
    fn compute(&mut self, mut parts: Vec<Part>) -> Vec<Draw> {
        // Rows through the same adapters are multiplied together.
        parts.sort_by(|a, b| {
            let adapters = |part: &Part| &self.running[part.at].sequence.scope.adapters;
            adapters(a).cmp(adapters(b))
        });
        let (mut tokens, mut segments) = (Vec::new(), Segments::default());
        let (mut draws, mut rows, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        let mut pooled = Vec::new(); // of the running, rows of the step, position of the first
        for part in parts {
            let Running { sequence, slot, .. } = &self.running[part.at];
            let past = self.cache.len(*slot) - part.rows;
            segments.push_adapted(part.rows, past, *slot, &sequence.stack);
            let known = part.rows - part.proposed.len();
            for position in sequence.unscored(past, past + known) {
                scores.push(Score {
                    at: part.at,
                    row: tokens.len() + position - past,
                    next: sequence.tokens[position + 1],
                    scored: None,
                });
            }
            if sequence.request.embedding {
                pooled.push((part.at, tokens.len()..tokens.len() + known, past));
            }
            tokens.extend_from_slice(&sequence.tokens[past..past + known]);
            tokens.extend_from_slice(&part.proposed);
            if part.ends {
                draws.push(Draw {
                    at: part.at,
                    first: rows.len(),
                    chosen: None,
                    proposed: part.proposed,
                });
                if sequence.request.max_tokens > 0 {
                    rows.extend(tokens.len() - (part.rows - known) - 1..tokens.len());
                }
            }
        }
        self.stats.rows += tokens.len() as u64;
        self.begin_masks(&mut draws);
        let decoder = self.decoder().clone();
        let ctx = &mut self.ctx;
        let hidden = decoder.forward(ctx, &tokens, &segments, Some(&mut self.cache)); // [N, D]
        for scores in scores.chunks_mut(SCORED_AT_ONCE) {
            self.score(&decoder, &hidden, scores);
        }
        let width = decoder.config().width;
        for (at, rows, past) in pooled {
            let rows = &hidden.data()[rows.start * width..rows.end * width];
            self.running[at].sequence.pool(past, rows, width);
        }
        for draw in &mut draws {
            let sequence = &self.running[draw.at].sequence;
            if sequence.request.max_tokens == 0 {
                draw.chosen = Some(sequence.choose_nothing());
            }
        }
        if rows.is_empty() {
            return draws;
        }
        if let Some(worker) = &mut self.worker {
            for masks in worker.finish() {
                let sequence = &mut self.running[masks.place].sequence;
                sequence.take_masks(masks);
            }
        }
        let ctx = &mut self.ctx;
        let hidden = ops::rows(ctx, &hidden, &rows); // [M, D]
        let logits = decoder.logits(ctx, &hidden); // [M, V]
        let vocab = decoder.config().vocab;
        let (isa, running, begun) = (ctx.pool.isa(), &self.running, Instant::now());
        ctx.pool.for_each_chunk(&mut draws, 1, |_, draw| {
            let draw = &mut draw[0];
            if draw.chosen.is_some() {
                return;
            }
            let rows = draw.first * vocab..(draw.first + draw.proposed.len() + 1) * vocab;
            let sequence = &running[draw.at].sequence;
            draw.chosen = Some(sequence.choose(isa, &logits.data()[rows], &draw.proposed));
        });
        self.traced("sample", rows.len(), begun);
        draws
    }

    /// Scores tokens of prompts at their rows of `hidden`, `[N, D]`.
    fn score(&mut self, decoder: &Decoder, hidden: &Tensor, scores: &mut [Score]) {
        let rows: Vec<usize> = scores.iter().map(|score| score.row).collect();
        let ctx = &mut self.ctx;
        let hidden = ops::rows(ctx, hidden, &rows); // [M, D]
        let logits = decoder.logits(ctx, &hidden); // [M, V]
        let (isa, running, vocab) = (ctx.pool.isa(), &self.running, decoder.config().vocab);
        ctx.pool.for_each_chunk(scores, 1, |place, score| {
            let (score, row) = (&mut score[0], place * vocab..(place + 1) * vocab);
            let asked = running[score.at].sequence.request.prompt_logprobs;
            let scored = sampler::score(isa, &logits.data()[row], score.next, asked.unwrap_or(0));
            score.scored = Some(scored);
        });
        for score in scores {
            let scored = score.scored.take().expect("every chunk was visited");
            self.running[score.at].sequence.take_score(scored);
        }
    }

    /// Begins the masks of guided sequences, which are made beside the forward pass.
    fn begin_masks(&mut self, draws: &mut [Draw]) {
        for draw in draws {
            let sequence = &mut self.running[draw.at].sequence;
            if !sequence.is_guided() || sequence.request.max_tokens == 0 {
                continue;
            }
            let guide = sequence.lend_guide();
            let (answer, drafts) = (sequence.answer().to_vec(), draw.proposed.clone());
            let worker = self.worker.get_or_insert_with(Worker::new);
            worker.begin(draw.at, guide, answer, drafts);
        }
    }

    /// Gives each sequence its tokens, and ends those that are through.
    fn hand_out(&mut self, draws: Vec<Draw>, on_event: &mut dyn FnMut(Event) -> Flow) {
        let mut ended: Vec<(usize, Result<Finish>)> = Vec::new();
        for draw in draws {
            let Running { sequence, slot, .. } = &mut self.running[draw.at];
            let Choice {
                tokens,
                ended: complete,
            } = match draw.chosen.expect("every chunk was visited") {
                Ok(choice) => choice,
                Err(problem) => {
                    ended.push((draw.at, Err(problem)));
                    continue;
                }
            };
            if let (false, Some(proposer)) = (draw.proposed.is_empty(), &mut self.proposer) {
                // A guide can end an answer behind its last guess, where nothing more was drawn.
                let right = draw.proposed.iter().zip(&tokens);
                let right = right.take_while(|(guess, drawn)| **guess == drawn.token.id);
                let right = right.count();
                proposer.learn(sequence.id, draw.proposed.len(), right);
                self.stats.proposed_tokens += draw.proposed.len() as u64;
                self.stats.accepted_tokens += right as u64;
            }
            let mut finish = None;
            for drawn in tokens {
                self.stats.generated_tokens += 1;
                finish = sequence.take(drawn, self.limit, on_event);
                if finish.is_some() {
                    break;
                }
            }
            let finish = finish.or(complete.then_some(Finish::Guide));
            let finish = finish.or((sequence.request.max_tokens == 0).then_some(Finish::Length));
            if let Some(finish) = finish {
                ended.push((draw.at, Ok(finish)));
            }
            // What was guessed wrong is forgotten, and the last token was never run.
            self.cache.truncate(*slot, sequence.tokens.len() - 1);
        }
        ended.sort_by_key(|&(at, _)| std::cmp::Reverse(at));
        let mut ends = Vec::new();
        for (at, finish) in ended {
            self.stats.finished += 1;
            let id = self.running[at].sequence.id;
            if finish.is_err() {
                self.running[at].keeps = false; // what is not finite is of no use to others
            }
            let sequence = self.stop(at);
            let answer = match finish {
                Ok(finish) => Ok(self.close(sequence, finish)),
                Err(problem) => {
                    self.close(sequence, Finish::Cancelled); // what is learned of it is forgotten too
                    Err(problem)
                }
            };
            ends.push((id, answer));
        }
        for at in 0..self.running.len() {
            self.keep(at, false);
        }
        for (id, answer) in ends.into_iter().rev() {
            on_event(Event::End(id, answer));
        }
    }
}
