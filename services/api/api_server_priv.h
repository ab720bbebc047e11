/* SPDX-License-Identifier: Apache-2.0 */
/* api_server_priv: the server's state, for its siblings on the loop. */
#pragma once

#include "base/buffer.h"
#include "base/http_server.h"
#include "base/loop.h"
#include "base/signal_pair.h"
#include "services/api/api_call.h"
#include "services/api/api_metrics.h"
#include "services/api/api_ranks.h"
#include "services/api/api_server.h"
#include "services/api/prefill_peers.h"
#include "services/api/request_worker.h"
#include "services/api/served_model.h"
#include "services/api/span_export.h"

struct api_server {
    const api_options_t *options;
    const engine_options_t *engine_options;
    const engine_ranks_t *engine_ranks; /* NULL: this process has the whole model */
    served_model_t model;
    weft_loop_t *loop;
    weft_http_server_t *http;
    engine_t *engine;
    engine_client_t *client;
    weft_loop_watch_t *client_watch;
    request_workers_t *workers;
    api_metrics_t *metrics;
    span_export_t *spans;               /* NULL: not asked for */
    weft_http_client_t *prefill_client; /* NULL: nobody may be asked */
    prefill_peers_t prefill_peers;
    api_ranks_t ranks;
    weft_http_client_t *rank_client; /* NULL: there is one rank */
    api_call_t *calls;               /* open ones */
    uint32_t n_calls;
    uint32_t load;         /* of those, the ones GET /load counts */
    weft_buffer_t scratch; /* the event or body being written */

    int signal_fd;
    weft_loop_watch_t *signal_watch;
    weft_loop_timer_t *drain_timer;
    weft_signal_pair_t signals;
    bool is_draining;
    bool is_waiting_for_readers; /* of blocks under leases, as was logged */
    uint64_t drain_until_ns;
    uint64_t flush_deadline_ns; /* 0: answers are still being made */
    weft_status_t end_status;   /* of run */
};

/* ---- api_call.c ---- */

/* NULL: no memory. */
api_call_t *api_call_create(api_server_t *server, weft_http_exchange_t *exchange,
                            const api_route_t *route);

/* Sends the whole answer and ends the call. */
void api_call_send(api_call_t *call, uint32_t http_status, const char *content_type,
                   const void *body, size_t length);

/* Sends call->error and ends the call. */
void api_call_fail(api_call_t *call);

/* Headers of every answer to the call; returns how many. */
#define API_CALL_MAX_HEADERS 4
size_t api_call_headers(const api_call_t *call, uint32_t http_status,
                        weft_http_header_t headers[API_CALL_MAX_HEADERS]);

/* Starts an answer of events. */
void api_call_begin_stream(api_call_t *call);

/* Ends the answer of events and the call. */
void api_call_end_stream(api_call_t *call);

/* The call is over without an answer: the peer is gone. */
void api_call_drop(api_call_t *call);

/* ---- api_server.c ---- */

/* A call ended; a drain may be complete. */
void api_server_call_ended(api_server_t *server);
