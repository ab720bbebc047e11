# SPDX-License-Identifier: Apache-2.0
"""Draws what `weft bench kernels --json` found: each case under the machine's roofline."""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

PEAKS = {"int8_op_s": "int8", "bf16_op_s": "bf16", "f32_op_s": "f32"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("kernels.svg"))
    args = parser.parse_args()
    result = json.loads(args.results.read_text(encoding="utf-8"))
    cases = [case for case in result["cases"] if case["operations"] > 0]

    figure, axes = plt.subplots(figsize=(9, 6))
    intensity = [case["operations"] / case["bytes"] for case in cases]
    ends = [min(intensity) / 2, max(intensity) * 2]
    for key, name in PEAKS.items():
        if result[key] > 0:
            knee = result[key] / result["read_bytes_s"]
            axes.plot(
                [ends[0], knee, ends[1]],
                [ends[0] * result["read_bytes_s"] * 1e-9, result[key] * 1e-9, result[key] * 1e-9],
                label=f"{name}: {result[key] * 1e-9:.0f} GOP/s",
            )
    kinds = sorted({(case["op"], case["dtype"]) for case in cases})
    for kind in kinds:
        own = [case for case in cases if (case["op"], case["dtype"]) == kind]
        axes.scatter(
            [case["operations"] / case["bytes"] for case in own],
            [case["operations"] / case["seconds_median"] * 1e-9 for case in own],
            label=" ".join(kind),
            s=18,
        )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GOP/s")
    axes.set_title(
        f"{result['cpu']}, {result['isa']}, {result['threads']} threads, "
        f"{result['read_bytes_s'] * 1e-9:.1f} GB/s"
    )
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
