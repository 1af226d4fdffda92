//! The language of a text as langdetect 1.0.9 finds it (after Shuyo Nakatani's language-detection): naive Bayes over 1-, 2-
//! and 3-grams of 55 languages, drawn at random until one language is certain.
//!
//! The reference does not seed its draws, so on a text that lies between two languages it may answer either from one run
//! to the next. Here the seed is 0, with Python's generator: the answer is langdetect's under `DetectorFactory.seed = 0`.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::LazyLock;

use super::data;
use super::python::random::Random;
use super::python::regex::{Endless, Regex};

/// What it can answer; in a list of their own, so that a prompt can be checked without unpacking the profiles.
#[rustfmt::skip]
pub const CODES: [&str; 55] = [
    "af", "ar", "bg", "bn", "ca", "cs", "cy", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr",
    "gu", "he", "hi", "hr", "hu", "id", "it", "ja", "kn", "ko", "lt", "lv", "mk", "ml", "mr", "ne", "nl",
    "no", "pa", "pl", "pt", "ro", "ru", "sk", "sl", "so", "sq", "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "zh-cn", "zh-tw",
];

const TRIALS: usize = 7;
const LONGEST: usize = 10_000; // characters
const ALPHA: f64 = 0.5;
const ALPHA_WIDTH: f64 = 0.05;
const BASE: f64 = 10_000.0;
const ROUNDS: usize = 1000;
const CERTAIN: f64 = 0.99999;
const LIKELY: f64 = 0.1;

/// Up to three characters in one number, so that a table of them is small and quick.
type Gram = u64;

/// `[a, b, c]` as it stands at the end of a text.
fn gram(characters: &[char]) -> Gram {
    characters
        .iter()
        .fold(0, |gram, c| (gram << 21) | Gram::from(u32::from(*c)))
}

/// One multiplication: the keys are no stranger's choice of collisions worth defending against, and there are 30,000
/// look-ups a text.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

struct Profiles {
    names: Vec<&'static str>,
    /// Where in `chances` those of an n-gram begin and end.
    grams: HashMap<Gram, (u32, u32), BuildHasherDefault<Mix>>,
    /// Languages and how likely the n-gram is in each.
    chances: Vec<(u8, f64)>,
    /// A character of Chinese script that counts as another.
    merged: HashMap<char, char>,
    addresses: Regex,
    mail: Regex,
}

static PROFILES: LazyLock<Profiles> = LazyLock::new(|| {
    let mut profiles = Profiles {
        names: Vec::new(),
        grams: HashMap::default(),
        chances: Vec::new(),
        merged: HashMap::new(),
        addresses: data::pattern("https?://[-_.?&~;+=/#0-9A-Za-z]{1,2076}"),
        mail: data::pattern("[-_.0-9A-Za-z]{1,64}@[-_0-9A-Za-z]{1,255}[-_.0-9A-Za-z]{1,255}"),
    };
    let whole = "the embedded language profiles are whole";
    let mut totals: Vec<[f64; 3]> = Vec::new();
    for line in data::profiles().lines() {
        let mut fields = line.split('\t');
        match (fields.next(), fields.next()) {
            (Some("l"), Some(name)) => {
                profiles.names.push(name);
                let mut total = || {
                    fields
                        .next()
                        .and_then(|total| total.parse().ok())
                        .expect(whole)
                };
                totals.push([total(), total(), total()]);
            }
            (Some("k"), Some(same)) => {
                let first = same.chars().next().expect(whole);
                profiles.merged.extend(same.chars().map(|c| (c, first)));
            }
            (Some("g"), Some(characters)) => {
                let characters: Vec<char> = characters.chars().collect();
                let begin = profiles.chances.len() as u32;
                for chance in fields {
                    let (language, count) = chance.split_once(':').expect(whole);
                    let language: u8 = language.parse().expect(whole);
                    let count: f64 = count.parse().expect(whole);
                    let total = totals[usize::from(language)][characters.len() - 1];
                    profiles.chances.push((language, count / total));
                }
                let range = (begin, profiles.chances.len() as u32);
                profiles.grams.insert(gram(&characters), range);
            }
            _ => panic!("{whole}, but one line is {line:?}"),
        }
    }
    profiles
});

