use std::sync::Arc;

use russet_artifact::NoProgress;
use russet_kernels::{Compute, Isa, Pool, random};
use russet_model::config::RopeScaling;
use russet_model::{Config, Decoder, Family};
use russet_tensor::ops::IGNORE;
use russet_tensor::{MeshShape, threads};
use serde_json::{Value, json};

use super::*;
use crate::NextToken;
use crate::average::Average;
use crate::loader::weigh_evenly;
use crate::schedule::Shape;
use crate::settings::{AdaStarSettings, OptimizerSettings};

pub(crate) fn context(threads: usize) -> Ctx {
    Ctx::new(Arc::new(Pool::with_isa(threads, Isa::best())))
}

pub(crate) fn tiny() -> Decoder {
    let config = Config {
        family: Family::Qwen3,
        vocab: 61,
        width: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 40,
        norm_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        attention: Default::default(),
        context: 64,
        tied: true,
        bos: None,
        eos: vec![],
    };
    Decoder::random(&config, 17)
}

/// The step's two sequences of 19 tokens, each cut into two documents, in one or two micro-batches. Tokens come from a
/// counter, so nothing but this file decides them.
pub(crate) fn synthetic(step: u64, micro_batches: usize) -> Vec<Batch> {
    let mut batches = vec![Batch::default(); micro_batches];
    for sequence in 0..2 {
        let batch = &mut batches[sequence % micro_batches];
        let token = |i: u64| random::below(5, step * 2 + sequence as u64, i, 61) as u32;
        batch.tokens.extend((0..19).map(token));
        batch
            .targets
            .extend((1..20).map(|i| if i == 12 { IGNORE } else { token(i) }));
        batch.segments.push(12, 0, 0);
        batch.segments.push(7, 0, 0);
        let first = 100 * step as usize + 10 * sequence;
        batch.origins.push(Origin {
            source: 0,
            documents: first..first + 2,
            targets: 0..19,
        });
    }
    weigh_evenly(&mut batches);
    batches
}

/// [`synthetic`] as a source; `period` steps, then again. Raises the interrupt while it gives out step `interrupt_at`.
struct Source {
    step: u64,
    period: u64,
    micro_batches: usize,
    interrupt_at: Option<u64>,
    interrupt: Interrupt,
}

impl Source {
    fn new(period: u64, micro_batches: usize) -> Source {
        Source {
            step: 0,
            period,
            micro_batches,
            interrupt_at: None,
            interrupt: Interrupt::new(),
        }
    }
}

impl Batches for Source {
    fn next(&mut self) -> Result<Vec<Batch>> {
        if self.interrupt_at == Some(self.step) {
            self.interrupt.raise();
        }
        self.step += 1;
        Ok(synthetic((self.step - 1) % self.period, self.micro_batches))
    }

    fn state(&self) -> Value {
        json!(self.step)
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.step = state.as_u64().expect("a number");
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        vec!["the toy".to_owned()]
    }

    fn labels(&self) -> Vec<String> {
        vec!["toy".to_owned()]
    }
}

fn fresh() -> State {
    State::new(tiny(), OptimizerSettings::default())
}

/// Hears the loss of every step.
struct Losses(Vec<f32>);

impl Progress for Losses {
    fn begin(&mut self, _: &str, _: Option<u64>, _: &str) {}
    fn update(&mut self, _: u64, fields: &[(&str, f64)]) {
        self.0.extend(
            fields
                .iter()
                .filter(|(name, _)| *name == "loss")
                .map(|(_, loss)| *loss as f32),
        );
    }
    fn message(&mut self, _: &str) {}
    fn end(&mut self) {}
}

fn go(
    source: &mut Source,
    ctx: &mut Ctx,
    state: &mut State,
    steps: u64,
    progress: &mut dyn Progress,
) -> Result<Ended> {
    let interrupt = source.interrupt.clone();
    go_from(source, &interrupt, ctx, state, steps, progress)
}

fn go_from(
    batches: &mut dyn Batches,
    interrupt: &Interrupt,
    ctx: &mut Ctx,
    state: &mut State,
    steps: u64,
    progress: &mut dyn Progress,
) -> Result<Ended> {
    let run = plain(batches, interrupt, steps, progress);
    train(run, ctx, state)
}

