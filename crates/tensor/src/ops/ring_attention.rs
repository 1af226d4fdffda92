//! Causal attention over tokens that the ranks of a ring share out: each keeps its queries, and keys and values travel round
//! (ring attention, arXiv 2310.01889), gradients of them behind (docs/parallel.md).
//!
//! ```text
//! forward    own keys ─▶ send kv on, get those of the rank before, take them in ─▶ … S − 1 times
//! backward   own keys ─▶ send kv on, and behind it what it has got of gradients; add ─▶ … S − 1 times ─▶ send gradients home
//! ```
//! Keys that nobody here sees are sent on and computed with by others. The order in which a row takes its keys in is that of the
//! ring, so the bits depend on the mesh and on nothing else.

use std::sync::Arc;

use russet_kernels::attention::{self as kernel, Part, Query};
use russet_kernels::rope::HeadShape;

use super::key_values;
use crate::ring::Ring;
use crate::workspace::{Buffer, Workspace};
use crate::{Ctx, Tensor};

/// As [`super::attention`], of the rows that this rank has of all tokens: `q` is packed with keys and values of its own, or queries
/// alone that see those of another layer, `kv`.
///
/// A window changes nothing of what travels: keys that nobody sees through it are sent on, too.
pub fn ring_attention(
    ctx: &mut Ctx,
    shape: HeadShape,
    window: usize,
    q: &Tensor,
    kv: Option<&Tensor>,
    ring: &Arc<Ring>,
) -> Tensor {
    let (rows, q_width) = q.dims2();
    assert_eq!(rows, ring.rows(0), "rows that the ring gives this rank");
    let views = ring.views(window);
    let width = shape.q_width();
    let (mut out, mut lse) = (ctx.buffer(rows * width), ctx.buffer(rows * shape.heads));
    let query = |&(start, len): &(usize, usize)| match kv {
        None => Query::flat(shape, q.data(), start, len).within(window),
        Some(kv) => Query::shared(shape, kv.data(), start, len).within(window),
    };
    let queries: Vec<Query> = views.own.iter().map(query).collect();
    kernel::attention_forward(
        &ctx.pool,
        ctx.compute,
        shape,
        q.data(),
        q_width,
        &queries,
        &mut out,
        &mut lse,
    );
    let mut travels = travellers(ctx.workspace(), shape, q, kv);
    let (mut part_out, mut part_lse) = (ctx.buffer(rows * width), ctx.buffer(rows * shape.heads));
    for (round, parts) in views.rounds.iter().enumerate() {
        if round > 0 {
            travels = send_on(ring, ctx.workspace(), shape, travels, round);
        }
        for parts in within(window, parts) {
            kernel::attention_part_forward(
                &ctx.pool,
                ctx.compute,
                shape,
                window,
                [q.data(), travels.data()],
                &parts,
                [&mut part_out, &mut part_lse],
                [&mut out, &mut lse],
            );
        }
    }
    let out = Tensor::new(&[rows, width], out);
    if ctx.records(&[q]) || kv.is_some_and(|kv| ctx.records(&[kv])) {
        let (q, kv, saved, ring) = (q.clone(), kv.cloned(), out.clone(), ring.clone());
        ctx.record(&out, move |back, d_out| {
            let views = ring.views(window);
            let mut d_q = back.buffer(q.len());
            let (forward, pool) = ([saved.data(), &lse, d_out.data()], back.pool);
            // Gradients of own keys: in their columns, or apart.
            let mut d_own = match &kv {
                None => {
                    let [out, lse, d_out] = forward;
                    kernel::attention_backward(
                        pool,
                        back.compute,
                        shape,
                        window,
                        q.data(),
                        &views.own,
                        out,
                        lse,
                        d_out,
                        &mut d_q,
                    );
                    None
                }
                Some(kv) => {
                    let mut d_kv = back.buffer(kv.len());
                    kernel::attention_shared_backward(
                        pool,
                        back.compute,
                        shape,
                        window,
                        [q.data(), kv.data()],
                        &views.own,
                        forward,
                        [&mut d_q, &mut d_kv],
                    );
                    Some(d_kv)
                }
            };
            let mut travels = travellers(back.workspace(), shape, &q, kv.as_ref());
            let mut behind: Option<Tensor> = None; // gradients of the keys that come by
            for (round, parts) in views.rounds.iter().enumerate() {
                let parts = within(window, parts);
                let mut d_kv = match round {
                    0 if parts.is_empty() => continue,
                    0 => back.workspace().zeros(travels.len()),
                    _ => {
                        travels = send_on(&ring, back.workspace(), shape, travels, round);
                        match behind.take() {
                            None => back.workspace().zeros(travels.len()),
                            Some(d_kv) => {
                                let d_kv = send_on(&ring, back.workspace(), shape, d_kv, round);
                                d_kv.into_buffer(|len| back.buffer(len))
                            }
                        }
                    }
                };
                for parts in parts {
                    kernel::attention_part_backward(
                        pool,
                        back.compute,
                        shape,
                        window,
                        [q.data(), travels.data()],
                        &parts,
                        forward,
                        [&mut d_q, &mut d_kv],
                    );
                }
                let d_kv = Tensor::new(travels.shape(), d_kv);
                match round {
                    0 => add_home(shape, &d_kv, &mut d_q, &mut d_own),
                    _ => behind = Some(d_kv),
                }
            }
            drop(travels);
            if let Some(d_kv) = behind {
                let home = ring.group().size();
                let d_kv = send_on(&ring, back.workspace(), shape, d_kv, home);
                add_home(shape, &d_kv, &mut d_q, &mut d_own);
            }
            if let (Some(kv), Some(d_kv)) = (&kv, d_own)
                && back.wants(kv)
            {
                let d_kv = Tensor::new(kv.shape(), d_kv);
                back.accumulate(kv, d_kv);
            }
            if back.wants(&q) {
                let d_q = Tensor::new(q.shape(), d_q);
                back.accumulate(&q, d_q);
            }
        });
    }
    out
}

