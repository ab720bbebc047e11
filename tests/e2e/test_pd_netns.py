# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode in two network namespaces, joined by a veth pair: as on two machines.

The link is taken down in the middle of a pull. The wire is slowed down, so that there is a middle.
Needs root, ip and tc. WEFT_TEST_SEED draws prompts and moments; WEFT_TEST_LONG: also long silences.
"""
import os
import random
import subprocess
import threading
from pathlib import Path

import pytest

import netns
from conftest import Server, command, need_server, wait_for
from netns import inside, run
from test_pd import LEGS, choices, completion, ids, post, prefill, prefill_leg, transfer

SEED = int(os.environ.get("WEFT_TEST_SEED", "1"))
DOWN = [0.1, 2]  # seconds
if os.environ.get("WEFT_TEST_LONG"):
    DOWN += [0.5, 5, 7.5, 10, 15, 20]
HOSTS = ("10.213.70.1", "10.213.70.2")
RATE = "200mbit"  # of the wire: a prompt's blocks take a second or more
FLAGS = ("--max-model-len", "1536", "--num-gpu-blocks-override", "200", "--threads", "1")


class Worker(Server):
    """A server in a namespace of its own, asked from within it."""

    def __init__(self, space, host, *flags):
        self.space = space
        super().__init__(["ip", "netns", "exec", space, *command(*flags)],
                         {"VLLM_NIXL_SIDE_CHANNEL_HOST": host, "VLLM_NIXL_SIDE_CHANNEL_PORT": "0"})

    def metrics(self):
        with inside(self.space):
            return super().metrics()

    def post(self, body):
        with inside(self.space):
            return post(self, body)

    def prefill(self, body):
        with inside(self.space):
            return prefill(self, body)

    def sent_bytes(self):
        """Over everything but loopback."""
        lines = Path(f"/proc/{self.process.pid}/net/dev").read_text().splitlines()[2:]
        return sum(int(line.split(":")[1].split()[8]) for line in lines
                   if line.split(":")[0].strip() != "lo")


@pytest.fixture(scope="module")
def spaces():
    """Two namespaces, one veth pair."""
    need_server()
    if reason := netns.missing():
        pytest.skip(reason)
    netns.sweep()
    names = [f"weft-{end}-{os.getpid()}" for end in "pd"]
    devices = [f"wv{end}{os.getpid()}" for end in "pd"]
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "link", "add", devices[0], "netns", names[0], "type", "veth",
            "peer", "name", devices[1], "netns", names[1])
        for name, device, host in zip(names, devices, HOSTS):
            run("ip", "-n", name, "address", "add", host + "/30", "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
        run("ip", "netns", "exec", names[0], "tc", "qdisc", "add", "dev", devices[0], "root", "tbf",
            "rate", RATE, "burst", "256k", "latency", "100ms")
        yield list(zip(names, devices))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.fixture(scope="module")
def workers(spaces):
    """The prefill and the decode worker, and one that does both, here."""
    servers = []
    try:
        for (space, _), host, role in zip(spaces, HOSTS, ("kv_producer", "kv_consumer")):
            cached = ("--no-enable-prefix-caching",) if role == "kv_consumer" else ()
            servers.append(Worker(space, host, *FLAGS, *cached, *transfer(role, backends=["TCP"])))
        servers.append(Server(command(*FLAGS)))
        for server in servers:
            server.wait_until_listening()
        yield servers
        for server in servers:
            assert server.process.poll() is None, "".join(server.lines[-20:])
            assert server.stop() == 0, "".join(server.lines[-20:])
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()


@pytest.fixture
def link(spaces):
    """Sets it up or down; up afterwards."""
    def put(state):
        run("ip", "-n", spaces[0][0], "link", "set", spaces[0][1], state)

    yield put
    put("up")


def counts(d):
    return (d.gauge("weft:kv_transfer_pulls_total"), d.gauge("weft:kv_transfer_fallbacks_total"))


def wait_at_rest(p, d):
    wait_for(lambda: p.gauge("weft:kv_transfer_leases_open") == 0
             and p.gauge("weft:kv_transfer_lease_blocks") == 0
             and d.gauge("weft:kv_transfer_pulls_open") == 0, what="rest")
    p.wait_until_idle()
    d.wait_until_idle()


class Asked:
    """An answer on its way."""

    def __init__(self, worker, body):
        self.answer = None
        self.thread = threading.Thread(target=self._run, args=(worker, body))
        self.thread.start()

    def _run(self, worker, body):
        self.answer = worker.post(body)

    def get(self):
        self.thread.join(120)
        assert self.answer is not None, "no answer came"
        return choices(self.answer)


def take_down(link, seconds):
    link("down")
    threading.Event().wait(seconds)  # the fault
    link("up")


def test_tokens_over_a_wire_are_those_of_one_worker(workers, vectors):
    p, d, alone = workers
    before = counts(d)[0]
    bodies = [completion(case["prompt_ids"], max_tokens=24) for case in vectors["greedy"]["cases"]]
    bodies += [completion(ids(SEED + n, n)) for n in (2, 16, 17, 300)]
    for body in bodies:
        params = p.prefill(body)
        answer = choices(d.post({**body, "kv_transfer_params": params}))
        assert answer == choices(post(alone, body))
    assert counts(d)[0] == before + sum(len(body["prompt"]) > 1 for body in bodies)
    wait_at_rest(p, d)


@pytest.fixture(scope="module")
def known(workers):
    """A prompt that the prefill worker has cached, and its answer."""
    body = completion(ids(SEED, 800), max_tokens=6)
    workers[0].prefill(body)
    return body, choices(post(workers[2], body))


@pytest.mark.parametrize("seconds", DOWN)
def test_a_link_that_is_down_during_a_pull_changes_no_token(workers, link, known, seconds):
    p, d, _ = workers
    body, expected = known
    draw = random.Random(f"{SEED} {seconds}")
    pulls, fallbacks = counts(d)
    params = p.prefill(body)
    at = p.sent_bytes() + draw.randrange(1 << 17, 1 << 23)
    asked = Asked(d, {**body, "kv_transfer_params": params})
    wait_for(lambda: p.sent_bytes() >= at, what="the pull")
    take_down(link, seconds)
    assert asked.get() == expected, f"seed {SEED}"
    pulled, fell = (now - then for now, then in zip(counts(d), (pulls, fallbacks)))
    print(f"seed {SEED}: down {seconds} s:", "resumed" if pulled else "computed")
    assert pulled + fell == 1
    wait_at_rest(p, d)


@pytest.mark.parametrize("seconds", DOWN)
def test_a_link_that_is_down_while_blocks_fill_changes_no_token(workers, link, seconds):
    p, d, alone = workers
    draw = random.Random(f"{SEED} ahead {seconds}")
    body = completion(ids(draw.randrange(1 << 30), 900), max_tokens=6)
    params = p.prefill(completion(ids(1, 20)))  # whose side channel is asked
    d.post({**completion(ids(1, 20)), "kv_transfer_params": params})
    at = p.sent_bytes() + draw.randrange(1 << 17, 1 << 23)
    leg = prefill_leg(body)
    leg["kv_transfer_params"] = {**LEGS, "transfer_id": f"t-{seconds}"}
    first = Asked(p, leg)
    second = Asked(d, {**body, "kv_transfer_params": {
        "do_remote_prefill": True, "transfer_id": f"t-{seconds}",
        "remote_host": params["remote_host"], "remote_port": params["remote_port"]}})
    wait_for(lambda: p.sent_bytes() >= at, what="the pull")
    take_down(link, seconds)
    assert second.get() == choices(post(alone, body)), f"seed {SEED}"
    first.get()
    wait_at_rest(p, d)


@pytest.mark.parametrize("seconds", [0.5, 7])
def test_a_link_that_is_down_between_the_legs_changes_no_token(workers, link, known, seconds):
    p, d, _ = workers
    body, expected = known
    params = p.prefill(body)
    link("down")
    asked = Asked(d, {**body, "kv_transfer_params": params})
    threading.Event().wait(seconds)  # the fault
    link("up")
    assert asked.get() == expected, f"seed {SEED}"
    wait_at_rest(p, d)
