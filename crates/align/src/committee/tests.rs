//! What is kept, by hand and by rule.

use std::collections::BTreeMap;

use proptest::prelude::*;
use russet_artifact::Recipe;
use serde_json::{Value, json};

use super::rows::{conversation, judgements, preference};
use super::settings::{FilterSettings, KeepSettings};
use super::*;

fn candidate(member: usize, sample: usize, text: &str, score: f64) -> Candidate {
    Candidate {
        member,
        sample,
        seed: seed(7, &format!("m{member}"), 0) + sample as u64,
        text: text.to_owned(),
        finished: true,
        score: Some(score),
    }
}

fn fates(verdicts: &[Vec<Verdict>]) -> Vec<Fate> {
    verdicts.iter().flatten().map(|one| one.fate).collect()
}

#[test]
fn repetition_and_similarity_are_the_docs_numbers() {
    // Ten words, seven runs of four, of which the last two stood before.
    let text = "the hen saw the fox the hen saw the fox";
    assert!((repetition(&words(text)) - 2.0 / 7.0).abs() < 1e-12);
    assert_eq!(repetition(&words("ha ha ha")), 0.0);
    assert!(repetition(&words(&"ha ".repeat(100))) > 0.98);
    // Four runs of three words each, of which three are in both: 3 / 5.
    let (one, other) = ("the red fox saw a hen", "The red fox saw a barn.");
    assert!((similarity(&words(one), &words(other)) - 0.6).abs() < 1e-12);
    assert_eq!(similarity(&words("yes"), &words("Yes!")), 1.0);
    assert_eq!(similarity(&words("?"), &words("!")), 0.0);
    assert_eq!(words("Über 3 中文!"), ["über", "3", "中", "文"]);
}

#[test]
fn each_answer_meets_the_fate_that_it_deserves() {
    let mut cut = candidate(0, 0, "the hen and then the", 9.0);
    cut.finished = false;
    let mut long = candidate(0, 1, "a hen that no judge reads", 0.0);
    long.score = None;
    let answers = vec![
        cut,
        long,
        candidate(0, 2, "  ", 9.0),
        candidate(1, 0, &"round and ".repeat(9), 9.0),
        candidate(1, 1, "the red fox saw a hen at home", 2.0),
        candidate(1, 2, " the red fox saw a hen at home ", 1.5),
        candidate(2, 0, "The red fox saw a hen, at home!", 1.75),
        candidate(2, 1, "a barn is where it slept", 1.0),
        candidate(2, 2, "nobody has seen it since", -1.0),
        candidate(2, 3, &"x".repeat(60), 5.0),
    ];
    let filter = FilterSettings {
        min_score: Some(0.0),
        max_characters: Some(50),
        max_repetition: 0.3,
        ..FilterSettings::default()
    };
    // "round and" nine times has 88 characters too: length is looked at first.
    let verdicts = select(
        std::slice::from_ref(&answers),
        3,
        &filter,
        &KeepSettings::default(),
    );
    assert_eq!(
        fates(&verdicts),
        [
            Fate::Unfinished,
            Fate::Unscored,
            Fate::TooShort,
            Fate::TooLong,
            Fate::Kept,
            Fate::Duplicate,
            Fate::NearDuplicate,
            Fate::NotAmongBest,
            Fate::BelowFloor,
            Fate::TooLong,
        ]
    );
    assert_eq!((verdicts[0][5].of, verdicts[0][6].of), (Some(4), Some(4)));
    assert_eq!(
        (verdicts[0][4].rank, verdicts[0][7].rank),
        (Some(1), Some(2))
    );
    let filter = FilterSettings {
        max_characters: None,
        ..filter
    };
    let verdicts = select(
        std::slice::from_ref(&answers),
        3,
        &filter,
        &KeepSettings::default(),
    );
    assert_eq!(verdicts[0][3].fate, Fate::Repetitive);
    assert_eq!(verdicts[0][9].fate, Fate::Kept);
    // The worst that can be compared: below the floor it may lie, cut off it may not be.
    let keep = KeepSettings {
        pairs: 9,
        min_margin: 4.0,
        ..KeepSettings::default()
    };
    assert_eq!(
        pairs(&answers, &verdicts[0], &filter, &keep),
        [(9, 8), (9, 7)]
    );
}

