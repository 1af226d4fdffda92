//! What ended and running sequences leave in the cache for others that begin with the same tokens.
//!
//! A tree: a node is the block of 64 tokens (a last one of fewer) that follow its parent's, and it knows those tokens. Roots are
//! [`Scope`]s: weights, adapters, tenant. A block is found by walking from the root and comparing tokens, never by a hash alone,
//! and a node's number is used once, so a wrong block cannot be found. Keys and values depend on nothing else: they are the same
//! bits whichever pass computed them.
//!
//! A node holds its block through [`KvCache::keep`]. Where blocks are wanted, the leaf that was used longest ago and that no
//! sequence holds goes first. A sequence that has come to a block that the tree has already takes the tree's and lets its own go, so
//! it holds all that its nodes stand on, and every kept block without another holder can be had, leaf by leaf.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use russet_model::KvCache;
use russet_model::cache::BLOCK_TOKENS;

/// What keys and values depend on besides tokens; and who may see that they are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    /// The weights' generation.
    pub weights: u64,
    /// The generations of the adapters, in order.
    pub adapters: Vec<u64>,
    /// Whose requests share; all do where it is `None` for all.
    pub tenant: Option<String>,
}

/// A node's number.
pub(crate) type NodeId = u64;

struct Node {
    parent: Option<NodeId>, // a root has none, and no block
    scope: Option<Scope>,   // a root's
    tokens: Box<[u32]>,
    block: u32,
    children: BTreeMap<Box<[u32]>, NodeId>, // in the order of their tokens
    used: u64,
}

/// The tree.
#[derive(Default)]
pub(crate) struct PrefixCache {
    nodes: HashMap<NodeId, Node>,
    roots: HashMap<Scope, NodeId>,
    leaves: BTreeSet<(u64, NodeId)>, // that are no roots, by when they were used
    clock: u64,
    next: NodeId,
}

/// The longest beginning that is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Hit {
    /// Its blocks in order; of the last perhaps not all tokens.
    pub blocks: Vec<u32>,
    /// Its tokens.
    pub tokens: usize,
    /// The node of the last block of which all tokens are part.
    pub node: Option<NodeId>,
}

impl PrefixCache {
    /// The longest beginning of `tokens` that is there.
    pub fn find(&mut self, scope: &Scope, tokens: &[u32]) -> Hit {
        let mut hit = Hit::default();
        let Some(&root) = self.roots.get(scope) else {
            return hit;
        };
        let mut at = root;
        self.clock += 1;
        loop {
            let rest = &tokens[hit.tokens..];
            let (child, common) = match self.nearest(at, rest) {
                Some(found) => found,
                None => return hit,
            };
            self.touch(child);
            hit.blocks.push(self.nodes[&child].block);
            hit.tokens += common;
            if common < BLOCK_TOKENS {
                return hit;
            }
            (hit.node, at) = (Some(child), child);
        }
    }

    /// The child that has the most tokens in common with `tokens`, one at least. In the order of their tokens it stands next to
    /// where `tokens` would.
    fn nearest(&self, parent: NodeId, tokens: &[u32]) -> Option<(NodeId, usize)> {
        let wanted = &tokens[..tokens.len().min(BLOCK_TOKENS)];
        let children = &self.nodes.get(&parent)?.children;
        let before = children.range::<[u32], _>((Bound::Unbounded, Bound::Included(wanted)));
        let after = children.range::<[u32], _>((Bound::Included(wanted), Bound::Unbounded));
        let beside = before.rev().take(1).chain(after.take(1));
        let best = beside.map(|(child, &id)| (id, common(child, wanted)));
        best.max_by_key(|&(_, common)| common)
            .filter(|&(_, common)| common > 0)
    }

    fn touch(&mut self, id: NodeId) {
        let clock = self.clock;
        if let Some(node) = self.nodes.get_mut(&id) {
            if self.leaves.remove(&(node.used, id)) {
                self.leaves.insert((clock, id));
            }
            node.used = clock;
        }
    }

    /// Keeps the block at `index` of the sequence in `slot`, whose tokens are `tokens` and follow `parent`'s (`None`: the
    /// beginning). Where the tree has these tokens already the sequence takes the tree's block. Returns the node of a whole
    /// block; `None` where the parent is gone or the block not whole.
    pub fn insert(
        &mut self,
        cache: &mut KvCache,
        scope: &Scope,
        parent: Option<NodeId>,
        tokens: &[u32],
        (slot, index): (usize, usize),
    ) -> Option<NodeId> {
        let whole = tokens.len() == BLOCK_TOKENS;
        self.clock += 1;
        let parent = match parent {
            Some(parent) => self.nodes.contains_key(&parent).then_some(parent)?,
            None => self.root(scope),
        };
        let mut grown = None;
        if let Some((near, common)) = self.nearest(parent, tokens) {
            let known = self.nodes[&near].tokens.len();
            if common == tokens.len() {
                // There already, or the beginning of what is.
                self.touch(near);
                if !whole {
                    return None;
                }
                let block = self.nodes[&near].block;
                if cache.table(slot)[index] != block {
                    cache.replace(slot, index, block);
                }
                return Some(near);
            }
            // A last block that has grown since.
            grown = Some(near).filter(|_| common == known);
        }
        let block = cache.table(slot)[index];
        cache.keep(block);
        let id = self.add(Some(parent), None, tokens, block);
        if let Some(grown) = grown {
            self.remove(cache, grown);
        }
        Some(id).filter(|_| whole)
    }

