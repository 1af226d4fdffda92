use russet_model::config::RopeScaling;
use russet_model::{Config, Family};

use super::*;

fn cache(slots: usize, blocks: usize) -> KvCache {
    let config = Config {
        family: Family::Qwen3,
        vocab: 9,
        width: 8,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
        ffn: 8,
        norm_epsilon: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: 1024,
        tied: true,
        bos: None,
        eos: vec![],
    };
    KvCache::with_blocks(&config, slots, blocks)
}

fn scope(adapter: u64) -> Scope {
    Scope {
        adapters: vec![adapter],
        ..Scope::default()
    }
}

/// A sequence of `tokens` runs in slot 0, is kept whole and ends.
fn leave(tree: &mut PrefixCache, cache: &mut KvCache, scope: &Scope, tokens: &[u32]) {
    cache.extend(0, tokens.len()).unwrap();
    let mut node = None;
    for (index, block) in tokens.chunks(BLOCK_TOKENS).enumerate() {
        node = tree.insert(cache, scope, node, block, (0, index));
    }
    cache.truncate(0, 0);
    tree.check(cache);
}

fn found(tree: &mut PrefixCache, scope: &Scope, tokens: &[u32]) -> usize {
    let hit = tree.find(scope, tokens);
    assert_eq!(hit.blocks.len(), hit.tokens.div_ceil(BLOCK_TOKENS));
    hit.tokens
}

/// `count` tokens, the last few of them `last`.
fn ending(count: usize, last: &[u32]) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..count as u32).map(|i| i % 5).collect();
    tokens[count - last.len()..].copy_from_slice(last);
    tokens
}

#[test]
fn the_longest_beginning_is_found_token_by_token() {
    let (mut tree, mut cache) = (PrefixCache::default(), cache(1, 20));
    let a = ending(150, &[]);
    leave(&mut tree, &mut cache, &scope(0), &a);
    assert_eq!(cache.blocks().kept(), 3);
    for tokens in [1, 63, 64, 65, 100, 128, 149, 150] {
        assert_eq!(found(&mut tree, &scope(0), &a[..tokens]), tokens);
    }
    // Another end in the second block, in the third, and from the first token on.
    for (count, last) in [(100, [8]), (130, [8]), (1, [8])] {
        let other = ending(count, &last);
        assert_eq!(found(&mut tree, &scope(0), &other), count - 1);
    }
    // Beside one another both are found, whatever their order.
    for last in [[0, 8], [6, 0], [7, 7]] {
        leave(&mut tree, &mut cache, &scope(0), &ending(100, &last));
        assert_eq!(found(&mut tree, &scope(0), &ending(100, &last)), 100);
    }
    assert_eq!(found(&mut tree, &scope(0), &a), 150);
}

#[test]
fn nothing_is_found_in_another_scope() {
    let (mut tree, mut cache) = (PrefixCache::default(), cache(1, 20));
    let tokens = ending(70, &[]);
    let own = Scope {
        tenant: Some("a".into()),
        ..scope(3)
    };
    leave(&mut tree, &mut cache, &own, &tokens);
    let others = [
        scope(3),
        Scope {
            tenant: Some("b".into()),
            ..scope(3)
        },
        Scope {
            adapters: vec![3, 3],
            ..own.clone()
        },
        Scope {
            weights: 1,
            ..own.clone()
        },
    ];
    for other in &others {
        assert_eq!(found(&mut tree, other, &tokens), 0, "{other:?}");
    }
    assert_eq!(found(&mut tree, &own, &tokens), 70);
}

#[test]
fn a_last_block_that_has_grown_takes_the_place_of_what_it_was() {
    let (mut tree, mut cache) = (PrefixCache::default(), cache(1, 20));
    for (tokens, kept) in [(10, 1), (20, 1), (15, 1), (64, 1), (70, 2)] {
        leave(&mut tree, &mut cache, &scope(0), &ending(tokens, &[]));
        assert_eq!(tree.len(), kept, "{tokens} tokens");
    }
}

#[test]
fn what_was_used_longest_ago_goes_first_and_leaves_before_what_they_stand_on() {
    let (mut tree, mut cache) = (PrefixCache::default(), cache(1, 20));
    let (old, young) = (ending(200, &[]), ending(100, &[8; 50]));
    leave(&mut tree, &mut cache, &scope(0), &old);
    leave(&mut tree, &mut cache, &scope(0), &young);
    leave(&mut tree, &mut cache, &scope(1), &young);
    found(&mut tree, &scope(0), &young);
    let mut left = Vec::new();
    while tree.evict(&mut cache) {
        tree.check(&cache);
        left.push((
            found_untouched(&tree, &scope(0), &old),
            found_untouched(&tree, &scope(0), &young),
            found_untouched(&tree, &scope(1), &young),
        ));
    }
    // `old` and `young` of scope 0 share 50 tokens of a first block, but not the block.
    let wanted = [
        (192, 100, 100),
        (128, 100, 100),
        (64, 100, 100),
        (50, 100, 100),
        (50, 100, 64),
        (50, 100, 0),
        (50, 64, 0),
        (0, 0, 0),
    ];
    assert_eq!(left, wanted);
    assert_eq!((cache.blocks().free(), tree.roots.len()), (20, 0));
}

/// How much would be found, without using it.
fn found_untouched(tree: &PrefixCache, scope: &Scope, tokens: &[u32]) -> usize {
    let mut at = tree.roots.get(scope).copied();
    let mut sum = 0;
    while let Some((child, common)) = at.and_then(|at| tree.nearest(at, &tokens[sum..])) {
        sum += common;
        at = (common == BLOCK_TOKENS).then_some(child);
    }
    sum
}

#[test]
fn what_a_sequence_holds_stays_and_equal_blocks_become_one() {
    let (mut tree, mut cache) = (PrefixCache::default(), cache(2, 20));
    let tokens = ending(128, &[]);
    // Two sequences that compute the same side by side.
    for slot in [0, 1] {
        cache.extend(slot, 128).unwrap();
        let mut node = None;
        for (index, block) in tokens.chunks(BLOCK_TOKENS).enumerate() {
            node = tree.insert(&mut cache, &scope(0), node, block, (slot, index));
        }
        tree.check(&cache);
    }
    assert_eq!(cache.table(0), cache.table(1));
    assert_eq!((cache.blocks().free(), cache.blocks().idle()), (18, 0));
    assert!(!tree.evict(&mut cache));
    cache.truncate(0, 0);
    assert!(!tree.evict(&mut cache));
    cache.truncate(1, 64);
    assert!(tree.evict(&mut cache) && !tree.evict(&mut cache));
    tree.clear(&mut cache);
    tree.check(&cache);
    assert_eq!((cache.blocks().free(), cache.blocks().kept()), (19, 0));
    // A sequence that goes on after all was let go finds its parent gone, and keeps nothing.
    cache.extend(1, 64).unwrap();
    assert_eq!(
        tree.insert(&mut cache, &scope(0), Some(1), &tokens[64..], (1, 1)),
        None
    );
    assert_eq!(cache.blocks().kept(), 0);
}
