/* SPDX-License-Identifier: Apache-2.0 */
/* config.json as transformers writes it, old and new style. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/json_input.h"
#include "runtime/model_config_priv.h"

#define MAX_CONFIG_BYTES (4 << 20)
#define DEFAULT_THETA    10000.0
#define DEFAULT_NORM_EPS 1e-6

/* ---- rotary position embedding ------------------------------------------------------------- */

typedef void (*rope_read_fn)(json_reader_t *scaling, model_config_t *config);

/* A factor of 1 or less, or none, extends nothing. */
static uint32_t scaled_context(uint32_t context, float factor)
{
    if (!(factor > 1)) {
        return context;
    }
    const double scaled = (double)context * (double)factor;
    return scaled >= (double)UINT32_MAX ? UINT32_MAX : (uint32_t)scaled;
}

static void read_rope_plain(json_reader_t *scaling, model_config_t *config)
{
    (void)scaling;
    config->rope.kind = MODEL_ROPE_PLAIN;
}

static void read_rope_linear(json_reader_t *scaling, model_config_t *config)
{
    config->rope.kind = MODEL_ROPE_LINEAR;
    config->rope.factor = (float)json_reader_need_f64(scaling, "factor");
    config->max_context = scaled_context(config->max_context, config->rope.factor);
}

static void read_rope_llama3(json_reader_t *scaling, model_config_t *config)
{
    model_rope_t *rope = &config->rope;
    rope->kind = MODEL_ROPE_LLAMA3;
    rope->factor = (float)json_reader_need_f64(scaling, "factor");
    rope->low_freq_factor = (float)json_reader_need_f64(scaling, "low_freq_factor");
    rope->high_freq_factor = (float)json_reader_need_f64(scaling, "high_freq_factor");
    rope->original_context = json_reader_need_u32(scaling, "original_max_position_embeddings");
}

static void read_rope_yarn(json_reader_t *scaling, model_config_t *config)
{
    model_rope_t *rope = &config->rope;
    rope->kind = MODEL_ROPE_YARN;
    rope->factor = (float)json_reader_need_f64(scaling, "factor");
    rope->beta_fast = (float)json_reader_f64(scaling, "beta_fast", 32);
    rope->beta_slow = (float)json_reader_f64(scaling, "beta_slow", 1);
    rope->original_context =
        json_reader_u32(scaling, "original_max_position_embeddings", config->max_context);
    if (!json_reader_bool(scaling, "truncate", true)) {
        json_reader_refuse(scaling, WEFT_ERR_UNSUPPORTED, "truncate", "false is not supported");
    }

    const double factor = (double)rope->factor;
    const double mscale = json_reader_f64(scaling, "mscale", 0);
    const double mscale_all = json_reader_f64(scaling, "mscale_all_dim", 0);
    double attention = model_yarn_mscale(factor, 1);
    if (mscale != 0 && mscale_all != 0) {
        attention = model_yarn_mscale(factor, mscale) / model_yarn_mscale(factor, mscale_all);
    }
    rope->mscale = (float)json_reader_f64(scaling, "attention_factor", attention);

    const uint32_t extended = scaled_context(rope->original_context, rope->factor);
    if (extended > config->max_context) {
        config->max_context = extended;
    }
}

typedef struct rope_row {
    const char *name;
    rope_read_fn read;
} rope_row_t;

static const rope_row_t rope_rows[] = {
    {"default", read_rope_plain},
    {"linear", read_rope_linear},
    {"llama3", read_rope_llama3},
    {"yarn", read_rope_yarn},
};

static void read_scaling(json_reader_t *scaling, const char *kind, model_config_t *config)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rope_rows); i++) {
        if (strcmp(rope_rows[i].name, kind) == 0) {
            rope_rows[i].read(scaling, config);
            return;
        }
    }
    if (scaling->status == WEFT_OK) {
        scaling->status = weft_diag(scaling->diag, WEFT_ERR_UNSUPPORTED,
                                    "%s: rope_type \"%.64s\" is not supported (known: default, "
                                    "linear, llama3, yarn)",
                                    scaling->name, kind);
    }
}

