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

#define MODEL_MAX_EOS 8

typedef enum model_rope_kind {
    MODEL_ROPE_PLAIN,
    MODEL_ROPE_LINEAR, /* all frequencies divided by factor */
    MODEL_ROPE_LLAMA3, /* Llama 3.1: low frequencies divided, a ramp between */
    MODEL_ROPE_YARN,   /* Peng et al. 2023 */
    MODEL_ROPE_FACTORS /* one divisor a pair, from tensor rope_freqs.weight */
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
    float mscale; /* multiplies cos and sin; 1 unless yarn says otherwise */
    uint32_t original_context;
} model_rope_t;

typedef struct model_config {
    const char *family;    /* the row of models.def: "llama" */
    char architecture[64]; /* as the file says: "LlamaForCausalLM" or "llama" */
    char name[128];        /* general.name, _name_or_path or the file's own name */
    uint32_t layers;
    uint32_t hidden;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t intermediate;
    uint32_t vocab; /* rows of the embedding */
    uint32_t max_context;
    uint32_t window; /* sliding window, 0: none */
    float norm_eps;
    float embedding_scale; /* 1 for these families */
    bool is_embedding_tied;
    bool has_qkv_bias;
    bool has_qk_norm;
    model_rope_t rope;
    int32_t bos;                /* -1: none */
    int32_t eos[MODEL_MAX_EOS]; /* generation ends at any of them */
    uint32_t n_eos;
    /* generation_config.json's defaults; NaN / -1 when it has none */
    float default_temperature;
    float default_top_p;
    int32_t default_top_k;
} model_config_t;

/*
 * From the bytes of config.json (generation_config.json may be NULL).
 * WEFT_ERR_UNSUPPORTED: the architecture is named and the known ones listed.
 */
weft_status_t model_config_from_json(const char *json, size_t length, const char *generation,
                                     size_t generation_length, weft_diag_t *diag,
                                     model_config_t *config_out);

/* The checks that every source passes through: extents, divisibility, bounds. */
weft_status_t model_config_check(const model_config_t *config, weft_diag_t *diag);
