#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ranks on one GPU: `weft serve -tp N --device cuda` against one rank, and what N of them cost.

For each model one rank answers first, then each group: the tokens are those of the one rank, and of the
reference where the model has one (tests/vectors/smollm2), wherever the choice was clear; they are the
same alone and in company, sampled ones too. Last a rank is killed: the others end, nobody hangs.

usage: ranks.py [--weft FILE] [--device cuda] [--groups tp2,tp4,pp2] [--coll-backend nccl] [--kill] [--rates] MODEL...
A model is a file or a folder; WEFT_TEST_MODEL is taken for SmolLM2. Processes on one GPU take turns of
2 ms on it, and ranks wait for each other at each sum: with nvidia-cuda-mps-control running (--mps
starts one for as long as it takes) they run side by side.
"""
import argparse
import concurrent.futures
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "tests" / "vectors"
MARGIN = 0.6  # of logits: a smaller lead may turn, activations are bf16
LENGTH = 16
COMPANY = 6
ALONE = 4  # requests that are asked once more, one by one
START_SECONDS = 60


def cut_of(group):
    """tp2 -> ["-tp", "2"]; "" is one rank."""
    return [word for kind, n in re.findall(r"(tp|pp)(\d+)", group) for word in ("-" + kind, n)]


class Server:
    """`weft serve` with these words behind it, on a port of its own; what it says goes to log as well."""

    def __init__(self, weft, words, log):
        self.log = log
        self.lines = []
        self.port = None
        self.ready = threading.Event()
        self.begun = time.monotonic()
        self.process = subprocess.Popen([weft, "serve", *words, "--host", "127.0.0.1", "--port", "0"],
                                        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        threading.Thread(target=self._read, daemon=True).start()
        self.ready.wait(START_SECONDS)
        self.start_seconds = time.monotonic() - self.begun
        if self.port is None:
            self.stop()
            raise SystemExit(f"{' '.join(words)} does not start:\n" + "".join(self.lines[-6:]))

    def _read(self):
        for line in self.process.stderr:
            self.log.write(line)
            self.lines.append(line)
            found = re.search(r"listening on http://[^ ]*:(\d+)", line)
            if found:
                self.port = int(found[1])
                self.ready.set()
        self.ready.set()

    def ask(self, prompt, tokens=LENGTH, seconds=60, **more):
        """(status, choice)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0,
                "ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True,
                "logprobs": 2, **more}
        connection.request("POST", "/v1/completions", json.dumps(body),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read() or b"{}")
        connection.close()
        return response.status, answer["choices"][0] if response.status == 200 else answer

    def answers(self, requests):
        """(the first few by themselves, all at once)"""
        alone = [self.ask(**request) for request in requests[:ALONE]]
        with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
            together = list(pool.map(lambda request: self.ask(**request), requests))
        for status, choice in alone + together:
            if status != 200:
                raise SystemExit(f"status {status}: {choice}")
        return [choice for _, choice in alone], [choice for _, choice in together]

    def followers(self):
        tasks = Path(f"/proc/{self.process.pid}/task")
        return sorted(int(pid) for task in tasks.iterdir()
                      for pid in (task / "children").read_text().split())

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return None


def start_group(args, model, group):
    words = [model, "--device", args.device, "--served-model-name", "m", "--max-model-len", "256",
             "--max-num-seqs", "8", "--num-gpu-blocks-override", "512", "--coll-timeout", "10",
             *cut_of(group)]
    if group:
        words += ["--coll-backend", args.coll_backend]
    return Server(args.weft, words, args.log)


def leads(choice):
    """How far the token was before the next one, of logits, at each place."""
    tops = choice["logprobs"]["top_logprobs"]
    return [max(top.values()) - min(top.values()) if len(top) > 1 else 1e9 for top in tops]


def first_difference(tokens, expected):
    return next((i for i, pair in enumerate(zip(tokens, expected)) if pair[0] != pair[1]), None)


def compare(tokens, expected, margins, what):
    at = first_difference(tokens, expected)
    if at is not None and margins[at] > MARGIN:
        raise SystemExit(f"{what}: token {at} is {tokens[at]}, not {expected[at]}, "
                         f"which led by {margins[at]:.2f}")
    return len(expected) if at is None else at


def load_cases(model):
    """(prompts, reference or None)"""
    if "smollm2" in Path(model).name.lower():
        cases = json.loads((VECTORS / "smollm2" / "greedy.json").read_text())["cases"]
        cases = sorted((c for c in cases if len(c["prompt_ids"]) < 180),
                       key=lambda c: len(c["prompt_ids"]))[:COMPANY]
        return [c["prompt_ids"] for c in cases], [c["f32"] for c in cases]
    return [[(7 * i + 11 * j) % 300 + 3 for j in range(5 + 9 * i)] for i in range(COMPANY)], None


