//! The types of GGUF tensors: how many numbers a block holds, and what its bytes say.
//!
//! Every number is little-endian. With `d`, `m` in f16 and `q` a whole number:
//!
//! | type | a block of | bytes | weight |
//! |---|---|---|---|
//! | Q8_0 | 32 | d, 32 int8 | `d · q` |
//! | Q4_0 | 32 | d, 16: weight i in the low half of byte i, weight i + 16 in the high | `d · (q − 8)` |
//! | Q4_K | 256 | d, m, 12: eight scales s and offsets o of 6 bits, 128 | `d · s · q − m · o` |
//! | Q6_K | 256 | 128: low 4 bits, 64: high 2 bits, 16 scales s of int8, d | `d · s · (q − 32)` |
//!
//! Q4_K has a scale and an offset for each 32 weights, Q6_K a scale for each 16. Quantizing chooses scales that make the squared error small: a
//! few ranges are tried, each refitted by least squares to the whole numbers that it gives, and the best stays.

use half::{bf16, f16};

/// A type of GGUF tensors that Russet reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// 8 bits, a scale for each 32.
    Q8_0,
    /// 4 bits, a scale for each 32.
    Q4_0,
    /// 4 bits, a scale and an offset for each 32, themselves of 6 bits.
    Q4K,
    /// 6 bits, a scale for each 16, itself of 8 bits; read only.
    Q6K,
}

impl GgufType {
    /// All of them.
    pub const ALL: [GgufType; 7] = [
        GgufType::F32,
        GgufType::F16,
        GgufType::BF16,
        GgufType::Q8_0,
        GgufType::Q4_0,
        GgufType::Q4K,
        GgufType::Q6K,
    ];

    /// Its name in ggml.
    pub fn name(self) -> &'static str {
        match self {
            GgufType::F32 => "F32",
            GgufType::F16 => "F16",
            GgufType::BF16 => "BF16",
            GgufType::Q8_0 => "Q8_0",
            GgufType::Q4_0 => "Q4_0",
            GgufType::Q4K => "Q4_K",
            GgufType::Q6K => "Q6_K",
        }
    }

    /// Its number in a file.
    pub fn id(self) -> u32 {
        match self {
            GgufType::F32 => 0,
            GgufType::F16 => 1,
            GgufType::Q4_0 => 2,
            GgufType::Q8_0 => 8,
            GgufType::Q4K => 12,
            GgufType::Q6K => 14,
            GgufType::BF16 => 30,
        }
    }

    /// The type of a number, or a sentence that names it.
    pub(super) fn of_id(id: u32) -> Result<GgufType, String> {
        if let Some(known) = GgufType::ALL.into_iter().find(|known| known.id() == id) {
            return Ok(known);
        }
        let name = match id {
            3 => "Q4_1",
            6 => "Q5_0",
            7 => "Q5_1",
            9 => "Q8_1",
            10 => "Q2_K",
            11 => "Q3_K",
            13 => "Q5_K",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            _ => "unknown",
        };
        let known: Vec<&str> = GgufType::ALL.iter().map(|known| known.name()).collect();
        Err(format!(
            "is of the type {name} (number {id}); Russet reads {}, so convert it with llama.cpp's llama-quantize first",
            known.join(", ")
        ))
    }

    /// Numbers of a block.
    pub fn block(self) -> usize {
        match self {
            GgufType::F32 | GgufType::F16 | GgufType::BF16 => 1,
            GgufType::Q8_0 | GgufType::Q4_0 => 32,
            GgufType::Q4K | GgufType::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            GgufType::F32 => 4,
            GgufType::F16 | GgufType::BF16 => 2,
            GgufType::Q8_0 => 34,
            GgufType::Q4_0 => 18,
            GgufType::Q4K => 144,
            GgufType::Q6K => 210,
        }
    }

    /// Bytes of so many numbers, which must be whole blocks; none where they are not or would not fit an address.
    pub fn bytes(self, numbers: usize) -> Option<usize> {
        if !numbers.is_multiple_of(self.block()) {
            return None;
        }
        (numbers / self.block()).checked_mul(self.block_bytes())
    }

    /// Whether a weight can be said at all: it is finite, and neither it nor a scale is too large for f16.
    pub(super) fn holds(self, x: f32) -> bool {
        match self {
            GgufType::F32 | GgufType::BF16 => x.is_finite(),
            _ => x.abs() <= 65_504.0,
        }
    }

    /// Bytes of whole blocks to numbers, appended to `out`.
    pub fn decode(self, bytes: &[u8], out: &mut Vec<f32>) {
        out.reserve(bytes.len() / self.block_bytes() * self.block());
        for block in bytes.chunks_exact(self.block_bytes()) {
            match self {
                GgufType::F32 => {
                    out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]]));
                }
                GgufType::F16 => out.push(half_at(block, 0)),
                GgufType::BF16 => {
                    out.push(bf16::from_le_bytes([block[0], block[1]]).to_f32());
                }
                GgufType::Q8_0 => {
                    let d = half_at(block, 0);
                    out.extend(block[2..].iter().map(|&q| d * f32::from(q as i8)));
                }
                GgufType::Q4_0 => {
                    let d = half_at(block, 0);
                    let weight = |q: u8| d * f32::from(q as i8 - 8);
                    out.extend(block[2..].iter().map(|&byte| weight(byte & 15)));
                    out.extend(block[2..].iter().map(|&byte| weight(byte >> 4)));
                }
                GgufType::Q4K => decode_q4k(block, out),
                GgufType::Q6K => decode_q6k(block, out),
            }
        }
    }

    /// Numbers, whole blocks of them, to bytes appended to `out`.
    ///
    /// # Panics
    /// For Q6_K, which is only read.
    pub fn encode(self, numbers: &[f32], out: &mut Vec<u8>) {
        out.reserve(numbers.len() / self.block() * self.block_bytes());
        for block in numbers.chunks_exact(self.block()) {
            match self {
                GgufType::F32 => out.extend(block[0].to_le_bytes()),
                GgufType::F16 => out.extend(f16::from_f32(block[0]).to_le_bytes()),
                GgufType::BF16 => out.extend(bf16::from_f32(block[0]).to_le_bytes()),
                GgufType::Q8_0 => encode_q8_0(block, out),
                GgufType::Q4_0 => encode_q4_0(block, out),
                GgufType::Q4K => encode_q4k(block, out),
                GgufType::Q6K => panic!("Q6_K is read and not written"),
            }
        }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Scale and offset number j of the 12 bytes: the first four of each lie in the low 6 bits of a byte of their own; of the
/// others the low 4 bits share a byte, and the high 2 lie above those of the first four.
fn scale_and_offset(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        return (packed[j] & 63, packed[j + 4] & 63);
    }
    let shared = packed[j + 4];
    (
        (shared & 15) | (packed[j - 4] >> 6 << 4),
        (shared >> 4) | (packed[j] >> 6 << 4),
    )
}

