use super::*;
use crate::split_overrides;
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    name: String,
    train: Train,
    #[serde(default)]
    sources: Vec<Source>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Train {
    steps: u64,
    learning_rate: f32,
    #[serde(default)]
    optimizer: Optimizer,
    clip: Option<f64>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Optimizer {
    #[default]
    Adamw,
    Muon,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    path: String,
    weight: f64,
}

const TEXT: &str = r#"name = "tiny"

[train]
steps = 10
learning_rate = 0.1

[[sources]]
path = "a.txt"
weight = 0.5
"#;

fn overrides(sets: &[&str]) -> Vec<Override> {
    sets.iter().map(|set| set.parse().unwrap()).collect()
}

fn read(text: &str, sets: &[&str]) -> Result<Settings> {
    Recipe::from_text("r.toml", text, &overrides(sets))?.parse()
}

/// The recipe with these overrides, as JSON of one key.
#[track_caller]
fn check(sets: &[&str], pointer: &str, expected: Value) {
    let settings = read(TEXT, sets).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        Recipe::resolved_json(&settings).unwrap().pointer(pointer),
        Some(&expected)
    );
}

#[track_caller]
fn check_error(text: &str, sets: &[&str], expected: &str) {
    assert_eq!(read(text, sets).unwrap_err().to_string(), expected);
}

#[test]
fn defaults_are_written_down() {
    check(&[], "/train/optimizer", "adamw".into());
    check(&[], "/train/clip", Value::Null);
    check(&[], "/train/learning_rate", 0.1.into());
}

#[test]
fn an_override_takes_out_what_it_stands_instead_of() {
    let table = |sets: &[&str]| {
        let recipe = Recipe::from_text("r.toml", TEXT, &overrides(sets)).unwrap();
        let pairs = &[("train.steps", "train.tokens")];
        recipe.with_alternatives(pairs).table().unwrap()["train"].clone()
    };
    let given = table(&["train.tokens=99"]);
    assert!(given.get("steps").is_none(), "{given}");
    assert_eq!(given["tokens"].as_integer(), Some(99));
    assert_eq!(table(&["train.steps=7"])["steps"].as_integer(), Some(7));
    // Who asks for both is told what reads the recipe: nothing is guessed.
    let both = table(&["train.tokens=99", "train.steps=7"]);
    assert_eq!(both.as_table().unwrap().len(), 3);
}

#[test]
fn an_unknown_key_of_a_stage_is_looked_for_in_its_tables() {
    let set = ["train.steps=7".parse().unwrap()];
    let text = "[train]\nsteps = 3\n";
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Of {
        #[allow(dead_code, reason = "a known key")]
        train: Value,
    }
    let dealt = split_overrides(&set, &["03-train"]).unwrap();
    let recipe = Recipe::from_text("03-train", text, &dealt[0]).unwrap();
    let error = recipe.parse::<Of>().unwrap_err().to_string();
    assert!(
        error.ends_with("did you mean `train.train.steps`?"),
        "{error}"
    );
    // What only the override itself has is no advice.
    let set = ["train.tempe=7".parse().unwrap()];
    #[derive(Debug, serde::Deserialize)]
    struct Strict {
        #[allow(dead_code, reason = "a known key")]
        train: OneKey,
    }
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OneKey {
        #[allow(dead_code, reason = "a known key")]
        steps: u64,
    }
    let recipe = Recipe::from_text("03-train", text, &set).unwrap();
    let error = recipe.parse::<Strict>().unwrap_err().to_string();
    assert!(
        error.contains("unknown field `tempe`") && !error.contains("did you mean"),
        "{error}"
    );
}

#[test]
fn overrides_replace_and_add() {
    check(&["train.steps=12"], "/train/steps", 12.into());
    check(&["train.steps = 12"], "/train/steps", 12.into());
    check(&["train.steps=0x10"], "/train/steps", 16.into());
    check(
        &["train.learning_rate=3e-4"],
        "/train/learning_rate",
        3e-4.into(),
    );
    check(&["train.clip=1.0"], "/train/clip", 1.0.into());
    check(
        &["train.steps=1", "train.steps=2"],
        "/train/steps",
        2.into(),
    );
    check(
        &["sources=[{path='b', weight=1.0}]"],
        "/sources/0/path",
        "b".into(),
    );
    check(&["sources=[]"], "/sources", Value::Array(Vec::new()));
    check(
        &["train={steps=3, learning_rate=1.0}"],
        "/train/steps",
        3.into(),
    );
    check(
        &["train={steps=3, learning_rate=1.0}", "train.steps=4"],
        "/train/steps",
        4.into(),
    );
}

