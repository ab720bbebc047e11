# SPDX-License-Identifier: Apache-2.0
"""`weft launch` over hosts: behind an ssh that is a script, behind a real sshd, and in network namespaces."""
import contextlib
import getpass
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest

import ports
from conftest import BINARY, SECONDS, state, wait_for
from launching import done, launch, needs_weft

pytestmark = needs_weft


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


def device_of(host):
    """That by which fake hosts are reached: its file, and what it says, which it never will of another one."""
    index = Path(f"/sys/class/net/weft{host.split('.')[2]}/ifindex")
    return index, index.read_text()


def is_there(device):
    index, said = device
    with contextlib.suppress(OSError):
        return index.read_text() == said
    return False


@needs_namespaces
def test_fake_hosts_reach_each_other_and_are_reached(launch):
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
    device = device_of(host)
    one.wait_for_lines(3)
    socket.create_connection((host, int(port)), 20).close()
    assert one.wait() == 0, one.error_text()
    subnet = host.rsplit(".", 1)[0]
    assert sorted(line.split()[1] for line in one.lines[1:]) == [
        f"{subnet}.2", f"{subnet}.254", f"{subnet}.3"]
    assert not is_there(device)


@needs_namespaces
def test_nothing_of_fake_hosts_outlives_a_killed_launcher(launch):
    one = launch("--fake-hosts", "2", "sh", "-c", "echo $WEFT_LEADER; exec sleep 1000")
    one.wait_for_lines(2)
    device = device_of(one.lines[0])
    one.process.kill()
    one.process.wait()
    wait_for(lambda: not one.relatives() and not is_there(device), SECONDS, "the end of all")


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
