//! However the work is cut, the tokens are the same: cache, chunks, batches, threads, reuse.

mod common;

use common::{
    CONTEXT, adapter, dense, finish, greedy, palettized, pool, rounded, sampled,
    sliding_and_sharing, tokens,
};
use russet_engine::{CacheSize, Engine, EngineConfig, Flow, Generate, Generation, Request, Reuse};
use russet_kernels::{Isa, Pool};
use russet_model::{Decoder, KvFormat};
use russet_tensor::{Ctx, Segments};

/// What is promised of dense log-probabilities against a trainer's: its loss may sum its exponentials in another order. The
/// hidden states below both are the same to the bit, which the tests of the model check.
const TOLERANCE: f32 = 1e-4;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Weights {
    Dense,
    Palettized,
    /// Palettized, with layers that slide and layers that share keys and values.
    Mixed,
}

const ALL: [Weights; 3] = [Weights::Dense, Weights::Palettized, Weights::Mixed];

impl Weights {
    fn decoder(self) -> Decoder {
        match self {
            Weights::Dense => dense(),
            Weights::Palettized => palettized(),
            Weights::Mixed => rounded(&sliding_and_sharing()),
        }
    }

    fn engine(self, threads: usize, config: EngineConfig) -> Engine {
        Engine::new(self.decoder(), pool(threads), config).unwrap()
    }

    /// The same tokens, and the same log-probabilities to the last bit: each row is summed in an order of its own.
    fn check(self, what: &str, got: &Generation, wanted: &Generation) {
        assert_eq!(got.tokens, wanted.tokens, "{what}, {self:?}");
        assert_eq!(got.finish, wanted.finish, "{what}, {self:?}");
        assert_eq!(got.logprobs, wanted.logprobs, "{what}, {self:?}");
    }
}

/// A prompt longer than a page and an answer that crosses into the next.
fn long() -> Request {
    sampled(tokens(3, 75), 60, 9)
}

#[test]
fn cached_decoding_equals_a_trainers_full_pass() {
    for weights in ALL {
        for request in [long(), greedy(vec![5], 70)] {
            let mut engine = weights.engine(2, EngineConfig::new(CONTEXT, 1));
            let generation = engine.generate(&request, &mut |_| Flow::Continue).unwrap();
            assert_eq!(generation.tokens.len(), request.max_tokens);

            let mut all = request.prompt.clone();
            all.extend(&generation.tokens);
            let (inputs, targets) = (&all[..all.len() - 1], &all[1..]);
            let mut ctx = Ctx::new(pool(2));
            let decoder = engine.decoder();
            let hidden =
                decoder.forward(&mut ctx, inputs, &Segments::packed(&[inputs.len()]), None);
            let losses = decoder.token_losses(&mut ctx, &hidden, targets);
            let answer = &losses[request.prompt.len() - 1..];
            let tolerance = match weights {
                Weights::Dense => TOLERANCE,
                Weights::Palettized | Weights::Mixed => 0.0,
            };
            for (n, (logprob, loss)) in generation.logprobs.iter().zip(answer).enumerate() {
                assert!(
                    (logprob + loss).abs() <= tolerance,
                    "{weights:?}, token {n}: {logprob}, trainer {}",
                    -loss
                );
            }
        }
    }
}

#[test]
fn greedy_tokens_are_the_highest_of_a_full_pass() {
    let request = greedy(tokens(4, 10), 30);
    let mut engine = Weights::Dense.engine(1, EngineConfig::new(CONTEXT, 1));
    let generation = engine.generate(&request, &mut |_| Flow::Continue).unwrap();
    let mut all = request.prompt.clone();
    let mut ctx = Ctx::new(pool(1));
    for &token in &generation.tokens {
        let hidden =
            engine
                .decoder()
                .forward(&mut ctx, &all, &Segments::packed(&[all.len()]), None);
        let logits = engine.decoder().logits(&mut ctx, &hidden);
        let last = &logits.data()[(all.len() - 1) * common::VOCAB..];
        let highest = (0..common::VOCAB)
            .max_by(|&a, &b| last[a].total_cmp(&last[b]))
            .unwrap();
        assert_eq!(token as usize, highest, "after {} tokens", all.len());
        all.push(token);
    }
}

