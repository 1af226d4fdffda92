//! Recipes: a TOML file and overrides, into a stage's settings.
//!
//! A recipe is complete: nothing is inherited from another file, and nothing is ignored. Settings are structs with
//! `#[serde(deny_unknown_fields)]` and no `flatten`, so that a key that is not understood is an error with the line it
//! stands on. Overrides enter the parsed table before the settings are read from it and are held to the same rules.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use crate::error::{Error, Result};
use crate::overrides::{Override, nearest};

/// 1 MiB. The longest recipes are a few KiB.
const MAX_BYTES: u64 = 1 << 20;

/// A recipe file with its overrides, known to be TOML of finite numbers.
#[derive(Clone, Debug)]
pub struct Recipe {
    name: String,
    place: String,
    text: String,
    overrides: Vec<Override>,
    alternatives: &'static [(&'static str, &'static str)],
}

impl Recipe {
    /// Reads a file of at most 1 MiB.
    ///
    /// # Errors
    /// When it cannot be read, is too long, is not TOML, holds `inf` or `nan`, or an override goes through a value.
    pub fn load(path: &Path, overrides: &[Override]) -> Result<Self> {
        let place = path.display().to_string();
        let refuse = |reason: &str| Error::Recipe {
            place: place.clone(),
            reason: reason.to_owned(),
        };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(Error::io("read the recipe", path))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(refuse(
                "it is longer than 1 MiB, so it is hardly a recipe; name a TOML file",
            ));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| refuse("it is not UTF-8 text, so no recipe; name a TOML file"))?;
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Self::new(name, place, text, overrides)
    }

    /// From text, under a name to use in errors.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn from_text(name: &str, text: &str, overrides: &[Override]) -> Result<Self> {
        Self::new(name.to_owned(), name.to_owned(), text.to_owned(), overrides)
    }

    fn new(name: String, place: String, text: String, overrides: &[Override]) -> Result<Self> {
        let recipe = Self {
            name,
            place,
            text,
            overrides: overrides.to_vec(),
            alternatives: &[],
        };
        recipe.check_finite(recipe.tree()?.get_ref(), "")?;
        Ok(recipe)
    }

    /// Pairs of dotted keys of which a recipe has one: an override of one of them takes the other out.
    pub fn with_alternatives(self, pairs: &'static [(&'static str, &'static str)]) -> Self {
        Self {
            alternatives: pairs,
            ..self
        }
    }

    /// The file's name without folder and extension: `03-pretrain`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The table, overrides applied, before anything is made of it.
    ///
    /// # Errors
    /// When a number fits no TOML type.
    pub fn table(&self) -> Result<toml::Table> {
        self.parse()
    }

    /// The settings, overrides applied.
    ///
    /// # Errors
    /// Names file and line (or the override), the key, and the nearest known key.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        let tree = self.tree()?;
        T::deserialize(Deserializer::from(tree.clone()))
            .map_err(|error| self.explain(&error, Some(&tree)))
    }

    /// What a [`crate::Stage`] records: every setting, defaults filled in. Settings keep "none" as `Option`, not as
    /// infinity, which JSON has no word for.
    ///
    /// # Errors
    /// When the settings have no JSON form: a map with keys that are no strings, an integer beyond 64 bits.
    pub fn resolved_json<T: Serialize>(settings: &T) -> Result<Value> {
        // Through text, where an f32 of 0.1 is 0.1 and not the f64 next to it.
        serde_json::to_string(settings)
            .and_then(|text| serde_json::from_str(&text))
            .map_err(|error| Error::Settings(error.to_string()))
    }

    /// Parsed, overrides applied; what override `i` put there has a span that begins at `text.len() + 1 + i`.
    fn tree(&self) -> Result<Spanned<DeTable<'_>>> {
        let mut tree = DeTable::parse(&self.text).map_err(|error| self.explain(&error, None))?;
        for (index, one) in self.overrides.iter().enumerate() {
            let mark = self.text.len() + 1 + index;
            one.apply(tree.get_mut(), mark..mark)?;
        }
        let overridden = |key: &str| self.overrides.iter().any(|one| one.key() == key);
        for &(a, b) in self.alternatives {
            match (overridden(a), overridden(b)) {
                (true, false) => remove(tree.get_mut(), b),
                (false, true) => remove(tree.get_mut(), a),
                _ => {}
            }
        }
        Ok(tree)
    }

    fn check_finite(&self, table: &DeTable<'_>, path: &str) -> Result<()> {
        for (key, value) in table {
            let path = if path.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{path}.{}", key.get_ref())
            };
            self.check_finite_value(value, &path)?;
        }
        Ok(())
    }

    fn check_finite_value(&self, value: &Spanned<DeValue<'_>>, path: &str) -> Result<()> {
        match value.get_ref() {
            DeValue::Float(float) if !float.as_str().parse().is_ok_and(f64::is_finite) => {
                Err(Error::Recipe {
                    place: self.place(Some(value.span().start)),
                    reason: format!(
                        "`{path}` is {float}, which is not a finite number; for a word, write it in quotes"
                    ),
                })
            }
            DeValue::Array(items) => items
                .iter()
                .enumerate()
                .try_for_each(|(i, item)| self.check_finite_value(item, &format!("{path}[{i}]"))),
            DeValue::Table(table) => self.check_finite(table, path),
            _ => Ok(()),
        }
    }

    /// The file and line, or the override, that a span points to.
    fn place(&self, start: Option<usize>) -> String {
        match start {
            Some(start) if start > self.text.len() => {
                format!(
                    "--set {}",
                    self.overrides[start - self.text.len() - 1].text()
                )
            }
            Some(start) => {
                let line = 1 + self.text.as_bytes()[..start]
                    .iter()
                    .filter(|&&byte| byte == b'\n')
                    .count();
                format!("{}:{line}", self.place)
            }
            None => self.place.clone(),
        }
    }

    fn explain(&self, error: &toml::de::Error, tree: Option<&Spanned<DeTable<'_>>>) -> Error {
        // A field missing from the outermost table has that table for its span, and no line.
        let span = error
            .span()
            .filter(|span| tree.is_none_or(|tree| *span != tree.span()));
        let key = match (tree, &span) {
            // An override names its key itself.
            (Some(tree), Some(span)) if span.start <= self.text.len() => find(tree.get_ref(), span),
            _ => None,
        };
        let key = key.map(|key| format!("`{key}`: ")).unwrap_or_default();
        let near = hint(error.message()).map(str::to_owned);
        let hint = near
            .or_else(|| self.same_name_below(error, tree?, span.as_ref()?.start))
            .map(|name| format!("; did you mean `{name}`?"))
            .unwrap_or_default();
        let place = self.place(span.map(|span| span.start));
        Error::Recipe {
            place,
            reason: format!("{key}{}{hint}", in_words(error.message().trim_end())),
        }
    }
}

