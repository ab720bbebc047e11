# SPDX-License-Identifier: Apache-2.0
"""Prefill on one worker, decode on another, driven as llm-d's sidecar does with "nixlv2": the answer
is bit for bit that of one worker, whatever happens to the other.
"""
import copy
import http.client
import json
import random
import re
import signal
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from conftest import MODEL, NAME, SECONDS, Server, command, leaving_after, need_server, wait_for, web

TINY = Path(__file__).parents[1] / "vectors" / "tiny-models"
ENV = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": "0"}
SMALL = ("--max-model-len", "2560", "--num-gpu-blocks-override", "400", "--threads", "1")
LEGS = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None,
        "remote_block_ids": None, "remote_host": None, "remote_port": None}
# The contract's keys, in vLLM's order, and their types.
KEYS = {"do_remote_prefill": bool, "do_remote_decode": bool, "remote_block_ids": list,
        "remote_engine_id": str, "remote_request_id": str, "remote_host": str, "remote_port": int,
        "tp_size": int, "remote_num_tokens": int}


def transfer(role, **extra):
    config = {"kv_connector": "NixlConnector", "kv_role": role,
              "kv_connector_extra_config": extra}
    return ("--kv-transfer-config", json.dumps(config))


def ids(seed, n):
    draw = random.Random(seed)
    return [draw.randrange(100, 40000) for _ in range(n)]


def completion(prompt, **more):
    return {"model": NAME, "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 3,
            "ignore_eos": True, "return_token_ids": True, **more}


def chat(text, **more):
    return {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 12,
            "temperature": 0, "logprobs": True, "top_logprobs": 3, "return_token_ids": True, **more}


def generate(prompt, **more):
    return {"model": NAME, "token_ids": prompt,
            "sampling_params": {"max_tokens": 12, "temperature": 0, "ignore_eos": True}, **more}


PATHS = {completion: "/v1/completions", chat: "/v1/chat/completions",
         generate: "/inference/v1/generate"}


def path_of(body):
    return ("/inference/v1/generate" if "token_ids" in body
            else "/v1/chat/completions" if "messages" in body else "/v1/completions")


def post(server, body, **more):
    return web.post(server.url + path_of(body), json=body, **more)


def choices(answer):
    """What an answer says, without what names or times it."""
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def prefill_leg(body):
    leg = copy.deepcopy(body)
    leg.pop("stream_options", None)
    leg.update(stream=False, kv_transfer_params=LEGS)
    limits = leg["sampling_params"] if "token_ids" in leg else leg
    limits.update(max_tokens=1, min_tokens=1)
    if limits is leg:
        leg["max_completion_tokens"] = 1
    return leg


def prefill(server, body, request_id=None):
    answer = post(server, prefill_leg(body), headers={"X-Request-Id": request_id or uuid.uuid4().hex})
    assert answer.status_code == 200, answer.text
    return answer.json()["kv_transfer_params"]


def split(p, d, body):
    request_id = uuid.uuid4().hex
    params = prefill(p, body, request_id)
    assert params is not None
    return post(d, {**body, "kv_transfer_params": params}, headers={"X-Request-Id": request_id})


def pulled(server):
    return server.gauge("vllm:external_prefix_cache_hits_total")


def leases(server):
    return server.gauge("weft:kv_transfer_leases_open")


def pulls(server):
    """Those that run and those that have ended."""
    return (server.gauge("weft:kv_transfer_pulls_open")
            + server.gauge("weft:kv_transfer_pulls_total"))


def wait_released(server, what="the leases' release"):
    wait_for(lambda: leases(server) == 0, what=what)
    server.wait_until_idle()


@pytest.fixture(scope="module")
def workers():
    """A prefill worker, a decode worker, and one that does both. Leases outlive every wait: one
    that has ended was released, however slow the machine is."""
    need_server()
    roles = ("kv_producer", "kv_consumer", None)
    servers = [Server(command(*SMALL, *(transfer(role, kv_lease_duration=3600) if role else ())),
                      ENV) for role in roles]
    yield [server.wait_until_listening() for server in servers]
    for server in servers:
        assert server.process.poll() is None, "".join(server.lines[-20:])
        server.wait_until_idle()
        assert server.stop() == 0, "".join(server.lines[-20:])