/// The keys and values that this rank sends round, `[n, 2G·K]`.
fn travellers(
    workspace: &Arc<Workspace>,
    shape: HeadShape,
    q: &Tensor,
    kv: Option<&Tensor>,
) -> Tensor {
    match kv {
        None => key_values::copied(workspace, shape, q),
        Some(kv) => kv.clone(),
    }
}

/// Of what rows see in a round, what a window reaches.
fn within(window: usize, round: &[Vec<Part>]) -> Vec<Vec<Part>> {
    let reached = |parts: &Vec<Part>| -> Vec<Part> {
        let parts = parts.iter().copied();
        parts.filter(|part| part.is_seen(window)).collect()
    };
    let mut round: Vec<Vec<Part>> = round.iter().map(reached).collect();
    round.retain(|parts| !parts.is_empty());
    round
}

/// Adds gradients of this rank's keys and values to those that it has of them.
fn add_home(shape: HeadShape, d_kv: &Tensor, d_q: &mut Buffer, d_own: &mut Option<Buffer>) {
    match d_own {
        None => key_values::add_to(shape, d_kv, d_q),
        Some(d_own) => {
            for (sum, x) in d_own.iter_mut().zip(d_kv.data()) {
                *sum += x;
            }
        }
    }
}

/// Sends what came by on to the next rank, and brings what comes by in `round`.
fn send_on(
    ring: &Ring,
    workspace: &Arc<Workspace>,
    shape: HeadShape,
    data: Tensor,
    round: usize,
) -> Tensor {
    let (rows, width) = (ring.rows(round), 2 * shape.kv_width());
    let mut out = workspace.take(rows * width);
    ring.group().shift(&data, &mut out);
    Tensor::new(&[rows, width], out)
}

#[cfg(test)]
mod tests {
    use russet_kernels::attention::NO_WINDOW;
    use russet_kernels::{Compute, Pool};

    use super::*;
    use crate::mesh::Axis;
    use crate::ops::attention;
    use crate::ops::check::random;
    use crate::{Gradients, MeshShape, Segments, ring, threads};

