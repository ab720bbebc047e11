/* SPDX-License-Identifier: Apache-2.0 */
/* model_priv: what model.c, model_bind*.c and the graphs of models/ share. */
#pragma once

#include "kernels/kernels.h"
#include "runtime/executor/carve.h"
#include "runtime/model/model.h"
#include "runtime/model/model_config_priv.h"
#include "runtime/model/weight_cache.h"

#define MODEL_LINEAR_PARTS 3

/*
 * Several matrices of the file that read the same input, their outputs side by side. Neighbours of
 * one dtype are packed as one weight where the backend packs at all.
 */
typedef struct model_linear {
    k_weight_t parts[MODEL_LINEAR_PARTS];
    uint32_t n_parts;
    uint32_t rows;     /* outputs of all parts */
    const float *bias; /* [rows], device; NULL: none */
    /* What adapters may add to, one after another in the outputs. */
    uint32_t layer;
    adapter_target_t first_target;
    uint32_t n_targets;
} model_linear_t;

/* Vectors are f32 on the device; NULL where the model has none. */
typedef struct model_layer {
    const float *attn_norm;
    model_linear_t qkv; /* mla: q, or its latent, then what is cached */
    const float *q_norm;
    const float *k_norm;
    const float *sinks;
    model_linear_t attn_output;
    const float *attn_post_norm;
    const float *ffn_norm;
    model_linear_t gate_up;
    model_linear_t down;
    const float *ffn_post_norm;
    const float *mla_q_norm;
    const float *mla_kv_norm;
    model_linear_t mla_q;
    k_weight_t *mla_key;   /* [heads]: plain elements of q to latents */
    k_weight_t *mla_value; /* [heads]: latents to values */
    model_linear_t router;
    const float *score_bias;
    model_linear_t shared_gate_up;
    model_linear_t shared_down;
    k_weight_t *expert_gate_up;       /* [cut.experts.n] */
    k_weight_t *expert_down;          /* [cut.experts.n] */
    const float *expert_gate_up_bias; /* [cut.experts.n, 2 · intermediate] */
    const float *expert_down_bias;    /* [cut.experts.n, hidden] */
} model_layer_t;

/* What choosing experts and computing them needs; all device memory. slots = rows · used */
typedef struct model_expert_act {
    float *logits;         /* [max_rows, count] */
    float *weights;        /* [max_rows, used] */
    uint32_t *slot_of;     /* [max_rows, used] */
    uint32_t *row_of_slot; /* [slots] */
    uint32_t *offsets;     /* [count + 1] */
    void *rows;            /* [slots, hidden]: what goes into the experts, then what comes out */
    void *ffn;             /* [slots, 2 · intermediate] */
    size_t ffn_stride;
} model_expert_act_t;

/* Device arrays of one step, [max_rows] rows of the stride beside them, in elements. */
typedef struct model_activations {
    float *hidden; /* the residual stream */
    void *normed;  /* as the other void *: elements of the backend's k_ops.act */
    void *qkv;
    void *attended;
    void *ffn;           /* gate, then up; or their product */
    float *lora_low;     /* k_lora_low_floats of what is summed at once; NULL without adapters */
    float *branch;       /* what a layer will add, before its norm or scale; NULL without such */
    float *square_sums;  /* [max_rows, 2] of q and k that are normed over all ranks; else NULL */
    float *chosen;       /* [max_outputs] rows of hidden */
    void *chosen_normed; /* [max_outputs] */
    size_t hidden_stride;
    size_t qkv_stride;
    size_t attended_stride;
    size_t ffn_stride;
    void *mla_q;        /* [heads, plain + rotary] */
    void *mla_latent;   /* [heads, kv_latent + rotary]: q as the cache is asked */
    void *mla_attended; /* [heads, kv_latent] */
    size_t mla_q_stride;
    size_t mla_latent_stride;
    size_t mla_attended_stride;
    model_expert_act_t expert;
} model_activations_t;

struct graph; /* models/graph.h */

/*
 * A row of models.def: what a layer does to the hidden states, in runtime/model/families/<name>.c beside
 * model_family_config_<name>.
 */
typedef struct model_family {
    const char *name;
    void (*add_layer)(const struct graph *graph, uint32_t index);
} model_family_t;

struct model {
    const model_config_t *whole; /* the source's */
    model_shard_t shard;
    model_cut_t cut;
    model_config_t
        config; /* of this rank: fewer layers, heads, widths; all graphs compute with it */
    model_limits_t limits;
    const model_family_t *family;
    weft_device_t *device;
    weft_mem_t weights_memory;
    weft_mapped_file_t packed; /* matrices that lie in a file instead */
    weft_mem_t activations_memory;

    k_weight_t embedding;
    model_layer_t *layers;      /* [config.layers] */
    k_weight_t *expert_weights; /* what the layers' expert_* point into; NULL without experts */
    k_weight_t *head_weights;   /* the same of mla_key and mla_value */
    const float *output_norm;
    model_linear_t output;
    const float *inv_freq;       /* [rope.dim / 2] */
    const float *local_inv_freq; /* [local_rope.dim / 2]; NULL without */

    const adapter_table_t *adapters; /* NULL: none */
    model_activations_t act;
};

/* Elements of a row of what attention gives. */
static inline uint32_t model_attended_dim(const model_config_t *config)
{
    return config->heads * (config->mla.kv_latent > 0 ? config->mla.value : config->head_dim);
}

/* Rows of the fused projections. */
static inline uint32_t model_q_dim(const model_config_t *config)
{
    return config->heads * config->head_dim;
}

static inline uint32_t model_kv_dim(const model_config_t *config)
{
    return config->kv_heads * config->head_dim;
}

/* Where a model's weights lie. */
typedef struct model_weights {
    carve_t vectors;
    carve_t matrices;
    bool are_packed;             /* the matrices are there already, perhaps only to be read */
    struct XXH3_state_s *digest; /* while measuring, of what makes the matrices; NULL: not wanted */
    weight_cache_key_t key;      /* by model_packed_open */
} model_weights_t;

/*
 * Points every weight of the model at its place. stream NULL: only finds and checks the tensors and
 * measures; else packs to the carves' bases on the stream's device. model->layers is the caller's.
 * Anything wrong with a tensor: diag names file, tensor and reason.
 */
weft_status_t model_bind(model_t *model, const model_source_t *source, const k_ops_t *ops,
                         k_stream_t *stream, model_weights_t *weights, weft_diag_t *diag);

/*
 * With limits.keeps_packed, on a device whose memory is the host's, the matrices are kept in a file
 * beside the source. begin gives `measured` the digest that a model_bind to measure fills; open maps
 * the file if it is there and of just these matrices, else NULL; a save that fails is logged. end
 * gives back what begin took.
 */
weft_status_t model_packed_begin(const model_t *model, model_weights_t *measured);
const void *model_packed_open(model_t *model, const model_source_t *source, const k_ops_t *ops,
                              model_weights_t *measured);
void model_packed_save(const model_t *model, const model_source_t *source, const k_ops_t *ops,
                       const model_weights_t *measured, const void *matrices);
void model_packed_end(model_weights_t *measured);
