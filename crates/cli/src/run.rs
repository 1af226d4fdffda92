//! `run`, and each stage of it by its own verb: a recipe in, an artifact out.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use russet_artifact::{Artifact, Draft, Inputs, Kind, Recipe, Stage, split_overrides};
use russet_engine::{Engine, EngineConfig, Request, Sampling};
use russet_kernels::Pool;
use russet_tensor::Ctx;
use russet_tokenizer::{Tokenizer, TrainConfig, read_texts};
use russet_train::{Outcome, Plan, Resume, Sources};
use serde::Serialize;
use serde_json::{Value, json};

use crate::app::{App, Interrupted, Model, Usage};
use crate::args::{PalettizeArgs, RecipeArgs, RunArgs};
use crate::measure;
use crate::recipes::{
    EvalRecipe, PalettizeRecipe, PretrainRecipe, SampleRecipe, TokenizerRecipe, TokensRecipe,
};
use crate::text::continue_prompt;

/// Bytes of calibration text that are read at most; more would not change what is chosen from it much.
const CALIBRATION_BYTES: usize = 64 << 20;

/// What a stage has come to.
#[derive(Serialize)]
struct Done {
    name: String,
    seconds: f64,
    skipped: bool,
    artifact: PathBuf,
    /// What a person would want to know of it.
    #[serde(skip)]
    summary: String,
}

/// Where a recipe's inputs and its artifact lie.
struct Place {
    /// The folder that inputs are named in.
    run: PathBuf,
    /// The artifact's own folder.
    out: PathBuf,
}

impl Place {
    /// An input: a stage of the same run by its folder's name, else a path as it stands.
    fn input(&self, name: &Path) -> PathBuf {
        let beside = self.run.join(name);
        if beside.exists() || !name.exists() {
            beside
        } else {
            name.to_path_buf()
        }
    }
}

/// Runs a folder of recipes in order.
pub fn run(app: &mut App, args: &RunArgs) -> Result<()> {
    app.stop_on_signals()?;
    let paths = recipe_files(&args.folder)?;
    let names: Vec<String> = paths.iter().map(|path| stem(path)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let overrides = split_overrides(&args.set, &names).map_err(|error| Usage(error.to_string()))?;
    let recipes = paths
        .iter()
        .zip(&overrides)
        .map(|(path, set)| Ok(Recipe::load(path, set)?));
    let recipes = recipes.collect::<Result<Vec<_>>>()?;
    let folder = args.out.clone().unwrap_or_else(|| run_folder(&args.folder));
    // A mistake in the last recipe should show before the first has run for an hour.
    let plans = recipes
        .iter()
        .map(|recipe| describe(recipe, &recipes, args.dry_run.then_some(&*app.pool)))
        .collect::<Result<Vec<_>>>()?;
    if args.dry_run {
        return print_plans(app, &plans);
    }
    let mut done = Vec::new();
    for recipe in &recipes {
        let place = Place {
            run: folder.clone(),
            out: folder.join(recipe.name()),
        };
        let stage = stage(app, recipe, &place)?;
        if !app.json {
            let how = if stage.skipped {
                "unchanged".to_owned()
            } else {
                format!("{:.1} s", stage.seconds)
            };
            eprintln!("{:>14}  {how:>9}  {}", stage.name, stage.summary);
        }
        done.push(stage);
    }
    report(app, &recipes, &folder, &done)
}

/// Runs one recipe that must be of the given stage.
pub fn single(app: &mut App, args: &RecipeArgs, wanted: &str) -> Result<()> {
    app.stop_on_signals()?;
    let recipe = Recipe::load(&args.recipe, &args.set)?;
    let found = stage_name(&recipe)?;
    if found != wanted {
        let path = args.recipe.display();
        return Err(Usage(format!(
            "{path}: the recipe is of stage `{found}`, but this verb runs `{wanted}`"
        ))
        .into());
    }
    let parent = args
        .recipe
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let run = run_folder(parent);
    let out = args.out.clone().unwrap_or_else(|| run.join(recipe.name()));
    if args.dry_run {
        let mut siblings = Vec::new();
        for path in recipe_files(parent).unwrap_or_default() {
            siblings.push(Recipe::load(&path, &[])?);
        }
        return print_plans(app, &[describe(&recipe, &siblings, Some(&app.pool))?]);
    }
    if wanted == "pretrain" {
        let (_, json) = pretrain(app, &recipe, &Place { run, out })?;
        return app.print(&json, json["summary"].as_str().unwrap_or_default());
    }
    let done = stage(app, &recipe, &Place { run, out })?;
    let text = format!("{}: {}", done.artifact.display(), done.summary);
    app.print(&serde_json::to_value(&done)?, &text)
}

/// `palettize` with its settings on the command line.
pub fn palettize(app: &mut App, args: &PalettizeArgs) -> Result<()> {
    app.stop_on_signals()?;
    let text = format!(
        "stage = \"palettize\"\n[inputs]\ncheckpoint = {}\n[data]\ncalibration = [{}]\n[palettize]\ntarget_bpw = {:?}\n",
        toml_string(&args.model)?,
        toml_string(&args.calibration)?,
        args.target_bpw
    );
    let recipe = Recipe::from_text("palettize", &text, &args.set)?;
    let place = Place {
        run: PathBuf::new(),
        out: args.out.clone(),
    };
    let done = stage(app, &recipe, &place)?;
    let report: Value = serde_json::from_slice(&std::fs::read(args.out.join(PALETTIZE_REPORT))?)?;
    app.print(&report, &done.summary)
}

/// The file of a package that says how it was palettized.
const PALETTIZE_REPORT: &str = "palettize.json";

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
        return Err(Usage(format!(
            "{shown}: there is no recipe (NN-name.toml) in this folder"
        ))
        .into());
    }
    Ok(paths)
}