#[test]
fn a_member_that_has_more_than_its_share_gives_up_what_costs_least() {
    let pair = |one: f64, other: f64| {
        vec![
            candidate(0, 0, "the fox came from the barn", one),
            candidate(1, 0, "a hen went home again", other),
        ]
    };
    // The first is better three times, by 1, 3 and 2.
    let prompts = [
        pair(5.0, 4.0),
        pair(3.0, 0.0),
        pair(4.0, 2.0),
        pair(0.0, 1.0),
    ];
    let keep = KeepSettings {
        member_share: 0.5,
        ..KeepSettings::default()
    };
    let verdicts = select(&prompts, 2, &FilterSettings::default(), &keep);
    let kept: Vec<usize> = verdicts
        .iter()
        .map(|of| of.iter().position(|one| one.fate == Fate::Kept).unwrap())
        .collect();
    assert_eq!(kept, [1, 0, 0, 1]);
    assert_eq!(verdicts[0][0].fate, Fate::MemberShare);
    // Where nobody else has answered, the lowest go until the rest is within the share.
    let alone = |score: f64| vec![candidate(0, 0, "the fox came home", score)];
    let prompts = [alone(2.0), alone(1.0), pair(0.0, 1.0), alone(3.0)];
    let verdicts = select(&prompts, 2, &FilterSettings::default(), &keep);
    assert_eq!(
        fates(&verdicts),
        [
            Fate::MemberShare,
            Fate::MemberShare,
            Fate::NotAmongBest,
            Fate::Kept,
            Fate::Kept
        ]
    );
}

/// Answers of up to four members to up to five prompts, of few words and few scores, so that all that can happen does.
fn committee() -> impl Strategy<Value = Vec<Vec<Candidate>>> {
    let answer = ("([abc] ){0,6}", 0..4usize, 0..3i32, 0..10u8);
    let prompt = proptest::collection::vec(answer, 0..9);
    let made = |answers: Vec<(String, usize, i32, u8)>| {
        let mut samples: BTreeMap<usize, usize> = BTreeMap::new();
        let one = |(text, member, score, luck): (String, usize, i32, u8)| {
            let sample = samples.entry(member).or_default();
            *sample += 1;
            let mut one = candidate(member, *sample - 1, &text, f64::from(score));
            one.finished = luck > 0;
            one.score = one.score.filter(|_| luck > 1);
            one
        };
        answers.into_iter().map(one).collect()
    };
    proptest::collection::vec(prompt.prop_map(made), 0..6)
}

