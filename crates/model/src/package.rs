//! Packages: palettized decoders, stored in the kernels' own order and used in place.
//!
//! A package is a Hugging Face folder whose `config.json` has a `quantization_config`:
//! ```json
//! {"quant_method": "russet_palette", "version": 1, "group_rows": 16,
//!  "modules": {"model.layers.0.self_attn.q_proj": {"bits": 4}}}
//! ```
//! Each module has three tensors: `NAME.indices` (U8, strips of 16 rows as `russet_kernels::palette` lays them
//! out), `NAME.palette` (I8, `[strips, entries]`) and `NAME.scales` (F16, one a row, rows padded to 16). Where an index stands
//! for a pair of weights, the module says `{"bits": 3, "dims": 2}`, and its palette is `[strips, 2, entries]`. A table that is no
//! module has 8 bits: `model.embed_tokens.values` (I8, strip order of `russet_kernels::int8`) and `.scales`; listed as
//! `"model.embed_tokens": {"bits": 4}` it is stored as a projection is, and so is `lm_head`. Norms are F32 under their usual names.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use russet_kernels::palette::Bits;
use russet_kernels::{int8, palette};
use russet_tensor::{DType, FrozenTable, Int8Weight, PaletteWeight};
use serde_json::{Map, Value, json};

use crate::checkpoint::{assemble, write_config};
use crate::stored::{self, Output, Planned, Stored};
use crate::{Config, Embedding, Layout, Linear, ModelError, Palettized};

mod random;

pub use random::{random, write_random};

/// The name under `quant_method`.
const METHOD: &str = "russet_palette";

/// The tables that a package has, an output table where it is not tied.
const TABLES: [&str; 2] = ["model.embed_tokens", "lm_head"];

/// Whether a module is a table and no projection: it need not be palettized.
pub fn is_table(module: &str) -> bool {
    TABLES.contains(&module)
}

/// The stored form of one palettized matrix.
pub struct PaletteTensors {
    /// Bits a weight, of single weights or of pairs.
    pub bits: Bits,
    /// Packed indices in strip order.
    pub indices: Vec<u8>,
    /// Table entries, strips one after another; of pairs a strip's first numbers, then its second ones.
    pub palette: Vec<i8>,
    /// Row scales, rows padded to 16.
    pub scales: Vec<half::f16>,
}

impl PaletteTensors {
    /// Bytes that it takes in the file.
    pub fn bytes(&self) -> usize {
        self.indices.len() + self.palette.len() + 2 * self.scales.len()
    }
}

/// What a package is written from.
pub struct Package<'a> {
    /// The decoder's shape.
    pub config: &'a Config,
    /// Tables of 8 bits by name without suffix (`model.embed_tokens`, `lm_head`).
    pub tables: BTreeMap<String, int8::Quantized>,
    /// Projections by name, and tables that are palettized as well.
    pub modules: BTreeMap<String, PaletteTensors>,
    /// Norms by full name.
    pub norms: BTreeMap<String, &'a [f32]>,
}

/// Reads a package, its weights mapped and used in place.
///
/// # Errors
/// When a file is missing, damaged, or of a version or method that Russet does not know.
pub fn load(folder: &Path) -> Result<crate::Decoder, ModelError> {
    let path = folder.join("config.json");
    let json = crate::config::read_json(&path)?;
    let config = Config::parse(&json).map_err(|problem| ModelError::file(&path, problem))?;
    let modules = modules(&json, &config).map_err(|problem| ModelError::file(&path, problem))?;
    let mut stored = Stored::open(folder, "model")?;
    let decoder = assemble(
        &config,
        &mut stored,
        |stored, name| {
            let shape = (config.vocab, config.width);
            table(stored, name, shape, &modules, &path).map(Embedding::Frozen)
        },
        |stored, layout| linear(stored, layout, &modules, &path),
    )?;
    stored.finish()?;
    Ok(decoder)
}

