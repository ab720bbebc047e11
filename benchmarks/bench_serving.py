#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Serving beside llama-server and vLLM on the same machine, model and threads, with `weft bench serve` as
the client of all of them.

usage: ./dev bench serving --llama BIN_DIR --vllm BIN_DIR --vllm-model FOLDER [--loads NAMES] [--rounds 3]
                           [--threads N] [--url NAME=URL] [--group NAME=PGID] [--out FILE]

Every server that a load names is started first and stays, stopped while another one is asked: vLLM's
processes poll for seconds after an answer. A round then asks each of them once, one after the other, with
the same words, so that what else the machine does meets all alike. A first short load, which does not
count, warms each up.

  one, many, most   128 tokens in, 128 out, closed loop of 1, 16 and 32 streams
  shared            512 in, 64 out, 8 streams, nine tenths of each prompt in common
  eight             as one, with 8 streams: time to the first token
  burst             8 streams write while 50 prompts of 512 tokens arrive: gaps between their tokens
  start             from exec to the answer's first token, and memory (PSS) then, at 4096 tokens of context

A peer whose folder is not given is left out. llama-server gets as many slots as a load has streams.
--url takes a server that runs already: weft, vllm, or llama-16 for that of 16 slots; --group its process
group, to be stopped as the others are. --out gets a JSON row for each load and server, with every sample.
"""
import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_against_llama import commit, machine

ROOT = Path(__file__).resolve().parent.parent
START_CONTEXT = 4096

# streams, tokens in, tokens out, part of the prompt in common, who is asked
LOADS = {
    "one": (1, 128, 128, 0, ("weft", "llama")),
    "many": (16, 128, 128, 0, ("weft", "llama", "vllm")),
    "most": (32, 128, 128, 0, ("weft", "vllm")),
    "shared": (8, 512, 64, 0.9, ("weft", "vllm")),
    "eight": (8, 128, 128, 0, ("weft", "llama")),
}
# What is to be shown: of which server's figure, which one, how many times it.
BARS = [
    ("one", "llama-1", "output_tok_s", 1.8), ("many", "llama-16", "output_tok_s", 5),
    ("many", "vllm", "output_tok_s", 1.8), ("most", "vllm", "output_tok_s", 1.8),
    ("shared", "vllm", "output_tok_s", 3), ("eight", "llama-8", "ttft_p50_ms", 0.25),
]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def command_of(args, name, port):
    if name == "weft":
        return [args.weft, "serve", args.model, "--host", "127.0.0.1", "--port", port, "--threads",
                args.threads, "--served-model-name", "m", "--max-model-len", 4096]
    if name == "vllm":
        return [args.vllm / "vllm", "serve", args.vllm_model, "--host", "127.0.0.1", "--port", port,
                "--served-model-name", "m", "--dtype", "bfloat16", "--max-model-len", 4096,
                "--max-num-seqs", 64, "--enable-prefix-caching"]
    slots = int(name.split("-")[1])
    return [args.llama / "llama-server", "-m", args.model, "--host", "127.0.0.1", "--port", port,
            "-t", args.threads, "-tb", args.threads, "-np", slots, "-c",
            START_CONTEXT if slots == 1 else slots * 1024]


class Server:
    """A program that is started, or one that runs already."""

    def __init__(self, args, name, more=()):
        self.process = None
        self.url = args.urls.get(name)
        self.group = args.groups.get(name)
        if self.url is not None:
            return
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "VLLM_CPU_KVCACHE_SPACE": "2",
               "VLLM_CPU_OMP_THREADS_BIND": f"0-{args.threads - 1}", "HF_HUB_OFFLINE": "1",
               "VLLM_NO_USAGE_STATS": "1"}
        self.process = subprocess.Popen(
            list(map(str, [*command_of(args, name, port), *more])), env=env, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.group = self.process.pid

    def signal(self, number):
        if self.group is not None:
            os.killpg(int(self.group), number)

    def connect(self):
        host, port = self.url.removeprefix("http://").split(":")
        return http.client.HTTPConnection(host, int(port), timeout=600)

    def wait(self, pause):
        """Until it lists its model."""
        while self.process is None or self.process.poll() is None:
            try:
                connection = self.connect()
                connection.request("GET", "/v1/models")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(pause)
        sys.exit(f"a server ended at once: {self.process.args}")

    def answer_one_token(self):
        connection = self.connect()
        body = {"model": "m", "prompt": "Once upon a time", "max_tokens": 1, "temperature": 0}
        connection.request("POST", "/v1/completions", json.dumps(body),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return False
        response.read()
        return True

    def memory_mib(self):
        """Of the process, what it shares with others in part."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text(encoding="utf-8")
        return next(int(line.split()[1]) for line in text.splitlines()
                    if line.startswith("Pss:")) / 1024

    def end(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


# ---- loads -----------------------------------------------------------------------------------------


def client(args, server, *options):
    return [str(part) for part in (args.weft, "bench", "serve", "--json", "--url", server.url, *options)]


def ask(args, server, streams, requests, n_in, n_out, shared, seed):
    done = subprocess.run(
        client(args, server, "--concurrency", streams, "--requests", requests, "--input-len", n_in,
               "--output-len", n_out, "--shared-prefix", shared, "--seed", seed),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{server.url}: {done.stderr}")
    got = json.loads(done.stdout)
    if got["failed"] > 0:
        sys.exit(f"{server.url}: {got['errors']}")
    return {"output_tok_s": got["output_tok_s"], "ttft_p50_ms": got["ttft_ms"]["p50"],
            "itl_p50_ms": got["itl_ms"]["p50"], "itl_p99_ms": got["itl_ms"]["p99"]}


@contextlib.contextmanager
def alone(servers, name):
    """All other servers are stopped."""
    others = [server for other, server in servers.items() if other != name]
    for server in others:
        server.signal(signal.SIGSTOP)
    try:
        yield servers[name]
    finally:
        for server in others:
            server.signal(signal.SIGCONT)


def run_load(args, servers, load):
    """{server: [figures of a round]}"""
    streams, n_in, n_out, shared, _ = LOADS[load]
    names = servers_of(args, load)
    requests = max(2 * streams, 6)
    seed = args.seed + 1000 * list(LOADS).index(load) # no load's words are in a cache from another
    samples = {name: [] for name in names}
    for name in names:
        with alone(servers, name) as server:
            ask(args, server, streams, streams, n_in, 8, 0, 999)
    for number in range(args.rounds):
        for name in names:
            with alone(servers, name) as server:
                samples[name].append(ask(args, server, streams, requests, n_in, n_out, shared,
                                         seed + number))
    return samples


def burst_once(args, server, seed):
    streams = subprocess.Popen(
        client(args, server, "--concurrency", 8, "--requests", 8, "--input-len", 128,
               "--output-len", args.burst_tokens, "--seed", seed), stdout=subprocess.PIPE, text=True)
    time.sleep(1) # the streams write
    begun = time.monotonic()
    ask(args, server, 50, 50, 512, 1, 0, seed + 1)
    took = time.monotonic() - begun
    outlasted = streams.poll() is None
    itl = json.loads(streams.communicate()[0])["itl_ms"]
    return {"itl_p99_over_p50": itl["p99"] / itl["p50"], "itl_p50_ms": itl["p50"],
            "itl_p99_ms": itl["p99"], "arrivals_s": took, "outlasted": float(outlasted)}


def run_burst(args, servers):
    """The streams' gaps while the prompts come; they are long enough to outlast them."""
    with alone(servers, "weft") as server:
        return {"weft": [burst_once(args, server, 50 + 2 * number)
                         for number in range(args.rounds)]}


def start_once(args, name, more):
    begun = time.monotonic()
    server = Server(args, name, more)
    try:
        server.wait(0.005)
        while not server.answer_one_token(): # llama-server lists its model before it has it
            time.sleep(0.005)
        return {"first_answer_ms": (time.monotonic() - begun) * 1e3, "pss_mib": server.memory_mib()}
    finally:
        server.end()


def run_start(args):
    more = {"weft": ("--num-gpu-blocks-override", START_CONTEXT // 16), "llama-1": ()}
    samples = {name: [] for name in more}
    args = argparse.Namespace(**{**vars(args), "urls": {}, "groups": {}})
    for _ in range(args.rounds):
        for name in more:
            samples[name].append(start_once(args, name, more[name]))
    return samples


# ---- the whole -------------------------------------------------------------------------------------


def servers_of(args, load):
    """Of those that are there, in the order of a round."""
    if load == "burst":
        return ["weft"]
    streams, _, _, _, asked = LOADS.get(load, (0, 0, 0, 0, ()))
    names = [name if name != "llama" else f"llama-{streams}" for name in asked]
    folders = {"weft": args.weft, "llama": args.llama, "vllm": args.vllm}
    return [name for name in names if name in args.urls or folders[name.split("-")[0]] is not None]


def spread(values):
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def report(load, samples):
    for name, rounds in samples.items():
        figures = {key: [sample[key] for sample in rounds] for key in rounds[0]}
        print(f"{load:8}{name:10}" + "  ".join(f"{key} {spread(values)}"
                                               for key, values in figures.items()), flush=True)
    for of, peer, key, bar in BARS:
        if of == load and peer in samples:
            ours, theirs = (statistics.median(sample[key] for sample in samples[name])
                            for name in ("weft", peer))
            print(f"{load:8}weft is at {ours / theirs:.2f} of {peer}'s {key}; the bar is {bar}",
                  flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weft", default=ROOT / "build/release/weft")
    parser.add_argument("--llama", type=Path, help="folder of llama-server")
    parser.add_argument("--vllm", type=Path, help="folder of vllm's programs")
    parser.add_argument("--vllm-model", type=Path, help="the model in bf16 safetensors")
    parser.add_argument("--loads", default=",".join([*LOADS, "burst", "start"]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1, help="of the first round's words")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--burst-tokens", type=int, default=1000, help="of each running stream")
    parser.add_argument("--url", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--group", action="append", default=[], metavar="NAME=PGID")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.urls = dict(entry.split("=", 1) for entry in args.url)
    args.groups = dict(entry.split("=", 1) for entry in args.group)
    return args


def main():
    args = parse()
    loads = args.loads.split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended")) # with the servers
    servers = {}
    try:
        for name in sorted({name for load in loads for name in servers_of(args, load)}):
            servers[name] = Server(args, name)
        for server in servers.values():
            server.wait(0.2)
        for load in loads:
            samples = (run_start(args) if load == "start" else run_burst(args, servers)
                       if load == "burst" else run_load(args, servers, load))
            report(load, samples)
            if args.out is not None:
                with args.out.open("a", encoding="utf-8") as file:
                    for name, rounds in samples.items():
                        file.write(json.dumps({"load": load, "server": name, "samples": rounds,
                                               "threads": args.threads, "machine": machine(),
                                               "commit": commit(), "time": time.time()}) + "\n")
    finally:
        for server in servers.values():
            server.end()


if __name__ == "__main__":
    main()
