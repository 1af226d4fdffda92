//! Models whose layers slide, or use keys and values of others, against the formula in f64, which knows neither tiles nor tapes: a mask
//! as it is written, and keys taken from where they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use russet_kernels::{Compute, Pool, random};
use russet_model::cache::BLOCK_TOKENS;
use russet_model::config::RopeScaling;
use russet_model::{Attention, Config, Decoder, Family, KvCache, KvFormat, checkpoint};
use russet_tensor::{Ctx, Gradients, Segments};

const VOCAB: usize = 50;

/// Four layers in the words S (slides) and F (sees all), of which the last `kv_shared` use others' keys.
fn config(kinds: &str, window: usize, kv_shared: usize) -> Config {
    let config = Config {
        family: Family::Qwen3,
        vocab: VOCAB,
        width: 16,
        layers: kinds.len(),
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 24,
        norm_epsilon: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        attention: Attention::new(
            window,
            kinds.chars().map(|kind| kind == 'S').collect(),
            kv_shared,
        ),
        context: 1024,
        tied: false,
        bos: None,
        eos: vec![],
    };
    config.check().unwrap();
    config
}

/// Windows alone, keys shared alone, and both; in the last two layer 3 uses the keys of layer 1, and layer 2 those of 0 or 1.
fn configs() -> [Config; 6] {
    [
        config("SSSS", 5, 0),
        config("SFSF", 3, 0),
        config("FFFF", 0, 2),
        config("SSSS", 4, 3),
        config("SFSF", 3, 2),
        config("FSSS", 1, 2),
    ]
}

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    (0..count as u64)
        .map(|i| random::below(seed, 0, i, VOCAB as u64) as u32)
        .collect()
}

fn context(compute: Compute) -> Ctx {
    let mut ctx = Ctx::new(Arc::new(Pool::new(2).unwrap()));
    ctx.compute = compute;
    ctx
}

/// Weights by name, in f64.
type Named = BTreeMap<String, Vec<f64>>;

fn named(decoder: &Decoder) -> Named {
    let mut all = Named::new();
    for parameter in decoder.parameters() {
        let width = *parameter.tensor.shape().last().unwrap();
        let mut rest = parameter.tensor.data();
        for (name, rows) in &parameter.parts {
            let (part, after) = rest.split_at(rows * width);
            all.insert(name.clone(), part.iter().map(|&x| f64::from(x)).collect());
            rest = after;
        }
    }
    all
}

fn times(weight: &[f64], x: &[f64]) -> Vec<f64> {
    let rows = weight.chunks_exact(x.len());
    rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
        .collect()
}

fn normed(x: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + epsilon).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

/// Heads of one token, normed and turned by its position.
fn turned(x: &[f64], weight: &[f64], position: usize, config: &Config) -> Vec<f64> {
    let half = config.head_dim / 2;
    let head = |head: &[f64]| {
        let head = normed(head, weight, f64::from(config.norm_epsilon));
        let mut out = head.clone();
        for i in 0..half {
            let frequency = config
                .rope_theta
                .powf(-2.0 * i as f64 / config.head_dim as f64);
            // Angles are formed in f32.
            let angle = f64::from(position as f32 * frequency as f32);
            out[i] = head[i] * angle.cos() - head[i + half] * angle.sin();
            out[i + half] = head[i] * angle.sin() + head[i + half] * angle.cos();
        }
        out
    };
    x.chunks_exact(config.head_dim).flat_map(head).collect()
}

