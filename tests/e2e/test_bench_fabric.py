# SPDX-License-Identifier: Apache-2.0
"""`weft bench fabric` in two halves, as on two hosts, and in two network namespaces."""
import json
import os
import re
import shutil
import subprocess

import pytest

BINARY = os.environ["WEFT_TEST_BINARY"]
SMALL = ["--start-block-size", "4KiB", "--max-block-size", "64KiB", "--block-step", "16", "--start-total",
         "64KiB", "--max-total", "64KiB", "--rounds", "1", "--iterations", "3", "--backend", "tcp"]


def command(*flags):
    return [BINARY, "bench", "fabric", *SMALL, *flags]


def check(done):
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert [row["backend"] for row in got["results"]] == ["tcp", "tcp"]
    assert all(row["weft"]["gb_s"] > 0 for row in got["results"])


@pytest.mark.parametrize("op", ["read", "write"])
def test_two_halves_meet_over_tcp(op):
    listener = subprocess.Popen(command("--listen", "127.0.0.1:0"), stderr=subprocess.PIPE, text=True)
    try:
        port = re.fullmatch(r"listening at 127\.0\.0\.1:(\d+)\n", listener.stderr.readline())[1]
        check(subprocess.run(command("--connect", f"127.0.0.1:{port}", "--op", op, "--json"), text=True,
                             capture_output=True, timeout=120, check=False))
        assert listener.wait(60) == 0
    finally:
        listener.kill()
        listener.stderr.close()


def test_a_listener_that_is_not_there_is_said():
    done = subprocess.run(command("--connect", "127.0.0.1:1"), text=True, capture_output=True, timeout=60,
                          check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("weft: error: 127.0.0.1:1: ")


def test_namespaces_are_joined_by_a_veth_pair_and_leave_nothing(tmp_path):
    """From a namespace of the test's own: other tests make devices in that of the machine meanwhile."""
    can = os.geteuid() == 0 and shutil.which("ip") and subprocess.run(
        ["unshare", "-n", "ip", "link", "add", "weft0", "type", "veth", "peer", "name", "weft1"],
        capture_output=True, check=False).returncode == 0
    if not can:
        pytest.skip("no right to make network namespaces with veth pairs")
    script = f'ip link >{tmp_path}/before && "$0" "$@" && ip link >{tmp_path}/after'
    check(subprocess.run(["unshare", "-n", "sh", "-c", script, *command("--netns", "--json")], text=True,
                         capture_output=True, timeout=120, check=False))
    assert (tmp_path / "after").read_text() == (tmp_path / "before").read_text() != ""
