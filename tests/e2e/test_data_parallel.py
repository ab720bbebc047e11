# SPDX-License-Identifier: Apache-2.0
"""`weft serve --data-parallel-size`: ranks with a port each, one of which balances."""
import json
import os
import re
import signal
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgpack
import pytest
import trustme
import zmq

import ports
from conftest import BINARY, MODEL, NAME, Server, http_client, need_server, wait_for, web

TINY = Path(__file__).parents[1] / "vectors" / "tiny-models" / "llama-gguf-f32"
GOLDEN = [s for s in json.loads((TINY / "golden.json").read_text())["sequences"]
          if s["length"] > 1]
HEADER = "X-data-parallel-rank"


def value_of(pid, flag):
    """That a process was started with."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return words[words.index(flag) + 1]


class Ranks(Server):
    """A data-parallel service; urls[r]: of this machine's rank r, in order."""

    def __init__(self, *arguments, env=None, model=TINY):
        super().__init__([BINARY, "serve", str(model), "--port", "0", "--host", "127.0.0.1",
                          "--num-gpu-blocks-override", "128", "--served-model-name", NAME,
                          *arguments], env)
        self.urls = {}

    def wait_until_all_listen(self, n=2):
        wait_for(lambda: any("all ranks" in line for line in self.lines)
                 or self.process.poll() is not None, what="all ranks")
        said = r"rank-(\d+) .*listening on (https?://[^ ]+)"
        assert self.process.poll() is None, "".join(self.lines)
        wait_for(lambda: len(re.findall(said, "".join(self.lines))) >= n, what="addresses")
        self.urls = {int(rank): url for rank, url in re.findall(said, "".join(self.lines))}
        return self

    def pid(self, rank):
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        for pid in open(children).read().split():
            if value_of(pid, "--data-parallel-rank") == str(rank):
                return int(pid)
        raise AssertionError(f"no process of rank {rank}")


@pytest.fixture
def start_ranks():
    if not BINARY:
        pytest.skip("WEFT_TEST_BINARY is not set")
    started = []

    def start(*arguments, wait=2, **more):
        server = Ranks("--data-parallel-size", "2", *arguments, **more)
        started.append(server)
        return server.wait_until_all_listen(wait) if wait else server

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


def body_of(sequence, **more):
    return {"model": NAME, "prompt": sequence["tokens"], "max_tokens": len(sequence["greedy"]),
            "temperature": 0, "ignore_eos": True, "return_token_ids": True, **more}


def ask(url, sequence, rank=None, **more):
    headers = {} if rank is None else {HEADER: str(rank)}
    return web.post(url + "/v1/completions", json=body_of(sequence, **more), headers=headers)


