//! The page.

use std::fmt::Write;

use super::{Case, Metric, Run, evals, lined_up};

/// Rows of an evaluation that the page shows; more would not open in a browser.
const ROWS: usize = 2000;

/// Characters of a text that the page shows.
const TEXT: usize = 20_000;

/// A text as the page may hold it anywhere: nothing of it is markup or ends an attribute, and nothing of it hides. Controls and
/// marks that turn the direction of writing stand as their numbers.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}') =>
            {
                write!(out, "⟨U+{:04X}⟩", u32::from(c)).expect("a string takes all");
            }
            c => out.push(c),
        }
    }
    out
}

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --bar: #b5532c; --soft: #b5532c33; --good: #2e7d32; --bad: #c62828; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; } td { overflow-wrap: anywhere; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } th.n { text-align: right; }
.i { color: GrayText; font-size: .85em; }
svg { display: block; width: 9rem; height: .9rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
details { margin: .3rem 0; } summary { cursor: pointer; } details details { margin-left: 1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .6rem; margin: .3rem 0; border-radius: 4px; font-size: .9em; }
.runs { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 1rem; }
nav a { margin-right: 1rem; }
";

/// The page of some runs; of two, their difference too.
pub fn page(runs: &[Run]) -> String {
    let names: Vec<String> = runs.iter().map(|run| escape(&run.name)).collect();
    let mut out = String::new();
    out += "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
    out += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n";
    out += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    let title = names.join(" and ");
    out +=
        &format!("<title>Evaluation of {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n");
    out += &format!("<h1>Evaluation of {title}</h1>\n<nav>");
    for (number, eval) in evals(runs).iter().enumerate() {
        out += &format!("<a href=\"#e{number}\">{}</a>", escape(eval));
    }
    out += "<a href=\"#from\">where it comes from</a></nav>\n";
    for (number, eval) in evals(runs).into_iter().enumerate() {
        out += &format!("<h2 id=\"e{number}\">{}</h2>\n", escape(eval));
        table(&mut out, runs, &names, eval);
        cases(&mut out, runs, &names, eval);
    }
    provenance(&mut out, runs, &names);
    out += "</body>\n</html>\n";
    out
}

fn table(out: &mut String, runs: &[Run], names: &[String], eval: &str) {
    *out += "<table>\n<tr><th></th>";
    for name in names {
        *out += &format!("<th class=\"n\">{name}</th><th></th>");
    }
    *out += if runs.len() == 2 {
        "<th class=\"n\">difference</th></tr>\n"
    } else {
        "</tr>\n"
    };
    for (label, metrics) in lined_up(runs, eval) {
        *out += &format!("<tr><td>{}</td>", escape(&label));
        for metric in &metrics {
            match metric {
                None => *out += "<td class=\"n\">–</td><td></td>",
                Some(metric) => {
                    *out += &format!(
                        "<td class=\"n\">{}</td><td>{}</td>",
                        value(metric),
                        bar(metric)
                    );
                }
            }
        }
        if let [one, two] = &metrics[..] {
            *out += &format!(
                "<td class=\"n\">{}</td>",
                difference(one.as_ref(), two.as_ref())
            );
        }
        *out += "</tr>\n";
    }
    *out += "</table>\n";
}

fn value(metric: &Metric) -> String {
    let (digits, unit) = if metric.percent { (1, " %") } else { (3, "") };
    let interval = metric.interval.map_or(String::new(), |[low, high]| {
        format!(" <span class=\"i\">[{low:.digits$}, {high:.digits$}]</span>")
    });
    format!("{:.digits$}{unit}{interval}", metric.value)
}

/// A bar of 0 to 100 with the interval as a whisker; nothing for other numbers.
fn bar(metric: &Metric) -> String {
    if !metric.percent {
        return String::new();
    }
    let at = |value: f64| value.clamp(0.0, 100.0);
    let whisker = metric.interval.map_or(String::new(), |[low, high]| {
        let (low, high) = (at(low), at(high));
        format!(
            "<path d=\"M{low:.2} 5H{high:.2}M{low:.2} 2V8M{high:.2} 2V8\" stroke=\"currentColor\" stroke-width=\"1\" vector-effect=\"non-scaling-stroke\"/>"
        )
    });
    format!(
        "<svg viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{:.1} %\"><rect width=\"100\" height=\"10\" fill=\"var(--soft)\"/>\
         <rect width=\"{:.2}\" height=\"10\" fill=\"var(--bar)\"/>{whisker}</svg>",
        metric.value,
        at(metric.value)
    )
}

/// The second less the first; coloured where their intervals do not touch.
fn difference(one: Option<&Metric>, two: Option<&Metric>) -> String {
    let (Some(one), Some(two)) = (one, two) else {
        return "–".to_owned();
    };
    let change = two.value - one.value;
    let apart = one
        .interval
        .zip(two.interval)
        .is_some_and(|([a, b], [c, d])| b < c || d < a);
    let class = match (apart, (change > 0.0) == one.more) {
        (false, _) => "i",
        (true, true) => "good",
        (true, false) => "bad",
    };
    let digits = if one.percent { 1 } else { 3 };
    format!("<span class=\"{class}\">{change:+.digits$}</span>")
}

/// Each row behind a click: of one run by itself, of several side by side.
fn cases(out: &mut String, runs: &[Run], names: &[String], eval: &str) {
    let none = Vec::new();
    let all: Vec<&Vec<Case>> = runs
        .iter()
        .map(|run| run.cases.get(eval).unwrap_or(&none))
        .collect();
    // In the order of the first run that has a row.
    let mut order: Vec<(&str, &str)> = Vec::new();
    let mut seen: std::collections::HashMap<(&str, &str), Vec<Vec<&Case>>> =
        std::collections::HashMap::new();
    for (run, cases) in all.iter().enumerate() {
        for case in cases.iter() {
            let key = (case.name.as_str(), case.prompt.as_str());
            let places = seen.entry(key).or_insert_with(|| {
                order.push(key);
                vec![Vec::new(); runs.len()]
            });
            places[run].push(case);
        }
    }
    if order.is_empty() {
        return;
    }
    let wrong = |cases: &[Vec<&Case>]| {
        cases
            .iter()
            .flatten()
            .any(|case| case.passed == Some(false))
    };
    let failed = order.iter().filter(|key| wrong(&seen[*key])).count();
    *out += &format!(
        "<details><summary>{} rows, {failed} of them with something wrong</summary>\n",
        order.len()
    );
    if order.len() > ROWS {
        *out += &format!("<p>The first {ROWS} are shown.</p>\n");
    }
    for key in order.iter().take(ROWS) {
        let cases = &seen[key];
        let marks: String = cases.iter().map(|of_run| mark(of_run)).collect();
        let (name, prompt) = key;
        let title: String = format!("{name} {prompt}").chars().take(110).collect();
        *out += &format!(
            "<details><summary>{marks} {}</summary>\n<pre>{}</pre>\n<div class=\"runs\">",
            escape(&title.replace('\n', " ")),
            text(prompt)
        );
        for (run, of_run) in cases.iter().enumerate() {
            *out += "<div>";
            if runs.len() > 1 {
                *out += &format!("<b>{}</b>", names[run]);
            }
            for case in of_run {
                let parts = [
                    case.category.as_deref(),
                    case.note.as_deref().filter(|note| !note.is_empty()),
                ];
                let parts: Vec<String> = parts.into_iter().flatten().map(text).collect();
                if !parts.is_empty() {
                    *out += &format!("<div class=\"i\">{}</div>", parts.join(" · "));
                }
                if let Some(response) = &case.response {
                    *out += &format!("<pre>{}</pre>", text(response));
                }
            }
            *out += "</div>";
        }
        *out += "</div></details>\n";
    }
    *out += "</details>\n";
}

fn mark(cases: &[&Case]) -> &'static str {
    match cases.iter().map(|case| case.passed).min().flatten() {
        _ if cases.is_empty() => "–",
        Some(true) => "<span class=\"good\">✓</span>",
        Some(false) => "<span class=\"bad\">✗</span>",
        None => "·",
    }
}

