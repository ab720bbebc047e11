/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/model_source.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "runtime/model/model_source_priv.h"

#define INDEX_FILE "model.safetensors.index.json"

/* ---- finding the files --------------------------------------------------------------------- */

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text);
    const size_t end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

/* The only file of folder with that ending; *count_out tells how many there are. */
static const char *only_file(model_source_t *source, DIR *entries, const char *folder,
                             const char *end, size_t *count_out)
{
    const char *found = NULL;
    struct dirent *entry;
    *count_out = 0;
    rewinddir(entries);
    while ((entry = readdir(entries)) != NULL) {
        if (entry->d_name[0] != '.' && ends_with(entry->d_name, end) && ++*count_out == 1) {
            found = weft_arena_printf(&source->arena, "%s/%s", folder, entry->d_name);
        }
    }
    return found;
}

static weft_status_t open_any_of_folder(model_source_t *source, DIR *entries, const char *folder,
                                        weft_diag_t *diag)
{
    size_t n_safetensors;
    size_t n_gguf;
    const char *safetensors = only_file(source, entries, folder, ".safetensors", &n_safetensors);
    const char *gguf = only_file(source, entries, folder, ".gguf", &n_gguf);
    if ((n_safetensors > 0 && safetensors == NULL) || (n_gguf > 0 && gguf == NULL)) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (n_safetensors == 1) {
        return model_source_open_safetensors(source, folder, safetensors, diag);
    }
    if (n_gguf == 1 && n_safetensors == 0) {
        return model_source_open_gguf(source, gguf, diag);
    }
    if (n_safetensors + n_gguf > 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "%s: holds %zu .safetensors and %zu .gguf files and no " INDEX_FILE
                         ": name one file",
                         folder, n_safetensors, n_gguf);
    }
    return weft_diag(diag, WEFT_ERR_NOT_FOUND, "%s: holds no .gguf and no .safetensors file",
                     folder);
}

static weft_status_t open_folder(model_source_t *source, const char *folder, weft_diag_t *diag)
{
    const char *index = weft_arena_printf(&source->arena, "%s/" INDEX_FILE, folder);
    if (index == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (access(index, F_OK) == 0) {
        return model_source_open_safetensors(source, folder, NULL, diag);
    }
    DIR *entries = opendir(folder);
    if (entries == NULL) {
        return weft_diag(diag, WEFT_ERR_IO, "%s: %s", folder, strerror(errno));
    }
    const weft_status_t status = open_any_of_folder(source, entries, folder, diag);
    closedir(entries);
    return status;
}

static weft_status_t open_file(model_source_t *source, const char *path, weft_diag_t *diag)
{
    if (!ends_with(path, ".safetensors")) {
        return model_source_open_gguf(source, path, diag);
    }
    const char *slash = strrchr(path, '/');
    const char *folder =
        slash == NULL
            ? "."
            : weft_arena_strndup(&source->arena, path, slash == path ? 1 : (size_t)(slash - path));
    if (folder == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    return model_source_open_safetensors(source, folder, path, diag);
}

/* ORG/NAME, which other engines would fetch from the Hugging Face Hub. */
static bool is_hub_name(const char *path)
{
    const char *slash = strchr(path, '/');
    return slash != NULL && slash != path && path[0] != '.' && slash[1] != '\0' &&
           strchr(slash + 1, '/') == NULL && !ends_with(path, ".gguf") &&
           !ends_with(path, ".safetensors");
}

static weft_status_t explain_missing(const char *path, int error, weft_diag_t *diag)
{
    const weft_status_t status = error == ENOENT ? WEFT_ERR_NOT_FOUND : WEFT_ERR_IO;
    if (status == WEFT_ERR_NOT_FOUND && is_hub_name(path)) {
        return weft_diag(diag, status,
                         "%s: %s; a model is a local file or folder: \"hf download %s --local-dir "
                         "DIR\" (pip install huggingface_hub) makes DIR one",
                         path, strerror(error), path);
    }
    return weft_diag(diag, status, "%s: %s", path, strerror(error));
}

static weft_status_t open_path(model_source_t *source, weft_diag_t *diag)
{
    struct stat info;
    if (stat(source->path, &info) != 0) {
        return explain_missing(source->path, errno, diag);
    }
    return S_ISDIR(info.st_mode) ? open_folder(source, source->path, diag)
                                 : open_file(source, source->path, diag);
}

weft_status_t model_source_map(model_source_t *source, const char *path, weft_diag_t *diag,
                               const weft_mapped_file_t **file_out)
{
    weft_mapped_file_t *file = &source->files[source->n_files];
    const weft_status_t status = weft_mapped_file_open(path, diag, file);
    if (status == WEFT_OK) {
        source->n_files++;
        *file_out = file;
    }
    return status;
}

/* ---- tensors by name ----------------------------------------------------------------------- */

void model_source_tensor_name(const model_source_t *source, model_tensor_key_t key, char *name,
                              size_t size)
{
    model_tensor_name(&source->config, source->gguf != NULL ? MODEL_FILE_GGUF : MODEL_FILE_HF, key,
                      name, size);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const model_tensor_t *const *)a)->name,
                  (*(const model_tensor_t *const *)b)->name);
}

