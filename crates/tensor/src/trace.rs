//! When each operation ran, for how long, and what it moved and computed: the trace format of Chrome
//! (`chrome://tracing`, ui.perfetto.dev).
//!
//! A [`crate::Ctx`] that carries a [`Trace`] writes one event an operation of a block and of the logits; without one, an operation pays for looking. Bytes and
//! operations are what the arithmetic needs, counted from shapes: weights, inputs and outputs once each.

use std::io::{self, Write};
use std::time::Instant;

/// So many events are kept; what comes later is counted only. 150 MB, some 6,500 steps of 28 layers.
const MOST: usize = 1 << 21;

/// What an operation was and what it had to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Op {
    /// A word.
    pub name: &'static str,
    /// The layer, where it is of one.
    pub layer: Option<usize>,
    /// Rows.
    pub rows: usize,
    /// Bytes read and written.
    pub bytes: u64,
    /// Floating-point or integer operations.
    pub flops: u64,
}

/// One operation that has run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// What it was.
    pub op: Op,
    /// Nanoseconds from the trace's beginning to its own.
    pub start: u64,
    /// Nanoseconds that it took.
    pub nanoseconds: u64,
}

/// What has run so far.
pub struct Trace {
    begun: Instant,
    events: Vec<Event>,
    dropped: u64,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace {
            begun: Instant::now(),
            events: Vec::with_capacity(1 << 12),
            dropped: 0,
        }
    }
}

impl Trace {
    /// Adds what began at `begun` and has ended now.
    pub fn add(&mut self, op: Op, begun: Instant) {
        if self.events.len() == MOST {
            self.dropped += 1;
            return;
        }
        self.events.push(Event {
            op,
            start: (begun - self.begun).as_nanos() as u64,
            nanoseconds: begun.elapsed().as_nanos() as u64,
        });
    }

    /// The operations in the order of their ends.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// How many operations came when no more were kept.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes the trace as JSON.
    ///
    /// # Errors
    /// When `out` refuses.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "{{\"displayTimeUnit\":\"ns\",\"otherData\":{{\"dropped\":{}}},\"traceEvents\":[",
            self.dropped
        )?;
        for (
            n,
            Event {
                op,
                start,
                nanoseconds,
            },
        ) in self.events.iter().enumerate()
        {
            let comma = if n == 0 { "" } else { "," };
            let layer = op
                .layer
                .map_or(String::new(), |l| format!("\"layer\":{l},"));
            writeln!(
                out,
                "{comma}{{\"name\":\"{}\",\"cat\":\"op\",\"ph\":\"X\",\"pid\":1,\"tid\":1,\"ts\":{},\"dur\":{},\"args\":{{{layer}\
                 \"rows\":{},\"bytes\":{},\"flops\":{}}}}}",
                op.name,
                *start as f64 / 1e3,
                *nanoseconds as f64 / 1e3,
                op.rows,
                op.bytes,
                op.flops
            )?;
        }
        writeln!(out, "]}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ctx;
    use russet_kernels::Pool;
    use std::sync::Arc;

    #[test]
    #[allow(
        clippy::print_stdout,
        reason = "a figure for whoever asks for it with --nocapture"
    )]
    fn an_event_costs_little_and_none_is_written_without_a_trace() {
        let mut ctx = Ctx::new(Arc::new(Pool::new(1).unwrap()));
        let asked = std::cell::Cell::new(0);
        let op = || {
            asked.set(asked.get() + 1);
            Op::default()
        };
        ctx.timed(op, |_| ());
        assert_eq!(asked.get(), 0);
        ctx.trace = Some(Trace::default());
        // The least of several batches: a machine does other things too.
        let batch = || {
            let begun = Instant::now();
            (0..10_000).for_each(|_| ctx.timed(op, |_| ()));
            begun.elapsed().as_secs_f64() / 1e4
        };
        let each = std::iter::repeat_with(batch)
            .take(10)
            .fold(f64::INFINITY, f64::min);
        assert_eq!(asked.get(), 100_000);
        assert_eq!(ctx.trace.unwrap().events().len(), 100_000);
        println!("{:.0} ns an event", 1e9 * each);
        // A step of 28 layers has 320 events and takes 10 ms or more: 1 % of it is 300 ns an event. Ten times that for a build
        // without optimisation.
        assert!(each < 3e-6, "{each} s");
    }

    #[test]
    fn beyond_what_is_kept_events_are_counted() {
        let mut trace = Trace {
            events: vec![
                Event {
                    op: Op::default(),
                    start: 0,
                    nanoseconds: 0
                };
                MOST - 1
            ],
            ..Trace::default()
        };
        for _ in 0..3 {
            trace.add(Op::default(), Instant::now());
        }
        assert_eq!((trace.events.len(), trace.dropped), (MOST, 2));
    }
}
