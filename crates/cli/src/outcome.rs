//! What an error means for the process: which exit code it ends with.

use russet_artifact::Error as ArtifactError;
use russet_compress::CompressError;
use russet_tokenizer::TokenizerError;
use russet_train::TrainError;

use crate::app::{Interrupted, Usage};

/// How a verb that did not simply succeed has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was asked to stop; the process ends well.
    Interrupted(String),
    /// The command line, a recipe or a setting is at fault; 2.
    Usage,
    /// Everything else; 1.
    Failure,
}

/// Reads it off the error and its causes.
pub fn outcome(error: &anyhow::Error) -> Outcome {
    for cause in error.chain() {
        if let Some(Interrupted(sentence)) = cause.downcast_ref() {
            return Outcome::Interrupted(sentence.clone());
        }
        if matches!(cause.downcast_ref(), Some(CompressError::Interrupted)) {
            return Outcome::Interrupted(
                "stopped; the same command goes on from what is done".to_owned(),
            );
        }
        let interrupted = matches!(cause.downcast_ref(), Some(russet_eval::Error::Interrupted))
            || matches!(cause.downcast_ref(), Some(TokenizerError::Interrupted))
            || matches!(cause.downcast_ref(), Some(TrainError::Interrupted));
        if interrupted {
            return Outcome::Interrupted(Interrupted::again().0);
        }
        let usage = cause.is::<Usage>()
            || cause.downcast_ref().is_some_and(is_recipe)
            || cause.downcast_ref().is_some_and(|error| match error {
                TrainError::Setting { .. } | TrainError::Launch(_) => true,
                TrainError::Artifact(error) => is_recipe(error),
                _ => false,
            })
            || matches!(cause.downcast_ref(), Some(TokenizerError::Train(_)))
            || matches!(cause.downcast_ref(), Some(CompressError::Setting { .. }))
            || cause.downcast_ref().is_some_and(is_request)
            || cause.downcast_ref().is_some_and(|error| match error {
                russet_serve::Error::Setting(_) => true,
                russet_serve::Error::Engine(error) => is_request(error),
                russet_serve::Error::Start(_) => false,
            })
            || matches!(
                cause.downcast_ref(),
                Some(russet_eval::Error::Setting { .. } | russet_eval::Error::Study(_))
            );
        if usage {
            return Outcome::Usage;
        }
    }
    Outcome::Failure
}

fn is_recipe(error: &ArtifactError) -> bool {
    matches!(
        error,
        ArtifactError::Recipe { .. } | ArtifactError::Override { .. }
    )
}

fn is_request(error: &russet_engine::Error) -> bool {
    use russet_engine::Error;
    match error {
        Error::Setting { .. }
        | Error::PromptTooLong { .. }
        | Error::NeverFits { .. }
        | Error::EmptyPrompt
        | Error::UnknownToken { .. }
        | Error::Memory { .. }
        | Error::AdapterBudget { .. } => true,
        Error::Request { problem, .. } => is_request(problem),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn what_an_error_means_does_not_depend_on_what_is_said_around_it() {
        let recipe = || ArtifactError::Recipe {
            place: "a.toml:1".into(),
            reason: "no".into(),
        };
        let wrapped = |error: anyhow::Error| {
            let plain = outcome(&error);
            let said = Err::<(), _>(error).context("03-pretrain").unwrap_err();
            assert_eq!(outcome(&said), plain);
            plain
        };
        assert_eq!(wrapped(recipe().into()), Outcome::Usage);
        assert_eq!(
            wrapped(TrainError::Artifact(recipe()).into()),
            Outcome::Usage
        );
        let request = russet_engine::Error::Request {
            index: 0,
            problem: Box::new(russet_engine::Error::EmptyPrompt),
        };
        assert_eq!(wrapped(request.into()), Outcome::Usage);
        let memory = russet_engine::Error::Memory {
            slots: 1,
            context: 1,
            bytes: 1,
        };
        assert_eq!(
            wrapped(russet_serve::Error::Engine(memory).into()),
            Outcome::Usage
        );
        assert_eq!(
            wrapped(russet_engine::Error::NotFinite.into()),
            Outcome::Failure
        );
        for stopped in [
            CompressError::Interrupted.into(),
            russet_eval::Error::Interrupted.into(),
            TokenizerError::Interrupted.into(),
            TrainError::Interrupted.into(),
        ] {
            assert!(matches!(wrapped(stopped), Outcome::Interrupted(_)));
        }
    }
}
