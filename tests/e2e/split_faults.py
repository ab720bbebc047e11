#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode workers, their fabric and their clients broken under load, one fault at a time.

usage: ./dev faults [--faults 500] [--seed S] [--seconds N] [--log build/faults.jsonl]

One prefill worker; decode workers that reach it through shared memory, through a tcp wire that can be
damaged (noisy_wire.py), through the fabric's faulty backend and, for root, from a network namespace
behind a link that can be taken down. After each fault: every answer was the one worker's to the last
bit of its log-probabilities, or its own decode worker had been killed; nothing hangs, nothing runs, no
block is held.

--log gets a JSON row for each fault. The same command goes on behind the last row, with the same seed;
--seconds ends it earlier, behind a fault. The last line says what there was in all.
"""
import argparse
import collections
import contextlib
import datetime
import json
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import httpx
import msgpack
import pytest
import zmq

import netns
from conftest import SECONDS, Server, command, leaving_after, wait_for, web
from noisy_wire import MAGIC, NoisyWire
from test_pd import ENV, completion, ids, prefill_leg, transfer

CLIENTS = 3
REQUESTS = 2  # of each client, around each fault
LEASE = 2  # seconds
LONGEST_DOWN = 20  # seconds of a link
# The prefill worker cannot keep all prompts: what it held is soon another's.
COMMON = ("--max-model-len", "640", "--max-num-seqs", "4", "--threads", "1")
P_FLAGS = (*COMMON, "--num-gpu-blocks-override", "80")
D_FLAGS = (*COMMON, "--num-gpu-blocks-override", "128", "--no-enable-prefix-caching")
PROMPTS = [ids(900 + i, n) for i, n in enumerate((40, 97, 160, 255, 400, 520))]
MAX_TOKENS = 10
COUNTED = {"pulls": "weft:kv_transfer_pulls_total",
           "fallbacks": "weft:kv_transfer_fallbacks_total",
           "stale": "weft:kv_transfer_stale_reads_total",
           "expired": "weft:kv_transfer_leases_expired_total",
           "released": "weft:kv_transfer_leases_released_total"}
AT_REST = ("vllm:num_requests_running", "vllm:num_requests_waiting", "weft:kv_blocks_referenced",
           "weft:kv_transfer_leases_open", "weft:kv_transfer_lease_blocks",
           "weft:kv_transfer_pulls_open")


def post(server, body):
    answer = web.post(server.url + "/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(answer):
    """Tokens, and how likely each was, to the last bit."""
    choice = answer["choices"][0]
    return list(zip(choice["token_ids"], choice["logprobs"]["token_logprobs"]))


class Way:
    """How a decode worker reaches the prefill worker: a backend, a wire in between, a namespace."""

    def __init__(self, backend, wire=None, space=None):
        self.backend = backend
        self.wire = wire
        self.space = space
        self.params = "faulty.under=tcp" if backend == "FAULTY" else None

    def command(self):
        extra = {"fabric_params": self.params} if self.params else {}
        flags = (*D_FLAGS, "--prefill-urls", "*",
                 *transfer("kv_consumer", backends=[self.backend], kv_lease_duration=LEASE,
                           transfer_wait=5, **extra))
        return [*(("ip", "netns", "exec", self.space) if self.space else ()), *command(*flags)]


class Worker(Server):
    """is_doomed: its end is no surprise. What it is asked is asked in its namespace."""

    def __init__(self, words, side_port=0, space=None):
        self.space = space
        self.is_doomed = False
        super().__init__(words, {**ENV, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_port)})

    def where(self):
        return netns.inside(self.space) if self.space else contextlib.nullcontext()

    def metrics(self):
        with self.where():
            return super().metrics()

    def post(self, body):
        with self.where():
            return post(self, body)

    def kill(self):
        self.is_doomed = True
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Service:
    """The workers of now, and what was seen of all there were."""

    def __init__(self, seed, link):
        """link: netns.Link, or None: no decode worker is behind one."""
        self.link = link
        self.wire = NoisyWire(seed)
        self.wires = [self.wire] + ([NoisyWire(seed, link.near)] if link else [])
        self.ways = {"shm": Way("SHM"), "tcp": Way("TCP", self.wire), "faulty": Way("FAULTY")}
        if link:
            self.ways["link"] = Way("TCP", self.wires[1], link.space)
        self.everyone = []
        self.counts = {}
        self.decode_legs = 0
        self.p = None
        self.decoders = {}

    def begin(self):
        self.p = self.start_prefiller()
        self.decoders = {name: self.start_decoder(name) for name in self.ways}

    def end(self):
        """At once; what is still running does not count."""
        for server in self.everyone:
            server.process.kill()
            server.process.wait()
        for wire in self.wires:
            wire.close()

    def start(self, *arguments):
        self.everyone.append(Worker(*arguments))
        return self.everyone[-1].wait_until_listening()

    def start_prefiller(self, side_port=0):
        role = transfer("kv_producer", backends=["SHM", "TCP", "FAULTY"], kv_lease_duration=LEASE,
                        fabric_params="faulty.under=tcp")
        server = self.start(command(*P_FLAGS, *role), side_port)
        server.side_port = web.get(server.url + "/kv_transfer").json()["port"]
        for wire in self.wires:
            wire.to(server.side_port)
        return server

    def start_decoder(self, name):
        way = self.ways[name]
        return self.start(way.command(), 0, way.space)

    def restart_decoder(self, name):
        self.decoders[name].kill()
        self.decoders[name] = self.start_decoder(name)

    def workers(self):
        return [self.p, *self.decoders.values()]

    def prefill(self, which, name):
        """kv_transfer_params for the named decode worker."""
        leg = prefill_leg(completion(PROMPTS[which]))
        return self.by_way_of(name, self.p.post(leg)["kv_transfer_params"])

    def by_way_of(self, name, params):
        wire = self.ways[name].wire
        if params and wire:
            params.update(remote_host=wire.host, remote_port=wire.side_port)
        return params

    def is_at_rest(self):
        for server in self.workers():
            assert server.process.poll() is None, "".join(server.lines[-20:])
        metrics = [(server, server.metrics()) for server in self.workers()]
        for server, seen in metrics:
            self.counts[server] = {name: total(seen, full) for name, full in COUNTED.items()}
        return all(total(seen, name) == 0 for _, seen in metrics for name in AT_REST)

    def last_words(self):
        return [line.rstrip() for server in self.everyone[-8:]
                for line in (f"-- {' '.join(server.process.args)}", *server.lines[-30:])]

    def totals(self):
        totals = collections.Counter(decode_legs=self.decode_legs, flipped=self.wire.flipped,
                                     cuts=self.wire.cuts)
        for counts in self.counts.values():
            totals.update(counts)
        return {name: int(n) for name, n in totals.items()}


def total(metrics, name):
    return sum(value for key, value in metrics.items() if key.split("{")[0] == name)


# ---- load ----------------------------------------------------------------------------------------

class Load:
    """Clients that send each request to the prefill and to a decode worker, as a proxy does."""

    def __init__(self, service, answers, draw, favourite):
        self.service = service
        self.answers = answers
        self.mistakes = []
        self.legs = 0
        names = list(service.decoders) + [favourite] * 3
        self.plans = [[(draw.randrange(len(PROMPTS)), draw.choice(names), draw.random() < 0.3,
                        draw.randrange(1, MAX_TOKENS + 1)) for _ in range(REQUESTS)]
                      for _ in range(CLIENTS)]
        self.threads = [threading.Thread(target=self._run, args=(plan,)) for plan in self.plans]
        for thread in self.threads:
            thread.start()

    def _run(self, plan):
        for request in plan:
            try:
                self._send(*request)
            except (httpx.HTTPError, AssertionError) as error:
                self.mistakes.append((request, repr(error)))

    def _prefill(self, which, name):
        p = self.service.p
        self.legs += 1
        try:
            return self.service.prefill(which, name)
        except httpx.HTTPError:
            if not p.is_doomed:
                raise
            return None  # its front computes it on the decode worker

    def _send(self, which, name, in_one_call, n):
        if in_one_call and self.service.ways[name].wire is None:
            params = {"do_remote_prefill": True, "prefill_url": self.service.p.url}
        else:
            params = self._prefill(which, name)
        d = self.service.decoders[name]
        self.legs += 1
        self.service.decode_legs += 1
        try:
            answer = d.post(completion(PROMPTS[which], max_tokens=n, kv_transfer_params=params))
        except httpx.HTTPError:
            if not d.is_doomed:
                raise
            return
        assert said(answer) == self.answers[which][:n], params

    def join(self):
        deadline = time.monotonic() + SECONDS
        for thread in self.threads:
            thread.join(max(0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a request hangs"
        assert not self.mistakes, self.mistakes


# ---- faults --------------------------------------------------------------------------------------

def moment(draw, seconds):
    """Not a wait for something: where in the load the fault falls, or how long it lasts."""
    threading.Event().wait(draw.random() * seconds)


def kill_prefiller(service, draw):
    service.p.kill()
    service.p = service.start_prefiller(service.p.side_port if draw.random() < 0.5 else 0)


def kill_decoder(service, draw):
    service.restart_decoder(draw.choice(sorted(service.decoders)))


def shake_fabric(service, draw):
    """Another faulty fabric; the load behind it, not just what was killed, is to get through."""
    service.ways["faulty"].params = "faulty.under=tcp,faulty.seed={},{}".format(
        draw.randrange(1, 1 << 30),
        draw.choice([f"faulty.drop={draw.uniform(0.02, 0.5):.3f}",
                     f"faulty.cut_after={draw.randrange(1, 20_000_000)}",
                     f"faulty.delay_us={draw.randrange(1, 200_000)},faulty.reorder=0.3",
                     f"faulty.drop=0.05,faulty.delay_us={draw.randrange(1, 50_000)}"]))
    service.restart_decoder("faulty")


def flip_bytes(service, draw):
    """The load may go other ways: one more request comes by this one. What it answers."""
    which = len(PROMPTS) - 1
    service.wire.flip(draw.randrange(1, 30), draw.choice([0.1, 0.5, 1]))
    service.decode_legs += 1
    answer = service.decoders["tcp"].post(completion(
        PROMPTS[which], max_tokens=4, kv_transfer_params=service.prefill(which, "tcp")))
    return [(which, said(answer))]


def cut_wire(service, draw):
    for _ in range(draw.randrange(1, 4)):
        service.wire.cut()
        moment(draw, 0.2)


def silence_wire(service, draw):
    service.wire.loud.clear()
    moment(draw, draw.choice([0.3, 3, 8]))
    service.wire.loud.set()


def take_link_down(service, draw):
    service.link.put("down")
    threading.Event().wait(0.1 * (LONGEST_DOWN / 0.1) ** draw.random())  # the fault
    service.link.put("up")


def stop_decoder(service, draw):
    """A lease ends while it cannot say that it wants it; then it comes. What it answers."""
    name = draw.choice(sorted(service.decoders))
    d, which = service.decoders[name], draw.randrange(len(PROMPTS))
    params = service.prefill(which, name)
    service.decode_legs += 1
    before = service.p.gauge("weft:kv_transfer_leases_expired_total")
    d.process.send_signal(signal.SIGSTOP)
    answers = []
    late = threading.Thread(target=lambda: answers.append(
        d.post(completion(PROMPTS[which], max_tokens=4, kv_transfer_params=params))))
    late.start()
    try:
        if params:
            wait_for(lambda: service.p.gauge("weft:kv_transfer_leases_expired_total") > before,
                     what="a lease's end")
    finally:
        d.process.send_signal(signal.SIGCONT)
        late.join(SECONDS)
    return [(which, said(answers[0]) if answers else None)]


def stop_prefiller(service, draw):
    service.p.process.send_signal(signal.SIGSTOP)
    moment(draw, draw.choice([0.2, LEASE, 2 * LEASE]))
    service.p.process.send_signal(signal.SIGCONT)


def leave_between_the_legs(service, draw):
    for _ in range(draw.randrange(1, 3)):
        service.prefill(draw.randrange(len(PROMPTS)), "shm")


def leave_in_the_decode_leg(service, draw):
    name = draw.choice(sorted(service.decoders))
    d, which = service.decoders[name], draw.randrange(len(PROMPTS))
    service.decode_legs += 1
    body = completion(PROMPTS[which], max_tokens=100,
                      kv_transfer_params=service.prefill(which, name))
    with d.where(), pytest.raises(httpx.TimeoutException):
        web.post(d.url + "/v1/completions", json=body, timeout=leaving_after(0.001 + 0.1 * draw.random()))


# ---- strangers -----------------------------------------------------------------------------------

def listening_ports(server):
    """All of a process, on any address."""
    inodes = set()
    for fd in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(fd))
        except FileNotFoundError:
            pass
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{server.process.pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                ports.add(int(words[1].rsplit(":", 1)[1], 16))
    return ports


def crc32c(data):
    sum_ = 0xFFFFFFFF
    for byte in data:
        sum_ ^= byte
        for _ in range(8):
            sum_ = sum_ >> 1 ^ (0x82F63B78 if sum_ & 1 else 0)
    return sum_ ^ 0xFFFFFFFF


def hello(draw):
    """The fabric's, of somebody who does not know the port's token."""
    rest = draw.randbytes(32) + struct.pack("<QII", 1, 1000, 1) + b"stranger".ljust(256, b"\0")
    return MAGIC + struct.pack("<II", 1, crc32c(rest)) + rest


ZMQ_GREETING = bytes.fromhex("ff00000000000000017f0300") + b"NULL".ljust(20, b"\0") + bytes(32)


def garbage(draw):
    noise = draw.randbytes(draw.randrange(1, 5000))
    return draw.choice([noise, ZMQ_GREETING + noise, ZMQ_GREETING[:draw.randrange(1, 64)],
                        hello(draw), hello(draw)[:draw.randrange(1, 320)], hello(draw) + noise,
                        MAGIC + noise, b"GET / HTTP/1.1\r\n\r\n"])


def throw_bytes(service, draw):
    held = []
    for server in service.workers():
        for port in sorted(listening_ports(server) - {server.port}) * 2:
            with server.where():
                end = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
            end.sendall(garbage(draw))
            held.append(end)  # some stay, with nothing more to say
            if draw.random() < 0.5:
                held.pop().close()
    moment(draw, 0.2)
    for end in held:
        end.close()


def ask_nonsense(service, draw):
    """Over ZMQ, to the side channel; a question that means something is answered behind it."""
    with zmq.Context.instance().socket(zmq.DEALER) as asker:
        asker.linger = 0
        asker.connect(f"tcp://127.0.0.1:{service.p.side_port}")
        for _ in range(draw.randrange(1, 20)):
            frames = [draw.choice([b"", draw.randbytes(draw.randrange(1, 250)),
                                   msgpack.packb([b"get_meta_msg", draw.randrange(1 << 32), 9]),
                                   msgpack.packb([b"get_meta_msg", -1, "0"]),
                                   msgpack.packb({"a": [[[]]] * 9})])
                      for _ in range(draw.randrange(1, 5))]
            asker.send_multipart(frames)
        asker.send_multipart([b"", msgpack.packb([b"get_meta_msg", 0, 0])])
        deadline = time.monotonic() + SECONDS
        while not (asker.poll(30000) and len(asker.recv_multipart()) == 3):
            assert time.monotonic() < deadline, "the side channel is silent"


KINDS = [kill_prefiller, kill_decoder, shake_fabric, flip_bytes, cut_wire, silence_wire,
         take_link_down, stop_decoder, stop_prefiller, leave_between_the_legs,
         leave_in_the_decode_leg, throw_bytes, ask_nonsense]
FAVOURITE = {shake_fabric: "faulty", flip_bytes: "tcp", cut_wire: "tcp", silence_wire: "tcp",
             take_link_down: "link"}


# ---- the campaign --------------------------------------------------------------------------------

def learn_answers():
    """Of one worker."""
    server = Server(command(*D_FLAGS)).wait_until_listening()
    answers = [said(post(server, completion(prompt, max_tokens=MAX_TOKENS))) for prompt in PROMPTS]
    assert server.stop() == 0
    return answers


def kinds_of(seed, n, has_link):
    """Each equally often, in an order of the seed's."""
    kinds = [kind for kind in KINDS if has_link or kind is not take_link_down]
    kinds = [kinds[i % len(kinds)] for i in range(n)]
    random.Random(seed).shuffle(kinds)
    return kinds


