//! Which layers see how far back, and whose keys and values they use.
//!
//! A row of a *sliding* layer sees its own key and the W - 1 before it (arXiv 2310.06825), as `transformers` reads `sliding_window`. The
//! last layers may *share* keys and values: they have queries alone, and see the keys and values of the last layer before them all that
//! slides or does not as they do (Gemma 3n's rule; of one kind of layers, that of the Apple models of 2025).
//!
//! ```text
//! layer         0         1       2         3         4       with num_kv_shared_layers = 2
//!               sliding   full    sliding   sliding   full
//! keys of       0         1       2         2         1
//! ```

use russet_kernels::attention::NO_WINDOW;
use serde_json::{Map, Value, json};

use super::Fields;
use crate::{Config, Family};

/// Layers of a model whose layers differ, at most: each is listed. Hundreds of times what any published model has.
const LISTED: usize = 1 << 16;

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// How layers differ in what they see. The default is that they do not: all see everything, by keys and values of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attention {
    /// W of the layers that slide; 0 where none does.
    pub window: usize,
    /// Which layers slide, one each; empty where none does.
    pub sliding: Vec<bool>,
    /// How many of the last layers use keys and values of layers before them.
    pub kv_shared: usize,
}

/// What one layer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerAttention {
    /// W, or [`NO_WINDOW`].
    pub window: usize,
    /// The layer whose keys and values it uses: itself, or one before it.
    pub keys_of: usize,
    /// Whether it has no keys and values of its own.
    pub shares: bool,
    /// Whether a later layer uses its keys and values.
    pub lends: bool,
}

impl Attention {
    /// Of layers that slide or not; where none does the window says nothing.
    pub fn new(window: usize, sliding: Vec<bool>, kv_shared: usize) -> Attention {
        match sliding.contains(&true) {
            true => Attention {
                window,
                sliding,
                kv_shared,
            },
            false => Attention {
                kv_shared,
                ..Attention::default()
            },
        }
    }

    fn slides(&self, layer: usize) -> bool {
        self.sliding.get(layer).copied().unwrap_or(false)
    }

    /// Reads the keys of a `config.json`.
    pub(super) fn parse(
        fields: &Fields,
        family: Family,
        layers: usize,
    ) -> Result<Attention, String> {
        let count = |key: &str| match fields.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(count) => Ok(Some(usize::try_from(count).unwrap_or(usize::MAX))),
                None => Err(format!("`{key}` is {value}, but it must be a whole number")),
            },
        };
        let kv_shared = count("num_kv_shared_layers")?.unwrap_or(0);
        let types = layer_types(fields, layers)?;
        if !fields.flag("use_sliding_window")? {
            let listed = types.iter().flatten().position(|&slides| slides);
            return match listed {
                None => Ok(Attention::new(0, Vec::new(), kv_shared)),
                Some(layer) => Err(format!(
                    "`layer_types` says that layer {layer} is a {SLIDING}, but `use_sliding_window` is not true; set it, or make \
                     every layer a {FULL}"
                )),
            };
        }
        if family == Family::Llama {
            return Err(
                "`use_sliding_window` is set, but a LlamaForCausalLM has no sliding windows; Qwen3ForCausalLM has"
                    .into(),
            );
        }
        let window = match fields.0.get("sliding_window") {
            None | Some(Value::Null) => {
                return Err(
                    "`use_sliding_window` is set, but `sliding_window` does not say how many tokens a layer sees"
                        .into(),
                );
            }
            _ => fields.size("sliding_window")?,
        };
        let sliding = match (types, count("max_window_layers")?) {
            (Some(types), _) => types,
            (None, Some(full)) if layers <= LISTED => (0..layers).map(|l| l >= full).collect(),
            (None, Some(_)) => return Err(too_many(layers)),
            (None, None) => {
                return Err(
                    "`use_sliding_window` is set, but neither `layer_types` nor `max_window_layers` says which layers slide"
                        .into(),
                );
            }
        };
        Ok(Attention::new(window, sliding, kv_shared))
    }

    /// Adds the keys that `transformers` reads, and `num_kv_shared_layers`, where layers differ.
    pub(super) fn write(&self, json: &mut Map<String, Value>) {
        if !self.sliding.is_empty() {
            let name = |&slides: &bool| if slides { SLIDING } else { FULL };
            let types: Vec<&str> = self.sliding.iter().map(name).collect();
            let full = self.sliding.iter().take_while(|&&slides| !slides).count();
            json.insert("use_sliding_window".into(), json!(true));
            json.insert("sliding_window".into(), json!(self.window));
            json.insert("max_window_layers".into(), json!(full));
            json.insert("layer_types".into(), json!(types));
        }
        if self.kv_shared > 0 {
            json.insert("num_kv_shared_layers".into(), json!(self.kv_shared));
        }
    }
}

fn too_many(layers: usize) -> String {
    format!("`num_hidden_layers` is {layers}, but layers that differ must be at most {LISTED}")
}

