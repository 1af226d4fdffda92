//! `reject`: a committee answers, the best answers are kept; killed, cut off from a server, and as a round of a run.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{exits, fields, golden, listening, mini, ok, rows, russet, write};
use serde_json::{Value, json};

const FILES: [&str; 7] = [
    "sft.jsonl",
    "pairs.jsonl",
    "candidates.jsonl",
    "judgements.jsonl",
    "report.json",
    "report.html",
    "manifest.json",
];

/// A model that tells stories in `stories`, six prompts, and a recipe of two members with rules as rewards.
fn begin(dir: &Path) {
    let model = golden("stories260K/stories260K.bin");
    let convert = [
        "convert", "--from", "llama2c", "--to", "hf", "--out", "stories", "--in",
    ];
    ok(dir, &[&convert[..], &[model.to_str().unwrap()]].concat());
    let asked: Vec<Value> = (0..6)
        .map(|number| json!({"prompt": format!("Tell of {number} cats"), "category": "tales"}))
        .collect();
    write(dir, "asked.jsonl", &asked);
    recipe(dir, "");
}

/// `round/01-reject.toml`, with more tables behind.
fn recipe(dir: &Path, more: &str) {
    std::fs::create_dir_all(dir.join("round")).unwrap();
    let text = format!(
        "stage = \"reject\"\n[reject]\nsamples = 3\nmax_tokens = 12\nslots = 4\nseed = 5\n\
         [[reject.rewards]]\nkind = \"format\"\npattern = \"the\"\n[[reject.rewards]]\nkind = \"format\"\npattern = \"(?s)a.*a\"\n\
         weight = 0.5\n[[reject.rewards]]\nkind = \"format\"\npattern = \"(?s)e.*e.*e\"\nweight = 0.25\n\
         [filter]\nfinished = false\n[data]\nprompts = [\"asked.jsonl\"]\n\
         [[member]]\nname = \"one\"\nmodel = \"stories\"\n{more}"
    );
    std::fs::write(dir.join("round/01-reject.toml"), text).unwrap();
}

const TWO: &str = "[[member]]\nname = \"two\"\nmodel = \"stories\"\n";

fn reject<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let all = ["reject", "round/01-reject.toml", "--threads", "1", "--json"];
    [&all[..], arguments].concat()
}

fn read(dir: &Path, out: &str, file: &str) -> Vec<u8> {
    std::fs::read(dir.join(out).join(file)).unwrap()
}