/* rope_parameters (new style) holds everything; rope_scaling (old) the scaling alone. */
static void read_rope(json_reader_t *root, model_config_t *config)
{
    const json_t *parameters = json_reader_get(root, "rope_parameters");
    const json_t *scaling = parameters != NULL ? parameters : json_reader_get(root, "rope_scaling");
    const char *name =
        parameters != NULL ? "config.json: rope_parameters" : "config.json: rope_scaling";
    json_reader_t reader = {.object = scaling, .name = name, .diag = root->diag};
    double theta = json_reader_f64(root, "rope_theta", DEFAULT_THETA);
    double rotated = json_reader_f64(root, "partial_rotary_factor", 1);

    if (scaling != NULL && !json_is_object(scaling)) {
        json_reader_refuse(root, WEFT_ERR_MALFORMED, name, "is not an object");
        return;
    }
    if (scaling != NULL) {
        const char *kind = json_reader_string(
            &reader, "rope_type",
            json_reader_string(&reader, "type", parameters != NULL ? "default" : NULL));
        theta = json_reader_f64(&reader, "rope_theta", theta);
        rotated = json_reader_f64(&reader, "partial_rotary_factor", rotated);
        if (json_is_object(json_object_get(scaling, "full_attention"))) {
            json_reader_refuse(&reader, WEFT_ERR_UNSUPPORTED, "full_attention",
                               "layers that rotate differently are not supported");
        }
        if (kind == NULL) {
            json_reader_refuse(&reader, WEFT_ERR_MALFORMED, "rope_type", "missing");
        } else {
            read_scaling(&reader, kind, config);
        }
    }
    if (!(rotated > 0 && rotated <= 1)) {
        json_reader_refuse(&reader, WEFT_ERR_INVALID, "partial_rotary_factor",
                           "is not between 0 and 1");
        rotated = 1;
    }
    config->rope.theta = (float)theta;
    config->rope.dim = (uint32_t)(rotated * (double)config->head_dim);
    if (root->status == WEFT_OK) {
        root->status = reader.status;
    }
}

/* ---- what the graphs do not have ----------------------------------------------------------- */

static void refuse_bool(json_reader_t *root, const char *key)
{
    if (json_reader_bool(root, key, false)) {
        json_reader_refuse(root, WEFT_ERR_UNSUPPORTED, key, "true is not supported");
    }
}

static void refuse_variants(json_reader_t *root)
{
    const char *activation = json_reader_string(root, "hidden_act", "silu");
    if (strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0) {
        json_reader_refuse(root, WEFT_ERR_UNSUPPORTED, "hidden_act", "only silu is supported");
    }
    refuse_bool(root, "attention_bias");
    refuse_bool(root, "mlp_bias");
    const json_t *quantization = json_reader_get(root, "quantization_config");
    if (quantization != NULL && root->status == WEFT_OK) {
        const char *method = json_string_value(json_object_get(quantization, "quant_method"));
        root->status = weft_diag(root->diag, WEFT_ERR_UNSUPPORTED,
                                 "%s: quantization_config: method \"%.64s\" is not supported "
                                 "(weights are F32, F16 or BF16)",
                                 root->name, method == NULL ? "?" : method);
    }
}

/* ---- sliding window ------------------------------------------------------------------------ */

static const char mixed_layers[] = "layers with and without a window are not supported";

