//! `cargo xtask bench`: `russet bench` in release, and a list of the scripts in bench/ where there are any.

use crate::shell::{Done, cargo, root, run};
use std::path::{Path, PathBuf};

/// With arguments, runs `russet bench ARGUMENTS`; without, lists the scripts of `bench/` with the first line of their comment.
pub fn bench(arguments: &[String]) -> Done {
    if !arguments.is_empty() {
        return run(cargo("run --release --package russet-cli -- bench").args(arguments));
    }
    for script in scripts(&root().join("bench")) {
        let name = script.strip_prefix(root()).unwrap_or(&script).display();
        let text = std::fs::read_to_string(&script).unwrap_or_default();
        println!("{:32} {}", name.to_string(), summary(&text));
    }
    println!(
        "measure a model: cargo xtask bench --model DIR [-p TOKENS] [-n TOKENS] [--threads N], which is `russet bench …` built in release"
    );
    Ok(())
}

/// The Python and shell scripts under a folder, in order; none where there is no such folder.
fn scripts(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return found;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(scripts(&path));
        } else if path
            .extension()
            .is_some_and(|end| end == "py" || end == "sh")
        {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The first comment line that says something.
fn summary(text: &str) -> String {
    let first = text
        .lines()
        .filter(|line| !line.starts_with("#!"))
        .find_map(|line| {
            let line = line
                .trim_start_matches(['#', '/', '!', '-', '<', '"', ' '])
                .trim();
            (!line.is_empty()).then(|| line.trim_end_matches('"').to_owned())
        });
    first.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn scripts_are_found_in_folders_and_nothing_else_is() {
        let golden = crate::shell::root().join("golden");
        let names: Vec<_> = super::scripts(&golden)
            .iter()
            .map(|path| path.file_name().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(names, ["make_models.py", "make_ops.py", "parity.py"]);
        assert_eq!(super::scripts(&golden.join("no such folder")).len(), 0);
    }

    #[test]
    fn a_script_is_summed_up_by_its_first_comment() {
        assert_eq!(
            super::summary("#!/bin/sh\n#\n# Decode speed.\nset -e\n"),
            "Decode speed."
        );
        assert_eq!(
            super::summary("#!/usr/bin/env python3\n\"\"\"One training step.\"\"\"\n"),
            "One training step."
        );
    }
}
