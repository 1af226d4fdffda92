//! A trained model of llama2.c through everything that text goes through: converted, saved, opened, continued, shown. What it must say
//! was recorded by llama2.c itself (`golden/stories260K/greedy.json`).

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{greedy, pool};
use russet_engine::{Engine, EngineConfig, Finish, Flow, Generate, Generation};
use russet_kernels::elementwise::highest;
use russet_model::{Decoder, checkpoint, llama2c};
use russet_tensor::{Ctx, Segments};
use russet_tokenizer::Tokenizer;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden/stories260K")
        .join(name)
}

/// One recorded run: `steps` tokens after the first, those of the prompt among them, and the text they make.
struct Recorded {
    prompt: String,
    steps: usize,
    text: String,
}

fn recorded() -> Vec<Recorded> {
    let json: Value =
        serde_json::from_slice(&std::fs::read(golden("greedy.json")).unwrap()).unwrap();
    let text = |run: &Value, key: &str| run[key].as_str().unwrap().to_owned();
    let runs = json.as_array().unwrap().iter().map(|run| {
        assert_eq!(run["temperature"], 0);
        Recorded {
            prompt: text(run, "prompt"),
            steps: run["steps"].as_u64().unwrap() as usize,
            text: text(run, "text"),
        }
    });
    runs.collect()
}

/// Model and tokenizer as they come out of a Hugging Face folder, from either version of the file.
fn converted(file: &str) -> (Arc<Decoder>, Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    let decoder = llama2c::load(&golden(file)).unwrap();
    checkpoint::save(&decoder, folder.path()).unwrap();
    Tokenizer::from_llama2c(golden("tok512.bin"), decoder.config().vocab)
        .unwrap()
        .save(folder.path())
        .unwrap();
    let decoder = checkpoint::open(folder.path()).unwrap();
    (Arc::new(decoder), Tokenizer::open(folder.path()).unwrap())
}

fn say(decoder: &Arc<Decoder>, prompt: Vec<u32>, max_tokens: usize) -> Generation {
    let config = EngineConfig::new(decoder.config().context, 1);
    let mut engine = Engine::new(decoder.clone(), pool(2), config).unwrap();
    engine
        .generate(&greedy(prompt, max_tokens), &mut |_| Flow::Continue)
        .unwrap()
}

/// The text of tokens that come one at a time.
fn shown(tokenizer: &Tokenizer, tokens: impl IntoIterator<Item = u32>) -> String {
    let mut detokenizer = tokenizer.detokenizer(true);
    let mut text = String::new();
    for token in tokens {
        detokenizer.push_into(token, &mut text);
    }
    text + &detokenizer.finish()
}

#[test]
fn it_says_what_llama2c_says() {
    let runs = recorded();
    assert!(runs.len() >= 3 && runs.iter().any(|run| run.prompt.is_empty()));
    for file in ["stories260K.bin", "checkpoint_v1.bin"] {
        let (decoder, tokenizer) = converted(file);
        for Recorded {
            prompt,
            steps,
            text,
        } in &runs
        {
            let tokens = tokenizer.encode(prompt, true).unwrap();
            assert_eq!(Some(tokens[0]), decoder.config().bos);
            assert_eq!(prompt.is_empty(), tokens.len() == 1);
            let wanted = steps + 1 - tokens.len();
            let generation = say(&decoder, tokens.clone(), wanted);
            assert_eq!(
                (generation.tokens.len(), generation.finish),
                (wanted, Finish::Length)
            );
            let all = tokens.into_iter().chain(generation.tokens);
            assert_eq!(shown(&tokenizer, all), *text, "{file}, prompt {prompt:?}");
        }
    }
}

#[test]
fn one_token_is_the_first_of_many() {
    let (decoder, tokenizer) = converted("stories260K.bin");
    for Recorded { prompt, .. } in &recorded() {
        let tokens = tokenizer.encode(prompt, true).unwrap();
        let (one, many) = (say(&decoder, tokens.clone(), 1), say(&decoder, tokens, 20));
        assert_eq!(one.tokens, many.tokens[..1], "{prompt:?}");
        assert_eq!(one.logprobs, many.logprobs[..1], "{prompt:?}");
    }
}

#[test]
fn the_whole_context_is_filled_with_the_most_probable_tokens() {
    let (decoder, tokenizer) = converted("stories260K.bin");
    let context = decoder.config().context;
    let Recorded { steps, text, .. } = &recorded()[0];
    let bos = decoder.config().bos.unwrap();
    let generation = say(&decoder, vec![bos], usize::MAX);
    assert_eq!(generation.finish, Finish::Context);
    let all: Vec<u32> = std::iter::once(bos).chain(generation.tokens).collect();
    assert_eq!(all.len(), context);
    assert_eq!(shown(&tokenizer, all[..=*steps].iter().copied()), *text);

    let mut ctx = Ctx::new(pool(2));
    let read = context - 1; // what follows the last token has no place
    let hidden = decoder.forward(&mut ctx, &all[..read], &Segments::packed(&[read]), None);
    let logits = decoder.logits(&mut ctx, &hidden);
    for (n, row) in logits
        .data()
        .chunks_exact(decoder.config().vocab)
        .enumerate()
    {
        assert_eq!(all[n + 1] as usize, highest(row), "token {}", n + 1);
    }

    // A prompt of all but one place leaves room for one token, and it is the same.
    let last = say(&decoder, all[..read].to_vec(), 5);
    assert_eq!(
        (last.tokens, last.finish),
        (all[read..].to_vec(), Finish::Context)
    );
}
