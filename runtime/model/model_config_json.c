/* SPDX-License-Identifier: Apache-2.0 */
/* config.json as transformers writes it, old and new style. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/files/json_input.h"
#include "runtime/model/model_config_priv.h"

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
    rope->keeps_ramp = !json_reader_bool(scaling, "truncate", true);

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

static void read_factors(json_reader_t *scaling, const char *key, uint32_t n, float *factors)
{
    const json_t *array = json_reader_get(scaling, key);
    if (!json_is_array(array) || json_array_size(array) != n || n > MODEL_MAX_ROPE_PAIRS) {
        json_reader_refuse(scaling, WEFT_ERR_MALFORMED, key, "is not one number a pair");
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        factors[i] = (float)json_number_value(json_array_get(array, i));
        if (!(factors[i] > 0)) {
            json_reader_refuse(scaling, WEFT_ERR_INVALID, key, "has a number that is not above 0");
        }
    }
}

/* The original context may stand beside rope_scaling: then it is in rope already. */
static void read_rope_long(json_reader_t *scaling, model_config_t *config)
{
    model_rope_t *rope = &config->rope;
    rope->kind = MODEL_ROPE_LONG;
    rope->original_context =
        json_reader_u32(scaling, "original_max_position_embeddings", rope->original_context);
    read_factors(scaling, "short_factor", rope->dim / 2, rope->short_factors);
    read_factors(scaling, "long_factor", rope->dim / 2, rope->long_factors);
    rope->mscale =
        (float)json_reader_f64(scaling, "attention_factor",
                               model_longrope_mscale(config->max_context, rope->original_context));
}

typedef struct rope_row {
    const char *name;
    rope_read_fn read;
} rope_row_t;

/* Phi-3's first checkpoints call longrope "su". */
static const rope_row_t rope_rows[] = {
    {"default", read_rope_plain}, {"linear", read_rope_linear}, {"llama3", read_rope_llama3},
    {"yarn", read_rope_yarn},     {"longrope", read_rope_long}, {"su", read_rope_long},
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
                                    "linear, llama3, yarn, longrope)",
                                    scaling->name, kind);
    }
}

static uint32_t rotated_elements(json_reader_t *reader, double share, const model_config_t *config)
{
    if (!(share > 0 && share <= 1)) {
        json_reader_refuse(reader, WEFT_ERR_INVALID, "partial_rotary_factor",
                           "is not between 0 and 1");
        share = 1;
    }
    return (uint32_t)(share * (double)config->head_dim);
}

/* One rotation, into config->rope. scaling: NULL, or the object that name calls. */
static void read_rotation(json_reader_t *root, const json_t *scaling, const char *name, bool is_new,
                          model_config_t *config)
{
    json_reader_t reader = {.object = scaling, .name = name, .diag = root->diag};
    double theta = json_reader_f64(root, "rope_theta", DEFAULT_THETA);
    double rotated = json_reader_f64(root, "partial_rotary_factor", 1);
    const char *kind = NULL;
    if (scaling != NULL && !json_is_object(scaling)) {
        json_reader_refuse(root, WEFT_ERR_MALFORMED, name, "is not an object");
        return;
    }
    if (scaling != NULL) {
        kind = json_reader_string(&reader, "rope_type",
                                  json_reader_string(&reader, "type", is_new ? "default" : NULL));
        theta = json_reader_f64(&reader, "rope_theta", theta);
        rotated = json_reader_f64(&reader, "partial_rotary_factor", rotated);
    }
    config->rope.theta = (float)theta;
    config->rope.dim = rotated_elements(&reader, rotated, config);
    config->rope.original_context = json_reader_u32(root, "original_max_position_embeddings", 0);
    if (scaling != NULL && kind == NULL) {
        json_reader_refuse(&reader, WEFT_ERR_MALFORMED, "rope_type", "missing");
    } else if (scaling != NULL) {
        read_scaling(&reader, kind, config);
    }
    if (root->status == WEFT_OK) {
        root->status = reader.status;
    }
}

/* The rotation of sliding layers where it is their own, by the same rules. */
static void read_local_rotation(json_reader_t *root, const json_t *scaling, const char *name,
                                model_config_t *config)
{
    const model_rope_t global = config->rope;
    config->rope = (model_rope_t){.factor = 1, .mscale = 1};
    read_rotation(root, scaling, name, true, config);
    config->local_rope = config->rope;
    config->rope = global;
    config->has_local_rope = true;
}

