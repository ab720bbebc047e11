/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_transfer_params.h"

#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"

static weft_status_t wrong(weft_diag_t *diag, const char *key, const char *what)
{
    return weft_diag(diag, WEFT_ERR_INVALID, "kv_transfer_params: %s: %s", key, what);
}

/* ---- decode ---------------------------------------------------------------------------------- */

/* NULL: null, or not there. */
static const json_t *get(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static weft_status_t read_bool(const json_t *object, const char *key, weft_diag_t *diag, bool *out)
{
    const json_t *value = get(object, key);
    if (value != NULL && !json_is_boolean(value)) {
        return wrong(diag, key, "not true or false");
    }
    *out = json_is_true(value);
    return WEFT_OK;
}

static weft_status_t read_number(const json_t *object, const char *key, json_int_t max,
                                 weft_diag_t *diag, uint32_t *out)
{
    const json_t *value = get(object, key);
    if (value == NULL) {
        return WEFT_OK;
    }
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) > max) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "kv_transfer_params: %s: not a whole number from 0 to %lld", key,
                         (long long)max);
    }
    *out = (uint32_t)json_integer_value(value);
    return WEFT_OK;
}

static weft_status_t read_text(const json_t *object, const char *key, weft_diag_t *diag, char **out)
{
    const json_t *value = get(object, key);
    if (value == NULL) {
        return WEFT_OK;
    }
    if (!json_is_string(value)) {
        return wrong(diag, key, "not a text");
    }
    const size_t length = json_string_length(value);
    if (length == 0 || length > KV_TRANSFER_MAX_ID_BYTES ||
        strlen(json_string_value(value)) != length) {
        return wrong(diag, key, "empty, longer than 512 bytes, or with a NUL inside");
    }
    *out = weft_strdup(json_string_value(value), "kv_transfer_params.text");
    return *out == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

static weft_status_t read_group(const json_t *list, weft_diag_t *diag, kv_transfer_params_t *params)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= UINT32_MAX) {
            return wrong(diag, "remote_block_ids", "not all are block numbers");
        }
        params->blocks[params->n_blocks++] = (uint32_t)json_integer_value(id);
    }
    params->group_blocks[params->n_groups++] = (uint32_t)json_array_size(list);
    return WEFT_OK;
}

/* Flat lists are of vLLM up to 0.17. */
static bool is_nested(const json_t *list)
{
    return json_array_size(list) == 0 || json_is_array(json_array_get(list, 0));
}

static weft_status_t count_blocks(const json_t *list, weft_diag_t *diag, size_t *n_out)
{
    size_t n = 0;
    if (!json_is_array(list)) {
        return wrong(diag, "remote_block_ids", "not a list");
    }
    if (!is_nested(list)) {
        n = json_array_size(list);
    } else if (json_array_size(list) > KV_TRANSFER_MAX_GROUPS) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "kv_transfer_params: remote_block_ids: more than %d groups",
                         KV_TRANSFER_MAX_GROUPS);
    }
    for (size_t i = 0; is_nested(list) && i < json_array_size(list); i++) {
        const json_t *group = json_array_get(list, i);
        if (!json_is_array(group)) {
            return wrong(diag, "remote_block_ids", "lists and numbers mixed");
        }
        n += json_array_size(group);
    }
    if (n > KV_TRANSFER_MAX_BLOCKS) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "kv_transfer_params: remote_block_ids: more than %u blocks",
                         KV_TRANSFER_MAX_BLOCKS);
    }
    *n_out = n;
    return WEFT_OK;
}

static weft_status_t read_blocks(const json_t *object, weft_diag_t *diag,
                                 kv_transfer_params_t *params)
{
    const json_t *list = get(object, "remote_block_ids");
    size_t n = 0;
    if (list == NULL) {
        return WEFT_OK;
    }
    weft_status_t status = count_blocks(list, diag, &n);
    if (status < 0) {
        return status;
    }
    params->blocks = weft_alloc((n + 1) * sizeof(*params->blocks), "kv_transfer_params.blocks");
    if (params->blocks == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    params->has_block_ids = true;
    if (!is_nested(list)) {
        return read_group(list, diag, params);
    }
    for (size_t i = 0; i < json_array_size(list) && status >= 0; i++) {
        status = read_group(json_array_get(list, i), diag, params);
    }
    return status;
}

/* [[slot, epoch], ...]; epochs stay below 2^53, where JSON numbers end for many. */
static weft_status_t read_leases(const json_t *object, weft_diag_t *diag,
                                 kv_transfer_params_t *params)
{
    const json_t *list = get(object, "weft_leases");
    if (list == NULL) {
        return WEFT_OK;
    }
    if (!json_is_array(list) || json_array_size(list) > KV_TRANSFER_MAX_RANKS) {
        return wrong(diag, "weft_leases", "not a list of at most 64 pairs");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *pair = json_array_get(list, i);
        const json_t *slot = json_array_get(pair, 0);
        const json_t *epoch = json_array_get(pair, 1);
        if (json_array_size(pair) != 2 || !json_is_integer(slot) || !json_is_integer(epoch) ||
            json_integer_value(slot) < 0 || json_integer_value(slot) > UINT32_MAX ||
            json_integer_value(epoch) < 0 || json_integer_value(epoch) > KV_LEASE_MAX_EPOCH) {
            return wrong(diag, "weft_leases", "not pairs of whole numbers");
        }
        params->leases[i] = (kv_lease_ref_t){(uint32_t)json_integer_value(slot),
                                             (uint64_t)json_integer_value(epoch)};
    }
    params->n_leases = (uint32_t)json_array_size(list);
    return WEFT_OK;
}

static weft_status_t read_mode(const json_t *object, weft_diag_t *diag)
{
    const json_t *mode = get(object, "transfer_mode");
    if (mode == NULL || (json_is_string(mode) && strcmp(json_string_value(mode), "pull") == 0)) {
        return WEFT_OK;
    }
    return json_is_string(mode) ? weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                                            "kv_transfer_params: transfer_mode: only \"pull\"")
                                : wrong(diag, "transfer_mode", "not a text");
}

