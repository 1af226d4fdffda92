//! Which bits each projection gets: the least rise of the loss that the bytes allow, exactly.
//!
//! A knapsack with several choices for each projection, which save bytes over the largest of them and cost loss. Projections are
//! decided one after another, keeping of the partial solutions what no other beats in both bytes and loss (Nemhauser and Ullmann,
//! 1969), and of those only what can still be the best: what is left to save costs at least what it would if choices could be
//! split, and at most that rounded up (Dantzig, 1957). Bytes are exact. At the best solution bytes have one price, by which most
//! projections are decided at once; those near it come last.

use std::ops::Range;

/// What a choice saves and costs one projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    /// Bytes that it saves over the largest choice.
    pub saved: u64,
    /// What it costs, in nats a token.
    pub rise: f64,
}

/// Part of a solution: a choice on top of earlier ones.
struct Node {
    saved: u64,
    rise: f64,
    parent: usize,
    choice: usize,
}

/// A choice that can be the best of its projection, over the one of least rise.
#[derive(Clone, Copy)]
struct Worthy {
    choice: usize,
    saved: u64,
    rise: f64,
}

/// From one choice of a projection to the next, where choices could be split.
#[derive(Clone, Copy)]
struct Step {
    item: usize,
    saved: u64,
    rise: f64,
}

impl Step {
    /// Nats a byte.
    fn price(&self) -> f64 {
        self.rise / self.saved as f64
    }
}

/// Which choice each projection takes so that they save at least `needed` bytes at the least rise; nothing where they cannot save
/// that much. Every projection has a choice.
pub(crate) fn allocate(items: &[Vec<Choice>], needed: u64) -> Option<Vec<usize>> {
    let most = |item: &Vec<Choice>| item.iter().map(|choice| choice.saved).max();
    if items.iter().filter_map(most).sum::<u64>() < needed {
        return None;
    }
    let (mut worthies, mut free) = (Vec::with_capacity(items.len()), 0);
    for item in items {
        let (worthy, saved) = worthy(item);
        worthies.push(worthy);
        free += saved;
    }
    let needed = needed.saturating_sub(free);
    let mut rises = items.iter().flatten().map(|choice| choice.rise);
    assert!(rises.all(f64::is_finite), "a rise that is no number");
    let steps = worthies.iter().enumerate();
    let mut steps: Vec<Step> = steps
        .flat_map(|(item, worthy)| hull(item, worthy))
        .collect();
    // The steps of one projection stay in order: their prices rise, and the sort is stable.
    steps.sort_by(|a, b| a.price().total_cmp(&b.price()));
    let order = order(&steps, items.len(), needed);

    let size: f64 = steps.iter().map(|step| step.rise).sum();
    let mut nodes = vec![Node {
        saved: 0,
        rise: 0.0,
        parent: 0,
        choice: 0,
    }];
    let mut frontier = 0..1;
    for &item in &order {
        steps.retain(|step| step.item != item);
        let rest = Rest::new(&steps);
        let (mut joined, mut best) = (Vec::new(), f64::INFINITY);
        for parent in frontier {
            for worthy in &worthies[item] {
                // More than is needed is as good as what is needed.
                let saved = (nodes[parent].saved + worthy.saved).min(needed);
                let rise = nodes[parent].rise + worthy.rise;
                let Some(more) = rest.cost(needed - saved) else {
                    continue;
                };
                best = best.min(rise + more.end);
                let node = Node {
                    saved,
                    rise,
                    parent,
                    choice: worthy.choice,
                };
                joined.push((rise + more.start, node));
            }
        }
        // Sums in another order differ in their last bits.
        joined.retain(|(least, _)| *least <= best + 1e-12 * size);
        joined.sort_by(|(_, a), (_, b)| b.saved.cmp(&a.saved).then(a.rise.total_cmp(&b.rise)));
        let (first, mut least) = (nodes.len(), f64::INFINITY);
        for (_, node) in joined {
            if node.rise < least {
                least = node.rise;
                nodes.push(node);
            }
        }
        frontier = first..nodes.len();
    }
    // The frontier begins with what saves most: all that is needed, at the least rise.
    let (mut taken, mut at) = (vec![0; items.len()], frontier.start);
    for &item in order.iter().rev() {
        taken[item] = nodes[at].choice;
        at = nodes[at].parent;
    }
    Some(taken)
}

