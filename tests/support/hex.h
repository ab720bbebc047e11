/* SPDX-License-Identifier: Apache-2.0 */
/* hex: bytes written as text. Everything asserts. */
#pragma once

#include <string.h>

#include "base/arena.h"
#include "tests/support/check.h"

static inline uint8_t *hex_bytes(weft_arena_t *arena, const char *hex, size_t *length_out)
{
    *length_out = strlen(hex) / 2;
    uint8_t *bytes = weft_arena_alloc(arena, *length_out + 1);
    assert_non_null(bytes);
    for (size_t i = 0; i < *length_out; i++) {
        unsigned byte;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        bytes[i] = (uint8_t)byte;
    }
    return bytes;
}
