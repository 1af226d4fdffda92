//! Writing GGUF: first what there is, then the tensors one by one, so that only one has to be in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{ALIGNMENT, GgufType, kinds};
use crate::ModelError;

/// A file in the making.
#[derive(Debug, Default)]
pub struct GgufWriter {
    entries: Vec<u8>,
    entry_count: u64,
    tensors: Vec<Planned>,
}

#[derive(Debug)]
struct Planned {
    name: String,
    kind: GgufType,
    shape: Vec<usize>,
    bytes: usize,
}

impl GgufWriter {
    /// A file of nothing yet.
    pub fn new() -> GgufWriter {
        GgufWriter::default()
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.entry_count += 1;
        push_text(&mut self.entries, key);
        self.entries.extend(kind.to_le_bytes());
    }

    /// An entry of a whole number.
    pub fn unsigned(&mut self, key: &str, value: u32) {
        self.key(key, kinds::U32);
        self.entries.extend(value.to_le_bytes());
    }

    /// An entry of a number.
    pub fn float(&mut self, key: &str, value: f32) {
        self.key(key, kinds::F32);
        self.entries.extend(value.to_le_bytes());
    }

    /// An entry of yes or no.
    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key, kinds::BOOL);
        self.entries.push(value.into());
    }

    /// An entry of text.
    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key, kinds::TEXT);
        push_text(&mut self.entries, value);
    }

    fn array(&mut self, key: &str, kind: u32, count: usize) {
        self.key(key, kinds::ARRAY);
        self.entries.extend(kind.to_le_bytes());
        self.entries.extend((count as u64).to_le_bytes());
    }

    /// An entry of texts.
    pub fn texts(&mut self, key: &str, values: &[impl AsRef<str>]) {
        self.array(key, kinds::TEXT, values.len());
        for value in values {
            push_text(&mut self.entries, value.as_ref());
        }
    }

    /// An entry of whole numbers with a sign.
    pub fn integers(&mut self, key: &str, values: &[i32]) {
        self.array(key, kinds::I32, values.len());
        for value in values {
            self.entries.extend(value.to_le_bytes());
        }
    }

    /// An entry of numbers.
    pub fn floats(&mut self, key: &str, values: &[f32]) {
        self.array(key, kinds::F32, values.len());
        for value in values {
            self.entries.extend(value.to_le_bytes());
        }
    }

    /// Announces a tensor, rows first.
    ///
    /// # Panics
    /// When its rows are not whole blocks of the type.
    pub fn tensor(&mut self, name: String, kind: GgufType, shape: Vec<usize>) {
        let columns = *shape.last().expect("a tensor has a dim");
        let rows = shape.iter().product::<usize>() / columns;
        let bytes = kind.bytes(columns).expect("rows of whole blocks") * rows;
        self.tensors.push(Planned {
            name,
            kind,
            shape,
            bytes,
        });
    }

    /// Writes the file, which should lie in a draft that is renamed into place; `numbers` gives each announced tensor in f32, by its number.
    /// Returns the bytes written.
    ///
    /// # Errors
    /// When the disk refuses, `numbers` does, or a tensor has a number that its type cannot hold.
    pub fn write(
        self,
        path: &Path,
        mut numbers: impl FnMut(usize) -> Result<Vec<f32>, ModelError>,
    ) -> Result<u64, ModelError> {
        let file = File::create(path).map_err(|error| ModelError::file(path, error))?;
        let mut out = Counting {
            file: BufWriter::with_capacity(1 << 20, file),
            path: path.to_path_buf(),
            written: 0,
        };
        let mut head = b"GGUF".to_vec();
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend(self.entry_count.to_le_bytes());
        head.extend(&self.entries);
        let mut start = 0u64;
        for tensor in &self.tensors {
            push_text(&mut head, &tensor.name);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            for &size in tensor.shape.iter().rev() {
                head.extend((size as u64).to_le_bytes());
            }
            head.extend(tensor.kind.id().to_le_bytes());
            head.extend(start.to_le_bytes());
            start = (start + tensor.bytes as u64).next_multiple_of(ALIGNMENT);
        }
        out.write(&head)?;
        let mut bytes = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            out.pad()?;
            let numbers = numbers(index)?;
            let count: usize = tensor.shape.iter().product();
            assert_eq!(numbers.len(), count, "{}", tensor.name);
            if let Some(wrong) = numbers.iter().find(|x| !tensor.kind.holds(**x)) {
                let (name, kind) = (&tensor.name, tensor.kind.name());
                let problem =
                    format!("holds {wrong}, which {kind} cannot say; choose another --type");
                return Err(ModelError::tensor(path, name, problem));
            }
            // In pieces of whole rows' blocks, so that the encoded form of a large table is never whole in memory.
            for piece in numbers.chunks(tensor.kind.block() << 14) {
                bytes.clear();
                tensor.kind.encode(piece, &mut bytes);
                out.write(&bytes)?;
            }
        }
        out.pad()?;
        let written = out.written;
        let file = out
            .file
            .into_inner()
            .map_err(|error| ModelError::file(path, error.error()))?;
        file.sync_all()
            .map_err(|error| ModelError::file(path, error))?;
        Ok(written)
    }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

struct Counting {
    file: BufWriter<File>,
    path: PathBuf,
    written: u64,
}

impl Counting {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.written += bytes.len() as u64;
        let written = self.file.write_all(bytes);
        written.map_err(|error| ModelError::file(&self.path, error))
    }

    /// Zeros up to the next multiple of the alignment.
    fn pad(&mut self) -> Result<(), ModelError> {
        let zeros = self.written.next_multiple_of(ALIGNMENT) - self.written;
        self.write(&[0; ALIGNMENT as usize][..zeros as usize])
    }
}