/* True when layer_types decides; then *window_out tells how. */
static bool layer_types_decide(json_reader_t *root, bool *window_out)
{
    size_t i;
    size_t sliding = 0;
    json_t *type;
    const json_t *types = json_reader_get(root, "layer_types");
    if (!json_is_array(types) || json_array_size(types) == 0) {
        return false;
    }
    json_array_foreach(types, i, type)
    {
        const char *name = json_string_value(type);
        const bool is_sliding = name != NULL && strcmp(name, "sliding_attention") == 0;
        sliding += is_sliding;
        if (!is_sliding && (name == NULL || strcmp(name, "full_attention") != 0)) {
            json_reader_refuse(root, WEFT_ERR_UNSUPPORTED, "layer_types",
                               "only full_attention and sliding_attention are supported");
        }
    }
    if (sliding != 0 && sliding != json_array_size(types)) {
        json_reader_refuse(root, WEFT_ERR_UNSUPPORTED, "layer_types", mixed_layers);
    }
    *window_out = sliding != 0;
    return true;
}

/*
 * Llama has none whatever the file says. Qwen has one when use_sliding_window says so, in the layers
 * from max_window_layers on; Mistral whenever sliding_window is a number.
 */
static void read_window(json_reader_t *root, model_config_t *config)
{
    const uint32_t window = json_reader_u32(root, "sliding_window", 0);
    const bool is_mistral = strcmp(config->family, "mistral") == 0;
    bool has_window = is_mistral || json_reader_bool(root, "use_sliding_window", false);
    if (window == 0 || strcmp(config->family, "llama") == 0) {
        return;
    }
    if (!layer_types_decide(root, &has_window) && has_window && !is_mistral) {
        const uint32_t first = json_reader_u32(root, "max_window_layers", 0);
        has_window = first < config->layers;
        if (has_window && first != 0) {
            json_reader_refuse(root, WEFT_ERR_UNSUPPORTED, "max_window_layers", mixed_layers);
        }
    }
    config->window = has_window ? window : 0;
}

/* ---- tokens and defaults ------------------------------------------------------------------- */

static void add_eos(json_reader_t *reader, const json_t *id, model_config_t *config)
{
    if (!json_is_integer(id)) {
        json_reader_refuse(reader, WEFT_ERR_MALFORMED, "eos_token_id", "is not an integer");
    } else if (json_integer_value(id) >= 0 &&
               model_config_add_eos(config, json_integer_value(id)) != WEFT_OK) {
        json_reader_refuse(reader, WEFT_ERR_TOO_LARGE, "eos_token_id",
                           "more than 8 ids, or one out of range");
    }
}

static void read_eos(json_reader_t *reader, model_config_t *config)
{
    size_t i;
    json_t *id;
    const json_t *eos = json_reader_get(reader, "eos_token_id");
    if (json_is_array(eos)) {
        json_array_foreach(eos, i, id)
        {
            add_eos(reader, id, config);
        }
    } else if (eos != NULL) {
        add_eos(reader, eos, config);
    }
}

static void read_bos(json_reader_t *reader, model_config_t *config)
{
    const json_t *bos = json_reader_get(reader, "bos_token_id");
    if (json_is_integer(bos) && json_integer_value(bos) >= 0) {
        const uint32_t id = json_reader_u32(reader, "bos_token_id", 0);
        config->bos = id > INT32_MAX ? INT32_MAX : (int32_t)id;
    }
}

static weft_status_t read_generation(const char *json, size_t length, weft_diag_t *diag,
                                     model_config_t *config)
{
    json_t *root = NULL;
    json_reader_t reader = {.name = "generation_config.json", .diag = diag};
    reader.status = json_input_parse(json, length, MAX_CONFIG_BYTES, 0, reader.name, diag, &root);
    if (reader.status != WEFT_OK) {
        return reader.status;
    }
    reader.object = root;
    read_eos(&reader, config);
    if (config->bos < 0) {
        read_bos(&reader, config);
    }
    config->default_temperature = (float)json_reader_f64(&reader, "temperature", (double)NAN);
    config->default_top_p = (float)json_reader_f64(&reader, "top_p", (double)NAN);
    const uint32_t top_k = json_reader_u32(&reader, "top_k", 0);
    config->default_top_k = top_k > 0 && top_k <= INT32_MAX ? (int32_t)top_k : -1;
    json_decref(root);
    return reader.status;
}

