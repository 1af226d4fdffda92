use super::*;

/// Numbers of a normal shape, the same everywhere.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count)
        .map(|_| (0..6).map(|_| uniform()).sum::<f32>() - 3.0)
        .collect()
}

fn round_trip(kind: GgufType, numbers: &[f32]) -> Vec<f32> {
    let (mut bytes, mut back) = (Vec::new(), Vec::new());
    kind.encode(numbers, &mut bytes);
    assert_eq!(Some(bytes.len()), kind.bytes(numbers.len()));
    kind.decode(&bytes, &mut back);
    back
}

/// Root of the mean squared error over that of the numbers.
fn error(kind: GgufType, numbers: &[f32]) -> f64 {
    let back = round_trip(kind, numbers);
    let square = |sum: f64, x: f32| sum + f64::from(x).powi(2);
    let off = numbers
        .iter()
        .zip(&back)
        .map(|(a, b)| a - b)
        .fold(0.0, square);
    (off / numbers.iter().copied().fold(0.0, square)).sqrt()
}

#[test]
fn floats_of_their_own_width_come_back_as_they_were() {
    let whole: Vec<f32> = (-128..128).map(|n| n as f32 / 4.0).collect();
    for kind in [GgufType::F32, GgufType::F16, GgufType::BF16] {
        assert_eq!(round_trip(kind, &whole), whole, "{kind:?}");
    }
}

/// The bounds are those of even steps: a step of 1/127, 1/7 or 1/15 of the range, off by a step over the root of 12.
#[test]
fn quantized_numbers_are_near() {
    let numbers = numbers(4096, 7);
    for (kind, bound) in [
        (GgufType::Q8_0, 0.006),
        (GgufType::Q4_0, 0.095),
        (GgufType::Q4K, 0.075),
    ] {
        let error = error(kind, &numbers);
        assert!(error < bound, "{kind:?}: {error}");
        assert!(
            error > bound / 4.0,
            "{kind:?}: {error}, too good to be true"
        );
    }
}

#[test]
fn numbers_that_a_block_can_hold_come_back_as_they_were() {
    let eight: Vec<f32> = (0..32)
        .map(|i| (i as f32 - 16.0) * 0.25)
        .chain([])
        .collect();
    let mut with_end = eight.clone();
    with_end[0] = -31.75; // -127 steps of a fourth
    assert_eq!(round_trip(GgufType::Q8_0, &with_end), with_end);
    let four: Vec<f32> = (0..32).map(|i| (i % 16) as f32 * 0.5 - 4.0).collect();
    assert_eq!(round_trip(GgufType::Q4_0, &four), four);
    // Scales 63, 62, … and offsets 63, 61, … with d = 2^-6 and m = 2^-4: all in 6 bits.
    let k: Vec<f32> = (0..256)
        .map(|i| {
            let group = (i / 32) as f32;
            (i % 16) as f32 * (63.0 - group) / 64.0 - (63.0 - 2.0 * group) / 16.0
        })
        .collect();
    let back = round_trip(GgufType::Q4K, &k);
    for (a, b) in k.iter().zip(back) {
        assert!((a - b).abs() < 1e-5, "{a} became {b}");
    }
}

#[test]
fn blocks_of_nothing_or_of_one_number_are_no_trouble() {
    for kind in [GgufType::Q8_0, GgufType::Q4_0, GgufType::Q4K] {
        for value in [0.0, 1.0, -1.0, 3e-8, -60_000.0, 1e-30] {
            let back = round_trip(kind, &[value; 256]);
            let near = (value.abs() * 0.01).max(1e-7);
            assert!(
                back.iter().all(|b| (b - value).abs() <= near),
                "{kind:?} of {value}: {}",
                back[0]
            );
        }
    }
}

#[test]
fn scales_of_6_bits_are_packed_and_unpacked() {
    let scales = [1, 2, 3, 63, 63, 47, 0, 33];
    let offsets = [63, 0, 5, 9, 62, 16, 15, 48];
    let packed = pack_scales(&scales, &offsets);
    for j in 0..8 {
        assert_eq!(scale_and_offset(&packed, j), (scales[j], offsets[j]), "{j}");
    }
}

#[test]
fn a_block_of_q6k_is_what_its_description_says() {
    // All low bits 0 but for weight 33 (low half of byte 33 of the first 64: quarter 1, i = 1), high bits likewise.
    let mut block = [0u8; 210];
    block[33] = 0x05;
    block[129] = 0b0000_0100; // two bits of quarter 1
    block[192..208].fill(2);
    block[192 + 2] = 0xff; // the scale of weights 32..48 is -1
    block[208..].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
    let mut out = Vec::new();
    GgufType::Q6K.decode(&block, &mut out);
    assert_eq!(out.len(), 256);
    assert_eq!(out[33], -0.5 * (f32::from(0x15u8) - 32.0));
    assert_eq!(out[34], -0.5 * -32.0);
    assert_eq!(out[0], 0.5 * 2.0 * -32.0);
    assert_eq!(out[255], 0.5 * 2.0 * -32.0);
}
