//! The command line: one verb a stage, the same words as in recipes.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use russet_artifact::Override;
use russet_compress::TableBits;
use russet_kernels::palette::Bits;
use russet_model::{Decoder, KvFormat};
use russet_train::bench::Shape;

use crate::shape::RandomShape;

/// From text to a palettized model that talks.
#[derive(Parser)]
#[command(name = "russet", version, arg_required_else_help = true)]
pub struct Cli {
    /// Print one JSON object on standard output (chat: one an answer; completions: the script); progress goes to standard error as JSON lines, as it does where that is no terminal
    #[arg(long, global = true)]
    pub json: bool,
    /// Threads to compute on (default: all cores)
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Run a folder of recipes in order, skipping what has not changed
    Run(RunArgs),
    /// Train a tokenizer, or encode text with one
    #[command(subcommand)]
    Tokenizer(TokenizerVerb),
    /// Train a decoder from a recipe
    Pretrain(PretrainArgs),
    /// Fine-tune a model on conversations, from a recipe
    Sft(TrainArgs),
    /// Fine-tune a model on preferences (DPO, IPO), from a recipe
    Dpo(TrainArgs),
    /// Train a reward model on preferences, from a recipe
    Reward(TrainArgs),
    /// Let a committee of models answer prompts and keep the best answers (rejection sampling), from a recipe
    Reject(TrainArgs),
    /// Tune a model by rewards for its answers (MDLOO, RLOO, PPO, GRPO), from a recipe
    Rlhf(TrainArgs),
    /// Store a teacher's predictions of token shards, from a recipe
    TeacherLogits(RecipeArgs),
    /// Prune a checkpoint's feed-forward layers, from a recipe
    Prune(TrainArgs),
    /// Palettize a checkpoint to a given number of bits per weight
    Palettize(PalettizeArgs),
    /// Train an adapter on a package that brings back what palettizing lost, from a recipe
    Recover(TrainArgs),
    /// Train the palettes of a package end to end (quantization-aware training), from a recipe
    Qat(TrainArgs),
    /// Continue a prompt
    Generate(GenerateArgs),
    /// Talk to a model in the terminal
    Chat(ChatArgs),
    /// Serve a model behind OpenAI's API
    Serve(crate::serve::ServeArgs),
    /// Measure a model on a text
    #[command(subcommand)]
    Eval(EvalVerb),
    /// Let people compare responses or grade summaries on a page of this machine
    Grade(crate::grade::GradeArgs),
    /// Measure prefill and decode speed, beside the machine's memory bandwidth; or a step of training
    Bench(BenchArgs),
    /// Convert a model's files
    Convert(ConvertArgs),
    /// Show a training run as it goes: loss, learning rate, gradient norm, tokens a second
    Watch(crate::watch::WatchArgs),
    /// Print a shell's completion script
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Args)]
pub struct RunArgs {
    /// Folder of recipes, NN-name.toml
    pub folder: PathBuf,
    /// Change a setting: STAGE.KEY=VALUE, as in 03-pretrain.train.steps=100
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    pub set: Vec<Override>,
    /// Where the run goes (default: runs/ and the folder's name)
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Print what would be done, with parameters, tokens, operations, memory and time
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct RecipeArgs {
    /// The recipe
    pub recipe: PathBuf,
    /// Change a setting: KEY=VALUE, as in train.steps=100
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<Override>,
    /// Where the artifact goes (default: runs/FOLDER/RECIPE, named after the recipe's folder and file)
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Print what would be done, with parameters, tokens, operations, memory and time
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct PretrainArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Begin at the first step, whatever an earlier run has left
    #[arg(long)]
    pub restart: bool,
    /// Plan for ranks on such devices in place of this machine's cores:
    /// kind=cuda,memory_gib=80,tflops=989,reaches=0.75,per_host=8,link_gb_s=450,network_gb_s=50
    #[arg(long, value_name = "NAME=VALUE,…", requires = "dry_run")]
    pub device: Option<russet_train::Device>,
}

#[derive(Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Begin at the first step, whatever an earlier run has left
    #[arg(long)]
    pub restart: bool,
}

#[derive(Subcommand)]
pub enum TokenizerVerb {
    /// Train a tokenizer from a recipe
    Train(RecipeArgs),
    /// Encode the texts of a recipe into token shards
    Shards(RecipeArgs),
    /// Print the token ids of a text
    Encode {
        /// Folder with a tokenizer.json
        #[arg(long)]
        model: PathBuf,
        /// The text
        #[arg(long)]
        text: String,
        /// Read the names of special tokens in the text as those tokens
        #[arg(long)]
        special: bool,
    },
}

