# SPDX-License-Identifier: Apache-2.0
"""POST /v1/chat/completions by the official client: messages, tools, shapes of answers."""
import json
import re

import jsonschema
import pytest

from conftest import NAME

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"], "additionalProperties": False}}}
TIME = {"type": "function", "function": {
    "name": "get_time", "parameters": {"type": "object", "properties": {
        "zone": {"type": "string", "maxLength": 20}}, "required": ["zone"],
        "additionalProperties": False}}}
PERSON = {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0,
                                                          "maximum": 99}},
    "required": ["name", "age"], "additionalProperties": False}


def chat(client, messages=QUESTION, **more):
    return client.chat.completions.create(**{"model": NAME, "messages": messages, "temperature": 0,
                                             "max_tokens": 32, **more})


def joined(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_an_answer_is_a_message(client):
    answer = chat(client)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    message = answer.choices[0].message
    assert message.role == "assistant" and message.content
    assert not message.tool_calls and answer.choices[0].finish_reason in ("stop", "length")


def test_a_stream_begins_with_the_role(client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert all(c.object == "chat.completion.chunk" for c in chunks)
    assert joined(chunks) == chat(client).choices[0].message.content
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage.total_tokens > 0


def test_prompts_are_rendered_as_the_reference_renders_them(http, vectors):
    for case in vectors["chat_template"]["cases"]:
        body = {"model": NAME, "messages": case["messages"],
                "add_generation_prompt": case["add_generation_prompt"]}
        assert http.post("/tokenize", json=body).json()["tokens"] == case["ids"]
        rendered = http.post("/v1/chat/completions/render", json=body).json()
        assert rendered["token_ids"] == case["ids"]


def test_an_answer_that_ends_by_itself_stops(client):
    """The end token is counted, and not shown."""
    messages = [{"role": "user", "content": "Hi"}]
    choice = chat(client, messages, max_tokens=200, extra_body={"return_token_ids": True}).choices[0]
    assert choice.finish_reason == "stop" and choice.stop_reason is None
    assert choice.token_ids[-1] == 2 and "<|im_end|>" not in choice.message.content


def test_content_comes_as_text_or_parts(client):
    parts = [{"role": "developer", "content": "Be brief."},
             {"role": "user", "content": [{"type": "text", "text": "What is the capital"},
                                          {"type": "text", "text": "of France?"}]}]
    texts = [{"role": "system", "content": "Be brief."},
             {"role": "user", "content": "What is the capital\nof France?"}]
    assert chat(client, parts).choices[0].message == chat(client, texts).choices[0].message


def test_a_message_can_be_continued(client):
    messages = QUESTION + [{"role": "assistant", "content": "The capital of France is"}]
    answer = chat(client, messages, max_tokens=4, extra_body={
        "continue_final_message": True, "add_generation_prompt": False, "return_token_ids": True})
    assert answer.choices[0].message.content.startswith(" Paris")


def test_logprobs_are_listed_by_token(client):
    choice = chat(client, max_tokens=5, logprobs=True, top_logprobs=2).choices[0]
    assert len(choice.logprobs.content) == 5
    for entry in choice.logprobs.content:
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
        assert [t.token for t in entry.top_logprobs][0] == entry.token
        assert len(entry.top_logprobs) == 2
    chunks = chat(client, max_tokens=5, logprobs=True, top_logprobs=2, stream=True)
    streamed = [e.token for c in chunks if c.choices[0].logprobs
                for e in c.choices[0].logprobs.content]
    assert streamed == [e.token for e in choice.logprobs.content]


def test_max_completion_tokens_wins(client):
    answer = chat(client, max_tokens=5, max_completion_tokens=3,
                  messages=[{"role": "user", "content": "Tell me a long story."}])
    assert answer.usage.completion_tokens == 3 and answer.choices[0].finish_reason == "length"


# ---- tools ---------------------------------------------------------------------------------------


def check_call(call):
    schema = {"get_weather": WEATHER, "get_time": TIME}[call.function.name]
    jsonschema.validate(json.loads(call.function.arguments), schema["function"]["parameters"])
    assert call.id.startswith("chatcmpl-tool-") and call.type == "function"


def test_a_named_tool_gets_valid_arguments(client):
    choice = chat(client, tools=[WEATHER, TIME], max_tokens=100, tool_choice={
        "type": "function", "function": {"name": "get_weather"}}).choices[0]
    assert [c.function.name for c in choice.message.tool_calls] == ["get_weather"]
    check_call(choice.message.tool_calls[0])
    assert choice.message.content is None


@pytest.mark.parametrize("seed", range(3))
def test_a_required_tool_is_called(client, seed):
    choice = chat(client, tools=[WEATHER, TIME], tool_choice="required", max_tokens=200,
                  temperature=1, seed=seed, parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls" and len(choice.message.tool_calls) == 1
    check_call(choice.message.tool_calls[0])


@pytest.mark.parametrize("tool_choice", [
    "required", {"type": "function", "function": {"name": "get_time"}}])
def test_streamed_calls_are_the_whole_ones(client, tool_choice):
    arguments = {"tools": [WEATHER, TIME], "tool_choice": tool_choice, "max_tokens": 200,
                 "parallel_tool_calls": False}
    whole = chat(client, **arguments).choices[0].message.tool_calls
    name, text = None, ""
    for chunk in chat(client, stream=True, **arguments):
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.index == 0
            name = call.function.name or name
            text += call.function.arguments or ""
    assert (name, text) == (whole[0].function.name, whole[0].function.arguments)


ARGUMENTS = r'\{"city": "[A-Za-z }]{8,40}", "days": \[[1-9], [1-9]\]\}'
WRITTEN = {
    "hermes": r'(<tool_call>\{"name": "f", "arguments": ' + ARGUMENTS + r"\}</tool_call>\n){2}",
    "llama3_json": r'\{"name": "f", "parameters": ' + ARGUMENTS + r"\}",
    "mistral": r'\[TOOL_CALLS\]\[\{"name": "f", "arguments": ' + ARGUMENTS + r"\}\]",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n" + ARGUMENTS +
                   "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
}


@pytest.mark.parametrize("parser", WRITTEN)
def test_arguments_stream_while_the_model_writes_them(start_server, parser):
    # The model is too small to call by itself: a regex has it write what larger ones do.
    client = start_server("--tool-call-parser", parser, "--max-model-len", "1024").openai()
    arguments = {"tools": [WEATHER], "temperature": 1, "seed": 4, "max_tokens": 200,
                 "extra_body": {"structured_outputs": {"regex": WRITTEN[parser]}}}
    whole = chat(client, **arguments).choices[0]
    assert whole.finish_reason == "tool_calls" and not (whole.message.content or "").strip()
    calls, reason = [], None
    for chunk in chat(client, stream=True, **arguments):
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.index == len(calls):
                assert call.id and call.type == "function" and call.function.name == "f"
                calls.append([])
            else:
                assert (call.index, call.id, call.function.name) == (len(calls) - 1, None, None)
            calls[-1].append(call.function.arguments)
        reason = chunk.choices[0].finish_reason or reason
    assert reason == "tool_calls"
    assert ["".join(pieces) for pieces in calls] == [call.function.arguments
                                                     for call in whole.message.tool_calls]
    for pieces in calls:
        assert len(pieces) > 5, pieces
        assert set(json.loads("".join(pieces))) == {"city", "days"}


def test_tools_may_stay_unused(client):
    for choice in ("auto", "none"):
        answer = chat(client, tools=[WEATHER], tool_choice=choice)
        assert answer.choices[0].message.content


def test_a_conversation_with_calls_is_taken(client):
    messages = QUESTION + [
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function",
             "function": {"name": "get_weather", "arguments": '{"city": "Paris", "unit": "C"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "It rains."}]
    assert chat(client, messages, tools=[WEATHER]).choices[0].message.content


# ---- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_follows_a_schema(client, seed):
    answer = chat(client, max_tokens=100, temperature=1, seed=seed, response_format={
        "type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}})
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content), PERSON)


def test_an_answer_is_a_json_object(client):
    messages = [{"role": "user", "content": 'Write {"a": 1} and nothing else.'}]
    answer = chat(client, messages, max_tokens=200, response_format={"type": "json_object"})
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")


def test_regex_choice_grammar_and_schema_shape_completions(client):
    def run(**constraint):
        return client.completions.create(model=NAME, prompt="Answer:", max_tokens=120, temperature=1,
                                         seed=1, extra_body={"structured_outputs": constraint}
                                         ).choices[0].text
    assert re.fullmatch(r"\d{3}-\d{4}", run(regex=r"\d{3}-\d{4}"))
    assert run(choice=["yes", "no", "perhaps"]) in ("yes", "no", "perhaps")
    jsonschema.validate(json.loads(run(json=PERSON)), PERSON)
    assert run(grammar='start: "a" ("b" | "c")+ "d"')[0] == "a"


@pytest.mark.parametrize("shape", [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}},
    {"structured_outputs": {"json": PERSON}}])
@pytest.mark.parametrize("options", [{"disable_any_whitespace": True}, {"whitespace_pattern": ""}])
def test_an_answer_without_blanks_has_none(client, shape, options):
    more = {**shape, "structured_outputs": {**shape.get("structured_outputs", {}), **options}}
    answer = chat(client, max_tokens=100, temperature=1, seed=3, extra_body=more)
    text = answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False), text


def test_only_listed_properties_come_when_others_are_disabled(client):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}}
    answer = chat(client, [{"role": "user", "content": 'Say {"name": "x", "age": 3}.'}], max_tokens=60,
                  extra_body={"structured_outputs": {"json": schema,
                                                     "disable_additional_properties": True,
                                                     "whitespace_pattern": "[ ]?"}})
    assert set(json.loads(answer.choices[0].message.content)) <= {"a"}


def test_seeds_repeat_constrained_answers(client):
    def run():
        return chat(client, max_tokens=100, temperature=1, seed=5, response_format={
            "type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}
        ).choices[0].message.content
    assert run() == run()
