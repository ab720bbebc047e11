/* SPDX-License-Identifier: Apache-2.0 */
/* text_check: ids and texts compared with what vectors say. */
#pragma once

#include "tests/support/vectors.h"
#include "text/text.h"

static inline void assert_ids(text_ids_t ids, const json_t *expected, const char *what)
{
    bool is_equal = ids.length == json_array_size(expected);
    for (size_t i = 0; is_equal && i < ids.length; i++) {
        is_equal = ids.data[i] == json_integer_value(json_array_get(expected, i));
    }
    if (!is_equal) {
        char *wanted = json_dumps(expected, JSON_COMPACT);
        print_error("%s: expected %s, got", what, wanted);
        for (size_t i = 0; i < ids.length; i++) {
            print_error(" %d", ids.data[i]);
        }
        free(wanted);
        fail_msg("%s", "ids differ");
    }
}

static inline void assert_encodes(const text_tokenizer_t *tokenizer, const json_t *text,
                                  bool add_special, bool parse_special, const json_t *expected)
{
    weft_diag_t diag = {0};
    text_ids_t ids = {0};
    weft_status_t status =
        text_tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text),
                              add_special, parse_special, &diag, &ids);
    if (status < 0) {
        fail_msg("%s", diag.text);
    }
    assert_ids(ids, expected, json_string_value(text));
    text_ids_free(ids);
}

static inline void assert_text(const char *data, size_t length, const json_t *expected)
{
    const char *wanted = json_string_value(expected);
    size_t wanted_length = json_string_length(expected);
    size_t same = 0;
    while (same < length && same < wanted_length && data[same] == wanted[same]) {
        same++;
    }
    if (same < length || same < wanted_length) {
        print_error("expected from byte %zu: \"%.80s\"\n", same, wanted + same);
        fail_msg("got \"%.*s\"", (int)(length - same < 80 ? length - same : 80), data + same);
    }
}
