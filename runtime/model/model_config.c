/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/model_config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/compiler.h"
#include "runtime/model/model_config_priv.h"

#define MODEL(family, hf, gguf) extern const model_family_config_t model_family_config_##family;
#include "runtime/model/models.def"
#undef MODEL

static const model_architecture_t families[] = {
#define MODEL(family, hf, gguf) {#family, hf, gguf, &model_family_config_##family},
#include "runtime/model/models.def"
#undef MODEL
};

const model_architecture_t *model_architecture_by_name(const char *family)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(families); i++) {
        if (strcmp(families[i].name, family) == 0) {
            return &families[i];
        }
    }
    return NULL;
}

const model_architecture_t *model_architecture_by_hf(const char *architecture)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(families); i++) {
        if (strcmp(families[i].hf_architecture, architecture) == 0) {
            return &families[i];
        }
    }
    return NULL;
}

const model_architecture_t *model_architecture_by_gguf(const char *architecture, size_t length)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(families); i++) {
        const char *known = families[i].gguf_architecture;
        if (strlen(known) == length && memcmp(known, architecture, length) == 0) {
            return &families[i];
        }
    }
    return NULL;
}

weft_status_t model_architecture_unknown(const char *where, const char *architecture, bool is_gguf,
                                         weft_diag_t *diag)
{
    char known[512] = "";
    size_t used = 0;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(families) && used < sizeof(known); i++) {
        const char *name = is_gguf ? families[i].gguf_architecture : families[i].hf_architecture;
        used +=
            (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i == 0 ? "" : ", ", name);
    }
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                     "%s: architecture \"%.100s\" is not supported (known: %s)", where,
                     architecture, known);
}

void model_config_init(model_config_t *config, const model_architecture_t *family)
{
    memset(config, 0, sizeof(*config));
    config->family = family->name;
    config->embedding_scale = 1;
    config->residual_scale = 1;
    config->logit_scale = 1;
    config->has_pre_norms = true;
    config->rope.factor = 1;
    config->rope.mscale = 1;
    config->experts.scale = 1;
    config->bos = -1;
    config->default_temperature = NAN;
    config->default_top_p = NAN;
    config->default_top_k = -1;
    if (family->config->init != NULL) {
        family->config->init(config);
    }
}

void model_config_finish(model_config_t *config)
{
    if (config->attention_scale == 0 && config->head_dim > 0) {
        config->attention_scale = 1.0f / sqrtf((float)config->head_dim);
    }
}

void model_config_slide_all_but(model_config_t *config, uint32_t period)
{
    memset(&config->sliding, 0, sizeof(config->sliding));
    for (uint32_t i = 0; i < config->layers && i < MODEL_MAX_LAYERS; i++) {
        if (period == 0 || (i + 1) % period != 0) {
            model_layers_add(&config->sliding, i);
        }
    }
}

weft_status_t model_config_add_eos(model_config_t *config, int64_t id)
{
    for (uint32_t i = 0; i < config->n_eos; i++) {
        if (config->eos[i] == id) {
            return WEFT_OK;
        }
    }
    if (config->n_eos == MODEL_MAX_EOS || id < 0 || id > INT32_MAX) {
        return WEFT_ERR_TOO_LARGE;
    }
    config->eos[config->n_eos++] = (int32_t)id;
    return WEFT_OK;
}

double model_yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

double model_longrope_mscale(uint32_t context, uint32_t original)
{
    if (original < 2 || context <= original) {
        return 1;
    }
    return sqrt(1 + log((double)context / original) / log(original));
}

/* ---- checks -------------------------------------------------------------------------------- */

typedef struct extent {
    const char *what;
    uint32_t value;
    uint32_t max;
} extent_t;

