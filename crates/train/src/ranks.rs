//! What the ranks of a run say to one another in a step, beside what the model says.
//!
//! ```text
//! vote              one of us is to stop, so all stop; how our parts of the last save came out
//! gradients         Σ over data and sequence; those of norms, which all along tensor have, over tensor too
//! loss, norm, …     Σ over all, in the order of the ranks
//! ```
//! A run without a mesh says nothing, and nothing of it is another bit.

use std::sync::Arc;

use russet_model::{Decoder, Parameter};
use russet_tensor::mesh::{Axis, Group, Mesh};
use russet_tensor::{Ctx, Gradients, Tensor};

use crate::loader::{Batch, Origin};

/// The ranks of a run.
#[derive(Clone)]
pub(crate) struct Ranks(Option<Arc<Mesh>>);

/// What is added up over the ranks once a step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    /// The step's loss.
    pub loss: f64,
    /// Squares of all gradients.
    pub squares: f64,
    /// Tokens.
    pub tokens: u64,
    /// Those of each source.
    pub tokens_by_source: Vec<u64>,
    /// Operations.
    pub flops: f64,
}

/// How a rank's part of a save came out, or all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Saved {
    /// It is on the disk.
    Whole,
    /// It is not on the disk and will not be.
    Failed,
    /// It is being written: as long as one of the ranks does, nothing is decided.
    Pending,
}

impl Ranks {
    /// Those of a decoder.
    pub(crate) fn of(decoder: &Decoder) -> Ranks {
        Ranks(decoder.mesh().cloned())
    }

    pub(crate) fn mesh(&self) -> Option<&Arc<Mesh>> {
        self.0.as_ref()
    }

    /// Whether this rank speaks to people and keeps the files that all have in common.
    pub(crate) fn is_first(&self) -> bool {
        self.0.as_ref().is_none_or(|mesh| mesh.rank() == 0)
    }

    /// Whether one of the ranks wants to stop, and how a save came out: the last of what the ranks say of it.
    pub(crate) fn vote(&self, stop: bool, saved: Saved) -> (bool, Saved) {
        let Some(mesh) = &self.0 else {
            return (stop, saved);
        };
        let heard = mesh.all().all_gather_bytes(&[u8::from(stop), saved as u8]);
        let stop = heard.iter().any(|said| said[0] != 0);
        let saved = match heard.iter().map(|said| said[1]).max() {
            Some(0) => Saved::Whole,
            Some(1) => Saved::Failed,
            _ => Saved::Pending,
        };
        (stop, saved)
    }

    /// Whether one of the ranks says so.
    pub(crate) fn any(&self, own: bool) -> bool {
        let Some(mesh) = &self.0 else { return own };
        let heard = mesh.all().all_gather_bytes(&[u8::from(own)]);
        heard.iter().any(|said| said[0] != 0)
    }

    /// What the first rank says.
    pub(crate) fn hear_first(&self, said: String) -> String {
        let Some(mesh) = &self.0 else { return said };
        let mut heard = mesh.all().all_gather_bytes(said.as_bytes());
        String::from_utf8_lossy(&heard.swap_remove(0)).into_owned()
    }

    /// Adds up what the ranks have of the gradients. Afterwards all ranks that have a parameter have its whole gradient, or
    /// its piece of it.
    pub(crate) fn add_gradients(&self, ctx: &Ctx, decoder: &Decoder, gradients: &mut Gradients) {
        let Some(mesh) = &self.0 else {
            return;
        };
        let parameters = decoder.parameters();
        let add = |group: &Group, of: &[&Parameter], gradients: &mut Gradients| {
            if group.size() == 1 || of.is_empty() {
                return;
            }
            let take = |parameter: &&Parameter| {
                let tensor = parameter.tensor;
                let none = || Tensor::new(tensor.shape(), ctx.zeros(tensor.len()));
                gradients.take(tensor).unwrap_or_else(none)
            };
            let own = of.iter().map(take).collect();
            let sums = group.all_reduce(own, |len| ctx.buffer(len));
            for (parameter, sum) in of.iter().zip(sums) {
                gradients.put(parameter.tensor, sum);
            }
        };
        let all: Vec<&Parameter> = parameters.iter().collect();
        let replicated = |parameter: &&Parameter| parameter.cut.is_some_and(|cut| cut.replicated);
        let norms: Vec<&Parameter> = parameters.iter().filter(replicated).collect();
        add(mesh.along(Axis::Tensor), &norms, gradients);
        add(mesh.replicas(), &all, gradients);
    }

    /// Sums over all ranks. Those along `tensor` saw the same tokens, and those along `sequence` have counted the same ones, of
    /// which the first speaks.
    pub(crate) fn add(&self, own: Sums) -> Sums {
        let Some(mesh) = &self.0 else {
            return own;
        };
        let mut said = vec![own.loss, own.squares, own.tokens as f64, own.flops];
        said.extend(own.tokens_by_source.iter().map(|&count| count as f64));
        let mut sums = Sums {
            tokens_by_source: vec![0; own.tokens_by_source.len()],
            ..Sums::default()
        };
        for (rank, heard) in mesh.all().all_gather_f64(&said).into_iter().enumerate() {
            sums.squares += heard[1];
            let [_, _, sequence, tensor] = mesh.shape().place(rank);
            if tensor == 0 {
                sums.loss += heard[0];
            }
            if (sequence, tensor) != (0, 0) {
                continue;
            }
            sums.tokens += heard[2] as u64;
            sums.flops += heard[3];
            for (sum, count) in sums.tokens_by_source.iter_mut().zip(&heard[4..]) {
                *sum += *count as u64;
            }
        }
        sums
    }

