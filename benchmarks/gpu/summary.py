#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One table of what benchmarks/gpu_all.sh measured: each figure of docs/benchmarks.md, "On a GPU", with
its share of what this card can do, the bar, PyTorch beside it, and how much faster weft is. It
is written to summary.txt and summary.json in the results folder as well. A figure that was not measured says why.

usage: summary.py RESULTS
"""
import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

# Llama 3 8B: query, key and value, output, gate and up, down. Attention and the output matrix are left out.
LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 32, 4096, 14336, 32, 8, 128
LAYER_WEIGHTS = HIDDEN * ((2 * HEADS + 2 * KV_HEADS) * HEAD_DIM + 3 * INTERMEDIATE)
TOKEN_TFLOP = 2 * LAYERS * LAYER_WEIGHTS / 1e12

MODES = {"": "", "-no-deterministic": ", --no-deterministic"}


@dataclass
class Figure:
    name: str  # as in docs/benchmarks.md
    part: str  # that measures it
    value: float | None = None
    unit: str = ""
    share: float | None = None  # of the ceiling
    ceiling: str = ""
    bar: float | None = None  # the least share; in a time's own unit: the most
    torch: float | None = None  # in the figure's unit
    more: str = ""

    def is_time(self):
        return self.unit in ("ms", "us", "s")

    def is_met(self):
        """None: there is no bar, or nothing to hold against it."""
        if self.bar is None or self.value is None:
            return None
        if not self.ceiling:
            return self.value <= self.bar
        return None if self.share is None else self.share >= self.bar

    def ratio(self):
        if self.torch is None or self.value is None:
            return None
        return self.torch / self.value if self.is_time() else self.value / self.torch


class Results:
    """What the parts left in a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.parts = {row["part"]: row for row in self.rows("parts.jsonl")}
        self.torch = self.rows("torch.out")

    def rows(self, name):
        return [json.loads(line) for line in self.text(name).splitlines() if line.startswith("{")]

    def text(self, name):
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""

    def is_ok(self, part):
        return self.parts.get(part, {}).get("status") == "ok"

    def why_not(self, part):
        if self.is_ok(part):
            return "not in what it printed"
        return self.parts.get(part, {}).get("status", "not run")

    def json(self, part):
        """The object that a part printed, {} when it did not end well."""
        rows = self.rows(part + ".out") if self.is_ok(part) else []
        return rows[-1] if rows else {}

    def numbers(self, part, pattern):
        """The groups of the first line that matches."""
        found = re.search(pattern, self.text(part + ".out"), re.M) if self.is_ok(part) else None
        return [float(group) for group in found.groups()] if found else None

    def peer(self, kind, key, **which):
        for row in self.torch:
            if row["part"] == kind and all(row[name] == value for name, value in which.items()):
                return row[key]
        return None


def ceilings(results):
    """(copy in GB/s, matmul in TFLOP/s): PyTorch's, else those of our own benchmarks, or None."""
    copy = results.peer("copy", "gb_s")
    matmul = results.peer("matmul", "tflop_s", n=8192)
    if copy is None:
        copy = (results.numbers("attention-bf16", r"^copy: (\d+) GB/s") or [None])[0]
    if matmul is None:
        matmul = (results.numbers("linear-bf16", r"cuBLAS 8192\^3 bf16 (\d+) TFLOP/s") or [None])[0]
    return copy or None, matmul or None


def share(value, ceiling):
    return value / ceiling if value is not None and ceiling else None


def is_8b(row):
    """Whether bars and PyTorch's step are of this model's shape."""
    return "-llama-8b-" in row["model"]


# ---- the figures --------------------------------------------------------------------------------

STEPS = [  # name, part, the bar, batch that PyTorch's step has
    ("decode step, bf16, 1k context, batch 1", "step-bf16-1", 0.85, 1),
    ("decode step, bf16, 1k context, batch 64", "step-bf16-64", 0.80, 64),
    ("decode step, fp8_block, batch 1", "step-fp8_block-1", 0.75, None),
    ("decode step, fp8_block, batch 64", "step-fp8_block-64", 0.75, None),
    ("decode step, q4_0, batch 1", "step-q4_0-1", 0.75, None),
    ("decode step, q4_0, batch 64", "step-q4_0-64", 0.75, None),
    ("decode step, awq (i4_32), batch 1", "step-awq-1", 0.75, None),
    ("decode step, awq (i4_32), batch 64", "step-awq-64", 0.75, None),
    ("decode step, q8_0, batch 1", "step-q8_0-1", 0.75, None),
    ("decode step, q8_0, batch 64", "step-q8_0-64", 0.75, None),
]
MORE_STEPS = [
    ("decode step, bf16, batch 64, fp8 cache", "step-bf16-64-fp8-cache"),
    ("decode step, bf16, batch 64, from 1025 tokens on", "step-bf16-64-two-segments"),
]
PREFILLS = ["bf16", "fp8_block", "q4_0", "awq", "q8_0"]


