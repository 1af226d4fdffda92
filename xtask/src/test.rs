//! `cargo xtask test`: everything a change must pass, in order, each step with its seconds, and a verdict.
//!
//! Every step runs even when an earlier one failed, so one run tells everything. A step that this machine cannot do is skipped, with the
//! reason in the table; nothing here needs a GPU or a downloaded weight, and only the two installs need a network.

use crate::cache::{OPENAI, TENSORBOARD, mpi, python, tool};
use crate::edges;
use crate::shell::{Done, cargo, line, root, run};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

const CARGO_DENY: &str = "0.20.2";

const MODELS: &str = "-p russet-tensor -p russet-model -p russet-engine -p russet-compress";

enum Outcome {
    Passed,
    /// With the command that shows the failure again.
    Failed(String),
    /// With the reason.
    Skipped(String),
}

struct Step {
    name: &'static str,
    seconds: f64,
    outcome: Outcome,
}

/// Runs the steps; `Err` when one failed.
pub fn test() -> Done {
    let mut steps = Vec::new();
    let mut step = |name: &'static str, body: &mut dyn FnMut() -> Outcome| {
        println!("\n── {name}");
        let start = Instant::now();
        let outcome = body();
        steps.push(Step {
            name,
            seconds: start.elapsed().as_secs_f64(),
            outcome,
        });
    };

    let mut tensorboard = None;
    step("python", &mut || match python(&TENSORBOARD) {
        Ok(python) => {
            println!("{}", python.display());
            tensorboard = Some(python);
            Outcome::Passed
        }
        Err(problem) => Outcome::Skipped(format!(
            "the event files are not read back by TensorBoard: {problem}"
        )),
    });
    step("format", &mut || {
        passes(&mut cargo("fmt --all --check"), "")
    });
    step("format of fuzz/", &mut || {
        passes(
            &mut cargo("fmt --check --manifest-path fuzz/Cargo.toml"),
            "",
        )
    });
    step("clippy", &mut || {
        passes(
            &mut cargo("clippy --workspace --all-targets -- -D warnings"),
            "",
        )
    });
    step("edges", &mut || match edges::edges() {
        Ok(()) => Outcome::Passed,
        Err(problem) => {
            println!("{problem}");
            Outcome::Failed("cargo xtask edges".to_owned())
        }
    });
    step(
        "licences and sources",
        &mut || match tool("cargo-deny", CARGO_DENY) {
            // Advisories are not asked for: their database is on the network.
            Ok(deny) => passes(
                Command::new(deny)
                    .args(["check", "bans", "licenses", "sources"])
                    .current_dir(root()),
                "",
            ),
            Err(problem) => Outcome::Skipped(problem),
        },
    );
    step("documentation", &mut || {
        // Libraries only: the facade and the binary are both called russet, and would write one page.
        passes(
            cargo("doc --workspace --no-deps --lib --keep-going")
                .env("RUSTDOCFLAGS", "-D warnings"),
            "RUSTDOCFLAGS='-D warnings' ",
        )
    });
    step("tests", &mut || {
        let mut command = cargo("test --workspace --no-fail-fast");
        let mut before = String::new();
        // A Python that lacks TensorBoard must not reach the test either, or it would fail where it should skip.
        command.env_remove("RUSSET_PYTHON");
        if let Some(python) = &tensorboard {
            command.env("RUSSET_PYTHON", python);
            let _ = write!(before, "RUSSET_PYTHON='{}' ", python.display());
        }
        passes(&mut command, &before)
    });
    step("orders of threads", &mut orders_of_threads);
    // The whole workspace, so that what the step before has built is built with the same features here.
    step("ranks of MPI", &mut || match mpi() {
        Ok(()) => passes(
            &mut cargo(
                "test --workspace --features russet-train/mpi,russet-cli/mpi --test mpi --no-fail-fast",
            ),
            "",
        ),
        Err(problem) => Outcome::Skipped(problem),
    });
    step("OpenAI's client", &mut || match python(&OPENAI) {
        Ok(python) => match passes(&mut cargo("build --package russet-cli"), "") {
            Outcome::Passed => passes(
                Command::new(python)
                    .arg("bench/peers/openai_sdk.py")
                    .current_dir(root()),
                "",
            ),
            failed => failed,
        },
        Err(problem) => Outcome::Skipped(problem),
    });
    step("models, scalar", &mut || models_under("scalar"));
    step("models, avx2", &mut || {
        if has_avx2() {
            models_under("avx2")
        } else {
            Outcome::Skipped("this CPU has no AVX2".to_owned())
        }
    });

    println!("\n{}", table(&steps));
    verdict(&steps)
}

