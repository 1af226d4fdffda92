//! What a rank of a mesh costs: memory, and bytes sent in a step. Formulas only; nothing is run. docs/parallel.md derives them.
//!
//! Bytes are exact where every micro-batch has all its tokens, as a stream's have. The peak of memory is the larger of two
//! moments: the loss, when all that is kept for the backward pass is there beside the table, and the block after it, when its
//! gradients come. With one micro-batch a step, the end of the backward pass is a third: then all gradients are there.

mod expected;

use std::fmt;

use russet_kernels::ROW_BLOCK;
use russet_model::{Config, Cut};
use russet_tensor::MeshShape;
use russet_tensor::collective::share;
use russet_tensor::mesh::{AXES, Axis, Moved};
use russet_tensor::ring;
use serde::Serialize;
use serde::ser::SerializeMap;

use crate::check::packing;
use crate::settings::{OptimizerSettings, Recompute, Settings};

pub use expected::{Expected, Outlook};

const FLOAT: usize = size_of::<f32>();
/// Numbers of the step's sums beside those of each source; see `ranks.rs`.
const SUMS: usize = 4;
/// Bytes of a vote.
const VOTE: usize = 2;
/// Ranks whose plans are looked at one by one; of more, the first and the last.
const MOST_PLANS: usize = 64;

/// What one rank has and does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RankPlan {
    /// Weights that it has.
    pub parameters: usize,
    /// Their bytes.
    pub weights: usize,
    /// Those of their gradients.
    pub gradients: usize,
    /// Those of the optimizer's moments, and of the running mean.
    pub optimizer: usize,
    /// Those of the copy that is written while training goes on.
    pub saving: usize,
    /// The most of what comes and goes in a step, beside the gradients: activations, and parameters brought together.
    pub passing: usize,
    /// The most bytes at one time, all in all.
    pub peak: usize,
    /// Bytes of blocks' parameters sent in a step before they are needed, which are part of what goes along fsdp.
    pub ahead: u64,
    /// Bytes sent in a step.
    #[serde(serialize_with = "by_axis")]
    pub moved: Moved,
}

/// What a mesh costs: the most that any of its ranks does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MeshPlan {
    /// Ranks.
    pub ranks: usize,
    /// Along data, fsdp, sequence and tensor.
    pub mesh: [usize; 4],
    /// The rank with the highest peak.
    pub rank: RankPlan,
    /// Bytes of all ranks at one time.
    pub peak_of_all: usize,
}

fn by_axis<S: serde::Serializer>(moved: &Moved, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(AXES.len() + 1))?;
    for axis in AXES {
        map.serialize_entry(axis.name(), &moved.along[axis as usize])?;
    }
    map.serialize_entry("across", &moved.across)?;
    map.end()
}

impl MeshPlan {
    /// The plan of resolved settings; `None` for one rank.
    pub(crate) fn new(config: &Config, settings: &Settings) -> Option<MeshPlan> {
        let mesh = settings.parallel.mesh();
        let ranks = mesh.ranks();
        if ranks == 1 || russet_model::cut::check(config, mesh.size(Axis::Tensor)).is_err() {
            return None;
        }
        let looked_at: Vec<usize> = match ranks <= MOST_PLANS {
            true => (0..ranks).collect(),
            false => vec![0, ranks - 1],
        };
        let plans: Vec<RankPlan> = looked_at
            .iter()
            .map(|&rank| RankPlan::new(config, settings, rank))
            .collect();
        let sum: usize = plans.iter().map(|plan| plan.peak).sum();
        let most = plans.iter().max_by_key(|plan| plan.peak);
        Some(MeshPlan {
            ranks,
            mesh: mesh.sizes,
            rank: *most.expect("at least two"),
            peak_of_all: (sum as f64 * ranks as f64 / plans.len() as f64) as usize,
        })
    }
}

