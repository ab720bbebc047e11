# SPDX-License-Identifier: Apache-2.0
"""A client that goes away frees its blocks: in the queue, in prefill, streaming or not."""
import json
import socket
import threading

import pytest

from conftest import NAME, wait_for, web

LONG = {"model": NAME, "prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True}


def send(server, body):
    """The request on a raw socket, to be dropped at will."""
    data = json.dumps(body).encode()
    s = socket.create_connection(("127.0.0.1", server.port))
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n" % len(data) + data)
    return s


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_frees_the_blocks(server, stream):
    server.wait_until_idle()
    aborted = server.metrics()
    s = send(server, {**LONG, "stream": stream})
    wait_for(lambda: server.gauge("vllm:num_requests_running") == 1, what="the request to run")
    s.close()
    server.wait_until_idle()
    key = next(k for k in aborted if "request_success" in k and "abort" in k)
    assert server.metrics()[key] == aborted[key] + 1


def test_leaving_in_prefill_frees_the_blocks(server):
    server.wait_until_idle()
    s = send(server, {**LONG, "prompt": "word " * 1900, "max_tokens": 5})
    wait_for(lambda: server.gauge("weft:kv_blocks_referenced") > 0, what="its blocks")
    s.close()
    server.wait_until_idle()


def test_leaving_while_queued_frees_the_place(start_server):
    server = start_server("--max-num-seqs", "1", "--max-model-len", "2048")
    first = send(server, LONG)
    wait_for(lambda: server.gauge("vllm:num_requests_running") == 1, what="the first to run")
    second = send(server, LONG)
    wait_for(lambda: server.gauge("vllm:num_requests_waiting") == 1, what="the second to wait")
    second.close()
    wait_for(lambda: server.gauge("vllm:num_requests_waiting") == 0, what="the second to go")
    assert server.gauge("vllm:num_requests_running") == 1
    first.close()
    server.wait_until_idle()


def test_leaving_before_the_body_is_complete_costs_nothing(server):
    s = socket.create_connection(("127.0.0.1", server.port))
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{")
    s.close()
    server.wait_until_idle()


def test_a_hundred_that_leave_at_once(server):
    sockets = [send(server, {**LONG, "stream": i % 2 == 0}) for i in range(100)]
    wait_for(lambda: server.gauge("vllm:num_requests_running") > 0, what="some to run")
    for s in sockets:
        s.close()
    server.wait_until_idle()


def test_a_sample_at_its_stop_string_gives_its_place_up_at_once(server, client):
    ask = dict(model=NAME, prompt="Once", n=2, max_tokens=500, temperature=1.5, seed=5,
               extra_body={"ignore_eos": True})
    first, other = (choice.text for choice in client.completions.create(**ask).choices)
    stop = next(first[at:at + 12] for at in range(20, 200) if first[at:at + 12] not in other)
    stream = client.completions.create(**ask, stop=stop, stream=True)
    text = ["", ""]
    for chunk in stream:
        choice = chunk.choices[0]
        text[choice.index] += choice.text
        if choice.finish_reason:
            assert (choice.index, choice.finish_reason) == (0, "stop")
            break
    wait_for(lambda: server.metrics()['vllm:num_requests_running{"engine": "0", "model_name": "%s"}'
                                      % NAME] == 1, what="one sample alone")
    for chunk in stream:
        text[chunk.choices[0].index] += chunk.choices[0].text
    assert first.startswith(text[0]) and text[1] == other


def test_an_abort_by_id_ends_the_answer(server, http):
    answers = []
    server.wait_until_idle()

    def run():
        answers.append(web.post(server.url + "/inference/v1/generate", json={
            "model": NAME, "token_ids": [504, 3575], "request_id": "to-be-aborted",
            "sampling_params": {"max_tokens": 1500, "ignore_eos": True}}).json())

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: server.gauge("vllm:num_requests_running") == 1, what="the request to run")
    assert http.post("/inference/v1/abort_requests",
                     json={"request_ids": ["unknown", "to-be-aborted"]}).status_code == 200
    thread.join()
    assert answers[0]["choices"][0]["finish_reason"] == "abort"
    server.wait_until_idle()
