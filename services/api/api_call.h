/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api_call: one HTTP request on its way through the server.
 *
 * A route's prepare runs on a worker: it parses, validates, tokenizes, and leaves either an error,
 * a finished answer (text) or a generation. Its answer runs on the loop. Between the two the call
 * belongs to the worker; a peer that hangs up meanwhile is noted in is_cancelled, and the call ends
 * when it comes back.
 */
#pragma once

#include <stdatomic.h>

#include "base/arena.h"
#include "base/http_relay.h"
#include "kvstore/transfer/kv_transfer_params.h"
#include "services/api/api_error.h"
#include "services/api/api_model.h"
#include "services/api/api_options.h"
#include "services/api/api_trace.h"
#include "services/api/generation.h"

typedef struct api_call api_call_t;
typedef struct api_server api_server_t;
typedef struct api_route api_route_t;

struct api_call {
    api_call_t *next; /* in the server's list of open calls */
    api_call_t *previous;
    api_call_t *next_job; /* in a worker's queue */
    api_server_t *server;
    const api_route_t *route;
    const api_model_t *model;
    const api_options_t *options;
    weft_http_exchange_t *exchange; /* loop only; NULL once the peer is gone */
    weft_arena_t arena;

    const char *request_id; /* X-Request-Id, else the body's request_id, else random */
    bool has_request_id_header;
    int64_t priority_header; /* JSON_UNSET: none */
    char *body;              /* [body_length], a copy, weft_alloc; NULL once prepared */
    size_t body_length;
    uint64_t arrival_ns;
    api_trace_t trace;

    atomic_bool is_cancelled; /* set by the loop, read by the worker */
    bool is_at_worker;
    bool is_streaming;
    bool is_counted; /* in the server's load */

    api_error_t error;    /* kind NONE: none */
    weft_buffer_t answer; /* JSON, when prepare made it */
    generation_t *generation;
    bool has_transfer;
    bool owes_release; /* the prefill worker keeps blocks, and the engine has not got the request */
    kv_transfer_params_t transfer;
    char *prefill_body;            /* of the leg that is sent from here, or NULL; free() */
    weft_http_call_t *prefill_leg; /* under way, or NULL */
    uint32_t rank;                 /* the data-parallel one that answers it, once chosen */
    bool is_at_rank;               /* it is chosen, and counts this call */
    weft_http_call_t *relay_leg;   /* to another rank, under way, or NULL */
    weft_http_relay_t relay;       /* the other rank's answer */
    const char **abort_ids;        /* [n_abort_ids], of abort_requests */
    size_t n_abort_ids;
};

/* A generation for call, zeroed, in its arena. NULL: the error says so. */
generation_t *api_call_new_generation(api_call_t *call, const generation_format_t *format);

/* ---- prepare: a worker's half of each route ---- */
void completion_prepare(api_call_t *call);
void chat_prepare(api_call_t *call);
void generate_prepare(api_call_t *call);
void completion_render_prepare(api_call_t *call);
void chat_render_prepare(api_call_t *call);
void embedding_prepare(api_call_t *call);
void tokenize_prepare(api_call_t *call);
void detokenize_prepare(api_call_t *call);
void abort_prepare(api_call_t *call);
void load_adapter_prepare(api_call_t *call);
void unload_adapter_prepare(api_call_t *call);
