//! Which numbers of an evaluation's scores a report shows.

use serde_json::Value;

/// A number with its interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// What it is.
    pub label: String,
    /// The number.
    pub value: f64,
    /// Its 95 % interval, where it is known.
    pub interval: Option<[f64; 2]>,
    /// Whether it is in per cent, and a bar of 0 to 100 shows it.
    pub percent: bool,
    /// Whether more is better.
    pub more: bool,
}

/// Two standard errors, to 95 %.
const SIGMAS: f64 = 1.96;

fn pair(value: &Value) -> Option<[f64; 2]> {
    Some([value.get(0)?.as_f64()?, value.get(1)?.as_f64()?])
}

/// A share from 0 to 1, as per cent, with its standard error.
fn share(label: &str, scores: &Value, key: &str, error: &str) -> Option<Metric> {
    let share = Metric {
        label: label.to_owned(),
        value: 100.0 * scores.get(key)?.as_f64()?,
        interval: None,
        percent: true,
        more: true,
    };
    Some(match scores.get(error).and_then(Value::as_f64) {
        Some(error) => about(share, error),
        None => share,
    })
}

/// A number as it is.
fn plain(label: String, value: &Value, interval: Option<&Value>) -> Option<Metric> {
    Some(Metric {
        label,
        value: value.as_f64()?,
        interval: interval.and_then(pair),
        percent: false,
        more: true,
    })
}

fn less(metric: Metric) -> Metric {
    Metric {
        more: false,
        ..metric
    }
}

fn percent(metric: Metric) -> Metric {
    Metric {
        percent: true,
        ..metric
    }
}

/// The numbers of an evaluation that a report shows; of one that is not known here, all at the top.
pub fn metrics(eval: &str, scores: &Value) -> Vec<Metric> {
    let kind = eval.split('-').next().unwrap_or(eval);
    let found: Vec<Option<Metric>> = match kind {
        "pairwise" => pairwise(scores),
        "reject" => committee(scores),
        "choice" => vec![
            share("right", scores, "acc", "acc_stderr"),
            share("right by bytes", scores, "acc_norm", "acc_norm_stderr"),
        ],
        "math" => vec![
            share("right behind ####", scores, "strict", "strict_stderr"),
            share(
                "right by the last number",
                scores,
                "flexible",
                "flexible_stderr",
            ),
        ],
        "code" => vec![
            share("pass@1", scores, "pass_at_1", "pass_at_1_stderr"),
            share("pass@10", scores, "pass_at_10", "none"),
        ],
        "perplexity" => vec![
            plain("perplexity".to_owned(), &scores["perplexity"], None).map(less),
            plain("bits per byte".to_owned(), &scores["bits_per_byte"], None).map(less),
            plain(
                "divergence from the reference".to_owned(),
                &scores["kld"],
                None,
            )
            .map(less),
        ],
        "calls" => vec![share("right", scores, "accuracy", "standard_error")],
        "needle" => {
            let of = |label: String, one: &Value| {
                let metric = share(&label, &one["found"], "accuracy", "none")?;
                let error = one.get("accuracy_stderr").and_then(Value::as_f64);
                Some(match error {
                    Some(error) => about(metric, error),
                    None => metric,
                })
            };
            let lengths = scores["lengths"].as_array().into_iter().flatten();
            let lengths = lengths.map(|one| of(format!("found in {} tokens", one["length"]), one));
            std::iter::once(of("found".to_owned(), scores))
                .chain(lengths)
                .collect()
        }
        "slots" => vec![
            within(share("F1", scores, "f1", "none"), scores.get("f1_ci")),
            share("all right", scores, "exact", "exact_stderr"),
        ],
        // In the order of the figures of 2024: instructions before prompts.
        "ifeval" => [
            "instruction_strict",
            "prompt_strict",
            "instruction_loose",
            "prompt_loose",
        ]
        .map(|key| {
            let metric = share(&key.replace('_', ", "), scores, key, "none");
            within(metric, scores["ci"].get(key))
        })
        .into(),
        "summaries" => summaries("", scores)
            .into_iter()
            .chain(
                models_of(scores, "use_cases")
                    .flat_map(|(case, of)| summaries(&format!("{case}: "), of)),
            )
            .collect(),
        "grades" => grades(scores),
        "safety" => safety(scores),
        "positions" => {
            let all = scores["positions"].as_array().into_iter().flatten();
            let of = |of: &Value| {
                let label = format!("perplexity at {} to {}", of["from"], of["to"]);
                plain(label, &of["perplexity"], None).map(less)
            };
            all.map(of).collect()
        }
        _ => {
            let all = scores.as_object().into_iter().flatten();
            all.map(|(key, value)| plain(key.replace('_', " "), value, None))
                .collect()
        }
    };
    found.into_iter().flatten().collect()
}

