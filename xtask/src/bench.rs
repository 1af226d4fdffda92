//! `cargo xtask bench`: the scripts of `bench/` by name, and `russet bench` in release.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{Done, cargo, root, run};

/// Without arguments, lists the scripts below `bench/` with the first line of their comment. `NAME ARGUMENTS…` runs one of
/// them, with or without its ending; arguments that begin with an option are `russet bench`'s.
pub fn bench(arguments: &[String]) -> Done {
    let folder = root().join("bench");
    let scripts = scripts(&folder);
    let name = |script: &Path| {
        let below = script.strip_prefix(&folder).unwrap_or(script);
        below.to_string_lossy().into_owned()
    };
    let Some((first, rest)) = arguments.split_first() else {
        for script in &scripts {
            let text = std::fs::read_to_string(script).unwrap_or_default();
            println!("{:36} {}", name(script), summary(&text));
        }
        if scripts.is_empty() {
            println!("no scripts in bench/");
        }
        println!(
            "cargo xtask bench NAME [ARGUMENTS…] runs one; cargo xtask bench --model DIR [ARGUMENTS…] is `russet bench` built in release"
        );
        return Ok(());
    };
    if first.starts_with('-') {
        return run(cargo("run --release --package russet-cli -- bench").args(arguments));
    }
    let called = |script: &Path| {
        let name = name(script);
        name == *first || name.rsplit_once('.').is_some_and(|(stem, _)| stem == first)
    };
    let Some(script) = scripts.iter().find(|script| called(script)) else {
        let known: Vec<String> = scripts.iter().map(|script| name(script)).collect();
        let known = match known.is_empty() {
            true => "bench/ has none".to_owned(),
            false => format!("there are {}", known.join(", ")),
        };
        return Err(format!(
            "`{first}` is no benchmark; {known}. `russet bench` takes options: cargo xtask bench --model DIR"
        ));
    };
    run(starter(script)?.arg(script).args(rest).current_dir(root()))
}

/// The program that a script is for, by its ending.
fn starter(script: &Path) -> Done<Command> {
    match script.extension().and_then(|ending| ending.to_str()) {
        Some("py") => Ok(Command::new(
            std::env::var_os("RUSSET_PYTHON").unwrap_or_else(|| "python3".into()),
        )),
        Some("sh") => Ok(Command::new("sh")),
        _ => Err(format!(
            "{}: benchmarks are .py and .sh scripts",
            script.display()
        )),
    }
}

/// Scripts in a folder and in the folders below it, sorted.
fn scripts(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(scripts(&path));
        } else if starter(&path).is_ok() {
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
    fn a_name_that_is_no_script_is_refused_and_says_what_there_is() {
        let problem = super::bench(&["tg".to_owned(), "--model".to_owned()]).unwrap_err();
        assert!(problem.starts_with("`tg` is no benchmark; "), "{problem}");
    }

    #[test]
    fn scripts_lie_in_the_folder_and_below_and_have_an_ending() {
        let folder = std::env::temp_dir().join(format!("russet-bench-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("peers")).unwrap();
        for name in ["b.sh", "README.md", "peers/a.py"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let found = super::scripts(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, [folder.join("b.sh"), folder.join("peers/a.py")]);
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
