//! A decoder that palettization loses nothing of, for tests of everything that reads packages.
//!
//! Its weights are drawn from random tables, so a dense and a palettized form hold the same numbers. What is left
//! between the two is the rounding of activations to 8 bits, and of nothing else; and palettizing the dense form must
//! find the very tables that it was made of.

use std::collections::BTreeMap;

use half::f16;
use russet_kernels::int8::{self, Int8Matrix};
use russet_kernels::palette::{Bits, STRIP};
use russet_kernels::{Pool, random};
use russet_model::{Config, Decoder, ParameterKind};

use crate::matrix::Matrix;
use crate::{CompressError, Compressed, TableBits};

/// The same decoder twice, with random weights: dense, and in the form in which a package stores it.
/// `bits` chooses by projection name, among those of single weights: tables of pairs cannot be found again for certain. The
/// tables of embedding and output have `table` bits.
///
/// # Panics
/// When it chooses pairs.
///
/// # Errors
/// When a size is one that the format does not offer.
pub fn decoder(
    pool: &Pool,
    config: &Config,
    seed: u64,
    bits: impl Fn(&str) -> Bits,
    table: TableBits,
) -> Result<(Decoder, Compressed), CompressError> {
    let mut decoder = Decoder::random(config, seed);
    let mut compressed = Compressed {
        config: config.clone(),
        tables: BTreeMap::new(),
        modules: BTreeMap::new(),
        norms: BTreeMap::new(),
    };
    let mut values: Vec<Option<Vec<f32>>> = Vec::new();
    for (stream, parameter) in decoder.parameters().into_iter().enumerate() {
        let data = match parameter.kind {
            ParameterKind::Matrix => {
                let cols = parameter.tensor.dims2().1;
                let mut packed = Vec::with_capacity(parameter.tensor.len());
                for (name, rows) in &parameter.parts {
                    let name = name.strip_suffix(".weight").unwrap_or(name);
                    let matrix = matrix(
                        *rows,
                        cols,
                        bits(name),
                        seed,
                        ((stream as u64) << 32) + packed.len() as u64,
                    );
                    let mut dense = vec![0.0; rows * cols];
                    matrix.dequantize(pool, &mut dense);
                    packed.extend(dense);
                    let tensors = matrix.pack().map_err(|problem| CompressError::Layout {
                        name: name.to_owned(),
                        problem,
                    })?;
                    compressed.modules.insert(name.to_owned(), tensors);
                }
                Some(packed)
            }
            ParameterKind::Embedding => {
                let (rows, cols) = parameter.tensor.dims2();
                let name = parameter.parts[0].0.trim_end_matches(".weight");
                let wrong_size = |problem| CompressError::Layout {
                    name: name.to_owned(),
                    problem,
                };
                let mut dense = vec![0.0; rows * cols];
                if let Some(bits) = table.palette() {
                    let matrix = matrix(rows, cols, bits, seed, (stream as u64) << 32);
                    matrix.dequantize(pool, &mut dense);
                    let tensors = matrix.pack().map_err(wrong_size)?;
                    compressed.modules.insert(name.to_owned(), tensors);
                    values.push(Some(dense));
                    continue;
                }
                let table =
                    int8::quantize(rows, cols, parameter.tensor.data()).map_err(wrong_size)?;
                let view =
                    Int8Matrix::new(rows, cols, &table.data, &table.scales).map_err(wrong_size)?;
                int8::dequantize(pool, view, &mut dense);
                compressed.tables.insert(name.to_owned(), table);
                Some(dense)
            }
            ParameterKind::Norm => {
                compressed
                    .norms
                    .insert(parameter.parts[0].0.clone(), parameter.tensor.clone());
                None
            }
            ParameterKind::Adapter { .. } => None,
        };
        values.push(data);
    }
    let mut values = values.into_iter();
    decoder.visit_mut(&mut |tensor| {
        if let Some(Some(values)) = values.next() {
            tensor.data_mut().copy_from_slice(&values);
        }
    });
    Ok((decoder, compressed))
}

/// A random matrix whose weights have a variance of about 1 / cols.
fn matrix(rows: usize, cols: usize, bits: Bits, seed: u64, stream: u64) -> Matrix {
    assert_eq!(bits.dims(), 1, "{bits:?} in a lossless decoder");
    let (strips, entries) = (rows.div_ceil(STRIP), bits.entries());
    let mut palette = Vec::with_capacity(strips * entries);
    for strip in 0..strips {
        let start = palette.len();
        palette.push(-127);
        for k in 1..entries {
            // One out of each part of the range, so that no two are equal.
            let part = 250 / (entries as u64 - 1);
            let counter = (strip * entries + k) as u64;
            let entry =
                -126 + ((k as u64 - 1) * part + random::below(seed, stream, counter, part)) as i64;
            palette.push(entry as i8);
        }
        debug_assert!(
            palette[start..].is_sorted_by(|a, b| a < b),
            "{:?}",
            &palette[start..]
        );
    }
    // Entries are spread evenly over ±127, so their variance is 127² / 3.
    let scale = (3.0 / cols as f32).sqrt() / 127.0;
    let scales = (0..strips * STRIP)
        .map(|row| {
            if row < rows {
                f16::from_f32(scale * (0.75 + 0.5 * random::uniform(seed, stream + 1, row as u64)))
            } else {
                f16::ZERO
            }
        })
        .collect();
    let indices = (0..rows * cols).map(|i| {
        // Every row has the largest entry somewhere, as a long row would: its size tells its scale.
        let largest = i % cols == i / cols % cols;
        if largest {
            0
        } else {
            random::below(seed, stream + 2, i as u64, entries as u64) as u8
        }
    });
    Matrix {
        bits,
        rows,
        cols,
        indices: indices.collect(),
        palette,
        scales,
    }
}
