//! MaskBench: schemas with instances that are valid and instances that are not, through guides and, beside them, through
//! the `llguidance` crate as it comes.
//!
//! ```text
//! cargo run -p russet-engine --example maskbench -- SCHEMAS.jsonl TOKENIZER
//! ```
//! A line of the file is `{"id": …, "schema": …, "tests": [{"valid": true, "data": …}, …]}`
//! (<https://github.com/guidance-ai/jsonschemabench>). An instance is written compactly, cut by the tokenizer, and taken
//! where every token is in the mask before it and the end is allowed behind it. Prints one JSON object.

#![allow(clippy::print_stdout)] // what it is for

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use russet_engine::guide::{Constraint, Grammar, Next, Vocabulary};
use russet_tokenizer::Tokenizer;
use serde_json::{Value, json};

/// What one side did.
#[derive(Default)]
struct Side {
    compiled: usize,
    valid_taken: usize,
    valid_refused: usize,
    invalid_taken: usize,
    invalid_refused: usize,
    compile_ms: Vec<f64>,
    mask_us: Vec<f64>,
}

impl Side {
    /// Counts one schema: `walk` says whether an instance is taken, and times its masks.
    fn schema<G, E>(
        &mut self,
        compile: impl FnOnce() -> Result<G, E>,
        instances: &[(bool, Vec<u32>)],
        walk: impl Fn(&G, &[u32], &mut Vec<f64>) -> bool,
    ) -> Vec<bool> {
        let began = Instant::now();
        let compiled = compile();
        self.compile_ms.push(1e3 * began.elapsed().as_secs_f64());
        let Ok(grammar) = compiled else {
            return Vec::new();
        };
        self.compiled += 1;
        let mut verdicts = Vec::new();
        for (valid, tokens) in instances {
            let taken = walk(&grammar, tokens, &mut self.mask_us);
            *match (valid, taken) {
                (true, true) => &mut self.valid_taken,
                (true, false) => &mut self.valid_refused,
                (false, true) => &mut self.invalid_taken,
                (false, false) => &mut self.invalid_refused,
            } += 1;
            verdicts.push(taken);
        }
        verdicts
    }

    fn report(mut self) -> Value {
        let spread = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
            let mean = times.iter().sum::<f64>() / times.len() as f64;
            json!({"mean": mean, "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0), "count": times.len()})
        };
        let (masks, compiles) = (
            std::mem::take(&mut self.mask_us),
            std::mem::take(&mut self.compile_ms),
        );
        json!({
            "compiled": self.compiled,
            "valid": {"taken": self.valid_taken, "refused": self.valid_refused},
            "invalid": {"taken": self.invalid_taken, "refused": self.invalid_refused},
            "compile_ms": spread(compiles),
            "mask_us": spread(masks),
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [schemas, tokenizer] = &arguments[..] else {
        return Err("usage: maskbench SCHEMAS.jsonl TOKENIZER".into());
    };
    let tokenizer = Tokenizer::open(tokenizer)?;
    let ids = 0..tokenizer.vocab_size() as u32;
    let tokens: Vec<Vec<u8>> = ids
        .clone()
        .map(|id| tokenizer.token_bytes(id).to_vec())
        .collect();
    let special: Vec<u32> = ids.filter(|&id| tokenizer.is_special(id)).collect();
    let end = *tokenizer
        .special()
        .eos
        .first()
        .or(special.first())
        .ok_or("the tokenizer has no token that ends a text")?;

    let began = Instant::now();
    let vocabulary = Vocabulary::new(tokens.clone(), &special, &[end])?;
    let vocabulary_ms = 1e3 * began.elapsed().as_secs_f64();
    let factory = plain(tokens, &special, end)?;

    let (mut ours, mut theirs) = (Side::default(), Side::default());
    let (mut lines, mut differ) = (0, Vec::new());
    for line in std::fs::read_to_string(schemas)?.lines() {
        let line: Value = serde_json::from_str(line)?;
        let schema = &line["schema"];
        let tests = line["tests"].as_array().ok_or("a line has no `tests`")?;
        let instances = tests
            .iter()
            .map(|test| {
                let valid = test["valid"].as_bool().ok_or("a test has no `valid`")?;
                let text = test["data"].to_string();
                Ok((valid, tokenizer.encode(&text, false)?))
            })
            .collect::<Result<Vec<_>, Box<dyn Error>>>()?;
        let constraint = Constraint::JsonSchema(schema.to_string());
        let mut a = || {
            let compile = || Grammar::compile(&vocabulary, &constraint);
            ours.schema(compile, &instances, walk)
        };
        let mut b = || {
            let grammar = || TopLevelGrammar::from_json_schema(schema.clone());
            let compile = || {
                let matcher = Matcher::new(factory.create_parser(grammar()));
                match matcher.get_error() {
                    Some(error) => Err(error),
                    None => Ok(matcher),
                }
            };
            theirs.schema(compile, &instances, walk_plain)
        };
        // Taking turns in going first.
        let verdicts = match lines % 2 {
            0 => {
                let ours = a();
                (ours, b())
            }
            _ => {
                let theirs = b();
                (a(), theirs)
            }
        };
        if verdicts.0 != verdicts.1 {
            differ.push(line["id"].clone());
        }
        lines += 1;
    }
    println!(
        "{:#}",
        json!({
            "schemas": lines,
            "vocabulary": vocabulary.tokens(),
            "vocabulary_ms": vocabulary_ms,
            "guide": ours.report(),
            "llguidance": theirs.report(),
            "different_verdicts": differ,
        })
    );
    Ok(())
}

fn walk(grammar: &Grammar, tokens: &[u32], times: &mut Vec<f64>) -> bool {
    let mut guide = grammar.guide();
    for (place, &token) in tokens.iter().enumerate() {
        let began = Instant::now();
        let next = guide.next(&tokens[..place]);
        times.push(1e6 * began.elapsed().as_secs_f64());
        match next {
            Ok(Next::Tokens(allowed)) if allowed.has(token) => {}
            _ => return false,
        }
    }
    guide.accepts(tokens).unwrap_or(false)
}

/// The same with nothing between: the matcher's own steps, timed as they are for guides.
fn walk_plain(fresh: &Matcher, tokens: &[u32], times: &mut Vec<f64>) -> bool {
    let mut matcher = fresh.deep_clone();
    for place in 0..tokens.len() {
        let began = Instant::now();
        let moved = match place {
            0 => Ok(()),
            _ => matcher.consume_token(tokens[place - 1]),
        };
        let mask = moved.and_then(|()| matcher.compute_mask_or_eos());
        times.push(1e6 * began.elapsed().as_secs_f64());
        if !mask.is_ok_and(|mask| mask.is_allowed(tokens[place])) {
            return false;
        }
    }
    let last = tokens
        .last()
        .map_or(Ok(()), |&last| matcher.consume_token(last));
    last.is_ok() && matcher.is_accepting().unwrap_or(false)
}

/// A parser factory with the crate's own defaults.
fn plain(
    mut tokens: Vec<Vec<u8>>,
    special: &[u32],
    end: u32,
) -> Result<ParserFactory, Box<dyn Error>> {
    for &id in special {
        tokens[id as usize].insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
    }
    let info = TokRxInfo::new(tokens.len() as u32, end);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &tokens)));
    let mut factory = ParserFactory::new_simple(&env)?;
    factory.quiet();
    Ok(factory)
}
