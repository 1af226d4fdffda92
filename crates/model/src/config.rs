//! The shape of a decoder, as `config.json` of a Hugging Face folder gives it.

use std::path::Path;

use russet_kernels::rope::{HeadShape, RopeTable};
use serde_json::{Map, Value, json};

use crate::ModelError;

mod attention;

pub use attention::{Attention, LayerAttention};

/// Largest `config.json` that is read, in bytes.
const CONFIG_BYTES: u64 = 1 << 20;
/// Most heads of a layer, and greatest width of one: some hundreds of times what any published model has.
const HEADS: usize = 1 << 16;
/// Weights of one kind that a model may have: a thousand times the published ones, and far from overflow.
const WEIGHTS: usize = 1 << 42;

/// Which published architecture the names and details follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `Qwen3ForCausalLM`: QK-norm. AFM has exactly this shape; what Russet trains is written so.
    Qwen3,
    /// `LlamaForCausalLM`: no QK-norm.
    Llama,
}

/// How rotary frequencies are stretched for contexts longer than those of pre-training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by a factor (arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies divided by a factor, high ones kept, smooth between: Llama 3.1's rule.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths beyond `original / low` are low frequencies.
        low: f64,
        /// Wavelengths below `original / high` are high frequencies.
        high: f64,
        /// The context length of pre-training.
        original: f64,
    },
}

/// The shape of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Whose names and details.
    pub family: Family,
    /// V, entries of the vocabulary.
    pub vocab: usize,
    /// D, width of the residual stream.
    pub width: usize,
    /// How many blocks.
    pub layers: usize,
    /// H, query heads.
    pub heads: usize,
    /// G, key and value heads.
    pub kv_heads: usize,
    /// K, width of a head.
    pub head_dim: usize,
    /// F, hidden width of the feed-forward layer.
    pub ffn: usize,
    /// Added to the mean square in every norm.
    pub norm_epsilon: f32,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// How they are stretched.
    pub rope_scaling: RopeScaling,
    /// How layers differ in what they see.
    pub attention: Attention,
    /// Tokens of context that the model is made for.
    pub context: usize,
    /// Whether input and output share one table.
    pub tied: bool,
    /// The token before a text.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

impl Config {
    /// The head counts and widths that the kernels ask for.
    pub fn head_shape(&self) -> HeadShape {
        HeadShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// Columns of the packed query, key and value product, (H + 2G)·K.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Weights in the projections of all blocks.
    pub fn projection_parameters(&self) -> usize {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let every = 2 * q * self.width + 3 * self.ffn * self.width;
        self.layers * every + self.kv_layers() * 2 * kv * self.width
    }

    /// Weights in the embedding, and in the output table where it is another.
    pub fn embedding_parameters(&self) -> usize {
        self.vocab * self.width * if self.tied { 1 } else { 2 }
    }

    /// All weights.
    pub fn parameters(&self) -> usize {
        let qk_norms = match self.family {
            Family::Qwen3 => (self.layers + self.kv_layers()) * self.head_dim,
            Family::Llama => 0,
        };
        let norms = self.layers * 2 * self.width + qk_norms + self.width;
        self.projection_parameters() + self.embedding_parameters() + norms
    }

    /// Floating-point operations of the forward pass of one token that sees `context` tokens: two a weight of the
    /// projections and the output table, and the attention's two products, of no more than a window where a layer slides. Training
    /// costs three times as much.
    pub fn forward_flops(&self, context: usize) -> f64 {
        let products = self.projection_parameters() + self.vocab * self.width;
        // A float, since a context of billions in a file of sizes would overflow a number.
        let attention = self.pair_flops() * self.keys_seen(context);
        2.0 * products as f64 + attention
    }

    /// Those that one key costs one token in one layer.
    pub fn pair_flops(&self) -> f64 {
        4.0 * (self.heads * self.head_dim) as f64
    }

    /// Bytes of keys and values of one token, in `f32`.
    pub fn cache_bytes_per_token(&self) -> usize {
        self.kv_layers() * 2 * self.kv_heads * self.head_dim * size_of::<f32>()
    }

    /// Cosines and sines by token, for tokens at `positions`: row n of the table is token n's.
    /// Angles are formed in `f32`, as `transformers` does, so that long positions agree.
    pub fn rope_table(&self, positions: &[u32]) -> RopeTable {
        let frequencies = self.inverse_frequencies();
        let half = frequencies.len();
        let mut table = RopeTable {
            cos: Vec::with_capacity(positions.len() * half),
            sin: Vec::with_capacity(positions.len() * half),
            half,
        };
        for &position in positions {
            for &frequency in &frequencies {
                let (sin, cos) = libm::sincos(f64::from(position as f32 * frequency));
                table.cos.push(cos as f32);
                table.sin.push(sin as f32);
            }
        }
        table
    }

    pub(crate) fn inverse_frequencies(&self) -> Vec<f32> {
        let stretch = |frequency: f64| match self.rope_scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let wavelength = std::f64::consts::TAU / frequency;
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        };
        let power = |i: usize| libm::pow(self.rope_theta, -((2 * i) as f64) / self.head_dim as f64);
        (0..self.head_dim / 2)
            .map(|i| stretch(power(i)) as f32)
            .collect()
    }

