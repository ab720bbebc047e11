#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a store of KV blocks saves, against its size: a picture of `weft bench kv --trace --json`.

usage: build/venv/bin/python benchmarks/plot_kv.py FILE.json [--out kv.svg]

Left, the part of the prompts' tokens that was found in a cache; right, the time to the first token,
median and ninth decile; with a disk, below them what was written to it. One line a store and policy.
Runs without a store are level lines. The ending of --out says the kind of picture: svg, png or pdf.

Needs benchmarks/requirements.txt: build/venv/bin/pip install -r benchmarks/requirements.txt
"""
import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullLocator

# Okabe & Ito's colors, which most eyes tell apart, and marks for the rest.
LOOKS = {
    ("cold", None): ("no prefix caching", "#7f7f7f", ":", ""),
    ("none", None): ("device only", "#000000", "--", ""),
    ("host", None): ("host", "#0072B2", "-", "o"),
    ("disk", "reuse"): ("disk, reuse", "#009E73", "-", "s"),
    ("disk", "all"): ("disk, all", "#D55E00", "-", "^"),
}
MIB = 2**20


def series(runs):
    """{(store, policy): runs by size}, in the order of LOOKS, then as found."""
    found = {}
    for run in runs:
        found.setdefault((run["store"], run["policy"]), []).append(run)
    ordered = [key for key in LOOKS if key in found] + [key for key in found if key not in LOOKS]
    return {key: sorted(found[key], key=lambda run: run["size"]) for key in ordered}


def look(key):
    return LOOKS.get(key, (", ".join(filter(None, key)), "#CC79A7", "-", "d"))


def hit_percent(run):
    return 100 * sum(run["hit_rate"].values())


def written_mib(run):
    return run["tiers"].get("disk", {}).get("written_bytes", 0) / MIB


def ttft(quantile):
    return lambda run: run["ttft_ms"][quantile]


def draw(axes, lines, value, is_faint=False):
    for key, runs in lines.items():
        label, color, dash, mark = look(key)
        style = {"color": color, "label": None if is_faint else label,
                 "alpha": 0.35 if is_faint else 1, "linewidth": 1.2 if is_faint else 1.8}
        if runs[0]["size"] == 0:
            axes.axhline(value(runs[0]), linestyle=dash, **style)
        else:
            axes.plot([run["size"] for run in runs], [value(run) for run in runs], linestyle=dash,
                      marker=mark, markersize=4 if is_faint else 6, **style)


def dress(axes, title, sizes):
    axes.set_title(title, loc="left", fontsize=10)
    axes.margins(x=0.08, y=0.1)
    axes.set_ylim(bottom=0)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    if sizes:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
        axes.set_xlabel("size of the store, in working sets", fontsize=9)


def describe(result):
    trace = result["trace"]
    working_set = result["working_set_blocks"] * result["block_bytes"] / MIB
    device = result["device_blocks"] * result["block_bytes"] / MIB
    return (f'{result["model"]}, {result["cpu"]}: {trace["conversations"]} conversations of '
            f'{trace["turns"]} turns, {trace["input_len"]} new and {trace["output_len"]} answered '
            f'tokens a turn, {trace["concurrency"]} at a time\n'
            f'working set {working_set:.3g} MiB, of which the device holds {device:.3g} MiB')


def plot(result, path):
    lines = series(result["runs"])
    sizes = sorted({run["size"] for run in result["runs"] if run["size"] > 0})
    has_disk = any(key[0] == "disk" for key in lines)
    columns = 3 if has_disk else 2
    figure, axes = plt.subplots(1, columns, figsize=(4.3 * columns, 4.3), layout="constrained")

    draw(axes[0], lines, hit_percent)
    dress(axes[0], "prompt tokens found, %", sizes)
    axes[0].set_ylim(0, 100)
    draw(axes[1], lines, ttft("p90"), is_faint=True)
    draw(axes[1], lines, ttft("p50"))
    dress(axes[1], "time to first token, ms: p50, faint p90", sizes)
    if has_disk:
        disks = {key: runs for key, runs in lines.items() if key[0] == "disk"}
        draw(axes[2], disks, written_mib)
        dress(axes[2], "written to the disk, MiB", sizes)

    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False,
                  fontsize=9)
    figure.suptitle(describe(result), fontsize=9, x=0.01, ha="left")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("result", type=Path, help="what `weft bench kv --trace --json` printed")
    parser.add_argument("--out", type=Path, default=Path("kv.svg"))
    args = parser.parse_args()
    result = json.loads(args.result.read_text(encoding="utf-8"))
    if not result.get("runs"):
        sys.exit(f"{args.result}: no runs in it; is it of --trace --json?")
    plot(result, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
