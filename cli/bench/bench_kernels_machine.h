/* SPDX-License-Identifier: Apache-2.0 */
/* bench_kernels_machine: what this machine can do at most with a stream's threads, measured. */
#pragma once

#include "base/status.h"
#include "kernels/kernels.h"

/* A second's worth; the best of several tries. 0: not known for the instruction set. */
typedef struct bench_ceilings {
    double read_bytes; /* from memory, by all threads */
    double i8;         /* operations; a product and a sum are two */
    double bf16;       /* as f32 where the instruction set has nothing better */
    double f32;
} bench_ceilings_t;

weft_status_t bench_kernels_machine(k_stream_t *stream, weft_diag_t *diag,
                                    bench_ceilings_t *ceilings_out);

/* The ceiling of products with weights of a dtype. */
double bench_ceiling_of(const bench_ceilings_t *ceilings, k_dtype_t dtype);
