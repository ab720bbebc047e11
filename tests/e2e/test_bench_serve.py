# SPDX-License-Identifier: Apache-2.0
"""`weft bench serve` against a small OpenAI server whose answers are known."""
import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BINARY = os.environ.get("WEFT_TEST_BINARY")
pytestmark = pytest.mark.skipif(not BINARY, reason="WEFT_TEST_BINARY is not set")

TOKENS_BEFORE_PROMPT = 3
TOKENS_PER_WORD = 2


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, {"object": "list", "data": [{"id": "first-model"}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request["authorization"] = self.headers.get("Authorization")
        words = len(request["prompt"].split())
        usage = {
            "prompt_tokens": TOKENS_BEFORE_PROMPT + TOKENS_PER_WORD * words,
            "completion_tokens": request["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": 5},
        }
        if not request["stream"]:
            self.answer(200, {"choices": [{"index": 0, "text": "x"}], "usage": usage})
            return
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(request)
        fault = self.server.faults.get(number)
        if fault == "refuse":
            self.answer(503, {"error": {"message": "too busy"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(request["max_tokens"]):
            self.event({"choices": [{"index": 0, "text": "word "}]})
            if fault == "cut":
                return
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value):
        # In two pieces: an event may be cut anywhere by the network.
        data = b"data: " + json.dumps(value).encode() + b"\r\n\r\n"
        self.wfile.write(data[:20])
        self.wfile.flush()
        self.wfile.write(data[20:])
        self.wfile.flush()


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.lock = threading.Lock()
    httpd.requests = []
    httpd.faults = {}
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def bench(server, *flags):
    url = f"http://127.0.0.1:{server.server_address[1]}"
    return subprocess.run(
        [BINARY, "bench", "serve", "--url", url, *flags],
        capture_output=True, text=True, timeout=60, check=False)


def bench_json(server, *flags):
    done = bench(server, "--json", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_closed_loop_counts_every_token_and_gap(server):
    got = bench_json(server, "--concurrency", "3", "--requests", "8", "--output-len", "6")
    assert (got["succeeded"], got["failed"], got["errors"]) == (8, 0, [])
    assert got["output_tokens"] == 8 * 6
    assert got["cached_tokens"] == 8 * 5
    assert (got["ttft_ms"]["n"], got["tpot_ms"]["n"], got["itl_ms"]["n"]) == (8, 8, 8 * 5)
    assert 0 < got["ttft_ms"]["p50"] <= got["ttft_ms"]["p99"] <= got["ttft_ms"]["max"]
    assert got["e2e_ms"]["max"] <= got["seconds"] * 1000


def test_prompt_length_follows_the_servers_own_count(server):
    got = bench_json(server, "--requests", "4", "--input-len", "203", "--output-len", "2")
    assert got["prompt_tokens"] == 4 * 203


def test_open_loop_sends_every_request(server):
    got = bench_json(server, "--rate", "200", "--requests", "20", "--output-len", "2")
    assert (got["succeeded"], got["rate"]) == (20, 200)


def test_failures_are_counted_by_kind_and_kept_out_of_the_figures(server):
    server.faults = {1: "refuse", 2: "cut", 4: "refuse"}
    got = bench_json(server, "--requests", "6", "--output-len", "3")
    assert (got["succeeded"], got["failed"], got["output_tokens"]) == (3, 3, 9)
    counts = {error["error"].split(":")[0]: error["count"] for error in got["errors"]}
    assert counts == {"HTTP 503": 2, "stream ended without [DONE]": 1}
    assert any("too busy" in error["error"] for error in got["errors"])


def test_the_same_seed_is_the_same_load(server):
    flags = ("--requests", "3", "--output-len", "1", "--input-len", "63")
    for seed in ("7", "7", "8"):
        bench_json(server, "--seed", seed, *flags)
    prompts = [request["prompt"] for request in server.requests]
    assert prompts[0:3] == prompts[3:6]
    assert not set(prompts[0:3]) & set(prompts[6:9])


def test_shared_prefix_is_the_same_in_all_prompts(server):
    bench_json(server, "--requests", "4", "--output-len", "1", "--input-len", "203",
               "--shared-prefix", "0.5")
    prompts = [request["prompt"].split() for request in server.requests]
    assert len({tuple(prompt[:50]) for prompt in prompts}) == 1
    assert len({tuple(prompt[50:]) for prompt in prompts}) == 4


def test_model_and_key_are_sent(server):
    bench_json(server, "--requests", "1", "--output-len", "1")
    bench_json(server, "--requests", "1", "--output-len", "1", "--model", "named", "--api-key", "k")
    assert [request["model"] for request in server.requests] == ["first-model", "named"]
    assert [request["authorization"] for request in server.requests] == [None, "Bearer k"]


def test_people_get_a_table(server):
    done = bench(server, "--requests", "2", "--output-len", "2")
    assert done.returncode == 0
    assert "2 of 2 requests succeeded" in done.stdout
    assert "ttft" in done.stdout and "p99" in done.stdout


def test_no_server_is_one_clear_line():
    done = subprocess.run(
        [BINARY, "bench", "serve", "--url", "http://127.0.0.1:1", "--requests", "1"],
        capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("weft: error: http://127.0.0.1:1/v1/models: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("flags", [("--shared-prefix", "1.5"), ("--requests", "0"), ("--rate", "-1")])
def test_bad_options_are_refused(server, flags):
    done = bench(server, *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("weft: error: ")
