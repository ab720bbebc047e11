# SPDX-License-Identifier: Apache-2.0
"""One group of two ranks, however its processes are started; and who does not get in."""
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

import ports
from conftest import BINARY, SECONDS, Server, wait_for, web

MODEL = Path(__file__).parents[1] / "vectors" / "tiny-models" / "llama"
PROMPT = [214, 297, 306, 319, 16, 101, 7]
# What a starter of the machine that runs the tests may have set.
FOREIGN = ("OMPI_", "PMIX_", "SLURM_", "LWS_", "WEFT_RANK", "WEFT_SIZE", "WEFT_LEADER", "RANK",
           "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_", "TORCHELASTIC_")


def serve(*arguments, ranks=2):
    return [BINARY, "serve", str(MODEL), "--port", "0", "--host", "127.0.0.1", "--threads", "1",
            "--tensor-parallel-size", str(ranks), "--num-gpu-blocks-override", "64", *arguments]


def need(*programs):
    if not BINARY:
        pytest.skip("WEFT_TEST_BINARY is not set")
    for program in programs:
        if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin") is None:
            pytest.skip(f"no {program}: apt-get install openmpi-bin slurm-wlm munge")


@pytest.fixture
def start(monkeypatch):
    """Starts a process of a group; ends it afterwards."""
    need()
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name)
    started = []

    def begin(command, env=None):
        started.append(Server(command, {key: str(value) for key, value in (env or {}).items()}))
        return started[-1]

    yield begin
    for process in started:
        if process.process.poll() is None:
            process.process.kill()
        process.process.wait()


def answer(server):
    reply = web.post(server.url + "/v1/completions", json={
        "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "return_token_ids": True,
        "ignore_eos": True})
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["token_ids"]


@pytest.fixture(scope="session")
def expected():
    """What the model says when it is not cut."""
    need()
    server = Server(serve(ranks=1)).wait_until_listening()
    tokens = answer(server)
    assert server.stop() == 0
    return tokens


def says(process, text):
    return any(text in line for line in process.lines)


def wait_for_line(process, text):
    wait_for(lambda: says(process, text) or not process.reader.is_alive(), what=text)
    assert says(process, text), "".join(process.lines)


def refused(process, *texts):
    assert process.wait() != 0
    for text in texts:
        assert says(process, text), "".join(process.lines)


def by_flags(port, rank):
    return serve("--rank", str(rank), "--world-size", "2", "--leader", f"127.0.0.1:{port}")


# ---- who starts them ---------------------------------------------------------------------------

def lws(port, rank):
    return serve(), {"LWS_LEADER_ADDRESS": f"localhost:{port}", "LWS_GROUP_SIZE": 2,
                     "LWS_WORKER_INDEX": rank}