/* Generous: several times what any published model of these families has. */
static weft_status_t check_extents(const model_config_t *config, weft_diag_t *diag)
{
    const extent_t extents[] = {
        {"number of layers", config->layers, MODEL_MAX_LAYERS},
        {"hidden size", config->hidden, 1 << 20},
        {"number of heads", config->heads, 4096},
        {"number of key/value heads", config->kv_heads, 4096},
        {"head size", config->head_dim, 1024},
        {"intermediate size", config->intermediate, 1 << 22},
        {"vocabulary", config->vocab, 1 << 24},
        {"context length", config->max_context, 1 << 30},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(extents); i++) {
        if (extents[i].value == 0 || extents[i].value > extents[i].max) {
            return weft_diag(diag, WEFT_ERR_INVALID, "%s is %u, must be 1 to %u", extents[i].what,
                             extents[i].value, extents[i].max);
        }
    }
    return WEFT_OK;
}

static weft_status_t check_heads(const model_config_t *config, weft_diag_t *diag)
{
    if (config->heads % config->kv_heads != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%u heads do not divide over %u key/value heads",
                         config->heads, config->kv_heads);
    }
    if (config->head_dim % 2 != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "head size %u is odd", config->head_dim);
    }
    const uint32_t rotated[] = {config->rope.dim, config->local_rope.dim};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rotated); i++) {
        if (rotated[i] > config->head_dim || rotated[i] % 2 != 0) {
            return weft_diag(diag, WEFT_ERR_INVALID,
                             "%u rotated elements do not fit in heads of %u, in pairs", rotated[i],
                             config->head_dim);
        }
        if (rotated[i] / 2 > MODEL_MAX_ROPE_PAIRS) {
            return weft_diag(diag, WEFT_ERR_INVALID, "%u rotated elements, at most %u", rotated[i],
                             2 * MODEL_MAX_ROPE_PAIRS);
        }
    }
    return WEFT_OK;
}

static bool is_positive(float x)
{
    return isfinite(x) && x > 0;
}

static weft_status_t check_rope(const model_rope_t *rope, weft_diag_t *diag)
{
    if (!is_positive(rope->theta)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "rope theta %g is not above 0",
                         (double)rope->theta);
    }
    if (!is_positive(rope->factor) || !is_positive(rope->mscale)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "rope scaling by %g (attention %g) is not above 0",
                         (double)rope->factor, (double)rope->mscale);
    }
    const bool needs_context = rope->kind == MODEL_ROPE_LLAMA3 || rope->kind == MODEL_ROPE_YARN ||
                               rope->kind == MODEL_ROPE_LONG;
    if (needs_context && (rope->original_context == 0 || rope->original_context > 1 << 30)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "rope scaling from an original context of %u",
                         rope->original_context);
    }
    if (rope->kind == MODEL_ROPE_LLAMA3 &&
        (!is_positive(rope->low_freq_factor) || !(rope->high_freq_factor > rope->low_freq_factor) ||
         !isfinite(rope->high_freq_factor))) {
        return weft_diag(diag, WEFT_ERR_INVALID, "rope scaling between frequency factors %g and %g",
                         (double)rope->low_freq_factor, (double)rope->high_freq_factor);
    }
    if (rope->kind == MODEL_ROPE_YARN &&
        (!is_positive(rope->beta_slow) || !(rope->beta_fast >= rope->beta_slow) ||
         !isfinite(rope->beta_fast))) {
        return weft_diag(diag, WEFT_ERR_INVALID, "rope scaling with betas %g and %g",
                         (double)rope->beta_fast, (double)rope->beta_slow);
    }
    return WEFT_OK;
}

static weft_status_t check_scales(const model_config_t *config, weft_diag_t *diag)
{
    const float scales[] = {config->embedding_scale, config->attention_scale,
                            config->residual_scale, config->logit_scale};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(scales); i++) {
        if (!is_positive(scales[i])) {
            return weft_diag(diag, WEFT_ERR_INVALID,
                             "scales of embedding, attention, branches, logits: %g, %g, %g, %g, "
                             "each must be above 0",
                             (double)scales[0], (double)scales[1], (double)scales[2],
                             (double)scales[3]);
        }
    }
    if (!(config->attention_softcap >= 0 && config->logit_softcap >= 0 &&
          isfinite(config->attention_softcap) && isfinite(config->logit_softcap))) {
        return weft_diag(diag, WEFT_ERR_INVALID, "soft caps %g and %g are not 0 or more",
                         (double)config->attention_softcap, (double)config->logit_softcap);
    }
    if (config->activation == MODEL_CLAMPED_SWIGLU && !is_positive(config->activation_limit)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "activation limit %g is not above 0",
                         (double)config->activation_limit);
    }
    return WEFT_OK;
}

