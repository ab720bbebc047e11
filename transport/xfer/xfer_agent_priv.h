/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_agent_priv: the agent's inside, for its siblings.
 *
 * Two locks. `lock` is held around every call of a backend and guards all that such calls touch:
 * ways, routes, links, ops. `tables` guards which regions and peers there are, so that describing
 * memory does not hold up bytes; who changes a table holds both, `lock` first. Posting takes
 * neither where the agent has a thread: requests are pushed to `incoming`.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "transport/xfer/xfer_backend.h"
#include "transport/xfer/xfer_params.h"
#include "transport/xfer/xfer_ranges.h"

#define XFER_MAX_WAYS 16 /* backends that an agent has open */

/* A backend that the agent has open. Its number is that of its row among the open ones. */
typedef struct xfer_way {
    xfer_agent_t *agent;
    const xfer_backend_t *backend;
    xfer_port_t *port;
    int fd; /* as last armed; -1: none */
    xfer_backend_stats_t stats;
} xfer_way_t;

typedef struct xfer_route xfer_route_t; /* a way to one peer: xfer_peer_priv.h */

struct xfer_agent {
    char name[XFER_MAX_NAME + 1];
    xfer_params_t *params;
    bool has_thread;
    void (*on_event)(void *user);
    void *user;

    pthread_mutex_t lock;
    atomic_uint waiters;   /* calls that want the lock */
    pthread_cond_t let_in; /* a waiter is done */
    pthread_cond_t ended;  /* a request ended, or its callback is over */
    uint32_t end_watchers; /* who waits for `ended`; guarded by lock */
    xfer_way_t ways[XFER_MAX_WAYS];
    size_t n_ways;
    xfer_route_t *lost;          /* routes whose link is to be closed; guarded by lock */
    struct xfer_stripe *stripes; /* that run; guarded by lock */
    uint64_t rail_late_ns;  /* at least, before a chunk goes by another rail; guarded by lock */
    xfer_request_t *called; /* ended, callback due, first in first out; guarded by lock */
    xfer_request_t *called_last;
    bool has_event; /* guarded by lock */

    pthread_mutex_t tables;
    xfer_ranges_t regions; /* of xfer_region_t */
    xfer_peer_t *peers;

    _Atomic(xfer_request_t *) incoming; /* last in first out; pushed by post, taken under lock */
    atomic_bool is_sleeping;            /* see xfer_sleep.c */
    atomic_int waker_cpu; /* of the call that ended the last sleep; -1: an event did */
    uint32_t sleepers;    /* guarded by lock */
    int epoll_fd;
    int wake_fd;

    pthread_t thread;
    bool is_running;
    atomic_bool is_stopping;

    pthread_mutex_t notes_lock;
    xfer_notification_t *notes; /* guarded by notes_lock, so below */
    xfer_notification_t **notes_end;
    size_t notes_bytes;
    uint64_t notes_dropped; /* guarded by lock */
};

/* xfer_agent_create with a table of backends that ends with NULL. */
weft_status_t xfer_agent_open(const xfer_agent_config_t *config,
                              const xfer_backend_t *const *backends, weft_diag_t *diag,
                              xfer_agent_t **agent_out);

/* Takes the lock ahead of the thread that makes progress, which lets callers in between rounds. */
void xfer_agent_enter(xfer_agent_t *agent);
/* Gives it back, and wakes who sleeps: a backend may have got work. */
void xfer_agent_leave(xfer_agent_t *agent);
void xfer_agent_leave_idle(xfer_agent_t *agent); /* no backend was called */
/* Lets go of the lock until some request ended or was called back for; that may not be true. */
void xfer_agent_wait_for_end(xfer_agent_t *agent);

void xfer_sleep_wake(xfer_agent_t *agent); /* any thread; cheap when nobody sleeps */
weft_status_t xfer_sleep_init(xfer_agent_t *agent);
void xfer_sleep_fini(xfer_agent_t *agent);
void xfer_sleep(xfer_agent_t *agent, int timeout_ms); /* unless there is something to do */
/* Since the last sleep, which a call on this core ended: the caller waits here for its turn. */
bool xfer_sleep_took_wakers_core(const xfer_agent_t *agent);

/* The lock for a round of progress. */
void xfer_agent_begin_round(xfer_agent_t *agent);
void xfer_agent_end_round(xfer_agent_t *agent);

weft_status_t xfer_worker_start(xfer_agent_t *agent);
void xfer_worker_stop(xfer_agent_t *agent);

/* The bit of a space in XFER_CAP_*; 0: no such space. */
uint32_t xfer_space_cap(int32_t space);

void xfer_region_destroy_all(xfer_agent_t *agent);
void xfer_notify_fini(xfer_agent_t *agent);
/* For xfer_port_config_t; user is the way. */
void xfer_notify_arrived(void *user, const char *peer, const void *data, size_t bytes);
