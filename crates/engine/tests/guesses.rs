//! Guesses and guides in the engine: what they change, which is nothing, and what they keep.

mod common;

use std::collections::BTreeMap;

use common::{CONTEXT, VOCAB, dense, greedy, palettized, pool, sampled, tokens};
use russet_engine::guide::{Constraint, Grammar, Vocabulary};
use russet_engine::{
    DraftModel, Engine, EngineConfig, Finish, Flow, Generate, Generation, PromptLookup, Propose,
    Request, Sampling,
};
use russet_model::{Decoder, KvFormat};

fn engine(proposer: Option<Box<dyn Propose>>) -> Engine {
    let mut engine = Engine::new(dense(), pool(2), EngineConfig::new(CONTEXT, 4)).unwrap();
    engine.set_proposer(proposer);
    engine
}

/// The model itself as its own draft, the same with rounded weights, and one of other weights.
fn drafts() -> Vec<(&'static str, Decoder)> {
    vec![
        ("itself", dense()),
        ("rounded", palettized()),
        ("a stranger", Decoder::random(&common::config(), 77)),
        (
            "one whose layers slide and share",
            common::sliding_and_sharing(),
        ),
    ]
}

fn proposers() -> Vec<(&'static str, Box<dyn Propose>)> {
    let mut all: Vec<(&str, Box<dyn Propose>)> = vec![("lookup", Box::new(PromptLookup::new()))];
    for (name, decoder) in drafts() {
        let draft = DraftModel::new(decoder, pool(1), 4, CONTEXT, KvFormat::F32).unwrap();
        all.push((name, Box::new(draft)));
    }
    all
}

fn same(a: &Generation, b: &Generation, what: &str) {
    assert_eq!(a.tokens, b.tokens, "{what}");
    assert_eq!(a.logprobs, b.logprobs, "{what}");
    assert_eq!((a.finish, &a.top), (b.finish, &b.top), "{what}");
}

/// Requests of every kind: greedy, sampled, cut, penalised, biased, with a text that repeats.
fn requests() -> Vec<Request> {
    let repeated: Vec<u32> = tokens(3, 7).repeat(6);
    let mut penalised = sampled(repeated.clone(), 40, 9);
    penalised.sampling = Sampling {
        temperature: 0.7,
        top_k: Some(20),
        top_p: 0.9,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        repetition_penalty: 1.2,
        top_logprobs: 3,
        seed: 9,
        ..Sampling::default()
    };
    penalised.logit_bias = vec![(5, 2.0), (6, -100.0)];
    vec![
        greedy(tokens(1, 20), 60),
        greedy(repeated.clone(), 60),
        sampled(repeated, 50, 4),
        penalised,
        sampled(tokens(2, 1), 30, 5),
    ]
}

#[test]
fn whoever_guesses_the_answer_is_the_same() {
    let requests = requests();
    let wanted = engine(None).generate_batch(&requests).unwrap();
    for (name, proposer) in proposers() {
        let mut engine = engine(Some(proposer));
        for round in 0..2 {
            let made = engine.generate_batch(&requests).unwrap();
            for (made, wanted) in made.iter().zip(&wanted) {
                same(made, wanted, &format!("{name}, round {round}"));
                assert!(made.speculation.is_some());
            }
            // And alone.
            let made = engine.generate(&requests[3], &mut |_| Flow::Continue);
            same(&made.unwrap(), &wanted[3], name);
            engine.check_invariants();
        }
    }
}

#[test]
fn a_draft_that_is_the_model_itself_is_always_right() {
    let draft = DraftModel::new(dense(), pool(1), 2, CONTEXT, KvFormat::F32).unwrap();
    let mut engine = engine(Some(Box::new(draft)));
    // Whether it is asked again after the first answer is for the clock to say: it costs what it saves.
    let mut drafted = 0;
    for request in [greedy(tokens(1, 20), 60), sampled(tokens(1, 20), 60, 3)] {
        let made = engine.generate(&request, &mut |_| Flow::Continue).unwrap();
        let counted = made.speculation.unwrap();
        assert_eq!(counted.accepted, counted.drafted);
        assert!(counted.break_even > 0.0, "{counted:?}");
        drafted += counted.drafted;
    }
    assert!(drafted > 0);
}

