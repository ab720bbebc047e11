#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mooncake's transfer engine for fabric_peers.py: batched reads over TCP from another process.

usage: python fabric_peer_mooncake.py POOL_BYTES
"""
import multiprocessing
import os
import sys

from fabric_peer_worker import clear, is_right, keep_output, make_pool, measure, pick, serve


def make_engine():
    os.environ["MC_FORCE_TCP"] = "true"
    from mooncake.engine import TransferEngine
    engine = TransferEngine()
    if engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
        sys.exit("mooncake: initialize failed")
    return engine


def run_target(pool_bytes, channel):
    engine = make_engine()
    words = make_pool(pool_bytes)
    engine.register_memory(words.ctypes.data, words.nbytes)
    channel.send((engine.get_rpc_port(), words.ctypes.data))
    channel.recv()
    os._exit(0)


class Initiator:
    def __init__(self, pool_bytes):
        self.pool_bytes = pool_bytes
        self.channel, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(
            target=run_target, args=(pool_bytes, theirs), daemon=True)
        self.process.start()
        self.engine = make_engine()
        self.words = make_pool(pool_bytes)
        self.engine.register_memory(self.words.ctypes.data, self.words.nbytes)
        port, self.there = self.channel.recv()
        self.peer = f"127.0.0.1:{port}"

    def run_case(self, case):
        block = case["block"]
        here, there = pick(self.pool_bytes, block, case["total"])
        ours = [self.words.ctypes.data + i * block for i in here]
        theirs = [self.there + i * block for i in there]
        sizes = [block] * len(here)
        clear(self.words, here, block)

        def transfer():
            code = self.engine.batch_transfer_sync_read(self.peer, ours, theirs, sizes)
            if code != 0:
                raise RuntimeError(f"batch_transfer_sync_read of {len(sizes)}: {code}")

        times = measure(transfer, case["seconds"])
        return {"times": times, "ok": is_right(self.words, here, there, block)}


def main():
    keep_output()
    initiator = Initiator(int(sys.argv[1]))
    serve(initiator.run_case)
    initiator.channel.send("end")
    os._exit(0)


if __name__ == "__main__":
    main()
