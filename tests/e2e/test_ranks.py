# SPDX-License-Identifier: Apache-2.0
"""One model over several ranks, which `weft serve` starts itself: answers, losses, forming again."""
import os
import signal
import threading

import openai
import pytest

from conftest import NAME, children, state, wait_for, web

SMALL = ["--max-model-len", "512", "--num-gpu-blocks-override", "128", "--max-num-seqs", "8"]
PROMPT = "Once upon a time"


def followers(server):
    return children(server.process.pid)


def complete(server, prompt=PROMPT, max_tokens=24, **more):
    return server.openai().completions.create(
        model=NAME, prompt=prompt, temperature=0, max_tokens=max_tokens, **more,
        extra_body={"return_token_ids": True, "ignore_eos": True})


def check_reference(server, vectors):
    for case in (c for c in vectors["greedy"]["cases"] if len(c["prompt_ids"]) < 400):
        tokens = complete(server, prompt=case["prompt_ids"]).choices[0].token_ids
        reference = case["f32"]
        assert len(tokens) == 24
        for step, token in enumerate(tokens):
            if token != reference["greedy"][step]:
                assert reference["margin"][step] <= 0.6, (case["id"], step)
                break


@pytest.mark.parametrize("cut, ranks", [(["-tp", "2"], 2), (["-tp", "4"], 4), (["-pp", "2"], 2)])
def test_ranks_give_the_reference_tokens(start_server, vectors, cut, ranks):
    server = start_server(*SMALL, *cut)
    pids = followers(server)
    assert len(pids) == ranks - 1
    check_reference(server, vectors)
    whole = complete(server, max_tokens=24).choices[0].text
    chunks = list(complete(server, max_tokens=24, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole
    assert server.gauge("weft:group_up") == 1 and server.gauge("weft:group_ranks") == ranks
    assert server.stop() == 0, "".join(server.lines[-20:])
    assert all(state(pid) in (None, "Z") for pid in pids)


def test_a_lost_rank_ends_streams_with_an_error_and_the_server(start_server):
    server = start_server(*SMALL, "-tp", "2")
    pid, = followers(server)
    stream = complete(server, max_tokens=480, stream=True)
    next(stream)
    late = []

    def ask():
        try:
            late.append(complete(server, max_tokens=480))
        except openai.APIError as error:
            late.append(error)

    other = threading.Thread(target=ask)
    other.start()
    wait_for(lambda: server.gauge("vllm:num_requests_running") == 2, what="the second request")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="rank 1 was lost"):
        for _ in stream:
            pass
    other.join()
    assert isinstance(late[0], openai.InternalServerError) and late[0].status_code == 503
    assert late[0].response.headers["retry-after"] == "1"
    assert server.wait() != 0
    assert any("rank 1 was lost" in line for line in server.lines)


def test_a_group_forms_again_and_goes_on_where_it_was(start_server):
    server = start_server(*SMALL, "-tp", "3", "--restarts", "2")
    pids = followers(server)
    expected = complete(server, max_tokens=80).choices[0].text
    stream = complete(server, max_tokens=80, stream=True)
    text = next(stream).choices[0].text
    os.kill(pids[0], signal.SIGKILL)
    text += "".join(chunk.choices[0].text for chunk in stream)
    assert text == expected
    assert web.get(server.url + "/health").status_code == 200
    assert server.gauge("weft:group_up") == 1
    assert server.gauge("weft:group_regroupings_total") == 1
    now = followers(server)
    assert len(now) == 2 and len(set(now) & set(pids)) == 1
    assert server.stop() == 0, "".join(server.lines[-20:])


def test_ranks_that_do_not_make_up_the_sizes_are_refused(start_server):
    server = start_server(*SMALL, "-tp", "2", "--rank", "0", "--world-size", "3",
                          "--leader", "127.0.0.1:29499", wait=False)
    assert server.wait() != 0
    assert any("1 x 3, 3 x 1 would fit" in line for line in server.lines)
