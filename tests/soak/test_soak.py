# SPDX-License-Identifier: Apache-2.0
"""A soak of the shipped binary, then its two ends: killed, and asked to stop.

WEFT_TEST_SEED makes the load; WEFT_TEST_LONG runs it whole (SOAK_REQUESTS), otherwise a twentieth.
"""
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time

import httpx
import pytest

import ports
import soak

BINARY = os.environ.get("WEFT_TEST_BINARY")
MODEL = os.environ.get("WEFT_TEST_MODEL")
SEED = int(os.environ.get("WEFT_TEST_SEED", "1"))
IS_LONG = bool(os.environ.get("WEFT_TEST_LONG"))
SOAK_REQUESTS = 10000
START_SECONDS = 60

pytestmark = [
    pytest.mark.skipif(not BINARY, reason="WEFT_TEST_BINARY is not set"),
    pytest.mark.skipif(not MODEL, reason="WEFT_TEST_MODEL is not set"),
]

# Few blocks: the load uses every one of them early, shares, evicts and preempts all the time; what
# is evicted goes to small tiers, and events tell of it.
FLAGS = ("--num-gpu-blocks-override", "192", "--max-model-len", "2048", "--max-num-seqs", "12",
         "--host", "127.0.0.1", "--kv-host-bytes", "60m", "--kv-disk-bytes", "200m",
         "--kv-events-config", json.dumps({"enable_kv_cache_events": True, "buffer_steps": 100,
                                           "endpoint": "tcp://127.0.0.1:0",
                                           "replay_endpoint": "tcp://127.0.0.1:0"}))


class Server:
    """`weft serve` in a process of its own; its log in a file."""

    def __init__(self, log, port):
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("WEFT_", "VLLM_"))}
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [BINARY, "serve", "--model", MODEL, "--port", str(port), *FLAGS,
                 "--kv-disk-path", str(log.parent / "kv")],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)

    def wait_until_ready(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"it stopped: {self.log.read_text()[-2000:]}"
            try:
                if httpx.get(self.url + "/health", timeout=1).status_code == 200:
                    return self
            except httpx.TransportError:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.02)
        raise AssertionError(f"not ready in {START_SECONDS} s: {self.log.read_text()[-2000:]}")

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@pytest.fixture
def start(tmp_path):
    servers = []

    def start_one(port=None):
        server = Server(tmp_path / "server.log", port or ports.reserve())
        servers.append(server)
        return server.wait_until_ready()

    yield start_one
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def completion(prompt, **more):
    return {"prompt": prompt, "temperature": 0, "ignore_eos": True, **more}


def model_name(url):
    return httpx.get(url + "/v1/models").json()["data"][0]["id"]


@pytest.mark.timeout(4 * 3600)
def test_mixed_load_with_disconnects_leaves_nothing_behind(start):
    server = start()
    n = SOAK_REQUESTS if IS_LONG else SOAK_REQUESTS // 20
    result = run_soak(server, n)
    print(json.dumps(result))
    assert result["requests"] == n
    assert result["failures"] == []
    assert server.end(signal.SIGTERM) == 0


def run_soak(server, n):
    args = soak.parse(["--url", server.url, "--requests", str(n), "--seed", str(SEED),
                       "--pid", str(server.process.pid)])
    return asyncio.run(soak.Soak(args).run())


def test_a_killed_server_starts_again_on_the_same_port(start):
    server = start()
    body = completion("Once upon a time", max_tokens=1000, stream=True, model=model_name(server.url))
    with pytest.raises(httpx.TransportError):
        with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as stream:
            for number, _ in enumerate(stream.iter_lines()):
                if number == 4:
                    server.end(signal.SIGKILL)
    again = start(int(server.url.rsplit(":", 1)[1]))
    body.update(max_tokens=4, stream=False)
    assert httpx.post(again.url + "/v1/completions", json=body, timeout=60).status_code == 200


def test_a_server_asked_to_stop_finishes_what_runs(start):
    server = start()
    body = completion("Once upon a time", max_tokens=60, stream=True, model=model_name(server.url))
    lines = []
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as stream:
        for line in stream.iter_lines():
            lines.append(line)
            if len(lines) == 4:
                server.process.send_signal(signal.SIGTERM)
    assert "data: [DONE]" in lines
    assert sum('"text"' in line for line in lines) >= 50
    assert server.process.wait(timeout=60) == 0
