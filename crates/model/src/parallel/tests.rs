use russet_kernels::Pool;
use russet_tensor::ops::IGNORE;
use russet_tensor::{Gradients, MeshShape, Segments, threads};

use super::*;
use crate::config::RopeScaling;
use crate::{Attention, Family};

pub(crate) fn small(tied: bool) -> Config {
    Config {
        family: Family::Qwen3,
        vocab: 24,
        width: 20,
        layers: 3,
        heads: 8,
        kv_heads: 4,
        head_dim: 8,
        ffn: 24,
        norm_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: 32,
        tied,
        bos: None,
        eos: vec![],
    }
}

/// The same of other layers: the second slides, and the last has no keys and uses those of the first, or of the second where all slide.
fn mixed(tied: bool, window: usize, kinds: [bool; 3], kv_shared: usize) -> Config {
    let config = Config {
        attention: Attention::new(window, kinds.to_vec(), kv_shared),
        ..small(tied)
    };
    config.check().unwrap();
    config
}

fn context(recompute: bool) -> Ctx {
    let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
    ctx.recompute = recompute;
    ctx
}

/// The loss and all gradients of 13 tokens, by name, of what this decoder has.
fn pass(decoder: &Decoder, recompute: bool) -> (TokenLoss, Vec<Vec<f32>>) {
    let tokens: Vec<u32> = (0..13).map(|i| (i * 7 + 3) % 24).collect();
    let targets: Vec<u32> = (0..13)
        .map(|i| if i == 4 { IGNORE } else { (i * 5 + 1) % 24 })
        .collect();
    let weights: Vec<f32> = (0..13).map(|i| 0.05 + 0.01 * i as f32).collect();
    let segments = Segments::packed(&[6, 1, 6]);
    let terms = LossTerms {
        z_loss: 0.01,
        teacher: None,
    };
    let mut ctx = context(recompute);
    ctx.start_tape(
        decoder
            .parameters()
            .iter()
            .map(|parameter| parameter.tensor.id()),
    );
    let hidden = decoder.forward(&mut ctx, &tokens, &segments, None);
    let loss = decoder.loss_with(&mut ctx, &hidden, &targets, &weights, &terms);
    let mut gradients = Gradients::default();
    ctx.backward(&loss.loss, 1.0, &mut gradients);
    let of = |parameter: &Parameter| gradients.get(parameter.tensor).unwrap().data().to_vec();
    let all = decoder.parameters().iter().map(of).collect();
    // Once more without a tape, as validation does.
    let hidden = decoder.forward(&mut ctx, &tokens, &segments, None);
    let again = decoder
        .loss(&mut ctx, &hidden, &targets, &weights)
        .per_token;
    let only = decoder.token_losses(&mut ctx, &hidden, &targets);
    for (a, b) in again.iter().zip(&only) {
        assert!((a - b).abs() < 1e-6, "{a} and {b}");
    }
    (loss, all)
}

/// Every mesh of so many ranks.
fn meshes(ranks: usize) -> Vec<[usize; 4]> {
    let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let with_data = divisors(ranks).flat_map(|data| {
        let rest = ranks / data;
        divisors(rest).flat_map(move |fsdp| {
            let rest = rest / fsdp;
            divisors(rest).map(move |sequence| [data, fsdp, sequence, rest / sequence])
        })
    });
    with_data.collect()
}

/// On every mesh the loss and the gradients are those of one rank, but for the order of sums.
#[test]
fn every_mesh_has_the_loss_and_the_gradients_of_one_rank() {
    let all = [2, 3, 4, 8].map(meshes).concat();
    let fit = all
        .into_iter()
        .filter(|sizes| [1, 2, 4].contains(&sizes[3]));
    for (number, sizes) in fit.enumerate() {
        let (tied, recompute) = (number % 2 == 0, number % 3 == 0);
        mesh_equals_one_rank(&small(tied), sizes, recompute);
        // Windows, and keys that layers share.
        let config = match number % 4 {
            0 => mixed(tied, 2, [true; 3], 0),
            1 => mixed(tied, 3, [false, true, false], 1),
            2 => mixed(tied, 4, [true; 3], 1),
            _ => mixed(tied, 0, [false; 3], 2),
        };
        mesh_equals_one_rank(&config, sizes, !recompute);
    }
}

