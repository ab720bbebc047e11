# SPDX-License-Identifier: Apache-2.0
"""`weft launch` as a shell meets it, with ranks on this host."""
import os
import signal
import subprocess
import threading
import time

import pytest

from conftest import BINARY, SECONDS, state, wait_for
from launching import Launch, done, launch, needs_weft

LIVES = ("S", "R", "D")  # states of a process, as /proc has them
LOOP = "while :; do sleep 1000 & wait; done"  # which traps interrupt
IMPATIENCE = 2  # seconds within which a second Ctrl-C kills

pytestmark = needs_weft


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
    interrupts = []  # when each was sent
    while one.process.poll() is None:
        interrupts.append(time.monotonic())
        one.process.send_signal(signal.SIGINT)
        wait_for(lambda: len(one.lines) >= 2 + 2 * len(interrupts) or one.process.poll() is not None,
                 what="what comes of an interrupt")
        if len(interrupts) > 1 and one.process.poll() is None:
            assert time.monotonic() - interrupts[-2] > IMPATIENCE, "a second one was passed on"
        threading.Event().wait(0.3)  # less than that is the one before heard twice
    assert len(interrupts) > 1 and one.wait() == 130
    assert "second Ctrl-C" in one.error_text()


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
    wait_for(lambda: "has been stopped for 1 s: killed" in one.error_text(), SECONDS, "why")
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 143
