# SPDX-License-Identifier: Apache-2.0
"""Bad input gets the OpenAI error object with the right code, and costs nobody else anything."""
import json
import socket
import ssl
import threading

import openai
import pytest

from conftest import NAME

PROMPT = "The capital of France is"


def completion(**more):
    return {"model": NAME, "prompt": PROMPT, "max_tokens": 4, **more}


def chat(**more):
    return {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, **more}


def check(answer, status, kind, param=None, message=None):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (status, kind)
    if param:
        assert error["param"] == param
    if message:
        assert message in error["message"]
    return error


SEMANTIC = [
    ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1 << 40}, "max_tokens"), ({"temperature": -0.1}, "temperature"),
    ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"), ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"), ({"n": 0}, "n"), ({"n": 4000}, "n"),
    ({"n": 100000}, "n"), ({"min_tokens": 5}, "min_tokens"), ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 1000}, "stop"), ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"), ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"), ({"bad_words": [""]}, "bad_words"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"), ({"priority": 1}, "priority"),
    ({"cache_salt": ""}, "cache_salt"), ({"stream_options": {"include_usage": True}},
                                         "stream_options"),
    ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    ({"structured_outputs": {"regex": "(", }}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"json": {"type": "nonsense"}}}, "structured_outputs.json"),
    ({"structured_outputs": {"grammar": "start: ("}}, "structured_outputs.grammar"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
]


@pytest.mark.parametrize("fields,param", SEMANTIC)
def test_a_value_that_cannot_be_is_named(http, fields, param):
    check(http.post("/v1/completions", json=completion(**fields)), 400, "BadRequestError", param)


@pytest.mark.parametrize("fields,param", [
    ({"prompt": None}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"),
    ({"prompt": [1, -5]}, "prompt"), ({"prompt": [1 << 20]}, "prompt"), ({"logprobs": 21}, "logprobs"),
    ({"bad_words": ["a" * 70000]}, "bad_words"),
    ({"structured_outputs": {"json": {}, "whitespace_pattern": "("}}, "structured_outputs.json"),
    ({"prompt": ["a"] * 3000}, "prompt"), ({"suffix": "x"}, "suffix"),
])
def test_prompts_that_cannot_be_are_named(http, fields, param):
    check(http.post("/v1/completions", json=completion(**fields)), 400, "BadRequestError", param)


@pytest.mark.parametrize("fields,param", [
    ({"top_logprobs": 2}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages"),
])
def test_chats_that_cannot_be_are_named(http, fields, param):
    check(http.post("/v1/chat/completions", json=chat(**fields)), 400, "BadRequestError", param)


@pytest.mark.parametrize("path,body,param", [
    ("/v1/completions", completion(temperature="hot"), "temperature"),
    ("/v1/completions", completion(max_tokens=1.5), "max_tokens"),
    ("/v1/completions", completion(stream="yes"), "stream"),
    ("/v1/completions", completion(prompt={"a": 1}), "prompt"),
    ("/v1/completions", completion(prompt=[1, "a"]), "prompt.1"),
    ("/v1/completions", completion(stop=[1]), "stop.0"),
    ("/v1/completions", completion(response_format={"type": "json_schema"}),
     "response_format.json_schema.schema"),
    ("/v1/chat/completions", {"model": NAME}, "messages"),
    ("/v1/chat/completions", chat(messages=[]), "messages"),
    ("/v1/chat/completions", chat(messages="hi"), "messages"),
    ("/v1/chat/completions", chat(messages=[{"content": "x"}]), "messages.0.role"),
    ("/v1/chat/completions", chat(tools=[{"type": "function"}]), "tools.0.function.name"),
    ("/v1/chat/completions", chat(response_format={"type": "poem"}), "response_format.type"),
    ("/inference/v1/generate", {"model": NAME, "token_ids": []}, "token_ids"),
    ("/inference/v1/generate", {"model": NAME, "token_ids": [1], "sampling_params": {"n": "x"}},
     "sampling_params.n"),
    ("/tokenize", {"model": NAME}, "prompt"), ("/detokenize", {"model": NAME}, "tokens"),
])
def test_a_wrong_type_is_a_violation_of_the_schema(http, path, body, param):
    check(http.post(path, json=body), 400, "Bad Request", param, "1 validation error")


def test_every_wrong_field_of_a_body_is_listed(http):
    body = chat(temperature="hot", stop=["a", 1], n=0, messages=[{"role": "user", "content": 5}, {}],
                tools=[{}], tool_choice="maybe", response_format={}, top_logprobs="2",
                structured_outputs={"regex": 1}, stream=True, stream_options={"include_usage": 1})
    error = check(http.post("/v1/chat/completions", json=body), 400, "Bad Request",
                  "stream_options.include_usage", "10 validation errors: ")
    for path in ("stream_options.include_usage", "temperature", "stop.1", "structured_outputs.regex",
                 "response_format.type", "top_logprobs", "messages.0.content", "messages.1.role",
                 "tools.0.function.name", "tool_choice"):
        assert f"{path}: " in error["message"], path


DEAD_ENDS = [
    ({"allowed_token_ids": "aa", "structured_outputs": {"regex": "a{8}b"}}, "structured_outputs.regex",
     "the tokens that the grammar lets follow"),
    ({"structured_outputs": {"grammar": 'start: s\ns: ' + 100 * "s " + '| "a" | "b" | s s\n'}},
     "structured_outputs.grammar", "grammar: "),
]


@pytest.mark.parametrize("fields,param,text", DEAD_ENDS)
def test_an_answer_that_cannot_be_continued_is_the_request_s_fault(server, http, fields, param, text):
    if "allowed_token_ids" in fields:
        tokens = http.post("/tokenize", json={"prompt": fields["allowed_token_ids"]}).json()["tokens"]
        fields = {**fields, "allowed_token_ids": tokens}
    body = completion(**fields, max_tokens=2000, min_tokens=2000, temperature=0)
    error = check(http.post("/v1/completions", json=body), 400, "BadRequestError", param, text)
    with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[0])["choices"][0]["text"]
    assert json.loads(events[-2]) == {"error": error}


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="x")
    assert caught.value.body["param"] == "model"
    assert caught.value.body["message"] == "The model `other` does not exist."


