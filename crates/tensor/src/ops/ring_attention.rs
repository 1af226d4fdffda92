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

use russet_kernels::attention::{self as kernel, Query};
use russet_kernels::rope::HeadShape;

use crate::ring::Ring;
use crate::workspace::{Buffer, Workspace};
use crate::{Ctx, Tensor};

/// As [`super::attention`], of the rows `[n, (H+2G)·K]` that this rank has of all tokens.
pub fn ring_attention(ctx: &mut Ctx, shape: HeadShape, qkv: &Tensor, ring: &Arc<Ring>) -> Tensor {
    let (rows, qkv_width) = qkv.dims2();
    assert_eq!(rows, ring.rows(0), "rows that the ring gives this rank");
    let width = shape.heads * shape.head_dim;
    let (mut out, mut lse) = (ctx.buffer(rows * width), ctx.buffer(rows * shape.heads));
    let query = |&(start, len): &(usize, usize)| Query::flat(shape, qkv.data(), start, len);
    let queries: Vec<Query> = ring.own().iter().map(query).collect();
    kernel::attention_forward(
        &ctx.pool,
        ctx.compute,
        shape,
        qkv.data(),
        qkv_width,
        &queries,
        &mut out,
        &mut lse,
    );
    let mut kv = keys_and_values(ctx.workspace(), shape, qkv);
    let (mut part_out, mut part_lse) = (ctx.buffer(rows * width), ctx.buffer(rows * shape.heads));
    for (before, parts) in ring.rounds().iter().enumerate() {
        kv = send_on(ring, ctx.workspace(), shape, kv, before + 1);
        kernel::attention_part_forward(
            &ctx.pool,
            ctx.compute,
            shape,
            qkv.data(),
            kv.data(),
            parts,
            [&mut part_out, &mut part_lse],
            [&mut out, &mut lse],
        );
    }
    let out = Tensor::new(&[rows, width], out);
    if ctx.records(&[qkv]) {
        let (qkv, saved, ring) = (qkv.clone(), out.clone(), ring.clone());
        ctx.record(&out, move |back, d_out| {
            let mut d_qkv = back.buffer(qkv.len());
            let (forward, pool) = ([saved.data(), &lse, d_out.data()], back.pool);
            let [out, lse, d_out] = forward;
            kernel::attention_backward(
                pool,
                back.compute,
                shape,
                qkv.data(),
                ring.own(),
                out,
                lse,
                d_out,
                &mut d_qkv,
            );
            let mut kv = keys_and_values(back.workspace(), shape, &qkv);
            let mut travelling: Option<Tensor> = None; // gradients of the keys that come by
            for (before, parts) in ring.rounds().iter().enumerate() {
                kv = send_on(&ring, back.workspace(), shape, kv, before + 1);
                let mut d_kv = match travelling.take() {
                    None => back.workspace().zeros(kv.len()),
                    Some(d_kv) => {
                        let d_kv = send_on(&ring, back.workspace(), shape, d_kv, before + 1);
                        d_kv.into_buffer(|len| back.buffer(len))
                    }
                };
                kernel::attention_part_backward(
                    pool,
                    back.compute,
                    shape,
                    [qkv.data(), kv.data()],
                    parts,
                    forward,
                    [&mut d_qkv, &mut d_kv],
                );
                travelling = Some(Tensor::new(kv.shape(), d_kv));
            }
            drop(kv);
            if let Some(d_kv) = travelling {
                let home = ring.group().size();
                let d_kv = send_on(&ring, back.workspace(), shape, d_kv, home);
                add_keys_and_values(shape, &d_kv, &mut d_qkv);
            }
            let d_qkv = Tensor::new(qkv.shape(), d_qkv);
            back.accumulate(&qkv, d_qkv);
        });
    }
    out
}