impl RankPlan {
    /// The plan of a rank under resolved settings.
    ///
    /// # Panics
    /// When the mesh does not divide the model or the batch, which is checked with the settings.
    pub fn new(config: &Config, settings: &Settings, rank: usize) -> RankPlan {
        let shapes = Shapes::new(config, settings, rank);
        let floats: usize = shapes.cuts.iter().map(Cut::len).sum();
        let means = usize::from(settings.train.ema > 0.0);
        let every = settings.train.checkpoint_every;
        let saves = every > 0 && every < settings.train.steps.expect("resolved");
        let speaks = shapes.cuts.iter().any(|cut| cut.owned && !cut.is_empty());
        let (gradients, passing) = shapes.peak(settings);
        let (weights, optimizer) = (FLOAT * floats, FLOAT * floats * (2 + means));
        let saving = match saves && speaks {
            true => weights + optimizer,
            false => 0,
        };
        RankPlan {
            parameters: floats,
            weights,
            gradients: weights,
            optimizer,
            saving,
            passing: FLOAT * passing,
            peak: weights + optimizer + saving + FLOAT * (gradients + passing),
            ahead: shapes.ahead(),
            moved: shapes.moved(settings),
        }
    }
}

/// Sizes of a rank's part.
struct Shapes<'a> {
    config: &'a Config,
    mesh: MeshShape,
    place: [usize; 4],
    cuts: Vec<Cut>,
    micro_batches: Vec<usize>, // tokens of each
}

