//! How requests come in and are called off.

use russet_tensor::Stack;

use crate::prefix::Scope;
use crate::sampler::{check_bias, check_top};
use crate::sequence::Sequence;
use crate::{Engine, Error, Event, Finish, Generation, Request, RequestId, Result, Reuse};

impl Engine {
    /// Takes a request in; [`Engine::step`] answers it.
    ///
    /// # Errors
    /// When it cannot be answered, ever or with so many waiting; the sentence says why.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        Ok(self.submit_answers(request, 1)?[0])
    }

    /// Takes a request in that is to be answered `count` times, the answers drawn with seeds from the request's on. The prompt is
    /// computed once, and its blocks are shared.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit_answers(&mut self, request: Request, count: usize) -> Result<Vec<RequestId>> {
        let accepted = self.accept(&request, count);
        if accepted.is_err() {
            self.stats.refused += 1;
        }
        let (stack, scope) = accepted?;
        let vocab = self.decoder().config().vocab;
        let family = (count > 1).then_some(RequestId(self.next));
        let ids = (0..count as u64).map(|n| {
            let id = RequestId(self.next);
            self.next += 1;
            let mut request = request.clone();
            request.sampling.seed = request.sampling.seed.wrapping_add(n);
            request.prompt_logprobs = request.prompt_logprobs.filter(|_| n == 0);
            request.embedding &= n == 0;
            if let Some(proposer) = &mut self.proposer {
                proposer.begin(id, &request);
            }
            let mut sequence = Sequence::new(id, request, stack.clone(), scope.clone(), vocab);
            sequence.family = family;
            self.waiting.insert(sequence.rank(), sequence);
            id
        });
        Ok(ids.collect())
    }

    fn accept(&self, request: &Request, count: usize) -> Result<(Stack, Scope)> {
        self.check(request)?;
        if count == 0 {
            return Err(Error::setting("the number of answers", 0, "at least 1"));
        }
        let waiting = self.waiting.len();
        if count > self.config.queue.saturating_sub(waiting) {
            return Err(Error::QueueFull { waiting });
        }
        let loaded = request.adapters.iter().map(|name| self.adapters.get(name));
        let loaded = loaded.collect::<Result<Vec<_>>>()?;
        let (stack, adapters): (Vec<_>, _) = loaded.into_iter().unzip();
        let tenant = match self.config.reuse {
            Reuse::Tenant => request.tenant.clone(),
            Reuse::Never | Reuse::Prefix => None,
        };
        let scope = Scope {
            weights: self.weights,
            adapters,
            tenant,
        };
        Ok((stack.into(), scope))
    }

    /// Whether `request` can be answered at all; its adapters are not looked at.
    ///
    /// # Errors
    /// When it cannot, with the reason.
    pub fn check(&self, request: &Request) -> Result<()> {
        let (prompt, context) = (request.prompt.len(), self.config.context);
        if prompt == 0 {
            return Err(Error::EmptyPrompt);
        }
        let answer = request.max_tokens.min(1); // must find room
        if prompt + answer > context {
            return Err(Error::PromptTooLong { prompt, context });
        }
        if prompt + answer > self.limit {
            let capacity = self.limit;
            return Err(Error::NeverFits { prompt, capacity });
        }
        if answer == 0 && !request.embedding && request.prompt_logprobs.is_none() {
            return Err(Error::setting("max_tokens", 0, "at least 1"));
        }
        let vocab = self.decoder().config().vocab;
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
        check_bias(&request.logit_bias, vocab)?;
        check_top("prompt_logprobs", request.prompt_logprobs.unwrap_or(0))?;
        request.sampling.check()
    }

    /// Calls a request off; whether it was on its way. Its blocks are free at once, and the next step brings its end.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        match self.drop_request(id, Finish::Cancelled) {
            None => false,
            Some(generation) => {
                self.unheard.push_back(Event::End(id, Ok(generation)));
                true
            }
        }
    }

    /// Ends a request wherever it is.
    pub(crate) fn drop_request(&mut self, id: RequestId, finish: Finish) -> Option<Generation> {
        let sequence = match self.running.iter().position(|r| r.sequence.id == id) {
            Some(at) => self.stop(at),
            None => {
                let rank = *self.waiting.keys().find(|(_, other)| *other == id)?;
                self.waiting.remove(&rank)?
            }
        };
        Some(self.close(sequence, finish))
    }

    /// What became of a request that is over.
    pub(crate) fn close(&mut self, sequence: Sequence, finish: Finish) -> Generation {
        let proposer = self.proposer.as_mut();
        let speculation = proposer.and_then(|proposer| proposer.end(sequence.id));
        Generation {
            speculation,
            ..sequence.generation(finish)
        }
    }
}