/// A text, cut where it is too long.
fn text(text: &str) -> String {
    match text.char_indices().nth(TEXT) {
        None => escape(text),
        Some((end, _)) => format!(
            "{}… <span class=\"i\">({} bytes in all)</span>",
            escape(&text[..end]),
            text.len()
        ),
    }
}

fn provenance(out: &mut String, runs: &[Run], names: &[String]) {
    *out += "<h2 id=\"from\">Where it comes from</h2>\n<table>\n<tr><th>run</th><th>evaluation</th><th>read</th><th>settings</th><th>program</th></tr>\n";
    for (run, name) in runs.iter().zip(names) {
        for (eval, record) in &run.records {
            let inputs: Vec<String> = record
                .inputs
                .iter()
                .map(|(what, source)| {
                    let path = source["path"].as_str().unwrap_or_default();
                    let hash = source["manifest"]
                        .as_str()
                        .or(source["blake3"].as_str())
                        .unwrap_or_default();
                    let short: String = hash.chars().take(16).collect();
                    format!(
                        "{}: {} <span class=\"i\">{}</span>",
                        escape(what),
                        escape(path),
                        escape(&short)
                    )
                })
                .collect();
            let part = |key: &str| record.tool[key].as_str().unwrap_or_default();
            let commit: String = part("commit").chars().take(12).collect();
            let tool = format!("{} {commit}", part("version"));
            *out += &format!(
                "<tr><td>{name}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                escape(eval),
                inputs.join("<br>"),
                escape(&record.settings.to_string()),
                escape(&tool)
            );
        }
    }
    *out += "</table>\n";
}
