//! The adapters that requests may name: loaded once, immutable, replaced whole.
//!
//! A name has a *generation*: loading it again makes another and swaps a pointer, so whoever runs on the former keeps it until it
//! ends. Matrices are f16 in memory, whatever the file holds, and all of them together stay within a budget of bytes: the one
//! that was used longest ago goes first, unless it is pinned, in use, or came without a folder to read it from again.
//!
//! The handle is cheap to clone and may be used from any thread. Files are read outside its lock, so loading pauses nobody but who asks:
//! a request for an adapter that was let go is read by whoever submits it, unless it was [held](Adapters::hold) before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use russet_model::{Layout, adapter};
use russet_tensor::ops::Adapter;

use crate::{Error, Result};

/// The registry.
#[derive(Clone)]
pub struct Adapters {
    layouts: Arc<[Layout]>,
    budget: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    base: Option<String>,
    entries: BTreeMap<String, Entry>,
    retired: Vec<(Weak<Adapter>, usize)>, // former generations that somebody may still run on, with their bytes
    clock: u64,
    next: u64, // generation
    loads: u64,
    evictions: u64,
}

struct Entry {
    folder: Option<PathBuf>,
    loaded: Option<(Arc<Adapter>, u64)>, // with its generation
    bytes: usize,                        // while loaded
    pinned: bool,
    used: u64,
}

/// An adapter that stays in memory as long as this lives.
pub struct Held(#[allow(dead_code)] Arc<Adapter>);

/// What the registry holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterStats {
    /// Names.
    pub known: usize,
    /// Of them in memory.
    pub loaded: usize,
    /// Bytes in memory, former generations in use among them.
    pub bytes: usize,
    /// Files read since the beginning.
    pub loads: u64,
    /// Adapters let go for others since the beginning.
    pub evictions: u64,
}

