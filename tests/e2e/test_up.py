# SPDX-License-Identifier: Apache-2.0
"""`weft up`: prefill and decode workers behind one front."""
import contextlib
import os
import re
import signal
import subprocess
import threading

import httpx
import pytest

import ports
from conftest import (BINARY, MODEL, NAME, Server, command, leaving_after, need_server, signal_twice, wait_for,
                      web)
from test_pd import chat, choices, completion, events, ids, path_of, post


@pytest.fixture
def up():
    need_server()
    started = []

    def start(*arguments, more=("--max-model-len", "1024", "--num-gpu-blocks-override", "200")):
        server = Server([BINARY, "up", MODEL, "--port", "0", "--threads", "1",
                         "--served-model-name", NAME, *arguments, "--", *more])
        started.append(server)
        wait_for(lambda: any("prefill=" in line and "listening" in line for line in server.lines)
                 or server.process.poll() is not None, what="the front")
        server.url = re.search(r"listening on (http://127.0.0.1:\d+) prefill",
                               "".join(server.lines))[1]
        wait_for(lambda: web.get(server.url + "/health").status_code == 200, what="health")
        return server

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


def workers_up(server, role):
    return server.metrics().get(f'weft:front_workers_up{{"role": "{role}"}}', 0)


def wait_for_all(server, prefill, decode):
    wait_for(lambda: workers_up(server, "prefill") == prefill
             and workers_up(server, "decode") == decode, what="all workers")


def worker_urls(server):
    return re.findall(r"listening on (http://127.0.0.1:\d+) model", "".join(server.lines))


