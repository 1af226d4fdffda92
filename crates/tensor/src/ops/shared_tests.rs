//! Operations of several ranks against the same ones of one rank.

use std::sync::Arc;

use russet_kernels::Pool;

use super::check::random;
use super::{
    IGNORE, LossTerms, TablePart, Unit, cross_entropy, cross_entropy_part, embedding,
    embedding_part, gather_parameters, gather_rows, linear, scatter_rows,
};
use crate::collective::{Rows, share};
use crate::mesh::{Axis, Mesh};
use crate::{Ctx, Gradients, MeshShape, Tensor, threads};

fn context() -> Ctx {
    Ctx::new(Arc::new(Pool::new(1).unwrap()))
}

/// What each of the ranks of a line makes.
fn on<R: Send>(axis: Axis, size: usize, work: impl Fn(&Mesh) -> R + Sync) -> Vec<R> {
    let mut sizes = [1; 4];
    sizes[axis as usize] = size;
    let results = threads::run(MeshShape { sizes }, |mesh| Ok::<R, ()>(work(&mesh)));
    results.unwrap_or_else(|failure| panic!("{failure:?}"))
}

/// Whole rows of a part, as a tensor of their own.
fn rows_of(x: &Tensor, size: usize, rank: usize) -> Tensor {
    let (rows, width) = x.dims2();
    let part = Rows { rows, width }.part(size, rank);
    let data = x.data()[part].to_vec();
    Tensor::new(&[data.len() / width, width], data)
}

/// `Σ c · y`, recorded; c of the whole, of which y is a part from element `at` on.
fn project(ctx: &mut Ctx, y: &Tensor, c: &Tensor, at: usize) -> Tensor {
    let c = c.data()[at..at + y.len()].to_vec();
    let sum: f32 = y.data().iter().zip(&c).map(|(y, c)| y * c).sum();
    let loss = Tensor::new(&[1], vec![sum]);
    let y = y.handle();
    ctx.record(&loss, move |back, _| {
        let shape = crate::Node::shape(&y).to_vec();
        back.accumulate(&y, Tensor::new(&shape, c));
    });
    loss
}

fn backward(ctx: &mut Ctx, loss: &Tensor, of: &[&Tensor]) -> Vec<Vec<f32>> {
    let mut gradients = Gradients::default();
    ctx.backward(loss, 1.0, &mut gradients);
    let data = |x: &&Tensor| gradients.get(x).expect("a gradient").data().to_vec();
    of.iter().map(data).collect()
}

/// Sums of f32 in another order, of numbers of size 1.
fn assert_close(found: &[f32], wanted: &[f32]) {
    assert_eq!(found.len(), wanted.len());
    let largest = wanted.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(
            (found - wanted).abs() <= 1e-5 * largest,
            "{found}, wanted {wanted}"
        );
    }
}

/// `down(up(x))` with the features of `up` shared out: what the layers of tensor parallelism are.
#[test]
fn a_product_cut_in_two_ways_is_the_product() {
    const TOKENS: usize = 7; // more and less than a multiple of the ranks
    let (x, up, down, c) = (
        random(&[TOKENS, 6], 1),
        random(&[8, 6], 2),
        random(&[5, 8], 3),
        random(&[TOKENS, 5], 4),
    );
    let mut ctx = context();
    ctx.start_tape([x.id(), up.id(), down.id()]);
    let h = linear(&mut ctx, &x, &up);
    let y = linear(&mut ctx, &h, &down);
    let loss = project(&mut ctx, &y, &c, 0);
    let wanted = backward(&mut ctx, &loss, &[&x, &up, &down]);
    for size in [2, 4, 8] {
        on(Axis::Tensor, size, |mesh| {
            let (group, rank) = (mesh.along(Axis::Tensor), mesh.rank());
            let own = rows_of(&x, size, rank);
            let own_up = rows_of(&up, size, rank);
            let columns = share(8, size, rank);
            let own_down = Tensor::from_fn(&[5, columns.len()], |i| {
                let (row, column) = (i / columns.len(), i % columns.len());
                down.data()[row * 8 + columns.start + column]
            });
            let mut ctx = context();
            ctx.tokens = TOKENS;
            ctx.start_tape([own.id(), own_up.id(), own_down.id()]);
            let all = gather_rows(&mut ctx, group, &own);
            assert_eq!(all.data(), x.data());
            let h = linear(&mut ctx, &all, &own_up);
            let partial = linear(&mut ctx, &h, &own_down);
            let own_y = scatter_rows(&mut ctx, group, &partial);
            assert_close(own_y.data(), rows_of(&y, size, rank).data());
            let at = share(TOKENS, size, rank).start * 5;
            let loss = project(&mut ctx, &own_y, &c, at);
            let found = backward(&mut ctx, &loss, &[&own, &own_up, &own_down]);
            let rows =
                |k: usize, shape| rows_of(&Tensor::new(shape, wanted[k].clone()), size, rank);
            assert_close(&found[0], rows(0, &[TOKENS, 6]).data());
            assert_close(&found[1], rows(1, &[8, 6]).data());
            for (row, found) in found[2].chunks(columns.len()).enumerate() {
                assert_close(found, &wanted[2][row * 8..][columns.clone()]);
            }
        });
    }
}

