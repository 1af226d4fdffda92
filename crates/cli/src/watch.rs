//! `watch`: a training run as it goes, in the terminal or on a page.
//!
//! Reads the run's log (`log.jsonl`) again whenever it has grown, so it can be started and left at any time and does
//! nothing to the run. TensorBoard opens the same folder.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::IsTerminal;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph};
use russet_artifact::{Hold, LogEvent, read_log};
use serde_json::json;

use crate::app::{App, Usage};

#[derive(Args)]
pub struct WatchArgs {
    /// The folder of a run, of a training stage, or of its log
    run: PathBuf,
    /// Draw it on a page for a browser of this machine, with all that the run logs, until SIGTERM or Ctrl-C
    #[arg(long)]
    page: bool,
    /// Port of the page; 0 takes a free one
    #[arg(long, default_value_t = 8002, requires = "page")]
    port: u16,
}

/// How often the log is looked at.
const EVERY: Duration = Duration::from_millis(500);

/// The smoothed loss is a running mean over about this share of the points, so that it follows a short log as it does a
/// long one.
const SMOOTHED_SHARE: f64 = 0.05;

/// A log that has grown within this time is that of a run that goes on.
const LATELY: Duration = Duration::from_secs(3);

/// A log that has not grown for so long is said to stand still.
const STILL: Duration = Duration::from_secs(60);

/// Shows the run until `q`; the last values alone where nobody looks at a terminal.
pub fn watch(app: &App, args: &WatchArgs) -> Result<()> {
    let found = log_folder(&args.run)?;
    if args.page {
        found.as_deref().map(read_log).transpose()?; // one that cannot be read is said now
        return serve(app, args);
    }
    if app.json || !std::io::stdout().is_terminal() {
        let folder = found.ok_or_else(|| {
            Usage(format!(
                "{}: there is no log.jsonl in it, beside it (as NAME.log/) or in a folder of it; a training stage writes one from \
                 its first step on",
                args.run.display()
            ))
        })?;
        let curves = Curves::new(&read_log(&folder)?);
        let pace = Pace::of(&folder);
        let text = format!(
            "{}: {}, {}",
            folder.display(),
            curves.headline(),
            pace.words()
        );
        return app.print(&curves.json(&folder, pace), &text);
    }
    let mut terminal = ratatui::init();
    let shown = show(&mut terminal, &args.run);
    ratatui::restore();
    shown
}

/// Serves the page until SIGTERM or SIGINT.
fn serve(app: &App, args: &WatchArgs) -> Result<()> {
    let run = args.run.clone();
    let tell = move |seen| tell(&run, seen).map_err(|error| format!("{error:#}"));
    let page = russet_serve::watch::page(args.port, Arc::new(tell))?;
    crate::serve::logs(app.json);
    app.stop_on_signals()?;
    let url = format!("http://{}:{}", Ipv4Addr::LOCALHOST, page.address()?.port());
    app.print(
        &json!({"url": url, "run": args.run}),
        &format!(
            "{} is drawn at {url} as it goes. SIGTERM or Ctrl-C ends the page; the run goes on.",
            args.run.display()
        ),
    )?;
    page.run(app.interrupt.flag())?;
    Ok(())
}

/// What the page is told: the last values and, where it has not seen what is logged, the curves.
fn tell(run: &Path, seen: u64) -> Result<serde_json::Value> {
    let Some(folder) = log_folder(run)? else {
        return Ok(json!({"seen": 0, "pace": WAITING}));
    };
    let pace = Pace::of(&folder);
    let is = std::fs::metadata(folder.join("log.jsonl"));
    let mut hasher = DefaultHasher::new();
    let modified = is.as_ref().ok().and_then(|is| is.modified().ok());
    (&folder, is.map_or(0, |is| is.len()), modified).hash(&mut hasher);
    let now = (hasher.finish() >> 12) | 1; // a number that JavaScript holds, and never 0
    if now == seen {
        return Ok(json!({"seen": now, "pace": pace.words()}));
    }
    let curves = Curves::new(&read_log(&folder)?);
    let mut told = curves.json(&folder, pace);
    told["seen"] = now.into();
    told["points"] = json!(curves.points);
    told["smoothed"] = json!(curves.smooth);
    told["said"] = json!(curves.messages);
    told["not_finite"] = json!(curves.not_finite);
    Ok(told)
}