#[test]
fn words_need_no_quotes() {
    check(
        &["name=data/stories.v2.txt"],
        "/name",
        "data/stories.v2.txt".into(),
    );
    check(
        &["name=two words # and more"],
        "/name",
        "two words # and more".into(),
    );
    check(&["name=\"quoted\""], "/name", "quoted".into());
    check(&["name="], "/name", "".into());
    check(&["name=2024-05-01"], "/name", "2024-05-01".into());
    check(&["name=a=b"], "/name", "a=b".into());
    check(
        &["name=x\ntrain.steps=99"],
        "/name",
        "x\ntrain.steps=99".into(),
    );
    check(&["train.optimizer=muon"], "/train/optimizer", "muon".into());
}

#[test]
fn a_value_that_begins_like_toml_must_be_toml() {
    for set in ["a=[1, 2", "a=\"x", "a={b", "a='x", "a=\"x\" y"] {
        let error = set.parse::<Override>().unwrap_err().to_string();
        assert!(
            error.starts_with(&format!(
                "--set {}: the value is not TOML (",
                set.escape_debug()
            )),
            "{error}"
        );
    }
}

#[test]
fn a_comment_behind_a_value_is_not_swallowed() {
    let error = read(TEXT, &["train.steps=5 # x"]).unwrap_err().to_string();
    assert_eq!(
        error,
        "--set train.steps=5 # x: invalid type: string \"5 # x\", expected a whole number, 0 or more"
    );
}

#[test]
fn errors_name_file_line_and_key() {
    check_error(
        &TEXT.replace("steps", "stpes"),
        &[],
        "r.toml:4: `train.stpes`: unknown field `stpes`, expected one of `steps`, `learning_rate`, `optimizer`, `clip`; \
         did you mean `steps`?",
    );
    check_error(
        &TEXT.replace("= 10", "= \"ten\""),
        &[],
        "r.toml:4: `train.steps`: invalid type: string \"ten\", expected a whole number, 0 or more",
    );
    check_error(
        &TEXT.replace("0.5", "true"),
        &[],
        "r.toml:9: `sources[0].weight`: invalid type: boolean `true`, expected a number",
    );
    check_error(
        &TEXT.replace("steps = 10\n", ""),
        &[],
        "r.toml:3: `train`: `steps` is missing; write it too",
    );
    check_error(
        &TEXT.replace("name = \"tiny\"\n", ""),
        &[],
        "r.toml: `name` is missing; write it too",
    );
    check_error(
        &TEXT.replace("steps = 10", "steps = 10\nsteps = 11"),
        &[],
        "r.toml:5: duplicate key",
    );
    check_error(
        &TEXT.replace("= 10", "= -1"),
        &[],
        "r.toml:4: `train.steps`: invalid value: integer `-1`, expected a whole number, 0 or more",
    );
    check_error(
        &TEXT.replace("[train]", "[train]\noptimizer = \"muno\""),
        &[],
        "r.toml:4: `train.optimizer`: unknown variant `muno`, expected `adamw` or `muon`; did you mean `muon`?",
    );
    check_error(
        &TEXT.replace("= 10", "= inf"),
        &[],
        "r.toml:4: `train.steps` is inf, which is not a finite number; for a word, write it in quotes",
    );
}

#[test]
fn errors_of_overrides_name_them() {
    check_error(
        TEXT,
        &["train.clip=1.0", "train.stpes=3"],
        "--set train.stpes=3: unknown field `stpes`, expected one of `steps`, `learning_rate`, `optimizer`, `clip`; \
         did you mean `steps`?",
    );
    check_error(
        TEXT,
        &["trian.steps=3"],
        "--set trian.steps=3: unknown field `trian`, expected one of `name`, `train`, \
         `sources`; did you mean `train`?",
    );
    check_error(
        TEXT,
        &["train.steps=many"],
        "--set train.steps=many: invalid type: string \"many\", expected a whole number, 0 or more",
    );
    check_error(
        TEXT,
        &["train.steps.x=3"],
        "--set train.steps.x=3: `train.steps` is of type integer in the recipe, so nothing lies below it",
    );
    check_error(
        TEXT,
        &["sources.path=b"],
        "--set sources.path=b: `sources` is of type array in the recipe, so nothing lies below it",
    );
    check_error(
        TEXT,
        &["train.clip=nan"],
        "--set train.clip=nan: `train.clip` is nan, which is not a finite number; for a word, write it in quotes",
    );
    check_error(
        TEXT,
        &["sources=[{path='b', weight=1.0}, {path='c', wight=1.0}]"],
        "--set sources=[{path='b', weight=1.0}, {path='c', wight=1.0}]: unknown field `wight`, expected `path` or \
         `weight`; did you mean `weight`?",
    );
}

