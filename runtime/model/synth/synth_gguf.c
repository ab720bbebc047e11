/* SPDX-License-Identifier: Apache-2.0 */
/* The head of a GGUF file: metadata with the vocabulary, and where each tensor lies. */
#include <stdio.h>
#include <string.h>

#include "runtime/files/gguf.h"
#include "runtime/model/model_config_priv.h"
#include "runtime/model/synth/synth_priv.h"
#include "runtime/model/synth/synth_vocab.h"

#define ALIGNMENT 32

typedef struct writer {
    weft_buffer_t *out;
    weft_buffer_t values; /* key-value pairs, counted as they come */
    uint64_t n_values;
    const char *architecture;
} writer_t;

static void put_uint(weft_buffer_t *out, uint64_t value, size_t bytes)
{
    uint8_t data[8];
    for (size_t i = 0; i < bytes; i++) {
        data[i] = (uint8_t)(value >> (8 * i));
    }
    weft_buffer_append(out, data, bytes);
}

static void put_string(weft_buffer_t *out, const char *text)
{
    put_uint(out, strlen(text), 8);
    weft_buffer_puts(out, text);
}

static void put_f32(weft_buffer_t *out, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    put_uint(out, bits, 4);
}

/* ---- key-value pairs ----------------------------------------------------------------------- */

static void begin_value(writer_t *writer, const char *key, gguf_type_t type)
{
    writer->n_values++;
    put_string(&writer->values, key);
    put_uint(&writer->values, type, 4);
}

static void add_string(writer_t *writer, const char *key, const char *text)
{
    begin_value(writer, key, GGUF_STRING);
    put_string(&writer->values, text);
}

static void add_u32(writer_t *writer, const char *key, uint32_t value)
{
    begin_value(writer, key, GGUF_UINT32);
    put_uint(&writer->values, value, 4);
}

static void add_bool(writer_t *writer, const char *key, bool value)
{
    begin_value(writer, key, GGUF_BOOL);
    put_uint(&writer->values, value, 1);
}

static void begin_array(writer_t *writer, const char *key, gguf_type_t type, uint64_t count)
{
    begin_value(writer, key, GGUF_ARRAY);
    put_uint(&writer->values, type, 4);
    put_uint(&writer->values, count, 8);
}

/* "<architecture>.<field>" */
static void add_field_u32(writer_t *writer, const char *field, uint32_t value)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", writer->architecture, field);
    add_u32(writer, key, value);
}

static void add_field_f32(writer_t *writer, const char *field, float value)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", writer->architecture, field);
    begin_value(writer, key, GGUF_FLOAT32);
    put_f32(&writer->values, value);
}

static void add_field_bool(writer_t *writer, const char *field, bool value)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", writer->architecture, field);
    add_bool(writer, key, value);
}

static void add_field_string(writer_t *writer, const char *field, const char *text)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", writer->architecture, field);
    add_string(writer, key, text);
}

/* With latents: what the cache holds, then what heads have. */
static void add_head_sizes(writer_t *writer, const model_config_t *config)
{
    const model_mla_t *mla = &config->mla;
    if (mla->kv_latent == 0) {
        add_field_u32(writer, "attention.key_length", config->head_dim);
        add_field_u32(writer, "attention.value_length", config->head_dim);
        return;
    }
    add_field_u32(writer, "attention.key_length", mla->kv_latent + mla->rotary);
    add_field_u32(writer, "attention.value_length", mla->kv_latent);
    add_field_u32(writer, "attention.key_length_mla", mla->plain + mla->rotary);
    add_field_u32(writer, "attention.value_length_mla", mla->value);
    add_field_u32(writer, "attention.kv_lora_rank", mla->kv_latent);
    if (mla->q_latent > 0) {
        add_field_u32(writer, "attention.q_lora_rank", mla->q_latent);
    }
}

static void add_routing(writer_t *writer, const model_config_t *config)
{
    enum { SOFTMAX = 1, SIGMOID = 2 };
    const model_experts_t *experts = &config->experts;
    uint32_t dense = 0;
    while (model_layers_has(&config->dense_layers, dense)) {
        dense++;
    }
    add_field_u32(writer, "leading_dense_block_count", dense);
    add_field_u32(writer, "expert_shared_count",
                  experts->shared_intermediate / experts->intermediate);
    add_field_f32(writer, "expert_weights_scale", experts->scale);
    add_field_bool(writer, "expert_weights_norm", experts->renormalizes);
    add_field_u32(writer, "expert_gating_func", experts->is_sigmoid ? SIGMOID : SOFTMAX);
    add_field_u32(writer, "expert_group_count", experts->n_groups > 0 ? experts->n_groups : 1);
    add_field_u32(writer, "expert_group_used_count",
                  experts->groups_used > 0 ? experts->groups_used : 1);
}

static void add_shape(writer_t *writer, const model_config_t *config)
{
    add_field_u32(writer, "block_count", config->layers);
    add_field_u32(writer, "context_length", config->max_context);
    add_field_u32(writer, "embedding_length", config->hidden);
    add_field_u32(writer, "feed_forward_length", config->intermediate);
    add_field_u32(writer, "vocab_size", config->vocab);
    add_field_u32(writer, "attention.head_count", config->heads);
    add_field_u32(writer, "attention.head_count_kv", config->kv_heads);
    add_head_sizes(writer, config);
    add_field_f32(writer, "attention.layer_norm_rms_epsilon", config->norm_eps);
    add_field_u32(writer, "rope.dimension_count", config->rope.dim);
    add_field_f32(writer, "rope.freq_base", config->rope.theta);
}

