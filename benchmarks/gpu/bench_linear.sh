#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds bench_linear from the tree's root and, with "run", runs all of it.
#   NVCC=… CUDA_INCLUDE=… CUDA_LIB=… benchmarks/gpu/bench_linear.sh [run]    all from the PATH by default
# CUBLAS: a libcublas.so.13 to compare with; else it is looked for.
set -e
cd "$(dirname "$0")/../.."
build=${WEFT_BENCH_BUILD:-build/bench_gpu}
nvcc=${NVCC:-nvcc}
mkdir -p "$build"
flags="-std=c++20 -O3 --expt-relaxed-constexpr -I. --Werror all-warnings -Xcompiler -Wall,-Wextra -Xptxas --warn-on-spills"
arch=${WEFT_BENCH_ARCH:--gencode arch=compute_90a,code=sm_90a}
objects=
for source in kernels/cuda/linear/linear_wgmma.cu kernels/cuda/linear/linear_mma.cu kernels/cuda/linear/linear_scaled.cu \
    kernels/cuda/linear/weight_pack.cu \
    kernels/cuda/simt/simt_tensor_map.cu kernels/cuda/linear/cuda_linear.c kernels/dtypes.c \
    kernels/dequantize.c kernels/dequantize_iq.c kernels/iq_grids.c benchmarks/gpu/bench_linear.cu; do
    [ -e "$source" ] || continue
    object=$build/$(basename "$source").o
    objects="$objects $object"
    case $source in
    *.c) ${CC:-cc} -std=c17 -O3 -ffp-contract=off -Wall -Wextra -I. ${CUDA_INCLUDE:+-I$CUDA_INCLUDE} -c "$source" -o "$object" & ;;
    *) $nvcc $flags $arch -c "$source" -o "$object" & ;;
    esac
    [ -z "$SERIAL" ] || wait
done
wait
$nvcc $arch -cudart static $objects ${CUDA_LIB:+-L$CUDA_LIB} -o "$build/bench_linear" -ldl
[ "$1" = run ] || exit 0
if [ -z "$CUBLAS" ]; then
    CUBLAS=$(find / -name 'libcublas.so.13' -not -path '/proc/*' 2>/dev/null | head -1)
    export CUBLAS
fi
status=0
for arguments in families "check mma" "check wgmma" "time auto" "time mma q4_0" "time mma f8_32"; do
    echo "== $arguments"
    timeout 60 "$build/bench_linear" $arguments || { echo "== status $?"; status=1; }
done
exit $status
