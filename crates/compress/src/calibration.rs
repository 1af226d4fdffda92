//! The text that a model is measured on, in batches.

use std::sync::Arc;

use russet_kernels::{Compute, Pool};
use russet_model::Decoder;
use russet_tensor::{Ctx, Segments};

use crate::CompressError;

/// Tokens of a batch: enough for matrix products at full speed, few enough that activations stay small.
pub(crate) const BATCH: usize = 1024;

/// Sequences in batches, each token with the one that follows it.
pub(crate) struct Calibration {
    pub batches: Vec<Batch>,
    /// In which the text's products multiply on the way through a checkpoint: importance and moments are sums over many tokens, so bf16.
    pub compute: Compute,
}

/// Some sequences, one after another.
#[derive(Clone)]
pub(crate) struct Batch {
    pub tokens: Vec<u32>,
    /// The token that follows each.
    pub targets: Vec<u32>,
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
}

impl Calibration {
    /// Cuts documents into sequences and takes at most `limit` tokens of them, evenly spread.
    pub fn new<D: AsRef<[u32]>>(
        documents: &[D],
        sequence: usize,
        limit: usize,
        vocab: usize,
    ) -> Result<Calibration, CompressError> {
        // A piece is its tokens and the one that follows them, so every token has a target.
        let mut pieces = Vec::new();
        for (number, document) in documents.iter().enumerate() {
            let document = document.as_ref();
            if let Some(token) = document.iter().find(|&&token| token as usize >= vocab) {
                return Err(CompressError::Calibration(format!(
                    "holds token {token} in document {number}, but the model's vocabulary has {vocab}; \
                     encode the text with the checkpoint's own tokenizer"
                )));
            }
            let starts = (0..document.len().saturating_sub(1)).step_by(sequence);
            pieces.extend(
                starts.map(|start| &document[start..document.len().min(start + sequence + 1)]),
            );
        }
        let total: usize = pieces.iter().map(|piece| piece.len() - 1).sum();
        if total == 0 {
            return Err(CompressError::Calibration(
                "has no document of two tokens or more; give text of the kind that the model will see".to_owned(),
            ));
        }
        let share = (limit as f64 / total as f64).min(1.0);
        let mut calibration = Calibration {
            batches: Vec::new(),
            compute: Compute::Bf16,
        };
        let (mut taken, mut due) = (0, 0.0);
        for piece in pieces {
            due += share * (piece.len() - 1) as f64;
            // Half a piece ahead at most, so a share of 1 takes all of them and a small one whole pieces now and then.
            let len = (piece.len() - 1).min(limit - taken);
            if len > 0 && taken as f64 + 0.5 * (len as f64) <= due + 1e-6 {
                calibration.push(&piece[..len], &piece[1..=len]);
                taken += len;
            }
        }
        Ok(calibration)
    }

    fn push(&mut self, tokens: &[u32], targets: &[u32]) {
        if self
            .batches
            .last()
            .is_none_or(|batch| batch.tokens.len() + tokens.len() > BATCH)
        {
            self.batches.push(Batch {
                tokens: Vec::new(),
                targets: Vec::new(),
                lengths: Vec::new(),
            });
        }
        let batch = self.batches.last_mut().expect("one was pushed");
        batch.tokens.extend_from_slice(tokens);
        batch.targets.extend_from_slice(targets);
        batch.lengths.push(tokens.len());
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.batches.iter().map(|batch| batch.tokens.len()).sum()
    }

    /// What takes the text through a checkpoint.
    pub fn ctx(&self, pool: &Arc<Pool>) -> Ctx {
        let mut ctx = Ctx::new(Arc::clone(pool));
        ctx.compute = self.compute;
        ctx
    }

    /// The decoder's loss in nats a token, on the same footing as a checkpoint's; `step` is told of the tokens of each batch and may end it.
    pub fn loss(
        &self,
        pool: &Arc<Pool>,
        decoder: &Decoder,
        step: &mut dyn FnMut(usize) -> Result<(), CompressError>,
    ) -> Result<f64, CompressError> {
        let mut ctx = self.ctx(pool);
        let mut sum = 0.0;
        for batch in &self.batches {
            let hidden = decoder.forward(&mut ctx, &batch.tokens, &batch.segments(), None);
            sum += decoder
                .token_losses(&mut ctx, &hidden, &batch.targets)
                .iter()
                .map(|&loss| f64::from(loss))
                .sum::<f64>();
            step(batch.tokens.len())?;
        }
        Ok(sum / self.tokens() as f64)
    }
}

impl Batch {
    /// Which tokens see which.
    pub fn segments(&self) -> Segments {
        Segments::packed(&self.lengths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(documents: &[&[u32]], sequence: usize, limit: usize, want: &[&[u32]]) {
        let calibration = Calibration::new(documents, sequence, limit, 100).unwrap();
        let mut pieces: Vec<&[u32]> = Vec::new();
        for batch in &calibration.batches {
            let mut start = 0;
            for &len in &batch.lengths {
                pieces.push(&batch.tokens[start..start + len]);
                // Documents count up, so that a token's target is known.
                assert!((start..start + len).all(|i| batch.targets[i] == batch.tokens[i] + 1));
                start += len;
            }
            assert_eq!((start, start), (batch.tokens.len(), batch.targets.len()));
        }
        assert_eq!(pieces, want);
        assert!(calibration.tokens() <= limit);
    }

    #[test]
    fn documents_are_cut_and_every_token_is_followed_by_its_target() {
        check(
            &[&[1, 2, 3, 4, 5, 6], &[], &[9], &[20, 21]],
            3,
            99,
            &[&[1, 2, 3], &[4, 5], &[20]],
        );
    }

    #[test]
    fn a_limit_takes_pieces_from_all_over_and_never_more() {
        let long: Vec<u32> = (0..41).collect();
        check(
            &[&long],
            4,
            12,
            &[&[4, 5, 6, 7], &[16, 17, 18, 19], &[32, 33, 34, 35]],
        );
        check(&[&long], 8, 3, &[&[16, 17, 18]]);
    }

    #[test]
    fn text_that_cannot_be_used_is_refused() {
        let refused = |documents: &[&[u32]], part: &str| {
            let problem = Calibration::new(documents, 8, 99, 100)
                .err()
                .unwrap()
                .to_string();
            assert!(problem.contains(part), "{problem}");
        };
        refused(&[&[1, 2], &[3, 100]], "token 100 in document 1");
        refused(&[], "no document");
        refused(&[&[1], &[2]], "no document of two tokens");
    }
}
