//! Puts the git commit into the binary, for the manifests of what it makes.

use std::process::Command;

fn main() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(arguments)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=RUSSET_COMMIT={commit}");
    // The log grows with every commit; without git there is nothing to watch but this file.
    match git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        Some(log) => println!("cargo::rerun-if-changed=../../{log}"),
        None => println!("cargo::rerun-if-changed=build.rs"),
    }
}
