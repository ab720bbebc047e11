/* SPDX-License-Identifier: Apache-2.0 */
/* graph_priv: what the files of the steps share. */
#pragma once

#include "runtime/model/families/graph.h"

/* graph_adapters.c: out->y of linear(x) += what the sequences' adapters add to it. */
void graph_add_adapters(const graph_t *graph, const model_linear_t *linear, const void *x,
                        size_t x_stride, const graph_out_t *out);

/* Where heads' activations lie: `dim` elements of each, `step` apart, of rows that are `stride` apart. */
typedef struct graph_head {
    void *at; /* of x: only read */
    size_t stride;
    uint32_t step;
    uint32_t dim;
} graph_head_t;

/* y of all heads += what adapters of layer `index` add to their keys or values, from x. */
void graph_add_head_adapters(const graph_t *graph, uint32_t index, const graph_head_t *x,
                             const graph_head_t *y, bool is_value);

/* Activations of slots, or of the rows that slots belong to. */
typedef struct graph_slots {
    void *at;
    size_t stride;
    uint32_t dim;
    bool are_rows;
} graph_slots_t;

/* y of the slots of this rank's experts += what adapters of layer `index` add to the target, from x. */
void graph_add_expert_adapters(const graph_t *graph, uint32_t index, adapter_target_t target,
                               const graph_slots_t *x, const graph_slots_t *y);

/* The array from element `at` on. */
static inline void *graph_element(void *array, k_dtype_t dtype, size_t at)
{
    return (char *)array + at * k_dtype_info(dtype)->block_bytes;
}

static inline void *graph_activation(const graph_t *graph, void *array, size_t at)
{
    return graph_element(array, graph->stream->ops->act, at);
}

/* out->y = linear(normed), which this makes first where graph_norm put that off. */
void graph_linear_of_normed(const graph_t *graph, const model_linear_t *linear,
                            const graph_out_t *out);

static inline bool graph_is_cut(const graph_t *graph)
{
    return model_shard_is_cut(&graph->model->shard);
}

/*
 * A layer's branch where the tensor ranks have a part of it each: the first rank adds its part to the
 * residual stream, the others' parts take the stream's place; graph_sum_parts of it makes the new
 * stream of all. So the residual costs nothing to add.
 */
static inline bool graph_replaces_hidden(const graph_t *graph)
{
    return !graph->model->cut.is_first;
}

/*
 * x [rows of the batch, hidden] = the sum of all tensor ranks' x; nothing where there is one rank. Of
 * hidden it is put off, as it may be one op with the norm that follows, until graph_settle.
 */
void graph_sum_parts(const graph_t *graph, float *x);
void graph_settle(const graph_t *graph);

/*
 * hidden += scale · norm(linear(x) of all ranks), at once where there is neither. normed is
 * overwritten. is_second: a part of this branch is in the stream already.
 */
void graph_add_branch(const graph_t *graph, const model_linear_t *linear, const void *x,
                      size_t x_stride, const float *post_norm, bool is_second);
