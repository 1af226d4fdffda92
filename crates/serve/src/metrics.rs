//! Counters and histograms in Prometheus' text format: numbers of requests, tokens and seconds, and names of adapters that the
//! server was given. Nothing of what was asked or answered.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use russet_engine::{AdapterStats, Stats};

/// vLLM's buckets of `time_to_first_token_seconds`.
const TO_FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's buckets of `inter_token_latency_seconds`.
const BETWEEN_TOKENS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
/// vLLM's buckets of `e2e_request_latency_seconds`.
const WHOLE: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// How many adapters are counted by name; what comes beyond is counted together.
const NAMED: usize = 64;

/// What has been counted.
#[derive(Default)]
pub(crate) struct Metrics(Mutex<Counts>);

/// Why an answer ended that nobody has got whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Its client has left, or takes nothing.
    Disconnected,
    /// Its time was over.
    Deadline,
    /// The server goes down.
    Shutdown,
    /// It could not go on.
    Error,
}

impl Cut {
    const ALL: [Cut; 4] = [Cut::Disconnected, Cut::Deadline, Cut::Shutdown, Cut::Error];

    /// Of an answer that is dropped before its end: over a bug, or because nobody listens.
    pub fn dropped() -> Cut {
        match std::thread::panicking() {
            true => Cut::Error,
            false => Cut::Disconnected,
        }
    }

    /// The word for it in the metric.
    fn reason(self) -> &'static str {
        match self {
            Cut::Disconnected => "disconnected",
            Cut::Deadline => "deadline",
            Cut::Shutdown => "shutdown",
            Cut::Error => "error",
        }
    }
}

struct Counts {
    responses: BTreeMap<(&'static str, u16), u64>,
    finished: BTreeMap<&'static str, u64>,
    models: BTreeMap<String, u64>,
    prompt_tokens: u64,
    cached_tokens: u64,
    generated_tokens: u64,
    panics: u64,
    to_first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            responses: BTreeMap::new(),
            // Told from the beginning: a rate of what has never happened is 0.
            finished: Cut::ALL.iter().map(|cut| (cut.reason(), 0)).collect(),
            models: BTreeMap::new(),
            prompt_tokens: 0,
            cached_tokens: 0,
            generated_tokens: 0,
            panics: 0,
            to_first_token: Histogram::new(TO_FIRST_TOKEN),
            between_tokens: Histogram::new(BETWEEN_TOKENS),
            whole: Histogram::new(WHOLE),
        }
    }
}

struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>, // one more than bounds
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    fn add(&mut self, value: f64) {
        let place = self.bounds.partition_point(|&bound| bound < value);
        self.counts[place] += 1;
        self.sum += value;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let mut sum = 0;
        for (place, count) in self.counts.iter().enumerate() {
            sum += count;
            let bound = self
                .bounds
                .get(place)
                .map_or("+Inf".to_owned(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {sum}", self.sum);
    }
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A response began with this status.
    pub fn response(&self, endpoint: &'static str, status: u16) {
        *self.lock().responses.entry((endpoint, status)).or_default() += 1;
    }

    /// A request for `model` was taken in, with so many tokens of prompts.
    pub fn taken(&self, model: &str, prompt: usize) {
        let mut counts = self.lock();
        counts.prompt_tokens += prompt as u64;
        let full = counts.models.len() >= NAMED && !counts.models.contains_key(model);
        let name = if full { "other adapters" } else { model };
        *counts.models.entry(name.to_owned()).or_default() += 1;
    }

    /// The first token of a request came so long after it.
    pub fn first_token(&self, after: Duration) {
        self.lock().to_first_token.add(after.as_secs_f64());
    }

    /// A token came so long after the one before it.
    pub fn next_token(&self, after: Duration) {
        self.lock().between_tokens.add(after.as_secs_f64());
    }

    /// An answer is over: by OpenAI's word for it, or cut off ([`Cut`]).
    pub fn answered(&self, finish: &'static str, cached: usize, generated: usize) {
        let mut counts = self.lock();
        *counts.finished.entry(finish).or_default() += 1;
        counts.cached_tokens += cached as u64;
        counts.generated_tokens += generated as u64;
    }

    /// An answer was cut off, behind so many tokens.
    pub fn cut(&self, why: Cut, generated: usize) {
        self.answered(why.reason(), 0, generated);
    }

    /// A request took so long.
    pub fn whole(&self, seconds: Duration) {
        self.lock().whole.add(seconds.as_secs_f64());
    }

    /// A handler panicked.
    pub fn panicked(&self) {
        self.lock().panics += 1;
    }

    /// All of it as text.
    pub fn text(&self, engine: &Stats, adapters: &AdapterStats, restarts: u64) -> String {
        let counts = self.lock();
        let mut out = String::new();
        head(
            &mut out,
            "russet_http_responses_total",
            "counter",
            "Responses by endpoint and status.",
        );
        for ((endpoint, status), count) in &counts.responses {
            let _ = writeln!(
                out,
                "russet_http_responses_total{{endpoint=\"{endpoint}\",status=\"{status}\"}} {count}"
            );
        }
        head(
            &mut out,
            "russet_request_finished_total",
            "counter",
            "Answers by how they ended.",
        );
        for (finish, count) in &counts.finished {
            let _ = writeln!(
                out,
                "russet_request_finished_total{{reason=\"{finish}\"}} {count}"
            );
        }
        head(
            &mut out,
            "russet_model_requests_total",
            "counter",
            "Requests taken in by model or adapter.",
        );
        for (model, count) in &counts.models {
            let model = model
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = writeln!(
                out,
                "russet_model_requests_total{{model=\"{model}\"}} {count}"
            );
        }
        let counters = [
            (
                "russet_prompt_tokens_total",
                "Tokens of prompts.",
                counts.prompt_tokens,
            ),
            (
                "russet_prompt_tokens_cached_total",
                "Tokens of prompts that lay in the cache.",
                counts.cached_tokens,
            ),
            (
                "russet_generation_tokens_total",
                "Tokens of answers.",
                counts.generated_tokens,
            ),
            (
                "russet_panics_total",
                "Handlers that panicked.",
                counts.panics,
            ),
            (
                "russet_engine_restarts_total",
                "Engines made anew after a panic.",
                restarts,
            ),
            ("russet_engine_steps_total", "Forward passes.", engine.steps),
            (
                "russet_engine_rows_total",
                "Rows of all forward passes.",
                engine.rows,
            ),
            (
                "russet_num_preemptions_total",
                "Sequences that had to make room.",
                engine.preemptions,
            ),
            (
                "russet_spec_decode_draft_tokens_total",
                "Tokens guessed.",
                engine.proposed_tokens,
            ),
            (
                "russet_spec_decode_accepted_tokens_total",
                "Guesses that were right.",
                engine.accepted_tokens,
            ),
            (
                "russet_adapter_loads_total",
                "Adapters read.",
                adapters.loads,
            ),
            (
                "russet_adapter_evictions_total",
                "Adapters let go for others.",
                adapters.evictions,
            ),
        ];
        for (name, help, value) in counters {
            head(&mut out, name, "counter", help);
            let _ = writeln!(out, "{name} {value}");
        }
        let used = engine.blocks - engine.free_blocks - engine.idle_blocks;
        let gauges = [
            (
                "russet_num_requests_running",
                "Sequences that run.",
                engine.running as f64,
            ),
            (
                "russet_num_requests_waiting",
                "Requests that wait.",
                engine.waiting as f64,
            ),
            (
                "russet_kv_cache_usage_ratio",
                "The share of the cache that sequences hold.",
                used as f64 / engine.blocks.max(1) as f64,
            ),
            (
                "russet_adapters_loaded",
                "Adapters in memory.",
                adapters.loaded as f64,
            ),
            (
                "russet_adapter_bytes",
                "Bytes of adapters in memory.",
                adapters.bytes as f64,
            ),
        ];
        for (name, help, value) in gauges {
            head(&mut out, name, "gauge", help);
            let _ = writeln!(out, "{name} {value}");
        }
        counts.to_first_token.write(
            &mut out,
            "russet_time_to_first_token_seconds",
            "From a request to its first token.",
        );
        counts.between_tokens.write(
            &mut out,
            "russet_inter_token_latency_seconds",
            "From a token of an answer to the next.",
        );
        counts.whole.write(
            &mut out,
            "russet_e2e_request_latency_seconds",
            "From a request to the end of its last answer.",
        );
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_in_every_bucket_that_holds_it() {
        let metrics = Metrics::default();
        for seconds in [0.0005, 0.001, 0.3, 9000.0] {
            metrics.first_token(Duration::from_secs_f64(seconds));
        }
        let text = metrics.text(&Stats::default(), &AdapterStats::default(), 0);
        let value = |bound: &str| {
            let line = format!("russet_time_to_first_token_seconds_bucket{{le=\"{bound}\"}} ");
            let found = text.lines().find_map(|l| l.strip_prefix(&line));
            found.unwrap().parse::<u64>().unwrap()
        };
        assert_eq!(
            ["0.001", "0.25", "0.5", "2560", "+Inf"].map(value),
            [2, 2, 3, 3, 4]
        );
        assert!(text.contains("russet_time_to_first_token_seconds_count 4\n"));
    }

    #[test]
    fn names_of_adapters_are_bounded() {
        let metrics = Metrics::default();
        for number in 0..500 {
            metrics.taken(&format!("a\"{number}\n"), 1);
        }
        let text = metrics.text(&Stats::default(), &AdapterStats::default(), 0);
        let named = |line: &&str| line.starts_with("russet_model_requests_total{");
        assert_eq!(text.lines().filter(named).count(), NAMED + 1);
        assert!(text.contains("{model=\"other adapters\"} 436\n"));
        assert!(text.contains("{model=\"a\\\"7\\n\"} 1\n"));
    }
}
