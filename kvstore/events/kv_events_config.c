/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_events_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/compiler.h"
#include "base/json_struct.h"

#define WHERE     "--kv-events-config: "
#define MAX_COUNT (INT32_MAX / 4)

static const weft_json_field_t fields[] = {
#define CONFIG(field, type, fallback)                                                              \
    {#field, WEFT_JSON_##type, offsetof(kv_events_config_t, field), 0, MAX_COUNT},
#include "kvstore/events/kv_events_config.def"
#undef CONFIG
};

static weft_status_t set_fallbacks(kv_events_config_t *config)
{
    *config = (kv_events_config_t){
#define CONFIG(field, type, fallback) .field = fallback,
#include "kvstore/events/kv_events_config.def"
#undef CONFIG
    };
    return weft_json_copy_texts(fields, WEFT_ARRAY_LEN(fields), config);
}

static weft_status_t resolve_publisher(weft_diag_t *diag, kv_events_config_t *config)
{
    if (config->publisher == NULL) {
        return weft_json_set_text(&config->publisher,
                                  config->enable_kv_cache_events ? "zmq" : "null");
    }
    if (strcmp(config->publisher, "zmq") != 0 && strcmp(config->publisher, "null") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--kv-events-config: publisher: \"%s\" is not null or zmq",
                         config->publisher);
    }
    return WEFT_OK;
}

weft_status_t kv_events_config_parse(const char *text, weft_diag_t *diag,
                                     kv_events_config_t *config_out)
{
    kv_events_config_t config = {0};
    weft_status_t status = set_fallbacks(&config);
    if (status >= 0 && text != NULL && text[0] != '\0') {
        status = weft_json_read_object(text, fields, WEFT_ARRAY_LEN(fields), WHERE, diag, &config);
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
    weft_json_free_texts(fields, WEFT_ARRAY_LEN(fields), config);
    *config = (kv_events_config_t){0};
}

bool kv_events_config_is_on(const kv_events_config_t *config)
{
    return config->enable_kv_cache_events && strcmp(config->publisher, "zmq") == 0;
}

static json_t *field_json(const kv_events_config_t *config, const weft_json_field_t *field)
{
    const void *value = (const char *)config + field->offset;
    if (field->kind == WEFT_JSON_BOOL) {
        return json_boolean(*(const bool *)value);
    }
    if (field->kind == WEFT_JSON_COUNT) {
        return json_integer((json_int_t) * (const uint64_t *)value);
    }
    const char *text = *(char *const *)value;
    return text == NULL ? json_null() : json_string(text);
}

json_t *kv_events_config_json(const kv_events_config_t *config)
{
    json_t *object = json_object();
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fields) && object != NULL; i++) {
        if (json_object_set_new(object, fields[i].name, field_json(config, &fields[i])) != 0) {
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