    /// Reads `config.json` in a folder.
    ///
    /// # Errors
    /// When the file is missing, is not JSON, describes another architecture, or holds a setting that would change
    /// the result and that Russet does not know.
    pub fn open(folder: &Path) -> Result<Config, ModelError> {
        let path = folder.join("config.json");
        Config::parse(&read_json(&path)?).map_err(|problem| ModelError::file(&path, problem))
    }

    /// Reads the object of a `config.json`; the error is a sentence without the file's name.
    ///
    /// # Errors
    /// As for [`Config::open`].
    pub fn parse(json: &Map<String, Value>) -> Result<Config, String> {
        let fields = Fields(json);
        let family = match json
            .get("architectures")
            .and_then(|names| names.get(0))
            .and_then(Value::as_str)
        {
            // The second of each are reward models, whose head lies beside the same decoder.
            Some("Qwen3ForCausalLM" | "Qwen3ForSequenceClassification") => Family::Qwen3,
            Some("LlamaForCausalLM" | "LlamaForSequenceClassification") => Family::Llama,
            other => {
                let name = other.unwrap_or("missing");
                return Err(format!(
                    "the architecture is {name}; Russet reads Qwen3ForCausalLM and LlamaForCausalLM"
                ));
            }
        };
        for bias in ["attention_bias", "mlp_bias"] {
            if fields.flag(bias)? {
                return Err(format!(
                    "`{bias}` is set, but Russet's layers have no biases"
                ));
            }
        }
        if json.get("hidden_act").is_some_and(|v| v != &json!("silu")) {
            return Err(format!(
                "`hidden_act` is {}, but Russet knows only silu",
                json["hidden_act"]
            ));
        }
        let width = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        let head_dim = match json.get("head_dim") {
            None | Some(Value::Null) if width % heads == 0 => width / heads,
            _ => fields.size("head_dim")?,
        };
        let kv_heads = match json.get("num_key_value_heads") {
            None | Some(Value::Null) => heads,
            _ => fields.size("num_key_value_heads")?,
        };
        let layers = fields.size("num_hidden_layers")?;
        let config = Config {
            family,
            vocab: fields.size("vocab_size")?,
            width,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn: fields.size("intermediate_size")?,
            norm_epsilon: fields.number("rms_norm_eps", Some(1e-6))? as f32,
            rope_theta: fields.rope_theta()?,
            rope_scaling: fields.rope_scaling()?,
            attention: Attention::parse(&fields, family, layers)?,
            context: fields.size("max_position_embeddings")?,
            // Where the key is absent both families leave input and output apart.
            tied: fields.flag("tie_word_embeddings")?,
            bos: fields.tokens("bos_token_id")?.first().copied(),
            eos: fields.tokens("eos_token_id")?,
        };
        config.check()?;
        Ok(config)
    }