#[test]
fn files_are_bounded_and_named_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("03-pretrain.toml");
    let missing = Recipe::load(&path, &[]).unwrap_err().to_string();
    assert!(
        missing.starts_with(&format!("cannot read the recipe {}: ", path.display())),
        "{missing}"
    );
    std::fs::write(&path, TEXT).unwrap();
    let recipe = Recipe::load(&path, &overrides(&["train.steps=11"])).unwrap();
    assert_eq!(recipe.name(), "03-pretrain");
    assert_eq!(
        recipe.table().unwrap()["train"]["steps"].as_integer(),
        Some(11)
    );
    std::fs::write(&path, "#".repeat(MAX_BYTES as usize)).unwrap();
    assert!(Recipe::load(&path, &[]).is_ok());
    std::fs::write(&path, "#".repeat(MAX_BYTES as usize + 1)).unwrap();
    let long = Recipe::load(&path, &[]).unwrap_err().to_string();
    assert!(
        long.ends_with("it is longer than 1 MiB, so it is hardly a recipe; name a TOML file"),
        "{long}"
    );
    std::fs::write(&path, b"a = \"\xff\"").unwrap();
    assert!(
        Recipe::load(&path, &[])
            .unwrap_err()
            .to_string()
            .contains("not UTF-8")
    );
}

fn key() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_-]{1,8}(\\.[a-zA-Z0-9_-]{1,8}){0,3}"
}

proptest! {
    /// What the override says is what the table holds, wherever it goes and whatever the text is.
    #[test]
    fn any_string_survives_an_override(key in key(), text in any::<String>()) {
        // JSON's string syntax is TOML's, but for the surrogates and the delete character.
        let quoted = serde_json::to_string(&text).unwrap().replace('\u{7f}', "\\u007f");
        let one: Override = format!("{key}={quoted}").parse().unwrap();
        prop_assert_eq!(one.key(), key.clone());
        let table = Recipe::from_text("r", "", &[one]).unwrap().table().unwrap();
        let found = key.split('.').fold(&toml::Value::Table(table), |value, part| &value[part]).as_str().map(str::to_owned);
        prop_assert_eq!(found, Some(text));
    }

    #[test]
    fn any_number_survives_an_override(whole in any::<i64>(), float in proptest::num::f64::NORMAL) {
        let sets = [format!("a.w={whole}"), format!("a.f={float:?}")].map(|set| set.parse().unwrap());
        let table = Recipe::from_text("r", "[a]\nx = 1", &sets).unwrap().table().unwrap();
        prop_assert_eq!(table["a"]["w"].as_integer(), Some(whole));
        prop_assert_eq!(table["a"]["f"].as_float(), Some(float));
        prop_assert_eq!(table["a"]["x"].as_integer(), Some(1));
    }

    /// A word that TOML does not know comes through as typed.
    #[test]
    fn any_word_survives_an_override(word in "[g-z/][g-z/ ._-]{0,20}[g-z/]") {
        prop_assume!(!matches!(word.as_str(), "inf" | "nan" | "true" | "false"));
        let table = Recipe::from_text("r", "", &[format!("a={word}").parse().unwrap()]).unwrap().table().unwrap();
        prop_assert_eq!(table["a"].as_str(), Some(word.as_str()));
    }

    #[test]
    fn no_text_makes_it_panic(text: String, set: String, value: String) {
        let sets: Vec<Override> = set.parse().into_iter().chain(format!("train.steps={value}").parse()).collect();
        for text in [text.as_str(), TEXT] {
            if let Ok(recipe) = Recipe::from_text("r", text, &sets) {
                let _ = recipe.parse::<Settings>();
                let _ = recipe.table();
            }
        }
    }

    /// One byte wrong anywhere in a real recipe: settings, or a sentence with the file's name.
    #[test]
    fn no_damage_makes_it_panic(at in 0..TEXT.len(), byte in 0_u8..128) {
        let mut bytes = TEXT.as_bytes().to_vec();
        bytes[at] = byte;
        if let Err(error) = read(std::str::from_utf8(&bytes).unwrap(), &["train.clip=1.0"]) {
            let error = error.to_string();
            prop_assert!(error.starts_with("r.toml") || error.starts_with("--set"), "{}", error);
        }
    }
}
