//! The seam: what a projection's weights are, and where they live, is its own business.

use std::ops::Range;

use russet_tensor::ops::{self, LoraPart};
use russet_tensor::{Adapted, Ctx, PaletteWeight, Tensor};

use crate::{Parameter, ParameterKind};

/// `y = x Wᵀ`. What W is, and where it lives, is the layer's business.
pub trait Linear: Send + Sync {
    /// `x [N, D]` to `[N, F]`.
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor;

    /// As [`Linear::forward`], the decoder's product number `place`, with what the adapters of some rows add to it. To the same bits however it is done.
    fn forward_adapted(&self, ctx: &mut Ctx, x: &Tensor, runs: &[Adapted], place: usize) -> Tensor {
        let y = self.forward(ctx, x);
        ops::adapt(ctx, y, x, runs, place)
    }

    /// As [`Linear::forward_adapted`], added to `to [N, F]`. To the same bits however it is done.
    fn forward_added(
        &self,
        ctx: &mut Ctx,
        x: &Tensor,
        (runs, place): (&[Adapted], usize),
        to: &Tensor,
    ) -> Tensor {
        let y = self.forward_adapted(ctx, x, runs, place);
        ops::add(ctx, to, &y)
    }

    /// As [`Linear::forward_adapted`] of gate and up, and then silu(gate) · up: `[N, F / 2]`. To the same bits however it is done.
    fn forward_gated(
        &self,
        ctx: &mut Ctx,
        x: &Tensor,
        (runs, place): (&[Adapted], usize),
    ) -> Tensor {
        let y = self.forward_adapted(ctx, x, runs, place);
        ops::swiglu(ctx, &y)
    }

    /// Which named projections the rows of W belong to.
    fn layout(&self) -> &Layout;

    /// Bytes of weights that one forward pass reads.
    fn stored_bytes(&self) -> usize;

    /// Shows every parameter that can be trained.
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(Parameter<'a>));

    /// Hands out every parameter that can be trained, in the order of [`Linear::visit`].
    fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor));
}

/// One named projection in a packed product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Its name in a checkpoint without `.weight`: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Its output features.
    pub rows: usize,
}

/// The projections that a product packs, in the order of its output columns. Query, key and value are one product,
/// and so are gate and up: fewer, larger products; in files each has its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The projections.
    pub projections: Vec<Projection>,
    /// Input features, common to all.
    pub inputs: usize,
}

impl Layout {
    /// A layout of `(name, rows)` pairs under a common prefix.
    pub fn new(prefix: &str, inputs: usize, projections: &[(&str, usize)]) -> Layout {
        let named = |&(name, rows): &(&str, usize)| Projection {
            name: format!("{prefix}.{name}"),
            rows,
        };
        Layout {
            projections: projections.iter().map(named).collect(),
            inputs,
        }
    }

    /// Output features in all.
    pub fn rows(&self) -> usize {
        self.projections.iter().map(|p| p.rows).sum()
    }

    /// Each projection with the rows of the packed weight that it is.
    pub fn ranges(&self) -> impl Iterator<Item = (&Projection, Range<usize>)> {
        self.projections.iter().scan(0, |start, projection| {
            let range = *start..*start + projection.rows;
            *start = range.end;
            Some((projection, range))
        })
    }
}

/// A dense weight in `f32`.
pub struct Dense {
    layout: Layout,
    weight: Tensor, // [F, D]
}

impl Dense {
    /// A projection with the given weight, `[rows, inputs]` of the layout.
    pub fn new(layout: Layout, weight: Tensor) -> Dense {
        assert_eq!(
            weight.dims2(),
            (layout.rows(), layout.inputs),
            "the weight of {:?}",
            layout.projections
        );
        Dense { layout, weight }
    }

    /// A piece of a projection's weight, to be kept: it comes together with the others before it is multiplied.
    pub(crate) fn of_piece(layout: Layout, weight: Tensor) -> Dense {
        Dense { layout, weight }
    }
}

impl Linear for Dense {
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        ops::linear(ctx, x, &self.weight)
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn stored_bytes(&self) -> usize {
        self.weight.bytes().len()
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(Parameter<'a>)) {
        let parts = self
            .layout
            .projections
            .iter()
            .map(|p| (format!("{}.weight", p.name), p.rows))
            .collect();
        visit(Parameter {
            parts,
            kind: ParameterKind::Matrix,
            tensor: &self.weight,
            cut: None,
        });
    }

    fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        visit(&mut self.weight);
    }
}

/// Palettized weights, frozen, used as they are stored.
pub struct Palettized {
    layout: Layout,
    weights: Vec<PaletteWeight>,
}

impl Palettized {
    /// One weight for each projection of the layout.
    pub fn new(layout: Layout, weights: Vec<PaletteWeight>) -> Palettized {
        let sizes: Vec<_> = weights.iter().map(|w| (w.rows(), w.cols())).collect();
        let wanted: Vec<_> = layout
            .projections
            .iter()
            .map(|p| (p.rows, layout.inputs))
            .collect();
        assert_eq!(sizes, wanted, "the weights of {:?}", layout.projections);
        Palettized { layout, weights }
    }

    /// The weights, a projection each.
    pub fn weights(&self) -> &[PaletteWeight] {
        &self.weights
    }
}

