/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_struct.h"

#include <ctype.h>
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buffer.h"

weft_status_t weft_json_parse_object(const char *text, const char *where, weft_diag_t *diag,
                                     json_t **object_out)
{
    json_error_t error;
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (object == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%snot JSON: line %d, column %d: %s", where,
                         error.line, error.column, error.text);
    }
    if (!json_is_object(object)) {
        json_decref(object);
        return weft_diag(diag, WEFT_ERR_INVALID, "%snot a JSON object", where);
    }
    *object_out = object;
    return WEFT_OK;
}

const weft_json_field_t *weft_json_find_field(const weft_json_field_t *fields, size_t n,
                                              const char *name)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(fields[i].name, name) == 0) {
            return &fields[i];
        }
    }
    return NULL;
}

/* ---- owned texts ----------------------------------------------------------------------------- */

static bool is_text(const weft_json_field_t *field)
{
    return field->kind == WEFT_JSON_TEXT || field->kind == WEFT_JSON_OPTIONAL ||
           field->kind == WEFT_JSON_NAMES;
}

static char **text_of(const weft_json_field_t *field, void *in)
{
    return (char **)(void *)((char *)in + field->offset);
}

weft_status_t weft_json_set_text(char **place, const char *text)
{
    char *copy = text == NULL ? NULL : weft_strdup(text, "json.text");
    if (text != NULL && copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_free(*place);
    *place = copy;
    return WEFT_OK;
}

weft_status_t weft_json_copy_texts(const weft_json_field_t *fields, size_t n, void *in)
{
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; i < n; i++) {
        if (is_text(&fields[i])) {
            char **place = text_of(&fields[i], in);
            const char *shared = *place;
            *place = NULL;
            status = status < 0 ? status : weft_json_set_text(place, shared);
        }
    }
    return status;
}

void weft_json_free_texts(const weft_json_field_t *fields, size_t n, void *in)
{
    for (size_t i = 0; i < n; i++) {
        if (is_text(&fields[i])) {
            weft_free(*text_of(&fields[i], in));
            *text_of(&fields[i], in) = NULL;
        }
    }
}

/* ---- values ---------------------------------------------------------------------------------- */

static bool is_plain_text(const json_t *value)
{
    return json_is_string(value) && strlen(json_string_value(value)) == json_string_length(value);
}

static bool is_names(const json_t *value)
{
    const size_t n = json_is_array(value) ? json_array_size(value) : 0;
    for (size_t i = 0; i < n; i++) {
        if (!is_plain_text(json_array_get(value, i))) {
            return false;
        }
    }
    return json_is_array(value) || is_plain_text(value);
}

/* NULL: no memory. */
static char *join_names(const json_t *value)
{
    weft_buffer_t names = {0};
    const size_t n = json_is_array(value) ? json_array_size(value) : 1;
    weft_buffer_puts(&names, "");
    for (size_t i = 0; i < n; i++) {
        const json_t *name = json_is_array(value) ? json_array_get(value, i) : value;
        weft_buffer_printf(&names, "%s%s", i > 0 ? "," : "", json_string_value(name));
    }
    char *joined = weft_buffer_take(&names, NULL);
    for (char *at = joined; at != NULL && *at != '\0'; at++) {
        *at = (char)tolower((unsigned char)*at);
    }
    return joined;
}

static weft_status_t set_names(char **place, const json_t *value)
{
    char *joined = join_names(value);
    if (joined == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_free(*place);
    *place = joined;
    return WEFT_OK;
}

static bool read_count(const json_t *value, const weft_json_field_t *field, uint64_t *count)
{
    const bool is_one = json_is_integer(value) && json_integer_value(value) >= 0 &&
                        (uint64_t)json_integer_value(value) >= field->low &&
                        (uint64_t)json_integer_value(value) <= field->high;
    *count = is_one ? (uint64_t)json_integer_value(value) : *count;
    return is_one;
}

static bool read_number(const json_t *value, double *number)
{
    const bool is_one =
        json_is_number(value) && json_number_value(value) > 0 && json_number_value(value) <= 1e12;
    *number = is_one ? json_number_value(value) : *number;
    return is_one;
}

static bool read_bool(const json_t *value, bool *flag)
{
    *flag = json_is_boolean(value) ? json_is_true(value) : *flag;
    return json_is_boolean(value);
}

weft_status_t weft_json_read_field(const weft_json_field_t *field, const json_t *value,
                                   const char *where, weft_diag_t *diag, void *in)
{
    void *place = (char *)in + field->offset;
    const char *wanted = "";
    switch (field->kind) {
    case WEFT_JSON_BOOL:
        wanted = read_bool(value, place) ? NULL : "not true or false";
        break;
    case WEFT_JSON_COUNT:
        return read_count(value, field, place)
                   ? WEFT_OK
                   : weft_diag(diag, WEFT_ERR_INVALID,
                               "%s%s: not a whole number from %" PRIu64 " to %" PRIu64, where,
                               field->name, field->low, field->high);
    case WEFT_JSON_NUMBER:
        wanted = read_number(value, place) ? NULL : "not a number above 0";
        break;
    case WEFT_JSON_TEXT:
        if (is_plain_text(value)) {
            return weft_json_set_text(place, json_string_value(value));
        }
        wanted = "not a text";
        break;
    case WEFT_JSON_OPTIONAL:
        if (is_plain_text(value) || json_is_null(value)) {
            return weft_json_set_text(place, json_string_value(value));
        }
        wanted = "not a text or null";
        break;
    case WEFT_JSON_NAMES:
        if (is_names(value)) {
            return set_names(place, value);
        }
        wanted = "not a list of texts";
        break;
    }
    return wanted == NULL
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID, "%s%s: %s", where, field->name, wanted);
}

weft_status_t weft_json_read_object(const char *text, const weft_json_field_t *fields, size_t n,
                                    const char *where, weft_diag_t *diag, void *in)
{
    json_t *object;
    weft_status_t status = weft_json_parse_object(text, where, diag, &object);
    if (status < 0) {
        return status;
    }
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        const weft_json_field_t *field = weft_json_find_field(fields, n, name);
        status = field == NULL
                     ? weft_diag(diag, WEFT_ERR_INVALID, "%sno field is called \"%s\"", where, name)
                     : weft_json_read_field(field, value, where, diag, in);
        if (status < 0) {
            break;
        }
    }
    json_decref(object);
    return status;
}
