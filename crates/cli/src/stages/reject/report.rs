//! What a round leaves: rows to learn from, every answer with what became of it, who beats whom, and a page of all that.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use russet_align::REPORT;
use russet_align::committee::rows::{Provenance, bests, conversation, judgements, preference};
use russet_align::committee::{Candidate, Fate, Plan as Committee, Verdict, pairs};
use russet_artifact::Tool;
use russet_eval::mean_interval;
use russet_eval::pairwise::{Judgements, ModelScores, PairwiseSettings, score};
use russet_eval::report::{Case, FORMAT, Record, Run, html};
use serde_json::{Map, Value, json};

use super::member::{Drawn, MemberSettings};

/// Conversations for `sft`, and preferences for `dpo` and `reward`.
const SFT: &str = "sft.jsonl";
const PAIRS: &str = "pairs.jsonl";
/// The files that later stages may name.
pub const ROWS: [&str; 2] = [SFT, PAIRS];
/// Every answer with its score and its fate.
const CANDIDATES: &str = "candidates.jsonl";
/// Who wins which prompt, for `eval pairwise`.
const JUDGEMENTS: &str = "judgements.jsonl";
const PAGE: &str = "report.html";

/// Answers that the page shows at most; all are in the file of candidates.
const SHOWN: usize = 20_000;
/// Resamplings behind an interval.
const ROUNDS: usize = 200;

/// What there is to report.
pub struct Report<'a> {
    pub name: &'a str,
    pub plan: &'a Committee,
    pub members: &'a [MemberSettings],
    pub drawn: &'a [Drawn],
    /// The answers to each prompt.
    pub prompts: &'a [Vec<Candidate>],
    pub verdicts: &'a [Vec<Verdict>],
    pub settings: &'a Value,
    /// What was read, by its name.
    pub inputs: BTreeMap<String, Value>,
    pub tool: &'a Tool,
}

