# SPDX-License-Identifier: Apache-2.0
"""A real vLLM worker as the other half: it decodes from blocks that weft prefilled, and weft from
those that it prefilled.

Two engines round differently, so that texts are compared with what the decoding engine says alone, up
to the first token where its own margin is small. That blocks came over the fabric, and were not
computed anew, is what the counters of both sides say.
"""
import contextlib
import json
import threading
import time
import uuid

import pytest

import ports
from conftest import wait_for, web
from test_pd import chat, completion, ids, path_of, post, prefill_leg
from vllm_worker import BLOCK, CONTEXT, LEASE_SECONDS, Vllm, start_weft

pytestmark = pytest.mark.timeout(1200)  # the first test waits until vLLM is up

SALT = ""
MARGIN = 0.6  # between the logprobs of the first and the second choice
BLOCK_BYTES = 30 * 3 * BLOCK * 2 * 64 * 2  # layers, KV heads, tokens, K and V, elements, bf16


@pytest.fixture(scope="module")
def vllm():
    worker = Vllm()
    try:
        yield worker.wait_until_listening()
    finally:
        worker.kill()


def draw_salt():
    """Prefixes are shared only among requests of one salt."""
    global SALT
    SALT = uuid.uuid4().hex


@pytest.fixture(autouse=True)
def salt():
    draw_salt()


@contextlib.contextmanager
def running(server):
    try:
        yield server.wait_until_listening()
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def weft():
    with running(start_weft("kv_both", "--prefill-urls", "*")) as server:
        yield server
        assert server.process.poll() is None, "".join(server.lines[-20:])


@pytest.fixture(params=["vllm decodes", "weft decodes"])
def pair(request, vllm, weft):
    """The worker that prefills, the one that decodes."""
    return (weft, vllm) if request.param == "vllm decodes" else (vllm, weft)


# ---- legs ----------------------------------------------------------------------------------------

def answer_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()


def prefill(server, body):
    params = answer_of(post(server, with_salt(prefill_leg(body), "split")))["kv_transfer_params"]
    assert params is not None and params["remote_engine_id"]
    return params


def decode(server, body, params):
    return answer_of(post(server, with_salt({**body, "kv_transfer_params": params}, "split")))


def split(p, d, body):
    return decode(d, body, prefill(p, body))


def with_salt(body, name):
    return {**body, "cache_salt": f"{SALT} {name}"}


def alone(server, body):
    return answer_of(post(server, with_salt(body, "alone")))


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def tokens_of(answer):
    return answer["choices"][0]["token_ids"]


def top_of(answer):
    """Of each token, the logprobs of the most likely ones."""
    logprobs = answer["choices"][0]["logprobs"]
    if "content" in logprobs:
        return [[entry["logprob"] for entry in token["top_logprobs"]]
                for token in logprobs["content"]]
    return [list(entry.values()) for entry in logprobs["top_logprobs"]]


def clear_tokens(answer):
    """Tokens before the first whose margin is small."""
    count = 0
    for top in top_of(answer):
        best = sorted(top, reverse=True)
        if best[0] - best[1] < MARGIN:
            break
        count += 1
    return count


def assert_same(answer, reference):
    """As far as the reference is sure; how far that is."""
    n = clear_tokens(reference)
    assert tokens_of(answer)[:n] == tokens_of(reference)[:n]
    if n == len(tokens_of(reference)):
        assert answer["choices"][0].get("text") == reference["choices"][0].get("text")
        assert answer["choices"][0].get("message") == reference["choices"][0].get("message")
    return n


# ---- what the workers counted --------------------------------------------------------------------

def read_bytes(server):
    return server.gauge("vllm:nixl_bytes_transferred_sum")


def pulled_tokens(server):
    """Those that were used; vLLM counts the hits of pulls that fail, too."""
    return sum(value for key, value in server.metrics().items()
               if key.startswith("vllm:prompt_tokens_by_source_total")
               and "external_kv_transfer" in key)


def expired(server):
    return server.gauge("vllm:nixl_num_kv_expired_reqs_total")


def blocks_in_use(server):
    return server.gauge("vllm:kv_cache_usage_perc")


def leases(server):
    """Of weft, which keeps copies for vLLM in blocks that its usage does not count."""
    return server.gauge("weft:kv_transfer_leases_open")


def wait_released(server):
    wait_for(lambda: blocks_in_use(server) + leases(server) == 0, what="an idle prefill worker")


