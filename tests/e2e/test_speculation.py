# SPDX-License-Identifier: Apache-2.0
"""--speculative-config: the same answers in fewer steps, and counters that say so."""
import json
import shutil
from pathlib import Path

import pytest

from conftest import BINARY, NAME, Server

TINY = Path(__file__).parents[1] / "vectors" / "tiny-models"

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

    guessing.wait_until_idle()
    before, steps = counts(), guessing.gauge("weft:engine_steps_total")
    complete(guessing.openai(), temperature=0)
    guessing.wait_until_idle()
    drafts, tokens, accepted, by_position = (now - then for now, then in zip(counts(), before))
    assert 0 < drafts <= tokens <= 4 * drafts
    assert 16 < accepted == by_position <= tokens
    assert guessing.gauge("weft:engine_steps_total") - steps <= 48 - accepted + 2


def serve_tiny(model, draft, *flags):
    if not BINARY:
        pytest.skip("WEFT_TEST_BINARY is not set")
    config = [] if draft is None else ["--speculative-config", json.dumps(
        {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 3})]
    return Server([BINARY, "serve", str(model), "--port", "0", "--host", "127.0.0.1",
                   "--served-model-name", NAME, "--max-num-seqs", "4", *config, *flags])


TINY_CASES = [{"prompt": "one two three", "temperature": 0}, {"prompt": "four", "temperature": 1, "seed": 3},
              {"prompt": "five", "temperature": 0, "n": 2, "logprobs": 2},
              {"prompt": "six", "temperature": 0, "presence_penalty": 1}]


def test_a_second_model_guesses():
    servers = [serve_tiny(TINY / "llama", draft).wait_until_listening()
               for draft in (None, TINY / "llama", TINY / "mistral")]

    def ask(server, case):
        return server.openai().completions.create(
            model=NAME, max_tokens=40, extra_body={"ignore_eos": True}, **case).choices

    def counts(server):
        server.wait_until_idle()
        return [server.gauge(f"vllm:spec_decode_num_{name}_tokens_total") for name in ("draft", "accepted")]

    greedy = [ask(server, TINY_CASES[0]) for server in servers]
    (drafted, accepted), (by_another, of_another) = map(counts, servers[1:])
    assert drafted == accepted >= 28  # it knows what it would answer itself
    assert 0 < by_another > of_another
    answers = [[ask(server, case) for case in TINY_CASES] for server in servers]
    assert greedy[0] == greedy[1] == greedy[2] == answers[0][0]
    assert answers[0] == answers[1] == answers[2]
    for server in servers:
        assert server.stop() == 0, "".join(server.lines[-20:])


def test_a_guessing_model_that_is_not_there_is_named_with_its_option():
    server = serve_tiny(TINY / "llama", "/nowhere/small.gguf")
    assert server.wait() == 2
    assert "--speculative-config: model: /nowhere/small.gguf: No such file" in server.lines[-1]


def test_a_model_of_other_tokens_is_refused(tmp_path):
    shutil.copytree(TINY / "llama", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    one, other = (next(token for token, id in vocab.items() if id == wanted) for wanted in (70, 71))
    vocab[one], vocab[other] = 71, 70
    path.write_text(json.dumps(tokenizer))
    server = serve_tiny(TINY / "llama", tmp_path / "other")
    assert server.wait() != 0
    assert any("another vocabulary" in line and "token 70" in line for line in server.lines), server.lines