/// How threads meet, in the pool and in adapters, in every order of their steps that two changes of thread against their will make. Three take four minutes.
/// Built apart, since all is compiled for the checker.
fn orders_of_threads() -> Outcome {
    let mut command = cargo("test --package russet-kernels --lib orders");
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| root().join("target"));
    command
        .env("RUSTFLAGS", "--cfg loom")
        .env("LOOM_MAX_PREEMPTIONS", "2")
        .env("CARGO_TARGET_DIR", target.join("loom"));
    passes(
        &mut command,
        "RUSTFLAGS='--cfg loom' LOOM_MAX_PREEMPTIONS=2 ",
    )
}

/// The crates whose tests compute with models, on another instruction set than this machine's best. The kernels' own tests
/// go through every one by themselves.
fn models_under(isa: &str) -> Outcome {
    let before = format!("RUSSET_ISA={isa} ");
    passes(
        cargo(&format!("test {MODELS} --no-fail-fast")).env("RUSSET_ISA", isa),
        &before,
    )
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

/// Runs a command; `before` is what stands before it when one types it again.
fn passes(command: &mut Command, before: &str) -> Outcome {
    println!("   {before}{}", line(command));
    match run(command) {
        Ok(()) => Outcome::Passed,
        Err(_) => Outcome::Failed(format!("{before}{}", line(command))),
    }
}

fn table(steps: &[Step]) -> String {
    let mut out = format!("{:24}{:>9}  result\n", "step", "seconds");
    for Step {
        name,
        seconds,
        outcome,
    } in steps
    {
        let result = match outcome {
            Outcome::Passed => "ok".to_owned(),
            Outcome::Failed(again) => format!("FAILED; again: {again}"),
            Outcome::Skipped(reason) => format!("skipped: {reason}"),
        };
        let _ = writeln!(out, "{name:24}{seconds:>9.1}  {result}");
    }
    let seconds: f64 = steps.iter().map(|step| step.seconds).sum();
    let verdict = if verdict(steps).is_ok() {
        "PASS"
    } else {
        "FAIL"
    };
    let _ = write!(out, "{:24}{seconds:>9.1}  {verdict}", "all");
    out
}

fn verdict(steps: &[Step]) -> Done {
    let failed: Vec<&str> = steps
        .iter()
        .filter(|step| matches!(step.outcome, Outcome::Failed(_)))
        .map(|step| step.name)
        .collect();
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("failed: {}", failed.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &'static str, outcome: Outcome) -> Step {
        Step {
            name,
            seconds: 1.5,
            outcome,
        }
    }

    #[test]
    fn a_failure_fails_the_whole_and_names_its_command() {
        let steps = [
            step("format", Outcome::Passed),
            step("clippy", Outcome::Failed("cargo clippy".to_owned())),
        ];
        assert_eq!(verdict(&steps), Err("failed: clippy".to_owned()));
        let table = table(&steps);
        assert!(table.contains("FAILED; again: cargo clippy"), "{table}");
        assert!(table.ends_with("3.0  FAIL"), "{table}");
    }

    #[test]
    fn a_skip_passes_and_gives_its_reason() {
        let steps = [step("python", Outcome::Skipped("no network".to_owned()))];
        assert_eq!(verdict(&steps), Ok(()));
        let table = table(&steps);
        assert!(
            table.contains("skipped: no network") && table.ends_with("PASS"),
            "{table}"
        );
    }

    #[test]
    fn a_command_that_fails_is_a_failed_step() {
        assert!(
            matches!(passes(&mut Command::new("false"), "A=1 "), Outcome::Failed(again) if again == "A=1 false")
        );
        assert!(matches!(
            passes(&mut Command::new("true"), ""),
            Outcome::Passed
        ));
    }
}
