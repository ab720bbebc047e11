# SPDX-License-Identifier: Apache-2.0
"""./dev, as one who has just cloned the tree tries it."""
import subprocess
from pathlib import Path

import pytest

DEV = Path(__file__).parents[2] / "dev"


def dev(*words):
    return subprocess.run([DEV, *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["build", "--help"], ["build", "-h"],
                                   ["test", "--help"], ["model", "--help"], ["fmt", "--help"]])
def test_help_is_given_and_nothing_done(words):
    done = dev(*words)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: ./dev COMMAND")


@pytest.mark.parametrize("words, said", [(["bild"], 'no command "bild"'),
                                         (["build", "fast"], 'build: no preset "fast"; there are: release'),
                                         (["test", "some"], 'test: no part "some"; there are: release'),
                                         (["fmt", "some"], 'fmt: no option "some"')])
def test_wrong_words_are_named_with_the_right_ones(words, said):
    done = dev(*words)
    assert done.returncode == 1 and done.stdout == ""
    assert f"dev: error: {said}" in done.stderr
