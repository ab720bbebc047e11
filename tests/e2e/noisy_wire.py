# SPDX-License-Identifier: Apache-2.0
"""A wire between two workers that flips bytes, breaks and falls silent when told to.

It answers for a prefill worker's side channel, and names itself as that worker's tcp port: what is
damaged here is damaged below the fabric's checksums, as a wire would do it.
"""
import random
import socket
import struct
import threading

import zmq

MAGIC = b"WEFTTCP\0"  # transport/xfer/tcp/xfer_tcp_wire.h: magic, u32 version, u16 port
PORT_AT = len(MAGIC) + 4
PIECE = 1 << 16
TICK_MS = 50
ANSWER_MS = 5000
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


def hang_up(end):
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    end.close()


class NoisyWire:
    """host, side_port: to be given out as the worker's. flipped, cuts: what was done so far."""

    def __init__(self, seed, host="127.0.0.1"):
        self.host = host
        self.draw = random.Random(seed)
        self.lock = threading.Lock()
        self.target = None
        self.fabric_port = None
        self.to_flip = self.flipped = self.cuts = 0
        self.rate = 1
        self.loud = threading.Event()
        self.loud.set()
        self.ended = threading.Event()
        self.pairs = []
        self.listener = socket.create_server((host, 0))
        self.side = zmq.Context.instance().socket(zmq.ROUTER)
        self.side.linger = 0
        self.side_port = self.side.bind_to_random_port(f"tcp://{host}")
        self.threads = [threading.Thread(target=run, daemon=True)
                        for run in (self._answer, self._accept)]
        for thread in self.threads:
            thread.start()

    def to(self, side_port):
        """Whose it is from now on."""
        self.target = side_port

    def flip(self, n, rate):
        """A byte in each of n of the next pieces that pass, either way."""
        with self.lock:
            self.to_flip, self.rate = n, rate

    def cut(self):
        """Whatever is connected is reset."""
        with self.lock:
            pairs, self.pairs = self.pairs, []
            self.cuts += len(pairs)
        for pair in pairs:
            for end in pair:
                hang_up(end)

    def close(self):
        self.ended.set()
        self.loud.set()
        hang_up(self.listener)
        self.cut()
        for thread in self.threads:
            thread.join()

    # ---- the side channel ------------------------------------------------------------------------

    def _answer(self):
        while not self.ended.is_set():
            if self.side.poll(TICK_MS):
                peer, empty, *question = self.side.recv_multipart()
                answer = self._ask(question)
                if answer:
                    self.side.send_multipart([peer, empty, *map(self._with_my_port, answer)])
        self.side.close()

    def _ask(self, question):
        with zmq.Context.instance().socket(zmq.REQ) as asker:
            asker.linger = 0
            asker.connect(f"tcp://127.0.0.1:{self.target}")
            asker.send_multipart(question)
            return asker.recv_multipart() if asker.poll(ANSWER_MS) else None

    def _with_my_port(self, frame):
        at = frame.find(MAGIC)
        if at < 0:
            return frame
        self.fabric_port, = struct.unpack_from("<H", frame, at + PORT_AT)
        frame = bytearray(frame)
        struct.pack_into("<H", frame, at + PORT_AT, self.listener.getsockname()[1])
        return bytes(frame)

    # ---- the fabric ------------------------------------------------------------------------------

    def _accept(self):
        while not self.ended.is_set():
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.fabric_port))
            except OSError:
                hang_up(near)
                continue
            with self.lock:
                self.pairs.append((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source, sink):
        try:
            while piece := source.recv(PIECE):
                self.loud.wait()
                sink.sendall(self._damaged(piece))
        except OSError:
            pass
        for end in (source, sink):
            hang_up(end)

    def _damaged(self, piece):
        with self.lock:
            if self.to_flip == 0 or self.draw.random() >= self.rate:
                return piece
            self.to_flip -= 1
            self.flipped += 1
            piece = bytearray(piece)
            piece[self.draw.randrange(len(piece))] ^= self.draw.randrange(1, 256)
            return bytes(piece)
