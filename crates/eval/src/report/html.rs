//! The page.

use std::fmt::Write;

use serde_json::Value;

use super::{Case, Metric, Run, evals, figures, lined_up};

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
:root { color-scheme: light dark; --line: #8884; --muted: #616161; --bar: #b5532c; --soft: #b5532c33; --good: #2e7d32; --bad: #c62828;
  --s0: #b5532c; --s1: #1f6aa5; --s2: #3d7d3f; --s3: #8a4fae; --s4: #96731b; --s5: #5f6b73; }
@media (prefers-color-scheme: dark) { :root { --muted: #a8a8a8; --good: #7cc47f; --bad: #ef8a80; --bar: #d07048; --s0: #e0835c; --s1: #6db3ea; --s2: #83c386; --s3: #c49ae0;
  --s4: #d8b45e; --s5: #a9b4bb; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; } td { overflow-wrap: anywhere; min-width: 4rem; } td:first-child { min-width: 7.5rem; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } th.n { text-align: right; overflow-wrap: anywhere; }
table.grid { width: auto; } caption { text-align: left; font-weight: bold; padding: .3rem 0; }
.i { color: var(--muted); font-size: .85em; }
svg.bar { display: block; width: min(9rem, 8vw); height: .9rem; }
.figure { margin: 1rem 0; max-width: 46rem; overflow-x: auto; } .figure svg text { font-size: 11px; fill: currentColor; } svg.radar, svg.lines { display: block; width: 100%; }
.s { stroke-width: 1.8; } .whisker { stroke-width: 1; }
.s0 { stroke: var(--s0); fill: var(--s0); } .s1 { stroke: var(--s1); fill: var(--s1); stroke-dasharray: 7 3; } .s2 { stroke: var(--s2); fill: var(--s2); stroke-dasharray: 2 3; }
.s3 { stroke: var(--s3); fill: var(--s3); stroke-dasharray: 9 3 2 3; } .s4 { stroke: var(--s4); fill: var(--s4); stroke-dasharray: 4 4; } .s5 { stroke: var(--s5); fill: var(--s5); stroke-dasharray: 1 4; }
polyline.s { fill: none; } circle, .whisker { stroke-dasharray: none !important; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9em; margin-top: .3rem; } .key { overflow-wrap: anywhere; } .key svg { width: 24px; height: 8px; } .box { display: inline-block; width: .8em; height: .8em; }
.pair { display: grid; grid-template-columns: minmax(0, 14rem) minmax(0, 1fr); gap: .2rem 1rem; align-items: center; margin: .4rem 0; overflow-wrap: anywhere; }
.wtl { display: flex; height: 1.5rem; } .wtl span { color: #fff; font-size: .85em; line-height: 1.5rem; text-align: center; overflow: hidden; min-width: 0; font-variant-numeric: tabular-nums; }
.win { background: #2f6b31; } .tie { background: #6b6b6b; } .loss { background: #a34722; }
.good { color: var(--good); } .bad { color: var(--bad); }
details { margin: .3rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; } details details { margin-left: 1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .6rem; margin: .3rem 0; border-radius: 4px; font-size: .9em; }
.runs { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
@media (max-width: 40rem) { .runs { grid-auto-flow: row; grid-auto-columns: auto; } .pair { grid-template-columns: minmax(0, 1fr); } svg.bar { width: 5rem; } svg.radar, svg.lines { min-width: 32rem; } details details { margin-left: .4rem; } }
";

/// The page of some runs; of several, how each differs from the first.
pub fn page(runs: &[Run]) -> String {
    let names: Vec<String> = runs.iter().map(|run| escape(&run.name)).collect();
    let mut out = String::new();
    out += "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
    out += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n";
    out += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    let title = match &names[..] {
        [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
        names => names.concat(),
    };
    out +=
        &format!("<title>Evaluation of {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n");
    out += &format!("<h1>Evaluation of {title}</h1>\n<nav>");
    for (number, eval) in evals(runs).iter().enumerate() {
        out += &format!("<a href=\"#e{number}\">{}</a>", escape(eval));
    }
    out += "<a href=\"#from\">where it comes from</a></nav>\n";
    if runs.len() > 1 {
        out += &format!(
            "<p class=\"i\">A number with a sign is the difference from {}, coloured where the two 95 % intervals do not touch.</p>\n",
            names[0]
        );
    }
    overview(&mut out, runs);
    for (number, eval) in evals(runs).into_iter().enumerate() {
        out += &format!("<h2 id=\"e{number}\">{}</h2>\n", escape(eval));
        table(&mut out, runs, &names, eval);
        figures_of(&mut out, runs, eval);
        cases(&mut out, runs, &names, eval);
    }
    provenance(&mut out, runs, &names);
    out += "</body>\n</html>\n";
    out
}

/// All shares of which more is better on one chart, but for those that compare models within one evaluation; where they are more than
/// a chart holds, the first ones of each evaluation.
fn overview(out: &mut String, runs: &[Run]) {
    // Its place within its evaluation, what it is called, and its value in each run.
    let mut axes: Vec<(usize, String, Vec<Option<f64>>)> = Vec::new();
    for eval in evals(runs) {
        let kind = eval.split('-').next().unwrap_or(eval);
        if ["pairwise", "grades", "reject"].contains(&kind) {
            continue;
        }
        let mut place = 0;
        for (label, metrics) in lined_up(runs, eval) {
            let share = |metric: &Metric| metric.percent && metric.value.is_finite();
            let more = metrics
                .iter()
                .flatten()
                .all(|metric| share(metric) && metric.more);
            let violations = kind == "safety" && label.starts_with("violation");
            let compared = kind == "safety" && label.starts_with("safety preference");
            if compared || !(more || violations) {
                continue;
            }
            let name = match kind {
                "safety" if violations => "no violation".to_owned(),
                "safety" => label,
                _ => format!("{eval}: {label}"),
            };
            let turned = |metric: &Metric| match more {
                true => metric.value,
                false => 100.0 - metric.value,
            };
            let values = metrics.iter().map(|metric| metric.as_ref().map(turned));
            axes.push((place, name, values.collect()));
            place += 1;
        }
    }
    while axes.len() > *figures::AXES.end() {
        let last = axes.iter().map(|(place, ..)| *place).max();
        if last == Some(0) {
            break; // more evaluations than axes
        }
        axes.retain(|(place, ..)| Some(*place) != last);
    }
    let series: Vec<figures::Series> = runs
        .iter()
        .enumerate()
        .map(|(run, of)| {
            let values = axes.iter().map(|(_, _, values)| values[run]);
            (&of.name[..], values.collect())
        })
        .collect();
    let axes: Vec<String> = axes.iter().map(|(_, name, _)| name.clone()).collect();
    let what = "Shares of all evaluations, 0 to 100 per cent, outwards is better";
    let chart = figures::radar(what, &axes, &series);
    if !chart.is_empty() {
        *out += &format!(
            "<h2>At a glance</h2>\n{chart}<p class=\"i\">Per cent; outwards is better. The tables below have the numbers.</p>\n"
        );
    }
}

/// What an evaluation shows beside its table.
fn figures_of(out: &mut String, runs: &[Run], eval: &str) {
    let kind = eval.split('-').next().unwrap_or(eval);
    let with: Vec<(&Run, &Value)> = runs
        .iter()
        .filter_map(|run| Some((run, &run.records.get(eval)?.scores)))
        .collect();
    let title = |run: &Run, what: &str| match with.len() {
        1 => what.to_owned(),
        _ => format!("{}: {what}", run.name),
    };
    match kind {
        "pairwise" => {
            for (run, scores) in &with {
                *out += &figures::outcomes(&pairs_of(run, scores, with.len() > 1));
                *out += &by_category(&title(run, "win rate by category, per cent"), scores);
            }
        }
        "safety" => {
            for (run, scores) in &with {
                *out += &figures::outcomes(&pairs_of(run, &scores["preference"], with.len() > 1));
            }
        }
        "needle" => {
            for (run, scores) in &with {
                *out += &needle(&title(run, "found, by depth and length"), scores);
            }
        }
        "positions" => {
            let series: Vec<(&str, Vec<figures::Point>)> = with
                .iter()
                .map(|(run, scores)| (&run.name[..], positions(scores)))
                .collect();
            *out += &figures::lines("Perplexity by position, lower is better", &series);
        }
        _ => {}
    }
}

/// Wins, ties and losses of the second of each pair against the first.
fn pairs_of(run: &Run, scores: &Value, named: bool) -> Vec<(String, [f64; 3])> {
    let pairs = scores["pairs"].as_array().into_iter().flatten();
    let pair = |of: &Value| {
        let (first, second) = (of["first"].as_str()?, of["second"].as_str()?);
        let shares = [
            of["win"].as_f64()?,
            of["tie"].as_f64()?,
            of["loss"].as_f64()?,
        ];
        let whose = if named {
            format!("{}: ", run.name)
        } else {
            String::new()
        };
        Some((format!("{whose}{second} against {first}"), shares))
    };
    pairs.filter_map(pair).collect()
}

/// The win rate of each model in each category: a chart where there are some, and the numbers.
fn by_category(title: &str, scores: &Value) -> String {
    let categories: Vec<(&String, &Value)> = scores["categories"]
        .as_object()
        .into_iter()
        .flatten()
        .collect();
    let axes: Vec<String> = categories.iter().map(|(name, _)| (*name).clone()).collect();
    let mut models: Vec<&String> = Vec::new();
    for name in categories
        .iter()
        .flat_map(|(_, of)| of.as_object().into_iter().flatten())
    {
        if !models.contains(&name.0) {
            models.push(name.0);
        }
    }
    if models.is_empty() {
        return String::new();
    }
    let rate = |category: &Value, model: &str| category.get(model)?.get("win_rate")?.as_f64();
    let rates = |model: &str| categories.iter().map(|(_, of)| rate(of, model)).collect();
    let series: Vec<figures::Series> = models
        .iter()
        .map(|model| (&model[..], rates(model)))
        .collect();
    let mut out = figures::radar(title, &axes, &series);
    let down: Vec<(String, Vec<Option<f64>>)> = categories
        .iter()
        .map(|(name, of)| {
            let shares = models.iter().map(|model| Some(rate(of, model)? / 100.0));
            ((*name).clone(), shares.collect())
        })
        .collect();
    let across: Vec<String> = models.into_iter().cloned().collect();
    let table = figures::grid(title, "category", &across, &down);
    out += &format!(
        "<details><summary>{}</summary>\n{table}</details>\n",
        escape(title)
    );
    out
}

fn needle(title: &str, scores: &Value) -> String {
    let lengths: Vec<&Value> = scores["lengths"].as_array().into_iter().flatten().collect();
    let across: Vec<String> = lengths
        .iter()
        .map(|of| format!("{} tokens", of["length"]))
        .collect();
    let depths = |of: &Value| -> Vec<(f64, Option<f64>)> {
        let all = of["depths"].as_array().into_iter().flatten();
        all.filter_map(|of| Some((of["depth"].as_f64()?, of["found"]["accuracy"].as_f64())))
            .collect()
    };
    let of_lengths: Vec<Vec<(f64, Option<f64>)>> = lengths.iter().map(|of| depths(of)).collect();
    let Some(first) = of_lengths.first().filter(|depths| !depths.is_empty()) else {
        return String::new();
    };
    let row = |(place, (depth, _)): (usize, &(f64, Option<f64>))| {
        let of = |depths: &Vec<(f64, Option<f64>)>| depths.get(place)?.1;
        (
            format!("{:.0} %", 100.0 * depth),
            of_lengths.iter().map(of).collect(),
        )
    };
    let down: Vec<(String, Vec<Option<f64>>)> = first.iter().enumerate().map(row).collect();
    figures::grid(title, "depth", &across, &down)
}

/// The middle of each bucket with its perplexity and the interval of that.
fn positions(scores: &Value) -> Vec<figures::Point> {
    let all = scores["positions"].as_array().into_iter().flatten();
    let point = |of: &Value| {
        let middle = (of["from"].as_f64()? + of["to"].as_f64()?) / 2.0;
        let nats = of["nats"].as_f64();
        let interval = nats.zip(of["standard_error"].as_f64());
        let interval =
            interval.map(|(nats, error)| [-1.96, 1.96].map(|by| libm::exp(nats + by * error)));
        Some((middle, of["perplexity"].as_f64()?, interval))
    };
    all.filter_map(point).collect()
}

fn table(out: &mut String, runs: &[Run], names: &[String], eval: &str) {
    *out += "<div class=\"scroll\"><table>\n<tr><th></th>";
    for name in names {
        *out += &format!("<th class=\"n\">{name}</th><th></th>");
    }
    *out += "</tr>\n";
    for (label, metrics) in lined_up(runs, eval) {
        *out += &format!("<tr><td>{}</td>", escape(&label));
        for (number, metric) in metrics.iter().enumerate() {
            let change = match number {
                0 => String::new(),
                _ => difference(metrics[0].as_ref(), metric.as_ref()),
            };
            match metric {
                None => *out += "<td class=\"n\">–</td><td></td>",
                Some(metric) => {
                    *out += &format!(
                        "<td class=\"n\">{}</td><td>{}{change}</td>",
                        value(metric),
                        bar(metric)
                    );
                }
            }
        }
        *out += "</tr>\n";
    }
    *out += "</table></div>\n";
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
        "<svg class=\"bar\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{:.1} %\"><rect width=\"100\" height=\"10\" fill=\"var(--soft)\"/>\
         <rect width=\"{:.2}\" height=\"10\" fill=\"var(--bar)\"/>{whisker}</svg>",
        metric.value,
        at(metric.value)
    )
}

/// The second less the first; coloured where their intervals do not touch.
fn difference(one: Option<&Metric>, two: Option<&Metric>) -> String {
    let (Some(one), Some(two)) = (one, two) else {
        return String::new();
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

/// One row of an evaluation as every run has it: of each the cases of that name and prompt.
type Line<'a> = ((&'a str, &'a str), Vec<Vec<&'a Case>>);

/// Each row behind a click: of one run by itself, of several side by side, what a run has gained and lost against the first one
/// before all.
fn cases(out: &mut String, runs: &[Run], names: &[String], eval: &str) {
    let none = Vec::new();
    let all: Vec<&Vec<Case>> = runs
        .iter()
        .map(|run| run.cases.get(eval).unwrap_or(&none))
        .collect();
    // In the order of the first run that has a row.
    let mut lines: Vec<Line> = Vec::new();
    let mut places: std::collections::HashMap<(&str, &str), usize> =
        std::collections::HashMap::new();
    for (run, cases) in all.iter().enumerate() {
        for case in cases.iter() {
            let key = (case.name.as_str(), case.prompt.as_str());
            let place = *places.entry(key).or_insert_with(|| {
                lines.push((key, vec![Vec::new(); runs.len()]));
                lines.len() - 1
            });
            lines[place].1[run].push(case);
        }
    }
    if lines.is_empty() {
        return;
    }
    let wrong = |(_, cases): &&Line| {
        cases
            .iter()
            .flatten()
            .any(|case| case.passed == Some(false))
    };
    let failed = lines.iter().filter(wrong).count();
    for run in 1..runs.len() {
        // Of the first run and of this one: whether all that it answered to the row was right.
        let both = |(_, cases): &Line| right(&cases[0]).zip(right(&cases[run]));
        let turned = |now: bool| -> Vec<&Line> {
            lines
                .iter()
                .filter(|line| both(line) == Some((!now, now)))
                .collect()
        };
        let (gained, lost) = (turned(true), turned(false));
        let compared = lines.iter().filter(|line| both(line).is_some()).count();
        if compared == 0 {
            continue;
        }
        *out += &format!(
            "<p>Of {compared} rows that {0} and {1} both have, {1} has {2} right that {0} has wrong, and {3} wrong that {0} has right; \
             by chance alone they would be as far apart in {4} of such runs.</p>\n",
            names[0],
            names[run],
            gained.len(),
            lost.len(),
            percent(coin(gained.len(), lost.len()))
        );
        for (what, some) in [("right now", gained), ("wrong now", lost)] {
            if !some.is_empty() {
                let title = format!(
                    "{} rows that {} has {what}, against {}",
                    some.len(),
                    names[run],
                    names[0]
                );
                rows(out, &title, &some, runs, names);
            }
        }
    }
    let title = format!(
        "{} rows, {failed} of them with something wrong",
        lines.len()
    );
    rows(out, &title, &lines.iter().collect::<Vec<_>>(), runs, names);
}

/// Whether all cases are right; none where there are none, or one is neither right nor wrong.
fn right(cases: &[&Case]) -> Option<bool> {
    let each: Option<Vec<bool>> = cases.iter().map(|case| case.passed).collect();
    each.filter(|each| !each.is_empty())
        .map(|each| each.iter().all(|right| *right))
}

/// How likely a fair coin, thrown as often as rows changed, falls at least so unevenly: the sign test, of both sides.
fn coin(one: usize, two: usize) -> f64 {
    let (throws, few) = (one + two, one.min(two));
    // C(n, k) / 2^n by logarithms: 2^n itself has no f64 from 1,024 throws on.
    let mut log = -(throws as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=few {
        tail += libm::exp(log);
        log += libm::log((throws - k) as f64 / (k + 1) as f64);
    }
    (2.0 * tail).min(1.0)
}

fn percent(share: f64) -> String {
    match 100.0 * share {
        share if share < 0.1 => "less than 0.1 %".to_owned(),
        share => format!("{share:.1} %"),
    }
}

/// Rows of which each opens by a click.
fn rows(out: &mut String, title: &str, lines: &[&Line], runs: &[Run], names: &[String]) {
    *out += &format!("<details><summary>{title}</summary>\n");
    if lines.len() > ROWS {
        *out += &format!("<p>The first {ROWS} are shown.</p>\n");
    }
    for ((name, prompt), cases) in lines.iter().take(ROWS) {
        let marks: String = cases.iter().map(|of_run| mark(of_run)).collect();
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
    *out += "<h2 id=\"from\">Where it comes from</h2>\n<div class=\"scroll\"><table>\n<tr><th>run</th><th>evaluation</th><th>read</th><th>settings</th><th>program</th></tr>\n";
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
    *out += "</table></div>\n";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_test_is_the_textbooks() {
        assert_eq!(coin(0, 0), 1.0);
        assert_eq!(coin(3, 3), 1.0);
        // Eight of nine: 2 · (1 + 9) / 512.
        assert!((coin(8, 1) - 20.0 / 512.0).abs() < 1e-12);
        assert!((coin(1, 8) - 20.0 / 512.0).abs() < 1e-12);
        // Far beyond what 2^n can be.
        assert!((0.9..=1.0).contains(&coin(1000, 1002)) && coin(1500, 500) < 1e-100);
    }
}
