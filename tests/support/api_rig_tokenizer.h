/* SPDX-License-Identifier: Apache-2.0 */
/* api_rig_tokenizer: one token a byte, as GPT-2 writes bytes, and an end token. */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "text/text.h"

#define API_RIG_TOKENS 257

/* The character that stands for a byte in a byte-level vocabulary, as UTF-8; returns its length. */
static inline size_t api_rig_byte_name(unsigned byte, char out[2])
{
    unsigned code = byte;
    unsigned n_hidden = 0;

    for (unsigned i = 0; i <= byte; i++) {
        bool is_shown = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        if (!is_shown) {
            code = 256 + n_hidden++;
        } else if (i == byte) {
            code = byte;
        }
    }
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    out[0] = (char)(0xc0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3f));
    return 2;
}

static inline text_tokenizer_t *api_rig_tokenizer(void)
{
    static char names[API_RIG_TOKENS][8] = {"<end>"};
    const char *tokens[API_RIG_TOKENS] = {names[0]};
    size_t lengths[API_RIG_TOKENS] = {5};
    int32_t types[API_RIG_TOKENS] = {3};
    weft_diag_t diag = {0};
    text_tokenizer_t *tokenizer = NULL;

    for (unsigned byte = 0; byte < 256; byte++) {
        lengths[byte + 1] = api_rig_byte_name(byte, names[byte + 1]);
        tokens[byte + 1] = names[byte + 1];
        types[byte + 1] = 1;
    }
    const text_gguf_vocab_t vocab = {
        .model = "gpt2",
        .pre = "gpt-2",
        .tokens = tokens,
        .token_lengths = lengths,
        .types = types,
        .n_tokens = API_RIG_TOKENS,
        .bos = -1,
        .eos = 0,
        .unknown = -1,
        .add_bos = 0,
        .add_eos = 0,
        .add_space_prefix = 0,
    };
    if (text_tokenizer_from_gguf(&vocab, &diag, &tokenizer) < 0) {
        abort();
    }
    return tokenizer;
}
