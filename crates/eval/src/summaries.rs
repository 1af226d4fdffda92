//! Summaries: ROUGE, graders' verdicts as AFM counted them, and whether a summary says more of what is sensitive than its source.
//!
//! ```text
//! ROUGE-n      n-grams that reference and response share, over those of the response (precision) and of the reference (recall)
//! ROUGE-L      the same of the longest common subsequence                                  f = 2 p r / (p + r)
//! good         all five dimensions of a grade are good             poor     one of them is poor
//! amplified    of a category of sensitive words the summary has more than its source
//! ```
//! ROUGE is that of the package rouge_score without stemming: small letters, runs of `a`-`z` and digits as words, of several
//! references the one with the largest f. AFM's figures are of 750 responses a use case; `amplified` stands for its targeted
//! examples, counted by words and not by people.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::rows::{Row, read_named, read_rows, short};
use crate::{Error, Result, sensitive, stats};

/// Precision, recall and their harmonic mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rouge {
    /// Of the response.
    pub precision: f64,
    /// Of the reference.
    pub recall: f64,
    /// 2 p r / (p + r).
    pub f: f64,
}

impl Rouge {
    fn new(shared: usize, response: usize, reference: usize) -> Rouge {
        let precision = shared as f64 / response.max(1) as f64;
        let recall = shared as f64 / reference.max(1) as f64;
        let sum = precision + recall;
        Rouge {
            precision,
            recall,
            f: if sum > 0.0 {
                2.0 * precision * recall / sum
            } else {
                0.0
            },
        }
    }
}

/// ROUGE-1, -2 and -L of one response.
pub fn rouge(references: &[String], response: &str) -> [Rouge; 3] {
    let mut known = HashMap::new();
    let response = words(response, &mut known);
    let of = |reference: &String| {
        let reference = words(reference, &mut known);
        [
            ngrams(&reference, &response, 1),
            ngrams(&reference, &response, 2),
            Rouge::new(
                common(&reference, &response),
                response.len(),
                reference.len(),
            ),
        ]
    };
    let all: Vec<[Rouge; 3]> = references.iter().map(of).collect();
    std::array::from_fn(|kind| {
        // The first of the best, as numpy's argmax.
        let mut best = Rouge::default();
        for (place, rouges) in all.iter().enumerate() {
            if place == 0 || rouges[kind].f > best.f {
                best = rouges[kind];
            }
        }
        best
    })
}

/// Words as numbers, the same for the same.
fn words(text: &str, known: &mut HashMap<String, u32>) -> Vec<u32> {
    let text = text.to_lowercase();
    text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()))
        .filter(|word| !word.is_empty())
        .map(|word| {
            let next = known.len() as u32;
            *known.entry(word.to_owned()).or_insert(next)
        })
        .collect()
}

fn ngrams(reference: &[u32], response: &[u32], n: usize) -> Rouge {
    let mut counts: HashMap<&[u32], usize> = HashMap::new();
    for ngram in reference.windows(n) {
        *counts.entry(ngram).or_default() += 1;
    }
    let mut shared = 0;
    for ngram in response.windows(n) {
        if let Some(count) = counts.get_mut(ngram).filter(|count| **count > 0) {
            *count -= 1;
            shared += 1;
        }
    }
    let of = |words: &[u32]| (words.len() + 1).saturating_sub(n);
    Rouge::new(shared, of(response), of(reference))
}

