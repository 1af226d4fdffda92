//! `run`, and each stage of it by its own verb.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use russet_artifact::{Artifact, Kind, Override, Recipe, split_overrides};
use russet_kernels::palette::Bits;
use russet_train::Resume;
use serde_json::{Value, json};

use crate::app::{App, Usage};
use crate::args::{PalettizeArgs, RecipeArgs, RunArgs};
use crate::outcome::{Outcome, outcome};
use crate::stages::{Done, Job, Outlook, Place, StageKind};

/// Runs a folder of recipes in order.
pub fn run(app: &mut App, args: &RunArgs) -> Result<()> {
    app.stop_on_signals()?;
    let paths = recipe_files(&args.folder)?;
    let names: Vec<String> = paths.iter().map(|path| stem(path)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let overrides = split_overrides(&args.set, &names)?;
    if let Some(path) = paths.iter().find(|path| !is_numbered(path)) {
        return Err(Usage(format!(
            "{}: a recipe of a run has a number before its name, which says when it runs; rename it, as in \
             03-pretrain.toml, or move it to another folder",
            path.display()
        ))
        .into());
    }
    let folder = args.out.clone().unwrap_or_else(|| run_folder(&args.folder));
    check_run_folder(&folder)?;
    let mut jobs = Vec::new();
    for (path, set) in paths.iter().zip(&overrides) {
        let job = Job::new(app, &load(path, set)?)?;
        let place = Place {
            runs: vec![folder.clone()],
            out: folder.join(&job.name),
            resume: Resume::Continue,
        };
        jobs.push((job, place));
    }
    let bests: Vec<Option<String>> = jobs.iter().map(|(job, _)| job.best()).collect();
    for (at, (job, place)) in jobs.iter().enumerate() {
        let bests = bests[..at].iter().flatten().map(String::as_str);
        let earlier: Vec<&str> = names[..at].iter().copied().chain(bests).collect();
        job.check_inputs(place, &earlier, &names[at..])?;
    }
    // All of them before the first: a mistake in the last recipe should show before the first has run for an hour.
    let mut outlook = outlook(app, args.dry_run);
    if args.dry_run {
        outlook.look_at_places();
    }
    let mut plans = Vec::new();
    for (job, place) in &jobs {
        plans.push(job.plan(place, &mut outlook)?);
        outlook.runs_before(place);
    }
    if args.dry_run {
        return print_plans(app, &plans);
    }

    let mut done = Vec::new();
    let mut stopped = None;
    for (job, place) in &jobs {
        if app.interrupt.is_raised() {
            let name = &job.name;
            stopped = Some(format!(
                "stopped before {name}; the same command goes on from there"
            ));
            break;
        }
        match job.run(app, place) {
            Ok(stage) => {
                let how = match stage.skipped {
                    true => "unchanged".to_owned(),
                    false => format!("{:.1} s", stage.seconds),
                };
                let line = format!("{:>14}  {how:>9}  {}", stage.name, stage.summary);
                app.progress.message(&line);
                done.push((job.kind, stage));
            }
            Err(error) => match outcome(&error) {
                Outcome::Interrupted(sentence) => {
                    stopped = Some(format!("{}: {sentence}", job.name));
                    break;
                }
                _ => return Err(error),
            },
        }
    }
    if let Some(sentence) = &stopped {
        app.progress.message(sentence);
    }
    report(app, &done, stopped.is_some())
}

/// Settings of which a recipe has one.
const ALTERNATIVES: &[(&str, &str)] = &[("train.steps", "train.tokens")];

fn load(path: &Path, set: &[Override]) -> Result<Recipe> {
    Ok(Recipe::load(path, set)?.with_alternatives(ALTERNATIVES))
}

/// Runs one recipe that must be of the given stage.
pub fn single(app: &mut App, args: &RecipeArgs, wanted: StageKind, resume: Resume) -> Result<()> {
    app.stop_on_signals()?;
    let path = &args.recipe;
    if !path.is_file() {
        let sentence = match path.is_dir() {
            true => "this is a folder; name a recipe in it, or use `russet run` for all of them",
            false => "there is no such file; name a recipe, such as recipes/tiny/03-pretrain.toml",
        };
        return Err(Usage(format!("{}: {sentence}", path.display())).into());
    }
    for set in &args.set {
        let (name, key) = (stem(path), set.key());
        if let Some(rest) = key.strip_prefix(&format!("{name}.")) {
            return Err(Usage(format!(
                "--set {}: the stage's name stands before a key with `russet run` only; write --set {rest}=…",
                set.text()
            ))
            .into());
        }
    }
    let job = Job::new(app, &load(path, &args.set)?)?;
    if job.kind != wanted {
        return Err(Usage(format!(
            "{}: the recipe is of stage `{}`, but this verb runs `{}`",
            path.display(),
            job.kind.word(),
            wanted.word()
        ))
        .into());
    }
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let run = run_folder(parent);
    // What lies beside the place that the artifact goes to belongs to the same run.
    let (out, runs) = match &args.out {
        None => (run.join(&job.name), vec![run]),
        Some(out) => {
            let beside = out.parent().unwrap_or(Path::new("")).to_owned();
            (out.clone(), vec![beside, run])
        }
    };
    let mut outlook = outlook(app, args.dry_run);
    for sibling in recipe_files(parent).unwrap_or_default() {
        if sibling.file_name() < path.file_name() {
            look_ahead(app, &sibling, &runs, &mut outlook);
        }
    }
    outlook.forget_splits();
    if args.dry_run {
        outlook.look_at_places();
    }
    let place = Place { runs, out, resume };
    let plan = job.plan(&place, &mut outlook)?;
    if args.dry_run {
        return print_plans(app, &[plan]);
    }
    let done = job.run(app, &place)?;
    print_done(app, &done)
}

/// What a recipe beside the one that runs tells of its inputs; nothing, where it is not in order itself.
fn look_ahead(app: &App, path: &Path, runs: &[PathBuf], outlook: &mut Outlook) {
    let job = Recipe::load(path, &[])
        .map_err(anyhow::Error::from)
        .and_then(|recipe| Job::new(app, &recipe));
    if let Ok(job) = job {
        let place = Place {
            runs: runs.to_owned(),
            out: runs[0].join(&job.name),
            resume: Resume::Continue,
        };
        let _ = job.plan(&place, outlook);
    }
}

/// `palettize` with its settings on the command line.
pub fn palettize(app: &mut App, args: &PalettizeArgs) -> Result<()> {
    app.stop_on_signals()?;
    if let Some(set) = args.set.iter().find(|set| !is_further_setting(set)) {
        let sentence = match &set.key()[..] {
            "palettize.target_bpw" => "here the target is an option: write --target-bpw 3.5, say",
            "palettize.target_bytes" => {
                "here the target is an option: write --target-bytes 2000000, say"
            }
            "palettize.bits" => "here the bits are an option: write --bits 2,3,4, say",
            "palettize.table_bits" => "here a table's bits are an option: write --table-bits 4",
            key if key.starts_with("palettize.pins") => {
                "here pins are an option: write --pin '*.v_proj=4', say"
            }
            _ => {
                "only keys below `palettize` can be set here; what the options say is not overridden"
            }
        };
        return Err(Usage(format!("--set {}: {sentence}", set.text())).into());
    }
    if !args.target_bpw.is_finite() {
        let sentence = format!(
            "--target-bpw is {}; give a number of bits, such as 3.5",
            args.target_bpw
        );
        return Err(Usage(sentence).into());
    }
    crate::found::model(&args.model)?;
    let target = match args.target_bytes {
        Some(bytes) => format!("target_bytes = {bytes}"),
        None => format!("target_bpw = {:?}", args.target_bpw),
    };
    // As a recipe has them: a number, or text.
    let written = |bits: &Bits| match bits.dims() {
        1 => bits.name().to_owned(),
        _ => format!("\"{}\"", bits.name()),
    };
    let bits: Vec<String> = args.bits.iter().map(written).collect();
    let mut text = format!(
        "stage = \"palettize\"\n[inputs]\ncheckpoint = {}\n[data]\ncalibration = [{}]\n[palettize]\n{target}\nbits = [{}]\n",
        toml_string(&args.model)?,
        toml_string(&args.calibration)?,
        bits.join(", "),
    );
    if let Some(bits) = args.table_bits {
        text += &format!("table_bits = {}\n", i64::from(bits));
    }
    if !args.pins.is_empty() {
        text += "[palettize.pins]\n";
        let mut pins = BTreeMap::new();
        for (pattern, bits) in &args.pins {
            if pins.insert(pattern, bits).is_some() {
                let sentence = format!(
                    "--pin {pattern}={}: that pattern is pinned twice; leave one out",
                    bits.name()
                );
                return Err(Usage(sentence).into());
            }
        }
        for (pattern, bits) in pins {
            text += &format!("{} = {}\n", toml_string(Path::new(pattern))?, written(bits));
        }
    }
    let job = Job::new(app, &Recipe::from_text("palettize", &text, &args.set)?)?;
    let whole = |path: &Path| path.canonicalize().ok();
    if whole(&args.out).is_some_and(|out| whole(&args.model) == Some(out)) {
        let sentence = "is the model itself, which is not replaced; name another folder";
        return Err(Usage(format!("--out {} {sentence}", args.out.display())).into());
    }
    let place = Place {
        runs: Vec::new(),
        out: args.out.clone(),
        resume: Resume::Continue,
    };
    let plan = job.plan(&place, &mut outlook(app, args.dry_run))?;
    if args.dry_run {
        return print_plans(app, &[plan]);
    }
    let done = job.run(app, &place)?;
    print_done(app, &done)
}

/// Whether an override of `palettize` says what no option says.
fn is_further_setting(set: &Override) -> bool {
    let key = set.key();
    let options = [
        "palettize.target_bpw",
        "palettize.target_bytes",
        "palettize.bits",
        "palettize.table_bits",
        "palettize.pins",
    ];
    key.starts_with("palettize.") && !options.iter().any(|option| key.starts_with(option))
}

fn toml_string(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{}: the path is not UTF-8", path.display()))?;
    Ok(Value::from(text).to_string()) // JSON's escapes are TOML's
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn is_numbered(path: &Path) -> bool {
    stem(path).starts_with(|first: char| first.is_ascii_digit())
}

fn has_numbered_recipes(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths.any(|path| is_numbered(&path) && path.extension().is_some_and(|is| is == "toml"))
}

/// A run's folder is new or empty, or holds something of a run: stages are not strewn over a folder of other things.
fn check_run_folder(folder: &Path) -> Result<()> {
    let refuse = |what: &str| {
        let sentence = "name a new folder for the run by --out, such as runs/mine";
        Err(Usage(format!("{}: {what}; {sentence}", folder.display())).into())
    };
    if !folder.exists() {
        return Ok(());
    }
    let Ok(entries) = std::fs::read_dir(folder) else {
        return refuse("this is a file, or a folder that cannot be listed");
    };
    let paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    let of_a_run = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let word = |word: &str| name.ends_with(word) || name.contains(&format!("{word}-"));
        let left = name.starts_with('.') && (word(".tmp") || word(".old"));
        let beside = [".state", ".log", ".answers"].into_iter().any(word);
        path.is_dir() && (path.join("manifest.json").is_file() || beside || left)
    };
    match paths.is_empty() || paths.iter().any(of_a_run) {
        true => Ok(()),
        false => refuse("this folder holds files, and none of them is of a run"),
    }
}

fn run_folder(recipes: &Path) -> PathBuf {
    let name = recipes
        .canonicalize()
        .ok()
        .and_then(|path| path.file_name().map(PathBuf::from));
    Path::new("runs").join(name.unwrap_or_else(|| PathBuf::from("run")))
}

/// The recipes of a folder in the order of their numbers.
fn recipe_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let shown = folder.display();
    let entries = std::fs::read_dir(folder).map_err(|error| {
        Usage(format!(
            "{shown}: {error}; give a folder of recipes, such as recipes/tiny"
        ))
    })?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        let folders = std::fs::read_dir(folder)?;
        let mut below: Vec<String> = folders
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| has_numbered_recipes(path))
            .map(|path| path.display().to_string())
            .collect();
        below.sort();
        let hint = match below[..] {
            [] => "give a folder of recipes, such as recipes/tiny".to_owned(),
            _ => format!("did you mean {}?", below.join(" or ")),
        };
        return Err(Usage(format!(
            "{shown}: there is no recipe (NN-name.toml) in this folder; {hint}"
        ))
        .into());
    }
    Ok(paths)
}