static weft_status_t sort_tensors(model_source_t *source)
{
    source->by_name =
        weft_arena_calloc(&source->arena, source->n_tensors + 1, sizeof(const model_tensor_t *));
    if (source->by_name == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (size_t i = 0; i < source->n_tensors; i++) {
        source->by_name[i] = &source->tensors[i];
    }
    qsort(source->by_name, source->n_tensors, sizeof(source->by_name[0]), by_name);
    return WEFT_OK;
}

/* The rows of one expert or head of a tensor that stacks them all; false: it does not divide. */
static bool take_expert(model_tensor_t *tensor, uint32_t experts, uint32_t expert)
{
    if (experts == 0 || tensor->rows % experts != 0) {
        return false;
    }
    tensor->rows /= experts;
    tensor->bytes /= experts;
    tensor->data = (const char *)tensor->data + tensor->bytes * expert;
    return true;
}

const model_tensor_t *model_source_named(const model_source_t *source, const char *name)
{
    const model_tensor_t wanted = {.name = name};
    const model_tensor_t *sought = &wanted;
    const model_tensor_t *const *found =
        bsearch(&sought, source->by_name, source->n_tensors, sizeof(sought), by_name);
    return found == NULL ? NULL : *found;
}

weft_status_t model_source_find(const model_source_t *source, model_tensor_key_t key,
                                weft_diag_t *diag, model_tensor_t *tensor_out)
{
    char name[128];
    model_source_tensor_name(source, key, name, sizeof(name));
    if (source->gguf == NULL) {
        return model_source_find_form(source, key, name, diag, tensor_out);
    }
    const model_tensor_t *found = model_source_named(source, name);
    if (found == NULL) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "%s: tensor %s: missing", source->path, name);
    }
    model_tensor_t tensor = *found;
    const uint32_t copies = model_tensor_copies(&source->config, key.id);
    if (copies != 1 && !take_expert(&tensor, copies, key.expert)) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: tensor %s: %llu rows of %u matrices",
                         source->path, name, (unsigned long long)tensor.rows, copies);
    }
    *tensor_out = tensor;
    return WEFT_OK;
}

weft_status_t model_source_require(const model_source_t *source, model_tensor_key_t key,
                                   uint64_t rows, uint64_t columns, weft_diag_t *diag,
                                   model_tensor_t *tensor_out)
{
    model_tensor_t tensor;
    const weft_status_t status = model_source_find(source, key, diag, &tensor);
    if (status < 0) {
        return status == WEFT_ERR_NOT_FOUND ? WEFT_ERR_MALFORMED : status;
    }
    if (tensor.rows != rows || tensor.columns != columns) {
        return weft_diag(diag, WEFT_ERR_MALFORMED,
                         "%s: tensor %s: is %llu × %llu, the model needs %llu × %llu", source->path,
                         tensor.name, (unsigned long long)tensor.rows,
                         (unsigned long long)tensor.columns, (unsigned long long)rows,
                         (unsigned long long)columns);
    }
    *tensor_out = tensor;
    return WEFT_OK;
}