def step_figure(results, name, part, bar=None, batch=None):
    copy = ceilings(results)[0]
    row = results.json(part)
    figure = Figure(name, part, bar=bar, unit="ms", ceiling="copy")
    if "step_us" in row:
        figure.name += "" if is_8b(row) else f" ({row['model']})"
        figure.bar = bar if is_8b(row) else None
        figure.value = row["step_us"] / 1e3
        figure.share = share(row["step_gb_s"], copy)
        tokens = row["batch"] * 1e6 / row["step_us"]
        figure.more = f"{row['step_gb_s'] / 1e3:.2f} TB/s, {tokens:.0f} tok/s"
    if batch is not None and (not row or is_8b(row)):
        us = results.peer("decode", "us", batch=batch)
        figure.torch = us / 1e3 if us else None
    return figure


def steps(results):
    for mode, said in MODES.items():
        for name, part, bar, batch in STEPS:
            yield step_figure(results, name + said, part + mode, None if mode else bar, batch)
    for name, part in MORE_STEPS:
        yield step_figure(results, name, part)


def prefills(results):
    matmul = ceilings(results)[1]
    for mode, said in MODES.items():
        for dtype in PREFILLS:
            part = f"step-{dtype}-1{mode}"
            row = results.json(part)
            figure = Figure(f"prefill of 2048 tokens, {dtype}{said}", part, unit="TFLOP/s",
                            ceiling="matmul", bar=0.75 if dtype == "bf16" and not mode else None)
            if "prefill" in row:
                rate = row["prefill"]["tok_s"]["median"]
                figure.more = f"{rate:.0f} tok/s"
                if is_8b(row):
                    figure.value = rate * TOKEN_TFLOP
                    figure.share = share(figure.value, matmul)
            yield figure


def attention(results):
    copy, matmul = ceilings(results)
    for cache in ("bf16", "fp8", "int8"):
        part = f"attention-{cache}"
        suffix = "" if cache == "bf16" else f", {cache} cache"
        is_bound = cache == "bf16"
        for batch, tokens, bar in ((64, 8192, 0.90), (1, 1024, None)):
            found = results.numbers(part, rf"batch +{batch} x +{tokens}: +([\d.]+) us +(\d+) GB/s")
            peer = results.peer("sdpa_decode", "gb_s", batch=batch, tokens=tokens)
            figure = Figure(f"paged attention alone, {batch} x {tokens // 1024}k{suffix}", part,
                            unit="GB/s", ceiling="copy", bar=bar if is_bound else None, torch=peer)
            if found:
                figure.value, figure.more = found[1], f"{found[0]} us"
                figure.share = share(found[1], copy)
            yield figure
        for tokens, bar in ((8192, 0.60), (2048, None)):
            found = results.numbers(part, rf"^ +{tokens} rows: +[\d.]+ us +([\d.]+) TFLOP/s")
            figure = Figure(f"prefill attention, {tokens // 1024}k{suffix}", part, unit="TFLOP/s",
                            ceiling="matmul", bar=bar if is_bound else None,
                            torch=results.peer("sdpa_prefill", "tflop_s", tokens=tokens))
            if found:
                figure.value, figure.share = found[0], share(found[0], matmul)
            yield figure


def gap_figure(results, part, name, key, bar, more):
    us = results.json(part).get(key)
    return Figure(name, part, unit="us", value=us, bar=bar, more=more if us is not None else "")


def gaps(results):
    """Of the whole server; and of `weft bench model`'s own loop over the executor: no scheduler, no text."""
    for mode, said in MODES.items():
        bar = None if mode else 20
        yield gap_figure(results, f"serve-gap-bf16-64{mode}",
                         f"gap between decode steps, 64 streams of a server{said}", "gap_us", bar, "")
        yield gap_figure(results, f"step-bf16-64{mode}", f"gap between decode steps, batch 64{said}",
                         "step_gap_us", bar, "executor alone")


def cold_starts(results):
    for model, name, bar in (("8b", "8B from the page cache", 5), ("smollm2", "SmolLM2", 1)):
        for mode, said in MODES.items():
            part = f"cold-{model}{mode}"
            seconds = results.parts[part]["seconds"] if results.is_ok(part) else None
            yield Figure(f"from start to the first token, {name}{said}", part, value=seconds, unit="s",
                         bar=None if mode else bar)


def transfers(results):
    for backend in ("shm", "ucx"):
        for op in ("read", "write"):
            part = f"fabric-{backend}-{op}"
            sizes = {row["block_bytes"]: row for row in results.json(part).get("results", [])}
            for block, said in ((2 << 20, "2 MiB"), (64 << 10, "64 KiB")):
                row = sizes.get(block, {})
                floor = row.get("copy") or row.get("memcpy") or {}
                is_bound = backend == "shm" and block == 2 << 20
                yield Figure(f"512 MiB of KV between two processes, {backend}, {op}, blocks of {said}",
                             part, value=row.get("weft", {}).get("gb_s"), unit="GB/s",
                             share=floor.get("ratio"), ceiling="plain copy",
                             bar=0.80 if is_bound else None)


