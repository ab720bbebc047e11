#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that has to be shown on a GPU, in under ten minutes: what matters most comes first, each
# part has a limit of its own, the rest goes on when one fails, and what the time does not suffice for
# is skipped by name. Prints last what benchmarks/gpu/summary.py makes of it, which is also in the
# results folder beside what each part printed.
#
# usage: benchmarks/gpu_all.sh [RESULTS]      needs build/cuda, or build/gpu of gpu/bundle.sh
#   WEFT_GPU_PARTS    words of: torch model cold fabric tests sanitizer kernels ranks (all)
#   WEFT_GPU_SECONDS  for all of it (580)
#   WEFT_GPU_SHAPE    of the models that are measured (8b)
#   WEFT_GPU_DEVICE   cpu: tries the script where there is no GPU (cuda)
#   WEFT_GPU_BIN      folder of weft, the tests and benchmarks, if it is another
#   WEFT_TEST_MODEL   SmolLM2 (what ./dev model has fetched)
#   WEFT_NCCL_LIBRARY, CUBLAS: libnccl.so.2, libcublas.so.13 (what is found)
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/build/gpu-results}
shape=${WEFT_GPU_SHAPE:-8b}
device=${WEFT_GPU_DEVICE:-cuda}
parts=${WEFT_GPU_PARTS:-torch model cold fabric tests sanitizer kernels ranks}
seconds=${WEFT_GPU_SECONDS:-580}
work=$(mktemp -d "${TMPDIR:-/dev/shm}/weft-gpu.XXXXXX") # models: memory is faster than a disk
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
rm -f "$out"/*.out "$out"/*.err # of an earlier run, which may have been on another card
: >"$out/parts.jsonl"
export -n WEFT_GPU_PARTS WEFT_GPU_SECONDS WEFT_GPU_SHAPE WEFT_GPU_DEVICE WEFT_GPU_BIN # no options of weft

bin=${WEFT_GPU_BIN:-$root/build/cuda}
if [ -z "${WEFT_GPU_BIN:-}" ] && [ -d "$root/build/gpu/bin" ]; then
    bin=$root/build/gpu/bin
    export LD_LIBRARY_PATH=$root/build/gpu/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
weft=$bin/weft

# ---- parts -----------------------------------------------------------------------------------

wants() { [[ " $parts " == *" $1 "* ]]; }

# note NAME STATUS MILLISECONDS: one line for people, one for summary.py.
note() {
    printf '%-34s %-10s %4d.%d s\n' "$1" "$2" $(($3 / 1000)) $(($3 % 1000 / 100))
    printf '{"part": "%s", "status": "%s", "seconds": %d.%03d}\n' "$1" "$2" $(($3 / 1000)) \
        $(($3 % 1000)) >>"$out/parts.jsonl"
}

# part SECONDS NAME COMMAND...: what it prints goes to NAME.out and NAME.err.
part() {
    local limit=$1 name=$2 left=$((seconds - SECONDS)) began ms rc status
    shift 2
    if [ "$left" -lt 3 ]; then
        note "$name" no-time 0
        return 1
    fi
    began=$(date +%s%N)
    timeout -k 5 $((limit < left ? limit : left)) "$@" >"$out/$name.out" 2>"$out/$name.err"
    rc=$?
    ms=$((($(date +%s%N) - began) / 1000000))
    case $rc in
    0) status=ok ;;
    77) status=skipped ;;
    124 | 137) status=timed-out ;;
    *) status="failed-$rc" ;;
    esac
    note "$name" "$status" "$ms"
    [ $rc = 0 ] || [ $rc = 77 ] || tail -qn 4 "$out/$name.out" "$out/$name.err" | sed 's/^/    /'
    [ $rc = 0 ]
}

# program NAME: where the build or the bundle has it; fails where neither does.
program() {
    local at
    for at in "$bin" "$bin/benchmarks" "$bin/tests/cuda_emu"; do
        [ ! -x "$at/$1" ] || { echo "$at/$1"; return 0; }
    done
    return 1
}

# library FILE: the first of that name where systems and Python's packages have libraries.
library() {
    timeout 10 find "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
        /usr/lib /usr/local /opt -name "$1" 2>/dev/null | head -1
}

# synth NAME ARCH SHAPE DTYPE FILE: a model of random weights.
synth() {
    part 60 "synth-$1" "$weft" model synth --arch "$2" --shape "$3" --dtype "$4" "$5"
}

# file_of DTYPE: types that checkpoints alone have are written as folders.
file_of() {
    case $1 in
    fp8* | awq | gptq) echo "$work/$1" ;;
    *) echo "$work/$1.gguf" ;;
    esac
}

# step NAME FILE ARGUMENT...: decode steps at 1000 to 1024 tokens a sequence, or what the arguments say.
step() {
    local name=$1 file=$2
    shift 2
    part 60 "step-$name" "$weft" bench model -m "$file" --device "$device" --json -p 0 -n 24 \
        --n-context 1000 -r 5 "$@"
}

# modes COMMAND NAME ARGUMENT...: in the default mode, then in the other one.
modes() {
    local command=$1 name=$2
    shift 2
    "$command" "$name" "$@"
    "$command" "$name-no-deterministic" "$@" --no-deterministic
}

# cold NAME FILE ARGUMENT...: from nothing to the first token; the file is in the page cache.
cold() {
    local name=$1 file=$2
    shift 2
    part 60 "cold-$name" "$weft" run "$file" --device "$device" --max-model-len 2048 \
        --prompt "Once upon" --max-tokens 1 "$@"
}

# serve_gap NAME FILE ARGUMENT...: what the device waits for between steps of a whole server with 64 streams.
serve_gap() {
    local name=$1 file=$2
    shift 2
    part 45 "serve-gap-$name" python3 "$root/benchmarks/gpu/serve_gap.py" --weft "$weft" "$file" \
        --device "$device" --max-model-len 8192 "$@"
}

# ---- what they measure -------------------------------------------------------------------------

# measure_model DTYPE: whole steps and prefills of a model of that type. Prefill goes with one sequence.
measure_model() {
    local dtype=$1 file
    file=$(file_of "$dtype")
    if synth "$dtype" llama "$shape" "$dtype" "$file"; then
        modes step "$dtype-1" "$file" --n-batch 1 -p 2048
        modes step "$dtype-64" "$file" --n-batch 64
        if [ "$dtype" = bf16 ]; then
            modes serve_gap "$dtype-64" "$file"
            step "$dtype-64-fp8-cache" "$file" --n-batch 64 --kv-cache-dtype fp8
            step "$dtype-64-two-segments" "$file" --n-batch 64 --n-context 1024
            if wants cold; then
                modes cold "$shape" "$file"
            fi
        fi
    fi
    rm -rf "$file"
}

measure_attention() {
    local bench type
    bench=$(program bench_cuda_attention) || return
    for type in bf16 fp8 int8; do
        part 40 "attention-$type" "$bench" --only=bits,check,copy,decode,prefill --type="$type"
    done
}

run_tests() {
    local test
    for test in "$bin"/test_*_gpu "$bin"/tests/cuda_emu/test_*_gpu; do
        [ ! -x "$test" ] || part 90 "$(basename "$test")" "$test"
    done
}

# 512 MiB between two processes beside the device's own copy, and two workers beside one.
measure_fabric() {
    local backend op half memory=vram floor=copy
    if [ "$device" = cpu ]; then
        memory=dram floor=memcpy
    fi
    for backend in shm ucx; do
        for op in read write; do
            part 40 "fabric-$backend-$op" "$weft" bench fabric --backend "$backend" --op "$op" --json \
                --initiator-segment $memory --target-segment $memory --floors $floor \
                --start-block-size 64KiB --max-block-size 2MiB --block-step 32 \
                --start-total 512MiB --max-total 512MiB
        done
    done
    if [ "$device" = cuda ] && synth 1b llama 1b q8_0 "$work/1b.gguf"; then
        for half in cuda cpu; do
            part 60 "split-$half" python3 "$root/benchmarks/gpu/kv_split.py" --weft "$weft" \
                --out "$out" --sentences 20 --prefill-device "$half" "$work/1b.gguf"
        done
        rm -f "$work/1b.gguf"
    fi
}

# check_races NAME COMMAND...: under both tools, while run_sanitizer's own time lasts.
check_races() {
    local name=$1 tool left
    shift
    for tool in memcheck racecheck; do
        left=$((check_until - SECONDS))
        if [ "$left" -lt 3 ]; then
            note "$tool-$name" no-time 0
        else
            part "$left" "$tool-$name" compute-sanitizer --tool "$tool" --error-exitcode 9 "$@"
        fi
    done
}

# check_model ARCH SHAPE DTYPE: a small model, more rows than the kernels for few take, then single ones.
check_model() {
    local name=$1-$2-$3 file
    file=$(file_of "$3")
    synth "$name" "$1" "$2" "$3" "$file" &&
        check_races "$name" "$weft" bench model -m "$file" --device "$device" -p 100 -n 2 -r 1
    rm -rf "$file"
}

# Heads of 128, four bits of both kinds, experts, latents, adapters.
run_sanitizer() {
    local test
    if ! command -v compute-sanitizer >/dev/null; then
        note compute-sanitizer absent 0
        return
    fi
    check_until=$((SECONDS + 90))
    check_model llama wide bf16
    check_model llama wide q4_0
    check_model llama wide awq
    check_model qwen3moe tiny q8_0
    check_model deepseek2 tiny bf16
    test=$(program test_cuda_lora_gpu) && check_races lora "$test"
}

measure_ranks() {
    local ranks=$root/benchmarks/gpu/ranks.py coll=(-b 64KiB -e 16MiB -f 16 --seconds 0.05 --rounds 3 --json) n
    WEFT_NCCL_LIBRARY=${WEFT_NCCL_LIBRARY:-$(library libnccl.so.2)}
    export WEFT_NCCL_LIBRARY NCCL_MULTI_RANK_GPU_ENABLE=1
    part 60 ranks python3 "$ranks" --weft "$weft" --device "$device" --log "$out/ranks-serve.log" --kill
    for n in 2 4; do
        part 40 "ranks-nccl-tp$n" python3 "$ranks" --weft "$weft" --device "$device" \
            --log "$out/ranks-nccl-tp$n-serve.log" --groups "tp$n" --coll-backend nccl
        part 30 "coll-cuda-$n" "$weft" bench coll --device "$device" --ranks "$n" --backend cuda "${coll[@]}"
        part 30 "coll-nccl-$n" "$weft" bench coll --device "$device" --ranks "$n" --backend nccl "${coll[@]}"
        part 30 "coll-nccl-$n-no-deterministic" "$weft" bench coll --device "$device" --ranks "$n" \
            --backend nccl --no-deterministic "${coll[@]}"
    done
}

measure_kernels() {
    local name bench dtype
    if bench=$(program bench_cuda_linear); then
        CUBLAS=${CUBLAS:-$(library libcublas.so.13)}
        export CUBLAS
        for dtype in bf16 q4_0 q8_0 i4_32 f8_32; do
            part 30 "linear-$dtype" "$bench" time auto "$dtype"
        done
        part 30 linear-chain "$bench" chain bf16 q8_0 q4_0 q4_k i4_32 f8_32 f8_8x32
    fi
    for name in experts ranks rows; do
        bench=$(program "bench_cuda_$name") && part 60 "kernels-$name" "$bench"
    done
}

# ---- the most important first -----------------------------------------------------------------

{
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem \
        --format=csv,noheader || echo "no nvidia-smi"
} >"$out/card.txt" 2>/dev/null
cat "$out/card.txt"

cached=${XDG_CACHE_HOME:-${HOME:-}/.cache}/weft/SmolLM2-135M-Instruct.Q4_1.gguf
WEFT_TEST_MODEL=${WEFT_TEST_MODEL:-$cached}
if [ -e "$WEFT_TEST_MODEL" ]; then
    export WEFT_TEST_MODEL
else
    unset WEFT_TEST_MODEL
    note smollm2 absent 0
fi

if wants torch; then
    part 120 torch python3 "$root/benchmarks/gpu/torch_peers.py"
fi
if wants model; then
    measure_model bf16
    measure_attention
fi
if wants cold && [ -n "${WEFT_TEST_MODEL:-}" ]; then
    modes cold smollm2 "$WEFT_TEST_MODEL"
fi
if wants model; then
    for dtype in fp8_block q4_0 awq q8_0; do
        measure_model "$dtype"
    done
fi
if wants fabric; then
    measure_fabric
fi
if wants tests; then
    run_tests
fi
if wants sanitizer; then
    run_sanitizer
fi
if wants kernels; then
    measure_kernels
fi
if wants ranks; then
    measure_ranks
fi

echo
python3 "$root/benchmarks/gpu/summary.py" "$out"
echo "in all $SECONDS s of $seconds, $(date -u +%F)" | tee -a "$out/summary.txt"