def tokens(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


def served(url):
    """How many requests a rank has ended, and what it calls itself."""
    text = web.get(url + "/metrics").text
    found = re.findall(r'vllm:request_success_total\{.*engine="(\d+)".*"length"\} (\d+)', text)
    assert len(found) == 1
    return found[0][0], int(found[0][1])


def test_every_rank_gives_the_models_tokens(start_ranks):
    server = start_ranks()
    assert sorted(server.urls) == [0, 1]
    for rank in (0, 1):
        for sequence in GOLDEN:
            for url in server.urls.values():
                assert tokens(ask(url, sequence, rank)) == sequence["greedy"]
    for rank, url in server.urls.items():
        assert served(url) == (str(rank), 2 * len(GOLDEN))
    assert server.stop(signal.SIGINT) == 0, "".join(server.lines)


def test_copies_that_are_cut_share_the_cores_among_all_their_ranks(start_ranks):
    server = start_ranks("--tensor-parallel-size", "2")
    for rank, url in server.urls.items():
        assert tokens(ask(url, GOLDEN[0])) == GOLDEN[0]["greedy"]
        threads = int(value_of(server.pid(rank), "--threads"))
        assert threads == 1 or 4 * threads <= len(os.sched_getaffinity(0))


def test_every_rank_is_told_its_device(start_ranks):
    server = start_ranks(env={"WEFT_DEVICE": "cpu"})
    assert [value_of(server.pid(rank), "--device") for rank in (0, 1)] == ["cpu", "cpu"]
    assert any("rank-1 has device=cpu" in line for line in server.lines)


def test_a_device_that_is_not_there_is_told_before_a_rank_starts(start_ranks):
    server = start_ranks("--device", "cuda:99", wait=0)
    assert server.process.wait(60) == 2
    wait_for(lambda: any("device cuda" in line for line in server.lines), what="why")
    assert not any(line.startswith("rank-") for line in server.lines)


def test_a_stream_passes_from_rank_to_rank(start_ranks):
    server = start_ranks("--enable-request-id-headers")
    sequence = GOLDEN[0]
    body = body_of(sequence, stream=True)
    with web.stream("POST", server.urls[0] + "/v1/completions", json=body,
                      headers={HEADER: "1", "X-Request-Id": "mine"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-request-id"] == "mine"
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    got = sum((c["token_ids"] for chunk in chunks for c in chunk["choices"]), [])
    assert got == sequence["greedy"]
    assert all(chunk["id"] == "cmpl-mine" for chunk in chunks)
    assert served(server.urls[0])[1] == 0 and served(server.urls[1])[1] == 1


def test_the_first_port_balances_and_the_others_are_their_ranks(start_ranks):
    server = start_ranks()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: tokens(ask(server.urls[0], GOLDEN[i % 2])), range(16)))
    assert answers == [GOLDEN[i % 2]["greedy"] for i in range(16)]
    counts = [served(server.urls[rank])[1] for rank in (0, 1)]
    assert sum(counts) == 16 and min(counts) >= 4
    for _ in range(4):
        ask(server.urls[1], GOLDEN[0])
    assert served(server.urls[1])[1] == counts[1] + 4


@pytest.mark.parametrize("flag", ["--data-parallel-external-lb", "-dpe"])
def test_with_another_balancer_each_port_is_its_rank(start_ranks, flag):
    server = start_ranks(flag)
    for _ in range(4):
        ask(server.urls[0], GOLDEN[0])
    assert [served(server.urls[rank])[1] for rank in (0, 1)] == [4, 0]
    assert tokens(ask(server.urls[0], GOLDEN[0], 1)) == GOLDEN[0]["greedy"]
    assert [served(server.urls[rank])[1] for rank in (0, 1)] == [4, 1]


def test_a_rank_that_is_not_there_is_refused(start_ranks):
    server = start_ranks()
    for url in server.urls.values():
        for rank in (2, -1):
            answer = ask(url, GOLDEN[0], rank)
            assert answer.status_code == 400
            assert "0 to 1" in answer.json()["error"]["message"]
        assert tokens(ask(url, GOLDEN[0], "first")) == GOLDEN[0]["greedy"]
    answer = ask(server.urls[0], GOLDEN[0], 1, temperature=-1)
    assert answer.status_code == 400 and "temperature" in answer.text


def test_a_client_that_leaves_ends_the_request_on_the_other_rank(start_ranks):
    server = start_ranks()
    body = body_of(GOLDEN[0], max_tokens=200, stream=True)
    with web.stream("POST", server.urls[0] + "/v1/completions", json=body,
                      headers={HEADER: "1"}) as answer:
        next(answer.iter_lines())
    for url in server.urls.values():
        wait_for(lambda: "weft:kv_blocks_referenced 0" in web.get(url + "/metrics").text,
                 what="an idle rank")


def test_an_abort_finds_the_request_on_its_rank(start_ranks):
    need_server()
    server = start_ranks("--max-model-len", "2048", model=MODEL)
    body = body_of(GOLDEN[0], max_tokens=2000, stream=True)
    with web.stream("POST", server.urls[1] + "/v1/completions", json=body,
                      headers={HEADER: "1", "X-Request-Id": "long"}) as answer:
        lines = answer.iter_lines()
        next(lines)
        told = web.post(server.urls[0] + "/inference/v1/abort_requests",
                          json={"request_ids": ["cmpl-long"]})
        assert told.status_code == 200
        assert any('"abort"' in line for line in lines)


def test_each_rank_has_an_event_port_and_a_side_channel_of_its_own(start_ranks):
    base = ports.reserve(4)
    config = {"enable_kv_cache_events": True, "endpoint": f"tcp://*:{base}"}
    transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
    server = start_ranks("--kv-events-config", json.dumps(config),
                         "--kv-transfer-config", json.dumps(transfer),
                         env={"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
                              "VLLM_NIXL_SIDE_CHANNEL_PORT": str(base + 2)})
    context = zmq.Context()
    for rank, url in server.urls.items():
        live = context.socket(zmq.SUB)
        live.setsockopt(zmq.SUBSCRIBE, b"")
        live.connect(f"tcp://127.0.0.1:{base + rank}")

        def heard(attempt=[0]):
            attempt[0] += 1
            ask(url, {"tokens": [3 + attempt[0] % 300] * 33, "greedy": [0]}, rank)
            return live.poll(50)

        wait_for(heard, what=f"events of rank {rank}")
        assert msgpack.unpackb(live.recv_multipart()[2])[2] == rank
        assert list(web.get(url + "/kv_event_sources").json()) == [str(rank)]
        assert web.get(url + "/kv_transfer").json()["port"] == base + 2 + rank
    context.destroy(linger=0)


def test_one_rank_is_started_by_others(start_ranks):
    server = start_ranks("-dpn", "1", wait=0).wait_until_listening()
    assert tokens(ask(server.url, GOLDEN[0])) == GOLDEN[0]["greedy"]
    assert served(server.url) == ("1", 1)
    answer = ask(server.url, GOLDEN[0], 0)
    assert answer.status_code == 400 and "another machine" in answer.text
    assert server.stop(signal.SIGINT) == 0


def test_ranks_of_a_machine_are_numbered_from_its_first(start_ranks):
    server = start_ranks("--data-parallel-size", "8", "--data-parallel-start-rank", "4",
                         "--data-parallel-size-local", "2", "--data-parallel-hybrid-lb")
    assert sorted(server.urls) == [4, 5]
    for _ in range(4):
        ask(server.urls[4], GOLDEN[0])
    assert [served(server.urls[rank]) for rank in (4, 5)] == [("4", 2), ("5", 2)]
    assert ask(server.urls[4], GOLDEN[0], 3).status_code == 400


def test_a_rank_that_dies_ends_all_and_is_named(start_ranks):
    server = start_ranks()
    os.kill(server.pid(1), signal.SIGKILL)
    assert server.wait() == 1
    said = "".join(server.lines)
    wait_for(lambda: "data-parallel rank-1 has ended: killed by signal 9" in "".join(server.lines),
             what="its name")
    assert "rank-0" in said
    with pytest.raises(httpx.ConnectError):
        web.get(server.urls[0] + "/health")


def test_ctrl_c_lets_answers_end(start_ranks):
    server = start_ranks()
    body = body_of(GOLDEN[0], max_tokens=200, stream=True)
    with web.stream("POST", server.urls[0] + "/v1/completions", json=body,
                      headers={HEADER: "1"}) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGINT)
        assert "data: [DONE]" in list(lines)
    assert server.wait() == 0


