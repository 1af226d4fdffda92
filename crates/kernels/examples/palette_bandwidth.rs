//! How near the palettized products come to what the machine can give.
//!
//! Decode: the weights of whole models stream from memory, and a plain read of as many bytes
//! takes turns with each product. Prefill: 512 tokens, beside the int8 rate of registers alone.
//! Everything alternates, and short runs are compared, because a shared machine drifts and
//! interrupts: figures of two threads still need quiet cores.
//!
//! ```text
//! cargo run --release -p russet-kernels --example palette_bandwidth [decode|cache|batch|prefill|dense|chain] [rounds]
//! ```
//! `chain`, only where asked for, is one product after another with the rounding of its inputs, at 1, 8 and 512 tokens, a JSON
//! object a line: `bench/peers/linear_layers.py` sets it beside the same chain in OpenVINO.
#![allow(clippy::print_stdout, unsafe_code)]

use half::f16;
use russet_kernels::palette::{self, Bits, PaletteMatrix};
use russet_kernels::quantize::QuantizedRows;
use russet_kernels::{Pool, int8, probe};
use std::ops::Range;
use std::time::Instant;

/// Output rows and inputs of the products of one layer: qkv, o, gate and up, down.
struct Shape {
    name: &'static str,
    products: [(usize, usize); 4],
    layers: usize,
}

/// Enough layers to be far larger than L3.
const SHAPES: [Shape; 2] = [
    Shape {
        name: "0.6B",
        products: [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)],
        layers: 28,
    },
    Shape {
        name: "3B",
        products: [(5120, 3072), (3072, 3072), (16384, 3072), (3072, 8192)],
        layers: 5,
    },
];

/// What is measured: palettes of 4, 3 and 2 bits a weight, of pairs with as many, and 8-bit weights.
const KINDS: [&str; 7] = ["4", "3", "2", "8", "4v", "3v", "2v"];

/// The palettes among them.
fn palettes() -> impl Iterator<Item = (&'static str, Bits)> {
    KINDS
        .into_iter()
        .filter_map(|kind| Some((kind, Bits::from_name(kind)?)))
}

/// Bytes of so many weights.
fn bytes_of(kind: &str, weights: usize) -> usize {
    weights * Bits::from_name(kind).map_or(8, Bits::bits) / 8
}

/// All weights of a model in one run of bytes, as in a mapped file; `kind` is one of [`KINDS`].
struct Model {
    kind: &'static str,
    data: Vec<u8>,
    palette: Vec<i8>,
    scales: Vec<f16>,
    /// Rows, columns and where the bytes start.
    products: Vec<(usize, usize, usize)>,
}

impl Model {
    fn new(shape: &Shape, kind: &'static str) -> Model {
        let mut products = vec![];
        let mut bytes = 0usize;
        for _ in 0..shape.layers {
            for (rows, cols) in shape.products {
                products.push((rows, cols, bytes));
                bytes += bytes_of(kind, rows * cols);
            }
        }
        let data = (0..bytes as u64 / 8)
            .flat_map(|at| russet_kernels::random::hash(1, 0, at).to_le_bytes())
            .collect();
        let palette = (0..16384 / 16 * 512i32)
            .map(|at| (at * 37 % 255 - 127) as i8)
            .collect();
        let scales = vec![f16::from_f32(0.01); 16384];
        Model {
            kind,
            data,
            palette,
            scales,
            products,
        }
    }

    /// Where the weights of one product lie.
    fn bytes(&self, index: usize) -> Range<usize> {
        let (rows, cols, start) = self.products[index];
        start..start + bytes_of(self.kind, rows * cols)
    }

    /// One pass over all weights.
    fn pass(&self, pool: &Pool, inputs: &[(usize, QuantizedRows)], out: &mut [f32]) {
        self.some(0..self.products.len(), pool, inputs, out);
    }

    /// Some of its products.
    fn some(
        &self,
        which: Range<usize>,
        pool: &Pool,
        inputs: &[(usize, QuantizedRows)],
        out: &mut [f32],
    ) {
        for &(rows, cols, start) in &self.products[which] {
            let data = &self.data[start..][..bytes_of(self.kind, rows * cols)];
            let x = &inputs
                .iter()
                .find(|(width, _)| *width == cols)
                .expect("inputs of this width")
                .1;
            let out = &mut out[..x.rows() * rows];
            let scales = &self.scales[..rows];
            if let Some(bits) = Bits::from_name(self.kind) {
                let palette = &self.palette[..rows / 16 * bits.table()];
                let part = PaletteMatrix::new(bits, rows, cols, data, palette, scales);
                palette::matmul(pool, &[part.expect("whole strips")], x, out);
            } else {
                let data = bytemuck::cast_slice(data);
                let matrix = int8::Int8Matrix::new(rows, cols, data, scales);
                int8::matmul(pool, matrix.expect("whole strips"), x, out);
            }
        }
    }