fn stage_name(recipe: &Recipe) -> Result<String> {
    let table = recipe.table()?;
    let name = table.get("stage").and_then(|stage| stage.as_str());
    name.map(str::to_owned)
        .with_context(|| format!("{}: the key `stage` is missing", recipe.name()))
}

/// What a stage would do: its resolved settings, and of training the price on the machine at hand where a pool is given.
fn describe(recipe: &Recipe, all: &[Recipe], pool: Option<&Pool>) -> Result<Value> {
    let name = stage_name(recipe)?;
    let (settings, plan) = match name.as_str() {
        "tokenizer" => (
            Recipe::resolved_json(&recipe.parse::<TokenizerRecipe>()?)?,
            Value::Null,
        ),
        "tokens" => (
            Recipe::resolved_json(&recipe.parse::<TokensRecipe>()?)?,
            Value::Null,
        ),
        "pretrain" => {
            let parsed: PretrainRecipe = recipe.parse()?;
            let resolved = Recipe::resolved_json(&parsed)?;
            (
                resolved,
                match pool {
                    Some(pool) => pretrain_price(pool, parsed, all)?,
                    None => Value::Null,
                },
            )
        }
        "palettize" => {
            let parsed: PalettizeRecipe = recipe.parse()?;
            parsed
                .palettize
                .validate()
                .map_err(|error| Usage(format!("{}: {error}", recipe.name())))?;
            (Recipe::resolved_json(&parsed)?, Value::Null)
        }
        "eval" => (
            Recipe::resolved_json(&recipe.parse::<EvalRecipe>()?)?,
            Value::Null,
        ),
        "sample" => (
            Recipe::resolved_json(&recipe.parse::<SampleRecipe>()?)?,
            Value::Null,
        ),
        other => {
            let known = "tokenizer, tokens, pretrain, palettize, eval, sample";
            return Err(Usage(format!(
                "{}: the stage `{other}` is not known; there are {known}",
                recipe.name()
            ))
            .into());
        }
    };
    Ok(json!({"name": recipe.name(), "settings": settings, "plan": plan}))
}

/// Parameters, tokens, operations, memory and time of a training recipe; the vocabulary is what the run's tokenizer
/// recipe asks for.
fn pretrain_price(pool: &Pool, recipe: PretrainRecipe, all: &[Recipe]) -> Result<Value> {
    let tokenizer = all
        .iter()
        .find(|recipe| stage_name(recipe).is_ok_and(|name| name == "tokenizer"));
    let Some(tokenizer) = tokenizer else {
        return Ok(Value::Null);
    };
    let vocab = tokenizer.parse::<TokenizerRecipe>()?.tokenizer.vocab_size;
    let start = match &recipe.inputs.checkpoint {
        Some(name) => match shape_to_come(name, vocab, all, all.len())? {
            None => return Ok(Value::Null),
            start => start,
        },
        None => None,
    };
    let price = russet_train::Price::new(settings(recipe), vocab, start.as_ref())?;
    let mut json = serde_json::to_value(price)?;
    json["estimate"] = serde_json::to_value(price.estimate(russet_train::matmul_gflops(pool)))?;
    Ok(json)
}

