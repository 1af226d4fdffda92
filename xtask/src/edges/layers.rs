//! Arrows point down only: which crate stands on which layer, and what its manifest may therefore name.

/// The table of ARCHITECTURE.md. A crate may depend on crates of lower layers, never on one of its own.
const LAYERS: &[(&str, u8)] = &[
    ("russet-kernels", 0),
    ("russet-artifact", 0),
    ("russet-tensor", 1),
    ("russet-tokenizer", 1),
    ("russet-model", 2),
    ("russet-train", 3),
    ("russet-engine", 3),
    ("russet-analyze", 3),
    ("russet-align", 4),
    ("russet-compress", 4),
    ("russet-serve", 4),
    ("russet-eval", 4),
    ("russet-data", 4),
    ("russet-cli", 5),
    ("russet", 5),
];

/// Violations of one manifest; `path` from the repository's root.
pub fn check(path: &str, manifest: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let Some(name) = package_name(manifest) else {
        return vec![format!("{path}: no `name` under [package]")];
    };
    let layer_of = |name: &str| {
        LAYERS
            .iter()
            .find(|(other, _)| *other == name)
            .map(|(_, layer)| *layer)
    };
    let dependencies = dependencies(manifest);
    if !takes_workspace_lints(manifest) {
        violations.push(format!("{path}: add `[lints]` with `workspace = true`; the workspace's lints are part of the invariants"));
    }
    if name == "xtask" {
        violations.extend(dependencies.iter().map(|dependency| {
            format!("{path}: xtask uses the standard library only, so it builds before anything else; remove {dependency}")
        }));
        return violations;
    }
    let Some(layer) = layer_of(&name) else {
        violations.push(format!("{path}: {name} has no layer; give it one in ARCHITECTURE.md and in xtask/src/edges/layers.rs"));
        return violations;
    };
    for dependency in dependencies
        .iter()
        .filter(|other| *other == "xtask" || other.starts_with("russet"))
    {
        match layer_of(dependency) {
            Some(below) if below < layer => {}
            Some(other) if other == layer => violations.push(format!(
                "{path}: {name} names {dependency} of its own layer {layer}; put what they share as a trait into a crate below"
            )),
            Some(above) => violations.push(format!("{path}: {name} (layer {layer}) names {dependency} (layer {above}); arrows point down only")),
            None => violations.push(format!("{path}: {name} names {dependency}, which has no layer")),
        }
    }
    violations
}

/// `name` of `[package]`.
pub fn package_name(manifest: &str) -> Option<String> {
    entries(manifest)
        .into_iter()
        .find(|entry| entry.table == "package" && entry.key == "name")
        .map(|entry| unquoted(&entry.value))
}

/// Packages that a build of the crate needs: `[dependencies]` and `[build-dependencies]`, for any target. Not `[dev-dependencies]`.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for Entry { table, key, value } in entries(manifest) {
        // `dependencies`, `target.'cfg(unix)'.dependencies`, `dependencies.NAME`
        let is = |table: &str| {
            ["dependencies", "build-dependencies"]
                .iter()
                .any(|kind| table == *kind || table.ends_with(&format!(".{kind}")))
        };
        let parent = table.rsplit_once('.').map_or("", |(parent, _)| parent);
        let name = if is(&table) {
            // `name = "1"`, `name = { package = "real" }`, `name.workspace = true`
            match value
                .split_once("package = \"")
                .and_then(|(_, rest)| rest.split_once('"'))
            {
                Some((real, _)) => real.to_owned(),
                None => unquoted(key.split('.').next().unwrap_or(&key)),
            }
        } else if is(parent) {
            if key == "package" {
                unquoted(&value)
            } else {
                unquoted(&table[parent.len() + 1..])
            }
        } else {
            continue;
        };
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

fn takes_workspace_lints(manifest: &str) -> bool {
    entries(manifest).iter().any(|entry| {
        (entry.table == "lints" && entry.key == "workspace"
            || entry.table.is_empty() && entry.key == "lints.workspace")
            && entry.value == "true"
    })
}

struct Entry {
    table: String,
    key: String,
    value: String,
}

