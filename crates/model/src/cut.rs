//! Which part of each parameter a rank of a mesh has.
//!
//! Twice cut: along `tensor` a matrix loses rows (query, key, value, gate, up, tables: what it puts out) or columns (output,
//! down: what it takes in), and norms are the same on all ranks; along `fsdp` what is left is cut flat, matrices of one
//! product one after another, in pieces as even as possible. Along `data` and `sequence` every rank has the same.
//!
//! It is arithmetic on a shape: no rank asks another, and a plan of a thousand ranks needs none of them.

use std::ops::Range;

use russet_tensor::collective::share;
use russet_tensor::mesh::{Axis, MeshShape};

use crate::block::layouts;
use crate::{Config, Family, ParameterKind};

/// A rank's part of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// What the parameter is.
    pub kind: ParameterKind,
    /// The named tensors that it packs, and what of each belongs to the rank's place along `tensor`.
    pub parts: Vec<CutPart>,
    /// The piece of these, one after another, that belongs to its place along `fsdp`.
    pub piece: Range<usize>,
    /// Whether every place along `tensor` has the same.
    pub replicated: bool,
    /// Whether this rank speaks for these numbers where they are counted or written: of several that have them, the first.
    pub owned: bool,
}

/// A rectangle of a named tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct CutPart {
    /// The tensor's name in a checkpoint.
    pub name: String,
    /// Its whole shape, `[F, D]` or `[D]`.
    pub shape: Vec<usize>,
    /// Of F; a vector counts as one row.
    pub rows: Range<usize>,
    /// Of D.
    pub columns: Range<usize>,
}

/// A run of neighbouring numbers of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The part.
    pub part: usize,
    /// The row of its whole.
    pub row: usize,
    /// The columns of its whole.
    pub columns: Range<usize>,
    /// Where they lie in the piece.
    pub at: usize,
}

impl CutPart {
    fn len(&self) -> usize {
        self.rows.len() * self.columns.len()
    }
}

impl Cut {
    /// The parts of all parameters that a rank has, in the order of [`crate::Decoder::parameters`].
    ///
    /// # Panics
    /// When the mesh does not divide the model, which [`check`] says.
    pub fn all(config: &Config, mesh: MeshShape, rank: usize) -> Vec<Cut> {
        let place = mesh.place(rank);
        let [data, fsdp, sequence, tensor] = place;
        let (ranks, first) = (mesh.size(Axis::Tensor), data == 0 && sequence == 0);
        let mut cuts = Vec::new();
        each(config, &mut |kind, along, parts| {
            let parts: Vec<CutPart> = parts
                .into_iter()
                .map(|(name, shape)| {
                    let columns = *shape.last().expect("a parameter has a shape");
                    let rows = if shape.len() == 1 { 1 } else { shape[0] };
                    CutPart {
                        name,
                        shape,
                        rows: match along {
                            Along::Rows => share(rows, ranks, tensor),
                            Along::Columns | Along::Nothing => 0..rows,
                        },
                        columns: match along {
                            Along::Columns => share(columns, ranks, tensor),
                            Along::Rows | Along::Nothing => 0..columns,
                        },
                    }
                })
                .collect();
            let len = parts.iter().map(CutPart::len).sum();
            let replicated = along == Along::Nothing && ranks > 1;
            cuts.push(Cut {
                kind,
                parts,
                piece: share(len, mesh.size(Axis::Fsdp), fsdp),
                replicated,
                owned: first && (!replicated || tensor == 0),
            });
        });
        cuts
    }

    /// Numbers of the piece.
    pub fn len(&self) -> usize {
        self.piece.len()
    }

    /// Whether the piece has none.
    pub fn is_empty(&self) -> bool {
        self.piece.is_empty()
    }

    /// The shape of all pieces along `fsdp` together.
    pub fn shape(&self) -> Vec<usize> {
        let columns = self.parts[0].columns.len();
        if self.parts[0].shape.len() == 1 {
            return vec![columns];
        }
        vec![self.parts.iter().map(|part| part.rows.len()).sum(), columns]
    }