#[test]
fn chunked_prefill_equals_one_pass() {
    for weights in ALL {
        let whole = weights
            .engine(1, EngineConfig::new(CONTEXT, 1))
            .generate(&long(), &mut |_| Flow::Continue)
            .unwrap();
        for prefill_chunk in [1, 7, 64, 74] {
            let config = EngineConfig {
                prefill_chunk,
                ..EngineConfig::new(CONTEXT, 1)
            };
            let chunked = weights
                .engine(1, config)
                .generate(&long(), &mut |_| Flow::Continue)
                .unwrap();
            weights.check(&format!("chunks of {prefill_chunk}"), &chunked, &whole);
        }
    }
}

#[test]
fn threads_change_nothing() {
    for weights in ALL {
        let run = |threads| {
            weights
                .engine(threads, EngineConfig::new(CONTEXT, 2))
                .generate_batch(&mixed())
                .unwrap()
        };
        for (one, two) in run(1).iter().zip(&run(2)) {
            assert_eq!(
                (&one.tokens, &one.logprobs),
                (&two.tokens, &two.logprobs),
                "{weights:?}"
            );
        }
    }
}

/// Among instruction sets only palettized products are promised the same bits, which the kernels' tests check; f32 sums round
/// otherwise there, so each is compared with itself.
#[test]
fn a_package_of_all_widths_says_the_same_on_any_threads_of_each_instruction_set() {
    let run = |threads, isa| {
        let pool = std::sync::Arc::new(Pool::with_isa(threads, isa));
        let mut engine = Engine::new(palettized(), pool, EngineConfig::new(CONTEXT, 8)).unwrap();
        let answers = engine.generate_batch(&mixed()).unwrap().into_iter();
        answers
            .map(|answer| (answer.tokens, answer.logprobs))
            .collect::<Vec<_>>()
    };
    for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512] {
        if isa <= Isa::best() {
            assert_eq!(run(1, isa), run(2, isa), "{isa:?}");
        }
    }
}

/// Requests of many lengths, greedy and sampled, some ending early.
fn mixed() -> Vec<Request> {
    let mut requests: Vec<Request> = (0..7)
        .map(|i| {
            let prompt = tokens(20 + i, [3, 90, 1, 40, 64, 65, 12][i as usize]);
            let max_tokens = [20, 5, 33, 1, 12, 25, 9][i as usize];
            if i % 2 == 0 {
                sampled(prompt, max_tokens, i)
            } else {
                greedy(prompt, max_tokens)
            }
        })
        .collect();
    requests[5].stop_tokens = (0..40).collect();
    requests
}

#[test]
fn a_sequence_is_the_same_alone_and_in_any_batch() {
    for weights in ALL {
        let mut alone = weights.engine(2, EngineConfig::new(CONTEXT, 1));
        let wanted: Vec<_> = mixed()
            .iter()
            .map(|r| alone.generate(r, &mut |_| Flow::Continue).unwrap())
            .collect();
        for (slots, prefill_chunk) in [(1, 512), (2, 512), (3, 16), (7, 50), (9, 2)] {
            let config = EngineConfig {
                prefill_chunk,
                ..EngineConfig::new(CONTEXT, slots)
            };
            let batch = weights.engine(2, config).generate_batch(&mixed()).unwrap();
            assert_eq!(batch.len(), wanted.len());
            for (i, (got, wanted)) in batch.iter().zip(&wanted).enumerate() {
                weights.check(
                    &format!("request {i} of {slots} slots, chunks of {prefill_chunk}"),
                    got,
                    wanted,
                );
            }
        }
    }
}

#[test]
fn an_answer_cut_short_goes_on_as_it_would_have() {
    for weights in ALL {
        let mut engine = weights.engine(1, EngineConfig::new(CONTEXT, 1));
        let mut generate =
            |request: &Request| engine.generate(request, &mut |_| Flow::Continue).unwrap();
        let whole = generate(&long());
        let mut request = long();
        request.prompt.extend(&whole.tokens[..25]);
        request.max_tokens -= 25;
        let rest = generate(&request);
        assert_eq!(rest.tokens, whole.tokens[25..], "{weights:?}");
    }
}