/// The shape of the checkpoint that a recipe begins with: by the recipe of the same folder that will make it, which may
/// itself begin with another's, or as it lies on the disk. `None` where it comes from a stage of another kind. A chain has
/// at most `left` recipes.
fn shape_to_come(
    name: &Path,
    vocab: usize,
    all: &[Recipe],
    left: usize,
) -> Result<Option<russet_model::Config>> {
    let Some(recipe) = all.iter().find(|recipe| Path::new(recipe.name()) == name) else {
        return Ok(Some(russet_model::Config::open(name)?));
    };
    if left == 0 {
        bail!(
            "{}: it begins with a checkpoint that begins with its own",
            recipe.name()
        );
    }
    if stage_name(recipe)? != "pretrain" {
        return Ok(None);
    }
    let recipe: PretrainRecipe = recipe.parse()?;
    let start = match &recipe.inputs.checkpoint {
        Some(before) => match shape_to_come(before, vocab, all, left - 1)? {
            None => return Ok(None),
            start => start,
        },
        None => None,
    };
    let shape = russet_train::price::shape(settings(recipe), vocab, start.as_ref())?;
    Ok(Some(shape))
}

fn settings(recipe: PretrainRecipe) -> russet_train::Settings {
    let PretrainRecipe {
        model,
        train,
        optimizer,
        schedule,
        data,
        compute,
        ..
    } = recipe;
    russet_train::Settings {
        stage: russet_train::settings::StageName::Pretrain,
        model,
        train,
        optimizer,
        schedule,
        data,
        compute,
    }
}

fn print_plans(app: &App, plans: &[Value]) -> Result<()> {
    let text = plans
        .iter()
        .map(|plan| format!("{plan:#}"))
        .collect::<Vec<_>>()
        .join("\n");
    app.print(&json!({"stages": plans}), &text)
}

/// Runs one stage, or finds that nothing has changed.
fn stage(app: &mut App, recipe: &Recipe, place: &Place) -> Result<Done> {
    let started = Instant::now();
    let (skipped, summary) = match stage_name(recipe)?.as_str() {
        "tokenizer" => tokenizer(app, recipe, place)?,
        "tokens" => tokens(app, recipe, place)?,
        "pretrain" => {
            let (skipped, json) = pretrain(app, recipe, place)?;
            (
                skipped,
                json["summary"].as_str().unwrap_or_default().to_owned(),
            )
        }
        "palettize" => palettize_stage(app, recipe, place)?,
        "eval" => eval(app, recipe, place)?,
        "sample" => sample(app, recipe, place)?,
        other => bail!("{}: the stage `{other}` is not known", recipe.name()),
    };
    let seconds = started.elapsed().as_secs_f64();
    Ok(Done {
        name: recipe.name().to_owned(),
        seconds,
        skipped,
        artifact: place.out.clone(),
        summary,
    })
}

/// Makes an artifact unless it lies there already; returns whether it did.
fn make(
    app: &mut App,
    recipe: &Recipe,
    settings: &impl Serialize,
    inputs: Inputs,
    kind: Kind,
    out: &Path,
    work: impl FnOnce(&mut App, &Path) -> Result<()>,
) -> Result<bool> {
    let stage = Stage::new(
        recipe.name(),
        &app.tool,
        Recipe::resolved_json(settings)?,
        inputs,
    );
    if stage.current(out, kind).is_ok() {
        return Ok(true);
    }
    let draft = Draft::create(out, kind)?;
    work(app, draft.path())?;
    app.progress.end();
    draft.commit(&stage)?;
    Ok(false)
}

fn tokenizer(app: &mut App, recipe: &Recipe, place: &Place) -> Result<(bool, String)> {
    let settings: TokenizerRecipe = recipe.parse()?;
    let mut inputs = Inputs::new();
    for (index, path) in settings.data.texts.iter().enumerate() {
        inputs = inputs.path(&format!("text-{index}"), path)?;
    }
    let config = TrainConfig {
        vocab_size: settings.tokenizer.vocab_size,
        ..TrainConfig::default()
    };
    let texts = settings.data.texts.clone();
    let skipped = make(
        app,
        recipe,
        &settings,
        inputs,
        Kind::Tokenizer,
        &place.out,
        |app, draft| {
            app.progress.begin(recipe.name(), None, "bytes");
            let progress = &mut *app.progress;
            russet_tokenizer::train_stage(&config, &texts, draft, &mut |at| {
                if let russet_tokenizer::Progress::Read { bytes, .. } = at {
                    progress.update(bytes, &[]);
                }
            })?;
            Ok(())
        },
    )?;
    Ok((
        skipped,
        format!("a vocabulary of {}", settings.tokenizer.vocab_size),
    ))
}

