//! A palettized model whose tables lose nothing is the dense model, product by product, but for its activations of 8 bits: with the
//! dense product's activations rounded by the same formula, nothing is left between the two.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use russet_compress::{TableBits, lossless};
use russet_kernels::Pool;
use russet_kernels::palette::Bits;
use russet_model::{Config, Dense, Layout, Linear, Parameter, ParameterKind, package};
use russet_tensor::{Ctx, Segments, Tensor};

/// Inputs that share a scale, as `russet_kernels::quantize` says.
const BLOCK: usize = 128;

/// `x` as a palettized product sees it, written down from the formula.
fn rounded(x: &Tensor) -> Tensor {
    let mut data = x.data().to_vec();
    for row in data.chunks_mut(x.dims2().1) {
        for block in row.chunks_mut(BLOCK) {
            let most = block.iter().fold(0f32, |most, x| most.max(x.abs()));
            for x in block.iter_mut().filter(|_| most > 0.0) {
                *x = (*x * (127.0 / most)).round_ties_even() * (most / 127.0);
            }
        }
    }
    Tensor::new(x.shape(), data)
}

/// How far two results lie apart, over the size of the second.
fn apart(got: &Tensor, want: &Tensor) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let pairs = got.data().iter().zip(want.data());
    let off: f64 = pairs.map(|(a, b)| square(a - b)).sum();
    (off / want.data().iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

/// Sums of a few hundred terms round in f32 in the dense product and are exact in the other, hence 1e-7 and some. Left
/// unrounded, activations alone cost 1e-3 and more; one wrong palette entry in a strip would as well.
fn check(what: &str, got: &Tensor, same: &Tensor, unrounded: &Tensor) {
    let (off, without) = (apart(got, same), apart(got, unrounded));
    assert!(
        off < 1e-6 && without > 1e-4,
        "{what}: off by {off}, by {without} with activations unrounded"
    );
}

/// Goes on with the palettized product and compares it with the dense one on what the model really feeds it.
struct Both {
    stored: Box<dyn Linear>,
    dense: Dense,
    products: Arc<AtomicUsize>,
}

impl Linear for Both {
    fn forward(&self, ctx: &mut Ctx, x: &Tensor) -> Tensor {
        let got = self.stored.forward(ctx, x);
        let (same, unrounded) = (
            self.dense.forward(ctx, &rounded(x)),
            self.dense.forward(ctx, x),
        );
        check(
            &format!("{:?}", self.layout().projections),
            &got,
            &same,
            &unrounded,
        );
        self.products.fetch_add(1, Ordering::Relaxed);
        got
    }

    fn layout(&self) -> &Layout {
        self.stored.layout()
    }

    fn stored_bytes(&self) -> usize {
        self.stored.stored_bytes()
    }

    fn visit<'a>(&'a self, visit: &mut dyn FnMut(Parameter<'a>)) {
        self.stored.visit(visit);
    }

    fn visit_mut(&mut self, visit: &mut dyn FnMut(&mut Tensor)) {
        self.stored.visit_mut(visit);
    }
}

#[test]
fn a_lossless_palette_equals_dense_with_the_same_activations() {
    let pool = Arc::new(Pool::new(2).unwrap());
    use TableBits::{Eight, Four};
    for (family, bits, table, seed) in [
        ("Qwen3ForCausalLM", Bits::Four, Eight, 1),
        ("LlamaForCausalLM", Bits::Two, Eight, 2),
        ("Qwen3ForCausalLM", Bits::Three, Four, 3),
        ("LlamaForCausalLM", Bits::Four, Four, 4),
    ] {
        // Two blocks of inputs, the second not full; rows that fill no whole strip.
        let json = serde_json::json!({
            "architectures": [family], "vocab_size": 50, "hidden_size": 150, "num_hidden_layers": 3,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 26, "intermediate_size": 203,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "hidden_act": "silu",
            "tie_word_embeddings": bits == Bits::Four, "bos_token_id": 0, "eos_token_id": 0,
        });
        let config = Config::parse(json.as_object().unwrap()).unwrap();
        let (dense, compressed) = lossless::decoder(&pool, &config, seed, |_| bits, table).unwrap();
        let folder = tempfile::tempdir().unwrap();
        compressed.write(folder.path()).unwrap();

        let parameters = dense.parameters();
        let mut weights = parameters
            .iter()
            .filter(|p| p.kind == ParameterKind::Matrix);
        let products = Arc::new(AtomicUsize::new(0));
        let package = package::load(folder.path()).unwrap().map_linears(|stored| {
            let weight = weights
                .next()
                .expect("a dense weight for each product")
                .tensor
                .clone();
            let (dense, products) = (
                Dense::new(stored.layout().clone(), weight),
                products.clone(),
            );
            Box::new(Both {
                stored,
                dense,
                products,
            })
        });
        let mut ctx = Ctx::new(pool.clone());
        let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 50).collect();
        let hidden = package.forward(&mut ctx, &tokens, &Segments::packed(&[40]), None);
        assert_eq!(products.load(Ordering::Relaxed), 4 * 3);
        let got = package.logits(&mut ctx, &hidden);
        let (same, unrounded) = (
            dense.logits(&mut ctx, &rounded(&hidden)),
            dense.logits(&mut ctx, &hidden),
        );
        check("logits", &got, &same, &unrounded);
    }
}