    fn root(&mut self, scope: &Scope) -> NodeId {
        match self.roots.get(scope) {
            Some(&root) => root,
            None => self.add(None, Some(scope.clone()), &[], u32::MAX),
        }
    }

    fn add(
        &mut self,
        parent: Option<NodeId>,
        scope: Option<Scope>,
        tokens: &[u32],
        block: u32,
    ) -> NodeId {
        let (id, used) = (self.next, self.clock);
        self.next += 1;
        match parent {
            Some(parent) => {
                let node = self
                    .nodes
                    .get_mut(&parent)
                    .expect("a parent that was found");
                node.children.insert(tokens.into(), id);
                let parent = (node.used, parent);
                self.leaves.remove(&parent);
                self.leaves.insert((used, id));
            }
            None => drop(
                self.roots
                    .insert(scope.clone().expect("a root has a scope"), id),
            ),
        }
        let node = Node {
            parent,
            scope,
            tokens: tokens.into(),
            block,
            children: BTreeMap::new(),
            used,
        };
        self.nodes.insert(id, node);
        id
    }

    /// Takes out a leaf, and a root that it leaves empty.
    fn remove(&mut self, cache: &mut KvCache, id: NodeId) {
        let node = self.nodes.remove(&id).expect("a node of the tree");
        assert!(node.children.is_empty(), "only leaves are taken out");
        self.leaves.remove(&(node.used, id));
        cache.drop_kept(node.block);
        let parent = node.parent.expect("roots go with their last child");
        let above = self.nodes.get_mut(&parent).expect("a node's parent stays");
        above.children.remove(&node.tokens);
        if !above.children.is_empty() {
            return;
        }
        match above.scope.take() {
            None => drop(self.leaves.insert((above.used, parent))),
            Some(scope) => {
                self.roots.remove(&scope);
                self.nodes.remove(&parent);
            }
        }
    }

    /// Frees the block that was used longest ago of those that no sequence holds; whether there was one.
    pub fn evict(&mut self, cache: &mut KvCache) -> bool {
        let idle = |&&(_, id): &&(u64, NodeId)| cache.blocks().is_idle(self.nodes[&id].block);
        match self.leaves.iter().find(idle).copied() {
            None => false,
            Some((_, id)) => {
                self.remove(cache, id);
                true
            }
        }
    }

    /// Lets go a block that is held by somebody else too, who is about to write into it and has no room for a copy; whether it
    /// was there, as the leaf that it must be.
    pub fn let_go(&mut self, cache: &mut KvCache, block: u32) -> bool {
        let leaf = |&&(_, id): &&(u64, NodeId)| self.nodes[&id].block == block;
        match self.leaves.iter().find(leaf).copied() {
            None => false,
            Some((_, id)) => {
                self.remove(cache, id);
                true
            }
        }
    }

    /// Lets everything go.
    pub fn clear(&mut self, cache: &mut KvCache) {
        for node in self.nodes.values().filter(|node| node.parent.is_some()) {
            cache.drop_kept(node.block);
        }
        let next = self.next; // numbers are used once
        *self = PrefixCache {
            next,
            ..PrefixCache::default()
        };
    }

    /// How many blocks are kept.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.nodes.len() - self.roots.len()
    }

    /// Compares the tree with itself and with the cache.
    ///
    /// # Panics
    /// When they disagree.
    pub fn check(&self, cache: &KvCache) {
        let mut blocks = BTreeSet::new();
        for (&id, node) in &self.nodes {
            let Some(parent) = node.parent else {
                let scope = node.scope.as_ref().expect("a root has a scope");
                assert_eq!(self.roots.get(scope), Some(&id));
                continue;
            };
            assert!(blocks.insert(node.block), "block {} twice", node.block);
            assert!(cache.blocks().holders(node.block) > 0);
            let above = &self.nodes[&parent];
            assert_eq!(above.children.get(&node.tokens), Some(&id));
            assert_eq!(
                self.leaves.contains(&(node.used, id)),
                node.children.is_empty(),
                "node {id}"
            );
            assert!(node.children.is_empty() || node.tokens.len() == BLOCK_TOKENS);
            // What a sequence holds it holds with all that it stands on.
            if above.parent.is_some() && !cache.blocks().is_idle(node.block) {
                assert!(!cache.blocks().is_idle(above.block), "node {id}");
            }
        }
        assert_eq!(cache.blocks().kept(), blocks.len());
        let children: usize = self.nodes.values().map(|node| node.children.len()).sum();
        assert_eq!(children, blocks.len());
        assert!(self.leaves.len() <= blocks.len());
    }
}

/// How many tokens two sequences have in common at their beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
