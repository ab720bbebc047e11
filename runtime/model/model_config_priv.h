/* SPDX-License-Identifier: Apache-2.0 */
/* model_config_priv: what the readers of GGUF metadata and of config.json share. */
#pragma once

#include "runtime/files/gguf.h"
#include "runtime/files/json_input.h"
#include "runtime/model/model_config.h"

/* Fields of GGUF metadata. The first fault is kept; what follows returns fallbacks. */
typedef struct model_gguf_reader {
    const gguf_t *gguf;
    const char *source;
    const char *architecture;
    weft_diag_t *diag;
    weft_status_t status;
    char key[128];
} model_gguf_reader_t;

/* field: without "<architecture>." */
bool model_gguf_has(model_gguf_reader_t *reader, const char *field);
uint32_t model_gguf_u32(model_gguf_reader_t *reader, const char *field, uint32_t fallback);
uint32_t model_gguf_need_u32(model_gguf_reader_t *reader, const char *field);
double model_gguf_f64(model_gguf_reader_t *reader, const char *field, double fallback);
bool model_gguf_flag(model_gguf_reader_t *reader, const char *field, bool fallback);
void model_gguf_refuse(model_gguf_reader_t *reader, weft_status_t status, const char *field,
                       const char *reason);

/*
 * What a family adds to what all configurations have; any may be NULL. init: what follows from the
 * family alone. The others run after the fields that all families share.
 */
typedef struct model_family_config {
    void (*init)(model_config_t *config);
    void (*from_json)(json_reader_t *root, model_config_t *config);
    void (*from_gguf)(model_gguf_reader_t *reader, model_config_t *config);
} model_family_config_t;

/* A row of models.def. */
typedef struct model_architecture {
    const char *name;
    const char *hf_architecture;
    const char *gguf_architecture;
    const model_family_config_t *config;
} model_architecture_t;

/* Layers i with (i + 1) mod period ≠ 0 slide, and no others: all but every period-th. 0: all. */
void model_config_slide_all_but(model_config_t *config, uint32_t period);

/* The experts of config.json, by the names that most families use. */
void model_config_read_experts(json_reader_t *root, model_config_t *config);

/* NULL when no row has it. */
const model_architecture_t *model_architecture_by_name(const char *family);
const model_architecture_t *model_architecture_by_hf(const char *architecture);
const model_architecture_t *model_architecture_by_gguf(const char *architecture, size_t length);

/* WEFT_ERR_UNSUPPORTED with the known ones, by their HF or GGUF names. */
weft_status_t model_architecture_unknown(const char *where, const char *architecture, bool is_gguf,
                                         weft_diag_t *diag);

/* Everything zero or "none", and what follows from the family alone. */
void model_config_init(model_config_t *config, const model_architecture_t *family);

/* What follows from the other fields, where the file did not say it. */
void model_config_finish(model_config_t *config);

/* Adds an id once. WEFT_ERR_TOO_LARGE: over MODEL_MAX_EOS. */
weft_status_t model_config_add_eos(model_config_t *config, int64_t id);

/* cos and sin of yarn: 0.1 · mscale · ln(factor) + 1. Peng et al. 2023, section 3.4. */
double model_yarn_mscale(double factor, double mscale);

/* cos and sin of longrope: √(1 + ln(context / original) / ln(original)). Ding et al. 2024. */
double model_longrope_mscale(uint32_t context, uint32_t original);

/* source: how errors call the file. The vocabulary comes from the tensors: 0 here. */
weft_status_t model_config_from_gguf(const gguf_t *gguf, const char *source, weft_diag_t *diag,
                                     model_config_t *config_out);
