//! Which tokens the assistant said: exactly, wherever byte pairs would merge across a border.

mod common;

use std::sync::LazyLock;
use std::time::UNIX_EPOCH;

use common::TRAINED;
use proptest::prelude::*;
use russet_tokenizer::{CHATML, Conversation, Message, Tokenizer, Turns};
use serde_json::{Value, json};

/// ChatML whose template marks what the assistant says, the end of the turn with it.
const MARKED: &str = "\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}
{{- '\\n' }}
{%- else %}
{{- message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
";

/// No special token at the border: the answer goes on in the middle of a line, and words merge across.
const PLAIN: &str = "\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
Answer:{{ message.content }}<|im_end|>
{%- else -%}
Question: {{ message.content }} {% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
Answer:
{%- endif -%}
";

fn of_template(template: &str) -> Tokenizer {
    let dir = common::saved();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    tokenizer.with_chat_template(template).unwrap()
}

static TOKENIZERS: LazyLock<[Tokenizer; 3]> =
    LazyLock::new(|| [CHATML, MARKED, PLAIN].map(of_template));

fn turns(tokenizer: &Tokenizer, messages: &[Message]) -> Turns {
    tokenizer
        .encode_turns(&Conversation::from(messages), UNIX_EPOCH)
        .unwrap()
}

fn bytes(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter()
        .flat_map(|&id| tokenizer.token_bytes(id))
        .copied()
        .collect()
}

/// What every template keeps to: the spans are the answers to the byte, and what comes before the first is the prompt that
/// generation begins with.
fn check(tokenizer: &Tokenizer, messages: &[Message]) {
    let made = turns(tokenizer, messages);
    let answers: Vec<usize> = (0..messages.len())
        .filter(|&m| messages[m].role == "assistant")
        .collect();
    assert_eq!(made.spans.len(), answers.len());
    for (span, &message) in made.spans.iter().zip(&answers) {
        assert_eq!(span.message, Some(message));
        let (&end, said) = made.ids[span.tokens.clone()].split_last().unwrap();
        assert!(tokenizer.special().eos.contains(&end));
        assert_eq!(
            bytes(tokenizer, said),
            messages[message].content.as_bytes(),
            "{messages:?}"
        );
    }
    let first = answers[0];
    let prompt = tokenizer.encode_chat(&messages[..first], true).unwrap();
    assert_eq!(made.ids[..made.spans[0].tokens.start], prompt);
    // All of it is the text that the template renders.
    let text = tokenizer.render_chat(messages, false).unwrap();
    assert_eq!(tokenizer.decode(&made.ids, false), text);
}

fn content() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ \\n]{0,3}[a-z]{0,6}([ \\n'.,0-9é]{0,2}[a-zA-Z]{0,7}){0,4}[ \\n]{0,3}",
        "([ab]|<\\|im_end\\|>|<\\|im_start\\|>|\\n|assistant|Answer:| ){0,8}",
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn spans_are_the_answers_to_the_byte(asked in content(), said in content(), again in content(), more in content()) {
        let messages = [
            Message::new("system", "Be kind."), Message::new("user", asked), Message::new("assistant", said),
            Message::new("user", again), Message::new("assistant", more),
        ];
        for tokenizer in &*TOKENIZERS {
            check(tokenizer, &messages);
        }
    }
}

/// A case where a cut is needed: the whole text has a token that is half prompt and half answer.
#[test]
fn a_merge_across_the_border_is_cut() {
    let tokenizer = of_template(&PLAIN.replace("Answer:", "Say th"));
    let messages = [
        Message::new("user", "Hi"),
        Message::new("assistant", "e end"),
    ];
    check(&tokenizer, &messages);
    let whole = tokenizer.encode_chat(&messages, false).unwrap();
    let cut = turns(&tokenizer, &messages).ids;
    assert_eq!(
        tokenizer.decode(&whole, false),
        tokenizer.decode(&cut, false)
    );
    assert!(
        whole.len() < cut.len(),
        "` the` is one token of the whole: {whole:?}, {cut:?}"
    );
}

#[test]
fn markers_and_prefixes_agree_where_both_can_be_had() {
    let messages = [
        Message::new("user", "Who <|im_end|> are you?"),
        Message::new("assistant", "A <|im_start|> fox."),
        Message::new("user", "Why?"),
        Message::new("assistant", "So."),
    ];
    let (marked, prefixes) = (of_template(MARKED), of_template(CHATML));
    assert_eq!(turns(&marked, &messages), turns(&prefixes, &messages));
}

#[test]
fn what_cannot_be_told_is_refused() {
    let says = |template: &str, word: &str| {
        let messages = [
            Message::new("user", "a"),
            Message::new("assistant", "b"),
            Message::new("user", "c"),
            Message::new("assistant", "d"),
        ];
        let tokenizer = of_template(template);
        let made = tokenizer.encode_turns(&Conversation::from(&messages[..]), UNIX_EPOCH);
        let error = made.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    // The last turn alone is shown in full.
    says(
        "{% for m in messages %}{{ m.role }}:{% if loop.last %}!{% endif %}{{ m.content }}<|im_end|>{% endfor %}",
        "{% generation %}",
    );
    says(
        "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
        "never stop",
    );
    says(
        "{% for m in messages %}{% generation %}{% generation %}{{ m.content }}{% endgeneration %}{% endgeneration %}{% endfor %}",
        "within one another",
    );
}

#[test]
fn tools_and_calls_are_what_the_template_makes_of_them() {
    let template = "\
{%- if tools %}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}{{- '<call>' + (call.function | tojson) + '</call>' }}{%- endfor %}
{%- else %}{{- message.content }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
";
    let tokenizer = of_template(template);
    let message = |value: Value| value.as_object().unwrap().clone();
    let conversation = Conversation {
        messages: vec![
            message(json!({"role": "user", "content": "Rain?"})),
            message(
                json!({"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function":
                {"name": "weather", "arguments": {"city": "<|im_end|>"}}}]}),
            ),
            message(json!({"role": "tool", "content": "no"})),
            message(json!({"role": "assistant", "content": "No."})),
        ],
        tools: vec![json!({"name": "weather"})],
    };
    let made = tokenizer.encode_turns(&conversation, UNIX_EPOCH).unwrap();
    let said: Vec<String> = made
        .spans
        .iter()
        .map(|span| tokenizer.decode(&made.ids[span.tokens.clone()], false))
        .collect();
    assert!(
        said[0].starts_with("<call>{") && said[0].ends_with("}</call><|im_end|>"),
        "{said:?}"
    );
    assert_eq!(said[1], "No.<|im_end|>");
    // The name of a token in an argument is text: four turns and the tools have five ends.
    let ends = made.ids.iter().filter(|&&id| id == 3).count();
    assert_eq!(ends, 5);
    assert!(
        tokenizer
            .decode(&made.ids, false)
            .starts_with("<|im_start|>system\n[{")
    );
    assert_eq!(
        made.ids,
        tokenizer
            .encode_conversation(&conversation, false, UNIX_EPOCH)
            .unwrap()
    );
}

#[test]
fn trained_tokenizers_can_hold_a_conversation_that_is_learnt() {
    check(
        &TRAINED,
        &[
            Message::new("user", "Hi"),
            Message::new("assistant", "Hello."),
        ],
    );
}
