# SPDX-License-Identifier: Apache-2.0
"""weft's transfer fabric beside NIXL's agent: blocks and notifications go both ways.

Every agent is a process of its own, fabric_peer.py.
"""
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import httpx
import pytest

import ports
from conftest import wait_for, web

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
BINARY = os.environ.get("WEFT_TEST_BINARY")
LIBRARY = Path(BINARY).parent / "libweft-fabric.so" if BINARY else None
BLOCK = 4096
WORDS = BLOCK // 8

if LIBRARY is None or not LIBRARY.exists():
    pytest.skip("WEFT_TEST_BINARY is not set, or has no libweft-fabric.so beside it",
                allow_module_level=True)
if importlib.util.find_spec("nixl_cu13") is None:
    pytest.skip("nixl_cu13 is not installed: pip install --no-deps -r "
                "tests/e2e/requirements-nixl.txt", allow_module_level=True)

# Between hosts, and on one; in mode peer UCX leaves out shared memory.
WIRES = {"tcp": ("tcp", "peer"), "cma": ("posix,cma,self", "none")}
PAIRS = [("weft", "nixl"), ("nixl", "weft"), ("weft", "weft")]


class PeerError(Exception):
    def __init__(self, answer):
        super().__init__(answer["error"], answer["text"])
        self.kind = answer["error"]


class Peer:
    def __init__(self, kind, wire, port=0):
        tls, error_mode = WIRES[wire]
        self.name = f"{kind}-{uuid.uuid4()}"
        self.process = subprocess.Popen(
            [sys.executable, HERE / "fabric_peer.py", kind, self.name, error_mode,
             str(port)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", "UCX_TLS": tls, "UCX_NET_DEVICES": "lo" if tls == "tcp" else "all",
                 "WEFT_FABRIC_LIBRARY": str(LIBRARY), "PYTHONPATH": str(TREE / "python")})
        assert self.answer() == self.name

    def line(self):
        line = self.process.stdout.readline()
        assert line, f"{self.name} ended with {self.process.wait()}"
        return line

    def answer(self):
        answer = json.loads(self.line())
        if "error" in answer:
            raise PeerError(answer)
        return answer["is"]

    def start(self, method, **arguments):
        print(json.dumps({"do": method, "with": arguments}), file=self.process.stdin, flush=True)

    def __getattr__(self, method):
        def call(**arguments):
            self.start(method, **arguments)
            return self.answer()
        return call

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.stdin.close()
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()


@pytest.fixture
def start_peer():
    peers = []

    def start(kind, wire, port=0):
        peers.append(Peer(kind, wire, port))
        return peers[-1]

    yield start
    for peer in peers:
        if peer.process.poll() is None:
            assert (peer.name, peer.stop()) == (peer.name, 0)


@pytest.fixture(params=list(WIRES))
def wire(request):
    return request.param


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-to-{pair[1]}")
def pair(request, start_peer, wire):
    """Two agents that know each other's 64 blocks: of the first, 0…; of the second, 10^6…"""
    first, second = (start_peer(kind, wire) for kind in request.param)
    for peer, base in ((first, 0), (second, 1_000_000)):
        peer.base = peer.allocate(name="pool", size=64 * BLOCK, first=base)
    first.add(metadata=second.metadata())
    second.add(metadata=first.metadata())
    return first, second


def words_of_block(base, block):
    return [base + block * WORDS + i for i in (0, 1, 2)]


def blocks(peer, ids):
    return [(peer.base + i * BLOCK, BLOCK, 0) for i in ids]


def test_reads_arrive_with_their_notification(pair):
    first, second = pair
    assert first.move(operation="READ", peer=second.name, local=blocks(first, [5, 9, 3]),
                      remote=blocks(second, [1, 60, 2]), notification="read-1") == ["DONE"]
    assert second.notifications(n=1) == [[first.name, "read-1"]]
    for local, remote in ((5, 1), (9, 60), (3, 2)):
        assert (first.words(name="pool", at=local * WORDS, n=3)
                == words_of_block(1_000_000, remote))
    assert first.words(name="pool", at=4 * WORDS, n=3) == words_of_block(0, 4)


def test_writes_arrive_before_their_notification(pair):
    first, second = pair
    assert first.move(operation="WRITE", peer=second.name, local=blocks(first, [7, 8]),
                      remote=blocks(second, [20, 40]), notification="written") == ["DONE"]
    assert second.notifications(n=1) == [[first.name, "written"]]
    assert second.words(name="pool", at=20 * WORDS, n=3) == words_of_block(0, 7)
    assert second.words(name="pool", at=40 * WORDS, n=3) == words_of_block(0, 8)