/// Three tokens behind a prompt, from 3,000 seeds, against the probabilities that the model itself gives them, by Pearson's
/// statistic. The second is drawn where a guess of it is checked, the third behind a guess that was right.
#[test]
fn sampled_answers_with_guesses_follow_the_models_distribution() {
    let prompt = tokens(3, 7).repeat(3);
    let sampling = Sampling {
        temperature: 0.6,
        top_k: Some(3),
        ..Sampling::default()
    };
    let seeds = 3000;
    let ask = |seed| Request {
        prompt: prompt.clone(),
        max_tokens: 3,
        sampling: Sampling { seed, ..sampling },
        ..Request::default()
    };
    // The probabilities of the three tokens that stay, from the reported log-probabilities.
    let mut plain = engine(None);
    let mut kept = |answer: &[u32]| -> Vec<(u32, f64)> {
        let request = Request {
            prompt: [&prompt[..], answer].concat(),
            max_tokens: 1,
            sampling: Sampling {
                top_logprobs: 3,
                ..Sampling::GREEDY
            },
            ..Request::default()
        };
        let made = plain.generate(&request, &mut |_| Flow::Continue).unwrap();
        let weights: Vec<(u32, f64)> = made.top[0]
            .iter()
            .map(|token| (token.id, (f64::from(token.logprob) / 0.6).exp()))
            .collect();
        let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
        weights
            .iter()
            .map(|(id, weight)| (*id, weight / sum))
            .collect()
    };
    let mut wanted: BTreeMap<Vec<u32>, f64> = BTreeMap::new();
    for (first, p) in kept(&[]) {
        for (second, q) in kept(&[first]) {
            for (third, r) in kept(&[first, second]) {
                wanted.insert(vec![first, second, third], p * q * r);
            }
        }
    }
    let (_, draft) = drafts().swap_remove(1);
    let draft = DraftModel::new(draft, pool(1), 4, CONTEXT, KvFormat::F32).unwrap();
    for proposer in [
        Box::new(draft) as Box<dyn Propose>,
        Box::new(PromptLookup::new()),
    ] {
        let mut engine = engine(Some(proposer));
        let requests: Vec<Request> = (0..seeds).map(ask).collect();
        let mut counts: BTreeMap<Vec<u32>, f64> = BTreeMap::new();
        for made in engine.generate_batch(&requests).unwrap() {
            *counts.entry(made.tokens).or_default() += 1.0;
        }
        assert!(
            counts.keys().all(|answer| wanted.contains_key(answer)),
            "{counts:?}"
        );
        let (mut statistic, mut freedom) = (0.0, -1.0);
        for (answer, share) in &wanted {
            let expected = share * seeds as f64;
            let count = counts.get(answer).copied().unwrap_or(0.0);
            if expected >= 5.0 {
                statistic += (count - expected) * (count - expected) / expected;
                freedom += 1.0;
            }
        }
        // Chi-square has mean k and deviation √2k for k degrees of freedom: five deviations.
        let most = freedom + 5.0 * f64::sqrt(2.0 * freedom);
        assert!(
            statistic < most,
            "{statistic} above {most}: {counts:?}, wanted {wanted:?}"
        );
        assert!(freedom > 10.0, "{wanted:?}");
    }
}

/// A vocabulary for the 97 tokens of the test's model: letters, digits and signs, the end at 0.
fn vocabulary() -> Vocabulary {
    let mut tokens = vec![Vec::new()];
    tokens.extend((0..VOCAB as u8 - 1).map(|id| vec![b' ' + id]));
    Vocabulary::new(tokens, &[], &[0]).unwrap()
}

fn text(tokens: &[u32]) -> String {
    tokens
        .iter()
        .map(|&id| (b' ' + id as u8 - 1) as char)
        .collect()
}

fn guided(constraint: Constraint, seed: u64) -> Request {
    Request {
        guide: Some(Grammar::compile(&vocabulary(), &constraint).unwrap()),
        ..sampled(tokens(seed, 12), 80, seed)
    }
}

#[test]
fn a_guided_answer_is_what_it_must_be_beside_others_and_with_guesses() {
    let list = r#"{"type": "array", "items": {"enum": ["ab", "cd"]}, "minItems": 2, "maxItems": 4,
        "x-guidance": {"whitespace_flexible": false}}"#;
    let requests = vec![
        guided(Constraint::JsonSchema(list.to_owned()), 1),
        greedy(tokens(5, 30), 40),
        guided(Constraint::Regex("[a-f]{10}[0-9]{3}".to_owned()), 2),
        guided(
            Constraint::Choice(vec!["yes".to_owned(), "no".to_owned()]),
            3,
        ),
        guided(Constraint::JsonSchema(list.to_owned()), 4),
    ];
    let wanted = engine(None).generate_batch(&requests).unwrap();
    for place in [0, 4] {
        let made = text(wanted[place].content());
        let ended = made
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let items: Vec<&str> = ended
            .unwrap_or_else(|| panic!("{made}"))
            .split(',')
            .collect();
        assert!((2..=4).contains(&items.len()), "{made}");
        let known = |item: &&str| ["\"ab\"", "\"cd\""].contains(item);
        assert!(items.iter().all(known), "{made}");
        assert_eq!(wanted[place].finish, Finish::Guide);
    }
    let made = text(wanted[2].content());
    assert!(
        made.len() == 13 && made[10..].parse::<u32>().is_ok(),
        "{made}"
    );
    assert!(["yes", "no"].contains(&text(wanted[3].content()).as_str()));
    // Log-probabilities stay the model's own.
    assert!(wanted[0].logprobs.iter().any(|&logprob| logprob < -1.0));
    for (name, proposer) in proposers() {
        let mut engine = engine(Some(proposer));
        let made = engine.generate_batch(&requests).unwrap();
        for (made, wanted) in made.iter().zip(&wanted) {
            same(made, wanted, name);
        }
        engine.check_invariants();
    }
}

#[test]
fn a_guided_answer_that_may_end_ends_by_its_end_token() {
    let mut request = guided(Constraint::Regex("a+".to_owned()), 1);
    request.logit_bias = vec![(0, 100.0)];
    let made = engine(None)
        .generate(&request, &mut |_| Flow::Continue)
        .unwrap();
    assert_eq!(
        (made.finish, text(made.content()).as_str()),
        (Finish::Stop, "a")
    );
    assert_eq!(made.tokens.last(), Some(&0));
    // At the first place the bias is of no use: the end is not allowed there.
    assert_eq!(made.tokens.len(), 2);
}

#[test]
fn biases_are_checked_with_the_request() {
    let mut request = greedy(tokens(1, 5), 5);
    request.logit_bias = vec![(VOCAB as u32, 1.0)];
    let refused = engine(None).generate(&request, &mut |_| Flow::Continue);
    let sentence = refused.unwrap_err().to_string();
    assert!(sentence.contains("logit_bias"), "{sentence}");
}
