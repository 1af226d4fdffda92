//! GGUF, the one-file format of llama.cpp: what is read, what is written.
//!
//! ```text
//! "GGUF", version u32, tensors u64, entries u64
//! entries   key, type u32, value                  strings are a length u64 and so many bytes of UTF-8
//! tensors   name, dims u32, each u64 (the fastest first), type u32, offset u64
//! data      from the next multiple of the alignment on; offsets count from there
//! ```
//! [`Gguf::parse`] believes nothing: every length is bounded by the bytes that remain, every product is checked, offsets lie inside and apart.
//! It copies nothing but names, so what a file claims costs no memory. [`GgufWriter`] writes; [`decoder`] says how a decoder's tensors and sizes
//! are named. Block types: [`GgufType`]. Versions 2 and 3, little-endian, one file; what an entry means for texts is the tokenizer's business.

mod block;
pub mod decoder;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;

pub use block::GgufType;
pub use write::GgufWriter;

/// Where data begins is a multiple of this, if a file does not say otherwise.
const ALIGNMENT: u64 = 32;
/// Dims of a tensor, at most, as in ggml.
const DIMS: u32 = 4;
/// Bytes of a key or of a tensor's name, at most: ggml cuts names at 64.
const NAME: u64 = 1024;

/// A file, looked through.
#[derive(Debug)]
pub struct Gguf<'a> {
    entries: BTreeMap<&'a str, GgufValue<'a>>,
    tensors: BTreeMap<&'a str, TensorInfo>,
    data: &'a [u8],
}

/// The value of an entry.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue<'a> {
    /// A whole number, of any width.
    Unsigned(u64),
    /// A whole number with a sign, of any width.
    Signed(i64),
    /// A number with a fraction, of either width.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// Values of one type, one after another.
    Array(GgufArray<'a>),
}

/// An array as it lies in the file, checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GgufArray<'a> {
    kind: u32,
    count: usize,
    bytes: &'a [u8],
}

/// A tensor's place.
#[derive(Clone, Debug)]
struct TensorInfo {
    kind: GgufType,
    shape: Vec<usize>, // rows first, as in a checkpoint
    range: Range<usize>,
}

impl<'a> Gguf<'a> {
    /// Looks through the bytes of a file.
    ///
    /// # Errors
    /// A sentence without the file's name: it is no GGUF file, is cut off, contradicts itself, or has a tensor of a type that Russet does not
    /// read.
    pub fn parse(bytes: &'a [u8]) -> Result<Gguf<'a>, String> {
        let mut reader = Reader { rest: bytes };
        if reader.take(4).map_err(|_| no_gguf())? != b"GGUF" {
            return Err(no_gguf());
        }
        match reader.u32()? {
            2 | 3 => {}
            version if version > 3 && version.swap_bytes() <= 3 => {
                return Err("is of a big-endian machine; Russet reads little-endian files, which gguf_convert_endian of the `gguf` package makes".into());
            }
            version => {
                return Err(format!(
                    "is of version {version}; Russet reads versions 2 and 3, so make it again with a newer llama.cpp"
                ));
            }
        }
        let (tensors, entries) = (reader.u64()?, reader.u64()?);
        // The least that one takes: a length, a byte of name, and for an entry a type and a byte, for a tensor dims, type, offset.
        reader.holds(entries, 8 + 1 + 4 + 1, "entries")?;
        let mut gguf = Gguf {
            entries: BTreeMap::new(),
            tensors: BTreeMap::new(),
            data: &[],
        };
        for _ in 0..entries {
            let key = reader.name()?;
            let kind = reader.u32()?;
            let value = reader
                .value(kind)
                .map_err(|problem| format!("its entry `{key}` {problem}"))?;
            if gguf.entries.insert(key, value).is_some() {
                return Err(format!("has two entries `{key}`"));
            }
        }
        let alignment = match gguf.entries.get("general.alignment") {
            None => ALIGNMENT,
            Some(GgufValue::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n,
            Some(other) => {
                return Err(format!(
                    "its `general.alignment` is {other:?}, which is no power of two that a file would be aligned to"
                ));
            }
        };
        reader.holds(tensors, 8 + 1 + 4 + 8 + 4 + 8, "tensors")?;
        let mut starts = Vec::new();
        for _ in 0..tensors {
            let name = reader.name()?;
            let (kind, shape, start) = reader
                .tensor(alignment)
                .map_err(|problem| format!("its tensor `{name}` {problem}"))?;
            starts.push((name, kind, shape, start));
        }
        let head = (bytes.len() - reader.rest.len()) as u64;
        let data = head.next_multiple_of(alignment) as usize; // both are far below 2^63
        gguf.data = if starts.is_empty() {
            &[]
        } else {
            bytes
                .get(data..)
                .ok_or("ends before its data begins; it is truncated")?
        };
        gguf.place(starts)?;
        Ok(gguf)
    }

    /// Gives each tensor its bytes, which must lie in the file and apart from all others'.
    fn place(&mut self, starts: Vec<(&'a str, GgufType, Vec<usize>, u64)>) -> Result<(), String> {
        let mut taken: Vec<(Range<usize>, &str)> = Vec::new();
        for (name, kind, shape, start) in starts {
            let numbers = shape
                .iter()
                .try_fold(1usize, |product, &size| product.checked_mul(size))
                .ok_or_else(|| {
                    format!("its tensor `{name}` has more numbers than an address can count")
                })?;
            let columns = *shape.last().expect("a tensor has a dim");
            if !columns.is_multiple_of(kind.block()) {
                return Err(format!(
                    "its tensor `{name}` has rows of {columns} in {}, whose blocks hold {}",
                    kind.name(),
                    kind.block()
                ));
            }
            let range = kind.bytes(numbers).and_then(|bytes| {
                let start = usize::try_from(start).ok()?;
                let range = start..start.checked_add(bytes)?;
                (range.end <= self.data.len()).then_some(range)
            });
            let range = range.ok_or_else(|| {
                format!("its tensor `{name}` lies beyond the end of the file; it is truncated, so fetch it anew")
            })?;
            taken.push((range.clone(), name));
            let info = TensorInfo { kind, shape, range };
            if self.tensors.insert(name, info).is_some() {
                return Err(format!("has two tensors `{name}`"));
            }
        }
        taken.sort_by_key(|(range, _)| range.start);
        for pair in taken.windows(2) {
            if pair[0].0.end > pair[1].0.start {
                let (a, b) = (pair[0].1, pair[1].1);
                return Err(format!("its tensors `{a}` and `{b}` lie over one another"));
            }
        }
        Ok(())
    }

    /// The value of an entry.
    pub fn entry(&self, key: &str) -> Option<&GgufValue<'a>> {
        self.entries.get(key)
    }

    /// A whole number of at least 0 under `key`.
    ///
    /// # Errors
    /// When the entry is something else.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, String> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(GgufValue::Unsigned(n)) => Ok(Some(*n)),
            Some(GgufValue::Signed(n)) if *n >= 0 => Ok(Some(n.unsigned_abs())),
            Some(other) => Err(format!(
                "`{key}` is {other:?}, but it must be a whole number"
            )),
        }
    }

