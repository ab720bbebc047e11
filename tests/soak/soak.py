#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mixed load with random disconnects on a running server, and what must be true after it.

usage: soak.py --url URL [--requests N] [--concurrency C] [--seed S] [--pid PID] [--api-key K]

Workers take requests from one list that the seed makes: streamed and whole completions and chats,
several samples, JSON schemas, prompts with a common beginning, bad requests, and clients that go
away: in the queue, in the prompt, in the answer, or with half a request sent. Among them are probes:
greedy requests whose answer was taken when nothing else ran, and must come again bit for bit.

Afterwards nothing may be left: no request running or waiting, no KV block in use; with --pid also the
memory: what the process holds at the end is at most RSS_SLACK more than after the first quarter.
"""
import argparse
import asyncio
import collections
import json
import random
import sys

import httpx

RSS_SLACK = 24 << 20  # bytes; the allocator's own rounding, not a byte for each request
SETTLE_SECONDS = 20
IDLE_METRICS = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
                "weft:kv_blocks_referenced")

WORDS = "loom thread cloth weave shuttle warp yarn spindle pattern silk wool linen dye knot fold".split()
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
                                           "age": {"type": "integer", "minimum": 0, "maximum": 99}},
          "required": ["name", "age"], "additionalProperties": False}
PROBES = ("The capital of France is", "Once upon a time there was a weaver who", "1, 2, 3, 4,",
          "def add(a, b):")


class Failure(Exception):
    """The server did what it must not."""


class Soak:
    def __init__(self, args):
        self.args = args
        self.random = random.Random(args.seed)
        self.counts = collections.Counter()
        self.failures = []
        self.model = None
        self.probe_answers = {}
        headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
        self.client = httpx.AsyncClient(
            base_url=args.url, headers=headers, timeout=httpx.Timeout(300),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=args.concurrency))
        self.kinds = {
            self.probe: 4, self.stream_completion: 4, self.stream_chat: 3, self.whole_chat: 2,
            self.samples: 2, self.json_answer: 1, self.leave_stream: 5, self.leave_whole: 4,
            self.leave_half_sent: 1, self.bad_request: 3, self.tokenize: 1,
        }

    # ---- what clients send ------------------------------------------------------------------

    def prompt(self, rng):
        """Mostly short; a third begins alike, so that blocks are shared; some fill many blocks."""
        common = ["In", "the", "old", "mill"] * 12 if rng.random() < 0.33 else []
        n = rng.choice((3, 10, 30, 30, 120, 400))
        return " ".join(common + rng.choices(WORDS, k=n))

    def completion(self, rng, **more):
        return {"model": self.model, "prompt": self.prompt(rng),
                "max_tokens": rng.choice((1, 4, 16, 48)), "temperature": rng.choice((0, 0.8)),
                "seed": rng.randrange(1 << 30), **more}

    def chat(self, rng, **more):
        return {"model": self.model, "messages": [{"role": "user", "content": self.prompt(rng)}],
                "max_tokens": rng.choice((4, 16, 48)), **more}

    async def post(self, path, body, expected=200):
        response = await self.client.post(path, json=body)
        if response.status_code == 503 and expected == 200:
            return None  # a full queue is an answer
        if response.status_code != expected:
            raise Failure(f"{path}: HTTP {response.status_code}: {response.text[:200]}")
        return response.json()

    async def stream(self, path, body, n_events=None):
        """Reads the stream to its end, or leaves after n_events."""
        text, is_done = [], False
        async with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            if response.status_code == 503:
                return None
            if response.status_code != 200:
                raise Failure(f"{path}: HTTP {response.status_code}: {await response.aread()}")
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    is_done = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise Failure(f"{path}: error event {line[:200]}")
                    text += [choice.get("text") or "" for choice in event["choices"]]
                    if n_events is not None and len(text) >= n_events:
                        return None
        if not is_done:
            raise Failure(f"{path}: stream ended without [DONE]")
        return "".join(text)

    async def probe(self, rng):
        prompt = rng.choice(PROBES)
        got = await self.stream("/v1/completions", self.probe_body(prompt))
        if got is not None and got != self.probe_answers[prompt]:
            raise Failure(f"probe {prompt!r}: {got!r} is not {self.probe_answers[prompt]!r}")

    def probe_body(self, prompt):
        return {"model": self.model, "prompt": prompt, "max_tokens": 24, "temperature": 0,
                "ignore_eos": True}

    async def stream_completion(self, rng):
        await self.stream("/v1/completions", self.completion(rng))

    async def stream_chat(self, rng):
        await self.stream("/v1/chat/completions", self.chat(rng))

    async def whole_chat(self, rng):
        await self.post("/v1/chat/completions", self.chat(rng))

    async def samples(self, rng):
        n = rng.choice((2, 3))
        got = await self.post("/v1/completions", self.completion(rng, n=n, logprobs=2))
        if got is not None and len(got["choices"]) != n:
            raise Failure(f"{len(got['choices'])} choices, not {n}")

    async def json_answer(self, rng):
        body = self.chat(rng, max_tokens=64, response_format={
            "type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}})
        body["messages"][0]["content"] = "Make up a person."
        got = await self.post("/v1/chat/completions", body)
        if got is not None and got["choices"][0]["finish_reason"] == "stop":
            person = json.loads(got["choices"][0]["message"]["content"])
            if set(person) != {"name", "age"}:
                raise Failure(f"not of the schema: {person}")

    async def leave_stream(self, rng):
        body = self.completion(rng, max_tokens=400, ignore_eos=True)
        await self.stream("/v1/completions", body, n_events=rng.choice((1, 2, 8, 30)))

    async def leave_whole(self, rng):
        body = self.completion(rng, max_tokens=400, ignore_eos=True)
        try:
            await asyncio.wait_for(self.post("/v1/completions", body), rng.uniform(0, 1.5))
        except asyncio.TimeoutError:
            pass

    async def leave_half_sent(self, rng):
        url = httpx.URL(self.args.url)
        _, writer = await asyncio.open_connection(url.host, url.port)
        body = json.dumps(self.completion(rng)).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head.encode() + body)[:rng.randrange(1, len(head) + len(body))])
        await writer.drain()
        writer.close()

    async def bad_request(self, rng):
        body = rng.choice((
            {"model": self.model, "prompt": "x", "max_tokens": -1},
            {"model": self.model, "prompt": "x", "temperature": "warm"},
            {"model": self.model, "prompt": {"not": "text"}},
            {"model": self.model},
        ))
        await self.post("/v1/completions", body, expected=400)

    async def tokenize(self, rng):
        await self.post("/tokenize", {"model": self.model, "prompt": self.prompt(rng)})

    # ---- the run -----------------------------------------------------------------------------

    async def worker(self, queue):
        while queue:
            kind, seed = queue.popleft()
            try:
                await kind(random.Random(seed))
            except (Failure, httpx.HTTPError, ValueError, KeyError) as error:
                self.failures.append(f"{kind.__name__} (seed {seed}): {type(error).__name__}: {error}")
            self.counts[kind.__name__] += 1

    async def run_part(self, n):
        kinds = self.random.choices(list(self.kinds), weights=self.kinds.values(), k=n)
        queue = collections.deque((kind, self.random.randrange(1 << 32)) for kind in kinds)
        workers = (self.worker(queue) for _ in range(self.args.concurrency))
        await asyncio.gather(*workers)

    async def metrics(self):
        """Sums of the samples of each name, all labels together."""
        totals = collections.Counter()
        for line in (await self.client.get("/metrics")).text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                totals[name.split("{")[0]] += float(value)
        return totals

    async def wait_until_idle(self):
        """Returns what is not zero when the time is over, {} when all is."""
        deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while True:
            metrics = await self.metrics()
            missing = [name for name in IDLE_METRICS[:3] if name not in metrics]
            if missing:
                raise Failure(f"/metrics has no {missing}")
            busy = {name: metrics[name] for name in IDLE_METRICS if metrics.get(name, 0) != 0}
            if not busy or asyncio.get_running_loop().time() > deadline:
                return busy
            await asyncio.sleep(0.1)

    def rss(self):
        if self.args.pid is None:
            return 0
        with open(f"/proc/{self.args.pid}/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    async def run(self):
        models = (await self.client.get("/v1/models")).json()
        self.model = models["data"][0]["id"]
        for prompt in PROBES:
            self.probe_answers[prompt] = await self.stream("/v1/completions", self.probe_body(prompt))
        await self.run_part(self.args.requests // 4)
        warm = self.rss()
        await self.run_part(self.args.requests - self.args.requests // 4)
        busy = await self.wait_until_idle()
        end = self.rss()
        await self.client.aclose()
        if busy:
            self.failures.append(f"not idle after {SETTLE_SECONDS} s: {busy}")
        if end > warm + RSS_SLACK:
            self.failures.append(f"memory grew from {warm >> 20} to {end >> 20} MiB")
        return {"requests": sum(self.counts.values()), "kinds": dict(self.counts),
                "seed": self.args.seed, "rss_warm_mib": warm >> 20, "rss_end_mib": end >> 20,
                "failures": self.failures}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pid", type=int)
    parser.add_argument("--api-key")
    return parser.parse_args(argv)


def main(argv=None):
    result = asyncio.run(Soak(parse(argv)).run())
    print(json.dumps(result, indent=1))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
