/* SPDX-License-Identifier: Apache-2.0 */
/* The head of a safetensors file, and the JSON files that a checkpoint has beside it. */
#include <stdio.h>
#include <string.h>

#include "base/json_writer.h"
#include "runtime/synth/synth_priv.h"
#include "runtime/synth/synth_vocab.h"

#define ALIGNMENT 64

/* ---- model.safetensors --------------------------------------------------------------------- */

static void put_tensor(const synth_t *synth, const synth_tensor_t *tensor, weft_json_t *json)
{
    char name[SYNTH_NAME_BYTES];
    const model_tensor_want_t *want = &tensor->want;
    model_tensor_name(synth->kind, want->id, want->layer, name, sizeof(name));
    weft_json_key(json, name);
    weft_json_begin_object(json);
    weft_json_put_string(json, "dtype", k_dtype_info(tensor->dtype)->safetensors);
    weft_json_key(json, "shape");
    weft_json_begin_array(json);
    if (want->rows > 1) {
        weft_json_u64(json, want->rows);
    }
    weft_json_u64(json, want->columns);
    weft_json_end_array(json);
    weft_json_key(json, "data_offsets");
    weft_json_begin_array(json);
    weft_json_u64(json, tensor->offset);
    weft_json_u64(json, tensor->offset + tensor->bytes);
    weft_json_end_array(json);
    weft_json_end_object(json);
}

void synth_safetensors_header(const synth_t *synth, weft_buffer_t *out)
{
    static const char length_to_come[8];
    weft_json_t json;
    weft_buffer_append(out, length_to_come, sizeof(length_to_come));
    weft_json_init(&json, out);
    weft_json_begin_object(&json);
    for (uint32_t i = 0; i < synth->n_tensors; i++) {
        put_tensor(synth, &synth->tensors[i], &json);
    }
    weft_json_end_object(&json);
    while (out->length % ALIGNMENT != 0 && !out->is_failed) {
        weft_buffer_puts(out, " ");
    }
    for (size_t i = 0; i < sizeof(length_to_come) && !out->is_failed; i++) {
        out->data[i] = (char)((out->length - sizeof(length_to_come)) >> (8 * i));
    }
}

/* ---- config.json --------------------------------------------------------------------------- */

static void put_config(const synth_t *synth, weft_json_t *json)
{
    const model_config_t *config = &synth->config;
    weft_json_key(json, "architectures");
    weft_json_begin_array(json);
    weft_json_string(json, config->architecture);
    weft_json_end_array(json);
    weft_json_put_string(json, "_name_or_path", config->name);
    weft_json_put_string(json, "model_type", config->family);
    weft_json_put_string(json, "torch_dtype",
                         synth->dtype == K_BF16  ? "bfloat16"
                         : synth->dtype == K_F16 ? "float16"
                                                 : "float32");
    weft_json_put_string(json, "hidden_act", "silu");
    weft_json_put_u64(json, "num_hidden_layers", config->layers);
    weft_json_put_u64(json, "hidden_size", config->hidden);
    weft_json_put_u64(json, "intermediate_size", config->intermediate);
    weft_json_put_u64(json, "num_attention_heads", config->heads);
    weft_json_put_u64(json, "num_key_value_heads", config->kv_heads);
    weft_json_put_u64(json, "head_dim", config->head_dim);
    weft_json_put_u64(json, "vocab_size", config->vocab);
    weft_json_put_u64(json, "max_position_embeddings", config->max_context);
    weft_json_put_f64(json, "rms_norm_eps", (double)config->norm_eps);
    weft_json_put_f64(json, "rope_theta", (double)config->rope.theta);
    weft_json_put_bool(json, "tie_word_embeddings", config->is_embedding_tied);
    weft_json_put_u64(json, "bos_token_id", SYNTH_BOS);
    weft_json_put_u64(json, "eos_token_id", SYNTH_EOS);
}

static void put_generation(const synth_t *synth, weft_json_t *json)
{
    (void)synth;
    weft_json_put_u64(json, "bos_token_id", SYNTH_BOS);
    weft_json_key(json, "eos_token_id");
    weft_json_begin_array(json);
    weft_json_u64(json, SYNTH_EOS);
    weft_json_u64(json, SYNTH_TURN_END);
    weft_json_end_array(json);
}

