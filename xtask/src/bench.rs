//! `cargo xtask bench`: the benchmarks by name, and `russet bench` in release.

use crate::shell::{Done, cargo, root, run};

/// Without arguments, lists the scripts of `bench/` with the first line of their comment; with arguments, runs `russet bench ARGUMENTS`.
pub fn bench(arguments: &[String]) -> Done {
    if !arguments.is_empty() {
        return run(cargo("run --release --package russet-cli -- bench").args(arguments));
    }
    let folder = root().join("bench");
    let mut scripts: Vec<_> = match std::fs::read_dir(&folder) {
        Ok(entries) => entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect(),
        Err(_) => Vec::new(),
    };
    scripts.sort();
    for script in &scripts {
        let name = script.file_name().unwrap_or_default().to_string_lossy();
        println!(
            "{name:32} {}",
            std::fs::read_to_string(script)
                .map(|text| summary(&text))
                .unwrap_or_default()
        );
    }
    if scripts.is_empty() {
        println!("no scripts in bench/");
    }
    println!(
        "run a benchmark of the binary: cargo xtask bench NAME [ARGUMENTS…], which is `russet bench NAME …` built in release"
    );
    Ok(())
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