/// The inverse of [`scale_and_offset`], for all eight.
fn pack_scales(scales: &[u8; 8], offsets: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = scales[j] | (scales[j + 4] >> 4 << 6);
        packed[j + 4] = offsets[j] | (offsets[j + 4] >> 4 << 6);
        packed[j + 8] = (scales[j + 4] & 15) | ((offsets[j + 4] & 15) << 4);
    }
    packed
}

/// Of each 64 weights the first 32 lie in the low halves of 32 bytes, the others in the high ones.
fn decode_q4k(block: &[u8], out: &mut Vec<f32>) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let packed = &block[4..16];
    for (pair, bytes) in block[16..].chunks_exact(32).enumerate() {
        for high in 0..2 {
            let (scale, offset) = scale_and_offset(packed, 2 * pair + high);
            let (scale, offset) = (d * f32::from(scale), m * f32::from(offset));
            let q = |byte: u8| if high == 0 { byte & 15 } else { byte >> 4 };
            out.extend(bytes.iter().map(|&b| scale * f32::from(q(b)) - offset));
        }
    }
}

/// Of each 128 weights, four times 32 share 64 bytes of low bits (two times in low halves, two times in high) and 32 of
/// high bits, two of them for each four.
fn decode_q6k(block: &[u8], out: &mut Vec<f32>) {
    let d = half_at(block, 208);
    for half in 0..2 {
        let low = &block[64 * half..][..64];
        let high = &block[128 + 32 * half..][..32];
        let scales = &block[192 + 8 * half..][..8];
        for quarter in 0..4 {
            for i in 0..32 {
                let byte = low[32 * (quarter % 2) + i];
                let four = if quarter < 2 { byte & 15 } else { byte >> 4 };
                let two = high[i] >> (2 * quarter) & 3;
                let q = f32::from((four | two << 4) as i8 - 32);
                out.push(d * f32::from(scales[2 * quarter + i / 16] as i8) * q);
            }
        }
    }
}

