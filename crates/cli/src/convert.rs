//! `convert`: a model's files in another form.
//!
//! | from | to | what |
//! |---|---|---|
//! | llama2c, gguf, hf | hf | a folder in f32, an artifact; a package comes out as its tables say |
//! | hf | gguf | one file in `--type`, replaced whole or not at all |

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use russet_artifact::{Artifact, Draft, Inputs, Kind, Stage};
use russet_kernels::Mmap;
use russet_model::gguf::{Gguf, GgufType, GgufWriter, decoder};
use russet_model::stored::{self, Planned};
use russet_model::{Config, ModelError, Weights, checkpoint, llama2c};
use russet_tensor::DType;
use russet_tokenizer::{GgufVocabulary, Tokenizer};
use serde_json::{Value, json};

use crate::app::{App, Usage};
use crate::args::{ConvertArgs, Format, Target, TensorType};

/// Converts a model.
pub fn convert(app: &mut App, args: &ConvertArgs) -> Result<()> {
    crate::found::of_form(&args.input, args.from)?;
    if let (Some(path), true) = (&args.tokenizer, args.from != Format::Llama2c) {
        let sentence =
            "is a tokenizer of llama2.c's, and the model has its own; leave --tokenizer out";
        return Err(Usage(format!("--tokenizer {} {sentence}", path.display())).into());
    }
    match (args.from, args.to) {
        (Format::Hf, Target::Gguf) => to_gguf(app, args),
        (_, Target::Gguf) => Err(Usage(
            "--to gguf takes a Hugging Face folder; convert with --to hf first, then that folder with --from hf".into(),
        )
        .into()),
        (_, Target::Hf) if args.tensor_type.is_some() => Err(Usage(
            "--type is a type of GGUF tensors, and a Hugging Face folder is written in f32; leave it out".into(),
        )
        .into()),
        (_, Target::Hf) => to_hf(app, args),
    }
}

/// A Hugging Face folder in f32.
fn to_hf(app: &App, args: &ConvertArgs) -> Result<()> {
    // An artifact of ours counts by its manifest, anything else by its bytes.
    let mut inputs = match Artifact::open_any(&args.input) {
        Ok(artifact) => Inputs::new().artifact("model", &artifact)?,
        Err(_) => Inputs::new().path("model", &args.input)?,
    };
    let from = match args.from {
        Format::Llama2c => "llama2c",
        Format::Hf => "hf",
        Format::Gguf => "gguf",
    };
    let recipe = json!({"stage": "convert", "from": from, "to": "hf"});
    let draft = Draft::of_stage(&args.out, Kind::Checkpoint, "convert")?;
    let (config, source) = match args.from {
        Format::Llama2c => {
            let decoder = llama2c::load(&args.input)?;
            let path = args
                .tokenizer
                .clone()
                .map_or_else(|| tokenizer_beside(&args.input), Ok)?;
            let tokenizer = Tokenizer::from_llama2c(&path, decoder.config().vocab)?;
            inputs = inputs.path("tokenizer", &path)?;
            checkpoint::save(&decoder, draft.path())?;
            tokenizer.save(draft.path())?;
            (decoder.config().clone(), "a model file of llama2.c")
        }
        Format::Hf => {
            let tokenizer = Tokenizer::open(&args.input)?;
            let mut weights = Weights::open(&args.input)?;
            let source = match weights.are_palettized() {
                true => "a package; its weights are what its tables say, changed by palettizing",
                false => "a Hugging Face folder",
            };
            let config = weights.config().clone();
            dense(app, &mut weights, draft.path())?;
            weights.finish()?;
            tokenizer.save(draft.path())?;
            (config, source)
        }
        Format::Gguf => {
            let config = from_gguf(&args.input, draft.path())?;
            (
                config,
                "a GGUF file; what was quantized there is what its blocks say",
            )
        }
    };
    let stage = Stage::new("convert", &app.tool, recipe, inputs);
    draft.write("README.md", model_card(&config, source).as_bytes())?;
    draft.commit(&stage)?;
    let out = args.out.display();
    let json = json!({"out": args.out, "parameters": config.parameters(), "vocab": config.vocab, "layers": config.layers});
    app.print(
        &json,
        &format!("{out}: {} parameters in f32", config.parameters()),
    )
}

/// Writes weights in f32, one tensor in memory at a time.
fn dense(app: &App, weights: &mut Weights, folder: &Path) -> Result<()> {
    checkpoint::save_config(weights.config(), folder)?;
    let plan = |(name, shape)| Planned {
        name,
        dtype: DType::F32,
        shape,
    };
    let planned: Vec<Planned> = weights.tensors()?.into_iter().map(plan).collect();
    stored::write_each(folder, "model", &planned, stored::SHARD_BYTES, |index| {
        let numbers = weights.take(&app.pool, &planned[index].name, &planned[index].shape)?;
        let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(Cow::Owned(bytes))
    })?;
    Ok(())
}

