//! Reuse of large buffers from one operation, and one step, to the next.
//!
//! Fresh memory from the system costs a page fault every 4 KiB, which for a training step is as
//! dear as all of its norms. A dropped [`Buffer`] goes back to its [`Workspace`]; what is kept idle
//! makes the total exceed the largest amount that was live at one time by 64 MiB at most.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};

/// A pool of `f32` buffers, shared by all tensors of a context.
#[derive(Default)]
pub struct Workspace {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    idle: BTreeMap<usize, Vec<Vec<f32>>>, // by capacity
    idle_floats: usize,
    live_floats: usize,
    peak_floats: usize,
}

impl State {
    /// Lets go of what lies idle, the largest first, until `len` numbers more fit beside it.
    fn shrink(&mut self, len: usize) {
        let live = self.live_floats + len;
        while live + self.idle_floats > self.peak_floats.max(live) + SPARE {
            let Some(mut largest) = self.idle.last_entry() else {
                return;
            };
            largest.get_mut().pop();
            self.idle_floats -= *largest.key();
            if largest.get().is_empty() {
                largest.remove();
            }
        }
    }
}

/// Idle numbers that may be kept beyond the peak: the halves of a layer want buffers of other sizes, and neither set should be
/// made anew in each layer because of the other one.
const SPARE: usize = 16 << 20;

/// Numbers that a buffer of a workspace has to spare, so as to begin at a cache line: a vector across two lines costs as much as two.
/// Counts leave them out.
const SLACK: usize = 15;

/// A buffer of `f32` that returns to its workspace when dropped.
pub struct Buffer {
    data: Vec<f32>, // always initialised to its whole length, which may exceed what is used
    start: usize,
    len: usize,
    home: Option<Arc<Workspace>>,
}

impl Workspace {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves plain numbers behind, all of them valid.
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A buffer of `len` floats with unspecified (but initialised) content: the taker overwrites it.
    pub fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let mut state = self.state();
        // Up to half as large again is accepted: decode lengths differ a little from call to call.
        let fit = state
            .idle
            .range(len..=len + len / 2)
            .next()
            .map(|(&capacity, _)| capacity);
        let data = match fit {
            Some(capacity) => {
                let list = state
                    .idle
                    .get_mut(&capacity)
                    .expect("the key was just seen");
                let data = list.pop().expect("empty lists are removed");
                if list.is_empty() {
                    state.idle.remove(&capacity);
                }
                state.idle_floats -= capacity;
                data
            }
            None => {
                state.shrink(len);
                vec![0.0; len + SLACK]
            }
        };
        state.live_floats += data.len() - SLACK;
        state.peak_floats = state.peak_floats.max(state.live_floats);
        drop(state);
        let start = data.as_ptr().align_offset(64).min(SLACK);
        Buffer {
            data,
            start,
            len,
            home: Some(self.clone()),
        }
    }

    /// A buffer of `len` zeros.
    pub fn zeros(self: &Arc<Self>, len: usize) -> Buffer {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// The most bytes that were in use at one time.
    pub fn peak_bytes(&self) -> usize {
        self.state().peak_floats * size_of::<f32>()
    }

    fn put(&self, data: Vec<f32>) {
        let mut state = self.state();
        let capacity = data.len() - SLACK;
        state.live_floats -= capacity;
        if state.live_floats + state.idle_floats + capacity <= state.peak_floats + SPARE {
            state.idle_floats += capacity;
            state.idle.entry(capacity).or_default().push(data);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.put(std::mem::take(&mut self.data));
        }
    }
}

impl From<Vec<f32>> for Buffer {
    /// A buffer of its own, that belongs to no workspace: parameters and test data.
    fn from(data: Vec<f32>) -> Buffer {
        Buffer {
            start: 0,
            len: data.len(),
            data,
            home: None,
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.data[self.start..][..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_taken_again() {
        let workspace = Arc::new(Workspace::default());
        let first = workspace.take(1000);
        let address = first.as_ptr();
        drop(first);
        let second = workspace.take(900);
        assert_eq!(second.as_ptr(), address);
        assert_eq!(address.addr() % 64, 0);
        assert_eq!(second.len(), 900);
    }

    #[test]
    fn idle_memory_lifts_the_peak_by_the_spare_at_most() {
        let workspace = Arc::new(Workspace::default());
        for len in 1..40 {
            let buffer = workspace.take(len << 20);
            let state = workspace.state();
            assert!(state.live_floats + state.idle_floats <= state.peak_floats + SPARE);
            drop(state);
            drop(buffer);
        }
        assert_eq!(workspace.state().peak_floats, 39 << 20);
    }

    #[test]
    fn two_sizes_in_turn_are_made_once_each() {
        let workspace = Arc::new(Workspace::default());
        for _ in 0..3 {
            for len in [1000, 4000] {
                drop(workspace.take(len));
            }
            assert_eq!(workspace.state().idle_floats, 5000);
        }
    }

    #[test]
    fn zeros_are_zero_after_reuse() {
        let workspace = Arc::new(Workspace::default());
        workspace.take(64).fill(7.0);
        assert!(workspace.zeros(64).iter().all(|&x| x == 0.0));
    }
}
