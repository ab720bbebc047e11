# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode workers, their fabric and their clients broken under load, one fault at a time.

One prefill worker; three decode workers that reach it through shared memory, through a tcp wire
that can be damaged (noisy_wire.py), and through the fabric's faulty backend. After each fault: every
answer was the one worker's to the last bit of its log-probabilities, or its own decode worker had been
killed; nothing hangs, nothing runs, no block is held.

WEFT_TEST_SEED draws the faults and their moments; WEFT_TEST_LONG runs all, otherwise a twentieth.
"""
import collections
import os
import random
import signal
import socket
import struct
import threading
import time
from pathlib import Path

import httpx
import msgpack
import pytest
import zmq

from conftest import Server, command, need_server, wait_for
from noisy_wire import MAGIC, NoisyWire
from test_pd import ENV, completion, ids, prefill_leg, transfer

SEED = int(os.environ.get("WEFT_TEST_SEED", "1"))
FAULTS = 500 if os.environ.get("WEFT_TEST_LONG") else 25
CLIENTS = 3
REQUESTS = 2  # of each client, around each fault
LEASE = 2  # seconds
# The prefill worker cannot keep all prompts: what it held is soon another's.
COMMON = ("--max-model-len", "640", "--max-num-seqs", "4", "--threads", "1")
P_FLAGS = (*COMMON, "--num-gpu-blocks-override", "80")
D_FLAGS = (*COMMON, "--num-gpu-blocks-override", "128", "--no-enable-prefix-caching")
PROMPTS = [ids(900 + i, n) for i, n in enumerate((40, 97, 160, 255, 400, 520))]
MAX_TOKENS = 10


def post(server, body):
    answer = httpx.post(server.url + "/v1/completions", json=body, timeout=90)
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(answer):
    """Tokens, and how likely each was, to the last bit."""
    choice = answer["choices"][0]
    return list(zip(choice["token_ids"], choice["logprobs"]["token_logprobs"]))


class Fabric:
    """How a decode worker reaches the prefill worker."""

    def __init__(self, backend):
        self.backend = backend
        self.params = "faulty.under=tcp" if backend == "FAULTY" else None

    def flags(self):
        extra = {"fabric_params": self.params} if self.params else {}
        return (*D_FLAGS, "--prefill-urls", "*",
                *transfer("kv_consumer", backends=[self.backend], kv_lease_duration=LEASE,
                          transfer_wait=5, **extra))


class Service:
    """The workers of now, and what was seen of all there were."""

    def __init__(self, wire):
        self.wire = wire
        self.fabrics = {name: Fabric(name.upper()) for name in ("shm", "tcp", "faulty")}
        self.everyone = []
        self.counts = {}
        self.decode_legs = 0
        self.p = self.start_prefiller()
        self.decoders = {name: self.start_decoder(name) for name in self.fabrics}

    def start(self, flags, side_port):
        server = Server(command(*flags), {**ENV, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_port)})
        server.is_doomed = False
        self.everyone.append(server)
        return server.wait_until_listening()

    def start_prefiller(self, side_port=0):
        role = transfer("kv_producer", backends=["SHM", "TCP", "FAULTY"], kv_lease_duration=LEASE,
                        fabric_params="faulty.under=tcp")
        server = self.start((*P_FLAGS, *role), side_port)
        server.side_port = httpx.get(server.url + "/kv_transfer", timeout=20).json()["port"]
        self.wire.to(server.side_port)
        return server

    def start_decoder(self, name):
        return self.start(self.fabrics[name].flags(), 0)

    def workers(self):
        return [self.p, *self.decoders.values()]

    def kill(self, server):
        server.is_doomed = True
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()

    def prefill(self, which):
        leg = prefill_leg(completion(PROMPTS[which]))
        return post(self.p, leg)["kv_transfer_params"]

    def is_at_rest(self):
        for server in self.workers():
            assert server.process.poll() is None, "".join(server.lines[-20:])
        metrics = [(server, server.metrics()) for server in self.workers()]
        for server, seen in metrics:
            self.counts[server] = {
                name: sum(value for key, value in seen.items() if key.split("{")[0] == full)
                for name, full in (("pulls", "weft:kv_transfer_pulls_total"),
                                   ("fallbacks", "weft:kv_transfer_fallbacks_total"),
                                   ("stale", "weft:kv_transfer_stale_reads_total"),
                                   ("expired", "weft:kv_transfer_leases_expired_total"),
                                   ("released", "weft:kv_transfer_leases_released_total"))}
        return all(sum(value for key, value in seen.items() if key.split("{")[0] == name) == 0
                   for _, seen in metrics for name in AT_REST)

    def last_words(self):
        return [line.rstrip() for server in self.everyone[-8:]
                for line in (f"-- {' '.join(server.process.args[3:])}", *server.lines[-30:])]

    def totals(self):
        total = collections.Counter()
        for counts in self.counts.values():
            total.update(counts)
        return {name: int(n) for name, n in total.items()}


AT_REST = ("vllm:num_requests_running", "vllm:num_requests_waiting", "weft:kv_blocks_referenced",
           "weft:kv_transfer_leases_open", "weft:kv_transfer_lease_blocks",
           "weft:kv_transfer_pulls_open")


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

    def _prefill(self, which):
        p = self.service.p
        self.legs += 1
        try:
            leg = prefill_leg(completion(PROMPTS[which]))
            return post(p, leg)["kv_transfer_params"]
        except httpx.HTTPError:
            if not p.is_doomed:
                raise
            return None  # its front computes it on the decode worker

    def _send(self, which, name, in_one_call, n):
        if in_one_call and name != "tcp":
            params = {"do_remote_prefill": True, "prefill_url": self.service.p.url}
        else:
            params = self._prefill(which)
        if params and name == "tcp":
            params["remote_port"] = self.service.wire.side_port
        d = self.service.decoders[name]
        self.legs += 1
        self.service.decode_legs += 1
        try:
            answer = post(d, completion(PROMPTS[which], max_tokens=n, kv_transfer_params=params))
        except httpx.HTTPError:
            if not d.is_doomed:
                raise
            return
        assert said(answer) == self.answers[which][:n], params

    def join(self):
        deadline = time.monotonic() + 120
        for thread in self.threads:
            thread.join(max(0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a request hangs"
        assert not self.mistakes


# ---- faults --------------------------------------------------------------------------------------

def moment(draw, seconds):
    """Not a wait for something: where in the load the fault falls, or how long it lasts."""
    threading.Event().wait(draw.random() * seconds)


def kill_prefiller(service, draw):
    service.kill(service.p)
    service.p = service.start_prefiller(service.p.side_port if draw.random() < 0.5 else 0)


def kill_decoder(service, draw):
    name = draw.choice(sorted(service.decoders))
    service.kill(service.decoders[name])
    service.decoders[name] = service.start_decoder(name)


def shake_fabric(service, draw):
    """Another faulty fabric; the load behind it, not just what was killed, is to get through."""
    service.fabrics["faulty"].params = "faulty.under=tcp,faulty.seed={},{}".format(
        draw.randrange(1, 1 << 30),
        draw.choice([f"faulty.drop={draw.uniform(0.02, 0.5):.3f}",
                     f"faulty.cut_after={draw.randrange(1, 20_000_000)}",
                     f"faulty.delay_us={draw.randrange(1, 200_000)},faulty.reorder=0.3",
                     f"faulty.drop=0.05,faulty.delay_us={draw.randrange(1, 50_000)}"]))
    service.kill(service.decoders["faulty"])
    service.decoders["faulty"] = service.start_decoder("faulty")


def flip_bytes(service, draw):
    service.wire.flip(draw.randrange(1, 30), draw.choice([0.1, 0.5, 1]))


def cut_wire(service, draw):
    for _ in range(draw.randrange(1, 4)):
        service.wire.cut()
        moment(draw, 0.2)


def silence_wire(service, draw):
    service.wire.loud.clear()
    moment(draw, draw.choice([0.3, 3, 8]))
    service.wire.loud.set()


def stop_decoder(service, draw):
    """A lease ends while it cannot say that it wants it; then it comes. What it answers."""
    name = draw.choice(sorted(service.decoders))
    d, which = service.decoders[name], draw.randrange(len(PROMPTS))
    params = service.prefill(which)
    service.decode_legs += 1
    before = service.p.gauge("weft:kv_transfer_leases_expired_total")
    d.process.send_signal(signal.SIGSTOP)
    answers = []
    late = threading.Thread(target=lambda: answers.append(
        post(d, completion(PROMPTS[which], max_tokens=4, kv_transfer_params=params))))
    late.start()
    try:
        if params:
            wait_for(lambda: service.p.gauge("weft:kv_transfer_leases_expired_total") > before,
                     what="a lease's end")
    finally:
        d.process.send_signal(signal.SIGCONT)
        late.join(120)
    return [(which, said(answers[0]) if answers else None)]


def stop_prefiller(service, draw):
    service.p.process.send_signal(signal.SIGSTOP)
    moment(draw, draw.choice([0.2, LEASE, 2 * LEASE]))
    service.p.process.send_signal(signal.SIGCONT)


def leave_between_the_legs(service, draw):
    for _ in range(draw.randrange(1, 3)):
        service.prefill(draw.randrange(len(PROMPTS)))


def leave_in_the_decode_leg(service, draw):
    d = service.decoders[draw.choice(sorted(service.decoders))]
    which = draw.randrange(len(PROMPTS))
    service.decode_legs += 1
    body = completion(PROMPTS[which], max_tokens=100, kv_transfer_params=service.prefill(which))
    with pytest.raises(httpx.TimeoutException):
        httpx.post(d.url + "/v1/completions", json=body,
                   timeout=httpx.Timeout(30, read=0.001 + 0.1 * draw.random()))


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
            end = socket.create_connection(("127.0.0.1", port), timeout=20)
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
        deadline = time.monotonic() + 30
        while not (asker.poll(30000) and len(asker.recv_multipart()) == 3):
            assert time.monotonic() < deadline, "the side channel is silent"


KINDS = [kill_prefiller, kill_decoder, shake_fabric, flip_bytes, cut_wire, silence_wire,
         stop_decoder, stop_prefiller, leave_between_the_legs, leave_in_the_decode_leg, throw_bytes,
         ask_nonsense]
FAVOURITE = {shake_fabric: "faulty", flip_bytes: "tcp", cut_wire: "tcp", silence_wire: "tcp"}


# ---- the campaign --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def answers():
    """Of one worker."""
    need_server()
    server = Server(command(*D_FLAGS)).wait_until_listening()
    answers = [said(post(server, completion(prompt, max_tokens=MAX_TOKENS))) for prompt in PROMPTS]
    assert server.stop() == 0
    return answers


@pytest.fixture
def service():
    need_server()
    wire = NoisyWire(SEED)
    service = None
    try:
        service = Service(wire)
        yield service
    finally:
        wire.close()
        for server in service.everyone if service else []:
            server.process.kill()
            server.process.wait()


def run_fault(service, answers, fault, draw):
    load = Load(service, answers, draw, FAVOURITE.get(fault, draw.choice(["shm", "tcp"])))
    wanted = draw.randrange(1, CLIENTS * REQUESTS)
    wait_for(lambda: load.legs >= wanted, what="load")
    moment(draw, 0.3)
    for which, answer in fault(service, draw) or ():
        assert answer == answers[which][:4]
    load.join()
    service.wire.to_flip = 0
    wait_for(service.is_at_rest, what="rest")


@pytest.mark.timeout(300 + 40 * FAULTS)
def test_no_fault_costs_more_than_its_own_request(service, answers):
    draw = random.Random(SEED)
    kinds = [KINDS[i % len(KINDS)] for i in range(FAULTS)]
    draw.shuffle(kinds)
    done = collections.Counter()
    for i, fault in enumerate(kinds):
        where = f"seed {SEED}, fault {i}, {fault.__name__}"
        try:
            run_fault(service, answers, fault, random.Random(f"{SEED} {i}"))
        except AssertionError as error:
            raise AssertionError("\n".join([where, *service.last_words()])) from error
        done[fault.__name__] += 1
        print(where, service.totals(), flush=True)
    print(f"seed {SEED}:", dict(done), service.totals(), "bytes flipped", service.wire.flipped,
          "connections cut", service.wire.cuts, flush=True)
    assert service.wire.flipped > 0 and service.wire.cuts > 0
    totals = service.totals()
    assert totals["pulls"] > FAULTS and totals["fallbacks"] > 0 and totals["expired"] > 0
    assert totals["pulls"] + totals["fallbacks"] <= service.decode_legs, "some were counted twice"
    for server in service.workers():
        assert server.stop() == 0, "".join(server.lines[-20:])
