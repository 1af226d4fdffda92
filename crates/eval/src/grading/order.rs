//! In which order a grader meets the tasks, and which response stands first.
//!
//! Both are a hash of the seed, the grader's name and the task: nobody has to remember them, two graders have different ones, and a
//! place on the page is no one's habit. What was shown is recorded with each answer all the same.

use russet_artifact::Hash;
use serde_json::json;

use super::{Study, Task};

/// A task as one grader meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Which task.
    pub task: usize,
    /// Whether the second model's response stands first.
    pub turned: bool,
}

impl Study {
    /// The order of a grader. A task is known by its texts' name and its models', so it does not matter where it stood in a file.
    pub fn order(&self, tasks: &[Task], grader: &str) -> Vec<Turn> {
        let key = |task: &Task| {
            let models = [Some(task.first), task.second];
            let models = models.map(|model| model.map(|model| &self.models[model]));
            let name = json!([self.seed, grader, self.items[task.item].name, models]);
            Hash::of(name.to_string().as_bytes())
        };
        let mut keyed: Vec<([u8; 32], Turn)> = tasks
            .iter()
            .enumerate()
            .map(|(place, task)| {
                let bytes = *key(task).as_bytes();
                // The first bytes sort; the last one, which they say nothing of, decides who stands first.
                let turned = task.second.is_some() && bytes[31] & 1 == 1;
                (
                    bytes,
                    Turn {
                        task: place,
                        turned,
                    },
                )
            })
            .collect();
        keyed.sort_unstable_by_key(|(bytes, _)| *bytes);
        keyed.into_iter().map(|(_, turn)| turn).collect()
    }

    /// What models are called as long as their names are not to be known: `model 1`, `model 2`, in an order of the seed's.
    pub fn masks(&self) -> Vec<String> {
        let mut order: Vec<usize> = (0..self.models.len()).collect();
        let key = |model: usize| {
            let name = json!([self.seed, self.models[model]]);
            *Hash::of(name.to_string().as_bytes()).as_bytes()
        };
        order.sort_by_key(|&model| key(model));
        let mut masks = vec![String::new(); order.len()];
        for (number, model) in order.into_iter().enumerate() {
            masks[model] = format!("model {}", number + 1);
        }
        masks
    }
}
