//! Which tokens a sequence holds so far, for the penalties.

use std::collections::HashMap;

use super::Sampling;

/// How often each token stands in the answer, and which stand in the prompt.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    prompt: Vec<u32>, // each token once, sorted; empty where no penalty asks for it
    answer: Vec<u32>, // as counted
    counts: HashMap<u32, u32>, // of the answer, and 0 for what stands in the prompt alone
}

impl Seen {
    pub(super) fn new(prompt: &[u32], prompt_counts: bool) -> Seen {
        let mut prompt = if prompt_counts {
            prompt.to_vec()
        } else {
            Vec::new()
        };
        prompt.sort_unstable();
        prompt.dedup();
        Seen {
            counts: prompt.iter().map(|&id| (id, 0)).collect(),
            prompt,
            answer: Vec::new(),
        }
    }

    /// Goes from the answer it knows to this one: on by a token mostly, back where drafts were refused.
    pub(super) fn follow(&mut self, answer: &[u32]) {
        let same = self.answer.iter().zip(answer).take_while(|(a, b)| a == b);
        let same = same.count();
        for id in self.answer.drain(same..) {
            let count = self.counts.get_mut(&id).expect("it was counted");
            *count -= 1;
            if *count == 0 && self.prompt.binary_search(&id).is_err() {
                self.counts.remove(&id);
            }
        }
        for &id in &answer[same..] {
            *self.counts.entry(id).or_insert(0) += 1;
            self.answer.push(id);
        }
    }

    /// Steps 1 and 2 of the sampler.
    pub(super) fn penalise(&self, sampling: &Sampling, logits: &mut [f32]) {
        // Each token's logit is its own, so the order of the map does not matter.
        for (&id, &count) in &self.counts {
            let logit = &mut logits[id as usize];
            if sampling.repetition_penalty != 1.0 {
                *logit = if *logit > 0.0 {
                    *logit / sampling.repetition_penalty
                } else {
                    *logit * sampling.repetition_penalty
                };
            }
            if count > 0 {
                *logit -= sampling.frequency_penalty * count as f32 + sampling.presence_penalty;
            }
            // A logit near the end of the range stays in it.
            *logit = logit.clamp(f32::MIN, f32::MAX);
        }
    }
}
