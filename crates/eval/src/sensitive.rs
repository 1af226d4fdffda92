//! Words that are sensitive, by category. A list and no judgement: it says that something is mentioned, not whether it should be.

use std::collections::BTreeMap;

/// A category and the beginnings of its words; one that ends in `.` is a word by itself.
const WORDS: [(&str, &[&str]); 6] = [
    (
        "profanity",
        &[
            "fuck", "shit", "bitch", "bastard", "asshole", "arsehole", "bollock", "wank", "cunt",
            "dickhead", "motherf", "bullsh", "piss.", "pissed.", "damn.", "goddamn", "crap.",
        ],
    ),
    (
        "violence",
        &[
            "kill",
            "murder",
            "stab",
            "behead",
            "slaughter",
            "tortur",
            "assault",
            "strangl",
            "shooting.",
            "gunned.",
            "bomb",
            "bloodbath",
            "genocid",
            "lynch",
            "massacr",
        ],
    ),
    (
        "sexual",
        &[
            "rape.",
            "raped.",
            "raping.",
            "rapist",
            "sexual",
            "sex.",
            "porn",
            "nude",
            "naked",
            "orgasm",
            "genital",
            "molest",
            "incest",
            "prostitut",
        ],
    ),
    (
        "self-harm",
        &[
            "suicid",
            "self-harm",
            "selfharm",
            "overdos",
            "anorexi",
            "bulimi",
        ],
    ),
    (
        "drugs",
        &[
            "cocaine",
            "heroin",
            "meth.",
            "methamphetamin",
            "fentanyl",
            "ecstasy",
            "lsd.",
            "opioid",
        ],
    ),
    (
        "hate",
        &[
            "nazi",
            "hitler",
            "subhuman",
            "vermin",
            "racist",
            "racism",
            "antisemit",
            "islamophob",
            "homophob",
            "xenophob",
            "supremacis",
        ],
    ),
];

/// How many sensitive words of each category a text has; categories without any are left out.
pub(crate) fn counts(text: &str) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '-');
    for word in words.filter(|word| !word.is_empty()) {
        for (category, beginnings) in WORDS {
            let is = |beginning: &&str| match beginning.strip_suffix('.') {
                Some(whole) => word == whole,
                None => word.starts_with(*beginning),
            };
            if beginnings.iter().any(is) {
                *counts.entry(category).or_default() += 1;
            }
        }
    }
    counts
}