proptest! {
    #[test]
    fn what_is_kept_passes_is_its_own_and_stays_within_the_caps(
        prompts in committee(), answers in 1..4usize, share in 0.25..1.0f64, near in 0.2..1.0f64,
    ) {
        let filter = FilterSettings { near_duplicate: near, min_score: Some(0.5), ..FilterSettings::default() };
        let keep = KeepSettings { answers, member_share: share, pairs: 3, ..KeepSettings::default() };
        let verdicts = select(&prompts, 4, &filter, &keep);
        prop_assert_eq!(&verdicts, &select(&prompts, 4, &filter, &keep));
        let mut counts = [0usize; 4];
        for (candidates, verdicts) in prompts.iter().zip(&verdicts) {
            let kept: Vec<usize> = (0..candidates.len()).filter(|&at| verdicts[at].fate == Fate::Kept).collect();
            prop_assert!(kept.len() <= answers);
            for &at in &kept {
                let one = &candidates[at];
                counts[one.member] += 1;
                prop_assert!(one.finished && one.score.unwrap() >= 0.5 && !one.text.trim().is_empty());
                prop_assert!(repetition(&words(&one.text)) <= filter.max_repetition);
                for &other in kept.iter().filter(|&&other| other != at) {
                    prop_assert!(candidates[other].text.trim() != one.text.trim());
                    prop_assert!(similarity(&words(&candidates[other].text), &words(&one.text)) < near);
                }
            }
            // Ranks are 1, 2, … in the order of scores, and what is a duplicate has a better one.
            let mut ranked: Vec<usize> = (0..candidates.len()).filter(|&at| verdicts[at].rank.is_some()).collect();
            ranked.sort_by_key(|&at| verdicts[at].rank);
            for (place, &at) in ranked.iter().enumerate() {
                prop_assert_eq!(verdicts[at].rank, Some(place + 1));
                prop_assert!(place == 0 || candidates[ranked[place - 1]].score >= candidates[at].score);
            }
            for (at, verdict) in verdicts.iter().enumerate() {
                if let Some(better) = verdict.of {
                    prop_assert!(candidates[better].score >= candidates[at].score && verdicts[better].rank.is_some());
                }
            }
            for (chosen, rejected) in pairs(candidates, verdicts, &filter, &keep) {
                prop_assert!(verdicts[chosen].fate == Fate::Kept && candidates[chosen].score > candidates[rejected].score);
                prop_assert!(candidates[rejected].finished);
                prop_assert!(similarity(&words(&candidates[chosen].text), &words(&candidates[rejected].text)) < near);
            }
        }
        let all: usize = counts.iter().sum();
        for count in counts {
            prop_assert!(count as f64 <= share * all as f64 + 1e-6, "{counts:?} at {share}");
        }
    }

    #[test]
    fn the_order_of_members_in_the_recipe_decides_nothing(prompts in committee(), answers in 1..3usize) {
        // The same answers in the list from the back: each keeps its fate.
        let keep = KeepSettings { answers, ..KeepSettings::default() };
        let (filter, mut turned) = (FilterSettings::default(), prompts.clone());
        turned.iter_mut().for_each(|of| of.reverse());
        let straight = select(&prompts, 4, &filter, &keep);
        for (verdicts, mut back) in straight.into_iter().zip(select(&turned, 4, &filter, &keep)) {
            back.reverse();
            let said = |of: Vec<Verdict>| of.into_iter().map(|one| (one.fate, one.rank)).collect::<Vec<_>>();
            prop_assert_eq!(said(verdicts), said(back));
        }
    }
}

#[test]
fn seeds_follow_from_names_and_fit_every_server() {
    let all: Vec<u64> = (0..100).map(|prompt| seed(1, "sft", prompt)).collect();
    assert!(all.iter().all(|&seed| seed < 1 << 31));
    assert_ne!(seed(1, "sft", 3), seed(1, "dpo", 3));
    assert_ne!(seed(1, "sft", 3), seed(2, "sft", 3));
    assert_eq!(seed(1, "sft", 3), all[3]);
}

fn question(row: Value) -> Question {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("asked.jsonl");
    std::fs::write(&file, format!("{row}\n")).unwrap();
    let settings = settings("");
    let sources = Sources {
        prompts: vec![file],
        ..Sources::default()
    };
    let plan = Plan::new(settings, 2, sources, &crate::rewards::NoRules).unwrap();
    plan.questions()[0].clone()
}