def collectives(results):
    for ranks in (2, 4):
        for backend in ("cuda", "nccl", "nccl-no-deterministic"):
            name, _, mode = backend.partition("-")
            part = f"coll-{name}-{ranks}{'-' + mode if mode else ''}"
            rows = {row["bytes"]: row for row in results.json(part).get("rows", [])}
            us = rows.get(1 << 20, {}).get("out_of_place", {}).get("time_us")
            said = ", --no-deterministic" if mode else ""
            yield Figure(f"all-reduce of 1 MiB f32, {ranks} ranks on one GPU, {name}{said}", part, value=us,
                         unit="us")


def products(results):
    """The four matrices of a layer; of bf16 beside cuBLAS in the same program, and PyTorch."""
    copy, matmul = ceilings(results)
    for dtype in ("bf16", "f8_32", "q8_0", "i4_32", "q4_0"):
        part = f"linear-{dtype}"
        for rows in (1, 16, 64, 512, 2048):
            found = results.numbers(part, rf"^all four +{rows} +([\d.]+) +(\d+) +[\d.]+% +(\d+) "
                                          r".*cuBLAS ([\d.]+)$")
            is_wide = rows >= 512
            figure = Figure(f"products of a layer, {dtype}, {rows} rows", part, unit="us",
                            ceiling="matmul" if is_wide else "copy",
                            torch=results.peer("layer", "us", rows=rows) if dtype == "bf16" else None)
            if found:
                us, gb_s, tflop_s, blas = found
                figure.value = us
                figure.more = f"{tflop_s:.0f} TFLOP/s" if is_wide else f"{gb_s / 1e3:.2f} TB/s"
                figure.more += f", cuBLAS {number(blas)} us" if blas else ""
                figure.share = share(tflop_s, matmul) if is_wide else share(gb_s, copy)
            yield figure


KINDS = [steps, prefills, attention, gaps, cold_starts, transfers, collectives, products]


# ---- the table ----------------------------------------------------------------------------------

def number(value):
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def line(results, figure):
    met = {None: "", True: "met", False: "MISSED"}[figure.is_met()]
    value = f"{number(figure.value)} {figure.unit}" if figure.value is not None else ""
    value = ", ".join(filter(None, [value, figure.more])) or results.why_not(figure.part)
    bar = ""
    if figure.bar is not None:
        bar = f"{figure.bar:.0%}" if figure.ceiling else f"{figure.bar:g} {figure.unit}"
    own = "" if figure.share is None else f"{figure.share:.0%} of {figure.ceiling}"
    peer = "" if figure.torch is None else f"{number(figure.torch)} {figure.unit}"
    ratio = "" if figure.ratio() is None else f"{figure.ratio():.2f}"
    return [figure.name, value, own, bar, met, peer, ratio]


def others(results):
    """Tests, sanitizers and whatever else has no figure."""
    kinds = re.compile("test_|memcheck|racecheck|compute-sanitizer|smollm2|ranks|split|kernels")
    rows = [row for row in results.parts.values() if kinds.match(row["part"])]
    return [f"{row['part']}: {row['status']}" for row in rows]


def table(results):
    copy, matmul = ceilings(results)
    head = ["", "weft", "share of the ceiling", "bar", "", "PyTorch", "ratio"]
    figures = [figure for kind in KINDS for figure in kind(results)]
    rows = [head] + [line(results, figure) for figure in figures]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [results.text("card.txt").strip(),
             f"ceilings: copy {number(copy) or 'not measured'} GB/s, "
             f"matmul {number(matmul) or 'not measured'} TFLOP/s", ""]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    late = [row["part"] for row in results.parts.values() if row["status"] == "no-time"]
    lines += [""] + others(results)
    if late:
        lines += ["", "no time was left for: " + ", ".join(late)]
    return figures, "\n".join(lines) + "\n"


def as_json(results, figures):
    copy, matmul = ceilings(results)
    rows = [{"figure": f.name, "part": f.part, "value": f.value, "unit": f.unit, "share": f.share,
             "ceiling": f.ceiling or None, "bar": f.bar, "met": f.is_met(), "pytorch": f.torch,
             "ratio": f.ratio()} for f in figures]
    return json.dumps({"copy_gb_s": copy, "matmul_tflop_s": matmul, "figures": rows}, indent=1) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results")
    results = Results(parser.parse_args().results)
    figures, text = table(results)
    (results.folder / "summary.txt").write_text(text)
    (results.folder / "summary.json").write_text(as_json(results, figures))
    print(text, end="")


if __name__ == "__main__":
    sys.exit(main())
