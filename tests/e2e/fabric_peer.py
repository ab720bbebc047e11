# SPDX-License-Identifier: Apache-2.0
"""An agent in a process of its own, weft's or NIXL's, led by lines of JSON.

    fabric_peer.py KIND NAME ERROR_MODE PORT      KIND: weft or nixl; PORT: where it serves its
                                                  metadata, 0: nowhere

Reads {"do": method, "with": {arguments}} from stdin and answers {"is": result} or
{"error": class, "text": …} on what was stdout; logs of libraries go to stderr. Both kinds run the
same lines, which is the claim of weft.nixl.
"""
import json
import mmap
import os
import sys
import time

import numpy as np

SECONDS = 30


def classes(kind):
    if kind == "weft":
        from weft.nixl import nixl_agent, nixl_agent_config
    else:
        from nixl_cu13._api import nixl_agent, nixl_agent_config
    return nixl_agent, nixl_agent_config


def text(name):
    return name.decode() if isinstance(name, bytes) else name


class Peer:
    def __init__(self, kind, name, error_mode, port):
        nixl_agent, nixl_agent_config = classes(kind)
        self.agent = nixl_agent(name, nixl_agent_config(
            backends=[], capture_telemetry=True, enable_listen_thread=port > 0, listen_port=port))
        self.agent.create_backend("UCX", {"ucx_error_handling_mode": error_mode})
        self.handles = {}
        self.memories = {}

    def wait_until(self, condition, what):
        deadline = time.monotonic() + SECONDS
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                raise TimeoutError(what)

    # Memory: 64-bit words, word i holds first + i.

    def allocate(self, name, size, first):
        memory = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint64)
        memory[:] = np.arange(first, first + memory.size, dtype=np.uint64)
        self.memories[name] = memory
        registered = self.agent.register_memory([(memory.ctypes.data, size, 0, "")], "DRAM")
        self.handles[name] = registered
        return memory.ctypes.data

    def deregister(self, name):
        self.agent.deregister_memory(self.handles.pop(name))

    def words(self, name, at, n):
        return [int(word) for word in self.memories[name][at:at + n]]

    def fill(self, name, value):
        self.memories[name][:] = value

    # Who knows whom

    def metadata(self):
        return self.agent.get_agent_metadata().hex()

    def partial_metadata(self, name, with_connection):
        descs = self.handles[name]
        return self.agent.get_partial_agent_metadata(descs, with_connection).hex()

    def add(self, metadata):
        return text(self.agent.add_remote_agent(bytes.fromhex(metadata)))

    def remove(self, peer):
        self.agent.remove_remote_agent(peer)

    def knows(self, peer, rows=None):
        descs = None
        if rows is not None:
            descs = self.agent.get_xfer_descs([tuple(row) for row in rows], "DRAM")
        return self.agent.check_remote_metadata(peer, descs)

    def connect(self, peer):
        self.agent.make_connection(peer)

    # port 0: by way of etcd.

    def fetch(self, peer, port):
        self.agent.fetch_remote_metadata(peer, "127.0.0.1" if port else "", port)
        self.wait_until(lambda: self.knows(peer), f"metadata of {peer}")

    def send(self, port):
        self.agent.send_local_metadata("127.0.0.1" if port else "", port)

    def leave(self, port):
        self.agent.invalidate_local_metadata("127.0.0.1" if port else "", port)

    def wait_for(self, peer, known):
        self.wait_until(lambda: self.knows(peer) == known, f"{peer}: {known}")

    # Transfers

    def run(self, handle, notification=b""):
        state = self.agent.transfer(handle, notification)
        if state == "PROC":
            state = self.wait_until(self.state_unless_running(handle), "the end of a transfer")
        return state

    def state_unless_running(self, handle):
        def state():
            found = self.agent.check_xfer_state(handle)
            return found if found != "PROC" else None
        return state

    def move(self, operation, peer, local, remote, notification, times=1):
        """local, remote: rows (address, bytes, device)."""
        handle = self.agent.initialize_xfer(
            operation, self.agent.get_xfer_descs([tuple(row) for row in local], "DRAM"),
            self.agent.get_xfer_descs([tuple(row) for row in remote], "DRAM"), peer,
            notification.encode())
        states = [self.run(handle) for _ in range(times)]
        self.agent.release_xfer_handle(handle)
        return states

    def prepare(self, name, peer, base, block, blocks):
        rows = np.array([(base + i * block, block, 0) for i in range(blocks)], dtype=np.uint64)
        self.handles[name] = self.agent.prep_xfer_dlist(peer, rows, "DRAM")

    def move_blocks(self, operation, local, local_ids, remote, remote_ids, notification):
        handle = self.agent.make_prepped_xfer(
            operation, self.handles[local], np.array(local_ids, dtype=np.int32),
            self.handles[remote], np.array(remote_ids, dtype=np.int32), notification.encode())
        state = self.run(handle)
        self.agent.release_xfer_handle(handle)
        return state

    def estimate(self, peer, local, remote):
        """Before and after the transfer was run: the answer, or the error."""
        handle = self.agent.initialize_xfer(
            "READ", self.agent.get_xfer_descs([tuple(local)], "DRAM"),
            self.agent.get_xfer_descs([tuple(remote)], "DRAM"), peer)
        found = []
        for _ in range(2):
            try:
                found.append(self.agent.estimate_xfer_cost(handle)[0])
            except Exception as error:
                found.append(type(error).__name__)
            self.run(handle)
        self.agent.release_xfer_handle(handle)
        return found

    def query(self, paths):
        rows = [(0, 0, 0, path) for path in paths]
        return self.agent.query_memory(rows, "UCX", "FILE")

    def keep_moving(self, local, remote, n):
        """Reads n blocks over and over until that fails, and says "moving" once it has gone well; the error."""
        ids = np.arange(n, dtype=np.int32)
        handle = self.agent.make_prepped_xfer("READ", self.handles[local], ids,
                                              self.handles[remote], ids, b"")
        assert self.run(handle) == "DONE"
        print("moving", file=self.answers, flush=True)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                if self.run(handle) != "DONE":
                    return "ERR"
            except TimeoutError:
                raise
            except Exception as error:
                return type(error).__name__
        raise TimeoutError("the peer's end")

    # Notifications

    def notify(self, peer, message):
        self.agent.send_notif(peer, message.encode())

    def notifications(self, n):
        """The next n at least, as [[peer, message]…]."""
        found = []

        def enough():
            for peer, messages in self.agent.get_new_notifs().items():
                found.extend([text(peer), message.decode()] for message in messages)
            return len(found) >= n

        self.wait_until(enough, f"{n} notifications; there were {found}")
        return found

    # vLLM's NixlConnector, in its order of calls (0.32: nixl/worker.py).

    def vllm_register(self, regions, blocks, block):
        base = self.allocate("kv", regions * blocks * block, 1)
        region = blocks * block
        self.agent.deregister_memory(self.handles.pop("kv"))
        rows = [(base + i * region, region, 0, "") for i in range(regions)]
        descs = self.agent.get_reg_descs(rows, "DRAM")
        self.agent.register_memory(descs, backends=["UCX"])
        self.handles["kv"] = descs
        blocks_data = [(base + r * region + b * block, block, 0)
                       for r in range(regions) for b in range(blocks)]
        local = self.agent.get_xfer_descs(blocks_data, "DRAM")
        self.handles["local"] = self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", local)
        return [base, self.agent.get_agent_metadata().hex()]

    def vllm_pull(self, metadata, base, regions, blocks, block, ids, request):
        region = blocks * block
        peer = self.agent.add_remote_agent(bytes.fromhex(metadata))
        rows = [(base + r * region + b * block, block, 0)
                for r in range(regions) for b in range(blocks)]
        remote = self.agent.prep_xfer_dlist(peer, self.agent.get_xfer_descs(rows, "DRAM"))
        self.agent.send_notif(peer, notif_msg=f"HB:{request}".encode())
        chosen = np.array([r * blocks + b for r in range(regions) for b in ids])
        handle = self.agent.make_prepped_xfer("READ", self.handles["local"], chosen, remote, chosen,
                                              notif_msg=f"{request}:1".encode())
        state = self.run(handle)
        telemetry = self.agent.get_xfer_telemetry(handle)
        self.agent.release_xfer_handle(handle)
        self.agent.release_dlist_handle(remote)
        self.agent.remove_remote_agent(peer)
        return [state, telemetry.totalBytes, telemetry.descCount, telemetry.xferDuration]


def main():
    kind, name, error_mode, port = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = Peer(kind, name, error_mode, int(port))
    peer.answers = answers
    print(json.dumps({"is": name}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"is": getattr(peer, command["do"])(**command["with"])}
        except Exception as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        print(json.dumps(answer), file=answers, flush=True)
    if kind == "nixl":
        os._exit(0)  # NIXL 1.5.1's destructors may crash once a peer has closed its connection


if __name__ == "__main__":
    main()
