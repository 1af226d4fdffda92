//! Safetensors files, read mapped and checked, written whole or not at all.
//!
//! The header is parsed by the `safetensors` crate, which bounds it and checks every offset; here tensors are found
//! over one file or a sharded set, and asked for by name, type and shape.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russet_kernels::Mmap;
use russet_tensor::{DType, Tensor};
use safetensors::{Dtype, SafeTensors, View};
use serde_json::{Value, json};

use crate::ModelError;
use crate::config::read_bounded;

/// Largest `model.safetensors.index.json` that is read, in bytes.
const INDEX_BYTES: u64 = 64 << 20;

/// A file is closed and the next begun when it would pass this size, as the Hugging Face writers do.
pub const SHARD_BYTES: usize = 5_000_000_000;

/// The tensors of a folder or a file, by name.
pub struct Stored {
    place: PathBuf,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    dtype: DType,
    shape: Vec<usize>,
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Stored {
    /// Opens `NAME.safetensors` of a folder, or the shards that `NAME.safetensors.index.json` lists.
    ///
    /// # Errors
    /// When neither is there, or a file is truncated, malformed or hostile.
    pub fn open(folder: &Path, name: &str) -> Result<Stored, ModelError> {
        let index = folder.join(format!("{name}.safetensors.index.json"));
        if !index.exists() {
            return Stored::open_file(&folder.join(format!("{name}.safetensors")));
        }
        let json: Value = serde_json::from_slice(&read_bounded(&index, INDEX_BYTES)?)
            .map_err(|error| ModelError::file(&index, format!("is not JSON: {error}")))?;
        let weights = json.get("weight_map").and_then(Value::as_object);
        let weights = weights.ok_or_else(|| ModelError::file(&index, "has no `weight_map`"))?;
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in weights {
            let file = file
                .as_str()
                .filter(|f| !f.contains(['/', '\\']) && f.ends_with(".safetensors"));
            let file = file.ok_or_else(|| {
                ModelError::tensor(
                    &index,
                    tensor,
                    "is not said to lie in a safetensors file of the same folder",
                )
            })?;
            shards.entry(file).or_default().push(tensor);
        }
        let mut all = Stored {
            place: folder.to_path_buf(),
            entries: BTreeMap::new(),
        };
        for (file, tensors) in shards {
            let path = folder.join(file);
            let mut shard = Stored::open_file(&path)?;
            for tensor in tensors {
                let entry = shard.entries.remove(tensor);
                let entry = entry.ok_or_else(|| {
                    ModelError::tensor(
                        &path,
                        tensor,
                        "is listed in the index but is not in the file",
                    )
                })?;
                all.entries.insert(tensor.to_owned(), entry);
            }
            if let Some(tensor) = shard.entries.into_keys().next() {
                return Err(ModelError::tensor(
                    &path,
                    &tensor,
                    "is in the file but not listed in the index",
                ));
            }
        }
        Ok(all)
    }

    /// Opens one file.
    ///
    /// # Errors
    /// As for [`Stored::open`].
    pub fn open_file(path: &Path) -> Result<Stored, ModelError> {
        let map = Arc::new(Mmap::open(path).map_err(|error| ModelError::unmapped(path, error))?);
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            ModelError::file(path, format!(
                    "is not a whole safetensors file ({error}); it was probably not written to its end, so write or fetch it again"
                ))
        })?;
        let data = header + 8; // the header's length stands before it
        let mut entries = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let dtype = match info.dtype {
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                Dtype::I8 => DType::I8,
                Dtype::U8 => DType::U8,
                other => {
                    let problem =
                        format!("has the type {other:?}; Russet reads F32, F16, BF16, I8 and U8");
                    return Err(ModelError::tensor(path, &name, problem));
                }
            };
            let range = data + info.data_offsets.0..data + info.data_offsets.1;
            if range.start > range.end || range.end > map.len() {
                return Err(ModelError::tensor(
                    path,
                    &name,
                    "lies outside the file; it is truncated or damaged",
                ));
            }
            entries.insert(
                name,
                Entry {
                    dtype,
                    shape: info.shape.clone(),
                    map: map.clone(),
                    range,
                },
            );
        }
        Ok(Stored {
            place: path.to_path_buf(),
            entries,
        })
    }

    /// The folder or file, for errors.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Whether a tensor of this name is left.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The names that are left, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor that is left.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| &entry.shape[..])
    }

    /// Takes a tensor as it is stored, over the map.
    ///
    /// # Errors
    /// When it is missing or of another shape.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let entry = self.entries.remove(name).ok_or_else(|| {
            ModelError::tensor(
                &self.place,
                name,
                "is missing; is this folder the checkpoint that its config.json describes?",
            )
        })?;
        if entry.shape != shape {
            let problem = format!(
                "has the shape {:?}, but the configuration asks for {shape:?}",
                entry.shape
            );
            return Err(ModelError::tensor(&self.place, name, problem));
        }
        Tensor::from_map(entry.dtype, shape, &entry.map, entry.range)
            .map_err(|error| ModelError::tensor(&self.place, name, error))
    }

    /// Takes a tensor of floats of any width as it is stored, over the map.
    ///
    /// # Errors
    /// When it is missing, of another shape, or of integers.
    pub fn take_floats(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let tensor = self.take(name, shape)?;
        match tensor.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => Ok(tensor),
            other => {
                let problem = format!("holds {other:?}, but floats are needed here");
                Err(ModelError::tensor(&self.place, name, problem))
            }
        }
    }

    /// Takes a tensor of floats, converted to `f32`.
    ///
    /// # Errors
    /// As for [`Stored::take_floats`].
    pub fn take_f32(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        Ok(Tensor::new(shape, self.take_floats(name, shape)?.to_f32()))
    }

    /// How many tensors are left.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Drops a tensor that may be there and says nothing.
    pub fn ignore(&mut self, name: &str) {
        self.entries.remove(name);
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// When a tensor is left that nothing asked for: it would have been ignored silently.
    pub fn finish(self) -> Result<(), ModelError> {
        match self.entries.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(ModelError::tensor(
                &self.place,
                &name,
                "is not part of the architecture in config.json",
            )),
        }
    }
}

