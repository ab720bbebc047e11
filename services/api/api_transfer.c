/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "api"
#include "services/api/api_transfer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kvstore/transfer/kv_transfer_legs.h"
#include "services/api/api_answers.h"
#include "services/api/api_id.h"
#include "services/api/api_routes.h"
#include "services/api/api_server_priv.h"
#include "services/api/generation_run.h"

#define MAX_INFO_BYTES    4096
#define INFO_TIMEOUT_MS   2000
#define MAX_ANSWER_BYTES  ((size_t)64 << 20)
#define TRANSFER_ID_BYTES (sizeof("weft-") + API_ID_LENGTH)

/* ---- reading --------------------------------------------------------------------------------- */

static bool is_allowed(const weft_list_t *urls, const char *url)
{
    for (uint32_t i = 0; i < urls->count; i++) {
        if (strcmp(urls->items[i], "*") == 0 || strcmp(urls->items[i], url) == 0) {
            return true;
        }
    }
    return false;
}

/* The leg's body, which needs the request's tree; and the id by which its blocks are asked for. */
static weft_status_t make_leg(api_call_t *call, json_t *json)
{
    kv_transfer_params_t *params = &call->transfer;
    char id[TRANSFER_ID_BYTES] = "weft-";

    if (!is_allowed(&call->options->prefill_urls, params->prefill_url)) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "kv_transfer_params.prefill_url",
                             "%s is not one of the prefill workers that requests may name "
                             "(--prefill-urls).",
                             params->prefill_url);
    }
    api_id_random(id + strlen(id));
    json_t *more = json_pack("{s:s}", "transfer_id", id);
    json_t *leg = more == NULL ? NULL : kv_transfer_prefill_leg(json, more);
    call->prefill_body = leg == NULL ? NULL : json_dumps(leg, JSON_COMPACT);
    json_decref(leg);
    json_decref(more);
    weft_free(params->transfer_id);
    params->transfer_id = weft_strdup(id, "kv_transfer_params.text");
    return call->prefill_body == NULL || params->transfer_id == NULL
               ? api_error_no_memory(&call->error)
               : WEFT_OK;
}

void api_transfer_read(api_call_t *call, json_t *json)
{
    const json_t *object = json_object_get(json, "kv_transfer_params");
    weft_diag_t diag = {0};

    if (!json_is_object(object) || (call->route->flags & ROUTE_LOAD) == 0) {
        return; /* the table of fields says what else it must not be */
    }
    weft_status_t status = kv_transfer_params_decode(object, &diag, &call->transfer);
    if (status == WEFT_ERR_NO_MEMORY) {
        api_error_no_memory(&call->error);
    } else if (status < 0) {
        api_error_set(&call->error, API_ERROR_BAD_REQUEST, "kv_transfer_params", "%s", diag.text);
    } else {
        call->has_transfer = true;
        call->owes_release = call->transfer.do_remote_prefill;
        if (call->transfer.do_remote_prefill && call->transfer.prefill_url != NULL) {
            make_leg(call, json);
        }
    }
}

/* ---- the prefill leg ------------------------------------------------------------------------- */

static const char *url_of(api_call_t *call, const char *path)
{
    return weft_arena_printf(&call->arena, "%s%s", call->transfer.prefill_url, path);
}