class Counted:
    """What a leg moved: bytes the decoder read, tokens it did not compute, leases that expired."""

    def __init__(self, p, d):
        self.p, self.d = p, d
        self.before = self.now()

    def now(self):
        return read_bytes(self.d), pulled_tokens(self.d), expired(self.p) + expired(self.d)

    def since(self):
        return [now - before for now, before in zip(self.now(), self.before)]

    def expect(self, prompt, here=0):
        """All blocks of vLLM's size that hold what was not here of the prompt were read, and no
        other; no lease expired.

        The prompt's last token is computed by either: vLLM reads it nevertheless, weft does not.
        """
        end = prompt if isinstance(self.d, Vllm) else prompt - 1
        n_bytes = (-(-end // BLOCK) - here // BLOCK) * BLOCK_BYTES
        wait_for(lambda: self.since()[0] >= n_bytes, 20, "the decoder's counters")
        assert self.since() == [n_bytes, end - here, 0]


# ---- the same answers ----------------------------------------------------------------------------

def test_reference_prompts_answer_as_one_engine_does(pair, vectors):
    p, d = pair
    sure = 0
    for case in vectors["greedy"]["cases"]:
        prompt = case["prompt_ids"]
        body = completion(prompt, max_tokens=12)
        draw_salt() # some begin alike
        if len(prompt) > 1:
            counted = Counted(p, d)
            answer = split(p, d, body)
            counted.expect(len(prompt))
            assert cached(answer) >= len(prompt) - 1
            sure += assert_same(answer, alone(d, body))
    wait_released(p)
    assert sure > 40


@pytest.mark.parametrize("n", [2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 700, 1900])
def test_prompts_of_any_length_come_whole(pair, n):
    p, d = pair
    body = completion(ids(n, n))
    counted = Counted(p, d)
    answer = split(p, d, body)
    counted.expect(n)
    assert_same(answer, alone(d, body))
    # Random tokens leave no margin: what the blocks hold shows in how likely the first answer is.
    mine, theirs = top_of(answer)[0], top_of(alone(d, body))[0]
    assert max(mine) == pytest.approx(max(theirs), abs=0.3)
    wait_released(p)


def test_a_prompt_of_one_token_is_computed(pair):
    p, d = pair
    body = completion(ids(3, 1))
    assert_same(split(p, d, body), alone(d, body))
    wait_released(p)


def test_chats_answer_the_same(pair):
    p, d = pair
    body = chat("Write one short sentence about a loom. " * 8, max_tokens=12)
    counted = Counted(p, d)
    answer = split(p, d, body)
    assert counted.since()[1] > 60
    assert_same(answer, alone(d, body))
    wait_released(p)


def test_streams_answer_the_same(pair):
    p, d = pair
    body = completion(ids(5, 300), stream=True)
    tokens = []
    params = prefill(p, body)
    with web.stream("POST", d.url + path_of(body),
                      json={**body, "kv_transfer_params": params}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    tokens += choice.get("token_ids") or []
    reference = alone(d, {**body, "stream": False})
    assert len(tokens) == 12
    assert tokens[:clear_tokens(reference)] == tokens_of(reference)[:clear_tokens(reference)]
    wait_released(p)


def test_many_at_once_answer_the_same(vllm, weft):
    bodies = [completion(ids(100 + i, 90 + 61 * (i % 6)), max_tokens=8) for i in range(12)]
    answers = [None] * len(bodies)

    def run(i):
        answers[i] = split(*((vllm, weft) if i % 2 else (weft, vllm)), bodies[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(bodies))]
    before = [pulled_tokens(server) for server in (vllm, weft)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, body in enumerate(bodies):
        assert_same(answers[i], alone(weft if i % 2 else vllm, body))
    for server, was in zip((vllm, weft), before):
        assert pulled_tokens(server) - was > 600
        wait_released(server)


# ---- what is here already ------------------------------------------------------------------------

def test_a_beginning_that_is_here_is_not_read(pair):
    p, d = pair
    body = completion(ids(7, 3 * BLOCK))
    split(p, d, body)
    more = completion(body["prompt"] + ids(8, BLOCK))
    counted = Counted(p, d)
    answer = split(p, d, more)
    counted.expect(4 * BLOCK, here=3 * BLOCK)
    assert_same(answer, alone(d, more))
    wait_released(p)


def test_a_prompt_that_is_here_is_not_read_and_released(pair):
    p, d = pair
    body = completion(ids(9, 2 * BLOCK + 1))
    split(p, d, body)
    wait_released(p)
    again = completion(body["prompt"][:2 * BLOCK])
    counted = Counted(p, d)
    assert_same(split(p, d, again), alone(d, again))
    assert counted.since()[0] <= BLOCK_BYTES # weft may lack the last tokens, which fill no block
    wait_released(p)
    assert counted.since()[2] == 0


# ---- leases --------------------------------------------------------------------------------------

@contextlib.contextmanager
def busy(server):
    """Two answers that take long run there, as many as may: others wait."""
    with contextlib.ExitStack() as streams:
        for i in range(2):
            body = completion(ids(20 + i, 8), max_tokens=1900, stream=True)
            streams.enter_context(web.stream("POST", server.url + path_of(body), json=body))
        wait_for(lambda: server.gauge("vllm:num_requests_running") == 2, what="two that run")
        yield


def test_heartbeats_keep_blocks_for_one_that_waits(pair):
    p, d = pair
    body = completion(ids(22, 200))
    params = prefill(p, body)
    counted = Counted(p, d)
    answers = []
    asker = threading.Thread(target=lambda: answers.append(decode(d, body, params)))
    with busy(d):
        asker.start()
        held = time.monotonic()
        wait_for(lambda: time.monotonic() > held + LEASE_SECONDS * 1.5, what="more than a lease")
        assert not answers
    asker.join()
    counted.expect(200)
    assert_same(answers[0], alone(d, body))
    wait_released(p)


def test_blocks_that_nobody_reads_are_freed(vllm, weft):
    for server in (vllm, weft):
        before = expired(server)
        prefill(server, completion(ids(23, 300)))
        assert blocks_in_use(server) + leases(server) > 0
        wait_for(lambda: expired(server) == before + 1, what="the end of a lease")
        wait_released(server)


def test_a_request_that_is_refused_releases_its_blocks(pair):
    p, d = pair
    body = completion(ids(24, 200))
    counted = Counted(p, d)
    params = prefill(p, body)
    too_long = completion(ids(25, CONTEXT + 1))
    answer = post(d, {**too_long, "kv_transfer_params": params})
    assert answer.status_code == 400, answer.text
    alone(d, completion(ids(26, 4))) # vLLM tells it with its next step
    wait_released(p)
    assert counted.since() == [0, 0, 0]


# ---- weft's own ways -----------------------------------------------------------------------------

def test_weft_asks_a_vllm_worker_itself(vllm, weft):
    body = completion(ids(30, 300))
    counted = Counted(vllm, weft)
    answer = decode(weft, body, {"do_remote_prefill": True, "prefill_url": vllm.url})
    counted.expect(300)
    assert_same(answer, alone(weft, body))
    wait_released(vllm)


# ---- when it fails -------------------------------------------------------------------------------

def test_another_version_is_named_and_the_prompt_computed(vllm, weft):
    with running(start_weft("kv_both", vllm_version="0.31.0")) as other:
        body = completion(ids(40, 200))
        for p, d in ((vllm, other), (other, vllm)):
            assert_same(split(p, d, body), alone(weft if d is other else d, body))
        assert any("compatibility hash" in line and " warn " in line for line in other.lines)
        assert any("compatibility hash mismatch" in line for line in vllm.lines)


def test_a_prefill_worker_that_dies_and_comes_back(vllm, weft):
    given = {"port": ports.reserve(), "side_port": ports.reserve()}
    body = completion(ids(41, 300))
    with running(start_weft("kv_producer", **ports)) as first:
        assert_same(split(first, vllm, body), alone(vllm, body))
        body = completion(ids(42, 300))
        params = prefill(first, body)
    assert_same(decode(vllm, body, params), alone(vllm, body))
    with running(start_weft("kv_producer", **ports)) as second:
        body = completion(ids(43, 300))
        counted = Counted(second, vllm)
        assert_same(split(second, vllm, body), alone(vllm, body))
        counted.expect(300)


def test_a_vllm_worker_that_is_killed_leaves_weft_to_compute(vllm, weft):
    body = completion(ids(44, 300))
    params = prefill(vllm, body)
    vllm.kill()
    before = weft.gauge("weft:kv_transfer_fallbacks_total")
    assert_same(decode(weft, body, params), alone(weft, body))
    assert weft.gauge("weft:kv_transfer_fallbacks_total") == before + 1
    assert_same(decode(weft, body, params), alone(weft, body))