    /// Whether a model of this shape can exist and be held in memory.
    ///
    /// # Errors
    /// A sentence naming the key.
    pub fn check(&self) -> Result<(), String> {
        for (key, size) in [
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
        ] {
            if !(1..=HEADS).contains(&size) {
                return Err(format!("`{key}` is {size}, but it must lie in 1..={HEADS}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            return Err(format!(
                "{heads} query heads cannot be shared out over {kv_heads} key-value heads"
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!(
                "`head_dim` is {}, but rotation needs an even one",
                self.head_dim
            ));
        }
        if !(self.norm_epsilon >= 0.0 && self.norm_epsilon < 1.0) {
            return Err(format!(
                "`rms_norm_eps` is {}, which is no small positive number",
                self.norm_epsilon
            ));
        }
        if !(self.rope_theta > 1.0 && self.rope_theta.is_finite()) {
            return Err(format!(
                "`rope_theta` is {}, but it must be above 1",
                self.rope_theta
            ));
        }
        if let RopeScaling::Llama3 { low, high, .. } = self.rope_scaling
            && low >= high
        {
            return Err(format!(
                "`low_freq_factor` is {low}, but it must be below `high_freq_factor`, which is {high}"
            ));
        }
        for id in self.bos.iter().chain(&self.eos) {
            if *id as usize >= self.vocab {
                return Err(format!(
                    "token {id} marks a text's beginning or end, but the vocabulary has {}",
                    self.vocab
                ));
            }
        }
        self.check_attention()?;
        // Heads and their widths are bounded above, so their products fit; the rest is multiplied with care.
        let floats = [self.qkv_width(), self.ffn, self.heads * self.head_dim]
            .iter()
            .try_fold(self.vocab.saturating_mul(self.width), |sum, rows| {
                sum.checked_add(rows.checked_mul(self.width)?.checked_mul(self.layers)?)
            })
            .filter(|&floats| floats < WEIGHTS);
        if floats.is_none() {
            return Err("the sizes describe a model of more than four trillion weights".into());
        }
        Ok(())
    }

    /// The object of a `config.json` that `transformers` opens.
    pub fn to_json(&self) -> Map<String, Value> {
        let (architecture, model_type) = match self.family {
            Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
            Family::Llama => ("LlamaForCausalLM", "llama"),
        };
        let scaling = match self.rope_scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original as u64,
            }),
        };
        let eos = match self.eos[..] {
            [] => Value::Null,
            [id] => json!(id),
            _ => json!(self.eos),
        };
        let json = json!({
            "architectures": [architecture],
            "model_type": model_type,
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "hidden_act": "silu",
            "rms_norm_eps": shortest(self.norm_epsilon),
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied,
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos,
            "eos_token_id": eos,
            "dtype": "float32",
            "torch_dtype": "float32",
            "use_cache": true,
        });
        let Value::Object(mut json) = json else {
            unreachable!("the literal above is an object")
        };
        self.attention.write(&mut json);
        json
    }

    /// The same of a reward model, as `transformers` has a classifier of one label. It pools at the last token that is not the
    /// padding, which must therefore have a name; in a batch of one nothing is padded.
    pub fn to_reward_json(&self) -> Map<String, Value> {
        let mut json = self.to_json();
        let architecture = match self.family {
            Family::Qwen3 => "Qwen3ForSequenceClassification",
            Family::Llama => "LlamaForSequenceClassification",
        };
        json.insert("architectures".into(), json!([architecture]));
        json.insert("id2label".into(), json!({"0": "reward"}));
        json.insert("label2id".into(), json!({"reward": 0}));
        let padding = self.bos.or(self.eos.first().copied());
        json.insert("pad_token_id".into(), json!(padding));
        json
    }
}

/// Whether a folder's `config.json` is one of a reward model; no where there is none.
pub fn is_reward(folder: &Path) -> bool {
    let named = |json: Map<String, Value>| {
        let name = json.get("architectures")?.get(0)?.as_str()?;
        Some(name.ends_with("ForSequenceClassification"))
    };
    let json = read_json(&folder.join("config.json")).ok();
    json.and_then(named).unwrap_or(false)
}

