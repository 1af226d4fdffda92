//! Saved states, in the pieces that the ranks of a run had, read on any other mesh.
//!
//! ```text
//! rank-00000.safetensors   NAME, NAME.m, NAME.v, NAME.mean: what rank 0 spoke for
//! rank-00001.safetensors   …
//! ```
//! Which numbers of the whole a piece is follows from the model's shape, the mesh (in `state.json`) and the rank
//! ([`russet_model::cut`]). A tensor that a rank has whole has its own shape; a piece is flat. So the one file of one rank is
//! an ordinary set of named tensors. Nothing is computed on the way: the same numbers lie elsewhere.

use std::path::Path;

use russet_model::stored::{self, Output, Stored};
use russet_model::{Config, Cut};
use russet_tensor::{MeshShape, Tensor};

use crate::Result;
use crate::named::stored_shape;

/// The mesh of a run without one.
pub(crate) const ONE_RANK: MeshShape = MeshShape { sizes: [1; 4] };

/// The file of a rank, without its ending.
fn file(rank: usize) -> String {
    format!("rank-{rank:05}")
}

/// Writes what a rank speaks for; no file where that is nothing.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn write(folder: &Path, rank: usize, outputs: &[Output]) -> Result<()> {
    if !outputs.is_empty() {
        stored::write(folder, &file(rank), outputs, usize::MAX)?;
    }
    Ok(())
}

/// The pieces of a saved state.
pub(crate) struct Pieces {
    ranks: Vec<(Vec<Cut>, Stored)>, // of those that wrote
}

impl Pieces {
    /// Opens what the ranks of a mesh wrote of all weights of a decoder.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub(crate) fn open(folder: &Path, config: &Config, mesh: MeshShape) -> Result<Pieces> {
        let cuts = (0..mesh.ranks()).map(|rank| Cut::all(config, mesh, rank));
        Pieces::of(folder, cuts)
    }

    /// Opens what ranks wrote that had these parts of their parameters each.
    ///
    /// # Errors
    /// As [`Pieces::open`].
    pub(crate) fn of(folder: &Path, cuts: impl Iterator<Item = Vec<Cut>>) -> Result<Pieces> {
        let mut ranks = Vec::new();
        for (rank, cuts) in cuts.enumerate() {
            if cuts.iter().any(|cut| cut.owned && !cut.is_empty()) {
                ranks.push((cuts, Stored::open(folder, &file(rank))?));
            }
        }
        Ok(Pieces { ranks })
    }

    /// What `cut`, of the parameter of the given number, asks for.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub(crate) fn read(&mut self, number: usize, cut: &Cut, suffix: &str) -> Result<Vec<f32>> {
        let mut values = vec![0.0; cut.len()];
        for (cuts, stored) in &mut self.ranks {
            let saved = &cuts[number];
            if !saved.owned {
                continue;
            }
            let blocks = saved.blocks();
            let mut wanted = vec![false; blocks.len()];
            for run in saved.runs() {
                wanted[run.part] |= cut.locate(&run).is_some();
            }
            let mut data: Vec<Option<Tensor>> = Vec::new();
            for ((part, block), wanted) in saved.parts.iter().zip(&blocks).zip(wanted) {
                let name = format!("{}{suffix}", part.name);
                data.push(match (wanted, block.is_empty()) {
                    (true, _) => Some(stored.take_f32(&name, &stored_shape(part, block.len()))?),
                    (false, false) => {
                        stored.ignore(&name);
                        None
                    }
                    (false, true) => None,
                });
            }
            for run in saved.runs() {
                if let (Some((common, at)), Some(data)) = (cut.locate(&run), &data[run.part]) {
                    let from = run.at - blocks[run.part].start + common.start;
                    let data = &data.data()[from..from + common.len()];
                    values[at..at + common.len()].copy_from_slice(data);
                }
            }
        }
        Ok(values)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// When something is left that nothing asked for.
    pub(crate) fn finish(self) -> Result<()> {
        for (_, stored) in self.ranks {
            stored.finish()?;
        }
        Ok(())
    }
}
