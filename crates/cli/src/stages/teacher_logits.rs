//! `stage = "teacher-logits"`: a checkpoint's predictions of token shards, stored for students.

use std::path::PathBuf;

use anyhow::Result;
use russet_artifact::{Artifact, Inputs, Kind, Recipe};
use russet_train::distill::{TeachReport, TeachSettings, teach};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Made, Outlook, Place, Plan, StageKind, Work, make, read_json};
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
        let bytes =
            teacher.map_or(4, |teacher| 2 + if teacher.vocab > 1 << 16 { 4 } else { 2 }) * k;
        for split in splits {
            outlook.check_split(&self.inputs.tokens, "teacher_logits.splits", split)?;
        }
        Ok(Plan {
            json: json!({"k": k, "bytes_per_token": bytes}),
            text: format!(
                "{k} predictions a token of {}, {bytes} bytes a token",
                splits.join(", ")
            ),
        })
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
