# SPDX-License-Identifier: Apache-2.0
"""What agents say of themselves in etcd, as NIXL keeps it there: `<namespace>/<agent>/<label>` has
metadata, and `<namespace>/<agent>/` nothing, but its end is the agent's.

NIXL_ETCD_ENDPOINTS names the servers, NIXL_ETCD_NAMESPACE the namespace. They are asked through their
JSON gateway (etcd 3.4 and newer), in threads of their own: no call here waits.
"""
import base64
import http.client
import json
import logging
import os
import re
import threading
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

DEFAULT_LABEL = "metadata"
CALL_SECONDS = 5
WAIT_SECONDS = 5  # for metadata that are not there yet; NIXL's etcdWatchTimeout


def _encode(key):
    return base64.b64encode(key if isinstance(key, bytes) else key.encode()).decode()


class Etcd:
    """of_agent: whose metadata are put."""

    def __init__(self, of_agent, endpoints, namespace):
        self.of_agent = of_agent
        self.endpoints = [urlsplit(end if "//" in end else "//" + end)
                          for end in re.split("[,;]", endpoints)]
        self.namespace = namespace

    @classmethod
    def from_environment(cls, of_agent):
        """None: there is to be none."""
        endpoints = os.environ.get("NIXL_ETCD_ENDPOINTS")
        namespace = os.environ.get("NIXL_ETCD_NAMESPACE", "/nixl/agents/")
        return cls(of_agent, endpoints, namespace) if endpoints else None

    # What agents ask for

    def put(self, label, metadata):
        """Behind the agent's own key, whose end says that all is over."""
        self._in_thread(lambda: (self._put(self._key(self.of_agent, ""), b""),
                                 self._put(self._key(self.of_agent, label), metadata)))

    def leave(self):
        prefix = self._key(self.of_agent, "")
        end = prefix[:-1] + chr(ord("/") + 1)
        self._in_thread(lambda: self._call("kv/deleterange", key=_encode(prefix),
                                           range_end=_encode(end)))

    def fetch(self, agent, label, on_metadata, on_gone):
        """on_metadata(bytes) if they come in time, then on_gone() once, both from a thread."""
        self._in_thread(lambda: self._follow(agent, label, on_metadata, on_gone))

    # How

    def _key(self, agent, label):
        return f"{self.namespace}/{agent}/{label}"

    @staticmethod
    def _in_thread(run):
        def safely():
            try:
                run()
            except (OSError, http.client.HTTPException, ValueError) as error:
                logger.warning("etcd: %s", error)

        threading.Thread(target=safely, daemon=True).start()

    def _open(self, path, body, seconds):
        """The answer of the first server that gives one."""
        failure = None
        for end in self.endpoints:
            connection = http.client.HTTPConnection(end.hostname, end.port or 2379,
                                                    timeout=CALL_SECONDS)
            try:
                connection.connect()
                connection.sock.settimeout(seconds)
                connection.request("POST", "/v3/" + path, json.dumps(body))
                answer = connection.getresponse()
                if answer.status == 200:
                    return answer
                failure = ValueError(f"{path}: {answer.status} {answer.read(200)!r}")
            except OSError as error:
                failure = error
        raise failure

    def _call(self, path, **body):
        return json.load(self._open(path, body, CALL_SECONDS))

    def _put(self, key, value):
        self._call("kv/put", key=_encode(key), value=_encode(value))

    def _get(self, key):
        """The value, and the revision of the store that has it."""
        answer = self._call("kv/range", key=_encode(key))
        found = answer.get("kvs", [{}])[0]
        return base64.b64decode(found.get("value", "")), int(answer["header"]["revision"])

    def _events(self, key, revision, seconds):
        """(is_end, value) of what happens to a key; a silence of so many seconds is a TimeoutError."""
        body = {"create_request": {"key": _encode(key), "start_revision": revision}}
        answer = self._open("watch", body, seconds)
        while line := answer.readline():
            for event in json.loads(line).get("result", {}).get("events", []):
                yield (event.get("type") == "DELETE",
                       base64.b64decode(event["kv"].get("value", "")))

    def _follow(self, agent, label, on_metadata, on_gone):
        key = self._key(agent, label)
        metadata, revision = self._get(key)
        if not metadata:
            metadata = next(value for is_end, value in self._events(key, revision + 1, WAIT_SECONDS)
                            if value and not is_end)
        on_metadata(metadata)
        for is_end, _ in self._events(self._key(agent, ""), revision + 1, None):
            if is_end:
                on_gone()
                return
