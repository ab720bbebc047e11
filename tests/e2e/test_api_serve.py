# SPDX-License-Identifier: Apache-2.0
"""How the server starts, is watched and stops: flags, TLS, keys, metrics, drain, scale."""
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import openai
import pytest
import trustme

from conftest import BINARY, MODEL, NAME, VECTORS, command, need_server, signal_twice, wait_for, web

LONG = {"model": NAME, "prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True,
        "stream": True}

# ---- what it says about itself -------------------------------------------------------------------


def test_models_health_version_and_load(http, client):
    model = client.models.list().data[0]
    assert model.id == NAME and model.owned_by == "vllm" and model.max_model_len == 2048
    assert http.get("/health").status_code == 200 and http.get("/health").content == b""
    assert http.get("/ping").status_code == http.post("/ping").status_code == 200
    assert http.get("/version").json()["version"]
    assert http.get("/load").json() == {"server_load": 0}


REQUIRED = """vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc
vllm:cache_config_info vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total
vllm:external_prefix_cache_queries_total vllm:external_prefix_cache_hits_total
vllm:prompt_tokens_total vllm:generation_tokens_total vllm:num_preemptions_total
vllm:request_success_total vllm:time_to_first_token_seconds_bucket
vllm:inter_token_latency_seconds_bucket vllm:request_time_per_output_token_seconds_bucket
vllm:e2e_request_latency_seconds_bucket vllm:request_queue_time_seconds_bucket
vllm:request_inference_time_seconds_bucket vllm:request_prefill_time_seconds_bucket
vllm:request_decode_time_seconds_bucket vllm:request_prompt_tokens_bucket
vllm:request_generation_tokens_bucket vllm:iteration_tokens_total_bucket
http_requests_total process_resident_memory_bytes""".split()


def test_the_exposition_has_every_required_name(start_server):
    server = start_server("--max-model-len", "256")
    names = {key.split("{")[0] for key in server.metrics()}
    assert set(REQUIRED) - {"http_requests_total"} <= names
    server.openai().completions.create(model=NAME, prompt="The capital", max_tokens=5)
    metrics = server.metrics()
    labels = json.dumps({"engine": "0", "model_name": NAME}, sort_keys=True)
    assert metrics["vllm:prompt_tokens_total" + labels] == 2
    assert metrics["vllm:generation_tokens_total" + labels] == 5
    assert metrics["vllm:time_to_first_token_seconds_count" + labels] == 1
    assert metrics["vllm:num_requests_running" + labels] == 0
    config = next(json.loads(k[len("vllm:cache_config_info"):]) for k in metrics
                  if k.startswith("vllm:cache_config_info"))
    assert config["block_size"] == "16" and int(config["num_gpu_blocks"]) > 0
    assert server.gauge("http_requests_total") == 1


# ---- flags ---------------------------------------------------------------------------------------

