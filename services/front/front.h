/* SPDX-License-Identifier: Apache-2.0 */
/*
 * front: one address in front of prefill and decode workers, which get requests in turns.
 *
 * A request to generate becomes two legs, as llm-d's sidecar does it with its "nixlv2" connector:
 * a prefill worker computes the prompt and answers with kv_transfer_params, a decode worker gets
 * these with the request, and its answer, streamed or not, is the client's. Whatever else is asked
 * goes to a decode worker. /health, /ping and /metrics are the front's own. Overlapped, the decode
 * worker is told the prefill worker's URL instead, and pulls blocks while the prompt is computed.
 *
 * Faults   A worker that does not answer is left out until it does; its request goes to the next
 *          one. Without prefill workers, decode workers compute prompts. What a worker answers with
 *          an error status is the client's answer; its Allow and X-Request-Id come with any
 * Leaving  A client that goes away ends the leg under way
 * Threads  the loop's
 */
#pragma once

#include <stdbool.h>

#include "base/diag.h"
#include "base/loop.h"
#include "base/metrics.h"

typedef struct front front_t;

typedef enum front_role { FRONT_PREFILL, FRONT_DECODE, FRONT_ROLES } front_role_t;

#define FRONT_MAX_WORKERS 64

typedef struct front_config {
    const char *host;
    uint16_t port; /* 0: the system's choice */
    size_t max_body_bytes;
    uint32_t max_connections;
    uint32_t check_interval_ms; /* between two looks at a worker's health */
    bool is_overlapped; /* decode workers send the prefill leg: weft's, with --prefill-urls */
} front_config_t;

weft_status_t front_create(weft_loop_t *loop, const front_config_t *config, weft_diag_t *diag,
                           front_t **front_out);
void front_destroy(front_t *front); /* hangs up on open requests; NULL is fine */

/*
 * name and url ("http://127.0.0.1:8100") are copied. It gets requests once it has answered
 * GET /health. One whose name is known has moved. WEFT_ERR_TOO_LARGE: FRONT_MAX_WORKERS are there.
 */
weft_status_t front_add_worker(front_t *front, front_role_t role, const char *name,
                               const char *url);
/* Its process has ended: it is not asked any more, until it is added at another URL. */
void front_lose_worker(front_t *front, const char *name);

uint16_t front_port(const front_t *front);
uint32_t front_workers_up(const front_t *front, front_role_t role);
uint32_t front_open_calls(const front_t *front); /* whose answers are not wholly on their way */
void front_drain(front_t *front); /* open requests go on, others are told to go elsewhere */
/* Takes no connections and looks after workers no more: these are about to end. */
void front_stop(front_t *front);

extern const weft_metric_t front_metric_rows[];
extern const size_t front_metric_count;