/* What some families have. */
static void add_variant(writer_t *writer, const model_config_t *config)
{
    const model_experts_t *experts = &config->experts;
    if (config->window > 0) {
        add_field_u32(writer, "attention.sliding_window", config->window);
    }
    if (config->attention_softcap > 0) {
        add_field_f32(writer, "attn_logit_softcapping", config->attention_softcap);
    }
    if (config->logit_softcap > 0) {
        add_field_f32(writer, "final_logit_softcapping", config->logit_softcap);
    }
    if (config->residual_scale != 1) {
        add_field_f32(writer, "embedding_scale", config->embedding_scale);
        add_field_f32(writer, "residual_scale", config->residual_scale);
        add_field_f32(writer, "attention.scale", config->attention_scale);
        add_field_f32(writer, "logit_scale", 1 / config->logit_scale);
    }
    if (config->rope.kind == MODEL_ROPE_YARN) {
        add_field_string(writer, "rope.scaling.type", "yarn");
        add_field_f32(writer, "rope.scaling.factor", config->rope.factor);
        add_field_u32(writer, "rope.scaling.original_context_length",
                      config->rope.original_context);
    }
    if (experts->count > 0) {
        add_field_u32(writer, "expert_count", experts->count);
        add_field_u32(writer, "expert_used_count", experts->used);
        add_field_u32(writer, "expert_feed_forward_length", experts->intermediate);
    }
    if (config->mla.kv_latent > 0) {
        add_routing(writer, config);
    }
}

static void add_vocabulary(writer_t *writer, uint32_t vocab)
{
    enum { NORMAL = 1, CONTROL = 3 };
    char text[SYNTH_TEXT_SIZE];
    add_string(writer, "tokenizer.ggml.model", "gpt2");
    add_string(writer, "tokenizer.ggml.pre", "gpt-2");
    begin_array(writer, "tokenizer.ggml.tokens", GGUF_STRING, vocab);
    for (uint32_t id = 0; id < vocab; id++) {
        if (id >= SYNTH_SPECIALS) {
            synth_vocab_token(id, text);
        }
        put_string(&writer->values, id < SYNTH_SPECIALS ? synth_specials[id] : text);
    }
    begin_array(writer, "tokenizer.ggml.token_type", GGUF_INT32, vocab);
    for (uint32_t id = 0; id < vocab; id++) {
        put_uint(&writer->values, id < SYNTH_SPECIALS ? CONTROL : NORMAL, 4);
    }
    begin_array(writer, "tokenizer.ggml.merges", GGUF_STRING, vocab - SYNTH_MIN_VOCAB);
    for (uint32_t id = SYNTH_MIN_VOCAB; id < vocab; id++) {
        synth_vocab_merge(id, text);
        put_string(&writer->values, text);
    }
    add_u32(writer, "tokenizer.ggml.bos_token_id", SYNTH_BOS);
    add_u32(writer, "tokenizer.ggml.eos_token_id", SYNTH_EOS);
    add_bool(writer, "tokenizer.ggml.add_bos_token", false);
    add_string(writer, "tokenizer.chat_template", synth_chat_template);
}

/* ---- tensors ------------------------------------------------------------------------------- */

static void put_tensor(const synth_t *synth, const synth_tensor_t *tensor, weft_buffer_t *out)
{
    char name[SYNTH_NAME_BYTES];
    const model_tensor_want_t *want = &tensor->want;
    const uint32_t n_dims = want->stacked > 1 ? 3 : want->rows == 1 ? 1 : 2;
    model_tensor_name(&synth->config, synth->kind, want->key, name, sizeof(name));
    put_string(out, name);
    put_uint(out, n_dims, 4);
    put_uint(out, want->columns, 8);
    if (n_dims >= 2) {
        put_uint(out, want->rows / want->stacked, 8);
    }
    if (n_dims == 3) {
        put_uint(out, want->stacked, 8);
    }
    put_uint(out, (uint64_t)k_dtype_info(tensor->dtype)->gguf_type, 4);
    put_uint(out, tensor->offset, 8);
}

void synth_gguf_header(const synth_t *synth, weft_buffer_t *out)
{
    const model_architecture_t *family = model_architecture_by_hf(synth->config.architecture);
    writer_t writer = {.out = out, .architecture = family->gguf_architecture};
    add_string(&writer, "general.architecture", writer.architecture);
    add_string(&writer, "general.name", synth->config.name);
    add_u32(&writer, "general.alignment", ALIGNMENT);
    add_shape(&writer, &synth->config);
    add_variant(&writer, &synth->config);
    add_vocabulary(&writer, synth->config.vocab);

    weft_buffer_puts(out, "GGUF");
    put_uint(out, 3, 4);
    put_uint(out, synth->n_tensors, 8);
    put_uint(out, writer.n_values, 8);
    weft_buffer_append(out, writer.values.data, writer.values.length);
    out->is_failed = out->is_failed || writer.values.is_failed;
    weft_buffer_free(&writer.values);
    for (uint32_t i = 0; i < synth->n_tensors; i++) {
        put_tensor(synth, &synth->tensors[i], out);
    }
    while (out->length % ALIGNMENT != 0 && !out->is_failed) {
        weft_buffer_append(out, "", 1);
    }
}
