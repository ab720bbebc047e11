/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "kv-transfer"
#include "kvstore/transfer/kv_transfer_config.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "base/compiler.h"
#include "base/log.h"

#define FLAG         "--kv-transfer-config"
#define EXTRA_KEY    "kv_connector_extra_config"
#define DEFAULT_PORT 5600

typedef enum place { PLACE_TOP, PLACE_EXTRA } place_t;
typedef enum field_type { TYPE_BOOL, TYPE_TEXT, TYPE_NAMES, TYPE_COUNT, TYPE_NUMBER } field_type_t;

typedef struct field {
    place_t place;
    const char *name;
    field_type_t type;
    size_t offset;
} field_t;

static const field_t fields[] = {
#define CONFIG(place, field, type, fallback)                                                       \
    {PLACE_##place, #field, TYPE_##type, offsetof(kv_transfer_config_t, field)},
#include "kvstore/transfer/kv_transfer_config.def"
#undef CONFIG
};

static const kv_transfer_config_t fallbacks = {
#define CONFIG(place, field, type, fallback) .field = fallback,
#include "kvstore/transfer/kv_transfer_config.def"
#undef CONFIG
};

static bool is_text(field_type_t type)
{
    return type == TYPE_TEXT || type == TYPE_NAMES;
}

static weft_status_t set_text(char **value, const char *text)
{
    char *copy = weft_strdup(text, "kv_transfer_config.text");
    if (copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_free(*value);
    *value = copy;
    return WEFT_OK;
}

/* ---- one value ------------------------------------------------------------------------------- */

static weft_status_t wrong(weft_diag_t *diag, const field_t *field, const char *what)
{
    return weft_diag(diag, WEFT_ERR_INVALID, FLAG ": %s%s: %s",
                     field->place == PLACE_EXTRA ? EXTRA_KEY "." : "", field->name, what);
}

static bool is_plain_text(const json_t *value)
{
    return json_is_string(value) && strlen(json_string_value(value)) == json_string_length(value);
}

static weft_status_t read_text(const json_t *value, const field_t *field, weft_diag_t *diag,
                               char **text)
{
    if (!is_plain_text(value)) {
        return wrong(diag, field, "not a text");
    }
    return json_string_length(value) == 0 ? WEFT_OK : set_text(text, json_string_value(value));
}

/* A text or a list of texts, as one text: vLLM writes the fabric's backends in upper case. */
static weft_status_t read_names(const json_t *value, const field_t *field, weft_diag_t *diag,
                                char **text)
{
    weft_buffer_t names = {0};
    const size_t n = json_is_array(value) ? json_array_size(value) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *name = json_is_array(value) ? json_array_get(value, i) : value;
        if (!is_plain_text(name)) {
            weft_buffer_free(&names);
            return wrong(diag, field, "not a list of texts");
        }
        weft_buffer_printf(&names, "%s%s", i > 0 ? "," : "", json_string_value(name));
    }
    char *joined = n == 0 ? NULL : weft_buffer_take(&names, NULL);
    if (joined == NULL) {
        return n == 0 ? WEFT_OK : WEFT_ERR_NO_MEMORY;
    }
    for (char *at = joined; *at != '\0'; at++) {
        *at = (char)tolower((unsigned char)*at);
    }
    weft_free(*text);
    *text = joined;
    return WEFT_OK;
}

static weft_status_t read_number(const json_t *value, const field_t *field, weft_diag_t *diag,
                                 double *number)
{
    if (!json_is_number(value) || !(json_number_value(value) > 0) ||
        json_number_value(value) > 1e12) {
        return wrong(diag, field, "not a number above 0");
    }
    *number = json_number_value(value);
    return WEFT_OK;
}

static weft_status_t read_count(const json_t *value, const field_t *field, weft_diag_t *diag,
                                uint64_t *count)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) > INT32_MAX) {
        return wrong(diag, field, "not a whole number from 0 to 2147483647");
    }
    *count = (uint64_t)json_integer_value(value);
    return WEFT_OK;
}

