//! How far judges agree beyond chance.
//!
//! ```text
//! Cohen's kappa    (observed − expected) / (1 − expected), expected from each judge's own shares of labels
//! Fleiss' kappa    the same over all judges at once, expected from the shares of labels of all of them together
//! ```
//! Labels are three: the first is better, the second, neither.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Vote;

/// Between the judges of the same pairs of responses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Pairs of responses that two judges or more have judged.
    pub items: usize,
    /// Of every two judges.
    pub pairs: Vec<JudgePair>,
    /// Over pairs of responses that all judges have judged; none where there are none, or where all labels are the same.
    pub fleiss: Option<f64>,
    /// Pairs of responses that all judges label alike, as a share of those that all have judged.
    pub unanimous: Option<f64>,
}

/// Two judges.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JudgePair {
    /// Their names.
    pub judges: [String; 2],
    /// Pairs of responses that both have judged.
    pub items: usize,
    /// The share that they label alike.
    pub observed: f64,
    /// Cohen's; none where both always say one and the same.
    pub cohen: Option<f64>,
}

/// Cohen's kappa of two judges' labels; none without any, or where chance alone agrees always.
pub fn cohen(labels: &[[u8; 2]]) -> Option<f64> {
    let n = labels.len() as f64;
    let same = labels.iter().filter(|[one, two]| one == two).count() as f64 / n;
    let all: BTreeSet<u8> = labels.iter().flatten().copied().collect();
    let share = |judge: usize, label: u8| {
        labels.iter().filter(|both| both[judge] == label).count() as f64 / n
    };
    let expected: f64 = all
        .iter()
        .map(|&label| share(0, label) * share(1, label))
        .sum();
    kappa(same, expected, labels.len())
}

/// Fleiss' kappa of items that as many judges have labelled each.
pub fn fleiss(items: &[Vec<u8>]) -> Option<f64> {
    let judges = items.first()?.len();
    if judges < 2 || items.iter().any(|item| item.len() != judges) {
        return None;
    }
    let mut totals: BTreeMap<u8, f64> = BTreeMap::new();
    let mut observed = 0.0;
    for item in items {
        let mut counts: BTreeMap<u8, f64> = BTreeMap::new();
        for &label in item {
            *counts.entry(label).or_default() += 1.0;
            *totals.entry(label).or_default() += 1.0;
        }
        let pairs: f64 = counts.values().map(|count| count * (count - 1.0)).sum();
        observed += pairs / (judges * (judges - 1)) as f64;
    }
    let all = (items.len() * judges) as f64;
    let expected: f64 = totals.values().map(|count| (count / all).powi(2)).sum();
    kappa(observed / items.len() as f64, expected, items.len())
}

fn kappa(observed: f64, expected: f64, items: usize) -> Option<f64> {
    (items > 0 && expected < 1.0).then(|| (observed - expected) / (1.0 - expected))
}

/// Of all votes; none where no two judges have judged the same.
pub fn agreement(votes: &[Vote]) -> Option<Agreement> {
    let mut items: BTreeMap<&str, BTreeMap<&str, u8>> = BTreeMap::new();
    for vote in votes {
        items
            .entry(&vote.item)
            .or_default()
            .insert(&vote.judge, vote.label);
    }
    items.retain(|_, labels| labels.len() > 1);
    let judges: BTreeSet<&str> = items
        .values()
        .flat_map(|labels| labels.keys().copied())
        .collect();
    let judges: Vec<&str> = judges.into_iter().collect();
    let mut pairs = Vec::new();
    for (i, one) in judges.iter().enumerate() {
        for two in &judges[i + 1..] {
            let both = |labels: &BTreeMap<&str, u8>| Some([*labels.get(one)?, *labels.get(two)?]);
            let labels: Vec<[u8; 2]> = items.values().filter_map(both).collect();
            if labels.is_empty() {
                continue;
            }
            let same = labels.iter().filter(|[a, b]| a == b).count();
            pairs.push(JudgePair {
                judges: [one, two].map(|name| (*name).to_owned()),
                items: labels.len(),
                observed: same as f64 / labels.len() as f64,
                cohen: cohen(&labels),
            });
        }
    }
    let whole: Vec<Vec<u8>> = items
        .values()
        .filter(|labels| labels.len() == judges.len())
        .map(|labels| labels.values().copied().collect())
        .collect();
    let unanimous = whole
        .iter()
        .filter(|item| item.iter().all(|label| *label == item[0]));
    (!pairs.is_empty()).then(|| Agreement {
        items: items.len(),
        fleiss: fleiss(&whole),
        unanimous: (!whole.is_empty()).then(|| unanimous.count() as f64 / whole.len() as f64),
        pairs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cohens_kappa_is_the_textbooks() {
        // 20 both yes, 15 both no, 5 and 10 apart: observed 0.7, expected 0.5.
        let mut labels = vec![[1, 1]; 20];
        labels.extend([[2, 2]; 15]);
        labels.extend([[1, 2]; 5]);
        labels.extend([[2, 1]; 10]);
        assert!((cohen(&labels).unwrap() - 0.4).abs() < 1e-12);
        assert_eq!(cohen(&[[1, 1]]), None);
        assert_eq!(cohen(&[]), None);
    }

    #[test]
    fn fleiss_kappa_is_the_textbooks() {
        // Fleiss 1971's worked table as found in textbooks: 10 items, 14 raters, 5 categories, 0.210.
        let counts = [
            [0, 0, 0, 0, 14],
            [0, 2, 6, 4, 2],
            [0, 0, 3, 5, 6],
            [0, 3, 9, 2, 0],
            [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0],
            [3, 2, 6, 3, 0],
            [2, 5, 3, 2, 2],
            [6, 5, 2, 1, 0],
            [0, 2, 2, 3, 7],
        ];
        let items: Vec<Vec<u8>> = counts
            .iter()
            .map(|row| {
                (0..5)
                    .flat_map(|label| vec![label; row[usize::from(label)]])
                    .collect()
            })
            .collect();
        assert!((fleiss(&items).unwrap() - 0.209_930_704_421_955).abs() < 1e-12);
    }
}
