/* SPDX-License-Identifier: Apache-2.0 */
/* From the vocabulary in a GGUF file, or from tokenizer.json, to a tokenizer. */
#include <string.h>

#include "base/alloc.h"
#include "runtime/model/model_source_priv.h"

/* Copies for text_gguf_vocab_t: in the file strings are not an array and numbers not aligned. */
typedef struct copies {
    weft_arena_t arena;
    text_gguf_vocab_t vocab;
} copies_t;

static weft_status_t copy_strings(copies_t *copies, const gguf_value_t *array,
                                  const char *const **strings_out, const size_t **lengths_out)
{
    const uint8_t *cursor = array->data;
    const char **strings =
        weft_arena_calloc(&copies->arena, (size_t)array->count + 1, sizeof(const char *));
    size_t *lengths = weft_arena_calloc(&copies->arena, (size_t)array->count + 1, sizeof(size_t));
    if (strings == NULL || lengths == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint64_t i = 0; i < array->count; i++) {
        const gguf_string_t string = gguf_next_string(&cursor);
        strings[i] = string.data;
        lengths[i] = string.length;
    }
    *strings_out = strings;
    *lengths_out = lengths;
    return WEFT_OK;
}

/* An array of 4-byte elements, one for each token; *out stays NULL when the key is absent. */
static weft_status_t copy_per_token(copies_t *copies, const model_source_t *source, const char *key,
                                    gguf_type_t type, weft_diag_t *diag, void **out)
{
    const gguf_value_t *array;
    const weft_status_t status = gguf_get_array(source->gguf, key, type, diag, &array);
    if (status != WEFT_OK) {
        return status == WEFT_ERR_NOT_FOUND ? WEFT_OK : status;
    }
    if (array->count != copies->vocab.n_tokens) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: key %s: %llu entries for %zu tokens",
                         source->path, key, (unsigned long long)array->count,
                         copies->vocab.n_tokens);
    }
    void *copy = weft_arena_calloc(&copies->arena, (size_t)array->count + 1, 4);
    if (copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    memcpy(copy, array->data, (size_t)array->count * 4);
    *out = copy;
    return WEFT_OK;
}

static weft_status_t copy_tokens(copies_t *copies, const model_source_t *source, weft_diag_t *diag)
{
    const gguf_value_t *tokens;
    text_gguf_vocab_t *vocab = &copies->vocab;
    void *scores = NULL;
    void *types = NULL;
    weft_status_t status =
        gguf_get_array(source->gguf, "tokenizer.ggml.tokens", GGUF_STRING, diag, &tokens);
    if (status == WEFT_ERR_NOT_FOUND) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: key tokenizer.ggml.tokens: missing",
                         source->path);
    }
    if (status != WEFT_OK) {
        return status;
    }
    if (tokens->count > source->config.vocab) {
        return weft_diag(diag, WEFT_ERR_MALFORMED,
                         "%s: key tokenizer.ggml.tokens: %llu tokens, the embedding has %u rows",
                         source->path, (unsigned long long)tokens->count, source->config.vocab);
    }
    vocab->n_tokens = (size_t)tokens->count;
    status = copy_strings(copies, tokens, &vocab->tokens, &vocab->token_lengths);
    if (status == WEFT_OK) {
        status =
            copy_per_token(copies, source, "tokenizer.ggml.scores", GGUF_FLOAT32, diag, &scores);
    }
    if (status == WEFT_OK) {
        status =
            copy_per_token(copies, source, "tokenizer.ggml.token_type", GGUF_INT32, diag, &types);
    }
    vocab->scores = scores;
    vocab->types = types;
    return status;
}

static weft_status_t copy_merges(copies_t *copies, const model_source_t *source, weft_diag_t *diag)
{
    const gguf_value_t *merges;
    const weft_status_t status =
        gguf_get_array(source->gguf, "tokenizer.ggml.merges", GGUF_STRING, diag, &merges);
    if (status != WEFT_OK) {
        return status == WEFT_ERR_NOT_FOUND ? WEFT_OK : status;
    }
    copies->vocab.n_merges = (size_t)merges->count;
    return copy_strings(copies, merges, &copies->vocab.merges, &copies->vocab.merge_lengths);
}