/// `langdetect.detect`: a code as `en`, or `unknown`; None where langdetect finds nothing to go by and raises.
pub fn detect(text: &str) -> Result<Option<&'static str>, Endless> {
    PROFILES.detect(text)
}

impl Profiles {
    fn detect(&self, text: &str) -> Result<Option<&'static str>, Endless> {
        let text = self.cleaned(text)?;
        let grams = self.grams_of(&text);
        let Ok(count) = u32::try_from(grams.len()) else {
            unreachable!("{LONGEST} characters have three n-grams each");
        };
        if count == 0 {
            return Ok(None);
        }
        let languages = self.names.len();
        let mut sum = vec![0.0; languages];
        let mut random = Random::new(0);
        for _ in 0..TRIALS {
            let mut chance = vec![1.0 / languages as f64; languages];
            let weight = (ALPHA + random.gauss() * ALPHA_WIDTH) / BASE;
            for round in 0.. {
                let (begin, end) = grams[random.below(count) as usize];
                let mut before = 0;
                for (language, likely) in &self.chances[begin as usize..end as usize] {
                    let language = usize::from(*language);
                    chance[before..language]
                        .iter_mut()
                        .for_each(|p| *p *= weight);
                    chance[language] *= weight + likely;
                    before = language + 1;
                }
                chance[before..].iter_mut().for_each(|p| *p *= weight);
                if round % 5 == 0 && (normalize(&mut chance) > CERTAIN || round >= ROUNDS) {
                    break;
                }
            }
            for (sum, chance) in sum.iter_mut().zip(&chance) {
                *sum += chance / TRIALS as f64;
            }
        }
        let mut best: Option<usize> = None;
        for (language, chance) in sum.iter().enumerate() {
            if *chance > best.map_or(LIKELY, |best| sum[best]) {
                best = Some(language);
            }
        }
        Ok(Some(best.map_or("unknown", |best| self.names[best])))
    }

    /// Without addresses, runs of spaces and, where most of it is in another script, Latin letters.
    fn cleaned(&self, text: &str) -> Result<Vec<char>, Endless> {
        let mut chars: Vec<char> = text.chars().collect();
        if text.contains("://") {
            chars = self.addresses.replace_all(&chars, " ")?;
        }
        if text.contains('@') {
            chars = self.mail.replace_all(&chars, " ")?;
        }
        let chars = composed(&chars);
        let mut kept: Vec<char> = Vec::new();
        let mut before = '\0';
        for c in chars.into_iter().take(LONGEST) {
            if c != ' ' || before != ' ' {
                kept.push(c);
            }
            before = c;
        }
        let latin = |c: &char| ('A'..='z').contains(c);
        let latins = kept.iter().filter(|c| latin(c)).count();
        let others = kept.iter().filter(|c| **c >= '\u{300}').count();
        if latins * 2 < others {
            kept.retain(|c| !latin(c));
        }
        Ok(kept)
    }

    /// The known n-grams of a text, as ranges of `chances`.
    fn grams_of(&self, text: &[char]) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        // The last one to three characters; a space begins a word and is never followed by another.
        let mut last: Vec<char> = vec![' '];
        let mut capital_word = false;
        for c in text {
            let c = self.normalized(*c);
            let before = last[last.len() - 1];
            if before == ' ' {
                last.truncate(0);
                last.push(' ');
                capital_word = false;
                if c == ' ' {
                    // langdetect looks its buffer, one space, up once more, and leaves that out.
                    continue;
                }
            } else if last.len() >= 3 {
                last.remove(0);
            }
            last.push(c);
            capital_word = c.is_uppercase() && (capital_word || before.is_uppercase());
            if capital_word {
                continue;
            }
            for n in 1..=last.len() {
                let characters = &last[last.len() - n..];
                if characters != [' '] {
                    found.extend(self.grams.get(&gram(characters)));
                }
            }
        }
        found
    }

    /// What a character counts as: whole scripts that one language alone writes are one character.
    fn normalized(&self, c: char) -> char {
        match c {
            'A'..='Z' | 'a'..='z' => c,
            '\0'..='\u{7f}' | '\u{a0}' | '«' | '°' | '»' | '\u{2000}'..='\u{206f}' => ' ',
            'ș' => 'ş',
            'ț' => 'ţ',
            '\u{6cc}' => '\u{64a}',
            '\u{1ea0}'..='\u{1eff}' => '\u{1ec3}',
            '\u{3040}'..='\u{309f}' => 'あ',
            '\u{30a0}'..='\u{30ff}' => 'ア',
            '\u{3100}'..='\u{312f}' | '\u{31a0}'..='\u{31bf}' => 'ㄅ',
            '\u{4e00}'..='\u{9fff}' => self.merged.get(&c).copied().unwrap_or(c),
            '\u{ac00}'..='\u{d7af}' => '가',
            _ => c,
        }
    }
}

