/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/compiler.h"
#include "runtime/model/model_config_priv.h"
#include "runtime/model/model_source_priv.h"

static weft_status_t refuse_split(const model_source_t *source, const char *path, weft_diag_t *diag)
{
    uint64_t parts = 1;
    const weft_status_t status = gguf_get_u64(source->gguf, "split.count", diag, &parts);
    if (status != WEFT_OK && status != WEFT_ERR_NOT_FOUND) {
        return status;
    }
    if (parts > 1) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "%s: is one of %llu parts of a model: join them with llama-gguf-split "
                         "--merge",
                         path, (unsigned long long)parts);
    }
    return WEFT_OK;
}

/* Rows of a tensor of more than two dimensions run through all the outer ones. */
static model_tensor_t tensor_of(const gguf_tensor_t *tensor, const weft_mapped_file_t *file)
{
    return (model_tensor_t){
        .name = tensor->name,
        .dtype = tensor->dtype,
        .rows = tensor->dims[1] * tensor->dims[2] * tensor->dims[3],
        .columns = tensor->dims[0],
        .data = (const char *)file->data + tensor->offset,
        .bytes = tensor->bytes,
    };
}

static weft_status_t list_tensors(model_source_t *source, const weft_mapped_file_t *file)
{
    source->n_tensors = gguf_tensor_count(source->gguf);
    source->tensors =
        weft_arena_calloc(&source->arena, source->n_tensors + 1, sizeof(*source->tensors));
    if (source->tensors == NULL) {
        source->n_tensors = 0;
        return WEFT_ERR_NO_MEMORY;
    }
    for (size_t i = 0; i < source->n_tensors; i++) {
        source->tensors[i] = tensor_of(gguf_tensor_at(source->gguf, i), file);
    }
    return WEFT_OK;
}

static const model_tensor_t *tensor_named(const model_source_t *source, model_tensor_id_t id)
{
    char name[128];
    const model_tensor_key_t key = {.id = id};
    model_source_tensor_name(source, key, name, sizeof(name));
    for (size_t i = 0; i < source->n_tensors; i++) {
        if (strcmp(source->tensors[i].name, name) == 0) {
            return &source->tensors[i];
        }
    }
    return NULL;
}

/* What the metadata leaves to the tensors: vocabulary, tied head, divisors of the rotation. */
static weft_status_t complete_config(model_source_t *source, const char *path, weft_diag_t *diag)
{
    model_config_t *config = &source->config;
    const model_tensor_t *embedding = tensor_named(source, MODEL_TENSOR_EMBEDDING);
    if (embedding == NULL) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: tensor token_embd.weight: missing", path);
    }
    config->vocab = embedding->rows > UINT32_MAX ? UINT32_MAX : (uint32_t)embedding->rows;
    config->is_embedding_tied = tensor_named(source, MODEL_TENSOR_OUTPUT) == NULL;
    if (tensor_named(source, MODEL_TENSOR_ROPE_FREQS) != NULL) {
        if (config->rope.kind != MODEL_ROPE_PLAIN) {
            return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                             "%s: tensor rope_freqs.weight: together with rope.scaling.type it is "
                             "not supported",
                             path);
        }
        config->rope.kind = MODEL_ROPE_FACTORS;
    }
    if (tensor_named(source, MODEL_TENSOR_ROPE_LONG) != NULL &&
        config->rope.kind == MODEL_ROPE_PLAIN) {
        config->rope.kind = MODEL_ROPE_LONG;
    }
    const weft_status_t status = model_config_check(config, diag);
    if (status != WEFT_OK) {
        weft_diag_prefix(diag, "%s", path);
    }
    return status;
}

static weft_status_t read_template(model_source_t *source, weft_diag_t *diag)
{
    gguf_string_t text = {NULL, 0};
    const weft_status_t status =
        gguf_get_string(source->gguf, "tokenizer.chat_template", diag, &text);
    source->chat_template = text.data;
    source->chat_template_length = text.length;
    return status == WEFT_ERR_NOT_FOUND ? WEFT_OK : status;
}

weft_status_t model_source_open_gguf(model_source_t *source, const char *path, weft_diag_t *diag)
{
    const weft_mapped_file_t *file = NULL;
    source->format = "gguf";
    source->files = weft_arena_calloc(&source->arena, 1, sizeof(*source->files));
    if (source->files == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = model_source_map(source, path, diag, &file);
    if (status == WEFT_OK) {
        status = gguf_parse(file->data, file->length, file->length, path, diag, &source->gguf);
    }
    if (status == WEFT_OK) {
        status = refuse_split(source, path, diag);
    }
    if (status == WEFT_OK) {
        status = model_config_from_gguf(source->gguf, path, diag, &source->config);
    }
    if (status == WEFT_OK) {
        status = list_tensors(source, file);
    }
    if (status == WEFT_OK) {
        status = complete_config(source, path, diag);
    }
    return status == WEFT_OK ? read_template(source, diag) : status;
}