@pytest.fixture
def start_workers(start_server):
    """Starts a prefill and a decode worker with flags of their own."""
    def start(p=(), d=(), p_extra=None, d_extra=None):
        return (start_server(*SMALL, *transfer("kv_producer", **(p_extra or {})), *p, env=ENV),
                start_server(*SMALL, *transfer("kv_consumer", **(d_extra or {})), *d, env=ENV))

    return start


# ---- the same answers ----------------------------------------------------------------------------

BODIES = [completion(ids(1, 200)), completion(ids(2, 16)), completion(ids(3, 17)),
          completion(ids(4, 33), max_tokens=40), completion(ids(5, 1)), generate(ids(6, 100)),
          completion(ids(7, 100), temperature=0.8, seed=11, n=3),
          completion(ids(8, 1500), max_tokens=4), chat("What is a loom? " * 20),
          chat("Name three colours.", temperature=1, seed=5)]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: path_of(body).split("/")[-1])
def test_tokens_are_those_of_one_worker(workers, body):
    p, d, alone = workers
    before = pulled(d)
    assert choices(split(p, d, body)) == choices(post(alone, body))
    prompt = body.get("prompt") or body.get("token_ids") or [0] * 100
    assert pulled(d) > before or len(prompt) == 1
    wait_released(p)


def test_reference_prompts_answer_the_same(workers, vectors):
    p, d, alone = workers
    for case in vectors["greedy"]["cases"]:
        body = completion(case["prompt_ids"], max_tokens=24)
        assert choices(split(p, d, body)) == choices(post(alone, body)), case["id"]
    wait_released(p)


def events(server, body):
    with web.stream("POST", server.url + path_of(body), json=body) as answer:
        assert answer.status_code == 200
        return [json.loads(line[6:]) for line in answer.iter_lines()
                if line.startswith("data: ") and line != "data: [DONE]"]


@pytest.mark.parametrize("make", [completion, chat])
def test_streams_are_those_of_one_worker(workers, make):
    p, d, alone = workers
    prompt = ids(20, 150) if make is completion else "Tell me about weaving. " * 10
    body = make(prompt, stream=True, stream_options={"include_usage": True})
    streams = [events(d, {**body, "kv_transfer_params": prefill(p, body)}), events(alone, body)]
    tokens = [[c["token_ids"] for e in stream for c in e["choices"] if "token_ids" in c]
              for stream in streams]
    assert sum(tokens[0], []) == sum(tokens[1], [])
    assert not any("kv_transfer_params" in event for event in streams[0])
    wait_released(p)


def test_many_at_once_answer_the_same(workers):
    p, d, alone = workers
    bodies = [completion(ids(100 + i % 7, 60 + 31 * (i % 7)), max_tokens=6 + i) for i in range(20)]
    results = [None] * len(bodies)

    def run(i):
        results[i] = choices(split(p, d, bodies[i]))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for body, result in zip(bodies, results):
        assert result == choices(post(alone, body))
    wait_released(p)
    d.wait_until_idle()


def test_what_the_decode_worker_has_is_not_sent(workers):
    p, d, _ = workers
    body = completion(ids(30, 320))
    split(p, d, body)
    before = pulled(d)
    split(p, d, {**body, "prompt": body["prompt"] + ids(31, 32)})
    assert pulled(d) - before <= 48
    wait_released(p)


# ---- what is said --------------------------------------------------------------------------------

def test_the_answer_carries_the_contracts_keys(workers):
    p, d, alone = workers
    body = completion(ids(40, 50))
    params = prefill(p, body, "my-id")
    for key, kind in KEYS.items():
        assert isinstance(params[key], kind), key
    assert params["do_remote_prefill"] is True and params["do_remote_decode"] is False
    assert params["remote_num_tokens"] == 50
    assert [len(group) for group in params["remote_block_ids"]] == [4]
    again = [params, *(prefill(p, body, "my-id") for _ in range(2))]
    ends = [params["remote_request_id"] for params in again]
    assert all(re.fullmatch(r".*my-id-0-[0-9a-f]{8}", end) for end in ends) and len(set(ends)) == 3
    assert max(int(end[-8:], 16) for end in ends) > 0xff # drawn, not counted
    assert params["remote_blocks_expiry_time"] is None and params["transfer_mode"] == "pull"
    assert post(p, body).json()["kv_transfer_params"] is None
    assert post(alone, prefill_leg(body)).json()["kv_transfer_params"] is None
    assert post(d, prefill_leg(body)).json()["kv_transfer_params"] is None
    for params in again:
        choices(post(d, {**body, "kv_transfer_params": params}))
    wait_released(p)


