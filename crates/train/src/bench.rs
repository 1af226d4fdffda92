//! One training step, timed: the loop of [`train`] on random tokens, with AdamW and a norm clip.
//!
//! What is measured is the step that a run makes: forward and backward pass, clip, update. Loading, logging, validating and
//! saving are left out. `bench/peers` runs the same step in other frameworks.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use russet_artifact::{Interrupt, Progress};
use russet_kernels::{process, profile, random};
use russet_model::config::RopeScaling;
use russet_model::{Attention, Config, Decoder, Family};
use russet_tensor::{Ctx, Segments};
use serde::Serialize;
use serde_json::Value;

use crate::loader::{Batch, Batches};
use crate::objective::NextToken;
use crate::price::Memory;
use crate::probe::matmul_gflops_in;
use crate::run::{Ended, Loop, train};
use crate::schedule::{self, Schedule};
use crate::settings::{ComputeType, OptimizerSettings, Recompute};
use crate::state::State;
use crate::{Result, TrainError};

/// Steps that are not counted: the first fill the workspace.
const WARMUP: u64 = 2;

/// A decoder and the batch of a step: `dim=512,layers=6,heads=8,kv_heads=2,ffn=1408,vocab=8192,seq=256,batch=8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// D, width of the residual stream; a head is `dim / heads` wide.
    pub dim: usize,
    /// Blocks.
    pub layers: usize,
    /// H, query heads.
    pub heads: usize,
    /// G, key and value heads.
    pub kv_heads: usize,
    /// F, hidden width of the feed-forward layer.
    pub ffn: usize,
    /// V, entries of the vocabulary; input and output share one table.
    pub vocab: usize,
    /// T, tokens of a sequence.
    pub seq: usize,
    /// B, sequences of a step.
    pub batch: usize,
}

const NAMES: [&str; 8] = [
    "dim", "layers", "heads", "kv_heads", "ffn", "vocab", "seq", "batch",
];

