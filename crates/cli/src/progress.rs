//! How a long job looks: a bar where a person watches, JSON lines where a program does. All of it goes to standard error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use russet_artifact::Progress;
use serde_json::{Map, json};

/// Between two JSON lines of one job.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// A bar on a terminal; else, or where JSON was asked for, lines.
pub fn progress(json: bool) -> Box<dyn Progress> {
    if !json && std::io::stderr().is_terminal() {
        Box::new(Bar::default())
    } else {
        Box::new(Lines::default())
    }
}

#[derive(Default)]
struct Bar {
    bar: Option<ProgressBar>,
    unit: String,
}

/// The message takes what the line has left and is cut there: a line that wraps is drawn anew below itself.
const RUNNING: &str = "{prefix:>14} {bar:20} {pos}/{len} UNIT  {eta} left  {wide_msg}";
const STOPPED: &str = "{prefix:>14} {bar:20} {pos}/{len} UNIT  {wide_msg}";

fn style(template: &str, unit: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(&template.replace("UNIT", unit));
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bar {
    fn begin(&mut self, stage: &str, total: Option<u64>, unit: &str) {
        self.end();
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let template = match total {
            Some(_) => RUNNING,
            None => "{prefix:>14} {spinner} {pos} UNIT  {elapsed}  {wide_msg}",
        };
        bar.set_style(style(template, unit));
        self.unit = unit.to_owned();
        bar.set_prefix(stage.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bar = Some(bar);
    }

    fn resumed(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.reset_eta();
        }
    }

    fn update(&mut self, done: u64, fields: &[(&str, f64)]) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{name} {}", short(*value)))
                .collect();
            bar.set_message(fields.join("  "));
        }
    }

    fn message(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            // A job that was stopped has no time left to tell.
            if bar.length().is_some_and(|total| bar.position() < total) {
                bar.set_style(style(STOPPED, &self.unit));
            }
            bar.abandon();
        }
    }
}

/// Four significant digits, without a row of zeros behind them.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        x if !(1e-3..1e6).contains(&x) => format!("{value:.2e}"),
        x if x >= 1000.0 => format!("{value:.0}"),
        x if x >= 100.0 => format!("{value:.1}"),
        x if x >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[derive(Default)]
struct Lines {
    stage: String,
    unit: String,
    total: Option<u64>,
    done: u64,
    resumed: u64, // of what is done, by an earlier run
    fields: Map<String, serde_json::Value>,
    started: Option<Instant>,
    last: Option<Instant>,
}

impl Lines {
    fn line(&mut self) {
        let seconds = self
            .started
            .map_or(0.0, |started| started.elapsed().as_secs_f64());
        let left = self
            .total
            .and_then(|total| seconds_left(seconds, total, self.done, self.resumed));
        let line = json!({
            "stage": self.stage, "done": self.done, "total": self.total, "unit": self.unit,
            "seconds": seconds, "seconds_left": left, "fields": self.fields,
        });
        // A closed pipe must not end the work.
        let _ = writeln!(std::io::stderr(), "{line}");
        self.last = Some(Instant::now());
    }
}

/// What the rest takes at the pace of what was done in these `seconds`, where anything was.
fn seconds_left(seconds: f64, total: u64, done: u64, resumed: u64) -> Option<f64> {
    let own = done.checked_sub(resumed).filter(|&own| own > 0)?;
    Some(seconds * total.saturating_sub(done) as f64 / own as f64)
}

impl Progress for Lines {
    fn begin(&mut self, stage: &str, total: Option<u64>, unit: &str) {
        self.end();
        *self = Lines {
            stage: stage.to_owned(),
            unit: unit.to_owned(),
            total,
            started: Some(Instant::now()),
            ..Lines::default()
        };
        self.line();
    }

    fn resumed(&mut self, done: u64) {
        (self.done, self.resumed) = (done, done);
    }

    fn update(&mut self, done: u64, fields: &[(&str, f64)]) {
        self.done = done;
        self.fields = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        if self.last.is_none_or(|last| last.elapsed() >= LINE_INTERVAL) {
            self.line();
        }
    }

    fn message(&mut self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{}", json!({"message": text}));
    }

    fn end(&mut self) {
        if self.started.is_some() {
            self.line();
            self.started = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ProgressStyle, RUNNING, STOPPED, seconds_left, short};

    #[test]
    fn a_bar_takes_one_line_and_a_stopped_one_tells_no_time_left() {
        for template in [RUNNING, STOPPED] {
            // Only the last part is cut at the terminal's edge.
            assert!(template.ends_with("{wide_msg}"));
            assert!(ProgressStyle::with_template(template).is_ok());
        }
        assert!(RUNNING.contains("{eta}") && !STOPPED.contains("{eta}"));
    }

    #[test]
    fn the_time_left_counts_what_this_run_did_and_no_earlier_one() {
        assert_eq!(seconds_left(10.0, 100, 20, 0), Some(40.0));
        assert_eq!(seconds_left(10.0, 100, 60, 40), Some(20.0));
        assert_eq!(seconds_left(10.0, 100, 40, 40), None);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 0.00001, 2.34567, 45.678, 5432.1, 1e7].map(short),
            ["0", "1.00e-5", "2.3457", "45.68", "5432", "1.00e7"]
        );
    }
}