/// The keys and values of rows, `[n, 2G·K]`.
fn keys_and_values(workspace: &Arc<Workspace>, shape: HeadShape, qkv: &Tensor) -> Tensor {
    let (rows, width) = qkv.dims2();
    let kv_width = 2 * shape.kv_width();
    let mut kv = workspace.take(rows * kv_width);
    let from = qkv.data().chunks_exact(width);
    for (kv, row) in kv.chunks_exact_mut(kv_width).zip(from) {
        kv.copy_from_slice(&row[shape.q_width()..]);
    }
    Tensor::new(&[rows, kv_width], kv)
}

/// Adds gradients of keys and values to their columns.
fn add_keys_and_values(shape: HeadShape, d_kv: &Tensor, d_qkv: &mut Buffer) {
    let rows = d_kv.data().chunks_exact(2 * shape.kv_width());
    for (row, d_kv) in d_qkv.chunks_exact_mut(shape.qkv_width()).zip(rows) {
        for (sum, x) in row[shape.q_width()..].iter_mut().zip(d_kv) {
            *sum += x;
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

    /// What `f` makes of `qkv`, and the gradient of `Σ c · f(qkv)`.
    fn pass(
        compute: Compute,
        qkv: &Tensor,
        c: Vec<f32>,
        f: impl FnOnce(&mut Ctx, &Tensor) -> Tensor,
    ) -> [Vec<f32>; 2] {
        let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
        ctx.compute = compute;
        ctx.start_tape([qkv.id()]);
        let out = f(&mut ctx, qkv);
        let loss = Tensor::new(&[1], vec![0.0]);
        let of_out = out.clone();
        ctx.record(&loss, move |back, _| {
            back.accumulate(&of_out, Tensor::new(of_out.shape(), c));
        });
        let mut gradients = Gradients::default();
        ctx.backward(&loss, 1.0, &mut gradients);
        [
            out.data().to_vec(),
            gradients.get(qkv).unwrap().data().to_vec(),
        ]
    }

    /// Outputs and gradients on every rank are those of one rank, whose gradients are tested against differences; and each sends
    /// the keys once round and once more with their gradients.
    #[test]
    fn rows_in_a_ring_attend_as_on_one_rank() {
        let (width, out_width) = (SHAPE.qkv_width(), SHAPE.q_width());
        let packings: [&[usize]; 4] = [&[150], &[3, 40, 1, 70, 20], &[3], &[9; 8]];
        let cases = [2, 3, 4, 8]
            .into_iter()
            .flat_map(|s| packings.map(|l| (s, l)));
        for (size, lengths) in cases {
            for (compute, tolerance) in [(Compute::F32, 1e-5), (Compute::Bf16, 2e-2)] {
                let segments = Segments::packed(lengths);
                let tokens = segments.tokens();
                let (qkv, c) = (random(&[tokens, width], 1), random(&[tokens, out_width], 2));
                let [out, d_qkv] = pass(compute, &qkv, c.data().to_vec(), |ctx, qkv| {
                    attention(ctx, SHAPE, qkv, &segments, None)
                });
                let sizes = [1, 1, size, 1];
                let ranks = threads::run(MeshShape { sizes }, |mesh| {
                    let group = mesh.along(Axis::Sequence);
                    let own = |all: &[f32], width| {
                        let rows: Vec<&[f32]> = all.chunks_exact(width).collect();
                        ring::own(group, &rows).concat()
                    };
                    let rows = ring::rows(tokens, size, mesh.rank());
                    let part = Tensor::new(&[rows, width], own(qkv.data(), width));
                    let ring = Arc::new(Ring::new(group, &segments));
                    let found = pass(compute, &part, own(c.data(), out_width), |ctx, qkv| {
                        ring_attention(ctx, SHAPE, qkv, &ring)
                    });
                    let wanted = [own(&out, out_width), own(&d_qkv, width)];
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
                                "{compute:?}, {lengths:?}, rank {rank} of {size}: {found}, wanted {wanted}"
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
    }
}