typedef struct text_field {
    const char *key;
    size_t offset;
} text_field_t;

static const text_field_t text_fields[] = {
    {"remote_engine_id", offsetof(kv_transfer_params_t, remote_engine_id)},
    {"remote_request_id", offsetof(kv_transfer_params_t, remote_request_id)},
    {"remote_host", offsetof(kv_transfer_params_t, remote_host)},
    {"transfer_id", offsetof(kv_transfer_params_t, transfer_id)},
    {"prefill_url", offsetof(kv_transfer_params_t, prefill_url)},
};

static char **text_place(kv_transfer_params_t *params, const text_field_t *field)
{
    return (char **)((char *)params + field->offset);
}

static weft_status_t read_numbers(const json_t *object, weft_diag_t *diag,
                                  kv_transfer_params_t *params)
{
    uint32_t port = 0;
    weft_status_t status = read_number(object, "remote_port", UINT16_MAX, diag, &port);
    if (status >= 0) {
        params->has_port = get(object, "remote_port") != NULL;
        params->remote_port = (uint16_t)port;
        status = read_number(object, "tp_size", 1 << 16, diag, &params->tp_size);
    }
    if (status >= 0) {
        status = read_number(object, "pp_size", 1 << 16, diag, &params->pp_size);
    }
    if (status >= 0) {
        status = read_number(object, "dcp_size", 1 << 16, diag, &params->dcp_size);
    }
    if (status >= 0) {
        params->has_num_tokens = get(object, "remote_num_tokens") != NULL;
        status =
            read_number(object, "remote_num_tokens", INT32_MAX, diag, &params->remote_num_tokens);
    }
    return status;
}

static weft_status_t read_all(const json_t *object, weft_diag_t *diag, kv_transfer_params_t *params)
{
    weft_status_t status = read_bool(object, "do_remote_prefill", diag, &params->do_remote_prefill);
    if (status >= 0) {
        status = read_bool(object, "do_remote_decode", diag, &params->do_remote_decode);
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(text_fields) && status >= 0; i++) {
        status = read_text(object, text_fields[i].key, diag, text_place(params, &text_fields[i]));
    }
    if (status >= 0) {
        status = read_numbers(object, diag, params);
    }
    if (status >= 0) {
        status = read_mode(object, diag);
    }
    if (status >= 0) {
        status = read_leases(object, diag, params);
    }
    return status < 0 ? status : read_blocks(object, diag, params);
}

weft_status_t kv_transfer_params_decode(const json_t *object, weft_diag_t *diag,
                                        kv_transfer_params_t *params_out)
{
    kv_transfer_params_t params = {.tp_size = 1, .dcp_size = 1, .pp_size = 1};
    weft_status_t status = WEFT_OK;
    if (object != NULL && !json_is_null(object)) {
        status = json_is_object(object)
                     ? read_all(object, diag, &params)
                     : weft_diag(diag, WEFT_ERR_INVALID, "kv_transfer_params: not an object");
    }
    if (status >= 0 && params.do_remote_prefill && params.do_remote_decode) {
        status = weft_diag(diag, WEFT_ERR_INVALID,
                           "kv_transfer_params: do_remote_prefill and do_remote_decode");
    }
    if (status < 0) {
        kv_transfer_params_fini(&params);
        return status;
    }
    *params_out = params;
    return WEFT_OK;
}

/* ---- check ----------------------------------------------------------------------------------- */

static weft_status_t missing(weft_diag_t *diag, const char *key)
{
    return weft_diag(diag, WEFT_ERR_INVALID, "kv_transfer_params: %s is missing", key);
}

