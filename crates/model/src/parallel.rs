//! A decoder on a mesh: every rank has a part of the weights and of the tokens' rows, and runs the same forward pass.
//!
//! ```text
//! tensor   x [n, D] ─▶ gather_rows ─▶ qkv, gate_up (own rows) ─▶ [N, own heads or features] ─▶ output, down (own columns)
//!          ─▶ scatter_rows ─▶ [n, D]: norms and residuals see own tokens, attention own heads
//!          (arXiv 1909.08053, with the sequence parallelism of arXiv 2205.05198)
//! fsdp     each block's parameters, and the tables, come together just before their use, and the next block's are under way
//! sequence attention alone: keys and values travel round. Each rank has its tokens from the lookup to the loss
//! data     nothing: the loop adds gradients up
//! ```

use std::sync::Arc;

use russet_kernels::random;
use russet_tensor::mesh::{Axis, Group, Mesh};
use russet_tensor::ops::{self, LossTerms, Pieces, TablePart, TokenLoss, Unit};
use russet_tensor::ring::Ring;
use russet_tensor::{Ctx, MeshShape, Segments, Tensor};

use crate::block::Block;
use crate::cut::Cut;
use crate::{Config, Decoder, Dense, Embedding, Layout, Linear, Parameter, ParameterKind};

/// A product whose output features are shared out over `tensor`. It takes the rows that this rank has, and gives all rows of
/// its own features.
pub struct ColumnParallel {
    base: Dense,
    group: Arc<Group>,
}

/// A product whose input features are shared out over `tensor`. It takes all rows of its own features, and gives the rows
/// that this rank has.
pub struct RowParallel {
    base: Dense,
    group: Arc<Group>,
}

impl ColumnParallel {
    /// Of the rows that this rank has of the weight.
    pub fn new(base: Dense, group: Arc<Group>) -> ColumnParallel {
        ColumnParallel { base, group }
    }
}

impl RowParallel {
    /// Of the columns that this rank has of the weight.
    pub fn new(base: Dense, group: Arc<Group>) -> RowParallel {
        RowParallel { base, group }
    }
}

impl Linear for ColumnParallel {
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        let x = ops::gather_rows(ctx, &self.group, x); // [N, D]
        self.base.forward(ctx, &x)
    }

    fn layout(&self) -> &Layout {
        self.base.layout()
    }

    fn stored_bytes(&self) -> usize {
        self.base.stored_bytes()
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(Parameter<'a>)) {
        self.base.visit(visit);
    }

    fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        self.base.visit_mut(visit);
    }
}

impl Linear for RowParallel {
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        let partial = self.base.forward(ctx, x); // [N, D]
        ops::scatter_rows(ctx, &self.group, &partial)
    }

    fn layout(&self) -> &Layout {
        self.base.layout()
    }

    fn stored_bytes(&self) -> usize {
        self.base.stored_bytes()
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(Parameter<'a>)) {
        self.base.visit(visit);
    }

    fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        self.base.visit_mut(visit);
    }
}

/// How a decoder's parameters lie on a mesh.
pub(crate) struct Sharding {
    pub mesh: Arc<Mesh>,
    pub cuts: Vec<Cut>, // in the order of `Decoder::parameters`
    local: Arc<Config>, // the shape of what one place along `tensor` has
    units: Option<Units>,
}

/// What comes together along `fsdp` at a time.
struct Units {
    embedding: Arc<Unit>,
    blocks: Vec<Arc<Unit>>,
    norm: Arc<Unit>,
    head: Arc<Unit>, // of the output table, which may be the embedding
}

/// What a block needs of the ranks that have pieces of it.
pub(crate) struct BlockPieces {
    local: Arc<Config>,
    group: Option<Arc<Group>>,
    layer: usize,
    own: Pieces,
    before: Option<Pieces>,
    after: Pieces,
}

impl BlockPieces {
    /// The whole block of this place along `tensor`; sends for the next one's parameters.
    pub(crate) fn gather(&self, ctx: &mut Ctx) -> Block {
        self.own.0.begin(ctx, &self.own.1);
        if !ctx.replays() {
            self.after.0.begin(ctx, &self.after.1);
        }
        let whole = ops::gather_parameters(ctx, self.own.clone(), self.before.clone());
        let group = self.group.as_ref();
        Block::of_tensors(
            &self.local,
            self.layer,
            &mut whole.into_iter(),
            group,
            Dense::new,
        )
    }
}

