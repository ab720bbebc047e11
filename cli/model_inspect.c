/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/model_inspect.h"

#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/json_writer.h"
#include "kernels/kernels.h"
#include "runtime/engine/engine_kv_dtype.h"
#include "runtime/model/model.h"
#include "runtime/model/model_source.h"
#include "text/text.h"

/* A step as large as `weft serve` makes it on a CPU unless told otherwise. */
#define STEP_ROWS    256
#define STEP_OUTPUTS 256

typedef struct dtype_sum {
    uint64_t tensors;
    uint64_t bytes;
} dtype_sum_t;

struct model_inspect {
    model_source_t *source;
    const model_config_t *config;
    text_tokenizer_t *tokenizer; /* NULL: none */
    dtype_sum_t dtypes[K_DTYPE_COUNT];
    uint64_t parameters;
    uint64_t file_bytes; /* of all tensors */
    const char *isa;
    size_t weights_bytes; /* packed for isa; 0 as far as it computes from the file */
    size_t activation_bytes;
    uint32_t max_model_len;
    const char *tool_parser; /* NULL: none */
    const char *reasoning_parser;
    size_t template_bytes;
};

static const k_dtype_t kv_dtypes[] = {K_F32, K_F16, K_BF16, K_F8, K_I8};

/* ---- reckoning ----------------------------------------------------------------------------- */

static uint64_t kv_token_bytes(const model_config_t *config, k_dtype_t dtype)
{
    return (uint64_t)config->layers * config->kv_heads * 2 *
           (config->head_dim * k_dtype_info(dtype)->block_bytes + k_kv_scale_bytes(dtype));
}

/* Whether a model like this can keep its cache so. */
static bool has_kv_dtype(const model_inspect_t *inspect, k_dtype_t dtype)
{
    return engine_kv_dtype_check(dtype, inspect->config, NULL) >= 0;
}

static void sum_tensors(model_inspect_t *inspect)
{
    for (size_t i = 0; i < model_source_tensor_count(inspect->source); i++) {
        const model_tensor_t tensor = model_source_tensor_at(inspect->source, i);
        inspect->dtypes[tensor.dtype].tensors++;
        inspect->dtypes[tensor.dtype].bytes += tensor.bytes;
        inspect->parameters += tensor.rows * tensor.columns;
        inspect->file_bytes += tensor.bytes;
    }
}

static const k_ops_t *best_ops(void)
{
    const k_ops_t *const *ops = k_ops_all();
    while (!(*ops)->is_supported()) { /* ref, the last, runs anywhere */
        ops++;
    }
    return *ops;
}

static weft_status_t reckon_memory(model_inspect_t *inspect)
{
    const k_ops_t *ops = best_ops();
    const model_limits_t limits = {
        .max_rows = STEP_ROWS, .max_outputs = STEP_OUTPUTS, .max_context = inspect->max_model_len};
    inspect->isa = ops->name;
    return model_memory(inspect->source, NULL, &limits, ops, NULL, &inspect->weights_bytes,
                        &inspect->activation_bytes);
}

static weft_status_t fill(model_inspect_t *inspect, const char *path, uint32_t max_model_len,
                          weft_diag_t *diag)
{
    weft_status_t status = model_source_open(path, diag, &inspect->source);
    if (status < 0) {
        return status;
    }
    inspect->config = model_source_config(inspect->source);
    if (max_model_len > inspect->config->max_context) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--max-model-len %u: the model allows %u",
                         max_model_len, inspect->config->max_context);
    }
    inspect->max_model_len = max_model_len > 0 ? max_model_len : inspect->config->max_context;
    status = model_source_tokenizer(inspect->source, diag, &inspect->tokenizer);
    if (status < 0 && status != WEFT_ERR_NOT_FOUND) {
        return status;
    }
    const char *chat_template =
        model_source_chat_template(inspect->source, &inspect->template_bytes);
    if (chat_template != NULL) {
        inspect->tool_parser =
            text_output_guess_tool_parser(chat_template, inspect->template_bytes);
        inspect->reasoning_parser =
            text_output_guess_reasoning_parser(chat_template, inspect->template_bytes);
    }
    sum_tensors(inspect);
    return reckon_memory(inspect);
}