weft_status_t kv_transfer_params_check(const kv_transfer_params_t *params, weft_diag_t *diag)
{
    if (!params->do_remote_prefill) {
        return WEFT_ERR_NOT_FOUND;
    }
    if (params->has_block_ids && params->n_blocks == 0) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "kv_transfer_params: no remote blocks");
    }
    if (!params->has_block_ids && params->transfer_id == NULL) {
        return missing(diag, "remote_block_ids");
    }
    if (params->has_block_ids && params->remote_engine_id == NULL) {
        return missing(diag, "remote_engine_id");
    }
    if (params->has_block_ids && params->remote_request_id == NULL) {
        return missing(diag, "remote_request_id");
    }
    if (params->remote_host == NULL) {
        return missing(diag, "remote_host");
    }
    return params->has_port ? WEFT_OK : missing(diag, "remote_port");
}

/* ---- encode ---------------------------------------------------------------------------------- */

static json_t *text_or_null(const char *text)
{
    return text == NULL ? json_null() : json_string(text);
}

static json_t *blocks_json(const kv_transfer_params_t *params)
{
    json_t *groups = json_array();
    uint32_t at = 0;
    for (uint32_t g = 0; g < params->n_groups; g++) {
        json_t *ids = json_array();
        for (uint32_t i = 0; i < params->group_blocks[g]; i++) {
            json_array_append_new(ids, json_integer(params->blocks[at++]));
        }
        json_array_append_new(groups, ids);
    }
    return groups;
}

static json_t *leases_json(const kv_transfer_params_t *params)
{
    json_t *leases = json_array();
    for (uint32_t i = 0; i < params->n_leases; i++) {
        json_array_append_new(leases, json_pack("[I, I]", (json_int_t)params->leases[i].slot,
                                                (json_int_t)params->leases[i].epoch));
    }
    return leases;
}

/* Jansson's setters accept a NULL value as an error, so that one check of the whole is enough. */
static bool set(json_t *object, const char *key, json_t *value)
{
    return json_object_set_new(object, key, value) == 0;
}

json_t *kv_transfer_params_json(const kv_transfer_params_t *params)
{
    json_t *object = json_object();
    bool is_whole = set(object, "do_remote_prefill", json_boolean(params->do_remote_prefill)) &&
                    set(object, "do_remote_decode", json_boolean(params->do_remote_decode)) &&
                    set(object, "remote_block_ids",
                        params->has_block_ids ? blocks_json(params) : json_null()) &&
                    set(object, "remote_engine_id", text_or_null(params->remote_engine_id)) &&
                    set(object, "remote_request_id", text_or_null(params->remote_request_id)) &&
                    set(object, "remote_host", text_or_null(params->remote_host)) &&
                    set(object, "remote_port",
                        params->has_port ? json_integer(params->remote_port) : json_null()) &&
                    set(object, "tp_size", json_integer(params->tp_size)) &&
                    set(object, "dcp_size", json_integer(params->dcp_size)) &&
                    set(object, "pp_size", json_integer(params->pp_size)) &&
                    set(object, "remote_num_tokens", json_integer(params->remote_num_tokens)) &&
                    set(object, "remote_blocks_expiry_time", json_null()) &&
                    set(object, "transfer_mode", json_string("pull"));
    if (is_whole && params->transfer_id != NULL) {
        is_whole = set(object, "transfer_id", json_string(params->transfer_id));
    }
    if (is_whole && params->n_leases > 0) {
        is_whole = set(object, "weft_leases", leases_json(params));
    }
    if (!is_whole) {
        json_decref(object);
        return NULL;
    }
    return object;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static weft_status_t copy_owned(const kv_transfer_params_t *params, kv_transfer_params_t *copy)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(text_fields); i++) {
        const char *text = *(char *const *)((const char *)params + text_fields[i].offset);
        char **place = text_place(copy, &text_fields[i]);
        if (text != NULL && (*place = weft_strdup(text, "kv_transfer_params.text")) == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
    }
    if (params->n_blocks == 0) {
        return WEFT_OK;
    }
    const size_t bytes = params->n_blocks * sizeof(*params->blocks);
    copy->blocks = weft_alloc(bytes, "kv_transfer_params.blocks");
    if (copy->blocks == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    memcpy(copy->blocks, params->blocks, bytes);
    return WEFT_OK;
}

weft_status_t kv_transfer_params_copy(const kv_transfer_params_t *params,
                                      kv_transfer_params_t *copy_out)
{
    kv_transfer_params_t copy = *params;
    copy.blocks = NULL;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(text_fields); i++) {
        *text_place(&copy, &text_fields[i]) = NULL;
    }
    const weft_status_t status = copy_owned(params, &copy);
    if (status < 0) {
        kv_transfer_params_fini(&copy);
        return status;
    }
    *copy_out = copy;
    return WEFT_OK;
}

void kv_transfer_params_fini(kv_transfer_params_t *params)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(text_fields); i++) {
        weft_free(*text_place(params, &text_fields[i]));
    }
    weft_free(params->blocks);
    *params = (kv_transfer_params_t){0};
}