def test_prepared_lists_are_picked_by_index_and_posted_again(pair):
    first, second = pair
    first.prepare(name="mine", peer="NIXL_INIT_AGENT", base=first.base, block=BLOCK, blocks=64)
    first.prepare(name="theirs", peer=second.name, base=second.base, block=BLOCK, blocks=64)
    ids = list(range(0, 64, 3))
    for turn in range(3):
        assert first.move_blocks(operation="READ", local="mine", local_ids=ids, remote="theirs",
                                 remote_ids=ids[::-1], notification=f"turn-{turn}") == "DONE"
    assert sorted(second.notifications(n=3)) == [[first.name, f"turn-{i}"] for i in range(3)]
    for local, remote in zip(ids, ids[::-1]):
        assert (first.words(name="pool", at=local * WORDS, n=3)
                == words_of_block(1_000_000, remote))


def test_one_request_is_posted_many_times(pair):
    first, second = pair
    assert first.move(operation="READ", peer=second.name, local=blocks(first, [0]),
                      remote=blocks(second, [63]), notification="again", times=50) == 50 * ["DONE"]
    assert len(second.notifications(n=50)) == 50


def test_notifications_go_both_ways(pair):
    first, second = pair
    first.notify(peer=second.name, message="HB:one,two")
    assert second.notifications(n=1) == [[first.name, "HB:one,two"]]
    second.notify(peer=first.name, message="x" * 5000)
    assert first.notifications(n=1) == [[second.name, "x" * 5000]]


def test_the_same_metadata_may_come_again_but_no_other(pair, start_peer, wire):
    first, second = pair
    assert first.add(metadata=second.metadata()) == second.name
    other = start_peer("weft", wire)
    posing = other.metadata().replace(other.name.encode().hex(), second.name.encode().hex())
    with pytest.raises(PeerError) as refused:
        first.add(metadata=posing)
    assert refused.value.kind == "nixlNotAllowedError"


def test_later_memory_is_told_by_partial_metadata(pair):
    first, second = pair
    more = second.allocate(name="more", size=16 * BLOCK, first=5_000_000)
    row = [more, 16 * BLOCK, 0]
    assert first.knows(peer=second.name) is True
    assert first.knows(peer=second.name, rows=[row]) is False
    first.add(metadata=second.partial_metadata(name="more", with_connection=False))
    assert first.knows(peer=second.name, rows=[row]) is True
    assert first.move(operation="READ", peer=second.name, local=blocks(first, [1]),
                      remote=[(more + BLOCK, BLOCK, 0)], notification="") == ["DONE"]
    assert first.words(name="pool", at=WORDS, n=3) == words_of_block(5_000_000, 1)


def test_a_removed_agent_is_unknown_and_may_be_added_again(pair):
    first, second = pair
    first.remove(peer=second.name)
    assert first.knows(peer=second.name) is False
    with pytest.raises(PeerError):
        first.notify(peer=second.name, message="to nobody")
    first.add(metadata=second.metadata())
    first.notify(peer=second.name, message="back")
    assert second.notifications(n=1) == [[first.name, "back"]]


def test_a_killed_peer_is_an_error_not_a_hang(pair, start_peer, wire):
    first, second = pair
    first.prepare(name="mine", peer="NIXL_INIT_AGENT", base=first.base, block=BLOCK, blocks=64)
    first.prepare(name="theirs", peer=second.name, base=second.base, block=BLOCK, blocks=64)
    first.start("keep_moving", local="mine", remote="theirs", n=64)
    assert first.line() == "moving\n"
    second.kill()
    assert first.answer()
    # Nobody else is hurt.
    third = start_peer("nixl", wire)
    third.base = third.allocate(name="pool", size=64 * BLOCK, first=2_000_000)
    first.add(metadata=third.metadata())
    assert first.move(operation="READ", peer=third.name, local=blocks(first, [1]),
                      remote=blocks(third, [2]), notification="") == ["DONE"]
    assert first.words(name="pool", at=WORDS, n=3) == words_of_block(2_000_000, 2)


@pytest.mark.parametrize("kinds", PAIRS, ids=lambda kinds: f"{kinds[0]}-to-{kinds[1]}")
def test_metadata_go_over_sockets(kinds, start_peer):
    """NIXL cannot say which port it got, so both are given one."""
    given = ports.reserve(), ports.reserve()
    first, second = (start_peer(kind, "tcp", port) for kind, port in zip(kinds, given))
    for peer, base in ((first, 0), (second, 1_000_000)):
        peer.base = peer.allocate(name="pool", size=64 * BLOCK, first=base)
    first.fetch(peer=second.name, port=given[1])
    first.send(port=given[1])
    second.wait_for(peer=first.name, known=True)
    assert first.move(operation="READ", peer=second.name, local=blocks(first, [0]),
                      remote=blocks(second, [9]), notification="met") == ["DONE"]
    assert second.notifications(n=1) == [[first.name, "met"]]
    assert first.words(name="pool", at=0, n=3) == words_of_block(1_000_000, 9)
    first.leave(port=given[1])
    second.wait_for(peer=first.name, known=False)


