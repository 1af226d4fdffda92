use super::*;

mod shape;

fn pick(sampling: Sampling, logits: &[f32], position: u64) -> u32 {
    sampling.pick(Isa::Scalar, logits, position).unwrap().id
}

/// Which tokens ever come of 400 draws.
fn support(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
    let mut seen: Vec<u32> = (0..400)
        .map(|position| pick(sampling, logits, position))
        .collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

fn logits(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() + 3.0).collect()
}

#[test]
fn greedy_takes_the_highest_and_of_equals_the_lowest_id() {
    assert_eq!(pick(Sampling::GREEDY, &[1.0, 3.0, -2.0, 3.0], 0), 1);
    assert_eq!(pick(Sampling::GREEDY, &[0.0; 5], 9), 0);
    assert_eq!(
        pick(
            Sampling {
                seed: 7,
                ..Sampling::GREEDY
            },
            &[-1.0, -3.0],
            9
        ),
        0
    );
}

/// Draws 40,000 times and compares counts with probabilities by Pearson's statistic.
fn check_distribution(sampling: Sampling, logits: &[f32], expected: &[f64]) {
    let draws = 40_000;
    let mut counts = vec![0u32; logits.len()];
    for position in 0..draws {
        counts[pick(sampling, logits, position) as usize] += 1;
    }
    let mut statistic = 0.0;
    let mut kept = 0;
    for (id, (&count, &share)) in counts.iter().zip(expected).enumerate() {
        if share == 0.0 {
            assert_eq!(count, 0, "token {id} was cut but drawn: {counts:?}");
            continue;
        }
        kept += 1;
        let wanted = share * draws as f64;
        statistic += (f64::from(count) - wanted).powi(2) / wanted;
    }
    // Chi-square has mean k and deviation √2k for k degrees of freedom: five deviations.
    let freedom = f64::from(kept - 1);
    assert!(
        statistic < freedom + 5.0 * (2.0 * freedom).sqrt(),
        "{statistic} with {counts:?}, wanted {expected:?}"
    );
}

#[test]
fn draws_follow_the_models_distribution() {
    let p = [0.05, 0.4, 0.1, 0.25, 0.2];
    check_distribution(Sampling::default(), &logits(&p), &p.map(f64::from));
    check_distribution(
        Sampling {
            seed: 11,
            ..Sampling::default()
        },
        &logits(&p),
        &p.map(f64::from),
    );
    // Enough tokens that they are put in order in several goes.
    let flat = [0.0f32; 700];
    check_distribution(Sampling::default(), &flat, &[1.0 / 700.0; 700]);
}

#[test]
fn temperature_raises_probabilities_to_its_inverse() {
    let p = [0.1f32, 0.6, 0.3];
    for temperature in [0.5, 2.0] {
        let powers = p.map(|p| f64::from(p).powf(1.0 / f64::from(temperature)));
        let sum: f64 = powers.iter().sum();
        let sampling = Sampling {
            temperature,
            seed: 3,
            ..Sampling::default()
        };
        check_distribution(sampling, &logits(&p), &powers.map(|p| p / sum));
    }
}

#[test]
fn what_is_kept_keeps_its_proportions() {
    let p = [0.1, 0.4, 0.2, 0.3];
    let kept = [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0];
    let all = Sampling {
        seed: 5,
        ..Sampling::default()
    };
    check_distribution(
        Sampling {
            top_k: Some(2),
            ..all
        },
        &logits(&p),
        &kept,
    );
    check_distribution(Sampling { top_p: 0.6, ..all }, &logits(&p), &kept);
    check_distribution(Sampling { min_p: 0.6, ..all }, &logits(&p), &kept);
}

#[test]
fn top_p_keeps_the_fewest_that_reach_it() {
    let flat = [1.0; 4]; // equal weights are exactly a quarter each
    let kept = |top_p| {
        support(
            Sampling {
                top_p,
                ..Sampling::default()
            },
            &flat,
        )
    };
    assert_eq!(kept(0.25), [0]);
    assert_eq!(kept(0.2501), [0, 1]);
    assert_eq!(kept(0.5), [0, 1]);
    assert_eq!(kept(0.75), [0, 1, 2]);
    assert_eq!(kept(0.7501), [0, 1, 2, 3]);
    assert_eq!(kept(1e-9), [0]);
    assert_eq!(kept(1.0), [0, 1, 2, 3]);
}

#[test]
fn cuts_act_in_the_stated_order() {
    let p = logits(&[0.4, 0.3, 0.2, 0.1]);
    let sampling = Sampling {
        seed: 2,
        ..Sampling::default()
    };
    // Half of what top_k left, 0.35 of 0.7, is reached by the first token; half of everything is not.
    assert_eq!(
        support(
            Sampling {
                top_k: Some(2),
                top_p: 0.5,
                ..sampling
            },
            &p
        ),
        [0]
    );
    assert_eq!(
        support(
            Sampling {
                top_p: 0.5,
                ..sampling
            },
            &p
        ),
        [0, 1]
    );
    // min_p would leave 0.7, of which 0.55 is reached by the first token; top_p acts first and keeps two.
    assert_eq!(
        support(
            Sampling {
                top_p: 0.55,
                min_p: 0.7,
                ..sampling
            },
            &p
        ),
        [0, 1]
    );
    // A low temperature makes the first token's share 0.59 before the cut.
    assert_eq!(
        support(
            Sampling {
                temperature: 0.4,
                top_p: 0.5,
                ..sampling
            },
            &p
        ),
        [0]
    );
    assert_eq!(
        support(
            Sampling {
                min_p: 1.0,
                ..sampling
            },
            &p
        ),
        [0]
    );
    assert_eq!(
        support(
            Sampling {
                top_k: Some(99),
                ..sampling
            },
            &p
        ),
        [0, 1, 2, 3]
    );
}

