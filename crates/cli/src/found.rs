//! What a path on the command line leads to, looked at before the work: a model, an adapter, a text. The crates below say
//! which file they could not open; here it is said what was probably meant.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use russet_artifact::Artifact;

use crate::app::Usage;
use crate::args::Format;

/// Refuses what is no model's folder, and names models nearby; and a reward model, which gives no answers.
pub fn model(folder: &Path) -> Result<()> {
    any_model(folder)?;
    if russet_model::config::is_reward(folder) {
        bail!(
            "{}: this is a reward model, which tells how good answers are and gives none; ask it by russet eval reward --model {0}, \
             or name it as `inputs.reward` of `russet rlhf` or `russet reject`",
            folder.display()
        );
    }
    Ok(())
}

/// Refuses what is no model's folder; a reward model is one too.
pub fn any_model(folder: &Path) -> Result<()> {
    holds(folder, "config.json")
}

/// Refuses a model's folder that lacks its tokenizer.
pub fn own_tokenizer(folder: &Path) -> Result<()> {
    if folder.join("tokenizer.json").is_file() {
        return Ok(());
    }
    let shown = folder.display();
    let instead = match folder.join("tokenizer.model").is_file() {
        true => {
            "there is a tokenizer.model; transformers writes the other from it: AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        }
        false => {
            "copy it here from where the model comes from, with tokenizer_config.json if there is one"
        }
    };
    bail!(
        "{shown}: there is no tokenizer.json in this folder, and without it the model reads no text; {instead}"
    );
}

/// Refuses a folder without a tokenizer.
pub fn tokenizer(folder: &Path) -> Result<()> {
    let is_json = folder.extension().is_some_and(|ending| ending == "json");
    match folder.is_file() && is_json {
        true => Ok(()), // A tokenizer.json itself.
        false => holds(folder, "tokenizer.json"),
    }
}

fn holds(folder: &Path, file: &str) -> Result<()> {
    let shown = folder.display();
    if folder.join(file).is_file() {
        return Ok(());
    }
    let ending = folder.extension().and_then(|ending| ending.to_str());
    if let (true, Some(from @ ("gguf" | "bin"))) = (folder.is_file(), ending) {
        let from = if from == "bin" { "llama2c" } else { from };
        bail!(
            "{shown}: this is a model file, and a model is a folder here; make one with russet convert --from {from} --to hf --in \
             {shown} --out DIR"
        );
    }
    if folder.is_file() {
        let parent = folder.parent().filter(|path| !path.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).display();
        bail!(
            "{shown}: this is a file, and a model is a folder; name the one it lies in, {parent}"
        );
    }
    if !folder.is_dir() {
        bail!(
            "{shown}: there is no such folder; `russet run recipes/tiny` makes a model under runs/tiny"
        );
    }
    let what = match Artifact::open_any(folder) {
        Ok(artifact) => format!(
            "this is an artifact of kind `{}`, no model",
            artifact.kind()
        ),
        Err(_) => format!("there is no {file} in this folder, so it is no model"),
    };
    let mut near = with_file(folder, file);
    if near.is_empty() && folder.join("manifest.json").is_file() {
        near = folder
            .parent()
            .map_or_else(Vec::new, |run| with_file(run, file));
    }
    let near: Vec<String> = near.iter().map(|path| path.display().to_string()).collect();
    match near[..] {
        [] => bail!("{shown}: {what}; name a Hugging Face folder, a checkpoint or a package"),
        _ => bail!("{shown}: {what}; did you mean {}?", near.join(" or ")),
    }
}

/// Up to three folders in `folder` that have such a file, states of trainings left out.
fn with_file(folder: &Path, file: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.join(file).is_file())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !name.starts_with('.') && !name.contains(".state")
        })
        .collect();
    found.sort();
    let first = found.len().saturating_sub(3);
    found.split_off(first)
}

/// Refuses what is no adapter's folder.
pub fn adapter(folder: &Path) -> Result<()> {
    if folder.join("adapter_config.json").is_file() {
        return Ok(());
    }
    let what = match folder.is_dir() {
        true => "there is no adapter_config.json in this folder, so it is no adapter",
        false => "there is no such folder",
    };
    bail!(
        "{}: {what}; name a PEFT folder, with adapter_config.json and adapter_model.safetensors",
        folder.display()
    );
}

/// Refuses a text that is not there.
pub fn text(path: &Path) -> Result<()> {
    if path.is_dir() {
        bail!("{}: this is a folder; name a file in it", path.display());
    }
    if path.exists() {
        return Ok(());
    }
    let counted = match std::env::current_dir() {
        Ok(here) if path.is_relative() => {
            format!(
                "; paths count from the working directory, {}",
                here.display()
            )
        }
        _ => "; check its name".to_owned(),
    };
    bail!("{}: there is no such file{counted}", path.display());
}

/// Refuses a model in another form than `--from` says.
pub fn of_form(path: &Path, from: Format) -> Result<()> {
    let shown = path.display();
    let usage = |sentence: &str| Err(Usage(format!("--in {shown}: {sentence}")).into());
    match (from, path.is_dir(), path.is_file()) {
        (Format::Llama2c, true, _) => usage(
            "this is a folder, and a model of llama2.c is one file; for a Hugging Face folder write --from hf",
        ),
        (Format::Gguf, true, _) => usage(
            "this is a folder, and a GGUF model is one file; for a Hugging Face folder write --from hf",
        ),
        (Format::Llama2c, false, false) => {
            bail!("{shown}: there is no such file; name a model file of llama2.c")
        }
        (Format::Gguf, false, false) => bail!("{shown}: there is no such file; name a .gguf file"),
        (Format::Hf, _, true) => usage(
            "this is a file, and a Hugging Face model is a folder; for a model file of llama2.c write --from llama2c, for a GGUF file --from gguf",
        ),
        (Format::Hf, _, false) => model(path),
        (Format::Llama2c | Format::Gguf, false, true) => Ok(()),
    }
}
