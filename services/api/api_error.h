/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api_error: why a request was not served, in OpenAI's shape:
 * {"error":{"message":…,"type":…,"param":…,"code":…}}.
 *
 * Schema violations are collected (several fields may be wrong): whoever reads a body goes on after
 * one and asks api_error_status at the end. Any other kind is set once, where the fault is seen; a
 * violation in the same body outranks it. Zeroed memory is no error.
 */
#pragma once

#include <stdint.h>

#include "base/diag.h"
#include "base/json_writer.h"
#include "base/status.h"

#define API_ERROR_MAX_LISTED 16 /* violations that are written out; more are counted */

typedef enum api_error_kind {
    API_ERROR_NONE,
#define ERROR(kind, http_status, type) API_ERROR_##kind,
#include "services/api/api_errors.def"
#undef ERROR
} api_error_kind_t;

typedef struct api_error {
    api_error_kind_t kind;
    uint32_t n_violations; /* of API_ERROR_SCHEMA */
    char param[128];       /* dotted path of the field; "": null */
    weft_diag_t message;
} api_error_t;

/* param NULL: none. Returns WEFT_ERR_INVALID, for `return api_error_set(…)`. */
weft_status_t api_error_set(api_error_t *error, api_error_kind_t kind, const char *param,
                            const char *format, ...) WEFT_PRINTF(4, 5);

/* One more violated rule of the request's schema. Returns WEFT_ERR_INVALID. */
weft_status_t api_error_violation(api_error_t *error, const char *path, const char *text);

/* WEFT_OK, or WEFT_ERR_INVALID once an error is there. */
weft_status_t api_error_status(const api_error_t *error);

/* The server lacks the memory to serve this: 503. Returns WEFT_ERR_INVALID. */
weft_status_t api_error_no_memory(api_error_t *error);

/* What a lower layer said: status and its line. Returns WEFT_ERR_INVALID. */
weft_status_t api_error_from(api_error_t *error, weft_status_t status, const weft_diag_t *diag,
                             const char *param);

uint32_t api_error_http_status(const api_error_t *error);

/* The object with its one member "error". */
void api_error_write(const api_error_t *error, weft_json_t *json);