    /// A number under `key`.
    ///
    /// # Errors
    /// When the entry is something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>, String> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(GgufValue::Float(x)) => Ok(Some(*x)),
            Some(GgufValue::Unsigned(n)) => Ok(Some(*n as f64)),
            Some(GgufValue::Signed(n)) => Ok(Some(*n as f64)),
            Some(other) => Err(format!("`{key}` is {other:?}, but it must be a number")),
        }
    }

    /// A text under `key`.
    ///
    /// # Errors
    /// When the entry is something else.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(GgufValue::Text(text)) => Ok(Some(text)),
            Some(_) => Err(format!("`{key}` is no text, but it must be one")),
        }
    }

    /// Yes or no under `key`.
    ///
    /// # Errors
    /// When the entry is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, String> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(GgufValue::Bool(on)) => Ok(Some(*on)),
            Some(_) => Err(format!("`{key}` is not true or false, but it must be")),
        }
    }

    /// An array under `key`.
    ///
    /// # Errors
    /// When the entry is something else.
    pub fn array(&self, key: &str) -> Result<Option<GgufArray<'a>>, String> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(GgufValue::Array(array)) => Ok(Some(*array)),
            Some(_) => Err(format!("`{key}` is no array, but it must be one")),
        }
    }

    /// Names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &'a str> {
        self.tensors.keys().copied()
    }

    /// Type and shape of a tensor, rows first.
    pub fn tensor(&self, name: &str) -> Option<(GgufType, &[usize])> {
        self.tensors
            .get(name)
            .map(|info| (info.kind, &info.shape[..]))
    }

    /// A tensor's numbers in f32, rows first.
    pub fn tensor_f32(&self, name: &str) -> Option<Vec<f32>> {
        let info = self.tensors.get(name)?;
        let mut numbers = Vec::new();
        info.kind
            .decode(&self.data[info.range.clone()], &mut numbers);
        Some(numbers)
    }
}

impl<'a> GgufArray<'a> {
    /// How many values.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All values, in order.
    pub fn values(&self) -> impl Iterator<Item = GgufValue<'a>> + use<'a> {
        let (mut reader, kind) = (Reader { rest: self.bytes }, self.kind);
        (0..self.count).map(move |_| {
            reader
                .scalar(kind)
                .expect("the array was read when the file was")
        })
    }

    /// The texts of an array of texts.
    ///
    /// # Errors
    /// When they are something else.
    pub fn texts(&self) -> Result<Vec<&'a str>, String> {
        let text = |value| match value {
            GgufValue::Text(text) => Ok(text),
            other => Err(format!("holds {other:?}, but it must hold texts")),
        };
        self.values().map(text).collect()
    }

    /// The numbers of an array of numbers.
    ///
    /// # Errors
    /// When they are something else.
    pub fn floats(&self) -> Result<Vec<f64>, String> {
        let number = |value| match value {
            GgufValue::Float(x) => Ok(x),
            GgufValue::Unsigned(n) => Ok(n as f64),
            GgufValue::Signed(n) => Ok(n as f64),
            other => Err(format!("holds {other:?}, but it must hold numbers")),
        };
        self.values().map(number).collect()
    }
}

