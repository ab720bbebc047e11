# SPDX-License-Identifier: Apache-2.0
"""The two kinds of worker: vLLM's CPU build as scripts/interop_env.sh installs it, and weft set up
for it.

Both serve the same bf16 weights under the same name. Each has one core: threads of two engines on
the same cores spin against each other.
"""
import json
import os
import signal
from pathlib import Path

import httpx

import ports
from conftest import BINARY, NAME, Server, wait_for, web

HOME = Path(os.environ.get("WEFT_TEST_INTEROP", "/nonexistent")).resolve()
MODEL = HOME / "model"
LEASE_SECONDS = 12
BLOCK = 128  # tokens in a block of vLLM on a CPU
CONTEXT = 2048
START_SECONDS = 900
VERSION = "0.32.0"


def side_channel(port):
    return {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}


def last_core():
    return str(max(os.sched_getaffinity(0)))


class Vllm(Server):
    """A running `vllm serve`, with the processes that it starts."""

    def __init__(self, *arguments):
        port = ports.reserve()
        config = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu",
                  "kv_load_failure_policy": "recompute",
                  "kv_connector_extra_config": {"kv_lease_duration": LEASE_SECONDS}}
        command = [str(HOME / "venv/bin/vllm"), "serve", str(MODEL), "--host", "127.0.0.1",
                   "--port", str(port), "--served-model-name", NAME, "--enforce-eager",
                   "--dtype", "bfloat16", "--max-model-len", str(CONTEXT), "--max-num-seqs", "2",
                   "--enable-prompt-tokens-details", "--kv-transfer-config", json.dumps(config),
                   *arguments]
        env = {"PATH": f"{HOME}/venv/bin:{os.environ['PATH']}", "UCX_TLS": "tcp,self",
               "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": last_core(),
               "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **side_channel(ports.reserve())}
        # A session of its own names all its processes; it says half of its log on stdout.
        super().__init__(["setsid", "sh", "-c", 'exec "$@" 1>&2', "vllm", *command], env)
        self.url = f"http://127.0.0.1:{port}"

    def wait_until_listening(self):
        wait_for(lambda: self.is_up() or self.process.poll() is not None, START_SECONDS, "vLLM")
        assert self.process.poll() is None, "".join(self.lines[-40:])
        return self

    def is_up(self):
        try:
            return web.get(self.url + "/health").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self):
        """All of its processes at once, as a machine that goes down."""
        for pid in processes_of(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def processes_of(session):
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                yield int(entry.name)
        except ProcessLookupError:
            pass


def start_weft(role, *arguments, port=0, side_port=0, env=None, **extra):
    """A weft worker that a vLLM worker takes for one of its own kind."""
    config = {"kv_connector": "NixlConnector", "kv_role": role,
              "kv_connector_extra_config": {
                  "kv_lease_duration": LEASE_SECONDS, "vllm_version": VERSION,
                  "attn_backend_name": "CPU_ATTN", "vllm_model": str(MODEL),
                  "vllm_block_size": BLOCK, "fabric_params": "ucx.tls=tcp:self", **extra}}
    return Server([BINARY, "serve", str(MODEL), "--port", str(port), "--host", "127.0.0.1",
                   "--served-model-name", NAME, "--max-model-len", str(CONTEXT), "--threads", "1",
                   "--num-gpu-blocks-override", "600", "--max-num-seqs", "2",
                   "--kv-transfer-config", json.dumps(config), *arguments],
                  {**side_channel(side_port), **(env or {})})
