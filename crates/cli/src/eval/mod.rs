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
pub mod slots;
pub mod summaries;

use std::path::Path;

use crate::app::App;

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