fn no_gguf() -> String {
    "does not begin as a GGUF file does; name a .gguf file".into()
}

/// Numbers of the types of values.
pub(crate) mod kinds {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const TEXT: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or("ends within its header; it is truncated, so fetch it anew")?;
        self.rest = rest;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self
            .take(N)?
            .try_into()
            .expect("as many bytes as asked for"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.number().map(u64::from_le_bytes)
    }

    /// Whether the rest can hold so many things of at least so many bytes.
    fn holds(&self, count: u64, least: u64, what: &str) -> Result<(), String> {
        match count.checked_mul(least) {
            Some(bytes) if bytes <= self.rest.len() as u64 => Ok(()),
            _ => Err(format!(
                "claims {count} {what}, but only {} bytes follow; it is damaged",
                self.rest.len()
            )),
        }
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let len = self.u64()?;
        self.holds(len, 1, "bytes of text")?;
        let bytes = self.take(len as usize)?; // not above the bytes that remain
        std::str::from_utf8(bytes).map_err(|_| "has a text that is not UTF-8".into())
    }

    fn name(&mut self) -> Result<&'a str, String> {
        let name = self.text()?;
        if name.is_empty() || name.len() as u64 > NAME {
            return Err(format!(
                "has a name of {} bytes where one to {NAME} are usual; it is damaged",
                name.len()
            ));
        }
        Ok(name)
    }

    fn value(&mut self, kind: u32) -> Result<GgufValue<'a>, String> {
        if kind != kinds::ARRAY {
            return self.scalar(kind);
        }
        let kind = self.u32()?;
        let count = self.u64()?;
        if kind == kinds::ARRAY {
            return Err("is an array of arrays, which no known key is".into());
        }
        self.holds(count, least_bytes(kind)?, "values")?;
        let before = self.rest;
        for _ in 0..count {
            self.scalar(kind)?;
        }
        let bytes = &before[..before.len() - self.rest.len()];
        let count = count as usize; // not above the bytes that remained
        Ok(GgufValue::Array(GgufArray { kind, count, bytes }))
    }

    fn scalar(&mut self, kind: u32) -> Result<GgufValue<'a>, String> {
        use GgufValue::{Bool, Float, Signed, Text, Unsigned};
        Ok(match kind {
            kinds::U8 => Unsigned(self.number::<1>()?[0].into()),
            kinds::I8 => Signed(i8::from_le_bytes(self.number()?).into()),
            kinds::U16 => Unsigned(u16::from_le_bytes(self.number()?).into()),
            kinds::I16 => Signed(i16::from_le_bytes(self.number()?).into()),
            kinds::U32 => Unsigned(self.u32()?.into()),
            kinds::I32 => Signed(i32::from_le_bytes(self.number()?).into()),
            kinds::F32 => Float(f32::from_le_bytes(self.number()?).into()),
            kinds::BOOL => match self.number::<1>()?[0] {
                0 => Bool(false),
                1 => Bool(true),
                other => return Err(format!("is {other} where 0 or 1 say false or true")),
            },
            kinds::TEXT => Text(self.text()?),
            kinds::U64 => Unsigned(self.u64()?),
            kinds::I64 => Signed(i64::from_le_bytes(self.number()?)),
            kinds::F64 => Float(f64::from_le_bytes(self.number()?)),
            other => return Err(format!("has the type {other}, which is none of GGUF's")),
        })
    }

    /// Type, shape with rows first, and offset of a tensor.
    fn tensor(&mut self, alignment: u64) -> Result<(GgufType, Vec<usize>, u64), String> {
        let dims = self.u32()?;
        if !(1..=DIMS).contains(&dims) {
            return Err(format!("has {dims} dims where there may be 1 to {DIMS}"));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let size = self.u64()?;
            let fits = usize::try_from(size).ok().filter(|&size| size > 0);
            shape.push(fits.ok_or_else(|| format!("has a dim of {size}"))?);
        }
        shape.reverse();
        let kind = GgufType::of_id(self.u32()?)?;
        let start = self.u64()?;
        if !start.is_multiple_of(alignment) {
            return Err(format!(
                "begins at {start}, which is no multiple of {alignment}"
            ));
        }
        Ok((kind, shape, start))
    }
}

/// The least bytes that a value of a type takes.
fn least_bytes(kind: u32) -> Result<u64, String> {
    Ok(match kind {
        kinds::U8 | kinds::I8 | kinds::BOOL => 1,
        kinds::U16 | kinds::I16 => 2,
        kinds::U32 | kinds::I32 | kinds::F32 => 4,
        kinds::TEXT | kinds::U64 | kinds::I64 | kinds::F64 => 8,
        other => {
            return Err(format!(
                "holds values of the type {other}, which is none of GGUF's"
            ));
        }
    })
}

#[cfg(test)]
mod tests;
