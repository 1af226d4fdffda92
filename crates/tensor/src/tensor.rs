//! The value that operations pass on.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use half::{bf16, f16};
use russet_kernels::{Mmap, Pool};

use crate::workspace::{Buffer, Workspace};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// IEEE single precision: activations, master weights, gradients.
    F32,
    /// IEEE half precision: scales, adapter values.
    F16,
    /// The upper half of an `f32`: published checkpoints.
    BF16,
    /// Palette entries and 8-bit weights.
    I8,
    /// Packed palette indices.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::I8 | DType::U8 => 1,
        }
    }
}

/// Where a tensor's elements live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Main memory.
    Cpu,
}

/// The identity of a tensor: what the tape and the gradients know it by. A clone keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorId(u64);

/// What is wrong with bytes that should have been a tensor.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// The bytes do not fill the shape.
    #[error("shape {shape:?} of {dtype:?} needs {needed} bytes, but {found} were given")]
    Length {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The element type.
        dtype: DType,
        /// Bytes that the shape needs.
        needed: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The product of the dims does not fit in memory.
    #[error("shape {0:?} is too large for this machine")]
    TooLarge(Vec<usize>),
}

enum Storage {
    F32(Buffer),
    F16(Vec<f16>),
    Bytes(Vec<u8>),
    Mapped { map: Arc<Mmap>, range: Range<usize> },
}

/// An immutable block of numbers with a shape, row-major, cheaply cloned.
#[derive(Clone)]
pub struct Tensor {
    id: TensorId,
    shape: Vec<usize>,
    dtype: DType,
    storage: Arc<Storage>,
    recipe: Option<Weak<Recipe>>, // the step that made the tensor owns it
}

/// How to compute a tensor's elements again; the identity of what it makes does not matter.
pub(crate) type Recipe = dyn Fn(&Pool, &Arc<Workspace>) -> Tensor + Send + Sync;

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

fn new_id() -> TensorId {
    TensorId(NEXT_ID.fetch_add(1, Ordering::Relaxed))
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
}

impl Tensor {
    /// A tensor over `data`, row-major in `shape`.
    ///
    /// # Panics
    /// When the length of `data` is not the product of `shape`: a bug in the caller.
    pub fn new(shape: &[usize], data: impl Into<Buffer>) -> Tensor {
        let data = data.into();
        assert_eq!(
            elements(shape),
            Some(data.len()),
            "shape {shape:?} over {} elements",
            data.len()
        );
        Tensor {
            id: new_id(),
            shape: shape.to_vec(),
            dtype: DType::F32,
            storage: Arc::new(Storage::F32(data)),
            recipe: None,
        }
    }

    /// A tensor of `shape` whose element `i` is `f(i)`.
    pub fn from_fn(shape: &[usize], f: impl FnMut(usize) -> f32) -> Tensor {
        Tensor::new(
            shape,
            (0..shape.iter().product()).map(f).collect::<Vec<f32>>(),
        )
    }

    /// A tensor over bytes held in memory, little-endian.
    ///
    /// # Errors
    /// When the bytes do not fill the shape exactly.
    pub fn from_bytes(
        dtype: DType,
        shape: &[usize],
        bytes: Vec<u8>,
    ) -> Result<Tensor, TensorError> {
        check_length(dtype, shape, bytes.len())?;
        Ok(Tensor {
            id: new_id(),
            shape: shape.to_vec(),
            dtype,
            storage: Arc::new(Storage::Bytes(bytes)),
            recipe: None,
        })
    }

    /// A tensor of half-precision numbers.
    ///
    /// # Panics
    /// When the length of `data` is not the product of `shape`: a bug in the caller.
    pub fn from_halves(shape: &[usize], data: Vec<f16>) -> Tensor {
        assert_eq!(
            elements(shape),
            Some(data.len()),
            "shape {shape:?} over {} elements",
            data.len()
        );
        Tensor {
            id: new_id(),
            shape: shape.to_vec(),
            dtype: DType::F16,
            storage: Arc::new(Storage::F16(data)),
            recipe: None,
        }
    }

    /// A tensor over a range of a mapped file, used in place.
    ///
    /// # Errors
    /// When the range does not fill the shape exactly.
    ///
    /// # Panics
    /// When the range leaves the map.
    pub fn from_map(
        dtype: DType,
        shape: &[usize],
        map: &Arc<Mmap>,
        range: Range<usize>,
    ) -> Result<Tensor, TensorError> {
        check_length(dtype, shape, map[range.clone()].len())?;
        let storage = Storage::Mapped {
            map: map.clone(),
            range,
        };
        Ok(Tensor {
            id: new_id(),
            shape: shape.to_vec(),
            dtype,
            storage: Arc::new(storage),
            recipe: None,
        })
    }