/// The length of the longest common subsequence, 64 places at a time: of each word of one text all places of the other (Hyyrö, "Bit-parallel
/// LCS-length computation revisited", 2004). Two texts of 100,000 words take a tenth of a second, where cell by cell it is minutes.
fn common(one: &[u32], two: &[u32]) -> usize {
    let mut places: HashMap<u32, Vec<usize>> = HashMap::new();
    for (place, word) in two.iter().enumerate() {
        places.entry(*word).or_default().push(place);
    }
    let blocks = two.len().div_ceil(64);
    // A zero where the length grows.
    let (mut row, mut met) = (vec![u64::MAX; blocks], vec![0u64; blocks]);
    for word in one {
        let Some(places) = places.get(word) else {
            continue;
        };
        for place in places {
            met[place / 64] |= 1 << (place % 64);
        }
        let mut carry = false;
        for (row, met) in row.iter_mut().zip(&mut met) {
            let both = *row & *met;
            let (sum, first) = row.overflowing_add(both);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            carry = first || second;
            *row = sum | (*row & !both);
            *met = 0;
        }
    }
    let ones = row.iter().map(|block| block.count_ones() as usize);
    64 * blocks - ones.sum::<usize>()
}

/// The use case of texts that touch on what is sensitive, by which amplification is tested.
pub const SENSITIVE: &str = "sensitive";

/// A text to be summarised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SummaryTask {
    /// What tells it apart.
    pub id: String,
    /// The text.
    pub source: String,
    /// What a good summary says; may be none.
    pub references: Vec<String>,
    /// What the summary is for: `email`, `message`, `notification`.
    pub use_case: Option<String>,
}

/// Means over summaries.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SummaryScores {
    /// ROUGE-1, where there are references.
    pub rouge1: Option<Rouge>,
    /// ROUGE-2.
    pub rouge2: Option<Rouge>,
    /// ROUGE-L.
    pub rouge_l: Option<Rouge>,
    /// Share of summaries that amplify what is sensitive.
    pub amplified: f64,
    /// Its interval.
    pub amplified_ci: Option<[f64; 2]>,
    /// Words of the summaries over words of their sources.
    pub compression: f64,
    /// Summaries.
    pub n: usize,
    /// Of these the ones with a reference, which ROUGE is a mean over.
    pub references: usize,
}

/// Reads rows of `id`, `source` and, where there are any, `reference` or `references` and `use_case`.
///
/// # Errors
/// When the file cannot be read, a row is malformed or has an earlier row's id.
pub fn read_summaries(path: &Path) -> Result<Vec<SummaryTask>> {
    read_named(
        path,
        ("texts", "id"),
        |task: &SummaryTask| &task.id,
        |row| {
            let references: Vec<String> = match row.get("references") {
                None => row
                    .text_or_none("reference")?
                    .map(str::to_owned)
                    .into_iter()
                    .collect(),
                Some(value) => {
                    let all: Option<Vec<String>> = value.as_array().and_then(|all| {
                        all.iter()
                            .map(|one| one.as_str().map(str::to_owned))
                            .collect()
                    });
                    all.ok_or_else(|| {
                        row.wrong(format!(
                            "`references` is {}, but must be a list of strings",
                            short(value)
                        ))
                    })?
                }
            };
            if references.iter().any(|text| text.trim().is_empty()) {
                return Err(row.wrong("a reference of it is empty; leave it out, or write one"));
            }
            Ok(SummaryTask {
                id: row.name(&["id"])?,
                source: row.text("source")?.to_owned(),
                references,
                use_case: row.text_or_none("use_case")?.map(str::to_owned),
            })
        },
    )
}

/// Categories of which a summary has more sensitive words than its source.
pub fn amplifies(source: &str, summary: &str) -> Vec<&'static str> {
    let (before, after) = (sensitive::counts(source), sensitive::counts(summary));
    let more = |(category, count): (&'static str, usize)| {
        (count > before.get(category).copied().unwrap_or(0)).then_some(category)
    };
    after.into_iter().filter_map(more).collect()
}

