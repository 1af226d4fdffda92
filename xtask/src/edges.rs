//! `cargo xtask edges`: the architecture's invariants, checked on the manifests and the sources.
//!
//! | check | promise |
//! |---|---|
//! | `layers` | a crate depends on lower layers only, no sideways edge; `xtask` depends on nothing; every crate takes the workspace's lints |
//! | `reach` | through all its dependencies, `engine` reaches no tokio, HTTP or text; only `data` reaches Arrow; only `serve` speaks HTTP |
//! | `unsafe_code` | `unsafe` stands in `kernels` only, each block under its `SAFETY:` |
//! | `documents` | recipes are numbered without gap; no source file is too long; cargo never runs npm |
//!
//! What it leaves out: whether a `SAFETY:` is true, and what clippy already sees. Each check is a function of text, so that its test can
//! show it a violation; this file only reads the repository and hands it over.

mod documents;
mod layers;
mod reach;
mod source;
mod unsafe_code;

use crate::shell::{Done, capture, cargo, root};
use std::fs;
use std::path::{Path, PathBuf};

/// Checks the repository; prints each violation, `Err` when there is one.
pub fn edges() -> Done {
    let root = root();
    let mut violations = Vec::new();

    let manifests = manifests(&root)?;
    for (path, text) in &manifests {
        violations.extend(layers::check(path, text));
    }
    let crates: Vec<String> = manifests
        .iter()
        .filter_map(|(_, text)| layers::package_name(text))
        .collect();
    for name in crates.iter().filter(|name| *name != "xtask") {
        let tree = capture(&mut cargo(&format!(
            "tree --package {name} --edges normal --prefix none"
        )))?;
        violations.extend(reach::check(name, &tree));
    }

    let sources = rust_files(&root)?;
    for (path, text) in &sources {
        violations.extend(unsafe_code::check(path, text));
        violations.extend(documents::length(path, text));
        violations.extend(documents::no_npm(path, text));
    }

    let mut recipes = 0;
    for folder in folders(&root.join("recipes"))? {
        let names: Vec<String> = entries(&folder)?
            .iter()
            .map(|path| file_name(path))
            .collect();
        recipes += names.iter().filter(|name| name.ends_with(".toml")).count();
        violations.extend(documents::numbering(
            &format!("recipes/{}", file_name(&folder)),
            &names,
        ));
    }

    for violation in &violations {
        println!("{violation}");
    }
    println!(
        "edges: {} manifests, {} sources, {recipes} recipes, {} violations",
        manifests.len(),
        sources.len(),
        violations.len()
    );
    if violations.is_empty() {
        Ok(())
    } else {
        Err(format!("{} violations of the invariants", violations.len()))
    }
}

/// `(path from the root, text)` of every manifest of the workspace.
fn manifests(root: &Path) -> Done<Vec<(String, String)>> {
    let mut packages = folders(&root.join("crates"))?;
    packages.push(root.join("xtask"));
    packages
        .iter()
        .map(|folder| read(root, &folder.join("Cargo.toml")))
        .collect()
}

/// `(path from the root, text)` of every Rust file that is ours.
fn rust_files(root: &Path) -> Done<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = ["crates", "xtask", "fuzz"]
        .iter()
        .map(|top| root.join(top))
        .filter(|path| path.is_dir())
        .collect();
    while let Some(folder) = open.pop() {
        for path in entries(&folder)? {
            if path.is_dir() {
                if !["target", "corpus", "artifacts"].contains(&file_name(&path).as_str()) {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(read(root, &path)?);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn read(root: &Path, path: &Path) -> Done<(String, String)> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok((
        path.strip_prefix(root)
            .unwrap_or(path)
            .to_string_lossy()
            .into_owned(),
        text,
    ))
}

/// Sorted entries of a folder; a folder that is not there has none.
fn entries(folder: &Path) -> Done<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let list = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let list = list.map_err(|error| format!("cannot list {}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = list.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    Ok(paths)
}

fn folders(folder: &Path) -> Done<Vec<PathBuf>> {
    Ok(entries(folder)?
        .into_iter()
        .filter(|path| path.is_dir())
        .collect())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