#[derive(Args)]
pub struct PalettizeArgs {
    /// The checkpoint
    #[arg(long)]
    pub model: PathBuf,
    /// Bits per weight of the projections, tables and scales included
    #[arg(long, default_value_t = 3.5, allow_negative_numbers = true)]
    pub target_bpw: f64,
    /// Bytes of the whole package, in place of bits per weight
    #[arg(long, value_name = "BYTES", conflicts_with = "target_bpw")]
    pub target_bytes: Option<u64>,
    /// The bits that projections may have: some of 2, 3 and 4, and of 2v, 3v and 4v (palettes of pairs), separated by commas
    #[arg(long, value_delimiter = ',', default_value = "2,3,4", value_parser = width)]
    pub bits: Vec<Bits>,
    /// Fix the bits (as in --bits) of projections whose names are like a pattern: PATTERN=BITS, as in '*.v_proj=4'; may be given again
    #[arg(long = "pin", value_name = "PATTERN=BITS", value_parser = pin)]
    pub pins: Vec<(String, Bits)>,
    /// Bits of the tables of embedding and output: 8 or 4 (default: 8)
    #[arg(long, value_name = "BITS", value_parser = table_bits)]
    pub table_bits: Option<TableBits>,
    /// Text to measure the weights' importance on (.txt or .jsonl, plain, .gz or .zst)
    #[arg(long)]
    pub calibration: PathBuf,
    /// Where the package goes
    #[arg(long)]
    pub out: PathBuf,
    /// Change a further setting: KEY=VALUE, as in palettize.weighting="activation"
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<Override>,
    /// Print what would be done, with operations, memory and time
    #[arg(long)]
    pub dry_run: bool,
}

/// The memory of keys and values.
#[derive(Args, Clone, Copy)]
pub struct CacheArgs {
    /// What keys and values are kept in (default: q8 for a package, f32 for a checkpoint)
    #[arg(long, value_name = "TYPE")]
    pub cache_type: Option<CacheType>,
}

impl CacheArgs {
    /// For this model.
    pub fn format(self, decoder: &Decoder) -> KvFormat {
        self.cache_type
            .map_or(decoder.cache_format(), CacheType::format)
    }
}

/// What keys and values are kept in.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    /// As they are computed
    F32,
    /// Half precision: half of the memory
    F16,
    /// 8 bits, with a scale a token and head: about a quarter of the memory; answers differ a little
    Q8,
}

impl CacheType {
    /// The engine's word for it.
    pub fn format(self) -> KvFormat {
        match self {
            CacheType::F32 => KvFormat::F32,
            CacheType::F16 => KvFormat::F16,
            CacheType::Q8 => KvFormat::Int8,
        }
    }

    /// The name of a format on the command line.
    pub fn name_of(format: KvFormat) -> &'static str {
        match format {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::Int8 => "q8",
        }
    }
}

/// Settings of sampling.
#[derive(Args, Clone)]
pub struct SamplingArgs {
    /// 0 takes the likeliest token; higher is bolder
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = count, allow_negative_numbers = true)]
    pub top_k: usize,
    /// Keep the likeliest tokens that make up this share of the probability
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the likeliest
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Take this from the logit of every token that the answer has already, from -2 to 2
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Take this from the logit of a token for each time that the answer has it, from -2 to 2
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Divide the logits of tokens of the prompt and the answer by this (multiply those below 0), from 0.01 to 100
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f32,
    /// Add V, from -100 to 100, to the logit of the token ID; may be given several times
    #[arg(long, value_name = "ID=V", value_parser = bias, allow_hyphen_values = true)]
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
    /// Stop where this text appears; may be given several times
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
}

#[derive(Args)]
pub struct GenerateArgs {
    /// A checkpoint or package
    #[arg(long)]
    pub model: PathBuf,
    /// An adapter (PEFT folder) to put onto it
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// The text to continue; empty begins a new one
    #[arg(long)]
    pub prompt: String,
    /// How many tokens to generate at most
    #[arg(long, default_value_t = 128, value_parser = count, allow_negative_numbers = true)]
    pub max_tokens: usize,
    /// Put the K likeliest tokens at each place, with their log-probabilities, into the JSON object
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = count, allow_negative_numbers = true)]
    pub top_logprobs: usize,
    #[command(flatten)]
    pub guide: GuideArgs,
    /// Let this smaller model of the same tokenizer guess ahead; the text is the same
    #[arg(long, value_name = "MODEL", conflicts_with = "prompt_lookup")]
    pub draft: Option<PathBuf>,
    /// Guess what followed the same few tokens before; the text is the same
    #[arg(long)]
    pub prompt_lookup: bool,
    /// Write when each operation ran and what it moved and computed, for chrome://tracing or ui.perfetto.dev
    #[arg(long, value_name = "FILE.json")]
    pub trace: Option<PathBuf>,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// What the text must be.
