//! HumanEval: programs that pass tests ("Evaluating Large Language Models Trained on Code", arXiv 2107.03374).
//!
//! ```text
//! pass@k      mean over tasks of 1 − C(n − c, k) / C(n, k), of n samples of which c pass
//! ```
//! A sample passes where prompt, completion and tests run to their end in the [sandbox](crate::sandbox); a program that ends
//! itself before the tests have does not, since a word that it does not know is missing from the end of what it prints.

use std::hash::{BuildHasher, Hasher};
use std::path::Path;

use serde::Serialize;

use crate::rows::read_named;
use crate::sandbox::Sandbox;
use crate::{Error, Result, stats};

/// A task in HumanEval's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// `HumanEval/0`.
    pub id: String,
    /// The beginning of a program, up to a function's head and text.
    pub prompt: String,
    /// The function's name.
    pub entry_point: String,
    /// Defines `check(candidate)`.
    pub test: String,
}

/// Runs `program.py` as Python would, and prints the word where it has run to its end. The word's file is gone before the program begins, so
/// that no program finds it where one would look. One that searches the frames of its own process still does: who tests programs that are
/// out to deceive reads what has passed.
const RUNNER: &str = r#"
def run():
    import os, sys
    with open("word") as file:
        word = file.read()
    os.remove("word")
    with open("program.py", encoding="utf-8") as file:
        source = file.read()
    sys.argv = ["program.py"]
    everything = sys.modules["__main__"].__dict__
    del everything["run"]
    everything["__file__"] = "program.py"
    exec(compile(source, "program.py", "exec", dont_inherit=True), everything)
    print(word)

run()
"#;

/// What became of a sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// Whether all tests held.
    pub passed: bool,
    /// Why not: the last line of what Python says, or that time was up.
    pub note: String,
}

/// Shares from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CodeScores {
    /// The chance that one sample passes.
    pub pass_at_1: f64,
    /// Its standard error over tasks; none of one.
    pub pass_at_1_stderr: Option<f64>,
    /// The chance that one of ten does, where every task has ten samples.
    pub pass_at_10: Option<f64>,
    /// Tasks with samples.
    pub n: usize,
    /// Samples.
    pub samples: usize,
}

/// Reads rows of `task_id`, `prompt`, `entry_point`, `test`.
///
/// # Errors
/// When the file cannot be read, a row lacks one of them or has the id of an earlier one, or the entry point is no name.
pub fn read_tasks(path: &Path) -> Result<Vec<Task>> {
    read_named(
        path,
        ("tasks", "task_id"),
        |task: &Task| &task.id,
        |row| {
            let task = Task {
                id: row.name(&["task_id"])?,
                prompt: row.text("prompt")?.to_owned(),
                entry_point: row.text("entry_point")?.to_owned(),
                test: row.text("test")?.to_owned(),
            };
            let name = |c: char| c.is_alphanumeric() || c == '_';
            if task.entry_point.is_empty() || !task.entry_point.chars().all(name) {
                return Err(row.wrong(format!(
                    "`entry_point` is {:?}, but must be a function's name",
                    task.entry_point
                )));
            }
            Ok(task)
        },
    )
}

/// The program of a completion: of a block of code in it the block alone; behind the prompt, unless it defines the function again
/// (then behind what the prompt has before it: imports and helpers).
pub fn program(task: &Task, completion: &str) -> String {
    let code = code(completion);
    let head = format!("def {}(", task.entry_point);
    let whole = code.lines().any(|line| line.starts_with(&head));
    let before = match (whole, task.prompt.find(&head)) {
        (true, Some(def)) => &task.prompt[..def],
        _ => &task.prompt,
    };
    format!(
        "{before}{code}\n\n{}\n\ncheck({})\n",
        task.test, task.entry_point
    )
}

/// The code of a completion: of one that goes on with the program all up to the backticks that end a block; else the first block, where
/// there is one. Backticks count where they begin a line: a text within a program may have them.
fn code(completion: &str) -> &str {
    let mut lines = Vec::new();
    let mut at = 0;
    for line in completion.split_inclusive('\n') {
        lines.push((at, line));
        at += line.len();
    }
    let fence = |(_, line): &&(usize, &str)| line.starts_with("```");
    let begins = lines.iter().find(|(_, line)| !line.trim().is_empty());
    let goes_on = begins.is_some_and(|(_, line)| {
        let words = ["def ", "async ", "class ", "import ", "from ", "@"];
        line.starts_with([' ', '\t']) || words.iter().any(|word| line.starts_with(word))
    });
    let mut fences = lines.iter().filter(fence);
    let end = |fence: Option<&(usize, &str)>| fence.map_or(completion.len(), |(at, _)| *at);
    if goes_on {
        return &completion[..end(fences.next())];
    }
    match fences.next() {
        Some((at, line)) => &completion[at + line.len()..end(fences.next())],
        None => completion,
    }
}

