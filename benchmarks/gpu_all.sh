#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that has to be shown on a GPU, in under ten minutes: checks first, then figures, each
# part with a limit of its own, the rest going on when one fails. Prints a short table last; logs
# and JSON are in the results folder.
#
# usage: benchmarks/gpu_all.sh [RESULTS]      needs build/cuda, or build/gpu of gpu/bundle.sh
#   WEFT_GPU_PARTS  words of: tests ranks fabric sanitizer torch kernels model cold (all)
#   WEFT_GPU_SHAPE  of the model that is measured (8b); WEFT_TEST_MODEL: SmolLM2, where it is
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/build/gpu-results}
shape=${WEFT_GPU_SHAPE:-8b}
parts=${WEFT_GPU_PARTS:-tests ranks fabric sanitizer torch kernels model cold}
work=$(mktemp -d "${TMPDIR:-/dev/shm}/weft-gpu.XXXXXX") # models: memory is faster than a disk
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

if [ -d "$root/build/gpu/bin" ]; then
    bin=$root/build/gpu/bin
    export LD_LIBRARY_PATH=$root/build/gpu/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
else
    bin=$root/build/cuda
fi
weft=$bin/weft

table=$out/table.txt
: >"$table"

wants() { [[ " $parts " == *" $1 "* ]]; }

# part SECONDS NAME COMMAND...: its output goes to NAME.log, its end to the table.
part() {
    local limit=$1 name=$2 began ms rc
    shift 2
    began=$(date +%s%N)
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
    rc=$?
    ms=$((($(date +%s%N) - began) / 1000000))
    printf '%-28s %-8s %4d.%d s\n' "$name" \
        "$([ $rc = 0 ] && echo ok || { [ $rc = 77 ] && echo skipped || echo "FAILED($rc)"; })" \
        $((ms / 1000)) $((ms % 1000 / 100)) | tee -a "$table"
    [ $rc = 0 ]
}

# told NAME: what a part printed, on the screen and in the table.
told() { tail -n "${2:-20}" "$out/$1.log" | sed 's/^/    /' | tee -a "$table"; }

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem \
    --format=csv,noheader 2>&1 | tee -a "$table"

if wants tests; then
    for test in "$bin"/test_*_gpu "$bin"/tests/cuda_emu/test_*_gpu; do
        [ -x "$test" ] && { part 60 "$(basename "$test")" "$test" || told "$(basename "$test")" 4; }
    done
fi

if wants ranks; then
    part 60 ranks python3 "$root/benchmarks/gpu/ranks.py" --weft "$weft" --log "$out/ranks-serve.log" \
        --kill && told ranks
fi

# 512 MiB between two processes beside the device's own copy, and two workers beside one.
if wants fabric; then
    for op in read write; do
        part 30 "fabric-$op" "$weft" bench fabric --backend shm --op "$op" --initiator-segment vram \
            --target-segment vram --floors copy --start-block-size 64KiB --max-block-size 2MiB \
            --block-step 32 --start-total 512MiB --max-total 512MiB && told "fabric-$op" 4
    done
    "$weft" model synth --shape 1b --dtype q8_0 "$work/1b.gguf" >/dev/null 2>&1
    for device in cuda cpu; do
        part 60 "split-$device" python3 "$root/benchmarks/gpu/kv_split.py" --weft "$weft" --out "$out" \
            --sentences 20 --prefill-device "$device" "$work/1b.gguf" && told "split-$device" 2
    done
    rm -f "$work/1b.gguf"
fi

if wants sanitizer && command -v compute-sanitizer >/dev/null; then
    "$weft" model synth --shape tiny --dtype bf16 "$work/tiny.gguf" >/dev/null 2>&1
    for tool in memcheck racecheck; do
        part 60 "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$weft" bench model -m "$work/tiny.gguf" --device cuda -p 100 -n 4 -r 1 ||
            told "$tool" 6
    done
elif wants sanitizer; then
    echo "compute-sanitizer            absent" | tee -a "$table"
fi

if wants torch; then
    part 90 torch python3 "$root/benchmarks/gpu/torch_peers.py" && told torch
fi

if wants kernels; then
    for bench in "$bin"/bench_cuda_* "$bin"/benchmarks/bench_cuda_*; do
        name=$(basename "$bench")
        if [ ! -x "$bench" ] || [ "$name" = bench_cuda_linear ]; then
            continue
        fi
        part 60 "$name" "$bench" && told "$name"
    done
    attention=$bin/bench_cuda_attention
    [ -x "$attention" ] || attention=$bin/benchmarks/bench_cuda_attention
    for type in fp8 int8; do
        part 40 "attention-$type" "$attention" --only=check,copy,decode,prefill --type="$type" &&
            told "attention-$type"
    done
    linear=$bin/bench_cuda_linear
    [ -x "$linear" ] || linear=$bin/benchmarks/bench_cuda_linear
    CUBLAS=${CUBLAS:-$(find / -name libcublas.so.13 -not -path '/proc/*' 2>/dev/null | head -1)}
    export CUBLAS
    for dtype in bf16 f8_32 q8_0 i4_32 q4_0; do
        part 30 "linear-$dtype" "$linear" time auto "$dtype" && told "linear-$dtype" 7
    done
fi

# model TYPE: makes a model of that type and measures it.
model() {
    local dtype=$1 file=$work/$1.gguf
    case $dtype in fp8*) file=$work/$1 ;; esac # E4M3 is a type of checkpoints: a folder
    part 120 "synth-$dtype" "$weft" model synth --shape "$shape" --dtype "$dtype" "$file" || return
    for deterministic in --deterministic --no-deterministic; do
        for batch in 1 64; do
            local name=decode-$dtype-$batch$deterministic
            part 60 "$name" "$weft" bench model -m "$file" --device cuda $deterministic \
                -p 0 -n 64 --n-context 1024 --n-batch "$batch" -r 3 && told "$name" 2
        done
    done
    part 60 "prefill-$dtype" "$weft" bench model -m "$file" --device cuda -p 2048 -n 0 -r 5 &&
        told "prefill-$dtype" 1
    if wants cold; then
        part 60 "cold-$dtype" bash -c \
            "time '$weft' run '$file' --device cuda --max-model-len 2048 --prompt 'Once upon' --max-tokens 1" &&
            told "cold-$dtype" 4
    fi
    rm -rf "$file"
}

if wants model; then
    for dtype in bf16 q8_0 q4_0 fp8_block; do
        model "$dtype"
    done
fi

if wants cold && [ -n "${WEFT_TEST_MODEL:-}" ]; then
    part 60 cold-smollm2 bash -c \
        "time '$weft' run '$WEFT_TEST_MODEL' --device cuda --prompt 'Once upon' --max-tokens 1" &&
        told cold-smollm2 4
fi

echo
echo "---- $(date -u +%F) ----"
cat "$table"