/// A loop that neither measures, saves nor logs.
fn plain<'a>(
    batches: &'a mut dyn Batches,
    interrupt: &'a Interrupt,
    steps: u64,
    progress: &'a mut dyn Progress,
) -> Loop<'a> {
    Loop {
        name: "toy",
        steps,
        schedule: Schedule {
            peak: 0.01,
            warmup_steps: 4,
            steps: 1000,
            shape: Shape::Cosine { final_ratio: 0.1 },
        },
        clip_norm: Some(1.0),
        skip_norm: None,
        spike_deviations: 0.0,
        objective: &NextToken,
        batches,
        measure: None,
        measures_start: false,
        at_end: None,
        saving: None,
        log: None,
        progress,
        record: None,
        interrupt,
        peak_flops: 1e9,
    }
}

fn bits(decoder: &Decoder) -> Vec<u32> {
    decoder
        .parameters()
        .iter()
        .flat_map(|parameter| parameter.tensor.data())
        .map(|weight| weight.to_bits())
        .collect()
}

/// The losses of the first steps and the weights after them.
fn losses(ctx: &mut Ctx, steps: u64, micro_batches: usize) -> (Vec<f32>, Vec<u32>) {
    let (mut state, mut heard) = (fresh(), Losses(Vec::new()));
    let ended = go(
        &mut Source::new(1000, micro_batches),
        ctx,
        &mut state,
        steps,
        &mut heard,
    )
    .unwrap();
    assert_eq!(
        (ended, state.step, heard.0.len() as u64),
        (Ended::Finished, steps, steps)
    );
    (heard.0, bits(&state.decoder))
}

#[test]
fn threads_do_not_change_a_bit() {
    assert_eq!(
        losses(&mut context(1), 12, 1),
        losses(&mut context(2), 12, 1)
    );
}

#[test]
fn bf16_is_close_to_f32_and_no_thread_changes_a_bit_of_it() {
    let bf16 = |threads| {
        let mut ctx = context(threads);
        ctx.compute = Compute::Bf16;
        losses(&mut ctx, 12, 1)
    };
    let (one, full) = (bf16(1), losses(&mut context(1), 12, 1));
    assert_eq!(one, bf16(2));
    assert_ne!(one.0, full.0, "products were not rounded");
    for (step, (a, b)) in one.0.iter().zip(&full.0).enumerate() {
        // Operands are off by up to 2⁻⁹, logits of size 1 by a few hundredths, and the mean of 36 losses by less.
        assert!((a - b).abs() < 0.02 * b, "step {step}: {a}, in f32 {b}");
    }
}

#[test]
fn accumulated_micro_batches_give_the_same_loss() {
    let (whole, cut) = (
        losses(&mut context(1), 8, 1).0,
        losses(&mut context(1), 8, 2).0,
    );
    for (step, (whole, cut)) in whole.iter().zip(&cut).enumerate() {
        // Sums of some 36 losses in another order; the weights drift apart by the rounding of earlier steps.
        assert!(
            (whole - cut).abs() < 1e-6 * whole,
            "step {step}: {whole} and {cut}"
        );
    }
}

/// The first ten losses of the toy, on the portable kernels: other instruction sets round differently, and these run
/// everywhere. Nothing in them comes from the platform's mathematics library.
#[test]
fn first_losses_are_golden() {
    const GOLDEN: [u32; 10] = [
        0x4097cf37, 0x4085cd0e, 0x409048e5, 0x409245a1, 0x408e80d1, 0x408b55b9, 0x4084d9e1,
        0x4092aa12, 0x4093d72a, 0x40914032,
    ];
    for threads in [1, 2] {
        let mut ctx = Ctx::new(Arc::new(Pool::with_isa(threads, Isa::Scalar)));
        let found = losses(&mut ctx, 10, 1).0;
        let found_bits: Vec<u32> = found.iter().map(|loss| loss.to_bits()).collect();
        assert_eq!(
            found_bits, GOLDEN,
            "{threads} threads, losses {found:?}, bits {found_bits:#x?}"
        );
    }
}

#[test]
fn every_instruction_set_tells_the_same_story() {
    let mut scalar = Ctx::new(Arc::new(Pool::with_isa(1, Isa::Scalar)));
    for (a, b) in losses(&mut scalar, 6, 1)
        .0
        .iter()
        .zip(losses(&mut context(1), 6, 1).0)
    {
        assert!((a - b).abs() < 1e-4, "{a} and {b}");
    }
}