fn tokens(app: &mut App, recipe: &Recipe, place: &Place) -> Result<(bool, String)> {
    let settings: TokensRecipe = recipe.parse()?;
    let folder = place.input(&settings.inputs.tokenizer);
    let mut inputs =
        Inputs::new().artifact("tokenizer", &Artifact::open(&folder, Kind::Tokenizer)?)?;
    for (split, paths) in &settings.data {
        for (index, path) in paths.iter().enumerate() {
            inputs = inputs.path(&format!("{split}-{index}"), path)?;
        }
    }
    let splits: Vec<_> = settings.data.clone().into_iter().collect();
    let skipped = make(
        app,
        recipe,
        &settings,
        inputs,
        Kind::Tokens,
        &place.out,
        |app, draft| {
            let tokenizer = Tokenizer::open(&folder)?;
            app.progress.begin(recipe.name(), None, "tokens");
            let progress = &mut *app.progress;
            russet_tokenizer::encode_stage(&tokenizer, &splits, draft, &mut |at| {
                if let russet_tokenizer::Progress::Encoded { tokens, .. } = at {
                    progress.update(tokens, &[]);
                }
            })?;
            Ok(())
        },
    )?;
    let mut counts = Vec::new();
    for split in settings.data.keys() {
        let shard = russet_tokenizer::TokenShard::open(
            place.out.join(format!("{split}.tokens.safetensors")),
        )?;
        counts.push(format!(
            "{split} {} tokens in {} documents",
            shard.tokens(),
            shard.documents()
        ));
    }
    Ok((skipped, counts.join(", ")))
}

/// Trains; returns the report as JSON with a `summary` beside.
fn pretrain(app: &mut App, recipe: &Recipe, place: &Place) -> Result<(bool, Value)> {
    let parsed: PretrainRecipe = recipe.parse()?;
    let input = |name: &PathBuf| place.input(name);
    let sources = Sources {
        tokens: input(&parsed.inputs.tokens),
        checkpoint: parsed.inputs.checkpoint.as_ref().map(input),
        mixture: parsed
            .data
            .mixture
            .iter()
            .map(|part| part.tokens.as_ref().map(input))
            .collect(),
    };
    let mut settings = settings(parsed);
    settings.compute.threads.get_or_insert(app.pool.threads());
    let plan = Plan::new(settings, sources)?;
    let outcome = russet_train::pretrain(
        &plan,
        &place.out,
        &app.tool,
        Resume::Continue,
        &mut *app.progress,
        &app.interrupt,
    )?;
    app.progress.end();
    match outcome {
        Outcome::Current => {
            let summary = format!("{} parameters", plan.config().parameters());
            Ok((
                true,
                json!({"skipped": true, "artifact": place.out, "summary": summary}),
            ))
        }
        Outcome::Interrupted { step } => {
            let sentence =
                format!("stopped after step {step}; the same command goes on from there");
            Err(Interrupted(sentence).into())
        }
        Outcome::Finished(report) => {
            let validation = report.bits_per_byte.map_or(String::new(), |bits| {
                format!(", {bits:.4} bits per byte held out")
            });
            let summary = format!(
                "{} parameters on {} tokens at {:.0} tokens/s, loss {:.3}{validation}",
                plan.config().parameters(),
                report.tokens,
                report.tokens_per_second,
                report.last_loss
            );
            let mut json = serde_json::to_value(&report)?;
            json["skipped"] = false.into();
            json["artifact"] = serde_json::to_value(&place.out)?;
            json["summary"] = summary.into();
            Ok((false, json))
        }
    }
}