def start_mps(folder):
    """True: there is one now, of ours, which is to be ended."""
    os.environ["CUDA_MPS_PIPE_DIRECTORY"] = folder
    os.environ["CUDA_MPS_LOG_DIRECTORY"] = folder
    try:
        return subprocess.run(["nvidia-cuda-mps-control", "-d"], timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"no MPS: {error}", flush=True)
        return False


def stop_mps():
    subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, timeout=20)


def requests_for(prompts):
    ways = [{}, {"temperature": 0.8, "seed": 1}, {"temperature": 0.8, "top_p": 0.9, "seed": 2},
            {"temperature": 0.9, "top_k": 20, "seed": 3},
            {"temperature": 1.2, "top_k": 40, "top_p": 0.95, "seed": 4}]
    sampled = [{"prompt": prompts[0], **way} for way in ways[1:]]
    return sampled[1:3] + [{"prompt": prompt} for prompt in prompts] + sampled[:1] + sampled[3:]


def rate(server, prompt, company):
    """Tokens a second of so many requests at once."""
    with concurrent.futures.ThreadPoolExecutor(company) as pool:
        begun = time.monotonic()
        done = list(pool.map(lambda _: server.ask(prompt, 48), range(company)))
    if any(status != 200 for status, _ in done):
        raise SystemExit("a request of the measurement failed")
    return company * 48 / (time.monotonic() - begun)


def check_group(args, model, group, first):
    prompts, reference = load_cases(model)
    server = start_group(args, model, group)
    requests = requests_for(prompts)
    alone, together = server.answers(requests)
    for i, (one, other) in enumerate(zip(alone, together)):
        if one["token_ids"] != other["token_ids"]:
            raise SystemExit(f"{model} {group}: answer {i} is another one in company")
    greedy = together[2:2 + len(prompts)]
    kept = 0
    for i in range(len(prompts)):
        tokens = greedy[i]["token_ids"]
        if reference is not None:
            kept += compare(tokens, reference[i]["greedy"][:LENGTH], reference[i]["margin"],
                            f"{model} {group} prompt {i} against the reference")
        if first is not None:
            compare(tokens, first[i]["token_ids"], leads(first[i]),
                    f"{model} {group} prompt {i} against one rank")
    one = rate(server, prompts[0], 1)
    eight = rate(server, prompts[0], 8)
    code = server.stop()
    if code != 0:
        raise SystemExit(f"{model} {group}: exit code {code}\n" + "".join(server.lines[-6:]))
    named = Path(model).name
    said = f", {kept} tokens as the reference" if reference is not None else ""
    print(f"ok {named} {group or 'one rank'}: start {server.start_seconds:.1f} s{said}; tokens/s "
          f"{one:.0f} alone, {eight:.0f} of 8", flush=True)
    return greedy


def measure_group(args, model, group):
    prompts, _ = load_cases(model)
    server = start_group(args, model, group)
    one = rate(server, prompts[0], 1)
    eight = rate(server, prompts[0], 8)
    server.stop()
    print(f"ok {Path(model).name} {group or 'one rank'}: tokens/s {one:.1f} alone, {eight:.1f} of 8",
          flush=True)


def check_kill(args, model):
    prompts, _ = load_cases(model)
    server = start_group(args, model, "tp2")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.ask, prompts[0], 200)
        time.sleep(0.2)  # by then it runs, has not come or is over: all must end
        begun = time.monotonic()
        os.kill(server.followers()[0], signal.SIGKILL)
        try:
            status, _ = asked.result(40)
        except (ConnectionError, http.client.HTTPException):
            status = "closed"
    try:
        code = server.process.wait(40)
    except subprocess.TimeoutExpired:
        server.process.kill()
        raise SystemExit("a killed rank: the leader hangs")
    if code == 0:
        raise SystemExit(f"a killed rank: exit code {code}")
    print(f"ok a killed rank: status {status}, all ended after {time.monotonic() - begun:.1f} s",
          flush=True)


def run(args, models):
    groups = list(filter(None, args.groups.split(",")))
    if args.kill:
        check_kill(args, models[0])
    for model in models:
        if args.rates:
            for group in ["", *groups]:
                measure_group(args, model, group)
            continue
        first = check_group(args, model, "", None)
        for group in groups:
            check_group(args, model, group, first)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--weft", default=str(ROOT / "build" / "cuda" / "weft"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--groups", default="tp2,tp4,pp2")
    parser.add_argument("--coll-backend", default="auto")
    parser.add_argument("--log", default="ranks.log")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--rates", action="store_true", help="of large models: no tokens compared")
    parser.add_argument("--mps", metavar="FOLDER", help="of its pipes: empty, there")
    args = parser.parse_args()
    args.log = open(args.log, "w")
    models = args.models
    if not models and os.environ.get("WEFT_TEST_MODEL"):
        models = [os.environ["WEFT_TEST_MODEL"]]
    if not models:
        models = [str(VECTORS / "tiny-models" / "llama")]
    has_mps = args.mps is not None and start_mps(args.mps)
    try:
        run(args, models)
    finally:
        if has_mps:
            stop_mps()


if __name__ == "__main__":
    sys.exit(main())
