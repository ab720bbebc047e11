/* SPDX-License-Identifier: Apache-2.0 */
/* vectors: reads what lies in tests/vectors; a fault ends the test. */
#pragma once

#include <jansson.h>
#include <string.h>

#include "tests/support/check.h"

/* All bytes of tests/vectors/<path>, terminated; free with weft_free. */
static inline char *read_vector(const char *path, size_t *length_out)
{
    char full[1024];
    snprintf(full, sizeof(full), "%s/%s", WEFT_TEST_VECTORS, path);
    FILE *file = fopen(full, "rb");
    if (file == NULL) {
        fail_msg("%s cannot be opened", full);
    }
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    long size = ftell(file);
    assert_true(size >= 0);
    rewind(file);
    char *bytes = weft_alloc((size_t)size + 1, "test.vector");
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, (size_t)size, file), (size_t)size);
    bytes[size] = '\0';
    fclose(file);
    *length_out = (size_t)size;
    return bytes;
}

/* tests/vectors/<path> as JSON; json_decref it. */
static inline json_t *read_json_vector(const char *path)
{
    size_t length;
    char *bytes = read_vector(path, &length);
    json_error_t error;
    json_t *value = json_loadb(bytes, length, JSON_ALLOW_NUL, &error);
    weft_free(bytes);
    if (value == NULL) {
        fail_msg("%s: %s", path, error.text);
    }
    return value;
}