#[derive(Args, Clone)]
#[group(multiple = false)]
pub struct GuideArgs {
    /// Write JSON of the schema in this file
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
    /// Write a JSON object
    #[arg(long)]
    pub json_object: bool,
    /// Write what this regular expression matches
    #[arg(long)]
    pub regex: Option<String>,
    /// Write a text of the grammar in this file (llguidance's dialect of Lark)
    #[arg(long, value_name = "FILE")]
    pub grammar: Option<PathBuf>,
    /// Write one of the texts that are given so
    #[arg(long, value_name = "TEXT")]
    pub choice: Vec<String>,
}

/// A number of tokens.
fn count(text: &str) -> Result<usize, String> {
    let wanted = "it must be a whole number, 0 or more";
    text.parse().map_err(|_| wanted.to_owned())
}

/// `ID=V`, a token and what is added to its logit.
fn bias(text: &str) -> Result<(u32, f32), String> {
    let wanted = "it must be ID=V, a token's id and a number, as in 42=-5";
    let (id, value) = text.split_once('=').ok_or(wanted)?;
    match (id.parse(), value.parse()) {
        (Ok(id), Ok(value)) => Ok((id, value)),
        _ => Err(wanted.to_owned()),
    }
}

#[derive(Args)]
pub struct ChatArgs {
    /// A checkpoint or package with a chat template
    #[arg(long)]
    pub model: PathBuf,
    /// An adapter (PEFT folder) to put onto it
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// What the model is told before the conversation
    #[arg(long)]
    pub system: Option<String>,
    /// How many tokens an answer may have
    #[arg(long, default_value_t = 512, value_parser = count, allow_negative_numbers = true)]
    pub max_tokens: usize,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

#[derive(Subcommand)]
pub enum EvalVerb {
    /// Perplexity and bits per byte on a text, and how far a second model is from the first
    Perplexity(PerplexityArgs),
    /// Whether a model finds a fact that is hidden in a long text, by length and depth
    Needle(crate::needle::NeedleArgs),
    /// Whether responses follow instructions that can be checked (IFEval), from a file or from a model
    Ifeval(crate::eval::ifeval::IfevalArgs),
    /// Compare models by judgements of pairs of responses: win rates, Bradley-Terry, Elo, length control, agreement of judges
    Pairwise(crate::eval::pairwise::PairwiseArgs),
    /// Choose the next round's committee by judgements: the latest promising models and the best of before
    Committee(crate::eval::committee::CommitteeArgs),
    /// Let a model judge two models' responses, each pair in both orders
    Judge(crate::eval::judge::JudgeArgs),
    /// Show or write the set of prompts of eleven categories
    Prompts(crate::eval::prompts::PromptsArgs),
    /// Let a model answer a file of prompts; killed, the same command goes on
    Respond(crate::eval::respond::RespondArgs),
    /// Multiple choice by likelihood: HellaSwag, ARC, MMLU
    Choice(crate::eval::choice::ChoiceArgs),
    /// Word problems by the number that a response ends in: GSM8K
    Math(crate::eval::math::MathArgs),
    /// Programs by the tests that they pass, run in a sandbox: HumanEval
    Code(crate::eval::code::CodeArgs),
    /// Calls of functions: BFCL's AST match
    Calls(crate::eval::calls::CallsArgs),
    /// Perplexity by position in long texts
    Positions(crate::eval::positions::PositionsArgs),
    /// Draw the texts that a feature is tried on, evenly over kinds of content, lengths and stacks
    Texts(crate::eval::texts::TextsArgs),
    /// Summaries: ROUGE, sensitive content, or the rates of graders' verdicts
    Summaries(crate::eval::summaries::SummariesArgs),
    /// What responses extract: F1 over slots
    Slots(crate::eval::slots::SlotsArgs),
    /// Violations on unsafe prompts, refusals of safe ones, safety preference
    Safety(crate::eval::safety::SafetyArgs),
    /// Accuracy and calibration of a reward model on preferences
    Reward(crate::eval::reward::RewardArgs),
    /// One page of all that `--save` has put into a folder, or of several side by side
    Report(crate::eval::report::ReportArgs),
    /// Write the logits of given tokens, to compare with other implementations
    Logits {
        /// A checkpoint or package
        #[arg(long)]
        model: PathBuf,
        /// Token ids
        #[arg(long, value_delimiter = ',', required = true)]
        tokens: Vec<u32>,
        /// Where to write the tensor `logits` [N, V] (safetensors)
        #[arg(long)]
        out: PathBuf,
    },
}

impl EvalVerb {
    /// Where its scores go, for those that have any.
    pub fn save(&self) -> Option<&crate::eval::save::SaveArgs> {
        Some(match self {
            EvalVerb::Perplexity(args) => &args.save,
            EvalVerb::Needle(args) => &args.save,
            EvalVerb::Ifeval(args) => &args.save,
            EvalVerb::Pairwise(args) => &args.save,
            EvalVerb::Choice(args) => &args.save,
            EvalVerb::Math(args) => &args.save,
            EvalVerb::Code(args) => &args.save,
            EvalVerb::Calls(args) => &args.save,
            EvalVerb::Positions(args) => &args.save,
            EvalVerb::Summaries(args) => &args.save,
            EvalVerb::Slots(args) => &args.save,
            EvalVerb::Safety(args) => &args.save,
            EvalVerb::Reward(args) => &args.save,
            EvalVerb::Committee(_)
            | EvalVerb::Judge(_)
            | EvalVerb::Prompts(_)
            | EvalVerb::Respond(_)
            | EvalVerb::Texts(_)
            | EvalVerb::Report(_)
            | EvalVerb::Logits { .. } => return None,
        })
    }
}

#[derive(Args)]
pub struct PerplexityArgs {
    /// A checkpoint or package
    #[arg(long)]
    pub model: PathBuf,
    /// An adapter (PEFT folder) to put onto it
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// The text (.txt or .jsonl, plain, .gz or .zst)
    #[arg(long)]
    pub text: PathBuf,
    /// A model to compare with: the divergence from its predictions, and how often the likeliest token is the same
    #[arg(long)]
    pub against: Option<PathBuf>,
    /// Tokens in view at a time (default: the model's context, at most 1024)
    #[arg(long)]
    pub window: Option<usize>,
    /// What keys and values are kept in
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub cache_type: CacheType,
    #[command(flatten)]
    pub save: crate::eval::save::SaveArgs,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: Option<BenchVerb>,
    #[command(flatten)]
    pub measured: MeasuredArgs,
    /// Measure through this adapter (PEFT folder) too, in turns with the model alone; given several times, sequences that generate go
    /// through one after another
    #[arg(long, value_name = "DIR", conflicts_with = "adapter_rank")]
    pub adapter: Vec<PathBuf>,
    /// The same with random adapters of this rank on every projection
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub adapter_rank: Option<u16>,
    /// How many random adapters
    #[arg(long, value_name = "N", requires = "adapter_rank", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub adapters: u16,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Tokens of the prompt
    #[arg(short = 'p', long, default_value_t = 512)]
    pub prompt_tokens: usize,
    /// Tokens to generate
    #[arg(short = 'n', long, default_value_t = 128)]
    pub generate_tokens: usize,
    /// Sequences that generate at once; their tokens count together
    #[arg(short = 'b', long, default_value_t = 1)]
    pub sequences: usize,
    /// How often to measure; the median is printed
    #[arg(short = 'r', long, default_value_t = 5)]
    pub repeats: usize,
    /// Show also where the time goes, by kind of kernel
    #[arg(long)]
    pub profile: bool,
    /// Write when each operation of one more round ran and what it moved and computed, for chrome://tracing or ui.perfetto.dev
    #[arg(long, value_name = "FILE.json")]
    pub trace: Option<PathBuf>,
}

fn bits_per_weight(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(bits) if (2.0..=5.0).contains(&bits) => Ok(bits),
        _ => Err("bits a weight are a number from 2 to 5".to_owned()),
    }
}

