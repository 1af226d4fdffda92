//! The product in plain Rust: the oracle of the other bodies, and what runs on every other CPU.

use super::strips::{Format, HALF, LINE, Results, STRIP, Strips};
use crate::quantize::{BLOCK, PANEL, Panel};

/// See [`super::strips::Tile`]; nothing here is unsafe.
pub(super) fn tile(
    strips: &Strips<'_>,
    first: usize,
    count: usize,
    panel: &Panel<'_>,
    results: &mut Results,
    column: usize,
) {
    for index in 0..count {
        one(
            strips,
            first + index,
            panel,
            results,
            column + index * STRIP,
        );
    }
}

/// One strip times one panel.
fn one(strips: &Strips<'_>, strip: usize, panel: &Panel<'_>, results: &mut Results, column: usize) {
    let mut totals = [[0.0f32; STRIP]; PANEL];
    let mut weights = [[0i8; BLOCK]; STRIP];
    for block in 0..strips.cols.div_ceil(BLOCK) {
        decode(strips, strip, block, &mut weights);
        for (token, totals) in totals.iter_mut().take(panel.tokens).enumerate() {
            let at = block * panel.width + token;
            let x: &[i8; BLOCK] = panel.values[at * BLOCK..(at + 1) * BLOCK]
                .try_into()
                .expect("a block of 128");
            for (total, weights) in totals.iter_mut().zip(&weights) {
                let sum: i32 = weights
                    .iter()
                    .zip(x)
                    .map(|(&w, &x)| i32::from(w) * i32::from(x))
                    .sum();
                *total = (sum as f32).mul_add(panel.scales[at], *total);
            }
        }
    }
    let scales = &strips.scales[strip * STRIP..(strip + 1) * STRIP];
    for (results, totals) in results.0.iter_mut().zip(&totals).take(panel.tokens) {
        for (row, result) in results[column..column + STRIP].iter_mut().enumerate() {
            *result = totals[row] * scales[row].to_f32();
        }
    }
}

/// The int8 weights of one strip and one block of 128 inputs; 0 past the last unit.
fn decode(strips: &Strips<'_>, strip: usize, block: usize, weights: &mut [[i8; BLOCK]; STRIP]) {
    let inputs = strips.format.inputs();
    let unit = strips.format.unit() * LINE; // bytes
    let per_block = BLOCK / inputs;
    let table = strips.table(strip);
    let entry = |index: u8| table[usize::from(index)];
    let units = strips
        .strip(strip)
        .chunks_exact(unit)
        .skip(block * per_block)
        .take(per_block);
    let mut done = 0;
    for unit in units {
        if strips.format.pairs() {
            pairs(strips.format, unit, table, done, weights);
            done += inputs;
            continue;
        }
        let (line, more) = unit.split_at(LINE);
        for (lane, (row, bytes)) in weights.iter_mut().zip(line.chunks_exact(4)).enumerate() {
            let row = &mut row[done..done + inputs];
            // The match is out here, so that a lane decodes without asking again.
            match strips.format {
                Format::Two => {
                    for (place, weight) in row.iter_mut().enumerate() {
                        *weight = entry(bytes[place % 4] >> (place / 4 * 2) & 3);
                    }
                }
                Format::Three => {
                    let later = &more[lane * 4..][..4];
                    let high = &more[LINE + lane * 4..][..4];
                    for (place, weight) in row.iter_mut().enumerate() {
                        let low = if place < 16 { bytes } else { later };
                        let low = low[place % 4] >> (place % 16 / 4 * 2) & 3;
                        *weight = entry(low | (high[place % 4] >> (place / 4) & 1) << 2);
                    }
                }
                Format::Four => {
                    for (place, weight) in row.iter_mut().enumerate() {
                        *weight = entry(bytes[place % 4] >> (place / 4 * 4) & 15);
                    }
                }
                Format::Eight => {
                    for (byte, weight) in bytes.iter().zip(row) {
                        *weight = *byte as i8;
                    }
                }
                Format::TwoPairs | Format::ThreePairs | Format::FourPairs => {
                    unreachable!("pairs were decoded above")
                }
            }
        }
        done += inputs;
    }
    for row in weights.iter_mut() {
        row[done..].fill(0);
    }
}

/// The same of a unit of pairs, whose inputs begin at `done`: each index gives a weight of four inputs and one of the
/// next four.
fn pairs(
    format: Format,
    unit: &[u8],
    table: &[i8],
    done: usize,
    weights: &mut [[i8; BLOCK]; STRIP],
) {
    let (first, second) = table.split_at(format.entries());
    for (lane, row) in weights.iter_mut().enumerate() {
        let byte = |line: usize, j: usize| unit[line * LINE + lane * 4 + j];
        for (four, row) in row[done..done + format.inputs()]
            .chunks_exact_mut(2 * HALF)
            .enumerate()
        {
            for j in 0..HALF {
                let index = match format {
                    Format::TwoPairs => byte(0, j) >> (4 * four) & 15,
                    Format::ThreePairs if four < 3 => byte(four, j) & 63,
                    Format::ThreePairs => {
                        byte(0, j) >> 6 | byte(1, j) >> 6 << 2 | byte(2, j) >> 6 << 4
                    }
                    _ => byte(0, j),
                };
                row[j] = first[usize::from(index)];
                row[HALF + j] = second[usize::from(index)];
            }
        }
    }
}
