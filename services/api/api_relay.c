/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "api"
#include "services/api/api_relay.h"

#include <string.h>

#include "base/log.h"
#include "services/api/api_routes.h"
#include "services/api/api_server_priv.h"

#define MAX_HEADERS 8

/* ---- the answer ------------------------------------------------------------------------------ */

static bool take_piece(void *user, const weft_http_piece_t *piece)
{
    api_call_t *call = user;
    weft_http_header_t headers[API_CALL_MAX_HEADERS + 1];
    size_t n = api_call_headers(call, piece->http_status, headers);
    headers[n++] = (weft_http_header_t){"Cache-Control", "no-cache"};
    return weft_http_relay_take(&call->relay, call->exchange, headers, n, piece);
}

static void end_stream(api_call_t *call, const weft_http_answer_t *answer)
{
    if (answer->status < 0) {
        weft_log_warn("%s a stream broke off rank=%u reason=\"%s\"", call->request_id, call->rank,
                      answer->error);
        weft_http_relay_break_off(call->exchange);
    }
    api_call_end_stream(call);
}

static void on_answered(void *user, const weft_http_answer_t *answer)
{
    api_call_t *call = user;
    const weft_http_relay_t *relay = &call->relay;
    call->relay_leg = NULL;
    if (relay->is_streaming) {
        end_stream(call, answer);
    } else if (answer->status < 0) {
        weft_log_warn("%s rank %u does not answer url=%s reason=\"%s\"", call->request_id,
                      call->rank, call->server->ranks.all[call->rank].url, answer->error);
        api_error_set(&call->error, API_ERROR_UNAVAILABLE, NULL,
                      "Data-parallel rank %u does not answer; please try again.", call->rank);
        api_call_fail(call);
    } else {
        api_call_send(call, answer->http_status,
                      relay->answer.length > 0 ? relay->content_type : "application/json",
                      relay->answer.length > 0 ? relay->answer.data : "", relay->answer.length);
    }
}

/* ---- the request ----------------------------------------------------------------------------- */

/* The other rank answers it itself, under the same id. */
static size_t fill_headers(api_call_t *call, uint32_t rank, const char *headers[MAX_HEADERS])
{
    static const char *const names[] = {"Content-Type", "Authorization",   "traceparent",
                                        "tracestate",   "X-Vllm-Priority", "X-Session-ID"};
    weft_arena_t *arena = &call->arena;
    size_t n = 0;
    headers[n++] = weft_arena_printf(arena, "X-Request-Id: %s", call->request_id);
    headers[n++] = weft_arena_printf(arena, "X-data-parallel-rank: %u", rank);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        const char *value = weft_http_header(call->exchange, names[i]);
        if (value != NULL) {
            headers[n++] = weft_arena_printf(arena, "%s: %s", names[i], value);
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (headers[i] == NULL) {
            return 0;
        }
    }
    return n;
}

static weft_status_t send_to(api_call_t *call, uint32_t rank, weft_http_piece_fn on_piece,
                             weft_http_answer_fn on_answer, weft_http_call_t **leg_out)
{
    const char *cert = call->options->ssl_certfile;
    const char *headers[MAX_HEADERS];
    const char *url = weft_arena_printf(&call->arena, "%s%s", call->server->ranks.all[rank].url,
                                        call->route->path);
    const size_t n = fill_headers(call, rank, headers);
    size_t length = 0;
    const char *body = weft_http_body(call->exchange, &length);
    const weft_http_request_t request = {
        .method = call->route->method,
        .url = url,
        .headers = headers,
        .n_headers = n,
        .body = body != NULL ? body : "",
        .length = length,
        .max_answer_bytes = WEFT_HTTP_RELAY_MAX_BYTES,
        .on_piece = on_piece,
        .ca_file = cert[0] != '\0' ? cert : NULL,
        .is_pinned = true, /* all ranks show the same certificate */
    };
    return url == NULL || n == 0 ? WEFT_ERR_NO_MEMORY
                                 : weft_http_client_send(call->server->rank_client, &request,
                                                         on_answer, call, leg_out);
}

/* ---- to one rank, to all --------------------------------------------------------------------- */

static bool go_to_one(api_call_t *call, const char *asked)
{
    api_ranks_t *ranks = &call->server->ranks;
    if (api_ranks_choose(ranks, asked, &call->error, &call->rank) < 0) {
        api_call_fail(call);
        return true;
    }
    call->is_at_rank = true;
    ranks->all[call->rank].open++;
    if (call->rank == ranks->own) {
        return false;
    }
    if (send_to(call, call->rank, take_piece, on_answered, &call->relay_leg) < 0) {
        api_error_no_memory(&call->error);
        api_call_fail(call);
    }
    return true;
}

/* The call may be over by now. */
static void on_heard(void *user, const weft_http_answer_t *answer)
{
    (void)user;
    if (answer->status < 0) {
        weft_log_warn("a rank did not hear of a request reason=\"%s\"", answer->error);
    }
}

/* Those that cannot be told are no reason not to do it here. */
static void tell_others(api_call_t *call)
{
    const api_ranks_t *ranks = &call->server->ranks;
    for (uint32_t rank = 0; rank < ranks->size; rank++) {
        if (rank != ranks->own && ranks->all[rank].url != NULL) {
            (void)send_to(call, rank, NULL, on_heard, NULL);
        }
    }
}

bool api_relay_take(api_call_t *call)
{
    const uint32_t flags = call->route->flags;
    const char *asked = weft_http_header(call->exchange, "x-data-parallel-rank");
    if (call->server->ranks.all == NULL || (flags & (ROUTE_ONE_RANK | ROUTE_ALL_RANKS)) == 0) {
        return false;
    }
    if ((flags & ROUTE_ALL_RANKS) != 0 && asked == NULL) {
        tell_others(call);
        return false;
    }
    return go_to_one(call, asked);
}

void api_relay_end(api_call_t *call)
{
    if (call->relay_leg != NULL) {
        weft_http_client_cancel(call->relay_leg);
    }
    if (call->is_at_rank) {
        call->server->ranks.all[call->rank].open--;
    }
    weft_http_relay_fini(&call->relay);
}