fn encode_q8_0(block: &[f32], out: &mut Vec<u8>) {
    let largest = block.iter().fold(0f32, |largest, w| largest.max(w.abs()));
    let d = f16::from_f32(largest / 127.0);
    out.extend(d.to_le_bytes());
    let inverse = reciprocal(d.to_f32());
    for &w in block {
        out.push((w * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8);
    }
}

fn encode_q4_0(block: &[f32], out: &mut Vec<u8>) {
    // The largest weight lies at -8, the one number that has no opposite, or near it.
    let largest = block
        .iter()
        .fold(0f32, |a, &w| if w.abs() > a.abs() { w } else { a });
    let quantized = |d: f32| {
        let inverse = reciprocal(d);
        move |w: f32| (w * inverse).round_ties_even().clamp(-8.0, 7.0)
    };
    let error = |d: f32| -> f64 {
        let q = quantized(d);
        let off = |&w: &f32| f64::from(w - d * q(w)).powi(2);
        block.iter().map(off).sum()
    };
    let (mut best, mut least) = (f16::ZERO, f64::INFINITY);
    for reach in [-8.0, -7.6, -7.2, -6.8, -8.4, 7.0] {
        let q = quantized(largest / reach);
        let (mut wq, mut qq) = (0f64, 0f64);
        for &w in block {
            let q = f64::from(q(w));
            wq += f64::from(w) * q;
            qq += q * q;
        }
        let fitted = if qq > 0.0 { (wq / qq) as f32 } else { 0.0 };
        for d in [largest / reach, fitted].map(f16::from_f32) {
            let error = error(d.to_f32());
            if error < least {
                (best, least) = (d, error);
            }
        }
    }
    out.extend(best.to_le_bytes());
    let q = quantized(best.to_f32());
    let code = |w: f32| (q(w) as i8 + 8) as u8;
    out.extend((0..16).map(|i| code(block[i]) | code(block[i + 16]) << 4));
}

fn encode_q4k(block: &[f32], out: &mut Vec<u8>) {
    let fits: Vec<(f32, f32)> = block.chunks_exact(32).map(scale_and_offset_of).collect();
    let largest = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0f32, f32::max);
    let d = f16::from_f32(largest(|fit| fit.0) / 63.0);
    let m = f16::from_f32(largest(|fit| fit.1) / 63.0);
    let (per_d, per_m) = (reciprocal(d.to_f32()), reciprocal(m.to_f32()));
    let (mut scales, mut offsets) = ([0u8; 8], [0u8; 8]);
    for (j, &(scale, offset)) in fits.iter().enumerate() {
        scales[j] = (scale * per_d).round_ties_even().clamp(0.0, 63.0) as u8;
        offsets[j] = (offset * per_m).round_ties_even().clamp(0.0, 63.0) as u8;
    }
    out.extend(d.to_le_bytes());
    out.extend(m.to_le_bytes());
    out.extend(pack_scales(&scales, &offsets));
    let code = |at: usize| {
        let scale = d.to_f32() * f32::from(scales[at / 32]);
        let offset = m.to_f32() * f32::from(offsets[at / 32]);
        let q = (block[at] + offset) * reciprocal(scale);
        q.round_ties_even().clamp(0.0, 15.0) as u8
    };
    for pair in 0..4 {
        out.extend((64 * pair..64 * pair + 32).map(|at| code(at) | code(at + 32) << 4));
    }
}

/// The s and o, neither below 0, that make `w ≈ s · q − o` best for q in 0..=15.
fn scale_and_offset_of(group: &[f32]) -> (f32, f32) {
    let low = group.iter().copied().fold(0f32, f32::min);
    let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high <= low {
        return (0.0, -low); // all the same and not above 0: the offset alone says it
    }
    let codes = |scale: f32, offset: f32| {
        let inverse = reciprocal(scale);
        move |w: f32| ((w + offset) * inverse).round_ties_even().clamp(0.0, 15.0)
    };
    let error = |scale: f32, offset: f32| -> f64 {
        let q = codes(scale, offset);
        let off = |&w: &f32| f64::from(w + offset - scale * q(w)).powi(2);
        group.iter().map(off).sum()
    };
    let (mut best, mut least) = ((0.0, 0.0), f64::INFINITY);
    for steps in [15.0, 14.6, 14.2, 13.8, 15.4, 15.8, 16.2] {
        let (mut scale, mut offset) = ((high - low) / steps, -low);
        for _ in 0..2 {
            let now = error(scale, offset);
            if now < least {
                (best, least) = ((scale, offset), now);
            }
            (scale, offset) = refitted(group, codes(scale, offset));
        }
        let now = error(scale, offset);
        if now < least {
            (best, least) = ((scale, offset), now);
        }
    }
    best
}

/// Least squares of `w = s · q − o`, with o held at 0 where it would be below.
fn refitted(group: &[f32], q: impl Fn(f32) -> f32) -> (f32, f32) {
    let n = group.len() as f64;
    let (mut sum_q, mut sum_w, mut qq, mut wq) = (0f64, 0f64, 0f64, 0f64);
    for &w in group {
        let (w, q) = (f64::from(w), f64::from(q(w)));
        sum_q += q;
        sum_w += w;
        qq += q * q;
        wq += w * q;
    }
    let determinant = n * qq - sum_q * sum_q;
    if determinant > 0.0 {
        let scale = (n * wq - sum_q * sum_w) / determinant;
        let offset = (scale * sum_q - sum_w) / n;
        if scale > 0.0 && offset >= 0.0 {
            return (scale as f32, offset as f32);
        }
    }
    let scale = if qq > 0.0 { wq / qq } else { 0.0 };
    (scale.max(0.0) as f32, 0.0)
}

/// 1 / x, and 0 for what has none in f32.
fn reciprocal(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

#[cfg(test)]
mod tests;
