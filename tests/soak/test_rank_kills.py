# SPDX-License-Identifier: Apache-2.0
"""Ranks of one model are killed, stopped and cut off under load: rank_kills.py on the shipped binary.

WEFT_TEST_SEED draws faults and load; WEFT_TEST_LONG makes all (FAULTS), otherwise a tenth.
"""
import json
import os
import shutil
import subprocess

import pytest

import ports
import rank_kills

BINARY = os.environ.get("WEFT_TEST_BINARY")
SEED = int(os.environ.get("WEFT_TEST_SEED", "1"))
FAULTS = 200  # on one host and on several together
N = FAULTS // 2 if os.environ.get("WEFT_TEST_LONG") else FAULTS // 20

pytestmark = pytest.mark.skipif(not BINARY, reason="WEFT_TEST_BINARY is not set")


def missing(hosts):
    """What this takes and is not there, or None."""
    if hosts == "shm":
        return None
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    for tool in ("ip", "nsenter"):
        if not shutil.which(tool):
            return f"needs {tool}"
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True, check=False)
    return f"needs network namespaces: {probe.stderr.strip()}" if probe.returncode else None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    subprocess.run([BINARY, "model", "synth", "--arch", "llama", "--shape", "tiny", "--dtype", "f32", path],
                   check=True, capture_output=True, timeout=60)
    return str(path)


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("hosts", sorted(rank_kills.FAULTS))
def test_faults_of_ranks_cost_no_wrong_token_and_no_hang(hosts, model, tmp_path):
    if reason := missing(hosts):
        pytest.skip(reason)
    args = rank_kills.parse(["--weft", BINARY, "--model", model, "--hosts", hosts, "--faults", str(N),
                             "--seed", str(SEED), "--port", str(ports.reserve())])
    print(f"seed {SEED}")
    result = rank_kills.Campaign(args, tmp_path / "log").run()
    print(json.dumps(result))
    assert result["failures"] == []
    assert sum(result["counts"][kind] for kind in rank_kills.FAULTS[hosts]
               if kind in result["counts"]) == N