impl<'a> Shapes<'a> {
    fn new(config: &'a Config, settings: &Settings, rank: usize) -> Shapes<'a> {
        let (mesh, packing) = (settings.parallel.mesh(), packing(settings));
        let places = mesh.size(Axis::Data) * mesh.size(Axis::Fsdp);
        let own = packing.batch_sequences / places;
        let micro = packing.micro_batch_sequences;
        let micro_batches = (0..own)
            .step_by(micro)
            .map(|first| micro.min(own - first) * packing.sequence_length)
            .collect();
        Shapes {
            config,
            mesh,
            place: mesh.place(rank),
            cuts: Cut::all(config, mesh, rank),
            micro_batches,
        }
    }

    fn size(&self, axis: Axis) -> usize {
        self.mesh.size(axis)
    }

    fn at(&self, axis: Axis) -> usize {
        self.place[axis as usize]
    }

    /// Tokens of a micro-batch that a place along `sequence` has, this one or one behind it.
    fn tokens(&self, micro_batch: usize, behind: usize) -> usize {
        let size = self.size(Axis::Sequence);
        ring::rows(micro_batch, size, (self.at(Axis::Sequence) + behind) % size)
    }

    /// Own part of `total`, and what is the others'.
    fn split(&self, axis: Axis, total: usize) -> (usize, usize) {
        let own = share(total, self.size(axis), self.at(axis)).len();
        (own, total - own)
    }

    /// Floats that a gather of `total` sends: the own part to each other.
    fn gather(&self, axis: Axis, total: usize) -> usize {
        self.split(axis, total).0 * (self.size(axis) - 1)
    }

    /// Floats that a sum of parts sends.
    fn scatter(&self, axis: Axis, total: usize) -> usize {
        self.split(axis, total).1
    }

    fn tables(&self) -> impl Iterator<Item = &Cut> {
        let is_table = |cut: &&Cut| cut.kind == russet_model::ParameterKind::Embedding;
        self.cuts.iter().filter(is_table)
    }

    /// Floats of a cut's pieces together.
    fn whole(cut: &Cut) -> usize {
        cut.shape().iter().product()
    }

    /// Bytes of the blocks' parameters, forward and backward, that go to the ranks along fsdp.
    fn ahead(&self) -> u64 {
        let blocks = self.cuts.iter().filter(|cut| in_block(cut));
        let gathers = blocks.map(|cut| 2 * self.gather(Axis::Fsdp, Self::whole(cut)));
        (FLOAT * self.micro_batches.len() * gathers.sum::<usize>()) as u64
    }

    fn moved(&self, settings: &Settings) -> Moved {
        let recomputes = settings.compute.recompute == Recompute::Block;
        let (layers, width) = (self.config.layers, self.config.width);
        let mut along = [0; 4];

        // Rows, around each product of a block and at both ends.
        if self.size(Axis::Tensor) > 1 {
            let again = usize::from(recomputes);
            for &micro_batch in &self.micro_batches {
                let tokens = self.tokens(micro_batch, 0);
                let rows = share(tokens, self.size(Axis::Tensor), self.at(Axis::Tensor)).len();
                let gather = rows * width * (self.size(Axis::Tensor) - 1);
                let scatter = (tokens - rows) * width;
                let said = 2 * tokens * (self.size(Axis::Tensor) - 1);
                let gathers = layers * (6 + 2 * again) + 2;
                let scatters = layers * (4 + 2 * again) + 2;
                along[Axis::Tensor as usize] += gathers * gather + scatters * scatter + said;
            }
            for cut in self.cuts.iter().filter(|cut| cut.replicated) {
                let sum =
                    self.scatter(Axis::Tensor, cut.len()) + self.gather(Axis::Tensor, cut.len());
                along[Axis::Tensor as usize] += sum;
            }
        }
        // Parameters: forward and backward, the tables and the last norm once where they are used; each time a sum of gradients.
        if self.size(Axis::Fsdp) > 1 {
            for cut in &self.cuts {
                let whole = Self::whole(cut);
                let uses = match (cut.kind, in_block(cut)) {
                    (russet_model::ParameterKind::Embedding, _) if self.config.tied => (2, 2),
                    (_, true) => (2, 1),
                    _ => (1, 1),
                };
                let floats = uses.0 * self.gather(Axis::Fsdp, whole)
                    + uses.1 * self.scatter(Axis::Fsdp, whole);
                along[Axis::Fsdp as usize] += self.micro_batches.len() * floats;
            }
        }
        // Keys and values go round, forward and backward, and their gradients behind them and home.
        if self.size(Axis::Sequence) > 1 {
            let width = 2 * self.config.kv_heads / self.size(Axis::Tensor) * self.config.head_dim;
            let rounds = 2 + usize::from(recomputes);
            for &micro_batch in &self.micro_batches {
                let but_next = micro_batch - self.tokens(micro_batch, 1);
                let but_own = micro_batch - self.tokens(micro_batch, 0);
                along[Axis::Sequence as usize] += layers * width * (rounds * but_next + but_own);
            }
        }
        // Over data and sequence together.
        let replicas = self.size(Axis::Data) * self.size(Axis::Sequence);
        if replicas > 1 {
            let place = self.at(Axis::Data) * self.size(Axis::Sequence) + self.at(Axis::Sequence);
            for cut in &self.cuts {
                let own = share(cut.len(), replicas, place).len();
                along[Axis::Data as usize] += cut.len() - own + own * (replicas - 1);
            }
        }
        let others = self.mesh.ranks() - 1;
        let sources = settings.data.mixture.len().max(1);
        let mut across = others * (VOTE + size_of::<f64>() * (SUMS + sources));
        if let OptimizerSettings::AdaStar(_) = settings.optimizer {
            let blocks: usize = self.cuts.iter().map(|cut| cut.parts.len()).sum();
            let others = self.size(Axis::Fsdp) * self.size(Axis::Tensor) - 1;
            across += others * size_of::<f64>() * blocks;
        }
        Moved {
            along: along.map(|floats| (FLOAT * floats) as u64),
            across: across as u64,
        }
    }

    /// Floats of gradients and of all else that comes and goes, at the moment when they are most together.
    fn peak(&self, settings: &Settings) -> (usize, usize) {
        let Config {
            width,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn,
            ..
        } = *self.config;
        let tensor = self.size(Axis::Tensor);
        let (heads, kv_heads, ffn) = (heads / tensor, kv_heads / tensor, ffn / tensor);
        let tokens = self.tokens(self.micro_batches[0], 0);
        let in_ring = self.size(Axis::Sequence) > 1;
        let rows = share(tokens, tensor, self.at(Axis::Tensor)).len();
        let in_parts = tensor > 1;
        let in_pieces = self.size(Axis::Fsdp) > 1;

        // What a block keeps: two residual streams of own rows, and of all rows what own heads and features make.
        let qkv = (heads + 2 * kv_heads) * head_dim;
        let attention =
            rows * (width + 1) + tokens * (2 * qkv + heads * head_dim + 2 * heads + kv_heads);
        let feed_forward = rows * (width + 1) + 2 * tokens * ffn;
        // What layers without keys and values spare; and keys that later layers use, with their gradients.
        let kv = 2 * kv_heads * head_dim;
        let spared = tokens * self.config.attention.kv_shared * (2 * kv + kv_heads);
        let lent = tokens * self.config.lenders() * 2 * kv;
        // What the way back through its feed-forward layer takes, and through its attention.
        let brought = if in_parts { 2 * tokens * width } else { 0 };
        let back = match in_parts {
            false => 3 * tokens * ffn + 2 * rows * width,
            // Through the activation; through gate and up, when what they made has gone; through down.
            true => {
                let down = 2 * tokens * ffn + tokens * width;
                (3 * tokens * ffn).max(brought).max(down) + 2 * rows * width
            }
        };
        // Keys that came by, gradients that did, and room for what comes next.
        let travelling = match in_ring {
            true => tokens * (qkv + heads * head_dim + 6 * kv_heads * head_dim),
            false => 0,
        };
        let back_attention = (tokens * (2 * qkv + heads * head_dim))
            .max(tokens * qkv + brought)
            .max(travelling)
            + 2 * rows * width;
        let (kept, back) = match settings.compute.recompute {
            Recompute::None => (layers * (attention + feed_forward) - spared + lent, back),
            Recompute::Block if in_parts || in_pieces => (
                layers * rows * width + attention + feed_forward + lent,
                back,
            ),
            Recompute::Block => {
                let some = tokens.min(ROW_BLOCK) * (2 * ffn + width + 3 * ffn + 2 * width);
                (
                    layers * rows * width + attention + lent,
                    some.max(back_attention),
                )
            }
        };
        // Behind the blocks: the last norm's input and output, and its gradient.
        let behind = 3 * rows * width;
        let block: usize = self
            .cuts
            .iter()
            .filter(|cut| cut.parts[0].name.contains(".layers.0."))
            .map(Self::whole)
            .sum();
        let table = self.tables().map(Self::whole).max().unwrap_or(0);
        let own: usize = self.cuts.iter().map(Cut::len).sum();
        let own_table = self.tables().map(Cut::len).max().unwrap_or(0);
        let own_block = match layers {
            0 => 0,
            _ => (own - self.tables().map(Cut::len).sum::<usize>()) / layers,
        };
        // The table and its gradient, whole, at the loss; two blocks and a block's gradients behind it.
        let (tables, blocks) = match in_pieces {
            true => (2 * table, 3 * block),
            false => (0, 0),
        };
        let (at_loss, at_block) = match settings.compute.recompute {
            Recompute::None => (
                kept + behind + brought + tables,
                kept + behind + back + blocks,
            ),
            Recompute::Block => {
                let inputs = layers * rows * width + lent;
                (inputs + behind + brought + tables, kept + back + blocks)
            }
        };
        let at_attention = match settings.compute.recompute {
            Recompute::Block if !in_parts && !in_pieces => 0, // counted
            _ if in_ring => kept - feed_forward + back_attention + blocks,
            _ => 0,
        };
        let at_block = at_block.max(at_attention);
        if self.micro_batches.len() > 1 {
            // Of the micro-batches before all gradients are there.
            return (own, at_loss.max(at_block));
        }
        let one_block = kept / layers.max(1);
        let moments = [
            (if in_pieces { 0 } else { own_table }, at_loss),
            (own_table + if in_pieces { 0 } else { own_block }, at_block),
            (own, one_block + back + blocks),
        ];
        let most = moments
            .iter()
            .max_by_key(|(gradients, passing)| gradients + passing);
        *most.expect("three moments")
    }
}

fn in_block(cut: &Cut) -> bool {
    cut.parts[0].name.contains(".layers.")
}

impl fmt::Display for MeshPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / (1u64 << 20) as f64;
        let mesh = MeshShape { sizes: self.mesh };
        let rank = &self.rank;
        writeln!(
            f,
            "ranks    {}: each {:.2} M parameters and {:.1} MiB at most: weights {:.1}, gradients {:.1}, optimizer {:.1}, a save \
             {:.1}, activations and parameters brought together {:.1}",
            mesh.ranks(),
            rank.parameters as f64 / 1e6,
            mib(rank.peak),
            mib(rank.weights),
            mib(rank.gradients),
            mib(rank.optimizer),
            mib(rank.saving),
            mib(rank.passing)
        )?;
        write!(
            f,
            "each sends {:.2} MiB a step",
            mib(rank.moved.total() as usize)
        )?;
        for axis in AXES {
            let bytes = rank.moved.along[axis as usize] as usize;
            if bytes > 0 {
                write!(f, ", along {} {:.2}", axis.name(), mib(bytes))?;
            }
        }
        Ok(())
    }
}