/// Logits of every token of one sequence.
fn logits(config: &Config, weights: &Named, tokens: &[u32]) -> Vec<Vec<f64>> {
    let epsilon = f64::from(config.norm_epsilon);
    let (k, group) = (config.head_dim, config.heads / config.kv_heads);
    let embedding = &weights["model.embed_tokens.weight"];
    let row = |token: &u32| embedding[*token as usize * config.width..][..config.width].to_vec();
    let mut x: Vec<Vec<f64>> = tokens.iter().map(row).collect();
    let mut kept: Vec<[Vec<Vec<f64>>; 2]> = Vec::new(); // keys and values of layers that have them
    let own = config.layers - config.attention.kv_shared;
    for layer in 0..config.layers {
        let of = |name: &str| &weights[&format!("model.layers.{layer}.{name}.weight")];
        let slides = |layer: usize| config.attention.sliding.get(layer) == Some(&true);
        let h: Vec<Vec<f64>> = x
            .iter()
            .map(|x| normed(x, of("input_layernorm"), epsilon))
            .collect();
        if layer < own {
            let key = |(position, h): (usize, &Vec<f64>)| {
                let key = times(of("self_attn.k_proj"), h);
                turned(&key, of("self_attn.k_norm"), position, config)
            };
            let keys = h.iter().enumerate().map(key).collect();
            let values = h.iter().map(|h| times(of("self_attn.v_proj"), h));
            kept.push([keys, values.collect()]);
        }
        let source = (0..own.min(layer + 1)).rfind(|&other| slides(other) == slides(layer));
        let [keys, values] = &kept[if layer < own { layer } else { source.unwrap() }];
        for (position, x) in x.iter_mut().enumerate() {
            let q = times(of("self_attn.q_proj"), &h[position]);
            let q = turned(&q, of("self_attn.q_norm"), position, config);
            let mut attended = Vec::new();
            for head in 0..config.heads {
                let at = head / group * k;
                let score = |key: usize| -> f64 {
                    // transformers: kv_idx <= q_idx, and kv_idx > q_idx - sliding_window.
                    let hidden = slides(layer) && key + config.attention.window <= position;
                    if key > position || hidden {
                        return f64::NEG_INFINITY;
                    }
                    let q = &q[head * k..][..k];
                    let dot: f64 = q.iter().zip(&keys[key][at..]).map(|(q, k)| q * k).sum();
                    dot / (k as f64).sqrt()
                };
                let scores: Vec<f64> = (0..tokens.len()).map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                for i in 0..k {
                    let terms = scores.iter().zip(values);
                    let sum: f64 = terms.map(|(s, v)| (s - top).exp() * v[at + i]).sum();
                    attended.push(sum / total);
                }
            }
            for (x, add) in x.iter_mut().zip(times(of("self_attn.o_proj"), &attended)) {
                *x += add;
            }
            let h = normed(x, of("post_attention_layernorm"), epsilon);
            let gate = times(of("mlp.gate_proj"), &h);
            let up = times(of("mlp.up_proj"), &h);
            let inner: Vec<f64> = gate
                .iter()
                .zip(up)
                .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                .collect();
            for (x, add) in x.iter_mut().zip(times(of("mlp.down_proj"), &inner)) {
                *x += add;
            }
        }
    }
    let head = &weights["lm_head.weight"];
    x.iter()
        .map(|x| times(head, &normed(x, &weights["model.norm.weight"], epsilon)))
        .collect()
}

/// Σ of the tokens' losses, each sequence by itself.
fn loss(config: &Config, weights: &Named, sequences: &[Vec<u32>]) -> f64 {
    let mut sum = 0.0;
    for sequence in sequences {
        let logits = logits(config, weights, sequence);
        for (logits, &target) in logits.iter().zip(&sequence[1..]) {
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|z| (z - top).exp()).sum();
            sum += top + total.ln() - logits[target as usize];
        }
    }
    sum
}

#[test]
fn the_forward_pass_is_the_formula() {
    for config in configs() {
        let decoder = Decoder::random(&config, 3);
        assert_eq!(
            decoder
                .parameters()
                .iter()
                .map(|p| p.tensor.len())
                .sum::<usize>(),
            config.parameters()
        );
        let weights = named(&decoder);
        let sequences = [tokens(1, 70), tokens(2, 9)];
        let mut ctx = context(Compute::F32);
        let all = sequences.concat();
        let segments = Segments::packed(&[70, 9]);
        let hidden = decoder.forward(&mut ctx, &all, &segments, None);
        let got = decoder.logits(&mut ctx, &hidden);
        let wanted = sequences.map(|tokens| logits(&config, &weights, &tokens));
        let wanted = wanted.concat().concat();
        assert_eq!(got.len(), wanted.len());
        for (got, wanted) in got.data().iter().zip(&wanted) {
            let off = (f64::from(*got) - wanted).abs();
            assert!(
                off < 1e-4,
                "{:?}: {got}, formula {wanted}",
                config.attention
            );
        }
    }
}

