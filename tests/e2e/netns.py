# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for workers that are to be on hosts of their own. They take root, ip and tc."""
import contextlib
import ctypes
import os
import shutil
import subprocess
from pathlib import Path

CLONE_NEWNET = 0x40000000


def missing():
    """What this needs and is not there, or None."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    for tool in ("ip", "tc"):
        if not shutil.which(tool):
            return f"needs {tool} (iproute2)"
    name = f"weft-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"needs network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


def sweep():
    """Namespaces of runs that were killed."""
    for path in Path("/run/netns").glob("weft-[pd]-*"):
        if not Path("/proc", path.name.rsplit("-", 1)[1]).exists():
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True, check=False)


def run(*words):
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=120)


@contextlib.contextmanager
def inside(space):
    """Sockets that this thread makes here belong to the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{space}") as there:
        assert libc.setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), CLONE_NEWNET) == 0


class Link:
    """A namespace behind a veth pair, whose near end is in ours."""

    def __init__(self):
        sweep()
        pid = os.getpid()
        self.space = f"weft-d-{pid}"
        self.device = f"wvn{pid}"
        # Four addresses for each of the processes that could do this at the same time.
        net = f"10.215.{pid >> 6 & 255}"
        self.near, far = (f"{net}.{(pid & 63) * 4 + end}" for end in (1, 2))
        run("ip", "netns", "add", self.space)
        try:
            run("ip", "-n", self.space, "link", "set", "lo", "up")
            run("ip", "link", "add", self.device, "type", "veth",
                "peer", "name", "far", "netns", self.space)
            run("ip", "address", "add", self.near + "/30", "dev", self.device)
            run("ip", "-n", self.space, "address", "add", far + "/30", "dev", "far")
            run("ip", "-n", self.space, "link", "set", "far", "up")
            self.put("up")
        except BaseException:
            self.close()
            raise

    def put(self, state):
        """up or down."""
        run("ip", "link", "set", self.device, state)

    def close(self):
        subprocess.run(["ip", "netns", "del", self.space], capture_output=True, check=False)
