//! `stage = "teacher-logits"`: a checkpoint's predictions of token shards, stored for students.

use std::path::PathBuf;

use anyhow::Result;
use russet_artifact::{Artifact, Inputs, Kind, Recipe};
use russet_tokenizer::TokenShard;
use russet_train::Estimate;
use russet_train::distill::{TeachReport, TeachSettings, teach};
use russet_train::settings::ComputeType;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, about, make, read_json};
use crate::app::App;

/// The file of the artifact that says what the teacher said in the mean.
const REPORT: &str = "teacher-logits.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TeacherLogitsRecipe {
    stage: StageKind,
    inputs: TeacherLogitsInputs,
    teacher_logits: TeachSettings,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TeacherLogitsInputs {
    teacher: PathBuf,
    tokens: PathBuf,
}

pub(super) fn read(recipe: &Recipe) -> Result<TeacherLogitsRecipe> {
    let recipe: TeacherLogitsRecipe = recipe.parse()?;
    recipe.teacher_logits.check()?;
    Ok(recipe)
}

impl Work for TeacherLogitsRecipe {
    fn settings(&self) -> Result<Value> {
        Ok(Recipe::resolved_json(self)?)
    }

    fn plan(&self, _: &str, place: &Place, outlook: &mut Outlook) -> Result<Plan> {
        let TeachSettings { k, splits, .. } = &self.teacher_logits;
        let teacher = outlook.decoder(&self.inputs.teacher, place);
        if let Some(teacher) = &teacher {
            self.teacher_logits.check_teacher(teacher)?;
        }
        // An id and a half-precision logarithm.
        let bytes = teacher
            .as_ref()
            .map_or(4, |teacher| 2 + if teacher.vocab > 1 << 16 { 4 } else { 2 })
            * k;
        for split in splits {
            outlook.check_split(&self.inputs.tokens, "teacher_logits.splits", split)?;
        }
        let mut json = json!({"k": k, "bytes_per_token": bytes});
        let mut text = format!(
            "{k} predictions a token of {}, {bytes} bytes a token",
            splits.join(", ")
        );
        let settled = outlook.is_settled(&self.inputs.tokens, place);
        let folder = place.input(&self.inputs.tokens);
        let shard = |split| TokenShard::open(folder.join(format!("{split}.tokens.safetensors")));
        let shards: Result<Vec<_>, _> = splits.iter().map(shard).collect();
        if let (true, Ok(shards)) = (settled, shards) {
            let tokens: usize = shards.iter().map(TokenShard::tokens).sum();
            json["tokens"] = tokens.into();
            json["bytes"] = (tokens * bytes).into();
            let megabytes = (tokens * bytes) as f64 / 1e6;
            text += &format!(": {megabytes:.1} MB of {tokens} tokens");
            if let Some(teacher) = &teacher {
                let flops =
                    tokens as f64 * teacher.forward_flops(self.teacher_logits.sequence_length / 2);
                json["flops"] = flops.into();
                if let Some(rate) = outlook.rate(ComputeType::F32) {
                    let estimate = Estimate::new(flops, rate);
                    text += &format!(", {}", about(estimate.seconds));
                    json["estimate"] = serde_json::to_value(estimate)?;
                }
            }
        }
        Ok(Plan { json, text })
    }

    fn run(&self, app: &mut App, _: &str, place: &Place) -> Result<Made> {
        let teacher = place.input(&self.inputs.teacher);
        let tokens = Artifact::open(&place.input(&self.inputs.tokens), Kind::Tokens)?;
        let inputs = Inputs::new().artifact("tokens", &tokens)?;
        let inputs = inputs.artifact_or_path("teacher", &teacher, Kind::Checkpoint)?;
        let what = (StageKind::TeacherLogits, Kind::TeacherLogits);
        let settings = self.settings()?;
        let skipped = make(app, what, settings, inputs, &place.out, |app, draft, _| {
            let report = teach(
                &self.teacher_logits,
                &teacher,
                &tokens,
                draft,
                &app.pool,
                &mut *app.progress,
                &app.interrupt,
            )?;
            let json = serde_json::to_value(&report)?;
            std::fs::write(draft.join(REPORT), format!("{json:#}\n"))?;
            Ok(())
        })?;
        let facts = read_json(&place.out.join(REPORT))?;
        let report: TeachReport = serde_json::from_value(facts.clone())?;
        Ok(Made {
            skipped,
            summary: format!(
                "{} tokens, {:.1} % of the probability in {} predictions each",
                report.tokens,
                100.0 * report.covered,
                self.teacher_logits.k
            ),
            facts,
        })
    }
}
