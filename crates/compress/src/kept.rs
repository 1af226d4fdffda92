//! What palettizing keeps on the disk, so that it survives the process: whole files in a folder that knows whose they are.
//!
//! Each is written beside its place, synced and renamed in. Nothing here knows in what order.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use russet_artifact::{Error as ArtifactError, Hold};
use russet_kernels::Mmap;
use russet_kernels::palette::{self, Bits};
use russet_model::ModelError;
use russet_model::stored::{self, Output, Stored};
use russet_tensor::{DType, Tensor};

use crate::CompressError;
use crate::matrix::{Fitted, Matrix};

/// Where unfinished work lies, and whose it is.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// A folder of its own, made if it is missing and to be removed when the package is in its place.
    pub folder: &'a Path,
    /// What the package is a function of; work under another key is not gone on with.
    pub key: &'a str,
}

impl State<'_> {
    /// Removes the folder of finished work, if it is one. The key goes last: what a kill leaves still knows whose it is.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn clear(folder: &Path) -> Result<(), CompressError> {
        if !is_state(folder) {
            return Ok(());
        }
        let _held = match Hold::take(folder, folder) {
            Ok(held) => held,
            // Somebody is at work in it.
            Err(ArtifactError::Held { .. }) => return Ok(()),
            Err(problem) => return Err(problem.into()),
        };
        let emptied = empty(folder).and_then(|()| std::fs::remove_file(folder.join(LOCK)));
        match emptied.and_then(|()| std::fs::remove_dir(folder)) {
            // Somebody has begun in it in the meantime.
            Err(problem) if problem.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            done => done.map_err(|problem| Folder::problem(folder, problem)),
        }
    }
}

/// Whether a folder is one of a state: its key is a layout's number and what it belongs to, and nothing in it is a folder.
fn is_state(folder: &Path) -> bool {
    let key = std::fs::read_to_string(folder.join(KEY)).unwrap_or_default();
    let number = key.split_once(' ').map_or("", |(number, _)| number);
    let ours = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let plain = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
    };
    ours && std::fs::read_dir(folder).is_ok_and(|mut entries| entries.all(plain))
}