    /// Where each part lies in the piece.
    pub fn blocks(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let block = |part: &CutPart| {
            let range = start..start + part.len();
            start = range.end;
            let inside = |at: usize| at.clamp(self.piece.start, self.piece.end) - self.piece.start;
            inside(range.start)..inside(range.end)
        };
        self.parts.iter().map(block).collect()
    }

    /// The piece in runs of neighbours, in order.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        let mut start = 0;
        let numbered = self.parts.iter().enumerate();
        let rows = numbered.flat_map(move |(number, part)| {
            let (first, width) = (start, part.columns.len());
            start += part.len();
            let rows = part.rows.clone().enumerate();
            rows.map(move |(k, row)| (number, row, first + k * width))
        });
        rows.filter_map(|(part, row, first)| {
            let columns = &self.parts[part].columns;
            let from = first.max(self.piece.start);
            let to = (first + columns.len()).min(self.piece.end);
            (from < to).then(|| Run {
                part,
                row,
                columns: columns.start + from - first..columns.start + to - first,
                at: from - self.piece.start,
            })
        })
    }

    /// Which of a run's numbers are in this piece, counted from the run's first, and where they lie in it.
    pub fn locate(&self, run: &Run) -> Option<(Range<usize>, usize)> {
        let part = &self.parts[run.part];
        if !part.rows.contains(&run.row) {
            return None;
        }
        let before: usize = self.parts[..run.part].iter().map(CutPart::len).sum();
        let row = before + (run.row - part.rows.start) * part.columns.len();
        let from = run.columns.start.max(part.columns.start);
        let to = run.columns.end.min(part.columns.end);
        // From columns to places among all pieces, and there cut by this piece's ends.
        let place = |column: usize| row + column - part.columns.start;
        if from >= to {
            return None;
        }
        let first = place(from).max(self.piece.start);
        let last = place(to).min(self.piece.end);
        (first < last).then(|| {
            let start = from - run.columns.start + first - place(from);
            (start..start + last - first, first - self.piece.start)
        })
    }

    /// The piece, out of the parts' whole tensors.
    pub fn of_whole(&self, whole: &[impl AsRef<[f32]>]) -> Vec<f32> {
        let mut piece = Vec::with_capacity(self.len());
        for run in self.runs() {
            let row = run.row * self.parts[run.part].width();
            let data = whole[run.part].as_ref();
            piece.extend_from_slice(&data[row + run.columns.start..row + run.columns.end]);
        }
        piece
    }
}

impl CutPart {
    /// D of its whole.
    pub fn width(&self) -> usize {
        *self.shape.last().expect("a parameter has a shape")
    }
}

/// What of a matrix is shared out along `tensor`.
#[derive(Clone, Copy, PartialEq)]
enum Along {
    Nothing,
    Rows,
    Columns,
}

/// Takes a parameter: what it is, how it is cut, names and shapes of what it packs.
type Take<'a> = dyn FnMut(ParameterKind, Along, Vec<(String, Vec<usize>)>) + 'a;

/// Hands out every parameter: what it is, how it is cut, its named tensors.
fn each(config: &Config, take: &mut Take) {
    let table = |name: &str, take: &mut Take| {
        let shape = vec![config.vocab, config.width];
        let parts = vec![(format!("{name}.weight"), shape)];
        take(ParameterKind::Embedding, Along::Rows, parts);
    };
    table("model.embed_tokens", take);
    for layer in 0..config.layers {
        let norm = |name: &str, len: usize, take: &mut Take| {
            let name = format!("model.layers.{layer}.{name}.weight");
            take(ParameterKind::Norm, Along::Nothing, vec![(name, vec![len])]);
        };
        let [qkv, output, gate_up, down] = layouts(config, layer);
        let matrix = |layout: crate::Layout, along, take: &mut Take| {
            let shape = |p: &crate::Projection| vec![p.rows, layout.inputs];
            let part = |p: &crate::Projection| (format!("{}.weight", p.name), shape(p));
            let parts = layout.projections.iter().map(part).collect();
            take(ParameterKind::Matrix, along, parts);
        };
        norm("input_layernorm", config.width, take);
        matrix(qkv, Along::Rows, take);
        if config.family == Family::Qwen3 {
            norm("self_attn.q_norm", config.head_dim, take);
            if !config.shares_keys(layer) {
                norm("self_attn.k_norm", config.head_dim, take);
            }
        }
        matrix(output, Along::Columns, take);
        norm("post_attention_layernorm", config.width, take);
        matrix(gate_up, Along::Rows, take);
        matrix(down, Along::Columns, take);
    }
    let parts = vec![("model.norm.weight".to_owned(), vec![config.width])];
    take(ParameterKind::Norm, Along::Nothing, parts);
    if !config.tied {
        table("lm_head", take);
    }
}

