//! Words that are sensitive, by category. A list and no judgement: it says that something is mentioned, not whether it should be.
//!
//! Every form of a word is written out. Beginnings of words would take `stable` for a stabbing, a heroine for a drug and Bombay for a
//! bomb; `lynch` by itself is a name more often than an act.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

const PROFANITY: &str = "\
    fuck fucks fucked fucker fuckers fucking motherfucker motherfuckers motherfucking shit shits shitty shitting bullshit \
    bullshitting bitch bitches bitchy bastard bastards asshole assholes arsehole arseholes bollocks wank wanker wankers wanking \
    cunt cunts dickhead dickheads piss pissed damn goddamn goddamned crap";

const VIOLENCE: &str = "\
    kill kills killed killing killings killer killers murder murders murdered murdering murderer murderers murderous stab stabs \
    stabbed stabbing stabbings behead beheads beheaded beheading beheadings slaughter slaughters slaughtered slaughtering torture \
    tortures tortured torturing torturer torturers assault assaults assaulted assaulting strangle strangles strangled strangling \
    strangler strangulation shooting shootings gunned bomb bombs bombed bombing bombings bomber bombers bloodbath bloodbaths genocide \
    genocides genocidal lynched lynching lynchings massacre massacres massacred massacring";

const SEXUAL: &str = "\
    rape rapes raped raping rapist rapists sexual sexually sexualise sexualised sexualize sexualized sex porn porno pornography \
    pornographic nude nudes nudity naked orgasm orgasms genital genitals genitalia molest molests molested molesting molester \
    molesters molestation incest incestuous prostitute prostitutes prostituted prostitution";

const SELF_HARM: &str = "\
    suicide suicides suicidal self-harm self-harms self-harmed self-harming selfharm overdose overdoses overdosed overdosing \
    anorexia anorexic bulimia bulimic";

const DRUGS: &str = "\
    cocaine heroin meth methamphetamine methamphetamines fentanyl ecstasy lsd opioid opioids";

const HATE: &str = "\
    nazi nazis nazism hitler subhuman subhumans vermin racist racists racism antisemite antisemites antisemitic antisemitism \
    anti-semite anti-semites anti-semitic anti-semitism islamophobe islamophobes islamophobia islamophobic homophobe homophobes \
    homophobia homophobic xenophobe xenophobes xenophobia xenophobic supremacist supremacists supremacism";

static CATEGORIES: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| {
    let all = [
        ("profanity", PROFANITY),
        ("violence", VIOLENCE),
        ("sexual", SEXUAL),
        ("self-harm", SELF_HARM),
        ("drugs", DRUGS),
        ("hate", HATE),
    ];
    let words = all.iter().flat_map(|(category, words)| {
        let words = words.split_ascii_whitespace();
        words.map(|word| (word, *category))
    });
    words.collect()
});

/// How many sensitive words of each category a text has; categories without any are left out.
pub(crate) fn counts(text: &str) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    let text = text.to_lowercase();
    for word in text.split(|c: char| !c.is_alphanumeric() && c != '-') {
        // As it is, `self-harm`; else by its parts, `bomb-making`.
        let whole = CATEGORIES.get(word).into_iter();
        let parts = word.split('-').filter_map(|part| CATEGORIES.get(part));
        let found: Vec<&&str> = match CATEGORIES.contains_key(word) {
            true => whole.collect(),
            false => parts.collect(),
        };
        for category in found {
            *counts.entry(*category).or_default() += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, usize)]) {
        let expected: BTreeMap<&str, usize> = expected.iter().copied().collect();
        assert_eq!(counts(text), expected, "{text:?}");
    }

    #[test]
    fn every_form_of_a_word_counts_and_no_other_word() {
        check("He was Stabbed; the killer's bombs …", &[("violence", 3)]);
        check("self-harm, self-harming", &[("self-harm", 2)]);
        check("a bomb-making neo-Nazi", &[("violence", 1), ("hate", 1)]);
        check("damn!", &[("profanity", 1)]);
        check("", &[]);
        for text in [
            "The stable price, the stability of the horse's stable, a stabiliser",
            "the heroine of the novel",
            "from Bombay to Killarney, with a bombastic speech",
            "a film by David Lynch; Merrill Lynch",
            "a killjoy in Essex studies Sussex, a nudge, and nudibranchs",
            "a craps table, a damning report, a scrap of paper, cockpit",
            "a therapist and a grapefruit, methane and method",
        ] {
            check(text, &[]);
        }
    }

    #[test]
    fn no_word_is_of_two_categories() {
        let lists = [PROFANITY, VIOLENCE, SEXUAL, SELF_HARM, DRUGS, HATE];
        let words = lists
            .iter()
            .map(|list| list.split_ascii_whitespace().count());
        assert_eq!(words.sum::<usize>(), CATEGORIES.len());
    }
}
