//! Rows of JSON with the file and line that they stand on: JSON Lines, or one array.
//!
//! Every reader of this crate that takes foreign rows goes through [`read_rows`], so that each names a fault by file and line.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use russet_tokenizer::read_lines;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// What some programs write before a text, and nobody means.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// The most bytes of a file that is one array, unpacked, or of one that is gone on with: such files are held whole.
const ARRAY_BYTES: u64 = 1 << 30;

/// One JSON object of a file.
#[derive(Clone, Debug)]
pub struct Row {
    path: PathBuf,
    /// Where it begins, from 1.
    pub line: u64,
    /// Its number from 1 in an array that has several rows on a line.
    number: Option<usize>,
    /// What it holds.
    pub object: Map<String, Value>,
}

impl Row {
    /// A row that stands on a line of a file.
    pub(crate) fn new(path: &Path, line: u64, object: Map<String, Value>) -> Row {
        Row {
            path: path.to_path_buf(),
            line,
            number: None,
            object,
        }
    }

    /// An error that names this row.
    pub fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::Row {
            path: self.path.clone(),
            line: self.line,
            problem: numbered(self.number, problem.into()),
        }
    }

    /// The value of a key that may be absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When it is not there.
    pub fn need(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| {
            let keys: Vec<&str> = self.object.keys().map(String::as_str).collect();
            self.wrong(format!("it lacks `{key}`; it has {}", quoted(&keys)))
        })
    }

    /// A string that must be there.
    ///
    /// # Errors
    /// When it is not there or no string.
    pub fn text(&self, key: &str) -> Result<&str> {
        let value = self.need(key)?;
        value
            .as_str()
            .ok_or_else(|| self.wrong(format!("`{key}` is {}, but must be a string", short(value))))
    }

    /// A string that may be absent or null.
    ///
    /// # Errors
    /// When it is something else.
    pub fn text_or_none(&self, key: &str) -> Result<Option<&str>> {
        self.get(key).map(|_| self.text(key)).transpose()
    }

    /// A finite number that must be there.
    ///
    /// # Errors
    /// When it is not.
    pub fn number(&self, key: &str) -> Result<f64> {
        let value = self.need(key)?;
        let number = value.as_f64().filter(|number| number.is_finite());
        number
            .ok_or_else(|| self.wrong(format!("`{key}` is {}, but must be a number", short(value))))
    }

    /// The first of several keys that is there, a string or a whole number: what names a row.
    ///
    /// # Errors
    /// When none is, or it is something else.
    pub fn name(&self, keys: &[&str]) -> Result<String> {
        let key = keys.iter().find(|key| self.get(key).is_some());
        let Some(key) = key else {
            return Err(self.wrong(format!("it has none of the keys {}", quoted(keys))));
        };
        match self.need(key)? {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) if !number.is_f64() => Ok(number.to_string()),
            other => Err(self.wrong(format!(
                "`{key}` is {}, but must be a string or a whole number",
                short(other)
            ))),
        }
    }
}