#[test]
fn extreme_temperatures_stay_within_the_tokens() {
    for temperature in [f32::MIN_POSITIVE, 1e-30, 1e30, f32::MAX] {
        let sampling = Sampling {
            temperature,
            ..Sampling::default()
        };
        let seen = support(sampling, &[5.0, 9.0, -80.0]);
        assert_eq!(
            seen,
            if temperature < 1.0 {
                vec![1]
            } else {
                vec![0, 1, 2]
            }
        );
    }
}

#[test]
fn seed_and_position_alone_decide() {
    let flat = [0.0; 1000];
    let run = |seed, from: u64| -> Vec<u32> {
        let sampling = Sampling {
            seed,
            ..Sampling::default()
        };
        (from..from + 20)
            .map(|position| pick(sampling, &flat, position))
            .collect()
    };
    assert_eq!(run(1, 0), run(1, 0));
    assert_eq!(run(1, 0)[5..], run(1, 5)[..15]);
    assert_ne!(run(1, 0), run(2, 0));
    assert_ne!(run(1, 0), run(1, 100));
}

#[test]
fn ranks_equal_a_full_sort() {
    let mut logits: Vec<f32> = (0..900)
        .map(|i| random::below(4, 0, i, 200) as f32)
        .collect();
    logits[77] = f32::NEG_INFINITY; // what a grammar may put there
    let mut wanted: Vec<usize> = (0..900).collect();
    wanted.sort_by(|&a, &b| logits[b].total_cmp(&logits[a])); // stable: ties stay by id
    for temperature in [f32::MIN_POSITIVE, 0.3, 1.0, 50.0, f32::MAX] {
        let mut ranked = Ranked::new(&logits, temperature);
        assert_eq!(
            (0..900).map(|rank| ranked.id(rank)).collect::<Vec<_>>(),
            wanted,
            "at {temperature}"
        );
    }
}

#[test]
fn the_total_is_the_sum_of_all_weights() {
    let logits: Vec<f32> = (0..3000).map(|i| 4.0 * random::normal(4, 0, i)).collect();
    for isa in [Isa::Scalar, Isa::best()] {
        for temperature in [1e-30, 0.1, 1.0, 30.0] {
            let mut ranked = Ranked::new(&logits, temperature);
            let (total, sum) = (ranked.total(isa), ranked.mass(3000));
            // Sums of 1,024 f32 within a chunk; an overshoot would be a chance for tokens without one.
            assert!(
                (total / sum - 1.0).abs() < 2e-6,
                "{total}, summed {sum}, at {temperature} on {isa:?}"
            );
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_model_itself() {
    let p = [0.1f32, 0.6, 0.3];
    for sampling in [
        Sampling::GREEDY,
        Sampling {
            temperature: 3.0,
            top_k: Some(1),
            ..Sampling::default()
        },
    ] {
        let token = sampling.pick(Isa::Scalar, &logits(&p), 0).unwrap();
        assert_eq!(token.id, 1);
        assert!((token.logprob - 0.6f32.ln()).abs() < 1e-6, "{token:?}");
    }
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    for damaged in [f32::NAN, f32::INFINITY] {
        for isa in [Isa::Scalar, Isa::best()] {
            let mut logits = vec![0.5; 100];
            logits[37] = damaged;
            for sampling in [Sampling::GREEDY, Sampling::default()] {
                assert!(
                    matches!(sampling.pick(isa, &logits, 0), Err(Error::NotFinite)),
                    "{damaged} on {isa:?}"
                );
            }
        }
    }
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let all = Sampling::default();
    for (setting, sampling) in [
        (
            "temperature",
            Sampling {
                temperature: -0.1,
                ..all
            },
        ),
        (
            "temperature",
            Sampling {
                temperature: f32::NAN,
                ..all
            },
        ),
        (
            "temperature",
            Sampling {
                temperature: f32::INFINITY,
                ..all
            },
        ),
        (
            "top_k",
            Sampling {
                top_k: Some(0),
                ..all
            },
        ),
        ("top_p", Sampling { top_p: 0.0, ..all }),
        ("top_p", Sampling { top_p: 1.1, ..all }),
        (
            "top_p",
            Sampling {
                top_p: f32::NAN,
                ..all
            },
        ),
        ("min_p", Sampling { min_p: -0.1, ..all }),
        ("min_p", Sampling { min_p: 1.1, ..all }),
        (
            "min_p",
            Sampling {
                min_p: f32::NAN,
                ..all
            },
        ),
        (
            "presence_penalty",
            Sampling {
                presence_penalty: 2.1,
                ..all
            },
        ),
        (
            "frequency_penalty",
            Sampling {
                frequency_penalty: f32::NAN,
                ..all
            },
        ),
        (
            "repetition_penalty",
            Sampling {
                repetition_penalty: 0.0,
                ..all
            },
        ),
        (
            "top_logprobs",
            Sampling {
                top_logprobs: 257,
                ..all
            },
        ),
    ] {
        let sentence = sampling.check().unwrap_err().to_string();
        assert!(sentence.starts_with(setting), "{sentence}");
    }
    assert!(all.check().is_ok() && Sampling::GREEDY.check().is_ok());
}
