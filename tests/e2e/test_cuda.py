# SPDX-License-Identifier: Apache-2.0
"""
`weft serve --device cuda` as a process, its kernels emulated: WEFT_TEST_EMULATED_BINARY is the program of
tests/cuda_emu. Tiny models and few tokens, for a kernel takes its time there.
"""
import concurrent.futures
import contextlib
import json
import os
import re
import signal
from pathlib import Path

import numpy
import pytest

from conftest import BINARY, NAME, Server, children, state, wait_for, web
from test_lora import make_adapter
from test_pd import ENV, choices, pulled, split, transfer, wait_released

EMULATED = os.environ.get("WEFT_TEST_EMULATED_BINARY")
TINY = Path(__file__).parents[1] / "vectors" / "tiny-models"
MODEL = "qwen3"
SEQUENCES = [s["tokens"] for s in json.loads((TINY / MODEL / "golden.json").read_text())["sequences"]]
CLOSE = 0.2  # a lead that activations of bf16 may turn around, in log-probability
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
N = 6  # tokens of an answer

pytestmark = pytest.mark.skipif(
    not BINARY or not EMULATED,
    reason="no WEFT_TEST_EMULATED_BINARY: it takes CUDA's headers, and GCC on x86-64")


def serve(device, *flags, program=None, model=MODEL, env=None):
    program = program or (BINARY if device == "cpu" else EMULATED)
    return Server([program, "serve", str(TINY / model), "--port", "0", "--host", "127.0.0.1",
                   "--served-model-name", NAME, "--max-num-seqs", "8", "--threads", "1",
                   "--device", device, *(("--cpu-isa", "ref") if device == "cpu" else ()), *flags], env)


def end(servers):
    for server in servers:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def start():
    """serve() until it listens; it is gone afterwards."""
    started = []

    def run(*words, wait=True, **more):
        started.append(serve(*words, **more))
        return started[-1].wait_until_listening() if wait else started[-1]

    yield run
    end(started)


@pytest.fixture(scope="module")
def both():
    """One model on the GPU and on the CPU."""
    servers = [serve(device, "--chat-template", TEMPLATE, "--return-tokens-as-token-ids")
               for device in ("cuda", "cpu")]
    try:
        yield [server.wait_until_listening() for server in servers]
        for server in servers:
            assert server.process.poll() is None, "".join(server.lines[-20:])
            server.wait_until_idle()
            assert server.stop() == 0, "".join(server.lines[-20:])
    finally:
        end(servers)


@pytest.fixture(scope="module")
def gpu(both):
    return both[0]


@pytest.fixture(scope="module")
def cpu(both):
    return both[1]


def completion(prompt, **more):
    return {"model": NAME, "prompt": prompt, "max_tokens": N, "temperature": 0, "logprobs": 5,
            "ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True, **more}


def complete(server, prompt, **more):
    return choices(web.post(server.url + "/v1/completions", json=completion(prompt, **more)))[0]


def assert_alike(tokens, expected):
    """A greedy answer beside the CPU's: the same tokens, up to where two were as good as equal."""
    assert len(tokens) == len(expected["token_ids"])
    for token, theirs, top in zip(tokens, expected["token_ids"],
                                  expected["logprobs"]["top_logprobs"]):
        if token != theirs:
            assert max(top.values()) - top.get(f"token_id:{token}", -numpy.inf) < CLOSE
            break


def lines(server):
    return "".join(server.lines)


# ---- answers -------------------------------------------------------------------------------------

@pytest.mark.parametrize("prompt", SEQUENCES, ids=len)
def test_answers_are_the_cpus(gpu, cpu, prompt):
    assert_alike(complete(gpu, prompt)["token_ids"], complete(cpu, prompt))


def test_an_answer_with_clear_choices_has_all_of_the_cpus_tokens(gpu, cpu):
    answers = [complete(server, SEQUENCES[1], max_tokens=16)["token_ids"] for server in (gpu, cpu)]
    assert answers[0] == answers[1] and len(set(answers[0])) > 1


def test_an_answer_is_the_same_alone_and_beside_others(gpu):
    bodies = [{"prompt": SEQUENCES[2][i:20 + 3 * i], "max_tokens": 3 + i} for i in range(3)]
    bodies += [{**body, "temperature": 0.9, "seed": i, "top_p": 0.8} for i, body in enumerate(bodies)]
    alone = [complete(gpu, **body) for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        beside = list(pool.map(lambda body: complete(gpu, **body), bodies))
    assert beside == alone  # to the last bit


def test_a_streamed_chat_is_the_whole_one(gpu, cpu):
    def chat(server, **more):
        return server.openai().chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "Tell me about looms."}], max_tokens=N,
            temperature=0, **more)

    whole = chat(gpu).choices[0].message.content
    chunks = [chunk.choices[0].delta.content for chunk in chat(gpu, stream=True)]
    assert "".join(text for text in chunks if text) == whole == chat(cpu).choices[0].message.content