/// Names and shapes of all tensors of a checkpoint, in the order of [`crate::Decoder::parameters`].
pub fn tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    each(config, &mut |_, _, parts| tensors.extend(parts));
    tensors
}

/// Whether a mesh of so many places along `tensor` divides a model.
///
/// # Errors
/// The sentence that says what it does not divide.
pub fn check(config: &Config, tensor: usize) -> Result<(), String> {
    for (name, count) in [
        ("kv_heads", config.kv_heads),
        ("ffn", config.ffn),
        ("vocabulary", config.vocab),
    ] {
        if tensor == 0 || !count.is_multiple_of(tensor) {
            return Err(format!(
                "is {tensor}, which does not divide the model's {name}, {count}; choose a divisor of its kv_heads, ffn and vocabulary"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Decoder;
    use crate::parallel::tests::small;

    /// Every number of every tensor belongs to exactly one owner, and all pieces put together are the whole.
    #[test]
    fn owned_pieces_cover_every_parameter_once() {
        let whole = Decoder::random(&small(false), 3);
        for sizes in [
            [1, 1, 1, 1],
            [2, 1, 1, 1],
            [1, 3, 1, 1],
            [1, 1, 1, 2],
            [2, 3, 1, 4],
        ] {
            let mesh = MeshShape { sizes };
            let config = whole.config();
            check(config, sizes[3]).unwrap();
            let mut seen: Vec<Vec<u8>> = Vec::new();
            for parameter in whole.parameters() {
                seen.push(vec![0; parameter.tensor.len()]);
            }
            for rank in 0..mesh.ranks() {
                let cuts = Cut::all(config, mesh, rank);
                assert_eq!(cuts.len(), seen.len());
                for ((cut, seen), parameter) in cuts.iter().zip(&mut seen).zip(whole.parameters()) {
                    let names: Vec<_> = cut.parts.iter().map(|part| &part.name).collect();
                    let wanted: Vec<_> = parameter.parts.iter().map(|(name, _)| name).collect();
                    assert_eq!((names, cut.kind), (wanted, parameter.kind));
                    let mut starts = vec![0];
                    for part in &cut.parts {
                        let len: usize = part.shape.iter().product();
                        starts.push(starts.last().unwrap() + len);
                    }
                    let parts: Vec<&[f32]> = starts
                        .windows(2)
                        .map(|pair| &parameter.tensor.data()[pair[0]..pair[1]])
                        .collect();
                    let piece = cut.of_whole(&parts);
                    assert_eq!(piece.len(), cut.len());
                    let blocks = cut.blocks();
                    assert_eq!(blocks.last().unwrap().end, cut.len());
                    for run in cut.runs() {
                        let block = &blocks[run.part];
                        assert!(block.start <= run.at && run.at + run.columns.len() <= block.end);
                        let row = starts[run.part] + run.row * cut.parts[run.part].width();
                        for (k, column) in run.columns.clone().enumerate() {
                            assert_eq!(piece[run.at + k], parameter.tensor.data()[row + column]);
                            seen[row + column] += u8::from(cut.owned);
                        }
                    }
                }
            }
            assert!(seen.iter().flatten().all(|&count| count == 1), "{sizes:?}");
        }
    }

    #[test]
    fn what_does_not_divide_is_said() {
        let config = small(true);
        let problem = check(&config, 3).unwrap_err();
        assert!(problem.contains("kv_heads, 4"), "{problem}");
        assert!(check(&config, 8).is_err() && check(&config, 0).is_err());
    }
}