    const SHAPE: HeadShape = HeadShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
    };

    /// What `f` makes of `inputs`, and the gradients of `Σ c · f(inputs)`, one after another.
    fn pass(
        compute: Compute,
        inputs: &[Tensor],
        c: Vec<f32>,
        f: impl FnOnce(&mut Ctx) -> Tensor,
    ) -> Vec<Vec<f32>> {
        let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
        ctx.compute = compute;
        ctx.start_tape(inputs.iter().map(Tensor::id));
        let out = f(&mut ctx);
        let loss = Tensor::new(&[1], vec![0.0]);
        let of_out = out.clone();
        ctx.record(&loss, move |back, _| {
            back.accumulate(&of_out, Tensor::new(of_out.shape(), c));
        });
        let mut gradients = Gradients::default();
        ctx.backward(&loss, 1.0, &mut gradients);
        let of_inputs = inputs.iter().map(|x| gradients.get(x).unwrap());
        let all = std::iter::once(&out).chain(of_inputs);
        all.map(|tensor| tensor.data().to_vec()).collect()
    }

    /// Outputs and gradients on every rank are those of one rank, whose gradients are tested against differences; and each sends
    /// the keys once round and once more with their gradients. Through windows, and of queries apart from another layer's keys, too.
    #[test]
    fn rows_in_a_ring_attend_as_on_one_rank() {
        let packings: [&[usize]; 4] = [&[150], &[3, 40, 1, 70, 20], &[3], &[9; 8]];
        let cases = [2, 3, 4, 8]
            .into_iter()
            .flat_map(|s| packings.map(|l| (s, l)));
        for (number, (size, lengths)) in cases.enumerate() {
            for (compute, tolerance) in [(Compute::F32, 1e-5), (Compute::Bf16, 2e-2)] {
                check(size, lengths, compute, tolerance, NO_WINDOW, false);
                let windows = [1, 5, 20, 64, 100];
                let window = windows[number % windows.len()];
                check(size, lengths, compute, tolerance, window, number % 2 == 0);
                check(size, lengths, compute, tolerance, NO_WINDOW, true);
            }
        }
    }

    fn check(
        size: usize,
        lengths: &[usize],
        compute: Compute,
        tolerance: f32,
        window: usize,
        apart: bool,
    ) {
        let segments = Segments::packed(lengths);
        let tokens = segments.tokens();
        let out_width = SHAPE.q_width();
        let inputs = match apart {
            false => vec![random(&[tokens, SHAPE.qkv_width()], 1)],
            true => vec![
                random(&[tokens, out_width], 1),
                random(&[tokens, 2 * SHAPE.kv_width()], 3),
            ],
        };
        let c = random(&[tokens, out_width], 2);
        let whole = pass(compute, &inputs, c.data().to_vec(), |ctx| {
            attention(
                ctx,
                SHAPE,
                window,
                &inputs[0],
                inputs.get(1),
                &segments,
                None,
            )
        });
        let widths: Vec<usize> = std::iter::once(out_width)
            .chain(inputs.iter().map(|x| x.dims2().1))
            .collect();
        let sizes = [1, 1, size, 1];
        let ranks = threads::run(MeshShape { sizes }, |mesh| {
            let group = mesh.along(Axis::Sequence);
            let own = |all: &[f32], width| {
                let rows: Vec<&[f32]> = all.chunks_exact(width).collect();
                ring::own(group, &rows).concat()
            };
            let rows = ring::rows(tokens, size, mesh.rank());
            let part = |x: &Tensor| {
                let width = x.dims2().1;
                Tensor::new(&[rows, width], own(x.data(), width))
            };
            let parts: Vec<Tensor> = inputs.iter().map(part).collect();
            let ring = Arc::new(Ring::new(group, &segments));
            let found = pass(compute, &parts, own(c.data(), out_width), |ctx| {
                ring_attention(ctx, SHAPE, window, &parts[0], parts.get(1), &ring)
            });
            let wanted = whole.iter().zip(&widths);
            let wanted: Vec<Vec<f32>> = wanted.map(|(all, width)| own(all, *width)).collect();
            let sent = mesh.moved().along[Axis::Sequence as usize];
            Ok::<_, ()>((found, wanted, sent))
        });
        for (rank, (found, wanted, sent)) in ranks.unwrap().into_iter().enumerate() {
            for (found, wanted) in found.iter().zip(&wanted) {
                assert_eq!(found.len(), wanted.len());
                let largest = wanted.iter().fold(1.0f32, |most, x| most.max(x.abs()));
                for (found, wanted) in found.iter().zip(wanted) {
                    assert!(
                        (found - wanted).abs() <= tolerance * largest,
                        "{compute:?}, {lengths:?}, window {window}, rank {rank} of {size}: {found}, wanted {wanted}"
                    );
                }
            }
            let rows = |rank| ring::rows(tokens, size, rank % size);
            let others: usize = (0..size).map(rows).sum::<usize>();
            let numbers = 2 * (others - rows(rank + 1)) + others - rows(rank);
            assert_eq!(sent as usize, 4 * 2 * SHAPE.kv_width() * numbers);
        }
    }
}
