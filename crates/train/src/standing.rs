//! What a run would find in its place, told before it begins: `--dry-run` says it.

use std::fmt;
use std::path::Path;

use russet_artifact::{Artifact, Hold};
use serde::Serialize;

use crate::Result;
use crate::training::{Resume, Training, beside};

/// What a run would find in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "holds")]
pub enum Standing {
    /// It begins at the first step.
    Nothing,
    /// What it would leave, so that nothing is run.
    Result,
    /// A saved state, which it goes on from.
    State {
        /// Steps done.
        step: u64,
        /// What differs of an earlier result beside it, which is replaced too.
        #[serde(skip_serializing_if = "Option::is_none")]
        replaces: Option<String>,
    },
    /// Another process is at work on it.
    Held,
    /// The result of an earlier run, which it replaces when it has ended.
    EarlierResult {
        /// What differs.
        why: String,
    },
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Standing::Nothing => write!(f, "begins at the first step"),
            Standing::Held => write!(
                f,
                "another process is at work on it, so this would be refused now"
            ),
            Standing::Result => write!(f, "unchanged: the result is there, nothing is run"),
            Standing::State { step, replaces } => {
                write!(f, "goes on after step {step}")?;
                match replaces {
                    Some(why) => {
                        write!(f, ", and replaces what lies there when it has ended: {why}")
                    }
                    None => Ok(()),
                }
            }
            Standing::EarlierResult { why } => {
                write!(f, "replaces what lies there when it has ended: {why}")
            }
        }
    }
}

impl Training<'_> {
    /// What a run in this place would find there. Changes nothing.
    ///
    /// # Errors
    /// When it would be refused whoever is at it: the place holds something else, or the state that is saved there is one of another
    /// run.
    pub fn standing(&self, out: &Path, resume: Resume) -> Result<Standing> {
        let kind = self.trained.kind();
        if Hold::is_held(&beside(out, "log")?) == Some(true) {
            return Ok(Standing::Held);
        }
        self.stage.check_place(out, kind)?;
        let current = self.stage.current(out, kind);
        if resume == Resume::Continue && current.is_ok() {
            return Ok(Standing::Result);
        }
        let replaces = Artifact::open(out, kind).ok().map(|_| match &current {
            Ok(_) => "--restart asks for it".to_owned(),
            Err(why) => why.to_string(),
        });
        if resume == Resume::Continue
            && let Some(step) = self.store(out)?.step()?
        {
            return Ok(Standing::State { step, replaces });
        }
        Ok(match replaces {
            Some(why) => Standing::EarlierResult { why },
            None => Standing::Nothing,
        })
    }
}
