use super::*;
use crate::palette::{self, Bits, PaletteMatrix};
use crate::quantize::QuantizedRows;
use crate::{matmul, random};
use half::bf16;
use proptest::prelude::*;

fn numbers(stream: u64, len: usize, deviation: f32) -> Vec<f32> {
    let number = |i| deviation * random::normal(7, stream, i as u64);
    (0..len).map(number).collect()
}

/// An adapter's matrices of bf16, which lose nothing here.
struct Own {
    columns: Range<usize>,
    rank: usize,
    scale: f32,
    a: Vec<bf16>,
    b: Vec<bf16>,
}

impl Own {
    fn new(width: usize, columns: Range<usize>, rank: usize, stream: u64) -> Own {
        let round = |numbers: Vec<f32>| numbers.into_iter().map(bf16::from_f32).collect();
        Own {
            a: round(numbers(2 * stream, rank * width, 1e-3)),
            b: round(numbers(2 * stream + 1, columns.len() * rank, 3.0)),
            scale: 0.3 + stream as f32,
            columns,
            rank,
        }
    }

    fn part(&self) -> LowRankPart<'_> {
        LowRankPart {
            columns: self.columns.clone(),
            rank: self.rank,
            a: Numbers::Bf16(bytemuck::cast_slice(&self.a)),
            b: Numbers::Bf16(bytemuck::cast_slice(&self.b)),
            scale: self.scale,
        }
    }

    /// The same by dense products of f32.
    fn adapt_dense(&self, pool: &Pool, x: Mat<'_>, mut y: MatMut<'_>) {
        let dense = |numbers: &[bf16]| numbers.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        let (a, b) = (dense(&self.a), dense(&self.b));
        let mut down = vec![0.0; x.rows * self.rank];
        let to = MatMut::new(&mut down, x.rows, self.rank);
        matmul(pool, x, Mat::new(&a, self.rank, x.cols).t(), to, false);
        down.iter_mut().for_each(|v| *v *= self.scale);
        let down = Mat::new(&down, x.rows, self.rank);
        let up = Mat::new(&b, self.columns.len(), self.rank);
        matmul(
            pool,
            down,
            up.t(),
            y.reborrow().cols(self.columns.clone()),
            true,
        );
    }
}

/// Runs of the given lengths, each through one of the adapters in turn.
fn runs<'a>(low_ranks: &'a [LowRank], lengths: &[usize]) -> Vec<AdaptedRows<'a>> {
    let mut start = 0;
    let lengths = lengths.iter().enumerate();
    lengths
        .map(|(run, len)| {
            start += len;
            AdaptedRows {
                low_rank: &low_ranks[run % low_ranks.len()],
                rows: start - len..start,
            }
        })
        .collect()
}

/// Runs of several lengths, each through one of two adapters, against dense products, on every instruction set.
fn check(width: usize, features: usize, ranks: [usize; 2], lengths: &[usize]) {
    let half = features.div_ceil(2);
    let adapters = [
        vec![
            Own::new(width, 0..half, ranks[0], 1),
            Own::new(width, half..features, ranks[1], 2),
        ],
        vec![Own::new(width, features / 3..features, ranks[1], 3)],
    ];
    let low_rank = |own: &Vec<Own>| {
        let parts: Vec<_> = own.iter().map(Own::part).collect();
        LowRank::new(width, &parts)
    };
    let low_ranks: Vec<_> = adapters.iter().map(low_rank).collect();
    let tokens: usize = lengths.iter().sum();
    let (x, y) = (
        numbers(20, tokens * width, 1.0),
        numbers(21, tokens * features, 1.0),
    );
    for isa in Isa::available() {
        let mut wanted = y.clone();
        let pool = Pool::with_isa(1, isa);
        let mut start = 0;
        for (run, &len) in lengths.iter().enumerate() {
            let x = Mat::new(&x, tokens, width).rows(start..start + len);
            for own in &adapters[run % 2] {
                let y = &mut wanted[start * features..][..len * features];
                own.adapt_dense(&pool, x, MatMut::new(y, len, features));
            }
            start += len;
        }
        for threads in 1..=3 {
            let mut got = y.clone();
            let (x, y) = (
                Mat::new(&x, tokens, width),
                MatMut::new(&mut got, tokens, features),
            );
            adapt(
                &Pool::with_isa(threads, isa),
                &runs(&low_ranks, lengths),
                x,
                y,
            );
            let differs = (0..got.len()).find(|&i| got[i].to_bits() != wanted[i].to_bits());
            let about = differs.map(|i| (i / features, i % features, got[i], wanted[i]));
            assert_eq!(
                about, None,
                "{isa:?}, {threads} threads, {width} to {features}, {ranks:?}, {lengths:?}"
            );
        }
    }
}