/// A share with an interval from 0 to 1.
fn within(metric: Option<Metric>, ci: Option<&Value>) -> Option<Metric> {
    let ci = ci.and_then(pair).map(|ci| ci.map(|end| 100.0 * end));
    metric.map(|metric| Metric {
        interval: ci.or(metric.interval),
        ..metric
    })
}

/// A share with its standard error, from 0 to 1.
fn about(metric: Metric, error: f64) -> Metric {
    let (value, wide) = (metric.value, 100.0 * SIGMAS * error);
    Metric {
        interval: Some([(value - wide).max(0.0), (value + wide).min(100.0)]),
        ..metric
    }
}

/// Of all summaries, or of those of a use case.
fn summaries(whose: &str, scores: &Value) -> Vec<Option<Metric>> {
    let rouge =
        |label: &str, key: &str| plain(format!("{whose}{label}"), scores.get(key)?.get("f")?, None);
    let label = format!("{whose}amplify what is sensitive");
    let amplified = share(&label, scores, "amplified", "none").map(less);
    vec![
        rouge("ROUGE-1", "rouge1"),
        rouge("ROUGE-2", "rouge2"),
        rouge("ROUGE-L", "rouge_l"),
        within(amplified, scores.get("amplified_ci")),
    ]
}

fn models(scores: &Value) -> impl Iterator<Item = (&String, &Value)> {
    models_of(scores, "models")
}

fn models_of<'a>(scores: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    scores[key].as_object().into_iter().flatten()
}

fn pairwise(scores: &Value) -> Vec<Option<Metric>> {
    let of = |(name, of): (&String, &Value)| {
        let rate = |what: &str, key: &str| {
            let metric = plain(
                format!("{name}: {what}"),
                of.get(key)?,
                of.get(format!("{key}_ci")),
            )?;
            Some(percent(metric))
        };
        [
            rate("win rate", "win_rate"),
            rate("wins", "win"),
            rate("ties", "tie"),
            rate("losses", "loss").map(less),
            rate("win rate, length-controlled", "length_controlled_win_rate"),
            plain(format!("{name}: Bradley-Terry"), &of["bt"], of.get("ci")),
            plain(format!("{name}: Elo"), &of["elo"], of.get("elo_ci")),
        ]
    };
    models(scores).flat_map(of).collect()
}

/// Of each member of a committee: what it drew, what was kept of it, and how it fared beside the others.
fn committee(scores: &Value) -> Vec<Option<Metric>> {
    let share = |label: String, count: &Value, all: &Value| {
        let share = 100.0 * count.as_f64()? / all.as_f64()?.max(1.0);
        plain(label, &share.into(), None).map(percent)
    };
    let of = |(name, of): (&String, &Value)| {
        let number = |what: &str, key: &str| {
            plain(
                format!("{name}: {what}"),
                of.get(key)?,
                of.get(format!("{key}_ci")),
            )
        };
        let kept = format!("{name}: {} of {} answers kept", of["kept"], of["answers"]);
        [
            share(kept, &of["kept"], &of["answers"]),
            number("prompts won", "won_share").map(percent),
            number("win rate against the others", "win_rate").map(percent),
            number("Bradley-Terry", "bt"),
            number("mean score", "mean_score"),
        ]
    };
    let dropped = scores["dropped"].as_object().into_iter().flatten();
    let dropped = dropped.map(|(why, count)| {
        let label = format!("dropped: {}, {count} answers", why.replace('_', " "));
        share(label, count, &scores["answers"]).map(less)
    });
    models_of(scores, "members")
        .flat_map(of)
        .chain(dropped)
        .collect()
}

fn grades(scores: &Value) -> Vec<Option<Metric>> {
    let mut all = Vec::new();
    for (model, cases) in models(scores) {
        for (case, of) in cases.as_object().into_iter().flatten() {
            let rate = |what: &str| {
                let label = format!("{model}, {case}: {what}");
                plain(label, of.get(what)?, of.get(format!("{what}_ci"))).map(percent)
            };
            all.push(rate("good"));
            all.push(rate("poor").map(less));
        }
    }
    all
}

/// In the form of the figures of 2024: violations, then who is preferred on safety prompts.
fn safety(scores: &Value) -> Vec<Option<Metric>> {
    let rate = |label: &str, key: &str| {
        let of = scores.get(key)?;
        plain(label.to_owned(), of.get("rate")?, of.get("ci")).map(percent)
    };
    let mut all = vec![
        rate("violation rate on adversarial prompts", "violation").map(less),
        rate("refusals of safe prompts", "over_refusal").map(less),
        rate("safe prompts answered", "helped"),
        rate("empty responses", "empty").map(less),
    ];
    let preferred = pairwise(&scores["preference"]).into_iter().flatten();
    let kept = preferred.filter(|metric| {
        ["wins", "ties", "losses"]
            .iter()
            .any(|what| metric.label.ends_with(what))
    });
    all.extend(kept.map(|metric| {
        Some(Metric {
            label: format!("safety preference, {}", metric.label),
            ..metric
        })
    }));
    all
}
