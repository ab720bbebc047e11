# SPDX-License-Identifier: Apache-2.0
"""nixl_agent and nixl_agent_config with the methods of NIXL 1.5's Python API, over libweft-fabric.

A program written for NIXL runs on weft by `from weft.nixl import nixl_agent, nixl_agent_config`; its
peers may be agents of either kind, since metadata and wire are NIXL's.

Backend "UCX" stands for UCX and whatever else weft has: between two agents of weft on one host blocks
go through shared memory, and a NIXL agent skips what it does not know. A backend by weft's own name
("ucx", "tcp", "shm") stands for itself alone.
"""
import ctypes as c
import logging
import os
import pickle
import weakref
from typing import Optional, Union

import numpy as np

from weft import etcd, fabric
from weft.fabric import lib

logger = logging.getLogger(__name__)

DEFAULT_COMM_PORT = 8888
EXCHANGE_MS = 5000
NIXL_INIT_AGENT = ""

MEMORIES = {"DRAM": fabric.DRAM, "VRAM": fabric.VRAM, "FILE": fabric.FILE,
            "cpu": fabric.DRAM, "cuda": fabric.VRAM}
OPERATIONS = {"READ": fabric.READ, "WRITE": fabric.WRITE}

# NIXL's names of a backend's parameters; those of weft's settings go through as they are.
PARAMETERS = {"ucx_error_handling_mode": "ucx.error_mode", "ucx_devices": "ucx.devices",
              "device_list": "ucx.devices"}
# What has no meaning here: threads and workers of NIXL's backend.
IGNORED_PARAMETERS = {"num_workers", "num_threads", "split_batch_size", "ucx_ep_close_force",
                      "ucx_num_device_channels"}


class nixlError(RuntimeError):
    pass


class nixlInvalidParamError(nixlError):
    pass


class nixlBackendError(nixlError):
    pass


class nixlNotFoundError(nixlError):
    pass


class nixlNotAllowedError(nixlError):
    pass


class nixlRepostActiveError(nixlError):
    pass


class nixlUnknownError(nixlError):
    pass


class nixlNotSupportedError(nixlError):
    pass


class nixlRemoteDisconnectError(nixlError):
    pass


class nixlCancelledError(nixlError):
    pass


ERRORS = {
    fabric.ERR_INVALID: nixlInvalidParamError,
    fabric.ERR_MALFORMED: nixlInvalidParamError,
    fabric.ERR_TOO_LARGE: nixlInvalidParamError,
    fabric.ERR_NOT_FOUND: nixlNotFoundError,
    fabric.ERR_EXISTS: nixlNotAllowedError,
    fabric.ERR_IN_USE: nixlRepostActiveError,
    fabric.ERR_UNSUPPORTED: nixlNotSupportedError,
    fabric.ERR_PEER_GONE: nixlRemoteDisconnectError,
    fabric.ERR_CANCELLED: nixlCancelledError,
}


def _check(status, diag=None):
    if status >= 0:
        return status
    text = diag.text.decode(errors="replace") if diag is not None and diag.text else ""
    error = ERRORS.get(status, nixlBackendError)
    raise error(text or fabric.strerror(status))


def _bytes(text):
    return text.encode() if isinstance(text, str) else bytes(text)


# ---- descriptor lists -------------------------------------------------------------------------


class _Descriptors:
    """rows: N×3 (address, length, device) or N×5 (address, length, device, stride, count)."""

    columns = (3, 5)

    def __init__(self, space, rows):
        self.space = space
        self.rows = np.ascontiguousarray(rows, dtype=np.uint64)
        if self.rows.ndim != 2 or self.rows.shape[1] not in self.columns:
            raise nixlInvalidParamError(f"descriptors of shape {self.rows.shape}")

    def descCount(self):
        return len(self.rows)

    def isEmpty(self):
        return len(self.rows) == 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return tuple(int(value) for value in self.rows[index])

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __eq__(self, other):
        return (type(self) is type(other) and self.space == other.space
                and np.array_equal(self.rows, other.rows))

    def runs(self):
        """As the C library wants them: n × (addr, bytes, device, stride, count)."""
        if self.rows.shape[1] == 5:
            return self.rows
        runs = np.ones((len(self.rows), 5), dtype=np.uint64)
        runs[:, :3] = self.rows
        runs[:, 3] = self.rows[:, 1]
        return runs


