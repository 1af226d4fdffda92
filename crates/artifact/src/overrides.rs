//! `--set a.b=c`: one setting of a recipe, replaced from the command line.
//!
//! The value is TOML (`12`, `3e-4`, `true`, `[1, 2]`, `"text"`); what is not TOML and does not begin like a string, list
//! or table is taken as a bare word, so `--set data.text=tinystories.txt` needs no second pair of quotes. The same key
//! twice: the later one holds. A list or table is replaced whole.

use std::borrow::Cow;
use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};
use crate::hash::shorten;

/// Parts of a dotted key at most.
const MAX_PARTS: usize = 32;

/// One parsed `--set KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    text: String,
    key: Vec<String>,
    value: String,
    bare: bool,
}

impl Override {
    /// As it was typed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The dotted key it sets; for one out of [`split_overrides`], without the stage.
    pub fn key(&self) -> String {
        self.key.join(".")
    }

    /// Puts the value into `table`. Everything it adds gets `mark` for its span, so that an error can be traced to it.
    pub(crate) fn apply<'a>(&'a self, table: &mut DeTable<'a>, mark: Range<usize>) -> Result<()> {
        let value = if self.bare {
            DeValue::String(Cow::Borrowed(&self.value))
        } else {
            self.parse_value()?
        };
        let (last, folders) = self.key.split_last().expect("a key has at least one part");
        let mut table = table;
        for (depth, part) in folders.iter().enumerate() {
            let entry = table
                .entry(Spanned::new(mark.clone(), Cow::Borrowed(part.as_str())))
                .or_insert_with(|| Spanned::new(mark.clone(), DeValue::Table(DeTable::new())));
            let what = entry.get_ref().type_str();
            table = match entry.get_mut() {
                DeValue::Table(table) => table,
                _ => {
                    let path = self.key[..=depth].join(".");
                    return Err(self.bad(format!(
                        "`{path}` is of type {what} in the recipe, so nothing lies below it"
                    )));
                }
            };
        }
        // Taken out first: inserting over an old entry would keep the old key and its place in the file.
        table.remove(last.as_str());
        table.insert(
            Spanned::new(mark.clone(), Cow::Borrowed(last)),
            marked(value, &mark),
        );
        Ok(())
    }

    fn parse_value(&self) -> Result<DeValue<'_>> {
        let value = DeValue::parse(&self.value).map_err(|error| self.bad(bad_value(&error)))?;
        Ok(value.into_inner())
    }

    fn bad(&self, reason: String) -> Error {
        bad(&self.text, reason)
    }
}

impl FromStr for Override {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(bad(
                text,
                "has no `=`; write KEY=VALUE, as in train.steps=12".to_owned(),
            ));
        };
        let (key, value) = (key.trim(), value.trim());
        let bare_key = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        };
        // Recipes nest three deep; a table for each of sixty thousand parts would end in the stack's overflow.
        let depth = key.split('.').count();
        if depth > MAX_PARTS {
            let why =
                format!("its key has {depth} parts, and no recipe nests deeper than {MAX_PARTS}");
            return Err(bad(text, why));
        }
        let parts: Vec<String> = key.split('.').map(str::to_owned).collect();
        if !parts.iter().all(|part| bare_key(part)) {
            let why = format!(
                "`{}` is not a key; write names of letters, digits, `_` and `-` with dots between",
                shorten(key)
            );
            return Err(bad(text, why));
        }
        let bare = match DeValue::parse(value) {
            // No setting is a date, and `--set name=2024-05-01` means the word.
            Ok(parsed) => parsed.get_ref().is_datetime(),
            Err(error) if value.starts_with(['"', '\'', '[', '{']) => {
                return Err(bad(text, bad_value(&error)));
            }
            Err(_) => true,
        };
        Ok(Self {
            text: text.to_owned(),
            key: parts,
            value: value.to_owned(),
            bare,
        })
    }
}

/// Deals `STAGE.KEY=VALUE` overrides to the stages of a run; the result is as long as `stages`.
///
/// A stage answers to its whole name (`03-pretrain`) and to the name without its number (`pretrain`), where only one does.
///
/// # Errors
/// When an override begins with no stage, with one of several that share a name, or with a stage and nothing after it.
pub fn split_overrides(overrides: &[Override], stages: &[&str]) -> Result<Vec<Vec<Override>>> {
    let mut dealt = vec![Vec::new(); stages.len()];
    for one in overrides {
        let (first, rest) = one.key.split_first().expect("a key has at least one part");
        let named = |matches: &dyn Fn(&str) -> bool| -> Vec<usize> {
            (0..stages.len())
                .filter(|&stage| matches(stages[stage]))
                .collect()
        };
        let mut found = named(&|stage| stage == first);
        if found.is_empty() {
            found = named(&|stage| without_number(stage) == first);
        }
        let stage = match found[..] {
            [stage] => stage,
            [] => {
                let hint = nearest(
                    first,
                    stages
                        .iter()
                        .copied()
                        .chain(stages.iter().map(|stage| without_number(stage))),
                );
                let hint = hint
                    .map(|name| format!("; did you mean `{name}`?"))
                    .unwrap_or_default();
                let stages = stages.join(", ");
                return Err(one.bad(format!(
                    "`{first}` is no stage of this run; begin with one of {stages}, as in pretrain.train.steps=12{hint}"
                )));
            }
            _ => {
                let several: Vec<&str> = found.iter().map(|&stage| stages[stage]).collect();
                return Err(one.bad(format!(
                    "`{first}` may be any of {}; write its whole name",
                    several.join(", ")
                )));
            }
        };
        if rest.is_empty() {
            return Err(one.bad(format!(
                "`{first}` is a stage; name a setting of it, as in {first}.train.steps=12"
            )));
        }
        dealt[stage].push(Override {
            key: rest.to_vec(),
            ..one.clone()
        });
    }
    Ok(dealt)
}