/// Which layers slide, where it is listed.
fn layer_types(fields: &Fields, layers: usize) -> Result<Option<Vec<bool>>, String> {
    let types = match fields.0.get("layer_types") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(types)) => types,
        Some(value) => return Err(format!("`layer_types` is {value}, but it must be a list")),
    };
    if types.len() != layers {
        return Err(format!(
            "`layer_types` lists {} layers, but `num_hidden_layers` is {layers}",
            types.len()
        ));
    }
    let slides = |(layer, name): (usize, &Value)| match name.as_str() {
        Some(FULL) => Ok(false),
        Some(SLIDING) => Ok(true),
        _ => Err(format!(
            "`layer_types` says that layer {layer} is {name}; Russet knows {FULL} and {SLIDING}"
        )),
    };
    let slides = types.iter().enumerate().map(slides);
    slides.collect::<Result<_, _>>().map(Some)
}

impl Config {
    /// What layer `layer` sees.
    ///
    /// # Panics
    /// When it shares keys and values that no layer has, which [`Config::check`] says.
    pub fn attention_of(&self, layer: usize) -> LayerAttention {
        let shares = self.shares_keys(layer);
        let keys_of = match shares {
            false => layer,
            true => self.lender(layer).expect("a layer whose keys are shared"),
        };
        let sharing = self.kv_layers().max(layer + 1)..self.layers;
        LayerAttention {
            window: match self.attention.slides(layer) {
                true => self.attention.window,
                false => NO_WINDOW,
            },
            keys_of,
            shares,
            lends: !shares && sharing.into_iter().any(|l| self.lender(l) == Some(layer)),
        }
    }

    /// The last layer of the kind of `layer` among those that have keys and values.
    fn lender(&self, layer: usize) -> Option<usize> {
        let kind = self.attention.slides(layer);
        let mut own = 0..self.kv_layers();
        own.rfind(|&own| self.attention.slides(own) == kind)
    }

    /// How many layers have keys and values; they are the first.
    pub fn kv_layers(&self) -> usize {
        self.layers.saturating_sub(self.attention.kv_shared)
    }

    /// Whether a layer has queries alone.
    pub fn shares_keys(&self, layer: usize) -> bool {
        layer >= self.kv_layers()
    }

    /// How many layers have keys and values that later ones use.
    pub fn lenders(&self) -> usize {
        let sharing = self.kv_layers()..self.layers;
        let kinds = [false, true].map(|kind| {
            let mut sharing = sharing.clone();
            sharing.any(|layer| self.attention.slides(layer) == kind)
        });
        kinds.iter().filter(|there| **there).count()
    }

    /// How many layers slide.
    fn sliding_layers(&self) -> usize {
        self.attention.sliding.iter().filter(|s| **s).count()
    }

    /// Keys that a token which sees `context` tokens where nothing slides sees in all layers together.
    pub(super) fn keys_seen(&self, context: usize) -> f64 {
        let sliding = self.sliding_layers();
        let windows = sliding as f64 * context.min(self.attention.window) as f64;
        (self.layers - sliding) as f64 * context as f64 + windows
    }

    /// Pairs of a token and a key that it sees, in a sequence of `len` tokens and all layers.
    pub fn pairs(&self, len: usize) -> f64 {
        let triangle = |len: f64| len * (len + 1.0) / 2.0;
        let sliding = self.sliding_layers();
        let window = self.attention.window.min(len);
        let through = triangle(window as f64) + (len - window) as f64 * window as f64;
        (self.layers - sliding) as f64 * triangle(len as f64) + sliding as f64 * through
    }

    /// See [`Config::check`].
    pub(super) fn check_attention(&self) -> Result<(), String> {
        let Attention {
            window,
            sliding,
            kv_shared,
        } = &self.attention;
        if (*window > 0 || *kv_shared > 0) && self.layers > LISTED {
            return Err(too_many(self.layers));
        }
        if !sliding.is_empty() && sliding.len() != self.layers {
            return Err(format!(
                "`layer_types` lists {} layers, but `num_hidden_layers` is {}",
                sliding.len(),
                self.layers
            ));
        }
        if (*window > 0) != sliding.contains(&true) {
            return Err(format!(
                "`sliding_window` is {window}, but {} layers slide",
                self.sliding_layers()
            ));
        }
        if *window > 0 && self.family == Family::Llama {
            return Err("a LlamaForCausalLM has no sliding windows; Qwen3ForCausalLM has".into());
        }
        if *kv_shared >= self.layers.max(1) {
            return Err(format!(
                "`num_kv_shared_layers` is {kv_shared}, but of {} layers one at least must have keys and values",
                self.layers
            ));
        }
        let own = self.kv_layers();
        if let Some(layer) = (own..self.layers).find(|&layer| self.lender(layer).is_none()) {
            let kind = if self.attention.slides(layer) {
                SLIDING
            } else {
                FULL
            };
            return Err(format!(
                "`num_kv_shared_layers` is {kv_shared}, so layer {layer} must use the keys and values of a {kind} among layers 0 to \
                 {}, where there is none; share fewer layers, or change `layer_types`",
                own - 1
            ));
        }
        Ok(())
    }
}
