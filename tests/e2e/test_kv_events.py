# SPDX-License-Identifier: Apache-2.0
"""KV events as a router reads them: pyzmq and msgpack against the shipped binary."""
import json
import struct
import subprocess
import time

import msgpack
import pytest
import zmq

from conftest import BINARY, NAME, wait_for, web

BLOCK = 16
TOPIC = f"kv@pod-1@{NAME}"
SEED = "17"
END = 2 ** 64 - 1
TIMEOUT_MS = 30000


def config(**more):
    return json.dumps({"enable_kv_cache_events": True, "endpoint": "tcp://127.0.0.1:0",
                       "replay_endpoint": "tcp://127.0.0.1:0", "topic": TOPIC, **more})


class Stream:
    """A server with events on, and a socket that gets them. Batches are [sequence, events]."""

    def __init__(self, server):
        self.server = server
        self.source = web.get(server.url + "/kv_event_sources").json()["0"]
        self.context = zmq.Context()
        self.live = self.context.socket(zmq.SUB)
        self.live.setsockopt(zmq.SUBSCRIBE, b"kv@")
        self.live.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        self.live.connect(self.source["endpoint"])
        self.joined = None

    def close(self):
        self.context.destroy(linger=0)

    def complete(self, prompt, **more):
        return self.server.openai().completions.create(
            model=NAME, prompt=prompt, max_tokens=1, temperature=0, **more)

    def receive(self):
        topic, sequence, payload = self.live.recv_multipart()
        assert topic.decode() == TOPIC
        return decode(sequence, payload)

    def join(self):
        """Until the subscription has reached the server: asks for new blocks till some come."""
        for attempt in range(200):
            self.complete([1000 + attempt] * (BLOCK + 1))
            if self.live.poll(50):
                self.joined = self.receive()[0]
                return self
        raise AssertionError("nothing comes from " + self.source["endpoint"])

    def replay(self, start):
        """All batches that the server sends again from number start on."""
        dealer = self.context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        dealer.connect(self.source["replay_endpoint"])
        dealer.send_multipart([b"", struct.pack(">Q", start)])
        batches = []
        while True:
            empty, topic, sequence, payload = dealer.recv_multipart()
            assert empty == b""
            if struct.unpack(">Q", sequence)[0] == END:
                assert topic == payload == b""
                dealer.close()
                return batches
            assert topic.decode() == TOPIC
            batches.append(decode(sequence, payload))

    def events(self):
        """Every event from the first on."""
        return [event for _, events in self.replay(0) for event in events]

    def wait_for_stored(self, hashes):
        """The events once all these blocks are announced."""
        def announced():
            events = self.events()
            return events if set(hashes) <= set(blocks_of(events)) else None
        return wait_for(announced, what="BlockStored of every block")


def decode(sequence, payload):
    ts, events, rank = msgpack.unpackb(payload)
    assert isinstance(ts, float) and abs(ts - time.time()) < 3600 and rank == 0
    return struct.unpack(">Q", sequence)[0], events


def blocks_of(events):
    """hash -> (parent, tokens, extra keys) of every block that was stored."""
    blocks = {}
    for event in events:
        if event["type"] != "BlockStored":
            continue
        hashes, tokens = event["block_hashes"], event["token_ids"]
        assert event["block_size"] == BLOCK and len(tokens) == BLOCK * len(hashes)
        assert len(event["extra_keys"]) == len(hashes)
        parent = event["parent_block_hash"]
        for i, name in enumerate(hashes):
            blocks[name] = (parent, tokens[i * BLOCK:(i + 1) * BLOCK], event["extra_keys"][i])
            parent = name
    return blocks


def hashes_of(tokens, *more):
    """What `weft kv hash` calls the full blocks of tokens, as the numbers that events carry."""
    command = [BINARY, "kv", "hash", "--json", "--block-size", str(BLOCK),
               "--tokens", ",".join(map(str, tokens)), *more]
    answer = subprocess.run(command, capture_output=True, text=True, check=True,
                            env={"PYTHONHASHSEED": SEED})
    return [int(block["event_u64"]) for block in json.loads(answer.stdout)["blocks"]]


@pytest.fixture
def open_stream(start_server):
    streams = []

    def start(*flags, events=None, env=None):
        server = start_server("--kv-events-config", events or config(), "--block-size", str(BLOCK),
                              "--prefix-caching-hash-algo", "sha256_cbor", "--server-dev-mode",
                              "--max-model-len", "512", *flags,
                              env={"PYTHONHASHSEED": SEED, **(env or {})})
        streams.append(Stream(server))
        return streams[-1]

    yield start
    for stream in streams:
        stream.close()


def prompt_of(blocks, first=2000):
    return [first + i % 700 for i in range(blocks * BLOCK + 3)]


def test_stored_blocks_have_their_tokens_and_the_names_of_kv_hash(open_stream):
    stream = open_stream()
    prompt = prompt_of(5)
    names = hashes_of(prompt)
    stream.complete(prompt)
    events = stream.wait_for_stored(names)
    blocks = blocks_of(events)
    for i, name in enumerate(names):
        parent, tokens, extra = blocks[name]
        assert parent == (names[i - 1] if i > 0 else None)
        assert tokens == prompt[i * BLOCK:(i + 1) * BLOCK] and extra is None
    stored = next(event for event in events if event["type"] == "BlockStored")
    assert list(stored) == ["type", "block_hashes", "parent_block_hash", "token_ids", "block_size",
                            "lora_id", "medium", "lora_name", "extra_keys", "group_idx",
                            "kv_cache_spec_kind"]
    assert (stored["medium"], stored["group_idx"], stored["kv_cache_spec_kind"]) == (
        "GPU", 0, "full_attention")


