//! The texts that a feature is tried on: so many of each use case, as evenly as can be over kinds of content, lengths, and single or
//! stacked documents.
//!
//! AFM graded 750 responses a use case, of sets that are "a stratified mixture of single and stacked documents of varying content types
//! and lengths" (July 2024). How its strata were cut is not published; here
//!
//! ```text
//! length       short, medium, long: thirds of the words of the use case's documents
//! stratum      use case x content x length of single documents, use case x number of documents of stacked ones
//! rows of it   as many as of every other of its kind, and what one has too few of goes to the others
//! stack        2 to `most` different documents of one use case, in an order of their own; no set comes twice
//! ```
//! What is drawn follows from the seed and the documents' ids, not from the order of files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use russet_artifact::{Hash, Interrupt};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::rows::read_rows;
use crate::{Error, Result};

/// Draws that a stack may take to come to a set that is not there yet.
const TRIES: u64 = 64;

/// How many texts are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StrataSettings {
    /// Of each use case; at least 1.
    pub rows: usize,
    /// The share of them that are stacked, 0 to 1.
    pub stacked: f64,
    /// Documents of a stack at most; at least 2.
    pub most: usize,
    /// What the draws follow from.
    pub seed: u64,
}

impl Default for StrataSettings {
    /// AFM's 750, half of them of 2 to 5 documents.
    fn default() -> StrataSettings {
        StrataSettings {
            rows: 750,
            stacked: 0.5,
            most: 5,
            seed: 0,
        }
    }
}

/// One stratum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stratum {
    /// What the texts are for.
    pub use_case: String,
    /// What they are about, `any` where that is not said.
    pub content: String,
    /// `short`, `medium`, `long`, or `stack of N`.
    pub form: String,
    /// Documents that there are; of stacks those that they are made of.
    pub documents: usize,
    /// Rows that were drawn.
    pub rows: usize,
}

/// What was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// Rows for `eval summaries`: `id`, `source`, `use_case`, `stratum`, of stacks `documents`; of single documents all that their rows have.
    pub rows: Vec<Value>,
    /// In order.
    pub strata: Vec<Stratum>,
    /// Use cases that have fewer rows than were asked for, with how many they have.
    pub short: Vec<(String, usize)>,
}

/// A document that was read.
struct Text {
    id: String,
    content: String,
    words: usize,
    row: Map<String, Value>,
}

/// Draws from rows of `id`, `source`, `use_case` and, where that is said, `content`. The rows of `whole` are added as they are.
///
/// # Errors
/// When a setting is out of range, a file cannot be read, a row is malformed, has an earlier row's id or no words; there is none; or
/// `interrupt` is raised.
pub fn draw(
    texts: &[PathBuf],
    whole: &[PathBuf],
    settings: &StrataSettings,
    interrupt: &Interrupt,
) -> Result<Drawn> {
    let StrataSettings {
        rows,
        stacked,
        most,
        seed,
    } = *settings;
    let wrong = |setting, value, wanted: &str| {
        Err(Error::Setting {
            setting,
            value,
            wanted: wanted.to_owned(),
        })
    };
    if rows == 0 {
        return wrong("rows", rows, "at least 1");
    }
    if !(0.0..=1.0).contains(&stacked) {
        return wrong(
            "stacked, in per cent,",
            (100.0 * stacked) as usize,
            "from 0 to 100",
        );
    }
    if most < 2 {
        return wrong("most", most, "at least 2 documents of a stack");
    }
    let mut seen = BTreeSet::new();
    let mut cases: BTreeMap<String, Vec<Text>> = BTreeMap::new();
    for path in texts {
        for row in read(path, &mut seen)? {
            cases.entry(row.0).or_default().push(row.1);
        }
    }
    if cases.is_empty() {
        return Err(Error::NoRows {
            path: texts.first().cloned().unwrap_or_default(),
            what: "texts",
        });
    }
    let mut drawn = Drawn {
        rows: Vec::new(),
        strata: Vec::new(),
        short: Vec::new(),
    };
    for (case, mut texts) in cases {
        // Whatever file a document stood in.
        texts.sort_by_cached_key(|text| order(seed, "document", &text.id));
        let before = drawn.rows.len();
        let stacks = (rows as f64 * stacked).round() as usize;
        drawn.singles(&case, &texts, rows - stacks);
        if stacked > 0.0 {
            // What there are too few documents for is stacked too.
            let left = rows - (drawn.rows.len() - before);
            drawn.stacks(&case, &texts, left, (most, seed), interrupt)?;
        }
        let found = drawn.rows.len() - before;
        if found < rows {
            drawn.short.push((case, found));
        }
    }
    for path in whole {
        for (case, text) in read(path, &mut seen)? {
            let mut row = text.row;
            row.insert("stratum".to_owned(), "taken whole".into());
            drawn.rows.push(row.into());
            let is = |of: &&mut Stratum| of.use_case == case && of.form == "taken whole";
            match drawn.strata.iter_mut().find(is) {
                Some(stratum) => {
                    stratum.documents += 1;
                    stratum.rows += 1;
                }
                None => drawn.strata.push(Stratum {
                    use_case: case,
                    content: "any".to_owned(),
                    form: "taken whole".to_owned(),
                    documents: 1,
                    rows: 1,
                }),
            }
        }
    }
    Ok(drawn)
}

