/* SPDX-License-Identifier: Apache-2.0 */
#define ISA_NAME avx512_bf16
#include "kernels/cpu/simd_avx512.h"

#include "cli/bench/bench_peaks.inc"
