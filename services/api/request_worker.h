/* SPDX-License-Identifier: Apache-2.0 */
/*
 * request_worker: a few threads that do what may take long about a request: parse its body, render
 * its template, tokenize, compile grammars.
 *
 * The first thread takes small bodies only, so that large ones never hold up all.
 * Threads  post and destroy on the loop; prepare runs on a worker; on_done on the loop again
 */
#pragma once

#include "base/loop.h"
#include "services/api/api_call.h"

typedef struct request_workers request_workers_t;

typedef struct request_workers_config {
    weft_loop_t *loop;
    uint32_t n_threads;
    uint32_t max_queued;     /* calls */
    size_t max_queued_bytes; /* of their bodies */
    void (*on_done)(api_call_t *call);
} request_workers_config_t;

weft_status_t request_workers_create(const request_workers_config_t *config,
                                     request_workers_t **workers_out);

/* Waits for what is being prepared. Calls still queued are the caller's again. NULL is fine. */
void request_workers_destroy(request_workers_t *workers);

/* WEFT_ERR_QUEUE_FULL: too many wait. */
weft_status_t request_workers_post(request_workers_t *workers, api_call_t *call);