fn show(terminal: &mut ratatui::DefaultTerminal, run: &Path) -> Result<()> {
    let (mut seen, mut curves) = (None, Curves::default());
    loop {
        // Of a run of several stages, the one that is being trained.
        match log_folder(run)? {
            Some(folder) => {
                let length = std::fs::metadata(folder.join("log.jsonl")).map_or(0, |log| log.len());
                let now = Some((folder.clone(), length));
                if seen != now {
                    curves = Curves::new(&read_log(&folder)?);
                    seen = now;
                }
                let pace = Pace::of(&folder);
                let name = folder.display().to_string();
                terminal.draw(|frame| curves.draw(frame, &name, pace))?;
            }
            None => {
                let line = format!("{}: {WAITING}; q quits", run.display());
                terminal.draw(|frame| frame.render_widget(Line::from(line), frame.area()))?;
            }
        }
        if event::poll(EVERY)?
            && let Event::Key(key) = event::read()?
        {
            let control_c =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(());
            }
        }
    }
}

/// What is said of a run that has not come to its first step.
const WAITING: &str = "nothing is logged yet";

/// The folder with the log: the one given, the one beside it, or the one in it that was written to last; nothing where the run has
/// logged nothing yet.
fn log_folder(run: &Path) -> Result<Option<PathBuf>> {
    let has_log = |folder: &Path| folder.join("log.jsonl").is_file();
    if has_log(run) {
        return Ok(Some(run.to_owned()));
    }
    if run.ends_with("log.jsonl")
        && let Some(folder) = run.parent().filter(|folder| has_log(folder))
    {
        return Ok(Some(folder.to_owned()));
    }
    if let Some(name) = run.file_name() {
        let mut name = name.to_owned();
        name.push(".log");
        let beside = run.with_file_name(name);
        if has_log(&beside) {
            return Ok(Some(beside));
        }
    }
    if !run.is_dir() {
        let sentence =
            "there is no such folder; name one of a run, of a training stage or of its log";
        return Err(Usage(format!("{}: {sentence}", run.display())).into());
    }
    let inside = std::fs::read_dir(run).into_iter().flatten().flatten();
    let newest = inside
        .map(|entry| entry.path())
        .filter(|folder| has_log(folder))
        .max_by_key(|folder| {
            std::fs::metadata(folder.join("log.jsonl"))
                .and_then(|log| log.modified())
                .ok()
        });
    Ok(newest)
}

/// Whether the run goes on, as far as its files tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// What it makes lies beside the log.
    Finished,
    /// A process is at it, or the log has grown lately where that cannot be told.
    Running,
    /// The log has not grown for so many seconds.
    Still(u64),
    /// No process is at it, and nothing came of it yet: it was stopped or killed.
    Stopped,
}

impl Pace {
    fn of(folder: &Path) -> Pace {
        let written = |path: &Path| std::fs::metadata(path).and_then(|is| is.modified()).ok();
        let log = written(&folder.join("log.jsonl"));
        // Written after the log's last line: an older one is what the run will replace.
        let made = written(&folder.with_extension("").join("manifest.json"));
        if folder.extension().is_some_and(|end| end == "log") && made.is_some() && made >= log {
            return Pace::Finished;
        }
        let age = log.and_then(|log| log.elapsed().ok());
        // A log that grows has a process, whatever a lock on another machine's disk may say.
        if age.is_none_or(|age| age > LATELY) && Hold::is_held(folder) == Some(false) {
            return Pace::Stopped;
        }
        match age {
            Some(age) if age > STILL => Pace::Still(age.as_secs()),
            _ => Pace::Running,
        }
    }

