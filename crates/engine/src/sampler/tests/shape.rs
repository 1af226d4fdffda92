//! Steps 1 to 4 against their formulas in `f64`.

use super::*;
use std::collections::BTreeSet;

/// Random settings of penalties, biases, mask and texts, for seed `case`.
struct Case {
    logits: Vec<f32>,
    sampling: Sampling,
    bias: Vec<(u32, f32)>,
    prompt: Vec<u32>,
    answer: Vec<u32>,
    allowed: Option<BTreeSet<u32>>,
}

fn case(case: u64) -> Case {
    let below = |stream, counter, bound| random::below(case, stream, counter, bound);
    let vocab = 1 + below(0, 0, 90);
    let tokens = |stream, most| -> Vec<u32> {
        let count = below(stream, 999, most);
        (0..count).map(|i| below(stream, i, vocab) as u32).collect()
    };
    let off_or = |stream, value: f32| if below(stream, 0, 3) == 0 { 0.0 } else { value };
    let allowed: BTreeSet<u32> = tokens(6, 40).into_iter().collect();
    Case {
        logits: (0..vocab)
            .map(|i| 3.0 * random::normal(case, 1, i))
            .collect(),
        sampling: Sampling {
            presence_penalty: off_or(2, 4.0 * random::uniform(case, 2, 1) - 2.0),
            frequency_penalty: off_or(3, 4.0 * random::uniform(case, 3, 1) - 2.0),
            repetition_penalty: [1.0, 0.5, 1.3, 2.0][below(4, 0, 4) as usize],
            ..Sampling::GREEDY
        },
        bias: tokens(5, 6)
            .into_iter()
            .map(|id| (id, 10.0 * random::uniform(case, 7, u64::from(id)) - 5.0))
            .collect(),
        prompt: tokens(8, 30),
        answer: tokens(9, 30),
        allowed: (below(10, 0, 2) == 0 && !allowed.is_empty()).then_some(allowed),
    }
}

/// The logits after steps 1 to 4 as the definitions say, each token by counting; minus infinity outside the mask.
fn oracle(case: &Case) -> Vec<f64> {
    let shaped = |(id, &logit): (usize, &f32)| {
        let id = id as u32;
        let in_answer = case.answer.iter().filter(|&&token| token == id).count();
        let mut logit = f64::from(logit);
        if in_answer > 0 || case.prompt.contains(&id) {
            let penalty = f64::from(case.sampling.repetition_penalty);
            logit = if logit > 0.0 {
                logit / penalty
            } else {
                logit * penalty
            };
        }
        if in_answer > 0 {
            logit -= f64::from(case.sampling.frequency_penalty) * in_answer as f64;
            logit -= f64::from(case.sampling.presence_penalty);
        }
        for &(token, bias) in &case.bias {
            logit += if token == id { f64::from(bias) } else { 0.0 };
        }
        match &case.allowed {
            Some(allowed) if !allowed.contains(&id) => f64::NEG_INFINITY,
            _ => logit,
        }
    };
    case.logits.iter().enumerate().map(shaped).collect()
}

fn sampler(case: &Case, sampling: Sampling) -> Sampler {
    Sampler::new(sampling, &case.bias, &case.prompt, case.logits.len()).unwrap()
}

fn mask(case: &Case) -> Option<Allowed> {
    let ids = |set: &BTreeSet<u32>| set.iter().copied().collect::<Vec<u32>>();
    case.allowed.as_ref().map(|set| Allowed::of(&ids(set)))
}

#[test]
fn penalties_bias_and_mask_are_their_formulas() {
    for seed in 0..400 {
        let case = case(seed);
        let wanted = oracle(&case);
        let mut sampler = sampler(&case, case.sampling);
        let drawn = sampler
            .pick(
                Isa::Scalar,
                &case.logits,
                &case.answer,
                mask(&case).as_ref(),
            )
            .unwrap();
        let best = wanted.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Four roundings of f32 on numbers below 100.
        let got = wanted[drawn.token.id as usize];
        assert!(best - got < 1e-4, "case {seed}: {got}, the highest {best}");
        // The copy that was shaped is the formula's, token by token.
        if case.allowed.is_none() && !sampler.logits.is_empty() {
            for (id, (got, want)) in sampler.logits.iter().zip(&wanted).enumerate() {
                assert!(
                    (f64::from(*got) - want).abs() < 1e-4,
                    "case {seed}, token {id}: {got}, wanted {want}"
                );
            }
        }
    }
}