    /// Where all batches of a step come from, in the order of the ranks; asked only where a person is to be told.
    pub(crate) fn origins(&self, batches: &[Batch]) -> Vec<Origin> {
        let own = batches.iter().flat_map(|batch| batch.origins.clone());
        let Some(mesh) = &self.0 else {
            return own.collect();
        };
        let numbers = |origin: Origin| {
            let Origin {
                source,
                documents,
                targets,
            } = origin;
            let ends = [documents.start, documents.end, targets.start, targets.end];
            std::iter::once(source)
                .chain(ends)
                .map(|number| number as f64)
        };
        let said: Vec<f64> = own.flat_map(numbers).collect();
        let mut origins = Vec::new();
        for (rank, heard) in mesh.all().all_gather_f64(&said).into_iter().enumerate() {
            if let [_, _, 0, 0] = mesh.shape().place(rank) {
                for numbers in heard.as_chunks::<5>().0 {
                    let [source, first, end, start, stop] = numbers.map(|number| number as usize);
                    origins.push(Origin {
                        source,
                        documents: first..end,
                        targets: start..stop,
                    });
                }
            }
        }
        origins
    }
}

/// Which share of a step's sequences a rank has, and of how many.
pub(crate) fn place_in_data(mesh: Option<&Arc<Mesh>>) -> (usize, usize) {
    mesh.map_or((0, 1), |mesh| {
        let fsdp = mesh.size(Axis::Fsdp);
        let place = mesh.place(Axis::Data) * fsdp + mesh.place(Axis::Fsdp);
        (place, mesh.size(Axis::Data) * fsdp)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use russet_kernels::{Isa, Pool};
    use russet_tensor::{MeshShape, threads};

    use super::*;

    #[test]
    fn one_that_still_writes_keeps_a_save_open_and_one_that_failed_gives_it_up() {
        let shape = MeshShape {
            sizes: [3, 1, 1, 1],
        };
        use Saved::{Failed, Pending, Whole};
        for (own, wanted) in [
            ([Whole, Whole, Whole], Whole),
            ([Whole, Failed, Whole], Failed),
            ([Pending, Failed, Whole], Pending),
            ([Whole, Whole, Pending], Pending),
        ] {
            let heard = threads::run(shape, |mesh| {
                let ranks = Ranks(Some(mesh.clone()));
                Ok::<_, ()>(ranks.vote(mesh.rank() == 1, own[mesh.rank()]))
            });
            assert_eq!(heard.unwrap(), [(true, wanted); 3]);
        }
    }

    /// Of a vector that all have in parts, and one that is not everybody's to speak of.
    #[test]
    fn gradients_and_losses_are_added_once() {
        let config = russet_model::Config {
            vocab: 62,
            ..crate::run::tests::tiny().config().clone()
        };
        for (sequence, loss) in [(1, 1.0), (2, 2.0)] {
            let shape = MeshShape {
                sizes: [2, 2, sequence, 2],
            };
            let sums = threads::run(shape, |mesh| {
                let decoder = Decoder::random_on_mesh(&config, 1, Some(&mesh));
                let ctx = Ctx::new(Arc::new(Pool::with_isa(1, Isa::best())));
                let mut gradients = Gradients::default();
                for parameter in decoder.parameters() {
                    let ones = vec![1.0; parameter.tensor.len()];
                    gradients.put(
                        parameter.tensor,
                        Tensor::new(parameter.tensor.shape(), ones),
                    );
                }
                let ranks = Ranks::of(&decoder);
                ranks.add_gradients(&ctx, &decoder, &mut gradients);
                for parameter in decoder.parameters() {
                    // Two along data, as many along sequence, and of what is the same along tensor two there.
                    let replicated = parameter.cut.unwrap().replicated;
                    let wanted = if replicated { 4.0 } else { 2.0 } * sequence as f32;
                    let found = gradients.get(parameter.tensor).unwrap().data();
                    assert!(found.iter().all(|&sum| sum == wanted));
                }
                let squares = crate::optimizer::sum_of_squares(&ctx.pool, &decoder, &gradients);
                Ok::<_, ()>(ranks.add(Sums {
                    loss: 0.25,
                    squares,
                    tokens: 10,
                    tokens_by_source: vec![10],
                    flops: 1.0,
                }))
            });
            let norms: usize =
                (config.layers * 2 + 1) * config.width + 2 * config.layers * config.head_dim;
            let squares = sequence * sequence * (4 * (config.parameters() - norms) + 16 * norms);
            for sums in sums.unwrap() {
                // What each of them has computed of the loss, and tokens that are the same along sequence.
                assert_eq!((sums.loss, sums.tokens, sums.flops), (loss, 40, 4.0));
                assert_eq!(
                    (sums.squares, &sums.tokens_by_source[..]),
                    (squares as f64, &[40][..])
                );
            }
        }
    }
}