static weft_status_t send(api_call_t *call, weft_http_request_t *request, weft_http_answer_fn fn)
{
    if (request->url == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    return weft_http_client_send(call->server->prefill_client, request, fn, call,
                                 &call->prefill_leg);
}

static bool is_good(const weft_http_answer_t *answer)
{
    return answer->status >= 0 && answer->http_status / 100 == 2;
}

static void warn_of_leg(const api_call_t *call, const weft_http_answer_t *answer)
{
    weft_log_warn("%s the prefill leg failed url=%s status=%u reason=\"%s\"", call->request_id,
                  call->transfer.prefill_url, answer->http_status, answer->error);
}

/* The request runs already, and takes the blocks as they come. */
static void on_prefilled_beside(void *user, const weft_http_answer_t *answer)
{
    api_call_t *call = user;
    generation_t *generation = call->generation;

    call->prefill_leg = NULL;
    if (is_good(answer)) {
        return;
    }
    warn_of_leg(call, answer);
    prefill_peers_forget(&call->server->prefill_peers, call->transfer.prefill_url);
    for (uint32_t i = 0; i < generation->n_prompts; i++) {
        if (generation->prompts[i].request != NULL) {
            engine_give_up_pull(generation->prompts[i].request);
        }
    }
}

static void take_params(api_call_t *call, const weft_http_answer_t *answer)
{
    json_t *body = json_loadb(answer->body, answer->length, 0, NULL);
    kv_transfer_params_t params = {0};
    weft_diag_t diag = {0};

    call->owes_release = false;
    if (kv_transfer_params_decode(json_object_get(body, "kv_transfer_params"), &diag, &params) ==
        WEFT_OK) {
        kv_transfer_params_fini(&call->transfer);
        call->transfer = params;
        call->owes_release = params.do_remote_prefill;
    } else {
        weft_log_warn("%s kv_transfer_params of the prefill leg are of no use: %s",
                      call->request_id, diag.text);
        call->has_transfer = false;
    }
    json_decref(body);
}

static void on_prefilled_before(void *user, const weft_http_answer_t *answer)
{
    api_call_t *call = user;

    call->prefill_leg = NULL;
    if (is_good(answer)) {
        take_params(call, answer);
    } else {
        warn_of_leg(call, answer);
        call->has_transfer = false;
    }
    generation_run_submit(call);
}

static weft_status_t send_leg(api_call_t *call, weft_http_answer_fn fn)
{
    const char *authorization = weft_http_header(call->exchange, "authorization");
    const char *headers[] = {
        weft_arena_printf(&call->arena, "X-Request-Id: %s", call->request_id),
        "Content-Type: application/json",
        authorization == NULL ? NULL
                              : weft_arena_printf(&call->arena, "Authorization: %s", authorization),
    };
    weft_http_request_t request = {
        .method = "POST",
        .url = headers[0] == NULL ? NULL : url_of(call, call->route->path),
        .headers = headers,
        .n_headers = headers[2] == NULL ? 2 : 3,
        .body = call->prefill_body,
        .length = strlen(call->prefill_body),
        .max_answer_bytes = MAX_ANSWER_BYTES,
    };
    return send(call, &request, fn);
}

/* Both at once when the side channel is known. */
static void go(api_call_t *call, const prefill_peer_t *peer)
{
    kv_transfer_params_t *params = &call->transfer;
    weft_status_t status = WEFT_OK;

    if (peer != NULL) {
        weft_free(params->remote_host);
        params->remote_host = weft_strdup(peer->host, "kv_transfer_params.text");
        params->remote_port = peer->port;
        params->has_port = true;
        params->tp_size = peer->tp_size;
        params->pp_size = peer->pp_size;
        status = params->remote_host == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    if (status == WEFT_OK) {
        status = send_leg(call, peer != NULL ? on_prefilled_beside : on_prefilled_before);
    }
    if (status < 0) {
        call->has_transfer = false; /* computed here */
    }
    if (status < 0 || peer != NULL) {
        generation_run_submit(call);
    }
}

static void on_info(void *user, const weft_http_answer_t *answer)
{
    api_call_t *call = user;
    prefill_peers_t *peers = &call->server->prefill_peers;

    call->prefill_leg = NULL;
    go(call, is_good(answer) ? prefill_peers_learn(peers, call->transfer.prefill_url, answer->body,
                                                   answer->length)
                             : NULL);
}

static bool has_side_channel(const kv_transfer_params_t *params)
{
    return params->remote_host != NULL && params->has_port;
}

bool api_transfer_prefill(api_call_t *call)
{
    const char *url = call->transfer.prefill_url;

    if (call->prefill_body == NULL || call->server->prefill_client == NULL) {
        return false;
    }
    call->owes_release = false; /* nothing is kept for it yet */
    const prefill_peer_t *peer = prefill_peers_find(&call->server->prefill_peers, url);
    if (peer != NULL || has_side_channel(&call->transfer)) {
        prefill_peer_t named = {.port = call->transfer.remote_port,
                                .tp_size = call->transfer.tp_size,
                                .pp_size = call->transfer.pp_size};
        if (peer == NULL) {
            snprintf(named.host, sizeof(named.host), "%s", call->transfer.remote_host);
            peer = &named;
        }
        go(call, peer);
        return true;
    }
    weft_http_request_t request = {.method = "GET",
                                   .url = url_of(call, "/kv_transfer"),
                                   .timeout_ms = INFO_TIMEOUT_MS,
                                   .max_answer_bytes = MAX_INFO_BYTES};
    if (send(call, &request, on_info) < 0) {
        go(call, NULL);
    }
    return true;
}

const kv_transfer_params_t *api_transfer_of_prompt(api_call_t *call, uint32_t index)
{
    const kv_transfer_params_t *params = &call->transfer;

    if (!call->has_transfer || index == 0) {
        return call->has_transfer ? params : NULL;
    }
    if (params->transfer_id == NULL || params->has_block_ids) {
        return NULL;
    }
    kv_transfer_params_t *own = weft_arena_alloc(&call->arena, sizeof(*own));
    char *id = weft_arena_printf(&call->arena, "%s/%u", params->transfer_id, index);
    if (own == NULL || id == NULL || strlen(id) > KV_TRANSFER_MAX_ID_BYTES) {
        return NULL; /* computed here */
    }
    *own = *params;
    own->transfer_id = id;
    return own;
}

void api_transfer_end(api_call_t *call)
{
    if (call->prefill_leg != NULL) {
        weft_http_client_cancel(call->prefill_leg); /* the prefill worker sees it and stops */
        call->prefill_leg = NULL;
    }
    if (call->owes_release) {
        engine_decline(call->server->engine, &call->transfer);
    }
    api_transfer_free(call);
}

void api_transfer_free(api_call_t *call)
{
    kv_transfer_params_fini(&call->transfer);
    free(call->prefill_body);
    call->prefill_body = NULL;
}

/* ---- answers --------------------------------------------------------------------------------- */

void api_transfer_write(const generation_t *generation, weft_json_t *json)
{
    const engine_request_t *request = generation->prompts[0].request;
    const kv_transfer_params_t *params = request == NULL ? NULL : engine_request_transfer(request);
    json_t *object = params == NULL ? NULL : kv_transfer_params_json(params);
    char *text = object == NULL ? NULL : json_dumps(object, JSON_COMPACT);

    weft_json_key(json, "kv_transfer_params");
    if (text != NULL) {
        weft_json_raw(json, text, strlen(text));
    } else {
        json->out->is_failed = json->out->is_failed || params != NULL;
        weft_json_null(json);
    }
    free(text);
    json_decref(object);
}

void answer_kv_transfer(api_call_t *call)
{
    static const char *const roles[] = {"", "kv_producer", "kv_consumer", "kv_both"};
    const kv_transfer_t *transfer = engine_transfer(call->server->engine);
    weft_json_t json;

    if (transfer == NULL) {
        api_error_set(&call->error, API_ERROR_NO_ROUTE, NULL,
                      "KV blocks are not moved here (--kv-transfer-config).");
        api_call_fail(call);
        return;
    }
    const kv_transfer_config_t *config = kv_transfer_config(transfer);
    weft_json_init(&json, &call->answer);
    weft_json_begin_object(&json);
    weft_json_put_string(&json, "engine_id", kv_transfer_engine_id(transfer));
    weft_json_put_string(&json, "role", roles[config->role]);
    weft_json_put_string(&json, "host", config->side_channel_host);
    weft_json_put_u64(&json, "port", kv_transfer_port(transfer));
    weft_json_put_u64(&json, "tp_size", kv_transfer_tp_size(transfer));
    weft_json_put_u64(&json, "pp_size", kv_transfer_pp_size(transfer));
    weft_json_end_object(&json);
    api_call_respond(call);
}
