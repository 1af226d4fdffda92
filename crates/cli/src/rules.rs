//! Evaluation's checkers as rewards: what `align` asks for by name and does not know.

use russet_align::rewards::{Answer, Reward, Rules};
use russet_align::rows::Asked;
use russet_eval::ifeval::Instruction;
use russet_eval::math::{Problem, judge_problem};
use russet_tensor::Ctx;
use serde_json::{Map, Value};

/// `"exact"` and `"instructions"`.
pub struct Checkers;

impl Rules for Checkers {
    fn kinds(&self) -> &[&'static str] {
        &["exact", "instructions"]
    }

    fn rule(&self, kind: &str) -> Option<Box<dyn Reward>> {
        match kind {
            "exact" => Some(Box::new(Exact)),
            "instructions" => Some(Box::new(Instructions)),
            _ => None,
        }
    }
}

/// 1 where the answer is the row's `answer`, else 0. A number is compared as GSM8K's is: the one behind the last `####`. Any other
/// text is the answer itself, or what stands behind its last `####`, without the blanks around it.
struct Exact;

fn key(asked: &Asked) -> Result<String, String> {
    match asked.row.get("answer") {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(other) => Err(format!(
            "`answer` is {other}, but the reward \"exact\" needs a text or a number"
        )),
        None => Err("it has no `answer`, which the reward \"exact\" compares with".to_owned()),
    }
}

fn exact(wanted: &str, said: &str) -> bool {
    let marked = |text: &str| {
        text.rsplit_once("####")
            .map(|(_, behind)| behind.trim().to_owned())
    };
    let problem = |text: &str| Problem::of("", text);
    let bare = || {
        let number = wanted.trim().parse::<f64>().ok();
        number.and_then(|_| problem(&format!("#### {wanted}")))
    };
    if let Some(problem) = problem(wanted).or_else(bare) {
        return judge_problem(&problem, said).0;
    }
    let wanted = marked(wanted).unwrap_or_else(|| wanted.trim().to_owned());
    said.trim() == wanted || marked(said) == Some(wanted)
}

impl Reward for Exact {
    fn check(&self, asked: &Asked) -> Result<(), String> {
        key(asked).map(drop)
    }

    fn rewards(&self, _: &mut Ctx, answers: &[Answer]) -> Result<Vec<f64>, String> {
        let one = |answer: &Answer| -> Result<f64, String> {
            let right = exact(&key(answer.asked)?, answer.text);
            Ok(f64::from(u8::from(right)))
        };
        answers.iter().map(one).collect()
    }
}

/// The share of the row's instructions that the answer follows (IFEval's, strictly): `instruction_id_list` and `kwargs`.
struct Instructions;

fn instructions(asked: &Asked) -> Result<Vec<Instruction>, String> {
    let list = |key: &str| {
        let value = asked.row.get(key).and_then(Value::as_array);
        value.ok_or(format!(
            "it has no list `{key}`, which the reward \"instructions\" reads"
        ))
    };
    let (ids, kwargs) = (list("instruction_id_list")?, list("kwargs")?);
    if ids.is_empty() || ids.len() != kwargs.len() {
        return Err(format!(
            "it has {} instructions and {} `kwargs`; give one object an instruction, and one at least",
            ids.len(),
            kwargs.len()
        ));
    }
    let one = |(id, kwargs): (&Value, &Value)| {
        let none = Map::new();
        let (Some(id), kwargs) = (id.as_str(), kwargs.as_object().unwrap_or(&none)) else {
            return Err(format!("its instruction {id} is no name"));
        };
        Instruction::new(id, kwargs).map_err(|error| error.to_string())
    };
    ids.iter().zip(kwargs).map(one).collect()
}

impl Reward for Instructions {
    fn check(&self, asked: &Asked) -> Result<(), String> {
        instructions(asked).map(drop)
    }

    fn rewards(&self, _: &mut Ctx, answers: &[Answer]) -> Result<Vec<f64>, String> {
        let one = |answer: &Answer| -> Result<f64, String> {
            let all = instructions(answer.asked)?;
            // One whose matching backtracks without end is not followed: no answer may stop a run.
            let followed = all
                .iter()
                .filter(|one| one.followed(answer.text).unwrap_or(false));
            Ok(followed.count() as f64 / all.len() as f64)
        };
        answers.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russet_kernels::Pool;
    use serde_json::json;
    use std::sync::Arc;

    fn rewards(kind: &str, row: Value, said: &[&str]) -> Result<Vec<f64>, String> {
        let asked = Asked {
            conversation: russet_tokenizer::Conversation::default(),
            row: row.as_object().unwrap().clone(),
        };
        let rule = Checkers.rule(kind).unwrap();
        rule.check(&asked)?;
        let answers: Vec<Answer> = said
            .iter()
            .map(|text| Answer {
                asked: &asked,
                text,
            })
            .collect();
        rule.rewards(&mut Ctx::new(Arc::new(Pool::new(1).unwrap())), &answers)
    }

    #[test]
    fn exact_answers_are_compared_as_numbers_or_as_texts() {
        let row = json!({"answer": "48 + 24 = 72\n#### 72"});
        let said = ["So it is\n#### 72.0", "72", "#### 73", ""];
        assert_eq!(rewards("exact", row, &said).unwrap(), [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(
            rewards("exact", json!({"answer": 7}), &["#### 7"]).unwrap(),
            [1.0]
        );
        let said = [" Paris\n", "I think\n#### Paris", "paris"];
        assert_eq!(
            rewards("exact", json!({"answer": "Paris"}), &said).unwrap(),
            [1.0, 1.0, 0.0]
        );
        assert!(
            rewards("exact", json!({}), &[])
                .unwrap_err()
                .contains("`answer`")
        );
    }

    #[test]
    fn instructions_count_by_their_share() {
        let row = json!({"instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"], "kwargs": [{}, {}]});
        let said = ["the hen and the fox slept", "The Hen, The Fox"];
        assert_eq!(rewards("instructions", row, &said).unwrap(), [1.0, 0.0]);
        let row = json!({"instruction_id_list": ["no:such"], "kwargs": [{}]});
        assert!(
            rewards("instructions", row, &[])
                .unwrap_err()
                .contains("no:such")
        );
        assert!(
            rewards("instructions", json!({}), &[])
                .unwrap_err()
                .contains("instruction_id_list")
        );
    }
}