    fn words(self) -> String {
        match self {
            Pace::Finished => "finished".to_owned(),
            Pace::Running => "running".to_owned(),
            Pace::Stopped => "stopped".to_owned(),
            Pace::Still(seconds) => format!("no new line for {seconds} s"),
        }
    }
}

type Points = Vec<(f64, f64)>;

static NO_POINTS: Points = Points::new();

/// What is drawn, by step.
#[derive(Default)]
struct Curves {
    step: u64,
    seconds: f64,
    points: BTreeMap<String, Points>, // of each scalar but those below
    smooth: Points,                   // the loss
    sources: Vec<(String, f64)>,      // tokens seen of each
    steps: Option<f64>,               // of the whole run
    messages: Vec<(u64, String)>,     // with their steps
    not_finite: Option<u64>,
}

/// Messages that are shown, the newest.
const MESSAGES: usize = 4;

impl Curves {
    fn new(events: &[LogEvent]) -> Curves {
        let mut curves = Curves::default();
        for event in events {
            let step = event.step as f64;
            curves.step = curves.step.max(event.step);
            curves.seconds = curves.seconds.max(event.wall_seconds);
            let said = event.texts.values().cloned();
            curves.messages.extend(said.map(|text| (event.step, text)));
            for (name, &value) in &event.scalars {
                if let Some(source) = name
                    .strip_prefix("tokens_")
                    .filter(|_| name != "tokens_per_second")
                {
                    curves.sources.retain(|(name, _)| name != source);
                    curves.sources.push((source.to_owned(), value));
                } else if name == "steps" {
                    curves.steps = Some(value);
                } else if value.is_finite() {
                    let points = curves.points.entry(name.clone()).or_default();
                    points.push((step, value));
                } else {
                    curves.not_finite = Some(event.step);
                }
            }
        }
        let losses = curves.of("loss");
        let newest = 2.0 / (1.0 + (SMOOTHED_SHARE * losses.len() as f64).max(1.0));
        let mut average = None;
        let smooth = losses.iter().map(|&(step, loss)| {
            let next = average.map_or(loss, |before: f64| before + newest * (loss - before));
            average = Some(next);
            (step, next)
        });
        curves.smooth = smooth.collect();
        curves
    }

    fn of(&self, name: &str) -> &Points {
        self.points.get(name).unwrap_or(&NO_POINTS)
    }

    fn last(&self, name: &str) -> Option<f64> {
        self.of(name).last().map(|point| point.1)
    }

    fn headline(&self) -> String {
        let Some(loss) = self.last("loss") else {
            return WAITING.to_owned();
        };
        let mut line = format!("step {}", self.step);
        if let Some(steps) = self.steps {
            line += &format!(" of {steps:.0}");
        }
        line += &format!(", loss {loss:.4}");
        if let Some(validation) = self.last("validation_loss") {
            line += &format!(", validation {validation:.4}");
        }
        if let Some(speed) = self.last("tokens_per_second") {
            line += &format!(", {speed:.0} tokens/s");
        }
        if let Some(utilisation) = self.last("mfu") {
            line += &format!(", {:.0} % of the peak", 100.0 * utilisation);
        }
        line += &format!(", {:.0} s", self.seconds);
        if let Some(left) = self.seconds_left() {
            line += &format!(", about {left:.0} s left");
        }
        if let Some(skipped) = self.last("skipped_steps").filter(|&skipped| skipped > 0.0) {
            line += &format!(", {skipped:.0} steps skipped");
        }
        if let Some(step) = self.not_finite {
            line += &format!(", a value that is no number at step {step}");
        }
        line
    }

    /// What the steps that are left take at the pace of the last line.
    fn seconds_left(&self) -> Option<f64> {
        let left = self.steps? - self.step as f64;
        let tokens: f64 = self.sources.iter().map(|(_, tokens)| tokens).sum();
        let speed = self.last("tokens_per_second")?;
        (left > 0.0 && tokens > 0.0).then(|| left * tokens / self.step as f64 / speed)
    }