static weft_status_t check_mla(const model_config_t *config, weft_diag_t *diag)
{
    const model_mla_t *mla = &config->mla;
    const uint32_t largest = 1 << 16;
    if (mla->kv_latent == 0) {
        return WEFT_OK;
    }
    if (mla->kv_latent > largest || mla->q_latent > largest || mla->plain == 0 ||
        mla->plain > largest || mla->rotary == 0 || mla->rotary > largest || mla->value == 0 ||
        mla->value > largest || config->kv_heads != 1 || config->rope.dim != mla->rotary ||
        mla->kv_latent + mla->rotary != 2 * config->head_dim) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "latents of %u for queries and %u for keys, heads of %u and %u rotated "
                         "elements, values of %u do not fit together",
                         mla->q_latent, mla->kv_latent, mla->plain, mla->rotary, mla->value);
    }
    return WEFT_OK;
}

static weft_status_t check_experts(const model_experts_t *experts, weft_diag_t *diag)
{
    if (experts->count == 0) {
        return WEFT_OK;
    }
    if (experts->count > MODEL_MAX_EXPERTS || experts->used == 0 ||
        experts->used > experts->count) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%u of %u experts used, of at most %u",
                         experts->used, experts->count, MODEL_MAX_EXPERTS);
    }
    if (experts->intermediate == 0 || experts->intermediate > 1 << 22 ||
        experts->shared_intermediate > 1 << 22) {
        return weft_diag(diag, WEFT_ERR_INVALID, "experts of size %u, shared ones of %u",
                         experts->intermediate, experts->shared_intermediate);
    }
    if (experts->n_groups > 1 &&
        (experts->count % experts->n_groups != 0 || experts->groups_used == 0 ||
         experts->groups_used > experts->n_groups ||
         experts->count / experts->n_groups * experts->groups_used < experts->used)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%u experts in %u of %u groups of %u",
                         experts->used, experts->groups_used, experts->n_groups, experts->count);
    }
    if (!is_positive(experts->scale)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "experts scaled by %g, must be above 0",
                         (double)experts->scale);
    }
    return WEFT_OK;
}

static weft_status_t check_tokens(const model_config_t *config, weft_diag_t *diag)
{
    if (config->bos >= 0 && (uint32_t)config->bos >= config->vocab) {
        return weft_diag(diag, WEFT_ERR_INVALID, "bos token %d is outside the vocabulary of %u",
                         config->bos, config->vocab);
    }
    for (uint32_t i = 0; i < config->n_eos; i++) {
        if (config->eos[i] < 0 || (uint32_t)config->eos[i] >= config->vocab) {
            return weft_diag(diag, WEFT_ERR_INVALID, "eos token %d is outside the vocabulary of %u",
                             config->eos[i], config->vocab);
        }
    }
    return WEFT_OK;
}

weft_status_t model_config_check(const model_config_t *config, weft_diag_t *diag)
{
    weft_status_t status = check_extents(config, diag);
    if (status == WEFT_OK) {
        status = check_heads(config, diag);
    }
    if (status == WEFT_OK) {
        status = check_rope(&config->rope, diag);
    }
    if (status == WEFT_OK && config->has_local_rope) {
        status = check_rope(&config->local_rope, diag);
    }
    if (status == WEFT_OK) {
        status = check_scales(config, diag);
    }
    if (status == WEFT_OK) {
        status = check_mla(config, diag);
    }
    if (status == WEFT_OK) {
        status = check_experts(&config->experts, diag);
    }
    if (status == WEFT_OK) {
        status = check_tokens(config, diag);
    }
    if (status == WEFT_OK && !(is_positive(config->norm_eps) && config->norm_eps < 1)) {
        status = weft_diag(diag, WEFT_ERR_INVALID, "norm epsilon %g is not between 0 and 1",
                           (double)config->norm_eps);
    }
    return status;
}
