# SPDX-License-Identifier: Apache-2.0
"""--speculative-config: the same answers in fewer steps, and counters that say so."""
import json

import pytest

from conftest import NAME

LIST = "apple, banana, cherry, grape, "
CASES = [{"temperature": 0}, {"temperature": 0.7, "seed": 11}, {"temperature": 0, "stream": True},
         {"temperature": 0, "frequency_penalty": 0.3}]


def complete(client, **more):
    answer = client.completions.create(
        **{"model": NAME, "prompt": LIST * 6, "max_tokens": 48, "extra_body": {"ignore_eos": True},
           **more})
    if more.get("stream"):
        return "".join(chunk.choices[0].text for chunk in answer)
    return answer.choices[0].text


@pytest.fixture(scope="module")
def guessing():
    from conftest import Server, command, need_server
    need_server()
    config = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2}
    server = Server(command("--speculative-config", json.dumps(config))).wait_until_listening()
    yield server
    assert server.stop() == 0, "".join(server.lines[-20:])


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_without(guessing, client, case):
    assert complete(guessing.openai(), **case) == complete(client, **case)


def test_guesses_are_counted_and_save_steps(guessing):
    def counts():
        return [guessing.gauge(f"vllm:spec_decode_num_{name}_total")
                for name in ("drafts", "draft_tokens", "accepted_tokens", "accepted_tokens_per_pos")]

    before, steps = counts(), guessing.gauge("weft:engine_steps_total")
    complete(guessing.openai(), temperature=0)
    guessing.wait_until_idle()
    drafts, tokens, accepted, by_position = (now - then for now, then in zip(counts(), before))
    assert 0 < drafts <= tokens <= 4 * drafts
    assert 16 < accepted == by_position <= tokens
    assert guessing.gauge("weft:engine_steps_total") - steps <= 48 - accepted + 2
