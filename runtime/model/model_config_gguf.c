/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF metadata as llama.cpp's converter writes it: keys "<architecture>.<field>". */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "runtime/model/model_config_priv.h"

#define DEFAULT_THETA 10000.0

static const char *key_of(model_gguf_reader_t *f, const char *field)
{
    snprintf(f->key, sizeof(f->key), "%s.%s", f->architecture, field);
    return f->key;
}

bool model_gguf_has(model_gguf_reader_t *f, const char *field)
{
    return gguf_find(f->gguf, key_of(f, field)) != NULL;
}

void model_gguf_refuse(model_gguf_reader_t *f, weft_status_t status, const char *field,
                       const char *reason)
{
    if (f->status == WEFT_OK) {
        f->status =
            weft_diag(f->diag, status, "%s: key %s: %s", f->source, key_of(f, field), reason);
    }
}

uint32_t model_gguf_u32(model_gguf_reader_t *f, const char *field, uint32_t fallback)
{
    uint64_t value = fallback;
    if (f->status != WEFT_OK) {
        return fallback;
    }
    const weft_status_t status = gguf_get_u64(f->gguf, key_of(f, field), f->diag, &value);
    if (status != WEFT_OK && status != WEFT_ERR_NOT_FOUND) {
        f->status = status;
        return fallback;
    }
    if (value > UINT32_MAX) {
        model_gguf_refuse(f, WEFT_ERR_MALFORMED, field, "is out of range");
        return fallback;
    }
    return (uint32_t)value;
}

uint32_t model_gguf_need_u32(model_gguf_reader_t *f, const char *field)
{
    if (!model_gguf_has(f, field)) {
        model_gguf_refuse(f, WEFT_ERR_MALFORMED, field, "missing");
    }
    return model_gguf_u32(f, field, 0);
}

double model_gguf_f64(model_gguf_reader_t *f, const char *field, double fallback)
{
    double value = fallback;
    if (f->status != WEFT_OK) {
        return fallback;
    }
    const weft_status_t status = gguf_get_f64(f->gguf, key_of(f, field), f->diag, &value);
    if (status != WEFT_OK && status != WEFT_ERR_NOT_FOUND) {
        f->status = status;
    }
    return value;
}

bool model_gguf_flag(model_gguf_reader_t *f, const char *field, bool fallback)
{
    bool value = fallback;
    if (f->status != WEFT_OK) {
        return fallback;
    }
    const weft_status_t status = gguf_get_bool(f->gguf, key_of(f, field), f->diag, &value);
    if (status != WEFT_OK && status != WEFT_ERR_NOT_FOUND) {
        f->status = status;
    }
    return value;
}

static bool string_is(gguf_string_t string, const char *text)
{
    return string.length == strlen(text) && memcmp(string.data, text, string.length) == 0;
}

/* ---- fields -------------------------------------------------------------------------------- */

static void read_heads(model_gguf_reader_t *f, model_config_t *config)
{
    config->heads = model_gguf_need_u32(f, "attention.head_count");
    config->kv_heads = model_gguf_u32(f, "attention.head_count_kv", config->heads);
    config->head_dim = model_gguf_u32(f, "attention.key_length", 0);
    if (config->head_dim == 0 && config->heads > 0) {
        if (config->hidden % config->heads != 0) {
            model_gguf_refuse(
                f, WEFT_ERR_INVALID, "embedding_length",
                "does not divide over the heads, and there is no attention.key_length");
        }
        config->head_dim = config->hidden / config->heads;
    }
    /* With latents these are what the cache holds: the family reckons with them. */
    if (!model_gguf_has(f, "attention.kv_lora_rank") &&
        model_gguf_u32(f, "attention.value_length", config->head_dim) != config->head_dim) {
        model_gguf_refuse(f, WEFT_ERR_UNSUPPORTED, "attention.value_length",
                          "keys and values of different sizes are not supported");
    }
}

static void read_yarn(model_gguf_reader_t *f, model_config_t *config)
{
    model_rope_t *rope = &config->rope;
    rope->kind = MODEL_ROPE_YARN;
    rope->beta_fast = (float)model_gguf_f64(f, "rope.scaling.yarn_beta_fast", 32);
    rope->beta_slow = (float)model_gguf_f64(f, "rope.scaling.yarn_beta_slow", 1);
    rope->original_context =
        model_gguf_u32(f, "rope.scaling.original_context_length", config->max_context);
    rope->mscale = (float)(model_gguf_f64(f, "rope.scaling.attn_factor", 1) *
                           model_yarn_mscale((double)rope->factor, 1));
}

