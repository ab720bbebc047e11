#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How fast blocks of each size move: a picture of `weft bench fabric --json`.

usage: build/venv/bin/python benchmarks/plot_fabric.py FILE.json... [--out fabric.svg]

Left, GB/s against the size of a block, a line for each total, with the spread of the rounds; the
floors that were measured (--floors) in grey, dashed. Right, the time of a transfer: median, faint
99th percentile. Several files, of several backends say, become several rows. The ending of --out
says the kind of picture: svg, png or pdf.

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

# Okabe & Ito's colors, which most eyes tell apart.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
FLOORS = {"memcpy": "--", "readv": ":"}


def named(size):
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:g} {unit}"
        size /= 1024
    return f"{size:g} GiB"


def by_total(results):
    """{total: rows by block size}; of many totals, six from the least to the most."""
    found = {}
    for row in results:
        found.setdefault(row["total_bytes"], []).append(row)
    totals = sorted(found)
    if len(totals) > len(COLORS):
        last = len(COLORS) - 1
        totals = [totals[round(i * (len(totals) - 1) / last)] for i in range(len(COLORS))]
    return {total: sorted(found[total], key=lambda row: row["block_bytes"]) for total in totals}


def draw_rates(axes, lines):
    for color, (total, rows) in zip(COLORS, lines.items()):
        blocks = [row["block_bytes"] for row in rows]
        middle = [row["weft"]["gb_s"] for row in rows]
        low = [row["weft"]["gb_s"] - row["weft"]["gb_s_min"] for row in rows]
        high = [row["weft"]["gb_s_max"] - row["weft"]["gb_s"] for row in rows]
        axes.errorbar(blocks, middle, yerr=[low, high], color=color, marker="o", markersize=5,
                      linewidth=1.8, capsize=2, label=f"{named(total)} in all")
        for floor, dash in FLOORS.items():
            if floor in rows[0]:
                axes.plot(blocks, [row[floor]["gb_s"] for row in rows], color=color, alpha=0.45,
                          linestyle=dash, linewidth=1.2)


def draw_times(axes, lines):
    for color, rows in zip(COLORS, lines.values()):
        blocks = [row["block_bytes"] for row in rows]
        axes.plot(blocks, [row["weft"]["p99_us"] for row in rows], color=color, alpha=0.4, linewidth=1.2)
        axes.plot(blocks, [row["weft"]["p50_us"] for row in rows], color=color, marker="o", markersize=5,
                  linewidth=1.8)
    axes.set_yscale("log")


def dress(axes, title, blocks):
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xscale("log", base=2)
    axes.set_xticks(blocks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: named(size)))
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="x", rotation=45)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def describe(result):
    floors = [floor for floor in FLOORS if floor in result["results"][0]]
    marks = ", ".join(f"{floor} {'dashed' if FLOORS[floor] == '--' else 'dotted'}" for floor in floors)
    backends = ", ".join(sorted({row["backend"] for row in result["results"]}))
    return (f'{backends}: {result["op"]}, {result["layout"]}, {result["memory"]}, {result["threads"]} '
            f'threads, {result["pipeline"]} in flight{"; " + marks if marks else ""}')


def plot(results, path):
    figure, rows = plt.subplots(len(results), 2, figsize=(9.6, 4.2 * len(results)), squeeze=False,
                                layout="constrained")
    for result, (rates, times) in zip(results, rows):
        lines = by_total(result["results"])
        blocks = sorted({row["block_bytes"] for row in result["results"]})
        draw_rates(rates, lines)
        dress(rates, f"{describe(result)}\nGB/s, by size of a block", blocks)
        rates.set_ylim(bottom=0)
        draw_times(times, lines)
        dress(times, "time of a transfer, us: p50, faint p99", blocks)
        rates.legend(frameon=False, fontsize=8)
    figure.suptitle(results[0]["cpu"], fontsize=9, x=0.01, ha="left")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("results", type=Path, nargs="+", help="what `weft bench fabric --json` printed")
    parser.add_argument("--out", type=Path, default=Path("fabric.svg"))
    args = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in args.results]
    for path, result in zip(args.results, results):
        if not result.get("results"):
            sys.exit(f"{path}: no sizes in it; is it of weft bench fabric --json?")
    plot(results, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
