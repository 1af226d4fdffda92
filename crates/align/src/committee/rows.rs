//! What is learnt from: rows as `sft` and `dpo` read them, with where each comes from.

use serde_json::{Map, Value, json};

use super::Question;
use super::select::{Candidate, Verdict};

/// Where a row comes from: who said it, what it was worth, and how to draw it again.
#[derive(Clone, Copy, Debug)]
pub struct Provenance<'a> {
    /// The member's name.
    pub member: &'a str,
    /// The name of the file that asks.
    pub file: &'a str,
    /// Its line.
    pub line: u64,
}

impl Provenance<'_> {
    /// With what is said of the answer.
    pub fn json(&self, candidate: &Candidate, verdict: &Verdict) -> Value {
        json!({
            "member": self.member, "score": candidate.score, "rank": verdict.rank, "seed": candidate.seed,
            "sample": candidate.sample, "prompt": {"file": self.file, "line": self.line},
        })
    }
}

/// The prompt's messages, of which nothing is learnt.
fn asked(question: &Question) -> Vec<Value> {
    let messages = question.asked.conversation.messages.iter();
    let message = |message: &Map<String, Value>| {
        let mut message = message.clone();
        if message["role"] == "assistant" {
            message.insert("weight".to_owned(), 0.into());
        }
        Value::Object(message)
    };
    messages.map(message).collect()
}

/// A conversation that ends with an answer that was kept: `messages`, perhaps `tools`, and `provenance`.
pub fn conversation(question: &Question, text: &str, provenance: Value) -> Value {
    let mut messages = asked(question);
    messages.push(json!({"role": "assistant", "content": text}));
    let mut row = json!({"messages": messages, "provenance": provenance});
    if !question.asked.conversation.tools.is_empty() {
        row["tools"] = question.asked.conversation.tools.clone().into();
    }
    row
}

/// A preference: `prompt`, `chosen`, `rejected`, perhaps `tools`, and the provenance of both.
pub fn preference(
    question: &Question,
    [chosen, rejected]: [&str; 2],
    [of_chosen, of_rejected]: [Value; 2],
) -> Value {
    let conversation = &question.asked.conversation;
    let prompt = match &conversation.messages[..] {
        [only] if only["role"] == "user" => only["content"].clone(),
        messages => json!(messages),
    };
    let mut row = json!({
        "prompt": prompt, "chosen": chosen, "rejected": rejected,
        "chosen_provenance": of_chosen, "rejected_provenance": of_rejected,
    });
    if !conversation.tools.is_empty() {
        row["tools"] = conversation.tools.clone().into();
    }
    row
}

/// The best of each member's answers to a prompt, by place in the list: none of a member that has none which passes.
pub fn bests(candidates: &[Candidate], verdicts: &[Verdict], members: usize) -> Vec<Option<usize>> {
    let best = |member: usize| {
        let own = |at: &usize| candidates[*at].member == member && verdicts[*at].rank.is_some();
        (0..candidates.len())
            .filter(own)
            .min_by_key(|&at| verdicts[at].rank)
    };
    (0..members).map(best).collect()
}

/// Who wins a prompt: members whose best answers are compared by score, two by two, as rows of the plain form that `eval pairwise` reads.
/// An answer that passes beats none; two members without any do not meet.
pub fn judgements(
    question: &Question,
    candidates: &[Candidate],
    verdicts: &[Verdict],
    names: &[&str],
    answered: &[bool],
) -> Vec<Value> {
    let bests = bests(candidates, verdicts, names.len());
    let mut rows = Vec::new();
    for one in 0..names.len() {
        for other in one + 1..names.len() {
            let preference = match (bests[one], bests[other]) {
                _ if !answered[one] || !answered[other] => continue,
                (None, None) => continue,
                (Some(_), None) => 1.0,
                (None, Some(_)) => 2.0,
                (Some(one), Some(other)) => {
                    let score = |at: usize| candidates[at].score;
                    match score(one).partial_cmp(&score(other)) {
                        Some(std::cmp::Ordering::Greater) => 1.0,
                        Some(std::cmp::Ordering::Less) => 2.0,
                        _ => 1.5,
                    }
                }
            };
            let mut row = json!({
                "prompt": question.name, "model_a": names[one], "model_b": names[other], "preference": preference,
                "judge": "score", "category": question.asked.row.get("category").filter(|is| is.is_string()),
            });
            for (key, best) in [("response_a", bests[one]), ("response_b", bests[other])] {
                if let Some(at) = best {
                    row[key] = candidates[at].text.clone().into();
                }
            }
            rows.push(row);
        }
    }
    rows
}
