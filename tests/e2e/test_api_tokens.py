# SPDX-License-Identifier: Apache-2.0
"""Token ids in and out: tokenize, detokenize, render, generate."""
import json

from conftest import NAME


def test_ids_are_the_references(http, vectors):
    for case in vectors["tokenize"]["prompts"] + vectors["tokenize"]["strings"]:
        answer = http.post("/tokenize", json={"model": NAME, "prompt": case["text"]}).json()
        assert answer["tokens"] == case["ids"], case["text"]
        assert answer["count"] == len(case["ids"]) and answer["max_model_len"] == 2048


def test_ids_come_back_as_text(http, vectors):
    for case in vectors["tokenize"]["strings"]:
        if case["roundtrip"]:
            answer = http.post("/detokenize", json={"model": NAME, "tokens": case["ids"]}).json()
            assert answer == {"prompt": case["text"]}


def test_token_strings_are_the_vocabulary_s(http):
    answer = http.post("/tokenize", json={"prompt": "a b", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["a", "Ġb"]


def test_a_rendered_request_generates_what_the_request_would(http):
    body = {"model": NAME, "messages": [{"role": "user", "content": "Name a colour."}],
            "max_tokens": 6, "temperature": 0}
    rendered = http.post("/v1/chat/completions/render", json=body).json()
    assert rendered["sampling_params"]["max_tokens"] == 6
    generated = http.post("/inference/v1/generate", json=rendered).json()
    text = http.post("/detokenize",
                     json={"tokens": generated["choices"][0]["token_ids"]}).json()["prompt"]
    whole = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert text.replace("<|im_end|>", "") == whole
    assert generated["usage"]["prompt_tokens"] == len(rendered["token_ids"])


def test_a_rendered_request_keeps_what_it_asks_of_tokens(http):
    body = {"prompt": [5, 6, 7], "max_tokens": 6, "temperature": 0, "logit_bias": {"42": 100},
            "allowed_token_ids": [41, 42], "prompt_logprobs": 1, "seed": 3}
    asked = http.post("/v1/completions", json={**body, "return_token_ids": True}).json()
    rendered = http.post("/v1/completions/render", json=body).json()[0]
    assert rendered["sampling_params"]["allowed_token_ids"] == [41, 42]
    assert rendered["sampling_params"]["logit_bias"]["42"] == 100
    generated = http.post("/inference/v1/generate", json=rendered).json()
    assert generated["choices"][0]["token_ids"] == asked["choices"][0]["token_ids"] == [42] * 6


def test_prompts_render_one_by_one(http):
    rendered = http.post("/v1/completions/render",
                         json={"model": NAME, "prompt": ["a", [5, 6]]}).json()
    assert [r["token_ids"] for r in rendered] == [[81], [5, 6]] or rendered[1]["token_ids"] == [5, 6]
    assert all(r["sampling_params"]["max_tokens"] == 16 for r in rendered)


def test_generate_streams_ids(http):
    body = {"model": NAME, "token_ids": [504, 3575, 282, 4649, 314], "stream": True,
            "stream_options": {"include_usage": True},
            "sampling_params": {"max_tokens": 5, "temperature": 0, "logprobs": 1}}
    with http.stream("POST", "/inference/v1/generate", json=body) as answer:
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(e) for e in events[:-1]]
    streamed = [i for c in chunks for choice in c["choices"] for i in choice["token_ids"]]
    whole = http.post("/inference/v1/generate", json={**body, "stream": False,
                                                      "stream_options": None}).json()
    assert streamed == whole["choices"][0]["token_ids"] and len(streamed) == 5
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert len(whole["choices"][0]["logprobs"]["content"]) == 5
