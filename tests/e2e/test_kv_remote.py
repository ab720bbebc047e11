# SPDX-License-Identifier: Apache-2.0
"""Prompts that one server computed, answered by another one from its blocks; each answer stays the same."""
import random
import re
import signal
import subprocess
import threading

import httpx
import pytest

import ports
from conftest import NAME, Server, command, need_server, wait_for, web

SIZES = ("--num-gpu-blocks-override", "96", "--max-model-len", "700", "--max-num-seqs", "4",
         "--server-dev-mode")
OFFER = ("--kv-remote-listen", "127.0.0.1:0")
# What peers say is waited for, however slow the machine is: where answers are to come from them.
PATIENT = ("--kv-remote-wait", "60")


def ids(seed, n):
    draw = random.Random(seed)
    return [draw.randrange(100, 40000) for _ in range(n)]


PROMPTS = [ids(10 + i, 320 + 16 * i) for i in range(4)]


def complete(server, prompt, **more):
    body = {"model": NAME, "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True, **more}
    answer = web.post(server.url + "/v1/completions", json=body)
    answer.raise_for_status()
    answer = answer.json()
    return (answer["choices"][0]["token_ids"],
            answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def cached(prompt):
    return (len(prompt) - 1) // 16 * 16


def offer_port(server):
    found = re.search(r"KV blocks are offered .* port=(\d+)", "".join(server.lines))
    assert found, "".join(server.lines)
    return int(found[1])


def remote(server, metric):
    return server.metrics()[f'weft:kv_tier_{metric}{{"tier": "remote"}}']


def wait_for_peer(server):
    wait_for(lambda: remote(server, "peers") == 1, what="the peer")


@pytest.fixture(scope="module")
def expected():
    """What each prompt is answered without any cache."""
    need_server()
    server = Server(command(*SIZES, "--no-enable-prefix-caching")).wait_until_listening()
    answers = [complete(server, prompt)[0] for prompt in PROMPTS]
    assert server.stop() == 0
    return answers


@pytest.mark.parametrize("backend", ["tcp", "shm"])
def test_a_prefix_computed_there_is_not_computed_here(start_server, expected, backend):
    owner = start_server(*SIZES, *OFFER, "--kv-remote-backends", backend)
    reader = start_server(*SIZES, *PATIENT, "--kv-remote-peers", f"127.0.0.1:{offer_port(owner)}",
                          "--kv-remote-backends", backend)
    wait_for_peer(reader)
    for prompt, tokens in zip(PROMPTS, expected):
        assert complete(owner, prompt) == (tokens, 0)
        assert complete(reader, prompt) == (tokens, cached(prompt))
    blocks = sum(cached(prompt) // 16 for prompt in PROMPTS)
    assert remote(reader, "hit_blocks_total") == blocks
    assert remote(reader, "lookups_total") == len(PROMPTS)
    assert remote(reader, "stale_blocks_total") == 0
    reader.wait_until_idle()
    assert owner.stop() == 0
    assert reader.stop() == 0


def test_two_that_offer_to_each_other(start_server, expected):
    """Also: peers need not be up when a server starts."""
    port = ports.reserve()
    first = start_server(*SIZES, *PATIENT, *OFFER, "--kv-remote-peers", f"127.0.0.1:{port}")
    second = start_server(*SIZES, *PATIENT, "--kv-remote-listen", f"127.0.0.1:{port}",
                          "--kv-remote-peers", f"127.0.0.1:{offer_port(first)}")
    wait_for_peer(first)
    wait_for_peer(second)
    assert complete(first, PROMPTS[0])[0] == expected[0]
    assert complete(second, PROMPTS[0]) == (expected[0], cached(PROMPTS[0]))
    assert complete(second, PROMPTS[1])[0] == expected[1]
    assert complete(first, PROMPTS[1]) == (expected[1], cached(PROMPTS[1]))


def test_another_cache_type_is_named_and_nothing_is_read(start_server, expected):
    owner = start_server(*SIZES, *OFFER)
    reader = start_server(*SIZES, "--kv-cache-dtype", "bf16", "--kv-remote-peers",
                          f"127.0.0.1:{offer_port(owner)}")
    wait_for(lambda: any("does not fit" in line for line in reader.lines), what="the refusal")
    refusal = next(line for line in reader.lines if "does not fit" in line)
    assert "--kv-cache-dtype: bf16 there" in refusal, refusal
    complete(owner, PROMPTS[0])
    assert complete(reader, PROMPTS[0])[1] == 0


def test_answers_stay_right_while_the_owner_forgets_and_dies(start_server, expected):
    """Small pools: blocks are reused while they are read. Then kill -9 in the middle of it."""
    owner = start_server(*SIZES, *OFFER, "--kv-remote-backends", "tcp")
    reader = start_server(*SIZES, "--kv-remote-peers", f"127.0.0.1:{offer_port(owner)}",
                          "--kv-remote-backends", "tcp")
    wait_for_peer(reader)
    mistakes, answered, is_over = [], [], threading.Event()

    def ask(server, seed):
        draw = random.Random(seed)
        while not is_over.is_set():
            which = draw.randrange(len(PROMPTS))
            try:
                if draw.random() < 0.3:
                    web.post(server.url + "/reset_prefix_cache?reset_external=true")
                tokens, _ = complete(server, PROMPTS[which])
            except httpx.HTTPError:
                return
            if tokens != expected[which]:
                mistakes.append((which, tokens))
            answered.append(server)

    threads = [threading.Thread(target=ask, args=(server, i))
               for i, server in enumerate((owner, reader))]
    for thread in threads:
        thread.start()
    wait_for(lambda: answered.count(reader) >= 8 and answered.count(owner) >= 4,
             seconds=240, what="answers")
    owner.stop(signal.SIGKILL)
    before = answered.count(reader)
    wait_for(lambda: answered.count(reader) >= before + 2, what="answers without the owner")
    is_over.set()
    for thread in threads:
        thread.join()
    assert mistakes == []
    assert remote(reader, "hit_blocks_total") > 0
    reader.wait_until_idle()
    assert reader.stop() == 0


@pytest.mark.parametrize("flag, value, said", [
    ("--kv-remote-peers", "foo", "--kv-remote-peers: foo is not host:port"),
    ("--kv-remote-peers", "a:5800,b:0", "--kv-remote-peers: b:0: nobody is to be reached there"),
    ("--kv-remote-listen", "5800", "--kv-remote-listen: 5800 is not host:port"),
])
def test_addresses_that_are_none_end_the_start(flag, value, said):
    need_server()
    done = subprocess.run(command(flag, value), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