/// The choices of a projection that no other beats in both, in order of bytes, over the first of them; and what that one saves.
fn worthy(item: &[Choice]) -> (Vec<Worthy>, u64) {
    let mut order: Vec<usize> = (0..item.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (item[a], item[b]);
        b.saved.cmp(&a.saved).then(a.rise.total_cmp(&b.rise))
    });
    let mut kept: Vec<usize> = Vec::new();
    for choice in order {
        let Choice { saved, rise } = item[choice];
        // Of equal rises all stay: what nobody needs to save is not saved.
        if kept
            .last()
            .is_none_or(|&last| rise <= item[last].rise && saved < item[last].saved)
        {
            kept.push(choice);
        }
    }
    let base = item[*kept.last().expect("every projection has a choice")];
    let over = |&choice: &usize| Worthy {
        choice,
        saved: item[choice].saved - base.saved,
        rise: item[choice].rise - base.rise,
    };
    (kept.iter().rev().map(over).collect(), base.saved)
}

/// The steps along the lower convex hull of a projection's choices.
fn hull(item: usize, worthy: &[Worthy]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for pair in worthy.windows(2) {
        let mut step = Step {
            item,
            saved: pair[1].saved - pair[0].saved,
            rise: pair[1].rise - pair[0].rise,
        };
        // A choice above the line from the one before to the one after is passed over.
        while let Some(before) = steps.pop_if(|before| before.price() >= step.price()) {
            step.saved += before.saved;
            step.rise += before.rise;
        }
        steps.push(step);
    }
    steps
}

/// Projections by how far their prices are from the one at which enough is saved, the farthest first.
fn order(steps: &[Step], items: usize, needed: u64) -> Vec<usize> {
    let mut saved = 0;
    let last = steps.iter().find(|step| {
        saved += step.saved;
        saved >= needed
    });
    let price = last.map_or(0.0, Step::price);
    let mut distance = vec![f64::INFINITY; items];
    for step in steps {
        distance[step.item] = distance[step.item].min((step.price() - price).abs());
    }
    let mut order: Vec<usize> = (0..items).collect();
    order.sort_by(|&a, &b| distance[b].total_cmp(&distance[a]));
    order
}

/// What projections that are not decided yet can save, the cheapest steps first.
struct Rest<'a> {
    steps: &'a [Step],
    before: Vec<(u64, f64)>, // saved and risen, one more than there are steps
}

