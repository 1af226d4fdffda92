#!/usr/bin/env python3
"""OpenAI's own Python client against `russet serve`: chat, responses, embeddings, streams, tools, schemas, log-probabilities, errors.

    cargo build && python3 bench/peers/openai_sdk.py [--russet target/debug/russet] [--model DIR] [--url http://127.0.0.1:8000]

Needs the package `openai`; without it this says so and ends with 77. Without --model the model of golden/stories260K is converted
and served on a free port; --url takes a server that runs already. Each check prints a line; the first that fails ends with 1.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile

try:
    import openai
except ImportError:
    print("the package `openai` is not installed; pip install openai")
    sys.exit(77)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"nothing was refused; {kind.__name__} was wanted")


HELLO = [{"role": "user", "content": "Tell me a tale."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@check
def models_are_listed(client, model):
    models = client.models.list().data
    assert model in [one.id for one in models]
    assert client.models.retrieve(model).id == model


@check
def a_chat_is_answered(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, max_completion_tokens=20, seed=1, temperature=0.5)
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    several = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]


@check
def a_stream_says_the_same(client, model):
    fields = dict(model=model, messages=HELLO, max_completion_tokens=40, seed=3)
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


@check
def the_streaming_helper_gathers_it(client, model):
    helper = getattr(client.chat.completions, "stream", None) or client.beta.chat.completions.stream
    # The helper takes an answer that was cut short for an error.
    form = {"structured_outputs": {"regex": "[a-z]{6}"}}
    with helper(model=model, messages=HELLO, seed=4, extra_body=form) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds and final.choices[0].message.content


@check
def log_probabilities_come_with_tokens(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, max_completion_tokens=5, logprobs=True, top_logprobs=2, seed=1)
    scored = answer.choices[0].logprobs.content
    assert len(scored) == answer.usage.completion_tokens or answer.choices[0].finish_reason == "stop"
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in scored)
    legacy = client.completions.create(model=model, prompt="Once upon a time", max_tokens=3, echo=True, logprobs=1)
    logprobs = legacy.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and len(logprobs.tokens) == len(logprobs.text_offset)
    assert legacy.choices[0].text.startswith("Once upon a time")


@check
def a_schema_is_kept(client, model):
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["fox", "hen"]}, "legs": {"enum": [2, 4]}},
        "required": ["animal", "legs"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "animal", "strict": True, "schema": schema}}
    answer = client.chat.completions.create(model=model, messages=HELLO, response_format=form, max_completion_tokens=200, temperature=0.2, seed=2)
    if answer.choices[0].finish_reason == "stop":
        said = json.loads(answer.choices[0].message.content)
        assert said["animal"] in ("fox", "hen") and said["legs"] in (2, 4)
    regex = client.chat.completions.create(model=model, messages=HELLO, extra_body={"structured_outputs": {"regex": "[0-9]{4}"}})
    assert len(regex.choices[0].message.content) == 4 and regex.choices[0].message.content.isdigit()


@check
def tools_are_called(client, model):
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, end in [(named, "stop"), ("required", "tool_calls")]:
        fields = dict(model=model, messages=HELLO, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, seed=5)
        whole = client.chat.completions.create(**fields)
        call = whole.choices[0].message.tool_calls[0]
        assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Bern", "Oslo")
        assert whole.choices[0].finish_reason == end
        name, arguments = "", ""
        for chunk in client.chat.completions.create(**fields, stream=True):
            for delta in chunk.choices[0].delta.tool_calls or []:
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
        assert (name, arguments) == (call.function.name, call.function.arguments)
    history = HELLO + [whole.choices[0].message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "0"}]
    assert client.chat.completions.create(model=model, messages=history, tools=[WEATHER], max_completion_tokens=4).choices


@check
def stop_strings_stop(client, model):
    whole = client.completions.create(model=model, prompt="Once upon a time", max_tokens=60, seed=1).choices[0].text
    stop = whole[10:13]
    text = client.completions.create(model=model, prompt="Once upon a time", max_tokens=60, seed=1, stop=stop).choices[0].text
    assert text == whole[: whole.index(stop)]


@check
def a_response_says_what_a_chat_says(client, model):
    text = HELLO[0]["content"]
    chat = client.chat.completions.create(model=model, messages=HELLO, max_completion_tokens=30, temperature=0)
    fields = dict(model=model, input=text, max_output_tokens=30, temperature=0)
    whole = client.responses.create(**fields)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.usage.output_tokens == chat.usage.completion_tokens and whole.usage.input_tokens == chat.usage.prompt_tokens
    assert whole.status == ("completed" if chat.choices[0].finish_reason == "stop" else "incomplete")
    events = list(client.responses.create(**fields, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == f"response.{whole.status}"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    with client.responses.stream(**fields) as stream:
        for event in stream:
            pass
    assert event.response.output_text == whole.output_text


@check
def a_response_calls_tools_and_keeps_forms(client, model):
    tool = {"type": "function", "strict": True, **WEATHER["function"]}
    fields = dict(model=model, tools=[tool], tool_choice={"type": "function", "name": "weather"}, temperature=0)
    whole = client.responses.create(input=HELLO, **fields)
    call = whole.output[0]
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Bern", "Oslo")
    with client.responses.stream(input=HELLO, **fields) as stream:
        final = stream.get_final_response()
    assert (final.output[0].name, final.output[0].arguments) == (call.name, call.arguments)
    # The items of a response go back as they came.
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    items = HELLO + [item.model_dump(exclude_none=True) for item in whole.output] + [result]
    answer = client.responses.create(model=model, input=items, tools=[tool], tool_choice="none", max_output_tokens=8)
    items += [item.model_dump(exclude_none=True) for item in answer.output] + HELLO
    assert client.responses.create(model=model, input=items, max_output_tokens=4).output
    schema = {"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"], "additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "animal", "strict": True, "schema": schema}}
    answer = client.responses.create(model=model, input=HELLO, text=form, max_output_tokens=200, temperature=0)
    if answer.status == "completed":
        assert json.loads(answer.output_text)["legs"] in (2, 4)
    error = refused(openai.BadRequestError, lambda: client.responses.create(model=model, input="a", previous_response_id="resp_1"))
    assert error.param == "previous_response_id"


@check
def texts_are_embedded(client, model):
    texts = ["Once upon a time there was a fox.", "A hen slept."]
    # The client asks for base64 where nothing is said, and unpacks it.
    packed = client.embeddings.create(model=model, input=texts)
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data):
        assert all(abs(a - b) < 1e-6 for a, b in zip(one.embedding, other.embedding, strict=True))
        assert abs(sum(value * value for value in one.embedding) - 1) < 1e-5
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 0
    alone = client.embeddings.create(model=model, input=texts[1], encoding_format="float")
    assert alone.data[0].embedding == plain.data[1].embedding
    error = refused(openai.BadRequestError, lambda: client.embeddings.create(model=model, input="a", dimensions=2))
    assert error.param == "dimensions"


@check
def refusals_have_their_classes(client, model):
    create = client.chat.completions.create
    error = refused(openai.BadRequestError, lambda: create(model=model, messages=HELLO, temperature=9))
    assert error.param == "temperature" and error.type == "invalid_request_error"
    error = refused(openai.BadRequestError, lambda: create(model=model, messages=HELLO, reasoning_effort="high"))
    assert error.code == "unsupported_parameter" and "reasoning_effort" in str(error)
    error = refused(openai.NotFoundError, lambda: create(model="no such model", messages=HELLO))
    assert error.code == "model_not_found"
    refused(openai.BadRequestError, lambda: create(model=model, messages=[{"role": "user", "content": "fox " * 9999}]))


def served(russet, model, folder):
    """Starts a server; its process, address and model's name."""
    if model is None:
        model = os.path.join(folder, "stories260K")
        source = os.path.join(ROOT, "golden", "stories260K", "stories260K.bin")
        subprocess.run([russet, "convert", "--from", "llama2c", "--to", "hf", "--in", source, "--out", model], check=True, capture_output=True)
    command = [russet, "--json", "serve", "--model", model, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{' '.join(command)} ended at once")
    said = json.loads(line)
    return process, said["url"], said["model"]


def main():
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
    parser = argparse.ArgumentParser()
    parser.add_argument("--russet", default=os.path.join(target, "debug", "russet"))
    parser.add_argument("--model")
    parser.add_argument("--url")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process = None
        if options.url:
            url, model = options.url, None
        else:
            process, url, model = served(options.russet, options.model, folder)
        try:
            client = openai.OpenAI(base_url=url + "/v1", api_key=os.environ.get("RUSSET_KEY", "none"), max_retries=0)
            model = model or client.models.list().data[0].id
            for one in CHECKS:
                one(client, model)
                print(f"ok    {one.__name__.replace('_', ' ')}", flush=True)
        finally:
            if process:
                process.send_signal(signal.SIGTERM)
                code = process.wait(timeout=60)
        if process and code:
            sys.exit(f"the server ended with {code}")
    print(f"openai {openai.__version__}: {len(CHECKS)} checks passed")


if __name__ == "__main__":
    main()
