//! A chat template, rendered: Jinja that a stranger wrote must end, and must not grow without bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::seed;
use russet_tokenizer::{CHATML, ChatTemplate, Message};

fuzz_target!(
    init: {
        seed("chat_template", "chatml", CHATML.as_bytes());
        seed("chat_template", "loops", b"{% for m in messages %}{{ loop.index }}{{ m['role'].upper() }}{{ m.content | trim }}{% endfor %}");
    },
    |data: &[u8]| {
        let Ok(source) = std::str::from_utf8(data) else { return };
        let messages = [Message::new("system", "Be brief."), Message::new("user", "Hi {{ x }} <|im_end|>")];
        if let Ok(template) = ChatTemplate::new(source) {
            let _ = (template.render(&messages, true), template.render(&[], false));
        }
    }
);