/// Scores summaries; none where there is none, which does not count.
pub fn score_summaries<'a>(
    pairs: impl IntoIterator<Item = (&'a SummaryTask, Option<&'a str>)>,
) -> SummaryScores {
    let (mut rouges, mut amplified) = (Vec::new(), Vec::new());
    let (mut long, mut short) = (0usize, 0usize);
    for (task, summary) in pairs {
        let Some(summary) = summary else {
            continue;
        };
        if !task.references.is_empty() {
            rouges.push(rouge(&task.references, summary));
        }
        amplified.push(f64::from(u8::from(
            !amplifies(&task.source, summary).is_empty(),
        )));
        long += task.source.split_whitespace().count();
        short += summary.split_whitespace().count();
    }
    let mean = |kind: usize| {
        let of = |part: fn(&Rouge) -> f64| {
            stats::mean(
                &rouges
                    .iter()
                    .map(|all| part(&all[kind]))
                    .collect::<Vec<_>>(),
            )
        };
        (!rouges.is_empty()).then(|| Rouge {
            precision: of(|rouge| rouge.precision),
            recall: of(|rouge| rouge.recall),
            f: of(|rouge| rouge.f),
        })
    };
    SummaryScores {
        rouge1: mean(0),
        rouge2: mean(1),
        rouge_l: mean(2),
        amplified: stats::mean(&amplified),
        amplified_ci: stats::mean_interval(&amplified, 1000, 0),
        compression: short as f64 / long.max(1) as f64,
        n: amplified.len(),
        references: rouges.len(),
    }
}

/// How graders found summaries of one use case or of all, in per cent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GradeScores {
    /// All five dimensions good.
    pub good: f64,
    /// The middle 95 % of resampled summaries, whose grades come together; none of one.
    pub good_ci: Option<[f64; 2]>,
    /// One dimension poor, or more.
    pub poor: f64,
    /// Of it.
    pub poor_ci: Option<[f64; 2]>,
    /// By dimension: share of good and of poor.
    pub dimensions: BTreeMap<String, [f64; 2]>,
    /// Grades.
    pub n: usize,
    /// Summaries that were graded.
    pub summaries: usize,
}

/// One grader's verdict on one summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grade {
    /// Of which summary.
    pub id: String,
    /// Of which model.
    pub model: String,
    /// What the summary is for.
    pub use_case: String,
    /// Each dimension: −1 poor, 0 neutral, 1 good.
    pub dimensions: BTreeMap<String, i8>,
}

/// Reads rows of `id`, `grades` {DIMENSION: `good`, `neutral`, `poor`} of five dimensions, the same in each row, and, where
/// there are several, `use_case`,
/// `model`, `grader`.
///
/// # Errors
/// When the file cannot be read, a row is malformed, or a grader has graded the same summary before.
pub fn read_grades(path: &Path) -> Result<Vec<Grade>> {
    grades_of(path, &read_rows(path)?)
}

/// The same of rows that were read, or that a file of this name will have.
pub(crate) fn grades_of(path: &Path, rows: &[Row]) -> Result<Vec<Grade>> {
    let mut grades: Vec<Grade> = Vec::new();
    let mut seen = HashMap::new();
    for row in rows {
        let value = row.need("grades")?;
        let wrong = || {
            row.wrong(format!(
                "`grades` is {}, but must be five dimensions, each `good`, `neutral` or `poor`",
                short(value)
            ))
        };
        let level = |(name, level): (&String, &Value)| {
            let level = match level.as_str()? {
                "good" => 1,
                "neutral" => 0,
                "poor" => -1,
                _ => return None,
            };
            Some((name.clone(), level))
        };
        let dimensions: Option<BTreeMap<String, i8>> = value
            .as_object()
            .ok_or_else(wrong)?
            .iter()
            .map(level)
            .collect();
        let dimensions = dimensions.filter(|all| all.len() == 5).ok_or_else(wrong)?;
        if grades
            .first()
            .is_some_and(|first| !first.dimensions.keys().eq(dimensions.keys()))
        {
            return Err(row.wrong(
                "its dimensions are others than the first row's; grade all by the same five",
            ));
        }
        let part = |key: &str| -> Result<String> {
            Ok(row.text_or_none(key)?.unwrap_or("all").to_owned())
        };
        let grade = Grade {
            id: row.name(&["id"])?,
            model: part("model")?,
            use_case: part("use_case")?,
            dimensions,
        };
        let key = (grade.id.clone(), grade.model.clone(), part("grader")?);
        if let Some(line) = seen.insert(key, row.line) {
            return Err(row.wrong(format!(
                "this grader has graded this summary on line {line}; keep one"
            )));
        }
        grades.push(grade);
    }
    match grades.is_empty() {
        true => Err(Error::NoRows {
            path: path.to_path_buf(),
            what: "grades",
        }),
        false => Ok(grades),
    }
}