#[test]
fn a_batch_is_memorised_down_to_what_cannot_be_known() {
    let (mut state, mut heard) = (fresh(), Losses(Vec::new()));
    go(
        &mut Source::new(1, 1),
        &mut context(2),
        &mut state,
        160,
        &mut heard,
    )
    .unwrap();
    let (first, last) = (heard.0[0], heard.0[159]);
    // 61 tokens at random are ln 61 = 4.1 nats, and a first guess is a little worse. Two documents of the batch begin with
    // 39 and go on differently; one begins 26, 26, where the mean over equal values hides how many there were. Each costs
    // two of the 36 targets a bit.
    let least = 4.0 * std::f32::consts::LN_2 / 36.0;
    assert!(
        (4.0..6.0).contains(&first) && last > least && last < least + 0.002,
        "{first} to {last}, which cannot fall below {least}"
    );
    assert_eq!(
        (
            state.tally.first_loss,
            state.tally.last_loss,
            state.tally.tokens
        ),
        (first, last, 160 * 38)
    );
}

#[test]
fn a_stop_drops_the_step_begun_and_going_on_changes_nothing() {
    let straight = losses(&mut context(1), 9, 2).1;
    let (mut state, mut source) = (
        fresh(),
        Source {
            interrupt_at: Some(4),
            ..Source::new(1000, 2)
        },
    );
    let ended = go(&mut source, &mut context(1), &mut state, 9, &mut NoProgress).unwrap();
    assert_eq!((ended, state.step, source.step), (Ended::Interrupted, 4, 4));
    let mut source = Source {
        step: source.step,
        ..Source::new(1000, 2)
    };
    go(&mut source, &mut context(1), &mut state, 9, &mut NoProgress).unwrap();
    assert_eq!(bits(&state.decoder), straight);
}

#[test]
fn poison_stops_the_run_and_is_named() {
    let mut state = fresh();
    let (mut ctx, mut source) = (context(1), Source::new(1000, 1));
    go(&mut source, &mut ctx, &mut state, 3, &mut NoProgress).unwrap();
    let mut first = true;
    state.decoder.visit_mut(&mut |tensor| {
        if std::mem::take(&mut first) {
            tensor.data_mut().fill(f32::INFINITY);
        }
    });
    let before = bits(&state.decoder);
    let problem = go(&mut source, &mut ctx, &mut state, 6, &mut NoProgress)
        .unwrap_err()
        .to_string();
    assert!(problem.starts_with("step 4: the loss is NaN"), "{problem}");
    assert!(
        problem.contains("documents 300-301, 310-311 (counted from 0) of the toy"),
        "{problem}"
    );
    assert_eq!(
        (bits(&state.decoder), state.step),
        (before, 3),
        "weights and step are untouched"
    );
}

/// One rank's weights are poisoned: all end with the same sentence, none hangs, and no weight is touched.
#[test]
fn poison_on_one_rank_stops_all_and_is_named_by_all() {
    let shape = MeshShape {
        sizes: [2, 1, 1, 2],
    };
    let config = Config {
        vocab: 62, // the toy's are odd
        ..tiny().config().clone()
    };
    let said = threads::run(shape, |mesh| {
        let decoder = Decoder::random_on_mesh(&config, 17, Some(&mesh));
        let mut state = State::new(decoder, OptimizerSettings::default());
        let (mut ctx, mut source) = (context(1), Source::new(1000, 2));
        go(&mut source, &mut ctx, &mut state, 3, &mut NoProgress).unwrap();
        if mesh.rank() == 3 {
            state
                .decoder
                .visit_mut(&mut |tensor| tensor.data_mut().fill(f32::INFINITY));
        }
        let before = bits(&state.decoder);
        let ended = go(&mut source, &mut ctx, &mut state, 6, &mut NoProgress);
        assert_eq!((bits(&state.decoder), state.step), (before, 3));
        Ok::<_, ()>(ended.unwrap_err().to_string())
    });
    for problem in said.unwrap() {
        // Both places along `data` see the same toy here, and so it is told twice.
        assert!(
            problem.starts_with("step 4: the loss is NaN")
                && problem.contains(
                    "documents 300-301, 310-311, 300-301, 310-311 (counted from 0) of the toy"
                ),
            "{problem}"
        );
    }
}

