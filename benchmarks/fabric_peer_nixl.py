#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""NIXL for fabric_peers.py: an initiator that reads from an agent in a process of its own.

usage: UCX_TLS=tcp python fabric_peer_nixl.py POOL_BYTES [ERROR_MODE]

Lists are prepared once for each block size and requests made once for each case, as NIXL is at its
best; a notification follows each read. The target polls while a case runs, else it sleeps.
"""
import multiprocessing
import sys

import numpy as np
from fabric_peer_worker import clear, is_right, keep_output, make_pool, measure, pick, serve
from nixl_cu13._api import nixl_agent, nixl_agent_config


def make_agent(name, error_mode):
    agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=[]))
    agent.create_backend("UCX", {"ucx_error_handling_mode": error_mode} if error_mode else {})
    return agent


def register(agent, words):
    return agent.register_memory([(words.ctypes.data, words.nbytes, 0, "")], "DRAM")


def run_target(pool_bytes, error_mode, channel):
    agent = make_agent("target", error_mode)
    words = make_pool(pool_bytes)
    region = register(agent, words)
    channel.send((agent.get_agent_metadata(), words.ctypes.data))
    agent.add_remote_agent(channel.recv())
    while channel.recv() == "poll":
        while not channel.poll(0):
            for _ in range(100):
                agent.get_new_notifs()
        channel.send(channel.recv())
    agent.deregister_memory(region)


class Initiator:
    def __init__(self, pool_bytes, error_mode):
        self.pool_bytes = pool_bytes
        self.channel, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(
            target=run_target, args=(pool_bytes, error_mode, theirs), daemon=True)
        self.process.start()
        self.agent = make_agent("initiator", error_mode)
        self.words = make_pool(pool_bytes)
        register(self.agent, self.words)
        metadata, self.there = self.channel.recv()
        self.agent.add_remote_agent(metadata)
        self.channel.send(self.agent.get_agent_metadata())
        self.agent.make_connection("target")
        self.lists = {}

    def describe(self, base, block):
        return np.array([(base + at, block, 0) for at in range(0, self.pool_bytes - block + 1, block)],
                        dtype=np.uint64)

    def lists_of(self, block):
        if block not in self.lists:
            self.lists[block] = (
                self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", self.describe(self.words.ctypes.data, block), "DRAM"),
                self.agent.prep_xfer_dlist("target", self.describe(self.there, block), "DRAM"))
        return self.lists[block]

    def transfer(self, request):
        state = self.agent.transfer(request)
        while state == "PROC":
            state = self.agent.check_xfer_state(request)
        if state != "DONE":
            raise RuntimeError(f"transfer: {state}")

    def run_case(self, case):
        block = case["block"]
        here, there = pick(self.pool_bytes, block, case["total"])
        ours, theirs = self.lists_of(block)
        request = self.agent.make_prepped_xfer("READ", ours, np.array(here, dtype=np.int32), theirs,
                                               np.array(there, dtype=np.int32), b"done")
        clear(self.words, here, block)
        self.channel.send("poll")
        try:
            times = measure(lambda: self.transfer(request), case["seconds"])
        finally:
            self.channel.send("rest")
            self.channel.recv()
        request.release()
        return {"times": times, "ok": is_right(self.words, here, there, block)}


def main():
    keep_output()
    initiator = Initiator(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
    serve(initiator.run_case)
    initiator.channel.send("end")
    initiator.process.join(5)


if __name__ == "__main__":
    main()
