/* SPDX-License-Identifier: Apache-2.0 */
/* model_source_priv: the opened model, as the parts that fill and check it share it. */
#pragma once

#include "base/arena.h"
#include "base/mapped_file.h"
#include "runtime/files/gguf.h"
#include "runtime/model/model_source.h"

struct model_source {
    weft_arena_t arena; /* every table and string below */
    const char *path;   /* as given */
    const char *format;
    model_config_t config;
    weft_mapped_file_t *files; /* [n_files] that hold tensors */
    size_t n_files;
    gguf_t *gguf;            /* NULL: safetensors */
    model_tensor_t *tensors; /* [n_tensors] */
    size_t n_tensors;
    const model_tensor_t **by_name;      /* [n_tensors], sorted */
    weft_mapped_file_t tokenizer;        /* tokenizer.json */
    weft_mapped_file_t tokenizer_config; /* tokenizer_config.json */
    const char *chat_template;           /* not terminated; NULL: none */
    size_t chat_template_length;
};

/* Fill everything but by_name; what was opened before a failure is closed with the source. */
weft_status_t model_source_open_gguf(model_source_t *source, const char *path, weft_diag_t *diag);

/* file: the one .safetensors file, or NULL: folder has an index of shards. */
weft_status_t model_source_open_safetensors(model_source_t *source, const char *folder,
                                            const char *file, weft_diag_t *diag);

/* model_source_pooling.c: what lies beside a checkpoint says. NONE: nothing does. */
weft_status_t model_source_read_pooling(const char *folder, weft_diag_t *diag,
                                        model_pooling_t *pooling_out);

/* Maps one more tensor file: source->files has room for it. */
weft_status_t model_source_map(model_source_t *source, const char *path, weft_diag_t *diag,
                               const weft_mapped_file_t **file_out);

/* By its name in the file; NULL: there is none. */
const model_tensor_t *model_source_named(const model_source_t *source, const char *name);

/* The tensor called name with `end` in place of what it ends with; NULL: there is none. */
const model_tensor_t *model_source_beside(const model_source_t *source, const char *name,
                                          const char *old_end, const char *end);

/* AWQ and GPTQ: name is that of the matrix, were it plain. WEFT_ERR_NOT_FOUND, without a line. */
weft_status_t model_source_find_int4(const model_source_t *source, const char *name,
                                     weft_diag_t *diag, model_tensor_t *tensor_out);
void model_source_read_int4(const model_tensor_t *tensor, uint64_t first, uint64_t n, uint8_t *out);

/* model_source_find for a checkpoint of Hugging Face, where a tensor may lie in some other form. */
weft_status_t model_source_find_form(const model_source_t *source, model_tensor_key_t key,
                                     const char *name, weft_diag_t *diag,
                                     model_tensor_t *tensor_out);

/* Every tensor that the configured model needs, by name and shape; none that it does not know. */
weft_status_t model_source_check_tensors(const model_source_t *source, weft_diag_t *diag);

/* The name that the source's format gives to it. */
void model_source_tensor_name(const model_source_t *source, model_tensor_key_t key, char *name,
                              size_t size);
