/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/json_fields.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef enum read_result { READ_OK, READ_WRONG_TYPE, READ_OUT_OF_RANGE } read_result_t;

static const char *const expectations[] = {
    [JSON_FIELD_BOOL] = "Input should be a valid boolean",
    [JSON_FIELD_I64] = "Input should be a valid integer",
    [JSON_FIELD_F64] = "Input should be a valid number",
    [JSON_FIELD_STR] = "Input should be a valid string",
    [JSON_FIELD_ARRAY] = "Input should be a valid list",
    [JSON_FIELD_OBJECT] = "Input should be a valid dictionary",
    [JSON_FIELD_ANY] = "Input should be valid",
};

bool json_fields_integer(const json_t *value, int64_t *number_out)
{
    if (json_is_integer(value)) {
        *number_out = json_integer_value(value);
        return true;
    }
    if (json_is_real(value) && fabs(json_real_value(value)) < 9e15 &&
        trunc(json_real_value(value)) == json_real_value(value)) {
        *number_out = (int64_t)json_real_value(value);
        return true;
    }
    return false;
}

bool json_fields_is_text(const json_t *value)
{
    return json_is_string(value) && strlen(json_string_value(value)) == json_string_length(value);
}

static read_result_t read_integer(const json_t *value, const json_field_t *row, void *place)
{
    int64_t number;

    if (!json_fields_integer(value, &number)) {
        return READ_WRONG_TYPE;
    }
    if ((double)number < row->low || (double)number > row->high) {
        return READ_OUT_OF_RANGE;
    }
    *(int64_t *)place = number;
    return READ_OK;
}

static read_result_t read_real(const json_t *value, const json_field_t *row, void *place)
{
    if (!json_is_number(value)) {
        return READ_WRONG_TYPE;
    }
    double number = json_number_value(value);
    if (!(number >= row->low && number <= row->high)) {
        return READ_OUT_OF_RANGE;
    }
    *(double *)place = number;
    return READ_OK;
}

static bool has_json_type(const json_t *value, json_field_type_t type)
{
    int64_t number;

    switch (type) {
    case JSON_FIELD_BOOL:
        return json_is_boolean(value);
    case JSON_FIELD_I64:
        return json_fields_integer(value, &number);
    case JSON_FIELD_F64:
        return json_is_number(value);
    case JSON_FIELD_STR:
        return json_fields_is_text(value);
    case JSON_FIELD_ARRAY:
        return json_is_array(value);
    case JSON_FIELD_OBJECT:
        return json_is_object(value);
    case JSON_FIELD_ANY:
        break;
    }
    return true;
}

static read_result_t read_value(json_t *value, const json_field_t *row, void *place)
{
    if (!has_json_type(value, row->type)) {
        return READ_WRONG_TYPE;
    }
    switch (row->type) {
    case JSON_FIELD_I64:
        return read_integer(value, row, place);
    case JSON_FIELD_F64:
        return read_real(value, row, place);
    case JSON_FIELD_BOOL:
        *(bool *)place = json_is_true(value);
        return READ_OK;
    case JSON_FIELD_STR:
        *(const char **)place = json_string_value(value);
        return READ_OK;
    default:
        *(json_t **)place = value;
        return READ_OK;
    }
}

static void join_path(char *out, size_t size, const char *path, const char *name)
{
    snprintf(out, size, "%s%s%s", path, path[0] != '\0' ? "." : "", name);
}

void json_fields_read(const json_t *object, const json_field_t *rows, size_t n_rows,
                      const char *path, void *destination, api_error_t *error)
{
    char name[128];

    for (size_t i = 0; i < n_rows; i++) {
        const json_field_t *row = &rows[i];
        json_t *value = json_object_get(object, row->name);
        if (value == NULL || json_is_null(value)) {
            continue;
        }
        read_result_t result = read_value(value, row, (char *)destination + row->offset);
        join_path(name, sizeof(name), path, row->name);
        if (result == READ_WRONG_TYPE) {
            api_error_violation(error, name, expectations[row->type]);
        } else if (result == READ_OUT_OF_RANGE && error->kind == API_ERROR_NONE) {
            api_error_set(error, API_ERROR_BAD_REQUEST, name, "%s %s, got %g.", row->name,
                          row->rule, json_number_value(value));
        }
    }
}

static void check_item(const json_t *value, json_field_type_t type, const char *path,
                       const char *name, api_error_t *error)
{
    char full[128];

    if (!has_json_type(value, type)) {
        join_path(full, sizeof(full), path, name);
        api_error_violation(error, full, expectations[type]);
    }
}

void json_fields_check_items(const json_t *container, json_field_type_t type, const char *path,
                             api_error_t *error)
{
    char index[24];
    const char *key;
    json_t *value;

    for (size_t i = 0; i < json_array_size(container); i++) {
        snprintf(index, sizeof(index), "%zu", i);
        check_item(json_array_get(container, i), type, path, index, error);
    }
    json_object_foreach((json_t *)container, key, value)
    {
        check_item(value, type, path, key, error);
    }
}

/* Values the text may hold at most: one a bracket or separator outside of strings. */
static size_t count_values(const char *body, size_t length)
{
    size_t n = 1;
    bool in_string = false;

    for (size_t i = 0; i < length; i++) {
        char c = body[i];
        if (in_string) {
            i += c == '\\';
            in_string = c != '"';
        } else if (c == '"') {
            in_string = true;
        } else {
            n += c == ',' || c == '[' || c == '{' || c == ':';
        }
    }
    return n;
}

weft_status_t json_fields_parse(const char *body, size_t length, json_t **json_out,
                                api_error_t *error)
{
    json_error_t detail;

    if (count_values(body, length) > JSON_FIELDS_MAX_VALUES) {
        return api_error_set(error, API_ERROR_TOO_LARGE, NULL,
                             "The request holds more than %d JSON values.", JSON_FIELDS_MAX_VALUES);
    }
    json_t *json = json_loadb(body, length, JSON_ALLOW_NUL, &detail);
    if (json == NULL && json_error_code(&detail) == json_error_out_of_memory) {
        return api_error_no_memory(error);
    }
    if (json == NULL) {
        return api_error_set(error, API_ERROR_SCHEMA, NULL,
                             "JSON decode error: %s (line %d column %d)", detail.text, detail.line,
                             detail.column);
    }
    if (!json_is_object(json)) {
        json_decref(json);
        return api_error_violation(error, "body", expectations[JSON_FIELD_OBJECT]);
    }
    *json_out = json;
    return WEFT_OK;
}