def test_parents_come_before_children_and_removals_after_them(open_stream):
    stream = open_stream("--num-gpu-blocks-override", "48")
    for i in range(12):
        stream.complete(prompt_of(8, first=3000 + 100 * i))
    last = hashes_of(prompt_of(8, first=3000 + 100 * 11))
    events = stream.wait_for_stored(last)
    present = set()
    removed = 0
    for event in events:
        if event["type"] == "BlockStored" and event["medium"] == "GPU":
            assert event["parent_block_hash"] in present | {None}
            present |= set(event["block_hashes"])
        elif event["type"] == "BlockRemoved" and event["medium"] == "GPU":
            assert event["group_idx"] == 0 and len(event["block_hashes"]) == 1
            assert event["block_hashes"][0] in present
            present.remove(event["block_hashes"][0])
            removed += 1
    assert removed > 0 and set(last) <= present and len(present) <= 48


def test_the_salt_is_an_extra_key_of_the_first_block(open_stream):
    stream = open_stream()
    prompt = prompt_of(2)
    names = hashes_of(prompt, "--salt", "tenant")
    stream.complete(prompt, extra_body={"cache_salt": "tenant"})
    blocks = blocks_of(stream.wait_for_stored(names))
    assert blocks[names[0]][2] == ["tenant"] and blocks[names[1]][2] is None


def test_live_batches_are_numbered_without_gaps_and_end_with_the_clearing(open_stream):
    stream = open_stream().join()
    for i in range(5):
        stream.complete(prompt_of(3, first=5000 + 100 * i))
    stream.server.wait_until_idle()
    assert web.post(stream.server.url + "/reset_prefix_cache").status_code == 200
    sequence, events = stream.joined, []
    while {"type": "AllBlocksCleared"} not in events:
        number, events = stream.receive()
        assert number == sequence + 1
        sequence = number


def test_replays_are_what_was_live(open_stream):
    stream = open_stream().join()
    stream.complete(prompt_of(3, first=6000))
    live = [stream.receive()]
    while not set(hashes_of(prompt_of(3, first=6000))) <= set(
            blocks_of([event for _, events in live for event in events])):
        live.append(stream.receive())
    again = stream.replay(live[0][0])
    assert again[:len(live)] == live
    assert stream.replay(again[-1][0] + 1) == []


def test_a_replay_beyond_the_ring_begins_with_the_state(open_stream):
    stream = open_stream(events=config(buffer_steps=2))
    names = []
    for i in range(6):
        prompt = prompt_of(3, first=4000 + 100 * i)
        names += hashes_of(prompt)
        stream.complete(prompt)
    events = stream.wait_for_stored(names)
    batches = stream.replay(0)
    assert events[0] == {"type": "AllBlocksCleared"}
    assert len(batches) == 3
    assert [number - batches[0][0] for number, _ in batches] == [0, 1, 2]
    seen = {None}
    for event in events[1:]:
        assert event["type"] == "BlockStored" and event["parent_block_hash"] in seen
        seen |= set(event["block_hashes"])


def test_older_releases_arrays_and_whole_digests(open_stream):
    stream = open_stream("--kv-events-encoding", "array-0.10.2",
                         env={"VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0"})
    stream.complete(prompt_of(2))
    events = wait_for(stream.events, what="an event")
    assert events[0][0] == "BlockStored" and len(events[0]) == 7 and events[0][6] == "GPU"
    digests = [digest for event in events for digest in event[1]]
    assert all(isinstance(digest, bytes) and len(digest) == 32 for digest in digests)
    names = [int.from_bytes(digest[-8:], "big") for digest in digests]
    assert names[:2] == hashes_of(prompt_of(2))


def test_sources_show_the_resolved_configuration(open_stream):
    source = open_stream(events=config(hwm=5)).source
    assert source["enable_kv_cache_events"] is True and source["publisher"] == "zmq"
    assert source["topic"] == TOPIC and source["hwm"] == 5 and source["buffer_steps"] == 10000
    for name in ("endpoint", "replay_endpoint"):
        assert int(source[name].rsplit(":", 1)[1]) > 0


def test_weft_events_finds_no_holes(open_stream):
    stream = open_stream("--num-gpu-blocks-override", "48")
    for i in range(8):
        stream.complete(prompt_of(8, first=7000 + 100 * i))
    count = len(stream.wait_for_stored(hashes_of(prompt_of(8, first=7700))))
    answer = subprocess.run(
        [BINARY, "events", "--connect", stream.source["endpoint"], "--replay",
         stream.source["replay_endpoint"], "--check", "--count", str(count)],
        capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.splitlines()) == count and " 0 holes" in answer.stderr


def test_a_wrong_configuration_ends_the_start(start_server):
    server = start_server("--kv-events-config", '{"enable_kv_cache_events": true, "port": 5}',
                          wait=False)
    assert server.wait() == 2
    assert any('no field is called "port"' in line for line in server.lines)
