/* SPDX-License-Identifier: Apache-2.0 */
/* bench_peaks: what one core can multiply at most, measured. */
#pragma once

#include <stdint.h>

typedef struct bench_peaks {
    const char *isa;
    /* Runs n rounds; returns how many operations (a product and a sum are two) they were. */
    double (*multiply_f32)(uint64_t n);
    double (*multiply_i8)(uint64_t n);
    double (*multiply_bf16)(uint64_t n); /* NULL: bf16 is multiplied as f32 */
} bench_peaks_t;

extern const bench_peaks_t bench_peaks_avx2;
extern const bench_peaks_t bench_peaks_avx512;
extern const bench_peaks_t bench_peaks_avx512_bf16;