    /// Its identity on the tape.
    pub fn id(&self) -> TensorId {
        self.id
    }

    /// Its dims.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The type of its elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        Device::Cpu
    }

    /// Its identity and shape without its elements: what a recorded step keeps of a tensor whose values
    /// its derivative does not need.
    pub fn handle(&self) -> Handle {
        Handle {
            id: self.id,
            shape: self.shape.clone(),
        }
    }

    /// The tensor with a way to compute its elements again, from what the tape keeps anyway. Whoever keeps it for the
    /// backward pass then holds no elements. The recorded step that comes with it must hold the recipe: it is walked
    /// after all steps that use the tensor, and with the tape goes what the recipe holds.
    pub(crate) fn computed_by(self, recipe: &Arc<Recipe>) -> Tensor {
        Tensor {
            recipe: Some(Arc::downgrade(recipe)),
            ..self
        }
    }

    /// What a recorded step keeps of a tensor whose values its derivative needs: the way to compute them where there is
    /// one, else the tensor. [`crate::Backward::values`] gives them back.
    pub fn kept(&self) -> Kept {
        let values = match self.recipe.as_ref().and_then(Weak::upgrade) {
            Some(recipe) => Values::Recipe(recipe),
            None => Values::Held(self.clone()),
        };
        Kept {
            handle: self.handle(),
            values,
        }
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The two dims of a matrix, `[N, D]`.
    ///
    /// # Panics
    /// When the tensor is no matrix.
    pub fn dims2(&self) -> (usize, usize) {
        let [rows, cols] = self.shape[..] else {
            panic!("expected [N, D], found {:?}", self.shape)
        };
        (rows, cols)
    }

    /// Its elements.
    ///
    /// # Panics
    /// When the dtype is not `f32`.
    pub fn data(&self) -> &[f32] {
        match &*self.storage {
            Storage::F32(buffer) => buffer,
            _ => panic!("arithmetic on the stored {self:?}: take `to_f32` first"),
        }
    }

    /// Its elements, to be changed in place: optimizers and initialisation. The identity stays.
    ///
    /// # Panics
    /// When another clone is alive (a tape that still holds the tensor, say), or the dtype is not `f32`.
    pub fn data_mut(&mut self) -> &mut [f32] {
        match Arc::get_mut(&mut self.storage) {
            Some(Storage::F32(buffer)) => buffer,
            Some(_) => panic!("a stored tensor cannot be changed in place"),
            None => panic!(
                "the tensor {:?} is still shared, so it cannot be changed in place",
                self.shape
            ),
        }
    }

    /// The buffer itself where this is its only owner, else a copy from `take`.
    pub(crate) fn into_buffer(self, take: impl FnOnce(usize) -> Buffer) -> Buffer {
        match Arc::try_unwrap(self.storage) {
            Ok(Storage::F32(buffer)) => buffer,
            Ok(_) => panic!("a stored tensor is no activation"),
            Err(shared) => {
                let Storage::F32(source) = &*shared else {
                    panic!("a stored tensor is no activation")
                };
                let mut copy = take(source.len());
                copy.copy_from_slice(source);
                copy
            }
        }
    }

    /// A copy of some rows of a matrix, which no tape knows.
    pub(crate) fn rows(&self, workspace: &Arc<Workspace>, rows: Range<usize>) -> Tensor {
        let (_, width) = self.dims2();
        let mut copy = workspace.take(rows.len() * width);
        copy.copy_from_slice(&self.data()[rows.start * width..rows.end * width]);
        Tensor::new(&[rows.len(), width], copy)
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// When the number of elements differs.
    pub fn reshaped(&self, shape: &[usize]) -> Tensor {
        assert_eq!(
            elements(shape),
            Some(self.len()),
            "reshape of {:?} to {shape:?}",
            self.shape
        );
        Tensor {
            id: self.id,
            shape: shape.to_vec(),
            dtype: self.dtype,
            storage: self.storage.clone(),
            recipe: self.recipe.clone(),
        }
    }

    /// Its bytes as stored.
    pub fn bytes(&self) -> &[u8] {
        match &*self.storage {
            Storage::F32(buffer) => bytemuck::cast_slice(buffer),
            Storage::F16(data) => bytemuck::cast_slice(data),
            Storage::Bytes(bytes) => bytes,
            Storage::Mapped { map, range } => &map[range.clone()],
        }
    }

    /// The first element that is a NaN or an infinity.
    pub fn first_not_finite(&self) -> Option<usize> {
        /// By runs, which vectors look through.
        fn first<const N: usize>(bytes: &[u8], faulty: impl Fn([u8; N]) -> bool) -> Option<usize> {
            let mut runs = bytes.as_chunks().0.chunks(1024).enumerate();
            runs.find_map(|(run, numbers)| {
                let any = numbers.iter().fold(false, |any, &x| any | faulty(x));
                let mut places = numbers.iter().enumerate().filter(|_| any);
                let place = places.find(|&(_, &x)| faulty(x));
                place.map(|(place, _)| run * 1024 + place)
            })
        }
        let bytes = self.bytes();
        // All bits of the exponent are set.
        let of_32 = |mask: u32| move |x| u32::from_le_bytes(x) & mask == mask;
        let of_16 = |mask: u16| move |x| u16::from_le_bytes(x) & mask == mask;
        match self.dtype {
            DType::F32 => first(bytes, of_32(0x7f80_0000)),
            DType::F16 => first(bytes, of_16(0x7c00)),
            DType::BF16 => first(bytes, of_16(0x7f80)),
            DType::I8 | DType::U8 => None,
        }
    }

    /// A copy of its elements as `f32`, whatever the stored dtype (integers by value).
    pub fn to_f32(&self) -> Vec<f32> {
        let bytes = self.bytes();
        match self.dtype {
            DType::F32 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b))
                .collect(),
            DType::F16 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| f16::from_le_bytes(b).to_f32())
                .collect(),
            DType::BF16 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| bf16::from_le_bytes(b).to_f32())
                .collect(),
            DType::I8 => bytes.iter().map(|&b| b as i8 as f32).collect(),
            DType::U8 => bytes.iter().map(|&b| b as f32).collect(),
        }
    }
}

