//! Slot F1: what a response has extracted, against what it should have.
//!
//! A slot's value is compared without case, with runs of space as one; of several values of a slot each counts. Precision,
//! recall and F1 are over all slots of all rows together.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::rows::read_named;
use crate::{Result, stats};

/// How often responses are resampled for the interval.
const ROUNDS: u64 = 1000;

/// A row with its slots.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotTask {
    /// What tells it apart.
    pub id: String,
    /// What the model is told.
    pub prompt: String,
    /// What it should find.
    pub slots: Map<String, Value>,
}

/// Over all slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SlotScores {
    /// Of the slots that responses fill, the right ones.
    pub precision: f64,
    /// Of the slots that should be filled, those that are.
    pub recall: f64,
    /// 2 p r / (p + r).
    pub f1: f64,
    /// The middle 95 % of resampled responses' F1; none of one.
    pub f1_ci: Option<[f64; 2]>,
    /// Share of responses with exactly the right slots.
    pub exact: f64,
    /// Its standard error; none of one.
    pub exact_stderr: Option<f64>,
    /// Responses that are no JSON object.
    pub malformed: usize,
    /// Responses.
    pub n: usize,
}

/// Reads rows of `id`, `prompt` and `slots`, an object whose values are strings, numbers or lists of them.
///
/// # Errors
/// When the file cannot be read, a row is malformed or has an earlier row's id.
pub fn read_slots(path: &Path) -> Result<Vec<SlotTask>> {
    read_named(
        path,
        ("rows", "id"),
        |task: &SlotTask| &task.id,
        |row| {
            let slots = row.need("slots")?.as_object();
            Ok(SlotTask {
                id: row.name(&["id"])?,
                prompt: row.text("prompt")?.to_owned(),
                slots: slots
                    .ok_or_else(|| row.wrong("`slots` must be an object of slots and values"))?
                    .clone(),
            })
        },
    )
}

/// The slots of a response: the first JSON object in it; none where there is none.
pub fn parse_slots(response: &str) -> Option<Map<String, Value>> {
    let starts = response.match_indices('{').map(|(start, _)| start);
    starts.take(64).find_map(|start| {
        let mut values = serde_json::Deserializer::from_str(&response[start..]).into_iter();
        values.next()?.ok()
    })
}

/// Pairs of slot and value.
fn pairs(slots: &Map<String, Value>) -> BTreeSet<(String, String)> {
    let mut pairs = BTreeSet::new();
    for (slot, value) in slots {
        let values = match value {
            Value::Array(all) => &all[..],
            one => std::slice::from_ref(one),
        };
        for value in values.iter().filter(|value| !value.is_null()) {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            let text: Vec<&str> = text.split_whitespace().collect();
            pairs.insert((slot.clone(), text.join(" ").to_lowercase()));
        }
    }
    pairs
}

/// Whether a response has exactly the right slots.
pub fn exact(task: &SlotTask, response: &str) -> bool {
    parse_slots(response).is_some_and(|found| pairs(&found) == pairs(&task.slots))
}

/// Scores responses; none where there is none, which does not count.
pub fn score_slots<'a>(
    rows: impl IntoIterator<Item = (&'a SlotTask, Option<&'a str>)>,
) -> SlotScores {
    let mut scores = SlotScores::default();
    // Of each response: slots that are right, that it fills, that it should fill; and whether all of it is right.
    let (mut counts, mut whole) = (Vec::new(), Vec::new());
    for (task, response) in rows {
        let Some(response) = response else {
            continue;
        };
        scores.n += 1;
        let found = parse_slots(response);
        scores.malformed += usize::from(found.is_none());
        let found = pairs(&found.unwrap_or_default());
        let truth = pairs(&task.slots);
        counts.push([found.intersection(&truth).count(), found.len(), truth.len()]);
        whole.push(f64::from(u8::from(exact(task, response))));
    }
    let share = |of: usize, all: usize| of as f64 / all.max(1) as f64;
    let sums = |of: &mut dyn Iterator<Item = usize>| {
        of.fold([0; 3], |mut sums, place| {
            for (sum, count) in sums.iter_mut().zip(counts[place]) {
                *sum += count;
            }
            sums
        })
    };
    let f1 = |[right, filled, wanted]: [usize; 3]| share(2 * right, filled + wanted);
    let all = sums(&mut (0..counts.len()));
    let mut draws: Vec<f64> = (0..ROUNDS)
        .map(|round| f1(sums(&mut stats::resample(0, round, counts.len()))))
        .collect();
    SlotScores {
        precision: share(all[0], all[1]),
        recall: share(all[0], all[2]),
        f1: f1(all),
        f1_ci: (counts.len() > 1).then(|| stats::interval(&mut draws)),
        exact: whole.iter().sum::<f64>() / whole.len().max(1) as f64,
        exact_stderr: stats::standard_error(&whole),
        ..scores
    }
}