#[test]
fn the_best_answers_become_rows_that_say_where_they_come_from() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    recipe(dir, TWO);
    let plan = ok(dir, &reject(&["--dry-run"])).json();
    let plan = &plan["stages"][0]["plan"];
    assert_eq!(
        (&plan["prompts"], &plan["answers"], &plan["tokens"]),
        (&json!(6), &json!(36), &json!(432)),
        "{plan}"
    );
    assert!(!dir.join("runs").exists(), "a dry run leaves nothing");
    let made = ok(dir, &reject(&["--out", "made"])).json();
    assert_eq!(
        (&made["answers"], &made["skipped"]),
        (&json!(36), &json!(false))
    );
    let candidates = rows(dir, "made/candidates.jsonl");
    assert_eq!(candidates.len(), 36);
    let sft = rows(dir, "made/sft.jsonl");
    assert_eq!(json!(sft.len()), made["kept"]);
    for row in &sft {
        let from = &row["provenance"];
        let line = from["prompt"]["line"].as_u64().unwrap() as usize;
        assert_eq!(
            row["messages"][0]["content"],
            format!("Tell of {} cats", line - 1)
        );
        assert_eq!(from["rank"], 1);
        // It is the best of all that pass, by the score that is told.
        let of_prompt =
            |other: &&Value| other["prompt"] == from["prompt"] && other["rank"].is_number();
        let best = candidates
            .iter()
            .filter(of_prompt)
            .map(|other| other["score"].as_f64().unwrap())
            .fold(f64::MIN, f64::max);
        assert_eq!(from["score"], best);
        let own = candidates.iter().find(|other| {
            other["prompt"] == from["prompt"]
                && other["member"] == from["member"]
                && other["sample"] == from["sample"]
        });
        let text = row["messages"][1]["content"].as_str().unwrap();
        assert_eq!(own.unwrap()["text"], text);
        let worth = |word: &str, worth: f64| if text.contains(word) { worth } else { 0.0 };
        assert!(best >= worth("the", 1.0));
    }
    for row in rows(dir, "made/pairs.jsonl") {
        let score = |side: &str| row[format!("{side}_provenance")]["score"].as_f64().unwrap();
        assert!(score("chosen") > score("rejected"), "{row}");
    }
    // Neither threads nor how many answers are made at once decide a byte.
    let again = [
        "reject",
        "round/01-reject.toml",
        "--threads",
        "2",
        "--out",
        "again",
        "--set",
        "reject.slots=1",
    ];
    ok(dir, &again);
    for file in FILES {
        assert!(
            read(dir, "again", file) == read(dir, "made", file),
            "{file} is another"
        );
    }
    // Who wins is read by what compares models.
    let pairwise = ok(
        dir,
        &[
            "eval",
            "pairwise",
            "--judgements",
            "made/judgements.jsonl",
            "--json",
            "--rounds",
            "200",
        ],
    );
    let report: Value = serde_json::from_slice(&read(dir, "made", "report.json")).unwrap();
    for member in ["one", "two"] {
        let (told, of) = (
            &pairwise.json()["models"][member],
            &report["members"][member],
        );
        assert_eq!(told["win_rate"], of["win_rate"]);
        assert_eq!(told["win_rate_ci"], of["win_rate_ci"]);
        assert_eq!(
            (&of["answers"], &of["left_out"]),
            (&json!(18), &Value::Null)
        );
    }
    let page = String::from_utf8(read(dir, "made", "report.html")).unwrap();
    assert!(
        page.contains("default-src 'none'")
            && page.contains("Tell of 3 cats")
            && page.contains("one: prompts won")
    );
    assert!(!page.contains("<script"));
    // Again nothing runs; other filters judge the same answers, and begin nothing anew that is finished.
    assert_eq!(ok(dir, &reject(&["--out", "made"])).json()["skipped"], true);
    let fewer = ok(
        dir,
        &reject(&["--out", "made", "--set", "filter.min_score=1.0"]),
    )
    .json();
    assert!(fewer["kept"].as_u64().unwrap() <= made["kept"].as_u64().unwrap());
    let again = ok(
        dir,
        &reject(&[
            "--out",
            "made",
            "--set",
            "filter.min_score=1.0",
            "--restart",
        ]),
    );
    assert_eq!(again.json()["skipped"], false);
}

