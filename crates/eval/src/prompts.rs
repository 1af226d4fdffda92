//! A set of prompts of our own, of the eleven categories of AFM's human evaluation (July 2024).

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// The categories.
pub const CATEGORIES: [&str; 11] = [
    "brainstorming",
    "classification",
    "closed_qa",
    "coding",
    "extraction",
    "mathematical_reasoning",
    "open_qa",
    "rewriting",
    "safety",
    "summarization",
    "writing",
];

/// A prompt of the set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// Its category and number.
    pub id: String,
    /// One of [`CATEGORIES`].
    pub category: String,
    /// What the model is told.
    pub prompt: String,
}

static PROMPTS: LazyLock<Vec<Prompt>> = LazyLock::new(|| {
    let lines = include_str!("../data/prompts.jsonl").lines();
    lines
        .map(|line| serde_json::from_str(line).expect("the embedded prompts are whole"))
        .collect()
});

/// All of them, at least twenty a category.
pub fn prompts() -> &'static [Prompt] {
    &PROMPTS
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn every_category_has_twenty_prompts_and_none_is_there_twice() {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut ids, mut texts) = (BTreeSet::new(), BTreeSet::new());
        for prompt in prompts() {
            *counts.entry(&prompt.category).or_default() += 1;
            assert!(
                ids.insert(&prompt.id) && texts.insert(&prompt.prompt),
                "{}",
                prompt.id
            );
            assert!(prompt.id.starts_with(&prompt.category));
            assert!(prompt.prompt.len() > 20);
        }
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), CATEGORIES);
        assert!(counts.values().all(|count| *count >= 20), "{counts:?}");
    }
}