    /// "from books 55 %, code 34 %".
    fn shares(&self) -> String {
        let all: f64 = self.sources.iter().map(|(_, tokens)| tokens).sum();
        let share =
            |(name, tokens): &(String, f64)| format!("{name} {:.0} %", 100.0 * tokens / all);
        let shares: Vec<String> = self.sources.iter().map(share).collect();
        format!("{:.2} M tokens of {}", all / 1e6, shares.join(", "))
    }

    fn json(&self, folder: &Path, pace: Pace) -> serde_json::Value {
        let messages: Vec<&String> = self.messages.iter().map(|(_, text)| text).collect();
        json!({
            "log": folder,
            "pace": pace.words(),
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.last("loss"),
            "validation_loss": self.last("validation_loss"),
            "learning_rate": self.last("learning_rate"),
            "gradient_norm": self.last("gradient_norm"),
            "tokens_per_second": self.last("tokens_per_second"),
            "mfu": self.last("mfu"),
            "skipped_steps": self.last("skipped_steps").unwrap_or(0.0),
            "steps": self.steps,
            "seconds_left": self.seconds_left(),
            "tokens": self.sources.iter().cloned().collect::<BTreeMap<String, f64>>(),
            "messages": messages,
        })
    }

    fn draw(&self, frame: &mut Frame, name: &str, pace: Pace) {
        let said = &self.messages[self.messages.len().saturating_sub(MESSAGES)..];
        // The messages have at most half of the screen; the log has them whole.
        let most = usize::from(frame.area().height) / 2 / said.len().max(1);
        let width = usize::from(frame.area().width);
        let lines: Vec<String> = said
            .iter()
            .flat_map(|(_, text)| wrapped(text, width, most.max(1)))
            .collect();
        let [head, body, messages, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Fill(1),
            Constraint::Length(lines.len() as u16),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let said: Vec<Line> = lines
            .into_iter()
            .map(|text| text.fg(Color::Yellow).into())
            .collect();
        frame.render_widget(Paragraph::new(said), messages);
        let [left, right] =
            Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)])
                .areas(body);
        let small: [Rect; 3] = Layout::vertical([Constraint::Ratio(1, 3); 3]).areas(right);
        let headline = format!("{}, {}", self.headline(), pace.words());
        frame.render_widget(Line::from(headline).bold(), head);
        let shares = match self.sources.is_empty() {
            true => String::new(),
            false => self.shares(),
        };
        frame.render_widget(
            Line::from(format!("q quits   {name}   {shares}")).dim(),
            foot,
        );

        let line = |points, color| curve(points, GraphType::Line, color);
        let title = Line::from(vec![
            "loss, nats a token: ".into(),
            "batches".fg(Color::DarkGray),
            ", ".into(),
            "smoothed".fg(Color::Cyan),
            ", ".into(),
            "held out".fg(Color::Yellow),
        ]);
        let (losses, held_out) = (self.of("loss"), self.of("validation_loss"));
        self.chart(
            frame,
            left,
            title,
            vec![
                curve(losses, GraphType::Scatter, Color::DarkGray),
                line(&self.smooth, Color::Cyan),
                line(held_out, Color::Yellow),
                // A run may have a single measurement, which no line shows.
                curve(held_out, GraphType::Scatter, Color::Yellow).marker(Marker::Dot),
            ],
            &[losses, held_out],
        );
        for (area, title, name) in [
            (small[0], "learning rate", "learning_rate"),
            (small[1], "gradient norm", "gradient_norm"),
            (small[2], "tokens/s", "tokens_per_second"),
        ] {
            let points = self.of(name);
            let data = vec![line(points, Color::Cyan)];
            self.chart(frame, area, title.into(), data, &[points]);
        }
    }

    fn chart(
        &self,
        frame: &mut Frame,
        area: Rect,
        title: Line,
        data: Vec<Dataset>,
        points: &[&Points],
    ) {
        let values = || points.iter().flat_map(|points| points.iter().map(|p| p.1));
        let (low, high) = (
            values().fold(f64::INFINITY, f64::min),
            values().fold(f64::NEG_INFINITY, f64::max),
        );
        let (low, high) = match (low.is_finite(), high > low) {
            (false, _) => (0.0, 1.0),
            (true, false) => (
                low - 0.5 * low.abs().max(1e-9),
                low + 0.5 * low.abs().max(1e-9),
            ),
            (true, true) => (low, high),
        };
        let last = self.step.max(1) as f64;
        let chart = Chart::new(data)
            .block(Block::bordered().title(title))
            .x_axis(
                Axis::default()
                    .bounds([0.0, last])
                    .labels(["0".to_owned(), self.step.to_string()]),
            )
            .y_axis(Axis::default().bounds([low, high]).labels([
                short(low),
                short(0.5 * (low + high)),
                short(high),
            ]));
        frame.render_widget(chart, area);
    }
}

