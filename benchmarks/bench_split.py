#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time to the first token of one worker, and of prefill and decode on two of them.

usage: ./dev bench split [--rounds 7] [--prompt 2000] [--threads 1] [--out FILE] [--trace FILE]
                         [--traces 5]

A round asks each way once, one after the other, each with a prompt of its own, so that nothing is
cached and what else the machine does meets all alike; the first round is a warm-up and does not count:

  alone       one worker computes the prompt and answers
  sequence    a prefill worker's answer, then the decode worker's first token (llm-d's nixlv2)
  ahead       both are asked at once with one transfer_id: blocks are pulled as they fill
  one call    the decode worker asks the prefill worker itself

"after prefill" is from the prefill worker's answer, which follows its last chunk, to the decode worker's
first token. --out gets a JSON row for each way with every sample, the machine and the flags.

--trace gets what happened in one more request that is asked for ahead, for benchmarks/plot_split.py:
when tokens were computed by the prefill worker, when they were read by the decode worker, and when its
tokens came, in milliseconds from the request. The workers' logs say it, at level trace. Of --traces
requests it is the one with the median time from the last chunk to the first token; beside that time
stands the bar: the longest read of one chunk, and the median step of the tokens that follow.
"""
import argparse
import datetime
import http.client
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WEFT = ROOT / "build" / "release" / "weft"
ENV = {**os.environ, "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": "0"}


class Worker:
    def __init__(self, args, role, *more):
        config = [] if role is None else [
            "--kv-transfer-config", json.dumps({"kv_connector": "WeftConnector", "kv_role": role})]
        command = [WEFT, "serve", args.model, "--host", "127.0.0.1", "--port", "0", "--threads",
                   str(args.threads), "--served-model-name", "m", "--max-model-len",
                   str(args.prompt + 64), *config,
                   *(more if "--num-gpu-blocks-override" in more else
                     ("--num-gpu-blocks-override", args.prompt // 4, *more))]
        self.process = subprocess.Popen(list(map(str, command)), env=ENV, text=True,
                                        stderr=subprocess.PIPE)
        for line in self.process.stderr:
            found = re.search(r"listening on http://127.0.0.1:(\d+)", line)
            if found:
                self.port = int(found[1])
                break
        else:
            sys.exit("a worker did not start")
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr),
                                       daemon=True)
        self.reader.start()
        self.url = f"http://127.0.0.1:{self.port}"

    def end(self):
        """And have its last lines."""
        self.process.terminate()
        self.reader.join()
        self.process.wait()

    def ask(self, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("GET" if body is None else "POST", path,
                           None if body is None else json.dumps(body),
                           {"Content-Type": "application/json"})
        return connection.getresponse()

    def answer(self, body):
        return json.load(self.ask("/v1/completions", body))

    def first_token(self, body):
        """The moment of the stream's first event."""
        return self.token_moments(body)[0]

    def token_moments(self, body):
        """By the bytes as they come: an HTTP client's own work would count as the server's."""
        text = json.dumps({**body, "stream": True})
        moments = []
        with socket.create_connection(("127.0.0.1", self.port), timeout=300) as connection:
            connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                               f"Connection: close\r\nContent-Type: application/json\r\n"
                               f"Content-Length: {len(text)}\r\n\r\n{text}".encode())
            while piece := connection.recv(1 << 16):
                moments += [time.monotonic()] * piece.count(b"data: {")
        return moments


def prompt(round_number, way, n):
    """Unlike any other's from the first token on."""
    return [100 + (round_number * 7 + way * 1009 + i * 31) % 40000 for i in range(n)]


def prefill(p, body, more, ends):
    answer = p.answer({**body, "max_tokens": 1,
                       "kv_transfer_params": {"do_remote_decode": True, **more}})
    ends.append(time.monotonic())
    return answer["kv_transfer_params"]


def run_alone(workers, body, _):
    return workers["alone"].first_token(body), None


def run_sequence(workers, body, _):
    ends = []
    params = prefill(workers["p"], body, {}, ends)
    return workers["d"].first_token({**body, "kv_transfer_params": params}), ends[0]


def ask_ahead(workers, body, number):
    """The moments of the tokens, and of the prefill worker's answer."""
    ends = []
    transfer = f"bench-{number}"
    leg = threading.Thread(target=prefill, args=(workers["p"], body, {"transfer_id": transfer}, ends))
    leg.start()
    info = workers["info"]
    tokens = workers["d"].token_moments({**body, "kv_transfer_params": {
        "do_remote_prefill": True, "transfer_id": transfer, "remote_host": info["host"],
        "remote_port": info["port"]}})
    leg.join()
    return tokens, ends[0]


def run_ahead(workers, body, number):
    tokens, prefilled = ask_ahead(workers, body, number)
    return tokens[0], prefilled


def run_one_call(workers, body, _):
    return workers["d"].first_token({**body, "kv_transfer_params": {
        "do_remote_prefill": True, "prefill_url": workers["p"].url}}), None


WAYS = {"alone": run_alone, "sequence": run_sequence, "ahead": run_ahead, "one call": run_one_call}


