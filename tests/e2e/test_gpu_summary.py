# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu_all.sh and the table it ends with, where there is no GPU: what programs print is made up, in
the form in which they print it."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS / "gpu"))
import serve_gap  # noqa: E402
BINARY = os.environ.get("WEFT_TEST_BINARY")

TORCH = """{"part": "copy", "gb_s": 4000.0}
{"part": "matmul", "n": 4096, "tflop_s": 700.0}
{"part": "matmul", "n": 8192, "tflop_s": 800.0}
{"part": "sdpa_prefill", "tokens": 8192, "tflop_s": 600.0}
{"part": "sdpa_decode", "batch": 64, "tokens": 8192, "gb_s": 4100.0}
{"part": "layer", "rows": 1, "us": 117.0}
{"part": "decode", "batch": 1, "tokens": 1024, "us": 5000.0, "gb_s": 3000.0}
"""

ATTENTION = """NVIDIA H200, 132 multiprocessors, sm_90, L2 50 MiB
copy: 4100 GB/s read and written, device to device
decode (8B shape, bf16, blocks of 16, ceiling 4100 GB/s)
  batch  1 x  1024:     10.9 us    385 GB/s   9.4%
  batch 64 x  8192:   1073.7 us   3800 GB/s  92.7%
prefill (8B shape, bf16, causal, blocks of 16)
   2048 rows:    104.0 us  330.0 TFLOP/s
   8192 rows:   1126.0 us  440.0 TFLOP/s
"""

LINEAR = """ceilings: copy 3950 GB/s, read 4300 GB/s, cuBLAS 8192^3 bf16 780 TFLOP/s
all four     1     106.00    4100 103.8%       4 (0.5% of cuBLAS' peak)  cuBLAS 119.00
all four  2048    1220.00     357   9.0%     720 (92.3% of cuBLAS' peak)  cuBLAS 1240.00
"""


def step(us, gb_s, batch, model="synth-llama-8b-bf16", **more):
    return json.dumps({"model": model, "batch": batch, "step_us": us, "step_gb_s": gb_s, **more})


def summarize(folder, outputs, statuses=None):
    """({figure: its row of summary.json}, summary.txt) of parts that printed so."""
    statuses = {**dict.fromkeys(outputs, "ok"), **(statuses or {})}
    parts = [json.dumps({"part": part, "status": status, "seconds": 2.5})
             for part, status in statuses.items()]
    (folder / "parts.jsonl").write_text("\n".join(parts) + "\n")
    for part, text in outputs.items():
        (folder / (part + ".out")).write_text(text)
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu" / "summary.py", folder],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text = (folder / "summary.txt").read_text()
    assert done.stdout == text
    summary = json.loads((folder / "summary.json").read_text())
    return {row["figure"]: row for row in summary["figures"]}, text


def line_of(text, figure):
    return next(line for line in text.splitlines() if line.startswith(figure + "  "))


def test_steps_are_held_against_the_card_and_torch(tmp_path):
    prefill = {"tokens": 2048, "tok_s": {"median": 40000.0, "min": 1.0, "max": 1.0}}
    rows, text = summarize(tmp_path, {
        "torch": TORCH, "step-bf16-1": step(4000.0, 3600.0, 1, prefill=prefill),
        "step-bf16-64": step(7000.0, 3100.0, 64, step_busy_us=6980.0, step_gap_us=21.0)})
    one = rows["decode step, bf16, 1k context, batch 1"]
    assert one["share"] == pytest.approx(0.9) and one["met"] is True
    assert one["ratio"] == pytest.approx(5.0 / 4.0)
    assert rows["decode step, bf16, 1k context, batch 64"]["met"] is False
    assert rows["gap between decode steps, batch 64"]["met"] is False
    # 2 FLOP for each of the 6.98e9 weights of Llama 3 8B's layers, a token
    wide = rows["prefill of 2048 tokens, bf16"]
    assert wide["value"] == pytest.approx(40000 * 2 * 6.979e9 / 1e12, rel=1e-3)
    assert wide["share"] == pytest.approx(wide["value"] / 800) and wide["met"] is False
    assert "90% of copy" in line_of(text, "decode step, bf16, 1k context, batch 1")
    assert "MISSED" in line_of(text, "decode step, bf16, 1k context, batch 64")


