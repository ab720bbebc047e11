# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions by the official client."""
import math

import pytest

from conftest import NAME

PROMPT = "The capital of France is"


def complete(client, **more):
    return client.completions.create(**{"model": NAME, "prompt": PROMPT, "temperature": 0,
                                        "max_tokens": 8, **more})


def test_an_answer_has_text_usage_and_a_reason(client):
    answer = complete(client)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert answer.model == NAME
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    details = answer.usage.prompt_tokens_details.to_dict()
    assert details["created_cache_tokens"] is None and details["multimodal_tokens"] is None


def test_max_tokens_is_16_when_not_given(client):
    answer = client.completions.create(model=NAME, prompt=PROMPT, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


def test_greedy_tokens_are_the_reference_where_it_is_certain(client, vectors):
    """The references are float32 results; 8-bit activations may leave them at small margins."""
    for case in vectors["greedy"]["cases"]:
        answer = complete(client, prompt=case["prompt_ids"], max_tokens=48,
                          extra_body={"return_token_ids": True, "ignore_eos": True})
        tokens = answer.choices[0].token_ids
        assert len(tokens) == 48
        assert answer.choices[0].prompt_token_ids == case["prompt_ids"]
        reference = case["f32"]
        for step, token in enumerate(tokens):
            if token != reference["greedy"][step]:
                assert reference["margin"][step] <= 0.6, (case["id"], step)
                break


def test_a_stream_says_what_the_whole_answer_says(client):
    whole = complete(client, max_tokens=24)
    chunks = list(complete(client, max_tokens=24, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks][-1] == "length"
    assert all(c.choices[0].finish_reason is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_usage_comes_last_in_a_stream_that_asks_for_it(client):
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8
    assert all(c.usage is None for c in chunks[:-1])
    chunks = list(complete(client, stream=True, stream_options={
        "include_usage": True, "continuous_usage_stats": True}))
    counts = [c.usage.completion_tokens for c in chunks]
    assert counts == sorted(counts) and counts[-1] == 8


def test_prompts_times_n_come_in_prompt_order(client):
    answer = complete(client, prompt=[PROMPT, "1, 2, 3,"], n=2, temperature=0)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text
    assert answer.choices[2].text == answer.choices[3].text != answer.choices[0].text
    assert answer.usage.completion_tokens == 32


def test_samples_differ_and_a_seed_repeats_them(client):
    first = complete(client, n=4, temperature=1.5, seed=7, max_tokens=16)
    again = complete(client, n=4, temperature=1.5, seed=7, max_tokens=16)
    texts = [c.text for c in first.choices]
    assert texts == [c.text for c in again.choices]
    assert len(set(texts)) > 1


def test_streamed_samples_keep_apart(client):
    whole = complete(client, n=3, temperature=1, seed=11, max_tokens=12)
    texts = {0: "", 1: "", 2: ""}
    for chunk in complete(client, n=3, temperature=1, seed=11, max_tokens=12, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {c.index: c.text for c in whole.choices}


def test_echo_puts_the_prompt_in_front(client):
    assert complete(client, echo=True).choices[0].text.startswith(PROMPT + " Paris")
    alone = complete(client, echo=True, max_tokens=0, logprobs=1)
    assert alone.choices[0].text == PROMPT and alone.usage.completion_tokens == 0
    logprobs = alone.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens) == PROMPT
    chunks = list(complete(client, echo=True, stream=True))
    assert "".join(c.choices[0].text for c in chunks).startswith(PROMPT + " Paris")


def test_text_offsets_count_characters(client):
    prompt = "d\u00e9j\u00e0 vu \u2192 \U0001f600 end"
    choice = complete(client, prompt=prompt, max_tokens=1, echo=True, logprobs=0).choices[0]
    tokens, offsets = choice.logprobs.tokens, choice.logprobs.text_offset
    assert offsets[tokens.index(" end")] == prompt.index(" end")
    assert offsets[-1] == len(prompt)


def test_logprobs_are_those_of_the_tokens(client):
    choice = complete(client, logprobs=3).choices[0]
    assert len(choice.logprobs.tokens) == 8
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset[0] == 0
    for token, value, top in zip(choice.logprobs.tokens, choice.logprobs.token_logprobs,
                                 choice.logprobs.top_logprobs):
        assert len(top) in (3, 4)
        assert math.isclose(top[token], value) and value == max(top.values())
    chunks = list(complete(client, logprobs=3, stream=True))
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.tokens]
    assert streamed == choice.logprobs.tokens


def test_tokens_can_be_written_as_ids(client):
    answer = complete(client, logprobs=0, extra_body={"return_tokens_as_token_ids": True,
                                                      "return_token_ids": True}).choices[0]
    assert answer.logprobs.tokens == [f"token_id:{i}" for i in answer.token_ids]


def test_prompt_logprobs_have_an_entry_a_token(client):
    choice = complete(client, extra_body={"prompt_logprobs": 2, "return_token_ids": True}).choices[0]
    assert choice.prompt_logprobs[0] is None
    for token, entry in list(zip(choice.prompt_token_ids, choice.prompt_logprobs))[1:]:
        assert entry[str(token)]["logprob"] <= 0 and entry[str(token)]["rank"] >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(client, stream):
    def run(**more):
        answer = complete(client, prompt="1, 2, 3, 4,", max_tokens=40, stop=["7", "zzz"],
                          stream=stream, **more)
        if not stream:
            return answer.choices[0].text, answer.choices[0]
        chunks = list(answer)
        return "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0]
    text, last = run()
    assert text == " 5, 6, " and last.finish_reason == "stop" and last.stop_reason == "7"
    text, last = run(extra_body={"include_stop_str_in_output": True})
    assert text == " 5, 6, 7"


def test_a_stop_token_id_is_named_and_not_shown(client, vectors):
    case = next(c for c in vectors["greedy"]["cases"] if c["id"] == "s01_short")
    stop = case["f32"]["greedy"][1]
    choice = complete(client, prompt=case["prompt_ids"], max_tokens=20,
                      extra_body={"stop_token_ids": [stop], "return_token_ids": True}).choices[0]
    assert choice.finish_reason == "stop" and choice.stop_reason == stop
    assert choice.token_ids[-1] == stop and len(choice.token_ids) == 2


def test_bias_allowed_and_bad_words_steer(client, http):
    paris = http.post("/tokenize", json={"prompt": " Paris"}).json()["tokens"][0]
    assert " Paris" not in complete(client, logit_bias={str(paris): -100}).choices[0].text[:6]
    answer = complete(client, max_tokens=4, extra_body={"allowed_token_ids": [paris]})
    assert answer.choices[0].text == " Paris" * 4
    assert "Paris" not in complete(client, extra_body={"bad_words": ["Paris"]}).choices[0].text


def test_min_tokens_holds_the_end_back(client):
    answer = complete(client, prompt="<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n",
                      max_tokens=60, extra_body={"min_tokens": 60})
    assert answer.usage.completion_tokens == 60


def test_a_long_prompt_can_be_cut(client):
    def cut(side):
        return complete(client, prompt=list(range(100, 4100)), max_tokens=1, extra_body={
            "truncate_prompt_tokens": 64, "truncation_side": side, "return_token_ids": True}
            ).choices[0].prompt_token_ids
    assert cut("left") == list(range(4036, 4100)) and cut("right") == list(range(100, 164))
    answer = complete(client, prompt="word " * 3000, max_tokens=8,
                      extra_body={"truncate_prompt_tokens": -1})
    assert answer.usage.prompt_tokens == 2040


def test_equal_beginnings_are_cached_and_salts_keep_apart(client):
    prompt = "A shared beginning that fills several blocks of the cache. " * 10
    complete(client, prompt=prompt)
    again = complete(client, prompt=prompt)
    assert again.usage.prompt_tokens_details.cached_tokens >= 64
    salted = complete(client, prompt=prompt, extra_body={"cache_salt": "mine"})
    assert salted.usage.prompt_tokens_details.cached_tokens == 0
    assert salted.choices[0].text == again.choices[0].text


def test_unknown_fields_and_nulls_are_no_errors(http):
    answer = http.post("/v1/completions", json={
        "model": NAME, "prompt": PROMPT, "max_tokens": 2, "temperature": None, "stop": None,
        "best_of": 3, "nonsense": {"a": 1}})
    assert answer.status_code == 200
    body = answer.json()
    assert body["service_tier"] is None and body["kv_transfer_params"] is None
    assert body["choices"][0]["logprobs"] is None


def test_request_ids_are_taken_and_given_back(http):
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 1, "request_id": "of-the-body"}
    answer = http.post("/v1/completions", json=body)
    assert answer.json()["id"] == "cmpl-of-the-body"
    answer = http.post("/v1/completions", json=body, headers={"X-Request-Id": "of-the-header"})
    assert answer.json()["id"] == "cmpl-of-the-header"
    assert answer.headers["x-request-id"] == "of-the-header"
    answer = http.post("/v1/completions", json=body, headers={"X-Request-Id": "a" * 257})
    assert answer.json()["id"] == "cmpl-of-the-body"