VLLM_FLAGS = ["--max-model-len", "256", "--gpu-memory-utilization", "0.9", "--enforce-eager",
              "--trust-remote-code", "--dtype", "auto", "--tensor-parallel-size", "1",
              "--disable-log-requests", "--uvicorn-log-level", "info", "--enable-ssl-refresh",
              "--enable-prefix-caching", "--max-num-seqs", "8", "--seed", "1",
              "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]


def test_a_vllm_command_line_starts_it(start_server, tmp_path):
    need_server()
    vllm = Path(BINARY).parent / "vllm"
    assert vllm.is_symlink()
    env = {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_API_KEY": "of-the-environment", "HOME": str(tmp_path),
           "HF_HUB_CACHE": "/models", "VLLM_NIXL_SIDE_CHANNEL_HOST": "x", "VLLM_UNKNOWN": "1",
           "VLLM_ADDITIONAL_ARGS": "--enable-prompt-tokens-details --max-logprobs 5"}
    server = start_server(*VLLM_FLAGS, env=env, program=str(vllm))
    assert any("enforce-eager" in line for line in server.lines)
    with pytest.raises(openai.AuthenticationError):
        server.openai().models.list()
    client = server.openai(api_key="of-the-environment")
    usage = client.completions.create(model=NAME, prompt="x", max_tokens=1).usage
    assert usage.prompt_tokens_details is not None


@pytest.mark.parametrize("arguments,text", [
    (["--tensor-parallel-size", "0"], "tensor-parallel-size"), (["-pp", "0"], "pipeline-parallel-size"),
    (["--max-logprobs", "-2"], "max-logprobs"), (["--max-model-len", "-2"], "max-model-len"),
    (["--no-such-flag"], "no-such-flag"), (["--port", "70000"], "port"),
    (["--max-num-seqs", "many"], "max-num-seqs"), (["--ssl-certfile", "x"], "ssl-keyfile"),
    (["--ssl-certfile", "/nowhere.crt", "--ssl-keyfile", "/nowhere.key"], "nowhere"),
    (["--chat-template", "/nowhere.jinja"], "nowhere"), (["--tool-call-parser", "no"], "no"),
    (["--chat-template", "{% if %}"], "chat-template"),
    (["--override-generation-config", '{"temperature": "x"}'], "override-generation-config"),
    (["--otlp-traces-endpoint", "nowhere"], "otlp"),
])
def test_a_wrong_flag_is_one_line_and_exit_code_2(start_server, arguments, text):
    server = start_server(*arguments, wait=False)
    assert server.wait() in (1, 2)
    errors = [line for line in server.lines if "error" in line]
    assert len(errors) == 1 and text in errors[0], server.lines


def test_a_taken_port_is_said(start_server, server):
    other = start_server("--port", str(server.port), wait=False)
    assert other.wait() != 0
    assert any(str(server.port) in line and "error" in line for line in other.lines), other.lines


def test_short_names_and_no_limits_are_taken(start_server):
    server = start_server("-tp", "1", "-pp=1", "-dp", "1", "--max-logprobs", "-1", "--max-model-len",
                          "auto")
    assert server.openai().models.list().data[0].max_model_len == 8192
    answer = server.openai().completions.create(model=NAME, prompt="x", max_tokens=1, logprobs=20)
    assert len(answer.choices[0].logprobs.top_logprobs[0]) >= 20
    with pytest.raises(openai.BadRequestError, match="max allowed: 20"):
        server.openai().completions.create(model=NAME, prompt="x", max_tokens=1, logprobs=21)


def test_defaults_can_be_overridden(start_server):
    server = start_server("--max-model-len", "256", "--override-generation-config",
                          '{"temperature": 0, "max_new_tokens": 3}')
    client = server.openai()
    texts = {client.chat.completions.create(model=NAME, messages=[
        {"role": "user", "content": "Tell me a story."}]).choices[0].message.content
        for _ in range(3)}
    assert len(texts) == 1


def test_priorities_are_taken_when_scheduled_by(start_server):
    server = start_server("--max-model-len", "256", "--scheduling-policy", "priority")
    with server.http() as http:
        assert http.post("/v1/completions", headers={"X-Vllm-Priority": "3"}, json={
            "model": NAME, "prompt": "x", "max_tokens": 1, "priority": -1}).status_code == 200


# ---- TLS and keys --------------------------------------------------------------------------------


def write_certificate(authority, folder):
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "tls.key.new")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt.new")
    os.rename(folder / "tls.key.new", folder / "tls.key")
    os.rename(folder / "tls.crt.new", folder / "tls.crt")


def peer_serial(server, context):
    with socket.create_connection(("127.0.0.1", server.port)) as plain, \
            context.wrap_socket(plain, server_hostname="localhost") as tls:
        return tls.getpeercert()["serialNumber"]


def test_tls_keys_and_a_certificate_that_changes(start_server, tmp_path):
    authority = trustme.CA()
    write_certificate(authority, tmp_path)
    server = start_server("--max-model-len", "256", "--ssl-keyfile", str(tmp_path / "tls.key"),
                          "--ssl-certfile", str(tmp_path / "tls.crt"), "--api-key", "one", "two")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    for key in ("one", "two"):
        with server.http(verify=context) as http:
            answer = http.post("/v1/completions", headers={"Authorization": f"Bearer {key}"},
                               json={"model": NAME, "prompt": "x", "max_tokens": 1})
            assert answer.status_code == 200
            assert http.get("/health").status_code == 200
            refused = http.get("/v1/models")
            assert refused.status_code == 401 and refused.json() == {"error": "Unauthorized"}
            assert http.post("/inference/v1/generate", json={}).status_code == 401
    before = peer_serial(server, context)
    write_certificate(authority, tmp_path)
    wait_for(lambda: peer_serial(server, context) != before, what="the new certificate")


# ---- stopping ------------------------------------------------------------------------------------


def test_sigterm_lets_running_requests_finish(start_server):
    server = start_server("--max-model-len", "512", "--shutdown-timeout", "300")
    with server.http() as http, http.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: http.get("/health").status_code == 503, what="the drain")
        refused = http.post("/v1/completions", json={**LONG, "stream": False})
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "ServiceUnavailableError"
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and json.loads(rest[-2][6:])["choices"][0]["finish_reason"]
    assert server.wait() == 0


def test_a_drain_that_takes_too_long_ends_in_an_error(start_server):
    server = start_server("--max-model-len", "2048", "--shutdown-timeout", "0")
    whole = []

    def run_whole():
        whole.append(web.post(server.url + "/v1/completions", json={
            **LONG, "max_tokens": 2000, "stream": False}))

    with server.http() as http, http.stream("POST", "/v1/completions",
                                            json={**LONG, "max_tokens": 2000}) as answer:
        lines = answer.iter_lines()
        next(lines)
        thread = threading.Thread(target=run_whole)
        thread.start()
        wait_for(lambda: server.gauge("vllm:num_requests_running") == 2, what="both to run")
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    thread.join()
    assert rest[-1] == "data: [DONE]"
    assert "shutting down" in json.loads(rest[-2][6:])["error"]["message"]
    assert whole[0].status_code == 503 and "shutting down" in whole[0].text
    assert server.wait() == 0


