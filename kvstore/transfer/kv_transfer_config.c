/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "kv-transfer"
#include "kvstore/transfer/kv_transfer_config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "base/json_struct.h"
#include "base/log.h"

#define FLAG         "--kv-transfer-config"
#define EXTRA_KEY    "kv_connector_extra_config"
#define DEFAULT_PORT 5600

typedef enum place { PLACE_TOP, PLACE_EXTRA, PLACES } place_t;

static const weft_json_field_t fields[] = {
#define CONFIG(place, field, type, fallback)                                                       \
    {#field, WEFT_JSON_##type, offsetof(kv_transfer_config_t, field), 0, INT32_MAX},
#include "kvstore/transfer/kv_transfer_config.def"
#undef CONFIG
};

static const place_t places[] = {
#define CONFIG(place, field, type, fallback) PLACE_##place,
#include "kvstore/transfer/kv_transfer_config.def"
#undef CONFIG
};

static const kv_transfer_config_t fallbacks = {
#define CONFIG(place, field, type, fallback) .field = fallback,
#include "kvstore/transfer/kv_transfer_config.def"
#undef CONFIG
};

/* ---- the object ------------------------------------------------------------------------------ */

static const weft_json_field_t *find_field(place_t place, const char *name)
{
    const weft_json_field_t *field = weft_json_find_field(fields, WEFT_ARRAY_LEN(fields), name);
    return field != NULL && places[field - fields] == place ? field : NULL;
}

/* As if it were not there. */
static bool is_nothing(const json_t *value)
{
    return json_is_null(value) || (json_is_string(value) && json_string_length(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0);
}

static weft_status_t read_object(json_t *object, place_t place, weft_diag_t *diag,
                                 kv_transfer_config_t *config)
{
    static const char *const where[PLACES] = {FLAG ": ", FLAG ": " EXTRA_KEY "."};
    const char *name;
    json_t *value;
    weft_status_t status = WEFT_OK;
    json_object_foreach(object, name, value)
    {
        const weft_json_field_t *field = find_field(place, name);
        if (field != NULL) {
            status = is_nothing(value)
                         ? WEFT_OK
                         : weft_json_read_field(field, value, where[place], diag, config);
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
    json_t *object;
    weft_status_t status = weft_json_parse_object(text, FLAG ": ", diag, &object);
    if (status < 0) {
        return status;
    }
    status = read_object(object, PLACE_TOP, diag, config);
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
    return weft_json_set_text(engine_id, text);
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
    return weft_json_set_text(&config->side_channel_host,
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
    copy.side_channel_host = NULL;
    weft_status_t status = weft_json_copy_texts(fields, WEFT_ARRAY_LEN(fields), &copy);
    if (status >= 0) {
        status = weft_json_set_text(&copy.side_channel_host, config->side_channel_host);
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
    weft_json_free_texts(fields, WEFT_ARRAY_LEN(fields), config);
    weft_free(config->side_channel_host);
    *config = (kv_transfer_config_t){0};
}
