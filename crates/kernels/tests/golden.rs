//! Every operation against torch: `golden/ops.safetensors`, whose tensors the table at the top of `golden/make_ops.py` describes. They
//! were computed in f64 from inputs that f32 holds exactly; our operations run on every instruction set, in f32.

use std::path::Path;

use russet_kernels::attention::{NO_WINDOW, Query, attention_backward, attention_forward};
use russet_kernels::optimizer::{AdamW, adamw_step};
use russet_kernels::rope::{HeadShape, RopeTable, qk_norm_rope_backward, qk_norm_rope_forward};
use russet_kernels::{Compute, Isa, Pool, cross_entropy, norm, swiglu};
use safetensors::{Dtype, SafeTensors};

/// Of the largest number of a tensor: some tens of roundings of 6e-8. A wrong epsilon, here 1e-3, would move a norm by 5e-4.
const TOLERANCE: f32 = 5e-6;

const SHAPE: HeadShape = HeadShape {
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
};

struct Goldens(Vec<u8>);

impl Goldens {
    fn open() -> Goldens {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/ops.safetensors");
        Goldens(std::fs::read(path).unwrap())
    }

    fn words(&self, name: &str, dtype: Dtype) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file
            .tensor(name)
            .unwrap_or_else(|_| panic!("no tensor {name}"));
        assert_eq!(tensor.dtype(), dtype, "{name}");
        tensor.data().as_chunks().0.to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name, Dtype::F32)
            .into_iter()
            .map(f32::from_le_bytes)
            .collect()
    }

    fn integers(&self, name: &str) -> Vec<u32> {
        self.words(name, Dtype::U32)
            .into_iter()
            .map(u32::from_le_bytes)
            .collect()
    }

    fn check(&self, name: &str, got: &[f32]) {
        let want = self.floats(name);
        assert_eq!(got.len(), want.len(), "{name}");
        let largest = want.iter().fold(0f32, |most, x| most.max(x.abs()));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!(
                (got - want).abs() <= TOLERANCE * largest,
                "{name}[{i}]: {got}, torch {want}"
            );
        }
    }
}

fn pools() -> impl Iterator<Item = Pool> {
    Isa::available().map(|isa| Pool::with_isa(2, isa))
}

