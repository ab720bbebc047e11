# SPDX-License-Identifier: Apache-2.0
"""Servers to test: the shipped binary (WEFT_TEST_BINARY) with a real model (WEFT_TEST_MODEL)."""
import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

MODEL = os.environ.get("WEFT_TEST_MODEL")
BINARY = os.environ.get("WEFT_TEST_BINARY")
VECTORS = Path(__file__).parents[1] / "vectors" / "smollm2"
SECONDS = 120  # deadline of everything: longer is not slow, it hangs
# vLLM in an environment of its own, which takes long to make: `./dev test --interop`.
collect_ignore = [] if os.environ.get("WEFT_TEST_INTEROP") else ["interop"]
NAME = "smollm2"


# What runs the tests in the background may have had these ignored, which every program inherits.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)


def wait_for(condition, seconds=SECONDS, what="the condition"):
    """Polls until condition() is true, and returns what it said."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come in {seconds} s"
        threading.Event().wait(0.01)


def http_client(**more):
    """As patient as the tests are: httpx's own limit is 5 s."""
    return httpx.Client(timeout=SECONDS, **more)


def leaving_after(seconds):
    """The timeout of one who does not wait for the answer's next piece any longer than that."""
    return httpx.Timeout(SECONDS, read=seconds)


# For any server: a connection is one request's, so that none is open when a server ends.
web = http_client(limits=httpx.Limits(max_keepalive_connections=0))


def state(pid):
    """One letter, as /proc has it; None: it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return None


def signal_twice(process, number):
    """
    Both are there before the process looks for either: it is stopped meanwhile. One is the process's, one its first
    thread's; two of the process's would be one.
    """
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: state(process.pid) == "T", what="its stop")
    process.send_signal(number)
    assert ctypes.CDLL(None).tgkill(process.pid, process.pid, number) == 0
    process.send_signal(signal.SIGCONT)


def children(pid):
    """Process ids, whichever thread of it started them."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return sorted(found)


class Server:
    """A running `weft serve`. lines: what it logged so far."""

    def __init__(self, command, env=None):
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                        text=True, env={**os.environ, **(env or {})})
        self.lines = []
        self.url = None
        self.stirred = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self.stirred:
                self.lines.append(line)
                found = re.search(r"listening on (https?)://[^ ]*:(\d+)", line)
                if found and not self.url:
                    self.url = f"{found[1]}://127.0.0.1:{found[2]}"
                self.stirred.notify_all()
        with self.stirred:
            self.stirred.notify_all()

    def wait_until_listening(self):
        with self.stirred:
            self.stirred.wait_for(lambda: self.url or self.process.poll() is not None,
                                  timeout=SECONDS)
        assert self.url, "".join(self.lines)
        return self

    @property
    def port(self):
        return int(self.url.rsplit(":", 1)[1])

    def openai(self, **more):
        return openai.OpenAI(base_url=self.url + "/v1", max_retries=0, timeout=SECONDS,
                             **{"api_key": "none", **more})

    def http(self, **more):
        return http_client(base_url=self.url, **more)

    def metrics(self):
        from prometheus_client.parser import text_string_to_metric_families
        text = web.get(self.url + "/metrics").text
        return {sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
                for family in text_string_to_metric_families(text) for sample in family.samples}

    def gauge(self, name):
        return sum(value for key, value in self.metrics().items() if key.split("{")[0] == name)

    def is_idle(self):
        return (self.gauge("vllm:num_requests_running") == 0
                and self.gauge("vllm:num_requests_waiting") == 0
                and self.gauge("weft:kv_blocks_referenced") == 0)

    def wait_until_idle(self):
        wait_for(self.is_idle, what="an idle engine")

    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def wait(self, seconds=SECONDS):
        """Its exit code, and then its lines are all there."""
        code = self.process.wait(seconds)
        self.reader.join(seconds)
        return code

    def stop(self, number=signal.SIGTERM, seconds=SECONDS):
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def command(*arguments, program=None, name=NAME):
    return [program or BINARY, "serve", MODEL, "--port", "0", "--host", "127.0.0.1",
            "--served-model-name", name, *arguments]


def need_server():
    if not BINARY or not MODEL:
        pytest.skip("WEFT_TEST_BINARY or WEFT_TEST_MODEL is not set")


@pytest.fixture
def start_server():
    """Starts servers with more flags; stops them afterwards."""
    need_server()
    servers = []

    def start(*arguments, env=None, program=None, wait=True):
        server = Server(command(*arguments, program=program), env)
        servers.append(server)
        return server.wait_until_listening() if wait else server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server():
    """The one most tests share."""
    need_server()
    instance = Server(command("--max-model-len", "2048", "--enable-prompt-tokens-details",
                              "--enable-request-id-headers", "--server-dev-mode",
                              "--enable-server-load-tracking")).wait_until_listening()
    yield instance
    assert instance.process.poll() is None, "".join(instance.lines[-20:])
    instance.wait_until_idle()
    assert instance.stop() == 0, "".join(instance.lines[-20:])


@pytest.fixture
def client(server):
    return server.openai()


@pytest.fixture
def http(server):
    with server.http() as client:
        yield client


@pytest.fixture(scope="session")
def vectors():
    return {name: json.loads((VECTORS / f"{name}.json").read_text())
            for name in ("tokenize", "chat_template", "greedy")}
