//! The product of packed weights against its formula, written here a third time and as plainly as
//! possible: from row-major indices, one weight at a time.

use super::*;
use crate::int8::{self, Int8Matrix};
use crate::quantize::BLOCK;
use crate::{Isa, Pool, random};
use proptest::prelude::*;

/// What is tested, by name: a width of [`Bits`], or 8-bit weights.
const ALL: [&str; 7] = ["2", "3", "4", "2v", "3v", "4v", "8"];

/// A random matrix and the buffers its view borrows.
struct Owned {
    bits: &'static str,
    rows: usize,
    cols: usize,
    /// Row-major int8 weights before the row scale.
    weights: Vec<i8>,
    packed: Vec<u8>,
    palette: Vec<i8>,
    scales: Vec<f16>,
}

impl Owned {
    fn random(bits: &'static str, rows: usize, cols: usize, seed: u64) -> Owned {
        let byte = |stream, at: usize| random::hash(seed, stream, at as u64) as u8;
        let scales = (0..rows.next_multiple_of(STRIP))
            .map(|row| f16::from_f32(random::normal(seed, 1, row as u64) * 0.01))
            .collect();
        let Some(kind) = Bits::from_name(bits) else {
            let weights: Vec<i8> = (0..rows * cols).map(|at| byte(2, at) as i8).collect();
            let packed = bytemuck::cast_slice(&int8::pack(rows, cols, &weights).unwrap()).to_vec();
            return Owned {
                bits,
                rows,
                cols,
                weights,
                packed,
                palette: vec![],
                scales,
            };
        };
        let sizes = sizes(kind, rows, cols).unwrap();
        let palette: Vec<i8> = (0..sizes.palette).map(|at| byte(3, at) as i8).collect();
        let width = kind.indices(cols);
        let indices: Vec<u8> = (0..rows * width)
            .map(|at| (usize::from(byte(4, at)) % kind.entries()) as u8)
            .collect();
        let weight = |(row, col): (usize, usize)| {
            let table = row / STRIP * kind.table();
            let entry = |number: usize| usize::from(indices[row * width + number]);
            match kind.dims() {
                1 => palette[table + entry(col)],
                // The first or the second number of the pair of inputs j and 4 + j of eight.
                _ => palette[table + col / 4 % 2 * kind.entries() + entry(col / 8 * 4 + col % 4)],
            }
        };
        let weights = (0..rows * cols)
            .map(|at| weight((at / cols, at % cols)))
            .collect();
        let packed = pack(kind, rows, cols, &indices).unwrap();
        Owned {
            bits,
            rows,
            cols,
            weights,
            packed,
            palette,
            scales,
        }
    }

    fn view(&self) -> PaletteMatrix<'_> {
        let bits = Bits::from_name(self.bits).unwrap();
        PaletteMatrix::new(
            bits,
            self.rows,
            self.cols,
            &self.packed,
            &self.palette,
            &self.scales,
        )
        .unwrap()
    }

    fn int8(&self) -> Int8Matrix<'_> {
        let data = bytemuck::cast_slice(&self.packed);
        Int8Matrix::new(self.rows, self.cols, data, &self.scales).unwrap()
    }

    fn dense(&self) -> Vec<f32> {
        let scale = |at: usize| self.scales[at / self.cols].to_f32();
        self.weights
            .iter()
            .enumerate()
            .map(|(at, &w)| scale(at) * f32::from(w))
            .collect()
    }
}

/// Every instruction set of this machine, with one thread and with three.
fn pools() -> Vec<Pool> {
    Isa::available()
        .flat_map(|isa| [Pool::with_isa(1, isa), Pool::with_isa(3, isa)])
        .collect()
}

fn activations(tokens: usize, cols: usize, seed: u64) -> Vec<f32> {
    (0..tokens * cols)
        .map(|at| random::normal(seed, 5, at as u64))
        .collect()
}