impl Recipe {
    /// Where an override's unknown key stands in a table of the recipe: `--set tokenizer.vocab_size=9` of a run means the stage
    /// `tokenizer`, in which there is `tokenizer.vocab_size`.
    fn same_name_below(
        &self,
        error: &toml::de::Error,
        tree: &Spanned<DeTable<'_>>,
        start: usize,
    ) -> Option<String> {
        let one = &self.overrides[start.checked_sub(self.text.len() + 1)?];
        let unknown = error.message().strip_prefix("unknown field `")?;
        let (unknown, _) = unknown.split_once('`')?;
        // As the file has it, and not an override.
        let has = |value: &DeValue<'_>| match value {
            DeValue::Table(table) => table
                .get_key_value(unknown)
                .is_some_and(|(key, _)| key.span().start <= self.text.len()),
            _ => false,
        };
        let mut tables = tree.get_ref().iter();
        let (table, _) = tables.find(|(_, value)| has(value.get_ref()))?;
        let (typed, _) = one.text().split_once('=')?;
        let stage = typed.trim().strip_suffix(&one.key())?;
        Some(format!("{stage}{}.{unknown}", table.get_ref()))
    }
}

/// serde's message with the names of types as a person says them, and what to do.
fn in_words(message: &str) -> String {
    if let Some(name) = message.strip_prefix("missing field ") {
        let why = match name {
            "`kind`" => ", which decides what other keys there are",
            _ => "",
        };
        return format!("{name} is missing{why}; write it too");
    }
    let Some((said, kind)) = message.rsplit_once(", expected ") else {
        return message.to_owned();
    };
    let kind = match kind {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        kind => kind,
    };
    format!("{said}, expected {kind}")
}

/// Takes a dotted key out, where it is there.
fn remove(table: &mut DeTable<'_>, key: &str) {
    match key.split_once('.') {
        None => drop(table.remove(key)),
        Some((first, rest)) => {
            if let Some(value) = table.get_mut(first)
                && let DeValue::Table(below) = value.get_mut()
            {
                remove(below, rest);
            }
        }
    }
}

/// The dotted key whose name or value has this span.
fn find(table: &DeTable<'_>, span: &std::ops::Range<usize>) -> Option<String> {
    fn below(value: &DeValue<'_>, span: &std::ops::Range<usize>) -> Option<String> {
        match value {
            DeValue::Table(table) => find(table, span).map(|path| format!(".{path}")),
            DeValue::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
                let here = (item.span() == *span).then(String::new);
                here.or_else(|| below(item.get_ref(), span))
                    .map(|path| format!("[{index}]{path}"))
            }),
            _ => None,
        }
    }
    table.iter().find_map(|(key, value)| {
        let here = (key.span() == *span || value.span() == *span).then(String::new);
        here.or_else(|| below(value.get_ref(), span))
            .map(|path| format!("{}{path}", key.get_ref()))
    })
}

/// The known name nearest to the unknown one, out of serde's "unknown field `stpes`, expected one of `steps`, `batch`".
fn hint(message: &str) -> Option<&str> {
    let (unknown, expected) = message.split_once(", expected ")?;
    let unknown = unknown
        .strip_prefix("unknown field ")
        .or_else(|| unknown.strip_prefix("unknown variant "))?;
    nearest(
        unknown.trim_matches('`'),
        expected.split('`').skip(1).step_by(2),
    )
}

#[cfg(test)]
mod tests;
