//! `cargo xtask fuzz`: each parser of foreign bytes under libFuzzer, for a while.
//!
//! `cargo fuzz` needs instrumentation that stable keeps behind a flag; `RUSTC_BOOTSTRAP=1` opens it, so no second toolchain is needed.
//! libFuzzer itself is C++: a `c++` must be installed. A crash leaves its input in `fuzz/artifacts/TARGET/`; turn it into a test.

use crate::cache::tool;
use crate::shell::{Done, root, run};
use std::process::Command;

const VERSION: &str = "0.13.2";

/// `[--seconds N] [TARGET…]`.
pub fn fuzz(arguments: &[String]) -> Done {
    let manifest = root().join("fuzz/Cargo.toml");
    let text = std::fs::read_to_string(&manifest)
        .map_err(|error| format!("cannot read {}: {error}", manifest.display()))?;
    let all = targets(&text);
    let Plan { seconds, chosen } = plan(arguments, &all)?;
    let cargo_fuzz = tool("cargo-fuzz", VERSION)?;
    let mut failed = Vec::new();
    for target in chosen {
        println!("── fuzz {target}, {seconds} s");
        let mut command = Command::new(&cargo_fuzz);
        command.args(["fuzz", "run", target, "--"]);
        command.arg(format!("-max_total_time={seconds}")).args([
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ]);
        command.env("RUSTC_BOOTSTRAP", "1").current_dir(root());
        if run(&mut command).is_err() {
            failed.push(target);
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "these found something, see fuzz/artifacts: {}",
            failed.join(", ")
        ))
    }
}

struct Plan<'a> {
    seconds: u32,
    chosen: Vec<&'a str>,
}

fn plan<'a>(arguments: &[String], all: &'a [String]) -> Done<Plan<'a>> {
    let mut plan = Plan {
        seconds: 60,
        chosen: Vec::new(),
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let value = arguments.next().ok_or("--seconds needs a number")?;
            plan.seconds = value
                .parse()
                .map_err(|_| format!("--seconds needs a whole number, not {value:?}"))?;
        } else if let Some(target) = all.iter().find(|target| *target == argument) {
            plan.chosen.push(target);
        } else {
            return Err(format!(
                "no fuzz target {argument:?}; there are {}",
                all.join(", ")
            ));
        }
    }
    if plan.chosen.is_empty() {
        plan.chosen = all.iter().map(String::as_str).collect();
    }
    Ok(plan)
}

/// Names of the `[[bin]]` tables of fuzz/Cargo.toml.
fn targets(manifest: &str) -> Vec<String> {
    let bins = manifest.split("[[bin]]").skip(1);
    bins.filter_map(|bin| {
        bin.lines()
            .find_map(|line| line.trim().strip_prefix("name = "))
    })
    .map(|name| name.trim_matches('"').to_owned())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_bins_of_the_manifest() {
        let manifest = "[package]\nname = \"fuzz\"\n\n[[bin]]\nname = \"a\"\npath = \"x\"\n\n[[bin]]\nname = \"b\"\n";
        assert_eq!(targets(manifest), ["a", "b"]);
    }

    #[test]
    fn unknown_targets_and_bad_numbers_are_refused() {
        let all = ["a".to_owned(), "b".to_owned()];
        let plan_of = |words: &[&str]| {
            plan(
                &words
                    .iter()
                    .map(|word| (*word).to_owned())
                    .collect::<Vec<_>>(),
                &all,
            )
            .map(|p| (p.seconds, p.chosen))
        };
        assert_eq!(plan_of(&[]), Ok((60, vec!["a", "b"])));
        assert_eq!(plan_of(&["--seconds", "5", "b"]), Ok((5, vec!["b"])));
        assert!(plan_of(&["c"]).unwrap_err().contains("there are a, b"));
        assert!(plan_of(&["--seconds", "soon"]).is_err());
        assert!(plan_of(&["--seconds"]).is_err());
    }
}