/// Writes a GGUF file's model and tokenizer into a folder.
fn from_gguf(path: &Path, folder: &Path) -> Result<Config> {
    let map = Mmap::open(path)?;
    let wrong = |problem: String| ModelError::file(path, problem);
    let gguf = Gguf::parse(&map).map_err(wrong)?;
    let mut config = decoder::config(&gguf).map_err(wrong)?;
    let vocabulary = vocabulary(&gguf).map_err(wrong)?;
    let tokenizer =
        Tokenizer::from_gguf(&vocabulary).with_context(|| path.display().to_string())?;
    if tokenizer.vocab_size() > config.vocab {
        let (tokens, rows) = (tokenizer.vocab_size(), config.vocab);
        bail!(
            "{}: it has {tokens} tokens, but its table {rows} rows",
            path.display()
        );
    }
    config.bos = vocabulary.bos;
    config.eos = vocabulary.eos;
    config.check().map_err(wrong)?;
    decoder::import(&gguf, &config, path, folder)?;
    tokenizer.save(folder)?;
    Ok(config)
}

/// The tokenizer's entries of a file.
fn vocabulary(gguf: &Gguf) -> Result<GgufVocabulary, String> {
    let texts = |key: &str| -> Result<Vec<String>, String> {
        let Some(array) = gguf.array(key)? else {
            return Ok(Vec::new());
        };
        let texts = array
            .texts()
            .map_err(|problem| format!("`{key}` {problem}"))?;
        Ok(texts.into_iter().map(str::to_owned).collect())
    };
    let numbers = |key: &str| -> Result<Vec<f64>, String> {
        let Some(array) = gguf.array(key)? else {
            return Ok(Vec::new());
        };
        array
            .floats()
            .map_err(|problem| format!("`{key}` {problem}"))
    };
    let id = |name: &str| -> Result<Option<u32>, String> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match gguf.unsigned(&key)? {
            // Some writers say so that there is none.
            None | Some(0xffff_ffff) => Ok(None),
            Some(id) => u32::try_from(id)
                .map(Some)
                .map_err(|_| format!("`{key}` is {id}, which is no token")),
        }
    };
    let owned = |key: &str| gguf.text(key).map(|text| text.map(str::to_owned));
    let flag = |key: &str| gguf.bool(key);
    let model = owned("tokenizer.ggml.model")?
        .ok_or("has no `tokenizer.ggml.model`, so its texts cannot be read")?;
    let spm = model == "llama";
    let tokens = texts("tokenizer.ggml.tokens")?;
    let types: Vec<i32> = numbers("tokenizer.ggml.token_type")?
        .into_iter()
        .map(|kind| kind as i32)
        .collect();
    let mut eos: Vec<u32> = id("eos")?.into_iter().collect();
    eos.extend(id("eot")?.filter(|eot| !eos.contains(eot)));
    Ok(GgufVocabulary {
        pre: owned("tokenizer.ggml.pre")?,
        types: if types.is_empty() {
            vec![1; tokens.len()]
        } else {
            types
        },
        tokens,
        scores: numbers("tokenizer.ggml.scores")?
            .into_iter()
            .map(|score| score as f32)
            .collect(),
        merges: texts("tokenizer.ggml.merges")?,
        bos: id("bos")?,
        eos,
        unknown: id("unknown")?,
        pad: id("padding")?,
        // What llama.cpp does where nothing is said.
        add_bos: flag("tokenizer.ggml.add_bos_token")?.unwrap_or(spm),
        add_space_prefix: flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(spm),
        chat_template: owned("tokenizer.chat_template")?,
        huggingface: owned("tokenizer.huggingface.json")?,
        model,
    })
}

/// One GGUF file.
fn to_gguf(app: &mut App, args: &ConvertArgs) -> Result<()> {
    let kind = match args.tensor_type.unwrap_or(TensorType::F16) {
        TensorType::F32 => GgufType::F32,
        TensorType::F16 => GgufType::F16,
        TensorType::Bf16 => GgufType::BF16,
        TensorType::Q8_0 => GgufType::Q8_0,
        TensorType::Q4_0 => GgufType::Q4_0,
        TensorType::Q4K => GgufType::Q4K,
    };
    let tokenizer = Tokenizer::open(&args.input)?;
    let mut weights = Weights::open(&args.input)?;
    let config = weights.config().clone();
    let vocabulary = tokenizer
        .to_gguf(config.vocab)
        .with_context(|| args.input.display().to_string())?;
    let again = weights.are_palettized();
    if again {
        app.progress.message(&format!(
            "the model is a package: its weights are made of its tables and quantized once more, to {}; of the checkpoint it comes out better",
            kind.name()
        ));
    }
    let place = Place::new(&args.out)?;
    let source = Artifact::open_any(&args.input)
        .ok()
        .map(|artifact| artifact.manifest_hash().to_string());
    let done = decoder::export(&app.pool, &mut weights, kind, &place.draft, |file| {
        let tool = &app.tool;
        file.text(
            "general.quantized_by",
            &format!("Russet {} ({})", tool.version, tool.commit),
        );
        if let Some(source) = &source {
            file.text("russet.source.blake3", source);
        }
        entries(&vocabulary, file);
    })?;
    weights.finish()?;
    place.commit()?;
    let types: serde_json::Map<String, Value> = done
        .types
        .iter()
        .map(|(kind, count)| (kind.name().to_owned(), json!(count)))
        .collect();
    let shown: Vec<String> = done
        .types
        .iter()
        .map(|(kind, count)| format!("{count} {}", kind.name()))
        .collect();
    let json = json!({"out": args.out, "parameters": config.parameters(), "vocab": config.vocab, "layers": config.layers,
        "bytes": done.bytes, "types": types, "requantized": again});
    let out = args.out.display();
    app.print(
        &json,
        &format!(
            "{out}: {} parameters in {} bytes; tensors: {}",
            config.parameters(),
            done.bytes,
            shown.join(", ")
        ),
    )
}

