//! Numbers that belong to a parameter, under the names that a checkpoint has for its parts.

use russet_model::stored::Output;
use russet_model::{Cut, Decoder, Parameter, cut};
use russet_tensor::DType;

/// What a decoder has of a parameter: all of it, or a rank's part.
pub(crate) fn cut(parameter: &Parameter) -> Cut {
    if let Some(cut) = parameter.cut {
        return cut.clone();
    }
    let shape = parameter.tensor.shape();
    let width = *shape.last().expect("a parameter has a shape");
    let part = |(name, rows): &(String, usize)| cut::CutPart {
        name: name.clone(),
        shape: match shape.len() {
            1 => vec![width],
            _ => vec![*rows, width],
        },
        rows: 0..*rows,
        columns: 0..width,
    };
    Cut {
        kind: parameter.kind,
        parts: parameter.parts.iter().map(part).collect(),
        piece: 0..parameter.tensor.len(),
        replicated: false,
        owned: true,
    }
}

/// One number for each weight that a decoder has of a parameter.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub cut: Cut,
    pub values: Vec<f32>,
}

impl Named {
    /// Copies of what a decoder has of its parameters.
    pub(crate) fn weights(decoder: &Decoder) -> Vec<Named> {
        let copy = |parameter: Parameter| Named {
            cut: cut(&parameter),
            values: parameter.tensor.data().to_vec(),
        };
        decoder.parameters().into_iter().map(copy).collect()
    }

    /// Copies of the parameters of a decoder, whole, whatever mesh it lies on. All ranks ask, and the first gets them.
    pub(crate) fn merged(decoder: &Decoder) -> Option<Vec<Named>> {
        let Some(mesh) = decoder.mesh() else {
            return Some(Named::weights(decoder));
        };
        let (config, shape) = (decoder.config(), mesh.shape());
        let is_first = mesh.rank() == 0;
        let cuts: Vec<Vec<Cut>> = match is_first {
            true => (0..shape.ranks())
                .map(|rank| Cut::all(config, shape, rank))
                .collect(),
            false => Vec::new(),
        };
        let mut merged = Vec::new();
        for (number, parameter) in decoder.parameters().iter().enumerate() {
            let own = parameter.cut.expect("of a decoder on a mesh");
            let said: &[u8] = match own.owned {
                true => parameter.tensor.bytes(),
                false => &[],
            };
            let Some(heard) = mesh.all().gather_bytes(said) else {
                continue;
            };
            let mut whole = own.clone();
            for part in &mut whole.parts {
                let rows = part.shape.iter().product::<usize>() / part.width();
                (part.rows, part.columns) = (0..rows, 0..part.width());
            }
            let len = whole.shape().iter().product();
            (whole.piece, whole.owned, whole.replicated) = (0..len, true, false);
            let mut values = vec![0.0; len];
            for (cuts, bytes) in cuts.iter().zip(heard) {
                let cut = &cuts[number];
                if !cut.owned {
                    continue;
                }
                for run in cut.runs() {
                    let (_, at) = whole.locate(&run).expect("a part of the whole");
                    let bytes = &bytes[run.at * 4..][..run.columns.len() * 4];
                    let words = bytes.as_chunks().0.iter();
                    for (value, &word) in values[at..].iter_mut().zip(words) {
                        *value = f32::from_le_bytes(word);
                    }
                }
            }
            merged.push(Named { cut: whole, values });
        }
        is_first.then_some(merged)
    }

    /// As tensors of a file.
    pub(crate) fn outputs(all: &[Named]) -> Vec<Output<'_>> {
        let mut outputs = Vec::new();
        for Named { cut, values } in all {
            write(cut, values, "", &mut outputs);
        }
        outputs
    }
}

/// Adds `values` to the tensors of a file, each part under its name and `suffix`: whole tensors with their shape, pieces flat.
/// Nothing where another rank does it.
pub(crate) fn write<'a>(cut: &Cut, values: &'a [f32], suffix: &str, outputs: &mut Vec<Output<'a>>) {
    if !cut.owned {
        return;
    }
    for (part, block) in cut.parts.iter().zip(cut.blocks()) {
        if block.is_empty() {
            continue;
        }
        outputs.push(Output {
            name: format!("{}{suffix}", part.name),
            dtype: DType::F32,
            shape: stored_shape(part, block.len()),
            bytes: bytemuck::cast_slice(&values[block]),
        });
    }
}

/// The shape of so many numbers of a part in a file.
pub(crate) fn stored_shape(part: &cut::CutPart, len: usize) -> Vec<usize> {
    if len == part.shape.iter().product::<usize>() {
        return part.shape.clone();
    }
    vec![len]
}
