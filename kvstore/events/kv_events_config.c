/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_events_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "base/compiler.h"

typedef enum field_type { TYPE_BOOL, TYPE_TEXT, TYPE_OPTIONAL, TYPE_COUNT } field_type_t;

typedef struct field {
    const char *name;
    field_type_t type;
    size_t offset;
} field_t;

static const field_t fields[] = {
#define CONFIG(field, type, fallback) {#field, TYPE_##type, offsetof(kv_events_config_t, field)},
#include "kvstore/events/kv_events_config.def"
#undef CONFIG
};

static weft_status_t set_text(char **value, const char *text)
{
    char *copy = text == NULL ? NULL : weft_strdup(text, "kv_events_config.text");
    if (text != NULL && copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_free(*value);
    *value = copy;
    return WEFT_OK;
}

static weft_status_t set_fallbacks(kv_events_config_t *config)
{
    weft_status_t status = WEFT_OK;
#define SET_BOOL(field, fallback)     config->field = fallback;
#define SET_COUNT(field, fallback)    config->field = fallback;
#define SET_TEXT(field, fallback)     status = status < 0 ? status : set_text(&config->field, fallback);
#define SET_OPTIONAL                  SET_TEXT
#define CONFIG(field, type, fallback) SET_##type(field, fallback)
#include "kvstore/events/kv_events_config.def"
#undef CONFIG
    return status;
}

static weft_status_t wrong(weft_diag_t *diag, const field_t *field, const char *what)
{
    return weft_diag(diag, WEFT_ERR_INVALID, "--kv-events-config: %s: %s", field->name, what);
}

static weft_status_t read_count(const json_t *value, const field_t *field, weft_diag_t *diag,
                                uint32_t *count_out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) > INT32_MAX / 4) {
        return wrong(diag, field, "not a whole number from 0 to 536870911");
    }
    *count_out = (uint32_t)json_integer_value(value);
    return WEFT_OK;
}

static weft_status_t read_text(const json_t *value, const field_t *field, weft_diag_t *diag,
                               char **text)
{
    const bool is_optional = field->type == TYPE_OPTIONAL;
    if (json_is_null(value) && is_optional) {
        return set_text(text, NULL);
    }
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value)) {
        return wrong(diag, field, is_optional ? "not a text or null" : "not a text");
    }
    return set_text(text, json_string_value(value));
}

static weft_status_t read_field(const json_t *value, const field_t *field, weft_diag_t *diag,
                                kv_events_config_t *config)
{
    void *place = (char *)config + field->offset;
    switch (field->type) {
    case TYPE_BOOL:
        if (!json_is_boolean(value)) {
            return wrong(diag, field, "not true or false");
        }
        *(bool *)place = json_is_true(value);
        return WEFT_OK;
    case TYPE_COUNT:
        return read_count(value, field, diag, place);
    case TYPE_TEXT:
    case TYPE_OPTIONAL:
        return read_text(value, field, diag, place);
    }
    return WEFT_ERR_INTERNAL;
}

static const field_t *find_field(const char *name)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fields); i++) {
        if (strcmp(fields[i].name, name) == 0) {
            return &fields[i];
        }
    }
    return NULL;
}

static weft_status_t read_object(json_t *object, weft_diag_t *diag, kv_events_config_t *config)
{
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        const field_t *field = find_field(name);
        if (field == NULL) {
            return weft_diag(diag, WEFT_ERR_INVALID,
                             "--kv-events-config: no field is called \"%s\"", name);
        }
        const weft_status_t status = read_field(value, field, diag, config);
        if (status < 0) {
            return status;
        }
    }
    return WEFT_OK;
}

static weft_status_t resolve_publisher(weft_diag_t *diag, kv_events_config_t *config)
{
    if (config->publisher == NULL) {
        return set_text(&config->publisher, config->enable_kv_cache_events ? "zmq" : "null");
    }
    if (strcmp(config->publisher, "zmq") != 0 && strcmp(config->publisher, "null") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--kv-events-config: publisher: \"%s\" is not null or zmq",
                         config->publisher);
    }
    return WEFT_OK;
}

static weft_status_t parse(const char *text, weft_diag_t *diag, kv_events_config_t *config)
{
    json_error_t error;
    if (text == NULL || text[0] == '\0') {
        return WEFT_OK;
    }
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (object == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--kv-events-config: not JSON: %s", error.text);
    }
    const weft_status_t status =
        json_is_object(object)
            ? read_object(object, diag, config)
            : weft_diag(diag, WEFT_ERR_INVALID, "--kv-events-config: not a JSON object");
    json_decref(object);
    return status;
}