/// The sizes of a shape that is spelled `NAME=NUMBER,NAME=NUMBER`, each of `names` once, in their order.
///
/// # Errors
/// When one is missing, twice there, not known or no size.
pub fn sizes<const N: usize>(
    text: &str,
    names: [&str; N],
) -> std::result::Result<[usize; N], String> {
    let mut values = [None; N];
    for part in text.split(',') {
        let known = part.split_once('=').and_then(|(name, value)| {
            let at = names.iter().position(|known| *known == name.trim())?;
            Some((at, name, value))
        });
        let Some((at, name, value)) = known else {
            return Err(format!(
                "`{part}` is no part of a shape; it is NAME=NUMBER with each of {}",
                names.join(", ")
            ));
        };
        let number = value.trim().parse().ok();
        let Some(number) = number.filter(|n| (1..1 << 24).contains(n)) else {
            return Err(format!(
                "{name} is `{value}`; it is a whole number from 1 to 16777215"
            ));
        };
        if values[at].replace(number).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    let missing = names
        .iter()
        .zip(values)
        .filter(|(_, value)| value.is_none());
    let missing: Vec<&str> = missing.map(|(name, _)| *name).collect();
    match missing[..] {
        [] => Ok(values.map(|value| value.expect("none is missing"))),
        [name] => Err(format!("{name} is missing")),
        _ => Err(format!("{} are missing", missing.join(", "))),
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Shape, String> {
        let [dim, layers, heads, kv_heads, ffn, vocab, seq, batch] = sizes(text, NAMES)?;
        let shape = Shape {
            dim,
            layers,
            heads,
            kv_heads,
            ffn,
            vocab,
            seq,
            batch,
        };
        if !shape.dim.is_multiple_of(2 * shape.heads) || !shape.heads.is_multiple_of(shape.kv_heads)
        {
            return Err(format!(
                "{} heads must cut dim {} into even widths, and be a multiple of the {} kv_heads",
                shape.heads, shape.dim, shape.kv_heads
            ));
        }
        Ok(shape)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Shape {
            dim,
            layers,
            heads,
            kv_heads,
            ffn,
            vocab,
            seq,
            batch,
        } = self;
        write!(
            f,
            "dim={dim},layers={layers},heads={heads},kv_heads={kv_heads},ffn={ffn},vocab={vocab},seq={seq},batch={batch}"
        )
    }
}

impl Shape {
    fn config(&self) -> Config {
        Config {
            family: Family::Qwen3,
            vocab: self.vocab,
            width: self.dim,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.dim / self.heads,
            ffn: self.ffn,
            norm_epsilon: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::None,
            attention: Attention::default(),
            context: self.seq,
            tied: true,
            bos: None,
            eos: vec![],
        }
    }
}

/// What a benchmark found. Rates are medians over the counted steps.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Who ran: for tables that hold other engines too.
    pub engine: String,
    /// The type that products are computed in.
    pub dtype: ComputeType,
    /// Tokens of a step.
    pub tokens: usize,
    /// All weights.
    pub parameters: usize,
    /// Threads.
    pub threads: usize,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Processor seconds, user and system, of a step.
    pub cpu_s_per_step: f64,
    /// The most memory that the process ever had.
    pub peak_rss_bytes: u64,
    /// Operations that the model needs over those that the machine's own product would have done meanwhile.
    pub mfu: f64,
    /// That rate, in GFLOP/s: the product's of the same type on a square matrix, measured just before.
    pub peak_gflops: f64,
    /// Share of the steps' time that went into dense products.
    pub gemm_share: f64,
    /// Shares of all kinds of kernels; what is missing to 1 was spent outside of kernels.
    pub profile: Vec<(&'static str, f64)>,
    /// Seconds of each counted step.
    pub seconds: Vec<f64>,
    /// Processor seconds of each counted step.
    pub cpu_seconds: Vec<f64>,
    /// Loss of the last step.
    pub loss: f32,
}

/// Times `steps` training steps of a decoder of `shape` after a warm-up, with recomputed blocks where `ctx.recompute` says so.
///
/// # Errors
/// When the shape makes no decoder, the run diverges, or it is interrupted.
pub fn bench(
    shape: &Shape,
    dtype: ComputeType,
    ctx: &mut Ctx,
    steps: u64,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<BenchReport> {
    let config = shape.config();
    config
        .check()
        .map_err(|problem| TrainError::setting("shape", problem))?;
    let rows = shape.seq.saturating_mul(shape.batch);
    let recompute = match ctx.recompute {
        true => Recompute::Block,
        false => Recompute::None,
    };
    Memory::of_step(&config, rows, recompute, config.parameters(), 0, false).check()?;
    ctx.compute = dtype.kernel();
    let peak_flops = matmul_gflops_in(&ctx.pool, ctx.compute) * 1e9;
    let decoder = Decoder::random(&config, 1);
    let mut state = State::new(decoder, OptimizerSettings::default());
    let mut batches = RandomTokens {
        shape: *shape,
        step: 0,
    };
    let mut clock = Clock {
        progress,
        times: Vec::new(),
        begun: Instant::now(),
    };
    let mut go = |until: u64, state: &mut State, clock: &mut Clock| {
        let run = Loop {
            name: "bench train",
            steps: until,
            schedule: Schedule {
                peak: 3e-4,
                warmup_steps: 0,
                steps: until,
                shape: schedule::Shape::Constant,
            },
            clip_norm: Some(1.0),
            skip_norm: None,
            spike_deviations: 0.0,
            objective: &NextToken,
            batches: &mut batches,
            measure: None,
            measures_start: false,
            at_end: None,
            saving: None,
            log: None,
            progress: clock,
            record: None,
            interrupt,
            peak_flops,
        };
        train(run, ctx, state)
    };
    let mut ended = go(WARMUP, &mut state, &mut clock)?;
    let flops = state.tally.flops / WARMUP as f64;
    profile::start();
    if ended == Ended::Finished {
        ended = go(WARMUP + steps, &mut state, &mut clock)?;
    }
    let profile = profile::stop();
    if ended == Ended::Interrupted {
        return Err(TrainError::Interrupted);
    }

    let difference = |of: fn(&(f64, f64)) -> f64| -> Vec<f64> {
        clock
            .times
            .windows(2)
            .map(|pair| of(&pair[1]) - of(&pair[0]))
            .collect()
    };
    let (seconds, cpu_seconds) = (difference(|time| time.0), difference(|time| time.1));
    let whole: f64 = seconds.iter().sum();
    let share = |seconds: f64| seconds / whole;
    let median = median(&seconds);
    // A peak that was measured while the machine was busy is corrected by what was reached.
    let peak_flops = peak_flops.max(flops / median);
    Ok(BenchReport {
        engine: format!("Russet {}", env!("CARGO_PKG_VERSION")),
        dtype,
        tokens: shape.seq * shape.batch,
        parameters: config.parameters(),
        threads: ctx.pool.threads(),
        tokens_per_second: (shape.seq * shape.batch) as f64 / median,
        cpu_s_per_step: self::median(&cpu_seconds),
        peak_rss_bytes: process::peak_rss_bytes().unwrap_or(0),
        mfu: flops / median / peak_flops,
        peak_gflops: peak_flops / 1e9,
        gemm_share: share(profile[profile::Kernel::Matmul as usize].1),
        profile: profile
            .iter()
            .filter(|(_, seconds)| *seconds > 0.0)
            .map(|(kernel, seconds)| (kernel.name(), share(*seconds)))
            .collect(),
        seconds,
        cpu_seconds,
        loss: state.tally.last_loss,
    })
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => 0.5 * (sorted[len / 2 - 1] + sorted[len / 2]),
    }
}

/// The times at the begin and after each step: on the wall, and of all processors.
struct Clock<'a> {
    progress: &'a mut dyn Progress,
    times: Vec<(f64, f64)>,
    begun: Instant,
}

impl Clock<'_> {
    fn stamp(&mut self) {
        let cpu = process::cpu_seconds().unwrap_or(0.0);
        self.times.push((self.begun.elapsed().as_secs_f64(), cpu));
    }
}