/// A tensor's identity and shape.
#[derive(Clone, Debug)]
pub struct Handle {
    id: TensorId,
    shape: Vec<usize>,
}

/// A tensor that a recorded step keeps, perhaps without its elements; from [`Tensor::kept`].
#[derive(Clone)]
pub struct Kept {
    handle: Handle,
    values: Values,
}

#[derive(Clone)]
enum Values {
    Held(Tensor),
    Recipe(Arc<Recipe>),
}

impl Kept {
    /// The tensor, computed again where its elements were not kept.
    pub(crate) fn tensor(&self, pool: &Pool, workspace: &Arc<Workspace>) -> Tensor {
        match &self.values {
            Values::Held(tensor) => tensor.clone(),
            Values::Recipe(recipe) => recipe(pool, workspace),
        }
    }
}

impl Node for Kept {
    fn id(&self) -> TensorId {
        self.handle.id
    }
    fn shape(&self) -> &[usize] {
        &self.handle.shape
    }
}

/// What a gradient can flow to.
pub trait Node {
    /// The identity on the tape.
    fn id(&self) -> TensorId;
    /// The dims.
    fn shape(&self) -> &[usize];
}

impl Node for Tensor {
    fn id(&self) -> TensorId {
        self.id
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

impl Node for Handle {
    fn id(&self) -> TensorId {
        self.id
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

fn check_length(dtype: DType, shape: &[usize], found: usize) -> Result<(), TensorError> {
    let needed = elements(shape)
        .and_then(|count| count.checked_mul(dtype.bytes()))
        .ok_or_else(|| TensorError::TooLarge(shape.to_vec()))?;
    if needed == found {
        Ok(())
    } else {
        Err(TensorError::Length {
            shape: shape.to_vec(),
            dtype,
            needed,
            found,
        })
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({:?} {:?})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_that_is_not_finite_is_found_in_every_type() {
        let largest = [f32::MAX, -65_504.0, f32::MIN_POSITIVE, 0.0];
        let mut numbers: Vec<f32> = (0..3000).map(|i| largest[i % 4]).collect();
        let types = |numbers: &[f32]| {
            let halves = numbers.iter().map(|&x| f16::from_f32(x.min(65_504.0)));
            let upper = |x: &f32| (x.to_bits() >> 16).to_le_bytes()[..2].to_vec();
            let uppers = numbers.iter().flat_map(upper).collect();
            [
                Tensor::new(&[3000], numbers.to_vec()),
                Tensor::from_halves(&[3000], halves.collect()),
                Tensor::from_bytes(DType::BF16, &[3000], uppers).unwrap(),
            ]
        };
        assert_eq!(types(&numbers).map(|t| t.first_not_finite()), [None; 3]);
        numbers[2049] = f32::NEG_INFINITY;
        numbers[1030] = f32::NAN;
        numbers[1031] = f32::NEG_INFINITY;
        let [floats, halves, uppers] = types(&numbers).map(|t| t.first_not_finite());
        assert_eq!((floats, uppers), (Some(1030), Some(1030)));
        assert_eq!(halves, Some(1031)); // the least of NaN and 65,504 is the number
    }
}