/// Makes the chances sum to 1; the largest.
fn normalize(chances: &mut [f64]) -> f64 {
    let sum: f64 = chances.iter().sum();
    let mut largest = 0.0;
    for chance in chances {
        *chance /= sum;
        if largest < *chance {
            largest = *chance;
        }
    }
    largest
}

/// Vietnamese vowels and the tone marks behind them become one character.
fn composed(text: &[char]) -> Vec<char> {
    const VOWELS: &str = "AEIOUYaeiouyÂÊÔâêôĂăƠơƯư";
    const TONES: [(char, &str); 5] = [
        ('\u{300}', "ÀÈÌÒÙỲàèìòùỳẦỀỒầềồẰằỜờỪừ"),
        ('\u{301}', "ÁÉÍÓÚÝáéíóúýẤẾỐấếốẮắỚớỨứ"),
        ('\u{303}', "ÃẼĨÕŨỸãẽĩõũỹẪỄỖẫễỗẴẵỠỡỮữ"),
        ('\u{309}', "ẢẺỈỎỦỶảẻỉỏủỷẨỂỔẩểổẲẳỞởỬử"),
        ('\u{323}', "ẠẸỊỌỤỴạẹịọụỵẬỆỘậệộẶặỢợỰự"),
    ];
    let pair = |vowel: char, tone: char| {
        let (_, composed) = TONES.iter().find(|(mark, _)| *mark == tone)?;
        let place = VOWELS.chars().position(|c| c == vowel)?;
        composed.chars().nth(place)
    };
    let (mut out, mut i) = (Vec::with_capacity(text.len()), 0);
    while i < text.len() {
        let tone = text
            .get(i + 1)
            .filter(|c| ('\u{300}'..='\u{323}').contains(*c));
        match tone.and_then(|tone| pair(text[i], *tone)) {
            Some(composed) => {
                out.push(composed);
                i += 2;
            }
            None => {
                out.push(text[i]);
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_langdetects() {
        // langdetect.detect of each, DetectorFactory.seed = 0
        for (text, expected) in [
            ("The quick brown fox jumps over the lazy dog.", Some("en")),
            (
                "Der schnelle braune Fuchs springt über den faulen Hund.",
                Some("de"),
            ),
            ("नमस्ते, आप कैसे हैं?", Some("hi")),
            ("これは日本語の文です。", Some("ja")),
            ("ALL OF THIS IS WRITTEN IN CAPITALS", Some("en")),
            ("123 456 !!!", None),
            ("", None),
            ("a", Some("tl")),
        ] {
            assert_eq!(detect(text).unwrap(), expected, "{text:?}");
        }
        assert_eq!(PROFILES.names, CODES);
    }
}