weft_status_t kv_events_config_parse(const char *text, weft_diag_t *diag,
                                     kv_events_config_t *config_out)
{
    kv_events_config_t config = {0};
    weft_status_t status = set_fallbacks(&config);
    if (status >= 0) {
        status = parse(text, diag, &config);
    }
    if (status >= 0) {
        status = resolve_publisher(diag, &config);
    }
    if (status < 0) {
        kv_events_config_fini(&config);
        return status;
    }
    *config_out = config;
    return WEFT_OK;
}

void kv_events_config_fini(kv_events_config_t *config)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fields); i++) {
        if (fields[i].type == TYPE_TEXT || fields[i].type == TYPE_OPTIONAL) {
            weft_free(*(char **)((char *)config + fields[i].offset));
        }
    }
    *config = (kv_events_config_t){0};
}

bool kv_events_config_is_on(const kv_events_config_t *config)
{
    return config->enable_kv_cache_events && strcmp(config->publisher, "zmq") == 0;
}

static json_t *field_json(const void *value, field_type_t type)
{
    switch (type) {
    case TYPE_BOOL:
        return json_boolean(*(const bool *)value);
    case TYPE_COUNT:
        return json_integer(*(const uint32_t *)value);
    case TYPE_TEXT:
    case TYPE_OPTIONAL:
        break;
    }
    const char *text = *(char *const *)value;
    return text == NULL ? json_null() : json_string(text);
}

json_t *kv_events_config_json(const kv_events_config_t *config)
{
    json_t *object = json_object();
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fields) && object != NULL; i++) {
        const void *value = (const char *)config + fields[i].offset;
        if (json_object_set_new(object, fields[i].name, field_json(value, fields[i].type)) != 0) {
            json_decref(object);
            object = NULL;
        }
    }
    return object;
}

/* ---- endpoints ------------------------------------------------------------------------------- */

static bool begins_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

/* The text behind the last ':' of a tcp endpoint; NULL: there is no port. */
static const char *port_of(const char *endpoint)
{
    const char *colon = strrchr(endpoint, ':');
    return begins_with(endpoint, "tcp://") && colon > endpoint + strlen("tcp:") ? colon + 1 : NULL;
}

bool kv_events_is_bound(const char *endpoint)
{
    const char *port = port_of(endpoint);
    return strchr(endpoint, '*') != NULL || strstr(endpoint, "::") != NULL ||
           begins_with(endpoint, "ipc://") || begins_with(endpoint, "inproc://") ||
           (port != NULL && strcmp(port, "0") == 0);
}

static weft_status_t shift_port(const char *endpoint, uint32_t rank, weft_diag_t *diag,
                                weft_buffer_t *out)
{
    const char *port = port_of(endpoint);
    char *end = NULL;
    const unsigned long number = port == NULL ? 0 : strtoul(port, &end, 10);
    if (port == NULL || end == port || *end != '\0' || number > UINT16_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID, "KV events: %s: no port at its end", endpoint);
    }
    if (number > 0 && (rank > UINT16_MAX || number + rank > UINT16_MAX)) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "KV events: %s: the port of data-parallel rank %u would be above %u",
                         endpoint, rank, UINT16_MAX);
    }
    weft_buffer_append(out, endpoint, (size_t)(port - endpoint));
    weft_buffer_printf(out, "%lu", number > 0 ? number + rank : 0);
    return WEFT_OK;
}

static weft_status_t shift(const char *endpoint, uint32_t rank, weft_diag_t *diag,
                           weft_buffer_t *out)
{
    if (begins_with(endpoint, "tcp://")) {
        return shift_port(endpoint, rank, diag, out);
    }
    if (begins_with(endpoint, "inproc://")) {
        weft_buffer_puts(out, endpoint);
        if (rank > 0) {
            weft_buffer_printf(out, "_dp%u", rank);
        }
        return WEFT_OK;
    }
    if (begins_with(endpoint, "ipc://") && rank == 0) {
        weft_buffer_puts(out, endpoint);
        return WEFT_OK;
    }
    return weft_diag(diag, WEFT_ERR_INVALID,
                     begins_with(endpoint, "ipc://")
                         ? "KV events: %s: ipc is for one data-parallel rank only"
                         : "KV events: %s: not an endpoint of tcp, ipc or inproc",
                     endpoint);
}

weft_status_t kv_events_shift(const char *endpoint, uint32_t rank, weft_diag_t *diag,
                              char **endpoint_out)
{
    weft_buffer_t out = {0};
    const weft_status_t status = shift(endpoint, rank, diag, &out);
    if (status < 0) {
        weft_buffer_free(&out);
        return status;
    }
    char *text = weft_buffer_take(&out, NULL);
    if (text == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *endpoint_out = text;
    return WEFT_OK;
}
