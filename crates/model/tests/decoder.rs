//! What the one forward pass promises whatever runs through it.

use std::sync::Arc;

use russet_kernels::{Compute, Pool, ROW_BLOCK, random};
use russet_model::config::RopeScaling;
use russet_model::{Config, Decoder, Family, KvCache, ModelError};
use russet_tensor::{Ctx, Gradients, Segments};

fn config() -> Config {
    Config {
        family: Family::Qwen3,
        vocab: 97,
        width: 48,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 80,
        norm_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: 512,
        tied: true,
        bos: Some(0),
        eos: vec![0],
    }
}

fn context(threads: usize) -> Ctx {
    Ctx::new(Arc::new(Pool::new(threads).unwrap()))
}

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    (0..count)
        .map(|i| random::below(seed, 0, i as u64, 97) as u32)
        .collect()
}

fn hidden(ctx: &mut Ctx, decoder: &Decoder, tokens: &[u32], lengths: &[usize]) -> Vec<f32> {
    decoder
        .forward(ctx, tokens, &Segments::packed(lengths), None)
        .data()
        .to_vec()
}

#[test]
fn cached_decoding_equals_the_full_forward() {
    let decoder = Decoder::random(&config(), 1);
    let mut ctx = context(2);
    let tokens = tokens(150, 2);
    let full = hidden(&mut ctx, &decoder, &tokens, &[150]);
    for chunks in [
        vec![150],
        vec![64, 64, 22],
        vec![70, 1, 1, 78],
        vec![1; 150],
    ] {
        let mut cache = KvCache::new(decoder.config(), 1, 150);
        let (mut got, mut start) = (Vec::new(), 0);
        for len in chunks.clone() {
            let mut segments = Segments::default();
            segments.push(len, cache.extend(0, len).unwrap(), 0);
            got.extend_from_slice(
                decoder
                    .forward(
                        &mut ctx,
                        &tokens[start..start + len],
                        &segments,
                        Some(&mut cache),
                    )
                    .data(),
            );
            start += len;
        }
        // To the bit: every row is summed in an order that its matrix alone decides, whatever rows stand beside it.
        assert!(full == got, "chunks {chunks:?}");
    }
}

#[test]
fn sequences_packed_together_do_not_see_each_other() {
    let decoder = Decoder::random(&config(), 1);
    let mut ctx = context(2);
    let (a, b) = (tokens(70, 3), tokens(33, 4));
    let both = hidden(&mut ctx, &decoder, &[&a[..], &b[..]].concat(), &[70, 33]);
    let alone = [
        hidden(&mut ctx, &decoder, &a, &[70]),
        hidden(&mut ctx, &decoder, &b, &[33]),
    ]
    .concat();
    assert!(both == alone);
}

#[test]
fn one_thread_and_three_give_identical_bits() {
    let decoder = Decoder::random(&config(), 1);
    let tokens = tokens(100, 5);
    let run = |threads: usize| {
        let mut ctx = context(threads);
        let mut gradients = Gradients::default();
        ctx.start_tape(decoder.parameters().iter().map(|p| p.tensor.id()));
        let hidden = decoder.forward(&mut ctx, &tokens, &Segments::packed(&[60, 40]), None);
        let loss = decoder.loss(&mut ctx, &hidden, &tokens, &[0.01; 100]).loss;
        ctx.backward(&loss, 1.0, &mut gradients);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let gradients = decoder
            .parameters()
            .iter()
            .map(|p| bits(gradients.get(p.tensor).unwrap().data()))
            .collect::<Vec<_>>();
        (bits(hidden.data()), loss.data()[0].to_bits(), gradients)
    };
    assert!(run(1) == run(3));
}

#[test]
fn the_loss_of_a_random_decoder_is_near_that_of_a_fair_guess() {
    let decoder = Decoder::random(&config(), 1);
    let mut ctx = context(2);
    let (inputs, targets) = (tokens(200, 6), tokens(200, 7));
    let hidden = decoder.forward(&mut ctx, &inputs, &Segments::packed(&[200]), None);
    let losses = decoder.token_losses(&mut ctx, &hidden, &targets);
    let mean = losses.iter().sum::<f32>() / 200.0;
    // Logits of variance 1 cost 0.5 nats over the fair guess.
    assert!((mean - (97f32.ln() + 0.5)).abs() < 0.4, "{mean}");
}