/// A tensor to be written.
pub struct Output<'a> {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: DType,
    /// Its dims.
    pub shape: Vec<usize>,
    /// Its bytes, little-endian.
    pub bytes: &'a [u8],
}

/// A tensor that is to be written and whose bytes come later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: DType,
    /// Its dims.
    pub shape: Vec<usize>,
}

impl Planned {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

/// Writes tensors as `NAME.safetensors`, or as shards with an index where they pass `shard_bytes`. The caller gives a
/// folder that is not yet in its place, so that a reader never sees half of them.
///
/// # Errors
/// When the disk refuses.
pub fn write(
    folder: &Path,
    name: &str,
    tensors: &[Output],
    shard_bytes: usize,
) -> Result<(), ModelError> {
    let planned: Vec<Planned> = tensors
        .iter()
        .map(|tensor| Planned {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
        })
        .collect();
    write_each(folder, name, &planned, shard_bytes, |index| {
        Ok(Cow::Borrowed(tensors[index].bytes))
    })
}

/// As [`write()`], of tensors that `bytes` gives by their number, one at a time and each once: only one is in memory.
///
/// # Errors
/// When the disk refuses or `bytes` does.
pub fn write_each<'a>(
    folder: &Path,
    name: &str,
    tensors: &[Planned],
    shard_bytes: usize,
    bytes: impl FnMut(usize) -> Result<Cow<'a, [u8]>, ModelError>,
) -> Result<(), ModelError> {
    let maker = RefCell::new(Maker {
        bytes,
        problem: None,
    });
    let mut shards: Vec<Vec<usize>> = vec![Vec::new()];
    let mut size = 0;
    for (index, tensor) in tensors.iter().enumerate() {
        if size + tensor.bytes() > shard_bytes && size > 0 {
            shards.push(Vec::new());
            size = 0;
        }
        size += tensor.bytes();
        shards.last_mut().expect("there is always one").push(index);
    }
    if let [only] = &shards[..] {
        let path = folder.join(format!("{name}.safetensors"));
        return write_file(&path, tensors, only, &maker);
    }
    let mut weights = serde_json::Map::new();
    for (k, shard) in shards.iter().enumerate() {
        let file = format!("{name}-{:05}-of-{:05}.safetensors", k + 1, shards.len());
        write_file(&folder.join(&file), tensors, shard, &maker)?;
        weights.extend(
            shard
                .iter()
                .map(|&index| (tensors[index].name.clone(), json!(file))),
        );
    }
    let total: usize = tensors.iter().map(Planned::bytes).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weights});
    let path = folder.join(format!("{name}.safetensors.index.json"));
    std::fs::write(&path, format!("{index:#}\n")).map_err(|error| ModelError::file(&path, error))
}

/// Where the bytes of tensors come from, and what went wrong there: `safetensors` asks for bytes and takes no refusal.
struct Maker<F> {
    bytes: F,
    problem: Option<ModelError>,
}

/// A tensor whose bytes are made when the file has come to it.
struct Late<'m, 'a, F> {
    plan: &'m Planned,
    index: usize,
    maker: &'m RefCell<Maker<F>>,
    /// How long bytes last that are not made but lent.
    lent: PhantomData<&'a [u8]>,
}

impl<'a, F: FnMut(usize) -> Result<Cow<'a, [u8]>, ModelError>> View for Late<'_, 'a, F> {
    fn dtype(&self) -> Dtype {
        match self.plan.dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I8 => Dtype::I8,
            DType::U8 => Dtype::U8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.plan.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut maker = self.maker.borrow_mut();
        if maker.problem.is_none() {
            match (maker.bytes)(self.index) {
                Ok(bytes) => {
                    assert_eq!(bytes.len(), self.plan.bytes(), "{}", self.plan.name);
                    return bytes;
                }
                Err(problem) => maker.problem = Some(problem),
            }
        }
        Cow::Borrowed(&[]) // the file is thrown away
    }

    fn data_len(&self) -> usize {
        self.plan.bytes()
    }
}

fn write_file<'a, F: FnMut(usize) -> Result<Cow<'a, [u8]>, ModelError>>(
    path: &Path,
    tensors: &[Planned],
    shard: &[usize],
    maker: &RefCell<Maker<F>>,
) -> Result<(), ModelError> {
    let late = shard.iter().map(|&index| {
        let plan = &tensors[index];
        let late = Late {
            plan,
            index,
            maker,
            lent: PhantomData,
        };
        (plan.name.clone(), late)
    });
    // `transformers` asks for the format's name.
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    let written = safetensors::serialize_to_file(late, metadata, path);
    if let Some(problem) = maker.borrow_mut().problem.take() {
        let _ = std::fs::remove_file(path); // half of it: the problem is what counts
        return Err(problem);
    }
    written.map_err(|error| ModelError::file(path, error))
}
