/* SPDX-License-Identifier: Apache-2.0 */
/* bench_kernels_cases: the ops that `weft bench kernels` runs, on shapes of models. */
#pragma once

#include "kernels/kernels.h"

typedef struct bench_shape {
    const char *name; /* "1b" */
    uint32_t hidden;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t intermediate;
    uint32_t vocab;
} bench_shape_t;

/* The shape of a name, NULL when there is none. */
const bench_shape_t *bench_shape_of(const char *name);

/* One op on one shape. What it reads and computes at least, by which it is judged. */
typedef struct bench_case {
    const char *op;     /* "linear" */
    const char *detail; /* "qkv" */
    const bench_shape_t *shape;
    k_dtype_t dtype; /* of weights or cache */
    uint32_t rows;
    double bytes;
    double operations;
} bench_case_t;

/* What a case is done with: run does it once. */
typedef struct bench_visitor {
    void (*visit)(void *user, const bench_case_t *one, void (*run)(void *state), void *state);
    void *user;
} bench_visitor_t;

/*
 * Visit each matrix of a shape, norms, attention (1 row and `rows` rows of a context), sampling.
 * Types that the shape has no whole blocks of are passed over.
 */
weft_status_t bench_linear_cases(k_stream_t *stream, const bench_shape_t *shape, k_dtype_t dtype,
                                 uint32_t rows, const bench_visitor_t *visitor);
weft_status_t bench_norm_case(k_stream_t *stream, const bench_shape_t *shape, uint32_t rows,
                              const bench_visitor_t *visitor);
weft_status_t bench_attention_cases(k_stream_t *stream, const bench_shape_t *shape, uint32_t rows,
                                    const bench_visitor_t *visitor);
weft_status_t bench_sample_cases(k_stream_t *stream, const bench_shape_t *shape, uint32_t rows,
                                 const bench_visitor_t *visitor);