/// Two equal sequences of opposite weights so large that the loss is 0 and the gradients overflow.
struct Overflow;

impl Batches for Overflow {
    fn next(&mut self) -> Result<Vec<Batch>> {
        let mut batch = synthetic(1, 2).swap_remove(0);
        let tokens = batch.tokens.len();
        batch.tokens.extend_from_within(..);
        batch.targets.extend_from_within(..);
        batch.segments = Segments::packed(&[12, 7, 12, 7]);
        batch.weights = vec![1e38; tokens];
        batch.weights.extend(vec![-1e38; tokens]);
        Ok(vec![batch])
    }

    fn state(&self) -> Value {
        Value::Null
    }

    fn restore(&mut self, _: &Value) -> Result<()> {
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        vec!["the flood".to_owned()]
    }

    fn labels(&self) -> Vec<String> {
        vec!["flood".to_owned()]
    }
}

#[test]
fn gradients_that_overflow_stop_the_run_before_the_weights_change() {
    let mut state = fresh();
    let before = bits(&state.decoder);
    let problem = go_from(
        &mut Overflow,
        &Interrupt::new(),
        &mut context(1),
        &mut state,
        6,
        &mut NoProgress,
    )
    .unwrap_err()
    .to_string();
    assert!(
        problem.starts_with("step 1: the gradient's norm is "),
        "{problem}"
    );
    assert!(
        problem.contains("documents 100-101 (counted from 0) of the flood"),
        "{problem}"
    );
    assert_eq!(bits(&state.decoder), before);
}

#[test]
fn gradients_that_overflow_are_skipped_where_large_ones_are_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = RunLog::create(dir.path()).unwrap();
    let mut state = fresh();
    let before = bits(&state.decoder);
    let (interrupt, mut heard) = (Interrupt::new(), Messages(Vec::new()));
    let mut flood = Overflow;
    let run = Loop {
        skip_norm: Some(100.0),
        log: Some((1, &mut log)),
        ..plain(&mut flood, &interrupt, 30, &mut heard)
    };
    let problem = train(run, &mut context(1), &mut state).unwrap_err();
    let problem = problem.to_string();
    assert!(
        problem.starts_with("step 11: the gradient's norm is "),
        "{problem}"
    );
    assert_eq!((state.step, state.tally.skipped), (10, 10));
    assert_eq!(bits(&state.decoder), before);
    // The log tells what ended the run.
    let events = russet_artifact::read_log(dir.path()).unwrap();
    let last = events.last().unwrap();
    assert_eq!((last.step, &last.texts["not_finite"]), (11, &problem));
    let norm = events[events.len() - 2].scalars["gradient_norm"];
    assert!(!norm.is_finite());
}

/// Where the best decoder cannot be written, it is not the best.
#[test]
fn a_best_checkpoint_that_is_not_on_the_disk_is_forgotten() {
    let (mut state, interrupt) = (fresh(), Interrupt::new());
    let dir = tempfile::tempdir().unwrap();
    let tool = russet_artifact::Tool::new("0.0.0", "test");
    let stage = russet_artifact::Stage::new("toy", &tool, json!({}), Default::default());
    let store = StateStore::new(dir.path().join("state"), stage, 1);
    let mut best = Vec::new();
    for (steps, loss, fails) in [(1, 3.0, false), (2, 2.0, true), (3, 2.5, false)] {
        let mut measure =
            |_: &mut Ctx, _: &Decoder, _: &mut GoesOn| Ok(Some(vec![(VALIDATION_LOSS, loss)]));
        let keep = |_: &State| {
            let work = move || match fails {
                true => Err(TrainError::setting("disk", "is full")),
                false => Ok(()),
            };
            Ok(Some(Job {
                what: "the best".to_owned(),
                work: Box::new(work),
            }))
        };
        let (mut source, mut writer) = (Source::new(1000, 1), Writer::new().unwrap());
        let mut silent = NoProgress;
        let run = Loop {
            measure: Some((0, &mut measure)),
            saving: Some(Saving {
                every: 0,
                store: &store,
                writer: &mut writer,
                best: Some(&keep),
            }),
            ..plain(&mut source, &interrupt, steps, &mut silent)
        };
        train(run, &mut context(1), &mut state).unwrap();
        best.push(state.tally.best);
    }
    assert_eq!(best, [Some((1, 3.0)), Some((1, 3.0)), Some((3, 2.5))]);
}