#[test]
fn has_the_bits_of_dense_products() {
    check(1024, 160, [16, 16], &[1, 1, 2, 3]);
    check(1100, 96, [8, 16], &[5, 60, 1, 12]);
    check(256, 33, [4, 1], &[9, 8]);
    check(2304, 50, [16, 300], &[1, 2, 24]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape_has_the_bits_of_dense_products(
        width in 1usize..700,
        features in 3usize..90,
        ranks in [1usize..40, 1..40],
        lengths in proptest::collection::vec(1usize..30, 1..4),
    ) {
        check(width, features, ranks, &lengths);
    }
}

#[test]
fn numbers_of_f32_keep_eleven_bits_whatever_their_magnitude() {
    let (width, rows) = (40, 20);
    for deviation in [1e-9, 1e-3, 1.0, 1e6] {
        let numbers = numbers(3, width * rows, deviation);
        let stored = Numbers::F32(bytemuck::cast_slice(&numbers));
        let power = stored.power();
        let panels = Panels::new(Isa::best(), width, &[(stored, power)]);
        let rounded = stored.rounded();
        for (i, &x) in numbers.iter().enumerate() {
            let (row, k) = (i / width, i % width);
            let kept =
                panels.values[(row / PANEL * width + k) * PANEL + row % PANEL].to_f32() / power;
            assert!((kept - x).abs() <= x.abs() / 2048.0, "{kept} for {x}");
            assert_eq!(kept, rounded[i]);
        }
    }
    assert_eq!(
        Numbers::F32(bytemuck::bytes_of(&[0.0, f32::INFINITY])).power(),
        1.0
    );
}

#[test]
fn every_body_fills_panels_alike() {
    for (rows, cols) in [(16, 64), (5, 200), (33, 16), (20, 7)] {
        let matrix = numbers(9, rows * cols, 1.0);
        let bytes = Numbers::F32(bytemuck::cast_slice(&matrix));
        for isa in Isa::available() {
            let panels = Panels::new(isa, cols, &[(bytes, 4.0)]);
            let padded = 0..rows.next_multiple_of(PANEL) * cols;
            let expected = padded.map(|at| {
                let (panel, col, lane) = (at / (cols * PANEL), at / PANEL % cols, at % PANEL);
                let row = panel * PANEL + lane;
                f16::from_f32(if row < rows {
                    4.0 * matrix[row * cols + col]
                } else {
                    0.0
                })
            });
            assert!(
                panels.values.iter().copied().eq(expected),
                "{isa:?}, {rows} x {cols}"
            );
        }
    }
}

#[test]
fn its_bytes_are_half_of_those_of_f32() {
    let own = Own::new(64, 0..32, 16, 1);
    let low_rank = LowRank::new(64, &[own.part()]);
    assert_eq!(low_rank.numbers(), 16 * 64 + 32 * 16);
    assert_eq!(low_rank.bytes(), 2 * low_rank.numbers());
}

#[test]
fn beside_a_palettized_product_it_has_the_bits_that_it_has_behind() {
    let (width, rows) = (1100, [40, 16, 21]);
    let features = rows.iter().sum();
    let bytes = |stream, len: usize| -> Vec<u8> {
        (0..len as u64)
            .map(|i| random::hash(5, stream, i) as u8)
            .collect()
    };
    let weights: Vec<_> = [Bits::Four, Bits::Three, Bits::TwoPairs]
        .into_iter()
        .zip(rows)
        .map(|(bits, rows)| {
            let sizes = palette::sizes(bits, rows, width).unwrap();
            let scales = vec![f16::from_f32(0.01); sizes.scales];
            (
                bits,
                rows,
                bytes(1, sizes.indices),
                bytes(2, sizes.palette),
                scales,
            )
        })
        .collect();
    let parts: Vec<_> = weights
        .iter()
        .map(|(bits, rows, indices, palette, scales)| {
            let palette = bytemuck::cast_slice(palette);
            PaletteMatrix::new(*bits, *rows, width, indices, palette, scales).unwrap()
        })
        .collect();
    // The second adapter leaves the first projection alone; a third goes through none that the product has for itself.
    let own = [
        vec![Own::new(width, 0..40, 16, 1), Own::new(width, 56..77, 8, 2)],
        vec![Own::new(width, 40..56, 16, 3)],
        vec![Own::new(width, 10..30, 16, 4)],
    ];
    let low_ranks = own
        .each_ref()
        .map(|own| LowRank::new(width, &own.iter().map(Own::part).collect::<Vec<_>>()));
    for (adapters, lengths) in [
        (&low_ranks[..2], &[1, 2, 1][..]),
        (&low_ranks[..2], &[9, 3]),
        (&low_ranks, &[1, 1, 2]),
        (&low_ranks[..2], &[20, 1]),
    ] {
        let tokens: usize = lengths.iter().sum();
        let x = numbers(20, tokens * width, 1.0);
        let dense = Mat::new(&x, tokens, width);
        // One adapter after another on the same rows, and rows without any.
        let second = vec![AdaptedRows {
            low_rank: &low_ranks[0],
            rows: tokens - 1..tokens,
        }];
        let levels = [runs(adapters, lengths), second];
        for isa in Isa::available() {
            for threads in 1..=3 {
                let pool = Pool::with_isa(threads, isa);
                let rounded = QuantizedRows::new(&pool, &x, width);
                let mut wanted = vec![0.0; tokens * features];
                palette::matmul(&pool, &parts, &rounded, &mut wanted);
                for level in &levels {
                    adapt(
                        &pool,
                        level,
                        dense,
                        MatMut::new(&mut wanted, tokens, features),
                    );
                }
                let mut got = vec![0.0; tokens * features];
                palette::matmul_adapted(&pool, &parts, &rounded, &mut got, dense, &levels);
                assert!(got == wanted, "{isa:?}, {threads} threads, {lengths:?}");
            }
        }
    }
}

#[test]
fn a_panic_on_the_way_down_reaches_the_caller_and_nobody_waits_for_ever() {
    let (width, features) = (512, 64);
    let bits = Bits::Four;
    let sizes = palette::sizes(bits, features, width).unwrap();
    let (indices, table) = (vec![0x21; sizes.indices], vec![1i8; sizes.palette]);
    let scales = vec![f16::ONE; sizes.scales];
    let part = PaletteMatrix::new(bits, features, width, &indices, &table, &scales).unwrap();
    let own = Own::new(width, 0..features, 48, 1);
    let mut low_rank = LowRank::new(width, &[own.part()]);
    low_rank.down.values.truncate(width * PANEL); // the ways down through the second and third panel fail
    let x = numbers(1, width, 1.0);
    let pool = Pool::with_isa(3, Isa::Scalar);
    let rounded = QuantizedRows::new(&pool, &x, width);
    for _ in 0..200 {
        let run = AdaptedRows {
            low_rank: &low_rank,
            rows: 0..1,
        };
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (dense, mut out) = (Mat::new(&x, 1, width), vec![0.0; features]);
            palette::matmul_adapted(&pool, &[part], &rounded, &mut out, dense, &[vec![run]]);
        }));
        assert!(failed.is_err());
    }
}

#[test]
fn runs_that_overlap_are_refused() {
    let own = Own::new(8, 0..8, 2, 1);
    let low_rank = LowRank::new(8, &[own.part()]);
    let runs = [0..2, 1..3].map(|rows| AdaptedRows {
        low_rank: &low_rank,
        rows,
    });
    let (x, mut y) = (vec![0.0; 24], vec![0.0; 24]);
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let pool = Pool::with_isa(1, Isa::Scalar);
        adapt(&pool, &runs, Mat::new(&x, 3, 8), MatMut::new(&mut y, 3, 8));
    }));
    assert!(failed.is_err());
}