size_t model_source_tensor_count(const model_source_t *source)
{
    return source->n_tensors;
}

model_tensor_t model_source_tensor_at(const model_source_t *source, size_t index)
{
    assert(index < source->n_tensors);
    return source->tensors[index];
}

/* ---- opening ------------------------------------------------------------------------------- */

/* A folder's or file's own name, when the model does not say one. */
static void name_after_path(model_source_t *source)
{
    const char *end = source->path + strlen(source->path);
    while (end > source->path + 1 && end[-1] == '/') {
        end--;
    }
    const char *start = end;
    while (start > source->path && start[-1] != '/') {
        start--;
    }
    snprintf(source->config.name, sizeof(source->config.name), "%.*s", (int)(end - start), start);
}

/*
 * Models for embeddings come without the "model." of their tensors' names, and often without a head:
 * nothing asks for one.
 */
static void settle_names(model_source_t *source)
{
    const model_tensor_key_t embedding = {.id = MODEL_TENSOR_EMBEDDING};
    const model_tensor_key_t output = {.id = MODEL_TENSOR_OUTPUT};
    model_tensor_t tensor;
    if (source->gguf == NULL && model_source_find(source, embedding, NULL, &tensor) < 0) {
        source->config.has_bare_names = true;
        source->config.has_bare_names =
            model_source_find(source, embedding, NULL, &tensor) == WEFT_OK;
    }
    if (source->config.pooling != MODEL_POOL_NONE &&
        model_source_find(source, output, NULL, &tensor) < 0) {
        source->config.is_embedding_tied = true;
    }
}

static weft_status_t fill(model_source_t *source, const char *path, weft_diag_t *diag)
{
    source->path = weft_arena_strdup(&source->arena, path);
    if (source->path == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = open_path(source, diag);
    if (status == WEFT_OK) {
        status = sort_tensors(source);
    }
    if (status == WEFT_OK) {
        settle_names(source);
    }
    if (status == WEFT_OK && source->config.name[0] == '\0') {
        name_after_path(source);
    }
    return status == WEFT_OK ? model_source_check_tensors(source, diag) : status;
}

weft_status_t model_source_open(const char *path, weft_diag_t *diag, model_source_t **source_out)
{
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    model_source_t *source = weft_zalloc(sizeof(*source), "model.source");
    if (source != NULL) {
        status = fill(source, path, diag);
    }
    if (status == WEFT_OK) {
        *source_out = source;
        return WEFT_OK;
    }
    if (status == WEFT_ERR_NO_MEMORY) {
        weft_diag(diag, status, "%s: out of memory for its descriptions", path);
    }
    model_source_close(source);
    return status;
}

void model_source_close(model_source_t *source)
{
    if (source == NULL) {
        return;
    }
    gguf_destroy(source->gguf);
    for (size_t i = 0; i < source->n_files; i++) {
        weft_mapped_file_close(&source->files[i]);
    }
    weft_mapped_file_close(&source->tokenizer);
    weft_mapped_file_close(&source->tokenizer_config);
    weft_arena_free(&source->arena);
    weft_free(source);
}

const char *model_source_path(const model_source_t *source)
{
    return source->path;
}

const char *model_source_format(const model_source_t *source)
{
    return source->format;
}

const model_config_t *model_source_config(const model_source_t *source)
{
    return &source->config;
}

const char *model_source_chat_template(const model_source_t *source, size_t *length_out)
{
    *length_out = source->chat_template_length;
    return source->chat_template;
}
