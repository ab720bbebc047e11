/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizers: the small tokenizers of tests/vectors/text. */
#pragma once

#include "tests/support/text_check.h"

/* tests/vectors/text/<name>, and its configuration unless NULL. */
static inline text_tokenizer_t *load_json_tokenizer(const char *name, const char *config_name)
{
    char path[512];
    size_t length;
    size_t config_length = 0;
    char *config = NULL;
    snprintf(path, sizeof(path), "text/%s", name);
    char *json = read_vector(path, &length);
    if (config_name != NULL) {
        snprintf(path, sizeof(path), "text/%s", config_name);
        config = read_vector(path, &config_length);
    }
    weft_diag_t diag = {0};
    text_tokenizer_t *tokenizer = NULL;
    weft_status_t status =
        text_tokenizer_from_json(json, length, config, config_length, 1 << 20, &diag, &tokenizer);
    if (status < 0) {
        fail_msg("%s", diag.text);
    }
    weft_free(json);
    weft_free(config);
    return tokenizer;
}

/* A vocabulary as GGUF keeps it, from kinds/sentencepiece.json. */
static inline text_tokenizer_t *load_sentencepiece(const json_t *vectors)
{
    enum { MAX = 1024 };
    static const char *tokens[MAX];
    static size_t lengths[MAX];
    static float scores[MAX];
    static int32_t types[MAX];
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(vectors, "tokens"), index, item)
    {
        assert_true(index < MAX);
        tokens[index] = json_string_value(item);
        lengths[index] = json_string_length(item);
        scores[index] =
            (float)json_number_value(json_array_get(json_object_get(vectors, "scores"), index));
        types[index] =
            (int32_t)json_integer_value(json_array_get(json_object_get(vectors, "types"), index));
    }
    text_gguf_vocab_t vocab = {
        .model = "llama",
        .tokens = tokens,
        .token_lengths = lengths,
        .scores = scores,
        .types = types,
        .n_tokens = json_array_size(json_object_get(vectors, "tokens")),
        .bos = (int32_t)json_integer_value(json_object_get(vectors, "bos")),
        .eos = (int32_t)json_integer_value(json_object_get(vectors, "eos")),
        .unknown = (int32_t)json_integer_value(json_object_get(vectors, "unknown")),
        .add_bos = -1,
        .add_eos = -1,
        .add_space_prefix = -1,
    };
    weft_diag_t diag = {0};
    text_tokenizer_t *tokenizer = NULL;
    weft_status_t status = text_tokenizer_from_gguf(&vocab, &diag, &tokenizer);
    if (status < 0) {
        fail_msg("%s", diag.text);
    }
    return tokenizer;
}
