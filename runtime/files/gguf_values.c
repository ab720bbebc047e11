/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "runtime/files/gguf_priv.h"

const uint8_t gguf_type_bytes[GGUF_TYPE_COUNT] = {
    [GGUF_UINT8] = 1,  [GGUF_INT8] = 1,  [GGUF_UINT16] = 2,  [GGUF_INT16] = 2,
    [GGUF_UINT32] = 4, [GGUF_INT32] = 4, [GGUF_FLOAT32] = 4, [GGUF_BOOL] = 1,
    [GGUF_UINT64] = 8, [GGUF_INT64] = 8, [GGUF_FLOAT64] = 8,
};

uint64_t gguf_load_le(const uint8_t *p, size_t n)
{
    uint64_t value = 0;
    for (size_t i = 0; i < n; i++) {
        value |= (uint64_t)p[i] << (8 * i);
    }
    return value;
}

int gguf_compare_strings(gguf_string_t a, gguf_string_t b)
{
    const int order = memcmp(a.data, b.data, a.length < b.length ? a.length : b.length);
    return order != 0 ? order : (a.length > b.length) - (a.length < b.length);
}

int gguf_by_key(const void *a, const void *b)
{
    return gguf_compare_strings(((const gguf_value_t *)a)->key, ((const gguf_value_t *)b)->key);
}

const gguf_value_t *gguf_find(const gguf_t *gguf, const char *key)
{
    const gguf_value_t wanted = {.key = {key, strlen(key)}};
    return bsearch(&wanted, gguf->values, gguf->n_values, sizeof(wanted), gguf_by_key);
}

static weft_status_t wrong_type(const gguf_t *gguf, const char *key, weft_diag_t *diag,
                                const char *wanted)
{
    return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: key %s: is not %s", gguf->name, key, wanted);
}

weft_status_t gguf_get_u64(const gguf_t *gguf, const char *key, weft_diag_t *diag, uint64_t *out)
{
    const gguf_value_t *value = gguf_find(gguf, key);
    if (value == NULL) {
        return WEFT_ERR_NOT_FOUND;
    }
    bool is_negative = false;
    switch (value->type) {
    case GGUF_INT8:
    case GGUF_INT16:
    case GGUF_INT32:
    case GGUF_INT64:
        is_negative =
            !value->is_array && (value->data[gguf_type_bytes[value->type] - 1] & 0x80) != 0;
        break;
    case GGUF_UINT8:
    case GGUF_UINT16:
    case GGUF_UINT32:
    case GGUF_UINT64:
        break;
    default:
        return wrong_type(gguf, key, diag, "an integer");
    }
    if (value->is_array || is_negative) {
        return wrong_type(gguf, key, diag, "one integer of 0 or more");
    }
    *out = gguf_load_le(value->data, gguf_type_bytes[value->type]);
    return WEFT_OK;
}

weft_status_t gguf_get_f64(const gguf_t *gguf, const char *key, weft_diag_t *diag, double *out)
{
    const gguf_value_t *value = gguf_find(gguf, key);
    if (value == NULL) {
        return WEFT_ERR_NOT_FOUND;
    }
    if (!value->is_array && value->type == GGUF_FLOAT32) {
        float f;
        memcpy(&f, value->data, sizeof(f));
        *out = (double)f;
        return WEFT_OK;
    }
    if (!value->is_array && value->type == GGUF_FLOAT64) {
        memcpy(out, value->data, sizeof(*out));
        return WEFT_OK;
    }
    return wrong_type(gguf, key, diag, "a floating-point number");
}

weft_status_t gguf_get_bool(const gguf_t *gguf, const char *key, weft_diag_t *diag, bool *out)
{
    const gguf_value_t *value = gguf_find(gguf, key);
    if (value == NULL) {
        return WEFT_ERR_NOT_FOUND;
    }
    if (value->is_array || value->type != GGUF_BOOL) {
        return wrong_type(gguf, key, diag, "a bool");
    }
    *out = value->data[0] != 0;
    return WEFT_OK;
}

weft_status_t gguf_get_string(const gguf_t *gguf, const char *key, weft_diag_t *diag,
                              gguf_string_t *out)
{
    const gguf_value_t *value = gguf_find(gguf, key);
    if (value == NULL) {
        return WEFT_ERR_NOT_FOUND;
    }
    if (value->is_array || value->type != GGUF_STRING) {
        return wrong_type(gguf, key, diag, "a string");
    }
    const uint8_t *cursor = value->data;
    *out = gguf_next_string(&cursor);
    return WEFT_OK;
}

weft_status_t gguf_get_array(const gguf_t *gguf, const char *key, gguf_type_t type,
                             weft_diag_t *diag, const gguf_value_t **out)
{
    const gguf_value_t *value = gguf_find(gguf, key);
    if (value == NULL) {
        return WEFT_ERR_NOT_FOUND;
    }
    if (!value->is_array || value->type != type) {
        return wrong_type(gguf, key, diag, "an array of the expected type");
    }
    *out = value;
    return WEFT_OK;
}

gguf_string_t gguf_next_string(const uint8_t **cursor)
{
    const gguf_string_t string = {(const char *)*cursor + 8, (size_t)gguf_load_le(*cursor, 8)};
    *cursor += 8 + string.length;
    return string;
}