/// Removes what a state's folder holds but its lock, the key last.
fn empty(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() != KEY && entry.file_name() != LOCK {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_file(folder.join(KEY))
}

/// The file by which a folder is known as one of a state.
const KEY: &str = "key";

/// What else a folder may have before it is one: the key while it is written, and the lock of whoever is at work.
const BEFORE: [&str; 2] = ["key.part", LOCK];

/// The file that [`Hold`] locks.
const LOCK: &str = "lock";

/// What stands in it before the key: which files there are, and what is in them.
const LAYOUT: &str = "3";

/// Rows of a file of hidden states or gradients.
pub(crate) struct Rows {
    pub map: Mmap,
    pub width: usize,
    pub at: usize,
}

impl Rows {
    pub fn next(&mut self, rows: usize) -> Tensor {
        let bytes = rows * self.width * size_of::<f32>();
        let part = &self.map[self.at..self.at + bytes];
        self.at += bytes;
        let numbers: Vec<f32> = part
            .as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect();
        Tensor::new(&[rows, self.width], numbers)
    }
}

pub(crate) fn numbered(name: &str, number: usize) -> String {
    format!("{name}-{number:05}")
}

/// Tensors to be written, with their bytes.
#[derive(Default)]
pub(crate) struct Tensors(Vec<(String, DType, Vec<usize>, Vec<u8>)>);

impl Tensors {
    pub fn add(&mut self, name: String, dtype: DType, shape: Vec<usize>, bytes: Vec<u8>) {
        self.0.push((name, dtype, shape, bytes));
    }

    /// Numbers whose every bit counts.
    pub fn numbers(&mut self, name: &str, numbers: &[f64]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.add(name.to_owned(), DType::U8, vec![bytes.len()], bytes);
    }

    /// A fit in the package's form, with its error and energy.
    pub fn fit(&mut self, name: &str, fit: &Fitted) -> Result<(), CompressError> {
        let packed = fit.matrix.pack().map_err(|problem| CompressError::Layout {
            name: name.to_owned(),
            problem,
        })?;
        let palette: Vec<u8> = packed.palette.iter().map(|&entry| entry as u8).collect();
        let scales: Vec<u8> = packed
            .scales
            .iter()
            .flat_map(|scale| scale.to_le_bytes())
            .collect();
        let (indices, entries, rows) = (packed.indices.len(), palette.len(), packed.scales.len());
        self.add(
            format!("{name}.indices"),
            DType::U8,
            vec![indices],
            packed.indices,
        );
        self.add(format!("{name}.palette"), DType::I8, vec![entries], palette);
        self.add(format!("{name}.scales"), DType::F16, vec![rows], scales);
        self.numbers(&format!("{name}.error"), &[fit.error, fit.energy]);
        Ok(())
    }
}

/// So many of them as they were given to [`Tensors::numbers`].
pub(crate) fn take_numbers(
    stored: &mut Stored,
    name: &str,
    count: usize,
) -> Result<Vec<f64>, CompressError> {
    let tensor = stored.take(name, &[8 * count])?;
    let numbers = tensor
        .bytes()
        .as_chunks()
        .0
        .iter()
        .map(|&b| f64::from_le_bytes(b));
    Ok(numbers.collect())
}

/// Error and energy of a fit.
pub(crate) fn take_error(stored: &mut Stored, name: &str) -> Result<[f64; 2], CompressError> {
    let numbers = take_numbers(stored, &format!("{name}.error"), 2)?;
    Ok([numbers[0], numbers[1]])
}

/// The parts of a fit, by their names in a package.
pub(crate) fn take_packed(
    stored: &mut Stored,
    name: &str,
    bits: Bits,
    rows: usize,
    cols: usize,
) -> Result<[(&'static str, Tensor); 3], CompressError> {
    let sizes = palette::sizes(bits, rows, cols).map_err(|problem| CompressError::Layout {
        name: name.to_owned(),
        problem,
    })?;
    Ok([
        (
            "indices",
            stored.take(&format!("{name}.indices"), &[sizes.indices])?,
        ),
        (
            "palette",
            stored.take(&format!("{name}.palette"), &[sizes.palette])?,
        ),
        (
            "scales",
            stored.take(&format!("{name}.scales"), &[sizes.scales])?,
        ),
    ])
}

pub(crate) fn take_fit(
    stored: &mut Stored,
    name: &str,
    bits: Bits,
    rows: usize,
    cols: usize,
) -> Result<Fitted, CompressError> {
    let [(_, indices), (_, palette), (_, scales)] = take_packed(stored, name, bits, rows, cols)?;
    let [error, energy] = take_error(stored, name)?;
    let indices = palette::unpack(bits, rows, cols, indices.bytes()).map_err(|problem| {
        CompressError::Layout {
            name: name.to_owned(),
            problem,
        }
    })?;
    let halves = scales
        .bytes()
        .as_chunks()
        .0
        .iter()
        .map(|&b| half::f16::from_le_bytes(b));
    Ok(Fitted {
        matrix: Matrix {
            bits,
            rows,
            cols,
            indices,
            palette: palette.bytes().iter().map(|&entry| entry as i8).collect(),
            scales: halves.collect(),
        },
        error,
        energy,
    })
}

/// The state folder: whole files only.
pub(crate) struct Folder {
    path: PathBuf,
    _held: Hold,
}

impl Folder {
    /// Opens the folder, emptied where it is of other work. It is held as long as this lives.
    pub fn open(state: &State) -> Result<Folder, CompressError> {
        let path = state.folder;
        let folder = Folder {
            path: path.to_path_buf(),
            _held: Hold::take(path, path)?,
        };
        let wanted = format!("{LAYOUT} {}", state.key);
        let key = std::fs::read_to_string(path.join(KEY)).ok();
        if key.as_ref() == Some(&wanted) {
            return Ok(folder);
        }
        let problem = |problem| Folder::problem(path, problem);
        if is_state(path) {
            empty(path).map_err(problem)?;
        }
        for entry in std::fs::read_dir(path).map_err(problem)? {
            let name = entry.map_err(problem)?.file_name();
            if !BEFORE.iter().any(|before| name == *before) {
                let sentence = "is where unfinished palettizing would lie, but holds other files; move it away, or write the package elsewhere";
                return Err(CompressError::Model(ModelError::file(path, sentence)));
            }
        }
        folder.put(KEY, &mut |out| out(wanted.as_bytes()))?;
        Ok(folder)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn problem(path: &Path, problem: std::io::Error) -> CompressError {
        CompressError::File {
            path: path.to_path_buf(),
            problem,
        }
    }

    /// A file that is there but not as it was written.
    pub fn damaged(path: &Path) -> CompressError {
        let sentence = "is not as it was written; remove the folder that it lies in, and the work begins again";
        CompressError::Model(ModelError::file(path, sentence))
    }

    pub fn has(&self, name: &str, number: usize) -> bool {
        self.path.join(numbered(name, number)).is_file()
    }

    pub fn has_tensors(&self, name: &str) -> bool {
        self.path.join(format!("{name}.safetensors")).is_file()
    }

    pub fn remove(&self, name: &str, number: usize) -> Result<(), CompressError> {
        let path = self.path.join(numbered(name, number));
        match std::fs::remove_file(&path) {
            Err(problem) if problem.kind() != ErrorKind::NotFound => {
                Err(Folder::problem(&path, problem))
            }
            _ => Ok(()),
        }
    }

    /// Writes a file of what `make` hands to its argument, whole or not at all.
    #[allow(clippy::type_complexity, reason = "a writer of pieces, said once")]
    pub fn put(
        &self,
        name: &str,
        make: &mut dyn FnMut(
            &mut dyn FnMut(&[u8]) -> Result<(), CompressError>,
        ) -> Result<(), CompressError>,
    ) -> Result<(), CompressError> {
        let (part, path) = (self.path.join(format!("{name}.part")), self.path.join(name));
        let wrong = |problem| Folder::problem(&part, problem);
        let mut file = BufWriter::new(File::create(&part).map_err(wrong)?);
        make(&mut |bytes| file.write_all(bytes).map_err(wrong))?;
        let file = file
            .into_inner()
            .map_err(|error| wrong(error.into_error()))?;
        file.sync_all().map_err(wrong)?;
        std::fs::rename(&part, &path).map_err(wrong)
    }

    /// So many numbers of a file; nothing where there is none.
    pub fn numbers(&self, name: &str, count: usize) -> Result<Option<Vec<f64>>, CompressError> {
        let path = self.path.join(name);
        match std::fs::read(&path) {
            Ok(bytes) if bytes.len() == 8 * count => {
                let numbers = bytes.as_chunks().0.iter();
                Ok(Some(numbers.map(|&b| f64::from_le_bytes(b)).collect()))
            }
            Ok(_) => Err(Folder::damaged(&path)),
            Err(problem) if problem.kind() == ErrorKind::NotFound => Ok(None),
            Err(problem) => Err(Folder::problem(&path, problem)),
        }
    }

    pub fn put_numbers(&self, name: &str, numbers: &[f64]) -> Result<(), CompressError> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.put(name, &mut |out| out(&bytes))
    }

    pub fn put_tensors(&self, name: &str, tensors: &Tensors) -> Result<(), CompressError> {
        let outputs: Vec<Output> = tensors
            .0
            .iter()
            .map(|(name, dtype, shape, bytes)| Output {
                name: name.clone(),
                dtype: *dtype,
                shape: shape.clone(),
                bytes,
            })
            .collect();
        let draft = format!("{name}.part");
        stored::write(&self.path, &draft, &outputs, usize::MAX)?;
        let part = self.path.join(format!("{draft}.safetensors"));
        let wrong = |problem| Folder::problem(&part, problem);
        File::open(&part)
            .and_then(|file| file.sync_all())
            .map_err(wrong)?;
        std::fs::rename(&part, self.path.join(format!("{name}.safetensors"))).map_err(wrong)
    }

    pub fn tensors(&self, name: &str) -> Result<Stored, CompressError> {
        let path = self.path.join(format!("{name}.safetensors"));
        Stored::open_file(&path).map_err(|_| Folder::damaged(&path))
    }
}