/* ---- the whole ----------------------------------------------------------------------------- */

static const model_architecture_t *find_family(json_reader_t *root, const char **architecture_out)
{
    const json_t *architectures = json_reader_get(root, "architectures");
    const char *name = json_string_value(json_array_get(architectures, 0));
    const char *type = json_reader_string(root, "model_type", NULL);
    const model_architecture_t *family = NULL;
    if (name != NULL) {
        family = model_architecture_by_hf(name);
    } else if (type != NULL) { /* the same words as GGUF's */
        family = model_architecture_by_gguf(type, strlen(type));
        name = family != NULL ? family->hf_architecture : type;
    }
    if (name == NULL) {
        json_reader_refuse(root, WEFT_ERR_MALFORMED, "architectures", "missing");
    } else if (family == NULL && root->status == WEFT_OK) {
        root->status = model_architecture_unknown(root->name, name, false, root->diag);
    }
    *architecture_out = name;
    return family;
}

static void read_head_dim(json_reader_t *root, model_config_t *config)
{
    config->head_dim = json_reader_u32(root, "head_dim", 0);
    if (config->head_dim != 0 || config->heads == 0) {
        return;
    }
    if (config->hidden % config->heads != 0) {
        json_reader_refuse(root, WEFT_ERR_INVALID, "hidden_size",
                           "does not divide over num_attention_heads, and there is no head_dim");
    }
    config->head_dim = config->hidden / config->heads;
}

static void read_fields(json_reader_t *root, model_config_t *config)
{
    snprintf(config->name, sizeof(config->name), "%s",
             json_reader_string(root, "_name_or_path", ""));
    config->layers = json_reader_need_u32(root, "num_hidden_layers");
    config->hidden = json_reader_need_u32(root, "hidden_size");
    config->heads = json_reader_need_u32(root, "num_attention_heads");
    config->kv_heads = json_reader_u32(root, "num_key_value_heads", config->heads);
    read_head_dim(root, config);
    config->intermediate = json_reader_need_u32(root, "intermediate_size");
    config->vocab = json_reader_need_u32(root, "vocab_size");
    config->max_context = json_reader_need_u32(root, "max_position_embeddings");
    config->norm_eps = (float)json_reader_f64(root, "rms_norm_eps", DEFAULT_NORM_EPS);
    config->is_embedding_tied = json_reader_bool(root, "tie_word_embeddings", false);
    refuse_variants(root);
    read_rope(root, config);
    read_window(root, config);
    read_bos(root, config);
    read_eos(root, config);
}

static weft_status_t read_root(const json_t *object, weft_diag_t *diag, model_config_t *config)
{
    json_reader_t root = {.object = object, .name = "config.json", .diag = diag};
    const char *architecture;
    if (!json_is_object(object)) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "config.json: is not a JSON object");
    }
    const model_architecture_t *family = find_family(&root, &architecture);
    if (root.status != WEFT_OK) {
        return root.status;
    }
    model_config_init(config, family);
    snprintf(config->architecture, sizeof(config->architecture), "%s", architecture);
    read_fields(&root, config);
    return root.status;
}

weft_status_t model_config_from_json(const char *json, size_t length, const char *generation,
                                     size_t generation_length, weft_diag_t *diag,
                                     model_config_t *config_out)
{
    json_t *root = NULL;
    model_config_t config;
    weft_status_t status =
        json_input_parse(json, length, MAX_CONFIG_BYTES, 0, "config.json", diag, &root);
    if (status == WEFT_OK) {
        status = read_root(root, diag, &config);
    }
    json_decref(root);
    if (status == WEFT_OK && generation != NULL) {
        status = read_generation(generation, generation_length, diag, &config);
    }
    if (status != WEFT_OK) {
        return status;
    }
    status = model_config_check(&config, diag);
    if (status == WEFT_OK) {
        *config_out = config;
    } else {
        weft_diag_prefix(diag, "config.json");
    }
    return status;
}