/*
 * rope_parameters (new style) holds everything, perhaps for each kind of layer; rope_scaling (old)
 * the scaling alone.
 */
static void read_rope(json_reader_t *root, model_config_t *config)
{
    static const char new_name[] = "config.json: rope_parameters";
    const json_t *parameters = json_reader_get(root, "rope_parameters");
    const json_t *full = json_object_get(parameters, "full_attention");
    const json_t *local = json_object_get(parameters, "sliding_attention");
    if (parameters == NULL) {
        read_rotation(root, json_reader_get(root, "rope_scaling"), "config.json: rope_scaling",
                      false, config);
    } else if (json_is_object(full)) {
        read_rotation(root, full, new_name, true, config);
    } else {
        read_rotation(root, parameters, new_name, true, config);
    }
    if (json_is_object(local)) {
        read_local_rotation(root, local, new_name, config);
    }
}

/* ---- what the graphs do not have ----------------------------------------------------------- */

static void refuse_bool(json_reader_t *root, const char *key)
{
    if (json_reader_bool(root, key, false)) {
        json_reader_refuse(root, WEFT_ERR_UNSUPPORTED, key, "true is not supported");
    }
}

/* A family has one activation; some files name it in a second field, which then counts. */
static void refuse_activation(json_reader_t *root, const model_config_t *config)
{
    const bool is_gelu = config->activation == MODEL_GELU_TANH;
    const char *expected = is_gelu ? "gelu_pytorch_tanh" : "silu";
    const char *name = json_reader_string(root, "hidden_activation",
                                          json_reader_string(root, "hidden_act", expected));
    if (strcmp(name, expected) != 0 && (is_gelu || strcmp(name, "swish") != 0)) {
        json_reader_refuse(root, WEFT_ERR_UNSUPPORTED, "hidden_act",
                           is_gelu ? "only gelu_pytorch_tanh is supported"
                                   : "only silu is supported");
    }
}

static void refuse_variants(json_reader_t *root, const model_config_t *config)
{
    refuse_activation(root, config);
    if (!config->has_output_bias) {
        refuse_bool(root, "attention_bias");
    }
    refuse_bool(root, "mlp_bias");
}

static void read_f8_tiles(json_reader_t *quantization, model_config_t *config)
{
    const json_t *tile = json_reader_get(quantization, "weight_block_size");
    const json_int_t rows = json_integer_value(json_array_get(tile, 0));
    const json_int_t columns = json_integer_value(json_array_get(tile, 1));
    if (tile != NULL && (rows < 1 || rows > 65536 || columns < 1 || columns > 65536)) {
        json_reader_refuse(quantization, WEFT_ERR_INVALID, "weight_block_size", "is not two sizes");
        return;
    }
    config->f8_tile_rows = (uint32_t)rows;
    config->f8_tile_columns = (uint32_t)columns;
}

/* bits and group_size, or w_bit and q_group_size in old files. */
static void read_int4(json_reader_t *quantization, const char *method, model_config_t *config)
{
    const char *format = json_reader_string(quantization, "checkpoint_format", "gptq");
    const json_t *group = json_reader_get(quantization, "group_size");
    const json_int_t size =
        json_integer_value(group != NULL ? group : json_reader_get(quantization, "q_group_size"));
    const bool is_awq = strcmp(method, "awq") == 0;
    if (json_reader_u32(quantization, "bits", json_reader_u32(quantization, "w_bit", 4)) != 4) {
        json_reader_refuse(quantization, WEFT_ERR_UNSUPPORTED, "bits", "only 4 is supported");
    }
    if (is_awq && strcmp(json_reader_string(quantization, "version", "gemm"), "gemm") != 0 &&
        strcmp(json_reader_string(quantization, "version", "gemm"), "GEMM") != 0) {
        json_reader_refuse(quantization, WEFT_ERR_UNSUPPORTED, "version", "only gemm is supported");
    }
    if (size < -1 || size > 65536 || size % 32 > 0) {
        json_reader_refuse(quantization, WEFT_ERR_INVALID, "group_size", "is out of range");
    }
    config->int4_group = size > 0 ? (uint32_t)size : 0;
    config->int4 = is_awq                           ? MODEL_INT4_AWQ
                   : strcmp(format, "gptq_v2") == 0 ? MODEL_INT4_GPTQ_V2
                                                    : MODEL_INT4_GPTQ;
}

