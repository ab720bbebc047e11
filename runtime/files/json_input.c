/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/files/json_input.h"

/* Every value but the first follows one of these. Inside strings they count too: a bound, no more. */
static size_t count_structure(const char *text, size_t length)
{
    size_t count = 0;
    for (size_t i = 0; i < length; i++) {
        const char c = text[i];
        count += c == ',' || c == ':' || c == '[' || c == '{';
    }
    return count;
}

weft_status_t json_input_parse(const char *text, size_t length, size_t max_bytes, size_t flags,
                               const char *name, weft_diag_t *diag, json_t **root_out)
{
    json_error_t error = {0};
    if (length > max_bytes) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "%s: %zu bytes of JSON, at most %zu are read",
                         name, length, max_bytes);
    }
    if (count_structure(text, length) > JSON_INPUT_MAX_VALUES) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "%s: more than %u JSON values", name,
                         JSON_INPUT_MAX_VALUES);
    }
    json_t *root = json_loadb(text, length, flags, &error);
    if (root == NULL) {
        if (error.text[0] == '\0') { /* what jansson leaves when it had no memory */
            return weft_diag(diag, WEFT_ERR_NO_MEMORY, "%s: out of memory for its JSON", name);
        }
        return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: is not valid JSON: line %d column %d: %s",
                         name, error.line, error.column, error.text);
    }
    *root_out = root;
    return WEFT_OK;
}

void json_reader_refuse(json_reader_t *reader, weft_status_t status, const char *key,
                        const char *reason)
{
    if (reader->status == WEFT_OK) {
        reader->status = weft_diag(reader->diag, status, "%s: %s: %s", reader->name, key, reason);
    }
}

const json_t *json_reader_get(const json_reader_t *reader, const char *key)
{
    const json_t *value = json_object_get(reader->object, key);
    return json_is_null(value) ? NULL : value;
}

uint32_t json_reader_u32(json_reader_t *reader, const char *key, uint32_t fallback)
{
    const json_t *value = json_reader_get(reader, key);
    if (value == NULL) {
        return fallback;
    }
    const json_int_t number = json_integer_value(value);
    if (!json_is_integer(value)) {
        json_reader_refuse(reader, WEFT_ERR_MALFORMED, key, "is not an integer");
    } else if (number < 0 || number > UINT32_MAX) {
        json_reader_refuse(reader, WEFT_ERR_MALFORMED, key, "is out of range");
    } else {
        return (uint32_t)number;
    }
    return fallback;
}

double json_reader_f64(json_reader_t *reader, const char *key, double fallback)
{
    const json_t *value = json_reader_get(reader, key);
    if (value == NULL) {
        return fallback;
    }
    if (!json_is_number(value)) {
        json_reader_refuse(reader, WEFT_ERR_MALFORMED, key, "is not a number");
        return fallback;
    }
    return json_number_value(value);
}

bool json_reader_bool(json_reader_t *reader, const char *key, bool fallback)
{
    const json_t *value = json_reader_get(reader, key);
    if (value == NULL) {
        return fallback;
    }
    if (!json_is_boolean(value)) {
        json_reader_refuse(reader, WEFT_ERR_MALFORMED, key, "is neither true nor false");
        return fallback;
    }
    return json_is_true(value);
}

const char *json_reader_string(json_reader_t *reader, const char *key, const char *fallback)
{
    const json_t *value = json_reader_get(reader, key);
    if (value == NULL) {
        return fallback;
    }
    if (!json_is_string(value)) {
        json_reader_refuse(reader, WEFT_ERR_MALFORMED, key, "is not a string");
        return fallback;
    }
    return json_string_value(value);
}

uint32_t json_reader_need_u32(json_reader_t *reader, const char *key)
{
    if (json_reader_get(reader, key) == NULL) {
        json_reader_refuse(reader, WEFT_ERR_MALFORMED, key, "missing");
    }
    return json_reader_u32(reader, key, 0);
}

double json_reader_need_f64(json_reader_t *reader, const char *key)
{
    if (json_reader_get(reader, key) == NULL) {
        json_reader_refuse(reader, WEFT_ERR_MALFORMED, key, "missing");
    }
    return json_reader_f64(reader, key, 0);
}
