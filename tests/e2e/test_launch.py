# SPDX-License-Identifier: Apache-2.0
"""`weft launch` as a shell meets it: ranks here, behind an ssh that is a script, behind a real sshd, and in
network namespaces. Every process of a test carries a mark in its environment, by which orphans are found.
"""
import contextlib
import getpass
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import uuid
from pathlib import Path

import pytest

import ports
from conftest import BINARY, wait_for

SECONDS = 60  # deadline of everything
LIVES = ("S", "R", "D")  # states of a process, as /proc has them
LOOP = "while :; do read -t 1 x <> /dev/zero || :; done"

pytestmark = pytest.mark.skipif(not BINARY, reason="WEFT_TEST_BINARY is not set")


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


# ---- what ranks are told ---------------------------------------------------------------------

def test_ranks_know_their_places(done):
    code, lines, errors = done("-np", "3", "sh", "-c",
                               "echo $WEFT_RANK/$WEFT_SIZE $WEFT_LOCAL_RANK/$WEFT_LOCAL_SIZE "
                               "$WEFT_LEADER ${WEFT_RESTARTS-none} $WEFT_EPOCH")
    assert (code, errors) == (0, "")
    fields = sorted(line.split() for line in lines)
    assert [field[:2] for field in fields] == [[f"{i}/3", f"{i}/3"] for i in range(3)]
    leaders = {field[2] for field in fields}
    assert len(leaders) == 1
    host, port = leaders.pop().rsplit(":", 1)
    assert host == "127.0.0.1" and 0 < int(port) < 65536
    assert {tuple(field[3:]) for field in fields} == {("none", "0")}


def test_ranks_have_no_descriptors_but_their_own(done):
    code, lines, _ = done("-np", "3", "python3", "-c",
                          "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))")
    assert (code, lines) == (0, ["[0, 1, 2, 3]"] * 3)


def test_the_programs_options_are_its_own(done):
    code, lines, _ = done("-n1", "echo", "-np", "7", "--timeout", "x", "--", "y")
    assert (code, lines) == (0, ["-np 7 --timeout x -- y"])
    code, lines, _ = done("-n", "1", "--", "sh", "-c", 'echo "$@"', "sh", "--help")
    assert (code, lines) == (0, ["--help"])


def test_variables_are_passed_on(done):
    code, lines, _ = done("-np", "1", "-x", "COLOUR=deep blue", "-x", "SHAPE", "sh", "-c",
                          "echo $COLOUR, $SHAPE", env={"SHAPE": "round", "COLOUR": "red"})
    assert (code, lines) == (0, ["deep blue, round"])


def test_the_programs_variables_are_no_options(done):
    code, lines, _ = done("-np", "1", "sh", "-c", "echo $WEFT_HOST $WEFT_NP",
                          env={"WEFT_HOST": "0.0.0.0", "WEFT_NP": "5", "WEFT_UNKNOWN": "1"})
    assert (code, lines) == (0, ["0.0.0.0 5"])


def test_a_chosen_leader_is_told(done):
    code, lines, _ = done("-np", "1", "--leader-host", "fe80::1", "--leader-port", "29401", "sh",
                          "-c", "echo $WEFT_LEADER")
    assert (code, lines) == (0, ["[fe80::1]:29401"])


@pytest.mark.parametrize("words, says", [
    ((), "no program"),
    (("-np", "2", "--bind-to", "socket", "true"), "--bind-to socket"),
    (("--map-by", "ppr", "true"), "--map-by ppr"),
    (("-x", "NOT_SET_ANYWHERE", "true"), "-x NOT_SET_ANYWHERE: it is not set here"),
    (("-H", "a,,b", "true"), "--host a,,b: column 3"),
    (("-H", "a", "--hostfile", "b", "true"), "one of them"),
    (("-np", "5", "-H", "a:2,b:2", "true"), "5 ranks, but the hosts have 4 slots"),
    (("--hostfile", "/nonexistent-hosts", "true"), "/nonexistent-hosts"),
    (("--no-such-option", "true"), "--no-such-option is unknown"),
])
def test_wrong_input_is_one_line(done, words, says):
    code, lines, errors = done(*words)
    assert (code, lines) == (2, [])
    assert says in errors and errors.count("\n") == 0


