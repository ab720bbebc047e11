/* SPDX-License-Identifier: Apache-2.0 */
/*
 * adapter_priv: what the adapter's files share.
 *
 *   adapter.c         a folder, read, checked and laid out on the device
 *   adapter_config.c  what its adapter_config.json says
 *   adapter_shape.c   which linears a layer has, what PEFT calls them, how large they are here
 *   adapter_table.c   adapters where the graph reads them
 */
#pragma once

#include "runtime/model/adapter.h"

/* A layer's pairs: one for each single target, then each expert's of a target, then each head's two. */
typedef struct adapter_pairs {
    uint32_t experts; /* of this rank */
    uint32_t heads;   /* of latents */
    uint32_t n;
} adapter_pairs_t;

struct adapter {
    weft_device_t *device;
    weft_mem_t memory;
    adapter_pairs_t of_layer;
    uint32_t layers;  /* of this rank */
    k_lora_t pairs[]; /* [layers][of_layer.n] */
};

typedef struct adapter_shape {
    uint32_t in;
    uint32_t out;
} adapter_shape_t;

/* What a rank has of a target's inputs and outputs. */
typedef struct adapter_part {
    model_range_t in;
    model_range_t out;
} adapter_part_t;

/* Where a tensor belongs. Targets that have one tensor have the same a, and rows of b each. */
typedef struct adapter_place {
    uint32_t layer;
    uint32_t expert; /* of an expert's target */
    adapter_target_t target;
    uint32_t n_targets; /* target and those behind it: q, k and v, gate and up, or one */
    bool is_b;
    bool is_of_all; /* experts, in one tensor; rows of gate and of up then take turns */
} adapter_place_t;

#define ADAPTER_MAX_PATH 4096

typedef struct adapter_config {
    double alpha;
    bool is_rank_stabilized;
    adapter_target_t outer; /* adapter_parse_name */
} adapter_config_t;

weft_status_t adapter_config_read(const char *folder, weft_diag_t *diag,
                                  adapter_config_t *config_out);
/* Of a file in the folder. WEFT_ERR_TOO_LARGE: there is no room for it. */
weft_status_t adapter_file_name(const char *folder, const char *name, weft_diag_t *diag,
                                char out[ADAPTER_MAX_PATH]);

bool adapter_is_of_expert(adapter_target_t target);

/* As the target's matrices are called in a layer; an expert's, in the expert. */
const char *adapter_module(const model_config_t *config, adapter_target_t target);
bool adapter_layer_has(const model_config_t *config, uint32_t layer, adapter_target_t target);

/* base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight: the layer; what follows it, or NULL */
const char *adapter_parse_layer(const char *name, uint32_t *layer_out);
/*
 * False: it belongs nowhere. GPT-OSS keeps matrices of all experts in one parameter, and PEFT wraps the
 * module that has them once for each that it adapts, gate_up_proj first: outer is what is adapted by
 * the module's own name, the other one is behind base_layer.
 */
bool adapter_parse_name(const model_config_t *config, adapter_target_t outer, const char *name,
                        adapter_place_t *place_out);

adapter_shape_t adapter_shape(const model_config_t *config, adapter_target_t target);
adapter_part_t adapter_part(const adapter_model_t *model, adapter_target_t target);

/* Of a rank that computes with config and has this cut. */
adapter_pairs_t adapter_pairs(const model_config_t *config, const model_cut_t *cut);
/* Where a target's pairs begin: [experts] or [heads][2]; whose a pair is. */
uint32_t adapter_pair_of(const adapter_pairs_t *pairs, adapter_target_t target);
adapter_target_t adapter_target_of(const adapter_pairs_t *pairs, uint32_t pair);

/* Floats of a matrix, in whole vectors: the next one begins aligned. */
static inline size_t adapter_floats(size_t rows, size_t columns)
{
    const size_t vector = K_LORA_ALIGNMENT / sizeof(float);
    return (rows * columns + vector - 1) / vector * vector;
}

static inline void adapter_free_memory(weft_device_t *device, weft_mem_t *memory)
{
    if (memory->addr != NULL) {
        device->ops->free(device, memory);
    }
}
