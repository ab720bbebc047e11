#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Random faults of random ranks of one model under load, and what must be true all the while.

usage: rank_kills.py --weft WEFT --model MODEL [--ranks N] [--hosts shm|netns] [--faults N] [--seed S]

`weft launch --restarts` runs `weft serve` over N ranks, on this host or each in a network namespace of its own (which
takes root). Clients ask for greedy answers that are known from when nothing failed. Again and again one rank
gets SIGKILL, or SIGSTOP and nothing after it, or has its link cut for a while, or the agent of its host gets
SIGKILL, which loses the host with all its ranks; then the group must be back in service before the next fault.

Every request gets the known answer, the beginning of it and an error, an error that says to try again, or, when
rank 0 went, a closed connection; none waits longer than REQUEST_SECONDS. When the job is asked to end, no process is left.
"""
import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import httpx

START_SECONDS = 120
BACK_SECONDS = 90     # from a fault to the next right answer
REQUEST_SECONDS = 90  # a client that waits longer hangs
END_SECONDS = 60
STOPPED_AFTER = 2     # seconds, as given to the launcher
CUTS = (0.2, 1, 4)    # seconds that a link is down
CLIENTS = 4
TOKENS = 120  # so many that faults come in the middle of answers
PROMPTS = tuple([1 + (31 * i + 7 * k) % 200 for k in range(length)]
                for i, length in enumerate((3, 17, 40, 90)))
FAULTS = {"shm": ("kill", "stop", "lose"), "netns": ("kill", "stop", "cut", "lose")}


class Failure(Exception):
    """The group did what it must not."""


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure(f"{what} did not come in {seconds} s")
        threading.Event().wait(0.02)


def parent_of(pid):
    """An agent is that of its ranks."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def space_of(pid):
    """Its network namespace."""
    return os.readlink(f"/proc/{pid}/ns/net")