static weft_status_t read_field(const json_t *value, const field_t *field, weft_diag_t *diag,
                                kv_transfer_config_t *config)
{
    void *place = (char *)config + field->offset;
    if (json_is_null(value)) {
        return WEFT_OK;
    }
    switch (field->type) {
    case TYPE_BOOL:
        if (!json_is_boolean(value)) {
            return wrong(diag, field, "not true or false");
        }
        *(bool *)place = json_is_true(value);
        return WEFT_OK;
    case TYPE_COUNT:
        return read_count(value, field, diag, place);
    case TYPE_NUMBER:
        return read_number(value, field, diag, place);
    case TYPE_TEXT:
        return read_text(value, field, diag, place);
    case TYPE_NAMES:
        return read_names(value, field, diag, place);
    }
    return WEFT_ERR_INTERNAL;
}

/* ---- the object ------------------------------------------------------------------------------ */

static const field_t *find_field(place_t place, const char *name)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fields); i++) {
        if (fields[i].place == place && strcmp(fields[i].name, name) == 0) {
            return &fields[i];
        }
    }
    return NULL;
}

static weft_status_t read_object(json_t *object, place_t place, weft_diag_t *diag,
                                 kv_transfer_config_t *config)
{
    const char *name;
    json_t *value;
    weft_status_t status = WEFT_OK;
    json_object_foreach(object, name, value)
    {
        const field_t *field = find_field(place, name);
        if (field != NULL) {
            status = read_field(value, field, diag, config);
        } else if (place == PLACE_TOP && strcmp(name, EXTRA_KEY) == 0) {
            status = json_is_object(value)
                         ? read_object(value, PLACE_EXTRA, diag, config)
                         : weft_diag(diag, WEFT_ERR_INVALID, FLAG ": " EXTRA_KEY ": not an object");
        } else {
            weft_log_warn("no use for %s in " FLAG "%s", name,
                          place == PLACE_EXTRA ? ", " EXTRA_KEY : "");
        }
        if (status < 0) {
            return status;
        }
    }
    return WEFT_OK;
}

static weft_status_t read_json(const char *text, weft_diag_t *diag, kv_transfer_config_t *config)
{
    json_error_t error;
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (object == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, FLAG ": not JSON: line %d, column %d: %s",
                         error.line, error.column, error.text);
    }
    const weft_status_t status =
        json_is_object(object) ? read_object(object, PLACE_TOP, diag, config)
                               : weft_diag(diag, WEFT_ERR_INVALID, FLAG ": not a JSON object");
    json_decref(object);
    return status;
}

/* ---- what fields mean ------------------------------------------------------------------------ */

static weft_status_t resolve_connector(const kv_transfer_config_t *config, weft_diag_t *diag)
{
    static const char *const names[] = {"NixlConnector", "NixlPullConnector", "WeftConnector"};
    if (config->kv_connector == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, FLAG ": kv_connector is missing");
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (strcmp(config->kv_connector, names[i]) == 0) {
            return WEFT_OK;
        }
    }
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                     FLAG ": kv_connector: \"%s\" is not NixlConnector, NixlPullConnector or "
                          "WeftConnector",
                     config->kv_connector);
}

static weft_status_t resolve_role(kv_transfer_config_t *config, weft_diag_t *diag)
{
    const char *role = config->kv_role;
    if (role == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, FLAG ": kv_role is missing");
    }
    if (strcmp(role, "kv_both") == 0) {
        config->role = KV_TRANSFER_BOTH;
    } else if (strcmp(role, "kv_producer") == 0) {
        config->role = KV_TRANSFER_PRODUCER;
    } else if (strcmp(role, "kv_consumer") == 0) {
        config->role = KV_TRANSFER_CONSUMER;
    } else {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         FLAG ": kv_role: \"%s\" is not kv_producer, kv_consumer or kv_both", role);
    }
    return WEFT_OK;
}

static weft_status_t resolve_policy(kv_transfer_config_t *config, weft_diag_t *diag)
{
    const char *policy = config->kv_load_failure_policy;
    if (policy == NULL) {
        config->policy = KV_TRANSFER_UNSAID;
    } else if (strcmp(policy, "recompute") == 0) {
        config->policy = KV_TRANSFER_RECOMPUTE;
    } else if (strcmp(policy, "fail") == 0) {
        config->policy = KV_TRANSFER_FAIL;
    } else {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         FLAG ": kv_load_failure_policy: \"%s\" is not recompute or fail", policy);
    }
    return WEFT_OK;
}