#[test]
fn a_full_cache_says_so_and_keeps_what_it_has() {
    let mut cache = KvCache::new(&config(), 2, 128);
    cache.extend(0, 128).unwrap();
    cache.extend(1, 64).unwrap(); // the page that each further sequence may leave half filled
    assert!(matches!(
        cache.extend(1, 1),
        Err(ModelError::CacheFull { .. })
    ));
    assert_eq!((cache.len(0), cache.len(1)), (128, 64));
    cache.truncate(0, 64);
    assert_eq!(cache.extend(1, 1).unwrap(), 64);
}

#[test]
fn the_published_parameter_count_is_that_of_the_tensors() {
    for tied in [true, false] {
        let config = Config { tied, ..config() };
        let decoder = Decoder::random(&config, 1);
        let counted: usize = decoder.parameters().iter().map(|p| p.tensor.len()).sum();
        assert_eq!(counted, config.parameters());
    }
}

#[test]
fn blocks_computed_again_give_the_same_losses_and_gradients() {
    let step =
        |decoder: &Decoder, long: usize, watched: &[usize], compute: Compute, recompute: bool| {
            let tokens = tokens(long + 10, 3);
            let targets: Vec<u32> = tokens[1..].iter().copied().chain([5]).collect();
            let mut ctx = context(2);
            (ctx.compute, ctx.recompute) = (compute, recompute);
            let parameters = decoder.parameters();
            let watched: Vec<_> = watched.iter().map(|&at| parameters[at].tensor).collect();
            ctx.start_tape(watched.iter().map(|tensor| tensor.id()));
            let segments = Segments::packed(&[long, 10]);
            let hidden = decoder.forward(&mut ctx, &tokens, &segments, None);
            let weights = vec![1.0 / tokens.len() as f32; tokens.len()];
            let loss = decoder.loss(&mut ctx, &hidden, &targets, &weights).loss;
            let mut gradients = Gradients::default();
            ctx.backward(&loss, 1.0, &mut gradients);
            let gradients: Vec<Option<Vec<f32>>> = watched
                .iter()
                .map(|tensor| gradients.get(tensor).map(|g| g.data().to_vec()))
                .collect();
            assert!(gradients.iter().all(Option::is_some));
            (loss.data()[0].to_bits(), gradients, ctx.peak_bytes())
        };
    let mut config = config();
    config.layers = 6;
    let decoder = Decoder::random(&config, 4);
    let all: Vec<usize> = (0..decoder.parameters().len()).collect();
    // All weights; and some of one block in the middle, where the first blocks have no gradient to push back.
    for watched in [&all[..], &all[20..22]] {
        // One block of rows, and two and a bit, of which the feed-forward layers see one at a time.
        for long in [30, 2 * ROW_BLOCK + 7] {
            for compute in [Compute::F32, Compute::Bf16] {
                let kept = step(&decoder, long, watched, compute, false);
                let again = step(&decoder, long, watched, compute, true);
                assert!((kept.0, kept.1) == (again.0, again.1), "{long} {compute:?}");
                assert!(again.2 < kept.2, "{} bytes again, {} kept", again.2, kept.2);
            }
        }
    }
}

#[test]
fn weights_can_be_changed_after_a_step_that_computed_blocks_again() {
    let mut decoder = Decoder::random(&config(), 4);
    let mut ctx = context(1);
    ctx.recompute = true;
    let ids: Vec<_> = decoder.parameters().iter().map(|p| p.tensor.id()).collect();
    ctx.start_tape(ids);
    let hidden = decoder.forward(&mut ctx, &tokens(9, 3), &Segments::packed(&[9]), None);
    let loss = decoder
        .loss(&mut ctx, &hidden, &tokens(9, 4), &[1.0; 9])
        .loss;
    ctx.backward(&loss, 1.0, &mut Gradients::default());
    decoder.visit_mut(&mut |tensor| tensor.data_mut()[0] += 1.0);
}
