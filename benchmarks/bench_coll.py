#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""all_reduce of weft beside MPI_Allreduce of OpenMPI, by turns.

Each round runs a whole sweep of the one, then of the other; neither runs while the other is measured.
Prints the median of the rounds with the spread, how many times faster weft is by the medians and by each one's
best round, and the geometric mean.
Needs OpenMPI (Debian: openmpi-bin libopenmpi-dev)."""
import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
# The component ob1 keeps OpenMPI from choosing a transport by itself.
MPI_TRANSPORT = {"shm": ["--mca", "btl", "self,vader"], "tcp": ["--mca", "btl", "self,tcp"]}
WEFT_BACKEND = {"shm": "shm", "tcp": "ucx"}
WEFT_ENVIRONMENT = {"shm": {}, "tcp": {"UCX_TLS": "tcp"}}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weft", default=str(HERE.parent / "build/release/weft"))
    parser.add_argument("--transport", choices=["shm", "tcp"], default="shm")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--min-bytes", type=int, default=4)
    parser.add_argument("--max-bytes", type=int, default=64 << 20)
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each size in each round")
    parser.add_argument("--cpus", default="0,1", help="processors, one a rank; empty: any")
    parser.add_argument("--out", help="file for every sample, as JSON")
    return parser.parse_args()


def compile_peer(folder):
    program = str(pathlib.Path(folder) / "bench_coll_mpi")
    subprocess.run(["mpicc", "-O2", "-std=c17", "-o", program, str(HERE / "bench_coll_mpi.c")], check=True)
    return program


def run_mpi(arguments, program):
    binding = ["--bind-to", "core"] if arguments.cpus else ["--bind-to", "none"]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    command = ["mpirun", "-np", str(arguments.ranks), "--oversubscribe", *root, *binding,
               "--mca", "pml", "ob1", *MPI_TRANSPORT[arguments.transport], program,
               str(arguments.min_bytes), str(arguments.max_bytes), str(arguments.factor),
               str(arguments.seconds)]
    if arguments.cpus:
        command[1:1] = ["--cpu-set", arguments.cpus]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {int(line.split()[0]): float(line.split()[1]) * 1e6 for line in text.splitlines()}


def run_weft(arguments):
    command = [arguments.weft, "bench", "coll", "--json", "--rounds", "1", "--no-check",
               "--backend", WEFT_BACKEND[arguments.transport], "--ranks", str(arguments.ranks),
               "--min-bytes", str(arguments.min_bytes), "--max-bytes", str(arguments.max_bytes),
               "--factor", str(arguments.factor), "--seconds", str(arguments.seconds)]
    if arguments.cpus:
        command += ["--cpus", arguments.cpus]
    environment = {**os.environ, **WEFT_ENVIRONMENT[arguments.transport]}
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return {row["bytes"]: row["out_of_place"]["time_us"] for row in json.loads(text)["rows"]}


def spread(samples):
    return f"{statistics.median(samples):10.2f} ({min(samples):.2f} to {max(samples):.2f})"


def report(samples):
    print(f"{'bytes':>10} {'weft us':>34} {'OpenMPI us':>34} {'faster':>8} {'at best':>8}")
    ratios = []
    for size in samples["weft"][0]:
        ours = [sweep[size] for sweep in samples["weft"]]
        theirs = [sweep[size] for sweep in samples["mpi"]]
        ratios.append(statistics.median(theirs) / statistics.median(ours))
        best = min(theirs) / min(ours)
        print(f"{size:>10} {spread(ours):>34} {spread(theirs):>34} {ratios[-1]:>7.2f}x {best:>7.2f}x")
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    print(f"geometric mean {mean:.2f}x, least {min(ratios):.2f}x")


def main():
    arguments = parse_arguments()
    samples = {"weft": [], "mpi": []}
    with tempfile.TemporaryDirectory() as folder:
        peer = compile_peer(folder)
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
            samples["weft"].append(run_weft(arguments))
            samples["mpi"].append(run_mpi(arguments, peer))
    report(samples)
    if arguments.out:
        pathlib.Path(arguments.out).write_text(json.dumps({**vars(arguments), "samples": samples}))


if __name__ == "__main__":
    main()
