//! The verbs of `eval` over responses and judgements. What a model answers goes through [`respond`], what is to be reported through
//! [`save`].

pub mod calls;
pub mod choice;
pub mod code;
pub mod committee;
pub mod ifeval;
pub mod judge;
pub mod math;
pub mod pairwise;
pub mod positions;
pub mod prompts;
pub mod report;
pub mod respond;
pub mod reward;
pub mod safety;
pub mod save;
pub mod server;
pub mod slots;
pub mod summaries;
pub mod texts;

use std::path::Path;

use anyhow::Result;

use crate::app::{App, Said};
use crate::args::EvalVerb;
use crate::{measure, needle};

/// Carries a verb out.
pub fn score(app: &mut App, verb: EvalVerb) -> Result<Said> {
    if let Some(save) = verb.save() {
        save.check()?;
    }
    match verb {
        EvalVerb::Perplexity(args) => measure::perplexity(app, &args),
        EvalVerb::Needle(args) => needle::run(app, &args),
        EvalVerb::Ifeval(args) => ifeval::run(app, &args),
        EvalVerb::Pairwise(args) => pairwise::run(app, &args),
        EvalVerb::Committee(args) => committee::run(&args),
        EvalVerb::Judge(args) => judge::run(app, &args),
        EvalVerb::Prompts(args) => prompts::run(&args),
        EvalVerb::Respond(args) => respond::run(app, &args),
        EvalVerb::Choice(args) => choice::run(app, &args),
        EvalVerb::Math(args) => math::run(app, &args),
        EvalVerb::Code(args) => code::run(app, &args),
        EvalVerb::Calls(args) => calls::run(app, &args),
        EvalVerb::Positions(args) => positions::run(app, &args),
        EvalVerb::Texts(args) => texts::run(app, &args),
        EvalVerb::Summaries(args) => summaries::run(app, args),
        EvalVerb::Slots(args) => slots::run(app, &args),
        EvalVerb::Safety(args) => safety::run(app, &args),
        EvalVerb::Reward(args) => reward::run(app, &args),
        EvalVerb::Report(args) => report::run(&args),
        EvalVerb::Logits { model, tokens, out } => measure::logits(app, &model, &tokens, &out),
    }
}

/// Says which lines of a file are something; nothing where there are none.
pub fn remark(app: &mut App, path: &Path, lines: &[u64], what: &str) {
    if !lines.is_empty() {
        app.progress.message(&format!(
            "{}: {} {what}: lines {}",
            path.display(),
            lines.len(),
            some(lines)
        ));
    }
}

/// The first of a list.
pub fn some<T: ToString>(all: &[T]) -> String {
    let shown: Vec<String> = all.iter().take(8).map(ToString::to_string).collect();
    let more = if all.len() > 8 { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}