/// Writes `config.json` and the weights of the package in `from` once more into `to`, with other indices, palettes and scales of some
/// projections, whose bits stay.
///
/// # Errors
/// When `from` cannot be read, a projection is none of its own or has another size, or the disk refuses.
pub fn replace(
    from: &Path,
    modules: &BTreeMap<String, PaletteTensors>,
    to: &Path,
) -> Result<(), ModelError> {
    let path = from.join("config.json");
    std::fs::copy(&path, to.join("config.json")).map_err(|error| ModelError::file(&path, error))?;
    let mut stored = Stored::open(from, "model")?;
    let mut replaced = BTreeMap::new();
    for (name, module) in modules {
        replaced.insert(format!("{name}.indices"), &module.indices[..]);
        replaced.insert(
            format!("{name}.palette"),
            bytemuck::cast_slice(&module.palette),
        );
        replaced.insert(
            format!("{name}.scales"),
            bytemuck::cast_slice(&module.scales),
        );
    }
    let names: Vec<String> = stored.names().map(str::to_owned).collect();
    let mut kept = Vec::new();
    for name in names {
        let shape = stored.shape(&name).expect("it is left").to_vec();
        kept.push((stored.take(&name, &shape)?, name));
    }
    let mut tensors = Vec::new();
    for (tensor, name) in &kept {
        let bytes = replaced.remove(name).unwrap_or(tensor.bytes());
        if bytes.len() != tensor.bytes().len() {
            let problem = "is replaced by one of another size";
            return Err(ModelError::tensor(from, name, problem));
        }
        tensors.push(Output {
            name: name.clone(),
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            bytes,
        });
    }
    if let Some(name) = replaced.keys().next() {
        return Err(ModelError::tensor(
            from,
            name,
            "is not there to be replaced",
        ));
    }
    stored::write(to, "model", &tensors, stored::SHARD_BYTES)
}

/// The bits of each module, from `quantization_config`.
pub(crate) fn modules(
    json: &Map<String, Value>,
    config: &Config,
) -> Result<BTreeMap<String, Bits>, String> {
    let quantization = json.get("quantization_config").and_then(Value::as_object);
    let quantization =
        quantization.ok_or("`quantization_config` is missing, so this is no package")?;
    let method = quantization
        .get("quant_method")
        .and_then(Value::as_str)
        .unwrap_or("missing");
    if method != METHOD {
        return Err(format!(
            "the weights are quantized by `{method}`; Russet reads {METHOD} and unquantized checkpoints"
        ));
    }
    let known = json!({"version": 1, "group_rows": palette::STRIP});
    for (key, value) in quantization {
        let fine = match key.as_str() {
            "quant_method" | "modules" => true,
            key => known.get(key) == Some(value),
        };
        if !fine {
            return Err(format!(
                "`quantization_config.{key}` is {value}, which this version of Russet does not know"
            ));
        }
    }
    let modules = quantization
        .get("modules")
        .and_then(Value::as_object)
        .ok_or("`quantization_config.modules` is missing")?;
    let bits = |(name, settings): (&String, &Value)| {
        let number = |key: &str| settings.get(key)?.as_u64().map(|number| number as usize);
        let keys = settings.as_object().map_or(0, Map::len);
        let bits = match (number("bits"), number("dims")) {
            (Some(bits), None) if keys == 1 => Bits::from_bits(bits),
            (Some(bits), Some(dims)) if keys == 2 => Bits::new(bits, dims),
            _ => None,
        };
        match bits {
            Some(bits) => Ok((name.clone(), bits)),
            None => Err(format!(
                "the settings of module `{name}` are {settings}; Russet knows {{\"bits\": 2}}, {{\"bits\": 3}} and {{\"bits\": 4}}, \
                 and beside each \"dims\": 2, where an index stands for two weights"
            )),
        }
    };
    let known: BTreeSet<String> = crate::cut::tensors(config)
        .into_iter()
        .filter(|(_, shape)| shape.len() == 2)
        .map(|(name, _)| name)
        .collect();
    let unknown = |name: &&String| !known.contains(&format!("{name}.weight"));
    if let Some(name) = modules.keys().find(unknown) {
        return Err(format!(
            "`quantization_config.modules` lists `{name}`, of which the configuration has no matrix; take it out"
        ));
    }
    modules.iter().map(bits).collect()
}