/// Hears what is said to a person.
struct Messages(Vec<String>);

impl Progress for Messages {
    fn begin(&mut self, _: &str, _: Option<u64>, _: &str) {}
    fn update(&mut self, _: u64, _: &[(&str, f64)]) {}
    fn message(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
    fn end(&mut self) {}
}

/// A source on a machine that is slow.
struct Slow(Source, Duration);

impl Batches for Slow {
    fn next(&mut self) -> Result<Vec<Batch>> {
        std::thread::sleep(self.1);
        self.0.next()
    }

    fn state(&self) -> Value {
        self.0.state()
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.0.restore(state)
    }

    fn names(&self) -> Vec<String> {
        self.0.names()
    }

    fn labels(&self) -> Vec<String> {
        self.0.labels()
    }
}

#[test]
fn the_rank_that_others_wait_for_is_named() {
    let config = tiny().config().clone();
    let sizes = [2, 1, 1, 1];
    let heard = threads::run(MeshShape { sizes }, |mesh| {
        // Two seconds in a window, where one more than the median's is the least that is told.
        let slow = Duration::from_millis(if mesh.rank() == 1 { 60 } else { 0 });
        let decoder = Decoder::random_on_mesh(&config, 17, Some(&mesh));
        let mut state = State::new(decoder, OptimizerSettings::default());
        let (mut source, mut heard) = (Slow(Source::new(1000, 1), slow), Messages(Vec::new()));
        let (interrupt, mut ctx) = (Interrupt::new(), context(1));
        go_from(
            &mut source,
            &interrupt,
            &mut ctx,
            &mut state,
            WINDOW,
            &mut heard,
        )
        .unwrap();
        Ok::<_, ()>(heard.0)
    });
    let heard = heard.unwrap();
    assert!(
        heard[0].len() == 1
            && heard[0][0].starts_with("step 32: rank 1 of 2 is a straggler: busy for "),
        "{heard:?}"
    );
}

#[test]
fn a_step_of_too_large_a_norm_changes_no_weight_and_is_named() {
    let (mut state, mut ctx, mut heard) = (fresh(), context(1), Messages(Vec::new()));
    let mut source = Source::new(1000, 1);
    let interrupt = Interrupt::new();
    let mut run = |steps, skip_norm, state: &mut State| {
        let run = Loop {
            skip_norm,
            ..plain(&mut source, &interrupt, steps, &mut heard)
        };
        train(run, &mut ctx, state).unwrap();
    };
    run(2, Some(1e9), &mut state);
    let before = bits(&state.decoder);
    run(4, Some(1e-9), &mut state);
    assert_eq!((state.step, state.tally.skipped), (4, 2));
    assert_eq!(bits(&state.decoder), before);
    run(5, Some(1e9), &mut state);
    assert_ne!(bits(&state.decoder), before, "the run goes on");
    // The second of a row is in the log alone.
    let [first] = &heard.0[..] else {
        panic!("{:?}", heard.0);
    };
    assert!(
        first.starts_with("step 3: the gradient's norm is ")
            && first.contains("skipped so far 1")
            && first.contains("documents 200-201, 210-211 (counted from 0) of the toy"),
        "{first}"
    );
}

#[test]
fn a_run_that_skips_for_ever_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = RunLog::create(dir.path()).unwrap();
    let (mut state, mut heard) = (fresh(), Messages(Vec::new()));
    let (mut source, interrupt) = (Source::new(1000, 1), Interrupt::new());
    let run = Loop {
        skip_norm: Some(1e-9),
        log: Some((1, &mut log)),
        ..plain(&mut source, &interrupt, 1000, &mut heard)
    };
    let problem = train(run, &mut context(1), &mut state).unwrap_err();
    let problem = problem.to_string();
    assert!(
        problem.starts_with("step 101: the last 101 steps were all skipped")
            && problem.contains("lower `train.peak_lr`"),
        "{problem}"
    );
    let events = russet_artifact::read_log(dir.path()).unwrap();
    assert_eq!(events.last().unwrap().texts["stuck"], problem);
    let skips = events
        .iter()
        .filter(|one| one.texts.contains_key("skipped"));
    assert_eq!(skips.count(), 101, "the log has all");
}

