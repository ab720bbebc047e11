/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_grammar: the first byte picks a kind of grammar, the rest is its source; then some tokens are
 * taken, each the first one that its mask allows.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "text/text.h"

#define MASK_WORDS 64
#define VOCAB      (MASK_WORDS * 32)
#define MAX_TOKENS 24

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static text_grammar_factory_t *load(void)
{
    static char json[1 << 20];
    weft_diag_t diag = {0};
    static text_tokenizer_t *tokenizer; /* kept: the factory may refer to it */
    text_grammar_factory_t *factory = NULL;
    const int32_t eos = 0;
    FILE *file = fopen(WEFT_TEST_VECTORS "/text/byte-level/tokenizer.json", "rb");
    if (file == NULL) {
        abort();
    }
    const size_t length = fread(json, 1, sizeof(json), file);
    fclose(file);
    if (text_tokenizer_from_json(json, length, NULL, 0, VOCAB, &diag, &tokenizer) != WEFT_OK ||
        text_grammar_factory_create(tokenizer, VOCAB, &eos, 1, &diag, &factory) != WEFT_OK) {
        fprintf(stderr, "%s\n", diag.text);
        abort();
    }
    return factory;
}

static int32_t first_allowed(const uint32_t *mask)
{
    for (int32_t id = 0; id < VOCAB; id++) {
        if ((mask[id / 32] >> (id % 32) & 1) != 0) {
            return id;
        }
    }
    return -1;
}

static void walk(text_matcher_t *matcher)
{
    weft_diag_t diag = {0};
    for (int i = 0; i < MAX_TOKENS && !text_matcher_is_finished(matcher); i++) {
        uint32_t mask[MASK_WORDS];
        if (text_matcher_mask(matcher, mask, MASK_WORDS, &diag) != WEFT_OK) {
            return;
        }
        const int32_t id = first_allowed(mask);
        if (id < 0) {
            return;
        }
        if (text_matcher_advance(matcher, id, &diag) != WEFT_OK) {
            fprintf(stderr, "token %d was allowed: %s\n", id, diag.text);
            abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static text_grammar_factory_t *factory;
    weft_diag_t diag = {0};
    text_grammar_t *grammar = NULL;
    text_matcher_t *matcher = NULL;

    if (factory == NULL) {
        factory = load();
    }
    if (size == 0) {
        return 0;
    }
    const text_grammar_kind_t kind = (text_grammar_kind_t)(data[0] % (TEXT_GRAMMAR_LARK + 1));
    const text_grammar_options_t options = {
        .disable_any_whitespace = (data[0] & 0x80) != 0,
        .disable_additional_properties = (data[0] & 0x40) != 0,
    };
    if (text_grammar_create(factory, kind, (const char *)data + 1, size - 1, &options, &diag,
                            &grammar) == WEFT_OK &&
        text_matcher_create(grammar, &matcher) == WEFT_OK) {
        walk(matcher);
    }
    text_matcher_destroy(matcher);
    text_grammar_destroy(grammar);
    return 0;
}