weft_status_t model_inspect_create(const char *path, uint32_t max_model_len, weft_diag_t *diag,
                                   model_inspect_t **inspect_out)
{
    model_inspect_t *inspect = weft_zalloc(sizeof(*inspect), "cli.inspect");
    if (inspect == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const weft_status_t status = fill(inspect, path, max_model_len, diag);
    if (status < 0) {
        model_inspect_destroy(inspect);
        return status;
    }
    *inspect_out = inspect;
    return WEFT_OK;
}

void model_inspect_destroy(model_inspect_t *inspect)
{
    if (inspect != NULL) {
        text_tokenizer_destroy(inspect->tokenizer);
        model_source_close(inspect->source);
        weft_free(inspect);
    }
}

/* ---- for people ---------------------------------------------------------------------------- */

/* "89.9 MiB" */
typedef struct size_text {
    char text[32];
} size_text_t;

static size_text_t size_text(uint64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_text_t out;
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1024 && unit + 1 < WEFT_ARRAY_LEN(units)) {
        value /= 1024;
        unit++;
    }
    snprintf(out.text, sizeof(out.text), unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return out;
}

static const char *rope_kind(const model_rope_t *rope)
{
    static const char *const names[] = {
        [MODEL_ROPE_PLAIN] = "plain",
        [MODEL_ROPE_LINEAR] = "linear",
        [MODEL_ROPE_LLAMA3] = "llama3",
        [MODEL_ROPE_YARN] = "yarn",
        [MODEL_ROPE_FACTORS] = "divisors from the file",
        [MODEL_ROPE_LONG] = "longrope",
    };
    return names[rope->kind];
}

static void print_mla(const model_mla_t *mla, FILE *file)
{
    fprintf(file,
            "latents          %u elements a token and %u that rotate; heads of %u + %u, "
            "values of %u",
            mla->kv_latent, mla->rotary, mla->plain, mla->rotary, mla->value);
    if (mla->q_latent > 0) {
        fprintf(file, "; q by way of %u", mla->q_latent);
    }
    fputc('\n', file);
}

static void print_experts(const model_experts_t *experts, FILE *file)
{
    fprintf(file, "experts          %u a layer, %u used by a token, feed-forward %u",
            experts->count, experts->used, experts->intermediate);
    if (experts->shared_intermediate > 0) {
        fprintf(file, ", one of %u for every token", experts->shared_intermediate);
    }
    fputc('\n', file);
}

static void print_shape(const model_config_t *config, FILE *file)
{
    fprintf(file, "layers           %u\n", config->layers);
    fprintf(file, "hidden size      %u, feed-forward %u\n", config->hidden, config->intermediate);
    fprintf(file, "attention        %u heads, %u key/value heads, of %u elements%s%s\n",
            config->heads, config->kv_heads, config->head_dim,
            config->has_qkv_bias ? ", biases" : "",
            config->qk_norm != MODEL_QK_NORM_NONE ? ", q and k norms" : "");
    if (config->mla.kv_latent > 0) {
        print_mla(&config->mla, file);
    }
    if (config->experts.count > 0) {
        print_experts(&config->experts, file);
    }
    if (config->window > 0) {
        fprintf(file, "window           %u tokens\n", config->window);
    }
    fprintf(file, "rotation         theta %g, %u elements, %s", (double)config->rope.theta,
            config->rope.dim, rope_kind(&config->rope));
    if (config->rope.factor != 1) {
        fprintf(file, ", factor %g", (double)config->rope.factor);
    }
    fprintf(file, "\ncontext          %u tokens\n", config->max_context);
    fprintf(file, "vocabulary       %u tokens%s\n", config->vocab,
            config->is_embedding_tied ? ", output tied to the embedding" : "");
}

static void print_weights(const model_inspect_t *inspect, FILE *file)
{
    fprintf(file, "parameters       %" PRIu64 "\n", inspect->parameters);
    fprintf(file, "tensors          %zu, %s\n", model_source_tensor_count(inspect->source),
            size_text(inspect->file_bytes).text);
    for (int i = 0; i < K_DTYPE_COUNT; i++) {
        const dtype_sum_t *sum = &inspect->dtypes[i];
        if (sum->tensors > 0) {
            fprintf(file, "  %-14s %" PRIu64 ", %s\n", k_dtype_info((k_dtype_t)i)->name,
                    sum->tensors, size_text(sum->bytes).text);
        }
    }
}

static void print_token(const text_tokenizer_t *tokenizer, int32_t id, FILE *file)
{
    text_bytes_t text = {0};
    fprintf(file, "%d", id);
    if (tokenizer != NULL && text_tokenizer_token_string(tokenizer, id, &text) == WEFT_OK) {
        fprintf(file, " %.*s", (int)(text.length < 64 ? text.length : 64), text.data);
    }
    text_bytes_free(text);
}

static void print_text(const model_inspect_t *inspect, FILE *file)
{
    const model_config_t *config = inspect->config;
    fprintf(file, "tokenizer        %s\n",
            inspect->tokenizer == NULL ? "none" : text_tokenizer_describe(inspect->tokenizer));
    fputs("ends at          ", file);
    for (uint32_t i = 0; i < config->n_eos; i++) {
        fputs(i == 0 ? "" : ", ", file);
        print_token(inspect->tokenizer, config->eos[i], file);
    }
    fputs(config->n_eos == 0 ? "no token\n" : "\n", file);
    if (inspect->template_bytes == 0) {
        fputs("chat template    none\n", file);
    } else {
        fprintf(file, "chat template    %zu bytes; tool parser %s, reasoning parser %s\n",
                inspect->template_bytes,
                inspect->tool_parser == NULL ? "none" : inspect->tool_parser,
                inspect->reasoning_parser == NULL ? "none" : inspect->reasoning_parser);
    }
}

static void print_memory(const model_inspect_t *inspect, FILE *file)
{
    fputs("memory\n", file);
    fprintf(file, "  weights        %s mapped from the file, %s packed for %s\n",
            size_text(inspect->file_bytes).text, size_text(inspect->weights_bytes).text,
            inspect->isa);
    fprintf(file, "  activations    %s for steps of %d tokens\n",
            size_text(inspect->activation_bytes).text, STEP_ROWS);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(kv_dtypes); i++) {
        const uint64_t token = kv_token_bytes(inspect->config, kv_dtypes[i]);
        if (!has_kv_dtype(inspect, kv_dtypes[i])) {
            continue;
        }
        fprintf(file, "  KV cache %-5s %s a token, %s for %u tokens\n",
                k_dtype_info(kv_dtypes[i])->name, size_text(token).text,
                size_text(token * inspect->max_model_len).text, inspect->max_model_len);
    }
}