fn mesh_equals_one_rank(config: &Config, sizes: [usize; 4], recompute: bool) {
    let whole = Decoder::random(config, 5);
    let (loss, wanted) = pass(&whole, false);
    let loss_of_one = loss.per_token;
    let shape = MeshShape { sizes };
    let found = threads::run(shape, |mesh| {
        let decoder = Decoder::random_on_mesh(config, 5, Some(&mesh));
        let (loss, mut gradients) = pass(&decoder, recompute);
        let parameters = decoder.parameters();
        for (gradient, parameter) in gradients.iter_mut().zip(&parameters) {
            let cut = parameter.cut.unwrap();
            assert_eq!(
                (gradient.len(), parameter.tensor.len()),
                (cut.len(), cut.len())
            );
            // What the loop does: all ranks along fsdp saw the same tokens here.
            if cut.replicated {
                let group = mesh.along(Axis::Tensor);
                let sum = vec![Tensor::new(&[cut.len()], gradient.clone())];
                let sum = group.all_reduce(sum, |len| vec![0.0; len].into());
                *gradient = sum[0].data().to_vec();
            }
            // Those along sequence saw each other's.
            let group = mesh.along(Axis::Sequence);
            let sum = vec![Tensor::new(&[cut.len()], gradient.clone())];
            let sum = group.all_reduce(sum, |len| vec![0.0; len].into());
            *gradient = sum[0].data().to_vec();
            let fsdp = mesh.size(Axis::Fsdp) as f32;
            gradient.iter_mut().for_each(|g| *g /= fsdp);
        }
        let wanted = decoder.own_tokens(&loss_of_one).into_owned();
        Ok::<_, ()>((loss.per_token, wanted, gradients))
    });
    for (rank, (per_token, of_one, gradients)) in found.unwrap().into_iter().enumerate() {
        assert_eq!(per_token.len(), of_one.len());
        for (a, b) in per_token.iter().zip(&of_one) {
            assert!((a - b).abs() <= 1e-5 * b.abs(), "{sizes:?}: {a} and {b}");
        }
        let cuts = Cut::all(config, shape, rank);
        for ((cut, found), whole) in cuts.iter().zip(&gradients).zip(&wanted) {
            let largest = whole.iter().fold(0.0f32, |most, g| most.max(g.abs()));
            let mut rest = &whole[..];
            let parts: Vec<&[f32]> = cut
                .parts
                .iter()
                .map(|part| {
                    let (head, tail) = rest.split_at(part.shape.iter().product());
                    rest = tail;
                    head
                })
                .collect();
            for (found, wanted) in found.iter().zip(cut.of_whole(&parts)) {
                assert!(
                    (found - wanted).abs() <= 1e-5 * largest,
                    "{sizes:?}, {}: {found}, wanted {wanted}, largest {largest}",
                    cut.parts[0].name
                );
            }
        }
    }
}

#[test]
fn parts_of_a_random_decoder_are_parts_of_the_whole_one() {
    let config = mixed(false, 3, [true, false, true], 1);
    let whole = Decoder::random(&config, 9);
    let mesh = MeshShape {
        sizes: [1, 2, 1, 2],
    };
    let pieces = threads::run(mesh, |mesh| {
        let decoder = Decoder::random_on_mesh(&config, 9, Some(&mesh));
        let parameters = decoder.parameters();
        let copy = |p: &Parameter| p.tensor.data().to_vec();
        Ok::<_, ()>(parameters.iter().map(copy).collect::<Vec<_>>())
    });
    for (rank, pieces) in pieces.unwrap().into_iter().enumerate() {
        let cuts = Cut::all(&config, mesh, rank);
        for ((cut, piece), parameter) in cuts.iter().zip(pieces).zip(whole.parameters()) {
            let width = cut.parts[0].width();
            let mut first = 0;
            let parts: Vec<&[f32]> = parameter
                .parts
                .iter()
                .map(|(_, rows)| {
                    first += rows * width;
                    &parameter.tensor.data()[first - rows * width..first]
                })
                .collect();
            assert_eq!(piece, cut.of_whole(&parts));
        }
    }
}
