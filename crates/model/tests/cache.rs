//! Blocks that several sequences hold: who may write where, and that nobody's numbers change.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use russet_kernels::{Pool, random};
use russet_model::cache::BLOCK_TOKENS;
use russet_model::config::RopeScaling;
use russet_model::{Config, Decoder, Family, KvCache, KvFormat, ModelError};
use russet_tensor::{Ctx, Segments};

fn config() -> Config {
    Config {
        family: Family::Qwen3,
        vocab: 97,
        width: 16,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        ffn: 16,
        norm_epsilon: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: 1024,
        tied: true,
        bos: None,
        eos: vec![],
    }
}

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    (0..count as u64)
        .map(|i| random::below(seed, 0, i, 97) as u32)
        .collect()
}

/// Runs `tokens` after what `slot` holds; the last row.
fn run(
    decoder: &Decoder,
    ctx: &mut Ctx,
    cache: &mut KvCache,
    slot: usize,
    tokens: &[u32],
) -> Vec<f32> {
    let mut segments = Segments::default();
    segments.push(
        tokens.len(),
        cache.extend(slot, tokens.len()).unwrap(),
        slot,
    );
    let hidden = decoder.forward(ctx, tokens, &segments, Some(cache));
    hidden.data()[(tokens.len() - 1) * 16..].to_vec()
}

#[test]
fn sequences_that_share_a_beginning_go_on_as_if_alone() {
    let decoder = Decoder::random(&config(), 3);
    let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
    let whole = tokens(1, 150);
    let formats = [KvFormat::F32, KvFormat::F16, KvFormat::Int8];
    let all = |common| formats.map(|format| (format, common));
    let ends = [1usize, 40, 63, 64, 65, 100, 128, 149];
    for (format, common) in ends.into_iter().flat_map(all) {
        let mut cache = KvCache::of_format(&config(), format, 2, 6);
        run(&decoder, &mut ctx, &mut cache, 0, &whole);
        let blocks = cache.table(0)[..common.div_ceil(BLOCK_TOKENS)].to_vec();
        cache.share(1, &blocks, common);
        // Another end on the shared beginning, then the first sequence goes on, in the block that was shared too.
        let other = tokens(2, 30);
        let more = tokens(4, 20);
        let got = [
            run(&decoder, &mut ctx, &mut cache, 1, &other),
            run(&decoder, &mut ctx, &mut cache, 0, &more),
        ];
        let alone = |tokens: &[u32], ctx: &mut Ctx| {
            let mut cache = KvCache::of_format(&config(), format, 1, 3);
            run(&decoder, ctx, &mut cache, 0, tokens)
        };
        assert_eq!(
            got[0],
            alone(&[&whole[..common], &other].concat(), &mut ctx),
            "{common}"
        );
        assert_eq!(
            got[1],
            alone(&[whole.clone(), more].concat(), &mut ctx),
            "{common}"
        );
    }
}

#[test]
fn a_copy_needs_a_free_block_and_a_refusal_changes_nothing() {
    let mut cache = KvCache::with_blocks(&config(), 2, 2);
    cache.extend(0, 100).unwrap();
    let blocks = cache.table(0).to_vec();
    cache.share(1, &blocks, 100);
    for slot in [0, 1] {
        let full = cache.extend(slot, 1);
        assert!(matches!(full, Err(ModelError::CacheFull { capacity: 128 })));
        assert_eq!((cache.len(slot), cache.table(slot)), (100, &blocks[..]));
    }
    // Alone again, the other writes into the block as it is.
    cache.truncate(1, 0);
    cache.extend(0, 1).unwrap();
    assert_eq!(cache.table(0), blocks);
}

/// What happens to a cache of 3 slots.
#[derive(Clone, Debug)]
enum Act {
    Extend(usize, usize),
    Truncate(usize, usize),
    Share(usize, usize, usize),
    Keep(usize),
    Drop(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let slot = || 0..3usize;
    prop_oneof![
        4 => (slot(), 1..150usize).prop_map(|(slot, n)| Act::Extend(slot, n)),
        2 => (slot(), 0..200usize).prop_map(|(slot, n)| Act::Truncate(slot, n)),
        2 => (slot(), slot(), 1..200usize).prop_map(|(to, from, n)| Act::Share(to, from, n)),
        1 => (0..12usize).prop_map(Act::Keep),
        1 => (0..12usize).prop_map(Act::Drop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_block_is_held_as_often_as_it_is_listed(acts in prop::collection::vec(act(), 1..60)) {
        let mut cache = KvCache::with_blocks(&config(), 3, 12);
        let mut kept = Vec::new();
        for act in acts {
            match act {
                Act::Extend(slot, n) => {
                    let (before, free) = (cache.len(slot), cache.blocks().free());
                    match cache.extend(slot, n) {
                        Ok(past) => prop_assert_eq!((past, cache.len(slot)), (before, before + n)),
                        Err(_) => prop_assert_eq!((cache.len(slot), cache.blocks().free()), (before, free)),
                    }
                }
                Act::Truncate(slot, n) => cache.truncate(slot, n),
                Act::Share(to, from, n) => {
                    if to != from && n <= cache.len(from) {
                        cache.truncate(to, 0);
                        let blocks = cache.table(from)[..n.div_ceil(BLOCK_TOKENS)].to_vec();
                        cache.share(to, &blocks, n);
                    }
                }
                Act::Keep(block) => {
                    if cache.blocks().holders(block as u32) > 0 && !kept.contains(&block) {
                        cache.keep(block as u32);
                        kept.push(block);
                    }
                }
                Act::Drop(block) => {
                    if let Some(at) = kept.iter().position(|&other| other == block) {
                        kept.swap_remove(at);
                        cache.drop_kept(block as u32);
                    }
                }
            }
            let mut listed: BTreeMap<u32, u32> = BTreeMap::new();
            for slot in 0..3 {
                prop_assert_eq!(cache.table(slot).len(), cache.len(slot).div_ceil(BLOCK_TOKENS));
                for &block in cache.table(slot) {
                    *listed.entry(block).or_default() += 1;
                }
            }
            for &block in &kept {
                *listed.entry(block as u32).or_default() += 1;
            }
            let blocks = cache.blocks();
            for block in 0..12 {
                let wanted = listed.get(&block).copied().unwrap_or(0);
                prop_assert_eq!(blocks.holders(block), wanted);
                let free = blocks.free_list().iter().filter(|&&other| other == block).count();
                prop_assert_eq!(free, usize::from(wanted == 0));
            }
            prop_assert_eq!(blocks.kept(), kept.len());
            let idle = kept.iter().filter(|&&block| listed[&(block as u32)] == 1).count();
            prop_assert_eq!(blocks.idle(), idle);
        }
    }
}