/// Reads a JSON object from a file of bounded size.
pub(crate) fn read_json(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let text = read_bounded(path, CONFIG_BYTES)?;
    serde_json::from_slice(&text).map_err(|error| {
        ModelError::file(
            path,
            format!(
                "is not the JSON object it should be ({error}); write it again or fetch it anew"
            ),
        )
    })
}

/// Reads a whole file that should be small.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    read.map_err(|error| ModelError::file(path, error))?;
    if bytes.len() as u64 > limit {
        return Err(ModelError::file(
            path,
            format!("is larger than {limit} bytes, which no such file should be"),
        ));
    }
    Ok(bytes)
}

/// An object of settings, read key by key.
pub(crate) struct Fields<'a>(pub(crate) &'a Map<String, Value>);

impl Fields<'_> {
    fn size(&self, key: &str) -> Result<usize, String> {
        let value = self
            .0
            .get(key)
            .ok_or_else(|| format!("the key `{key}` is missing"))?;
        match value.as_u64() {
            Some(size) if (1..=1 << 32).contains(&size) => Ok(size as usize),
            _ => Err(format!(
                "`{key}` is {value}, but it must be a whole number of at least 1"
            )),
        }
    }

    /// A switch, off where it is missing. Python's writers know `true`, `false` and `null`; `"false"` in quotes would
    /// have to be guessed at.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, String> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            Some(value) => Err(format!("`{key}` is {value}, but it must be true or false")),
        }
    }

    fn number(&self, key: &str, default: Option<f64>) -> Result<f64, String> {
        match (self.0.get(key), default) {
            (None | Some(Value::Null), Some(default)) => Ok(default),
            (Some(value), _) => value
                .as_f64()
                .ok_or_else(|| format!("`{key}` is {value}, but it must be a number")),
            (None, None) => Err(format!("the key `{key}` is missing")),
        }
    }

    /// The object that newer files keep the rotary settings in, or that older ones keep the scaling in.
    fn rope(&self) -> Result<Option<Fields<'_>>, String> {
        for key in ["rope_parameters", "rope_scaling"] {
            match self.0.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Object(rope)) => return Ok(Some(Fields(rope))),
                Some(value) => {
                    return Err(format!("`{key}` is {value}, but it must be an object"));
                }
            }
        }
        Ok(None)
    }

    fn rope_theta(&self) -> Result<f64, String> {
        match self.rope()? {
            Some(rope) if rope.0.contains_key("rope_theta") => rope.number("rope_theta", None),
            _ => self.number("rope_theta", Some(10_000.0)),
        }
    }

    fn rope_scaling(&self) -> Result<RopeScaling, String> {
        let Some(rope) = self.rope()? else {
            return Ok(RopeScaling::None);
        };
        let kind = match rope.0.get("rope_type").or(rope.0.get("type")) {
            None | Some(Value::Null) => "default",
            Some(Value::String(kind)) => kind,
            Some(value) => return Err(format!("`rope_type` is {value}, but it must be a name")),
        };
        let positive = |key: &str| match rope.number(key, None) {
            Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
            Ok(number) => Err(format!("`{key}` is {number}, but it must be above 0")),
            Err(error) => Err(error),
        };
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: positive("factor")?,
            }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: positive("factor")?,
                low: positive("low_freq_factor")?,
                high: positive("high_freq_factor")?,
                original: positive("original_max_position_embeddings")?,
            }),
            other => Err(format!(
                "the rotary scaling `{other}` is not known; Russet knows default, linear and llama3"
            )),
        }
    }

    fn tokens(&self, key: &str) -> Result<Vec<u32>, String> {
        let one = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| format!("`{key}` is {value}, but it must be a token id"))
        };
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(one).collect(),
            Some(id) => Ok(vec![one(id)?]),
        }
    }
}

/// The `f64` that prints as the `f32` does: 1e-5 and not 0.000009999999747378752.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

#[cfg(test)]
mod tests;
