//! `stage = "reject"`: a committee of models and prompts to the best of their answers, and what they are better than.
//!
//! What is drawn and judged lies beside the artifact until that is whole (`NAME.state`): a file of answers for each member, one of
//! scores. A killed run goes on behind the last whole line, and answers that are there are not drawn again because filters change.

mod member;
mod report;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use russet_align::committee::settings::{
    FilterSettings, KeepSettings, QuestionSettings, RejectSettings,
};
use russet_align::committee::{Candidate, Plan as Committee, Settings, Sources, seed, select};
use russet_align::rewards::Answer;
use russet_artifact::{Hash, Hold, Inputs, Kind, Recipe};
use russet_tensor::Ctx;
use russet_train::{Resume, TrainError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::member::{Drawn, MemberSettings, Said};
use self::report::Report;
use self::state::Log;
use super::align::known;
use super::{Made, Outlook, Place, Plan, StageKind, Work, read_json, remake};
use crate::app::{App, Interrupted, Usage};
use crate::rules::Checkers;

/// The most members of a committee.
const MOST_MEMBERS: usize = 64;

/// The recipe as it stands in TOML; but for `inputs` and who answers it is [`Settings`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RejectRecipe {
    #[serde(rename = "stage")]
    _stage: StageKind,
    #[serde(default)]
    inputs: RejectInputs,
    #[serde(default)]
    member: Vec<MemberSettings>,
    reject: RejectSettings,
    #[serde(default)]
    filter: FilterSettings,
    #[serde(default)]
    keep: KeepSettings,
    data: QuestionSettings,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RejectInputs {
    /// The reward model.
    #[serde(skip_serializing_if = "Option::is_none")]
    reward: Option<PathBuf>,
    /// Its adapter, where it is one on the base `reward`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reward_adapter: Option<PathBuf>,
}

pub(super) struct Reject {
    inputs: RejectInputs,
    members: Vec<MemberSettings>,
    settings: Settings,
}

pub(super) fn read(recipe: &Recipe) -> Result<Reject> {
    let RejectRecipe {
        _stage: _,
        inputs,
        member: members,
        reject,
        filter,
        keep,
        data,
    } = recipe.parse()?;
    if !(1..=MOST_MEMBERS).contains(&members.len()) {
        return Err(Usage(format!(
            "`member` has {} tables; write [[member]] with `name` and `model` for each who answers, {MOST_MEMBERS} at most",
            members.len()
        ))
        .into());
    }
    let mut names = BTreeSet::new();
    for member in &members {
        member.check()?;
        if !names.insert(&member.name) {
            let sentence = format!(
                "`member.name` {:?} is there twice; tell them apart",
                member.name
            );
            return Err(Usage(sentence).into());
        }
    }
    let settings = Settings {
        reject,
        filter,
        keep,
        data,
    };
    settings.check(members.len())?;
    Ok(Reject {
        inputs,
        members,
        settings,
    })
}

impl Reject {
    fn open(&self, place: &Place) -> Result<Committee, TrainError> {
        let input = |name: &PathBuf| place.input(name);
        let prompts = self.settings.data.prompts.iter();
        let sources = Sources {
            prompts: prompts.map(|file| place.rows(file)).collect(),
            reward: self.inputs.reward.as_ref().map(input),
            reward_adapter: self.inputs.reward_adapter.as_ref().map(input),
        };
        Committee::new(
            self.settings.clone(),
            self.members.len(),
            sources,
            &Checkers,
        )
    }

    /// What the artifact is a function of besides inputs.
    fn key(&self, plan: &Committee) -> Result<Value> {
        let mut json = plan.key()?;
        json["stage"] = StageKind::Reject.word().into();
        json["member"] = self.members.iter().map(MemberSettings::key).collect();
        Ok(json)
    }

    /// Answers and tokens at most, of so many prompts.
    fn most(&self, prompts: u64) -> (u64, u64) {
        let each = self.members.len() as u64 * self.settings.reject.samples as u64;
        let answers = prompts.saturating_mul(each);
        (
            answers,
            answers.saturating_mul(self.settings.reject.max_tokens as u64),
        )
    }
}

impl Work for Reject {
    fn settings(&self) -> Result<Value> {
        let mut json = Recipe::resolved_json(&self.settings)?;
        json["stage"] = StageKind::Reject.word().into();
        json["inputs"] = serde_json::to_value(&self.inputs)?;
        json["member"] = serde_json::to_value(&self.members)?;
        Ok(json)
    }

    /// With the prompts' counts where the reward model is there already, or none is asked.
    fn plan(&self, name: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
        let files = &self.settings.data.prompts;
        let found = outlook.rows(place, "data.prompts", files)?;
        for file in report::ROWS {
            outlook.rows.insert(Path::new(name).join(file));
        }
        let rewards = [&self.inputs.reward, &self.inputs.reward_adapter];
        let mut rewards = rewards.into_iter().flatten();
        let there = found.is_some() && rewards.all(|name| place.input(name).exists());
        let names: Vec<&str> = self.members.iter().map(|one| &one.name[..]).collect();
        let (members, samples) = (self.members.len(), self.settings.reject.samples);
        let mut json = json!({"members": names, "samples": samples, "files": files});
        let mut text = match known(outlook, there, || self.open(place))? {
            None => format!(
                "as many prompts as the files make, {members} members, {samples} answers each"
            ),
            Some(plan) => {
                let counts = plan.counts();
                let (answers, tokens) = self.most(counts.prompts);
                json["prompts"] = counts.prompts.into();
                json["malformed"] = counts.malformed.into();
                json["answers"] = answers.into();
                json["tokens"] = tokens.into();
                format!(
                    "{} prompts · {members} members · {samples} answers = {answers} answers, at most {tokens} tokens",
                    counts.prompts
                )
            }
        };
        for line in self.members.iter().filter_map(MemberSettings::asked) {
            text += &format!("\n{line}");
        }
        Ok(Plan { json, text })
    }

    fn run(&self, app: &mut App, name: &str, place: &Place) -> Result<Made> {
        if let Some(reward) = &self.inputs.reward {
            crate::found::any_model(&place.input(reward))?;
        }
        let plan = self.open(place)?;
        let malformed = plan.counts().malformed;
        if malformed > 0 {
            app.progress.message(&format!(
                "{malformed} prompts cannot be read or judged, or ask what an earlier one asks, and are left out"
            ));
        }
        let mut inputs = plan.inputs().clone();
        for member in &self.members {
            inputs = member.inputs(inputs, place)?;
        }
        let mut beside = place.out.file_name().unwrap_or_default().to_owned();
        beside.push(".state");
        let folder = place.out.with_file_name(beside);
        if place.resume == Resume::Restart {
            state::clear(&place.out, &folder)?;
        }
        let what = (StageKind::Reject, Kind::Samples);
        let (settings, sources) = (self.key(&plan)?, inputs.clone());
        let skipped = remake(
            app,
            what,
            settings,
            inputs,
            &place.out,
            place.resume,
            |app, draft, stage| {
                let _held = Hold::take(&place.out, &folder)?;
                let run = Running {
                    reject: self,
                    plan: &plan,
                    place,
                    inputs: &sources,
                    folder: &folder,
                    name,
                };
                let drawn = run.draw(app)?;
                let prompts = run.judge(app, &drawn)?;
                let verdicts = select(
                    &prompts,
                    self.members.len(),
                    &self.settings.filter,
                    &self.settings.keep,
                );
                Report {
                    name,
                    plan: &plan,
                    members: &self.members,
                    drawn: &drawn,
                    prompts: &prompts,
                    verdicts: &verdicts,
                    settings: &stage.recipe,
                    inputs: run.sources(),
                    tool: &app.tool,
                }
                .write(draft)
            },
        )?;
        match state::clear(&place.out, &folder) {
            Err(_) if skipped => {} // another process draws with other settings
            cleared => cleared?,
        }
        let facts = read_json(&place.out.join(russet_align::REPORT))?;
        let mut summary = format!(
            "{} answers of {} members to {} prompts: {} kept, {} preferences",
            facts["answers"],
            self.members.len(),
            facts["prompts"],
            facts["kept"],
            facts["pairs"]
        );
        let members = facts["members"].as_object().into_iter().flatten();
        for (member, _) in members.filter(|(_, of)| of["left_out"].is_string()) {
            summary += &format!("; {member} was left out");
        }
        Ok(Made {
            skipped,
            summary,
            facts,
        })
    }
}

/// A run under way.
struct Running<'a> {
    reject: &'a Reject,
    plan: &'a Committee,
    place: &'a Place,
    inputs: &'a Inputs,
    folder: &'a Path,
    name: &'a str,
}