/* The divisors are tensors: model_source_gguf.c takes them in. */
static void read_longrope(model_gguf_reader_t *f, model_config_t *config)
{
    model_rope_t *rope = &config->rope;
    rope->kind = MODEL_ROPE_LONG;
    rope->factor = 1;
    rope->original_context =
        model_gguf_u32(f, "rope.scaling.original_context_length", config->max_context);
    rope->mscale =
        (float)model_gguf_f64(f, "rope.scaling.attn_factor",
                              model_longrope_mscale(config->max_context, rope->original_context));
}

/* Converters reorder the rows of q and k of these so that pairs are neighbours. */
static const char *const interleaving[] = {"llama", "mistral", "granite"};

static void read_rope(model_gguf_reader_t *f, model_config_t *config)
{
    model_rope_t *rope = &config->rope;
    gguf_string_t type;
    rope->theta = (float)model_gguf_f64(f, "rope.freq_base", DEFAULT_THETA);
    rope->dim = model_gguf_u32(f, "rope.dimension_count", config->head_dim);
    rope->interleaved = false;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(interleaving); i++) {
        rope->interleaved = rope->interleaved || strcmp(f->architecture, interleaving[i]) == 0;
    }
    /* Old files have a factor alone, under either name, and mean linear. */
    const double factor =
        model_gguf_f64(f, "rope.scaling.factor", model_gguf_f64(f, "rope.scale_linear", 0));
    if (f->status != WEFT_OK) {
        return;
    }
    const weft_status_t status =
        gguf_get_string(f->gguf, key_of(f, "rope.scaling.type"), f->diag, &type);
    if (status == WEFT_ERR_NOT_FOUND) {
        type = factor == 0 ? (gguf_string_t){"none", 4} : (gguf_string_t){"linear", 6};
    } else if (status != WEFT_OK) {
        f->status = status;
        return;
    }
    if (string_is(type, "none")) {
        return;
    }
    rope->factor = (float)factor;
    if (string_is(type, "linear")) {
        rope->kind = MODEL_ROPE_LINEAR;
    } else if (string_is(type, "yarn")) {
        read_yarn(f, config);
    } else if (string_is(type, "longrope")) {
        read_longrope(f, config);
    } else {
        model_gguf_refuse(f, WEFT_ERR_UNSUPPORTED, "rope.scaling.type",
                          "only none, linear, yarn and longrope are supported");
    }
}

static void read_name(const gguf_t *gguf, model_config_t *config)
{
    gguf_string_t name = {"", 0};
    gguf_get_string(gguf, "general.name", NULL, &name);
    const size_t room = sizeof(config->name) - 1;
    const size_t length = name.length < room ? name.length : room;
    memcpy(config->name, name.data, length);
    config->name[length] = '\0';
}

static void read_experts(model_gguf_reader_t *f, model_config_t *config)
{
    model_experts_t *experts = &config->experts;
    experts->count = model_gguf_u32(f, "expert_count", 0);
    if (experts->count == 0) {
        return;
    }
    experts->used = model_gguf_need_u32(f, "expert_used_count");
    experts->intermediate = model_gguf_u32(f, "expert_feed_forward_length", config->intermediate);
    experts->renormalizes = true;
}

/* 0: none; then the mean, the first token's, the last token's … */
static void read_pooling(model_gguf_reader_t *f, model_config_t *config)
{
    const uint32_t type = model_gguf_u32(f, "pooling_type", 0);
    config->pooling = type == 0 ? MODEL_POOL_NONE : type == 3 ? MODEL_POOL_LAST : MODEL_POOL_OTHER;
}

static void read_fields(model_gguf_reader_t *f, model_config_t *config)
{
    read_name(f->gguf, config);
    config->layers = model_gguf_need_u32(f, "block_count");
    config->hidden = model_gguf_need_u32(f, "embedding_length");
    config->intermediate = model_gguf_need_u32(f, "feed_forward_length");
    config->max_context = model_gguf_need_u32(f, "context_length");
    read_heads(f, config);
    if (!model_gguf_has(f, "attention.layer_norm_rms_epsilon")) {
        model_gguf_refuse(f, WEFT_ERR_MALFORMED, "attention.layer_norm_rms_epsilon", "missing");
    }
    config->norm_eps = (float)model_gguf_f64(f, "attention.layer_norm_rms_epsilon", 0);
    config->attention_scale = (float)model_gguf_f64(f, "attention.scale", 0);
    config->window = model_gguf_u32(f, "attention.sliding_window", 0);
    if (config->window > 0) {
        model_config_slide_all_but(config, 0);
    }
    read_experts(f, config);
    read_rope(f, config);
    read_pooling(f, config);
}

