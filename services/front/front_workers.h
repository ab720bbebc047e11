/* SPDX-License-Identifier: Apache-2.0 */
/*
 * front_workers: who serves behind a front, who of them answers, and whose turn it is.
 *
 * Threads  the front's loop
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/http_client.h"
#include "services/front/front.h"

typedef struct front_worker {
    front_role_t role;
    char *name;
    char *url; /* NULL: it has none now */
    bool is_up;
    struct front_workers *workers;
    weft_http_call_t *check; /* under way, or NULL */
} front_worker_t;

typedef struct front_workers {
    weft_http_client_t *client; /* borrowed */
    weft_loop_timer_t *timer;
    uint32_t interval_ms;
    front_worker_t all[FRONT_MAX_WORKERS];
    uint32_t n;
    uint32_t next[FRONT_ROLES]; /* whose turn it is */
} front_workers_t;

/* Zeroed memory; config as in front.h. */
weft_status_t front_workers_init(front_workers_t *workers, weft_loop_t *loop,
                                 weft_http_client_t *client, uint32_t interval_ms);
void front_workers_fini(front_workers_t *workers); /* zeroed is fine */

/* One whose name is known has moved to url. */
weft_status_t front_workers_add(front_workers_t *workers, front_role_t role, const char *name,
                                const char *url);
/* Who is up stays so, whatever happens. */
void front_workers_stop_checks(front_workers_t *workers);
front_worker_t *front_workers_find(front_workers_t *workers, const char *name);
uint32_t front_workers_up_count(const front_workers_t *workers, front_role_t role);

/* The next one of role that answers and is not in *tried, which it joins; NULL: none. */
front_worker_t *front_workers_take(front_workers_t *workers, front_role_t role, uint64_t *tried);

/* It did not answer: it gets no more requests until a check succeeds. */
void front_worker_is_gone(front_worker_t *worker, const char *why);

/* It is not asked any more, until it has moved. */
void front_worker_has_ended(front_worker_t *worker);