impl Sharding {
    fn new(config: &Config, mesh: &Arc<Mesh>) -> Sharding {
        let tensor = mesh.size(Axis::Tensor);
        let cuts = Cut::all(config, mesh.shape(), mesh.rank());
        let local = Config {
            heads: config.heads / tensor,
            kv_heads: config.kv_heads / tensor,
            ffn: config.ffn / tensor,
            vocab: config.vocab / tensor,
            ..config.clone()
        };
        let group = mesh.along(Axis::Fsdp);
        let units = (group.size() > 1).then(|| {
            let unit = |cuts: &[Cut]| {
                let shapes = cuts.iter().map(Cut::shape).collect();
                Arc::new(Unit::new(group.clone(), shapes))
            };
            let mut blocks_end = 1;
            let mut blocks = Vec::with_capacity(config.layers);
            for layer in 0..config.layers {
                let start = blocks_end;
                blocks_end += parameters_of_block(config, layer);
                blocks.push(unit(&cuts[start..blocks_end]));
            }
            let head = if config.tied { 0 } else { blocks_end + 1 };
            Units {
                embedding: unit(&cuts[..1]),
                blocks,
                norm: unit(&cuts[blocks_end..=blocks_end]),
                head: unit(&cuts[head..=head]),
            }
        });
        Sharding {
            mesh: mesh.clone(),
            cuts,
            local: Arc::new(local),
            units,
        }
    }

    /// The group along `tensor`, where there is more than one rank in it.
    fn tensor_group(&self) -> Option<&Arc<Group>> {
        Some(self.mesh.along(Axis::Tensor)).filter(|group| group.size() > 1)
    }

    /// The group along `sequence`, where there is more than one rank in it.
    pub(crate) fn sequence_group(&self) -> Option<&Arc<Group>> {
        Some(self.mesh.along(Axis::Sequence)).filter(|group| group.size() > 1)
    }

    /// Who attends to whom, where tokens are shared out.
    pub(crate) fn ring(&self, segments: &Segments) -> Option<Arc<Ring>> {
        let group = self.sequence_group()?;
        Some(Arc::new(Ring::new(group, segments)))
    }

    /// The heads that this rank has.
    pub(crate) fn local(&self) -> &Config {
        &self.local
    }

    /// Whether a block's ranks do it together.
    pub(crate) fn cuts_blocks(&self) -> bool {
        self.units.is_some() || self.tensor_group().is_some()
    }

    /// How a block comes together, where it is in pieces.
    pub(crate) fn block(&self, decoder: &Decoder, layer: usize) -> Option<BlockPieces> {
        let units = self.units.as_ref()?;
        let of = |layer: usize| {
            let mut tensors = Vec::new();
            decoder.blocks[layer].visit(layer, &mut |parameter| {
                tensors.push(parameter.tensor.clone());
            });
            (units.blocks[layer].clone(), tensors)
        };
        Some(BlockPieces {
            local: self.local.clone(),
            group: self.tensor_group().cloned(),
            layer,
            own: of(layer),
            before: layer.checked_sub(1).map(of),
            after: match layer + 1 < units.blocks.len() {
                true => of(layer + 1),
                false => (units.norm.clone(), vec![decoder.norm.clone()]),
            },
        })
    }

    /// A tensor that is a unit of its own, whole.
    fn whole(&self, ctx: &mut Ctx, unit: impl Fn(&Units) -> &Arc<Unit>, tensor: &Tensor) -> Tensor {
        let Some(units) = &self.units else {
            return tensor.clone();
        };
        let pieces = (unit(units).clone(), vec![tensor.clone()]);
        let mut whole = ops::gather_parameters(ctx, pieces, None);
        whole.pop().expect("one tensor")
    }

    /// The rows `[n, D]` that this rank has of the vectors of its tokens along `sequence`.
    pub(crate) fn lookup(&self, ctx: &mut Ctx, table: &Tensor, tokens: &[u32]) -> Tensor {
        let table = self.whole(ctx, |units| &units.embedding, table);
        match self.tensor_group() {
            None => ops::embedding(ctx, &table, tokens),
            Some(group) => {
                let first = group.rank() * self.local.vocab;
                let partial = ops::embedding_part(ctx, &table, first, tokens);
                ops::scatter_rows(ctx, group, &partial)
            }
        }
    }

    pub(crate) fn last_norm(&self, ctx: &mut Ctx, norm: &Tensor) -> Tensor {
        self.whole(ctx, |units| &units.norm, norm)
    }

