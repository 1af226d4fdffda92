//! Which projections get two bits: the least rise of the loss that the bytes allow, exactly.
//!
//! A knapsack: every projection that goes from four bits to two saves bytes and costs loss. Projections of one shape
//! save the same, so of each shape the cheapest go first and only their number is open. The shapes are joined one after
//! another, keeping what nothing else beats in both bytes and loss (Nemhauser and Ullmann, 1969); nothing is rounded.
//! Left out: bit widths other than those two, for which there is no kernel.

use std::collections::BTreeMap;

/// What two bits save and cost one projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    /// Bytes that two bits save over four.
    pub saved: u64,
    /// What they cost, in nats a token.
    pub rise: f64,
}

/// Part of a solution: so many of a shape on top of earlier shapes.
struct Node {
    saved: u64,
    rise: f64,
    parent: usize,
    count: usize,
}

/// Which of the choices to take so that they save at least `needed` bytes at the least rise; nothing where all
/// together do not save that much. Of equal ones the earlier is taken.
pub(crate) fn allocate(choices: &[Choice], needed: u64) -> Option<Vec<bool>> {
    if choices.iter().map(|choice| choice.saved).sum::<u64>() < needed {
        return None;
    }
    let mut shapes: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (i, choice) in choices.iter().enumerate() {
        shapes.entry(choice.saved).or_default().push(i);
    }
    for members in shapes.values_mut() {
        members.sort_by(|&a, &b| choices[a].rise.total_cmp(&choices[b].rise));
    }
    let mut nodes = vec![Node {
        saved: 0,
        rise: 0.0,
        parent: 0,
        count: 0,
    }];
    let mut frontier = vec![0];
    for (&saved, members) in &shapes {
        let mut joined = Vec::new();
        for &parent in &frontier {
            let Node {
                saved: saved_before,
                rise: mut sum,
                ..
            } = nodes[parent];
            for count in 0..=members.len() {
                if count > 0 {
                    sum += choices[members[count - 1]].rise;
                }
                // More than is needed is as good as what is needed.
                let saved = (saved_before + count as u64 * saved).min(needed);
                joined.push(Node {
                    saved,
                    rise: sum,
                    parent,
                    count,
                });
            }
        }
        joined.sort_by(|a, b| b.saved.cmp(&a.saved).then(a.rise.total_cmp(&b.rise)));
        frontier.clear();
        let mut least = f64::INFINITY;
        for node in joined {
            if node.rise < least {
                least = node.rise;
                frontier.push(nodes.len());
                nodes.push(node);
            }
        }
    }
    // The frontier begins with what saves most: all that is needed, at the least rise.
    let mut taken = vec![false; choices.len()];
    let mut at = frontier[0];
    for members in shapes.values().rev() {
        for &i in &members[..nodes[at].count] {
            taken[i] = true;
        }
        at = nodes[at].parent;
    }
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sums(choices: &[Choice], taken: impl Fn(usize) -> bool) -> (u64, f64) {
        let taken = choices.iter().enumerate().filter(|(i, _)| taken(*i));
        taken.fold((0, 0.0), |(saved, rise), (_, choice)| {
            (saved + choice.saved, rise + choice.rise)
        })
    }

    /// Tries everything.
    fn brute(choices: &[Choice], needed: u64) -> Option<f64> {
        (0..1u32 << choices.len())
            .map(|set| sums(choices, |i| set >> i & 1 == 1))
            .filter(|(saved, _)| *saved >= needed)
            .map(|(_, rise)| rise)
            .min_by(f64::total_cmp)
    }

    fn check(choices: &[Choice], needed: u64) {
        let taken = allocate(choices, needed);
        let Some(least) = brute(choices, needed) else {
            assert_eq!(taken, None);
            return;
        };
        let (saved, rise) = sums(choices, |i| taken.as_ref().unwrap()[i]);
        assert!(saved >= needed, "{saved} of {needed} bytes saved");
        assert!(
            (rise - least).abs() < 1e-9,
            "a rise of {rise}, least {least}"
        );
    }

    #[test]
    fn the_obvious_ones_go() {
        let choices = [(10, 0.5), (10, 0.1), (10, 0.3), (30, 0.35)]
            .map(|(saved, rise)| Choice { saved, rise });
        assert_eq!(allocate(&choices, 30).unwrap(), [false, false, false, true]);
        assert_eq!(allocate(&choices, 31).unwrap(), [false, true, false, true]);
        assert_eq!(allocate(&choices, 0).unwrap(), [false; 4]);
        assert_eq!(allocate(&choices, 60).unwrap(), [true; 4]);
        assert_eq!(allocate(&choices, 61), None);
    }

    #[test]
    fn a_hundred_layers_of_five_shapes_are_quick() {
        let saved = [
            9_437_184, 2_359_296, 2_359_808, 9_437_440, 24_772_608, 24_772_608, 24_774_000,
        ];
        let choices: Vec<Choice> = (0..700)
            .map(|i| Choice {
                saved: saved[i % 7],
                rise: f64::from(russet_kernels::random::uniform(1, 0, i as u64)),
            })
            .collect();
        let total: u64 = choices.iter().map(|choice| choice.saved).sum();
        let taken = allocate(&choices, total / 4).unwrap();
        let (got, rise) = sums(&choices, |i| taken[i]);
        assert!(got >= total / 4 && rise < 0.1 * 700.0, "{got} {rise}");
    }

    proptest! {
        #[test]
        fn it_equals_trying_everything(
            choices in prop::collection::vec((1u64..6, -0.2..1.0f64), 0..10), needed in 0u64..40
        ) {
            let choices: Vec<Choice> = choices.into_iter().map(|(saved, rise)| Choice { saved, rise }).collect();
            check(&choices, needed);
        }
    }
}
