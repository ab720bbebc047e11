/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_error.h"

#include <stdarg.h>
#include <stdio.h>

typedef struct error_row {
    uint32_t http_status;
    const char *type;
} error_row_t;

static const error_row_t rows[] = {
    [API_ERROR_NONE] = {500, "InternalServerError"},
#define ERROR(kind, http_status, type) [API_ERROR_##kind] = {http_status, type},
#include "services/api/api_errors.def"
#undef ERROR
};

weft_status_t api_error_set(api_error_t *error, api_error_kind_t kind, const char *param,
                            const char *format, ...)
{
    char text[WEFT_DIAG_BYTES];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    error->kind = kind;
    error->n_violations = 0;
    snprintf(error->param, sizeof(error->param), "%s", param != NULL ? param : "");
    return weft_diag(&error->message, WEFT_ERR_INVALID, "%s", text);
}

weft_status_t api_error_violation(api_error_t *error, const char *path, const char *text)
{
    if (error->kind != API_ERROR_SCHEMA) {
        api_error_set(error, API_ERROR_SCHEMA, path, "%s: %s", path, text);
    } else if (error->n_violations < API_ERROR_MAX_LISTED) {
        weft_diag_t before = error->message;
        weft_diag(&error->message, WEFT_ERR_INVALID, "%s; %s: %s", before.text, path, text);
    }
    error->n_violations++;
    return WEFT_ERR_INVALID;
}

weft_status_t api_error_status(const api_error_t *error)
{
    return error->kind == API_ERROR_NONE ? WEFT_OK : WEFT_ERR_INVALID;
}

weft_status_t api_error_no_memory(api_error_t *error)
{
    return api_error_set(error, API_ERROR_UNAVAILABLE, NULL, "%s",
                         weft_strerror(WEFT_ERR_NO_MEMORY));
}

weft_status_t api_error_from(api_error_t *error, weft_status_t status, const weft_diag_t *diag,
                             const char *param)
{
    const char *text = diag->text[0] != '\0' ? diag->text : weft_strerror(status);

    switch (status) {
    case WEFT_ERR_NO_MEMORY:
        return api_error_set(error, API_ERROR_UNAVAILABLE, param, "%s", text);
    case WEFT_ERR_STOPPING:
        return api_error_set(error, API_ERROR_UNAVAILABLE, NULL,
                             "The server is shutting down and takes no new requests.");
    case WEFT_ERR_PEER_GONE:
        return api_error_set(error, API_ERROR_RANK_LOST, NULL, "The model is out of service: %s.",
                             text);
    case WEFT_ERR_QUEUE_FULL:
        return api_error_set(error, API_ERROR_QUEUE_FULL, NULL,
                             "The server's request queue is full (max_num_queued_reqs). "
                             "Try again later.");
    case WEFT_ERR_DEVICE:
    case WEFT_ERR_INTERNAL:
    case WEFT_ERR_IO:
        return api_error_set(error, API_ERROR_INTERNAL, NULL, "%s", text);
    default:
        return api_error_set(error, API_ERROR_BAD_REQUEST, param, "%s", text);
    }
}

uint32_t api_error_http_status(const api_error_t *error)
{
    return rows[error->kind].http_status;
}

static void write_message(const api_error_t *error, weft_json_t *json)
{
    char text[WEFT_DIAG_BYTES + 80];
    uint32_t n = error->n_violations;

    if (n > 0) {
        int length = snprintf(text, sizeof(text), "%u validation error%s: %s", n, n == 1 ? "" : "s",
                              error->message.text);
        if (n > API_ERROR_MAX_LISTED) {
            snprintf(text + length, sizeof(text) - (size_t)length, "; and %u more",
                     n - API_ERROR_MAX_LISTED);
        }
        weft_json_put_string(json, "message", text);
    } else {
        weft_json_put_string(json, "message", error->message.text);
    }
}

void api_error_write(const api_error_t *error, weft_json_t *json)
{
    weft_json_begin_object(json);
    weft_json_key(json, "error");
    if (error->kind == API_ERROR_UNAUTHORIZED) {
        weft_json_string(json, "Unauthorized");
    } else {
        weft_json_begin_object(json);
        write_message(error, json);
        weft_json_put_string(json, "type", rows[error->kind].type);
        weft_json_put_string(json, "param", error->param[0] != '\0' ? error->param : NULL);
        weft_json_put_u64(json, "code", rows[error->kind].http_status);
        weft_json_end_object(json);
    }
    weft_json_end_object(json);
}