class Campaign:
    """Faults of a seed. done: how many of each kind came to a good end here."""

    def __init__(self, seed, n):
        self.seed = seed
        reason = netns.missing()
        self.link = None if reason else netns.Link()
        self.kinds = kinds_of(seed, n, self.link is not None)
        self.done = collections.Counter()
        self.service = Service(seed, self.link)
        self.answers = None
        if reason:
            print("no link is taken down:", reason, flush=True)

    def __enter__(self):
        try:
            self.answers = learn_answers()
            self.service.begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.service.end()
        if self.link:
            self.link.close()

    def run_fault(self, i):
        """AssertionError: what it was, and what the workers said."""
        kind = self.kinds[i]
        try:
            self._run(kind, random.Random(f"{self.seed} {i}"))
        except AssertionError as error:
            where = f"seed {self.seed}, fault {i}, {kind.__name__}: {error}"
            raise AssertionError("\n".join([where, *self.service.last_words()])) from error
        self.done[kind.__name__] += 1

    def _run(self, fault, draw):
        service = self.service
        load = Load(service, self.answers, draw, FAVOURITE.get(fault, draw.choice(["shm", "tcp"])))
        wanted = draw.randrange(1, CLIENTS * REQUESTS)
        wait_for(lambda: load.legs >= wanted, what="load")
        moment(draw, 0.3)
        for which, answer in fault(service, draw) or ():
            assert answer == self.answers[which][:4], f"{answer} of prompt {which}"
        load.join()
        service.wire.to_flip = 0
        wait_for(service.is_at_rest, what="rest")

    def stop(self):
        """Every worker of now ends well."""
        totals = self.service.totals()
        assert totals["pulls"] + totals["fallbacks"] <= totals["decode_legs"], "counted twice"
        for server in self.service.workers():
            assert server.stop() == 0, "".join(server.lines[-20:])