void model_inspect_print(const model_inspect_t *inspect, FILE *file)
{
    const model_config_t *config = inspect->config;
    fprintf(file, "model            %s\n", config->name);
    fprintf(file, "architecture     %s (%s, family %s)\n", config->architecture,
            model_source_format(inspect->source), config->family);
    print_shape(config, file);
    print_weights(inspect, file);
    print_text(inspect, file);
    print_memory(inspect, file);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

/* null where the model has none, as experts. */
static void put_mla(const model_mla_t *mla, weft_json_t *json)
{
    if (mla->kv_latent == 0) {
        weft_json_put_null(json, "latents");
        return;
    }
    weft_json_key(json, "latents");
    weft_json_begin_object(json);
    weft_json_put_u64(json, "kv", mla->kv_latent);
    weft_json_put_u64(json, "q", mla->q_latent);
    weft_json_put_u64(json, "plain", mla->plain);
    weft_json_put_u64(json, "rotary", mla->rotary);
    weft_json_put_u64(json, "value", mla->value);
    weft_json_end_object(json);
}

static void put_experts(const model_experts_t *experts, weft_json_t *json)
{
    if (experts->count == 0) {
        weft_json_put_null(json, "experts");
        return;
    }
    weft_json_key(json, "experts");
    weft_json_begin_object(json);
    weft_json_put_u64(json, "count", experts->count);
    weft_json_put_u64(json, "used", experts->used);
    weft_json_put_u64(json, "intermediate", experts->intermediate);
    weft_json_put_u64(json, "shared_intermediate", experts->shared_intermediate);
    weft_json_end_object(json);
}

static void put_shape(const model_config_t *config, weft_json_t *json)
{
    weft_json_put_u64(json, "layers", config->layers);
    weft_json_put_u64(json, "hidden", config->hidden);
    weft_json_put_u64(json, "intermediate", config->intermediate);
    weft_json_put_u64(json, "heads", config->heads);
    weft_json_put_u64(json, "kv_heads", config->kv_heads);
    weft_json_put_u64(json, "head_dim", config->head_dim);
    weft_json_put_u64(json, "vocab", config->vocab);
    weft_json_put_u64(json, "context", config->max_context);
    weft_json_put_u64(json, "window", config->window);
    weft_json_put_bool(json, "tied_embedding", config->is_embedding_tied);
    put_mla(&config->mla, json);
    put_experts(&config->experts, json);
    weft_json_key(json, "rope");
    weft_json_begin_object(json);
    weft_json_put_string(json, "kind", rope_kind(&config->rope));
    weft_json_put_f64(json, "theta", (double)config->rope.theta);
    weft_json_put_f64(json, "factor", (double)config->rope.factor);
    weft_json_put_u64(json, "elements", config->rope.dim);
    weft_json_end_object(json);
    weft_json_key(json, "eos");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < config->n_eos; i++) {
        weft_json_i64(json, config->eos[i]);
    }
    weft_json_end_array(json);
}