def torchrun(port, rank):
    return serve(), {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def weft_launch(port, rank):
    return serve(), {"WEFT_RANK": rank, "WEFT_SIZE": 2, "WEFT_LOCAL_RANK": rank,
                     "WEFT_LOCAL_SIZE": 2, "WEFT_LEADER": f"127.0.0.1:{port}"}


def flags(port, rank):
    return by_flags(port, rank), {}


def vllm_flags(port, rank):
    return serve("--nnodes", "2", "--node-rank", str(rank), "--master-addr", "127.0.0.1",
                 "--master-port", str(port)), {}


@pytest.mark.parametrize("way", [lws, torchrun, weft_launch, flags, vllm_flags])
def test_two_processes_answer_as_one_and_end_together(start, expected, way):
    port = ports.reserve()
    follower = start(*way(port, 1))
    wait_for_line(follower, "looks for its leader")  # it comes up last
    leader = start(*way(port, 0)).wait_until_listening()
    assert answer(leader) == expected
    follower.process.send_signal(signal.SIGTERM)
    assert leader.stop() == 0, "".join(leader.lines)
    assert follower.wait() == 0, "".join(follower.lines)


def as_root():
    return ["--allow-run-as-root"] if os.geteuid() == 0 else []


def test_mpirun_starts_them(start, expected):
    need("mpirun")
    job = start(["mpirun", *as_root(), "--oversubscribe", "-np", "2", *serve()])
    job.wait_until_listening()
    assert says(job, "(OpenMPI)")
    assert answer(job) == expected
    job.process.terminate()
    job.wait()
    assert says(job, "stopped"), "".join(job.lines)


def write_secret(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_mpirun_on_two_hosts_tells_them_by_pmix_where_the_leader_is(start, expected, tmp_path):
    """Hosts that are this one: what would be ssh runs its command here, each in a folder of its own."""
    need("mpirun")
    agent = tmp_path / "agent"
    agent.write_text(f'#!/bin/sh\nexport TMPDIR={tmp_path}/$1\nmkdir "$TMPDIR"\nshift\n'
                     'exec sh -c "$*"\n')
    agent.chmod(0o755)
    secret = write_secret(tmp_path, "secret", "correct horse battery staple")
    job = start(["mpirun", *as_root(), "-mca", "plm_rsh_agent", str(agent), "-H",
                 "hosta:1,hostb:1", "-np", "2", *serve("--secret-file", secret)])
    job.wait_until_listening()
    assert not says(job, "PMIx"), "".join(job.lines)  # no word of doing without it
    assert not says(job, "leader at 127.0.0.1"), "".join(job.lines)
    assert answer(job) == expected
    job.process.terminate()
    job.wait()


CONFIG = """
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def jobs(env):
    return subprocess.run(["squeue", "-h", "-o", "%A"], env=env, text=True, capture_output=True,
                          check=False).stdout.split()


@pytest.fixture
def slurm():
    """A cluster of this one node, in a folder."""
    need("munged", "slurmctld", "slurmd", "srun")
    if os.geteuid() != 0:
        pytest.skip("slurmd takes root")
    folder = Path("/tmp") / f"weft-slurm-{os.getpid()}"
    for name in ("", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname(), folder=folder, node=ports.reserve(),
                                    controller=ports.reserve(), cpus=os.cpu_count(),
                                    cluster=f"weft{os.getpid()}"))
    env = {**os.environ, "SLURM_CONF": str(config), "PATH": os.environ["PATH"] + ":/usr/sbin"}
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.sock",
         f"--key-file={key}", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/seed",
         f"--log-file={folder}/munged.log", "--num-threads=1", "--origin=127.0.0.1"],
        ["slurmctld", "-D", "-c"], ["slurmd", "-D"]]
    running = []
    try:
        for daemon in daemons:
            running.append(subprocess.Popen(daemon, env=env, stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL))
            if daemon[0] == "munged":
                wait_for((folder / "munge.sock").exists, what="munged")
        up = wait_for(lambda: "idle" in subprocess.run(["sinfo", "-h", "-o", "%t"], env=env,
                                                       capture_output=True, text=True,
                                                       check=False).stdout
                      or any(daemon.poll() is not None for daemon in running), what="an idle node")
        if any(daemon.poll() is not None for daemon in running) or not up:
            pytest.skip("slurm does not run here: " + (folder / "slurmd.log").read_text()[-500:])
        yield env
    finally:
        if len(running) == len(daemons):
            subprocess.run(["scancel", "--signal=KILL", "--state=RUNNING", "--user=root"], env=env,
                           check=False)
            wait_for(lambda: not jobs(env), what="the end of its jobs")
        for daemon in reversed(running):
            daemon.terminate()
            daemon.wait(SECONDS)
        shutil.rmtree(folder)


def test_srun_starts_them(start, expected, slurm):
    job = start(["srun", "-n", "2", "--overcommit", *serve()], slurm)
    job.wait_until_listening()
    assert says(job, "(Slurm)")
    assert answer(job) == expected
    subprocess.run(["scancel", "--signal=TERM", *jobs(slurm)], env=slurm, check=True)
    assert job.wait() == 0, "".join(job.lines)


def test_a_process_in_a_shell_of_a_batch_job_is_alone(start, expected):
    server = start(serve(ranks=1), {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 2, "SLURM_PROCID": 0,
                                    "SLURM_LOCALID": 0, "SLURM_JOB_NODELIST": "n[1-2]"})
    assert answer(server.wait_until_listening()) == expected
    assert server.stop() == 0


# ---- who does not get in -----------------------------------------------------------------------

@pytest.fixture
def group(start):
    """Two ranks that serve, and their leader's port."""
    port = ports.reserve()
    leader = start(by_flags(port, 0))
    start(by_flags(port, 1))
    return leader.wait_until_listening(), port


def test_strangers_and_garbage_are_refused_and_the_group_lives(group, expected):
    leader, port = group
    silent = socket.create_connection(("127.0.0.1", port))
    for first in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(range(256)) * 16, b"\xff" * 9):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(first)
    wait_for_line(leader, "stranger refused from=")
    assert answer(leader) == expected
    silent.close()


def test_a_second_process_of_a_rank_is_refused_and_the_group_lives(start, group, expected):
    leader, port = group
    refused(start(by_flags(port, 1)), "rank 1 is taken by ")
    refused(start(by_flags(port, 0)), "cannot listen on", "in use")
    assert answer(leader) == expected


def test_ranks_that_differ_are_refused_by_name(start):
    port = ports.reserve()
    start(by_flags(port, 0))
    follower = start([*by_flags(port, 1), "--kv-cache-dtype", "bf16"])
    refused(follower, "--kv-cache-dtype: rank 1 has bf16, the leader auto")


def test_another_model_is_refused(start):
    port = ports.reserve()
    start(by_flags(port, 0))
    other = [word.replace(str(MODEL), str(MODEL.with_name("mistral"))) for word in by_flags(port, 1)]
    refused(start(other), "the model's files: rank 1 has ")


def test_another_secret_is_refused_and_the_right_one_let_in(start, expected, tmp_path):
    port = ports.reserve()
    good = write_secret(tmp_path, "good", "correct horse battery staple")
    bad = write_secret(tmp_path, "bad", "incorrect horse battery staple")
    leader = start([*by_flags(port, 0), "--secret-file", good])
    wait_for_line(leader, "they need the secret")
    refused(start([*by_flags(port, 1), "--secret-file", bad]), "it has another secret, or is no leader")
    refused(start(by_flags(port, 1)), "secret")
    start([*by_flags(port, 1), "--secret-file", good])
    assert answer(leader.wait_until_listening()) == expected


def test_a_number_of_ranks_that_the_model_is_not_cut_for_is_refused(start):
    refused(start(serve(ranks=1), {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}),
            "--tensor-parallel-size 1")
