//! The verbs that take a model, on stories260K.

mod common;

use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use common::{exits, fields, golden, mini, ok, russet};
use serde_json::Value;

fn stories(dir: &Path) {
    let model = golden("stories260K/stories260K.bin");
    let from = ["convert", "--from", "llama2c", "--to", "hf", "--in"];
    let to = [model.to_str().unwrap(), "--out", "stories", "--json"];
    let json = ok(dir, &[&from[..], &to].concat()).json();
    fields(&json, &["out", "parameters", "vocab", "layers"]);
    assert_eq!(json["parameters"], 260_032);
}

fn manifest(folder: &Path) -> Value {
    let bytes = std::fs::read(folder.join("manifest.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn a_converted_model_says_what_it_was_made_of() {
    let dir = tempfile::tempdir().unwrap();
    stories(dir.path());
    let folder = dir.path().join("stories");
    let inputs = &manifest(&folder)["inputs"];
    fields(inputs, &["model", "tokenizer"]);
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(
        card.contains("llama2.c") && card.contains("260032"),
        "{card}"
    );
    // Converted once more, it counts as the artifact that it is.
    let again = [
        "convert", "--from", "hf", "--to", "hf", "--in", "stories", "--out", "again",
    ];
    ok(dir.path(), &again);
    let input = &manifest(&dir.path().join("again"))["inputs"]["model"];
    assert!(input["kind"].to_string().contains("checkpoint"), "{input}");
    let with = [&again[..], &["--tokenizer", "nowhere"]].concat();
    exits(dir.path(), 2, &with);
    exits(
        dir.path(),
        2,
        &[
            "convert", "--from", "hf", "--to", "llama2c", "--in", "stories", "--out", "b",
        ],
    );
    // What a conversion did not write, it does not replace: here, what says that training wrote it.
    let path = dir.path().join("again/manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let trained = text.replace(
        "\"stage\": \"convert\",\n  \"tool",
        "\"stage\": \"pretrain\",\n  \"tool",
    );
    assert_ne!(text, trained);
    std::fs::write(&path, &trained).unwrap();
    let refused = exits(dir.path(), 1, &again);
    assert!(
        refused.stderr.contains("`pretrain` wrote it"),
        "{}",
        refused.stderr
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), trained);
}

#[test]
fn verbs_keep_their_objects_and_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    stories(dir.path());
    mini(dir.path());
    let dir = dir.path();
    let json = |arguments: &[&str]| ok(dir, &[arguments, &["--json"]].concat()).json();
    let model = ["--model", "stories"];

    let prompt = [
        "generate",
        "--prompt",
        "Once upon a time",
        "--temperature",
        "0",
    ];
    let generate = [&prompt[..], &model].concat();
    let made = json(&[&generate[..], &["--max-tokens", "6"]].concat());
    let names = [
        "text",
        "tokens",
        "prompt_tokens",
        "tokens_per_second",
        "token_ids",
        "finish",
        "prefill_seconds",
    ];
    fields(&made, &names);
    assert_eq!(
        (&made["tokens"], &made["finish"]),
        (&6.into(), &"length".into())
    );
    assert!(made["tokens_per_second"].as_f64() > Some(0.0));
    let traced = json(
        &[
            &generate[..],
            &["--max-tokens", "6", "--trace", "trace.json"],
        ]
        .concat(),
    );
    assert_eq!(traced["token_ids"], made["token_ids"]);
    let trace = std::fs::read(dir.join("trace.json")).unwrap();
    let trace: Value = serde_json::from_slice(&trace).unwrap();
    let steps = trace["traceEvents"].as_array().unwrap().iter();
    assert_eq!(steps.filter(|event| event["name"] == "step").count(), 6);
    exits(
        dir,
        1,
        &[&generate[..], &["--trace", "nowhere/trace.json"]].concat(),
    );
    guided_and_guessed(dir, &generate, &made);
    let one = json(&[&generate[..], &["--max-tokens", "1"]].concat());
    assert!(one["tokens_per_second"].is_null());
    let full = json(&[&generate[..], &["--max-tokens", "100000"]].concat());
    assert!(
        full["finish"] == "context" || full["finish"] == "stop",
        "{}",
        full["finish"]
    );
    let stopped = json(&[&generate[..], &["--stop", " was", "--max-tokens", "60"]].concat());
    assert_eq!(stopped["finish"], "stop");
    assert!(!stopped["text"].as_str().unwrap().contains(" was"));
    // For a person: the prompt, the text, and nothing else on standard output.
    let text = ok(dir, &[&generate[..], &["--max-tokens", "6"]].concat()).stdout;
    assert_eq!(
        text,
        format!("Once upon a time{}\n", made["text"].as_str().unwrap())
    );

    let ids = json(&[&["tokenizer", "encode", "--text", "a fox"][..], &model].concat());
    fields(&ids, &["ids", "tokens"]);
    let scores = json(
        &[
            &["eval", "perplexity", "--text", "heldout.jsonl"][..],
            &model,
        ]
        .concat(),
    );
    fields(
        &scores,
        &["perplexity", "bits_per_byte", "tokens", "kld", "same_top"],
    );
    assert!(scores["kld"].is_null());
    let against = [
        "eval",
        "perplexity",
        "--text",
        "heldout.jsonl",
        "--against",
        "stories",
    ];
    let scores = json(&[&against[..], &model].concat());
    assert_eq!(
        (&scores["kld"], &scores["same_top"]),
        (&0.0.into(), &1.0.into())
    );
    let logits = [
        "eval",
        "logits",
        "--tokens",
        "1,2,3",
        "--out",
        "l.safetensors",
    ];
    let logits = json(&[&logits[..], &model].concat());
    fields(&logits, &["out", "shape"]);
    assert_eq!(logits["shape"], serde_json::json!([3, 512]));
    let bench = json(&[&["bench", "-p", "16", "-n", "4", "-r", "1"][..], &model].concat());
    assert_eq!(bench["tests"][0]["type_k"], "f32");
    let names = [
        "pp16",
        "tg4",
        "bytes_per_token",
        "dram_gb_s",
        "decode_gb_s",
        "int8_gop_s",
        "prefill_gop_s",
        "threads",
        "cache_bytes_per_token",
        "tests",
    ];
    fields(&bench, &names);
    let shape = "dim=64,layers=1,heads=2,kv_heads=1,head_dim=32,ffn=128,vocab=100";
    let random = [
        "bench",
        "--random",
        shape,
        "--adapter-rank",
        "4",
        "--adapters",
        "3",
    ];
    let small = ["-p", "16", "-n", "4", "-b", "3", "-r", "2"];
    let bench = json(&[&random[..], &small].concat());
    assert!(bench["tg4 x 3"].as_f64() > Some(0.0));
    let through = &bench["adapter"];
    assert_eq!([&through["rank"], &through["adapters"]], [4, 3]);
    assert!(through["tg4 x 3"].as_f64() > Some(0.0) && through["decode_share"].is_number());
    for (test, [prompt, generated]) in [[16, 0], [0, 4]].into_iter().enumerate() {
        let test = &bench["tests"][test];
        assert_eq!([&test["n_prompt"], &test["n_gen"]], [prompt, generated]);
        // A package's keys and values are kept in 8 bits where nobody says, as a checkpoint's are not.
        assert_eq!(
            (&test["type_k"], &test["type_v"]),
            (&"q8".into(), &"q8".into())
        );
        assert_eq!(test["samples_ts"].as_array().map(Vec::len), Some(2));
        let words = ["avg_ts", "stddev_ts", "avg_ns", "stddev_ns", "model_size"];
        assert!(words.iter().all(|word| test[word].is_number()), "{test}");
    }
    let serving = [
        "bench",
        "serving",
        "-r",
        "2",
        "--adapter-rank",
        "4",
        "--threads",
        "2",
    ];
    let figures = [
        "first_token_ms",
        "swap_memory_ms",
        "swap_disk_ms",
        "token_plain_ms",
        "token_beside_unused_ms",
        "token_ms",
        "token_while_loading_ms",
    ];
    let sizes = [
        "resident_bytes",
        "package_bytes",
        "cache_bytes",
        "adapter_bytes",
        "threads",
    ];
    for model in [["--random", shape], ["--model", "stories"]] {
        let measured = json(&[&serving[..], &model].concat());
        fields(&measured, &[&figures[..], &sizes].concat());
        for figure in figures {
            let times = &measured[figure];
            assert!(
                times["samples"].as_u64() >= Some(2),
                "{figure} of {measured}"
            );
            let (median, p99) = (times["median"].as_f64(), times["p99"].as_f64());
            assert!(
                Some(0.0) < median && median <= p99,
                "{figure} of {measured}"
            );
        }
        for size in sizes {
            assert!(measured[size].as_u64() > Some(0), "{size} of {measured}");
        }
        assert!(measured["resident_bytes"].as_u64() > measured["package_bytes"].as_u64());
    }
    let step = "dim=32,layers=1,heads=2,kv_heads=1,ffn=64,vocab=100,seq=16,batch=2";
    for dtype in ["f32", "bf16"] {
        let train = ["bench", "train", "--shape", step, "--dtype", dtype];
        let bench = json(&[&train[..], &["--threads", "2", "--steps", "2"]].concat());
        let positive = [
            "tokens_per_second",
            "cpu_s_per_step",
            "peak_rss_bytes",
            "mfu",
            "gemm_share",
            "loss",
        ];
        for field in positive {
            assert!(bench[field].as_f64() > Some(0.0), "{field} of {bench}");
        }
        assert_eq!(
            (&bench["dtype"], &bench["tokens"]),
            (&dtype.into(), &32.into())
        );
        assert_eq!(bench["seconds"].as_array().map(Vec::len), Some(2));
        let shares = bench["profile"].as_array().unwrap();
        let all: f64 = shares.iter().filter_map(|share| share[1].as_f64()).sum();
        assert!(0.2 < all && all < 1.05, "{bench}");
    }
    assert!(ok(dir, &["completions", "bash"]).stdout.contains("russet"));
    small_caches(dir, &generate, &made);

    for (code, arguments) in [
        (2, &["generate", "--prompt", "a", "--max-tokens", "0"][..]),
        (2, &["generate", "--prompt", "a", "--temperature", "-1"]),
        (2, &["bench", "--bpw", "3"]),
        (2, &["bench", "-p", "5000"]),
        (2, &["bench", "-r", "0"]),
        (
            2,
            &[
                "eval",
                "perplexity",
                "--text",
                "heldout.jsonl",
                "--window",
                "9999",
            ],
        ),
        (1, &["eval", "perplexity", "--text", "nowhere.jsonl"]),
        (
            2,
            &[
                "eval",
                "logits",
                "--tokens",
                "512",
                "--out",
                "a.safetensors",
            ],
        ),
        (2, &["chat", "--max-tokens", "0"]),
        (2, &["chat", "--cache-type", "q4_0"]),
        (2, &["bench", "--bits", "3"]),
    ] {
        let ran = exits(dir, code, &[arguments, &model].concat());
        assert!(
            ran.stderr.starts_with("error: ") && ran.stdout.is_empty(),
            "{}",
            ran.stderr
        );
    }
    exits(dir, 1, &["generate", "--prompt", "a", "--model", "nowhere"]);
    exits(dir, 2, &["generate"]);
    exits(dir, 2, &["nonsense"]);
    let palettize = ["palettize", "--calibration", "train.jsonl", "--out", "p"];
    for wrong in [
        ["--target-bpw", "nan"],
        ["--target-bpw", "7"],
        ["--set", "inputs.checkpoint=b"],
        ["--set", "palettize.target_bpw=3"],
        ["--set", "palettize.bits=[2,3]"],
        ["--bits", "2,5"],
        ["--bits", "3,3"],
        ["--table-bits", "6"],
        ["--set", "palettize.table_bits=4"],
        ["--set", "palettize.target_bytes=3"],
        ["--target-bytes", "12"],
        ["--pin", "*.v_proj=5"],
        ["--pin", "*.w_proj=4"],
        ["--pin", "v_proj"],
    ] {
        exits(dir, 2, &[&palettize[..], &model, &wrong].concat());
    }
    let itself = [
        "palettize",
        "--calibration",
        "train.jsonl",
        "--out",
        "./stories",
    ];
    let refused = exits(dir, 2, &[&itself[..], &model].concat());
    assert!(
        refused.stderr.contains("is the model itself"),
        "{}",
        refused.stderr
    );
    let deep = format!("{}=1", vec!["a"; 60_000].join("."));
    exits(
        dir,
        2,
        &[&palettize[..], &model, &["--set", &deep]].concat(),
    );
    let plan = json(&[&palettize[..], &model, &["--dry-run"]].concat());
    assert!(plan["stages"][0]["plan"]["memory_bytes"].as_u64() > Some(1 << 20));
    let flops = |plan: &Value| plan["stages"][0]["plan"]["flops"].as_f64().unwrap();
    let four = ["--table-bits", "4", "--dry-run"];
    let asked = json(&[&palettize[..], &model, &four].concat());
    assert!(flops(&asked) > flops(&plan));
    assert!(!dir.join("p").exists());
}