static void put_weights(const model_inspect_t *inspect, weft_json_t *json)
{
    weft_json_put_u64(json, "parameters", inspect->parameters);
    weft_json_put_u64(json, "tensors", model_source_tensor_count(inspect->source));
    weft_json_key(json, "dtypes");
    weft_json_begin_object(json);
    for (int i = 0; i < K_DTYPE_COUNT; i++) {
        if (inspect->dtypes[i].tensors > 0) {
            weft_json_key(json, k_dtype_info((k_dtype_t)i)->name);
            weft_json_begin_object(json);
            weft_json_put_u64(json, "tensors", inspect->dtypes[i].tensors);
            weft_json_put_u64(json, "bytes", inspect->dtypes[i].bytes);
            weft_json_end_object(json);
        }
    }
    weft_json_end_object(json);
}

static void put_text(const model_inspect_t *inspect, weft_json_t *json)
{
    weft_json_put_string(json, "tokenizer",
                         inspect->tokenizer == NULL ? NULL
                                                    : text_tokenizer_describe(inspect->tokenizer));
    weft_json_put_u64(json, "chat_template_bytes", inspect->template_bytes);
    weft_json_put_string(json, "tool_parser", inspect->tool_parser);
    weft_json_put_string(json, "reasoning_parser", inspect->reasoning_parser);
}

static void put_memory(const model_inspect_t *inspect, weft_json_t *json)
{
    weft_json_key(json, "memory");
    weft_json_begin_object(json);
    weft_json_put_u64(json, "mapped_bytes", inspect->file_bytes);
    weft_json_put_string(json, "isa", inspect->isa);
    weft_json_put_u64(json, "packed_bytes", inspect->weights_bytes);
    weft_json_put_u64(json, "activation_bytes", inspect->activation_bytes);
    weft_json_put_u64(json, "max_model_len", inspect->max_model_len);
    weft_json_key(json, "kv_cache");
    weft_json_begin_object(json);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(kv_dtypes); i++) {
        const uint64_t token = kv_token_bytes(inspect->config, kv_dtypes[i]);
        if (!has_kv_dtype(inspect, kv_dtypes[i])) {
            continue;
        }
        weft_json_key(json, k_dtype_info(kv_dtypes[i])->name);
        weft_json_begin_object(json);
        weft_json_put_u64(json, "token_bytes", token);
        weft_json_put_u64(json, "sequence_bytes", token * inspect->max_model_len);
        weft_json_end_object(json);
    }
    weft_json_end_object(json);
    weft_json_end_object(json);
}

weft_status_t model_inspect_print_json(const model_inspect_t *inspect, FILE *file)
{
    weft_json_t json;
    weft_buffer_t out = {0};
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    weft_json_init(&json, &out);
    weft_json_begin_object(&json);
    weft_json_put_string(&json, "path", model_source_path(inspect->source));
    weft_json_put_string(&json, "format", model_source_format(inspect->source));
    weft_json_put_string(&json, "name", inspect->config->name);
    weft_json_put_string(&json, "architecture", inspect->config->architecture);
    weft_json_put_string(&json, "family", inspect->config->family);
    put_shape(inspect->config, &json);
    put_weights(inspect, &json);
    put_text(inspect, &json);
    put_memory(inspect, &json);
    weft_json_end_object(&json);
    if (!out.is_failed) {
        fwrite(out.data, 1, out.length, file);
        fputc('\n', file);
        status = WEFT_OK;
    }
    weft_buffer_free(&out);
    return status;
}