/// The rows of a file, each read to something whose name, which stands under `key`, is its own. `what` they are is said where there are
/// none.
///
/// # Errors
/// When the file cannot be read or has no rows, `read` refuses one, or one has the name of an earlier one.
pub fn read_named<T>(
    path: &Path,
    (what, key): (&'static str, &str),
    name: impl Fn(&T) -> &str,
    mut read: impl FnMut(&Row) -> Result<T>,
) -> Result<Vec<T>> {
    let (mut all, mut lines) = (Vec::new(), HashMap::new());
    for row in read_rows(path)? {
        let one = read(&row)?;
        if let Some(line) = lines.insert(name(&one).to_owned(), row.line) {
            return Err(row.wrong(format!(
                "its {key} {:?} is that of line {line} too; keep one",
                beginning(name(&one))
            )));
        }
        all.push(one);
    }
    match all.is_empty() {
        true => Err(Error::NoRows {
            path: path.to_path_buf(),
            what,
        }),
        false => Ok(all),
    }
}

/// The rows of `.jsonl` (plain, `.zst`, `.gz`) or of an array in `.json` (plain, `.zst`). A file named `.json` that holds objects
/// line by line is read so.
///
/// # Errors
/// When the file cannot be read, or a row is not a JSON object.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !(name.ends_with(".json") || name.ends_with(".json.zst")) {
        let lines = read_lines(path)?.map(|line| {
            let (line, bytes) = line?;
            row(path, line, &bytes)
        });
        return lines.collect();
    }
    let mut bytes = read_up_to(path, ARRAY_BYTES, "write it as JSON Lines")?;
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    match bytes.iter().position(|byte| !byte.is_ascii_whitespace()) {
        Some(first) if bytes[first] == b'[' => elements(path, &bytes, first + 1),
        _ => {
            let lines = bytes.split(|byte| *byte == b'\n').zip(1..);
            let lines = lines.filter(|(line, _)| !line.trim_ascii().is_empty());
            lines.map(|(bytes, line)| row(path, line, bytes)).collect()
        }
    }
}

/// Rows that are being written, one a line, and how many bytes they are.
#[derive(Clone, Debug, Default)]
pub struct Begun {
    /// The rows.
    pub rows: Vec<Row>,
    /// Where they end, and what comes next is to stand.
    pub bytes: u64,
    /// Whether the last row's line has its end.
    pub ended: bool,
}

/// Reads what an earlier run has written: nothing where there is no file. A last line without its end that is no whole row is left
/// out; it was being written when the run was killed.
///
/// # Errors
/// When the file cannot be read, or a whole line is no row.
pub fn read_begun(path: &Path) -> Result<Begun> {
    let bytes = match path.exists() {
        true => read_up_to(path, ARRAY_BYTES, "begin another one")?,
        false => Vec::new(),
    };
    let mut begun = Begun {
        ended: true,
        ..Begun::default()
    };
    for (line, number) in bytes.split_inclusive(|byte| *byte == b'\n').zip(1..) {
        match row(path, number, line) {
            Ok(row) => begun.rows.push(row),
            // Only the last line lacks its end.
            Err(_) if line[0] == b'{' && !line.ends_with(b"\n") => break,
            Err(error) => return Err(error),
        }
        begun.bytes += line.len() as u64;
        begun.ended = line.ends_with(b"\n");
    }
    Ok(begun)
}

