/* SPDX-License-Identifier: Apache-2.0 */
/*
 * graph: the steps that model graphs are written in. Each enqueues one or a few ops on the arrays
 * of model->act; a family's file says which steps, in which order.
 */
#pragma once

#include "runtime/model_priv.h"

/* One forward pass, as the steps see it. */
typedef struct graph {
    model_t *model;
    k_stream_t *stream;
    const model_batch_t *batch;
} graph_t;

/* hidden = embedding of the batch's ids */
void graph_embed(const graph_t *graph);

/* normed = rms_norm(hidden) · w */
void graph_norm(const graph_t *graph, const float *w);

/* qkv = projections of normed */
void graph_project_qkv(const graph_t *graph, const model_layer_t *layer);

/* q and k of qkv, each head normed alone */
void graph_norm_qk(const graph_t *graph, const model_layer_t *layer);

/* q and k rotated, k and v written to the cache of layer `index`, attended = attention over it */
void graph_attend(const graph_t *graph, uint32_t index, uint32_t window);

/* hidden += output projection of attended */
void graph_add_attention(const graph_t *graph, const model_layer_t *layer);

/* hidden += down(silu(gate(normed)) · up(normed)) */
void graph_add_swiglu(const graph_t *graph, const model_layer_t *layer);

/* Where a linear's outputs go. */
typedef struct graph_out {
    void *y;
    k_dtype_t dtype;
    size_t stride;
    k_out_t how;
} graph_out_t;

/* out->y [rows, linear.rows] = linear(x), activations */
void graph_linear(k_stream_t *stream, const model_linear_t *linear, const void *x, size_t x_stride,
                  const graph_out_t *out, uint32_t rows);
