/* SPDX-License-Identifier: Apache-2.0 */
/* Rows alone: embeddings, norms, products, gates, sums. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/k_weight.h"

/*
 * y[i] = table row ids[i] - first_id, as f32; zeros where the table has no such row, so that the sum
 * over a vocabulary's slices is the whole table's row.   ids [rows]; table [., dim]; y [rows, dim]
 */
typedef struct k_embed_args {
    const k_weight_t *table; /* packed by weight_pack, as for linear: tied weights are kept once */
    const int32_t *ids;
    uint32_t first_id; /* of the table's first row */
    float *y;
    uint32_t rows;
    size_t y_stride;
    float scale; /* 1 unless the model scales its embeddings */
} k_embed_args_t;

/*
 * sums[r] = Σ x[r]², of rows whose other parts lie elsewhere.   x [rows, dim] activations; dim may
 * be 0
 */
typedef struct k_square_sums_args {
    const void *x;
    float *sums;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride;
    size_t sums_stride;
} k_square_sums_args_t;

/*
 * y = x / sqrt(mean(x²) + eps) · w.   Zhang & Sennrich 2019, eq. 4.
 * x, y [rows, groups, dim]: each group is normed alone (groups = heads for Qwen3's q and k norms,
 * else 1), group g at g·dim of its row; y may be x where their types agree. w [dim] f32.
 */
typedef struct k_rms_norm_args {
    const void *x;
    k_dtype_t x_dtype; /* K_F32 (the residual stream), or k_ops.act */
    const float *w;
    void *y; /* activations */
    uint32_t rows;
    uint32_t groups;
    uint32_t dim;
    size_t x_stride;
    size_t y_stride;
    float eps;
    /* Of one group, where x is a part of what is normed: Σ x² of all of it, and its elements. */
    const float *sums; /* [rows]; NULL: x is all */
    size_t sums_stride;
    uint32_t sums_dim;
} k_rms_norm_args_t;

/* What a linear does with x Wᵀ + bias. */
typedef enum k_out {
    K_OUT_STORE,  /* y = it */
    K_OUT_ADD,    /* y += it: y is the residual stream, f32 */
    K_OUT_SWIGLU, /* y [rows, W.rows / 2] = silu(gate) · up; W is of form K_WEIGHT_GATE_UP */
} k_out_t;

/* x [rows, W.columns] activations; y [rows, W.rows]; bias [W.rows] f32 or NULL, in source order */
typedef struct k_linear_args {
    const k_weight_t *w;
    const float *bias;
    const void *x;
    /* NULL, or what makes x, its y: done row by row as x is read. Only where k_ops.norms_in_linear. */
    const k_rms_norm_args_t *norm;
    void *y;
    k_dtype_t y_dtype; /* k_ops.act, or K_F32 (logits, the residual stream) */
    k_out_t out;
    uint32_t rows;
    size_t x_stride;
    size_t y_stride;
} k_linear_args_t;

/*
 * y[r, h] = W_h x[r, h], a matrix a head, as a linear of out K_OUT_STORE does.
 * x [rows, .], head h's columns from h · x_dim on; y [rows, .] by y_dim
 */
typedef struct k_head_linear_args {
    const k_weight_t *heads; /* [n_heads], host memory; all of one shape */
    const void *x;
    void *y;
    uint32_t n_heads;
    uint32_t x_dim;
    uint32_t y_dim; /* elements from one head of y to the next: W.rows or more */
    uint32_t rows;
    size_t x_stride;
    size_t y_stride;
} k_head_linear_args_t;

/* y = silu(gate) · up, silu(x) = x / (1 + exp(−x)).   all [rows, dim] activations; y may be gate */
typedef struct k_silu_mul_args {
    const void *gate;
    const void *up;
    void *y;
    uint32_t rows;
    uint32_t dim;
    size_t gate_stride;
    size_t up_stride;
    size_t y_stride;
} k_silu_mul_args_t;

/*
 * y = gelu(gate) · up, gelu(x) = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).   As silu_mul.
 * Hendrycks & Gimpel 2016.
 */
typedef k_silu_mul_args_t k_gelu_mul_args_t;

/*
 * y = (u + 1) · g / (1 + exp(−1.702 g)), g = min(gate, limit), u = up within ±limit.   As silu_mul.
 * GPT-OSS, OpenAI 2025.
 */
typedef struct k_clamped_mul_args {
    const void *gate;
    const void *up;
    void *y;
    uint32_t rows;
    uint32_t dim;
    size_t gate_stride;
    size_t up_stride;
    size_t y_stride;
    float limit;
} k_clamped_mul_args_t;

/* x = cap · tanh(x / cap).   x [rows, dim] f32: logits */
typedef struct k_softcap_args {
    float *x;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride;
    float cap;
} k_softcap_args_t;

/* y += scale · x.   x [rows, dim] activations; y [rows, dim] the residual stream */
typedef struct k_add_args {
    const void *x;
    float *y;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride;
    size_t y_stride;
    float scale; /* 1 unless the model scales its branches */
} k_add_args_t;

/* y = x, for graphs that use the residual stream as it is.   x [rows, dim] f32; y activations */
typedef struct k_narrow_args {
    const float *x;
    void *y;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride;
    size_t y_stride;
} k_narrow_args_t;

/* y[i] = x[index[i]].   x [., dim]; y [rows, dim] */
typedef struct k_gather_rows_args {
    const float *x;
    const uint32_t *index;
    float *y;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride;
    size_t y_stride;
} k_gather_rows_args_t;
