/* SPDX-License-Identifier: Apache-2.0 */
/*
 * json_fields: reads the members of a JSON object into a struct, as a table of fields says.
 *
 * A table is an X-macro list, FIELD(name, type, low, high, rule), that makes the struct's members
 * and its rows:
 *
 *   FIELD(top_p, F64, DBL_MIN, 1, "must be in (0, 1]")
 *
 * Absent and null members leave the struct's value alone; unknown members are skipped.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "services/api/api_error.h"

/* An I64 that the request does not hold. */
#define JSON_UNSET INT64_MIN

typedef enum json_field_type {
    JSON_FIELD_BOOL,
    JSON_FIELD_I64, /* 5.0 is 5 */
    JSON_FIELD_F64,
    JSON_FIELD_STR,   /* borrowed from the tree; without NUL inside */
    JSON_FIELD_ARRAY, /* json_t *, borrowed, so for the next */
    JSON_FIELD_OBJECT,
    JSON_FIELD_ANY,
} json_field_type_t;

typedef bool json_field_BOOL_t;
typedef int64_t json_field_I64_t;
typedef double json_field_F64_t;
typedef const char *json_field_STR_t;
typedef json_t *json_field_ARRAY_t;
typedef json_t *json_field_OBJECT_t;
typedef json_t *json_field_ANY_t;

typedef struct json_field {
    const char *name;
    json_field_type_t type;
    size_t offset;
    double low; /* of numbers */
    double high;
    const char *rule; /* said when a number is outside: "must be in (0, 1]" */
} json_field_t;

#define JSON_FIELD_MEMBER(name, type, low, high, rule) json_field_##type##_t name;
#define JSON_FIELD_ROW(strukt, name, type, low, high, rule)                                        \
    {#name, JSON_FIELD_##type, offsetof(strukt, name), low, high, rule},

/*
 * path: of object in the request, "" for the request itself; leads the names in errors. Reading goes
 * on after an error, so that all tables of one body report together: ask api_error_status() after
 * the last. Of numbers outside their range, a bad request, the first is kept.
 */
void json_fields_read(const json_t *object, const json_field_t *rows, size_t n_rows,
                      const char *path, void *destination, api_error_t *error);

/* A violation "path.i" (of an object "path.key") for each item that has not the type. NULL: none. */
void json_fields_check_items(const json_t *container, json_field_type_t type, const char *path,
                             api_error_t *error);

/* Whether value is a string without NUL: one with it would be cut by readers of C strings. */
bool json_fields_is_text(const json_t *value);

/* False: value is no whole number. */
bool json_fields_integer(const json_t *value, int64_t *number_out);

/*
 * The tree of a request's body. Bounded: JSON_FIELDS_MAX_VALUES values, jansson's depth of 2048.
 * The tree is the caller's.
 */
#define JSON_FIELDS_MAX_VALUES 2000000

weft_status_t json_fields_parse(const char *body, size_t length, json_t **json_out,
                                api_error_t *error);