def test_a_hostfiles_fault_is_placed(done, tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# rack\nlocalhost slots=2\nnode-2  slots=many\n")
    code, _, errors = done("--hostfile", str(path), "true")
    assert code == 2 and f"{path}:3:15: slots takes a number" in errors


# ---- what ranks print ------------------------------------------------------------------------

def test_lines_are_tagged_and_whole(done):
    script = ("i=0; while [ $i -lt 200 ]; do echo out-$WEFT_RANK-$i; echo err-$WEFT_RANK-$i >&2; "
              "i=$((i+1)); done; printf last-$WEFT_RANK")
    code, lines, errors = done("-np", "4", "--tag-output", "sh", "-c", script)
    assert code == 0
    for rank in range(4):
        mine = [line for line in lines if line.startswith(f"[{rank}]<stdout>: ")]
        assert mine == [f"[{rank}]<stdout>: out-{rank}-{i}" for i in range(200)] + \
            [f"[{rank}]<stdout>: last-{rank}"]
        mine = [line for line in errors.split("\n") if line.startswith(f"[{rank}]<stderr>: ")]
        assert mine == [f"[{rank}]<stderr>: err-{rank}-{i}" for i in range(200)]
    assert len(lines) == 4 * 201


def test_bytes_of_one_rank_pass_as_they_are(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(3 << 20) + b"no newline")
    with source.open("rb") as stdin, target.open("wb") as stdout:
        subprocess.run([BINARY, "launch", "-np", "1", "cat"], stdin=stdin, stdout=stdout, check=True,
                       timeout=SECONDS)
    assert target.read_bytes() == source.read_bytes()


def test_a_slow_reader_loses_nothing_and_holds_up_no_end(launch):
    """Output waits for its reader, the news of a failure does not."""
    one = Launch.__new__(Launch)
    one.process = subprocess.Popen(
        [BINARY, "launch", "-np", "2", "sh", "-c",
         'if [ $WEFT_RANK = 1 ]; then yes 0123456789abcdef | head -n 300000; exit 0; fi; exit 3'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert b"rank 0 on host localhost ended with exit code 3" in one.process.stderr.readline()
        first = one.process.stdout.read(4096)  # nobody read until now
        rest = one.process.stdout.read()
        assert one.process.wait(SECONDS) == 3
        lines = (first + rest).split(b"\n")
        assert set(lines[:-1]) <= {b"0123456789abcdef"}
    finally:
        one.process.kill()
        one.process.wait()


def test_nothing_is_lost_to_a_slow_reader():
    with subprocess.Popen([BINARY, "launch", "-np", "3", "sh", "-c",
                           "yes $WEFT_RANK-0123456789abcdef | head -n 60000"],
                          stdout=subprocess.PIPE) as process:
        total = {}
        while line := process.stdout.readline():
            total[line] = total.get(line, 0) + 1
        assert process.wait(SECONDS) == 0
    assert total == {b"%d-0123456789abcdef\n" % rank: 60000 for rank in range(3)}


def test_a_reader_that_leaves_ends_the_job():
    with subprocess.Popen([BINARY, "launch", "-np", "2", "yes"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(SECONDS) == 128 + signal.SIGPIPE


def test_a_disk_that_is_full_is_said():
    with open("/dev/full", "wb") as full:
        result = subprocess.run([BINARY, "launch", "-np", "2", "yes"], stdout=full, stderr=subprocess.PIPE,
                                text=True, check=False, timeout=SECONDS)
    assert result.returncode == 141 and "standard output: No space left on device" in result.stderr


def test_each_rank_and_stream_has_its_file(done, tmp_path):
    folder = tmp_path / "logs"
    code, lines, _ = done("-np", "2", "--output-dir", str(folder), "sh", "-c",
                          "printf 'o%s\\n' $WEFT_RANK; printf e$WEFT_RANK >&2")
    assert code == 0 and sorted(lines) == ["o0", "o1"]
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "rank-0.stdout": "o0\n", "rank-1.stdout": "o1\n", "rank-0.stderr": "e0",
        "rank-1.stderr": "e1"}


def test_input_goes_to_rank_0_alone(launch):
    one = launch("-np", "3", "--tag-output", "cat", stdin=subprocess.PIPE)
    one.process.stdin.write(b"hello\n")
    one.process.stdin.flush()
    one.wait_for_lines(1)
    one.process.stdin.close()
    assert one.wait() == 0
    assert one.lines == ["[0]<stdout>: hello"]


# ---- how it ends -----------------------------------------------------------------------------

@pytest.mark.parametrize("how, code, says", [
    ("exit 7", 7, "ended with exit code 7"),
    ("kill -9 $$", 137, "was killed by signal 9 (Killed)"),
    ("kill -SEGV $$", 139, "was killed by signal 11 (Segmentation fault)"),
])
def test_the_first_failure_is_named_and_ends_the_others(done, how, code, says):
    got, _, errors = done("-np", "4", "sh", "-c",
                          f'if [ $WEFT_RANK = 2 ]; then {how}; fi; trap "" TERM; {LOOP}')
    assert got == code
    assert f"rank 2 on host localhost {says}" in errors


@pytest.mark.parametrize("program, code", [("/nonexistent", 127), ("/etc/passwd", 126)])
def test_a_program_that_cannot_run_is_named(done, program, code):
    got, _, errors = done("-np", "2", program)
    assert got == code and "cannot be started: " + program in errors


def test_many_ranks_of_a_short_program(done):
    assert done("-np", "512", "/bin/true")[0] == 0


def test_a_job_that_takes_too_long_is_ended(done):
    code, _, errors = done("-np", "2", "--timeout", "1", "sleep", "1000")
    assert code == 124 and "has not ended in 1 s" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_ranks(launch, number):
    one = launch("-np", "64", "sh", "-c", "echo up; exec sleep 1000")
    one.wait_for_lines(64)
    one.process.send_signal(number)
    assert one.wait() == 128 + number
    assert not one.relatives()


def test_ranks_that_end_well_after_a_signal_make_it_a_success(launch):
    one = launch("-np", "2", "sh", "-c", f'trap "echo bye; exit 0" TERM; echo up; {LOOP}')
    one.wait_for_lines(2)
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 0
    assert one.lines.count("bye") == 2


def test_user_signals_are_passed_on(launch):
    one = launch("-np", "2", "sh", "-c", f'trap "echo usr1; exit 0" USR1; echo up; {LOOP}')
    one.wait_for_lines(2)
    one.process.send_signal(signal.SIGUSR1)
    assert one.wait() == 0
    assert one.lines.count("usr1") == 2


def test_a_second_interrupt_kills(launch):
    one = launch("-np", "2", "sh", "-c", f'trap "echo stays" INT; echo up; {LOOP}')
    one.wait_for_lines(2)
    one.process.send_signal(signal.SIGINT)
    one.wait_for_lines(4)
    threading.Event().wait(0.3)  # less than that is the first one heard twice
    one.process.send_signal(signal.SIGINT)
    assert one.wait() == 130
    assert "second Ctrl-C" in one.error_text()


def state(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return None


def ranks_of(one, n):
    """Process ids that the ranks printed."""
    one.wait_for_lines(n)
    return [int(line) for line in one.lines[:n]]


def test_a_stop_stops_the_ranks_and_goes_on(launch):
    one = launch("-np", "2", "--restarts", "1", "--stopped-after", "600", "sh", "-c",
                 "echo $$; exec sleep 1000")
    pids = ranks_of(one, 2)
    one.process.send_signal(signal.SIGTSTP)
    wait_for(lambda: all(state(pid) == "T" for pid in [*pids, one.process.pid]), SECONDS, "the stop")
    one.process.send_signal(signal.SIGCONT)
    wait_for(lambda: all(state(pid) == "S" for pid in pids), SECONDS, "going on")
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 143


def test_nothing_outlives_a_launcher_that_is_killed(launch):
    one = launch("-np", "3", "sh", "-c",
                 'setsid sleep 1000 & sh -c "sleep 1000 & sleep 1000" & echo up; trap "" TERM HUP; '
                 + LOOP)
    one.wait_for_lines(3)
    assert len(one.relatives()) > 9
    one.process.kill()
    one.process.wait()
    wait_for(lambda: not one.relatives(), SECONDS, "the end of all processes")


def test_nothing_outlives_a_job(done):
    code, _, _ = done("-np", "2", "sh", "-c", "setsid sleep 1000 & sleep 1000 & exit 0")
    assert code == 0


def test_children_of_the_shell_before_are_spared():
    script = f'sleep 1000 & echo $!; exec "{BINARY}" launch -np 1 true'
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        assert process.wait(SECONDS) == 0
        assert state(pid) in LIVES
        os.kill(pid, signal.SIGKILL)


def test_a_helper_that_a_rank_detached_may_work_on(done, tmp_path):
    """The leader of its group ends, the helper does not until the job does."""
    (tmp_path / "daemon").write_text("sleep 1000 & echo $! > helper.new; mv helper.new helper\n")
    script = ("(setsid sh daemon &); while [ ! -e helper ]; do :; done; pid=$(cat helper); "
              "leader=$(cut -d' ' -f5 /proc/$pid/stat); while [ -d /proc/$leader ]; do :; done; "
              "cut -d' ' -f3 /proc/$pid/stat")
    code, lines, _ = done("-np", "1", "sh", "-c", script, cwd=tmp_path)
    assert code == 0 and lines[0] in LIVES


# ---- restarts --------------------------------------------------------------------------------

def test_a_failed_rank_is_started_again_alone(done):
    script = 'echo $WEFT_RANK-$WEFT_EPOCH-$WEFT_RESTARTS; [ $WEFT_RANK != 1 ] || [ $WEFT_EPOCH -ge 2 ]'
    code, lines, errors = done("-np", "3", "--restarts", "2", "sh", "-c", script)
    assert code == 0
    assert sorted(lines) == ["0-0-2", "1-0-2", "1-1-2", "1-2-2", "2-0-2"]
    assert "rank 1 on host localhost ended with exit code 1; it is started again (2 of 2)" in errors


def test_rank_0_takes_the_others_along(launch):
    one = launch("-np", "3", "--restarts", "1", "sh", "-c",
                 'echo $WEFT_RANK-$WEFT_EPOCH-$$; exec sleep 1000')
    one.wait_for_lines(3)
    leader = next(line for line in one.lines if line.startswith("0-"))
    os.kill(int(leader.split("-")[2]), signal.SIGKILL)
    one.wait_for_lines(6)
    assert sorted(line[:3] for line in one.lines) == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 143


def test_who_asks_for_the_end_gets_no_restarts(launch):
    one = launch("-np", "2", "--restarts", "9", "sh", "-c",
                 '[ $WEFT_RANK = 1 ] && [ $WEFT_EPOCH != 3 ] && exit 1; echo up; exec sleep 1000')
    one.wait_for_lines(2)
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 143
    assert "(4 of 9)" not in one.error_text()


def test_when_restarts_are_used_up_the_job_fails(done):
    code, _, errors = done("-np", "2", "--restarts", "2", "sh", "-c",
                           "[ $WEFT_RANK = 1 ] && exit 9; exec sleep 1000")
    assert code == 9 and "(2 of 2)" in errors and "the others are ended" in errors


def test_a_rank_that_is_stopped_too_long_is_started_again(launch):
    one = launch("-np", "2", "--restarts", "1", "--stopped-after", "1", "sh", "-c",
                 'echo $WEFT_RANK $WEFT_EPOCH $$; exec sleep 1000')
    one.wait_for_lines(2)
    os.kill(next(int(line.split()[2]) for line in one.lines if line[0] == "1"), signal.SIGSTOP)
    one.wait_for_lines(3)
    assert one.lines[2].startswith("1 1 ")
    assert "has been stopped for 1 s: killed" in one.error_text()
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 143


# ---- other hosts -----------------------------------------------------------------------------

@pytest.fixture
def fake_ssh(tmp_path):
    """A script in ssh's place: host "dead…" refuses, "noisy…" greets, all others are here. Counts its calls."""
    script = tmp_path / "fake-ssh"
    script.write_text('#!/bin/sh\n'
                      'host=$1; shift\n'
                      'case $host in\n'
                      'dead*) echo "ssh: connect to host $host port 22: Connection refused" >&2; exit 255;;\n'
                      'mute*) exec sleep 1000;;\n'
                      'noisy*) echo "Welcome to $host";;\n'
                      'esac\n'
                      f'echo $host >> {tmp_path}/calls\n'
                      'unset SSH_CONNECTION\n'
                      'export FAKE_HOST=$host\n'
                      'exec sh -c "$*"\n')
    script.chmod(0o755)
    return script


def test_one_ssh_a_host_whatever_its_ranks(done, fake_ssh, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("node-a slots=3\nme@node-b:2\n")
    code, lines, errors = done("--hostfile", str(hosts), "--ssh", str(fake_ssh), "-x", "WORD=x y",
                               "sh", "-c", "echo $WEFT_RANK $FAKE_HOST $WEFT_LOCAL_RANK "
                               "$WEFT_LOCAL_SIZE $WEFT_LEADER $WORD $PWD", cwd=tmp_path)
    assert (code, errors) == (0, "")
    fields = sorted(line.split() for line in lines)
    assert [field[:4] for field in fields] == [
        ["0", "node-a", "0", "3"], ["1", "node-a", "1", "3"], ["2", "node-a", "2", "3"],
        ["3", "me@node-b", "0", "2"], ["4", "me@node-b", "1", "2"]]
    assert all(field[4].startswith("node-a:") and field[5:] == ["x", "y", str(tmp_path)]
               for field in fields)
    assert sorted((tmp_path / "calls").read_text().split()) == ["me@node-b", "node-a"]


def test_a_host_that_cannot_be_reached_is_named(done, fake_ssh):
    code, lines, errors = done("-H", "alive:2,dead-1:2", "--ssh", str(fake_ssh), "echo", "hello")
    assert (code, lines) == (1, [])
    assert ("host dead-1 cannot be reached: its agent ended with exit code 255: ssh: connect to host "
            "dead-1 port 22: Connection refused") in errors


def test_hosts_without_ranks_are_left_alone(done, fake_ssh):
    code, lines, _ = done("-np", "2", "-H", "a:2,dead:2", "--ssh", str(fake_ssh), "echo", "hello")
    assert (code, lines) == (0, ["hello", "hello"])


def test_a_host_that_does_not_answer_is_named(done, fake_ssh):
    code, lines, errors = done("-H", "alive,mute", "--connect-timeout", "1", "--ssh", str(fake_ssh),
                               "echo", "hello")
    assert (code, lines) == (1, [])
    assert "host mute cannot be reached: no answer in 1 s" in errors


def test_a_shell_that_greets_is_named(done, fake_ssh):
    code, _, errors = done("-H", "noisy", "--ssh", str(fake_ssh), "true")
    assert code == 1
    assert 'host noisy cannot be reached: said "Welcome to noisy"' in errors


def test_a_weft_that_is_not_there_is_named(done, fake_ssh):
    code, _, errors = done("-H", "a", "--ssh", str(fake_ssh), "--remote-weft", "/opt/no weft's", "true")
    assert code == 1 and "host a cannot be reached" in errors and "/opt/no weft's" in errors


def test_a_failure_elsewhere_is_named_with_its_host(done, fake_ssh):
    code, _, errors = done("-H", "a:2,b:2", "--ssh", str(fake_ssh), "sh", "-c",
                           '[ $WEFT_RANK = 3 ] && exit 5; exec sleep 1000')
    assert code == 5 and "rank 3 on host b ended with exit code 5; the others are ended" in errors


def test_ranks_end_with_their_ssh(launch, fake_ssh):
    one = launch("-H", "a:2,b:2", "--ssh", str(fake_ssh), "sh", "-c",
                 "echo $FAKE_HOST $PPID; exec sleep 1000")
    one.wait_for_lines(4)
    agent = next(int(line.split()[1]) for line in one.lines if line.startswith("b "))
    os.kill(agent, signal.SIGKILL)
    assert one.wait() == 1
    assert "host b is lost: its agent was killed by signal 9" in one.error_text()
    assert not one.relatives()


# ---- hosts that are lost, with restarts ------------------------------------------------------

PLACE = "echo $FAKE_HOST $WEFT_RANK $WEFT_EPOCH $PPID; exec sleep 1000"


def agent_of(one, host):
    """Of the ranks that said PLACE last."""
    return [int(line.split()[3]) for line in one.lines if line.startswith(host + " ")][-1]


def test_ranks_of_a_lost_host_are_started_there_again(launch, fake_ssh):
    one = launch("-H", "a:1,b:2", "--restarts", "2", "--ssh", str(fake_ssh), "sh", "-c", PLACE)
    one.wait_for_lines(3)
    for losses in (1, 2):
        os.kill(agent_of(one, "b"), signal.SIGKILL)
        one.wait_for_lines(3 + 2 * losses)
        again = [line.split()[:2] for line in one.lines[-2:]]
        assert sorted(again) == [["b", "1"], ["b", "2"]]
        said = f"signal 9 (Killed); it is tried again ({losses} of 2)"
        wait_for(lambda said=said: said in one.error_text(), SECONDS, said)
    os.kill(agent_of(one, "b"), signal.SIGKILL)
    assert one.wait() == 1
    assert one.errors[-1].endswith("host b is lost: its agent was killed by signal 9 (Killed)")
    assert not one.relatives()


def test_a_lost_host_of_rank_0_takes_all_along(launch, fake_ssh):
    one = launch("-H", "a:1,b:1", "--restarts", "1", "--ssh", str(fake_ssh), "sh", "-c", PLACE)
    one.wait_for_lines(2)
    os.kill(agent_of(one, "a"), signal.SIGKILL)
    one.wait_for_lines(4)
    assert sorted(line.split()[:3] for line in one.lines) == [
        ["a", "0", "0"], ["a", "0", "1"], ["b", "1", "0"], ["b", "1", "1"]]
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 143


def lose_for_good(one, fake_ssh):
    """Host b, which refuses from now on."""
    fake_ssh.write_text(fake_ssh.read_text().replace("dead*)", "dead*|b)"))
    os.kill(agent_of(one, "b"), signal.SIGKILL)
    wait_for(lambda: "host b cannot be reached yet" in one.error_text(), SECONDS, "a try")


def test_a_host_that_stays_lost_ends_the_job(launch, fake_ssh):
    one = launch("-H", "a:1,b:1", "--restarts", "9", "--connect-timeout", "2", "--ssh", str(fake_ssh),
                 "sh", "-c", PLACE)
    one.wait_for_lines(2)
    lose_for_good(one, fake_ssh)
    assert one.wait() == 1
    assert "host b cannot be reached again: tried for 2 s" in one.error_text()
    assert not one.relatives()


def test_who_asks_for_the_end_waits_for_no_lost_host(launch, fake_ssh):
    one = launch("-H", "a:1,b:1", "--restarts", "9", "--ssh", str(fake_ssh), "sh", "-c", PLACE)
    one.wait_for_lines(2)
    lose_for_good(one, fake_ssh)
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 143
    assert not one.relatives()


@pytest.fixture
def sshd(tmp_path):
    """A real one on 127.0.0.2; the words of an ssh that it lets in."""
    program = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
    if not program or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        pytest.skip("needs sshd and ssh (openssh-server, openssh-client)")
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    port = ports.reserve(host="127.0.0.2")
    config = tmp_path / "sshd_config"
    config.write_text(f"ListenAddress 127.0.0.2:{port}\nHostKey {tmp_path}/host_key\n"
                      f"AuthorizedKeysFile {tmp_path}/key.pub\nStrictModes no\nPidFile none\n"
                      "PermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([program, "-D", "-e", "-f", config], stderr=subprocess.PIPE, text=True)
    try:
        assert "listening" in process.stderr.readline()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield (f"ssh -T -p {port} -i {tmp_path}/key -l {getpass.getuser()} -o BatchMode=yes -o LogLevel=ERROR "
               "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null")
    finally:
        process.kill()
        process.wait()


def test_ranks_behind_a_real_sshd(done, sshd):
    code, lines, errors = done("-H", "127.0.0.2:2,localhost", "--ssh", sshd, "-x", "WORD=there", "sh", "-c",
                               "echo $WEFT_RANK $WORD $WEFT_LEADER; cat >/dev/null; exit 0")
    assert (code, errors) == (0, "")
    fields = sorted(line.split() for line in lines)
    assert [field[:2] for field in fields] == [["0", "there"], ["1", "there"], ["2", "there"]]
    assert {field[2].rsplit(":", 1)[0] for field in fields} == {"127.0.0.2"}


def test_a_real_ssh_that_dies_takes_its_ranks(launch, sshd):
    one = launch("-H", "127.0.0.2:2", "--ssh", sshd, "-x", "WEFT_TEST_MARK", "sh", "-c",
                 "echo up; exec sleep 1000")
    one.wait_for_lines(2)
    children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGKILL)
    assert one.wait() == 1
    wait_for(lambda: not one.relatives(), SECONDS, "the end of all processes")


# ---- an agent by itself ----------------------------------------------------------------------

START, READY, OUT, EXITED, NOTE, ALL = 1, 64, 67, 71, 75, 0xffffffff


def frame(kind, rank, payload=b""):
    return struct.pack("<2sBBII", b"WL", 1, kind, rank, len(payload)) + payload


def start_frame(rank, *argv, folder=""):
    texts = b"".join(word.encode() + b"\0" for word in (folder, *argv))
    return frame(START, rank, struct.pack("<4BIII", 0, 0, 0, 0, 0, len(argv), 0) + texts)


@pytest.fixture
def agent(tmp_path):
    process = subprocess.Popen([BINARY, "launch", "--agent"], stdin=subprocess.PIPE, bufsize=0,
                               stdout=subprocess.PIPE, cwd=tmp_path)
    yield process
    process.stdin.close()
    assert process.wait(SECONDS) is not None
    process.stdout.close()


def read_some(agent, n):
    data = b""
    while len(data) < n:
        more = agent.stdout.read(n - len(data))
        assert more, "the agent has ended"
        data += more
    return data


def read_frames(agent, *kinds):
    """Until one of each kind has come: their ranks and payloads, in the order of kinds."""
    found = {}
    while not found.keys() >= set(kinds):
        _, _, kind, rank, length = struct.unpack("<2sBBII", read_some(agent, 12))
        found.setdefault(kind, (rank, read_some(agent, length)))
    return [found[kind] for kind in kinds]


def test_a_folder_that_is_missing_on_a_host_is_said(agent, tmp_path):
    agent.stdin.write(start_frame(3, "pwd", folder="/nonexistent-folder"))
    ready, note, out, end = read_frames(agent, READY, NOTE, OUT, EXITED)
    assert ready[0] == ALL
    text = note[1].decode()
    assert "/nonexistent-folder: No such file or directory" in text and str(tmp_path) in text
    assert out == (3, f"{tmp_path}\n".encode())
    assert end == (3, struct.pack("<II", 0, 0))


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", frame(READY, ALL), frame(77, 0),
                                   frame(START, 0, b"short"), start_frame(0)])
def test_an_agent_ends_with_its_ranks_when_it_hears_nonsense(agent, noise):
    agent.stdin.write(start_frame(0, "sh", "-c", "echo $$; exec sleep 1000"))
    pid = int(read_frames(agent, OUT)[0][1])
    agent.stdin.write(noise)
    agent.wait(SECONDS)
    assert state(pid) is None


def test_output_waits_for_credit_and_ends_do_not(agent):
    agent.stdin.write(start_frame(0, "sh", "-c", "yes | head -c 1000000"))
    agent.stdin.write(start_frame(1, "true"))
    assert read_frames(agent, EXITED)[0][0] == 1


# ---- network namespaces ----------------------------------------------------------------------

def can_make_namespaces():
    return os.geteuid() == 0 and shutil.which("ip") and \
        subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not can_make_namespaces(),
                                      reason="needs root, ip and network namespaces")


def devices():
    return {name for name in os.listdir("/sys/class/net") if name.startswith("weft")}


@needs_namespaces
def test_fake_hosts_reach_each_other_and_are_reached(launch):
    before = devices()
    script = ("import os, socket, sys\n"
              "host, port = os.environ['WEFT_LEADER'].rsplit(':', 1)\n"
              "if os.environ['WEFT_RANK'] == '0':\n"
              "    server = socket.create_server((host, int(port)))\n"
              "    print('listening', host, port, flush=True)\n"
              "    for _ in range(3):\n"
              "        peer, where = server.accept()\n"
              "        print('from', where[0], flush=True)\n"
              "else:\n"
              "    while True:\n"
              "        try:\n"
              "            socket.create_connection((host, int(port)), 10)\n"
              "            break\n"
              "        except ConnectionRefusedError:\n"
              "            pass\n")
    one = launch("--fake-hosts", "3", "--map-by", "node", "python3", "-c", script)
    wait_for(lambda: one.lines, SECONDS, "the leader")
    _, host, port = one.lines[0].split()
    one.wait_for_lines(3)
    socket.create_connection((host, int(port)), 20).close()
    assert one.wait() == 0, one.error_text()
    subnet = host.rsplit(".", 1)[0]
    assert sorted(line.split()[1] for line in one.lines[1:]) == [
        f"{subnet}.2", f"{subnet}.254", f"{subnet}.3"]
    assert devices() == before


@needs_namespaces
def test_nothing_of_fake_hosts_outlives_a_killed_launcher(launch):
    before = devices()
    one = launch("--fake-hosts", "2", "sh", "-c", "echo up; exec sleep 1000")
    one.wait_for_lines(2)
    assert len(devices() - before) == 1
    one.process.kill()
    one.process.wait()
    wait_for(lambda: not one.relatives() and devices() == before, SECONDS, "the end of all")


@needs_namespaces
def test_what_a_lost_agent_leaves_ends_before_its_ranks_start_again(launch):
    script = "setsid sleep 1000 & echo $WEFT_RANK $! $PPID; wait"
    one = launch("--fake-hosts", "2", "--restarts", "1", "sh", "-c", script)
    one.wait_for_lines(2)
    _, helper, agent = next(line.split() for line in one.lines if line[0] == "1")
    os.kill(int(agent), signal.SIGKILL)
    one.wait_for_lines(3)
    assert one.lines[2].startswith("1 ") and state(int(helper)) is None
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 143


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="needs setpriv, being root")
def test_fake_hosts_take_root():
    words = [BINARY, "launch", "--fake-hosts", "2", "true"]
    if os.geteuid() == 0:
        words = ["setpriv", "--reuid", "65534", "--clear-groups", *words]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert result.returncode != 0 and "takes root" in result.stderr