/* A terminated copy; *out stays as it is when the key is absent. */
static weft_status_t copy_text(copies_t *copies, const model_source_t *source, const char *key,
                               weft_diag_t *diag, const char **out)
{
    gguf_string_t text;
    const weft_status_t status = gguf_get_string(source->gguf, key, diag, &text);
    if (status != WEFT_OK) {
        return status == WEFT_ERR_NOT_FOUND ? WEFT_OK : status;
    }
    *out = weft_arena_strndup(&copies->arena, text.data, text.length);
    return *out == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

static int32_t token_id(const model_source_t *source, const char *key)
{
    uint64_t id;
    const weft_status_t status = gguf_get_u64(source->gguf, key, NULL, &id);
    return status == WEFT_OK && id < source->config.vocab ? (int32_t)id : -1;
}

/* 1, 0, or -1 when the file does not say. */
static int8_t flag(const model_source_t *source, const char *key)
{
    bool value;
    return gguf_get_bool(source->gguf, key, NULL, &value) == WEFT_OK ? (int8_t)value : -1;
}

static void read_rules(text_gguf_vocab_t *vocab, const model_source_t *source)
{
    vocab->bos = token_id(source, "tokenizer.ggml.bos_token_id");
    vocab->eos = token_id(source, "tokenizer.ggml.eos_token_id");
    vocab->unknown = token_id(source, "tokenizer.ggml.unknown_token_id");
    vocab->add_bos = flag(source, "tokenizer.ggml.add_bos_token");
    vocab->add_eos = flag(source, "tokenizer.ggml.add_eos_token");
    vocab->add_space_prefix = flag(source, "tokenizer.ggml.add_space_prefix");
}

static weft_status_t copy_all(copies_t *copies, const model_source_t *source, weft_diag_t *diag)
{
    text_gguf_vocab_t *vocab = &copies->vocab;
    weft_status_t status = copy_text(copies, source, "tokenizer.ggml.model", diag, &vocab->model);
    if (status == WEFT_OK && vocab->model == NULL) {
        status = weft_diag(diag, WEFT_ERR_MALFORMED, "%s: key tokenizer.ggml.model: missing",
                           source->path);
    }
    if (status == WEFT_OK) {
        status = copy_text(copies, source, "tokenizer.ggml.pre", diag, &vocab->pre);
    }
    if (status == WEFT_OK) {
        status = copy_tokens(copies, source, diag);
    }
    if (status == WEFT_OK) {
        status = copy_merges(copies, source, diag);
    }
    if (status == WEFT_OK) {
        read_rules(vocab, source);
    }
    return status;
}

static weft_status_t tokenizer_from_gguf(const model_source_t *source, weft_diag_t *diag,
                                         text_tokenizer_t **tokenizer_out)
{
    copies_t copies = {0};
    weft_status_t status = copy_all(&copies, source, diag);
    if (status == WEFT_OK) {
        status = text_tokenizer_from_gguf(&copies.vocab, diag, tokenizer_out);
        if (status != WEFT_OK) {
            weft_diag_prefix(diag, "%s: tokenizer", source->path);
        }
    } else if (status == WEFT_ERR_NO_MEMORY) {
        weft_diag(diag, status, "%s: tokenizer: out of memory for its vocabulary", source->path);
    }
    weft_arena_free(&copies.arena);
    return status;
}

weft_status_t model_source_tokenizer(const model_source_t *source, weft_diag_t *diag,
                                     text_tokenizer_t **tokenizer_out)
{
    if (source->gguf != NULL) {
        return tokenizer_from_gguf(source, diag, tokenizer_out);
    }
    if (source->tokenizer.data == NULL) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "%s: holds no tokenizer.json", source->path);
    }
    const weft_status_t status = text_tokenizer_from_json(
        source->tokenizer.data, source->tokenizer.length, source->tokenizer_config.data,
        source->tokenizer_config.length, source->config.vocab, diag, tokenizer_out);
    if (status != WEFT_OK) {
        weft_diag_prefix(diag, "%s", source->path);
    }
    return status;
}