/// The bytes of a file, unpacked, where they are not more than so many; `instead` is to be done where they are.
pub(crate) fn read_up_to(path: &Path, most: u64, instead: &str) -> Result<Vec<u8>> {
    let failed = |problem: std::io::Error| Error::Unreadable {
        path: path.to_path_buf(),
        problem: problem.to_string(),
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let reader: Box<dyn Read> = match path.extension().is_some_and(|ending| ending == "zst") {
        true => {
            let mut decoder = zstd::stream::read::Decoder::new(file).map_err(failed)?;
            decoder.window_log_max(27).map_err(failed)?;
            Box::new(decoder)
        }
        false => Box::new(file),
    };
    let mut bytes = Vec::new();
    let read = reader.take(most + 1).read_to_end(&mut bytes);
    match read.map_err(failed)? as u64 > most {
        true => Err(failed(std::io::Error::other(format!(
            "it is larger than {} MiB, and is held whole; {instead}",
            most >> 20
        )))),
        false => Ok(bytes),
    }
}

/// Which row a problem is of, where its line does not say so.
fn numbered(number: Option<usize>, problem: String) -> String {
    match number {
        Some(number) => format!("row {number} of the array: {problem}"),
        None => problem,
    }
}

/// The objects of an array, each with its line. They are cut apart by brackets and strings, and then parsed one by one: what is
/// wrong in one is said of that one.
fn elements(path: &Path, bytes: &[u8], start: usize) -> Result<Vec<Row>> {
    let (mut rows, mut line, mut depth) = (Vec::new(), newlines(&bytes[..start]) + 1, 0usize);
    let (mut begins, mut within, mut escaped, mut first_line) = (None, false, false, line);
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        let ends = depth == 0 && !within && matches!(byte, b',' | b']');
        if ends {
            match begins.take() {
                Some(from) => {
                    // A line that has several rows tells none of them.
                    let shared = |row: &Row| row.line == first_line;
                    let mut behind = bytes[at + 1..].iter();
                    let next = behind.find(|byte| !matches!(byte, b' ' | b'\t' | b'\r'));
                    let several = *byte == b',' && next != Some(&b'\n');
                    let number =
                        (several || rows.last().is_some_and(shared)).then(|| rows.len() + 1);
                    let read = row(path, first_line, &bytes[from..at]);
                    let mut read = read.map_err(|error| match error {
                        Error::Row {
                            path,
                            line,
                            problem,
                        } => Error::Row {
                            path,
                            line,
                            problem: numbered(number, problem),
                        },
                        other => other,
                    })?;
                    read.number = number;
                    rows.push(read);
                }
                None if *byte == b']' && rows.is_empty() => {}
                None => {
                    return Err(Error::Row {
                        path: path.to_path_buf(),
                        line,
                        problem: "a comma stands where a row was to come; remove it".to_owned(),
                    });
                }
            }
            if *byte == b']' {
                let rest = bytes[at + 1..].trim_ascii();
                return match rest.is_empty() {
                    true => Ok(rows),
                    false => Err(Error::Row {
                        path: path.to_path_buf(),
                        line,
                        problem: "something follows the end of the array; remove it".to_owned(),
                    }),
                };
            }
            continue;
        }
        if begins.is_none() && !byte.is_ascii_whitespace() {
            (begins, first_line) = (Some(at), line);
        }
        match (within, byte) {
            _ if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => within = !within,
            (false, b'{' | b'[') => depth += 1,
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        line += u64::from(*byte == b'\n');
    }
    Err(Error::Row {
        path: path.to_path_buf(),
        line,
        problem: "the array does not end; the file is cut off".to_owned(),
    })
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

fn row(path: &Path, line: u64, bytes: &[u8]) -> Result<Row> {
    let bytes = match line {
        1 => bytes.strip_prefix(MARK).unwrap_or(bytes),
        _ => bytes,
    };
    let object = serde_json::from_slice(bytes).map_err(|error| Error::Row {
        path: path.to_path_buf(),
        line,
        problem: format!("it is not a JSON object: {}", without_line(&error)),
    })?;
    Ok(Row::new(path, line, object))
}

/// What is wrong with JSON, without its count of lines, which begins with the row and not with the file.
fn without_line(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let what = said
        .rsplit_once(" at line ")
        .map_or(&said[..], |(what, _)| what);
    match error.line() {
        1 if error.column() > 0 => format!("{what}, at its character {}", error.column()),
        _ => what.to_owned(),
    }
}

fn quoted(keys: &[&str]) -> String {
    let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
    match keys.is_empty() {
        true => "no keys".to_owned(),
        false => keys.join(", "),
    }
}

/// A value as it may be quoted in a sentence.
pub(crate) fn short(value: &Value) -> String {
    beginning(&value.to_string())
}

/// Enough of a text to know it by.
pub(crate) fn beginning(text: &str) -> String {
    let mut beginning: String = text.chars().take(60).collect();
    if beginning.len() < text.len() {
        beginning.push('…');
    }
    beginning
}

/// What was answered to the rows of a set, from a file of recorded responses.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Of each row of the set in order; several where the file has several samples of one.
    pub of_rows: Vec<Vec<String>>,
    /// Lines whose answer is empty or blank.
    pub empty: Vec<u64>,
}

impl Answers {
    /// The first answer to each row of the set.
    pub fn firsts(&self) -> impl Iterator<Item = Option<&str>> + Clone {
        self.of_rows
            .iter()
            .map(|all| all.first().map(String::as_str))
    }

    /// Names of the rows without an answer.
    pub fn missing<'a>(&self, names: &'a [String]) -> Vec<&'a str> {
        let pairs = names.iter().zip(&self.of_rows);
        let missing = pairs.filter(|(_, answers)| answers.is_empty());
        missing.map(|(name, _)| name.as_str()).collect()
    }
}