/// Good and poor rates by model and use case; `all` is of all use cases.
pub fn score_grades(grades: &[Grade]) -> BTreeMap<String, BTreeMap<String, GradeScores>> {
    let mut sorted: BTreeMap<&str, BTreeMap<&str, Vec<&Grade>>> = BTreeMap::new();
    for grade in grades {
        let of_model = sorted.entry(&grade.model).or_default();
        of_model.entry("all").or_default().push(grade);
        if grade.use_case != "all" {
            of_model.entry(&grade.use_case).or_default().push(grade);
        }
    }
    let scores = |grades: &Vec<&Grade>| {
        let share = |is: &dyn Fn(&Grade) -> bool| -> Vec<f64> {
            let all = grades.iter();
            all.map(|grade| if is(grade) { 100.0 } else { 0.0 })
                .collect()
        };
        let good = share(&|grade| grade.dimensions.values().all(|level| *level == 1));
        let poor = share(&|grade| grade.dimensions.values().any(|level| *level == -1));
        let names = grades[0].dimensions.keys();
        // Graders of one summary mostly agree: it is summaries that would be others another time.
        let mut of_summaries: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (place, grade) in grades.iter().enumerate() {
            of_summaries.entry(&grade.id).or_default().push(place);
        }
        let clusters: Vec<Vec<usize>> = of_summaries.into_values().collect();
        GradeScores {
            good: stats::mean(&good),
            good_ci: stats::cluster_interval(&good, &clusters, 1000, 0),
            poor: stats::mean(&poor),
            poor_ci: stats::cluster_interval(&poor, &clusters, 1000, 0),
            dimensions: names
                .map(|name| {
                    let of =
                        |wanted: i8| stats::mean(&share(&|grade| grade.dimensions[name] == wanted));
                    (name.clone(), [of(1), of(-1)])
                })
                .collect(),
            n: grades.len(),
            summaries: clusters.len(),
        }
    };
    sorted
        .into_iter()
        .map(|(model, cases)| {
            let cases = cases
                .iter()
                .map(|(case, grades)| ((*case).to_owned(), scores(grades)));
            (model.to_owned(), cases.collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use russet_kernels::random;

    /// The table, cell by cell.
    fn plainly(one: &[u32], two: &[u32]) -> usize {
        let mut row = vec![0; two.len() + 1];
        for word in one {
            let mut diagonal = 0;
            for (j, other) in two.iter().enumerate() {
                let above = row[j + 1];
                row[j + 1] = match word == other {
                    true => diagonal + 1,
                    false => above.max(row[j]),
                };
                diagonal = above;
            }
        }
        row[two.len()]
    }

    #[test]
    fn the_longest_common_subsequence_is_the_tables() {
        for round in 0..600 {
            let draw = |at, of| random::below(3, round, at, of);
            let kinds = 1 + draw(0, 12);
            let [one, two] = [1, 2].map(|side| -> Vec<u32> {
                let length = draw(side, 200);
                let words = (0..length).map(|at| draw(10 + 2 * at + side, kinds) as u32);
                words.collect()
            });
            assert_eq!(common(&one, &two), plainly(&one, &two), "{one:?} {two:?}");
        }
        let long: Vec<u32> = (0..50_000).map(|at| at % 7).collect();
        assert_eq!(common(&long, &long[1..]), 49_999);
    }
}
