//! What graders said, in a file of SQLite: a study and every word on it, one row each, none ever removed.
//!
//! ```text
//! study(settings, hash)   model(id, name)   item(id, name, text, category)   response(item, model, text)
//! said(id, grader, task, turned, answer, undone, at)        answer null: skipped        undone 1: taken back
//! ```
//! What counts of a grader and a task is the last row that was not taken back. A row is written with SQLite's journal and
//! `synchronous = EXTRA`, which also syncs the folder that the journal has left: once a call has returned it survives the process (the
//! tests kill it) and, as far as the disk keeps its word, the machine. Several processes may have the file open.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use russet_artifact::Hash;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Answer, Asks, Item, Study, Task, Turn, named};
use crate::{Error, Result};

/// "RUSG": what tells our files from other databases.
const APPLICATION: i64 = 0x5255_5347;
const VERSION: i64 = 1;
/// The most rows of what was said; a page that repeats itself without end fills no disk.
const MOST_SAID: i64 = 10_000_000;
/// How long one process waits for another that is writing.
const PATIENCE: Duration = Duration::from_secs(5);

const TABLES: &str = "
    CREATE TABLE study (settings TEXT NOT NULL, hash TEXT NOT NULL);
    CREATE TABLE model (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL, category TEXT);
    CREATE TABLE response (item INTEGER NOT NULL, model INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (item, model));
    CREATE TABLE said (id INTEGER PRIMARY KEY, grader TEXT NOT NULL, task INTEGER NOT NULL, turned INTEGER NOT NULL,
        answer TEXT, undone INTEGER NOT NULL DEFAULT 0, at INTEGER NOT NULL);
    CREATE INDEX said_of ON said (grader, task);
";

/// How far a grader is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Who.
    pub grader: String,
    /// Tasks graded.
    pub graded: usize,
    /// Tasks put off.
    pub skipped: usize,
    /// All tasks.
    pub of: usize,
}

/// What a grader is shown: no model is named in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    /// How far the grader is.
    pub progress: Progress,
    /// The task; none where all are graded.
    pub task: Option<ShownTask>,
}

/// One task as it stands on the page.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownTask {
    /// Where it stands in the grader's order, from 0; what an answer names.
    pub place: usize,
    /// The prompt, or the text that was summarised.
    pub text: String,
    /// What kind of prompt it is, or what the summary is for.
    pub category: Option<String>,
    /// One response or two, in the order in which they are shown.
    pub responses: Vec<String>,
    /// Whether it was put off before.
    pub skipped: bool,
    /// What the grader said of it before taking that back.
    pub said: Option<Value>,
}

/// What one grader says of one task, in the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Who.
    pub grader: String,
    /// Which task, in the order of [`Study::tasks`].
    pub task: Task,
    /// Whether the second model's response was shown first.
    pub turned: bool,
    /// What.
    pub answer: Answer,
    /// Seconds since 1970.
    pub at: i64,
}

/// A study with its file.
pub struct Grading {
    path: PathBuf,
    study: Study,
    tasks: Vec<Task>,
    orders: Mutex<HashMap<String, Arc<Vec<Turn>>>>,
    file: Mutex<Connection>,
    results: Mutex<Option<(Stamp, Value)>>,
}

/// Rows said, rows taken back, and whether names are told: whether results have changed.
type Stamp = (i64, i64, bool);

impl std::fmt::Debug for Grading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grading")
            .field("path", &self.path)
            .field("tasks", &self.tasks.len())
            .finish_non_exhaustive()
    }
}