#[test]
fn a_conversation_is_the_same_with_and_without_reuse() {
    for weights in ALL {
        let config = EngineConfig {
            reuse: Reuse::Prefix,
            ..EngineConfig::new(CONTEXT, 1)
        };
        let mut chat = weights.engine(1, config);
        let mut fresh = weights.engine(1, EngineConfig::new(CONTEXT, 1));
        let mut conversation = tokens(30, 20);
        let mut known = 0; // tokens that the slot must still hold
        for turn in 0..3 {
            let request = sampled(conversation.clone(), 15, turn);
            let got = chat.generate(&request, &mut |_| Flow::Continue).unwrap();
            weights.check(
                &format!("turn {turn}"),
                &got,
                &fresh.generate(&request, &mut |_| Flow::Continue).unwrap(),
            );
            assert_eq!(got.reused_tokens, known);
            conversation.extend(&got.tokens);
            known = conversation.len() - 1; // the last token of an answer was not run
            conversation.extend(tokens(31 + turn, 10));
        }

        // Taking back what was said: only what is still the same is reused, and what follows is not disturbed.
        let mut edited = conversation[..50].to_vec();
        edited[40] = (edited[40] + 1) % common::VOCAB as u32;
        let request = greedy(edited, 20);
        let got = chat.generate(&request, &mut |_| Flow::Continue).unwrap();
        assert_eq!(got.reused_tokens, 40);
        weights.check(
            "edited",
            &got,
            &fresh.generate(&request, &mut |_| Flow::Continue).unwrap(),
        );

        // Asking the same again runs the prompt's last token only.
        let again = chat.generate(&request, &mut |_| Flow::Continue).unwrap();
        assert_eq!(again.reused_tokens, 49);
        weights.check("again", &again, &got);
        chat.forget();
        assert_eq!(
            chat.generate(&request, &mut |_| Flow::Continue)
                .unwrap()
                .reused_tokens,
            0
        );
    }
}

#[test]
fn each_conversation_finds_its_own_slot() {
    let config = EngineConfig {
        reuse: Reuse::Prefix,
        ..EngineConfig::new(CONTEXT, 3)
    };
    let mut engine = Weights::Palettized.engine(2, config);
    let mut conversations: Vec<Vec<u32>> = (0..3)
        .map(|i| tokens(50 + i, 10 + 7 * i as usize))
        .collect();
    for turn in 0..3 {
        let order = if turn == 1 { [2, 0, 1] } else { [0, 1, 2] };
        let requests: Vec<_> = order
            .iter()
            .map(|&i| greedy(conversations[i].clone(), 8))
            .collect();
        for (&i, answer) in order.iter().zip(&engine.generate_batch(&requests).unwrap()) {
            let wanted = if turn == 0 {
                0
            } else {
                conversations[i].len() - 5 - 1
            };
            assert_eq!(
                answer.reused_tokens, wanted,
                "conversation {i}, turn {turn}"
            );
            let fresh = Weights::Palettized.engine(1, EngineConfig::new(CONTEXT, 1));
            let alone = { fresh }
                .generate(&greedy(conversations[i].clone(), 8), &mut |_| {
                    Flow::Continue
                })
                .unwrap();
            Weights::Palettized.check("in its slot", answer, &alone);
            conversations[i].extend(&answer.tokens);
            conversations[i].extend(tokens(60 + turn, 5));
        }
    }
}

