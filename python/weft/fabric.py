# SPDX-License-Identifier: Apache-2.0
"""libweft-fabric as its headers say: xfer.h and xfer_exchange.h of transport/xfer by ctypes, names
and all.

lib is loaded on the first use, from $WEFT_FABRIC_LIBRARY if that is set, else beside this package
(an install's, or a source tree's build/release), else by the system's loader.
"""
import ctypes as c
import os
from functools import cached_property
from pathlib import Path

OK, PENDING = 0, 1
ERR_INVALID, ERR_NO_MEMORY, ERR_NOT_FOUND, ERR_EXISTS = -1, -2, -4, -5
ERR_TOO_LARGE, ERR_UNSUPPORTED, ERR_MALFORMED, ERR_QUEUE_FULL = -6, -7, -8, -10
ERR_CANCELLED, ERR_IN_USE, ERR_STALE, ERR_CORRUPT, ERR_PEER_GONE = -11, -13, -16, -17, -20

DRAM, VRAM, FILE = 0, 1, 4
READ, WRITE = 0, 1

EVENT_FN = c.CFUNCTYPE(None, c.c_void_p)
END_FN = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p)


class Buffer(c.Structure):
    _fields_ = [("data", c.c_void_p), ("length", c.c_size_t), ("capacity", c.c_size_t),
                ("is_failed", c.c_bool)]


class Diag(c.Structure):
    _fields_ = [("text", c.c_char * 1024)]


class AgentConfig(c.Structure):
    _fields_ = [("name", c.c_char_p), ("backends", c.c_char_p), ("params", c.c_char_p),
                ("has_thread", c.c_bool), ("on_event", EVENT_FN), ("user", c.c_void_p)]


class Memory(c.Structure):
    _fields_ = [("space", c.c_int), ("addr", c.c_uint64), ("bytes", c.c_uint64),
                ("device", c.c_uint64), ("fd", c.c_int), ("fd_offset", c.c_uint64)]


class Run(c.Structure):
    _fields_ = [("addr", c.c_uint64), ("bytes", c.c_uint64), ("device", c.c_uint64),
                ("stride", c.c_uint64), ("count", c.c_uint64)]


class Guard(c.Structure):
    _fields_ = [("addr", c.c_uint64), ("expected", c.c_uint64)]


class RequestConfig(c.Structure):
    _fields_ = [("direction", c.c_int), ("local", c.c_void_p), ("peer", c.c_void_p),
                ("local_ids", c.c_void_p), ("peer_ids", c.c_void_p), ("n", c.c_size_t),
                ("notification", c.c_char_p), ("notification_bytes", c.c_size_t),
                ("guard", c.POINTER(Guard)), ("priority", c.c_uint8), ("backend", c.c_char_p),
                ("on_end", END_FN), ("user", c.c_void_p)]


class RequestStats(c.Structure):
    _fields_ = [("backend", c.c_char_p), ("posted_ns", c.c_uint64), ("started_ns", c.c_uint64),
                ("ended_ns", c.c_uint64), ("bytes", c.c_uint64), ("pieces", c.c_uint64),
                ("extents", c.c_uint64), ("resumed", c.c_uint64)]


class Notification(c.Structure):
    _fields_ = [("next", c.c_void_p), ("peer", c.c_char_p), ("data", c.c_void_p),
                ("bytes", c.c_size_t)]


class BackendStats(c.Structure):
    _fields_ = [("backend", c.c_char_p), ("requests", c.c_uint64), ("failed", c.c_uint64),
                ("read_bytes", c.c_uint64), ("written_bytes", c.c_uint64),
                ("resumed", c.c_uint64), ("checksum_errors", c.c_uint64),
                ("notifications_sent", c.c_uint64), ("notifications_received", c.c_uint64),
                ("bytes_per_second", c.c_double)]


METADATA_FN = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p)
GONE_FN = c.CFUNCTYPE(None, c.c_void_p, c.c_char_p)


class ExchangeConfig(c.Structure):
    _fields_ = [("agent", c.c_void_p), ("host", c.c_char_p), ("port", c.c_uint16),
                ("on_metadata", METADATA_FN), ("on_gone", GONE_FN), ("user", c.c_void_p)]


class ExchangePlace(c.Structure):
    _fields_ = [("host", c.c_char_p), ("port", c.c_uint16), ("timeout_ms", c.c_int)]


