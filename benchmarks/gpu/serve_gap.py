#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long a GPU waits between the decode steps of a whole server, by its own clock.

`weft bench serve` keeps that many streams running at `weft serve`, whose /metrics is read meanwhile. The
longest stretch of readings counts in which all streams ran and no prompt was computed: what was added from its
first to its last. Prints one JSON object. Exit code 77: the device has no clock. Only the standard library.

usage: serve_gap.py [--weft FILE] [--streams N] [--input-len N] [--output-len N] MODEL [OPTION of weft serve...]
The load first asks for as many words as --input-len, to count their tokens: --max-model-len has to hold these.
"""
import argparse
import json
import subprocess
import sys
import time
import urllib.request

from ranks import ROOT, Server

READ_SECONDS = 0.05
SERIES = {
    "running": 'vllm:num_requests_running{model_name="m",engine="0"}',
    "prompt_steps": 'weft:device_gaps_total{step="prompt"}',
    "steps": 'weft:device_gaps_total{step="decode"}',
    "gap": 'weft:device_gap_seconds_total{step="decode"}',
    "busy": 'weft:device_busy_seconds_total{step="decode"}',
}


def reading_of(exposition):
    values = dict(line.rsplit(" ", 1) for line in exposition.splitlines() if not line.startswith("#"))
    return {name: float(values[series]) for name, series in SERIES.items()}


def longest_stretch(readings, streams):
    """(first, last) reading with all streams running and no prompt step between them; None: there is none."""
    best, first, last = None, None, None
    for reading in readings:
        if reading["running"] != streams:
            first = None
            continue
        if first is None or reading["prompt_steps"] != first["prompt_steps"]:
            first = reading
        last = reading
        if best is None or last["steps"] - first["steps"] > best[1]["steps"] - best[0]["steps"]:
            best = (first, last)
    return best if best is not None and best[1]["steps"] > best[0]["steps"] else None


def read_until_done(server, load):
    readings = []
    while load.poll() is None:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
            readings.append(reading_of(answer.read().decode()))
        time.sleep(READ_SECONDS)
    return readings


def measure(args, server):
    command = [args.weft, "bench", "serve", "--url", f"http://127.0.0.1:{server.port}", "--json",
               "--requests", args.streams, "--concurrency", args.streams, "--input-len", args.input_len,
               "--output-len", args.output_len]
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True) as load:
        readings = read_until_done(server, load)
        answer = json.load(load.stdout) if load.returncode == 0 else {}
    if answer.get("succeeded") != args.streams:
        raise SystemExit(f"serve_gap: the load failed: {answer.get('errors', load.returncode)}")
    if readings[-1]["busy"] == 0:
        print("serve_gap: the device has no clock", file=sys.stderr)
        sys.exit(77)
    stretch = longest_stretch(readings, args.streams)
    if stretch is None:
        raise SystemExit(f"serve_gap: no two readings with all {args.streams} streams running")
    first, last = stretch
    steps = last["steps"] - first["steps"]
    return {"streams": args.streams, "input_len": args.input_len, "output_len": args.output_len,
            "steps": int(steps), "gap_us": (last["gap"] - first["gap"]) * 1e6 / steps,
            "busy_us": (last["busy"] - first["busy"]) * 1e6 / steps,
            "tpot_ms": answer["tpot_ms"]["p50"]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--weft", default=str(ROOT / "build" / "cuda" / "weft"))
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=1000)
    parser.add_argument("--output-len", type=int, default=384)
    args, options = parser.parse_known_args()
    words = [args.model, "--served-model-name", "m", "--max-num-seqs", str(args.streams), *options]
    server = Server(args.weft, words, sys.stderr)
    try:
        print(json.dumps(measure(args, server)))
    finally:
        server.stop()


if __name__ == "__main__":
    main()