# ---- which device --------------------------------------------------------------------------------

REFUSED = [
    ((), {"program": BINARY}, 2, "device cuda: this program is built without it, see docs/cuda.md"),
    ((), {"env": {"WEFT_EMU_DEVICES": "0"}}, 2, "device cuda: no GPU to be seen"),
    ((), {"env": {"WEFT_EMU_CAPABILITY": "75"}}, 2, "compute capability 7.5, 8.0 (Ampere)"),
    (("--device", "cuda:7"), {}, 2, "device cuda:7: there are 1"),
    (("--gpu-memory-utilization", "0.001"), {}, 1, "raise --gpu-memory-utilization"),
    (("--num-gpu-blocks-override", "10000000"), {}, 1, "--num-gpu-blocks-override"),
    # Before weights are read and memory is looked at: of that there is too little as well.
    (("--block-size", "4", "--gpu-memory-utilization", "0.001"), {}, 2, "(--block-size)"),
    (("--kv-cache-dtype", "int8"), {"model": "deepseek-v2"}, 2, "--kv-cache-dtype int8"),
]


@pytest.mark.parametrize("flags,more,code,why", REFUSED, ids=[row[3] for row in REFUSED])
def test_what_cannot_be_is_refused_with_its_reason(start, flags, more, code, why):
    server = start("cuda", *flags, wait=False, **more)
    assert server.wait() == code
    assert why in lines(server) and "listening" not in lines(server)


@pytest.mark.parametrize("devices", [1, 0])
def test_auto_takes_a_gpu_where_there_is_one(start, devices):
    server = start("auto", program=EMULATED, env={"WEFT_EMU_DEVICES": str(devices)})
    assert ("isa=cuda" in lines(server)) == (devices > 0)
    assert server.stop(signal.SIGINT) == 0


# ---- several GPUs --------------------------------------------------------------------------------

TWO = {"WEFT_EMU_DEVICES": "2",
       "WEFT_NCCL_LIBRARY": str(Path(EMULATED or "").parent / "libfake_nccl.so")}


@pytest.mark.parametrize("way", ["cuda", "nccl"])
def test_ranks_on_two_gpus_give_the_tokens(start, cpu, way):
    server = start("cuda", "-tp", "2", "--coll-backend", way, env=TWO)
    for rank in (0, 1):
        assert f"rank={rank} ranks=2 device=cuda:{rank} collectives={way}" in lines(server)
    # Of clear choices: all tokens, as one GPU has them above.
    answers = [complete(one, SEQUENCES[1], max_tokens=16)["token_ids"] for one in (server, cpu)]
    assert answers[0] == answers[1]
    assert server.stop() == 0, lines(server)


def test_copies_have_a_gpu_each(start):
    server = start("cuda", "-dp", "2", env=TWO)
    for rank in (0, 1):
        assert f"rank-{rank} has device=cuda:{rank}" in lines(server)
    wait_for(lambda: "all ranks of this machine serve" in lines(server), what="all ranks")
    assert server.stop() == 0, lines(server)


# ---- a device that fails -------------------------------------------------------------------------

@contextlib.contextmanager
def amid_a_stream(server):
    """Gives what a request waits for that is amid its answer: its events that are still to come."""
    body = completion(SEQUENCES[1], max_tokens=200, stream=True)
    with web.stream("POST", server.url + "/v1/completions", json=body) as stream:
        events = (json.loads(line[6:]) for line in stream.iter_lines()
                  if line.startswith("data: ") and line != "data: [DONE]")
        next(events)
        yield events


def test_a_failed_gpu_ends_its_requests_and_the_server(start, tmp_path):
    server = start("cuda", env={"WEFT_EMU_FAULT": str(tmp_path / "fault")})
    with amid_a_stream(server) as first, amid_a_stream(server) as second:
        (tmp_path / "fault.0").touch()
        for events in (first, second):
            assert list(events)[-1]["error"]["code"] == 500
    assert server.wait() == 1
    assert "device=cuda:0 the device's work failed" in lines(server)
    assert "cudaErrorLaunchFailure" in lines(server) and "the engine failed" in lines(server)


