#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Collects in build/gpu what a GPU machine without our libraries needs to run benchmarks/gpu_all.sh:
# weft, the native tests and benchmarks of the preset "cuda", stripped, and the shared libraries they load.
# usage: benchmarks/gpu/bundle.sh [BUILD] [OUT]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build/cuda}
out=${2:-$root/build/gpu}

rm -rf "$out/bin" "$out/lib"
mkdir -p "$out/bin" "$out/lib"
strip -o "$out/bin/weft" "$build/weft"
for program in "$build"/tests/cuda_emu/test_*_gpu "$build"/benchmarks/bench_cuda_*; do
    if [ -x "$program" ]; then
        strip -o "$out/bin/$(basename "$program")" "$program"
    fi
done
# All but the C library's own, which must be the machine's.
ldd "$out"/bin/* | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -vE '/(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|util))\.so' |
    while read -r library; do
        strip -o "$out/lib/$(basename "$library")" "$library"
    done
du -sh "$out/bin" "$out/lib"