fn palettize_stage(app: &mut App, recipe: &Recipe, place: &Place) -> Result<(bool, String)> {
    let settings: PalettizeRecipe = recipe.parse()?;
    settings
        .palettize
        .validate()
        .map_err(|error| Usage(error.to_string()))?;
    let checkpoint = place.input(&settings.inputs.checkpoint);
    if !checkpoint.is_dir() {
        bail!(
            "{}: there is no such checkpoint folder",
            checkpoint.display()
        );
    }
    let mut inputs = Inputs::new();
    // A folder that is no artifact of ours, a downloaded checkpoint say, counts by its bytes.
    inputs = match Artifact::open(&checkpoint, Kind::Checkpoint) {
        Ok(artifact) => inputs.artifact("checkpoint", &artifact)?,
        Err(_) => inputs.path("checkpoint", &checkpoint)?,
    };
    for (index, path) in settings.data.calibration.iter().enumerate() {
        inputs = inputs.path(&format!("calibration-{index}"), path)?;
    }
    let skipped = make(
        app,
        recipe,
        &settings,
        inputs,
        Kind::Package,
        &place.out,
        |app, draft| {
            let tokenizer = Tokenizer::open(&checkpoint)?;
            let documents = calibration(&tokenizer, &settings)?;
            let (pool, progress) = (app.pool.clone(), &mut *app.progress);
            let settings = &settings.palettize;
            let report = russet_compress::palettize(
                &pool,
                settings,
                &checkpoint,
                &documents,
                draft,
                progress,
                &app.interrupt,
            )
            .map_err(|error| match error {
                russet_compress::CompressError::Interrupted => anyhow::Error::from(Interrupted(
                    "stopped; the same command begins this stage again".into(),
                )),
                error => error.into(),
            })?;
            std::fs::write(
                draft.join(PALETTIZE_REPORT),
                format!("{:#}\n", serde_json::to_value(&report)?),
            )?;
            Ok(())
        },
    )?;
    let report: russet_compress::Report =
        serde_json::from_slice(&std::fs::read(place.out.join(PALETTIZE_REPORT))?)?;
    let summary = format!(
        "{:.3} bits a weight, {} bytes in {:.1} s",
        report.bpw, report.bytes, report.seconds
    );
    Ok((skipped, summary))
}

/// Documents for calibration: spread over the whole text, in an order that only their number decides.
fn calibration(tokenizer: &Tokenizer, settings: &PalettizeRecipe) -> Result<Vec<Vec<u32>>> {
    let mut texts = Vec::new();
    let mut bytes = 0;
    for path in &settings.data.calibration {
        for text in read_texts(path)? {
            let text = text?;
            bytes += text.len();
            texts.push(text);
            if bytes > CALIBRATION_BYTES {
                break;
            }
        }
    }
    texts = {
        let mut numbered: Vec<(u64, String)> = texts
            .into_iter()
            .enumerate()
            .map(|(i, text)| (russet_kernels::random::hash(0, 0, i as u64), text))
            .collect();
        numbered.sort_by_key(|(key, _)| *key);
        numbered.into_iter().map(|(_, text)| text).collect()
    };
    let (mut documents, mut tokens) = (Vec::new(), 0);
    for text in texts {
        if tokens >= settings.palettize.calibration_tokens {
            break;
        }
        // As in training, a document begins with the token that begins texts.
        let ids = tokenizer.encode(&text, true)?;
        tokens += ids.len();
        documents.push(ids);
    }
    if documents.is_empty() {
        bail!("the calibration text is empty");
    }
    Ok(documents)
}

fn eval(app: &mut App, recipe: &Recipe, place: &Place) -> Result<(bool, String)> {
    let settings: EvalRecipe = recipe.parse()?;
    let (checkpoint, package) = (
        place.input(&settings.inputs.checkpoint),
        place.input(&settings.inputs.package),
    );
    let inputs = Inputs::new()
        .artifact(
            "checkpoint",
            &Artifact::open(&checkpoint, Kind::Checkpoint)?,
        )?
        .artifact("package", &Artifact::open(&package, Kind::Package)?)?
        .path("heldout", &settings.data.heldout)?;
    let skipped = make(
        app,
        recipe,
        &settings,
        inputs,
        Kind::Scores,
        &place.out,
        |app, draft| {
            let (dense, palettized) = (
                Model::open(&checkpoint, None)?,
                Model::open(&package, None)?,
            );
            let documents = measure::documents(&dense.tokenizer, &settings.data.heldout)?;
            let view = measure::settings(&dense, settings.eval.window)?;
            let mut ctx = Ctx::new(app.pool.clone());
            let (a, b, progress) = (&dense.decoder, &palettized.decoder, &mut *app.progress);
            let both =
                russet_eval::compare(a, b, &mut ctx, &documents, &view, progress, &app.interrupt)
                    .map_err(|error| match error {
                    russet_eval::Error::Interrupted => anyhow::Error::from(Interrupted(
                        "stopped; the same command begins this stage again".into(),
                    )),
                    error => error.into(),
                })?;
            let scores = json!({
                "checkpoint": both.reference, "package": both.other, "kld": both.kld, "same_top": both.same_top,
            });
            std::fs::write(draft.join(SCORES), format!("{scores:#}\n"))?;
            Ok(())
        },
    )?;
    let scores = read_json(&place.out.join(SCORES))?;
    let bits = |which: &str| scores[which]["bits_per_byte"].as_f64().unwrap_or(f64::NAN);
    let (before, after) = (bits("checkpoint"), bits("package"));
    let more = 100.0 * (after / before - 1.0);
    Ok((
        skipped,
        format!(
            "bits per byte held out: checkpoint {before:.4}, package {after:.4} ({more:+.2} %)"
        ),
    ))
}