#[test]
fn the_loss_through_a_vocabulary_in_parts_is_the_loss() {
    const TARGETS: [u32; 5] = [3, IGNORE, 11, 0, 7];
    const WEIGHTS: [f32; 5] = [0.5, 1.0, 0.25, 2.0, 1.0];
    // Some logits far from the others: the parts' sums differ by orders of magnitude.
    let (hidden, table) = (random(&[5, 6], 1), random(&[12, 6], 2));
    let table = Tensor::from_fn(&[12, 6], |i| table.data()[i] * (1 + i / 24) as f32 * 3.0);
    let tokens = [3, 0, 11, 5, 5];
    for z_loss in [0.0, 0.05] {
        let terms = LossTerms {
            z_loss,
            teacher: None,
        };
        let mut ctx = context();
        ctx.start_tape([hidden.id(), table.id()]);
        let looked_up = embedding(&mut ctx, &table, &tokens);
        let h = super::add(&mut ctx, &looked_up, &hidden);
        let whole = cross_entropy(&mut ctx, &h, &table, &TARGETS, &WEIGHTS, &terms);
        let wanted = backward(&mut ctx, &whole.loss, &[&hidden, &table]);
        for size in [2, 4] {
            on(Axis::Tensor, size, |mesh| {
                let (group, rank) = (mesh.along(Axis::Tensor), mesh.rank());
                let own = rows_of(&hidden, size, rank);
                let own_table = rows_of(&table, size, rank);
                let part = TablePart {
                    group,
                    table: &own_table,
                    first: share(12, size, rank).start,
                };
                let mut ctx = context();
                ctx.tokens = 5;
                ctx.start_tape([own.id(), own_table.id()]);
                let partial = embedding_part(&mut ctx, &own_table, part.first, &tokens);
                let looked_up = scatter_rows(&mut ctx, group, &partial);
                let h = super::add(&mut ctx, &looked_up, &own);
                let found = cross_entropy_part(&mut ctx, &h, &part, &TARGETS, &WEIGHTS, z_loss);
                assert_close(&found.per_token, &whole.per_token);
                assert_close(found.loss.data(), whole.loss.data());
                let gradients = backward(&mut ctx, &found.loss, &[&own, &own_table]);
                let rows =
                    |k: usize, shape| rows_of(&Tensor::new(shape, wanted[k].clone()), size, rank);
                assert_close(&gradients[0], rows(0, &[5, 6]).data());
                assert_close(&gradients[1], rows(1, &[12, 6]).data());
                // Without a tape: validation.
                let again = cross_entropy_part(&mut ctx, &h, &part, &TARGETS, &WEIGHTS, z_loss);
                assert_close(&again.per_token, &whole.per_token);
            });
        }
    }
}

/// Two layers whose weights are in pieces, each rank on its own rows: gradients are those of all rows together.
#[test]
fn parameters_in_pieces_give_the_gradients_of_whole_ones() {
    let weights = [random(&[5, 5], 1), random(&[5, 5], 2)];
    let (x, c) = (random(&[8, 5], 3), random(&[8, 5], 4));
    let layer = |ctx: &mut Ctx, x: &Tensor, w: &Tensor| {
        let h = linear(ctx, x, w);
        super::add(ctx, x, &h)
    };
    let mut ctx = context();
    ctx.start_tape(weights.iter().map(Tensor::id));
    let h = layer(&mut ctx, &x, &weights[0]);
    let y = layer(&mut ctx, &h, &weights[1]);
    let loss = project(&mut ctx, &y, &c, 0);
    let wanted = backward(&mut ctx, &loss, &[&weights[0], &weights[1]]);
    for size in [2, 3, 4] {
        for recompute in [false, true] {
            let moved = on(Axis::Fsdp, size, |mesh| {
                let (group, rank) = (mesh.along(Axis::Fsdp), mesh.rank());
                let own = rows_of(&x, size, rank);
                let pieces: Vec<Tensor> = weights
                    .iter()
                    .map(|w| w.data()[share(25, size, rank)].to_vec())
                    .map(|piece| Tensor::new(&[piece.len()], piece))
                    .collect();
                let units = [0, 1].map(|_| Arc::new(Unit::new(group.clone(), vec![vec![5, 5]])));
                let of = |k: usize| (units[k].clone(), vec![pieces[k].clone()]);
                let mut ctx = context();
                ctx.recompute = recompute;
                ctx.start_tape(pieces.iter().map(Tensor::id));
                let mut h = own.clone();
                for k in 0..2 {
                    let (here, before, next) = (of(k), (k > 0).then(|| of(0)), of(1));
                    let (made, _) = ctx.checkpoint_whole(&h, move |ctx, x| {
                        if k == 0 && !ctx.replays() {
                            next.0.begin(ctx, &next.1);
                        }
                        let whole = gather_parameters(ctx, here.clone(), before.clone());
                        (layer(ctx, x, &whole[0]), None)
                    });
                    h = made;
                }
                assert_close(h.data(), rows_of(&y, size, rank).data());
                let at = share(8, size, rank).start * 5;
                let loss = project(&mut ctx, &h, &c, at);
                let found = backward(&mut ctx, &loss, &[&pieces[0], &pieces[1]]);
                for k in 0..2 {
                    assert_close(&found[k], &wanted[k][share(25, size, rank)]);
                }
                mesh.moved().total()
            });
            // A gather in each direction and a sum of gradients, of two layers.
            for (rank, moved) in moved.into_iter().enumerate() {
                let own = share(25, size, rank).len();
                let (gather, sum) = (own * (size - 1), 25 - own);
                assert_eq!(moved as usize, 4 * 2 * (2 * gather + sum), "{recompute}");
            }
        }
    }
}