def test_flat_block_ids_and_unknown_keys_are_taken(workers):
    p, d, alone = workers
    body = completion(ids(41, 70))
    params = prefill(p, body)
    params["remote_block_ids"] = params["remote_block_ids"][0]
    params["made_up"] = {"by": "tomorrow"}
    before = pulled(d)
    assert choices(post(d, {**body, "kv_transfer_params": params})) == choices(post(alone, body))
    assert pulled(d) > before
    wait_released(p)


@pytest.mark.parametrize("missing", ["remote_engine_id", "remote_request_id", "remote_host",
                                     "remote_port"])
def test_what_is_missing_is_computed(workers, missing):
    _, d, alone = workers
    body = completion(ids(42, 40))
    params = {"do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2, 3]],
              "remote_engine_id": "e", "remote_request_id": "r", "remote_host": "127.0.0.1",
              "remote_port": 1, "tp_size": 1}
    params[missing] = None
    assert choices(post(d, {**body, "kv_transfer_params": params})) == choices(post(alone, body))


@pytest.mark.parametrize("params", [None, {}, {"do_remote_prefill": True, "remote_block_ids": []},
                                    {"do_remote_prefill": False}])
def test_nothing_asked_for_is_nothing_done(workers, params):
    _, d, alone = workers
    body = completion(ids(43, 40))
    assert choices(post(d, {**body, "kv_transfer_params": params})) == choices(post(alone, body))


@pytest.mark.parametrize("params", ["yes", {"do_remote_prefill": "yes"}, {"remote_port": "x"},
                                    {"do_remote_prefill": True, "remote_block_ids": [["a"]]}])
def test_what_cannot_be_is_refused(workers, params):
    _, d, _ = workers
    answer = post(d, {**completion(ids(44, 40)), "kv_transfer_params": params})
    assert answer.status_code == 400
    assert "kv_transfer_params" in answer.text


# ---- leaving -------------------------------------------------------------------------------------

def test_a_refused_decode_leg_frees_the_prefill_workers_blocks(workers):
    p, d, _ = workers
    body = completion(ids(50, 200))
    params = prefill(p, body)
    assert leases(p) == 1
    answer = post(d, {**body, "kv_transfer_params": params, "temperature": -1})
    assert answer.status_code == 400
    wait_released(p)


def test_a_client_that_leaves_the_decode_leg_costs_nothing(workers):
    p, d, _ = workers
    body = completion(ids(51, 1500), max_tokens=800)
    before = pulls(d)
    params = prefill(p, body)
    assert leases(p) == 1
    client = http.client.HTTPConnection("127.0.0.1", d.port, timeout=SECONDS)
    client.request("POST", "/v1/completions", json.dumps({**body, "kv_transfer_params": params}),
                   {"Content-Type": "application/json"})
    wait_for(lambda: pulls(d) > before, what="the pull")
    client.close()
    wait_released(p)
    d.wait_until_idle()


def test_a_client_that_leaves_during_prefill_costs_nothing(workers):
    p, _, _ = workers
    with pytest.raises(httpx.ReadTimeout):
        web.post(p.url + "/v1/completions", json=prefill_leg(completion(ids(52, 2400))),
                 timeout=leaving_after(0.05))
    wait_released(p)


def test_blocks_that_nobody_reads_are_freed_when_their_lease_ends(start_workers):
    p, d = start_workers(p_extra={"kv_lease_duration": 1})
    body = completion(ids(53, 200))
    params = prefill(p, body)
    wait_for(lambda: p.gauge("vllm:nixl_num_kv_expired_reqs_total") == 1, what="the lease's end")
    p.wait_until_idle()
    answer = choices(post(d, {**body, "kv_transfer_params": params}))
    assert answer == choices(post(p, body))


