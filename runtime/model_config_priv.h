/* SPDX-License-Identifier: Apache-2.0 */
/* model_config_priv: what the readers of GGUF metadata and of config.json share. */
#pragma once

#include "runtime/gguf.h"
#include "runtime/model_config.h"

/* A row of models.def. */
typedef struct model_architecture {
    const char *name;
    const char *hf_architecture;
    const char *gguf_architecture;
} model_architecture_t;

/* NULL when no row has it. */
const model_architecture_t *model_architecture_by_name(const char *family);
const model_architecture_t *model_architecture_by_hf(const char *architecture);
const model_architecture_t *model_architecture_by_gguf(const char *architecture, size_t length);

/* WEFT_ERR_UNSUPPORTED with the known ones, by their HF or GGUF names. */
weft_status_t model_architecture_unknown(const char *where, const char *architecture, bool is_gguf,
                                         weft_diag_t *diag);

/* Everything zero or "none", and what follows from the family alone. */
void model_config_init(model_config_t *config, const model_architecture_t *family);

/* Adds an id once. WEFT_ERR_TOO_LARGE: over MODEL_MAX_EOS. */
weft_status_t model_config_add_eos(model_config_t *config, int64_t id);

/* cos and sin of yarn: 0.1 · mscale · ln(factor) + 1. Peng et al. 2023, section 3.4. */
double model_yarn_mscale(double factor, double mscale);

/* source: how errors call the file. The vocabulary comes from the tensors: 0 here. */
weft_status_t model_config_from_gguf(const gguf_t *gguf, const char *source, weft_diag_t *diag,
                                     model_config_t *config_out);