#[test]
fn draws_follow_the_shaped_distribution() {
    for seed in [3, 8, 21, 34] {
        let case = case(seed);
        let wanted = oracle(&case);
        let top = wanted.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = wanted.iter().map(|logit| (logit - top).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let (draws, mask) = (20_000, mask(&case));
        let mut counts = vec![0.0; weights.len()];
        for draw in 0..draws {
            let sampling = Sampling {
                temperature: 1.0,
                seed: draw,
                ..case.sampling
            };
            let mut sampler = sampler(&case, sampling);
            let drawn = sampler.pick(Isa::Scalar, &case.logits, &case.answer, mask.as_ref());
            counts[drawn.unwrap().token.id as usize] += 1.0;
        }
        let (mut statistic, mut freedom) = (0.0, -1.0);
        for (count, weight) in counts.iter().zip(&weights) {
            let expected = draws as f64 * weight / sum;
            if expected == 0.0 {
                assert_eq!(
                    *count, 0.0,
                    "case {seed}: a token outside the mask was drawn"
                );
            } else if expected >= 5.0 {
                statistic += (count - expected) * (count - expected) / expected;
                freedom += 1.0;
            }
        }
        // Chi-square has mean k and deviation √2k: five deviations.
        assert!(
            statistic < freedom + 5.0 * (2.0 * f64::max(freedom, 1.0)).sqrt(),
            "case {seed}: {statistic} for {freedom} degrees of freedom"
        );
    }
}

#[test]
fn what_is_off_changes_nothing() {
    for seed in 0..50 {
        let case = case(seed);
        let sampling = Sampling {
            seed,
            ..Sampling::default()
        };
        let mut plain = Sampler::new(sampling, &[], &case.prompt, case.logits.len()).unwrap();
        let drawn = plain.pick(Isa::Scalar, &case.logits, &case.answer, None);
        let position = (case.prompt.len() + case.answer.len()) as u64;
        let alone = sampling.pick(Isa::Scalar, &case.logits, position).unwrap();
        assert_eq!(drawn.unwrap().token, alone);
        assert!(
            plain.logits.is_empty() && plain.ids.is_empty(),
            "a copy was made"
        );
        // A mask of everything is no mask.
        let everything = Allowed::from_words(vec![u32::MAX; 4]);
        let drawn = plain.pick(Isa::Scalar, &case.logits, &case.answer, Some(&everything));
        assert_eq!(drawn.unwrap().token, alone);
    }
}

#[test]
fn a_sampler_that_went_back_is_one_that_never_went() {
    for seed in 0..200 {
        let case = case(seed);
        let mut moved = sampler(&case, case.sampling);
        for other in [seed + 1, seed + 2] {
            let mut detour = case.answer[..case.answer.len() / 2].to_vec();
            let vocab = case.logits.len() as u32;
            let strange = self::case(other).answer;
            detour.extend(strange.into_iter().map(|token| token % vocab));
            moved
                .pick(Isa::Scalar, &case.logits, &detour, None)
                .unwrap();
        }
        let mut fresh = sampler(&case, case.sampling);
        let pick = |sampler: &mut Sampler| {
            sampler
                .pick(Isa::Scalar, &case.logits, &case.answer, None)
                .unwrap()
        };
        assert_eq!(pick(&mut moved), pick(&mut fresh), "case {seed}");
        assert_eq!(moved.logits, fresh.logits, "case {seed}");
    }
}

#[test]
fn a_repetition_penalty_takes_the_prompt_and_openais_do_not() {
    let logits = [2.0, 1.5];
    let pick = |sampling, answer: &[u32]| {
        let mut sampler = Sampler::new(sampling, &[], &[0], 2).unwrap();
        sampler
            .pick(Isa::Scalar, &logits, answer, None)
            .unwrap()
            .token
            .id
    };
    let repetition = Sampling {
        repetition_penalty: 2.0,
        ..Sampling::GREEDY
    };
    let presence = Sampling {
        presence_penalty: 1.0,
        ..Sampling::GREEDY
    };
    let frequency = Sampling {
        frequency_penalty: 0.3,
        ..Sampling::GREEDY
    };
    assert_eq!(pick(repetition, &[]), 1); // 1, 1.5
    assert_eq!(pick(presence, &[]), 0); // 2, 1.5
    assert_eq!(pick(presence, &[0, 0, 0]), 1); // 1, 1.5
    assert_eq!(pick(frequency, &[0]), 0); // 1.7, 1.5
    assert_eq!(pick(frequency, &[0, 0]), 1); // 1.4, 1.5
}

#[test]
fn alternatives_are_the_models_own_most_probable_tokens() {
    let p = [0.1f32, 0.4, 0.2, 0.3];
    let sampling = Sampling {
        top_logprobs: 3,
        top_k: Some(1),
        temperature: 0.2,
        ..Sampling::default()
    };
    let mut sampler = Sampler::new(sampling, &[(0, 100.0)], &[0], 4).unwrap();
    let drawn = sampler.pick(Isa::Scalar, &logits(&p), &[], None).unwrap();
    assert_eq!(drawn.token.id, 0); // by its bias
    assert!((drawn.token.logprob - 0.1f32.ln()).abs() < 1e-6);
    assert_eq!(
        drawn.top.iter().map(|token| token.id).collect::<Vec<_>>(),
        [1, 3, 2]
    );
    for token in &drawn.top {
        assert!((token.logprob - p[token.id as usize].ln()).abs() < 1e-6);
    }
    // More than there are: all.
    let most = Sampling {
        top_logprobs: 9,
        ..sampling
    };
    let mut sampler = Sampler::new(most, &[], &[0], 4).unwrap();
    let drawn = sampler.pick(Isa::Scalar, &logits(&p), &[], None).unwrap();
    assert_eq!(drawn.top.len(), 4);
}

#[test]
fn a_set_of_tokens_has_what_was_put_in() {
    for seed in 0..100 {
        let ids: BTreeSet<u32> = (0..random::below(seed, 0, 0, 60))
            .map(|i| random::below(seed, 1, i, 200) as u32)
            .collect();
        let set = Allowed::of(&ids.iter().copied().collect::<Vec<_>>());
        assert_eq!(set.ids(200).collect::<BTreeSet<_>>(), ids);
        assert_eq!(set.count(), ids.len());
        let below: Vec<u32> = ids.iter().copied().filter(|&id| id < 77).collect();
        assert_eq!(set.ids(77).collect::<Vec<_>>(), below);
        assert!((0..300).all(|id| set.has(id) == ids.contains(&id)));
    }
}

#[test]
fn biases_and_masks_out_of_range_are_refused() {
    let new = |bias: &[(u32, f32)]| Sampler::new(Sampling::GREEDY, bias, &[0], 4);
    for bias in [101.0, -100.5, f32::NAN] {
        let sentence = new(&[(1, bias)]).unwrap_err().to_string();
        assert!(sentence.starts_with("logit_bias is "), "{sentence}");
    }
    assert!(matches!(
        new(&[(0, 1.0), (4, 1.0)]),
        Err(Error::UnknownToken { token: 4, .. })
    ));
    let outside = Allowed::of(&[9]);
    let drawn = new(&[])
        .unwrap()
        .pick(Isa::Scalar, &[0.0; 4], &[], Some(&outside));
    assert!(matches!(drawn, Err(Error::NoneAllowed)));
}

#[test]
fn logits_at_the_end_of_the_range_stay_numbers() {
    let sampling = Sampling {
        repetition_penalty: 100.0,
        ..Sampling::default()
    };
    for logits in [[f32::MIN, f32::MIN], [f32::MIN, 0.0], [-1e37, -1e38]] {
        let mut sampler = Sampler::new(sampling, &[], &[0, 1], 2).unwrap();
        let drawn = sampler.pick(Isa::Scalar, &logits, &[0], None).unwrap();
        assert!(drawn.token.id < 2);
    }
}
