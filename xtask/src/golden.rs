//! `cargo xtask golden` and `cargo xtask parity`: the answers of torch and transformers.

use crate::cache::{TRANSFORMERS, python};
use crate::shell::{Done, capture, cargo, root, run};
use std::path::Path;
use std::process::Command;

/// Runs the makers in golden/, then says which files moved.
pub fn golden() -> Done {
    let python = python(&TRANSFORMERS)?;
    for maker in ["golden/make_models.py", "golden/make_ops.py"] {
        println!("── {maker}");
        run(Command::new(&python).arg(maker).current_dir(root()))?;
    }
    let changed = capture(
        Command::new("git")
            .args(["status", "--short", "golden"])
            .current_dir(root()),
    )?;
    match changed.trim_end() {
        "" => println!("every golden came out as committed"),
        changed => println!("these came out differently:\n{changed}"),
    }
    Ok(())
}

/// Where the run of the tiny recipes leaves its checkpoint.
const DEFAULT: &str = "runs/tiny/03-pretrain";

/// Builds `russet` and has golden/parity.py compare it with transformers on `folders`.
pub fn parity(folders: &[String]) -> Done {
    let default = [DEFAULT.to_owned()];
    let folders = if folders.is_empty() {
        &default[..]
    } else {
        folders
    };
    // Cargo runs us in the caller's folder, so relative names mean what the caller meant; the default is the repository's.
    let here = if folders == default {
        root()
    } else {
        std::env::current_dir().map_err(|error| error.to_string())?
    };
    for folder in folders {
        if !here.join(folder).join("config.json").is_file() {
            return Err(format!(
                "{folder} is no checkpoint folder (it has no config.json). Name one, or make {DEFAULT} with `russet run recipes/tiny`"
            ));
        }
    }
    let python = python(&TRANSFORMERS)?;
    run(&mut cargo("build --package russet-cli"))?;
    let ours =
        std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let russet = ours.parent().unwrap_or(Path::new(".")).join("russet"); // cargo puts the binaries of a profile side by side
    run(Command::new(python)
        .arg(root().join("golden/parity.py"))
        .arg("--russet")
        .arg(russet)
        .args(folders)
        .current_dir(here))
}