/* A random (version 4) UUID. */
static weft_status_t draw_engine_id(char **engine_id)
{
    uint8_t b[16];
    char text[37];
    if (getrandom(b, sizeof(b), 0) != sizeof(b)) {
        return WEFT_ERR_IO;
    }
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    snprintf(text, sizeof(text),
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
    return set_text(engine_id, text);
}

static weft_status_t resolve_engine_id(kv_transfer_config_t *config, weft_diag_t *diag)
{
    if (config->engine_id == NULL) {
        return draw_engine_id(&config->engine_id);
    }
    return strlen(config->engine_id) > 512
               ? weft_diag(diag, WEFT_ERR_INVALID, FLAG ": engine_id: longer than 512 bytes")
               : WEFT_OK;
}

static weft_status_t resolve_address(kv_transfer_config_t *config, uint32_t rank, weft_diag_t *diag)
{
    const char *host = getenv("VLLM_NIXL_SIDE_CHANNEL_HOST");
    const char *text = getenv("VLLM_NIXL_SIDE_CHANNEL_PORT");
    unsigned long port = DEFAULT_PORT;
    if (text != NULL && text[0] != '\0') {
        char *end;
        errno = 0;
        port = strtoul(text, &end, 10);
        if (*end != '\0' || errno != 0 || text[0] == '-' || port > UINT16_MAX) {
            return weft_diag(diag, WEFT_ERR_INVALID,
                             "VLLM_NIXL_SIDE_CHANNEL_PORT: \"%s\" is not a port", text);
        }
    }
    if (port > 0 && port + rank > UINT16_MAX) {
        return weft_diag(
            diag, WEFT_ERR_INVALID,
            "VLLM_NIXL_SIDE_CHANNEL_PORT: %lu, plus data-parallel rank %u, is above %u", port, rank,
            UINT16_MAX);
    }
    config->side_channel_port = (uint16_t)(port == 0 ? 0 : port + rank);
    return set_text(&config->side_channel_host,
                    host == NULL || host[0] == '\0' ? "localhost" : host);
}

static weft_status_t resolve(kv_transfer_config_t *config, uint32_t rank, weft_diag_t *diag)
{
    weft_status_t status = resolve_connector(config, diag);
    if (status >= 0) {
        status = resolve_role(config, diag);
    }
    if (status >= 0) {
        status = resolve_policy(config, diag);
    }
    if (status >= 0 && config->bidirectional_kv_xfer) {
        status = weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                           FLAG ": " EXTRA_KEY ".bidirectional_kv_xfer: not served");
    }
    if (status >= 0) {
        status = resolve_engine_id(config, diag);
    }
    return status < 0 ? status : resolve_address(config, rank, diag);
}

weft_status_t kv_transfer_config_parse(const char *text, uint32_t data_parallel_rank,
                                       weft_diag_t *diag, kv_transfer_config_t *config_out)
{
    kv_transfer_config_t config = fallbacks;
    weft_status_t status = read_json(text, diag, &config);
    if (status >= 0) {
        status = resolve(&config, data_parallel_rank, diag);
    }
    if (status < 0) {
        kv_transfer_config_fini(&config);
        return status;
    }
    *config_out = config;
    return WEFT_OK;
}

weft_status_t kv_transfer_config_copy(const kv_transfer_config_t *config,
                                      kv_transfer_config_t *copy_out)
{
    kv_transfer_config_t copy = *config;
    weft_status_t status = WEFT_OK;
    copy.side_channel_host = NULL;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fields); i++) {
        if (is_text(fields[i].type)) {
            *(char **)((char *)&copy + fields[i].offset) = NULL;
        }
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fields) && status >= 0; i++) {
        char *const *from = (char *const *)((const char *)config + fields[i].offset);
        if (is_text(fields[i].type) && *from != NULL) {
            status = set_text((char **)((char *)&copy + fields[i].offset), *from);
        }
    }
    if (status >= 0 && config->side_channel_host != NULL) {
        status = set_text(&copy.side_channel_host, config->side_channel_host);
    }
    if (status < 0) {
        kv_transfer_config_fini(&copy);
        return status;
    }
    *copy_out = copy;
    return WEFT_OK;
}

void kv_transfer_config_fini(kv_transfer_config_t *config)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fields); i++) {
        if (is_text(fields[i].type)) {
            weft_free(*(char **)((char *)config + fields[i].offset));
        }
    }
    weft_free(config->side_channel_host);
    *config = (kv_transfer_config_t){0};
}