/// Gradients against differences of the formula, which is in f64: errors are those of our f32. In bf16 they have the right size and
/// direction.
#[test]
fn gradients_are_those_of_the_formula() {
    for config in configs() {
        let decoder = Decoder::random(&config, 4);
        let weights = named(&decoder);
        let sequences = [tokens(5, 12), tokens(6, 4)];
        let all = sequences.concat();
        let mut targets: Vec<u32> = all[1..].to_vec();
        targets.push(0);
        let mut each = vec![1.0; all.len()];
        (each[11], each[15]) = (0.0, 0.0);
        let of = |compute: Compute, recompute: bool| -> Vec<Vec<f32>> {
            let mut ctx = context(compute);
            ctx.recompute = recompute;
            ctx.start_tape(decoder.parameters().iter().map(|p| p.tensor.id()));
            let segments = Segments::packed(&[12, 4]);
            let hidden = decoder.forward(&mut ctx, &all, &segments, None);
            let loss = decoder.loss(&mut ctx, &hidden, &targets, &each);
            let mut gradients = Gradients::default();
            ctx.backward(&loss.loss, 1.0, &mut gradients);
            let gradient = |p: &russet_model::Parameter| gradients.get(p.tensor).unwrap().data();
            decoder
                .parameters()
                .iter()
                .map(|p| gradient(p).to_vec())
                .collect()
        };
        let found = of(Compute::F32, false);
        assert_eq!(found, of(Compute::F32, true), "{:?}", config.attention);
        let rounded = of(Compute::Bf16, false);
        let norms = found
            .iter()
            .map(|g| g.iter().map(|x| x * x).sum::<f32>().sqrt());
        let most = norms.fold(0.0, f32::max);
        for ((parameter, found), rounded) in decoder.parameters().iter().zip(&found).zip(&rounded) {
            let (mut at, width) = (0, *parameter.tensor.shape().last().unwrap());
            let largest = found.iter().fold(0.0f32, |most, g| most.max(g.abs()));
            // In bf16 what a parameter is off by is small beside it, or beside what is most.
            let norm = |of: &mut dyn Iterator<Item = f32>| of.map(|x| x * x).sum::<f32>().sqrt();
            let size = norm(&mut found.iter().copied());
            let off = norm(&mut found.iter().zip(rounded).map(|(a, b)| a - b));
            assert!(
                off <= 0.05 * size + 0.01 * most,
                "bf16, {:?} {}: off by {off} of {size}, the most is {most}",
                config.attention,
                parameter.parts[0].0
            );
            for (name, rows) in &parameter.parts {
                // Some of each part's numbers.
                for draw in 0..3 {
                    let i = random::below(7, draw, at as u64, (rows * width) as u64) as usize;
                    let step = 1e-5;
                    let value = |delta: f64| {
                        let mut changed = weights.clone();
                        changed.get_mut(name).unwrap()[i] += delta;
                        loss(&config, &changed, &sequences)
                    };
                    let wanted = (value(step) - value(-step)) / (2.0 * step);
                    let off = (f64::from(found[at + i]) - wanted).abs();
                    assert!(
                        off <= 1e-4 * f64::from(largest) + 1e-6,
                        "{:?} {name}[{i}]: {}, formula {wanted}",
                        config.attention,
                        found[at + i]
                    );
                }
                at += rows * width;
            }
        }
    }
}

/// Hidden states of some tokens after what `slot` holds.
fn run(
    decoder: &Decoder,
    ctx: &mut Ctx,
    cache: &mut KvCache,
    runs: &[(usize, &[u32])],
) -> Vec<Vec<f32>> {
    let mut segments = Segments::default();
    let mut all = Vec::new();
    for &(slot, tokens) in runs {
        let past = cache.extend(slot, tokens.len()).unwrap();
        segments.push(tokens.len(), past, slot);
        all.extend_from_slice(tokens);
    }
    let hidden = decoder.forward(ctx, &all, &segments, Some(cache));
    let rows = hidden.data().chunks_exact(decoder.config().width);
    rows.map(<[f32]>::to_vec).collect()
}

