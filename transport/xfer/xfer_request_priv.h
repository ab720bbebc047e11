/* SPDX-License-Identifier: Apache-2.0 */
/* xfer_request_priv: a transfer, from description to end. */
#pragma once

#include "transport/xfer/xfer_list_priv.h"
#include "transport/xfer/xfer_pair.h"
#include "transport/xfer/xfer_peer_priv.h"

typedef struct xfer_stripe xfer_stripe_t; /* xfer_stripe.h */

struct xfer_request {
    xfer_op_t op;
    xfer_agent_t *agent;
    xfer_peer_t *peer; /* held by peer_cover */
    xfer_cover_t *local_cover;
    xfer_cover_t *peer_cover;
    xfer_extents_t extents;
    xfer_peer_region_t *guard_region; /* NULL: no guard */
    uint32_t ways;        /* bit w: way w may be able to take it; guarded by lock, so below */
    size_t last_way;      /* that took it before; XFER_MAX_WAYS: none */
    xfer_route_t *route;  /* while it is with a backend */
    uint64_t route_posts; /* of route when it began, to tell whether it was alone */
    bool was_alone;
    uint64_t pieces;
    xfer_stripe_t *stripe; /* NULL: it always takes one way */
    bool is_striped;       /* it runs, by several */

    /* WEFT_ERR_INVALID: never posted; WEFT_PENDING: runs. Who makes it PENDING owns `batch` and
       the time of posting; the end is released by request_end, acquired by poll. */
    _Atomic int status;
    _Atomic uint64_t posted_ns;
    xfer_batch_t *batch;  /* of this posting */
    xfer_request_t *next; /* in incoming, or started in turn */
    uint64_t started_ns;  /* guarded by lock, so below */
    uint64_t ended_ns;
    bool is_cancelled; /* before it began */

    void (*on_end)(void *user, xfer_request_t *request);
    void *user;
    uint32_t ends_due; /* callbacks; > 0: in agent->called */
    uint32_t callers;  /* that are in on_end */
    xfer_request_t *next_called;
};

struct xfer_batch {
    xfer_agent_t *agent;
    _Atomic size_t running; /* released by request_end, acquired by poll */
    _Atomic int status;     /* the first error */
    bool was_posted;
    size_t n;
    xfer_request_t *requests[];
};

/* Posts as one of a batch, or alone for NULL. */
weft_status_t xfer_request_post(xfer_request_t *request, xfer_batch_t *batch);
/* Hands what was posted to backends, by priority; lock is held. False: nothing was. */
bool xfer_request_start_incoming(xfer_agent_t *agent);
/* Calls back for those that ended; lock is held, and let go meanwhile. */
bool xfer_request_call_ended(xfer_agent_t *agent);
/* Hands one that is PENDING to a backend, or ends it; lock is held. */
void xfer_request_start(xfer_request_t *request);
/* Its end, however it ran; lock is held. It may be posted again from then on. */
void xfer_request_end(xfer_request_t *request, weft_status_t status);
/* For xfer_op.end. */
void xfer_request_op_ended(xfer_op_t *op, weft_status_t status);
/* Makes the handles of all regions ready for a way, and the route's link. */
weft_status_t xfer_request_prepare(xfer_request_t *request, size_t way);
void xfer_batch_one_ended(xfer_batch_t *batch, weft_status_t status);