def test_the_gap_of_a_server_has_a_bar_of_its_own(tmp_path):
    rows, text = summarize(tmp_path, {
        "serve-gap-bf16-64": json.dumps({"streams": 64, "steps": 280, "gap_us": 18.25, "busy_us": 7000.0}),
        "serve-gap-bf16-64-no-deterministic": json.dumps({"streams": 64, "steps": 280, "gap_us": 31.0})},
        {"step-bf16-64": "no-time"})
    server = "gap between decode steps, 64 streams of a server"
    assert (rows[server]["value"], rows[server]["bar"], rows[server]["met"]) == (18.25, 20, True)
    assert rows[server + ", --no-deterministic"]["met"] is None
    assert "18.25 us" in line_of(text, server) and "met" in line_of(text, server)
    assert "no-time" in line_of(text, "gap between decode steps, batch 64")


def reading(running, prompt_steps, steps, gap=0.0, busy=0.0):
    return {"running": running, "prompt_steps": prompt_steps, "steps": steps, "gap": gap, "busy": busy}


def test_a_servers_gap_is_of_steps_in_which_all_streams_decode():
    ramp = [reading(1, 0, 5), reading(64, 30, 40), reading(64, 37, 50)]
    steady = [reading(64, 37, 60 + 10 * i) for i in range(4)]
    tail = [reading(63, 37, 100), reading(64, 38, 120)]
    assert serve_gap.longest_stretch(ramp + steady + tail, 64) == (ramp[-1], steady[-1])
    assert serve_gap.longest_stretch(ramp[:2] + tail, 64) is None
    assert serve_gap.longest_stretch([], 64) is None


@pytest.mark.skipif(BINARY is None, reason="WEFT_TEST_BINARY is not set")
def test_a_server_without_a_clock_has_no_gap_to_measure(tmp_path):
    model = tmp_path / "tiny.gguf"
    subprocess.run([BINARY, "model", "synth", "--shape", "tiny", model], check=True, timeout=60,
                   capture_output=True)
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu" / "serve_gap.py", "--weft", BINARY,
                           "--streams", "2", "--input-len", "40", "--output-len", "8", model,
                           "--device", "cpu"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 77, done.stderr
    assert "the device has no clock" in done.stderr


def test_the_other_mode_and_other_shapes_have_no_bar(tmp_path):
    rows, _ = summarize(tmp_path, {
        "torch": TORCH, "step-bf16-1-no-deterministic": step(9000.0, 900.0, 1),
        "step-q4_0-64": step(900.0, 100.0, 64, model="synth-llama-wide-q4_0")})
    assert rows["decode step, bf16, 1k context, batch 1, --no-deterministic"]["met"] is None
    assert rows["decode step, q4_0, batch 64 (synth-llama-wide-q4_0)"]["bar"] is None


def test_attention_and_products_are_read_from_their_lines(tmp_path):
    rows, text = summarize(tmp_path, {"torch": TORCH, "attention-bf16": ATTENTION, "linear-bf16": LINEAR})
    decode = rows["paged attention alone, 64 x 8k"]
    assert (decode["value"], decode["share"], decode["met"]) == (3800.0, 0.95, True)
    assert decode["ratio"] == pytest.approx(3800 / 4100)
    assert rows["prefill attention, 8k"]["share"] == pytest.approx(0.55)
    assert rows["prefill attention, 8k"]["met"] is False
    assert rows["paged attention alone, 1 x 1k"]["value"] == 385.0
    assert rows["products of a layer, bf16, 1 rows"]["ratio"] == pytest.approx(117 / 106)
    assert "cuBLAS 119 us" in line_of(text, "products of a layer, bf16, 1 rows")
    assert rows["products of a layer, bf16, 2048 rows"]["share"] == pytest.approx(720 / 800)


def test_without_torch_the_benchmarks_own_ceilings_count(tmp_path):
    rows, text = summarize(tmp_path, {"attention-bf16": ATTENTION, "linear-bf16": LINEAR},
                           {"torch": "failed-1"})
    assert rows["paged attention alone, 64 x 8k"]["share"] == pytest.approx(3800 / 4100)
    assert rows["prefill attention, 8k"]["share"] == pytest.approx(440 / 780)
    assert rows["paged attention alone, 64 x 8k"]["pytorch"] is None
    assert "copy 4100 GB/s, matmul 780 TFLOP/s" in text


