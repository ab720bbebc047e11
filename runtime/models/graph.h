/* SPDX-License-Identifier: Apache-2.0 */
/*
 * graph: the steps that model graphs are written in. Each enqueues one or a few ops on the arrays
 * of model->act; a family's file says which steps, in which order. That a model may be cut over
 * ranks is known to the steps alone: what one adds to hidden is the sum of all ranks' parts.
 */
#pragma once

#include "runtime/model_priv.h"

/* What is put off until a step reads it. */
typedef struct graph_debts {
    bool sum; /* hidden is this rank's part as yet: the next step that reads it adds all up */
    const float
        *norm; /* normed is to be made of hidden with it, by the linear that reads it first */
} graph_debts_t;

/* One forward pass, as the steps see it. */
typedef struct graph {
    model_t *model;
    k_stream_t *stream;
    const model_batch_t *batch;
    graph_debts_t *debts;
} graph_t;

/* hidden = what this stage's layers begin with: embeddings, or what the stage before has come to */
void graph_begin(const graph_t *graph);
/* hidden is what they came to: the next stage's */
void graph_end(const graph_t *graph);

/* normed = rms_norm(hidden) · w, with or before the first linear that reads it */
void graph_norm(const graph_t *graph, const float *w);

/* normed = hidden */
void graph_take_hidden(const graph_t *graph);

/* qkv = projections of normed */
void graph_project_qkv(const graph_t *graph, const model_layer_t *layer);

/* q and k of qkv normed as config.qk_norm says */
void graph_norm_qk(const graph_t *graph, const model_layer_t *layer);

/*
 * q and k rotated, k and v written to the cache of layer `index`, attended = attention over it, with
 * the layer's window and rotation
 */
void graph_attend(const graph_t *graph, uint32_t index);

/* Latent attention: what queries and cache are made of, from normed; then attended, as above. */
void graph_project_mla(const graph_t *graph, const model_layer_t *layer);
void graph_attend_mla(const graph_t *graph, uint32_t index);

/* hidden += output projection of attended, normed and scaled where the model does that */
void graph_add_attention(const graph_t *graph, const model_layer_t *layer);

/* hidden += the layer's feed-forward of normed: its experts, or its one gated unit */
void graph_add_ffn(const graph_t *graph, uint32_t index);

/* The ops that a model takes: bits 1 << K_OP_*. */
uint64_t graph_ops_of(const model_t *model);

/* Whether q and k are normed by sums over ranks. */
bool graph_adds_square_sums(const model_t *model);

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
