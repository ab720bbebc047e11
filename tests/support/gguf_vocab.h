/* SPDX-License-Identifier: Apache-2.0 */
/* gguf_vocab: the tokenizer of a GGUF file, read without a model around it. */
#pragma once

#include <string.h>

#include "base/mapped_file.h"
#include "runtime/files/gguf.h"
#include "tests/support/check.h"
#include "text/text.h"

/* gguf_strings: pointers and lengths of a string array. */
typedef struct gguf_strings {
    const char **data;
    size_t *lengths;
    size_t count;
} gguf_strings_t;

static inline gguf_strings_t read_gguf_strings(const gguf_t *gguf, const char *key)
{
    gguf_strings_t strings = {0};
    const gguf_value_t *value = NULL;
    if (gguf_get_array(gguf, key, GGUF_STRING, NULL, &value) < 0) {
        return strings;
    }
    strings.count = (size_t)value->count;
    strings.data = weft_calloc(strings.count + 1, sizeof(*strings.data), "test.strings");
    strings.lengths = weft_calloc(strings.count + 1, sizeof(*strings.lengths), "test.lengths");
    const uint8_t *cursor = value->data;
    for (size_t i = 0; i < strings.count; i++) {
        gguf_string_t string = gguf_next_string(&cursor);
        strings.data[i] = string.data;
        strings.lengths[i] = string.length;
    }
    return strings;
}

static inline int32_t read_gguf_id(const gguf_t *gguf, const char *key)
{
    uint64_t id = 0;
    return gguf_get_u64(gguf, key, NULL, &id) < 0 ? -1 : (int32_t)id;
}

static inline int8_t read_gguf_flag(const gguf_t *gguf, const char *key)
{
    bool flag = false;
    return gguf_get_bool(gguf, key, NULL, &flag) < 0 ? -1 : (int8_t)flag;
}

static inline char *read_gguf_text(const gguf_t *gguf, const char *key)
{
    gguf_string_t text = {0};
    return gguf_get_string(gguf, key, NULL, &text) < 0
               ? NULL
               : weft_strndup(text.data, text.length, "test.text");
}

/* The tokenizer of the file; *template_out (weft_free) is its chat template or NULL. */
static inline text_tokenizer_t *read_gguf_tokenizer(const char *path, char **template_out)
{
    weft_diag_t diag = {0};
    weft_mapped_file_t file;
    gguf_t *gguf = NULL;
    assert_status(weft_mapped_file_open(path, &diag, &file), WEFT_OK);
    assert_status(gguf_parse(file.data, file.length, file.length, path, &diag, &gguf), WEFT_OK);

    gguf_strings_t tokens = read_gguf_strings(gguf, "tokenizer.ggml.tokens");
    gguf_strings_t merges = read_gguf_strings(gguf, "tokenizer.ggml.merges");
    char *model = read_gguf_text(gguf, "tokenizer.ggml.model");
    char *pre = read_gguf_text(gguf, "tokenizer.ggml.pre");
    int32_t *types = weft_calloc(tokens.count + 1, sizeof(*types), "test.types");
    const gguf_value_t *value = NULL;
    assert_status(gguf_get_array(gguf, "tokenizer.ggml.token_type", GGUF_INT32, &diag, &value),
                  WEFT_OK);
    memcpy(types, value->data, tokens.count * sizeof(*types));
    text_gguf_vocab_t vocab = {
        .model = model,
        .pre = pre,
        .tokens = tokens.data,
        .token_lengths = tokens.lengths,
        .types = types,
        .n_tokens = tokens.count,
        .merges = merges.data,
        .merge_lengths = merges.lengths,
        .n_merges = merges.count,
        .bos = read_gguf_id(gguf, "tokenizer.ggml.bos_token_id"),
        .eos = read_gguf_id(gguf, "tokenizer.ggml.eos_token_id"),
        .unknown = read_gguf_id(gguf, "tokenizer.ggml.unknown_token_id"),
        .add_bos = read_gguf_flag(gguf, "tokenizer.ggml.add_bos_token"),
        .add_eos = read_gguf_flag(gguf, "tokenizer.ggml.add_eos_token"),
        .add_space_prefix = read_gguf_flag(gguf, "tokenizer.ggml.add_space_prefix"),
    };
    text_tokenizer_t *tokenizer = NULL;
    weft_status_t status = text_tokenizer_from_gguf(&vocab, &diag, &tokenizer);
    if (status < 0) {
        fail_msg("%s", diag.text);
    }
    *template_out = read_gguf_text(gguf, "tokenizer.chat_template");

    weft_free(types);
    weft_free(pre);
    weft_free(model);
    weft_free(tokens.data);
    weft_free(tokens.lengths);
    weft_free(merges.data);
    weft_free(merges.lengths);
    gguf_destroy(gguf);
    weft_mapped_file_close(&file);
    return tokenizer;
}
