//! One layer of the decoder: attention, then the gated feed-forward, each behind a norm and around a residual.

use std::sync::Arc;

use russet_tensor::mesh::Group;
use russet_tensor::ops::{self, CacheView, HeadShape, QkNorm, RopeTable};
use russet_tensor::ring::Ring;
use russet_tensor::{Ctx, Made, Op, Segments, Tensor};

use crate::config::LayerAttention;
use crate::decoder::{Parameter, ParameterKind};
use crate::parallel::{ColumnParallel, RowParallel};
use crate::{Config, Dense, Family, Layout, Linear};

/// One layer.
pub struct Block {
    pub(crate) attention: LayerAttention,
    pub(crate) attention_norm: Tensor,   // [D]
    pub(crate) qkv: Box<dyn Linear>, // [N, D] -> [N, (H+2G)·K]; to [N, H·K] where it shares another's keys
    pub(crate) q_norm: Option<Tensor>, // [K]; Llama has none
    pub(crate) k_norm: Option<Tensor>, // [K]; nor has a layer without keys
    pub(crate) output: Box<dyn Linear>, // [N, H·K] -> [N, D]
    pub(crate) ffn_norm: Tensor,     // [D]
    pub(crate) gate_up: Box<dyn Linear>, // [N, D] -> [N, 2F]
    pub(crate) down: Box<dyn Linear>, // [N, F] -> [N, D]
}

/// What all blocks of one forward pass share.
pub(crate) struct Pass {
    pub shape: HeadShape,
    pub epsilon: f32,
    pub table: Arc<RopeTable>, // a row a token
    pub rows: Arc<[u32]>,      // 0..N
    pub segments: Segments,
    pub ring: Option<Arc<Ring>>, // where tokens are shared out
}

/// Products of a block, in their order.
#[derive(Clone, Copy)]
enum Product {
    Qkv,
    Output,
    GateUp,
    Down,
}

/// What is done with a product, in one operation with it.
#[derive(Clone, Copy)]
enum Then<'a> {
    Store,
    /// It is added to this.
    Add(&'a Tensor),
    /// It is gate and up, and comes to silu(gate) · up.
    Gate,
}

impl Product {
    fn name(self) -> &'static str {
        ["qkv", "output", "gate_up", "down"][self as usize]
    }
}

impl Pass {
    /// The product `which` of layer `layer`, with what the adapters of the rows add, and then what there is to do.
    fn product(
        &self,
        ctx: &mut Ctx,
        (layer, which): (usize, Product),
        linear: &dyn Linear,
        x: &Tensor,
        then: Then,
    ) -> Tensor {
        let (rows, inputs) = x.dims2();
        let features = linear.layout().rows();
        // Numbers read beside x, numbers written, and operations on each of these, a row.
        let (reads, outputs, each) = match then {
            Then::Store => (0, features, 0),
            Then::Add(_) => (features, features, 1),
            Then::Gate => (0, features / 2, 8),
        };
        let (runs, place) = (self.segments.adapted(), 4 * layer + which as usize);
        let cost = || {
            let (bytes, flops) = ops::adapt_cost(runs, place);
            let numbers = rows * (inputs + reads + outputs);
            Op {
                bytes: (linear.stored_bytes() + 4 * numbers) as u64 + bytes,
                flops: (rows * (2 * inputs * features + outputs * each)) as u64 + flops,
                ..op(which.name(), layer, rows)
            }
        };
        ctx.timed(cost, |ctx| match then {
            Then::Store => linear.forward_adapted(ctx, x, runs, place),
            Then::Add(to) => linear.forward_added(ctx, x, (runs, place), to),
            Then::Gate => linear.forward_gated(ctx, x, (runs, place)),
        })
    }

    /// What attention over the pass's segments comes to, through a window; `token_bytes` are those of a token's keys and values.
    fn attention(&self, layer: usize, window: usize, token_bytes: usize) -> Op {
        let HeadShape {
            heads, head_dim, ..
        } = self.shape;
        let (mut keys, mut pairs) = (0, 0);
        for s in self.segments.iter() {
            let end = s.past + s.len;
            keys += end - (s.past + 1).saturating_sub(window);
            // Rows whose window reaches to the beginning, and those that see a whole one.
            let short = end.min(window).saturating_sub(s.past);
            pairs += short * s.past + short * (short + 1) / 2;
            pairs += (s.len - short) * window.min(end);
        }
        let rows = self.rows.len();
        Op {
            bytes: (4 * 2 * rows * heads * head_dim + keys * token_bytes) as u64,
            flops: 4 * (pairs * heads * head_dim) as u64,
            ..op("attention", layer, rows)
        }
    }
}