#[test]
fn what_a_path_or_value_was_probably_meant_to_be_is_said() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path();
    stories(dir);
    mini(dir);
    let says = |code: i32, arguments: &str, part: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let ran = exits(dir, code, &arguments);
        assert!(ran.stderr.contains(part), "{arguments:?}: {}", ran.stderr);
        ran.stderr
    };
    let meant = "did you mean ./stories?";
    says(1, "generate --prompt a --model .", meant);
    says(1, "tokenizer encode --text a --model .", meant);
    says(1, "bench --model .", meant);
    says(
        1,
        "palettize --calibration train.jsonl --out p --model .",
        meant,
    );
    says(
        1,
        "generate --prompt a --model stories/model.safetensors",
        "this is a file, and a model is a folder; name the one it lies in, stories",
    );
    let generate = "generate --prompt a --model stories";
    let here = "paths count from the working directory";
    let text = "eval perplexity --model stories --text";
    let palettize = "palettize --model stories --out p --calibration";
    says(1, &format!("{text} nope.txt"), here);
    says(1, &format!("{palettize} nope.txt"), here);
    says(
        1,
        &format!("{generate} --adapter nope"),
        "there is no such folder; name a PEFT folder",
    );
    says(
        1,
        &format!("{generate} --adapter stories"),
        "no adapter_config.json",
    );
    says(
        2,
        &format!("{palettize} train.jsonl --set palettize.target_bpw=3"),
        "write --target-bpw",
    );
    says(
        2,
        &format!("{generate} --temperature -1"),
        "error: temperature is -1",
    );
    says(2, &format!("{generate} --seed -3"), "invalid value '-3'");
    for count in ["--top-k", "--max-tokens", "--top-logprobs"] {
        let sentence = "it must be a whole number, 0 or more";
        says(2, &format!("{generate} {count} -3"), sentence);
        says(2, &format!("{generate} {count} x"), sentence);
    }

    let bin = golden("stories260K/stories260K.bin");
    let convert =
        |from: &str, path: &str| format!("convert --to hf --out c --from {from} --in {path}");
    says(2, &convert("llama2c", "stories"), "write --from hf");
    says(
        2,
        &convert("hf", bin.to_str().unwrap()),
        "write --from llama2c",
    );
    says(
        1,
        "eval logits --tokens 1 --model stories --out no/l.safetensors",
        "no: there is no such folder to write",
    );

    let tokenizer = "tokenizer train mini/01-tokenizer.toml --set tokenizer.vocab_size";
    says(2, &format!("{tokenizer}=abc"), "expected a whole number");
    let small = says(2, &format!("{tokenizer}=262"), "set vocab_size to at least");
    assert!(!small.contains("alphabet"), "{small}");

    // Files that were cut off.
    let packed = std::fs::read(golden("../data/tales/heldout.jsonl.zst")).unwrap();
    std::fs::write(dir.join("cut.jsonl.zst"), &packed[..packed.len() / 2]).unwrap();
    says(1, &format!("{text} cut.jsonl.zst"), "it was cut off");
    let weights = dir.join("stories/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    says(1, generate, "so write or fetch it again");
    let tokenizer = dir.join("stories/tokenizer.json");
    std::fs::rename(&tokenizer, dir.join("kept.json")).unwrap();
    says(1, generate, "there is no tokenizer.json in this folder");
    std::fs::write(dir.join("stories/tokenizer.model"), "").unwrap();
    says(1, generate, "there is a tokenizer.model");
    std::fs::rename(dir.join("kept.json"), &tokenizer).unwrap();
    std::fs::write(&weights, "").unwrap();
    let empty = says(1, generate, "is empty; it was probably not written");
    assert_eq!(empty.matches("model.safetensors").count(), 1, "{empty}");
    std::fs::write(dir.join("stories/config.json"), "{").unwrap();
    says(1, generate, "write it again or fetch it anew");
}