#[test]
fn gradients_that_stay_zero_are_told_once() {
    let (mut state, mut heard) = (fresh(), Messages(Vec::new()));
    let (mut source, interrupt) = (Nothing(0), Interrupt::new());
    let run = plain(&mut source, &interrupt, 50, &mut heard);
    train(run, &mut context(1), &mut state).unwrap();
    let [said] = &heard.0[..] else {
        panic!("{:?}", heard.0);
    };
    assert!(
        said.starts_with("step 20: the gradient has been exactly zero for 20 steps"),
        "{said}"
    );
}

/// Batches that ask for nothing to be learnt.
struct Nothing(u64);

impl Batches for Nothing {
    fn next(&mut self) -> Result<Vec<Batch>> {
        self.0 += 1;
        let mut batches = synthetic(self.0, 1);
        batches[0].weights.fill(0.0);
        Ok(batches)
    }

    fn state(&self) -> Value {
        json!(self.0)
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.0 = state.as_u64().expect("a number");
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        vec!["nothing".to_owned()]
    }

    fn labels(&self) -> Vec<String> {
        self.names()
    }
}

#[test]
fn a_skipped_step_is_no_update() {
    // Two runs of the same updates, one with a skipped step of other data between: the moments' correction and the mean
    // count updates, so with a constant rate they end alike.
    let run = |skips: bool| {
        let mut state = fresh();
        state.average = Some(Average::new(0.5, &state.decoder));
        let (mut ctx, interrupt) = (context(1), Interrupt::new());
        for step in 0..4 {
            let mut source = Source::new(1000, 1);
            for (number, skip_norm) in [(step, None), (900, Some(1e-9))] {
                if skip_norm.is_some() && !(skips && step == 1) {
                    continue;
                }
                source.step = number;
                let (steps, mut silent) = (state.step + 1, NoProgress);
                let run = Loop {
                    skip_norm,
                    schedule: Schedule {
                        peak: 0.01,
                        warmup_steps: 0,
                        steps: 10,
                        shape: Shape::Constant,
                    },
                    ..plain(&mut source, &interrupt, steps, &mut silent)
                };
                train(run, &mut ctx, &mut state).unwrap();
            }
        }
        let weights = bits(&state.decoder);
        swap_average(&mut state);
        (weights, bits(&state.decoder), state.tally.skipped)
    };
    let (straight, skipped) = (run(false), run(true));
    assert_eq!((&straight.0, &straight.1), (&skipped.0, &skipped.1));
    assert_eq!((straight.2, skipped.2), (0, 1));
}

#[test]
fn a_spike_is_named_and_training_goes_on() {
    /// A batch that is learnt, and once another.
    struct Jump(u64);
    impl Batches for Jump {
        fn next(&mut self) -> Result<Vec<Batch>> {
            self.0 += 1;
            Ok(synthetic(if self.0 == 90 { 7 } else { 0 }, 1))
        }
        fn state(&self) -> Value {
            Value::Null
        }
        fn restore(&mut self, _: &Value) -> Result<()> {
            Ok(())
        }
        fn names(&self) -> Vec<String> {
            vec!["the jump".to_owned()]
        }
        fn labels(&self) -> Vec<String> {
            vec!["jump".to_owned()]
        }
    }
    let (mut state, mut heard) = (fresh(), Messages(Vec::new()));
    let (mut batches, interrupt) = (Jump(0), Interrupt::new());
    let run = Loop {
        spike_deviations: 3.0,
        ..plain(&mut batches, &interrupt, 100, &mut heard)
    };
    train(run, &mut context(1), &mut state).unwrap();
    assert_eq!(state.step, 100);
    let [message] = &heard.0[..] else {
        panic!("one spike, found {:?}", heard.0)
    };
    assert!(
        message.starts_with("step 90: the loss is ")
            && message.contains("standard deviations")
            && message.contains("documents 700-701, 710-711 (counted from 0) of the jump"),
        "{message}"
    );
}