/// An operation of a layer.
fn op(name: &'static str, layer: usize, rows: usize) -> Op {
    Op {
        name,
        layer: Some(layer),
        rows,
        ..Op::default()
    }
}

/// An operation on each number by itself: `reads` numbers of each row in and `writes` out, `each` operations for one of these.
fn pointwise(
    name: &'static str,
    layer: usize,
    rows: usize,
    (reads, writes, each): (usize, usize, usize),
) -> Op {
    Op {
        bytes: 4 * (rows * (reads + writes)) as u64,
        flops: (rows * writes * each) as u64,
        ..op(name, layer, rows)
    }
}

impl Block {
    /// The first half, in which tokens look at one another: `x [N, D]` to `[N, D]`, and beside it the layer's keys and values `[N, 2G·K]`
    /// where later layers use them. A layer that shares those of another is given them as `kv`. With a cache neither is: they lie there.
    pub(crate) fn attend(
        &self,
        ctx: &mut Ctx,
        x: &Tensor,
        layer: usize,
        pass: &Pass,
        kv: Option<&Tensor>,
        cache: Option<CacheView>,
    ) -> Made {
        let window = self.attention.window;
        let shape = HeadShape {
            kv_heads: if self.attention.shares {
                0
            } else {
                pass.shape.kv_heads
            },
            ..pass.shape
        };
        let lends = self.attention.lends && cache.is_none();
        let (rows, width) = x.dims2();
        let norm = || pointwise("norm", layer, rows, (width, width, 4));
        let h = ctx.timed(norm, |ctx| {
            ops::rms_norm(ctx, x, &self.attention_norm, pass.epsilon)
        });
        let qkv = pass.product(ctx, (layer, Product::Qkv), &*self.qkv, &h, Then::Store);
        let norm = self.q_norm.as_ref().map(|query| QkNorm {
            query,
            key: self.k_norm.as_ref(),
            epsilon: pass.epsilon,
        });
        let packed = shape.qkv_width();
        let rope = || pointwise("rope", layer, rows, (packed, packed, 6));
        let qkv = ctx.timed(rope, |ctx| {
            ops::qk_norm_rope(ctx, shape, qkv, norm, &pass.table, &pass.rows)
        });
        let lent = lends.then(|| ops::key_values(ctx, pass.shape, &qkv));
        let token_bytes = match &cache {
            Some(cache) => cache.pages.token_bytes(pass.shape),
            None => 4 * 2 * pass.shape.kv_width(),
        };
        let h = ctx.timed(
            || pass.attention(layer, window, token_bytes),
            |ctx| match &pass.ring {
                None => {
                    let segments = &pass.segments;
                    ops::attention(ctx, pass.shape, window, &qkv, kv, segments, cache)
                }
                Some(ring) => ops::ring_attention(ctx, pass.shape, window, &qkv, kv, ring),
            },
        );
        let output = (layer, Product::Output);
        (
            pass.product(ctx, output, &*self.output, &h, Then::Add(x)),
            lent,
        )
    }

    /// The second half, on each row alone: `x [N, D]` to `[N, D]`. Without adapters it may be given some of the rows.
    pub(crate) fn feed_forward(
        &self,
        ctx: &mut Ctx,
        x: &Tensor,
        layer: usize,
        pass: &Pass,
    ) -> Tensor {
        let (rows, width) = x.dims2();
        let norm = || pointwise("norm", layer, rows, (width, width, 4));
        let h = ctx.timed(norm, |ctx| {
            ops::rms_norm(ctx, x, &self.ffn_norm, pass.epsilon)
        });
        let gate_up = (layer, Product::GateUp);
        let h = pass.product(ctx, gate_up, &*self.gate_up, &h, Then::Gate);
        pass.product(ctx, (layer, Product::Down), &*self.down, &h, Then::Add(x))
    }