#[derive(Subcommand)]
pub enum BenchVerb {
    /// Time one step of training on random tokens: forward and backward pass, clip, AdamW
    Train(BenchTrainArgs),
    /// How soon a process answers, what memory that takes, and what it costs to change adapters
    Serving(ServingArgs),
    /// One of the processes that `serving` starts
    #[command(hide = true)]
    FirstToken {
        /// A checkpoint or package
        #[arg(long)]
        model: PathBuf,
    },
}

/// What is measured.
#[derive(Args)]
pub struct MeasuredArgs {
    /// A checkpoint or package
    #[arg(long, required_unless_present = "random")]
    pub model: Option<PathBuf>,
    /// Random palettized weights instead of a model, made in memory (for `serving` in the folder of temporary files): 0.6b or 3b (Qwen3's), or
    /// dim=…,layers=…,heads=…,kv_heads=…,head_dim=…,ffn=…,vocab=…; behind either window=… lets all layers slide, and kv_shared=… so many
    /// of the last ones use the keys and values of the last before them
    #[arg(long, value_name = "SHAPE", conflicts_with = "model")]
    pub random: Option<RandomShape>,
    /// Bits of a random weight, tables and scales among them
    #[arg(long, conflicts_with = "model", default_value_t = 3.5, value_parser = bits_per_weight)]
    pub bpw: f64,
    /// The bits that random projections may have: some of 2, 3 and 4, and of 2v, 3v and 4v (palettes of pairs), separated by commas
    #[arg(long, conflicts_with = "model", value_delimiter = ',', default_value = "2,4", value_parser = width)]
    pub bits: Vec<Bits>,
}

