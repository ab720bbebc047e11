/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_config: the numbers that describe a transformer, whatever file they came from.
 *
 * Read from GGUF metadata or from config.json, checked before anything is allocated from them.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define MODEL_MAX_EOS        8
#define MODEL_MAX_LAYERS     1024
#define MODEL_MAX_ROPE_PAIRS 128
#define MODEL_MAX_EXPERTS    512

typedef enum model_rope_kind {
    MODEL_ROPE_PLAIN,
    MODEL_ROPE_LINEAR,  /* all frequencies divided by factor */
    MODEL_ROPE_LLAMA3,  /* Llama 3.1: low frequencies divided, a ramp between */
    MODEL_ROPE_YARN,    /* Peng et al. 2023 */
    MODEL_ROPE_FACTORS, /* one divisor a pair, from tensor rope_freqs.weight */
    MODEL_ROPE_LONG /* two sets of divisors, one for contexts past the original. Ding et al. 2024 */
} model_rope_kind_t;

typedef struct model_rope {
    model_rope_kind_t kind;
    float theta;
    uint32_t dim;     /* rotated elements of a head */
    bool interleaved; /* pairs (2i, 2i+1): GGUF files of family llama */
    float factor;
    float low_freq_factor;
    float high_freq_factor;
    float beta_fast;
    float beta_slow;
    float mscale; /* multiplies cos and sin; 1 unless yarn or longrope say otherwise */
    uint32_t original_context;
    bool keeps_ramp; /* yarn: the ends of its ramp are not rounded to whole pairs */
    float short_factors[MODEL_MAX_ROPE_PAIRS]; /* longrope: divisors [dim / 2] */
    float long_factors[MODEL_MAX_ROPE_PAIRS];
} model_rope_t;

typedef enum model_activation {
    MODEL_SILU,
    MODEL_GELU_TANH,
    MODEL_CLAMPED_SWIGLU /* with config.activation_limit; see k_clamped_mul_args */
} model_activation_t;

typedef enum model_qk_norm {
    MODEL_QK_NORM_NONE,
    MODEL_QK_NORM_HEAD, /* each head alone */
    MODEL_QK_NORM_WHOLE /* all heads of a row as one */
} model_qk_norm_t;

/* Feed-forward experts; count 0: none. Layers of `dense_layers` have one plain feed-forward. */
typedef struct model_experts {
    uint32_t count;
    uint32_t used; /* by a token */
    uint32_t intermediate;
    uint32_t shared_intermediate; /* of the expert that every token uses; 0: none */
    bool is_sigmoid;              /* scores of single experts, not a softmax over them */
    bool has_bias;                /* of the scores, for the choice alone */
    bool renormalizes;
    uint32_t n_groups;
    uint32_t groups_used;
    float scale;
    bool has_linear_bias; /* of the router and in every expert */
} model_experts_t;

/*
 * Multi-head latent attention; kv_latent 0: none. Then a token's cache is kv_latent + rotary
 * elements, and config.kv_heads 1, config.head_dim half of that: K and V of one head, side by side.
 */
typedef struct model_mla {
    uint32_t q_latent; /* 0: q is projected at once */
    uint32_t kv_latent;
    uint32_t plain; /* elements of a head of q that do not rotate */
    uint32_t rotary;
    uint32_t value; /* elements of a head of v */
} model_mla_t;

/* Checkpoints of packed 4-bit numbers. */
typedef enum model_int4 {
    MODEL_INT4_NONE,
    MODEL_INT4_GPTQ,    /* zeros are stored less 1. Frantar et al. 2022 */
    MODEL_INT4_GPTQ_V2, /* zeros as they are */
    MODEL_INT4_AWQ      /* Lin et al. 2023 */
} model_int4_t;

/* How hidden states become an embedding, where the file says so. */
typedef enum model_pooling {
    MODEL_POOL_NONE,
    MODEL_POOL_LAST, /* that of the last token */
    MODEL_POOL_OTHER
} model_pooling_t;

/* A set of layers. */
typedef struct model_layers {
    uint64_t bits[MODEL_MAX_LAYERS / 64];
} model_layers_t;

