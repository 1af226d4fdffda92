//! Numbers that belong to a parameter, under the names that a checkpoint has for its parts.

use russet_model::stored::{Output, Stored};
use russet_model::{Decoder, Parameter};
use russet_tensor::DType;

use crate::Result;

/// The named tensors that a parameter packs, each with its shape. Each is a parameter block.
pub(crate) type Parts = Vec<(String, Vec<usize>)>;

/// The parts of a parameter.
pub(crate) fn parts(parameter: &Parameter) -> Parts {
    let shape = parameter.tensor.shape();
    let width = *shape.last().expect("a parameter has a shape");
    let part = |(name, rows): &(String, usize)| {
        (
            name.clone(),
            if shape.len() == 1 {
                vec![width]
            } else {
                vec![*rows, width]
            },
        )
    };
    parameter.parts.iter().map(part).collect()
}

/// One number for each weight of a parameter.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub parts: Parts,
    pub values: Vec<f32>,
}

impl Named {
    /// Copies of a decoder's parameters.
    pub(crate) fn weights(decoder: &Decoder) -> Vec<Named> {
        let copy = |parameter: Parameter| Named {
            parts: parts(&parameter),
            values: parameter.tensor.data().to_vec(),
        };
        decoder.parameters().into_iter().map(copy).collect()
    }

    /// As tensors of a file.
    pub(crate) fn outputs(all: &[Named]) -> Vec<Output<'_>> {
        let mut outputs = Vec::new();
        for Named { parts, values } in all {
            write(parts, values, "", &mut outputs);
        }
        outputs
    }
}

/// Adds `values` to the tensors of a file, each part under its name and `suffix`.
pub(crate) fn write<'a>(
    parts: &Parts,
    values: &'a [f32],
    suffix: &str,
    outputs: &mut Vec<Output<'a>>,
) {
    let mut rest = values;
    for (name, shape) in parts {
        let (part, after) = rest.split_at(shape.iter().product());
        outputs.push(Output {
            name: format!("{name}{suffix}"),
            dtype: DType::F32,
            shape: shape.clone(),
            bytes: bytemuck::cast_slice(part),
        });
        rest = after;
    }
}

/// Fills `values` from a file that [`write`] made.
pub(crate) fn read(
    parts: &Parts,
    values: &mut [f32],
    suffix: &str,
    stored: &mut Stored,
) -> Result<()> {
    let mut rest = values;
    for (name, shape) in parts {
        let (part, after) = rest.split_at_mut(shape.iter().product());
        part.copy_from_slice(stored.take_f32(&format!("{name}{suffix}"), shape)?.data());
        rest = after;
    }
    Ok(())
}
