/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/simd_avx512.h"

#include "cli/bench/bench_peaks.inc"