/* ---- tokens -------------------------------------------------------------------------------- */

static weft_status_t add_eos_key(const gguf_t *gguf, const char *source, const char *key,
                                 weft_diag_t *diag, model_config_t *config)
{
    uint64_t id;
    const weft_status_t status = gguf_get_u64(gguf, key, diag, &id);
    if (status != WEFT_OK) {
        return status == WEFT_ERR_NOT_FOUND ? WEFT_OK : status;
    }
    if (id > INT32_MAX || model_config_add_eos(config, (int64_t)id) != WEFT_OK) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: key %s: %" PRIu64 " is out of range",
                         source, key, id);
    }
    return WEFT_OK;
}

/*
 * Chat models end a turn with a token of their own, which older files do not name. A token counts
 * when its text is one of these and the file calls it a control token.
 */
static const char *const end_tokens[] = {
    "<|im_end|>",    "<|eot_id|>",    "<|eom_id|>", "<|end_of_text|>",
    "<|endoftext|>", "<end_of_turn>", "<|end|>",
};

/* GPT-OSS ends its thoughts with the token that ends a turn elsewhere, and goes on. */
static bool is_end(const model_config_t *config, const char *token)
{
    return strcmp(token, "<|end|>") != 0 || strcmp(config->family, "gpt_oss") != 0;
}

static void add_known_ends(const gguf_t *gguf, model_config_t *config)
{
    enum { CONTROL = 3 };
    const gguf_value_t *tokens;
    const gguf_value_t *types;
    if (gguf_get_array(gguf, "tokenizer.ggml.tokens", GGUF_STRING, NULL, &tokens) != WEFT_OK ||
        gguf_get_array(gguf, "tokenizer.ggml.token_type", GGUF_INT32, NULL, &types) != WEFT_OK) {
        return;
    }
    const uint8_t *cursor = tokens->data;
    for (uint64_t id = 0; id < tokens->count && id < types->count; id++) {
        const gguf_string_t token = gguf_next_string(&cursor);
        if (types->data[4 * id] != CONTROL) {
            continue;
        }
        for (size_t i = 0; i < WEFT_ARRAY_LEN(end_tokens); i++) {
            if (string_is(token, end_tokens[i]) && is_end(config, end_tokens[i])) {
                model_config_add_eos(config, (int64_t)id); /* full: the named ones came first */
            }
        }
    }
}

static weft_status_t read_tokens(const gguf_t *gguf, const char *source, weft_diag_t *diag,
                                 model_config_t *config)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    uint64_t bos;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(keys); i++) {
        const weft_status_t status = add_eos_key(gguf, source, keys[i], diag, config);
        if (status != WEFT_OK) {
            return status;
        }
    }
    if (gguf_get_u64(gguf, "tokenizer.ggml.bos_token_id", NULL, &bos) == WEFT_OK) {
        config->bos = bos > INT32_MAX ? INT32_MAX : (int32_t)bos;
    }
    add_known_ends(gguf, config);
    return WEFT_OK;
}

weft_status_t model_config_from_gguf(const gguf_t *gguf, const char *source, weft_diag_t *diag,
                                     model_config_t *config_out)
{
    gguf_string_t name;
    model_config_t config;
    char architecture[sizeof(config.architecture)];
    weft_status_t status = gguf_get_string(gguf, "general.architecture", diag, &name);
    if (status == WEFT_ERR_NOT_FOUND) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: key general.architecture: missing", source);
    }
    if (status != WEFT_OK) {
        return status;
    }
    snprintf(architecture, sizeof(architecture), "%.*s",
             (int)(name.length < sizeof(architecture) ? name.length : sizeof(architecture) - 1),
             name.data);
    const model_architecture_t *family = model_architecture_by_gguf(name.data, name.length);
    if (family == NULL) {
        return model_architecture_unknown(source, architecture, true, diag);
    }
    model_config_init(&config, family);
    memcpy(config.architecture, architecture, sizeof(architecture));

    model_gguf_reader_t reader = {
        .gguf = gguf, .source = source, .architecture = architecture, .diag = diag};
    read_fields(&reader, &config);
    if (family->config->from_gguf != NULL) {
        family->config->from_gguf(&reader, &config);
    } else if (config.experts.count > 0) {
        model_gguf_refuse(&reader, WEFT_ERR_UNSUPPORTED, "expert_count",
                          "models of this family with experts are not supported");
    }
    model_config_finish(&config);
    status = reader.status;
    if (status == WEFT_OK) {
        status = read_tokens(gguf, source, diag, &config);
    }
    if (status == WEFT_OK) {
        *config_out = config;
    }
    return status;
}
