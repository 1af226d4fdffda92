//! A request's body, as each endpoint that asks the engine reads it: the first byte chooses which.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::seed;
use russet_serve::read_body;

const PATHS: [&str; 4] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
];

fuzz_target!(
    init: {
        for (name, body) in [
            ("chat", r#"0{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "stop": ["a"], "n": 2,
                "tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}}], "logit_bias": {"5": 1}}"#),
            ("completion", r#"1{"model": "m", "prompt": [[1, 2], [3]], "echo": true, "logprobs": 2, "max_tokens": 0, "stream": true}"#),
            ("response", r#"2{"model": "m", "instructions": "i", "input": [{"role": "user", "content": "a"},
                {"type": "function_call", "call_id": "1", "name": "a", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "x"}]}],
                "tools": [{"type": "function", "name": "a"}], "text": {"format": {"type": "text"}}}"#),
            ("embedding", r#"3{"model": "m", "input": ["a", [1, 2]], "encoding_format": "base64", "dimensions": 32}"#),
        ] {
            let body = body.as_bytes();
            assert!(read_body(PATHS[usize::from(body[0] - b'0')], &body[1..]).is_ok(), "the seed {name} is a body");
            seed("request_body", name, body);
        }
    },
    |data: &[u8]| {
        let Some((first, body)) = data.split_first() else { return };
        let _ = read_body(PATHS[usize::from(first % 4)], body);
    }
);