    /// As [`Decoder::loss_with`], of the rows of `hidden` that this rank has, and the targets and weights of its tokens along
    /// `sequence`.
    ///
    /// # Panics
    /// When there is a teacher and a vocabulary in parts: settings are checked.
    pub(crate) fn loss(
        &self,
        ctx: &mut Ctx,
        hidden: &Tensor,
        table: &Tensor,
        targets: &[u32],
        weights: &[f32],
        terms: &LossTerms,
    ) -> TokenLoss {
        let table = self.whole(ctx, |units| &units.head, table);
        let Some(group) = self.tensor_group() else {
            return ops::cross_entropy(ctx, hidden, &table, targets, weights, terms);
        };
        assert!(
            terms.teacher.is_none(),
            "a teacher's loss needs the whole vocabulary on each rank"
        );
        let part = TablePart {
            group,
            table: &table,
            first: group.rank() * self.local.vocab,
        };
        ops::cross_entropy_part(ctx, hidden, &part, targets, weights, terms.z_loss)
    }
}

/// Parameters of a block.
fn parameters_of_block(config: &Config, layer: usize) -> usize {
    match config.family {
        crate::Family::Qwen3 if config.shares_keys(layer) => 7, // no norm of keys
        crate::Family::Qwen3 => 8,
        crate::Family::Llama => 6,
    }
}

impl Decoder {
    /// This rank's part of a decoder, all of it without a mesh, of numbers that `make` makes for each parameter, counted in the
    /// order of [`Decoder::parameters`].
    ///
    /// # Errors
    /// Those of `make`.
    ///
    /// # Panics
    /// When the mesh does not divide the model; [`crate::cut::check`] says so before.
    pub fn on_mesh<E>(
        config: &Config,
        mesh: Option<&Arc<Mesh>>,
        mut make: impl FnMut(usize, &Cut) -> Result<Vec<f32>, E>,
    ) -> Result<Decoder, E> {
        const ONE: MeshShape = MeshShape { sizes: [1; 4] };
        let sharding = mesh.map(|mesh| Sharding::new(config, mesh));
        let alone = match &sharding {
            Some(_) => Vec::new(),
            None => Cut::all(config, ONE, 0),
        };
        let cuts = sharding.as_ref().map_or(&alone, |sharding| &sharding.cuts);
        let in_pieces = sharding.as_ref().is_some_and(|s| s.units.is_some());
        let mut tensors = Vec::with_capacity(cuts.len());
        for (number, cut) in cuts.iter().enumerate() {
            let shape = match in_pieces {
                true => vec![cut.len()],
                false => cut.shape(),
            };
            tensors.push(Tensor::new(&shape, make(number, cut)?));
        }
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().expect("a tensor for each parameter");
        let embedding = Embedding::Dense(next());
        let local = sharding.as_ref().map_or(config, |sharding| &sharding.local);
        let group = sharding.as_ref().and_then(Sharding::tensor_group);
        let dense = if in_pieces {
            Dense::of_piece
        } else {
            Dense::new
        };
        let blocks = (0..config.layers)
            .map(|layer| {
                Block::of_tensors(
                    local,
                    layer,
                    &mut std::iter::from_fn(|| Some(next())),
                    group,
                    dense,
                )
            })
            .collect();
        let norm = next();
        let head = (!config.tied).then(|| Embedding::Dense(next()));
        let mut decoder = Decoder::new(config.clone(), embedding, blocks, norm, head);
        decoder.sharding = sharding;
        Ok(decoder)
    }

    /// This rank's part of [`Decoder::random`], all of it without a mesh: the same weights, whatever the mesh.
    pub fn random_on_mesh(config: &Config, seed: u64, mesh: Option<&Arc<Mesh>>) -> Decoder {
        let mut stream = 0;
        let made = Decoder::on_mesh(config, mesh, |_, cut| {
            if cut.kind == ParameterKind::Norm {
                return Ok::<_, std::convert::Infallible>(vec![1.0; cut.len()]);
            }
            stream += 1;
            let width = cut.parts[0].width();
            let deviation = (width as f32).sqrt().recip();
            // The stream runs over the packed matrix: a part's rows stand behind those of the parts before.
            let firsts: Vec<usize> = cut
                .parts
                .iter()
                .scan(0, |rows, part| {
                    let first = *rows;
                    *rows += part.shape[0];
                    Some(first)
                })
                .collect();
            let mut values = Vec::with_capacity(cut.len());
            for run in cut.runs() {
                let row = (firsts[run.part] + run.row) * width;
                let normal = |column| random::normal(seed, stream, (row + column) as u64);
                values.extend(run.columns.map(|column| deviation * normal(column)));
            }
            Ok(values)
        });
        let Ok(decoder) = made;
        decoder
    }

    /// The mesh that it lies on, if it is not whole.
    pub fn mesh(&self) -> Option<&Arc<Mesh>> {
        self.sharding.as_ref().map(|sharding| &sharding.mesh)
    }
}

#[cfg(test)]
pub(crate) mod tests;