/// The `key = value` lines of a manifest under their table. The subset of TOML that manifests use: a value over several lines is
/// known by its open brackets, and joined.
fn entries(manifest: &str) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    let mut table = String::new();
    let mut open = 0i32;
    for line in manifest.lines() {
        let line = without_comment(line).trim();
        let depth = |text: &str| {
            let count = |brackets: [char; 2]| text.matches(brackets).count() as i32;
            count(['[', '{']) - count([']', '}'])
        };
        if open > 0 {
            open += depth(line);
            if let Some(last) = out.last_mut() {
                last.value.push_str(line);
            }
        } else if let Some(header) = line.strip_prefix('[') {
            table = header
                .trim_start_matches('[')
                .trim_end_matches(']')
                .trim()
                .to_owned();
        } else if let Some((key, value)) = line.split_once('=') {
            open = depth(value);
            out.push(Entry {
                table: table.clone(),
                key: key.trim().to_owned(),
                value: value.trim().to_owned(),
            });
        }
    }
    out
}

/// Up to a `#` that stands outside quotes.
fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    for (index, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => return &line[..index],
            _ => {}
        }
    }
    line
}

fn unquoted(text: &str) -> String {
    text.trim().trim_matches(['"', '\'']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, rest: &str) -> String {
        format!("[package]\nname = \"{name}\"\n\n[lints]\nworkspace = true\n\n{rest}")
    }

    #[track_caller]
    fn expect(name: &str, rest: &str, words: &[&str]) {
        let found = check("crates/x/Cargo.toml", &manifest(name, rest));
        assert_eq!(found.len(), words.len(), "{rest}\n{found:#?}");
        for (violation, word) in found.iter().zip(words) {
            assert!(
                violation.contains(word),
                "{violation:?} should say {word:?}"
            );
        }
    }

    #[test]
    fn an_edge_upward_is_caught() {
        expect(
            "russet-kernels",
            "[dependencies]\nrusset-tensor.workspace = true\n",
            &["arrows point down only"],
        );
        expect(
            "russet-model",
            "[dependencies]\nrusset-cli = { path = \"../cli\" }\n",
            &["arrows point down only"],
        );
        expect(
            "russet-model",
            "[dependencies.russet-train]\nworkspace = true\noptional = true\n",
            &["arrows point down only"],
        );
        expect(
            "russet-model",
            "[build-dependencies]\nrusset-train.workspace = true\n",
            &["arrows point down only"],
        );
        expect(
            "russet-model",
            "[target.'cfg(unix)'.dependencies]\nrusset-train.workspace = true\n",
            &["arrows point down only"],
        );
        expect(
            "russet-model",
            "[dependencies]\nhidden = { version = \"1\", package = \"russet-train\" }\n",
            &["russet-train"],
        );
    }

    #[test]
    fn a_sideways_edge_is_caught() {
        for (from, to) in [
            ("kernels", "artifact"),
            ("tensor", "tokenizer"),
            ("train", "engine"),
            ("compress", "eval"),
            ("align", "data"),
        ] {
            expect(
                &format!("russet-{from}"),
                &format!("[dependencies]\nrusset-{to}.workspace = true\n"),
                &["of its own layer"],
            );
        }
        expect(
            "russet-cli",
            "[dependencies]\nrusset.workspace = true\n",
            &["of its own layer"],
        );
    }

    #[test]
    fn downward_edges_and_dev_dependencies_pass() {
        expect(
            "russet-tokenizer",
            "[dependencies]\nrusset-artifact.workspace = true\nrusset-kernels.workspace = true # below\n",
            &[],
        );
        expect(
            "russet-kernels",
            "[dev-dependencies]\nrusset-model.workspace = true\n",
            &[],
        );
        expect(
            "russet-eval",
            "[dependencies]\nserde = { version = \"1\", features = [\n  \"derive\", # = russet-cli\n] }\n",
            &[],
        );
    }

    #[test]
    fn an_unknown_crate_is_caught() {
        expect("russet-extra", "", &["has no layer"]);
        expect(
            "russet-cli",
            "[dependencies]\nrusset-extra = \"1\"\n",
            &["has no layer"],
        );
    }

    #[test]
    fn xtask_depends_on_nothing() {
        expect(
            "xtask",
            "[dependencies]\nserde = \"1\"\n",
            &["remove serde"],
        );
        expect("xtask", "[dependencies]\n", &[]);
    }

    #[test]
    fn leaving_the_workspace_lints_is_caught() {
        let found = check(
            "crates/x/Cargo.toml",
            "[package]\nname = \"russet-model\"\n",
        );
        assert!(found.len() == 1 && found[0].contains("lints"), "{found:?}");
    }
}
