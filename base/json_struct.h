/* SPDX-License-Identifier: Apache-2.0 */
/*
 * json_struct: a struct filled from a JSON object by a table of its fields, as options whose value is
 * JSON are: --kv-events-config '{"topic": "kv"}'. What an unknown name or null means is the caller's.
 *
 * Messages begin with `where`: "--kv-events-config: " or a path below it.
 */
#pragma once

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

typedef enum weft_json_kind {
    WEFT_JSON_BOOL,     /* bool */
    WEFT_JSON_COUNT,    /* uint64_t, from low to high */
    WEFT_JSON_NUMBER,   /* double above 0 */
    WEFT_JSON_TEXT,     /* char *, owned by the struct, as the next two */
    WEFT_JSON_OPTIONAL, /* char *: a text; NULL for null */
    WEFT_JSON_NAMES,    /* char *: a text, or texts with commas between, from a list; lower case */
} weft_json_kind_t;

typedef struct weft_json_field {
    const char *name;
    weft_json_kind_t kind;
    size_t offset;
    uint64_t low; /* of a count, as high */
    uint64_t high;
} weft_json_field_t;

/* An object that is json_decref'ed. WEFT_ERR_INVALID: where it is not JSON, or not an object. */
weft_status_t weft_json_parse_object(const char *text, const char *where, weft_diag_t *diag,
                                     json_t **object_out);

/* NULL: there is none of that name. */
const weft_json_field_t *weft_json_find_field(const weft_json_field_t *fields, size_t n,
                                              const char *name);

/* Sets the field of the struct `in`. WEFT_ERR_INVALID: the value is of another kind. */
weft_status_t weft_json_read_field(const weft_json_field_t *field, const json_t *value,
                                   const char *where, weft_diag_t *diag, void *in);

/* Sets fields of the struct `in` from the text of an object that has these and no other. Errors: as
 * parsing and reading a field; what was set before stays, texts are the caller's to free. */
weft_status_t weft_json_read_object(const char *text, const weft_json_field_t *fields, size_t n,
                                    const char *where, weft_diag_t *diag, void *in);

/* An owned text becomes a copy of text (NULL: none), what it was is freed. */
weft_status_t weft_json_set_text(char **place, const char *text);

/* Copies the owned texts that the struct `in` shares with the one it is a plain copy of; on failure
 * those that were not copied are NULL. */
weft_status_t weft_json_copy_texts(const weft_json_field_t *fields, size_t n, void *in);
void weft_json_free_texts(const weft_json_field_t *fields, size_t n, void *in);
