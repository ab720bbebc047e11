# SPDX-License-Identifier: Apache-2.0
"""`weft launch` under test. Every process of a test carries a mark in its environment, by which orphans are found."""
import contextlib
import os
import subprocess
import threading
import uuid
from pathlib import Path

import pytest

from conftest import BINARY, SECONDS, wait_for

needs_weft = pytest.mark.skipif(not BINARY, reason="WEFT_TEST_BINARY is not set")


class Launch:
    """A running `weft launch`. lines: what it printed on standard output so far, errors: on error."""

    def __init__(self, *words, stdin=subprocess.DEVNULL, env=None, **more):
        self.mark = f"WEFT_TEST_MARK={uuid.uuid4()}"
        name, value = self.mark.split("=")
        self.process = subprocess.Popen(
            [BINARY, "launch", *words], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, name: value, **(env or {})}, **more)
        self.lines, self.errors = [], []
        self.readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in
                        ((self.process.stdout, self.lines), (self.process.stderr, self.errors))]
        for reader in self.readers:
            reader.start()

    @staticmethod
    def _read(stream, lines):
        for line in stream:
            lines.append(line.decode(errors="replace").rstrip("\n"))

    def wait_for_lines(self, n):
        wait_for(lambda: len(self.lines) >= n or not self.readers[0].is_alive(), SECONDS, "the output")
        assert len(self.lines) >= n, (self.lines, self.errors)

    def wait(self):
        code = self.process.wait(SECONDS)
        for reader in self.readers:
            reader.join(SECONDS)
        return code

    def relatives(self):
        """Processes of this job, the launcher among them."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return found

    def error_text(self):
        return "\n".join(self.errors)


@pytest.fixture
def launch():
    """Starts a launch; afterwards nothing of it may be left."""
    launches = []

    def start(*words, **more):
        launches.append(Launch(*words, **more))
        return launches[-1]

    yield start
    for one in launches:
        with contextlib.suppress(ProcessLookupError):
            one.process.kill()
        one.process.wait()
    for one in launches:
        wait_for(lambda one=one: not one.relatives(), SECONDS, "the end of all processes")


@pytest.fixture
def done(launch):
    """Runs one to its end: (exit code, lines, errors)."""
    def run(*words, **more):
        one = launch(*words, **more)
        code = one.wait()
        assert not one.relatives(), "processes are left"
        return code, one.lines, one.error_text()

    return run