/// Documents with their use cases.
fn read(path: &Path, seen: &mut BTreeSet<String>) -> Result<Vec<(String, Text)>> {
    let mut all = Vec::new();
    for row in read_rows(path)? {
        let id = row.name(&["id"])?;
        let words = row.text("source")?.split_whitespace().count();
        if words == 0 {
            return Err(row.wrong("its `source` is empty; leave the row out"));
        }
        if !seen.insert(id.clone()) {
            return Err(row.wrong(format!(
                "its id {id} is that of an earlier row; number the texts apart"
            )));
        }
        let case = row.text("use_case")?.to_owned();
        let content = row.text_or_none("content")?.unwrap_or("any").to_owned();
        all.push((
            case,
            Text {
                id,
                content,
                words,
                row: row.object.clone(),
            },
        ));
    }
    Ok(all)
}

/// By which texts are sorted.
fn order(seed: u64, what: &str, id: &str) -> Hash {
    Hash::of(format!("{seed}\0{what}\0{id}").as_bytes())
}

/// As many of each as there are, or as of every other, up to `wanted` in all; the first ones get what cannot be shared.
fn even(there: &[usize], wanted: usize) -> Vec<usize> {
    let mut given = vec![0; there.len()];
    let mut left = wanted.min(there.iter().sum());
    while left > 0 {
        let open: Vec<usize> = (0..there.len()).filter(|&i| given[i] < there[i]).collect();
        let each = (left / open.len()).max(1);
        for i in open {
            let more = each.min(there[i] - given[i]).min(left);
            given[i] += more;
            left -= more;
        }
    }
    given
}

impl Drawn {
    fn singles(&mut self, case: &str, texts: &[Text], wanted: usize) {
        let mut words: Vec<usize> = texts.iter().map(|text| text.words).collect();
        words.sort_unstable();
        let third = |nth: usize| words[(nth * words.len() / 3).min(words.len() - 1)];
        let (short, long) = (third(1), third(2));
        let form = |text: &Text| match text.words {
            words if words < short => "1 short",
            words if words >= long && long > short => "3 long",
            _ => "2 medium",
        };
        let mut strata: BTreeMap<(&str, &str), Vec<&Text>> = BTreeMap::new();
        for text in texts {
            strata
                .entry((&text.content, form(text)))
                .or_default()
                .push(text);
        }
        let there: Vec<usize> = strata.values().map(Vec::len).collect();
        for (((content, form), texts), rows) in strata.into_iter().zip(even(&there, wanted)) {
            let form = &form[2..]; // without what sorts them
            for text in texts.iter().take(rows) {
                let mut row = text.row.clone();
                row.insert(
                    "stratum".to_owned(),
                    format!("{content}, single, {form}").into(),
                );
                self.rows.push(row.into());
            }
            self.strata.push(Stratum {
                use_case: case.to_owned(),
                content: content.to_owned(),
                form: form.to_owned(),
                documents: texts.len(),
                rows,
            });
        }
    }

    fn stacks(
        &mut self,
        case: &str,
        texts: &[Text],
        wanted: usize,
        (most, seed): (usize, u64),
        interrupt: &Interrupt,
    ) -> Result<()> {
        let sizes = 2..=most.min(texts.len());
        let there: Vec<usize> = sizes.clone().map(|size| sets(texts.len(), size)).collect();
        for (size, rows) in sizes.zip(even(&there, wanted)) {
            let (mut made, mut known) = (0, BTreeSet::new());
            for number in 0..rows as u64 * TRIES {
                if made == rows {
                    break;
                }
                if interrupt.is_raised() {
                    return Err(Error::Interrupted);
                }
                // The first ones in an order of its own, of which no more is needed than these.
                let what = format!("stack {size} {number}");
                let keyed = texts
                    .iter()
                    .map(|text| (order(seed, &what, &text.id), text));
                let mut keyed: Vec<(Hash, &Text)> = keyed.collect();
                keyed.select_nth_unstable_by_key(size - 1, |(key, _)| *key);
                keyed.truncate(size);
                keyed.sort_unstable_by_key(|(key, _)| *key);
                let chosen: Vec<&Text> = keyed.into_iter().map(|(_, text)| text).collect();
                let set: BTreeSet<&str> = chosen.iter().map(|text| &text.id[..]).collect();
                if !known.insert(set) {
                    continue;
                }
                made += 1;
                let sources: Vec<&str> = chosen
                    .iter()
                    .filter_map(|text| text.row["source"].as_str())
                    .map(str::trim)
                    .collect();
                let ids: Vec<&str> = chosen.iter().map(|text| &text.id[..]).collect();
                self.rows.push(json!({
                    "id": format!("{case}, stack of {size}, {made}"), "source": sources.join("\n\n"), "use_case": case,
                    "stratum": format!("stack of {size}"), "documents": ids,
                }));
            }
            self.strata.push(Stratum {
                use_case: case.to_owned(),
                content: "any".to_owned(),
                form: format!("stack of {size}"),
                documents: texts.len(),
                rows: made,
            });
        }
        Ok(())
    }
}

/// Different sets of `size` of so many documents.
fn sets(documents: usize, size: usize) -> usize {
    let mut all = 1usize;
    for i in 0..size {
        all = all.saturating_mul(documents - i) / (i + 1);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shared_evenly_and_what_one_lacks_goes_to_the_others() {
        assert_eq!(even(&[10, 10, 10], 9), [3, 3, 3]);
        assert_eq!(even(&[1, 10, 10], 9), [1, 4, 4]);
        assert_eq!(even(&[10, 10, 10], 10), [4, 3, 3]);
        assert_eq!(even(&[1, 2], 9), [1, 2]);
        assert_eq!(even(&[0, 5], 3), [0, 3]);
        assert_eq!(even(&[], 3), [0usize; 0]);
        assert_eq!([sets(5, 2), sets(5, 5), sets(24, 5)], [10, 1, 42_504]);
    }
}