    fn weights(&self) -> f64 {
        self.products
            .iter()
            .map(|&(rows, cols, _)| (rows * cols) as f64)
            .sum()
    }
}

fn inputs(pool: &Pool, tokens: usize) -> Vec<(usize, QuantizedRows)> {
    [1024, 2048, 3072, 8192]
        .map(|cols| {
            let x: Vec<f32> = (0..tokens * cols)
                .map(|at| russet_kernels::random::uniform(2, 0, at as u64) - 0.5)
                .collect();
            (cols, QuantizedRows::new(pool, &x, cols))
        })
        .into()
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// CPU time of this process so far, all threads together.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes the timespec it is given and nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The median and the largest of `rates`.
fn median_and_best(mut rates: Vec<f64>) -> (f64, f64) {
    rates.sort_by(f64::total_cmp);
    (rates[rates.len() / 2], rates[rates.len() - 1])
}

/// Times of one of a layer's four products, over layers and rounds.
#[derive(Default)]
struct Times {
    stream: Vec<f64>,
    product: Vec<f64>,
}

/// The value that `tenths` of ten are below.
fn quantile(times: &[f64], tenths: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[times.len() * tenths / 10]
}

fn decode(rounds: usize, batch: &[usize]) {
    println!(
        "GB/s of weights from memory; `stream` is a plain read of as many bytes. Of the times of"
    );
    println!("each product of a layer, alternating with the stream: upper decile (median)");
    for shape in &SHAPES {
        for kind in KINDS {
            let model = Model::new(shape, kind);
            let gigabytes = model.bytes(3).end as f64 / 1e9; // of a layer
            let count = model.products.len();
            for threads in [1, 2] {
                let pool = Pool::new(threads).expect("an instruction set");
                for &tokens in batch {
                    let x = inputs(&pool, tokens);
                    let mut out = vec![0.0; tokens * 16384];
                    let mut times: [Times; 4] = Default::default();
                    for at in 0..count * rounds {
                        let index = at % count;
                        // Far enough from the product at hand that neither warms the other's bytes.
                        let far = (index + count / 8 * 4) % count;
                        let far = &model.data[model.bytes(far)];
                        let times = &mut times[index % 4];
                        times.stream.push(seconds(|| probe::stream(&pool, far)));
                        let product = || model.some(index..index + 1, &pool, &x, &mut out);
                        times.product.push(seconds(product));
                    }
                    let rate = |of: fn(&Times) -> &[f64], tenths| {
                        gigabytes
                            / times
                                .iter()
                                .map(|times| quantile(of(times), tenths))
                                .sum::<f64>()
                    };
                    let [stream, stream_median] = [1, 5].map(|at| rate(|times| &times.stream, at));
                    let [product, product_median] =
                        [1, 5].map(|at| rate(|times| &times.product, at));
                    println!(
                        "{:>5} {kind} bits, {threads} threads, {tokens:>2} tokens: {product:5.1} ({product_median:5.1}), stream {stream:5.1} ({stream_median:5.1}), share {:3.0} % ({:3.0} %)",
                        shape.name,
                        100.0 * product / stream,
                        100.0 * product_median / stream_median,
                    );
                }
            }
        }
    }
}

fn cache(rounds: usize) {
    println!("GB/s of weights from L2, 1 thread, best of short runs: what the instructions allow");
    let pool = Pool::new(1).expect("an instruction set");
    for kind in KINDS {
        for cols in [1024, 3072] {
            let rows = (512 << 10) / bytes_of(kind, 8) * 8 / cols / 32 * 32;
            let products = [(rows, cols), (32, 1024), (32, 1024), (32, 1024)];
            let model = Model::new(
                &Shape {
                    name: "cache",
                    products,
                    layers: 1,
                },
                kind,
            );
            print!("{kind} bits, {cols:>4} inputs:");
            for tokens in [1, 2, 3, 4, 5, 6, 8, 12] {
                let x = inputs(&pool, tokens);
                let mut out = vec![0.0; tokens * rows];
                let run = |_| seconds(|| model.pass(&pool, &x, &mut out));
                let best = (0..200 * rounds).map(run).fold(f64::INFINITY, f64::min);
                print!("  {tokens}: {:4.0}", model.data.len() as f64 / 1e9 / best);
            }
            println!();
        }
    }
}

fn prefill(rounds: usize) {
    println!(
        "GOP/s at 512 tokens; `peak` is the int8 rate of registers alone. The best of short runs,"
    );
    println!("by CPU time of all threads (wall time in brackets), so that neighbours count little");
    for shape in &SHAPES {
        for kind in KINDS {
            let model = Model::new(
                &Shape {
                    layers: 1,
                    ..*shape
                },
                kind,
            );
            for threads in [1, 2] {
                let pool = Pool::new(threads).expect("an instruction set");
                let x = inputs(&pool, 512);
                let mut out = vec![0.0; 512 * 16384];
                let (mut peak, mut cpu, mut wall) = (0.0f64, 0.0, 0.0);
                // One product at a time: short enough to fall between two interruptions.
                for index in 0..model.products.len() {
                    let mut best = (f64::INFINITY, f64::INFINITY);
                    for _ in 0..rounds {
                        peak = peak.max(probe::int8_gop_s(&pool));
                        let start = cpu_seconds();
                        let time = seconds(|| model.some(index..index + 1, &pool, &x, &mut out));
                        best.0 = best.0.min((cpu_seconds() - start) / threads as f64);
                        best.1 = best.1.min(time);
                    }
                    cpu += best.0;
                    wall += best.1;
                }
                let work = model.weights() * 512.0 * 2.0 / 1e9;
                println!(
                    "{:>5} {kind} bits, {threads} threads: {:5.0} ({:5.0}), peak {peak:5.0}, share {:3.0} % ({:3.0} %)",
                    shape.name,
                    work / cpu,
                    work / wall,
                    100.0 * work / cpu / peak,
                    100.0 * work / wall / peak,
                );
            }
        }
    }
}

fn dense(rounds: usize) {
    println!("dequantizing 3072 x 8192 to f32, GB/s written, median / best; `fill` only writes");
    for (kind, bits) in palettes() {
        let (rows, cols) = (3072, 8192);
        let indices = vec![0x5au8; bytes_of(kind, rows * cols)];
        let palette = vec![7i8; rows / 16 * bits.table()];
        let scales = vec![f16::from_f32(0.01); rows];
        let matrix = PaletteMatrix::new(bits, rows, cols, &indices, &palette, &scales);
        let matrix = matrix.expect("whole strips");
        let mut out = vec![0.0f32; rows * cols];
        let gigabytes = (out.len() * 4) as f64 / 1e9;
        for threads in [1, 2] {
            let pool = Pool::new(threads).expect("an instruction set");
            let (mut fills, mut ours) = (vec![], vec![]);
            for round in 0..rounds {
                let fill = seconds(|| {
                    pool.for_each_chunk(&mut out, 1 << 16, |_, out| out.fill(round as f32));
                });
                fills.push(gigabytes / fill);
                ours.push(gigabytes / seconds(|| palette::dequantize(&pool, matrix, &mut out)));
            }
            let (fill, ours) = (median_and_best(fills), median_and_best(ours));
            println!(
                "{kind} bits, {threads} threads: {:5.1} / {:5.1}, fill {:5.1} / {:5.1}",
                ours.0, ours.1, fill.0, fill.1
            );
        }
    }
}

/// The linear layers of a 3B's feed-forward, in and out in turn.
fn chain(rounds: usize) {
    let shape = Shape {
        name: "chain",
        products: [(8192, 3072), (3072, 8192), (8192, 3072), (3072, 8192)],
        layers: 5,
    };
    let pool = Pool::new(2).expect("an instruction set");
    for (kind, bits) in palettes() {
        let model = Model::new(&shape, kind);
        for tokens in [1, 8, 512] {
            let x: Vec<f32> = (0..tokens * 8192)
                .map(|at| russet_kernels::random::uniform(2, 0, at as u64) - 0.5)
                .collect();
            let mut out = vec![0.0; tokens * 8192];
            let mut quantized = QuantizedRows::default();
            let mut pass = || {
                for &(rows, cols, start) in &model.products {
                    quantized.set(&pool, &x[..tokens * cols], cols);
                    let data = &model.data[start..][..bytes_of(kind, rows * cols)];
                    let palette = &model.palette[..rows / 16 * bits.table()];
                    let scales = &model.scales[..rows];
                    let part = PaletteMatrix::new(bits, rows, cols, data, palette, scales);
                    let part = part.expect("whole strips");
                    let out = &mut out[..tokens * rows];
                    palette::matmul(&pool, &[part], &quantized, out);
                }
            };
            pass();
            let times = (0..rounds).map(|_| seconds(&mut pass)).collect::<Vec<_>>();
            let (median, best) = (quantile(&times, 5), quantile(&times, 0));
            println!(
                "{{\"bits\": \"{kind}\", \"tokens\": {tokens}, \"median_s\": {median}, \"best_s\": {best}, \"weights\": {}, \"bytes\": {}}}",
                model.weights(),
                model.data.len(),
            );
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rounds = words.iter().find_map(|word| word.parse().ok()).unwrap_or(9);
    let asked = |what: &str| {
        words.iter().all(|word| word.parse::<usize>().is_ok())
            || words.iter().any(|word| word == what)
    };
    if words.iter().any(|word| word == "chain") {
        return chain(rounds);
    }
    if asked("decode") {
        decode(rounds, &[1]);
    }
    if asked("cache") {
        cache(rounds);
    }
    if asked("batch") {
        decode(rounds, &[2, 4, 8, 12]);
    }
    if asked("prefill") {
        prefill(rounds);
    }
    if asked("dense") {
        dense(rounds);
    }
}