def test_a_rank_that_is_stopped_ends_as_well(start_ranks):
    server = start_ranks()
    os.kill(server.pid(1), signal.SIGSTOP)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0


def test_ranks_end_with_the_process_that_started_them(start_ranks):
    server = start_ranks()
    pids = [server.pid(rank) for rank in (0, 1)]
    server.process.kill()
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), what="their end")


def test_ranks_reach_each_other_behind_tls(start_ranks, tmp_path):
    authority = trustme.CA()
    pair = authority.issue_cert("localhost")
    pair.cert_chain_pems[0].write_to_path(str(tmp_path / "tls.crt"))
    pair.private_key_pem.write_to_path(str(tmp_path / "tls.key"))
    server = start_ranks("--ssl-certfile", str(tmp_path / "tls.crt"), "--api-key", "k",
                         "--ssl-keyfile", str(tmp_path / "tls.key"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    url = server.urls[0].replace("127.0.0.1", "localhost")
    for rank in (0, 1):
        with http_client(verify=context) as http:
            answer = http.post(url + "/v1/completions", json=body_of(GOLDEN[0]),
                               headers={HEADER: str(rank), "Authorization": "Bearer k"})
        assert tokens(answer) == GOLDEN[0]["greedy"]


# ---- several machines, which are one here ---------------------------------------------------------


@pytest.fixture
def machines(start_ranks):
    """One with rank 0 and a headless one with rank 1, started in either order."""
    def start(*arguments, headless_first=False, more=(), env=({}, {})):
        rpc = ports.reserve(3)
        common = ["--data-parallel-size-local", "1", "--data-parallel-rpc-port", str(rpc),
                  *arguments]
        leader = [*common]
        headless = [*common, "--headless", "--data-parallel-start-rank", "1", *more]
        sides = [(leader, env[0]), (headless, env[1])]
        pair = [start_ranks(*flags, wait=0, env=variables)
                for flags, variables in (sides[::-1] if headless_first else sides)]
        if headless_first:
            pair.reverse()
        return pair, rpc

    return start


@pytest.mark.parametrize("headless_first", [False, True])
def test_a_headless_machine_works_for_the_one_with_rank_0(machines, headless_first):
    (leader, headless), rpc = machines(headless_first=headless_first)
    leader.wait_until_all_listen(1)
    headless.wait_until_all_listen(1)
    assert headless.urls == {1: f"http://127.0.0.1:{rpc + 2}"}
    for i in range(4):
        assert tokens(ask(leader.urls[0], GOLDEN[i % 2])) == GOLDEN[i % 2]["greedy"]
    assert tokens(ask(leader.urls[0], GOLDEN[0], 1)) == GOLDEN[0]["greedy"]
    assert served(leader.urls[0]) == ("0", 2) and served(headless.urls[1]) == ("1", 3)
    leader.process.send_signal(signal.SIGTERM)
    headless.process.send_signal(signal.SIGTERM)
    assert leader.wait() in (0, 1) and headless.wait() in (0, 1)


def test_a_leader_worker_set_starts_it(machines, tmp_path):
    """As KServe's data-parallel presets do: its variables count machines, not ranks of a copy."""
    secret = tmp_path / "secret"
    secret.write_text("a secret of more than sixteen bytes")
    secret.chmod(0o600)
    lws = [{"LWS_LEADER_ADDRESS": "127.0.0.1", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": str(i)}
           for i in range(2)]
    (leader, headless), _ = machines("--secret-file", str(secret), "-tp", "2", "--cpu-isa", "ref",
                                     env=lws)
    leader.wait_until_all_listen(1)
    headless.wait_until_all_listen(1)
    for rank in (0, 1):
        assert tokens(ask(leader.urls[0], GOLDEN[0], rank)) == GOLDEN[0]["greedy"]


@pytest.mark.parametrize("which", [0, 1])
def test_a_machine_that_is_lost_ends_the_others(machines, which):
    pair, _ = machines()
    for server in pair:
        server.wait_until_all_listen(1)
    os.kill(pair[which].pid(which), signal.SIGKILL)
    for server in pair:
        assert server.wait() == 1
    other = pair[1 - which]
    wait_for(lambda: f"ranks {which}-{which} is lost" in "".join(other.lines), what="its name")


def test_machines_that_differ_are_refused(machines):
    pair, _ = machines(more=("--data-parallel-size", "4"))
    wait_for(lambda: pair[1].process.poll() is not None, what="a refusal")
    wait_for(lambda: "number of ranks" in "".join(pair[1].lines), what="the difference")
    assert pair[0].process.poll() is None
    assert pair[0].stop(signal.SIGINT) == 128 + signal.SIGINT


@pytest.mark.parametrize("flags, said", [
    (["--data-parallel-start-rank", "2"], "ranks end at 1"),
    (["--data-parallel-size-local", "3"], "ranks end at 1"),
    (["--data-parallel-rank", "2"], "ranks end at 1"),
    (["--port", "65535"], "ports end at 65535"),
    (["--data-parallel-hybrid-lb", "--data-parallel-external-lb"], "one of them"),
    (["--headless", "--data-parallel-external-lb"], "--headless"),
    (["--headless", "--data-parallel-size", "1"], "no other machine"),
    (["--headless", "--data-parallel-rank", "1"], "--data-parallel-start-rank"),
    (["--data-parallel-size", "3", "--data-parallel-size-local", "2"], "as many ranks each"),
    (["--data-parallel-rpc-port", "65536"], "--data-parallel-rpc-port 65536"),
    (["--coll-timeout", "0"], "--coll-timeout 0"),
])
def test_what_cannot_be_is_refused(start_ranks, flags, said):
    server = start_ranks(*flags, wait=0)
    assert server.wait() == 2
    wait_for(lambda: said in "".join(server.lines), what=said)
