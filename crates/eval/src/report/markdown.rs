//! Tables for a model card.

use super::{Metric, Run, evals, lined_up};

/// A text within a table's cell: no mark of it ends the cell or begins markup.
pub fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c if c.is_control() => {}
            '<' => out += "&lt;",
            '&' => out += "&amp;",
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '~' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// A section for each evaluation, a column for each run.
pub fn card(runs: &[Run]) -> String {
    let mut out = "## Evaluation\n".to_owned();
    for eval in evals(runs) {
        out += &format!("\n### {}\n\n| |", escape(eval));
        for run in runs {
            out += &format!(" {} |", escape(&run.name));
        }
        out += "\n|---|";
        out += &"---:|".repeat(runs.len());
        out.push('\n');
        for (label, metrics) in lined_up(runs, eval) {
            out += &format!("| {} |", escape(&label));
            for metric in metrics {
                out += &format!(" {} |", metric.as_ref().map_or("–".to_owned(), value));
            }
            out.push('\n');
        }
        let mut sources: Vec<String> = Vec::new();
        for record in runs.iter().filter_map(|run| run.records.get(eval)) {
            for (what, source) in &record.inputs {
                let hash = source["manifest"]
                    .as_str()
                    .or(source["blake3"].as_str())
                    .unwrap_or_default();
                let short: String = hash.chars().take(16).collect();
                let source = format!(
                    "{} {} ({short})",
                    escape(what),
                    escape(source["path"].as_str().unwrap_or_default())
                );
                if !sources.contains(&source) {
                    sources.push(source);
                }
            }
        }
        out += &format!("\nRead: {}.\n", sources.join(", "));
    }
    out
}

fn value(metric: &Metric) -> String {
    let (digits, unit) = if metric.percent { (1, " %") } else { (3, "") };
    let interval = metric.interval.map_or(String::new(), |[low, high]| {
        format!(" \\[{low:.digits$}, {high:.digits$}\\]")
    });
    format!("{:.digits$}{unit}{interval}", metric.value)
}