/// `03-pretrain` -> `pretrain`; a name that is all number stays.
fn without_number(stage: &str) -> &str {
    let rest = stage.trim_start_matches(|c: char| c.is_ascii_digit());
    match rest.strip_prefix(['-', '_']) {
        Some(name) if !name.is_empty() && rest.len() < stage.len() => name,
        _ => stage,
    }
}

/// The candidate that a typing error away from `name`, if any: at most a third of its letters.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= (name.len().max(candidate.len()) / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, changes and swaps of neighbours between two keys, over bytes: keys are ASCII.
/// Optimal string alignment; Damerau, "A technique for computer detection and correction of spelling errors", 1964.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        (before, above) = (above, row);
    }
    above[b.len()]
}

/// The same value with every span inside replaced.
fn marked<'a>(value: DeValue<'a>, mark: &Range<usize>) -> Spanned<DeValue<'a>> {
    let value = match value {
        DeValue::Table(table) => DeValue::Table(
            table
                .into_iter()
                .map(|(key, value)| {
                    (
                        Spanned::new(mark.clone(), key.into_inner()),
                        marked(value.into_inner(), mark),
                    )
                })
                .collect(),
        ),
        DeValue::Array(items) => {
            let mut array = toml::de::DeArray::new();
            items
                .into_iter()
                .for_each(|item| array.push(marked(item.into_inner(), mark)));
            DeValue::Array(array)
        }
        plain => plain,
    };
    Spanned::new(mark.clone(), value)
}

fn bad_value(error: &toml::de::Error) -> String {
    format!("the value is not TOML ({})", error.message())
}

fn bad(text: &str, reason: String) -> Error {
    Error::Override {
        text: shorten(text),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_split(set: &str, stages: &[&str], expected: std::result::Result<(usize, &str), &str>) {
        let one: Override = set.parse().unwrap();
        match (split_overrides(&[one], stages), expected) {
            (Ok(dealt), Ok((stage, key))) => {
                assert_eq!(
                    dealt[stage].iter().map(Override::key).collect::<Vec<_>>(),
                    [key]
                );
                assert_eq!(dealt.iter().flatten().count(), 1);
            }
            (Err(error), Err(sentence)) => assert_eq!(error.to_string(), sentence),
            (got, _) => panic!("{got:?}"),
        }
    }

    const STAGES: &[&str] = &["01-data", "03-pretrain", "04-sft", "06-sft"];

    #[test]
    fn overrides_go_to_their_stage() {
        check_split("03-pretrain.train.steps=12", STAGES, Ok((1, "train.steps")));
        check_split("pretrain.train.steps=12", STAGES, Ok((1, "train.steps")));
        check_split("06-sft.lr=1", STAGES, Ok((3, "lr")));
    }

    #[test]
    fn overrides_of_no_stage_or_several_are_refused() {
        check_split(
            "pretrian.train.steps=12",
            STAGES,
            Err(
                "--set pretrian.train.steps=12: `pretrian` is no stage of this run; begin with one of 01-data, \
                 03-pretrain, 04-sft, 06-sft, as in pretrain.train.steps=12; did you mean `pretrain`?",
            ),
        );
        check_split(
            "sft.lr=1",
            STAGES,
            Err("--set sft.lr=1: `sft` may be any of 04-sft, 06-sft; write its whole name"),
        );
        check_split(
            "data=1",
            STAGES,
            Err("--set data=1: `data` is a stage; name a setting of it, as in data.train.steps=12"),
        );
    }

    #[test]
    fn a_key_must_be_a_key() {
        for text in [
            "", "steps", "=1", ".a=1", "a.=1", "a..b=1", "a b=1", "a\n.b=1", "\"a\"=1", "ä=1",
        ] {
            let error = text.parse::<Override>().unwrap_err().to_string();
            assert!(error.starts_with("--set "), "{error}");
        }
    }

    #[test]
    fn a_key_deeper_than_any_recipe_is_refused() {
        let text = |parts: usize| format!("{}=1", vec!["a"; parts].join("."));
        assert!(text(MAX_PARTS).parse::<Override>().is_ok());
        for parts in [MAX_PARTS + 1, 60_000] {
            let error = text(parts).parse::<Override>().unwrap_err().to_string();
            assert!(error.contains(&format!("{parts} parts")), "{error}");
        }
    }

    #[test]
    fn edit_distance_counts_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("steps", "steps"), 0);
        assert_eq!(edit_distance("stpes", "steps"), 1);
        assert_eq!(
            nearest("stpes", ["batch", "steps"].into_iter()),
            Some("steps")
        );
        assert_eq!(nearest("colour", ["batch", "steps"].into_iter()), None);
    }

    #[test]
    fn numbers_are_taken_off_stage_names() {
        for (stage, name) in [
            ("03-pretrain", "pretrain"),
            ("4_sft", "sft"),
            ("sft", "sft"),
            ("03", "03"),
            ("3x", "3x"),
        ] {
            assert_eq!(without_number(stage), name);
        }
    }
}
