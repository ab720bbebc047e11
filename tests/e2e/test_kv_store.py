# SPDX-License-Identifier: Apache-2.0
"""Blocks that outlive their request, the device's memory and the process; each answer stays the same.

WEFT_TEST_SEED makes the kills' moments; WEFT_TEST_LONG runs all of KILLS, otherwise a twentieth.
"""
import os
import random
import signal
import threading

import httpx
import pytest

from conftest import NAME, Server, command, need_server, wait_for, web

SEED = int(os.environ.get("WEFT_TEST_SEED", "1"))
KILLS = 100 if os.environ.get("WEFT_TEST_LONG") else 5
# Room for one prompt of those below and little more.
SMALL = ("--num-gpu-blocks-override", "48", "--max-model-len", "700", "--max-num-seqs", "4",
         "--server-dev-mode")


def ids(seed, n):
    draw = random.Random(seed)
    return [draw.randrange(100, 40000) for _ in range(n)]


PROMPTS = [ids(i, 400 + 16 * i) for i in range(6)]


def complete(server, prompt, **more):
    body = {"model": NAME, "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True, **more}
    answer = web.post(server.url + "/v1/completions", json=body)
    answer.raise_for_status()
    answer = answer.json()
    return (answer["choices"][0]["token_ids"],
            answer["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.fixture(scope="module")
def cold():
    """What each prompt is answered without any cache."""
    need_server()
    server = Server(command(*SMALL, "--no-enable-prefix-caching")).wait_until_listening()
    answers = [complete(server, prompt)[0] for prompt in PROMPTS]
    assert server.stop() == 0
    return answers


def read_blocks(server, tier):
    return server.metrics()[f'weft:kv_tier_hit_blocks_total{{"tier": "{tier}"}}']


def test_what_the_device_lost_comes_from_the_host(start_server, cold):
    server = start_server(*SMALL, "--kv-host-bytes", "200m")
    for prompt, expected in zip(PROMPTS, cold):
        assert complete(server, prompt) == (expected, 0)
    for prompt, expected in zip(PROMPTS, cold):
        tokens, cached = complete(server, prompt)
        assert tokens == expected
        assert cached == (len(prompt) - 1) // 16 * 16
    assert read_blocks(server, "host") > 0
    server.wait_until_idle()


def test_blocks_outlive_the_process(start_server, cold, tmp_path):
    disk = ("--kv-disk-path", str(tmp_path / "kv"), "--kv-disk-bytes", "200m")
    few = list(zip(PROMPTS, cold))[:3]  # a server that ends takes five seconds at most to save all
    server = start_server(*SMALL, *disk, "--kv-host-bytes", "200m")
    for prompt, expected in few:
        assert complete(server, prompt)[0] == expected
    assert server.stop() == 0
    server = start_server(*SMALL, *disk)
    for prompt, expected in few:
        tokens, cached = complete(server, prompt)
        assert tokens == expected
        assert cached == (len(prompt) - 1) // 16 * 16
    assert read_blocks(server, "disk") > 0


def test_a_folder_of_another_model_is_left_alone(start_server, cold, tmp_path):
    disk = ("--kv-disk-path", str(tmp_path / "kv"), "--kv-disk-bytes", "100m")
    server = start_server(*SMALL, *disk)
    complete(server, PROMPTS[0])
    assert server.stop() == 0
    server = start_server(*SMALL, *disk, "--kv-cache-dtype", "bf16")
    warnings = [line for line in server.lines if " warn" in line and "disk" in line]
    assert len(warnings) == 1, server.lines
    complete(server, PROMPTS[0])
    assert server.stop() == 0
    server = start_server(*SMALL, *disk)
    assert complete(server, PROMPTS[0]) == (cold[0], 400 // 16 * 16 - 16)


def test_a_tenant_with_another_salt_finds_nothing(start_server, cold):
    server = start_server(*SMALL)
    for salt in (None, "a", "b"):
        more = {} if salt is None else {"cache_salt": salt}
        assert complete(server, PROMPTS[0], **more) == (cold[0], 0)
        assert complete(server, PROMPTS[0], **more)[1] > 0


def test_a_pinned_prompt_stays(start_server, cold):
    server = start_server(*SMALL, "--kv-pin-quota", "0.25")
    system = PROMPTS[0][:160]
    complete(server, system, pin_prompt=True)
    assert server.gauge("weft:kv_blocks_pinned") == 10
    for prompt, expected in zip(PROMPTS[1:], cold[1:]):
        assert complete(server, prompt)[0] == expected
    assert complete(server, PROMPTS[0]) == (cold[0], 160)
    assert complete(server, PROMPTS[1], pin_prompt=True)[0] == cold[1]
    assert server.gauge("weft:kv_blocks_pinned") == 12, "the quota"
    assert web.post(server.url + "/reset_prefix_cache").json() == {"success": True}
    assert server.gauge("weft:kv_blocks_pinned") == 0
    assert complete(server, PROMPTS[0]) == (cold[0], 0)


def test_a_reset_takes_the_tiers_when_asked_to(start_server, cold):
    server = start_server(*SMALL, "--kv-host-bytes", "200m")
    for prompt in PROMPTS:
        complete(server, prompt)
    web.post(server.url + "/reset_prefix_cache").raise_for_status()
    assert complete(server, PROMPTS[0])[1] > 0, "the host still has it"
    web.post(server.url + "/reset_prefix_cache?reset_external=true").raise_for_status()
    assert complete(server, PROMPTS[0]) == (cold[0], 0)


def keep_asking(server, cold, draw, mistakes, answered):
    """Until the server is gone."""
    while True:
        which = draw.randrange(len(PROMPTS))
        try:
            tokens, _ = complete(server, PROMPTS[which])
        except httpx.HTTPError:
            return
        if tokens != cold[which]:
            mistakes.append((which, tokens))
        answered.append(which)


@pytest.mark.timeout(120 + 30 * KILLS)
def test_a_kill_at_any_moment_leaves_no_wrong_block(start_server, cold, tmp_path):
    draw = random.Random(SEED)
    flags = (*SMALL, "--kv-disk-path", str(tmp_path / "kv"), "--kv-disk-bytes", "60m",
             "--kv-disk-admission", "all", "--kv-host-bytes", "4m")
    mistakes, found = [], 0
    for kill in range(KILLS):
        server = start_server(*flags)
        found += server.gauge("weft:kv_tier_blocks") > 0
        answered = []
        clients = [threading.Thread(target=keep_asking,
                                    args=(server, cold, random.Random(draw.random()), mistakes,
                                          answered)) for _ in range(3)]
        for client in clients:
            client.start()
        wanted = draw.randrange(6, 14)  # more blocks than the device and the host hold
        wait_for(lambda: len(answered) >= wanted, what="answers")
        threading.Event().wait(draw.random() * 0.3)  # the moment
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        for client in clients:
            client.join()
        assert not mistakes, f"seed {SEED}, kill {kill}"
    assert found > 0, "no restart found a block"