class nixlXferDList(_Descriptors):
    pass


class nixlRegDList(_Descriptors):
    """names: of each row, a file's path where it has one."""

    columns = (3,)

    def __init__(self, space, rows, names=None):
        super().__init__(space, rows)
        self.names = names or [""] * len(self.rows)


def _is_tensor(value):
    return hasattr(value, "data_ptr") and hasattr(value, "is_contiguous")


def _file_info(file):
    """As NIXL's plugin POSIX tells it."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return {"size": str(found.st_size), "mode": str(found.st_mode),
            "mtime": str(int(found.st_mtime))}


def _tensor_rows(tensors):
    """(memory type, rows), or None where NIXL refuses."""
    kinds = {str(tensor.device) for tensor in tensors}
    if len(kinds) != 1 or not all(tensor.is_contiguous() for tensor in tensors):
        logger.error("tensors of one descriptor list are contiguous and on one device")
        return None
    kind = "cuda" if kinds.pop().startswith("cuda") else "cpu"
    rows = [(tensor.data_ptr(), tensor.numel() * tensor.element_size(),
             max(tensor.get_device(), 0)) for tensor in tensors]
    return MEMORIES[kind], np.array(rows, dtype=np.uint64)


def _descriptors(kind, descs, mem_type, width):
    """None, as NIXL: not a form that is known."""
    if isinstance(descs, kind):
        return descs
    if isinstance(descs, _Descriptors):
        logger.error("a list for %s is none for this", type(descs).__name__)
        return None
    if _is_tensor(descs):
        descs = [descs]
    if not isinstance(descs, np.ndarray) and len(descs) > 0 and _is_tensor(descs[0]):
        found = _tensor_rows(descs)
        return kind(*found) if found is not None else None
    if mem_type is None:
        logger.error("descriptors that are no tensors need a memory type")
        return None
    names = []
    if isinstance(descs, np.ndarray):
        fits = descs.ndim == 2 and descs.shape[1] in kind.columns
    else:
        fits = all(isinstance(desc, tuple) and len(desc) == width for desc in descs)
        names = [desc[3] for desc in descs if fits and width == 4]
        descs = np.array([desc[:3] for desc in descs], dtype=np.uint64).reshape(-1, 3)
    if not fits:
        logger.error("descriptors of a wrong form")
        return None
    return kind(MEMORIES[mem_type], descs, *([names] if names else []))


# ---- handles ----------------------------------------------------------------------------------


class nixl_prepped_dlist_handle:
    def __init__(self, core, pointer, peer):
        self._core = core
        self._pointer = pointer
        self._peer = peer
        core.lists[id(self)] = pointer

    def release(self):
        pointer = self._core.lists.pop(id(self), None)
        if pointer is not None:
            lib.xfer_list_destroy(pointer)

    def __del__(self):
        self.release()


class nixl_xfer_handle:
    """config: of the request, to make it again for another notification."""

    def __init__(self, core, config, keep):
        self._core = core
        self._config = config
        self._keep = keep
        self._pointer = core.create_request(config)
        core.requests[id(self)] = self._pointer

    def set_notification(self, message):
        if message == (self._config.notification or b""):
            return
        config = fabric.RequestConfig.from_buffer_copy(self._config)
        config.notification = message
        config.notification_bytes = len(message)
        pointer = self._core.create_request(config)
        lib.xfer_request_destroy(self._pointer)
        self._config, self._pointer = config, pointer
        self._core.requests[id(self)] = pointer

    def release(self):
        pointer = self._core.requests.pop(id(self), None)
        if pointer is not None:
            lib.xfer_request_destroy(pointer)

    def __del__(self):
        if hasattr(self, "_pointer"):
            self.release()


class nixlXferTelemetry:
    """Times in microseconds; startTime is of the monotonic clock."""

    def __init__(self, stats):
        end = stats.ended_ns or stats.posted_ns
        self.startTime = stats.posted_ns // 1000
        self.postDuration = max(stats.started_ns, stats.posted_ns) // 1000 - self.startTime
        self.xferDuration = max(end // 1000 - self.startTime, 0)
        self.totalBytes = stats.bytes
        self.descCount = stats.extents


# ---- the agent --------------------------------------------------------------------------------


class _Core:
    """What must go in order when the agent goes: requests, lists, the agent."""

    def __init__(self, name, backends, params, has_thread):
        self.name = name
        self.pointer = c.c_void_p()
        self.has_thread = has_thread
        self.lists = {}
        self.requests = {}
        self.regions = {}  # (space, address, length, device): [region…]
        self.exchange = c.c_void_p()
        # By threads that serve and fetch metadata; the agent's next call sees to them.
        self.came = []
        self.gone = []
        diag = fabric.Diag()
        config = fabric.AgentConfig(name=name, backends=backends, params=params,
                                    has_thread=has_thread)
        _check(lib.xfer_agent_create(c.byref(config), c.byref(diag), c.byref(self.pointer)), diag)

    def listen(self, port):
        """Serves metadata at a port; names of agents that left are added to gone."""
        diag = fabric.Diag()
        self.on_gone = fabric.GONE_FN(lambda _, name: self.gone.append(name))
        config = fabric.ExchangeConfig(agent=self.pointer, host=b"0.0.0.0", port=port,
                                       on_gone=self.on_gone)
        _check(lib.xfer_exchange_start(c.byref(config), c.byref(diag), c.byref(self.exchange)),
               diag)

    def settle(self):
        """Imports what came, and forgets who has gone."""
        while self.came:
            try:
                self.add(self.came.pop(0))
            except nixlError as error:
                logger.warning("metadata of no use: %s", error)
        while self.gone:
            peer = lib.xfer_find_peer(self.pointer, self.gone.pop(0))
            if peer is not None:
                lib.xfer_forget(self.pointer, peer)

    def close(self):
        lib.xfer_exchange_stop(self.exchange)
        for pointer in self.requests.values():
            lib.xfer_request_destroy(pointer)
        for pointer in self.lists.values():
            lib.xfer_list_destroy(pointer)
        self.requests.clear()
        self.lists.clear()
        lib.xfer_agent_destroy(self.pointer)
        self.pointer = None

    def progress(self):
        if not self.has_thread:
            lib.xfer_progress(self.pointer, 0)

    def create_request(self, config):
        diag = fabric.Diag()
        pointer = c.c_void_p()
        _check(lib.xfer_request_create(self.pointer, c.byref(config), c.byref(diag),
                                       c.byref(pointer)), diag)
        return pointer

    def add(self, metadata):
        diag = fabric.Diag()
        pointer = c.c_void_p()
        _check(lib.xfer_import(self.pointer, metadata, len(metadata), c.byref(diag),
                               c.byref(pointer)), diag)
        return lib.xfer_peer_name(pointer)

    def peer(self, name):
        if _bytes(name) == self.name:
            return self.itself()
        pointer = lib.xfer_find_peer(self.pointer, _bytes(name))
        if pointer is None:
            raise nixlNotFoundError(f"no agent {name!r} is known")
        return pointer

    def itself(self):
        """With all that is registered now; where that is something else than before, afresh."""
        diag = fabric.Diag()
        pointer = c.c_void_p()
        status = lib.xfer_import_self(self.pointer, c.byref(diag), c.byref(pointer))
        if status == fabric.ERR_EXISTS:
            lib.xfer_forget(self.pointer, lib.xfer_find_peer(self.pointer, self.name))
            status = lib.xfer_import_self(self.pointer, c.byref(diag), c.byref(pointer))
        _check(status, diag)
        return pointer

    def register(self, space, row):
        diag = fabric.Diag()
        pointer = c.c_void_p()
        addr, length, device = row
        memory = fabric.Memory(space=space, addr=addr, bytes=length, device=device, fd=-1)
        _check(lib.xfer_register(self.pointer, c.byref(memory), c.byref(diag), c.byref(pointer)),
               diag)
        self.regions.setdefault((space, *row), []).append(pointer)

    def deregister(self, space, row):
        regions = self.regions[(space, *row)]
        _check(lib.xfer_deregister(self.pointer, regions[-1]))
        regions.pop()
        if not regions:
            del self.regions[(space, *row)]

    def export(self, regions, with_connection):
        """regions: None for all."""
        buffer = fabric.Buffer()
        array, n = None, 0
        if regions is not None:
            n = len(regions)
            array = (c.c_void_p * max(n, 1))(*regions)
        try:
            _check(lib.xfer_export(self.pointer, array, n, with_connection, c.byref(buffer)))
            return c.string_at(buffer.data, buffer.length)
        finally:
            lib.weft_buffer_free(c.byref(buffer))


class nixl_agent_config:
    def __init__(self, enable_prog_thread: bool = True, enable_listen_thread: bool = False,
                 listen_port: int = 0, capture_telemetry: bool = False, num_threads: int = 0,
                 backends: list[str] = ["UCX"]):
        self.enable_pthread = enable_prog_thread
        self.enable_listen = enable_listen_thread
        self.port = listen_port
        self.capture_telemetry = capture_telemetry
        self.num_threads = num_threads
        self.backends = backends


class nixl_agent:
    def __init__(self, agent_name: str, nixl_conf: Optional[nixl_agent_config] = None,
                 instantiate_all: bool = False):
        self.name = agent_name
        self.config = nixl_conf or nixl_agent_config()
        self.notifs: dict[str, list[bytes]] = {}
        self.backends: dict[str, dict[str, str]] = {}
        self._opened = None
        if instantiate_all:
            self.config.backends = ["UCX"]
        for backend in self.config.backends:
            self.backends[backend] = {}
        if self.backends:
            self._open()

    def _open(self):
        names = None if "UCX" in self.backends else ",".join(self.backends).encode() or None
        params = [f"{key}={value}" for given in self.backends.values()
                  for key, value in given.items()]
        self._opened = _Core(_bytes(self.name), names, ",".join(params).encode() or None,
                             self.config.enable_pthread)
        if self.config.enable_listen:
            self._opened.listen(self.config.port)
        weakref.finalize(self, self._opened.close)

    @property
    def _core(self):
        if self._opened is None:
            raise nixlNotFoundError("the agent has no backend yet; see create_backend")
        self._opened.settle()
        return self._opened

    # Backends

    def get_plugin_list(self) -> list[str]:
        return ["UCX"]

    def get_plugin_mem_types(self, backend: str) -> list[str]:
        return ["DRAM_SEG", "VRAM_SEG"] if backend == "UCX" else []

    def get_plugin_params(self, backend: str) -> dict[str, str]:
        return {"ucx_error_handling_mode": "peer", "ucx_devices": ""} if backend == "UCX" else {}

    def get_backend_mem_types(self, backend: str) -> list[str]:
        return self.get_plugin_mem_types(backend)

    def get_backend_params(self, backend: str) -> dict[str, str]:
        return dict(self.backends.get(backend, {}))

    def create_backend(self, backend: str, initParams: dict[str, str] = {}):
        """The first call makes the agent; weft's backends cannot be added to one that is."""
        params = {}
        for key, value in initParams.items():
            if key in IGNORED_PARAMETERS or value == "":
                continue
            key = PARAMETERS.get(key, key)
            if "." not in key:
                raise nixlInvalidParamError(f"backend parameter {key} is not known")
            params[key] = value.replace(",", ":")
        if self._opened is not None:
            raise nixlNotAllowedError(f"the agent is made already, without {backend}")
        self.backends[backend] = params
        self._open()

    # Memory

    def get_reg_descs(self, descs, mem_type: Optional[str] = None) -> Optional[nixlRegDList]:
        return _descriptors(nixlRegDList, descs, mem_type, 4)

    def register_memory(self, reg_list, mem_type: Optional[str] = None,
                        backends: list[str] = []) -> nixlRegDList:
        descs = self.get_reg_descs(reg_list, mem_type)
        if descs is None:
            raise nixlInvalidParamError("not a list of memory")
        done = []
        try:
            for row in descs:
                self._core.register(descs.space, row)
                done.append(row)
        except nixlError:
            for row in done:
                self._core.deregister(descs.space, row)
            raise
        return descs

    def _regions(self, descs):
        """The one region of each; NIXL wants exact matches."""
        missing = [row for row in descs if (descs.space, *row) not in self._core.regions]
        if missing:
            raise nixlNotFoundError(f"{missing[0]} is not registered")
        return [self._core.regions[(descs.space, *row)][-1] for row in descs]

    def deregister_memory(self, dereg_list: nixlRegDList, backends: list[str] = []):
        self._regions(dereg_list)
        for row in dereg_list:
            self._core.deregister(dereg_list.space, row)

    def query_memory(self, reg_list, backend: str,
                     mem_type: Optional[str] = None) -> list[Optional[dict[str, str]]]:
        """Of files, by path or descriptor; None: there is no such file."""
        if backend not in self.backends:
            raise ValueError(f"Backend '{backend}' not found. "
                             f"Available backends: {list(self.backends)}")
        descs = self.get_reg_descs(reg_list, mem_type)
        if descs is None:
            raise nixlInvalidParamError("not a list of memory")
        if descs.space != fabric.FILE:
            raise nixlNotSupportedError("only of files is there anything to say")
        return [_file_info(name or device) for name, (_, _, device) in zip(descs.names, descs)]

    # Who knows whom

    def get_agent_metadata(self) -> bytes:
        return self._core.export(None, True)

    def get_partial_agent_metadata(self, descs: nixlRegDList, inc_conn_info: bool = False,
                                   backends: list[str] = []) -> bytes:
        regions = self._regions(descs) if descs is not None else []
        return self._core.export(regions, inc_conn_info or not regions)

    def add_remote_agent(self, metadata: bytes) -> bytes:
        return self._core.add(metadata)

    def remove_remote_agent(self, agent: Union[str, bytes]):
        lib.xfer_forget(self._core.pointer, self._core.peer(agent))

    def check_remote_metadata(self, agent: Union[str, bytes],
                              descs: Optional[nixlXferDList] = None) -> bool:
        peer = lib.xfer_find_peer(self._core.pointer, _bytes(agent))
        if peer is None:
            return False
        return all(lib.xfer_peer_has(peer, descs.space, *row[:2]) for row in descs or [])

    def make_connection(self, remote_agent: Union[str, bytes], backends: list[str] = []):
        _check(lib.xfer_connect(self._core.peer(remote_agent)))

    # The same over sockets, or without an ip_addr over etcd. As NIXL's, these calls say nothing of a
    # peer or server that does not answer but in the log; check_remote_metadata tells.

    @staticmethod
    def _at(ip_addr, port):
        return c.byref(fabric.ExchangePlace(host=_bytes(ip_addr), port=port,
                                            timeout_ms=EXCHANGE_MS))

    @property
    def _etcd(self):
        found = etcd.Etcd.from_environment(self.name)
        if found is None:
            raise nixlNotSupportedError("give ip_addr, or NIXL_ETCD_ENDPOINTS")
        return found

    @staticmethod
    def _log_failure(status, diag):
        if status < 0:
            logger.warning("%s", diag.text.decode(errors="replace"))

    def send_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT):
        self._send(self.get_agent_metadata(), ip_addr, port, etcd.DEFAULT_LABEL)

    def send_partial_agent_metadata(self, descs: nixlRegDList, inc_conn_info: bool = False,
                                    backends: list[str] = [], ip_addr: str = "",
                                    port: int = DEFAULT_COMM_PORT, label: str = ""):
        if not ip_addr and not label:
            raise nixlInvalidParamError("in etcd, partial metadata have a label")
        self._send(self.get_partial_agent_metadata(descs, inc_conn_info), ip_addr, port, label)

    def _send(self, metadata, ip_addr, port, label):
        if not ip_addr:
            self._etcd.put(label, metadata)
            return
        diag = fabric.Diag()
        self._log_failure(lib.xfer_exchange_send(self._at(ip_addr, port), metadata, len(metadata),
                                                 c.byref(diag)), diag)

    def fetch_remote_metadata(self, remote_agent: str, ip_addr: str = "",
                              port: int = DEFAULT_COMM_PORT, label: str = ""):
        core = self._core
        if not ip_addr:
            self._etcd.fetch(remote_agent, label or etcd.DEFAULT_LABEL, core.came.append,
                             lambda: core.gone.append(_bytes(remote_agent)))
            return
        diag = fabric.Diag()
        peer = c.c_void_p()
        self._log_failure(lib.xfer_exchange_fetch(core.pointer, self._at(ip_addr, port),
                                                  c.byref(diag), c.byref(peer)), diag)

    def invalidate_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT):
        if not ip_addr:
            self._etcd.leave()
            return
        diag = fabric.Diag()
        self._log_failure(lib.xfer_exchange_leave(self._at(ip_addr, port), _bytes(self.name),
                                                  c.byref(diag)), diag)

    # Transfers

    def get_xfer_descs(self, descs, mem_type: Optional[str] = None) -> Optional[nixlXferDList]:
        return _descriptors(nixlXferDList, descs, mem_type, 3)

    def prep_xfer_dlist(self, agent_name: Union[str, bytes], xfer_list,
                        mem_type: Optional[str] = None,
                        backends: list[str] = []) -> nixl_prepped_dlist_handle:
        descs = self.get_xfer_descs(xfer_list, mem_type)
        if descs is None:
            raise nixlInvalidParamError("not a list of descriptors")
        name = _bytes(agent_name)
        peer = None if name in (b"NIXL_INIT_AGENT", b"") else self._core.peer(name)
        runs = descs.runs()
        diag = fabric.Diag()
        pointer = c.c_void_p()
        _check(lib.xfer_list_create(self._core.pointer, peer, descs.space, runs.ctypes.data,
                                    len(runs), c.byref(diag), c.byref(pointer)), diag)
        return nixl_prepped_dlist_handle(self._core, pointer, name)

    def _request(self, operation, local, local_ids, remote, remote_ids, notif_msg):
        if operation not in OPERATIONS:
            raise nixlInvalidParamError(f"{operation!r} is neither READ nor WRITE")
        message = _bytes(notif_msg)
        config = fabric.RequestConfig(direction=OPERATIONS[operation], local=local._pointer,
                                      peer=remote._pointer)
        if local_ids is None:
            config.n = lib.xfer_list_pieces(local._pointer)
        else:
            config.local_ids, config.peer_ids = local_ids.ctypes.data, remote_ids.ctypes.data
            config.n = len(local_ids)
        if message:
            config.notification, config.notification_bytes = message, len(message)
        return nixl_xfer_handle(self._core, config, (local, local_ids, remote, remote_ids))

    def make_prepped_xfer(self, operation: str, local_xfer_side: nixl_prepped_dlist_handle,
                          local_indices: Union[list[int], np.ndarray],
                          remote_xfer_side: nixl_prepped_dlist_handle,
                          remote_indices: Union[list[int], np.ndarray], notif_msg: bytes = b"",
                          backends: list[str] = [],
                          skip_desc_merge: bool = False) -> nixl_xfer_handle:
        local_ids = np.ascontiguousarray(local_indices, dtype=np.uint32)
        remote_ids = np.ascontiguousarray(remote_indices, dtype=np.uint32)
        if len(local_ids) != len(remote_ids):
            raise nixlInvalidParamError(f"{len(local_ids)} local descriptors, "
                                        f"{len(remote_ids)} remote ones")
        return self._request(operation, local_xfer_side, local_ids, remote_xfer_side, remote_ids,
                             notif_msg)

    def initialize_xfer(self, operation: str, local_descs: nixlXferDList,
                        remote_descs: nixlXferDList, remote_agent: Union[str, bytes],
                        notif_msg: bytes = b"", backends: list[str] = []) -> nixl_xfer_handle:
        local = self.prep_xfer_dlist(NIXL_INIT_AGENT, local_descs)
        remote = self.prep_xfer_dlist(remote_agent, remote_descs)
        return self._request(operation, local, None, remote, None, notif_msg)

    @staticmethod
    def _state(status):
        return "PROC" if status == fabric.PENDING else "DONE"

    def transfer(self, handle: nixl_xfer_handle, notif_msg: bytes = b"") -> str:
        if notif_msg:
            handle.set_notification(_bytes(notif_msg))
        _check(lib.xfer_post(handle._pointer))
        return self.check_xfer_state(handle)

    def check_xfer_state(self, handle: nixl_xfer_handle) -> str:
        self._core.progress()
        return self._state(_check(lib.xfer_poll(handle._pointer)))

    def get_xfer_telemetry(self, handle: nixl_xfer_handle) -> nixlXferTelemetry:
        return nixlXferTelemetry(lib.xfer_request_stats(handle._pointer))

    def estimate_xfer_cost(self, req_handle: nixl_xfer_handle) -> tuple[int, int, str]:
        """Microseconds, their error, and how they were found: by what the peer's requests took."""
        ns = c.c_uint64()
        _check(lib.xfer_estimate(req_handle._pointer, c.byref(ns)))
        return ns.value // 1000, 0, "MEASURED"

    def query_xfer_backend(self, handle: nixl_xfer_handle) -> str:
        """As weft names it, "shm" too where NIXL would say "UCX"."""
        return (lib.xfer_request_stats(handle._pointer).backend or b"").decode()

    def release_xfer_handle(self, handle: nixl_xfer_handle):
        handle.release()

    def release_dlist_handle(self, handle: nixl_prepped_dlist_handle):
        handle.release()

    # Notifications

    def send_notif(self, remote_agent_name: Union[str, bytes], notif_msg: bytes,
                   backend: Optional[str] = None):
        message = _bytes(notif_msg)
        _check(lib.xfer_notify(self._core.peer(remote_agent_name), message, len(message)))

    def _take_notifications(self, into):
        self._core.progress()
        while True:
            found = lib.xfer_next_notification(self._core.pointer)
            if not found:
                return into
            item = found.contents
            into.setdefault(item.peer.decode(errors="replace"), []).append(
                c.string_at(item.data, item.bytes) if item.bytes else b"")
            lib.xfer_notification_free(found)

    def get_new_notifs(self, backends: list[str] = []) -> dict[str, list[bytes]]:
        return self._take_notifications({})

    def update_notifs(self, backends: list[str] = []) -> dict[str, list[bytes]]:
        return self._take_notifications(self.notifs)

    def check_remote_xfer_done(self, remote_agent_name: str, lookup_tag: bytes,
                               backends: list[str] = [], tag_is_prefix=True) -> bool:
        messages = self.update_notifs().get(remote_agent_name, [])
        for message in messages:
            if message.startswith(lookup_tag) if tag_is_prefix else lookup_tag in message:
                messages.remove(message)
                return True
        return False

    # Lists between processes

    def get_serialized_descs(self, descs) -> bytes:
        return pickle.dumps(descs)

    def deserialize_descs(self, serialized_descs: bytes):
        return pickle.loads(serialized_descs)