class Job:
    """A launched group. log: what all ranks and the launcher have said."""

    def __init__(self, args, log):
        self.mark = f"WEFT_TEST_MARK={uuid.uuid4()}"
        name, value = self.mark.split("=")
        self.log = log
        self.size = args.ranks
        self.fake = args.hosts == "netns"
        host = ["--fake-hosts", str(args.ranks)] if self.fake else []
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WEFT_", "VLLM_"))}
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [args.weft, "launch", "-np", str(args.ranks), *host, "--tag-output", "--restarts", "100000",
                 "--stopped-after", str(STOPPED_AFTER), args.weft, "serve", args.model,
                 "--tensor-parallel-size", str(args.ranks), "--threads", "1", "--max-model-len", "256",
                 "--num-gpu-blocks-override", "96", "--host", "0.0.0.0" if self.fake else "127.0.0.1",
                 "--port", str(args.port), "--coll-timeout", "3", "--served-model-name", "model"],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**kept, name: value})
        self.port = args.port
        self.host = None

    def relatives(self):
        """Processes of this job: {pid: environment}."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (path / "environ").read_bytes().decode(errors="replace").split("\0")
                if self.mark in words:
                    found[int(path.name)] = dict(w.split("=", 1) for w in words if "=" in w)
        return found

    def ranks(self):
        """{rank: (pid, environment)}: those that are programs, not forks on their way to be one."""
        return {int(env["WEFT_RANK"]): (pid, env) for pid, env in self.relatives().items()
                if "WEFT_RANK" in env}

    def is_alive(self):
        if self.process.poll() is not None:
            raise Failure("the launcher has ended")
        return True

    def wait_until_started(self):
        ranks = wait_for(lambda: self.is_alive() and 0 in self.ranks() and self.ranks(), START_SECONDS,
                         "rank 0")
        self.host = ranks[0][1]["WEFT_LEADER"].rsplit(":", 1)[0]

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    def tail(self):
        return self.log.read_text(errors="replace")[-4000:]


class Campaign:
    def __init__(self, args, log):
        self.args = args
        self.random = random.Random(f"{args.seed} {args.hosts}")
        self.job = Job(args, log)
        self.known = {}
        self.counts = collections.Counter()
        self.failures = []
        self.is_over = threading.Event()

    # ---- what clients send ------------------------------------------------------------------

    def body(self, number, **more):
        return {"model": "model", "prompt": PROMPTS[number], "max_tokens": TOKENS, "temperature": 0,
                "ignore_eos": True, **more}

    def whole(self, client, number):
        """The text; None: refused for now."""
        answer = client.post("/v1/completions", json=self.body(number))
        if answer.status_code == 503:
            if "error" not in answer.json():
                raise Failure(f"a 503 without an error object: {answer.text[:200]}")
            return None
        if answer.status_code != 200:
            raise Failure(f"HTTP {answer.status_code}: {answer.text[:200]}")
        return answer.json()["choices"][0]["text"]

    def streamed(self, client, number):
        """The text; None: refused, or ended by an error after a right beginning."""
        text = ""
        with client.stream("POST", "/v1/completions", json=self.body(number, stream=True)) as answer:
            if answer.status_code == 503:
                return None
            if answer.status_code != 200:
                raise Failure(f"HTTP {answer.status_code}: {answer.read()[:200]}")
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    return text
                event = json.loads(line[6:]) if line.startswith("data: ") else {"choices": []}
                if "error" in event:
                    return None
                text += "".join(choice["text"] for choice in event["choices"])
                if not self.known[number].startswith(text):
                    raise Failure(f"prompt {number}: {text!r} does not begin {self.known[number]!r}")
        raise Failure(f"prompt {number}: a stream ended without [DONE] and without an error")

    def ask(self, client, number, is_streamed):
        """What became of one request: right, refused or closed."""
        try:
            text = (self.streamed if is_streamed else self.whole)(client, number)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError,
                httpx.WriteError):
            return "closed"  # rank 0 is gone, or its link
        except httpx.TimeoutException as error:
            raise Failure(f"prompt {number}: no answer in {REQUEST_SECONDS} s") from error
        if text is None:
            return "refused"
        if text != self.known[number]:
            raise Failure(f"prompt {number}: {text!r} is not {self.known[number]!r}")
        return "right"

    def client(self):
        return httpx.Client(base_url=self.job.url, timeout=httpx.Timeout(REQUEST_SECONDS, connect=5))

    def load(self, number):
        rng = random.Random(f"{self.args.seed} client {number}")
        with self.client() as client:
            while not self.is_over.is_set():
                try:
                    end = self.ask(client, rng.randrange(len(PROMPTS)), rng.random() < 0.5)
                except Failure as failure:
                    self.failures.append(str(failure))
                    return
                self.counts[end] += 1
                if end != "right":
                    self.is_over.wait(0.05)  # as a client that tries again

    # ---- faults -----------------------------------------------------------------------------

    def cut(self, pid, seconds):
        def link(state):
            subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", "link", "set", "eth0", state],
                           check=True, capture_output=True)

        holder = subprocess.Popen(["nsenter", "-t", str(pid), "-n", "sleep", "1000"])
        try:
            wait_for(lambda: space_of(holder.pid) == space_of(pid), BACK_SECONDS, "a hold of the namespace")
            link("down")
            threading.Event().wait(seconds)  # the fault
        finally:  # the rank itself may be gone meanwhile, its namespace is not
            pid = holder.pid
            link("up")
            holder.kill()
            holder.wait()

    def fault(self, kind, rank):
        pid = wait_for(lambda: self.job.ranks().get(rank), BACK_SECONDS, f"rank {rank}")[0]
        if kind == "cut":
            self.cut(pid, self.random.choice(CUTS))
            return
        os.kill(parent_of(pid) if kind == "lose" else pid, signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
        wait_for(lambda: self.job.ranks().get(rank, (None,))[0] != pid, BACK_SECONDS,
                 f"the end of rank {rank}")

    def is_back(self):
        self.job.is_alive()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(self.job.url + "/health", timeout=5).status_code != 200:
                return False
            with self.client() as client:
                return self.ask(client, 0, False) == "right"
        return False

    def wait_for_answers(self, n):
        goal = self.counts["right"] + n
        wait_for(lambda: self.counts["right"] >= goal or self.failures, BACK_SECONDS, "right answers")

    def do_faults(self):
        for number in range(self.args.faults):
            self.wait_for_answers(self.random.randrange(1, 6))
            kind = self.random.choice(FAULTS[self.args.hosts])
            rank = self.random.randrange(self.job.size)
            began = time.monotonic()
            self.fault(kind, rank)
            wait_for(self.is_back, BACK_SECONDS, f"service after fault {number}: {kind} of rank {rank}")
            print(f"fault {number}: {kind} rank {rank}: back after {time.monotonic() - began:.1f} s",
                  flush=True)
            self.counts[kind] += 1
            if self.failures:
                return

    # ---- all of it --------------------------------------------------------------------------

    def learn(self):
        """The answers of a group of which nothing has failed, each asked alone."""
        with self.client() as client:
            for number in range(len(PROMPTS)):
                self.known[number] = self.whole(client, number)

    def is_healthy(self):
        self.job.is_alive()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.job.url + "/health", timeout=5).status_code == 200
        return False

    def end(self):
        self.job.process.send_signal(signal.SIGTERM)
        try:
            code = self.job.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"the job did not end in {END_SECONDS} s") from error
        if code not in (0, 128 + signal.SIGTERM):
            self.failures.append(f"exit code {code}")
        wait_for(lambda: not self.job.relatives(), END_SECONDS, "the end of all processes")

    def run_under_load(self):
        clients = [threading.Thread(target=self.load, args=(number,)) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            self.do_faults()
        finally:
            self.is_over.set()
            for client in clients:
                client.join(2 * REQUEST_SECONDS)

    def run(self):
        try:
            self.job.wait_until_started()
            wait_for(self.is_healthy, START_SECONDS, "the start")
            self.learn()
            self.run_under_load()
            self.end()
        except Failure as failure:
            self.failures.append(str(failure))
        finally:
            self.job.process.kill()
            self.job.process.wait()
        if self.failures:
            self.failures.append(self.job.tail())
        return {"seed": self.args.seed, "hosts": self.args.hosts, "ranks": self.args.ranks,
                "counts": dict(self.counts), "failures": self.failures}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weft", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--hosts", choices=sorted(FAULTS), default="shm")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=8000, help="of the API")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = Campaign(args, Path(folder) / "log").run()
    failures = result.pop("failures")
    print(json.dumps(result))
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
