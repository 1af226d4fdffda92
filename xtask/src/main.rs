//! The project's own chores, as `cargo xtask VERB`. Standard library only, so it builds in seconds before anything else does.
//!
//! | verb | does |
//! |---|---|
//! | `test` | everything a change must pass: format, lints, edges, licences, documentation, tests |
//! | `edges` | checks the invariants of the architecture: layers, `unsafe`, who reaches what, numbering, length |
//! | `golden` | makes the goldens again with torch and transformers |
//! | `parity [DIR…]` | compares `russet` with transformers on checkpoint folders |
//! | `bench [NAME … \| --OPTION …]` | lists the scripts of `bench/`, runs one, or runs `russet bench` in release |
//! | `fuzz [--seconds N] [TARGET…]` | fuzzes each parser of foreign bytes |
//!
//! What the chores install (a Python environment, `cargo-deny`, `cargo-fuzz`) goes into the cache folder, never into the clone:
//! `$RUSSET_CACHE`, else `$XDG_CACHE_HOME/russet`, else `$HOME/.cache/russet`.
#![allow(clippy::print_stdout)] // printing is what a chore does

mod bench;
mod cache;
mod edges;
mod fuzz;
mod golden;
mod shell;
mod test;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask VERB

  test                          format, lints, edges, licences, documentation, tests; a table at the end
  edges                         the architecture's invariants
  golden                        make golden/ again (torch and transformers, installed into the cache)
  parity [DIR…]                 compare russet with transformers; default runs/tiny/03-pretrain
  bench [NAME ARGS…]            list the scripts of bench/, or run one
  bench --OPTION ARGS…          run `russet bench --OPTION ARGS…` in release
  fuzz [--seconds N] [TARGET…]  fuzz the parsers, N seconds each (default 60); default all

environment: RUSSET_CACHE (where tools are installed), RUSSET_PYTHON (a Python to use as it is)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (verb, rest) = match arguments.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => ("", arguments.as_slice()),
    };
    let done = match (verb, rest) {
        ("test", []) => test::test(),
        ("edges", []) => edges::edges(),
        ("golden", []) => golden::golden(),
        ("parity", folders) => golden::parity(folders),
        ("bench", arguments) => bench::bench(arguments),
        ("fuzz", arguments) => fuzz::fuzz(arguments),
        ("help" | "--help" | "-h", _) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