#[test]
fn text_that_nobody_reads_is_not_generated() {
    let dir = tempfile::tempdir().unwrap();
    stories(dir.path());
    let arguments = [
        "generate",
        "--model",
        "stories",
        "--prompt",
        "Once",
        "--max-tokens",
        "400",
    ];
    let mut child = russet(dir.path(), &arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first words are read, and then nobody listens any more.
    let mut first = [0; 4];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"Once");
    drop(out);
    let ran = common::Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("closed before the text ended"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_chat_answers_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    stories(dir.path());
    std::fs::write(
        dir.path().join("lines"),
        b"Hello\n\nH\xff\n/help\n/new\nTell me a tale\n/bye\nnever read\n",
    )
    .unwrap();
    let arguments = ["chat", "--model", "stories", "--max-tokens", "4", "--json"];
    let lines = std::fs::File::open(dir.path().join("lines")).unwrap();
    let ran = common::Ran::from(
        russet(dir.path(), &arguments)
            .stdin(lines)
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let answers: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 2);
    fields(&answers[0], &["text", "tokens", "finish"]);
    for said in [
        "ChatML is used",
        "not UTF-8 from byte 1 on",
        "/new begins a new conversation",
    ] {
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
}

#[cfg(not(feature = "mpi"))]
#[test]
fn processes_of_mpirun_are_told_how_to_build_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let start = |rank: &str| {
        let mut command = russet(dir.path(), &["pretrain", "recipe.toml"]);
        command.env("OMPI_COMM_WORLD_SIZE", "2");
        command.env("OMPI_COMM_WORLD_RANK", rank);
        common::Ran::from(command.output().unwrap())
    };
    let (first, second) = (start("0"), start("1"));
    assert_eq!((first.code, second.code), (2, 2));
    let told = "mpirun started 2 processes, but this russet was built without MPI";
    assert!(first.stderr.contains(told), "{}", first.stderr);
    assert!(first.stderr.contains("--features mpi"), "{}", first.stderr);
    assert_eq!(second.stderr, "", "the first tells it");
}

/// `generate` under guides, with guesses and with what changes logits; `made` is its text without.
fn guided_and_guessed(dir: &Path, generate: &[&str], made: &Value) {
    let json = |more: &[&str]| ok(dir, &[generate, more, &["--json"]].concat()).json();
    let six = ["--max-tokens", "6"];
    // Guesses change nothing but what is told of them.
    for guess in [&["--prompt-lookup"][..], &["--draft", "stories"]] {
        let guessed = json(&[&six[..], guess].concat());
        assert_eq!(guessed["token_ids"], made["token_ids"], "{guess:?}");
        let names = ["drafted", "accepted", "steps", "acceptance", "break_even"];
        fields(&guessed["speculation"], &names);
    }
    let top = json(&[&six[..], &["--top-logprobs", "2"]].concat());
    let first = &top["top_logprobs"][0];
    assert_eq!(first.as_array().map(Vec::len), Some(2));
    assert_eq!(
        first[0]["id"], made["token_ids"][0],
        "the likeliest was taken"
    );
    assert_eq!(first[0]["logprob"], top["logprobs"][0]);
    // What is biased away does not come.
    let away = format!("{}=-100", made["token_ids"][0]);
    let biased = json(&[&six[..], &["--logit-bias", &away]].concat());
    assert_ne!(biased["token_ids"][0], made["token_ids"][0]);
    let penalised = json(&["--max-tokens", "60", "--repetition-penalty", "100"]);
    let mut ids: Vec<u64> = penalised["token_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap())
        .collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    let different = ids.len();
    assert!(
        10 * different > 8 * all,
        "{different} different tokens of {all}"
    );

    let chosen = json(&["--choice", "yes, she did", "--choice", "no"]);
    let text = chosen["text"].as_str().unwrap();
    assert!(["yes, she did", "no"].contains(&text), "{text}");
    assert_eq!(chosen["finish"], "guide");
    let schema = r#"{"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "name": {"enum": ["Lily", "Tom"]}},
        "required": ["age", "name"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}}"#;
    std::fs::write(dir.join("schema.json"), schema).unwrap();
    for guess in [&[][..], &["--prompt-lookup"]] {
        let arguments = ["--json-schema", "schema.json", "--max-tokens", "60"];
        let made = json(&[&arguments[..], guess].concat());
        let value: Value = serde_json::from_str(made["text"].as_str().unwrap()).unwrap();
        assert!(value["age"].as_u64() <= Some(99), "{value}");
        assert!(["Lily", "Tom"].contains(&value["name"].as_str().unwrap()));
    }
    let digits = json(&["--regex", "[0-9]{3}"]);
    assert!(digits["text"].as_str().unwrap().parse::<u32>().is_ok());
    std::fs::write(dir.join("list.lark"), "start: \"[\" /[a-z]{1,3}/ \"]\"").unwrap();
    let list = json(&["--grammar", "list.lark"]);
    assert!(list["text"].as_str().unwrap().starts_with('['), "{list}");

    let refused = |code, more: &[&str]| exits(dir, code, &[generate, more].concat());
    refused(2, &["--logit-bias", "7"]);
    refused(2, &["--logit-bias", "100000=1"]);
    let twice = ["--logit-bias", "7=1", "--logit-bias", "8=1"];
    let twice = [&twice[..], &["--logit-bias", "7=-2"]].concat();
    let sentence = refused(2, &twice).stderr;
    assert!(
        sentence.contains("names the token 7 more than once"),
        "{sentence}"
    );
    refused(2, &["--presence-penalty", "3"]);
    refused(2, &["--top-logprobs", "2"]);
    refused(2, &["--stop", ""]);
    refused(2, &["--regex", "a", "--json-object"]);
    refused(2, &["--draft", "stories", "--prompt-lookup"]);
    let sentence = refused(2, &["--regex", "("]).stderr;
    assert!(
        sentence.contains("the regular expression cannot guide"),
        "{sentence}"
    );
    let sentence = refused(2, &["--json-schema", "nowhere.json"]).stderr;
    assert!(
        sentence.contains("--json-schema nowhere.json"),
        "{sentence}"
    );
}

/// Keys and values in 8 bits, wherever a verb can be asked for them: a smaller cache, and nearly the same answers.
fn small_caches(dir: &Path, generate: &[&str], made: &Value) {
    let json = |arguments: &[&str], cache: &str| {
        let more = ["--cache-type", cache, "--json"];
        ok(dir, &[arguments, &more].concat()).json()
    };
    let six = [generate, &["--max-tokens", "6"]].concat();
    assert_eq!(json(&six, "f32")["token_ids"], made["token_ids"]);
    assert_eq!(json(&six, "q8")["tokens"], 6);
    let guessed = [&six[..], &["--draft", "stories"]].concat();
    let (alone, guessed) = (json(&six, "q8"), json(&guessed, "q8"));
    assert_eq!(alone["token_ids"], guessed["token_ids"]);

    let scored = [
        "eval",
        "perplexity",
        "--model",
        "stories",
        "--text",
        "heldout.jsonl",
    ];
    let against = [&scored[..], &["--against", "stories"]].concat();
    let (exact, rounded) = (json(&against, "f32"), json(&against, "q8"));
    let (kld, same) = (
        rounded["kld"].as_f64().unwrap(),
        rounded["same_top"].as_f64().unwrap(),
    );
    assert!(0.0 < kld && kld < 0.02 && same > 0.9, "{rounded}");
    assert_eq!(exact["kld"], 0.0);
    // Alone the loss is summed another way.
    let perplexity = |scored: &Value| scored["perplexity"].as_f64().unwrap();
    let (alone, beside) = (perplexity(&json(&scored, "q8")), perplexity(&rounded));
    assert!((alone / beside - 1.0).abs() < 1e-6, "{alone}, {beside}");

    let bench = [
        "bench", "--model", "stories", "-p", "4", "-n", "2", "-r", "1",
    ];
    let [whole, half, eighth] = ["f32", "f16", "q8"].map(|cache| {
        let measured = json(&bench, cache);
        assert_eq!(measured["tests"][0]["type_k"], cache);
        measured["cache_bytes_per_token"].as_u64().unwrap()
    });
    // 5 layers of 4 heads of 8 numbers, keys and values: 4 bytes each; or keys of 8, values rounded up to 16, two scales.
    assert_eq!((whole, eighth), (5 * 4 * 2 * 8 * 4, 5 * 4 * (8 + 16 + 8)));
    assert_eq!(2 * half, whole);
}
