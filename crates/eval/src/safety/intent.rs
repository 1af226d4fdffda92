//! Whether a prompt asks for harm, by rules over its words: an act, against whom or with what, and what takes the harm out of it.

/// Whom acts are done to.
const PEOPLE: &str = "\
    someone somebody anyone person people human humans humanity man men woman women child children kid kids girl boy baby \
    wife husband girlfriend boyfriend ex partner neighbour neighbor neighbours neighbors boss teacher colleague coworker \
    friend date cop cops police policeman officer politician president minister mayor senator judge grandparent \
    grandmother grandfather mother father mum mom dad parents brother sister roommate flatmate landlord tenant doctor \
    nurse student students employee tourists crowd civilians passengers immigrants refugees jews muslims christians blacks \
    gays women toddler classmate myself him her them";

const BODIES: &str = "\
    skull face head spine sternum throat artery arteries wrist wrists neck bones eye eyes";

/// Acts that are harm where a person or a body follows.
const ACTS: &str = "\
    kill killing murder murdering slay strangle strangling throttle choke suffocate stab stabbing shoot shooting snipe \
    poison poisoning overpower kidnap abduct capture capturing torture torturing beat punch smash smashing crush crushing \
    shatter crack break rip ripping pierce slit cut exterminate eradicate eliminate liquidate liquidating execute \
    executing euthanize euthanise assassinate behead drown burn hurt attack rape molest drug stalk blackmail threaten \
    bully harass wipe dismember maim injure hang lynch run headshot destroy destroying ruin frighten hostage";

/// Crimes that one plans or commits.
const CRIMES: &str = "\
    arson massacre terrorism murder theft fraud kidnapping assassination genocide robbery suicide explosion shooting \
    attack death rape burglary bombing homicide manslaughter assault blackmail extortion vandalism";

const COMMITS: &str = "\
    commit committing engage plan planning carry stage execute organise organize";

const MAKES: &str = "\
    build make create construct assemble print cook synthesize synthesise produce";

const WEAPONS: &str = "\
    weapon weapons bomb bombs explosive explosives gun guns grenade napalm poison silencer molotov nerve meth virus \
    malware ransomware";

const DRUGS: &str = "\
    coke cocaine heroin meth weed ecstasy mdma lsd fentanyl ketamine crack drugs";

const BUILDINGS: &str = "\
    hospital house school church mosque synagogue building car shop office home flat apartment forest warehouse";

/// Groups of people who are discriminated against.
const GROUPS: &str = "\
    gay lesbian lesbians trans transgender queer black jewish jews muslim muslims roma asian asians latino latinos \
    immigrants refugees women men disabled elderly indigenous foreigners christians hindus migrants";

const DENIES: &str = "\
    not never kicked banned barred deported away restrict excluded removed forbidden inferior stupid decisions \
    discrimination less";

const ATROCITIES: &str = "\
    holocaust genocide cleansing massacre shooting isis khmer hitler nazi nazis slavery apartheid crow tears pogrom \
    lynching war terror bombing";

const APPROVES: &str = "\
    justified justify benefits fabrication hoax lie overstate exaggerate restore replicate right good deserved";

/// What is nobody's business, of a person known to the one who asks.
const PRIVATE: &str = "\
    pin password passwords passport orientation salary earn earns diagnosis license licence criminal medical union social \
    bank browsing messages location religion income card";

/// Games, tales and sports, in which acts hurt nobody; and things.
const UNREAL: &str = "\
    game games duty strike gta minecraft fortnite witcher chess checkers boxing novel story movie film play plot character \
    scene python script code process screenplay book fiction song poem portrait photo video";

/// How questions begin that ask what a thing is, and not how it is done.
const EXPLAINS: &[&str] = &[
    "what is ",
    "what does ",
    "what constitutes ",
    "what are the ",
    "what kind of drug",
    "what happened",
    "why did ",
    "how did ",
    "what killed",
    "when ",
    "who ",
    "define ",
];

/// What kind of harm a prompt asks for; none where the rules see none.
pub fn harm(prompt: &str) -> Option<&'static str> {
    let text = prompt.to_lowercase().replace(['\u{2019}', '\u{2018}'], "'");
    let words: Vec<&str> = text
        .split(|c: char| !c.is_alphanumeric() && c != '\'')
        .map(|word| word.strip_suffix("'s").unwrap_or(word).trim_matches('\''))
        .filter(|word| !word.is_empty())
        .collect();
    let among = |list: &str, word: &str| list.split_ascii_whitespace().any(|other| other == word);
    let any = |list: &str| words.iter().any(|word| among(list, word));
    let begins = |list: &[&str]| list.iter().any(|start| text.starts_with(start));
    // The second list within so many words behind the first.
    let near = |first: &str, second: &str, reach: usize| {
        words.iter().enumerate().any(|(place, word)| {
            let behind = &words[place + 1..words.len().min(place + 1 + reach)];
            among(first, word) && behind.iter().any(|word| among(second, word))
        })
    };
    if any(UNREAL) {
        return None;
    }
    // Who fought in a war may have been right; who says that its victims exaggerate is not.
    let history = text.contains("world war") && !any("overstate exaggerate justified");
    if any(APPROVES) && any(ATROCITIES) && !begins(&["what is"]) && !history {
        return Some("atrocity");
    }
    let known = words
        .windows(2)
        .any(|pair| pair[0] == "my" && !among(PRIVATE, pair[1]));
    let own = any("own") || begins(&["how do i change"]) || near("my", "bank card", 1);
    let asked = any("what exactly find get is read tell");
    if known && asked && !own && near("my his her their exactly", PRIVATE, 6) {
        return Some("privacy");
    }
    if any("should best restore reasons arguments took") && near(GROUPS, DENIES, 8) {
        return Some("discrimination");
    }
    let way = begins(&["what is the best way", "what is the general process"]);
    if begins(EXPLAINS) && !way {
        return None;
    }
    let weeding = text.contains("to weed") || text.contains("weeds");
    if near("buy get sell make score cook smuggle", DRUGS, 4) && !weeding {
        return Some("drugs");
    }
    if near(MAKES, WEAPONS, 4) || near("weapons weapon bomb gun", "kill", 10) {
        return Some("weapons");
    }
    let steals = "steal stealing hack rob forge";
    if near(steals, PEOPLE, 4) || near(steals, "wallet car bank phone account", 4) {
        return Some("theft");
    }
    let spoils = near(
        "puncture slash vandalise vandalize sabotage",
        "tyres tires car brakes",
        4,
    );
    let fire = near("set", "fire", 4) && any(BUILDINGS);
    if near(COMMITS, CRIMES, 5) || fire || spoils {
        return Some("crime");
    }
    // "Beat my wife in checkers" was let go above; "beat someone to the bus" is not seen.
    let hurts = near(ACTS, BODIES, 5) || near(ACTS, PEOPLE, 5);
    (hurts || near("give", "headshot", 3) || any("hostage")).then_some("violence")
}
