#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One prompt, prefilled on one worker and pulled by another meanwhile: a picture of what
`./dev bench split --trace FILE.json` saw.

usage: build/venv/bin/python benchmarks/plot_split.py FILE.json [--out split.svg]

Above, the prefill worker's chunks of the prompt; below them the decode worker's reads of their blocks,
those that ended before the prefill did in one color, the rest in another; then the decode worker's own
steps, one for each token. The right half is the end, magnified: from the last chunk to the first token.

Needs benchmarks/requirements.txt: build/venv/bin/pip install -r benchmarks/requirements.txt
"""
import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe & Ito's colors, which most eyes tell apart.
CHUNK, AHEAD, BEHIND, STEP = "#0072B2", "#009E73", "#D55E00", "#CC79A7"
MIN_WIDTH = 0.002 # of the picture: a read that takes less is still seen


def bars(axes, row, spans, color, least):
    if spans:
        axes.broken_barh([(start, max(end - start, least)) for start, end in spans],
                         (row - 0.35, 0.7), facecolors=color, edgecolors="white",
                         linewidth=0.4 if color in (CHUNK, STEP) else 0)


def draw(axes, run, left, right):
    least = (right - left) * MIN_WIDTH
    filled = [0] + [entry["ms"] for entry in run["filled"]]
    reads = [(entry["ms"] - entry["took_ms"], entry["ms"]) for entry in run["reads"]]
    bars(axes, 2, list(zip(filled, filled[1:])), CHUNK, least)
    bars(axes, 1, [read for read in reads if read[1] <= filled[-1]], AHEAD, least)
    bars(axes, 1, [read for read in reads if read[1] > filled[-1]], BEHIND, least)
    tokens = run["token_ms"]
    bars(axes, 0, list(zip([max(end for _, end in reads)] + tokens, tokens)), STEP, least)
    axes.axvline(filled[-1], color="black", linewidth=0.8, linestyle=":")
    axes.axvline(tokens[0], color="black", linewidth=0.8)
    axes.set_xlim(left, right)
    axes.set_ylim(-0.6, 2.6)
    axes.set_yticks([2, 1, 0], ["prefill: chunks", "decode: reads", "decode: tokens"])
    axes.set_xlabel("ms from the request")
    axes.spines[["top", "right"]].set_visible(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, default=Path("split.svg"))
    args = parser.parse_args()
    run = json.loads(args.file.read_text(encoding="utf-8"))
    last, first = run["filled"][-1]["ms"], run["token_ms"][0]
    ahead = sum(read["bytes"] for read in run["reads"] if read["ms"] <= last)
    share = 100 * ahead / sum(read["bytes"] for read in run["reads"])
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "weft"})
    figure, (whole, end) = plt.subplots(1, 2, figsize=(10, 2.6), layout="constrained", sharey=True,
                                        width_ratios=(3, 2))
    draw(whole, run, 0, run["token_ms"][-1] * 1.01)
    margin = 0.3 * (first - last)
    draw(end, run, last - margin, first + margin)
    whole.set_title(f"{run['prompt']} tokens, {share:.0f}% of the bytes read during the prefill",
                    loc="left", fontsize=9)
    end.set_title(f"last chunk to first token: {first - last:.1f} ms\n(a chunk's read "
                  f"{run['chunk_read_ms']:.1f} ms + a step {run['step_ms']:.1f} ms)",
                  loc="left", fontsize=9)
    figure.savefig(args.out, metadata={"Date": None} if args.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