impl Rest<'_> {
    fn new(steps: &[Step]) -> Rest<'_> {
        let mut sums = (0, 0.0);
        let mut before = vec![sums];
        before.extend(steps.iter().map(|step| {
            sums = (sums.0 + step.saved, sums.1 + step.rise);
            sums
        }));
        Rest { steps, before }
    }

    /// What saving so many bytes more costs at least, and what it need not cost more than; nothing where they cannot be saved.
    fn cost(&self, bytes: u64) -> Option<Range<f64>> {
        let enough = self.before.partition_point(|(saved, _)| *saved < bytes);
        let (_, most) = *self.before.get(enough)?;
        let Some(last) = enough.checked_sub(1) else {
            return Some(most..most);
        };
        let (saved, risen) = self.before[last];
        let split = risen + self.steps[last].price() * (bytes - saved) as f64;
        Some(split.min(most)..most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sums(items: &[Vec<Choice>], taken: &[usize]) -> (u64, f64) {
        let each = items.iter().zip(taken).map(|(item, &choice)| item[choice]);
        each.fold((0, 0.0), |(saved, rise), choice| {
            (saved + choice.saved, rise + choice.rise)
        })
    }

    /// Tries everything.
    fn brute(items: &[Vec<Choice>], needed: u64) -> Option<f64> {
        let mut all = vec![(0, 0.0)];
        for item in items {
            let with = |&(saved, rise): &(u64, f64)| {
                item.iter().map(move |c| (saved + c.saved, rise + c.rise))
            };
            all = all.iter().flat_map(with).collect();
        }
        let enough = all.into_iter().filter(|(saved, _)| *saved >= needed);
        enough.map(|(_, rise)| rise).min_by(f64::total_cmp)
    }

    fn check(items: &[Vec<Choice>], needed: u64) {
        let taken = allocate(items, needed);
        let Some(least) = brute(items, needed) else {
            assert_eq!(taken, None);
            return;
        };
        let (saved, rise) = sums(items, &taken.unwrap());
        assert!(saved >= needed, "{saved} of {needed} bytes saved");
        assert!(
            (rise - least).abs() < 1e-9,
            "a rise of {rise}, least {least}"
        );
    }

    fn item(choices: &[(u64, f64)]) -> Vec<Choice> {
        let choice = |&(saved, rise): &(u64, f64)| Choice { saved, rise };
        choices.iter().map(choice).collect()
    }

    #[test]
    fn the_obvious_ones_go() {
        let items = [(10, 0.5), (10, 0.1), (10, 0.3), (30, 0.35)].map(|two| item(&[(0, 0.0), two]));
        assert_eq!(allocate(&items, 30).unwrap(), [0, 0, 0, 1]);
        assert_eq!(allocate(&items, 31).unwrap(), [0, 1, 0, 1]);
        assert_eq!(allocate(&items, 0).unwrap(), [0; 4]);
        assert_eq!(allocate(&items, 60).unwrap(), [1; 4]);
        assert_eq!(allocate(&items, 61), None);
    }

    #[test]
    fn a_width_between_is_taken_where_it_is_cheap_and_only_there() {
        let cheap = item(&[(20, 1.0), (10, 0.1), (0, 0.0)]);
        let dear = item(&[(20, 1.0), (10, 0.8), (0, 0.0)]); // above the line of its neighbours
        let items = [cheap.clone(), cheap, dear];
        assert_eq!(allocate(&items, 20).unwrap(), [1, 1, 2]);
        assert_eq!(allocate(&items, 21).unwrap(), [1, 1, 1]); // 1.0, where a split would be less
        assert_eq!(allocate(&items, 40).unwrap(), [1, 1, 0]);
        // What nobody needs to save is not saved, even for nothing; what lowers the loss is taken.
        assert_eq!(allocate(&[item(&[(5, 0.0), (0, 0.0)])], 0).unwrap(), [1]);
        assert_eq!(allocate(&[item(&[(5, -0.1), (0, 0.0)])], 0).unwrap(), [0]);
        assert_eq!(
            allocate(&[item(&[(7, 3.0)]), item(&[(0, 0.0)])], 7).unwrap(),
            [0, 0]
        );
    }

    #[test]
    fn a_hundred_layers_of_five_shapes_are_quick() {
        let sizes = [
            9_437_184, 2_359_296, 2_359_808, 9_437_440, 24_772_608, 24_772_608, 24_774_000,
        ];
        let random = |i: usize| f64::from(russet_kernels::random::uniform(1, 0, i as u64));
        let items: Vec<Vec<Choice>> = (0..700)
            .map(|i| {
                let (saved, rise) = (sizes[i % 7], random(i));
                // Three bits save a little more than half, for a third of the price or less.
                let three = (saved / 2 + 64, rise * random(i + 700) / 3.0);
                item(&[(saved, rise), three, (0, 0.0)])
            })
            .collect();
        let total: u64 = items.iter().map(|item| item[0].saved).sum();
        let two = |item: &Vec<Choice>| vec![item[0], item[2]];
        let plain: Vec<Vec<Choice>> = items.iter().map(two).collect();
        for share in [4, 2] {
            let both = [&items, &plain].map(|items| {
                let taken = allocate(items, total / share).unwrap();
                let (saved, rise) = sums(items, &taken);
                assert!(saved >= total / share);
                rise
            });
            assert!(both[0] < both[1] && both[1] < 0.3 * 700.0, "{both:?}");
        }
    }

    proptest! {
        #[test]
        fn it_equals_trying_everything(
            items in prop::collection::vec(prop::collection::vec((0u64..6, -0.2..1.0f64), 1..4), 0..7), needed in 0u64..40
        ) {
            let items: Vec<Vec<Choice>> = items.iter().map(|choices| item(choices)).collect();
            check(&items, needed);
        }

        #[test]
        fn it_equals_trying_everything_with_two_choices(
            choices in prop::collection::vec((1u64..6, -0.2..1.0f64), 0..10), needed in 0u64..40
        ) {
            let items: Vec<Vec<Choice>> = choices.iter().map(|&two| item(&[two, (0, 0.0)])).collect();
            check(&items, needed);
        }
    }
}
