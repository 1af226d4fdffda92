//! The decoder: embedding, blocks, final norm, output table. One forward pass for everything.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use russet_tensor::ops::{self, LossTerms, TokenLoss};
use russet_tensor::{Ctx, Made, Op, Segments, Tensor, ring};

use crate::block::{Block, Pass};
use crate::cut::{Cut, CutPart};
use crate::parallel::Sharding;
use crate::reward::{Judged, RewardHead};
use crate::{Config, Embedding, KvCache, KvFormat, Layout, Linear};

/// A dense decoder-only transformer: pre-norm, no biases, grouped queries, rotary positions, SwiGLU
/// (arXiv 2407.21075, section 2).
pub struct Decoder {
    config: Config,
    pub(crate) embedding: Embedding,
    pub(crate) blocks: Vec<Arc<Block>>, // shared with a tape that will run them once more
    pub(crate) norm: Tensor,            // [D]
    pub(crate) head: Option<Embedding>, // where output and input do not share one table
    reward: Option<RewardHead>,         // of a reward model
    frozen: bool,                       // tables and norms are no parameters
    pub(crate) sharding: Option<Sharding>, // where each rank of a mesh has a part
}

/// What a parameter is, which decides how optimizers treat it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParameterKind {
    /// A projection's weight.
    Matrix,
    /// A norm's weight; not decayed.
    Norm,
    /// The embedding or the output table.
    Embedding,
    /// A matrix of a low-rank adapter whose product is multiplied by `scale`.
    Adapter {
        /// `alpha / rank`.
        scale: f32,
    },
}

/// A trainable tensor under the names that its rows have in a checkpoint.
pub struct Parameter<'a> {
    /// Full tensor names with how many rows each has here, in order; a norm counts as one row.
    pub parts: Vec<(String, usize)>,
    /// What it is.
    pub kind: ParameterKind,
    /// Its values.
    pub tensor: &'a Tensor,
    /// What of it the tensor is, where a mesh shares it out; flat where it is in pieces.
    pub cut: Option<&'a Cut>,
}

/// Why a block has one owner when it is changed: a tape that would run it again is gone after the backward pass.
const ALONE: &str = "blocks are not changed between a forward pass and its backward pass";

fn alone(block: Arc<Block>) -> Block {
    Arc::into_inner(block).expect(ALONE)
}

impl Decoder {
    /// A decoder of given parts. `head` is the output table where the embedding does not serve.
    pub fn new(
        config: Config,
        embedding: Embedding,
        blocks: Vec<Block>,
        norm: Tensor,
        head: Option<Embedding>,
    ) -> Decoder {
        assert_eq!(
            (blocks.len(), head.is_none()),
            (config.layers, config.tied),
            "layers and tied tables"
        );
        Decoder {
            config,
            embedding,
            blocks: blocks.into_iter().map(Arc::new).collect(),
            norm,
            head,
            reward: None,
            frozen: false,
            sharding: None,
        }
    }

    /// A decoder at the start of training: every matrix normal with variance 1 / inputs, every norm 1
    /// (AXLearn's fan-in initialisation). The same seed gives the same weights on any machine.
    pub fn random(config: &Config, seed: u64) -> Decoder {
        Decoder::random_on_mesh(config, seed, None)
    }

    /// The same weights with other rotary positions, for another length of context.
    pub fn with_positions(mut self, rope_theta: f64, context: usize) -> Decoder {
        (self.config.rope_theta, self.config.context) = (rope_theta, context);
        self
    }

    /// The decoder with an output table of its own: a copy of the embedding, where there was one table for both.
    ///
    /// # Panics
    /// When the decoder lies on a mesh.
    pub fn untied(mut self) -> Decoder {
        assert!(self.sharding.is_none(), "a whole decoder can be untied");
        if self.config.tied {
            self.config.tied = false;
            self.head = Some(match &self.embedding {
                Embedding::Dense(table) => {
                    Embedding::Dense(Tensor::new(table.shape(), table.data().to_vec()))
                }
                frozen => frozen.clone(),
            });
        }
        self
    }

    /// The decoder with a head that tells rewards, whose numbers are parameters even where all else is frozen.
    ///
    /// # Panics
    /// When the decoder lies on a mesh.
    pub fn with_reward(self, head: RewardHead) -> Decoder {
        assert!(
            self.sharding.is_none(),
            "a reward head needs a whole decoder"
        );
        Decoder {
            reward: Some(head),
            ..self
        }
    }

    /// The decoder alone.
    pub fn without_reward(self) -> Decoder {
        Decoder {
            reward: None,
            ..self
        }
    }

    /// Its reward head, where it has one.
    pub fn reward_head(&self) -> Option<&RewardHead> {
        self.reward.as_ref()
    }