# ---- faults --------------------------------------------------------------------------------------

def fallbacks(server):
    return server.gauge("weft:kv_transfer_fallbacks_total")


def test_a_prefill_worker_that_is_gone_costs_a_prefill(workers, start_server):
    _, d, alone = workers
    p = start_server(*SMALL, *transfer("kv_producer"), env=ENV)
    body = completion(ids(60, 200))
    params = prefill(p, body)
    p.stop(signal.SIGKILL)
    assert choices(post(d, {**body, "kv_transfer_params": params})) == choices(post(alone, body))
    d.wait_until_idle()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_prefill_worker_that_dies_during_the_prefill_costs_a_prefill(start_server, workers, how):
    _, _, alone = workers
    # In steps so short that most of the prompt is still to come when its first blocks are read.
    p = start_server(*SMALL, "--max-num-batched-tokens", "64", *transfer("kv_producer"), env=ENV)
    d = start_server(*SMALL, *transfer("kv_consumer", transfer_wait=3), env=ENV)
    body = completion(ids(61, 1600), max_tokens=4)
    info = web.get(p.url + "/kv_transfer").json()
    leg = prefill_leg(body)
    leg["kv_transfer_params"] = {**LEGS, "transfer_id": "t-1"}
    params = {"do_remote_prefill": True, "transfer_id": "t-1", "remote_host": info["host"],
              "remote_port": info["port"]}
    with ThreadPoolExecutor(2) as pool:
        prefilled = pool.submit(web.post, p.url + "/v1/completions", json=leg)
        wait_for(lambda: p.gauge("vllm:num_requests_running") == 1, what="the prefill")
        decoded = pool.submit(post, d, {**body, "kv_transfer_params": params})
        wait_for(lambda: d.gauge("weft:kv_transfer_overlapped_bytes_total") > 0,
                 what="blocks of a prompt that is being computed")
        p.process.send_signal(how)
        assert choices(decoded.result()) == choices(post(alone, body))
        p.process.kill()
        assert isinstance(prefilled.exception(), httpx.HTTPError)  # it had not ended
    assert fallbacks(d) == 1
    d.wait_until_idle()


def test_another_model_is_named_and_its_blocks_are_not_used(start_server, workers):
    _, d, alone = workers
    other = command(*SMALL[2:], *transfer("kv_producer"))
    other[2] = str(TINY / "llama")
    p = Server(other, ENV)
    try:
        p.wait_until_listening()
        body = completion([5 + i % 200 for i in range(100)])
        params = prefill(p, body)
        seen = len(d.lines)
        answer = choices(post(d, {**body, "kv_transfer_params": params}))
        assert answer == choices(post(alone, body))
        wait_for(lambda: any("cannot be had" in line and "model" in line for line in d.lines[seen:]),
                 what="why its blocks cannot be had")
    finally:
        p.process.kill()
        p.process.wait()


def test_with_policy_fail_the_request_fails(start_server, workers):
    p = start_server(*SMALL, *transfer("kv_producer"), env=ENV)
    d = start_server(*SMALL, *transfer("kv_consumer"), "--kv-load-failure-policy", "fail", env=ENV)
    body = completion(ids(62, 200))
    choices(split(p, d, body))
    params = prefill(p, body)
    p.stop(signal.SIGKILL)
    answer = post(d, {**body, "kv_transfer_params": params, "prompt": ids(63, 200)})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "InternalServerError"
    key = next(k for k in d.metrics() if "request_success" in k and "error" in k)
    assert d.metrics()[key] == 1
    d.wait_until_idle()


# ---- ahead and in one call -----------------------------------------------------------------------

def test_one_call_pulls_while_the_prompt_is_computed(start_server, workers):
    p, _, alone = workers
    d = start_server(*SMALL, *transfer("kv_consumer"), "--prefill-urls", p.url, env=ENV)
    for seed in (70, 71):
        body = completion(ids(seed, 1200), max_tokens=6)
        params = {"do_remote_prefill": True, "prefill_url": p.url}
        answer = choices(post(d, {**body, "kv_transfer_params": params}))
        assert answer == choices(post(alone, body))
    assert pulled(d) == 2 * 1199
    assert d.gauge("weft:kv_transfer_overlapped_bytes_total") > 0
    wait_released(p)
    refused = post(d, {**body, "kv_transfer_params": {"do_remote_prefill": True,
                                                      "prefill_url": "http://127.0.0.1:1"}})
    assert refused.status_code == 400 and "--prefill-urls" in refused.text


