//! What a run said while it ran: `log.jsonl` for programs, `events.out.tfevents.russet` for TensorBoard.
//!
//! ```json
//! {"step":12,"wall_seconds":3.5,"loss":2.25,"learning_rate":0.0003}
//! {"step":12,"wall_seconds":3.6,"text":{"sample":"Once upon a time"}}
//! ```
//!
//! A line is one `write`, so a killed process tears at most the last. NaN and the infinities, which JSON lacks and a
//! diverging run must show, stand as the strings "NaN", "Infinity", "-Infinity". Seconds are the run's own, summed over
//! resumes, without the time between.
//!
//! A log holds times, so it belongs beside an artifact, not inside: the same run twice must leave the same artifact.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value};

use crate::disk::atomic_write;
use crate::error::{Error, Result};
use crate::hash::shorten;
use crate::tensorboard;

const LINES: &str = "log.jsonl";
const EVENTS: &str = "events.out.tfevents.russet";

/// A run's log, open at its end.
#[derive(Debug)]
pub struct RunLog {
    lines: (PathBuf, File),
    events: (PathBuf, File),
    before: f64,
    opened: Instant,
}

impl RunLog {
    /// The log of a new run in `dir`; an older log there is replaced.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io("create the folder", dir))?;
        let (lines, events) = (dir.join(LINES), dir.join(EVENTS));
        atomic_write(&lines, b"")?;
        atomic_write(&events, &tensorboard::version_record())?;
        Self::append(lines, events, 0.0)
    }

    /// The log of a run that goes on from `step`: lines of later steps and a torn last line are dropped, in both files.
    ///
    /// # Errors
    /// When a line before the last is none of ours, or the system refuses.
    pub fn resume(dir: &Path, step: u64) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io("create the folder", dir))?;
        let (lines, events) = (dir.join(LINES), dir.join(EVENTS));
        let (mut kept, mut all, mut before) = (Vec::new(), 0, 0.0_f64);
        each_line(&lines, |line, event| {
            if event.step <= step {
                kept.extend_from_slice(line);
                before = before.max(event.wall_seconds);
            }
        })?;
        match fs::metadata(&lines) {
            Ok(is) => all = is.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => atomic_write(&lines, b"")?,
            Err(error) => return Err(Error::io("look at", &lines)(error)),
        }
        if kept.len() as u64 != all {
            atomic_write(&lines, &kept)?;
        }

        let old = match fs::read(&events) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            old => old.map_err(Error::io("read", &events))?,
        };
        let mut kept: Vec<u8> = Vec::with_capacity(old.len());
        for (event, bytes) in tensorboard::records(&old) {
            if event.step <= i64::try_from(step).unwrap_or(i64::MAX) {
                kept.extend_from_slice(bytes);
            }
        }
        if kept.is_empty() {
            kept = tensorboard::version_record();
        }
        if kept != old {
            atomic_write(&events, &kept)?;
        }
        Self::append(lines, events, before)
    }

    fn append(lines: PathBuf, events: PathBuf, before: f64) -> Result<Self> {
        let open = |path: PathBuf| {
            let file = OpenOptions::new()
                .append(true)
                .open(&path)
                .map_err(Error::io("open", &path))?;
            Ok((path, file))
        };
        Ok(Self {
            lines: open(lines)?,
            events: open(events)?,
            before,
            opened: Instant::now(),
        })
    }

    /// Logs named numbers at a step, in the order given.
    ///
    /// # Errors
    /// When a name is empty, twice there, or one of `step`, `wall_seconds`, `text`; when the step is beyond 2^63; or when the
    /// disk is full.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        for (index, (name, _)) in scalars.iter().enumerate() {
            self.check_name(name)?;
            if scalars[..index].iter().any(|(other, _)| other == name) {
                return Err(self.bad(format!(
                    "`{}` is logged twice at step {step}",
                    shorten(name)
                )));
            }
        }
        let fields: String = scalars
            .iter()
            .map(|&(name, value)| format!(",{}:{}", quoted(name), number(value)))
            .collect();
        let values: Vec<_> = scalars
            .iter()
            .map(|&(name, value)| (name, tensorboard::Value::Scalar(value as f32)))
            .collect();
        self.write(step, &fields, &values)
    }

    /// Logs a text at a step: a sample, a warning, the recipe.
    ///
    /// # Errors
    /// As [`RunLog::scalars`].
    pub fn text(&mut self, step: u64, name: &str, text: &str) -> Result<()> {
        self.check_name(name)?;
        let fields = format!(",\"text\":{{{}:{}}}", quoted(name), quoted(text));
        self.write(
            step,
            &fields,
            &[(name, tensorboard::Value::Text(text.to_owned()))],
        )
    }

    /// Seconds of this run, summed over resumes.
    pub fn wall_seconds(&self) -> f64 {
        self.before + self.opened.elapsed().as_secs_f64()
    }

    fn write(
        &mut self,
        step: u64,
        fields: &str,
        values: &[(&str, tensorboard::Value)],
    ) -> Result<()> {
        let signed =
            i64::try_from(step).map_err(|_| self.bad(format!("step {step} is beyond 2^63")))?;
        let line = format!(
            "{{\"step\":{step},\"wall_seconds\":{:.3}{fields}}}\n",
            self.wall_seconds()
        );
        append_whole(&mut self.lines, line.as_bytes())?;
        append_whole(
            &mut self.events,
            &tensorboard::values_record(signed, values),
        )
    }

    fn check_name(&self, name: &str) -> Result<()> {
        match name {
            "" | "step" | "wall_seconds" | "text" => Err(self.bad(format!(
                "`{name}` cannot be a name in a log; choose another"
            ))),
            _ => Ok(()),
        }
    }

    fn bad(&self, reason: String) -> Error {
        Error::Log {
            path: self.lines.0.clone(),
            reason,
        }
    }
}