/// A lock whose holder panicked holds nothing half done: SQLite rolls back what was not committed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Grading {
    /// Begins a study in a new file, or goes on with the one that a file keeps, which must be the same.
    ///
    /// # Errors
    /// When the file cannot be read or written, is another program's, or keeps another study.
    pub fn begin(path: &Path, study: Study) -> Result<Grading> {
        let failed = failed(path);
        let mut file = connect(path, OpenFlags::SQLITE_OPEN_CREATE).map_err(&failed)?;
        let hash = hash(&study)?;
        // Nobody else begins one in between.
        let change = file.transaction_with_behavior(TransactionBehavior::Immediate);
        let change = change.map_err(&failed)?;
        if let Some(kept) = kept_hash(path, &change)? {
            drop(change);
            return match kept == hash {
                true => Ok(Grading::with(path, file, study)),
                false => Err(Error::Kept {
                    path: path.to_owned(),
                    problem: "it keeps the grades of other responses, or of the same under other names, another seed or other \
                              questions; name another file by --keep, or leave --responses out to go on with what it keeps"
                        .to_owned(),
                }),
            };
        }
        write_study(&change, &study, &hash)
            .and_then(|()| change.commit())
            .map_err(&failed)?;
        Ok(Grading::with(path, file, study))
    }

    /// Goes on with what a file keeps.
    ///
    /// # Errors
    /// When there is no such file, or it keeps no study that this version reads.
    pub fn open(path: &Path) -> Result<Grading> {
        let none = |problem: &str| Error::Kept {
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        if !path.is_file() {
            return Err(none(
                "there is no such file; give --responses FILE for each model to begin one",
            ));
        }
        let failed = failed(path);
        let file = connect(path, OpenFlags::empty()).map_err(&failed)?;
        let Some(kept) = kept_hash(path, &file)? else {
            return Err(none(
                "it keeps no study; give --responses FILE for each model to begin one",
            ));
        };
        let study = read_study(&file).map_err(&failed)?;
        match hash(&study)? == kept {
            true => Ok(Grading::with(path, file, study)),
            false => Err(none(
                "its study is not the one that it was begun with; somebody has changed the file, so its grades are of nothing",
            )),
        }
    }

    fn with(path: &Path, file: Connection, study: Study) -> Grading {
        Grading {
            path: path.to_owned(),
            tasks: study.tasks(),
            study,
            orders: Mutex::default(),
            file: Mutex::new(file),
            results: Mutex::default(),
        }
    }

    /// What is graded.
    pub fn study(&self) -> &Study {
        &self.study
    }

    fn order(&self, grader: &str) -> Arc<Vec<Turn>> {
        let mut orders = lock(&self.orders);
        if let Some(order) = orders.get(grader) {
            return order.clone();
        }
        // Whoever makes up names must not fill the memory; orders are quickly made again.
        if orders.len() >= 64 {
            orders.clear();
        }
        let order = Arc::new(self.study.order(&self.tasks, grader));
        orders.insert(grader.to_owned(), order.clone());
        order
    }

    /// The next task of a grader: the first that was not touched, or else the one put off longest ago.
    ///
    /// # Errors
    /// When the name is none, or the file fails.
    pub fn next(&self, grader: &str) -> Result<Shown> {
        let grader = named(grader)?;
        let order = self.order(grader);
        let touched = self.touched(grader)?;
        let untouched = order
            .iter()
            .position(|turn| !touched.contains_key(&turn.task));
        let place = untouched.or_else(|| {
            let skipped = touched.iter().filter(|(_, (_, skipped))| *skipped);
            let (task, _) = skipped.min_by_key(|(_, (id, _))| *id)?;
            order.iter().position(|turn| turn.task == *task)
        });
        Ok(self.shown(grader, &order, &touched, place, None))
    }

    /// What a grader says of the task at a place, and the next one. It is on disk when this returns.
    ///
    /// # Errors
    /// [`Error::Answer`] when it is no answer to the task; or the file fails, and then nothing was said.
    pub fn say(&self, grader: &str, place: usize, answer: &Value) -> Result<Shown> {
        let grader = named(grader)?;
        let turn = self.turn(grader, place)?;
        let answer = self
            .study
            .check(self.tasks[turn.task], answer)
            .map_err(Error::Answer)?;
        self.push(grader, turn, Some(&answer))?;
        self.next(grader)
    }

    /// Puts off the task at a place, and gives the next one.
    ///
    /// # Errors
    /// As [`Grading::say`].
    pub fn skip(&self, grader: &str, place: usize) -> Result<Shown> {
        let grader = named(grader)?;
        let turn = self.turn(grader, place)?;
        self.push(grader, turn, None)?;
        self.next(grader)
    }

    /// Takes back what a grader said last, and gives that task again with it; once more goes one further back.
    ///
    /// # Errors
    /// [`Error::Answer`] when there is nothing left to take back; or the file fails.
    pub fn undo(&self, grader: &str) -> Result<Shown> {
        let grader = named(grader)?;
        let mut file = lock(&self.file);
        let failed = failed(&self.path);
        let taken = (|| {
            let change = file.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let last = change
                .query_row(
                    "SELECT id, task, answer FROM said WHERE grader = ? AND undone = 0 ORDER BY id DESC LIMIT 1",
                    [grader],
                    |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<String>>(2)?)),
                )
                .optional()?;
            if let Some((id, _, _)) = last {
                change.execute("UPDATE said SET undone = 1 WHERE id = ?", [id])?;
            }
            change.commit()?;
            Ok(last)
        })();
        drop(file);
        let Some((_, task, answer)) = taken.map_err(failed)? else {
            return Err(Error::Answer("there is nothing to take back".to_owned()));
        };
        let said = answer.and_then(|text| serde_json::from_str(&text).ok());
        let order = self.order(grader);
        let place = order
            .iter()
            .position(|turn| i64::try_from(turn.task) == Ok(task));
        let touched = self.touched(grader)?;
        Ok(self.shown(grader, &order, &touched, place, said))
    }

    fn turn(&self, grader: &str, place: usize) -> Result<Turn> {
        let order = self.order(grader);
        order.get(place).copied().ok_or_else(|| {
            Error::Answer(format!(
                "there is no place {place}; there are {} tasks, counted from 0",
                order.len()
            ))
        })
    }

    /// Writes a row; none where it would say again what counts already, as a page does whose answer was lost on its way.
    fn push(&self, grader: &str, turn: Turn, answer: Option<&Answer>) -> Result<()> {
        let answer = answer.map(serde_json::to_string).transpose();
        let answer = answer.map_err(|error| Error::Answer(error.to_string()))?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut file = lock(&self.file);
        let written = (|| {
            let change = file.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let last: Option<i64> =
                change.query_row("SELECT max(id) FROM said", [], |row| row.get(0))?;
            if last.unwrap_or(0) >= MOST_SAID {
                return Ok(false);
            }
            let task = turn.task as i64;
            let counts: Option<Option<String>> = change
                .query_row(
                    "SELECT answer FROM said WHERE grader = ? AND task = ? AND undone = 0 ORDER BY id DESC LIMIT 1",
                    params![grader, task],
                    |row| row.get(0),
                )
                .optional()?;
            if answer.is_some() && counts.as_ref() == Some(&answer) {
                return Ok(true);
            }
            change.execute(
                "INSERT INTO said (grader, task, turned, answer, at) VALUES (?, ?, ?, ?, ?)",
                params![grader, task, turn.turned, answer, now.as_secs() as i64],
            )?;
            change.commit()?;
            Ok(true)
        })();
        match written.map_err(failed(&self.path))? {
            true => Ok(()),
            false => Err(Error::Kept {
                path: self.path.clone(),
                problem: format!("it holds {MOST_SAID} rows, and takes no more"),
            }),
        }
    }

    /// Of each task that a grader has graded or put off: the row that counts, and whether it was put off.
    fn touched(&self, grader: &str) -> Result<HashMap<usize, (i64, bool)>> {
        let file = lock(&self.file);
        let touched = (|| {
            // Beside a max() SQLite gives the other columns of the same row.
            let mut asked = file.prepare(
                "SELECT task, max(id), answer IS NULL FROM said WHERE grader = ? AND undone = 0 GROUP BY task",
            )?;
            let rows = asked.query_map([grader], |row| {
                Ok((row.get::<_, i64>(0)?, (row.get(1)?, row.get(2)?)))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })();
        let touched = touched.map_err(failed(&self.path))?.into_iter();
        let known = |(task, of)| Some((self.known(task)?, of));
        Ok(touched.filter_map(known).collect())
    }

    /// A number of a task, if it is one.
    fn known(&self, task: i64) -> Option<usize> {
        let task = usize::try_from(task).ok()?;
        (task < self.tasks.len()).then_some(task)
    }

    fn shown(
        &self,
        grader: &str,
        order: &[Turn],
        touched: &HashMap<usize, (i64, bool)>,
        place: Option<usize>,
        said: Option<Value>,
    ) -> Shown {
        let task = place.map(|place| {
            let Turn { task, turned } = order[place];
            let item = &self.study.items[self.tasks[task].item];
            let responses = self.study.shown(self.tasks[task], turned);
            ShownTask {
                place,
                text: item.text.clone(),
                category: item.category.clone(),
                responses: responses.into_iter().map(str::to_owned).collect(),
                skipped: touched.get(&task).is_some_and(|(_, skipped)| *skipped),
                said,
            }
        });
        let skipped = touched.values().filter(|(_, skipped)| *skipped).count();
        Shown {
            progress: Progress {
                grader: grader.to_owned(),
                graded: touched.len() - skipped,
                skipped,
                of: self.tasks.len(),
            },
            task,
        }
    }

    /// How far each grader is who has graded or put off anything, by name.
    ///
    /// # Errors
    /// When the file fails.
    pub fn progress(&self) -> Result<Vec<Progress>> {
        let file = lock(&self.file);
        let graders = (|| {
            let mut asked =
                file.prepare("SELECT DISTINCT grader FROM said WHERE undone = 0 ORDER BY grader")?;
            let rows = asked.query_map([], |row| row.get(0))?;
            rows.collect::<rusqlite::Result<Vec<String>>>()
        })();
        drop(file);
        let of = |grader: String| {
            let touched = self.touched(&grader)?;
            let skipped = touched.values().filter(|(_, skipped)| *skipped).count();
            Ok(Progress {
                grader,
                graded: touched.len() - skipped,
                skipped,
                of: self.tasks.len(),
            })
        };
        graders
            .map_err(failed(&self.path))?
            .into_iter()
            .map(of)
            .collect()
    }

    /// Whether every grader who has begun has graded every task: only then does the page name models.
    ///
    /// # Errors
    /// When the file fails.
    pub fn is_complete(&self) -> Result<bool> {
        Ok(all_graded(&self.progress()?))
    }

    /// What graders say in the end, in the order in which they said it.
    ///
    /// # Errors
    /// When the file fails, or holds what is no answer.
    pub fn said(&self) -> Result<Vec<Said>> {
        type Row = (String, i64, bool, Option<String>, i64, i64);
        let file = lock(&self.file);
        let rows = (|| {
            let mut asked = file.prepare(
                "SELECT grader, task, turned, answer, at, max(id) AS last FROM said WHERE undone = 0 GROUP BY grader, task \
                 ORDER BY last",
            )?;
            let rows = asked.query_map([], |row| {
                let last = row.get(5)?;
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                    last,
                ))
            })?;
            rows.collect::<rusqlite::Result<Vec<Row>>>()
        })();
        drop(file);
        let mut all = Vec::new();
        for (grader, task, turned, answer, at, id) in rows.map_err(failed(&self.path))? {
            let Some(answer) = answer else {
                continue;
            };
            let wrong = |problem: &str| Error::Kept {
                path: self.path.clone(),
                problem: format!(
                    "row {id} of the table `said` is no answer ({problem}); somebody has changed the file"
                ),
            };
            let task = self
                .known(task)
                .ok_or_else(|| wrong("there is no such task"))?;
            let task = self.tasks[task];
            let value: Value = serde_json::from_str(&answer).map_err(|_| wrong("no JSON"))?;
            // What is wrong with it could quote it, and this sentence goes to a log.
            let answer = self
                .study
                .check(task, &value)
                .map_err(|_| wrong("not to its task"))?;
            all.push(Said {
                grader,
                task,
                turned,
                answer,
                at,
            });
        }
        Ok(all)
    }

    /// What it comes to so far: progress, models, agreement. Models are named where all is graded or `names` is set, else
    /// [masked](Study::masks).
    ///
    /// # Errors
    /// When the file fails.
    pub fn results(&self, names: bool) -> Result<Value> {
        let graders = self.progress()?;
        let complete = all_graded(&graders);
        let named = names || complete;
        let stamp = {
            let file = lock(&self.file);
            let counts = file.query_row(
                "SELECT count(*), coalesce(sum(undone), 0) FROM said",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, named)),
            );
            counts.map_err(failed(&self.path))?
        };
        let known = lock(&self.results)
            .as_ref()
            .filter(|(of, _)| *of == stamp)
            .map(|(_, results)| results.clone());
        let scores = match known {
            Some(scores) => scores,
            None => {
                let models = match named {
                    true => self.study.models.clone(),
                    false => self.study.masks(),
                };
                let scores = super::results(&self.study, &self.said()?, &models)?;
                *lock(&self.results) = Some((stamp, scores.clone()));
                scores
            }
        };
        Ok(json!({"graders": graders, "complete": complete, "named": named, "scores": scores}))
    }
}