/// For a dry run with the machine's rate, which takes some tenths of a second to measure.
fn outlook(app: &App, dry_run: bool) -> Outlook {
    Outlook::new(dry_run.then(|| app.pool.clone()), app.tool.clone())
}

fn print_plans(app: &App, plans: &[(Value, String)]) -> Result<()> {
    let (stages, texts): (Vec<&Value>, Vec<&str>) = plans
        .iter()
        .map(|(json, text)| (json, text.as_str()))
        .unzip();
    app.print(&json!({ "stages": stages }), &texts.join("\n\n"))
}

fn print_done(app: &mut App, done: &Done) -> Result<()> {
    let unchanged = if done.skipped { "unchanged, " } else { "" };
    let text = format!("{}: {unchanged}{}", done.artifact.display(), done.summary);
    if app.json {
        app.progress.message(&text);
    }
    app.print(&done.json()?, &text)
}

/// What the whole run has come to: of each kind of stage the last.
fn report(app: &App, done: &[(StageKind, Done)], interrupted: bool) -> Result<()> {
    let last = |wanted: StageKind| done.iter().rev().find(|(kind, _)| *kind == wanted);
    let fact = |kind: StageKind, path: &str| {
        let fact = last(kind).and_then(|(_, done)| done.facts.pointer(path));
        fact.cloned().unwrap_or_default()
    };
    let words = |path: &str| {
        let fact = fact(StageKind::Sample, path);
        fact.as_str().unwrap_or_default().to_owned()
    };
    let whole = words("/prompt") + &words("/text");
    let stages: Vec<&Done> = done.iter().map(|(_, done)| done).collect();
    let json = json!({
        "stages": stages,
        "bits_per_byte": {
            "checkpoint": fact(StageKind::Eval, "/checkpoint/bits_per_byte"),
            "package": fact(StageKind::Eval, "/package/bits_per_byte"),
        },
        "bpw": fact(StageKind::Palettize, "/bpw"),
        "sample": whole,
        "interrupted": interrupted,
    });
    let mut lines = Vec::new();
    if !whole.is_empty() {
        lines.push(format!("\n{whole}\n"));
    }
    let models = [
        StageKind::Recover,
        StageKind::Qat,
        StageKind::Palettize,
        StageKind::Rlhf,
        StageKind::Dpo,
        StageKind::Sft,
        StageKind::Pretrain,
    ];
    if let Some((_, model)) = models.iter().find_map(|&kind| last(kind))
        && !interrupted
    {
        let model = model_options(&model.artifact);
        lines.push(format!(
            "Next: russet generate {model} --prompt \"Once upon a time\""
        ));
        lines.push(format!("      russet bench {model} -p 128 -n 128"));
        lines.push("(russet is target/release/russet, or `cargo run --release --`)".to_owned());
    }
    app.print(&json, &lines.join("\n"))
}

/// The options by which verbs open what a stage has made: a model, or an adapter with what it was trained on.
fn model_options(made: &Path) -> String {
    let word = |path: &Path| quoted(&path.display().to_string());
    if let Ok(artifact) = Artifact::open(made, Kind::Adapter) {
        let inputs = &artifact.manifest().inputs;
        let base = ["package", "checkpoint"]
            .iter()
            .find_map(|name| inputs.get(*name));
        if let Some(base) = base {
            let base = made.join(&base.path);
            let base = base.canonicalize().unwrap_or(base);
            let here = std::env::current_dir().unwrap_or_default();
            let base = base.strip_prefix(here).unwrap_or(&base);
            return format!("--model {} --adapter {}", word(base), word(made));
        }
    }
    format!("--model {}", word(made))
}

/// A path as a shell takes it for one word.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+".contains(c);
    match path.chars().all(plain) {
        true => path.to_owned(),
        false => format!("'{}'", path.replace('\'', "'\\''")),
    }
}
