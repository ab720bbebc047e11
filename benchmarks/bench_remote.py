#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time to the first token of a prompt that another worker has computed: read from it, or computed again.

usage: ./dev bench remote [--rounds 7] [--prompt 2049] [--threads 1] [--backend tcp] [--out FILE]

Two workers on this host, of which one offers its KV blocks and the other reads them over --backend. A
round asks each way once, one after the other, each with a prompt of its own, so that what else the
machine does meets all alike; the first round is a warm-up and does not count:

  computed    by the reader, with the peer asked in vain: nobody has the prompt
  read        by the reader, after the owner has answered the prompt
  alone       by the owner, which has no peers

"gain" is computed by read, the medians. At the end the reader's metrics must say that every block of the
second way was read and none of them was stale, else the figures are of something else and the program fails.
--out gets a JSON row for each way with every sample, the machine and the flags.
"""
import argparse
import json
import os
import platform
import signal
import socket
import statistics
import sys
import time
from pathlib import Path

from bench_split import Worker, text_of

WAYS = ("computed", "read", "alone")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def metric(worker, name):
    for line in worker.ask("/metrics").read().decode().splitlines():
        if line.startswith(f'weft:kv_tier_{name}{{') and 'tier="remote"' in line:
            return float(line.rsplit(" ", 1)[1])
    sys.exit(f"no metric {name}")


def wait_for_peer(worker):
    for _ in range(600):
        if metric(worker, "peers") == 1:
            return
        time.sleep(0.05)
    sys.exit("the peer was not met")


def prompt(number, way, n):
    """Unlike any other's from the first token on."""
    return [100 + (number * 7919 + WAYS.index(way) * 1009 + i * 31) % 40000 for i in range(n)]


def body_of(tokens):
    return {"model": "m", "prompt": tokens, "max_tokens": 1, "temperature": 0, "ignore_eos": True}


def first_token_ms(worker, tokens):
    begun = time.monotonic()
    return (worker.first_token(body_of(tokens)) - begun) * 1e3


def run_round(args, owner, reader, number):
    known = prompt(number, "read", args.prompt)
    took = {"computed": first_token_ms(reader, prompt(number, "computed", args.prompt))}
    owner.answer(body_of(known))
    took["read"] = first_token_ms(reader, known)
    took["alone"] = first_token_ms(owner, prompt(number, "alone", args.prompt))
    return took


def measure(args):
    port = free_port()
    samples = {way: [] for way in WAYS}
    workers = []
    blocks = ["--num-gpu-blocks-override", str((args.rounds + 2) * 3 * (args.prompt // 16 + 2)),
              "--kv-remote-backends", args.backend]
    try:
        owner = Worker(args, None, *blocks, "--kv-remote-listen", f"127.0.0.1:{port}")
        workers.append(owner)
        reader = Worker(args, None, *blocks, "--kv-remote-peers", f"127.0.0.1:{port}")
        workers.append(reader)
        wait_for_peer(reader)
        for number in range(args.rounds + 1):
            took = run_round(args, owner, reader, number)
            for way in WAYS:
                samples[way] += [took[way]] if number > 0 else []
        hits = metric(reader, "hit_blocks_total")
        if hits != (args.rounds + 1) * ((args.prompt - 1) // 16) or \
                metric(reader, "stale_blocks_total") > 0:
            sys.exit(f"{hits:.0f} blocks were read, not every one: these are no figures of reading")
        rate = metric(reader, "read_bytes_total") / metric(reader, "read_seconds_sum")
    finally:
        for worker in workers:
            worker.process.kill()
    return samples, rate


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=2049)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", default="tcp")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended")) # with the workers
    samples, rate = measure(args)
    for way in WAYS:
        print(f"{way:10} {text_of(samples[way]):>28} ms")
    gain = statistics.median(samples["computed"]) / statistics.median(samples["read"])
    print(f"gain {gain:.1f}, blocks came at {rate / 1e6:.0f} MB/s")
    if args.out is not None:
        with args.out.open("w", encoding="utf-8") as file:
            for way in WAYS:
                file.write(json.dumps({
                    "way": way, "prompt": args.prompt, "threads": args.threads,
                    "backend": args.backend, "read_bytes_per_second": rate,
                    "machine": f"{platform.machine()} {os.cpu_count()} cores",
                    "first_token_ms": samples[way]}) + "\n")


if __name__ == "__main__":
    main()
