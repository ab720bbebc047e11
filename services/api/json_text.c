/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/json_text.h"

static int append(const char *data, size_t length, void *out)
{
    weft_buffer_append(out, data, length);
    return ((weft_buffer_t *)out)->is_failed ? -1 : 0;
}

void json_text_append(const json_t *value, weft_buffer_t *out)
{
    if (value == NULL ||
        json_dump_callback(value, append, out, JSON_COMPACT | JSON_ENCODE_ANY) != 0) {
        out->is_failed = true;
    }
}