/// One table of a package, `[rows, cols]`: of palettes where the modules list it, else of 8 bits.
pub(crate) fn table(
    stored: &mut Stored,
    name: &str,
    (rows, cols): (usize, usize),
    modules: &BTreeMap<String, Bits>,
    config: &Path,
) -> Result<FrozenTable, ModelError> {
    if modules.contains_key(name) {
        let weight = palettized(stored, name, (rows, cols), modules, config)?;
        return Ok(FrozenTable::Palette(weight));
    }
    let sizes =
        int8::sizes(rows, cols).map_err(|error| ModelError::tensor(stored.place(), name, error))?;
    let values = stored.take(&format!("{name}.values"), &[sizes.data])?;
    let scales = stored.take(&format!("{name}.scales"), &[sizes.scales])?;
    Int8Weight::new(rows, cols, values, scales)
        .map(FrozenTable::Int8)
        .map_err(|error| ModelError::tensor(stored.place(), name, error))
}

fn linear(
    stored: &mut Stored,
    layout: Layout,
    modules: &BTreeMap<String, Bits>,
    config: &Path,
) -> Result<Box<dyn Linear>, ModelError> {
    let mut weights = Vec::new();
    for projection in &layout.projections {
        let (name, shape) = (&projection.name, (projection.rows, layout.inputs));
        weights.push(palettized(stored, name, shape, modules, config)?);
    }
    Ok(Box::new(Palettized::new(layout, weights)))
}

/// The shape of a palette, in a package.
fn palette_shape(bits: Bits, strips: usize) -> Vec<usize> {
    match bits.dims() {
        1 => vec![strips, bits.entries()],
        dims => vec![strips, dims, bits.entries()],
    }
}

/// One palettized matrix of a package, `[rows, cols]`.
pub(crate) fn palettized(
    stored: &mut Stored,
    name: &str,
    (rows, cols): (usize, usize),
    modules: &BTreeMap<String, Bits>,
    config: &Path,
) -> Result<PaletteWeight, ModelError> {
    let bits = *modules.get(name).ok_or_else(|| {
        ModelError::file(
            config,
            format!("`quantization_config.modules` does not list `{name}`"),
        )
    })?;
    let sizes = palette::sizes(bits, rows, cols)
        .map_err(|error| ModelError::tensor(stored.place(), name, error))?;
    let strips = sizes.scales / palette::STRIP;
    let indices = stored.take(
        &format!("{name}.indices"),
        &[strips, sizes.indices / strips],
    )?;
    let entries = stored.take(&format!("{name}.palette"), &palette_shape(bits, strips))?;
    let scales = stored.take(&format!("{name}.scales"), &[sizes.scales])?;
    PaletteWeight::new(bits, rows, cols, indices, entries, scales)
        .map_err(|error| ModelError::tensor(stored.place(), name, error))
}