#[test]
fn an_answer_is_the_same_alone_batched_among_adapters_reused_preempted_and_on_any_threads() {
    let folders = [adapter(3, 1, "proj"), adapter(2, 2, "mlp")];
    for weights in ALL {
        let engine = |threads, config| {
            let engine = weights.engine(threads, config);
            for (name, folder) in ["a", "b"].iter().zip(&folders) {
                engine.adapters().load(name, folder.path()).unwrap();
            }
            engine
        };
        let through = |names: &[&str]| Request {
            adapters: names.iter().map(|name| (*name).to_owned()).collect(),
            ..sampled(tokens(3, 75), 60, 9)
        };
        let mut requests = vec![through(&[]), through(&["a"]), through(&["a", "b"])];
        for (i, mut request) in mixed().into_iter().enumerate() {
            request.adapters = [vec![], vec!["a".into()], vec!["b".into()]][i % 3].clone();
            requests.push(request);
        }
        let mut alone = engine(1, EngineConfig::new(CONTEXT, 1));
        let wanted: Vec<_> = requests
            .iter()
            .map(|request| alone.generate(request, &mut |_| Flow::Continue).unwrap())
            .collect();
        let distinct = |i: usize, j: usize| wanted[i].logprobs != wanted[j].logprobs;
        assert!(distinct(0, 1) && distinct(1, 2) && distinct(0, 2));
        let base = EngineConfig::new(CONTEXT, 8);
        for (what, threads, config) in [
            ("a batch of 8", 1, base),
            ("two threads", 2, base),
            (
                "reuse",
                2,
                EngineConfig {
                    reuse: Reuse::Prefix,
                    cache: CacheSize::Tokens(64 * 64),
                    ..base
                },
            ),
            // Half of what the sequences come to need: some have to make room.
            (
                "preempted",
                2,
                EngineConfig {
                    cache: CacheSize::Tokens(7 * 64),
                    ..base
                },
            ),
            (
                "preempted, with reuse, in chunks",
                1,
                EngineConfig {
                    cache: CacheSize::Tokens(7 * 64),
                    reuse: Reuse::Prefix,
                    prefill_chunk: 20,
                    ..base
                },
            ),
        ] {
            let mut engine = engine(threads, config);
            for round in 0..2 {
                let ids: Vec<_> = requests
                    .iter()
                    .map(|request| engine.submit(request.clone()).unwrap())
                    .collect();
                let answers = finish(&mut engine);
                for (i, (id, wanted)) in ids.iter().zip(&wanted).enumerate() {
                    weights.check(&format!("request {i}, {what}"), &answers[id], wanted);
                    if what == "reuse" && round > 0 {
                        let prompt = requests[i].prompt.len();
                        assert_eq!(answers[id].reused_tokens, prompt - 1, "request {i}, {what}");
                    }
                }
            }
            let stats = engine.stats();
            assert_eq!(
                stats.preemptions > 0,
                what.starts_with("preempted"),
                "{what}"
            );
            assert_eq!(stats.free_blocks + stats.idle_blocks, stats.blocks);
        }
    }
}

#[test]
fn eight_bit_keys_and_values_change_little_and_nothing_between_batches() {
    for weights in ALL {
        let base = EngineConfig {
            format: KvFormat::Int8,
            ..EngineConfig::new(CONTEXT, 8)
        };
        let mut alone = weights.engine(1, base);
        let wanted: Vec<_> = mixed()
            .iter()
            .map(|r| alone.generate(r, &mut |_| Flow::Continue).unwrap())
            .collect();
        for (threads, config) in [
            (2, base),
            (
                1,
                EngineConfig {
                    prefill_chunk: 7,
                    ..base
                },
            ),
            (
                2,
                EngineConfig {
                    cache: CacheSize::Tokens(5 * 64),
                    reuse: Reuse::Prefix,
                    ..base
                },
            ),
        ] {
            let mut engine = weights.engine(threads, config);
            for _ in 0..2 {
                for (got, wanted) in engine.generate_batch(&mixed()).unwrap().iter().zip(&wanted) {
                    weights.check("8 bits", got, wanted);
                }
            }
        }
        // Where the same token was drawn the log-probability is near that of keys in f32: half a step of 1/127 in keys of this
        // model moves a logit by a few hundredths; more layers, more of them.
        let most = 0.025 * weights.decoder().config().layers as f32;
        let mut exact = weights.engine(1, EngineConfig::new(CONTEXT, 1));
        let mut compared = 0;
        for (request, got) in mixed().iter().zip(&wanted) {
            let wanted = exact.generate(request, &mut |_| Flow::Continue).unwrap();
            let same = got
                .tokens
                .iter()
                .zip(&wanted.tokens)
                .take_while(|(a, b)| a == b);
            for (n, _) in same.enumerate() {
                compared += 1;
                let difference = (got.logprobs[n] - wanted.logprobs[n]).abs();
                assert!(difference < most, "{weights:?}, token {n}: {difference}");
            }
        }
        assert!(compared >= 5, "{weights:?}: {compared} tokens are the same");
        let bytes = |format| {
            let config = EngineConfig {
                format,
                cache: CacheSize::Bytes(1 << 20),
                ..base
            };
            weights.engine(1, config).stats().blocks
        };
        // 16 numbers of a head take 64 bytes, or 32, or 16 and a scale of 4.
        let formats = [KvFormat::F32, KvFormat::F16, KvFormat::Int8];
        assert_eq!(formats.map(bytes), [32, 64, 102]);
    }
}