impl Adapters {
    /// A registry of adapters for products of these layouts, `budget` bytes at most.
    pub(crate) fn new(layouts: Vec<Layout>, budget: usize) -> Adapters {
        Adapters {
            layouts: layouts.into(),
            budget,
            state: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is behind it is whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the base is called: adapters whose `russet_base` names another are refused from now on.
    pub fn name_base(&self, base: &str) {
        self.lock().base = Some(base.to_owned());
    }

    /// Makes a PEFT folder known under `name`, to be read when it is first asked for.
    pub fn register(&self, name: &str, folder: &Path) {
        let mut state = self.lock();
        let entry = state.entries.entry(name.to_owned()).or_insert(Entry {
            folder: None,
            loaded: None,
            bytes: 0,
            pinned: false,
            used: 0,
        });
        entry.folder = Some(folder.to_path_buf());
    }

    /// Reads a PEFT folder and lets requests that come from now on find it under `name`.
    ///
    /// # Errors
    /// When it is damaged, does not fit this decoder or its base, or finds no room.
    pub fn load(&self, name: &str, folder: &Path) -> Result<()> {
        let adapter = self.read(folder)?;
        self.publish(name, Some(folder), adapter).map(drop)
    }

    /// Lets requests that come from now on find `adapter` under `name`. It has no folder, so it stays until it is replaced or
    /// removed.
    ///
    /// # Errors
    /// When it finds no room.
    pub fn insert(&self, name: &str, adapter: Adapter) -> Result<()> {
        self.publish(name, None, adapter).map(drop)
    }

    fn read(&self, folder: &Path) -> Result<Adapter> {
        let base = self.lock().base.clone();
        let adapter = adapter::load(&self.layouts, folder, base.as_deref())?;
        self.lock().loads += 1;
        Ok(adapter)
    }

    fn publish(
        &self,
        name: &str,
        folder: Option<&Path>,
        adapter: Adapter,
    ) -> Result<(Arc<Adapter>, u64)> {
        self.lock().publish(name, folder, adapter, self.budget)
    }

    /// Reads the adapter of that name where it is not in memory, and keeps it there until the handle is dropped. Blocks: who calls it from a
    /// thread of his own before he submits a request spares those that generate the wait.
    ///
    /// # Errors
    /// When there is none of that name, or as [`Adapters::load`].
    pub fn hold(&self, name: &str) -> Result<Held> {
        self.get(name).map(|(adapter, _)| Held(adapter))
    }

    /// The adapter of that name and its generation, read again where it was let go.
    pub(crate) fn get(&self, name: &str) -> Result<(Arc<Adapter>, u64)> {
        loop {
            let folder = {
                let mut state = self.lock();
                state.clock += 1;
                let clock = state.clock;
                let Some(entry) = state.entries.get_mut(name) else {
                    let names: Vec<&str> = state.entries.keys().map(String::as_str).collect();
                    let known = match &names[..] {
                        [] => "none is loaded".to_owned(),
                        names => format!("there are {}", names.join(", ")),
                    };
                    let name = name.to_owned();
                    return Err(Error::UnknownAdapter { name, known });
                };
                entry.used = clock;
                if let Some(loaded) = &entry.loaded {
                    return Ok(loaded.clone());
                }
                entry.folder.clone().expect("what was let go has a folder")
            };
            let adapter = self.read(&folder)?;
            let mut state = self.lock();
            let entry = state.entries.get(name);
            // Meanwhile the name may have been forgotten, or stand for another one; then this one is out of date.
            if entry.is_some_and(|e| e.loaded.is_none() && e.folder.as_ref() == Some(&folder)) {
                return state.publish(name, Some(&folder), adapter, self.budget);
            }
        }
    }

    /// Keeps an adapter in memory however long nobody asks for it, or no longer; whether there is one of that name.
    pub fn pin(&self, name: &str, pinned: bool) -> bool {
        let mut state = self.lock();
        let entry = state.entries.get_mut(name);
        entry.map(|entry| entry.pinned = pinned).is_some()
    }

    /// Forgets an adapter; whether there was one. Who runs on it keeps it.
    pub fn remove(&self, name: &str) -> bool {
        let mut state = self.lock();
        let entry = state.entries.remove(name);
        entry.map(|entry| state.retire(entry)).is_some()
    }

    /// What there is.
    pub fn stats(&self) -> AdapterStats {
        let mut state = self.lock();
        let bytes = state.bytes();
        AdapterStats {
            known: state.entries.len(),
            loaded: state
                .entries
                .values()
                .filter(|e| e.loaded.is_some())
                .count(),
            bytes,
            loads: state.loads,
            evictions: state.evictions,
        }
    }
}

impl Entry {
    /// Whether letting go of it would give its bytes back, and it could be read again.
    fn evictable(&self) -> bool {
        !self.pinned && self.folder.is_some() && self.idle()
    }

    fn idle(&self) -> bool {
        let loaded = self.loaded.as_ref();
        loaded.is_some_and(|(adapter, _)| Arc::strong_count(adapter) == 1)
    }
}

impl State {
    fn publish(
        &mut self,
        name: &str,
        folder: Option<&Path>,
        adapter: Adapter,
        budget: usize,
    ) -> Result<(Arc<Adapter>, u64)> {
        let bytes = adapter.bytes();
        self.make_room(name, bytes, budget)?;
        self.clock += 1;
        self.next += 1;
        let (used, generation) = (self.clock, self.next);
        let loaded = (Arc::new(adapter), generation);
        let pinned = self.entries.get(name).is_some_and(|entry| entry.pinned);
        let entry = Entry {
            folder: folder.map(Path::to_path_buf),
            loaded: Some(loaded.clone()),
            bytes,
            pinned,
            used,
        };
        if let Some(old) = self.entries.insert(name.to_owned(), entry) {
            self.retire(old);
        }
        Ok(loaded)
    }

    fn retire(&mut self, entry: Entry) {
        if let Some((adapter, _)) = &entry.loaded
            && !entry.idle()
        {
            self.retired.push((Arc::downgrade(adapter), entry.bytes));
        }
    }

    fn bytes(&mut self) -> usize {
        self.retired
            .retain(|(adapter, _)| adapter.strong_count() > 0);
        let retired: usize = self.retired.iter().map(|&(_, bytes)| bytes).sum();
        let loaded = self.entries.values().filter(|e| e.loaded.is_some());
        loaded.map(|entry| entry.bytes).sum::<usize>() + retired
    }

    /// Lets adapters go until `bytes` more fit, what `name` has now not counted where nobody runs on it.
    fn make_room(&mut self, name: &str, bytes: usize, budget: usize) -> Result<()> {
        let replaced = self.entries.get(name).filter(|entry| entry.idle());
        let replaced = replaced.map_or(0, |entry| entry.bytes);
        let mut held = self.bytes() - replaced;
        let others = |(other, entry): &(&String, &Entry)| *other != name && entry.evictable();
        let spare = self.entries.iter().filter(others).map(|(_, e)| e.bytes);
        let fixed = held - spare.sum::<usize>();
        if bytes.saturating_add(fixed) > budget {
            return Err(Error::AdapterBudget {
                name: name.to_owned(),
                bytes,
                budget,
                held: fixed,
            });
        }
        while held + bytes > budget {
            let oldest = self
                .entries
                .iter()
                .filter(others)
                .min_by_key(|(_, e)| e.used);
            let oldest = oldest.expect("enough can be let go").0.clone();
            let entry = self.entries.get_mut(&oldest).expect("found just now");
            entry.loaded = None;
            held -= entry.bytes;
            self.evictions += 1;
        }
        Ok(())
    }
}
