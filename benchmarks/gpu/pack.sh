#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One archive of build/gpu (bundle.sh), the scripts and the vectors of the native tests, for a machine
# that gets nothing else: unpack it at the place of this checkout, or anywhere and link that place to it.
# usage: benchmarks/gpu/pack.sh ARCHIVE.tar.xz
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
tar -C "$root" -cf - build/gpu benchmarks/gpu_all.sh benchmarks/gpu tests/vectors/tiny-models \
    tests/vectors/smollm2 | xz --lzma2=preset=3,dict=192MiB >"$1"
ls -l "$1"
