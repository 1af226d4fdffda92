//! A model's tensors in f32 under their names in a checkpoint, one at a time: what converts a model need not hold it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use russet_kernels::Pool;
use russet_kernels::palette::{self, Bits};
use russet_tensor::PaletteWeight;

use crate::stored::Stored;
use crate::{Config, ModelError, cut, package};

/// The tensors of a checkpoint or of a package, those of a package as its tables, indices and scales say them.
pub struct Weights {
    config: Config,
    stored: Stored,
    /// Of a package: the bits of its projections, and of tables that are palettized as well.
    modules: Option<BTreeMap<String, Bits>>,
    config_path: PathBuf,
}

impl Weights {
    /// Opens a folder of either kind.
    ///
    /// # Errors
    /// When a file is missing, damaged, or describes what Russet does not know.
    pub fn open(folder: &Path) -> Result<Weights, ModelError> {
        let path = folder.join("config.json");
        let json = crate::config::read_json(&path)?;
        let wrong = |problem: String| ModelError::file(&path, problem);
        let config = Config::parse(&json).map_err(wrong)?;
        let modules = match json.get("quantization_config") {
            None | Some(serde_json::Value::Null) => None,
            Some(_) => Some(package::modules(&json, &config).map_err(wrong)?),
        };
        Ok(Weights {
            config,
            stored: Stored::open(folder, "model")?,
            modules,
            config_path: path,
        })
    }

    /// The decoder's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether they are a package's, already changed by quantization.
    pub fn are_palettized(&self) -> bool {
        self.modules.is_some()
    }

    /// Names and shapes of all tensors.
    ///
    /// # Errors
    /// When the configuration has more layers than there are tensors.
    pub fn tensors(&self) -> Result<Vec<(String, Vec<usize>)>, ModelError> {
        if self.config.layers > self.stored.count() {
            let (layers, tensors) = (self.config.layers, self.stored.count());
            let problem = format!("has {layers} layers, but the weights are {tensors} tensors");
            return Err(ModelError::file(&self.config_path, problem));
        }
        Ok(cut::tensors(&self.config))
    }

    /// Takes one tensor.
    ///
    /// # Errors
    /// When it is missing or of another shape.
    pub fn take(
        &mut self,
        pool: &Pool,
        name: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, ModelError> {
        let (&[rows, cols], Some(modules)) = (shape, &self.modules) else {
            return Ok(self.stored.take_floats(name, shape)?.to_f32());
        };
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let (stored, place) = (&mut self.stored, &self.config_path);
        if package::is_table(module) {
            let table = package::table(stored, module, (rows, cols), modules, place)?;
            let mut numbers = vec![0.0; rows * cols];
            table.dequantize(pool, &mut numbers);
            return Ok(numbers);
        }
        let weight = package::palettized(stored, module, (rows, cols), modules, place)?;
        let mut numbers = vec![0.0; rows * cols];
        palette::dequantize(pool, weight.view(), &mut numbers);
        Ok(numbers)
    }

    /// Takes a projection of a package, `[rows, cols]`, as it is stored.
    ///
    /// # Errors
    /// When it is missing, of another shape, or this is no package.
    pub fn take_palettized(
        &mut self,
        name: &str,
        shape: (usize, usize),
    ) -> Result<PaletteWeight, ModelError> {
        let place = &self.config_path;
        let none = BTreeMap::new();
        let modules = self.modules.as_ref().unwrap_or(&none);
        package::palettized(&mut self.stored, name, shape, modules, place)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// When a tensor is left that is no part of the architecture: it would have been ignored silently.
    pub fn finish(self) -> Result<(), ModelError> {
        match self.modules {
            Some(_) => self.stored.finish(),
            None => crate::checkpoint::finish(&self.config, self.stored),
        }
    }
}