#[derive(Args)]
pub struct ServingArgs {
    #[command(flatten)]
    pub measured: MeasuredArgs,
    /// Rank of the random adapters that are changed
    #[arg(long, value_name = "RANK", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub adapter_rank: u16,
    /// How often to start a process, and at least to change adapters
    #[arg(short = 'r', long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
}

#[derive(Args)]
pub struct BenchTrainArgs {
    /// The decoder and the batch
    #[arg(
        long,
        default_value = "dim=512,layers=6,heads=8,kv_heads=2,ffn=1408,vocab=8192,seq=256,batch=8"
    )]
    pub shape: Shape,
    /// The type in which dense products multiply
    #[arg(long, default_value = "f32")]
    pub dtype: Type,
    /// Keep the inputs of blocks only and run each once more in the backward pass: less memory, more time
    #[arg(long)]
    pub recompute: bool,
    /// Steps to time, after a warm-up of two
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
}

/// The type of products.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Type {
    /// IEEE single precision
    F32,
    /// Its upper half, with f32 sums
    Bf16,
}

/// A model's form on disk.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A model file of llama2.c
    Llama2c,
    /// A Hugging Face folder: a checkpoint, or a package
    Hf,
    /// A GGUF file
    Gguf,
}

/// What a model is converted to.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// A Hugging Face folder
    Hf,
    /// A GGUF file
    Gguf,
}

/// How the matrices of a GGUF file are stored.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TensorType {
    F32,
    F16,
    Bf16,
    /// 8 bits, a scale for each 32
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits, a scale for each 32
    #[value(name = "q4_0")]
    Q4_0,
    /// 4 bits, a scale and an offset for each 32, themselves of 6 bits
    #[value(name = "q4_k")]
    Q4K,
}

#[derive(Args)]
pub struct ConvertArgs {
    /// What the model is now
    #[arg(long)]
    pub from: Format,
    /// What it should be
    #[arg(long)]
    pub to: Target,
    /// The model's file or folder
    #[arg(long = "in", value_name = "PATH")]
    pub input: PathBuf,
    /// llama2.c's tokenizer file (default: tokenizer.bin or tok*.bin beside the model)
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// The type of a GGUF file's matrices (default: f16)
    #[arg(long = "type", value_name = "TYPE")]
    pub tensor_type: Option<TensorType>,
    /// Where the folder goes, or the GGUF file
    #[arg(long)]
    pub out: PathBuf,
}

/// Bits of a palette, as a person writes them.
fn width(text: &str) -> Result<Bits, String> {
    Bits::from_name(text).ok_or_else(|| "there are 2, 3 and 4, and 2v, 3v and 4v".to_owned())
}

fn table_bits(text: &str) -> Result<TableBits, String> {
    let bits: i64 = text.parse().map_err(|_| "write 8 or 4".to_owned())?;
    TableBits::try_from(bits)
}

/// `PATTERN=BITS`.
fn pin(text: &str) -> Result<(String, Bits), String> {
    let parts = text.rsplit_once('=');
    let parts = parts.and_then(|(pattern, bits)| Some((pattern.to_owned(), width(bits).ok()?)));
    parts.ok_or_else(|| {
        "write a pattern, `=` and bits (2, 3 or 4, or 2v, 3v or 4v), as in '*.v_proj=4'".to_owned()
    })
}