/// Reads answers and joins them with a set by name: `keys` are the keys that may hold a row's name, `values` those that may hold
/// its answer, the first that is there.
///
/// # Errors
/// When a row is malformed, names nothing of the set, or, unless `several`, something that an earlier row has named; or when
/// there is no answer at all.
pub fn read_answers(
    path: &Path,
    names: &[String],
    keys: &[&str],
    values: &[&str],
    several: bool,
) -> Result<Answers> {
    let places: HashMap<&str, usize> = names.iter().map(String::as_str).zip(0..).collect();
    let mut answers = Answers {
        of_rows: vec![Vec::new(); names.len()],
        empty: Vec::new(),
    };
    let mut lines = vec![0; names.len()];
    for row in read_rows(path)? {
        let name = row.name(keys)?;
        let Some(&place) = places.get(name.as_str()) else {
            return Err(row.wrong(format!(
                "{:?} is none of the {} of the set; give it as it stands there, to the last space",
                beginning(&name),
                names.len()
            )));
        };
        if !several && lines[place] > 0 {
            return Err(row.wrong(format!(
                "{:?} has an answer on line {} already; keep one",
                beginning(&name),
                lines[place]
            )));
        }
        lines[place] = row.line;
        let Some(key) = values.iter().find(|key| row.get(key).is_some()) else {
            return Err(row.wrong(format!("it has no answer under {}", quoted(values))));
        };
        // BFCL's own files have calls under `result` as lists of objects.
        let answer = match row.need(key)? {
            calls @ Value::Array(_) if *key == "result" => calls.to_string(),
            _ => row.text(key)?.to_owned(),
        };
        if answer.trim().is_empty() {
            answers.empty.push(row.line);
        }
        answers.of_rows[place].push(answer);
    }
    match answers.of_rows.iter().all(Vec::is_empty) {
        true => Err(Error::NoResponses {
            path: path.to_path_buf(),
        }),
        false => Ok(answers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn an_array_gives_its_rows_with_their_lines() {
        let text = "[\n {\"a\": \"],{\\\"\"},\n {\"a\": [1,\n 2]} ]\n";
        let (_dir, path) = written("a.json", text);
        let rows = read_rows(&path).unwrap();
        assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(rows[0].text("a").unwrap(), "],{\"");
        let (_dir, path) = written("b.json", "{\"a\": 1}\n\n{\"a\": 2}\n");
        assert_eq!(read_rows(&path).unwrap()[1].line, 3);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, said) in [
            (
                "[{\"a\": 1},\n {\"a\": }]",
                "line 2: it is not a JSON object",
            ),
            ("[{\"a\": 1},\n, {}]", "line 2: a comma"),
            ("[{\"a\": 1},\n]", "line 2: a comma"),
            ("[{}]\n[]", "line 1: something follows"),
            ("[{}, {", "line 1: the array does not end"),
            ("[3]", "line 1: it is not a JSON object"),
            (
                "[{\"a\": 1}, {\"a\": 2}, 3]",
                "line 1: row 3 of the array: it is not a JSON object",
            ),
            ("[3, {\"a\": 2}]", "line 1: row 1 of the array"),
        ] {
            let (_dir, path) = written("a.json", text);
            let error = read_rows(&path).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        let (_dir, path) = written("a.json", "[]");
        assert!(read_rows(&path).unwrap().is_empty());
        let (_dir, path) = written("a.json", "[{\"a\": 1}, {\"a\": 2}]");
        let lacks = read_rows(&path).unwrap()[1].need("b").unwrap_err();
        assert!(
            lacks
                .to_string()
                .contains("line 1: row 2 of the array: it lacks `b`")
        );
    }

    #[test]
    fn a_mark_of_the_order_of_bytes_is_passed_over() {
        for (name, text) in [
            ("a.jsonl", "\u{feff}{\"a\": 1}\r\n{\"a\": 2}\r\n"),
            ("a.json", "\u{feff}[{\"a\": 1}, {\"a\": 2}]"),
            ("b.json", "\u{feff}{\"a\": 1}\n{\"a\": 2}"),
        ] {
            let (_dir, path) = written(name, text);
            assert_eq!(read_rows(&path).unwrap().len(), 2, "{name}");
        }
        let (_dir, path) = written("a.jsonl", "{\"a\": 1}\n\u{feff}{\"a\": 2}\n");
        assert!(read_rows(&path).is_err(), "within a file it is damage");
    }

    #[test]
    fn a_fault_of_json_is_said_where_it_stands_in_its_row() {
        let (_dir, path) = written("a.jsonl", "{\"a\": 1}\n{\"a\": x}\n");
        let error = read_rows(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("line 2: it is not a JSON object: expected value, at its character 7"),
            "{error}"
        );
    }

    #[test]
    fn of_what_was_begun_only_a_half_line_is_left_out() {
        let read = |text: &str| {
            let (_dir, path) = written("a.jsonl", text);
            let begun = read_begun(&path);
            begun.map(|begun| (begun.rows.len(), begun.bytes, begun.ended))
        };
        assert_eq!(read("").unwrap(), (0, 0, true));
        assert_eq!(read("{\"a\": 1}\n{\"a\": \"é").unwrap(), (1, 9, true));
        assert_eq!(read("{\"a\": 1}\n{\"a\": 2}").unwrap(), (2, 17, false));
        // Somebody else's file is not cut.
        assert!(read("notes").is_err());
        assert!(
            read("{\"a\": 1}\n{\"a\": \n{}\n")
                .unwrap_err()
                .to_string()
                .contains("line 2")
        );
        assert_eq!(read_begun(Path::new("/nowhere/a.jsonl")).unwrap().bytes, 0);
    }

    #[test]
    fn what_is_held_whole_has_a_bound() {
        let (_dir, path) = written("a.json", "[{}, {}]");
        assert_eq!(read_up_to(&path, 8, "").unwrap().len(), 8);
        let refused = read_up_to(&path, 7, "cut it").unwrap_err().to_string();
        assert!(refused.contains("held whole; cut it"), "{refused}");
    }

    #[test]
    fn answers_are_joined_and_faults_named() {
        let names = ["one".to_owned(), "2".to_owned()];
        let read = |text: &str, several| {
            let (_dir, path) = written("a.jsonl", text);
            read_answers(&path, &names, &["id", "prompt"], &["response"], several)
        };
        let answers = read(
            "{\"id\": 2, \"response\": \"x\"}\n{\"prompt\": \"one\", \"response\": \" \"}\n",
            false,
        );
        let answers = answers.unwrap();
        assert_eq!(
            answers.of_rows,
            [vec![" ".to_owned()], vec!["x".to_owned()]]
        );
        assert_eq!(answers.empty, [2]);
        for (text, said) in [
            (
                "{\"id\": 3, \"response\": \"x\"}",
                "line 1: \"3\" is none of the 2",
            ),
            ("{\"id\": 2}", "line 1: it has no answer"),
            ("{\"response\": \"x\"}", "line 1: it has none of the keys"),
            ("{\"id\": 2, \"response\": 7}", "must be a string"),
            (
                "{\"id\": 2, \"response\": \"x\"}\n{\"id\": 2, \"response\": \"y\"}",
                "line 2: \"2\" has an answer on line 1",
            ),
            ("\n", "no responses"),
        ] {
            let error = read(text, false).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        let two = "{\"id\": 2, \"response\": \"x\"}\n{\"id\": 2, \"response\": \"y\"}";
        assert_eq!(read(two, true).unwrap().of_rows[1], ["x", "y"]);
    }
}