/// Writes a package's `config.json`, `generation_config.json` and weights into `folder`, tensor by tensor: `bytes` gives each by its name, once. `modules`
/// are the bits, rows and columns of every projection, and of a table that is palettized. Returns the bytes of the tensors.
///
/// # Errors
/// When a size is none that a package can have, the disk refuses, or `bytes` does.
pub fn write_each<'a>(
    config: &Config,
    modules: &BTreeMap<String, (Bits, usize, usize)>,
    folder: &Path,
    mut bytes: impl FnMut(&str) -> Result<Cow<'a, [u8]>, ModelError>,
) -> Result<usize, ModelError> {
    write_settings(
        config,
        modules.iter().map(|(name, module)| (name, module.0)),
        folder,
    )?;
    let wrong = |name: &str, error: &dyn std::fmt::Display| ModelError::tensor(folder, name, error);
    let mut planned = Vec::new();
    let mut plan = |name, dtype, shape| planned.push(Planned { name, dtype, shape });
    for (name, shape) in crate::cut::tensors(config) {
        let module = name.strip_suffix(".weight").unwrap_or(&name);
        match (&shape[..], modules.get(module)) {
            (&[_], _) => plan(name, DType::F32, shape),
            (_, Some(&(bits, rows, cols))) => {
                let sizes =
                    palette::sizes(bits, rows, cols).map_err(|error| wrong(module, &error))?;
                let strips = sizes.scales / palette::STRIP;
                let indices = vec![strips, sizes.indices / strips];
                plan(format!("{module}.indices"), DType::U8, indices);
                plan(
                    format!("{module}.palette"),
                    DType::I8,
                    palette_shape(bits, strips),
                );
                plan(format!("{module}.scales"), DType::F16, vec![sizes.scales]);
            }
            (_, None) if !is_table(module) => {
                return Err(wrong(module, &"has no bits"));
            }
            (_, None) => {
                let sizes = int8::sizes(config.vocab, config.width)
                    .map_err(|error| wrong(module, &error))?;
                plan(format!("{module}.values"), DType::I8, vec![sizes.data]);
                plan(format!("{module}.scales"), DType::F16, vec![sizes.scales]);
            }
        }
    }
    let mut total = 0;
    stored::write_each(folder, "model", &planned, stored::SHARD_BYTES, |index| {
        let bytes = bytes(&planned[index].name)?;
        total += bytes.len();
        Ok(bytes)
    })?;
    Ok(total)
}

/// Writes `config.json` and `generation_config.json` of a package.
fn write_settings<'a>(
    config: &Config,
    modules: impl Iterator<Item = (&'a String, Bits)>,
    folder: &Path,
) -> Result<(), ModelError> {
    let modules: Map<String, Value> = modules
        .map(|(name, bits)| {
            let settings = match bits.dims() {
                1 => json!({"bits": bits.bits()}),
                dims => json!({"bits": bits.bits(), "dims": dims}),
            };
            (name.clone(), settings)
        })
        .collect();
    let quantization = json!({"quant_method": METHOD, "version": 1, "group_rows": palette::STRIP, "modules": modules});
    write_config(config, Some(quantization), folder)
}

/// Writes a package's `config.json`, `generation_config.json` and weights into `folder`, which should be a draft that
/// is renamed into place. Returns the bytes of the tensors.
///
/// # Errors
/// When the disk refuses.
pub fn write(package: &Package, folder: &Path) -> Result<usize, ModelError> {
    let bits = package
        .modules
        .iter()
        .map(|(name, module)| (name, module.bits));
    write_settings(package.config, bits, folder)?;
    let mut tensors = Vec::new();
    let mut add = |name: String, dtype, shape: Vec<usize>, bytes| {
        tensors.push(Output {
            name,
            dtype,
            shape,
            bytes,
        })
    };
    for (name, values) in &package.norms {
        add(
            name.clone(),
            DType::F32,
            vec![values.len()],
            bytemuck::cast_slice(values),
        );
    }
    for (name, table) in &package.tables {
        add(
            format!("{name}.values"),
            DType::I8,
            vec![table.data.len()],
            bytemuck::cast_slice(&table.data),
        );
        add(
            format!("{name}.scales"),
            DType::F16,
            vec![table.scales.len()],
            bytemuck::cast_slice(&table.scales),
        );
    }
    for (name, module) in &package.modules {
        let strips = module.scales.len() / palette::STRIP;
        add(
            format!("{name}.indices"),
            DType::U8,
            vec![strips, module.indices.len() / strips],
            &module.indices,
        );
        add(
            format!("{name}.palette"),
            DType::I8,
            palette_shape(module.bits, strips),
            bytemuck::cast_slice(&module.palette),
        );
        add(
            format!("{name}.scales"),
            DType::F16,
            vec![module.scales.len()],
            bytemuck::cast_slice(&module.scales),
        );
    }
    stored::write(folder, "model", &tensors, stored::SHARD_BYTES)?;
    Ok(tensors.iter().map(|tensor| tensor.bytes.len()).sum())
}
