# SPDX-License-Identifier: Apache-2.0
"""`weft serve --pipeline-parallel-size`: a model whose layers lie on several ranks."""
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from conftest import BINARY, NAME, Server, children, wait_for, web
from test_data_parallel import GOLDEN, TINY, Ranks, ask, body_of, served, tokens

# The reference's tokens are those of exact sums.
FLAGS = ["serve", str(TINY), "--port", "0", "--host", "127.0.0.1", "--cpu-isa", "ref",
         "--num-gpu-blocks-override", "128", "--served-model-name", NAME]


@pytest.fixture
def start():
    if not BINARY:
        pytest.skip("WEFT_TEST_BINARY is not set")
    started = []

    def start(*flags, before=()):
        server = Server([*before, BINARY, *FLAGS, *flags])
        started.append(server)
        return server.wait_until_listening()

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize("flags", [["-pp", "2"], ["-pp", "3"], ["-pp", "2", "-tp", "2"]])
def test_stages_give_the_models_tokens(start, flags):
    server = start(*flags)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: tokens(ask(server.url, GOLDEN[i % 3])), range(12)))
    assert answers == [GOLDEN[i % 3]["greedy"] for i in range(12)]
    assert server.stop(signal.SIGINT) == 0


def test_whoever_starts_ranks_may_start_stages(start):
    server = start("-pp", "2", before=[BINARY, "launch", "-np", "2", "--"])
    assert tokens(ask(server.url, GOLDEN[0])) == GOLDEN[0]["greedy"]


def test_data_parallel_ranks_may_lie_in_stages():
    if not BINARY:
        pytest.skip("WEFT_TEST_BINARY is not set")
    server = Ranks("--data-parallel-size", "2", "-pp", "2", "--cpu-isa", "ref")
    try:
        server.wait_until_all_listen()
        for rank, url in server.urls.items():
            assert tokens(ask(url, GOLDEN[0], rank)) == GOLDEN[0]["greedy"]
            assert served(url) == (str(rank), 1)
        assert server.stop(signal.SIGINT) == 0
    finally:
        server.process.kill()
        server.process.wait()


def test_a_stage_that_is_killed_ends_the_service(start):
    server = start("-pp", "2")
    body = body_of(GOLDEN[0], max_tokens=200, stream=True)
    with web.stream("POST", server.url + "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        try:
            list(lines)
        except httpx.RemoteProtocolError:
            pass # it may go before it has said all
    assert server.wait() != 0
    wait_for(lambda: "rank 1" in "".join(server.lines), what="its name")


def refused(*flags):
    """What a start says that ends at once."""
    if not BINARY:
        pytest.skip("WEFT_TEST_BINARY is not set")
    return subprocess.run([BINARY, *FLAGS, *flags], capture_output=True, text=True, timeout=60)


GUESSES = '{"method": "ngram", "num_speculative_tokens": 4}'


@pytest.mark.parametrize("flags, said", [
    (["-pp", "9"], "--pipeline-parallel-size 9: at most 8"),
    (["-pp", "2", "--speculative-config", GUESSES], "--speculative-config: not with --pipeline-parallel-size 2"),
    (["-pp", "2", "--kv-remote-listen", "127.0.0.1:0"], "--kv-remote-listen: each rank has its part of a block"),
    (["-pp", "2", "--lora-modules", "a=b"], "--lora-modules needs --enable-lora"),
    (["-pp", "2", "--enable-lora", "--max-loras", "129"], "--max-loras 129: at most 128"),
    (["-tp", "0"], "--tensor-parallel-size 0: 1 and more"),
    (["-tp", "2", "--coll-backend", "nope"], '--coll-backend: collective backend "nope" is unknown'),
])
def test_what_options_alone_rule_out_is_said_before_a_rank_is_started(flags, said):
    done = refused(*flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"weft: error: {said}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("flags, said", [
    (["-pp", "4"], "pipeline parallel size 4: the model has 3 layers"),
    (["-tp", "99"], "tensor parallel size 99: the model's "),
])
def test_a_model_that_cannot_be_cut_so_is_said_once(flags, said):
    done = refused(*flags)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