@pytest.fixture
def split_service(tmp_path):
    """`weft up`, decode on the second GPU."""
    server = Server([EMULATED, "up", str(TINY / MODEL), "--port", "0", "--host", "127.0.0.1",
                     "--served-model-name", NAME, "--", "--device", "cuda", "--max-num-seqs", "8"],
                    {**TWO, "WEFT_EMU_FAULT": str(tmp_path / "fault")})
    try:
        wait_for(lambda: "prefill=1 decode=1" in lines(server) or server.process.poll() is not None,
                 what="the front")
        assert server.process.poll() is None, lines(server)
        server.url = re.search(r"listening on (http://127.0.0.1:\d+) prefill", lines(server))[1]
        wait_for(lambda: web.get(server.url + "/health").status_code == 200, what="health")
        yield server
    finally:
        end([server])


def test_a_worker_whose_gpu_fails_is_started_again(split_service, tmp_path):
    server, fault = split_service, tmp_path / "fault.1"
    before = complete(server, SEQUENCES[2])
    fault.touch()
    failed = web.post(server.url + "/v1/completions", json=completion(SEQUENCES[2]))
    fault.unlink()
    assert failed.status_code == 500
    wait_for(lambda: lines(server).count("worker is up name=decode-0") == 2, what="another worker")
    assert 'worker has died name=decode-0 how="exit code 1"' in lines(server)
    assert complete(server, SEQUENCES[2]) == before
    assert server.stop() == 0, lines(server)


@pytest.mark.parametrize("way,rank,code", [("cuda", 0, 500), ("cuda", 1, 503), ("nccl", 1, 503)])
def test_a_failed_gpu_of_a_rank_ends_all_ranks(start, tmp_path, way, rank, code):
    server = start("cuda", "-tp", "2", "--coll-backend", way,
                   env={**TWO, "WEFT_EMU_FAULT": str(tmp_path / "fault")})
    follower, = children(server.process.pid)
    with amid_a_stream(server) as events:
        (tmp_path / f"fault.{rank}").touch()
        assert list(events)[-1]["error"]["code"] == code
    assert server.wait() == 1
    assert f"device=cuda:{rank} the device's work failed" in lines(server)
    if rank != 0:  # else rank 1 would have to say it, and may be ended before it does
        assert f"rank {rank} of 2 is lost" in lines(server)
    assert state(follower) in (None, "Z")


def test_a_gpu_that_fails_while_weights_are_loaded_ends_the_start(start, tmp_path):
    (tmp_path / "fault.0").touch()
    server = start("cuda", wait=False, env={"WEFT_EMU_FAULT": str(tmp_path / "fault")})
    assert server.wait() == 1
    assert "cudaErrorLaunchFailure" in lines(server) and "accelerator failed" in lines(server)


# ---- with what else there is ---------------------------------------------------------------------

@pytest.mark.parametrize("prefill,decode", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_gpu_prefills_for_others_and_decodes_for_them(start, gpu, cpu, prefill, decode):
    p = start(prefill, *transfer("kv_producer", kv_lease_duration=3600), env=ENV, wait=False)
    d = start(decode, *transfer("kv_consumer"), env=ENV)
    p.wait_until_listening()
    prompt = SEQUENCES[2]
    answer = choices(split(p, d, completion(prompt)))[0]
    assert pulled(d) == len(prompt) - 1
    if prefill == decode:
        assert answer == complete(gpu, prompt)
    assert_alike(answer["token_ids"], complete(cpu, prompt))
    wait_released(p)
    assert [server.stop() for server in (p, d)] == [0, 0]


def test_adapters_change_what_they_change_on_a_cpu(start, tmp_path):
    def logprobs(server, name):
        answer = complete(server, [1, *SEQUENCES[2]], model=name, max_tokens=1, prompt_logprobs=0)
        return numpy.array([entry[str(token)]["logprob"] for token, entry in
                            zip(answer["prompt_token_ids"][1:], answer["prompt_logprobs"][1:])])

    make_adapter(tmp_path / "a", 1, 8, 16)
    flags = ("--enable-lora", "--lora-modules", f"a={tmp_path}/a")
    servers = [start(device, *flags, model="llama") for device in ("cuda", "cpu")]
    (gpu_base, gpu_a), (cpu_base, cpu_a) = ([logprobs(server, name) for name in (NAME, "a")]
                                            for server in servers)
    changed = numpy.abs(cpu_a - cpu_base).mean()
    assert numpy.abs(gpu_a - cpu_a).mean() < changed / 4
    assert numpy.abs(gpu_base - cpu_base).mean() < changed / 4
