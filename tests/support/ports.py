# SPDX-License-Identifier: Apache-2.0
"""
Ports for servers that must be told one. One that was found free and let go may be anybody's by the time that
a server listens there. A bound socket that does not listen keeps the system from giving its port away, and
lets those listen there that set SO_REUSEADDR, as servers do.
"""
import socket

_held = []


def _bind(host, port):
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
    except OSError:
        held.close()
        raise
    return held


def reserve(n=1, host="127.0.0.1"):
    """The first of n ports in a row, which are the caller's until this process ends."""
    while True:
        _held.append(_bind(host, 0))
        first = _held[-1].getsockname()[1]
        try:
            for i in range(1, n):
                _held.append(_bind(host, first + i))
            return first
        except OSError:
            pass  # somebody has the next one
