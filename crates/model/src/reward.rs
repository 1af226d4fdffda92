//! The reward head: how good a response is, read off the hidden state of its last token (AFM, arXiv 2407.21075, section 4.2).
//!
//! ```text
//! r       = s · h                                   s [1, D]
//! grade g = Dg (silu(Gg h) ⊙ (Ug h))                G, U [D / 4, D], D [3, D / 4]; four grades of three levels
//! ```
//! h `[D]` is the normed state that the output table would meet. The width and the activation of the grades' MLPs are not
//! published: theirs are a quarter of the model's and the model's own. No biases, as everywhere.
//!
//! In files the names are `score.weight`, as transformers' `…ForSequenceClassification` has it, and
//! `grades.NAME.{gate,up,down}_proj.weight`. A head of the hub without grades is read too.

use russet_kernels::random;
use russet_tensor::{Ctx, Tensor, ops};

use crate::stored::Stored;
use crate::{Config, ModelError, Parameter, ParameterKind};

/// The grades of a single response, by their names in files and rows.
pub const GRADES: [&str; 4] = [
    "instruction_following",
    "verbosity",
    "truthfulness",
    "harmlessness",
];

/// Levels of a grade.
pub const LEVELS: usize = 3;

/// The tensor that makes a checkpoint one of a reward model.
pub const SCORE: &str = "score.weight";

/// Streams of random numbers, apart from those of weights and adapters.
const STREAM: u64 = 1 << 40;

/// A linear head for the reward, and one MLP a grade.
#[derive(Clone)]
pub struct RewardHead {
    score: Tensor,      // [1, D]
    grades: Vec<Grade>, // one for each of GRADES, or none
}

#[derive(Clone)]
struct Grade {
    gate_up: Tensor, // [2 H, D]
    down: Tensor,    // [LEVELS, H]
}

/// What a head says of M responses.
pub struct Judged {
    /// `[M, 1]`.
    pub rewards: Tensor,
    /// Logits `[M, LEVELS]` of each of [`GRADES`]; none of a head without them.
    pub grades: Vec<Tensor>,
}

impl RewardHead {
    /// Every matrix normal with variance 1 / inputs, as the decoder's own; the same seed gives the same numbers.
    pub fn random(config: &Config, seed: u64) -> RewardHead {
        let (width, hidden) = (config.width, hidden(config));
        let mut stream = STREAM;
        let mut matrix = |rows: usize, columns: usize| {
            stream += 1;
            let deviation = (columns as f32).sqrt().recip();
            let one = |i: usize| deviation * random::normal(seed, stream, i as u64);
            Tensor::from_fn(&[rows, columns], one)
        };
        RewardHead {
            score: matrix(1, width),
            grades: GRADES
                .iter()
                .map(|_| Grade {
                    gate_up: matrix(2 * hidden, width),
                    down: matrix(LEVELS, hidden),
                })
                .collect(),
        }
    }

    /// Takes a head out of a checkpoint's or an adapter's tensors; none where there is none. `prefix` stands before their names.
    pub(crate) fn take(
        config_width: usize,
        prefix: &str,
        stored: &mut Stored,
    ) -> Result<Option<RewardHead>, ModelError> {
        let score = format!("{prefix}{SCORE}");
        if !stored.has(&score) {
            return Ok(None);
        }
        let score = stored.take_f32(&score, &[1, config_width])?;
        let name =
            |grade: &str, matrix: &str| format!("{prefix}grades.{grade}.{matrix}_proj.weight");
        let mut grades = Vec::new();
        if let Some(&[hidden, _]) = stored.shape(&name(GRADES[0], "gate")) {
            for grade in GRADES {
                let inputs = [hidden, config_width];
                let gate = stored.take_floats(&name(grade, "gate"), &inputs)?;
                let up = stored.take_floats(&name(grade, "up"), &inputs)?;
                let packed = [gate.to_f32(), up.to_f32()].concat();
                grades.push(Grade {
                    gate_up: Tensor::new(&[2 * hidden, config_width], packed),
                    down: stored.take_f32(&name(grade, "down"), &[LEVELS, hidden])?,
                });
            }
        }
        Ok(Some(RewardHead { score, grades }))
    }

    /// Whether it knows grades.
    pub fn has_grades(&self) -> bool {
        !self.grades.is_empty()
    }

    /// Of hidden states `[M, D]`, recorded where a tape runs.
    pub fn forward(&self, ctx: &mut Ctx, hidden: &Tensor) -> Judged {
        let rewards = ops::linear(ctx, hidden, &self.score); // [M, 1]
        let mut grades = Vec::new();
        for Grade { gate_up, down } in &self.grades {
            let wide = ops::linear(ctx, hidden, gate_up); // [M, 2 H]
            let wide = ops::swiglu(ctx, &wide); // [M, H]
            grades.push(ops::linear(ctx, &wide, down)); // [M, LEVELS]
        }
        Judged { rewards, grades }
    }

    /// Bytes of its weights.
    pub fn stored_bytes(&self) -> usize {
        let grades = self.grades.iter();
        let grades = grades.map(|one| one.gate_up.bytes().len() + one.down.bytes().len());
        self.score.bytes().len() + grades.sum::<usize>()
    }

    /// Its parameters, in a fixed order.
    pub(crate) fn visit<'a>(&'a self, visit: &mut dyn FnMut(Parameter<'a>)) {
        let mut show = |parts: Vec<(String, usize)>, kind, tensor| {
            visit(Parameter {
                parts,
                kind,
                tensor,
                cut: None,
            });
        };
        // An output table of one row.
        let parts = vec![(SCORE.to_owned(), 1)];
        show(parts, ParameterKind::Embedding, &self.score);
        for (name, Grade { gate_up, down }) in GRADES.iter().zip(&self.grades) {
            let part = |matrix: &str, rows| (format!("grades.{name}.{matrix}_proj.weight"), rows);
            let hidden = down.dims2().1;
            let parts = vec![part("gate", hidden), part("up", hidden)];
            show(parts, ParameterKind::Matrix, gate_up);
            show(vec![part("down", LEVELS)], ParameterKind::Matrix, down);
        }
    }

    /// Its tensors to be changed in place, in the order of [`RewardHead::visit`].
    pub(crate) fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        visit(&mut self.score);
        for Grade { gate_up, down } in &mut self.grades {
            visit(gate_up);
            visit(down);
        }
    }
}

/// H of the grades' MLPs.
fn hidden(config: &Config) -> usize {
    (config.width / 4).max(1)
}