const SCORES: &str = "scores.json";
const SAMPLE: &str = "sample.json";

fn read_json(path: &Path) -> Result<Value> {
    let bytes =
        std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{}: is not JSON", path.display()))
}

fn sample(app: &mut App, recipe: &Recipe, place: &Place) -> Result<(bool, String)> {
    let settings: SampleRecipe = recipe.parse()?;
    let folder = place.input(&settings.inputs.model);
    let inputs = Inputs::new().artifact("model", &Artifact::open_any(&folder)?)?;
    let skipped = make(
        app,
        recipe,
        &settings,
        inputs,
        Kind::Samples,
        &place.out,
        |app, draft| {
            let SampleRecipe { sample, .. } = &settings;
            let model = Model::open(&folder, None)?;
            let prompt = model.encode_prompt(&sample.prompt)?;
            let sampling = Sampling {
                temperature: sample.temperature as f32,
                top_p: sample.top_p as f32,
                seed: sample.seed,
                ..Sampling::default()
            };
            let context = model
                .decoder
                .config()
                .context
                .min(prompt.len().saturating_add(sample.max_tokens));
            let request = Request {
                prompt,
                max_tokens: sample.max_tokens,
                sampling,
                stop_tokens: model.eos(),
            };
            let Model { decoder, tokenizer } = model;
            let mut engine = Engine::new(decoder, app.pool.clone(), EngineConfig::new(context, 1))?;
            app.progress
                .begin(recipe.name(), Some(sample.max_tokens as u64), "tokens");
            let made = continue_prompt(
                &mut engine,
                &tokenizer,
                &request,
                &[],
                sample.prompt.is_empty(),
                &mut |_| {},
            )?;
            let json = json!({
                "prompt": sample.prompt, "text": made.text, "tokens": made.generation.tokens.len(),
                "finish": made.finish.to_string(),
            });
            std::fs::write(draft.join(SAMPLE), format!("{json:#}\n"))?;
            Ok(())
        },
    )?;
    let made = read_json(&place.out.join(SAMPLE))?;
    Ok((skipped, format!("{} tokens", made["tokens"])))
}

/// What the whole run has come to, from its artifacts.
fn report(app: &App, recipes: &[Recipe], folder: &Path, done: &[Done]) -> Result<()> {
    let (mut scores, mut bpw, mut sample, mut model) =
        (Value::Null, Value::Null, Value::Null, None);
    for recipe in recipes {
        let out = folder.join(recipe.name());
        match stage_name(recipe)?.as_str() {
            "palettize" => {
                bpw = read_json(&out.join(PALETTIZE_REPORT))?["bpw"].clone();
                model = Some(out);
            }
            "eval" => scores = read_json(&out.join(SCORES))?,
            "sample" => sample = read_json(&out.join(SAMPLE))?,
            "pretrain" => model = Some(out),
            _ => {}
        }
    }
    let bits = |which: &str| scores[which]["bits_per_byte"].clone();
    let text = sample["text"].as_str().unwrap_or_default();
    let prompt = sample["prompt"].as_str().unwrap_or_default();
    let whole = format!("{prompt}{text}");
    let json = json!({
        "stages": done,
        "bits_per_byte": {"checkpoint": bits("checkpoint"), "package": bits("package")},
        "bpw": bpw,
        "sample": whole,
    });
    let mut lines = Vec::new();
    if !whole.is_empty() {
        lines.push(format!("\n{whole}\n"));
    }
    if let Some(model) = model {
        let model = model.display();
        lines.push(format!(
            "Next: russet generate --model {model} --prompt \"Once upon a time\""
        ));
        lines.push(format!("      russet bench --model {model} -p 128 -n 128"));
        lines.push("(russet is target/release/russet, or `cargo run --release --`)".to_owned());
    }
    app.print(&json, &lines.join("\n"))
}
