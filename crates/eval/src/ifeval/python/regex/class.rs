//! One character of a pattern: literals and sets, and what they are compared as.

use super::super::{is_space, is_word, simple_lower};

/// How letter case is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    None,
    Unicode,
    Ascii,
}

/// One character out of these.
#[derive(Clone, Debug)]
pub enum Class {
    Any,
    NotLineFeed,
    Literal(char),
    Set {
        items: Vec<Item>,
        negate: bool,
        fold: Fold,
    },
}

/// A part of a set.
#[derive(Clone, Copy, Debug)]
pub enum Item {
    Range(char, char),
    /// The letter of `\d`, `\s` or `\w`, and whether it is the other characters.
    Category {
        letter: char,
        negate: bool,
        ascii: bool,
    },
}

impl Item {
    pub fn range(low: char, high: char) -> Item {
        Item::Range(low, high)
    }

    pub fn category(letter: char, ascii: bool) -> Item {
        Item::Category {
            letter: letter.to_ascii_lowercase(),
            negate: letter.is_ascii_uppercase(),
            ascii,
        }
    }

    pub fn takes(&self, c: char) -> bool {
        match *self {
            Item::Range(low, high) => (low..=high).contains(&c),
            Item::Category {
                ascii: true,
                negate,
                ..
            } if !c.is_ascii() => negate,
            Item::Category { letter, negate, .. } => {
                negate
                    != match letter {
                        'd' => is_decimal(c),
                        's' => is_space(c),
                        _ => is_word(c),
                    }
            }
        }
    }
}

/// `\d`: Unicode's decimal digits. Numbers that are no digits of a decimal system, as ² and Ⅷ, are none.
pub fn is_decimal(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_digit();
    }
    // Decimal digits come in runs of ten that begin at these.
    const ZEROS: [u32; 65] = [
        0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6,
        0xE50, 0xED0, 0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90,
        0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0,
        0xFF10, 0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0,
        0x11650, 0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x16A60, 0x16AC0,
        0x16B50, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0,
    ];
    let code = u32::from(c);
    let after = ZEROS.partition_point(|zero| *zero <= code);
    after > 0 && code - ZEROS[after - 1] < 10
}

impl Class {
    pub fn literal(c: char, fold: Fold) -> Class {
        match fold {
            Fold::None => Class::Literal(c),
            _ => Class::set(vec![Item::range(c, c)], false, fold),
        }
    }

    pub fn category(letter: char, ascii: bool) -> Class {
        Class::Set {
            items: vec![Item::category(letter, ascii)],
            negate: false,
            fold: Fold::None,
        }
    }

    /// A set. Under `fold` the characters of its ranges become what they are compared as.
    pub fn set(items: Vec<Item>, negate: bool, fold: Fold) -> Class {
        if fold == Fold::None {
            return Class::Set {
                items,
                negate,
                fold,
            };
        }
        let mut all: Vec<Item> = Vec::new();
        let mut add = |c: char| match all.last_mut() {
            Some(Item::Range(low, high)) if (*low..=*high).contains(&c) => {}
            Some(Item::Range(_, high)) if u32::from(*high) + 1 == u32::from(c) => *high = c,
            _ => all.push(Item::Range(c, c)),
        };
        let mut categories = Vec::new();
        for item in items {
            match item {
                Item::Range(low, high) => {
                    for c in low..=high {
                        let lower = folded(c, fold);
                        add(lower);
                        if fold == Fold::Unicode {
                            same_capital(lower).iter().for_each(|c| add(*c));
                        }
                    }
                }
                category => categories.push(category),
            }
        }
        all.extend(categories);
        Class::Set {
            items: all,
            negate,
            fold,
        }
    }

    pub fn takes(&self, c: char) -> bool {
        match self {
            Class::Any => true,
            Class::NotLineFeed => c != '\n',
            Class::Literal(literal) => c == *literal,
            Class::Set {
                items,
                negate,
                fold,
            } => {
                let c = folded(c, *fold);
                *negate != items.iter().any(|item| item.takes(c))
            }
        }
    }
}

/// Small letters that share a capital with another small letter, which case-blind matching takes for each other.
pub fn same_capital(lower: char) -> &'static [char] {
    match lower {
        'i' => &['ı'],
        'ı' => &['i'],
        's' => &['ſ'],
        'ſ' => &['s'],
        'µ' => &['μ'],
        'μ' => &['µ'],
        '\u{345}' => &['\u{3b9}', '\u{1fbe}'],
        '\u{3b9}' => &['\u{345}', '\u{1fbe}'],
        '\u{1fbe}' => &['\u{345}', '\u{3b9}'],
        '\u{390}' => &['\u{1fd3}'],
        '\u{1fd3}' => &['\u{390}'],
        '\u{3b0}' => &['\u{1fe3}'],
        '\u{1fe3}' => &['\u{3b0}'],
        'β' => &['ϐ'],
        'ϐ' => &['β'],
        'ε' => &['ϵ'],
        'ϵ' => &['ε'],
        'θ' => &['ϑ'],
        'ϑ' => &['θ'],
        'κ' => &['ϰ'],
        'ϰ' => &['κ'],
        'π' => &['ϖ'],
        'ϖ' => &['π'],
        'ρ' => &['ϱ'],
        'ϱ' => &['ρ'],
        'ς' => &['σ'],
        'σ' => &['ς'],
        'φ' => &['ϕ'],
        'ϕ' => &['φ'],
        'в' => &['\u{1c80}'],
        '\u{1c80}' => &['в'],
        'д' => &['\u{1c81}'],
        '\u{1c81}' => &['д'],
        'о' => &['\u{1c82}'],
        '\u{1c82}' => &['о'],
        'с' => &['\u{1c83}'],
        '\u{1c83}' => &['с'],
        'т' => &['\u{1c84}', '\u{1c85}'],
        '\u{1c84}' => &['т', '\u{1c85}'],
        '\u{1c85}' => &['т', '\u{1c84}'],
        'ъ' => &['\u{1c86}'],
        '\u{1c86}' => &['ъ'],
        'ѣ' => &['\u{1c87}'],
        '\u{1c87}' => &['ѣ'],
        '\u{1c88}' => &['\u{a64b}'],
        '\u{a64b}' => &['\u{1c88}'],
        '\u{1e61}' => &['\u{1e9b}'],
        '\u{1e9b}' => &['\u{1e61}'],
        '\u{fb05}' => &['\u{fb06}'],
        '\u{fb06}' => &['\u{fb05}'],
        _ => &[],
    }
}

/// What `c` is compared as under `fold`.
pub fn folded(c: char, fold: Fold) -> char {
    match fold {
        Fold::None => c,
        Fold::Ascii => c.to_ascii_lowercase(),
        Fold::Unicode => simple_lower(c),
    }
}
