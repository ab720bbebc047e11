/* SPDX-License-Identifier: Apache-2.0 */
/* utf8: well-formedness of UTF-8, Unicode 15 table 3-7 (no surrogates, no overlong forms). */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the character that starts at text (1..4), 0 if none well-formed starts there. */
size_t weft_utf8_length(const char *text, size_t available);

bool weft_utf8_valid(const char *text, size_t length);

/* Characters that begin in text: pieces of a text, cut anywhere, have together as many as the whole. */
size_t weft_utf8_count(const char *text, size_t length);