impl Progress for Clock<'_> {
    fn begin(&mut self, stage: &str, total: Option<u64>, unit: &str) {
        self.progress.begin(stage, total, unit);
        self.times.clear();
        self.stamp();
    }

    fn resumed(&mut self, done: u64) {
        self.progress.resumed(done);
    }

    fn update(&mut self, done: u64, fields: &[(&str, f64)]) {
        self.stamp();
        self.progress.update(done, fields);
    }

    fn message(&mut self, text: &str) {
        self.progress.message(text);
    }

    fn end(&mut self) {
        self.progress.end();
    }
}

/// Full windows of random tokens, other ones every step.
struct RandomTokens {
    shape: Shape,
    step: u64,
}

impl Batches for RandomTokens {
    fn next(&mut self) -> Result<Vec<Batch>> {
        let Shape {
            vocab, seq, batch, ..
        } = self.shape;
        let tokens = seq * batch;
        let ids = |stream: u64| -> Vec<u32> {
            (0..tokens as u64)
                .map(|i| random::below(stream, self.step, i, vocab as u64) as u32)
                .collect()
        };
        let (inputs, targets) = (ids(0), ids(1));
        self.step += 1;
        Ok(vec![Batch {
            tokens: inputs,
            segments: Segments::packed(&vec![seq; batch]),
            targets,
            weights: vec![1.0 / tokens as f32; tokens],
            ..Batch::default()
        }])
    }

    fn state(&self) -> Value {
        self.step.into()
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.step = state.as_u64().unwrap_or(0);
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        vec!["random tokens".to_owned()]
    }

    fn labels(&self) -> Vec<String> {
        vec!["random".to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use russet_artifact::NoProgress;
    use russet_kernels::Pool;

    use super::*;

    const SMALL: &str = "dim=32,layers=2,heads=4,kv_heads=2,ffn=48,vocab=64,seq=16,batch=2";

    #[test]
    fn a_shape_says_what_is_wrong_with_it() {
        let shape: Shape = SMALL.parse().unwrap();
        assert_eq!(shape.to_string(), SMALL);
        for (text, complaint) in [
            (
                "dim=32",
                "layers, heads, kv_heads, ffn, vocab, seq, batch are missing",
            ),
            ("dim=32,dim=32", "given twice"),
            ("width=32", "no part of a shape"),
            ("dim=0", "whole number from 1"),
            ("dim=99999999999999999999", "whole number from 1"),
        ] {
            let error = text.parse::<Shape>().unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
        let odd = SMALL.replace("heads=4,kv_heads=2", "heads=3,kv_heads=2");
        assert!(odd.parse::<Shape>().unwrap_err().contains("even widths"));
    }

    #[test]
    fn every_step_is_counted_once() {
        let mut ctx = Ctx::new(Arc::new(Pool::new(2).unwrap()));
        let shape: Shape = SMALL.parse().unwrap();
        let report = bench(
            &shape,
            ComputeType::F32,
            &mut ctx,
            3,
            &mut NoProgress,
            &Interrupt::new(),
        )
        .unwrap();
        assert_eq!((report.seconds.len(), report.cpu_seconds.len()), (3, 3));
        assert!(report.seconds.iter().all(|&seconds| seconds > 0.0));
        assert!(report.gemm_share > 0.0 && report.gemm_share < 1.0);
        // Untrained, a token costs about ln 64.
        assert!((3.5..5.5).contains(&report.loss), "{}", report.loss);
    }

    #[test]
    fn an_interrupted_benchmark_reports_nothing() {
        let interrupt = Interrupt::new();
        interrupt.raise();
        let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
        let shape: Shape = SMALL.parse().unwrap();
        let ended = bench(
            &shape,
            ComputeType::F32,
            &mut ctx,
            3,
            &mut NoProgress,
            &interrupt,
        );
        assert!(matches!(ended, Err(TrainError::Interrupted)));
    }
}