fn product(pool: &Pool, parts: &[Owned], x: &QuantizedRows) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.rows() * parts.iter().map(|part| part.rows).sum::<usize>()];
    if parts[0].bits == "8" {
        int8::matmul(pool, parts[0].int8(), x, &mut out);
    } else {
        let views: Vec<_> = parts.iter().map(Owned::view).collect();
        matmul(pool, &views, x, &mut out);
    }
    out
}

/// The formula at the top of `strips`.
fn formula(parts: &[Owned], x: &QuantizedRows) -> Vec<f32> {
    let mut out = vec![];
    for token in 0..x.rows() {
        for part in parts {
            for (row, weights) in part.weights.chunks(part.cols).enumerate() {
                let mut total = 0.0f32;
                for (block, weights) in weights.chunks(BLOCK).enumerate() {
                    let terms = weights.iter().zip(x.values(token, block));
                    let sum: i32 = terms.map(|(&w, &q)| i32::from(w) * i32::from(q)).sum();
                    total = (sum as f32).mul_add(x.scale(token, block), total);
                }
                out.push(total * part.scales[row].to_f32());
            }
        }
    }
    out
}

#[track_caller]
fn assert_same_bits(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(
            found.to_bits(),
            expected.to_bits(),
            "{what}: {found} for {expected} at {at}"
        );
    }
}