def measure(args):
    samples = {way: {"first_token_ms": [], "after_prefill_ms": []} for way in WAYS}
    p = Worker(args, "kv_producer")
    workers = {"alone": Worker(args, None), "p": p,
               "d": Worker(args, "kv_consumer", "--prefill-urls", p.url)}
    workers["info"] = json.load(p.ask("/kv_transfer"))
    try:
        for number in range(args.rounds + 1):
            for i, (way, run) in enumerate(WAYS.items()):
                body = {"model": "m", "prompt": prompt(number, i, args.prompt), "max_tokens": 4,
                        "temperature": 0, "ignore_eos": True}
                begun = time.monotonic()
                first, prefilled = run(workers, body, number)
                if number > 0:
                    samples[way]["first_token_ms"].append((first - begun) * 1e3)
                    if prefilled is not None:
                        samples[way]["after_prefill_ms"].append((first - prefilled) * 1e3)
    finally:
        for worker in ("alone", "p", "d"):
            workers[worker].process.kill()
    return samples


def moments(worker, pattern):
    """Lines of its log that have the pattern: the moment, and the groups."""
    for line in worker.lines:
        found = re.search(pattern, line)
        if found:
            moment = datetime.datetime.fromisoformat(line.split(" ", 1)[0].replace("Z", "+00:00"))
            yield moment.timestamp() * 1e3, [int(group) for group in found.groups()]


def wait_for_lines(worker, pattern, tokens):
    """Its log comes by a pipe, a little behind."""
    deadline = time.monotonic() + 10
    while not any(values[0] >= tokens for _, values in moments(worker, pattern)):
        if time.monotonic() > deadline:
            sys.exit(f"the log has no line {pattern} of {tokens} tokens")
        time.sleep(0.01)


FILLED = r"filled tokens=(\d+)"
READ = r"read tokens=(\d+) bytes=(\d+) us=(\d+)"


def trace_once(args, workers, number):
    p, d = workers["p"], workers["d"]
    p.lines.clear()
    d.lines.clear()
    body = {"model": "m", "prompt": prompt(number, 2, args.prompt), "max_tokens": 16,
            "temperature": 0, "ignore_eos": True}
    begun, wall = time.monotonic(), time.time() * 1e3
    tokens, prefilled = ask_ahead(workers, body, number)
    wait_for_lines(p, FILLED, args.prompt)
    wait_for_lines(d, READ, args.prompt - 1) # it computes the last token itself
    run = {
        "prefill_answer_ms": (prefilled - begun) * 1e3,
        "token_ms": [(token - begun) * 1e3 for token in tokens],
        "filled": [{"ms": at - wall, "tokens": n} for at, (n,) in moments(p, FILLED)],
        "reads": [{"ms": at - wall, "took_ms": us / 1e3, "tokens": n, "bytes": n_bytes}
                  for at, (n, n_bytes, us) in moments(d, READ)],
    }
    run["gap_ms"] = run["token_ms"][0] - run["filled"][-1]["ms"]
    run["chunk_read_ms"] = max(read["took_ms"] for read in run["reads"])
    run["step_ms"] = statistics.median(b - a for a, b in zip(run["token_ms"], run["token_ms"][1:]))
    return run


WARM_UPS = 3


def trace(args):
    # Two prompts fill a pool: behind the warm-ups no page of it is touched for the first time.
    flags = ("--log-level", "trace", "--num-gpu-blocks-override", args.prompt // 8)
    p = Worker(args, "kv_producer", *flags)
    d = Worker(args, "kv_consumer", *flags)
    workers = {"p": p, "d": d, "info": json.load(p.ask("/kv_transfer"))}
    try:
        runs = [trace_once(args, workers, number) for number in range(args.traces + WARM_UPS)]
    finally:
        d.end()
        p.end()
    runs = sorted(runs[WARM_UPS:], key=lambda run: run["gap_ms"])
    for run in runs:
        print(f"last chunk to first token {run['gap_ms']:.1f} ms; bar: {run['chunk_read_ms']:.1f} ms "
              f"a chunk's read + {run['step_ms']:.1f} ms a step")
    return {"prompt": args.prompt, "threads": args.threads,
            "machine": f"{platform.machine()} {os.cpu_count()} cores", **runs[len(runs) // 2]}


def text_of(values):
    if not values:
        return "-"
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--traces", type=int, default=5)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended")) # with the workers
    if args.trace is not None:
        args.trace.write_text(json.dumps(trace(args), indent=1) + "\n", encoding="utf-8")
    if args.rounds == 0:
        return
    samples = measure(args)
    print(f"{'':10} {'first token, ms':>28} {'after prefill, ms':>28}")
    for way, values in samples.items():
        print(f"{way:10} {text_of(values['first_token_ms']):>28} "
              f"{text_of(values['after_prefill_ms']):>28}")
    if args.out is not None:
        machine = f"{platform.machine()} {os.cpu_count()} cores"
        with args.out.open("w", encoding="utf-8") as file:
            for way, values in samples.items():
                file.write(json.dumps({"way": way, "prompt": args.prompt, "threads": args.threads,
                                       "machine": machine, **values}) + "\n")


if __name__ == "__main__":
    main()