    /// What the reward head says at some rows of hidden states `[N, D]`: at the last token of each response.
    ///
    /// # Panics
    /// When there is no head.
    pub fn judge(&self, ctx: &mut Ctx, hidden: &Tensor, rows: &[usize]) -> Judged {
        let head = self.reward.as_ref().expect("a decoder with a reward head");
        let last = ops::rows(ctx, hidden, rows); // [M, D]
        head.forward(ctx, &last)
    }

    /// Another hold on the same weights, for whoever generates from a decoder that somebody else owns. While it lives the
    /// weights cannot be changed.
    ///
    /// # Panics
    /// When the decoder lies on a mesh.
    pub fn share(&self) -> Decoder {
        assert!(
            self.sharding.is_none(),
            "a whole decoder can be shared, not a rank's part"
        );
        Decoder {
            config: self.config.clone(),
            embedding: self.embedding.clone(),
            blocks: self.blocks.clone(),
            norm: self.norm.clone(),
            head: self.head.clone(),
            reward: self.reward.clone(),
            frozen: self.frozen,
            sharding: None,
        }
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What of something that each token has belongs to this rank's tokens: all of it, unless a mesh cuts sequences.
    pub fn own_tokens<'a, T: Copy>(&self, of_tokens: &'a [T]) -> Cow<'a, [T]> {
        match self.sharding.as_ref().and_then(Sharding::sequence_group) {
            None => Cow::Borrowed(of_tokens),
            Some(group) => Cow::Owned(ring::own(group, of_tokens)),
        }
    }

    /// Flat `tokens [N]` to normed hidden states `[N, D]`; on a mesh those of the rows that this rank has. With a cache, the
    /// segments' tokens continue its sequences and must have been announced by [`KvCache::extend`].
    ///
    /// # Panics
    /// When a token is not below V, or segments and tokens differ in number.
    pub fn forward(
        &self,
        ctx: &mut Ctx,
        tokens: &[u32],
        segments: &Segments,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor {
        assert_eq!(
            tokens.len(),
            segments.tokens(),
            "segments must cover all tokens"
        );
        let sharding = self.sharding.as_ref();
        assert!(
            sharding.is_none() || cache.is_none(),
            "a cache needs a whole decoder"
        );
        let tokens = &*self.own_tokens(tokens);
        let positions = segments.positions();
        let pass = Arc::new(Pass {
            shape: sharding.map_or(&self.config, Sharding::local).head_shape(),
            epsilon: self.config.norm_epsilon,
            table: Arc::new(self.config.rope_table(&self.own_tokens(&positions))),
            rows: (0..tokens.len() as u32).collect(),
            segments: segments.clone(),
            ring: sharding.and_then(|sharding| sharding.ring(segments)),
        });
        assert!(
            segments.adapted().is_empty() || sharding.is_none() && !ctx.is_recording(),
            "adapters by row are for inference with a whole decoder"
        );
        let epsilon = pass.epsilon;
        let mut x = match (sharding, &self.embedding) {
            (Some(sharding), Embedding::Dense(table)) => sharding.lookup(ctx, table, tokens),
            _ => self.embedding.lookup(ctx, tokens),
        };
        let mut lent = BTreeMap::new(); // keys and values that later layers use, by layer
        for (layer, block) in self.blocks.iter().enumerate() {
            let keys_of = block.attention.keys_of;
            x = if let Some(cache) = &mut cache {
                let view = cache.layer(keys_of);
                let (x, _) = block.attend(ctx, &x, layer, &pass, None, Some(view));
                block.feed_forward(ctx, &x, layer, &pass)
            } else {
                let kv: Option<Tensor> = lent.get(&keys_of).cloned();
                let (x, own) = match sharding.filter(|sharding| sharding.cuts_blocks()) {
                    None => {
                        let (head, tail) = (block.clone(), block.clone());
                        let (above, below) = (pass.clone(), pass.clone());
                        ctx.checkpoint(
                            &x,
                            move |ctx, x| head.attend(ctx, x, layer, &above, kv.as_ref(), None),
                            move |ctx, x| tail.feed_forward(ctx, x, layer, &below),
                        )
                    }
                    Some(sharding) => {
                        let (block, pass) = (block.clone(), pass.clone());
                        let pieces = sharding.block(self, layer);
                        ctx.checkpoint_whole(&x, move |ctx, x| {
                            ctx.tokens = pass.rows.len();
                            let whole = pieces.as_ref().map(|pieces| pieces.gather(ctx));
                            let block = whole.as_ref().unwrap_or(&block);
                            let kv = kv.as_ref();
                            let (x, own) = block.attend(ctx, x, layer, &pass, kv, None);
                            (block.feed_forward(ctx, &x, layer, &pass), own)
                        })
                    }
                };
                lent.extend(own.map(|own| (layer, own)));
                x
            };
        }
        drop(lent);
        let norm = match sharding {
            None => self.norm.clone(),
            Some(sharding) => sharding.last_norm(ctx, &self.norm),
        };
        ops::rms_norm(ctx, &x, &norm, epsilon)
    }

    /// What the first block sees: `tokens [N]` to `[N, D]`. With [`Decoder::block`] and [`Decoder::last`] it makes up
    /// [`Decoder::forward`], for those who have not all blocks at one time.
    ///
    /// # Panics
    /// When a token is not below V, or the decoder lies on a mesh.
    pub fn first(&self, ctx: &mut Ctx, tokens: &[u32]) -> Tensor {
        assert!(self.sharding.is_none(), "blocks alone are whole");
        self.embedding.lookup(ctx, tokens)
    }

    /// One block: `x [N, D]` to `[N, D]`, and beside it its keys and values `[N, 2G·K]` where later blocks use them, which are given them
    /// as `kv`: [`Config::attention_of`] says which.
    ///
    /// # Panics
    /// When there is no such block, segments and rows differ in number, or a block that uses another's keys is not given them.
    pub fn block(
        &self,
        ctx: &mut Ctx,
        number: usize,
        x: &Tensor,
        kv: Option<&Tensor>,
        segments: &Segments,
    ) -> Made {
        assert!(self.sharding.is_none(), "blocks alone are whole");
        let rows = x.dims2().0;
        assert_eq!(rows, segments.tokens(), "segments must cover all tokens");
        let pass = Pass {
            shape: self.config.head_shape(),
            epsilon: self.config.norm_epsilon,
            table: Arc::new(self.config.rope_table(&segments.positions())),
            rows: (0..rows as u32).collect(),
            segments: segments.clone(),
            ring: None,
        };
        let block = &self.blocks[number];
        let (x, own) = block.attend(ctx, x, number, &pass, kv, None);
        (block.feed_forward(ctx, &x, number, &pass), own)
    }

    /// What [`Decoder::forward`] ends with: the last block's `[N, D]` to normed hidden states `[N, D]`.
    pub fn last(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        ops::rms_norm(ctx, x, &self.norm, self.config.norm_epsilon)
    }

    /// Logits `[M, V]` of hidden states `[M, D]`.
    ///
    /// # Panics
    /// When the decoder lies on a mesh, where no rank has them all.
    pub fn logits(&self, ctx: &mut Ctx, hidden: &Tensor) -> Tensor {
        assert!(self.sharding.is_none(), "logits need a whole decoder");
        let (rows, width) = hidden.dims2();
        let (table, vocab) = (self.output_table(), self.config.vocab);
        let cost = || Op {
            name: "logits",
            layer: None,
            rows,
            bytes: (table.stored_bytes() + 4 * rows * (width + vocab)) as u64,
            flops: 2 * (rows * width * vocab) as u64,
        };
        ctx.timed(cost, |ctx| table.logits(ctx, hidden))
    }

    /// `Σ weightₙ · lossₙ` of hidden states against the tokens that follow, `[N]`, recorded for [`Ctx::backward`]; on a mesh that
    /// cuts sequences, of [`Decoder::own_tokens`].
    pub fn loss(
        &self,
        ctx: &mut Ctx,
        hidden: &Tensor,
        targets: &[u32],
        weights: &[f32],
    ) -> TokenLoss {
        self.loss_with(ctx, hidden, targets, weights, &LossTerms::default())
    }

    /// [`Decoder::loss`] with further terms: z-loss, a teacher.
    pub fn loss_with(
        &self,
        ctx: &mut Ctx,
        hidden: &Tensor,
        targets: &[u32],
        weights: &[f32],
        terms: &LossTerms,
    ) -> TokenLoss {
        match (&self.sharding, self.output_table()) {
            (Some(sharding), Embedding::Dense(table)) => {
                let (targets, weights) = (self.own_tokens(targets), self.own_tokens(weights));
                sharding.loss(ctx, hidden, table, &targets, &weights, terms)
            }
            (_, table) => table.loss(ctx, hidden, targets, weights, terms),
        }
    }

    /// Each token's loss in nats, `[N]`, without gradients; on a mesh that cuts sequences, of [`Decoder::own_tokens`].
    pub fn token_losses(&self, ctx: &mut Ctx, hidden: &Tensor, targets: &[u32]) -> Vec<f32> {
        if self.sharding.is_some() {
            let weights = vec![0.0; targets.len()];
            return self.loss(ctx, hidden, targets, &weights).per_token;
        }
        self.output_table().token_losses(ctx, hidden, targets)
    }

    /// The table that hidden states are multiplied by: the embedding where it is tied.
    pub fn output_table(&self) -> &Embedding {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The table that tokens are looked up in.
    pub fn input_table(&self) -> &Embedding {
        &self.embedding
    }

    /// The products of all blocks in the order of the forward pass.
    pub fn linears(&self) -> impl Iterator<Item = &dyn Linear> {
        self.blocks.iter().flat_map(|block| block.linears())
    }

    /// Whether its products round their inputs to 8 bits: those of palettized weights do.
    pub fn multiplies_in_8_bits(&self) -> bool {
        // Dense weights have two or four bytes each.
        let products: usize = self.linears().map(Linear::stored_bytes).sum();
        products < 2 * self.config.projection_parameters()
    }

    /// What keys and values are kept in where nobody says: in 8 bits where products round to as many, as they are computed where not.
    pub fn cache_format(&self) -> KvFormat {
        let narrow = self.config.head_dim <= KvFormat::Int8.widest_head();
        match narrow && self.multiplies_in_8_bits() {
            true => KvFormat::Int8,
            false => KvFormat::F32,
        }
    }

    /// Bytes of all weights, as they are stored.
    pub fn stored_bytes(&self) -> usize {
        let products: usize = self.linears().map(Linear::stored_bytes).sum();
        let head = self.head.as_ref().map_or(0, Embedding::stored_bytes);
        let reward = self.reward.as_ref().map_or(0, RewardHead::stored_bytes);
        products + self.embedding.stored_bytes() + head + reward
    }

    /// The layouts of these products.
    pub fn layouts(&self) -> Vec<Layout> {
        self.linears()
            .map(|linear| linear.layout().clone())
            .collect()
    }

    /// The decoder with each product of its blocks replaced by what `map` makes of it: adapters, observers, shards.
    pub fn map_linears(self, mut map: impl FnMut(Box<dyn Linear>) -> Box<dyn Linear>) -> Decoder {
        let blocks = self
            .blocks
            .into_iter()
            .map(|block| Arc::new(alone(block).map_linears(&mut map)))
            .collect();
        Decoder { blocks, ..self }
    }

    /// The decoder with tables and norms frozen: its parameters are those that its products offer.
    pub fn freeze(self) -> Decoder {
        Decoder {
            frozen: true,
            ..self
        }
    }

    /// Whether tables and norms are frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Every trainable parameter, in a fixed order.
    pub fn parameters(&self) -> Vec<Parameter<'_>> {
        let mut all = Vec::new();
        if self.frozen {
            self.linears()
                .for_each(|linear| linear.visit(&mut |parameter| all.push(parameter)));
            if let Some(reward) = &self.reward {
                reward.visit(&mut |parameter| all.push(parameter));
            }
            return all;
        }
        fn table<'a>(name: &str, embedding: &'a Embedding) -> Option<Parameter<'a>> {
            let Embedding::Dense(tensor) = embedding else {
                return None;
            };
            let parts = vec![(format!("{name}.weight"), tensor.shape()[0])];
            Some(Parameter {
                parts,
                kind: ParameterKind::Embedding,
                tensor,
                cut: None,
            })
        }
        all.extend(table("model.embed_tokens", &self.embedding));
        for (layer, block) in self.blocks.iter().enumerate() {
            block.visit(layer, &mut |parameter| all.push(parameter));
        }
        let parts = vec![("model.norm.weight".to_owned(), 1)];
        all.push(Parameter {
            parts,
            kind: ParameterKind::Norm,
            tensor: &self.norm,
            cut: None,
        });
        all.extend(self.head.as_ref().and_then(|head| table("lm_head", head)));
        if let Some(reward) = &self.reward {
            reward.visit(&mut |parameter| all.push(parameter));
        }
        if let Some(sharding) = &self.sharding {
            for (parameter, cut) in all.iter_mut().zip(&sharding.cuts) {
                let rows = |part: &CutPart| (part.name.clone(), part.rows.len());
                parameter.parts = cut.parts.iter().map(rows).collect();
                parameter.cut = Some(cut);
            }
        }
        all
    }

    /// Hands out every trainable tensor to be changed in place, in the order of [`Decoder::parameters`].
    pub fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        if self.frozen {
            for block in &mut self.blocks {
                let block = Arc::get_mut(block).expect(ALONE);
                for linear in block.linears_mut() {
                    linear.visit_mut(visit);
                }
            }
            if let Some(reward) = &mut self.reward {
                reward.visit_mut(visit);
            }
            return;
        }
        if let Embedding::Dense(table) = &mut self.embedding {
            visit(table);
        }
        for block in &mut self.blocks {
            let block = Arc::get_mut(block).expect(ALONE);
            block.visit_mut(visit);
        }
        visit(&mut self.norm);
        if let Some(Embedding::Dense(table)) = &mut self.head {
            visit(table);
        }
        if let Some(reward) = &mut self.reward {
            reward.visit_mut(visit);
        }
    }
}
