//! `stage = "texts"`: documents to the texts that a feature is tried on.

use std::path::{Path, PathBuf};

use anyhow::Result;
use russet_artifact::{Inputs, Kind, Recipe};
use russet_eval::strata::{StrataSettings, draw};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Made, Outlook, Place, Plan, StageKind, Work, look_at_texts, make, ours_or_not, read_json,
};
use crate::app::{App, Usage};
use crate::eval::texts::{lines, tell_short};

/// The texts, and how many each stratum has.
const FILES: [&str; 2] = ["texts.jsonl", "strata.json"];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TextsRecipe {
    stage: StageKind,
    #[serde(default)]
    texts: StrataSettings,
    data: TextsData,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TextsData {
    /// Documents to draw from.
    texts: Vec<PathBuf>,
    /// Rows that are added as they are.
    #[serde(default)]
    whole: Vec<PathBuf>,
}

pub(super) fn read(recipe: &Recipe) -> Result<TextsRecipe> {
    let recipe: TextsRecipe = recipe.parse()?;
    let StrataSettings {
        rows,
        stacked,
        most,
        ..
    } = recipe.texts;
    let refuse = |sentence: &str| Err(Usage(sentence.to_owned()).into());
    if rows == 0 {
        return refuse(
            "`texts.rows` is 0, so there would be no texts; ask for at least 1 a use case",
        );
    }
    if !(0.0..=1.0).contains(&stacked) {
        return refuse("`texts.stacked` is a share; give it from 0 to 1");
    }
    if most < 2 {
        return refuse("`texts.most` must be at least 2, the documents of the smallest stack");
    }
    Ok(recipe)
}

impl Work for TextsRecipe {
    fn settings(&self) -> Result<Value> {
        Ok(Recipe::resolved_json(self)?)
    }

    fn plan(&self, name: &str, _: &Place, outlook: &mut Outlook) -> Result<Plan> {
        let mut json = look_at_texts("data.texts", &self.data.texts)?;
        if !self.data.whole.is_empty() {
            look_at_texts("data.whole", &self.data.whole)?;
        }
        outlook.rows.insert(Path::new(name).join(FILES[0]));
        json.insert("rows".into(), self.texts.rows.into());
        Ok(Plan {
            text: format!("{} texts of each use case", self.texts.rows),
            json: json.into(),
        })
    }

    fn run(&self, app: &mut App, _: &str, place: &Place) -> Result<Made> {
        let mut inputs = Inputs::new();
        for (what, files) in [("texts", &self.data.texts), ("whole", &self.data.whole)] {
            for (number, file) in files.iter().enumerate() {
                inputs = ours_or_not(inputs, &format!("{what}.{number}"), file)?;
            }
        }
        let what = (StageKind::Texts, Kind::Samples);
        let skipped = make(
            app,
            what,
            self.settings()?,
            inputs,
            &place.out,
            |app, draft, _| {
                let drawn = draw(
                    &self.data.texts,
                    &self.data.whole,
                    &self.texts,
                    &app.interrupt,
                )?;
                tell_short(app, &drawn, self.texts.rows);
                std::fs::write(draft.join(FILES[0]), lines(&drawn))?;
                let strata = json!({"n": drawn.rows.len(), "strata": drawn.strata});
                std::fs::write(draft.join(FILES[1]), format!("{strata:#}\n"))?;
                Ok(())
            },
        )?;
        let facts = read_json(&place.out.join(FILES[1]))?;
        let strata = facts["strata"].as_array().map_or(0, Vec::len);
        Ok(Made {
            skipped,
            summary: format!("{} texts of {strata} strata", facts["n"]),
            facts,
        })
    }
}