#[test]
fn a_save_that_fails_is_told_and_at_a_stop_it_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("state");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("thesis.txt"), "mine").unwrap();
    let tool = russet_artifact::Tool::new("0.0.0", "test");
    let stage = russet_artifact::Stage::new("toy", &tool, json!({}), Default::default());
    let store = StateStore::new(place, stage, 1);
    let (mut state, mut heard) = (fresh(), Messages(Vec::new()));
    let mut go = |steps, interrupt_at, state: &mut State| {
        let mut source = Source {
            step: state.step,
            interrupt_at,
            ..Source::new(1000, 1)
        };
        let interrupt = source.interrupt.clone();
        let mut writer = Writer::new().unwrap();
        let run = Loop {
            saving: Some(Saving {
                every: 2,
                store: &store,
                writer: &mut writer,
                best: None,
            }),
            ..plain(&mut source, &interrupt, steps, &mut heard)
        };
        train(run, &mut context(1), state)
    };
    assert_eq!(go(5, None, &mut state).unwrap(), Ended::Finished);
    let stopped = go(9, Some(5), &mut state).unwrap_err().to_string();
    assert!(
        stopped.starts_with("the state of step 5 could not be saved: ")
            && stopped.contains("will not be replaced"),
        "{stopped}"
    );
    assert_eq!(heard.0.len(), 2, "{:?}", heard.0);
    for (message, step) in heard.0.iter().zip([2, 4]) {
        let begins = format!("the state of step {step} could not be saved: ");
        assert!(message.starts_with(&begins) && message.contains("the next save tries again"));
    }
}

#[test]
fn documents_are_told_by_source_and_at_most_a_few() {
    let origin = |source, documents| Origin {
        source,
        documents,
        targets: 0..1,
    };
    let names = ["books".to_owned(), "code".to_owned()];
    let some = [origin(1, 4..5), origin(0, 2..5), origin(1, 9..10)];
    assert_eq!(
        document_list(&some, &names, SHOWN),
        "documents 2-4 (counted from 0) of books and 4, 9 of code"
    );
    let many: Vec<Origin> = (0..20).map(|i| origin(0, i..i + 1)).collect();
    let list = document_list(&many, &names, SHOWN);
    assert!(
        list.ends_with("15 (counted from 0) of books, and 4 more runs of documents"),
        "{list}"
    );
    let all = document_list(&many, &names, usize::MAX);
    assert!(all.ends_with("18, 19 (counted from 0) of books"), "{all}");
}

#[test]
fn every_rule_learns_the_batch() {
    for rule in [
        OptimizerSettings::AdaStar(AdaStarSettings {
            mup_base_width: 24,
            ..AdaStarSettings::default()
        }),
        OptimizerSettings::RmsProp(crate::settings::RmsPropSettings::default()),
    ] {
        let mut state = State::new(tiny(), rule);
        let (mut source, interrupt) = (Source::new(1, 1), Interrupt::new());
        let mut silent = NoProgress;
        let peak = match rule {
            OptimizerSettings::RmsProp(_) => 1e-3,
            _ => 0.01,
        };
        let schedule = Schedule {
            peak,
            warmup_steps: 4,
            steps: 160,
            shape: Shape::Cosine { final_ratio: 0.1 },
        };
        let run = Loop {
            schedule,
            ..plain(&mut source, &interrupt, 160, &mut silent)
        };
        train(run, &mut context(2), &mut state).unwrap();
        let tally = &state.tally;
        assert!(
            tally.first_loss > 4.0 && tally.last_loss < 0.5,
            "{}: {} to {}",
            rule.name(),
            tally.first_loss,
            tally.last_loss
        );
        assert_eq!(tally.tokens_by_source, [160 * 38]);
    }
}

#[test]
fn operations_are_those_of_the_segments_that_are_there() {
    let decoder = tiny();
    let config = decoder.config();
    // Two operations a weight and token forward, four backward; and per pair of tokens, for each head, two products.
    let weights = (config.projection_parameters() + config.vocab * config.width) as f64;
    let (tokens, pairs) = (5.0, 3.0 + 3.0);
    let attention = 4.0 * (config.layers * config.heads * config.head_dim) as f64;
    let expected = 3.0 * (2.0 * weights * tokens + attention * pairs);
    assert_eq!(
        training_flops(&decoder, &Segments::packed(&[2, 1, 2])),
        expected + 3.0 * attention
    );
    assert_eq!(
        training_flops(&decoder, &Segments::packed(&[1, 1, 1, 1, 1])),
        expected - 3.0 * attention
    );
}