# ---- in pieces -----------------------------------------------------------------------------------

def read_log(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_row(path, rows, row):
    rows.append(row)
    with path.open("a") as log:
        log.write(json.dumps(row) + "\n")


def done_of(rows):
    return [row for row in rows if "failure" not in row]


def run_piece(args, rows):
    """What is left of the campaign, or --seconds of it. A fault that failed is the next one again."""
    until = time.monotonic() + args.seconds
    piece = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    with Campaign(args.seed, args.faults) as campaign:
        for i in range(len(done_of(rows)), args.faults):
            if time.monotonic() > until:
                break
            row = {"seed": args.seed, "faults": args.faults, "fault": i, "piece": piece,
                   "kind": campaign.kinds[i].__name__}
            begun = time.monotonic()
            try:
                campaign.run_fault(i)
            except AssertionError as error:
                add_row(args.log, rows, {**row, "failure": str(error)})
                raise
            row.update(seconds=round(time.monotonic() - begun, 2), totals=campaign.service.totals())
            add_row(args.log, rows, row)
            print(f"seed {args.seed}, fault {i}: {row['kind']}, {row['seconds']} s", flush=True)
        campaign.stop()


def summary(rows):
    done = done_of(rows)
    seen = collections.Counter()
    for totals in {row["piece"]: row["totals"] for row in done}.values():  # each piece's last
        seen.update(totals)
    return {"seed": rows[0]["seed"], "done": len(done), "failed": len(rows) - len(done),
            "kinds": dict(sorted(collections.Counter(row["kind"] for row in done).items())),
            "seen": dict(seen)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("WEFT_TEST_SEED", "1")))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--log", type=Path, default=Path("build/faults.jsonl"))
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # with the workers
    rows = read_log(args.log)
    if rows:
        args.seed, args.faults = rows[0]["seed"], rows[0]["faults"]
    print(f"seed {args.seed}, {len(done_of(rows))} of {args.faults} faults are done", flush=True)
    try:
        if len(done_of(rows)) < args.faults:
            run_piece(args, rows)
    except AssertionError as error:
        sys.exit(f"FAILED: {error}")
    finally:
        if rows:
            print(json.dumps(summary(rows)), flush=True)


if __name__ == "__main__":
    main()