/// Each body, on one thread and on three, gives exactly the formula's bits.
#[track_caller]
fn check(parts: &[(&'static str, usize)], cols: usize, tokens: usize, seed: u64) {
    let parts: Vec<Owned> = (seed..)
        .zip(parts)
        .map(|(seed, &(bits, rows))| Owned::random(bits, rows, cols, seed))
        .collect();
    let x = activations(tokens, cols, seed);
    let expected = formula(
        &parts,
        &QuantizedRows::new(&Pool::with_isa(1, Isa::Scalar), &x, cols),
    );
    for pool in pools() {
        let x = QuantizedRows::new(&pool, &x, cols);
        let what = format!("{:?} on {} threads", pool.isa(), pool.threads());
        assert_same_bits(&product(&pool, &parts, &x), &expected, &what);
    }
}

#[test]
fn every_body_equals_the_formula_bit_for_bit() {
    for bits in ALL {
        check(&[(bits, 64)], 256, 12, 1); // aligned
        check(&[(bits, 1)], 1, 1, 2); // smallest
        check(&[(bits, 17)], 129, 1, 3); // one over
        check(&[(bits, 47)], 383, 5, 4); // one under
        check(&[(bits, 33)], 200, 40, 5); // four panels
        check(&[(bits, 33)], 1100, 150, 7); // on tiles: three runs of blocks, two of tokens
        for tokens in 1..=12 {
            check(&[(bits, 48)], 264, tokens, 6); // every tile: two strips, then one
        }
    }
}

#[test]
fn parts_of_different_bits_are_concatenated() {
    check(&[("4", 48), ("2", 16), ("3", 16), ("4", 16)], 256, 1, 6);
    check(&[("2", 19), ("4", 1), ("3", 33), ("2", 40)], 77, 25, 7);
    check(&[("3v", 19), ("4", 1), ("2v", 33), ("4v", 40)], 77, 25, 7);
    check(&[("4", 50), ("3v", 16)], 77, 530, 8); // on tiles: two panels
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_equals_the_formula(
        bits in proptest::sample::select(ALL.to_vec()),
        rows in 1usize..70,
        cols in 1usize..420,
        tokens in 1usize..=40,
        seed: u64,
    ) {
        check(&[(bits, rows)], cols, tokens, seed);
    }

    #[test]
    fn any_parts_equal_the_formula(
        parts in proptest::collection::vec((proptest::sample::select(ALL[..6].to_vec()), 1usize..50), 1..4),
        cols in 1usize..300,
        tokens in 1usize..=14,
        seed: u64,
    ) {
        check(&parts, cols, tokens, seed);
    }

    #[test]
    fn unpacking_inverts_packing(
        bits in proptest::sample::select(Bits::ALL.to_vec()),
        rows in 1usize..50,
        cols in 1usize..80,
        seed: u64,
    ) {
        let entries = bits.entries() as u64;
        let indices: Vec<u8> =
            (0..rows * bits.indices(cols)).map(|at| (random::hash(seed, 0, at as u64) % entries) as u8).collect();
        let packed = pack(bits, rows, cols, &indices).unwrap();
        prop_assert_eq!(packed.len(), sizes(bits, rows, cols).unwrap().indices);
        prop_assert_eq!(unpack(bits, rows, cols, &packed).unwrap(), indices);
    }

    #[test]
    fn no_size_from_a_file_panics(bits in 0usize..6, rows: usize, cols: usize, low in 0usize..5) {
        let bits = Bits::ALL[bits];
        for (rows, cols) in [(rows, cols), (low, cols), (rows, low), (rows >> 32, cols >> 32)] {
            let refused = PaletteMatrix::new(bits, rows, cols, &[0; 64], &[0; 16], &[f16::ONE; 16]);
            prop_assert!(refused.is_err() || (rows <= 16 && cols <= 16));
            let refused = PaletteMatrix::new(bits, rows, cols, &[0; 192], &[0; 8], &[f16::ONE; 16]);
            prop_assert!(refused.is_err() || (bits == Bits::Three && rows <= 16 && cols <= 32));
            let refused = PaletteMatrix::new(bits, rows, cols, &[0; 192], &[0; 128], &[f16::ONE; 16]);
            prop_assert!(refused.is_err() || (bits == Bits::ThreePairs && rows <= 16 && cols <= 32));
            let refused = Int8Matrix::new(rows, cols, &[0; 64], &[f16::ONE; 16]);
            prop_assert!(refused.is_err() || (rows <= 16 && cols <= 4));
        }
    }
}

#[test]
fn what_is_done_while_products_are_at_hand_has_the_bits_of_what_would_be_done_later() {
    // A strip that is cut short, more strips than are written together, parts of different bits, and several runs of panels.
    for (rows, cols, tokens) in [
        (300, 200, 1),
        (300, 200, 5),
        (300, 200, 12),
        (300, 200, 13),
        (300, 200, 40),
        (40, 2048, 300),
    ] {
        let parts = [
            Owned::random("4", rows, cols, 5),
            Owned::random("3", rows, cols, 6),
        ];
        let views = [parts[0].view(), parts[1].view()];
        let mut x = activations(tokens, cols, 7);
        x[(tokens / 2) * cols + 3] = f32::NAN; // shows in its own row
        let to = activations(tokens, 2 * rows, 8);
        for pool in pools() {
            let x = QuantizedRows::new(&pool, &x, cols);
            let plain = product(&pool, &parts, &x);
            let what = format!("{rows} x {cols}, {tokens} tokens, {:?}", pool.isa());

            let mut added = vec![f32::NAN; tokens * 2 * rows];
            matmul_added(&pool, &views, &x, &to, &mut added);
            let sums: Vec<f32> = plain.iter().zip(&to).map(|(y, to)| to + y).collect();
            assert_same_bits(&added, &sums, &what);

            if !takes_gated(&x) {
                continue;
            }
            let mut gated = vec![f32::NAN; tokens * rows];
            matmul_gated(&pool, &views, &x, &mut gated);
            let mut later = vec![f32::NAN; tokens * rows];
            crate::swiglu::forward(&pool, &plain, rows, &mut later);
            assert_same_bits(&gated, &later, &what);
        }
    }
}

#[test]
fn a_token_is_the_same_alone_and_in_any_batch() {
    let cols = 300;
    let parts = [
        Owned::random("4", 40, cols, 8),
        Owned::random("2", 24, cols, 9),
        Owned::random("3", 20, cols, 10),
        Owned::random("2v", 7, cols, 11),
        Owned::random("3v", 33, cols, 12),
        Owned::random("4v", 20, cols, 13),
    ];
    let width = 144;
    let x = activations(40, cols, 10);
    for pool in pools() {
        let alone: Vec<f32> = x
            .chunks(cols)
            .flat_map(|x| product(&pool, &parts, &QuantizedRows::new(&pool, x, cols)))
            .collect();
        for batch in [2, 3, 8, 11, 12, 13, 25, 40] {
            let x = QuantizedRows::new(&pool, &x[..batch * cols], cols);
            let what = format!("{:?}, batch of {batch}", pool.isa());
            assert_same_bits(&product(&pool, &parts, &x), &alone[..batch * width], &what);
        }
    }
}

#[test]
fn the_extremes_of_int8_do_not_saturate() {
    // All weights -128 (or 127) against all activations ±127: the largest sums there are.
    let (rows, cols) = (16, 256);
    for (entry, bits) in [-128i8, 127]
        .into_iter()
        .flat_map(|entry| Bits::ALL.map(|b| (entry, b)))
    {
        let sizes = sizes(bits, rows, cols).unwrap();
        let palette = vec![entry; sizes.palette];
        let indices = vec![0u8; sizes.indices];
        let scales = [f16::ONE; 16];
        let matrix = PaletteMatrix::new(bits, rows, cols, &indices, &palette, &scales).unwrap();
        for sign in [-1.0f32, 1.0] {
            let expected = sign * f32::from(entry) * 127.0 * cols as f32;
            for pool in pools() {
                let x = QuantizedRows::new(&pool, &vec![sign * 127.0; 3 * cols], cols);
                let mut out = vec![0.0; 3 * rows];
                matmul(&pool, &[matrix], &x, &mut out);
                assert_eq!(out, vec![expected; 3 * rows], "{:?}", pool.isa());
            }
        }
    }
}

/// With a palette that expresses the weights exactly, only the rounding of activations is lost.
/// x = scale · q + e with |e| <= scale / 2 in each block, so |y - ŷ| <= Σ |w_i| scale(i) / 2; f32
/// arithmetic adds a rounding for each block, two for the scales and two in x · 127 / max, each
/// at most 2^-24 of Σ |w_i| |x_i| (counted twice over, for safety).
#[test]
fn a_lossless_palette_is_the_dense_product_up_to_activation_rounding() {
    let (rows, cols, tokens) = (35, 700, 13);
    for bits in ALL {
        let weight = Owned::random(bits, rows, cols, 11);
        let dense = weight.dense();
        let x = activations(tokens, cols, 12);
        let pool = Pool::with_isa(2, Isa::best());
        let quantized = QuantizedRows::new(&pool, &x, cols);
        let out = product(&pool, &[weight], &quantized);
        let roundings = 2.0 * (cols.div_ceil(BLOCK) + 4) as f64 * 2f64.powi(-24);
        let mut lossy = false;
        for (at, &found) in out.iter().enumerate() {
            let (token, row) = (at / rows, at % rows);
            let (mut exact, mut bound) = (0.0f64, 0.0f64);
            for col in 0..cols {
                let (w, x) = (
                    f64::from(dense[row * cols + col]),
                    f64::from(x[token * cols + col]),
                );
                exact += w * x;
                let half = f64::from(quantized.scale(token, col / BLOCK)) / 2.0;
                bound += w.abs() * (half + x.abs() * roundings);
            }
            let error = (f64::from(found) - exact).abs();
            assert!(
                error <= bound,
                "{found} for {exact}, bound {bound}, token {token}, row {row}"
            );
            lossy |= error > bound / 1e4;
        }
        assert!(lossy, "a bound that is never approached tests nothing");
    }
}

#[test]
fn the_order_of_bytes_is_the_documented_one() {
    let place = |bits: Bits, row: usize, col: usize| {
        let mut indices = vec![0u8; 32 * 32];
        indices[row * 32 + col] = 1;
        let packed = pack(bits, 32, 32, &indices).unwrap();
        let at = packed.iter().position(|&byte| byte != 0).unwrap();
        (at, packed[at])
    };
    assert_eq!(place(Bits::Four, 0, 0), (0, 1));
    assert_eq!(place(Bits::Four, 0, 3), (3, 1)); // byte j: input j in the low nibble
    assert_eq!(place(Bits::Four, 0, 6), (2, 1 << 4)); // and 4 + j in the high one
    assert_eq!(place(Bits::Four, 5, 1), (21, 1)); // four bytes a row
    assert_eq!(place(Bits::Four, 0, 8), (64, 1)); // 64 bytes for 8 inputs
    assert_eq!(place(Bits::Four, 16, 0), (4 * 64, 1)); // the next strip
    assert_eq!(place(Bits::Two, 0, 2), (2, 1));
    assert_eq!(place(Bits::Two, 0, 7), (3, 1 << 2));
    assert_eq!(place(Bits::Two, 15, 8), (60, 1 << 4));
    assert_eq!(place(Bits::Two, 0, 13), (1, 1 << 6));
    assert_eq!(place(Bits::Two, 0, 16), (64, 1));
    assert_eq!(place(Bits::Two, 31, 31), (3 * 64 + 63, 1 << 6));
    // Low bits of 16 inputs, of the other 16, then the high bits of all.
    assert_eq!(place(Bits::Three, 0, 7), (3, 1 << 2));
    assert_eq!(place(Bits::Three, 15, 30), (64 + 62, 1 << 6));
    assert_eq!(place(Bits::Three, 16, 0), (192, 1));
    let mut indices = [0u8; 40];
    indices[29] = 4;
    indices[33] = 6;
    let packed = pack(Bits::Three, 1, 40, &indices).unwrap();
    let set = packed.iter().enumerate().filter(|(_, byte)| **byte != 0);
    let set: Vec<(usize, u8)> = set.map(|(at, &byte)| (at, byte)).collect();
    assert_eq!(set, [(128 + 1, 1 << 7), (192 + 1, 2), (192 + 128 + 1, 1)]);
    // Pairs: the sixteenth index of a row of 32, that of inputs 27 and 31, lies in what others leave.
    let set = |bits: Bits, index: usize, value: u8| {
        let mut indices = [0u8; 20];
        indices[index] = value;
        let packed = pack(bits, 1, 40, &indices).unwrap();
        let set = packed.iter().enumerate().filter(|(_, byte)| **byte != 0);
        set.map(|(at, &byte)| (at, byte)).collect::<Vec<_>>()
    };
    assert_eq!(set(Bits::TwoPairs, 6, 9), [(2, 9 << 4)]); // inputs 10 and 14
    assert_eq!(set(Bits::TwoPairs, 8, 9), [(64, 9)]);
    assert_eq!(set(Bits::ThreePairs, 3, 63), [(3, 63)]);
    assert_eq!(set(Bits::ThreePairs, 9, 33), [(128 + 1, 33)]);
    let split = [(3, 1 << 6), (64 + 3, 2 << 6), (128 + 3, 3 << 6)];
    assert_eq!(set(Bits::ThreePairs, 15, 0b11_10_01), split);
    assert_eq!(set(Bits::ThreePairs, 16, 5), [(192, 5)]);
    assert_eq!(set(Bits::FourPairs, 5, 200), [(64 + 1, 200)]);
    let inputs = [0, 3, 4, 15].map(|index| Bits::ThreePairs.inputs(index));
    assert_eq!(inputs, [[0, 4], [3, 7], [8, 12], [27, 31]]);
    assert_eq!(
        [0, 1, 5, 8, 10, 13].map(|cols| Bits::TwoPairs.indices(cols)),
        [0, 1, 4, 4, 6, 8]
    );
    let place = |row: usize, col: usize| {
        let mut values = vec![0i8; 32 * 32];
        values[row * 32 + col] = -1;
        let packed = int8::pack(32, 32, &values).unwrap();
        packed.iter().position(|&byte| byte == -1).unwrap()
    };
    assert_eq!(
        [place(0, 0), place(1, 2), place(0, 4), place(16, 0)],
        [0, 6, 64, 8 * 64]
    );
}

#[test]
fn dequantizing_and_gathering_are_exact_on_every_body() {
    for (bits, rows, cols) in [
        ("2", 33, 70),
        ("4", 16, 64),
        ("4", 47, 4100),
        ("2", 20, 2065),
        ("3", 35, 70),
        ("3", 20, 4133),
        ("2v", 33, 70),
        ("2v", 16, 4100),
        ("3v", 20, 45),
        ("3v", 35, 4133),
        ("4v", 17, 2053),
        ("8", 35, 61),
    ] {
        let weight = Owned::random(bits, rows, cols, 13);
        let expected = weight.dense();
        for pool in pools() {
            let what = format!("{bits} bits, {:?}", pool.isa());
            let tokens = [3u32, 0, rows as u32 - 1, 3, 15];
            let mut out = vec![f32::NAN; rows * cols];
            let mut gathered = vec![f32::NAN; tokens.len() * cols];
            if bits == "8" {
                int8::dequantize(&pool, weight.int8(), &mut out);
                int8::gather(&pool, weight.int8(), &tokens, &mut gathered);
            } else {
                dequantize(&pool, weight.view(), &mut out);
                gather(&pool, weight.view(), &tokens, &mut gathered);
            }
            assert_same_bits(&out, &expected, &what);
            for (out, &token) in gathered.chunks(cols).zip(&tokens) {
                let row = token as usize * cols..(token as usize + 1) * cols;
                assert_same_bits(out, &expected[row.clone()], &what);
                if bits == "8" {
                    let mut alone = vec![f32::NAN; cols];
                    weight.int8().gather_row(token as usize, &mut alone);
                    assert_same_bits(&alone, &expected[row], &what);
                }
            }
        }
    }
}

#[test]
fn a_fault_in_an_activation_shows_in_its_token_alone() {
    let cols = 256;
    let weight = [Owned::random("4", 16, cols, 14)];
    for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = activations(3, cols, 15);
        x[cols + 200] = fault;
        for pool in pools() {
            let out = product(&pool, &weight, &QuantizedRows::new(&pool, &x, cols));
            assert!(out[..16].iter().all(|y| y.is_finite()), "{:?}", pool.isa());
            assert!(out[16..32].iter().all(|y| y.is_nan()), "{:?}", pool.isa());
            assert!(out[32..].iter().all(|y| y.is_finite()), "{:?}", pool.isa());
        }
    }
}

#[test]
fn no_tokens_are_no_work() {
    let weight = [Owned::random("4", 16, 32, 16)];
    for pool in pools() {
        assert!(product(&pool, &weight, &QuantizedRows::new(&pool, &[], 32)).is_empty());
    }
}

#[track_caller]
fn check_refused<T: std::fmt::Debug>(result: Result<T, LayoutError>, expected: &str) {
    let said = result.expect_err("should be refused").to_string();
    assert!(said.contains(expected), "`{said}` lacks `{expected}`");
}

#[test]
fn what_does_not_fit_is_refused_with_a_sentence() {
    let scales = [f16::ONE; 16];
    let new = |rows, cols, indices: &[u8], palette: &[i8], scales: &[f16]| {
        PaletteMatrix::new(Bits::Four, rows, cols, indices, palette, scales).map(|_| ())
    };
    assert_eq!(new(16, 8, &[0; 64], &[0; 16], &scales), Ok(()));
    check_refused(new(0, 8, &[], &[], &[]), "has no weights");
    check_refused(new(16, 0, &[], &[], &[]), "has no weights");
    check_refused(
        new(usize::MAX, 8, &[0; 64], &[0; 16], &scales),
        "would not fit in memory",
    );
    check_refused(
        new(usize::MAX / 2, usize::MAX / 2, &[], &[], &[]),
        "would not fit in memory",
    );
    check_refused(
        new(16, 8, &[0; 63], &[0; 16], &scales),
        "the indices of a 4-bit matrix of 16 x 8 must have 64 elements, not 63",
    );
    check_refused(new(16, 8, &[0; 64], &[0; 15], &scales), "palette");
    check_refused(
        new(17, 8, &[0; 128], &[0; 32], &scales),
        "must have 32 elements, not 16",
    );
    let three = |indices: &[u8], palette: &[i8]| {
        PaletteMatrix::new(Bits::Three, 16, 33, indices, palette, &scales).map(|_| ())
    };
    assert_eq!(three(&[0; 384], &[0; 8]), Ok(()));
    check_refused(
        three(&[0; 192], &[0; 8]),
        "the indices of a 3-bit matrix of 16 x 33 must have 384 elements, not 192",
    );
    check_refused(
        three(&[0; 384], &[0; 16]),
        "palette of a 3-bit matrix of 16 x 33 must have 8 elements",
    );
    check_refused(
        pack(Bits::Three, 1, 2, &[7, 8]),
        "index 8 at row 0, column 1 is outside a palette of 8 entries",
    );
    let pairs = |indices: &[u8], palette: &[i8]| {
        PaletteMatrix::new(Bits::TwoPairs, 16, 17, indices, palette, &scales).map(|_| ())
    };
    assert_eq!(pairs(&[0; 128], &[0; 32]), Ok(()));
    check_refused(pairs(&[0; 128], &[0; 16]), "must have 32 elements, not 16");
    check_refused(pairs(&[0; 64], &[0; 32]), "must have 128 elements, not 64");
    check_refused(
        pack(Bits::ThreePairs, 2, 9, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 64]),
        "index 64 at row 1, column 8 is outside a palette of 64 entries",
    );
    check_refused(
        pack(Bits::TwoPairs, 1, 9, &[0; 9]),
        "must have 5 elements, not 9",
    );
    check_refused(
        pack(Bits::Two, 2, 3, &[0, 1, 2, 3, 4, 0]),
        "index 4 at row 1, column 1",
    );
    check_refused(
        pack(Bits::Two, 2, 3, &[0; 5]),
        "must have 6 elements, not 5",
    );
    check_refused(
        unpack(Bits::Two, 2, 3, &[0; 65]),
        "must have 64 elements, not 65",
    );
    check_refused(
        Int8Matrix::new(16, 4, &[0; 65], &scales),
        "the data of a 8-bit",
    );
    check_refused(int8::pack(1, 2, &[0; 3]), "must have 2 elements, not 3");
    check_refused(int8::unpack(1, 2, &[0; 3]), "must have 64 elements, not 3");
}

#[test]
#[should_panic(expected = "row 16 of a matrix with 16 rows")]
fn a_row_that_there_is_not_is_a_bug() {
    let weight = Owned::random("4", 16, 8, 17);
    let pool = Pool::with_isa(1, Isa::Scalar);
    gather(&pool, weight.view(), &[3, 16], &mut [0.0; 16]);
}

#[test]
#[should_panic(expected = "the product is [2, 16]")]
fn a_wrong_output_is_a_bug() {
    let weight = Owned::random("4", 16, 8, 17);
    let pool = Pool::with_isa(1, Isa::Scalar);
    let x = QuantizedRows::new(&pool, &[0.0; 16], 8);
    matmul(&pool, &[weight.view()], &x, &mut [0.0; 31]);
}
