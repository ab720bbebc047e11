/* SPDX-License-Identifier: Apache-2.0 */
/* nixl_vectors: the cases of tests/vectors/kv_transfer/nixl.json. Everything asserts. */
#pragma once

#include "tests/support/hex.h"
#include "tests/support/vectors.h"

typedef void (*nixl_case_fn)(const json_t *test);

/* Calls check for each case of a kind, of which there must be some. */
static inline void nixl_for_each(const char *kind, nixl_case_fn check)
{
    json_t *vectors = read_json_vector("kv_transfer/nixl.json");
    const json_t *cases = json_object_get(vectors, "cases");
    size_t n = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *test = json_array_get(cases, i);
        if (strcmp(json_string_value(json_object_get(test, "kind")), kind) == 0) {
            check(test);
            n++;
        }
    }
    assert_true(n > 0);
    json_decref(vectors);
}

static inline uint64_t nixl_number(const json_t *test, const char *key)
{
    const json_t *value = json_object_get(test, key);
    assert_true(json_is_integer(value));
    return (uint64_t)json_integer_value(value);
}

static inline const char *nixl_text(const json_t *test, const char *key)
{
    return json_string_value(json_object_get(test, key));
}