def test_what_is_missing_says_why(tmp_path):
    rows, text = summarize(tmp_path, {"torch": TORCH, "fabric-shm-read": '{"results": [{"block_'},
                           {"fabric-shm-read": "timed-out", "step-awq-1": "no-time",
                            "test_cuda_kv_gpu": "failed-1", "cold-smollm2": "ok"})
    assert "no-time" in line_of(text, "decode step, awq (i4_32), batch 1")
    assert "not run" in line_of(text, "decode step, q4_0, batch 1")
    assert rows["512 MiB of KV between two processes, shm, read, blocks of 2 MiB"]["met"] is None
    assert "no time was left for: step-awq-1" in text and "test_cuda_kv_gpu: failed-1" in text
    assert rows["from start to the first token, SmolLM2"]["met"] is False


@pytest.mark.skipif(BINARY is None, reason="WEFT_TEST_BINARY is not set")
def test_the_shipped_binary_prints_what_is_read(tmp_path):
    model = tmp_path / "wide.gguf"
    subprocess.run([BINARY, "model", "synth", "--shape", "wide", model], check=True, timeout=60,
                   capture_output=True)

    def bench(*words):
        return subprocess.run([BINARY, "bench", *words, "--json"], check=True, timeout=120, text=True,
                              capture_output=True).stdout

    rows, _ = summarize(tmp_path, {
        "torch": TORCH,
        "step-q4_0-1": bench("model", "-m", model, "--device", "cpu", "-p", "16", "-n", "2", "-r", "1"),
        "coll-cuda-2": bench("coll", "-b", "1MiB", "-e", "1MiB", "--rounds", "1", "--seconds", "0.01"),
        "fabric-shm-read": bench("fabric", "--backend", "shm", "--floors", "memcpy", "--start-block-size",
                                 "2MiB", "--start-total", "4MiB", "--max-total", "4MiB", "--rounds", "1",
                                 "--seconds", "0.01")})
    assert rows["decode step, q4_0, batch 1 (synth-llama-wide-auto)"]["value"] > 0
    assert rows["all-reduce of 1 MiB f32, 2 ranks on one GPU, cuda"]["value"] > 0
    assert rows["512 MiB of KV between two processes, shm, read, blocks of 2 MiB"]["share"] > 0


def test_parts_for_which_there_is_no_time_are_named_and_not_begun(tmp_path):
    weft = tmp_path / "weft"
    weft.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\n")
    weft.chmod(0o755)
    done = subprocess.run([BENCHMARKS / "gpu_all.sh", tmp_path / "out"], timeout=120, text=True,
                          capture_output=True,
                          env={**os.environ, "TMPDIR": str(tmp_path), "WEFT_GPU_BIN": str(tmp_path),
                               "WEFT_GPU_SECONDS": "0", "WEFT_GPU_PARTS": "model fabric"})
    assert done.returncode == 0 and not (tmp_path / "begun").exists()
    assert "no time was left for: synth-bf16, " in done.stdout
    assert "s of 0, " in done.stdout.splitlines()[-1]


def test_a_part_that_fails_is_told_and_the_rest_goes_on(tmp_path):
    weft = tmp_path / "weft"
    weft.write_text("#!/bin/sh\n[ \"$2\" = synth ] || { echo no device >&2; exit 3; }\n")
    weft.chmod(0o755)
    done = subprocess.run([BENCHMARKS / "gpu_all.sh", tmp_path / "out"], timeout=120, text=True,
                          capture_output=True,
                          env={**os.environ, "TMPDIR": str(tmp_path), "WEFT_GPU_BIN": str(tmp_path),
                               "WEFT_GPU_PARTS": "model"})
    parts = [json.loads(line) for line in (tmp_path / "out" / "parts.jsonl").read_text().splitlines()]
    statuses = {row["part"]: row["status"] for row in parts}
    assert statuses["synth-bf16"] == "ok" and statuses["step-bf16-1"] == "failed-3"
    assert statuses["step-q8_0-64-no-deterministic"] == "failed-3"
    assert "    no device" in done.stdout
    assert "failed-3" in line_of(done.stdout, "decode step, q8_0, batch 64")
