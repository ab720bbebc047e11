#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""weft's fabric beside NIXL, Mooncake, iperf3, memcpy and process_vm_readv, on this machine.

usage: ./dev bench fabric --peers [--only host,private,tcp,veth,crc,cost] [--rounds 5] [--out FILE]

Contenders of a case run by turns, round after round, so that what else the machine does meets all
of them; a figure is the median of the rounds, with their spread. The table at the end holds each
against its bar and says by how much it was met. FILE gets everything as JSON.

NIXL and Mooncake come from the Python package index into build/peers, pinned in
benchmarks/requirements-fabric-*.txt (NIXL's wheel is for Python 3.12: --python); iperf3 and ip are
the system's. What is missing is said and its bars are left out. `veth` and `--only` parts of it take
root. NIXL runs with prepared lists, over UCX's shared memory (posix, cma; error mode none) or tcp.
"""
import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
KIB, MIB = 2**10, 2**20
PARTS = ["host", "private", "tcp", "veth", "crc", "cost"]
POOL = 128 * MIB  # of the peers: twice the largest case they run


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- contenders ----------------------------------------------------------------------------------


class Unavailable(Exception):
    pass


class Weft:
    """`weft bench fabric`, one size and one round a call."""

    def __init__(self, args, *flags):
        self.command = [args.weft, "bench", "fabric", "--json", *flags]
        if args.cpus and "shm" in flags:
            self.command += ["--cpus", args.cpus]
        self.name = "weft"

    def run(self, *flags):
        done = subprocess.run([str(word) for word in [*self.command, *flags]], text=True,
                              capture_output=True, check=False)
        if done.returncode != 0:
            raise Unavailable(done.stderr.strip().splitlines()[-1] if done.stderr else "weft failed")
        return json.loads(done.stdout)

    def measure(self, block, total, seconds):
        got = self.run("--start-block-size", block, "--max-block-size", block, "--start-total", total,
                       "--max-total", total, "--pool-bytes", max(POOL, 2 * total), "--rounds", 1,
                       "--seconds", seconds)
        return got["results"][0]

    def close(self):
        pass


class Worker:
    """A peer in Python, in an environment of its own."""

    def __init__(self, name, python, script, *words, **env):
        self.name = name
        self.process = subprocess.Popen(
            [str(python), str(HERE / script), *map(str, words)], text=True, env={**os.environ, **env},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise Unavailable(f"{self.name} ended")
        return json.loads(line)

    def measure(self, block, total, seconds):
        self.process.stdin.write(json.dumps({"block": block, "total": total, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        got = self.answer()
        if "error" in got or not got["ok"]:
            return {"error": got.get("error", "wrong bytes")}
        return {"gb_s": total / statistics.median(got["times"]) / 1e9}

    def close(self):
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()


def find_python():
    """A Python 3.12 that runs: of the path, or of pyenv, whose shims need not."""
    found = [shutil.which("python3.12"), *Path.home().glob(".pyenv/versions/3.12*/bin/python3.12")]
    for python in filter(None, found):
        if subprocess.run([python, "-c", ""], check=False, stderr=subprocess.DEVNULL).returncode == 0:
            return str(python)
    return sys.executable


def environment(name, python):
    """The interpreter of build/peers/<name>, made on first use."""
    folder = ROOT / "build" / "peers" / name
    wanted = HERE / f"requirements-{name}.txt"
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_bytes() != wanted.read_bytes():
        say(f"installing {wanted.name} into {folder}")
        if not (folder / "bin/python").exists():
            subprocess.run([python, "-m", "venv", folder], check=True)
        done = subprocess.run([folder / "bin/pip", "install", "-q", "-r", wanted], text=True,
                              capture_output=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"{wanted.name}: {done.stderr.strip().splitlines()[-1]}")
        stamp.write_bytes(wanted.read_bytes())
    return folder / "bin/python"


def nixl(args, transports):
    python = environment("fabric-nixl", args.python)
    mode = ["none"] if "posix" in transports else []
    return Worker("nixl", python, "fabric_peer_nixl.py", POOL, *mode, UCX_TLS=transports)


def mooncake(args):
    return Worker("mooncake", environment("fabric-mooncake", args.python), "fabric_peer_mooncake.py", POOL)


class Iperf:
    """One stream; on loopback or from one network namespace to another."""

    name = "iperf3"

    def __init__(self, host="127.0.0.1", client=(), server=()):
        if shutil.which("iperf3") is None:
            raise Unavailable("iperf3 is not installed: apt-get install iperf3")
        self.host, self.client, self.server = host, list(client), list(server)

    def measure(self, block, total, seconds):
        del block, total
        port = free_port()
        server = subprocess.Popen([*self.server, "iperf3", "-s", "-1", "-p", str(port)],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        command = [*self.client, "iperf3", "-c", self.host, "-p", str(port), "-J", "-t",
                   str(max(1, round(seconds)))]
        try:
            got = {"error": "it did not start"}
            until = time.monotonic() + 10
            while "error" in got and time.monotonic() < until:  # the server may not listen yet
                time.sleep(0.1)
                done = subprocess.run(command, text=True, capture_output=True, check=False)
                got = json.loads(done.stdout or '{"error": "it said nothing"}')
        finally:
            server.kill()
            server.wait()
        if "error" in got:
            raise Unavailable(f"iperf3: {got['error']}")
        return {"gb_s": got["end"]["sum_received"]["bits_per_second"] / 8e9}

    def close(self):
        pass


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def namespaces():
    """Two network namespaces with a veth pair: (server's address, prefix of a command in each)."""
    if os.geteuid() != 0:
        raise Unavailable("network namespaces take root")
    a, b = f"weft{os.getpid()}a", f"weft{os.getpid()}b"

    def ip(words):
        subprocess.run(["ip", *words.split()], check=True)

    try:
        ip(f"netns add {a}")
        ip(f"netns add {b}")
        ip(f"-n {a} link add weft0 type veth peer name weft0 netns {b}")
        for name, host in ((a, "10.98.0.1"), (b, "10.98.0.2")):
            ip(f"-n {name} addr add {host}/24 dev weft0")
            ip(f"-n {name} link set weft0 up")
        yield "10.98.0.2", ["ip", "netns", "exec", a], ["ip", "netns", "exec", b]
    finally:
        for name in (a, b):
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


# ---- rounds --------------------------------------------------------------------------------------


class Results:
    def __init__(self):
        self.figures = {}  # (part, contender, block, total) → GB/s of each round
        self.bars = []
        self.missing = []

    def add(self, part, contender, block, total, gb_s):
        self.figures.setdefault((part, contender, block, total), []).append(gb_s)

    def median(self, *key):
        return statistics.median(self.figures[key]) if key in self.figures else None

    def bar(self, text, got, needed, at_most=False):
        if got is not None:
            self.bars.append({"bar": text, "got": got, "needed": needed, "at_most": at_most,
                              "met": got <= needed if at_most else got >= needed})

    def bar_of_ratio(self, text, ours, theirs, needed):
        if ours is not None and theirs is not None:
            self.bar(text, ours / theirs, needed)


def try_contender(results, make, *words, **more):
    try:
        return [make(*words, **more)]
    except (Unavailable, subprocess.CalledProcessError, OSError) as error:
        say(f"left out: {make.__name__}: {error}")
        results.missing.append(f"{make.__name__}: {error}")
        return []


def take_turns(results, part, contenders, cases, args):
    """Every contender once for each case, round after round."""
    for number in range(args.rounds):
        for block, total in cases:
            for contender in contenders:
                say(f"{part}: round {number + 1} of {args.rounds}, {block} of {total}, {contender.name}")
                try:
                    got = contender.measure(block, total, args.seconds)
                except Unavailable as error:
                    got = {"error": str(error)}
                if "error" in got:
                    results.missing.append(f"{part} {contender.name} {block} of {total}: {got['error']}")
                    say(f"  {got['error']}")
                    continue
                results.add(part, contender.name, block, total,
                            got["gb_s"] if "gb_s" in got else got["weft"]["gb_s"])
                for floor in ("memcpy", "readv"):
                    if floor in got:
                        results.add(part, floor, block, total, got[floor]["gb_s"])
    for contender in contenders:
        contender.close()


def named(block):
    return f"{block // MIB} MiB" if block >= MIB else f"{block // KIB} KiB"


# ---- parts ---------------------------------------------------------------------------------------


def run_grid(results, part, weft, floor, flags):
    """One command over many sizes; its rounds are by turns with the floor."""
    got = weft.run("--floors", floor, *flags)
    for row in got["results"]:
        key = (row["block_bytes"], row["total_bytes"])
        results.add(part, "weft", *key, row["weft"]["gb_s"])
        results.add(part, floor, *key, row[floor]["gb_s"])
    worst = min(got["results"], key=lambda row: row[floor]["ratio"])
    return worst[floor]["ratio"], f"{named(worst['block_bytes'])} of {named(worst['total_bytes'])}"


def part_host(results, args):
    # memcpy tells nobody that it is done, so in the grid reads do not either.
    weft = Weft(args, "--backend", "shm", "--no-notify")
    say("host: the grid of sizes beside memcpy")
    worst, where = run_grid(results, "host grid", weft, "memcpy",
                            ["--block-step", 2, "--total-step", 2, "--max-total", 512 * MIB,
                             "--rounds", args.rounds, "--seconds", args.seconds * args.rounds / 4])
    results.bar(f"same host, of memcpy, worst size ({where})", worst, 0.8)

    cases = [(4 * KIB, MIB), (64 * KIB, MIB), (4 * KIB, 64 * MIB), (64 * KIB, 64 * MIB)]
    contenders = [Weft(args, "--backend", "shm", "--floors", "memcpy"),
                  *try_contender(results, nixl, args, "posix,cma,self")]
    take_turns(results, "host", contenders, cases, args)
    for (block, total), needed in zip(cases, (10, 5, 3.5, 1.4)):
        ours = results.median("host", "weft", block, total)
        theirs = results.median("host", "nixl", block, total)
        memcpy = results.median("host", "memcpy", block, total)
        if ours is None or theirs is None:
            continue
        lowest = min(needed, 0.8 * memcpy / theirs) if total == MIB else needed
        results.bar(f"same host, of NIXL, {named(block)} of {named(total)}", ours / theirs, lowest)


def part_private(results, args):
    weft = Weft(args, "--backend", "shm", "--memory", "private", "--no-notify")
    worst, where = run_grid(results, "private", weft, "readv",
                            ["--rounds", args.rounds, "--seconds", args.seconds * args.rounds / 2])
    results.bar(f"memory not ours, of process_vm_readv, worst size ({where})", worst, 1.0)


# Batches of few blocks first: one that Mooncake refuses spoils its later ones.
TCP_CASES = [(2 * MIB, 64 * MIB), (256 * KIB, 64 * MIB), (64 * KIB, 64 * MIB), (4 * KIB, MIB),
             (4 * KIB, 64 * MIB)]


def bars_of_iperf(results, part, where):
    for block, total in TCP_CASES:
        if block >= 64 * KIB:
            results.bar_of_ratio(f"tcp, {where}, of iperf3, {named(block)} of {named(total)}",
                                 results.median(part, "weft", block, total),
                                 results.median(part, "iperf3", block, total), 0.9)


def part_tcp(results, args):
    contenders = [Weft(args, "--backend", "tcp"), *try_contender(results, Iperf),
                  *try_contender(results, nixl, args, "tcp"), *try_contender(results, mooncake, args)]
    take_turns(results, "tcp", contenders, TCP_CASES, args)
    bars_of_iperf(results, "tcp", "loopback")
    needs = {("nixl", 4 * KIB): 5, ("nixl", 64 * KIB): 2}
    for block, total in TCP_CASES:
        for peer in ("nixl", "mooncake"):
            needed = needs.get((peer, block), 2 if peer == "mooncake" else None)
            if needed is not None:
                results.bar_of_ratio(f"tcp, loopback, of {peer}, {named(block)} of {named(total)}",
                                     results.median("tcp", "weft", block, total),
                                     results.median("tcp", peer, block, total), needed)
    weft = Weft(args, "--backend", "tcp")
    got = weft.run("--start-batch-size", 100000, "--start-block-size", KIB, "--max-block-size", KIB,
                   "--rounds", 1)
    results.bar("tcp, blocks accepted in one batch", got["results"][0]["blocks"], 100000)


def part_veth(results, args):
    with namespaces() as (host, client, server):
        contenders = [Weft(args, "--backend", "tcp", "--netns"),
                      *try_contender(results, Iperf, host, client, server)]
        take_turns(results, "veth", contenders, TCP_CASES, args)
    bars_of_iperf(results, "veth", "veth")


def part_crc(results, args):
    contenders = []
    for checksum in ("on", "off"):
        contenders.append(Weft(args, "--backend", "tcp", "--checksum", checksum))
        contenders[-1].name = f"checksum {checksum}"
    cases = [(4 * KIB, 64 * MIB), (64 * KIB, 64 * MIB)]
    take_turns(results, "crc", contenders, cases, args)
    for block, total in cases:
        with_sums = results.median("crc", "checksum on", block, total)
        without = results.median("crc", "checksum off", block, total)
        if with_sums is not None and without is not None:
            results.bar(f"tcp, part lost to CRC, {named(block)}", 1 - with_sums / without, 0.05, at_most=True)


def part_cost(results, args):
    got = Weft(args, "--backend", "shm", "--cost").run()
    figures = {figure["name"]: figure["median"] for figure in got["figures"]}
    results.cost = got["figures"]
    for worker, first in (("caller-driven", 1e-6), ("thread awake", 1e-6), ("thread asleep", 6e-6)):
        for runs in (1, 16, 256, 4096):
            name = f"post {runs} run{'s' if runs > 1 else ''}, {worker}"
            results.bar(f"{name}, us", figures[name] * 1e6, (first + 50e-9 * runs) * 1e6, at_most=True)
    results.bar("describe 100000 blocks, ms", figures["describe 100000 blocks"] * 1e3, 5, at_most=True)
    results.bar("describe 100000 blocks, strided, us",
                figures["describe 100000 blocks, strided"] * 1e6, 10, at_most=True)
    for side in ("initiator", "target"):
        results.bar(f"idle {side}, cores", figures[f"idle, {side}"], 0.0005, at_most=True)


# ---- telling -------------------------------------------------------------------------------------


def print_figures(results):
    print(f"{'part':10} {'contender':14} {'block':>8} {'total':>8} {'GB/s':>9}   (min to max)")
    for (part, contender, block, total), values in sorted(results.figures.items(), key=lambda item: item[0]):
        print(f"{part:10} {contender:14} {named(block):>8} {named(total):>8} "
              f"{statistics.median(values):9.3f}   ({min(values):.3f} to {max(values):.3f})")


def print_bars(results):
    print(f"\n{'bar':62} {'got':>9} {'needed':>9}")
    for bar in results.bars:
        print(f"{bar['bar']:62} {bar['got']:9.3f} {'<=' if bar['at_most'] else '>='} {bar['needed']:6.3g}"
              f"  {'met' if bar['met'] else 'MISSED'}")
    for text in results.missing:
        print(f"left out: {text}")


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8")
                if line.startswith("model name")), "unknown")
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "kernel": os.uname().release,
            "load": os.getloadavg()[0]}