def test_a_second_signal_ends_it_at_once(start_server):
    server = start_server("--max-model-len", "2048", "--shutdown-timeout", "300")
    with server.http() as http, http.stream("POST", "/v1/completions",
                                            json={**LONG, "max_tokens": 2000}) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: any("draining" in line for line in server.lines), what="the drain")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() != 0


def test_a_signal_that_comes_twice_is_one(start_server):
    server = start_server("--max-model-len", "512", "--shutdown-timeout", "300")
    with server.http() as http, http.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()
        next(lines)
        signal_twice(server.process, signal.SIGTERM)  # as from timeout(1): to it, then to its group
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert server.wait() == 0


def test_a_port_that_the_system_chose_is_told_at_any_level(start_server):
    server = start_server("--max-model-len", "256", "--log-level", "error")
    assert web.get(server.url + "/health").status_code == 200
    assert server.lines == [f"listening on {server.url}\n"]


def test_prefill_urls_that_are_of_no_use_end_the_start(start_server):
    for flags, said in ((["10.0.0.7:8000"], "--prefill-urls 10.0.0.7:8000"),
                        (["http://10.0.0.7:8000"], "without --kv-transfer-config")):
        server = start_server("--max-model-len", "256", "--prefill-urls", *flags, wait=False)
        assert server.wait() != 0
        assert said in "".join(server.lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_start(start_server, tmp_path, number):
    template = tmp_path / "template"
    os.mkfifo(template)
    server = start_server("--chat-template", str(template), wait=False)
    with open(template, "w"):  # waits until the start reads it; then the start waits
        server.process.send_signal(number)
        assert server.wait() == 128 + number


def test_an_idle_server_stops_at_once(start_server):
    server = start_server("--max-model-len", "256", "--shutdown-timeout", "300")
    assert server.stop(signal.SIGINT) == 0


# ---- scale ---------------------------------------------------------------------------------------


def test_a_thousand_idle_connections_hold_up_nobody(server, client):
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(1000)]
    try:
        wait_for(lambda: server.gauge("weft:http_connections") >= 1000, what="the connections")
        assert client.completions.create(model=NAME, prompt="x", max_tokens=2).choices
    finally:
        for s in sockets:
            s.close()


def read_all(s):
    pieces = []
    while piece := s.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def test_a_thousand_streams_need_no_more_threads(start_server):
    server = start_server("--max-model-len", "64", "--max-num-queued-reqs", "2000")
    before = server.threads()
    body = json.dumps({"model": NAME, "prompt": "Hi", "max_tokens": 2, "ignore_eos": True,
                       "stream": True}).encode()
    request = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
               b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    sockets = []
    for _ in range(1000):
        s = socket.create_connection(("127.0.0.1", server.port))
        s.settimeout(120)
        s.sendall(request)
        sockets.append(s)
    most = before
    for s in sockets:
        text = read_all(s)
        assert b"200 OK" in text and b"[DONE]" in text
        most = max(most, server.threads())
    assert most == before
    server.wait_until_idle()


# ---- traces --------------------------------------------------------------------------------------


def test_spans_reach_the_collector(start_server):
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path,
                             json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    try:
        server = start_server("--max-model-len", "256", "--otlp-traces-endpoint",
                              f"http://127.0.0.1:{collector.server_port}")
        trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        web.post(server.url + "/v1/completions",
                 headers={"traceparent": f"00-{trace}-{parent}-01"},
                 json={"model": NAME, "prompt": "x", "max_tokens": 3, "ignore_eos": True})
        web.post(server.url + "/v1/completions",
                 headers={"traceparent": f"00-{trace}-{parent}-00"},
                 json={"model": NAME, "prompt": "x", "max_tokens": 3})
        assert server.stop() == 0
    finally:
        collector.shutdown()
    spans = [span for path, body in received for resource in body["resourceSpans"]
             for scope in resource["scopeSpans"] for span in scope["spans"]]
    assert received[0][0] == "/v1/traces" and len(spans) == 1
    assert (spans[0]["traceId"], spans[0]["parentSpanId"]) == (trace, parent)
    values = {a["key"]: next(iter(a["value"].values())) for a in spans[0]["attributes"]}
    assert values["gen_ai.usage.completion_tokens"] == "3"
    assert int(spans[0]["endTimeUnixNano"]) > int(spans[0]["startTimeUnixNano"])


def test_a_collector_that_does_not_answer_costs_only_spans(start_server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = start_server("--max-model-len", "256", "--otlp-traces-endpoint",
                              f"http://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(3):
            assert web.post(server.url + "/v1/completions", json={
                "model": NAME, "prompt": "x", "max_tokens": 3}).status_code == 200
        assert server.stop() == 0
    server.reader.join()
    assert any("spans were lost" in line for line in server.lines)