impl Running<'_> {
    /// What was read, by its names in the recipe: where it lies is another thing on another machine.
    fn sources(&self) -> BTreeMap<String, Value> {
        let mut named: Vec<(String, &Path, PathBuf)> = Vec::new();
        for (key, name) in [
            ("reward", &self.reject.inputs.reward),
            ("reward_adapter", &self.reject.inputs.reward_adapter),
        ] {
            if let Some(name) = name {
                named.push((key.to_owned(), name, self.place.input(name)));
            }
        }
        for (number, file) in self.plan.settings().data.prompts.iter().enumerate() {
            named.push((format!("prompts-{number}"), file, self.place.rows(file)));
        }
        for member in &self.reject.members {
            for (key, name) in member.folders() {
                named.push((key, name, self.place.input(name)));
            }
        }
        let source = |(key, name, path): (String, &Path, PathBuf)| {
            let hash = self.inputs.hash_of(&path).map(|hash| hash.to_string());
            (key, json!({"path": name, "blake3": hash}))
        };
        named.into_iter().map(source).collect()
    }

    /// Lets every member answer what it has not answered yet.
    fn draw(&self, app: &mut App) -> Result<Vec<Drawn>> {
        let members = &self.reject.members;
        let questions = self.plan.questions();
        let total = self.reject.most(questions.len() as u64).0;
        let each = (questions.len() * self.plan.settings().reject.samples) as u64;
        let mut logs = Vec::new();
        let mut before = 0;
        for member in members {
            let about = member.about(self.plan, self.inputs, self.place)?;
            let path = self.folder.join(format!("answers-{}.jsonl", member.name));
            let (log, rows) = Log::open::<Vec<Option<Said>>>(&path, &about)?;
            before += (rows.len() * self.plan.settings().reject.samples) as u64;
            logs.push((log, rows));
        }
        app.progress.begin(self.name, Some(total), "answers");
        app.progress.resumed(before);
        let mut drawn = Vec::new();
        let mut done = before;
        for (member, (mut log, rows)) in members.iter().zip(logs) {
            let mut of_member = Drawn::new(rows);
            // What others had drawn before is counted already.
            let own = (of_member.rows.len() * self.plan.settings().reject.samples) as u64;
            member.draw(
                app,
                self.plan,
                self.place,
                &mut log,
                &mut of_member,
                &mut |app, fresh| app.progress.update(done + fresh, &[]),
            )?;
            done += each - own;
            log.sync()?;
            if let Some(why) = &of_member.left_out {
                app.progress.message(&format!(
                    "member {}: {why}; it is left out from prompt {} of {} on, and the others go on",
                    member.name,
                    of_member.rows.len() + 1,
                    questions.len()
                ));
            }
            for (count, what) in [
                (of_member.too_long, "prompts are longer than it reads"),
                (
                    of_member.refused,
                    "answers were refused by the server, or never came",
                ),
            ] {
                if count > 0 {
                    app.progress
                        .message(&format!("member {}: {count} {what}", member.name));
                }
            }
            drawn.push(of_member);
        }
        app.progress.end();
        if drawn.iter().all(|of_member| of_member.answers() == 0) {
            bail!(
                "{}: no member has answered anything; see what was said of each above",
                self.name
            );
        }
        Ok(drawn)
    }

    /// All answers of each prompt with what they are worth.
    fn judge(&self, app: &mut App, drawn: &[Drawn]) -> Result<Vec<Vec<Candidate>>> {
        let settings = self.plan.settings();
        let questions = self.plan.questions();
        let mut prompts: Vec<Vec<Candidate>> = Vec::new();
        let mut said = Vec::new();
        for prompt in 0..questions.len() {
            let mut candidates = Vec::new();
            for (member, of_member) in drawn.iter().enumerate() {
                let first = seed(
                    settings.reject.seed,
                    &self.reject.members[member].name,
                    prompt,
                );
                let answers = of_member.rows.get(prompt).into_iter().flatten();
                for (sample, answer) in answers.enumerate() {
                    if let Some(answer) = answer {
                        candidates.push(Candidate {
                            member,
                            sample,
                            seed: first + sample as u64,
                            text: answer.text.clone(),
                            finished: answer.finish == "stop",
                            score: None,
                        });
                    }
                }
            }
            said.extend(candidates.iter().map(|one| Hash::of(one.text.as_bytes())));
            prompts.push(candidates);
        }
        let sources = self.sources();
        let about = json!({
            "rewards": settings.reject.rewards, "answers": Hash::of(format!("{said:?}").as_bytes()),
            "models": [sources.get("reward"), sources.get("reward_adapter")],
        });
        let about = Hash::of(about.to_string().as_bytes());
        let path = self.folder.join("scores.jsonl");
        let (mut log, mut scores) = Log::open::<Vec<Option<f64>>>(&path, &about)?;
        if scores.len() < questions.len() {
            let total = questions.len() as u64;
            app.progress.begin("scores", Some(total), "prompts");
            app.progress.resumed(scores.len() as u64);
            let judge = self.plan.judge()?;
            let mut ctx = Ctx::new(app.pool.clone());
            while scores.len() < questions.len() {
                if app.interrupt.is_raised() {
                    return Err(stopped().into());
                }
                let question = &questions[scores.len()];
                let answers: Vec<Answer> = prompts[scores.len()]
                    .iter()
                    .map(|candidate| Answer {
                        asked: &question.asked,
                        text: &candidate.text,
                    })
                    .collect();
                let row = judge.scores(&mut ctx, &answers).map_err(|problem| {
                    let (file, line) = question.place;
                    TrainError::Data {
                        place: self.plan.settings().data.prompts[file].clone(),
                        problem: format!("line {line}: {problem}"),
                    }
                })?;
                log.push(scores.len(), &row)?;
                scores.push(row);
                app.progress.update(scores.len() as u64, &[]);
            }
            log.sync()?;
            app.progress.end();
        }
        for (candidates, scores) in prompts.iter_mut().zip(scores) {
            if candidates.len() != scores.len() {
                bail!(
                    "{}: it has scores of other answers; remove it, and they are judged again",
                    path.display()
                );
            }
            for (candidate, score) in candidates.iter_mut().zip(scores) {
                candidate.score = score;
            }
        }
        Ok(prompts)
    }
}

/// A wish to stop was heard.
fn stopped() -> Interrupted {
    Interrupted(
        "stopped; what was drawn and judged lies beside the artifact, and the same command goes on behind it"
            .to_owned(),
    )
}
