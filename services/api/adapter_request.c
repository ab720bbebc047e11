/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "services/api/api_answers.h"
#include "services/api/api_server_priv.h"
#include "services/api/request_common.h"

bool adapters_may_change(const engine_t *engine)
{
    const char *allowed = getenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING");

    return engine_has_adapters(engine) && allowed != NULL &&
           (strcmp(allowed, "1") == 0 || strcasecmp(allowed, "true") == 0);
}

typedef struct adapter_fields {
    const char *name;
    const char *path;
    bool load_inplace;
} adapter_fields_t;

static weft_status_t read_fields(const json_t *json, bool wants_path, adapter_fields_t *fields,
                                 api_error_t *error)
{
    static const json_field_t rows[] = {
        {"lora_name", JSON_FIELD_STR, offsetof(adapter_fields_t, name), 0, 0, ""},
        {"lora_path", JSON_FIELD_STR, offsetof(adapter_fields_t, path), 0, 0, ""},
        {"load_inplace", JSON_FIELD_BOOL, offsetof(adapter_fields_t, load_inplace), 0, 0, ""},
    };
    const bool lacks_name = json_string_length(json_object_get(json, "lora_name")) == 0;
    const bool lacks_path = json_string_length(json_object_get(json, "lora_path")) == 0;

    json_fields_read(json, rows, WEFT_ARRAY_LEN(rows), "", fields, error);
    if (api_error_status(error) == WEFT_OK && (lacks_name || (wants_path && lacks_path))) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, lacks_name ? "lora_name" : "lora_path",
                             wants_path ? "Both 'lora_name' and 'lora_path' must be provided."
                                        : "'lora_name' needs to be provided to unload a LoRA "
                                          "adapter.");
    }
    return api_error_status(error);
}

static api_error_kind_t kind_of(weft_status_t status)
{
    switch (status) {
    case WEFT_ERR_NOT_FOUND:
        return API_ERROR_NO_MODEL;
    case WEFT_ERR_PEER_GONE:
        return API_ERROR_RANK_LOST;
    case WEFT_ERR_STOPPING:
        return API_ERROR_UNAVAILABLE;
    default:
        return API_ERROR_BAD_REQUEST;
    }
}

static weft_status_t load(api_call_t *call, const adapter_fields_t *fields)
{
    weft_diag_t diag = {0};
    api_error_t ignored = {0};

    if (fields->load_inplace) {
        (void)engine_unload_adapter(call->model->engine, fields->name);
    }
    if (api_model_check_name(call->model, fields->name, &ignored) == WEFT_OK) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "lora_name",
                             "The lora adapter '%s' has already been loaded.", fields->name);
    }
    const weft_status_t status =
        engine_load_adapter(call->model->engine, fields->name, fields->path, &diag);
    return status < 0 ? api_error_set(&call->error, kind_of(status), "lora_path", "%s", diag.text)
                      : WEFT_OK;
}

void load_adapter_prepare(api_call_t *call)
{
    adapter_fields_t fields = {0};
    json_t *json = NULL;

    if (request_common_parse_body(call, &json) == WEFT_OK &&
        read_fields(json, true, &fields, &call->error) == WEFT_OK &&
        load(call, &fields) == WEFT_OK) {
        weft_buffer_printf(&call->answer, "Success: LoRA adapter '%s' added successfully.",
                           fields.name);
    }
    json_decref(json);
}

void unload_adapter_prepare(api_call_t *call)
{
    adapter_fields_t fields = {0};
    json_t *json = NULL;

    if (request_common_parse_body(call, &json) == WEFT_OK &&
        read_fields(json, false, &fields, &call->error) == WEFT_OK) {
        if (engine_unload_adapter(call->model->engine, fields.name) < 0) {
            api_error_set(&call->error, API_ERROR_NO_MODEL, "lora_name",
                          "The lora adapter '%s' cannot be found.", fields.name);
        } else {
            weft_buffer_printf(&call->answer, "Success: LoRA adapter '%s' removed successfully.",
                               fields.name);
        }
    }
    json_decref(json);
}

void answer_adapter(api_call_t *call)
{
    if (call->answer.is_failed) {
        api_error_no_memory(&call->error);
        api_call_fail(call);
        return;
    }
    api_call_send(call, 200, "text/plain", call->answer.data, call->answer.length);
}