typedef struct model_config {
    const char *family;    /* the row of models.def: "llama" */
    char architecture[64]; /* as the file says: "LlamaForCausalLM" or "llama" */
    char name[128];        /* general.name, _name_or_path or the file's own name */
    uint32_t layers;
    uint32_t spare_layers; /* behind those in the file, of no use here: multi-token prediction */
    uint32_t hidden;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t intermediate;
    uint32_t vocab; /* rows of the embedding */
    uint32_t max_context;
    uint32_t window; /* sliding window of the layers in `sliding`, 0: none */
    model_layers_t sliding;
    float norm_eps;
    float norm_offset;     /* added to norm weights as the file has them */
    float embedding_scale; /* 1: none, so for each */
    float attention_scale;
    float residual_scale; /* of what a layer adds */
    float logit_scale;
    float attention_softcap; /* 0: none */
    float logit_softcap;
    model_activation_t activation;
    float activation_limit;
    bool is_embedding_tied;
    bool has_qkv_bias;
    bool has_output_bias; /* of the attention */
    bool has_sinks;
    bool has_pre_norms;  /* before attention and feed-forward */
    bool has_post_norms; /* of what they add */
    bool is_fused;       /* q, k, v in one tensor, gate and up in another */
    model_qk_norm_t qk_norm;
    model_rope_t rope;
    bool has_local_rope; /* of the sliding layers */
    model_rope_t local_rope;
    model_mla_t mla;
    model_experts_t experts;
    model_layers_t dense_layers;
    uint32_t f8_tile_rows; /* of E4M3 weights with a scale a tile */
    uint32_t f8_tile_columns;
    model_int4_t int4;
    uint32_t int4_group; /* columns that share a scale; 0: all */
    model_pooling_t pooling;
    bool has_bare_names;        /* checkpoints of embedding models: tensors without "model." */
    int32_t bos;                /* -1: none */
    int32_t eos[MODEL_MAX_EOS]; /* generation ends at any of them */
    uint32_t n_eos;
    /* generation_config.json's defaults; NaN / -1 when it has none */
    float default_temperature;
    float default_top_p;
    int32_t default_top_k;
} model_config_t;

static inline bool model_layers_has(const model_layers_t *layers, uint32_t layer)
{
    return layer < MODEL_MAX_LAYERS && (layers->bits[layer / 64] >> (layer % 64) & 1) != 0;
}

static inline void model_layers_add(model_layers_t *layers, uint32_t layer)
{
    if (layer < MODEL_MAX_LAYERS) {
        layers->bits[layer / 64] |= UINT64_C(1) << (layer % 64);
    }
}

/* Positions that a layer sees; 0: all before. */
static inline uint32_t model_layer_window(const model_config_t *config, uint32_t layer)
{
    return model_layers_has(&config->sliding, layer) ? config->window : 0;
}

/* The window of all layers, 0 when any sees everything: how long a key may be needed. */
static inline uint32_t model_kv_window(const model_config_t *config)
{
    for (uint32_t i = 0; i < config->layers; i++) {
        if (!model_layers_has(&config->sliding, i)) {
            return 0;
        }
    }
    return config->window;
}

/* Longrope: whether a model that is made for so many positions takes its long divisors. */
static inline bool model_rope_is_long(const model_rope_t *rope, uint32_t context)
{
    return rope->kind == MODEL_ROPE_LONG && context > rope->original_context;
}

static inline bool model_layer_has_experts(const model_config_t *config, uint32_t layer)
{
    return config->experts.count > 0 && !model_layers_has(&config->dense_layers, layer);
}

/*
 * From the bytes of config.json (generation_config.json may be NULL).
 * WEFT_ERR_UNSUPPORTED: the architecture is named and the known ones listed.
 */
weft_status_t model_config_from_json(const char *json, size_t length, const char *generation,
                                     size_t generation_length, weft_diag_t *diag,
                                     model_config_t *config_out);

/* The checks that every source passes through: extents, divisibility, bounds. */
weft_status_t model_config_check(const model_config_t *config, weft_diag_t *diag);
