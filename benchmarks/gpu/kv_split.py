#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode on two workers of one GPU (or --prefill-device cpu): are the answers those of one
worker, and what does a prompt cost that is pulled? Only the standard library.

usage: benchmarks/gpu/kv_split.py --weft build/cuda/weft MODEL
"""
import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

SENTENCE = "The quick brown fox jumps over the lazy dog while it rains in the mountains. "


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Worker:
    def __init__(self, args, role, device, extra):
        self.port = free_port()
        environment = dict(os.environ, VLLM_NIXL_SIDE_CHANNEL_HOST="127.0.0.1",
                           VLLM_NIXL_SIDE_CHANNEL_PORT=str(free_port()))
        config = {"kv_connector": "WeftConnector", "kv_role": role}
        if args.backends:
            config["kv_connector_extra_config"] = {"backends": args.backends.split(",")}
        command = [args.weft, "serve", args.model, "--device", device, "--host", "127.0.0.1",
                   "--port", str(self.port), "--max-model-len", str(args.context),
                   "--enable-prefix-caching",
                   "--kv-transfer-config", json.dumps(config)] + extra
        if device.startswith("cuda"):
            command += ["--gpu-memory-utilization", "0.2"]
        self.log = open(os.path.join(args.out, "kv_split_%s.log" % role), "w")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)

    def wait(self, deadline):
        while time.time() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen("http://127.0.0.1:%d/health" % self.port, timeout=1).read()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise SystemExit("kv_split: a worker does not come up, see %s" % self.log.name)

    def post(self, body):
        request = urllib.request.Request("http://127.0.0.1:%d/v1/completions" % self.port,
                                         json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        begun = time.time()
        try:
            answer = json.load(urllib.request.urlopen(request, timeout=60))
        except urllib.error.HTTPError as error:
            raise SystemExit("kv_split: %s" % error.read().decode())
        return answer, time.time() - begun

    def metric(self, name):
        text = urllib.request.urlopen("http://127.0.0.1:%d/metrics" % self.port).read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--weft", default="build/cuda/weft")
    parser.add_argument("--prefill-device", default="cuda")
    parser.add_argument("--decode-device", default="cuda")
    parser.add_argument("--backends", default="")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", default=".")
    args, extra = parser.parse_known_args()
    workers = []
    try:
        workers.append(Worker(args, "kv_producer", args.prefill_device, extra))
        workers.append(Worker(args, "kv_consumer", args.decode_device, extra))
        deadline = time.time() + 60
        for worker in workers:
            worker.wait(deadline)
        return run(args, *workers)
    finally:
        for worker in workers:
            worker.stop()


def run(args, prefill, decode):
    same = 0
    legs, alone = [], []
    for i in range(args.rounds):
        prompt = "Story %d. " % i + SENTENCE * args.sentences
        body = {"model": args.model, "prompt": prompt, "temperature": 0, "max_tokens": 16,
                "ignore_eos": True}
        first, p_seconds = prefill.post(dict(body, max_tokens=1,
                                             kv_transfer_params={"do_remote_decode": True}))
        answer, d_seconds = decode.post(dict(body, kv_transfer_params=first["kv_transfer_params"]))
        whole, w_seconds = prefill.post(body)
        text = answer["choices"][0]["text"]
        same += text == whole["choices"][0]["text"]
        legs.append((p_seconds, d_seconds))
        alone.append(w_seconds)
        if i == 0:
            print("prompt %d tokens; answer %r" % (answer["usage"]["prompt_tokens"], text[:60]))
    bytes_read = decode.metric("vllm:nixl_bytes_transferred_sum")
    seconds = decode.metric("vllm:nixl_xfer_time_seconds_sum")
    failures = decode.metric("vllm:nixl_num_failed_transfers")
    p, d = sorted(legs)[len(legs) // 2]
    print("same answers %d/%d; prefill leg %.1f ms, decode leg (16 tokens) %.1f ms, cached whole "
          "%.1f ms; pulled %.1f MB in %.2f ms, failures %d"
          % (same, args.rounds, p * 1e3, d * 1e3, sorted(alone)[len(alone) // 2] * 1e3,
             bytes_read / 1e6, seconds * 1e3, failures))
    is_good = same == args.rounds if args.prefill_device == args.decode_device else bytes_read > 0
    return 0 if is_good and bytes_read > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