def pids(server, name):
    """Of the children, by the role in their command lines."""
    found = []
    children = open(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read().split()
    for pid in children:
        with contextlib.suppress(OSError): # it has just ended
            if name in open(f"/proc/{pid}/cmdline").read():
                found.append(int(pid))
    return found


@pytest.mark.parametrize("overlap", ["--overlap", "--no-overlap"])
def test_a_split_service_answers_as_one_worker(up, start_server, overlap):
    server = up(overlap)
    wait_for_all(server, 1, 1)
    alone = start_server("--max-model-len", "1024", "--num-gpu-blocks-override", "200")
    for body in (completion(ids(1, 300)), chat("What is a loom?"), completion(ids(2, 20), n=2)):
        assert choices(post(server, body)) == choices(post(alone, body))
    body = completion(ids(3, 100), stream=True)
    tokens = [sum((c["token_ids"] for e in events(s, body) for c in e["choices"]), [])
              for s in (server, alone)]
    assert tokens[0] == tokens[1] and len(tokens[0]) == 12
    assert web.get(server.url + "/v1/models").json()["data"][0]["id"] == NAME
    legs = server.metrics()
    assert legs['weft:front_legs_total{"status": "2xx", "worker": "decode-0"}'] == 5
    if overlap == "--no-overlap":
        assert legs['weft:front_legs_total{"status": "2xx", "worker": "prefill-0"}'] == 4
    assert server.gauge("weft:front_unsplit_total") == 0
    said = "".join(web.get(url + "/metrics").text for url in worker_urls(server))
    pulled = re.findall(r"vllm:external_prefix_cache_hits_total\{[^}]*\} (\d+)", said)
    assert sum(map(int, pulled)) > 400
    assert server.stop(signal.SIGINT) == 0, "".join(server.lines[-20:])


def test_errors_are_the_workers(up):
    server = up()
    wait_for_all(server, 1, 1)
    answer = post(server, completion(ids(1, 10), temperature=-1))
    assert answer.status_code == 400 and "temperature" in answer.text
    answer = web.post(server.url + "/v1/completions", content=b"{",
                        headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert web.get(server.url + "/nowhere").status_code == 404


def test_workers_that_die_are_named_and_the_others_serve(up):
    server = up("--prefill", "2", "--decode", "2", "--max-restarts", "0")
    wait_for_all(server, 2, 2)
    expected = choices(post(server, completion(ids(5, 200))))
    for role in ("kv_producer", "kv_consumer"):
        os.kill(pids(server, role)[0], signal.SIGKILL)
        for _ in range(4):
            assert choices(post(server, completion(ids(5, 200)))) == expected
    wait_for(lambda: sum("has died" in line for line in server.lines) == 2, what="both names")
    assert any("prefill-0" in line and "signal 9" in line for line in server.lines)
    os.kill(pids(server, "kv_producer")[0], signal.SIGKILL)
    assert choices(post(server, completion(ids(5, 200)))) == expected # computed by the other
    os.kill(pids(server, "kv_consumer")[0], signal.SIGKILL)
    assert server.wait() == 1


def test_a_worker_that_dies_is_started_again(up):
    server = up()
    wait_for_all(server, 1, 1)
    expected = choices(post(server, completion(ids(9, 200))))
    for role in ("kv_producer", "kv_consumer"):
        old = pids(server, role)[0]
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: old not in pids(server, role) and pids(server, role), what="a new one")
        wait_for_all(server, 1, 1)
        assert choices(post(server, completion(ids(9, 200)))) == expected
    wait_for(lambda: sum("started again" in line for line in server.lines) == 2, what="both restarts")
    assert server.stop(signal.SIGINT) == 0


def test_ctrl_c_ends_it_while_every_worker_waits_to_be_started_again(up):
    server = up()
    wait_for_all(server, 1, 1)
    for role in ("kv_producer", "kv_consumer"):
        os.kill(pids(server, role)[0], signal.SIGKILL)
    wait_for(lambda: sum("will be started again" in line for line in server.lines) == 2,
             what="both deaths")
    assert server.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("words", [
    ["up", MODEL, "--port", "0", "--prefill", "0", "--"],
    ["serve", MODEL, "--data-parallel-size", "2", "--data-parallel-size-local", "1", "--data-parallel-external-lb"],
], ids=["up", "data-parallel"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_it_serves_is_the_exit_code(words, number):
    """Its worker waits for another rank, which never comes."""
    need_server()
    server = Server([BINARY, *words, "--port", "0", "--tensor-parallel-size", "2", "--rank", "0",
                     "--world-size", "2", "--leader", f"127.0.0.1:{ports.reserve()}"])
    try:
        wait_for(lambda: any("rank 0 of 2" in line for line in server.lines)
                 or server.process.poll() is not None, what="its worker")
        assert server.stop(number) == 128 + number, "".join(server.lines)
    finally:
        server.process.kill()
        server.process.wait()


def test_a_client_that_leaves_ends_both_legs(up):
    server = up()
    wait_for_all(server, 1, 1)
    urls = worker_urls(server)
    assert len(urls) == 2
    for body in (completion(ids(6, 1000), max_tokens=20), completion(ids(7, 10), max_tokens=1000)):
        with pytest.raises(httpx.ReadTimeout):
            web.post(server.url + path_of(body), json=body, timeout=leaving_after(0.1))
        for url in urls:
            wait_for(lambda: "weft:kv_blocks_referenced 0" in web.get(url + "/metrics").text,
                     what="an idle worker")
    wait_for(lambda: server.gauge("weft:front_requests_open") == 0, what="the end of both requests")


def test_ctrl_c_lets_answers_end(up):
    server = up("--shutdown-timeout", "300")
    wait_for_all(server, 1, 1)
    body = completion(ids(8, 50), max_tokens=300)
    answers = []
    asker = threading.Thread(target=lambda: answers.append(post(server, body)))
    asker.start()
    wait_for(lambda: server.gauge("weft:front_requests_open") == 1, what="the request")
    assert server.stop(signal.SIGINT) == 0
    asker.join()
    assert len(choices(answers[0])[0]["token_ids"]) == 300
    stopping = next(i for i, line in enumerate(server.lines) if "stopping signal" in line)
    assert not any("does not answer" in line for line in server.lines[stopping:]) # told to end


def test_a_signal_that_comes_twice_lets_answers_end(up):
    server = up("--shutdown-timeout", "300")
    wait_for_all(server, 1, 1)
    answers = []
    asker = threading.Thread(
        target=lambda: answers.append(post(server, completion(ids(10, 50), max_tokens=300))))
    asker.start()
    wait_for(lambda: server.gauge("weft:front_requests_open") == 1, what="the request")
    signal_twice(server.process, signal.SIGTERM)
    assert server.wait() == 0
    asker.join()
    assert len(choices(answers[0])[0]["token_ids"]) == 300


@pytest.mark.parametrize("quiet", ["all", "workers"])
def test_a_quiet_service_serves(quiet):
    need_server()
    mine, theirs = (["--log-level", "warn"], []) if quiet == "all" else ([], ["--log-level", "warn"])
    server = Server([BINARY, "up", MODEL, "--port", "0", "--threads", "1", *mine,
                     "--served-model-name", NAME, "--", "--max-model-len", "1024",
                     "--num-gpu-blocks-override", "200", *theirs])
    try:
        server.wait_until_listening()
        wait_for_all(server, 1, 1)
        assert post(server, completion(ids(1, 50))).status_code == 200
        assert not any(" info " in line for line in server.lines
                       if quiet == "all" or line.startswith(("prefill", "decode")))
        assert server.stop(signal.SIGINT) == 0
    finally:
        server.process.kill()
        server.process.wait()


def test_workers_of_two_ranks_answer_as_one_of_two_ranks(up, request):
    """Blocks come from both ranks of the prefill worker to both of the decode worker."""
    alone = Server([BINARY, "serve", MODEL, "-tp", "2", "--port", "0", "--threads", "1",
                    "--served-model-name", NAME, "--max-model-len", "1024",
                    "--num-gpu-blocks-override", "200"])
    request.addfinalizer(lambda: (alone.process.kill(), alone.process.wait()))
    server = up("-tp", "2")
    wait_for_all(server, 1, 1)
    alone.wait_until_listening()
    for first in (1, 300):
        body = completion(ids(first, 200))
        answer = post(server, body)
        assert choices(answer) == choices(post(alone, body))
        assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 199
    assert server.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("model, flags, said", [
    ("/nowhere.gguf", [], "/nowhere.gguf: No such file or directory"),
    ("org/name", [], 'org/name: No such file or directory; a model is a local file or folder'),
    (__file__, [], "test_up.py: "),
    (MODEL, ["-tp", "16"], "tensor parallel size 16: "),
    (MODEL, ["--log-level", "loud"],
     '--log-level: "loud" is none of error, warn, info, debug and trace'),
    (MODEL, ["--", "--device", "gpu"], 'device "gpu" is unknown; known: auto'),
    (MODEL, ["--", "--device", "cuda:99"], "device cuda"),
    (MODEL, ["--", "--gpu-memory-utilization", "2"], "--gpu-memory-utilization 2: above 0"),
    (MODEL, ["--", "--no-such-flag"], "--no-such-flag"),
])
def test_what_is_wrong_is_said_before_a_worker_starts(model, flags, said):
    need_server()
    done = subprocess.run([BINARY, "up", model, "--port", "0", *flags], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("weft: error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1


def value_of(pid, flag):
    """That a process was started with, if it was."""
    words = open(f"/proc/{pid}/cmdline").read().split("\0")
    values = [value for word, value in zip(words, words[1:]) if word == flag]
    return values[-1] if values else None # the last one wins


def test_workers_share_the_machine(up):
    """As what stands behind -- says they do."""
    server = up("--decode", "2", more=["--device", "cpu", "--max-model-len", "1024", "--threads", "2"])
    wait_for_all(server, 1, 2)
    workers = pids(server, "WeftConnector")
    assert [value_of(pid, "--device") for pid in workers] == ["cpu"] * 3
    assert [value_of(pid, "--threads") for pid in workers] == ["2"] * 3
    shares = {value_of(pid, "--kv-cache-memory-bytes") for pid in workers}
    assert len(shares) == 1 and int(shares.pop()) > 0
    assert {value_of(pid, "--gpu-memory-utilization") for pid in workers} == {None}
    assert any("decode-1 has device=cpu" in line for line in server.lines)