/* Forms of weights that model_source_forms.c reads. */
static void read_quantization(json_reader_t *root, model_config_t *config)
{
    json_reader_t quantization = {.object = json_reader_get(root, "quantization_config"),
                                  .name = "config.json: quantization_config",
                                  .diag = root->diag};
    if (quantization.object == NULL || root->status != WEFT_OK) {
        return;
    }
    const char *method = json_reader_string(&quantization, "quant_method", "?");
    if (strcmp(method, "fp8") == 0) {
        read_f8_tiles(&quantization, config);
    } else if (strcmp(method, "gptq") == 0 || strcmp(method, "awq") == 0) {
        read_int4(&quantization, method, config);
    } else if (strcmp(method, "mxfp4") != 0) {
        quantization.status = weft_diag(root->diag, WEFT_ERR_UNSUPPORTED,
                                        "%s: quantization_config: method \"%.64s\" is not "
                                        "supported (known: fp8, mxfp4, gptq, awq)",
                                        root->name, method);
    }
    root->status = quantization.status;
}

/* ---- sliding window ------------------------------------------------------------------------ */

/* True when layer_types decides which layers slide. */
static bool layer_types_decide(json_reader_t *root, model_config_t *config)
{
    size_t i;
    json_t *type;
    const json_t *types = json_reader_get(root, "layer_types");
    if (!json_is_array(types) || json_array_size(types) == 0) {
        return false;
    }
    memset(&config->sliding, 0, sizeof(config->sliding));
    json_array_foreach(types, i, type)
    {
        const char *name = json_string_value(type);
        if (name != NULL && strcmp(name, "sliding_attention") == 0) {
            model_layers_add(&config->sliding, (uint32_t)i);
        } else if (name == NULL || strcmp(name, "full_attention") != 0) {
            json_reader_refuse(root, WEFT_ERR_UNSUPPORTED, "layer_types",
                               "only full_attention and sliding_attention are supported");
        }
    }
    return true;
}

/*
 * Llama has none whatever the file says. Qwen has one when use_sliding_window says so, in the layers
 * from max_window_layers on; others, in the layers that their family says or in all, whenever
 * sliding_window is a number.
 */
static void read_window(json_reader_t *root, model_config_t *config)
{
    const bool is_qwen = strncmp(config->family, "qwen", 4) == 0;
    config->window = json_reader_u32(root, "sliding_window", 0);
    if (config->window == 0 || strcmp(config->family, "llama") == 0) {
        config->window = 0;
        return;
    }
    if (layer_types_decide(root, config)) {
        return;
    }
    if (is_qwen && !json_reader_bool(root, "use_sliding_window", false)) {
        config->window = 0;
        return;
    }
    const uint32_t first = is_qwen ? json_reader_u32(root, "max_window_layers", 0) : 0;
    for (uint32_t i = first; i < config->layers && i < MODEL_MAX_LAYERS; i++) {
        model_layers_add(&config->sliding, i);
    }
}

/* Nothing slides: then there is no window. */
static void forget_unused_window(model_config_t *config)
{
    uint64_t any = 0;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(config->sliding.bits); i++) {
        any |= config->sliding.bits[i];
    }
    config->window = any != 0 ? config->window : 0;
}

/* ---- experts ------------------------------------------------------------------------------- */

void model_config_read_experts(json_reader_t *root, model_config_t *config)
{
    model_experts_t *experts = &config->experts;
    experts->count = json_reader_u32(
        root, "num_local_experts",
        json_reader_u32(root, "num_experts", json_reader_u32(root, "n_routed_experts", 0)));
    experts->used = json_reader_need_u32(root, "num_experts_per_tok");
    experts->intermediate = json_reader_u32(root, "moe_intermediate_size", config->intermediate);
    if (experts->count == 0) {
        json_reader_refuse(root, WEFT_ERR_MALFORMED, "num_experts", "missing");
    }
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

static void read_fields(json_reader_t *root, const model_architecture_t *family,
                        model_config_t *config)
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
    refuse_variants(root, config);
    read_quantization(root, config);
    read_rope(root, config);
    read_window(root, config);
    read_bos(root, config);
    read_eos(root, config);
    if (family->config->from_json != NULL) {
        family->config->from_json(root, config);
    }
    forget_unused_window(config);
    model_config_finish(config);
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
    read_fields(&root, family, config);
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
