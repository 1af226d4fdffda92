//! Chat templates: a conversation to the text, and the tokens, that a model was tuned on.
//!
//! A template is Jinja, as Hugging Face writes it: the environment here follows `apply_chat_template` (block
//! trimming, `raise_exception`, `strftime_now`, `tojson` as Python's `json.dumps`, Python's methods on
//! strings and lists, `None`/`True`/`False` as Python prints them). A template is somebody else's program,
//! so it runs on fuel: steps, memory and output are bounded, and what goes wrong is a sentence.
//!
//! Template text and message text must not be mixed up: `<|im_end|>` typed by a user is ten characters,
//! not the end of a message; nor is it in a role, which may come from outside as well. [`encode`] renders with
//! each special token's name inside a message or a role replaced by a private-use character that occurs nowhere
//! else, cuts the result at the special tokens that are left (the template's own), puts the names back, and
//! encodes the parts between as plain text. A conversation that names no special token takes the direct way:
//! render, then encode with special tokens parsed.
//!
//! A [`Conversation`] has what templates know beyond roles and texts: tools, calls of them and their results, as
//! Hugging Face passes them. Every string in it is as little to be trusted as a message's.
//!
//! Left out: documents and images (`documents` is none in every template).

use std::collections::BTreeSet;
use std::io;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{OffsetReferential, OffsetType};

use crate::clock::strftime;
use crate::error::{Result, TokenizerError};
use crate::tokenizer::{SpecialNames, SpecialTokens, Tokenizer};

/// ChatML: `<|im_start|>role`, a line end, the content, `<|im_end|>`, a line end.
pub const CHATML: &str = "\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
";