impl Report<'_> {
    /// Writes all files of the artifact.
    pub fn write(self, draft: &Path) -> Result<()> {
        let put = |name: &str, rows: &[Value]| -> Result<()> {
            let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
            Ok(std::fs::write(draft.join(name), text)?)
        };
        let (sft, preferences) = self.learnt();
        if sft.is_empty() {
            let dropped: Vec<String> = self
                .dropped()
                .iter()
                .map(|(fate, count)| format!("{fate} {count}"))
                .collect();
            bail!(
                "nothing is kept of {} answers ({}); loosen [filter] or [keep], and the same command judges the same answers again",
                self.prompts.iter().map(Vec::len).sum::<usize>(),
                dropped.join(", ")
            );
        }
        put(SFT, &sft)?;
        put(PAIRS, &preferences)?;
        put(CANDIDATES, &self.candidates())?;
        let judged = self.judgements();
        put(JUDGEMENTS, &judged)?;
        let compared = match judged.is_empty() {
            true => BTreeMap::new(),
            false => {
                let settings = PairwiseSettings {
                    rounds: ROUNDS,
                    seed: 0,
                };
                let judgements = Judgements::read(&draft.join(JUDGEMENTS))?;
                score(&judgements, &[], &settings)?.models
            }
        };
        let scores = self.scores(&compared, preferences.len());
        std::fs::write(draft.join(REPORT), format!("{scores:#}\n"))?;
        std::fs::write(draft.join(PAGE), self.page(scores)?)?;
        Ok(())
    }

    fn names(&self) -> Vec<&str> {
        self.members.iter().map(|member| &member.name[..]).collect()
    }

    fn each(&self) -> impl Iterator<Item = (usize, &[Candidate], &[Verdict])> {
        let both = self.prompts.iter().zip(self.verdicts).enumerate();
        both.map(|(number, (candidates, verdicts))| (number, &candidates[..], &verdicts[..]))
    }

    fn provenance(&self, prompt: usize, candidate: &Candidate, verdict: &Verdict) -> Value {
        let (file, line) = self.plan.questions()[prompt].place;
        let file = self.plan.settings().data.prompts[file].file_name();
        let from = Provenance {
            member: &self.members[candidate.member].name,
            file: &file.unwrap_or_default().to_string_lossy(),
            line,
        };
        from.json(candidate, verdict)
    }

    /// Conversations in the prompts' order, the best first; and preferences.
    fn learnt(&self) -> (Vec<Value>, Vec<Value>) {
        let (mut sft, mut preferences) = (Vec::new(), Vec::new());
        for (prompt, candidates, verdicts) in self.each() {
            let question = &self.plan.questions()[prompt];
            let of = |at: usize| self.provenance(prompt, &candidates[at], &verdicts[at]);
            let mut kept: Vec<usize> = (0..candidates.len())
                .filter(|&at| verdicts[at].fate == Fate::Kept)
                .collect();
            kept.sort_by_key(|&at| verdicts[at].rank);
            for at in kept {
                sft.push(conversation(question, &candidates[at].text, of(at)));
            }
            let settings = self.plan.settings();
            for (chosen, rejected) in pairs(candidates, verdicts, &settings.filter, &settings.keep)
            {
                let both = [chosen, rejected];
                let texts = both.map(|at| &candidates[at].text[..]);
                preferences.push(preference(question, texts, both.map(of)));
            }
        }
        (sft, preferences)
    }

    fn candidates(&self) -> Vec<Value> {
        let mut rows = Vec::new();
        for (prompt, candidates, verdicts) in self.each() {
            for (candidate, verdict) in candidates.iter().zip(verdicts) {
                let mut row = self.provenance(prompt, candidate, verdict);
                row["text"] = candidate.text.clone().into();
                row["finished"] = candidate.finished.into();
                row["fate"] = verdict.fate.word().into();
                if let Some(better) = verdict.of {
                    let better = &candidates[better];
                    row["of"] = json!({"member": self.members[better.member].name, "sample": better.sample});
                }
                rows.push(row);
            }
        }
        rows
    }

    fn judgements(&self) -> Vec<Value> {
        let names = self.names();
        let of = |(prompt, candidates, verdicts): (usize, &[Candidate], &[Verdict])| {
            let answered: Vec<bool> = self.drawn.iter().map(|of| of.has(prompt)).collect();
            let question = &self.plan.questions()[prompt];
            judgements(question, candidates, verdicts, &names, &answered)
        };
        self.each().flat_map(of).collect()
    }

    /// How many answers each fate but being kept has met.
    fn dropped(&self) -> BTreeMap<&'static str, usize> {
        let mut dropped = BTreeMap::new();
        for verdict in self.verdicts.iter().flatten() {
            if verdict.fate != Fate::Kept {
                *dropped.entry(verdict.fate.word()).or_default() += 1;
            }
        }
        dropped
    }

    fn scores(&self, compared: &BTreeMap<String, ModelScores>, preferences: usize) -> Value {
        let all = || {
            self.each()
                .flat_map(|(_, candidates, verdicts)| candidates.iter().zip(verdicts))
        };
        let kept = |verdict: &Verdict| verdict.fate == Fate::Kept;
        let mut members = Map::new();
        for (number, member) in self.members.iter().enumerate() {
            let drawn = &self.drawn[number];
            let own = || all().filter(move |(candidate, _)| candidate.member == number);
            let values: Vec<f64> = own().filter_map(|(candidate, _)| candidate.score).collect();
            // Of prompts that it answered and that anybody wins.
            let mut wins = Vec::new();
            for (prompt, candidates, verdicts) in self.each() {
                let bests = bests(candidates, verdicts, self.members.len());
                let rank = |at: &usize| verdicts[*at].rank;
                let winner = bests.iter().flatten().min_by_key(|at| rank(at));
                if let (Some(winner), true) = (winner, drawn.has(prompt)) {
                    let won = candidates[*winner].member == number;
                    wins.push(100.0 * f64::from(u8::from(won)));
                }
            }
            let mean = |values: &[f64]| match values.len() {
                0 => None,
                count => Some(values.iter().sum::<f64>() / count as f64),
            };
            let games = compared.get(&member.name);
            members.insert(
                member.name.clone(),
                json!({
                    "prompts": (0..self.prompts.len()).filter(|&prompt| drawn.has(prompt)).count(),
                    "answers": own().count(),
                    "unanswered": drawn.rows.iter().flatten().filter(|answer| answer.is_none()).count(),
                    "finished": own().filter(|(candidate, _)| candidate.finished).count(),
                    "kept": own().filter(|(_, verdict)| kept(verdict)).count(),
                    "won": wins.iter().filter(|won| **won > 0.0).count(),
                    "won_share": mean(&wins),
                    "won_share_ci": mean_interval(&wins, ROUNDS, 0),
                    "win_rate": games.map(|of| of.win_rate),
                    "win_rate_ci": games.map(|of| of.win_rate_ci),
                    "bt": games.map(|of| of.bt),
                    "bt_ci": games.map(|of| of.ci),
                    "mean_score": mean(&values),
                    "mean_score_ci": mean_interval(&values, ROUNDS, 0),
                    "left_out": drawn.left_out,
                }),
            );
        }
        let with_kept = self.verdicts.iter().filter(|of| of.iter().any(kept));
        json!({
            "stage": "reject",
            "prompts": self.prompts.len(),
            "malformed": self.plan.counts().malformed,
            "answers": all().count(),
            "kept": all().filter(|(_, verdict)| kept(verdict)).count(),
            "prompts_kept": with_kept.count(),
            "pairs": preferences,
            "dropped": self.dropped(),
            "members": members,
        })
    }

    /// The page of `eval report`, of this run: a prompt stands for right where something of it is kept.
    fn page(&self, scores: Value) -> Result<String> {
        let record = Record {
            format: FORMAT,
            eval: "reject".to_owned(),
            scores,
            settings: self.settings.clone(),
            inputs: self.inputs.clone(),
            tool: serde_json::to_value(self.tool)?,
        };
        let mut cases = Vec::new();
        for (prompt, candidates, verdicts) in self.each() {
            if cases.len() + candidates.len() > SHOWN {
                break; // each prompt's name says of how many
            }
            let question = &self.plan.questions()[prompt];
            let any = verdicts.iter().any(|verdict| verdict.fate == Fate::Kept);
            let mut order: Vec<usize> = (0..candidates.len()).collect();
            // The ranked ones first, then the others by score.
            let score = |at: usize| candidates[at].score.unwrap_or(f64::NEG_INFINITY);
            order.sort_by(|&one, &other| {
                let rank = |at: usize| verdicts[at].rank.unwrap_or(usize::MAX);
                rank(one)
                    .cmp(&rank(other))
                    .then(score(other).total_cmp(&score(one)))
            });
            for at in order {
                let (candidate, verdict) = (&candidates[at], &verdicts[at]);
                let score = candidate
                    .score
                    .map_or("no score".to_owned(), |score| format!("score {score:.4}"));
                let rank = verdict
                    .rank
                    .map_or(String::new(), |rank| format!(", rank {rank}"));
                let mut fate = verdict.fate.word().replace('_', " ");
                if let Some(better) = verdict.of {
                    let better = &candidates[better];
                    let member = &self.members[better.member].name;
                    fate += &format!(" of {member}'s sample {}", better.sample);
                }
                cases.push(Case {
                    name: format!("{} of {}", prompt + 1, self.prompts.len()),
                    prompt: question.name.clone(),
                    response: Some(candidate.text.clone()),
                    category: Some(self.members[candidate.member].name.clone()),
                    passed: Some(any),
                    note: Some(format!(
                        "{score}{rank}, {fate}, sample {}",
                        candidate.sample
                    )),
                });
            }
        }
        let run = Run {
            name: self.name.to_owned(),
            records: BTreeMap::from([("reject".to_owned(), record)]),
            cases: BTreeMap::from([("reject".to_owned(), cases)]),
        };
        Ok(html::page(&[run]))
    }
}