/// Windows that end within tiles and at their edges, in one pass, in chunks, token by token, and beside another sequence: the same bits
/// as without a cache; in 8 bits the same bits however it is cut, and near those in f32.
#[test]
fn cached_decoding_equals_the_whole_pass_in_any_chunks_and_batch() {
    let long = [
        config("SSSS", 100, 0),
        config("SFSF", 64, 2),
        config("FSSS", 7, 2),
        config("FFFF", 0, 2),
    ];
    for config in long {
        let decoder = Decoder::random(&config, 5);
        let mut ctx = context(Compute::F32);
        let whole = tokens(1, 230);
        let other = tokens(2, 150);
        let segments = Segments::packed(&[whole.len()]);
        let plain = decoder.forward(&mut ctx, &whole, &segments, None);
        for format in [KvFormat::F32, KvFormat::F16, KvFormat::Int8] {
            let mut cache = KvCache::of_format(&config, format, 2, 8);
            let wanted = run(&decoder, &mut ctx, &mut cache, &[(0, &whole)]);
            let off = wanted.concat();
            let off = off.iter().zip(plain.data()).map(|(a, b)| a - b);
            let off = (off.map(|x| x * x).sum::<f32>() / plain.len() as f32).sqrt();
            // Hidden states are normed: in 8 bits they are off by some hundredths of their size, in 16 by less than a thousandth.
            let tolerance = match format {
                KvFormat::F32 => 0.0,
                KvFormat::F16 => 0.001,
                KvFormat::Int8 => 0.03,
            };
            assert!(
                off <= tolerance,
                "{:?}, {format:?}: {off}",
                config.attention
            );
            for chunks in [vec![64, 100, 66], vec![1; 230], vec![3, 127, 1, 99]] {
                let mut cache = KvCache::of_format(&config, format, 2, 8);
                // The other sequence goes along, a few tokens at a time.
                let (mut got, mut at, mut beside) = (Vec::new(), 0, 0);
                for len in chunks {
                    let more = &other[beside..other.len().min(beside + 2)];
                    let runs = [(1, more), (0, &whole[at..at + len])];
                    let rows = run(&decoder, &mut ctx, &mut cache, &runs);
                    got.extend_from_slice(&rows[more.len()..]);
                    (at, beside) = (at + len, beside + more.len());
                }
                assert!(got == wanted, "{:?}, {format:?}", config.attention);
            }
        }
    }
}

/// A cache has pages of the layers with keys of their own alone.
#[test]
fn layers_without_keys_take_no_room_in_the_cache() {
    let (all, some) = (config("FFFFFFFF", 0, 0), config("FFFFFFFF", 0, 3));
    for format in [KvFormat::F32, KvFormat::F16, KvFormat::Int8] {
        let bytes = |config| KvCache::block_bytes(config, format);
        assert_eq!(5 * bytes(&all), 8 * bytes(&some)); // 37.5 % less
    }
    let a_token = KvCache::block_bytes(&some, KvFormat::F32) / BLOCK_TOKENS;
    assert_eq!(a_token, some.cache_bytes_per_token());
}

#[test]
fn what_is_saved_reads_back_to_the_bit() {
    for config in configs() {
        let decoder = Decoder::random(&config, 6);
        let folder = tempfile::tempdir().unwrap();
        checkpoint::save(&decoder, folder.path()).unwrap();
        let again = checkpoint::load(folder.path()).unwrap();
        assert_eq!(again.config(), decoder.config());
        for (a, b) in decoder.parameters().iter().zip(again.parameters()) {
            assert_eq!((&a.parts, a.tensor.data()), (&b.parts, b.tensor.data()));
        }
        // One block at a time, the same hidden states.
        let blocks = checkpoint::Blocks::open(folder.path()).unwrap();
        let mut ctx = context(Compute::F32);
        let tokens = tokens(1, 20);
        let segments = Segments::packed(&[20]);
        let ends = blocks.ends().unwrap();
        let mut x = ends.first(&mut ctx, &tokens);
        let mut lent = BTreeMap::new();
        for layer in 0..config.layers {
            let kv = lent.get(&config.attention_of(layer).keys_of);
            let block = blocks.block(layer).unwrap();
            let (made, own) = block.block(&mut ctx, 0, &x, kv, &segments);
            x = made;
            lent.extend(own.map(|own| (layer, own)));
        }
        let whole = decoder.forward(&mut ctx, &tokens, &segments, None);
        assert_eq!(ends.last(&mut ctx, &x).data(), whole.data());
    }
}