def commit():
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.strip() or "unknown"


def write(results, args, before):
    rows = [{"part": part, "contender": contender, "block": block, "total": total, "gb_s": values}
            for (part, contender, block, total), values in results.figures.items()]
    args.out.write_text(json.dumps(
        {"machine": before, "commit": commit(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
         "rounds": args.rounds, "seconds": args.seconds, "figures": rows, "bars": results.bars,
         "cost": results.cost, "left_out": results.missing}, indent=1) + "\n", encoding="utf-8")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weft", type=Path, default=ROOT / "build/release/weft")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a contender in a round of a case")
    cores = sorted(os.sched_getaffinity(0))
    parser.add_argument("--cpus", default=",".join(map(str, cores[:2])) if len(cores) > 1 else "",
                        help="cores of weft's initiator and target over shm; \"\": any")
    parser.add_argument("--python", default=find_python(),
                        help="for the peers' environments")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for part in args.only.split(","):
        if part not in PARTS:
            parser.error(f"no part {part}: {', '.join(PARTS)}")
    return args


def main():
    args = parse()
    before = machine()
    results = Results()
    results.cost = []
    for part in args.only.split(","):
        try:
            globals()[f"part_{part}"](results, args)
        except (Unavailable, subprocess.CalledProcessError) as error:
            say(f"left out: {part}: {error}")
            results.missing.append(f"{part}: {error}")
        if args.out is not None:
            write(results, args, before)
    print_figures(results)
    print_bars(results)
    sys.exit(0 if all(bar["met"] for bar in results.bars) else 1)


if __name__ == "__main__":
    main()