@pytest.mark.parametrize("prompt", ["word " * 3000, [5] * 3000, [5] * 2048, "x" * (4 << 20)])
def test_a_prompt_over_the_length_is_refused(http, prompt):
    check(http.post("/v1/completions", json=completion(prompt=prompt)), 400, "BadRequestError",
          message="maximum context length is 2048 tokens")


def test_an_answer_over_the_length_is_refused(http):
    check(http.post("/v1/completions", json=completion(max_tokens=2047)), 400, "BadRequestError",
          "max_tokens", "2048")


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("body", [
    b"", b"{", b"nonsense", b"[]", b'"x"', b"{}{}", b'{"prompt": "\xff\xfe"}', b"\x00\x01",
    b'{"prompt": ' + b"[" * 10000 + b"]" * 10000 + b"}", b'{"prompt": "\\ud800"}',
    b'{"max_tokens": 1e999}', b'{"max_tokens": 99999999999999999999999}',
])
def test_a_body_that_is_no_json_object_is_refused(http, body):
    check(http.post("/v1/completions", content=body, headers=JSON), 400, "Bad Request")


def test_another_content_type_is_refused(http):
    check(http.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}), 400,
          "Bad Request")
    answer = http.post("/v1/completions", content=json.dumps(completion()).encode(),
                       headers={"Content-Type": "application/json; charset=utf-8"})
    assert answer.status_code == 200


def test_too_large_bodies_are_refused(http):
    check(http.post("/v1/completions", content=b" " * (64 << 20), headers=JSON), 413,
          "Request Entity Too Large")
    check(http.post("/v1/completions", content=b"[" + b"{}," * 3000000, headers=JSON), 413,
          "Request Entity Too Large")


def test_unknown_paths_and_methods_are_told_apart(http):
    check(http.get("/v1/nothing"), 404, "Not Found")
    for method, path, allowed in (("GET", "/v1/completions", "POST"), ("PUT", "/ping", "GET, POST")):
        answer = http.request(method, path)
        check(answer, 405, "Method Not Allowed")
        assert answer.headers["Allow"] == allowed
    for path, option in (("/v1/embeddings", "--runner pooling"), ("/v1/load_lora_adapter", "--enable-lora")):
        check(http.post(path, json={}), 404, "Not Found", message=option)


def test_a_template_that_raises_says_so(start_server):
    server = start_server("--max-model-len", "256", "--chat-template",
                          "{{ raise_exception('no such talk') }}")
    with server.http() as http:
        check(http.post("/v1/chat/completions", json=chat()), 400, "BadRequestError",
              message="no such talk")


@pytest.mark.parametrize("data,status", [
    (b"GET /health\r\n\r\n", b"400"), (b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n", b"505"),
    (b"GET /" + 100000 * b"a" + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"414"),
    (b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", b"400"),
])
def test_what_is_no_http_gets_a_status_and_the_connection_ends(server, http, data, status):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as s:
        s.sendall(data)
        answer = b""
        while piece := s.recv(65536):
            answer += piece
    assert answer.split(b" ")[:2] == [b"HTTP/1.1", status]
    assert http.get("/health").status_code == 200


def test_slow_clients_hold_up_nobody(server, client):
    sockets = []
    try:
        for _ in range(50):
            s = socket.create_connection(("127.0.0.1", server.port))
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                      b"Content-Type: application/json\r\n\r\n{")
            sockets.append(s)
        assert client.completions.create(model=NAME, prompt=PROMPT, max_tokens=2).choices[0].text
    finally:
        for s in sockets:
            s.close()


def test_hostile_requests_beside_good_ones(server, client):
    """Good requests get their answers while others send rubbish all the time."""
    is_over = threading.Event()
    statuses = set()
    rubbish = [b"{", b"[" * 10000, json.dumps(completion(prompt="x" * (2 << 20))).encode(),
               json.dumps(completion(structured_outputs={"regex": "(" * 500})).encode()]

    def send():
        with server.http() as http:
            n = 0
            while not is_over.is_set():
                answer = http.post("/v1/completions", content=rubbish[n % len(rubbish)], headers=JSON)
                statuses.add(answer.status_code)
                n += 1

    senders = [threading.Thread(target=send) for _ in range(3)]
    for sender in senders:
        sender.start()
    try:
        texts = {client.completions.create(model=NAME, prompt=PROMPT, max_tokens=6, temperature=0
                                           ).choices[0].text for _ in range(10)}
        assert len(texts) == 1
    finally:
        is_over.set()
        for sender in senders:
            sender.join()
    assert statuses <= {400, 413, 503}


def test_a_full_queue_answers_503_with_retry_after(start_server):
    server = start_server("--max-num-seqs", "1", "--max-num-queued-reqs", "1",
                          "--max-model-len", "512")
    body = completion(max_tokens=400, ignore_eos=True, stream=True)
    with server.http() as http, http.stream("POST", "/v1/completions", json=body) as first, \
            http.stream("POST", "/v1/completions", json=body) as second:
        lines = first.iter_lines()
        next(lines)
        assert second.status_code == 200
        answer = http.post("/v1/completions", json=completion())
        check(answer, 503, "Service Unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert server.gauge("vllm:admission_rejections_total") == 1
