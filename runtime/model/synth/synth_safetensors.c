/* SPDX-License-Identifier: Apache-2.0 */
/* The head of a safetensors file, and the JSON files that a checkpoint has beside it. */
#include <stdio.h>
#include <string.h>

#include "base/json_writer.h"
#include "runtime/model/model_config_priv.h"
#include "runtime/model/synth/synth_priv.h"
#include "runtime/model/synth/synth_vocab.h"

#define ALIGNMENT 64

/* ---- model.safetensors --------------------------------------------------------------------- */

/* The name of a part of matrix x.weight, in place. */
static void put_part(const synth_t *synth, synth_part_t part, char name[SYNTH_NAME_BYTES])
{
    static const char *const ends[] = {[SYNTH_INT4_WORDS] = "qweight",
                                       [SYNTH_INT4_ZEROS] = "qzeros",
                                       [SYNTH_INT4_SCALES] = "scales"};
    const char *end = ends[part];
    if (part == SYNTH_F8_SCALES) {
        end = synth->form->tile == 0 ? "weight_scale" : "weight_scale_inv";
    }
    char *at = name + strlen(name) - strlen("weight");
    snprintf(at, SYNTH_NAME_BYTES - (size_t)(at - name), "%s", end);
}

static void put_tensor(const synth_t *synth, const synth_tensor_t *tensor, weft_json_t *json)
{
    char name[SYNTH_NAME_BYTES];
    const model_tensor_want_t *want = &tensor->want;
    model_tensor_name(&synth->config, synth->kind, want->key, name, sizeof(name));
    if (tensor->part != SYNTH_WHOLE) {
        put_part(synth, tensor->part, name);
    }
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

#define NORM_EPS 1e-5

/* As a member of torch names it; what GGUF alone has was never a checkpoint's. */
static const char *torch_dtype(k_dtype_t dtype)
{
    return dtype == K_F32 ? "float32" : dtype == K_F16 ? "float16" : "bfloat16";
}

static void put_shape(const synth_shape_t *shape, weft_json_t *json)
{
    weft_json_put_u64(json, "num_hidden_layers", shape->layers);
    weft_json_put_u64(json, "hidden_size", shape->hidden);
    weft_json_put_u64(json, "intermediate_size", shape->intermediate);
    weft_json_put_u64(json, "num_attention_heads", shape->heads);
    weft_json_put_u64(json, "num_key_value_heads", shape->kv_heads);
    weft_json_put_u64(json, "head_dim", shape->head_dim);
    weft_json_put_u64(json, "vocab_size", shape->vocab);
    weft_json_put_u64(json, "max_position_embeddings", shape->context);
    weft_json_put_f64(json, "rms_norm_eps", NORM_EPS);
    weft_json_put_u64(json, "rope_theta", shape->theta);
    weft_json_put_bool(json, "tie_word_embeddings", shape->is_tied);
}

static void put_f8(const synth_form_t *form, weft_json_t *json)
{
    weft_json_put_string(json, "activation_scheme", "dynamic");
    if (form->tile > 0) {
        weft_json_key(json, "weight_block_size");
        weft_json_begin_array(json);
        weft_json_u64(json, form->tile);
        weft_json_u64(json, form->tile);
        weft_json_end_array(json);
    }
}

static void put_int4(const synth_form_t *form, weft_json_t *json)
{
    weft_json_put_u64(json, "bits", 4);
    weft_json_put_u64(json, "group_size", form->tile);
    if (form->int4 == MODEL_INT4_AWQ) {
        weft_json_put_string(json, "version", "gemm");
        weft_json_put_bool(json, "zero_point", true);
    } else {
        weft_json_put_bool(json, "desc_act", false);
        weft_json_put_bool(json, "sym", false);
    }
}

static void put_form(const synth_form_t *form, weft_json_t *json)
{
    weft_json_key(json, "quantization_config");
    weft_json_begin_object(json);
    weft_json_put_string(json, "quant_method", form->method);
    if (form->int4 == MODEL_INT4_NONE) {
        put_f8(form, json);
    } else {
        put_int4(form, json);
    }
    weft_json_end_object(json);
}

void synth_config_json(const synth_t *synth, weft_buffer_t *out)
{
    const synth_shape_t *shape = synth->shape;
    const model_architecture_t *family = model_architecture_by_name(shape->family);
    char name[128];
    weft_json_t json;
    snprintf(name, sizeof(name), "synth-%s-%s-%s", shape->family, shape->name,
             synth->options->dtype);
    weft_json_init(&json, out);
    weft_json_begin_object(&json);
    weft_json_key(&json, "architectures");
    weft_json_begin_array(&json);
    weft_json_string(&json, family->hf_architecture);
    weft_json_end_array(&json);
    weft_json_put_string(&json, "_name_or_path", name);
    weft_json_put_string(&json, "model_type", shape->family);
    weft_json_put_string(&json, "torch_dtype",
                         torch_dtype(synth->form != NULL ? synth->form->others : synth->dtype));
    put_shape(shape, &json);
    weft_json_put_u64(&json, "bos_token_id", SYNTH_BOS);
    weft_json_put_u64(&json, "eos_token_id", SYNTH_EOS);
    if (synth->form != NULL) {
        put_form(synth->form, &json);
    }
    if (shape->more[0] != '\0') {
        weft_buffer_printf(out, ", %s", shape->more);
    }
    weft_json_end_object(&json);
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
    {"generation_config.json", put_generation},
    {"tokenizer.json", put_tokenizer},
    {"tokenizer_config.json", put_tokenizer_config},
};

static weft_status_t write_side_file(const char *folder, const char *name,
                                     const weft_buffer_t *bytes, weft_diag_t *diag)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return synth_write_file(path, bytes, diag);
}

weft_status_t synth_write_side_files(const synth_t *synth, const char *folder, weft_diag_t *diag)
{
    weft_buffer_t config = {0};
    synth_config_json(synth, &config);
    weft_status_t status = write_side_file(folder, "config.json", &config, diag);
    weft_buffer_free(&config);
    for (size_t i = 0; status >= 0 && i < WEFT_ARRAY_LEN(side_files); i++) {
        weft_buffer_t out = {0};
        weft_json_t json;
        weft_json_init(&json, &out);
        weft_json_begin_object(&json);
        side_files[i].put(synth, &json);
        weft_json_end_object(&json);
        status = write_side_file(folder, side_files[i].name, &out, diag);
        weft_buffer_free(&out);
    }
    return status;
}