#[test]
fn a_killed_committee_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    recipe(dir, TWO);
    let slow = ["--set", "reject.max_tokens=120", "--set", "reject.slots=1"];
    let arguments = |out: &'static str| reject(&[&slow[..], &["--out", out]].concat());
    ok(dir, &arguments("whole"));
    assert!(!dir.join("whole.state").exists(), "done, and still a state");
    let lines = |name: &str| {
        let text = std::fs::read_to_string(dir.join("cut.state").join(name));
        text.map_or(0, |text| text.lines().count())
    };
    // Killed within the first member's answers, the second's, and scores, and once asked to stop; one process after another.
    let (mut kills, mut stops) = (0, 0);
    for (file, count) in [
        ("answers-one.jsonl", 2),
        ("answers-one.jsonl", 4),
        ("answers-one.jsonl", 5),
        ("answers-two.jsonl", 3),
        ("answers-two.jsonl", 6),
        ("scores.jsonl", 3),
    ] {
        let mut child = russet(dir, &arguments("cut"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while lines(file) < count && child.try_wait().unwrap().is_none() {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "nothing comes of it"
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        if count == 4 {
            let pid = child.id().to_string();
            std::process::Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap();
            let ran = common::Ran::from(child.wait_with_output().unwrap());
            assert_eq!(ran.code, 0);
            stops += usize::from(ran.json()["interrupted"] == true); // or it was done before
            continue;
        }
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
    }
    assert!(
        kills + stops > 3,
        "it was done before it could be killed: {kills}, {stops}"
    );
    // A line that the kill cut in two, too.
    let path = dir.join("cut.state/answers-two.jsonl");
    if let Ok(bytes) = std::fs::read(&path) {
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    }
    ok(dir, &arguments("cut"));
    for file in FILES {
        assert!(
            read(dir, "whole", file) == read(dir, "cut", file),
            "{file} is another"
        );
    }
    assert!(!dir.join("cut.state").exists());
}

/// A server that answers so many requests of the chat and then is gone; where it listens, and whom to join.
fn dying(answers: usize) -> (String, std::thread::JoinHandle<Vec<Value>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    let serve = move || {
        let mut asked = Vec::new();
        for mut stream in listener.incoming().take(answers).flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") {
                assert_eq!(stream.read(&mut byte).unwrap(), 1);
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            assert!(head.starts_with("post /v1/chat/completions "), "{head}");
            assert!(head.contains("authorization: bearer sesame"), "{head}");
            let length = head.split("content-length: ").nth(1).unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let said = format!("the fern {} area", body["seed"]);
            asked.push(body);
            let answer = json!({"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]});
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            stream
                .write_all(format!("{head}{answer}").as_bytes())
                .unwrap();
        }
        asked
    };
    (address, std::thread::spawn(serve))
}

#[test]
fn a_server_that_dies_is_waited_for_and_then_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    // Six answers: two of the six prompts; at the third it is gone.
    let (address, server) = dying(6);
    recipe(
        dir,
        &format!(
            "[[member]]\nname = \"far\"\nmodel = \"big\"\nendpoint = \"{address}\"\nkey_env = \"FAR_KEY\"\nat_once = 3\n\
             attempts = 3\nwait_seconds = 0.02\n"
        ),
    );
    let ran = exits(dir, 1, &reject(&["--out", "made"]));
    assert!(ran.stderr.contains("FAR_KEY is not set"), "{}", ran.stderr);
    let output = russet(dir, &reject(&["--out", "made"]))
        .env("FAR_KEY", "sesame")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let asked = server.join().unwrap();
    assert!(
        said.contains("member far: 127.0.0.1")
            && said.contains("3 attempts")
            && said.contains("left out from prompt 3 of 6"),
        "{said}"
    );
    assert!(
        !said.contains("Tell of") && !said.contains("sesame"),
        "{said}"
    );
    assert_eq!(asked[0]["model"], "big");
    assert_eq!(asked[0]["max_tokens"], 12);
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    let far = &made["members"]["far"];
    assert_eq!(
        (&far["answers"], &far["prompts"]),
        (&json!(6), &json!(2)),
        "{made}"
    );
    assert!(
        far["left_out"]
            .as_str()
            .unwrap()
            .contains("does not answer")
    );
    assert_eq!(made["members"]["one"]["answers"], 18);
    // What it said before it was gone takes part, by the seeds that it was asked with.
    let candidates = rows(dir, "made/candidates.jsonl");
    let own = candidates.iter().filter(|row| row["member"] == "far");
    for row in own {
        assert_eq!(row["text"], format!("the fern {} area", row["seed"]));
        assert_eq!(row["score"], 1.75);
    }
    assert!(
        !String::from_utf8(read(dir, "made", "manifest.json"))
            .unwrap()
            .contains("sesame")
    );
    // Nobody answers at all.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let alone = format!(
        "member=[{{name='far', model='big', endpoint='http://{gone}/v1', attempts=2, wait_seconds=0.01}}]"
    );
    let ran = exits(dir, 1, &reject(&["--out", "none", "--set", &alone]));
    assert!(
        ran.stderr.contains("no member has answered"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_served_model_is_a_member_like_others() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    let serve = [
        "serve",
        "--model",
        "stories",
        "--port",
        "0",
        "--json",
        "--threads",
        "1",
    ];
    let (mut child, said, address) = listening(dir, &serve);
    let model = said["model"].as_str().unwrap();
    recipe(
        dir,
        &format!(
            "[[member]]\nname = \"two\"\nmodel = \"{model}\"\nendpoint = \"http://{address}/v1\"\n"
        ),
    );
    let made = russet(dir, &reject(&["--out", "served"])).output().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let stderr = String::from_utf8(made.stderr).unwrap();
    assert!(made.status.success(), "{stderr}");
    // The same weights, template, seeds and sampler: word for word what the same member says on this machine.
    recipe(dir, TWO);
    ok(dir, &reject(&["--out", "here"]));
    let texts = |out: &str| -> Vec<(Value, Value)> {
        let all = rows(dir, &format!("{out}/candidates.jsonl"));
        let own = all.into_iter().filter(|row| row["member"] == "two");
        own.map(|row| (row["text"].clone(), row["finished"].clone()))
            .collect()
    };
    assert_eq!(texts("served").len(), 18);
    assert_eq!(texts("served"), texts("here"));
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    begin(dir);
    recipe(dir, TWO);
    write(
        dir,
        "bad.jsonl",
        &[
            json!({"prompt": "who"}),
            json!({"text": "no prompt"}),
            json!({"prompt": "why"}),
        ],
    );
    for (set, code, word) in [
        ("reject.samples=0", 2, "`reject.samples`"),
        ("reject.sample=4", 2, "sample"),
        ("keep.member_share=0.4", 2, "`keep.member_share`"),
        ("reject.rewards=[{kind='taste'}]", 2, "instructions"),
        ("reject.rewards=[{kind='exact'}]", 1, "asked.jsonl: line 1"),
        ("reject.rewards=[{kind='model'}]", 2, "`inputs.reward`"),
        ("inputs.reward='stories'", 2, "`inputs.reward`"),
        ("member=[]", 2, "[[member]]"),
        ("member=[{name='a/b', model='stories'}]", 2, "`member.name`"),
        (
            "member=[{name='a', model='stories', key_env='K'}]",
            2,
            "`member.key_env`",
        ),
        (
            "member=[{name='a', model='m', endpoint='https://h/v1'}]",
            2,
            "TLS",
        ),
        ("member=[{name='a', model='nowhere'}]", 1, "nowhere"),
        ("data.prompts=['bad.jsonl']", 1, "bad.jsonl: line 2"),
        (
            "data.prompts=['asked.jsonl', 'asked.jsonl']",
            1,
            "line 1: it asks what an earlier row asks",
        ),
        ("filter.min_score=99", 1, "below_floor 36"),
    ] {
        let ran = exits(dir, code, &reject(&["--out", "made", "--set", set]));
        assert!(ran.stderr.contains(word), "{set}: {}", ran.stderr);
    }
    let committee = ["eval", "committee", "--latest", "nobody", "--judgements"];
    write(
        dir,
        "judged.jsonl",
        &[json!({"prompt": "who", "model_a": "a", "model_b": "b", "winner": "a"})],
    );
    let ran = exits(dir, 2, &[&committee[..], &["judged.jsonl"]].concat());
    assert!(ran.stderr.contains("\"nobody\""), "{}", ran.stderr);
    // What was drawn for nothing is judged again once the filter is mended, and not drawn again: a mark that was put there stays.
    let path = dir.join("made.state/answers-two.jsonl");
    let drawn = std::fs::read_to_string(&path).unwrap();
    let (head, rows_of_two) = drawn.split_once('\n').unwrap();
    let marked = rows_of_two.replacen("\"text\":\"", "\"text\":\"marked ", 1);
    std::fs::write(&path, format!("{head}\n{marked}")).unwrap();
    let ran = ok(dir, &reject(&["--out", "made"]));
    assert!(ran.json()["kept"].as_u64().unwrap() > 0);
    let text = |row: &Value| row["text"].as_str().unwrap().starts_with("marked ");
    assert!(rows(dir, "made/candidates.jsonl").iter().any(text));
    let skips = [
        "--out",
        "some",
        "--set",
        "data.prompts=['bad.jsonl']",
        "--set",
        "data.skip_malformed=true",
    ];
    let ran = ok(dir, &reject(&skips));
    assert_eq!(
        (&ran.json()["prompts"], &ran.json()["malformed"]),
        (&json!(2), &json!(1))
    );
    assert!(
        ran.stderr.contains("1 prompts cannot be read"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_round_is_a_folder_of_recipes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    mini(dir);
    for name in ["04-palettize", "05-eval", "06-sample"] {
        std::fs::remove_file(dir.join(format!("mini/{name}.toml"))).unwrap();
    }
    let recipe =
        |name: &str, text: &str| std::fs::write(dir.join("mini").join(name), text).unwrap();
    let learns = "batch_sequences = 2\nsequence_length = 128\npeak_lr = 1e-3\n[optimizer]\nkind = \"adamw\"\n";
    write(
        dir,
        "pairs.jsonl",
        &[
            json!({"prompt": "who", "chosen": "the fox", "rejected": "a barn"}),
            json!({"prompt": "what", "chosen": "the hen", "rejected": "home"}),
        ],
    );
    write(
        dir,
        "asked.jsonl",
        &["who saw the hen", "who ran home", "who slept"].map(|asked| json!({"prompt": asked})),
    );
    recipe(
        "04-reward.toml",
        &format!(
            "stage = \"reward\"\n[inputs]\ncheckpoint = \"03-pretrain\"\n[train]\n{learns}[data]\ntrain = [\"pairs.jsonl\"]\nepochs = 2\n"
        ),
    );
    recipe(
        "05-reject.toml",
        "stage = \"reject\"\n[inputs]\nreward = \"04-reward\"\n[[member]]\nname = \"base\"\nmodel = \"03-pretrain\"\n\
         [reject]\nsamples = 4\nmax_tokens = 10\n[[reject.rewards]]\nkind = \"model\"\n[filter]\nfinished = false\n\
         [data]\nprompts = [\"asked.jsonl\"]\n",
    );
    recipe(
        "06-sft.toml",
        &format!(
            "stage = \"sft\"\n[inputs]\ncheckpoint = \"03-pretrain\"\n[train]\n{learns}[data]\ntrain = [\"05-reject/sft.jsonl\"]\nepochs = 1\n"
        ),
    );
    recipe(
        "07-dpo.toml",
        &format!(
            "stage = \"dpo\"\n[inputs]\ncheckpoint = \"06-sft\"\n[train]\n{learns}[data]\ntrain = [\"05-reject/pairs.jsonl\"]\nepochs = 1\n"
        ),
    );
    recipe(
        "08-adapter.toml",
        &format!(
            "stage = \"sft\"\n[inputs]\ncheckpoint = \"03-pretrain\"\n[adapter]\nrank = 2\n[train]\n{learns}[data]\n\
             train = [\"05-reject/sft.jsonl\"]\nepochs = 1\n"
        ),
    );
    let plans = ok(dir, &["run", "mini", "--json", "--dry-run"]).json();
    let plan = &plans["stages"][4]["plan"];
    assert_eq!(plan["members"], json!(["base"]), "{plan}");
    assert!(
        plan["prompts"].is_null(),
        "the reward model is still to be made"
    );
    let run = ok(dir, &["run", "mini", "--json", "--threads", "1"]).json();
    assert_eq!(run["stages"].as_array().unwrap().len(), 8, "{run}");
    assert_eq!(rows(dir, "runs/mini/05-reject/sft.jsonl").len(), 3);
    // The next committee: what was made of the first one's answers, as a checkpoint and as an adapter.
    let next = "member=[{name='dpo', model='07-dpo'}, {name='adapter', model='03-pretrain', adapter='08-adapter'}]";
    let made = [
        "reject",
        "mini/05-reject.toml",
        "--set",
        next,
        "--out",
        "runs/mini/next",
        "--json",
    ];
    let made = ok(dir, &made).json();
    for member in ["dpo", "adapter"] {
        assert_eq!(made["members"][member]["answers"], 12, "{made}");
    }
    let chosen = [
        "eval",
        "committee",
        "--judgements",
        "runs/mini/next/judgements.jsonl",
        "--latest",
        "dpo",
        "--json",
    ];
    let chosen = ok(dir, &chosen).json();
    fields(&chosen, &["committee", "candidates", "games"]);
    assert_eq!(chosen["candidates"].as_array().unwrap().len(), 2);
    assert!(
        chosen["committee"]
            .as_array()
            .unwrap()
            .contains(&json!("adapter"))
    );
    let again = ok(dir, &["run", "mini", "--json", "--threads", "1"]).json();
    let all = again["stages"].as_array().unwrap();
    assert!(all.iter().all(|stage| stage["skipped"] == true), "{again}");
    // A file that no earlier stage makes is missed before anything runs.
    let ran = exits(
        dir,
        1,
        &[
            "run",
            "mini",
            "--set",
            "06-sft.data.train=['05-reject/sfd.jsonl']",
        ],
    );
    assert!(ran.stderr.contains("sfd.jsonl"), "{}", ran.stderr);
}

#[test]
fn the_round_that_comes_along_is_in_order() {
    let root = golden("..");
    let plans = ok(&root, &["run", "recipes/round", "--dry-run", "--json"]).json();
    let plan = |number: usize| &plans["stages"][number]["plan"];
    assert_eq!(plan(0)["answers"], 1760, "{plans}");
    assert_eq!(
        (&plan(3)["prompts"], &plan(3)["answers"]),
        (&json!(541), &json!(3246))
    );
}