fn settings(more: &str) -> Settings {
    let text = format!(
        "[reject]\nmax_tokens = 8\nrewards = [{{kind = \"format\", pattern = \"a\"}}]\n[data]\nprompts = [\"asked.jsonl\"]\n{more}"
    );
    Recipe::from_text("reject", &text, &[])
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn rows_are_those_that_sft_and_dpo_read() {
    let turns = json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "who?"},
    ]);
    let question = question(json!({"messages": turns, "category": "talk"}));
    let row = conversation(&question, "the fox", json!({"member": "one"}));
    let folder = tempfile::tempdir().unwrap();
    let read = |row: &Value| {
        let file = folder.path().join("rows.jsonl");
        std::fs::write(&file, format!("{row}\n")).unwrap();
        file
    };
    let learnt = crate::rows::read_conversations(&read(&row), false).unwrap();
    // The answer is learnt, and what the assistant said before is not.
    assert_eq!(learnt.rows[0].1.learnt, [true, false, true, true]);
    assert_eq!(row["provenance"]["member"], "one");
    let row = preference(&question, ["the fox", "a hen"], [json!({}), json!({})]);
    let pair = &crate::rows::read_pairs(&read(&row), false).unwrap().rows[0].1;
    assert_eq!(pair.chosen.conversation.messages.len(), 4);
    assert_eq!(pair.chosen.learnt, [false, false, false, true]);
    let answers = [
        candidate(0, 0, "the fox", 1.0),
        candidate(1, 0, "a red hen", 1.0),
        candidate(2, 0, " ", 3.0),
    ];
    let verdicts = &select(
        &[answers.to_vec()],
        4,
        &FilterSettings::default(),
        &KeepSettings::default(),
    )[0];
    let names = ["a", "b", "c", "d"];
    let rows = judgements(
        &question,
        &answers,
        verdicts,
        &names,
        &[true, true, true, false],
    );
    let told: Vec<(&Value, &Value, &Value)> = rows
        .iter()
        .map(|row| (&row["model_a"], &row["model_b"], &row["preference"]))
        .collect();
    // Equal scores tie, an answer beats none, and who has not been asked does not play.
    assert_eq!(
        told,
        [
            (&json!("a"), &json!("b"), &json!(1.5)),
            (&json!("a"), &json!("c"), &json!(1.0)),
            (&json!("b"), &json!("c"), &json!(1.0)),
        ]
    );
}

#[test]
fn rows_that_cannot_be_asked_are_named_or_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("asked.jsonl");
    std::fs::write(
        &file,
        "{\"prompt\": \"who\"}\n{\"prompt\": 3}\n{\"prompt\": \"who\"}\n{\"prompt\": \"why\"}\n",
    )
    .unwrap();
    let plan = |skips: &str| {
        let sources = Sources {
            prompts: vec![file.clone()],
            ..Sources::default()
        };
        Plan::new(settings(skips), 2, sources, &crate::rewards::NoRules)
    };
    let said = plan("").err().unwrap().to_string();
    assert!(said.contains("asked.jsonl: line 2"), "{said}");
    let plan = plan("skip_malformed = true\n").unwrap();
    assert_eq!((plan.counts().prompts, plan.counts().malformed), (2, 2));
    assert_eq!(plan.questions()[1].place, (0, 4));
}

#[test]
fn settings_that_cannot_be_are_refused_by_their_names() {
    let mut all = settings("");
    all.keep.member_share = 0.4;
    let said = all.check(2).unwrap_err().to_string();
    assert!(
        said.contains("`keep.member_share`") && said.contains("0.5"),
        "{said}"
    );
    all.check(3).unwrap();
    type Change = fn(&mut Settings);
    let changes: [(Change, &str); 8] = [
        (|all| all.reject.samples = 0, "reject.samples"),
        (|all| all.reject.temperature = 0.0, "reject.temperature"),
        (
            |all| all.reject.temperature = f64::NAN,
            "reject.temperature",
        ),
        (
            |all| all.filter.near_duplicate = 0.0,
            "filter.near_duplicate",
        ),
        (
            |all| all.filter.max_characters = Some(0),
            "filter.max_characters",
        ),
        (|all| all.keep.answers = 0, "keep.answers"),
        (|all| all.reject.rewards.clear(), "reject.rewards"),
        (|all| all.data.prompts.clear(), "data.prompts"),
    ];
    for (change, key) in changes {
        let mut changed = settings("");
        change(&mut changed);
        let said = changed.check(2).unwrap_err().to_string();
        assert!(said.starts_with(&format!("`{key}`")), "{key}: {said}");
    }
    let mut one = settings("");
    one.reject.samples = 1;
    assert!(
        one.check(1)
            .unwrap_err()
            .to_string()
            .contains("nothing to reject")
    );
}