    /// A block of the shape `config`, of its parameters in the order of [`Block::visit`]. Where there is a group, its ranks
    /// share out rows of tokens, and `config` is the shape of one rank's part.
    pub(crate) fn of_tensors(
        config: &Config,
        layer: usize,
        tensors: &mut dyn Iterator<Item = Tensor>,
        group: Option<&Arc<Group>>,
        dense: fn(Layout, Tensor) -> Dense,
    ) -> Block {
        let [qkv, output, gate_up, down] = layouts(config, layer);
        let mut next = || tensors.next().expect("a tensor for each parameter");
        let column = |base: Dense| -> Box<dyn Linear> {
            match group {
                None => Box::new(base),
                Some(group) => Box::new(ColumnParallel::new(base, group.clone())),
            }
        };
        let row = |base: Dense| -> Box<dyn Linear> {
            match group {
                None => Box::new(base),
                Some(group) => Box::new(RowParallel::new(base, group.clone())),
            }
        };
        let normed = config.family == Family::Qwen3;
        let attention = config.attention_of(layer);
        Block {
            attention,
            attention_norm: next(),
            qkv: column(dense(qkv, next())),
            q_norm: normed.then(&mut next),
            k_norm: (normed && !attention.shares).then(&mut next),
            output: row(dense(output, next())),
            ffn_norm: next(),
            gate_up: column(dense(gate_up, next())),
            down: row(dense(down, next())),
        }
    }

    /// Its four products, in the order of the forward pass.
    pub(crate) fn linears(&self) -> [&dyn Linear; 4] {
        [&*self.qkv, &*self.output, &*self.gate_up, &*self.down]
    }

    pub(crate) fn linears_mut(&mut self) -> [&mut dyn Linear; 4] {
        [
            &mut *self.qkv,
            &mut *self.output,
            &mut *self.gate_up,
            &mut *self.down,
        ]
    }

    pub(crate) fn visit<'a>(&'a self, layer: usize, visit: &mut dyn FnMut(Parameter<'a>)) {
        let norm = |name: &str, tensor| {
            let parts = vec![(format!("model.layers.{layer}.{name}.weight"), 1)];
            Parameter {
                parts,
                kind: ParameterKind::Norm,
                tensor,
                cut: None,
            }
        };
        visit(norm("input_layernorm", &self.attention_norm));
        self.qkv.visit(visit);
        for (name, tensor) in [
            ("self_attn.q_norm", &self.q_norm),
            ("self_attn.k_norm", &self.k_norm),
        ] {
            if let Some(tensor) = tensor {
                visit(norm(name, tensor));
            }
        }
        self.output.visit(visit);
        visit(norm("post_attention_layernorm", &self.ffn_norm));
        self.gate_up.visit(visit);
        self.down.visit(visit);
    }

    pub(crate) fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        visit(&mut self.attention_norm);
        self.qkv.visit_mut(visit);
        let norms = [&mut self.q_norm, &mut self.k_norm];
        norms.into_iter().flatten().for_each(&mut *visit);
        self.output.visit_mut(visit);
        visit(&mut self.ffn_norm);
        self.gate_up.visit_mut(visit);
        self.down.visit_mut(visit);
    }

    /// The block with each product replaced by what `map` makes of it.
    pub(crate) fn map_linears(
        self,
        map: &mut dyn FnMut(Box<dyn Linear>) -> Box<dyn Linear>,
    ) -> Block {
        let (qkv, output) = (map(self.qkv), map(self.output));
        let (gate_up, down) = (map(self.gate_up), map(self.down));
        Block {
            qkv,
            output,
            gate_up,
            down,
            ..self
        }
    }
}

/// The projections of layer `layer` in the order of the forward pass: name, rows and inputs of each.
pub fn projections(config: &Config, layer: usize) -> Vec<(String, usize, usize)> {
    let of = |layout: Layout| {
        let inputs = layout.inputs;
        let named = layout.projections.into_iter();
        named.map(move |projection| (projection.name, projection.rows, inputs))
    };
    layouts(config, layer).into_iter().flat_map(of).collect()
}

/// The layouts of the four products of layer `layer`: query-key-value, or the query alone of one that shares another's keys; output,
/// gate-up, down.
pub(crate) fn layouts(config: &Config, layer: usize) -> [Layout; 4] {
    let attention = format!("model.layers.{layer}.self_attn");
    let mlp = format!("model.layers.{layer}.mlp");
    let (q, kv) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let attends = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
    let attends = match config.shares_keys(layer) {
        false => &attends[..],
        true => &attends[..1],
    };
    [
        Layout::new(&attention, config.width, attends),
        Layout::new(&attention, q, &[("o_proj", config.width)]),
        Layout::new(
            &mlp,
            config.width,
            &[("gate_proj", config.ffn), ("up_proj", config.ffn)],
        ),
        Layout::new(&mlp, config.ffn, &[("down_proj", config.width)]),
    ]
}