/* ---- the tokenizer ------------------------------------------------------------------------- */

static void put_specials(weft_json_t *json)
{
    weft_json_key(json, "added_tokens");
    weft_json_begin_array(json);
    for (uint32_t id = 0; id < SYNTH_SPECIALS; id++) {
        weft_json_begin_object(json);
        weft_json_put_u64(json, "id", id);
        weft_json_put_string(json, "content", synth_specials[id]);
        weft_json_put_bool(json, "single_word", false);
        weft_json_put_bool(json, "lstrip", false);
        weft_json_put_bool(json, "rstrip", false);
        weft_json_put_bool(json, "normalized", false);
        weft_json_put_bool(json, "special", true);
        weft_json_end_object(json);
    }
    weft_json_end_array(json);
}

static void put_byte_level(weft_json_t *json, const char *key)
{
    weft_json_key(json, key);
    weft_json_begin_object(json);
    weft_json_put_string(json, "type", "ByteLevel");
    weft_json_put_bool(json, "add_prefix_space", false);
    weft_json_put_bool(json, "trim_offsets", true);
    weft_json_put_bool(json, "use_regex", true);
    weft_json_end_object(json);
}

static void put_bpe(weft_json_t *json, uint32_t vocab)
{
    char text[SYNTH_TEXT_SIZE];
    weft_json_key(json, "model");
    weft_json_begin_object(json);
    weft_json_put_string(json, "type", "BPE");
    weft_json_key(json, "vocab");
    weft_json_begin_object(json);
    for (uint32_t id = 0; id < vocab; id++) {
        if (id >= SYNTH_SPECIALS) {
            synth_vocab_token(id, text);
        }
        weft_json_put_u64(json, id < SYNTH_SPECIALS ? synth_specials[id] : text, id);
    }
    weft_json_end_object(json);
    weft_json_key(json, "merges");
    weft_json_begin_array(json);
    for (uint32_t id = SYNTH_MIN_VOCAB; id < vocab; id++) {
        synth_vocab_merge(id, text);
        weft_json_string(json, text);
    }
    weft_json_end_array(json);
    weft_json_end_object(json);
}

static void put_tokenizer(const synth_t *synth, weft_json_t *json)
{
    weft_json_put_string(json, "version", "1.0");
    put_specials(json);
    put_byte_level(json, "pre_tokenizer");
    put_byte_level(json, "decoder");
    put_bpe(json, synth->config.vocab);
}

static void put_tokenizer_config(const synth_t *synth, weft_json_t *json)
{
    weft_json_put_string(json, "tokenizer_class", "PreTrainedTokenizerFast");
    weft_json_put_string(json, "bos_token", synth_specials[SYNTH_BOS]);
    weft_json_put_string(json, "eos_token", synth_specials[SYNTH_EOS]);
    weft_json_put_bool(json, "add_bos_token", false);
    weft_json_put_u64(json, "model_max_length", synth->config.max_context);
    weft_json_put_string(json, "chat_template", synth_chat_template);
}

/* ---- the files ----------------------------------------------------------------------------- */

typedef struct side_file {
    const char *name;
    void (*put)(const synth_t *synth, weft_json_t *json);
} side_file_t;

static const side_file_t side_files[] = {
    {"config.json", put_config},
    {"generation_config.json", put_generation},
    {"tokenizer.json", put_tokenizer},
    {"tokenizer_config.json", put_tokenizer_config},
};

weft_status_t synth_write_side_files(const synth_t *synth, const char *folder, weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; status >= 0 && i < WEFT_ARRAY_LEN(side_files); i++) {
        char path[4096];
        weft_buffer_t out = {0};
        weft_json_t json;
        snprintf(path, sizeof(path), "%s/%s", folder, side_files[i].name);
        weft_json_init(&json, &out);
        weft_json_begin_object(&json);
        side_files[i].put(synth, &json);
        weft_json_end_object(&json);
        status = synth_write_file(path, &out, diag);
        weft_buffer_free(&out);
    }
    return status;
}