/// Room for results, which nothing but the results fills with numbers.
fn room(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

#[test]
fn attention_equals_torch() {
    let g = Goldens::open();
    let (qkv, d_out) = (g.floats("attention.qkv"), g.floats("attention.d_out"));
    let segments: Vec<(usize, usize)> = g
        .integers("attention.segments")
        .as_chunks()
        .0
        .iter()
        .map(|&[start, len]| (start as usize, len as usize))
        .collect();
    let tokens = qkv.len() / SHAPE.qkv_width();
    for pool in pools() {
        let queries: Vec<Query> = segments
            .iter()
            .map(|&(start, len)| Query::flat(SHAPE, &qkv, start, len))
            .collect();
        let (mut out, mut lse) = (room(tokens * SHAPE.q_width()), room(tokens * SHAPE.heads));
        attention_forward(
            &pool,
            Compute::F32,
            SHAPE,
            &qkv,
            SHAPE.qkv_width(),
            &queries,
            &mut out,
            &mut lse,
        );
        g.check("attention.out", &out);
        g.check("attention.lse", &lse);
        let mut d_qkv = room(qkv.len());
        attention_backward(
            &pool,
            Compute::F32,
            SHAPE,
            NO_WINDOW,
            &qkv,
            &segments,
            &out,
            &lse,
            &d_out,
            &mut d_qkv,
        );
        g.check("attention.d_qkv", &d_qkv);
    }
}

#[test]
fn rms_norm_equals_torch() {
    let g = Goldens::open();
    let [x, weight, eps, d_out] =
        ["x", "weight", "eps", "d_out"].map(|name| g.floats(&format!("rms_norm.{name}")));
    for pool in pools() {
        let (mut out, mut inv_rms) = (room(x.len()), room(x.len() / weight.len()));
        norm::rms_norm_forward(&pool, &x, &weight, eps[0], &mut out, &mut inv_rms);
        g.check("rms_norm.out", &out);
        g.check("rms_norm.inv_rms", &inv_rms);
        let (mut d_x, mut d_weight) = (room(x.len()), vec![0.0; weight.len()]);
        norm::rms_norm_backward(
            &pool,
            &x,
            &weight,
            &inv_rms,
            &d_out,
            &mut d_x,
            &mut d_weight,
        );
        g.check("rms_norm.d_x", &d_x);
        g.check("rms_norm.d_weight", &d_weight);
    }
}

#[test]
fn rotation_with_and_without_norms_equals_torch() {
    let g = Goldens::open();
    let table = RopeTable::new(128, SHAPE.head_dim, 10_000.0);
    // Torch's angles are in f64, ours the f32 products that trained weights expect: at position 127 that is 4e-6.
    for (name, got) in [("rope.cos", &table.cos), ("rope.sin", &table.sin)] {
        for (got, want) in got.iter().zip(g.floats(name)) {
            assert!((got - want).abs() <= 8e-6, "{name}: {got}, torch {want}");
        }
    }
    let table = RopeTable {
        cos: g.floats("rope.cos"),
        sin: g.floats("rope.sin"),
        half: SHAPE.head_dim / 2,
    };
    let [qkv, q_norm, k_norm, eps, d_out] = ["qkv", "q_norm", "k_norm", "eps", "d_out"]
        .map(|name| g.floats(&format!("qk_norm_rope.{name}")));
    let positions = g.integers("qk_norm_rope.positions");
    for pool in pools() {
        for (op, norms) in [
            ("qk_norm_rope", Some((&q_norm[..], &k_norm[..]))),
            ("rope", None),
        ] {
            let (q, k) = norms.unzip();
            let (mut out, mut inv) = (room(qkv.len()), room(positions.len() * 6));
            qk_norm_rope_forward(
                &pool, SHAPE, &qkv, &positions, &table, q, k, eps[0], &mut out, &mut inv,
            );
            g.check(&format!("{op}.out"), &out);
            let (mut d_qkv, mut d_q, mut d_k) = (room(qkv.len()), vec![0.0; 16], vec![0.0; 16]);
            let (want_q, want_k) = norms.map(|_| (&mut d_q[..], &mut d_k[..])).unzip();
            qk_norm_rope_backward(
                &pool, SHAPE, &qkv, &positions, &table, q, k, &inv, &d_out, &mut d_qkv, want_q,
                want_k,
            );
            g.check(&format!("{op}.d_qkv"), &d_qkv);
            if norms.is_some() {
                g.check("qk_norm_rope.inv_rms", &inv);
                g.check("qk_norm_rope.d_q_norm", &d_q);
                g.check("qk_norm_rope.d_k_norm", &d_k);
            }
        }
    }
}

#[test]
fn swiglu_equals_torch() {
    let g = Goldens::open();
    let (gate_up, d_out) = (g.floats("swiglu.gate_up"), g.floats("swiglu.d_out"));
    for pool in pools() {
        let (mut out, mut d_gate_up) = (room(d_out.len()), room(gate_up.len()));
        swiglu::forward(&pool, &gate_up, 24, &mut out);
        g.check("swiglu.out", &out);
        swiglu::backward(&pool, &gate_up, 24, &d_out, &mut d_gate_up);
        g.check("swiglu.d_gate_up", &d_gate_up);
    }
}

#[test]
fn cross_entropy_equals_torch() {
    let g = Goldens::open();
    let [hidden, table, weights] =
        ["hidden", "table", "weights"].map(|name| g.floats(&format!("cross_entropy.{name}")));
    let targets = g.integers("cross_entropy.targets");
    assert!(targets.contains(&cross_entropy::IGNORE));
    for pool in pools() {
        let mut losses = room(targets.len());
        cross_entropy::forward(&pool, Compute::F32, &hidden, &table, &targets, &mut losses);
        g.check("cross_entropy.losses", &losses);
        let (mut losses, mut d_hidden, mut d_table) = (
            room(targets.len()),
            room(hidden.len()),
            vec![0.0; table.len()],
        );
        cross_entropy::forward_backward(
            &pool,
            Compute::F32,
            &hidden,
            &table,
            &targets,
            &weights,
            &mut losses,
            &mut d_hidden,
            &mut d_table,
        );
        g.check("cross_entropy.losses", &losses);
        g.check("cross_entropy.d_hidden", &d_hidden);
        g.check("cross_entropy.d_table", &d_table);
    }
}

#[test]
fn three_steps_of_adamw_equal_torch() {
    let g = Goldens::open();
    let [start, grads, hyper] =
        ["weight", "grads", "hyper"].map(|name| g.floats(&format!("adamw.{name}")));
    let [lr, beta1, beta2, eps, weight_decay] = hyper[..] else {
        panic!("five settings")
    };
    for pool in pools() {
        let (mut weight, mut m, mut v) = (
            start.clone(),
            vec![0.0; start.len()],
            vec![0.0; start.len()],
        );
        let mut after: [Vec<f32>; 3] = Default::default();
        for (step, grad) in (1..).zip(grads.chunks_exact(start.len())) {
            let adamw = AdamW {
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
                grad_scale: 1.0,
                step,
            };
            adamw_step(&pool, &adamw, &mut weight, grad, &mut m, &mut v);
            for (after, now) in after.iter_mut().zip([&weight, &m, &v]) {
                after.extend(now);
            }
        }
        for (name, after) in ["weights", "m", "v"].into_iter().zip(&after) {
            g.check(&format!("adamw.{name}"), after);
        }
    }
}
