# SPDX-License-Identifier: Apache-2.0
"""`weft launch … weft serve`: one model over the ranks of a job, on this host, behind ssh and on fake hosts."""
import contextlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import httpx
import pytest

from conftest import BINARY, NAME, Server, wait_for, web

TINY = Path(__file__).parents[1] / "vectors" / "tiny-models" / "llama-gguf-f32"
GOLDEN = [s for s in json.loads((TINY / "golden.json").read_text())["sequences"]
          if s["length"] > 1]
FAKE_SSH = '#!/bin/sh\nshift\nunset SSH_CONNECTION\nexec sh -c "$*"\n'


class Group(Server):
    """A launched service; url: where its rank 0 is asked."""

    def __init__(self, *words, flags=()):
        super().__init__([BINARY, "launch", "-np", "2", *words, BINARY, "serve", str(TINY),
                          "--tensor-parallel-size", "2", "--threads", "1", "--port", "0",
                          "--num-gpu-blocks-override", "64", "--served-model-name", NAME, *flags])

    def ranks(self):
        """{rank: pid} of the processes below the agents."""
        found = {}
        for agent in children(self.process.pid):
            for pid in children(agent):
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                    found.update({int(word[10:]): pid for word in words
                                  if word.startswith(b"WEFT_RANK=")})
        return found


def children(pid):
    with contextlib.suppress(OSError):
        return [int(child) for child in
                Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def tokens(url, sequence):
    answer = web.post(url + "/v1/completions", json={
        "model": NAME, "prompt": sequence["tokens"], "max_tokens": len(sequence["greedy"]),
        "temperature": 0, "ignore_eos": True, "return_token_ids": True})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


@pytest.fixture
def start():
    if not BINARY:
        pytest.skip("WEFT_TEST_BINARY is not set")
    groups = []

    def one(*words, flags=("--host", "127.0.0.1")):
        groups.append(Group(*words, flags=flags))
        return groups[-1].wait_until_listening()

    yield one
    for group in groups:
        group.process.kill()
        group.process.wait()


def test_ranks_of_this_host_give_the_models_tokens(start):
    group = start()
    for sequence in GOLDEN:
        assert tokens(group.url, sequence) == sequence["greedy"]
    assert group.stop() == 0, "".join(group.lines)


def test_ranks_behind_ssh_give_the_models_tokens(start, tmp_path):
    script = tmp_path / "ssh"
    script.write_text(FAKE_SSH)
    script.chmod(0o755)
    group = start("-H", "a,b", "--ssh", str(script), "--leader-host", "127.0.0.1")
    assert tokens(group.url, GOLDEN[0]) == GOLDEN[0]["greedy"]
    assert group.stop() == 0, "".join(group.lines)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and ip")
def test_ranks_of_fake_hosts_give_the_models_tokens(start):
    group = start("--fake-hosts", "2", flags=("--host", "0.0.0.0"))
    leader = Path(f"/proc/{group.ranks()[0]}/environ").read_text()
    host = re.search(r"WEFT_LEADER=([0-9.]+):", leader)[1]
    url = f"http://{host}:{group.port}"
    for sequence in GOLDEN:
        assert tokens(url, sequence) == sequence["greedy"]
    assert group.stop() == 0, "".join(group.lines)


def test_a_lost_rank_ends_the_job_without_restarts(start):
    group = start()
    os.kill(group.ranks()[1], signal.SIGKILL)
    assert group.wait() == 128 + signal.SIGKILL
    assert "rank 1 on host localhost was killed by signal 9" in "".join(group.lines)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_comes_back_with_restarts(start, rank):
    group = start("--restarts", "3")
    before = group.ranks()
    group.url = None if rank == 0 else group.url
    os.kill(before[rank], signal.SIGKILL)
    wait_for(lambda: group.url and group.ranks().get(rank, before[rank]) != before[rank], what="the rank")

    def is_right():
        with contextlib.suppress(httpx.TransportError, AssertionError):
            return tokens(group.url, GOLDEN[0]) == GOLDEN[0]["greedy"]
        return False

    wait_for(is_right, what="a right answer")
    assert group.ranks().keys() == {0, 1}
    group.stop()