/// Appends all or, on a full disk, nothing: half a line would spoil the next one.
fn append_whole((path, file): &mut (PathBuf, File), bytes: &[u8]) -> Result<()> {
    let length = file.metadata().map_err(Error::io("look at", path))?.len();
    file.write_all(bytes).map_err(|error| {
        let _ = file.set_len(length);
        Error::io("write", path)(error)
    })
}

/// One line of `log.jsonl`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEvent {
    /// The step it belongs to.
    pub step: u64,
    /// Seconds since the run began.
    pub wall_seconds: f64,
    /// Numbers by name.
    pub scalars: BTreeMap<String, f64>,
    /// Texts by name.
    pub texts: BTreeMap<String, String>,
}

/// The log in `dir`, without a torn last line; empty where there is none.
///
/// # Errors
/// When a line before the last is none of ours, or the file cannot be read.
pub fn read_log(dir: &Path) -> Result<Vec<LogEvent>> {
    let mut events = Vec::new();
    each_line(&dir.join(LINES), |_, event| events.push(event))?;
    Ok(events)
}

/// Every whole line, newline included, with what it says.
fn each_line(path: &Path, mut visit: impl FnMut(&[u8], LogEvent)) -> Result<()> {
    let mut reader = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        reader
            .read_until(b'\n', &mut line)
            .map_err(Error::io("read", path))?;
        if line.last() != Some(&b'\n') {
            break; // the end, or torn by a crash
        }
        let event = parse(&line).ok_or_else(|| Error::Log {
            path: path.to_owned(),
            reason: format!("line {number} is not a line of a run log; remove it, or move the file away to log anew"),
        })?;
        visit(&line, event);
    }
    Ok(())
}

fn parse(line: &[u8]) -> Option<LogEvent> {
    let mut object: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let step = object.remove("step")?.as_u64()?;
    let wall_seconds = object.remove("wall_seconds")?.as_f64()?;
    let texts = match object.remove("text") {
        Some(texts) => serde_json::from_value(texts).ok()?,
        None => BTreeMap::new(),
    };
    let number = |value: Value| match &value {
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        value => value.as_f64(),
    };
    let scalars = object
        .into_iter()
        .map(|(name, value)| Some((name, number(value)?)))
        .collect::<Option<_>>()?;
    Some(LogEvent {
        step,
        wall_seconds,
        scalars,
        texts,
    })
}

fn quoted(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn number(value: f64) -> Value {
    let word = match value {
        _ if value.is_nan() => "NaN",
        f64::INFINITY => "Infinity",
        f64::NEG_INFINITY => "-Infinity",
        _ => return value.into(),
    };
    word.into()
}