fn failed(path: &Path) -> impl Fn(rusqlite::Error) -> Error + '_ {
    move |error| Error::Kept {
        path: path.to_owned(),
        problem: match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase) => {
                "it is no database of SQLite; name the file of a study, or another one, by --keep"
                    .to_owned()
            }
            Some(rusqlite::ErrorCode::DatabaseBusy) => {
                "another process is writing to it and does not end".to_owned()
            }
            _ => format!(
                "{error}; grades are kept in this file, which must be on a disk that can be written"
            ),
        },
    }
}

fn all_graded(progress: &[Progress]) -> bool {
    !progress.is_empty() && progress.iter().all(|one| one.graded == one.of)
}

fn connect(path: &Path, more: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    // Without a folder before it SQLite takes `:memory:`, and no name at all, for what is gone at the end.
    let file = Connection::open_with_flags(Path::new(".").join(path), flags)?;
    file.busy_timeout(PATIENCE)?;
    file.pragma_update(None, "synchronous", "EXTRA")?;
    // A file that came from elsewhere does nothing of its own here.
    file.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    file.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    file.pragma_update(None, "trusted_schema", false)?;
    Ok(file)
}

/// The hash of the study that a file keeps; none where the file is new.
fn kept_hash(path: &Path, file: &Connection) -> Result<Option<String>> {
    let failed = failed(path);
    let number = |pragma: &str| file.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let tables: i64 = file
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(&failed)?;
    if tables == 0 {
        return Ok(None);
    }
    let other = |problem: &str| Error::Kept {
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    if number("application_id").map_err(&failed)? != APPLICATION {
        return Err(other(
            "it is a database of another program; name another file by --keep",
        ));
    }
    if number("user_version").map_err(&failed)? != VERSION {
        return Err(other(
            "it was written by another version of Russet; use that one",
        ));
    }
    let hash = file.query_row("SELECT hash FROM study", [], |row| row.get(0));
    Ok(Some(hash.map_err(failed)?))
}

/// What a study is known by: all of it.
fn hash(study: &Study) -> Result<String> {
    let items: Vec<Value> = study
        .items
        .iter()
        .map(|item| json!([item.name, item.text, item.category, item.responses]))
        .collect();
    let whole = json!([study.asks, study.seed, study.models, items]);
    Ok(Hash::of(whole.to_string().as_bytes()).to_string())
}

fn write_study(change: &Connection, study: &Study, hash: &str) -> rusqlite::Result<()> {
    change.execute_batch(TABLES)?;
    change.pragma_update(None, "application_id", APPLICATION)?;
    change.pragma_update(None, "user_version", VERSION)?;
    let settings = json!({"asks": study.asks, "seed": study.seed});
    change.execute(
        "INSERT INTO study VALUES (?, ?)",
        params![settings.to_string(), hash],
    )?;
    for (id, name) in study.models.iter().enumerate() {
        change.execute("INSERT INTO model VALUES (?, ?)", params![id as i64, name])?;
    }
    for (id, item) in study.items.iter().enumerate() {
        change.execute(
            "INSERT INTO item VALUES (?, ?, ?, ?)",
            params![id as i64, item.name, item.text, item.category],
        )?;
        for (model, text) in item.responses.iter().enumerate() {
            if let Some(text) = text {
                change.execute(
                    "INSERT INTO response VALUES (?, ?, ?)",
                    params![id as i64, model as i64, text],
                )?;
            }
        }
    }
    Ok(())
}

#[derive(serde::Deserialize)]
struct Settings {
    asks: Asks,
    seed: u64,
}

fn read_study(file: &Connection) -> rusqlite::Result<Study> {
    let settings: String = file.query_row("SELECT settings FROM study", [], |row| row.get(0))?;
    let Settings { asks, seed } = serde_json::from_str(&settings).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
    })?;
    let mut asked = file.prepare("SELECT name FROM model ORDER BY id")?;
    let models: Vec<String> = asked
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut asked = file.prepare("SELECT name, text, category FROM item ORDER BY id")?;
    let items = asked.query_map([], |row| {
        Ok(Item {
            name: row.get(0)?,
            text: row.get(1)?,
            category: row.get(2)?,
            responses: vec![None; models.len()],
        })
    })?;
    let mut items: Vec<Item> = items.collect::<rusqlite::Result<_>>()?;
    let mut asked = file.prepare("SELECT item, model, text FROM response")?;
    let mut rows = asked.query([])?;
    while let Some(row) = rows.next()? {
        let (item, model): (i64, i64) = (row.get(0)?, row.get(1)?);
        let place = usize::try_from(item).ok().zip(usize::try_from(model).ok());
        // One that names no item shows in the hash.
        if let Some(response) =
            place.and_then(|(item, model)| items.get_mut(item)?.responses.get_mut(model))
        {
            *response = Some(row.get(2)?);
        }
    }
    Ok(Study {
        asks,
        seed,
        models,
        items,
    })
}