/// [`CHATML`] for models that call tools, in the form of Hermes and Qwen: without tools it renders the same. What a model says
/// between `<tool_call>` and `</tool_call>` is an object with a `name` and `arguments`; a `tool` message is its result.
pub const CHATML_TOOLS: &str = "\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages and messages[0].role == 'system' %}
{{- messages[0].content + '\\n\\n' }}
{%- endif %}
{{- '# Tools\\n\\nYou may call functions. They are, each as a JSON object:\\n<tools>' }}
{%- for tool in tools %}
{{- '\\n' + (tool | tojson) }}
{%- endfor %}
{{- '\\n</tools>\\n\\nFor each call write the name and the arguments as JSON:\\n<tool_call>\\n{\"name\": \"NAME\", \"arguments\": {}}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{%- if message.content or not loop.first %}
{{- '\\n' }}
{%- endif %}
{{- '<tool_call>\\n{\"name\": ' + (call.function.name | tojson) + ', \"arguments\": ' + (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
";

/// The largest published templates have about 20 KiB.
const LARGEST_TEMPLATE: usize = 256 << 10;
/// One fuel is one step or 64 bytes made; the heaviest published template needs about 200 per message.
const FUEL: u64 = 1_000_000;
/// Bytes a template may print beyond eight times its messages.
const OUTPUT: usize = 1 << 20;
/// Calls within calls (macros, recursive loops). Far below what a 2 MiB thread stack holds.
const RECURSION: usize = 64;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn by `role` saying `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// Turns with whatever further keys a template knows, and the tools that may be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// Objects with a `role` and a `content` (a text, or null beside `tool_calls`); `tool_calls` holds objects
    /// `{"type": "function", "id", "function": {"name", "arguments"}}`, the arguments an object, not its text.
    pub messages: Vec<serde_json::Value>,
    /// Objects `{"type": "function", "function": {"name", "description", "parameters"}}`; none: nothing can be called.
    pub tools: Vec<serde_json::Value>,
}

impl From<&[Message]> for Conversation {
    fn from(messages: &[Message]) -> Conversation {
        let turn = |m: &Message| serde_json::json!({"role": m.role, "content": m.content});
        Conversation {
            messages: messages.iter().map(turn).collect(),
            tools: Vec::new(),
        }
    }
}

impl Conversation {
    /// Shows every text in it, keys among them.
    fn visit<'a>(&'a self, seen: &mut dyn FnMut(&'a str)) {
        fn visit<'a>(value: &'a serde_json::Value, seen: &mut dyn FnMut(&'a str)) {
            match value {
                serde_json::Value::String(text) => seen(text),
                serde_json::Value::Array(values) => values.iter().for_each(|v| visit(v, seen)),
                serde_json::Value::Object(fields) => fields.iter().for_each(|(key, value)| {
                    seen(key);
                    visit(value, seen);
                }),
                _ => {}
            }
        }
        let all = self.messages.iter().chain(&self.tools);
        all.for_each(|value| visit(value, seen));
    }

    /// The same with every text changed.
    fn map(&self, change: &dyn Fn(&str) -> String) -> Conversation {
        fn map(value: &serde_json::Value, change: &dyn Fn(&str) -> String) -> serde_json::Value {
            match value {
                serde_json::Value::String(text) => change(text).into(),
                serde_json::Value::Array(values) => {
                    values.iter().map(|value| map(value, change)).collect()
                }
                serde_json::Value::Object(fields) => {
                    let fields = fields.iter();
                    let changed = fields.map(|(key, value)| (change(key), map(value, change)));
                    serde_json::Value::Object(changed.collect())
                }
                other => other.clone(),
            }
        }
        let all = |values: &[serde_json::Value]| values.iter().map(|v| map(v, change)).collect();
        Conversation {
            messages: all(&self.messages),
            tools: all(&self.tools),
        }
    }

    /// Bytes of all its texts.
    fn length(&self) -> usize {
        let mut length = 0;
        self.visit(&mut |text| length += text.len());
        length
    }

    /// Whether any text has `special` in it.
    fn names(&self, special: &str) -> bool {
        let mut found = false;
        self.visit(&mut |text| found |= text.contains(special));
        found
    }
}

/// A chat template, checked once and rendered often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    source: String,
    names: SpecialNames,
}

impl ChatTemplate {
    /// Take a Jinja template. It must parse; the error says where it does not.
    pub fn new(source: impl Into<String>) -> Result<Self> {
        Self::with_names(source.into(), &SpecialNames::default())
    }

    /// The template of the tokenizers trained here.
    pub fn chatml() -> Self {
        Self {
            source: CHATML.to_string(),
            names: SpecialNames::default(),
        }
    }

    /// A template that may speak of `bos_token` and its like.
    pub(crate) fn with_names(source: String, names: &SpecialNames) -> Result<Self> {
        if source.len() > LARGEST_TEMPLATE {
            return Err(TokenizerError::Chat(format!(
                "it has {} KiB; templates may have {} KiB",
                source.len() >> 10,
                LARGEST_TEMPLATE >> 10
            )));
        }
        let template = Self {
            source,
            names: names.clone(),
        };
        let program = template.program();
        environment(SystemTime::UNIX_EPOCH, 0)
            .template_from_str(&program)
            .map_err(sentence)?;
        Ok(template)
    }

    /// The Jinja text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Render a conversation; `add_generation_prompt` opens the assistant's next turn.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_at(messages, add_generation_prompt, SystemTime::now())
    }

    /// [`ChatTemplate::render`] at a given time, for templates that print the date (in UTC).
    pub fn render_at(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String> {
        self.render_conversation_at(&messages.into(), add_generation_prompt, now)
    }

    /// Render a conversation with its tools; see [`ChatTemplate::render`].
    pub fn render_conversation(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.render_conversation_at(conversation, add_generation_prompt, SystemTime::now())
    }

    fn render_conversation_at(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String> {
        let length = conversation.length();
        let environment = environment(now, length);
        let program = self.program();
        let template = environment.template_from_str(&program).map_err(sentence)?;
        let name = |name: &Option<String>| name.as_deref().map_or(Value::UNDEFINED, Value::from);
        let tools = match conversation.tools.is_empty() {
            true => Value::from(()),
            false => Value::from(Serde(&conversation.tools)),
        };
        let context = context! {
            messages => Value::from(Serde(&conversation.messages)),
            add_generation_prompt => add_generation_prompt,
            tools => tools,
            documents => Value::from(()),
            bos_token => name(&self.names.bos),
            eos_token => name(&self.names.eos),
            pad_token => name(&self.names.pad),
            unk_token => name(&self.names.unk),
        };
        let mut out = Bounded {
            bytes: Vec::new(),
            left: OUTPUT + 8 * length,
            full: false,
        };
        let rendered = template.render_captured_to(context, &mut out).map(|_| ());
        if out.full {
            return Err(TokenizerError::Chat(format!(
                "it printed more than {} KiB for this conversation and was stopped",
                (OUTPUT + 8 * length) >> 10
            )));
        }
        rendered.map_err(sentence)?;
        String::from_utf8(out.bytes)
            .map_err(|_| TokenizerError::Chat("it printed bytes that are not UTF-8".to_string()))
    }

    /// The source with the marks of assistant text, `{% generation %}`, as blocks that do nothing.
    fn program(&self) -> String {
        if !self.source.contains("generation") {
            return self.source.clone();
        }
        let mut program = String::with_capacity(self.source.len());
        let mut rest = self.source.as_str();
        while let Some(at) = rest.find("{%") {
            let (before, tag) = rest.split_at(at);
            program.push_str(before);
            let Some(end) = tag.find("%}") else {
                rest = tag;
                break;
            };
            let (tag, after) = tag.split_at(end + 2);
            let inside = tag[2..tag.len() - 2].trim_matches(['-', '+', ' ', '\n', '\t']);
            match inside {
                "generation" => program.push_str(&tag.replacen("generation", "if true", 1)),
                "endgeneration" => program.push_str(&tag.replacen("endgeneration", "endif", 1)),
                _ => program.push_str(tag),
            }
            rest = after;
        }
        program.push_str(rest);
        program
    }
}

/// Render and encode; see the module's text for how a message cannot forge a special token.
pub(crate) fn encode(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    conversation: &Conversation,
    add_generation_prompt: bool,
) -> Result<Vec<u32>> {
    let named: Vec<&str> = tokenizer
        .specials()
        .map(|(_, name)| name)
        .filter(|name| !name.is_empty() && conversation.names(name))
        .collect();
    if named.is_empty() {
        let text = template.render_conversation(conversation, add_generation_prompt)?;
        return tokenizer.encode_with(&text, false, SpecialTokens::Parse);
    }
    let masks = Masks::new(&named, conversation, template.source());
    let masked = conversation.map(&|text| masks.hide(text));
    let text = template.render_conversation(&masked, add_generation_prompt)?;
    let mut ids = Vec::new();
    let split = tokenizer
        .parsing()
        .get_added_vocabulary()
        .extract_and_normalize::<NormalizerWrapper>(None, &text);
    for (part, _, tokens) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
        match tokens {
            Some(tokens) => ids.extend(tokens.iter().map(|t| t.id)),
            None => ids.extend(tokenizer.encode(&masks.show(part), false)?),
        }
    }
    Ok(ids)
}

/// One private-use character for each special token that a message or a role names.
struct Masks<'a> {
    /// Longest name first, so that a name within a name does not break it.
    pairs: Vec<(&'a str, char)>,
}

impl<'a> Masks<'a> {
    fn new(named: &[&'a str], conversation: &Conversation, template: &str) -> Self {
        let mut used: BTreeSet<char> = template.chars().collect();
        conversation.visit(&mut |text| used.extend(text.chars()));
        // 131,068 private-use characters of planes 15 and 16; a text cannot use them up within its bound.
        let free = ('\u{f0000}'..='\u{ffffd}')
            .chain('\u{100000}'..='\u{10fffd}')
            .filter(|c| !used.contains(c));
        let mut names = named.to_vec();
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        Self {
            pairs: names.into_iter().zip(free).collect(),
        }
    }

    fn hide(&self, text: &str) -> String {
        let mut text = text.to_string();
        for (name, mask) in &self.pairs {
            text = text.replace(name, mask.encode_utf8(&mut [0; 4]));
        }
        text
    }

    fn show(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            match self.pairs.iter().find(|(_, mask)| *mask == c) {
                Some((name, _)) => out.push_str(name),
                None => out.push(c),
            }
        }
        out
    }
}

/// Jinja as `apply_chat_template` sets it up, on fuel. `length` is the bytes of the conversation.
fn environment(now: SystemTime, length: usize) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the usual delimiters"),
    );
    environment.set_fuel(Some(FUEL + length as u64));
    environment.set_recursion_limit(RECURSION);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(|state, value, method, args| {
        match (value.as_str(), method, args) {
            // pycompat's own splits at blanks only.
            (Some(text), "title", []) => Ok(Value::from(title(text))),
            _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
        }
    });
    environment.set_formatter(|out, state, value| {
        if value.is_none() {
            return out.write_str("None").map_err(Error::from);
        }
        match bool::try_from(value.clone()) {
            Ok(yes) if value.kind() == minijinja::value::ValueKind::Bool => out
                .write_str(if yes { "True" } else { "False" })
                .map_err(Error::from),
            _ => minijinja::escape_formatter(out, state, value),
        }
    });
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("{RAISED}{message}"),
            ))
        },
    );
    environment.add_function(
        "strftime_now",
        move |format: String| -> Result<String, Error> {
            strftime(&format, now).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
        },
    );
    environment.add_filter("tojson", tojson);
    environment
}

/// Python's `str.title`: each run of letters with a capital first and the rest small.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

/// Marks an error that the template itself raised.
const RAISED: &str = "\u{1}";

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn tojson(value: Value, kwargs: minijinja::value::Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut bytes = Vec::new();
    let failed =
        |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}"));
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
            value.serialize(&mut serializer).map_err(failed)?;
        }
        None => {
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, PythonStyle);
            value.serialize(&mut serializer).map_err(failed)?;
        }
    }
    let text = String::from_utf8(bytes).expect("serde_json writes UTF-8");
    Ok(Value::from_safe_string(text))
}

/// `", "` and `": "`, as Python separates.
struct PythonStyle;

impl serde_json::ser::Formatter for PythonStyle {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// Output with an end.
struct Bounded {
    bytes: Vec<u8>,
    left: usize,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.left {
            self.full = true;
            return Err(io::Error::other("the template printed too much"));
        }
        self.left -= bytes.len();
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An engine error as a sentence for a person.
fn sentence(error: Error) -> TokenizerError {
    let line = error
        .line()
        .map(|l| format!(" (line {l})"))
        .unwrap_or_default();
    let mut text = match error.kind() {
        ErrorKind::OutOfFuel => {
            "it ran too long or made too much for this conversation and was stopped".to_string()
        }
        _ => match error.detail() {
            Some(detail) => match detail.strip_prefix(RAISED) {
                Some(raised) => format!("it refuses this conversation: {raised}"),
                None => format!("{}: {detail}", error.kind()),
            },
            None => error.kind().to_string(),
        },
    };
    let mut cause = std::error::Error::source(&error);
    for _ in 0..4 {
        let Some(inner) = cause else { break };
        text = format!("{text}; {}", inner.to_string().replace(RAISED, ""));
        cause = inner.source();
    }
    TokenizerError::Chat(format!("{text}{line}"))
}