/// Runs a completion.
///
/// # Errors
/// [`Error::Sandbox`] when the sandbox itself fails.
pub fn attempt(sandbox: &Sandbox, python: &str, task: &Task, completion: &str) -> Result<Attempt> {
    let failed = |problem: std::io::Error| Error::Sandbox {
        problem: problem.to_string(),
    };
    // What is printed at the end of all, and cannot be printed by heart.
    let word = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    let word = format!("passed {word:016x}");
    let folder = tempfile::tempdir().map_err(failed)?;
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
    put("program.py", &program(task, completion)).map_err(failed)?;
    put("word", &word).map_err(failed)?;
    let ran = sandbox.run(folder.path(), python, &["-I", "-B", "-c", RUNNER])?;
    let passed = ran.code == Some(0) && ran.stdout.ends_with(&format!("{word}\n"));
    let note = match (passed, ran.late) {
        (true, _) => String::new(),
        (_, true) => "it was killed at the end of its time".to_owned(),
        _ => match ran.stderr.trim().lines().last() {
            Some(line) => line.to_owned(),
            None => "it ended before the tests had".to_owned(),
        },
    };
    Ok(Attempt { passed, note })
}

/// 1 − C(n − c, k) / C(n, k); none of fewer than k samples.
pub fn pass_at(k: usize, samples: usize, passed: usize) -> Option<f64> {
    if samples < k {
        return None;
    }
    let fails = (samples - passed + 1..=samples).map(|i| 1.0 - k as f64 / i as f64);
    Some(if samples - passed < k {
        1.0
    } else {
        1.0 - fails.product::<f64>()
    })
}

/// Scores attempts, a list a task; tasks without any do not count.
pub fn score_code(attempts: &[Vec<Attempt>]) -> CodeScores {
    let counts: Vec<(usize, usize)> = attempts
        .iter()
        .filter(|attempts| !attempts.is_empty())
        .map(|attempts| {
            (
                attempts.len(),
                attempts.iter().filter(|one| one.passed).count(),
            )
        })
        .collect();
    let at = |k| -> Option<Vec<f64>> {
        let all = counts
            .iter()
            .map(|(samples, passed)| pass_at(k, *samples, *passed));
        all.collect()
    };
    let one = at(1).unwrap_or_default();
    CodeScores {
        pass_at_1: stats::mean(&one),
        pass_at_1_stderr: stats::standard_error(&one),
        pass_at_10: at(10).map(|all| stats::mean(&all)),
        n: counts.len(),
        samples: counts.iter().map(|(samples, _)| samples).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_is_the_papers() {
        assert_eq!(pass_at(1, 4, 1), Some(0.25));
        // 1 − C(3, 2) / C(5, 2) = 1 − 3 / 10.
        assert!((pass_at(2, 5, 2).unwrap() - 0.7).abs() < 1e-12);
        assert_eq!(pass_at(3, 4, 2), Some(1.0));
        assert_eq!(pass_at(10, 4, 4), None);
        assert_eq!(pass_at(1, 3, 0), Some(0.0));
    }

    #[test]
    fn a_completion_becomes_a_program() {
        let task = Task {
            id: "t".into(),
            prompt: "import math\n\ndef f(x):\n    \"\"\"Twice.\"\"\"\n".into(),
            entry_point: "f".into(),
            test: "def check(f):\n    assert f(1) == 2".into(),
        };
        let continued = program(&task, "    return 2 * x\n");
        assert!(continued.starts_with(&task.prompt) && continued.contains("return 2 * x"));
        let chat = program(
            &task,
            "Sure:\n```python\ndef f(x):\n    return x + x\n```\nDone.",
        );
        assert!(
            chat.starts_with("import math\n\ndef f(x):\n    return x + x\n"),
            "{chat}"
        );
        assert!(!chat.contains("Done") && chat.ends_with("check(f)\n"));
        for (completion, expected) in [
            ("    return 1\n```\nDone.", "    return 1\n"),
            ("\n    return 1\n```", "\n    return 1\n"),
            ("    s = '```'\n    return s", "    s = '```'\n    return s"),
            (
                "def f(x):\n    return 1\n```\n",
                "def f(x):\n    return 1\n",
            ),
            ("```\nreturn 1\n", "return 1\n"),
            (
                "Use `x` or ```x```:\n```py\na\n```\nor\n```py\nb\n```",
                "a\n",
            ),
            ("return 1", "return 1"),
            ("", ""),
        ] {
            assert_eq!(code(completion), expected, "{completion:?}");
        }
    }
}