_POINTER, _OUT, _DIAG = c.c_void_p, c.POINTER(c.c_void_p), c.POINTER(Diag)

# name: (result, arguments)
FUNCTIONS = {
    "xfer_agent_create": (c.c_int, [c.POINTER(AgentConfig), _DIAG, _OUT]),
    "xfer_agent_destroy": (None, [_POINTER]),
    "xfer_agent_name": (c.c_char_p, [_POINTER]),
    "xfer_agent_stats": (c.c_size_t, [_POINTER, c.POINTER(BackendStats), c.c_size_t]),
    "xfer_progress": (c.c_bool, [_POINTER, c.c_int]),
    "xfer_register": (c.c_int, [_POINTER, c.POINTER(Memory), _DIAG, _OUT]),
    "xfer_deregister": (c.c_int, [_POINTER, _POINTER]),
    "xfer_export": (c.c_int, [_POINTER, _OUT, c.c_size_t, c.c_bool, c.POINTER(Buffer)]),
    "xfer_import": (c.c_int, [_POINTER, c.c_char_p, c.c_size_t, _DIAG, _OUT]),
    "xfer_import_self": (c.c_int, [_POINTER, _DIAG, _OUT]),
    "xfer_find_peer": (_POINTER, [_POINTER, c.c_char_p]),
    "xfer_peer_name": (c.c_char_p, [_POINTER]),
    "xfer_peer_has": (c.c_bool, [_POINTER, c.c_int, c.c_uint64, c.c_uint64]),
    "xfer_peer_status": (c.c_int, [_POINTER]),
    "xfer_forget": (None, [_POINTER, _POINTER]),
    "xfer_connect": (c.c_int, [_POINTER]),
    "xfer_list_create": (c.c_int, [_POINTER, _POINTER, c.c_int, c.c_void_p, c.c_size_t, _DIAG,
                                   _OUT]),
    "xfer_list_destroy": (None, [_POINTER]),
    "xfer_list_pieces": (c.c_uint64, [_POINTER]),
    "xfer_request_create": (c.c_int, [_POINTER, c.POINTER(RequestConfig), _DIAG, _OUT]),
    "xfer_request_destroy": (None, [_POINTER]),
    "xfer_request_stats": (RequestStats, [_POINTER]),
    "xfer_estimate": (c.c_int, [_POINTER, c.POINTER(c.c_uint64)]),
    "xfer_post": (c.c_int, [_POINTER]),
    "xfer_poll": (c.c_int, [_POINTER]),
    "xfer_cancel": (None, [_POINTER]),
    "xfer_notify": (c.c_int, [_POINTER, c.c_char_p, c.c_size_t]),
    "xfer_next_notification": (c.POINTER(Notification), [_POINTER]),
    "xfer_notification_free": (None, [c.POINTER(Notification)]),
    "xfer_exchange_start": (c.c_int, [c.POINTER(ExchangeConfig), _DIAG, _OUT]),
    "xfer_exchange_port": (c.c_uint16, [_POINTER]),
    "xfer_exchange_stop": (None, [_POINTER]),
    "xfer_exchange_send": (c.c_int, [c.POINTER(ExchangePlace), c.c_char_p, c.c_size_t, _DIAG]),
    "xfer_exchange_fetch": (c.c_int, [_POINTER, c.POINTER(ExchangePlace), _DIAG, _OUT]),
    "xfer_exchange_leave": (c.c_int, [c.POINTER(ExchangePlace), c.c_char_p, _DIAG]),
    "weft_buffer_free": (None, [c.POINTER(Buffer)]),
    "weft_strerror": (c.c_char_p, [c.c_int]),
}


def library_path():
    name = "libweft-fabric.so"
    given = os.environ.get("WEFT_FABRIC_LIBRARY")
    if given:
        return given
    tree = Path(__file__).resolve().parents[2]
    for folder in (Path(__file__).resolve().parent, tree / "build" / "release"):
        if (folder / name).exists():
            return str(folder / name)
    return name + ".0"


class Library:
    """The functions, as attributes by their names in C."""

    @cached_property
    def _library(self):
        return c.CDLL(library_path())

    def __getattr__(self, name):
        result, arguments = FUNCTIONS[name]
        function = getattr(self._library, name)
        function.restype = result
        function.argtypes = arguments
        setattr(self, name, function)
        return function


lib = Library()


def strerror(status):
    return lib.weft_strerror(status).decode()