/// Adds a tokenizer's entries.
fn entries(vocabulary: &GgufVocabulary, file: &mut GgufWriter) {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    file.text(&key("model"), &vocabulary.model);
    if let Some(pre) = &vocabulary.pre {
        file.text(&key("pre"), pre);
    }
    file.texts(&key("tokens"), &vocabulary.tokens);
    file.integers(&key("token_type"), &vocabulary.types);
    if !vocabulary.scores.is_empty() {
        file.floats(&key("scores"), &vocabulary.scores);
    }
    if !vocabulary.merges.is_empty() {
        file.texts(&key("merges"), &vocabulary.merges);
    }
    let mut eos = vocabulary.eos.iter().copied();
    for (name, id) in [
        ("bos", vocabulary.bos),
        ("eos", eos.next()),
        ("eot", eos.next()),
        ("unknown", vocabulary.unknown),
        ("padding", vocabulary.pad),
    ] {
        if let Some(id) = id {
            file.unsigned(&key(&format!("{name}_token_id")), id);
        }
    }
    file.bool(&key("add_bos_token"), vocabulary.add_bos);
    if vocabulary.model == "llama" {
        file.bool(&key("add_space_prefix"), vocabulary.add_space_prefix);
    }
    if let Some(template) = &vocabulary.chat_template {
        file.text("tokenizer.chat_template", template);
    }
    if let Some(json) = &vocabulary.huggingface {
        file.text("tokenizer.huggingface.json", json);
    }
}

/// Where a file goes: it is made beside its place and renamed in, and goes away again where that does not come about.
struct Place {
    draft: PathBuf,
    path: PathBuf,
}

impl Place {
    fn new(path: &Path) -> Result<Place> {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| !path.is_dir()) else {
            return Err(Usage(format!(
                "--out {}: this is a folder, and a GGUF model is one file; name it, as in {}/model.gguf",
                path.display(),
                path.display().to_string().trim_end_matches('/')
            ))
            .into());
        };
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        if !parent.is_dir() {
            bail!(
                "{}: there is no such folder to write into; make it first",
                parent.display()
            );
        }
        if path.exists() {
            let old = std::fs::File::open(path).and_then(|mut file| {
                let mut magic = [0; 4];
                std::io::Read::read_exact(&mut file, &mut magic).map(|()| magic)
            });
            if old.ok() != Some(*b"GGUF") {
                bail!(
                    "{}: something else than a GGUF file lies there, and it is not replaced; choose another --out",
                    path.display()
                );
            }
        }
        Ok(Place {
            draft: parent.join(format!(".{name}.tmp-{}", std::process::id())),
            path: path.to_path_buf(),
        })
    }

    fn commit(&self) -> Result<()> {
        std::fs::rename(&self.draft, &self.path)
            .with_context(|| format!("{}: cannot be put in place", self.path.display()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.draft); // not there once it is in its place
    }
}

/// The `README.md` of a converted checkpoint.
fn model_card(config: &Config, source: &str) -> String {
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [russet]\n---\n\n# Converted model\n\n\
         Converted by Russet from {source}, to f32; nothing was trained. The licence is that of the model it was made of.\n\n\
         | | |\n|---|---|\n| parameters | {} |\n| layers x width | {} x {} |\n| vocabulary | {} |\n| context | {} |\n\n\
         What it was made of stands in `manifest.json`, with hashes.\n",
        config.parameters(),
        config.layers,
        config.width,
        config.vocab,
        config.context
    )
}

/// llama2.c's tokenizer file beside a model.
fn tokenizer_beside(model: &Path) -> Result<PathBuf> {
    let folder = model
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| format!("{}: cannot be listed", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or("");
            path != model && name.starts_with("tok") && name.ends_with(".bin")
        })
        .collect();
    match (found.pop(), found.len()) {
        (Some(path), 0) => Ok(path),
        (Some(_), _) => bail!(
            "{}: several files could be its tokenizer; name one by --tokenizer",
            model.display()
        ),
        (None, _) => bail!(
            "{}: no tok*.bin lies beside it; name its tokenizer file by --tokenizer",
            model.display()
        ),
    }
}
