//! The binary, and a folder of recipes that runs in seconds.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The one object on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", self.stdout, self.stderr))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub fn russet(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_russet"));
    command.args(arguments).current_dir(dir);
    command
}

/// Runs it with exit code 0.
#[track_caller]
pub fn ok(dir: &Path, arguments: &[&str]) -> Ran {
    exits(dir, 0, arguments)
}

#[track_caller]
pub fn exits(dir: &Path, code: i32, arguments: &[&str]) -> Ran {
    let ran = Ran::from(russet(dir, arguments).output().unwrap());
    assert_eq!(ran.code, code, "{arguments:?}: {}", ran.stderr);
    ran
}

/// An object with exactly these fields.
#[track_caller]
pub fn fields(object: &Value, names: &[&str]) {
    let mut found: Vec<&String> = object.as_object().expect("an object").keys().collect();
    let mut wanted: Vec<&str> = names.to_vec();
    found.sort();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
}

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden")
        .join(name)
}

/// `mini/` with six recipes and the texts that they name, in `dir`.
pub fn mini(dir: &Path) {
    let words = [
        "the", "fox", "hen", "saw", "a", "red", "barn", "and", "ran", "home", "then", "slept",
    ];
    // A walk in which each word is followed by one of three.
    let document = |number: usize| {
        let (mut state, mut text) = (number * 7919 + 1, String::new());
        let mut word = number % words.len();
        for position in 0..40 + number % 50 {
            state = (state * 1_103_515_245 + 12_345) % (1 << 31);
            text += words[word];
            text += if position % 9 == 8 { ". " } else { " " };
            word = (word * 5 + 1 + (state >> 16) % 3) % words.len();
        }
        format!("{}\n", serde_json::json!({ "text": text }))
    };
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write("train.jsonl", &(0..120).map(document).collect::<String>());
    write(
        "heldout.jsonl",
        &(120..130).map(document).collect::<String>(),
    );
    std::fs::create_dir(dir.join("mini")).unwrap();
    write(
        "mini/01-tokenizer.toml",
        "stage = \"tokenizer\"\n[tokenizer]\nvocab_size = 300\n[data]\ntexts = [\"train.jsonl\"]\n",
    );
    write(
        "mini/02-tokens.toml",
        "stage = \"tokens\"\n[inputs]\ntokenizer = \"01-tokenizer\"\n[data]\ntrain = [\"train.jsonl\"]\n\
         heldout = [\"heldout.jsonl\"]\n",
    );
    write(
        "mini/03-pretrain.toml",
        "stage = \"pretrain\"\n[inputs]\ntokens = \"02-tokens\"\n[model]\nwidth = 32\nlayers = 2\nheads = 4\n\
         kv_heads = 2\nffn = 64\ncontext = 128\n[train]\nsteps = 40\nbatch_sequences = 4\nsequence_length = 64\n\
         peak_lr = 1e-2\n[data]\nvalidation = \"heldout\"\n",
    );
    write(
        "mini/04-palettize.toml",
        "stage = \"palettize\"\n[inputs]\ncheckpoint = \"03-pretrain\"\n[data]\ncalibration = [\"train.jsonl\"]\n\
         [palettize]\ncalibration_tokens = 2000\ntarget_bpw = 4.5\n",
    );
    write(
        "mini/05-eval.toml",
        "stage = \"eval\"\n[inputs]\ncheckpoint = \"03-pretrain\"\npackage = \"04-palettize\"\n[data]\n\
         heldout = \"heldout.jsonl\"\n",
    );
    write(
        "mini/06-sample.toml",
        "stage = \"sample\"\n[inputs]\nmodel = \"04-palettize\"\n[sample]\nprompt = \"the fox\"\nmax_tokens = 12\n",
    );
}

/// A small model that tells stories, as the folder `stories`.
pub fn stories(dir: &Path) {
    let model = golden("stories260K/stories260K.bin");
    let convert = [
        "convert", "--from", "llama2c", "--to", "hf", "--out", "stories", "--in",
    ];
    ok(dir, &[&convert[..], &[model.to_str().unwrap()]].concat());
}

/// The bytes of a run's manifests.
pub fn manifests(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(run)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("manifest.json").is_file())
        .collect();
    folders.sort();
    let manifest = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read(path.join("manifest.json")).unwrap())
    };
    folders.into_iter().map(manifest).collect()
}

/// Writes rows as lines of JSON.
pub fn write(dir: &Path, name: &str, rows: &[Value]) {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(dir.join(name), text).unwrap();
}

/// The rows of a file of such lines.
pub fn rows(dir: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join(name)).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Starts a verb that listens on a free port: the process, what it said of itself, and where it listens.
pub fn listening(dir: &Path, arguments: &[&str]) -> (Child, Value, String) {
    let mut child = russet(dir, arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
        let mut log = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut log).unwrap();
        panic!("{error}: {line}{log}")
    });
    let address = said["url"].as_str().unwrap().strip_prefix("http://");
    let address = address.unwrap().to_owned();
    (child, said, address)
}

/// Sends one request, `METHOD PATH HTTP/1.1` and perhaps headers, with a body of JSON; all that comes back.
pub fn request(address: &str, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!(
        "{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