def test_each_prompt_of_a_request_is_pulled(start_server, workers):
    p, _, alone = workers
    d = start_server(*SMALL, *transfer("kv_consumer"), "--prefill-urls", p.url, env=ENV)
    prompts = [ids(73, 200), ids(74, 300), ids(75, 1), ids(76, 90)]
    body = completion(prompts)
    params = {"do_remote_prefill": True, "prefill_url": p.url}
    assert choices(post(d, {**body, "kv_transfer_params": params})) == choices(post(alone, body))
    assert pulled(d) == sum(len(prompt) - 1 for prompt in prompts)
    wait_released(p)
    d.wait_until_idle()


def test_one_call_without_the_other_is_computed(start_server, workers):
    _, _, alone = workers
    d = start_server(*SMALL, *transfer("kv_consumer"), "--prefill-urls", "*", env=ENV)
    body = completion(ids(72, 300))
    params = {"do_remote_prefill": True, "prefill_url": "http://127.0.0.1:1"}
    assert choices(post(d, {**body, "kv_transfer_params": params})) == choices(post(alone, body))


def test_a_prefill_worker_that_ends_waits_for_its_readers(start_workers, workers):
    p, d = start_workers(p=("--shutdown-timeout", "300"))
    _, _, alone = workers
    body = completion(ids(77, 200))
    params = prefill(p, body)
    p.process.send_signal(signal.SIGTERM)
    wait_for(lambda: any("kept for decode workers leases=1" in line for line in p.lines),
             what="the drain")
    answer = post(d, {**body, "kv_transfer_params": params})
    assert choices(answer) == choices(post(alone, body))
    assert pulled(d) == 199
    assert p.wait() == 0


def test_a_prefill_worker_that_ends_waits_no_longer_than_it_may(start_workers):
    p, _ = start_workers(p=("--shutdown-timeout", "0"))
    prefill(p, completion(ids(78, 100)))
    assert p.stop() == 0


# ---- unequal workers -----------------------------------------------------------------------------

@pytest.mark.parametrize("p,d", [
    (("--kv-cache-layout", "LBHNC"), ("--kv-cache-layout", "BHLNC")),
    (("--kv-cache-layout", "BLHNC"), ("--kv-cache-layout", "LBHNC")),
    (("--block-size", "16"), ("--block-size", "64", "--num-gpu-blocks-override", "100")),
    (("--block-size", "64", "--num-gpu-blocks-override", "100"), ("--block-size", "16")),
    (("--no-enable-prefix-caching",), ("--no-enable-prefix-caching",)),
], ids=["LBHNC-BHLNC", "BLHNC-LBHNC", "16-64", "64-16", "uncached"])
def test_unequal_workers_answer_the_same(start_workers, workers, p, d):
    _, _, alone = workers
    p, d = start_workers(p, d)
    for n in (1, 15, 64, 65, 300):
        body = completion(ids(80 + n, n))
        assert choices(split(p, d, body)) == choices(post(alone, body)), n
    assert pulled(d) > 300
    wait_released(p)


@pytest.mark.parametrize("model", sorted(path.name for path in TINY.iterdir() if path.is_dir()))
def test_every_tiny_model_answers_the_same(model):
    need_server()
    path = TINY / model
    path = path / "model.gguf" if "gguf" in model else path
    servers = []
    try:
        for role, size in (("kv_producer", "16"), ("kv_consumer", "64"), (None, "16")):
            words = command("--threads", "1", "--block-size", size,
                            *(transfer(role) if role else ()))
            words[2] = str(path)
            servers.append(Server(words, ENV))
        p, d, alone = (server.wait_until_listening() for server in servers)
        for n in (1, 16, 40, 130):
            body = generate([5 + (i * 7 + n) % 250 for i in range(n)])
            assert choices(split(p, d, body)) == choices(post(alone, body)), n
        assert pulled(d) > 0
        wait_released(p)
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()