impl Linear for Palettized {
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        ops::palette_linear(ctx, x, &self.weights)
    }

    fn forward_adapted(&self, ctx: &mut Ctx, x: &Tensor, runs: &[Adapted], place: usize) -> Tensor {
        ops::palette_linear_adapted(ctx, x, &self.weights, runs, place)
    }

    fn forward_added(
        &self,
        ctx: &mut Ctx,
        x: &Tensor,
        runs: (&[Adapted], usize),
        to: &Tensor,
    ) -> Tensor {
        ops::palette_linear_added(ctx, x, &self.weights, runs, to)
    }

    fn forward_gated(&self, ctx: &mut Ctx, x: &Tensor, runs: (&[Adapted], usize)) -> Tensor {
        ops::palette_linear_gated(ctx, x, &self.weights, runs)
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn stored_bytes(&self) -> usize {
        self.weights.iter().map(PaletteWeight::stored_bytes).sum()
    }

    fn visit<'a>(&'a self, _: &mut dyn FnMut(Parameter<'a>)) {}

    fn visit_mut(&mut self, _: &mut dyn FnMut(&mut Tensor)) {}
}

/// A projection with low-rank adapters on some of its parts. Its parameters are the adapters'; what lies below is frozen.
pub struct Lora<L> {
    base: L,
    parts: Vec<LoraPart>,
    names: Vec<String>, // of the projection that each part adapts
}

impl<L: Linear> Lora<L> {
    /// Adapters by projection name, as `(name, A [R, D], B [rows, R], scale)`.
    ///
    /// # Panics
    /// When a name is none of the layout's or a shape does not fit: readers check both.
    pub fn new(base: L, adapters: Vec<(String, Tensor, Tensor, f32)>) -> Lora<L> {
        let (mut parts, mut names) = (Vec::new(), Vec::new());
        for (name, a, b, scale) in adapters {
            let (_, columns) = base
                .layout()
                .ranges()
                .find(|(p, _)| p.name == name)
                .expect("a projection of the layout");
            assert_eq!(
                (a.dims2().1, b.dims2()),
                (base.layout().inputs, (columns.len(), a.dims2().0)),
                "{name}"
            );
            parts.push(LoraPart {
                columns,
                a,
                b,
                scale,
            });
            names.push(name);
        }
        Lora { base, parts, names }
    }
}

impl<L: Linear> Linear for Lora<L> {
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        let base = self.base.forward(ctx, x);
        ops::lora(ctx, base, x, &self.parts)
    }

    fn layout(&self) -> &Layout {
        self.base.layout()
    }

    fn stored_bytes(&self) -> usize {
        let own: usize = self
            .parts
            .iter()
            .map(|part| part.a.bytes().len() + part.b.bytes().len())
            .sum();
        self.base.stored_bytes() + own
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(Parameter<'a>)) {
        for (part, name) in self.parts.iter().zip(&self.names) {
            for (matrix, tensor) in [("lora_A", &part.a), ("lora_B", &part.b)] {
                let parts = vec![(format!("{name}.{matrix}.weight"), tensor.dims2().0)];
                visit(Parameter {
                    parts,
                    kind: ParameterKind::Adapter { scale: part.scale },
                    tensor,
                    cut: None,
                });
            }
        }
    }

    fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        for part in &mut self.parts {
            visit(&mut part.a);
            visit(&mut part.b);
        }
    }
}

/// A product whose weights are no parameters, whatever they are.
pub struct Frozen<L>(pub L);

impl<L: Linear> Linear for Frozen<L> {
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        self.0.forward(ctx, x)
    }

    fn forward_adapted(&self, ctx: &mut Ctx, x: &Tensor, runs: &[Adapted], place: usize) -> Tensor {
        self.0.forward_adapted(ctx, x, runs, place)
    }

    fn forward_added(
        &self,
        ctx: &mut Ctx,
        x: &Tensor,
        runs: (&[Adapted], usize),
        to: &Tensor,
    ) -> Tensor {
        self.0.forward_added(ctx, x, runs, to)
    }

    fn forward_gated(&self, ctx: &mut Ctx, x: &Tensor, runs: (&[Adapted], usize)) -> Tensor {
        self.0.forward_gated(ctx, x, runs)
    }

    fn layout(&self) -> &Layout {
        self.0.layout()
    }

    fn stored_bytes(&self) -> usize {
        self.0.stored_bytes()
    }

    fn visit<'a>(&'a self, _: &mut dyn FnMut(Parameter<'a>)) {}

    fn visit_mut(&mut self, _: &mut dyn FnMut(&mut Tensor)) {}
}

impl Linear for Box<dyn Linear> {
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        (**self).forward(ctx, x)
    }

    fn forward_adapted(&self, ctx: &mut Ctx, x: &Tensor, runs: &[Adapted], place: usize) -> Tensor {
        (**self).forward_adapted(ctx, x, runs, place)
    }

    fn forward_added(
        &self,
        ctx: &mut Ctx,
        x: &Tensor,
        runs: (&[Adapted], usize),
        to: &Tensor,
    ) -> Tensor {
        (**self).forward_added(ctx, x, runs, to)
    }

    fn forward_gated(&self, ctx: &mut Ctx, x: &Tensor, runs: (&[Adapted], usize)) -> Tensor {
        (**self).forward_gated(ctx, x, runs)
    }

    fn layout(&self) -> &Layout {
        (**self).layout()
    }

    fn stored_bytes(&self) -> usize {
        (**self).stored_bytes()
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(Parameter<'a>)) {
        (**self).visit(visit);
    }

    fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        (**self).visit_mut(visit);
    }
}