fn curve(points: &Points, kind: GraphType, color: Color) -> Dataset<'_> {
    Dataset::default()
        .marker(Marker::Braille)
        .graph_type(kind)
        .style(Style::new().fg(color))
        .data(points)
}

/// Four digits or so.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

/// A text in lines of at most `width` characters, cut between words where it can be; at most `most` lines, then `…`.
fn wrapped(text: &str, width: usize, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is one");
        let long = line.chars().count() + 1 + word.chars().count() > width;
        match (line.is_empty(), long) {
            (true, _) => line.push_str(word),
            (false, false) => {
                line.push(' ');
                line.push_str(word);
            }
            (false, true) => lines.push(word.to_owned()),
        }
    }
    if lines.len() > most {
        lines.truncate(most);
        let last = lines.last_mut().expect("most is at least 1");
        *last = last.chars().take(width.saturating_sub(2)).collect();
        last.push_str(" …");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use russet_artifact::RunLog;

    fn log(folder: &Path) {
        let mut log = RunLog::create(folder).unwrap();
        for step in 1..=40_u64 {
            let loss = 8.0 - 0.1 * step as f64;
            let fields = [
                ("loss", loss),
                ("learning_rate", 1e-3),
                ("gradient_norm", 0.5),
                ("tokens_per_second", 2000.0),
                ("mfu", 0.75),
                ("steps", 100.0),
                ("tokens_books", 300.0 * step as f64),
                ("tokens_code", 100.0 * step as f64),
            ];
            log.scalars(step, &fields).unwrap();
        }
        log.text(40, "spike", "step 40: the loss is high").unwrap();
        log.scalars(40, &[("validation_loss", 4.25)]).unwrap();
    }

    #[test]
    fn the_page_shows_curves_and_the_last_values() {
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().join("03-pretrain.log");
        log(&logs);
        for given in [
            folder.path().to_owned(),
            folder.path().join("03-pretrain"),
            logs.clone(),
            logs.join("log.jsonl"),
        ] {
            assert_eq!(
                log_folder(&given).unwrap().as_ref(),
                Some(&logs),
                "{}",
                given.display()
            );
        }
        assert_eq!(Pace::of(&logs), Pace::Running);
        let written = |seconds| {
            let log = std::fs::File::options()
                .append(true)
                .open(logs.join("log.jsonl"));
            let then = std::time::SystemTime::now() - Duration::from_secs(seconds);
            log.unwrap().set_modified(then).unwrap();
        };
        written(10);
        let hold = Hold::take(folder.path(), &logs).unwrap();
        assert_eq!(Pace::of(&logs), Pace::Running);
        drop(hold);
        assert_eq!(Pace::of(&logs), Pace::Stopped);
        written(0);
        std::fs::create_dir(folder.path().join("03-pretrain")).unwrap();
        std::fs::write(folder.path().join("03-pretrain/manifest.json"), "{}").unwrap();
        assert_eq!(Pace::of(&logs), Pace::Finished);
        let curves = Curves::new(&read_log(&logs).unwrap());
        let json = curves.json(&logs, Pace::Running);
        assert_eq!(json["validation_loss"], 4.25);
        assert_eq!(
            json["seconds_left"], 12.0,
            "60 steps of 400 tokens at 2000 a second"
        );
        assert_eq!(json["messages"][0], "step 40: the loss is high");
        // A line that comes later is of a run that will replace what lies there.
        RunLog::resume(&logs, 40).unwrap().scalars(41, &[]).unwrap();
        let later = std::time::SystemTime::now() + Duration::from_secs(5);
        let lines = std::fs::File::options()
            .append(true)
            .open(logs.join("log.jsonl"))
            .unwrap();
        lines.set_modified(later).unwrap();
        assert_ne!(Pace::of(&logs), Pace::Finished);
        let mut terminal = Terminal::new(TestBackend::new(140, 30)).unwrap();
        terminal
            .draw(|frame| curves.draw(frame, "run", Pace::Running))
            .unwrap();
        let text: String = terminal
            .backend()
            .buffer()
            .content()
            .iter()
            .map(|cell| cell.symbol())
            .collect();
        for word in [
            "step 40 of 100, loss 4.0000, validation 4.2500, 2000 tokens/s, 75 % of the peak",
            "0.02 M tokens of books 75 %, code 25 %",
            "the loss is high",
            "loss, nats a token",
            "held out",
            "gradient norm",
            "7.90",
            "1.0e-3",
        ] {
            assert!(text.contains(word), "`{word}` is missing");
        }
        let drawn = text
            .chars()
            .filter(|c| ('\u{2801}'..='\u{28ff}').contains(c));
        assert!(drawn.count() > 50, "curves are drawn");
    }

    #[test]
    fn a_spike_names_its_documents_on_a_narrow_screen() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = RunLog::create(folder.path()).unwrap();
        log.scalars(5120, &[("loss", 9.1)]).unwrap();
        let many: Vec<String> = (100..400).map(|number| number.to_string()).collect();
        let message = format!(
            "step 5120: the loss is 9.1000, 17.3 standard deviations (0.2500) above its running mean (4.7000); the step saw \
             documents {} (counted from 0) of books",
            many.join(", ")
        );
        log.text(5120, "spike", &message).unwrap();
        let curves = Curves::new(&read_log(folder.path()).unwrap());
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal
            .draw(|frame| curves.draw(frame, "run", Pace::Running))
            .unwrap();
        let buffer = terminal.backend().buffer();
        let text: String = buffer.content().iter().map(|cell| cell.symbol()).collect();
        assert!(text.contains("documents 100, 101, 102"), "{text}");
        assert!(text.contains(" …") && text.contains("loss, nats a token"));
        assert_eq!(wrapped("aa bb cc", 5, 9), ["aa bb", "cc"]);
        assert_eq!(wrapped("aaaaaaa b", 5, 1), ["aaa …"]);
    }

    #[test]
    fn values_that_are_no_numbers_are_named_and_not_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = RunLog::create(folder.path()).unwrap();
        log.scalars(1, &[("loss", 5.0)]).unwrap();
        log.scalars(2, &[("loss", f64::NAN)]).unwrap();
        let curves = Curves::new(&read_log(folder.path()).unwrap());
        assert_eq!(curves.of("loss"), &[(1.0, 5.0)]);
        assert!(curves.headline().contains("no number at step 2"));
        Terminal::new(TestBackend::new(20, 5))
            .unwrap()
            .draw(|frame| curves.draw(frame, "run", Pace::Running))
            .unwrap();
    }

    #[test]
    fn a_folder_without_a_log_is_waited_for_and_one_that_is_not_there_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(log_folder(folder.path()).unwrap(), None, "it may come");
        assert_eq!(tell(folder.path(), 0).unwrap()["pace"], WAITING);
        let error = log_folder(&folder.path().join("other")).unwrap_err();
        assert!(error.to_string().contains("no such folder"), "{error}");
    }
}
