/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_answers.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "services/api/api_id.h"
#include "services/api/api_server_priv.h"
#include "services/api/generation_run.h"
#include "services/api/request_common.h"

static void write_permission(weft_json_t *json, uint64_t created)
{
    static const char *const rights[] = {"allow_create_engine", "allow_sampling",
                                         "allow_logprobs",      "allow_search_indices",
                                         "allow_view",          "allow_fine_tuning"};
    char id[10 + API_ID_LENGTH + 1] = "modelperm-";

    api_id_random(id + 10);
    weft_json_begin_object(json);
    weft_json_put_string(json, "id", id);
    weft_json_put_string(json, "object", "model_permission");
    weft_json_put_u64(json, "created", created);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rights); i++) {
        bool is_allowed = i == 1 || i == 2 || i == 4;
        weft_json_put_bool(json, rights[i], is_allowed);
    }
    weft_json_put_string(json, "organization", "*");
    weft_json_put_null(json, "group");
    weft_json_put_bool(json, "is_blocking", false);
    weft_json_end_object(json);
}

/* adapter: NULL: the model itself */
static void write_model(weft_json_t *json, const api_model_t *model, const char *name,
                        const engine_adapter_t *adapter)
{
    const uint64_t created = adapter == NULL ? model->created : engine_adapter_created(adapter);

    weft_json_begin_object(json);
    weft_json_put_string(json, "id", name);
    weft_json_put_string(json, "object", "model");
    weft_json_put_u64(json, "created", created);
    weft_json_put_string(json, "owned_by", "vllm"); /* what clients of this API compare with */
    weft_json_put_string(json, "root",
                         adapter == NULL ? model->root : engine_adapter_path(adapter));
    if (adapter == NULL) {
        weft_json_put_null(json, "parent");
        weft_json_put_u64(json, "max_model_len", model->max_context);
    } else {
        weft_json_put_string(json, "parent", model->names[0]);
        weft_json_put_null(json, "max_model_len");
    }
    weft_json_key(json, "permission");
    weft_json_begin_array(json);
    write_permission(json, created);
    weft_json_end_array(json);
    weft_json_end_object(json);
}

static void write_adapters(weft_json_t *json, const api_model_t *model)
{
    engine_adapter_t *adapters[ENGINE_MAX_ADAPTERS];
    const uint32_t n = engine_list_adapters(model->engine, adapters);

    for (uint32_t i = 0; i < n; i++) {
        write_model(json, model, engine_adapter_name(adapters[i]), adapters[i]);
        engine_release_adapter(adapters[i]);
    }
}

void answer_models(api_call_t *call)
{
    weft_json_t json;

    weft_json_init(&json, &call->answer);
    weft_json_begin_object(&json);
    weft_json_put_string(&json, "object", "list");
    weft_json_key(&json, "data");
    weft_json_begin_array(&json);
    for (uint32_t i = 0; i < call->model->n_names; i++) {
        write_model(&json, call->model, call->model->names[i], NULL);
    }
    write_adapters(&json, call->model);
    weft_json_end_array(&json);
    weft_json_end_object(&json);
    api_call_respond(call);
}

void answer_health(api_call_t *call)
{
    const api_server_t *server = call->server;
    bool is_ready = !server->is_draining && engine_is_healthy(server->engine);

    api_call_send(call, is_ready ? 200 : 503, "text/plain", "", 0);
}

void answer_version(api_call_t *call)
{
    static const char body[] = "{\"version\":\"" WEFT_VERSION "\"}";

    api_call_send(call, 200, "application/json", body, sizeof(body) - 1);
}

void answer_load(api_call_t *call)
{
    char body[48];
    int length = snprintf(body, sizeof(body), "{\"server_load\":%u}", call->server->load);

    api_call_send(call, 200, "application/json", body, (size_t)length);
}

void answer_metrics(api_call_t *call)
{
    api_server_t *server = call->server;
    api_metrics_gauges_t gauges = {
        .connections = weft_http_server_connections(server->http),
        .open_calls = server->n_calls,
    };
    size_t length = 0;
    char *text = api_metrics_text(server->metrics, server->engine, &gauges, &length);

    if (text == NULL) {
        api_error_no_memory(&call->error);
        api_call_fail(call);
        return;
    }
    api_call_send(call, 200, "text/plain; version=0.0.4; charset=utf-8", text, length);
    weft_free(text);
}

static bool is_asked(const api_call_t *call, const char *name)
{
    const char *value = weft_http_query(call->exchange, name);

    return value != NULL && (strcasecmp(value, "true") == 0 || strcmp(value, "1") == 0);
}

void answer_reset_cache(api_call_t *call)
{
    bool is_done = engine_reset_prefix_cache(call->server->engine, is_asked(call, "reset_external"),
                                             is_asked(call, "reset_running_requests")) == WEFT_OK;
    const char *body = is_done ? "{\"success\":true}" : "{\"success\":false}";

    api_call_send(call, 200, "application/json", body, strlen(body));
}

void answer_kv_event_sources(api_call_t *call)
{
    json_t *sources = kv_publisher_sources(engine_publisher(call->server->engine));
    char *text = sources == NULL ? NULL : json_dumps(sources, JSON_COMPACT);

    json_decref(sources);
    if (text == NULL) {
        api_error_no_memory(&call->error);
        api_call_fail(call);
        return;
    }
    api_call_send(call, 200, "application/json", text, strlen(text));
    free(text);
}

/* ---- abort ----------------------------------------------------------------------------------- */

static void read_abort_ids(api_call_t *call, const json_t *list)
{
    size_t count = json_array_size(list);

    call->abort_ids = weft_arena_calloc(&call->arena, count + 1, sizeof(*call->abort_ids));
    for (size_t i = 0; call->abort_ids != NULL && i < count; i++) {
        call->abort_ids[i] =
            weft_arena_strdup(&call->arena, json_string_value(json_array_get(list, i)));
        call->n_abort_ids += call->abort_ids[i] != NULL;
    }
    if (call->n_abort_ids < count) {
        api_error_no_memory(&call->error);
    }
}

void abort_prepare(api_call_t *call)
{
    json_t *json = NULL;

    if (request_common_parse_body(call, &json) == WEFT_OK) {
        const json_t *list = json_object_get(json, "request_ids");
        if (!json_is_array(list)) {
            api_error_violation(&call->error, "request_ids", "Field required");
        }
        json_fields_check_items(list, JSON_FIELD_STR, "request_ids", &call->error);
        if (api_error_status(&call->error) == WEFT_OK) {
            read_abort_ids(call, list);
        }
    }
    json_decref(json);
}

static bool is_named(const api_call_t *call, const char *id)
{
    const generation_t *generation = call->generation;

    return id != NULL && !call->is_at_worker && generation != NULL && generation->id != NULL &&
           (strcmp(generation->id, id) == 0 || strcmp(generation->request_id, id) == 0);
}

void answer_abort(api_call_t *call)
{
    for (size_t i = 0; i < call->n_abort_ids; i++) {
        for (api_call_t *other = call->server->calls; other != NULL; other = other->next) {
            if (is_named(other, call->abort_ids[i])) {
                generation_run_abort(other);
            }
        }
    }
    api_call_send(call, 200, "application/json", "", 0);
}