@pytest.fixture
def etcd(tmp_path, monkeypatch):
    """A server of one's own, told of to the agents."""
    program = shutil.which("etcd")
    if program is None:
        pytest.skip("etcd is not installed")
    url, peers = (f"http://127.0.0.1:{ports.reserve()}" for _ in range(2))
    with subprocess.Popen([program, "--data-dir", tmp_path / "etcd", "--listen-client-urls", url,
                           "--advertise-client-urls", url, "--listen-peer-urls", peers],
                          stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: is_up(url), what="etcd")
            monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", url)
            yield
        finally:
            process.kill()


def is_up(url):
    try:
        return web.get(url + "/health").json()["health"] == "true"
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("kinds", PAIRS, ids=lambda kinds: f"{kinds[0]}-to-{kinds[1]}")
def test_metadata_go_by_way_of_etcd(kinds, etcd, start_peer):
    first, second = (start_peer(kind, "tcp") for kind in kinds)
    for peer, base in ((first, 0), (second, 1_000_000)):
        peer.base = peer.allocate(name="pool", size=64 * BLOCK, first=base)
    second.send(port=0)
    first.fetch(peer=second.name, port=0)
    first.send(port=0)
    second.fetch(peer=first.name, port=0)
    assert first.move(operation="READ", peer=second.name, local=blocks(first, [0]),
                      remote=blocks(second, [9]), notification="met") == ["DONE"]
    assert second.notifications(n=1) == [[first.name, "met"]]
    assert first.words(name="pool", at=0, n=3) == words_of_block(1_000_000, 9)
    second.leave(port=0)
    first.wait_for(peer=second.name, known=False)


@pytest.mark.parametrize("kind", ["weft", "nixl"])
def test_an_agent_moves_blocks_within_itself(kind, start_peer, wire):
    peer = start_peer(kind, wire)
    peer.base = peer.allocate(name="pool", size=64 * BLOCK, first=0)
    for operation, local, remote, to, got in (("READ", 5, 60, 5, 60), ("WRITE", 7, 50, 50, 7)):
        assert peer.move(operation=operation, peer=peer.name, local=blocks(peer, [local]),
                         remote=blocks(peer, [remote]), notification="") == ["DONE"]
        assert peer.words(name="pool", at=to * WORDS, n=3) == words_of_block(0, got)
    more = peer.allocate(name="more", size=16 * BLOCK, first=5_000_000)
    assert peer.move(operation="READ", peer=peer.name, local=blocks(peer, [1]),
                     remote=[(more + BLOCK, BLOCK, 0)], notification="") == ["DONE"]
    assert peer.words(name="pool", at=WORDS, n=3) == words_of_block(5_000_000, 1)


def test_a_transfers_cost_is_known_once_one_was_run(start_peer):
    first, second = (start_peer("weft", "tcp") for _ in range(2))
    size = 4 << 20
    for peer in (first, second):
        peer.base = peer.allocate(name="pool", size=size, first=0)
    first.add(metadata=second.metadata())
    before, after = first.estimate(peer=second.name, local=(first.base, size, 0),
                                   remote=(second.base, size, 0))
    assert before == "nixlNotFoundError" and after > 0


def test_files_are_told_of_by_path(start_peer, tmp_path):
    peer = start_peer("weft", "tcp")
    (tmp_path / "there").write_bytes(b"x" * 77)
    there, missing = peer.query(paths=[str(tmp_path / "there"), str(tmp_path / "missing")])
    assert there["size"] == "77" and missing is None


@pytest.mark.parametrize("kinds", [("weft", "weft"), ("weft", "nixl"), ("nixl", "weft")],
                         ids=lambda kinds: f"decode-{kinds[0]}-prefill-{kinds[1]}")
def test_vllms_calls_move_its_blocks(kinds, start_peer, wire):
    decode, prefill = (start_peer(kind, wire) for kind in kinds)
    shape = {"regions": 3, "blocks": 8, "block": 2 * BLOCK}
    base, metadata = prefill.vllm_register(**shape)
    decode.vllm_register(**shape)
    decode.fill(name="kv", value=0)
    state, moved, descriptors, _ = decode.vllm_pull(metadata=metadata, base=base, ids=[1, 2, 6],
                                                    request="req-7", **shape)
    assert state == "DONE"
    assert moved == 3 * 3 * 2 * BLOCK
    assert descriptors <= 9
    assert sorted(prefill.notifications(n=2)) == [[decode.name, "HB:req-7"],
                                                  [decode.name, "req-7:1"]]
    per_block, per_region = 2 * WORDS, 16 * WORDS
    for region in range(3):
        for block in range(8):
            at = region * per_region + block * per_block
            want = [at + 1, at + 2] if block in (1, 2, 6) else [0, 0]
            assert decode.words(name="kv", at=at, n=2) == want
