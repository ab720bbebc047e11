# SPDX-License-Identifier: Apache-2.0
"""What the peers of fabric_peers.py have in common: pools, blocks drawn at random, times.

A worker reads a case a line, {"block": bytes, "total": bytes, "seconds": s}, and answers with
{"times": [seconds of each transfer], "ok": the bytes are right} or {"error": text}. Between cases
it and its target sleep.
"""
import json
import mmap
import os
import random
import sys
import time

import numpy as np


def make_pool(size):
    """Memory of this process alone, touched; word i holds i."""
    memory = mmap.mmap(-1, size)
    words = np.frombuffer(memory, dtype=np.uint64)
    words[:] = np.arange(words.size, dtype=np.uint64)
    return words


def pick(pool_bytes, block, total):
    """Ids of the blocks here and there, in no order, none twice."""
    draw = random.Random(7)
    slots = pool_bytes // block
    return draw.sample(range(slots), total // block), draw.sample(range(slots), total // block)


def is_right(words, here, there, block):
    step = block // 8
    return all((words[i * step:(i + 1) * step] ==
                np.arange(j * step, (j + 1) * step, dtype=np.uint64)).all() for i, j in zip(here, there))


def clear(words, here, block):
    step = block // 8
    for i in here:
        words[i * step:(i + 1) * step] = 0


def measure(transfer, seconds):
    """Seconds of each of some transfers; the first does not count."""
    transfer()
    times = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < until and len(times) < 2000):
        start = time.perf_counter()
        transfer()
        times.append(time.perf_counter() - start)
    return times


def keep_output():
    """Standard output is for answers; what the peer's library prints there goes to standard error."""
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)


def serve(run_case):
    """Answers cases until standard input ends."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            answer = run_case(json.loads(line))
        except Exception as error:  # whatever the peer throws is its result
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
