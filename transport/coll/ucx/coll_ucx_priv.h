/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_ucx_priv: what the files of backend "ucx" share.
 *
 *     coll_ucx.c        the table; opening and closing a group
 *     coll_ucx_lane.c   a worker and its endpoints; messages, waiting, losing a peer
 *     coll_ucx_pump.c   the thread that ends what a lane's user left behind
 *     coll_ucx_ops.c    the collective operations
 *     coll_ucx_pair.c   from one rank to another
 *     coll_ucx_feed.c   from rank 0 to all
 *
 * Messages are tagged with the rank that sends them, and UCX keeps those of a pair in order: since all
 * ranks do the same operations in the same order, nothing else need be said of them. What has an
 * order of its own (pairs, each feed) has a lane of its own.
 */
#pragma once

#include <pthread.h>

#include "transport/coll/coll_backend.h"
#include "transport/ucx/ucx_library.h"

#ifdef WEFT_UCX_LIBRARY

/*
 * What one rank receives of one other at a time: large operations go in steps of as much, so that a
 * group's buffers are bounded, as is what UCX has to keep for a rank that comes late.
 */
#define UCX_PART_BYTES  ((size_t)256 * 1024)
#define UCX_PARTS_BYTES ((size_t)64 << 20) /* of all ranks; with many of them parts are smaller */

typedef struct coll_ucx coll_ucx_t;
typedef struct coll_ucx_lane coll_ucx_lane_t;

/* A message under way. */
typedef struct coll_ucx_request {
    coll_ucx_lane_t *lane;
    void *handle; /* UCX's; NULL: ended, or none */
    uint32_t peer;
    bool is_receive;
    bool may_be_shorter; /* than asked for; else that is an error */
    size_t bytes;        /* asked for; when a receive has ended: received */
} coll_ucx_request_t;

typedef struct coll_ucx_end {
    coll_ucx_lane_t *lane;
    uint32_t rank;
    bool is_lost;
    ucp_ep_h endpoint; /* NULL: none, or closed */
} coll_ucx_end_t;

struct coll_ucx_lane {
    coll_ucx_t *coll;
    ucp_worker_h worker;
    int event_fd;
    uint32_t lost;                /* the rank that was lost first, or COLL_NO_RANK */
    uint32_t closing;             /* endpoints that UCX still has to let go */
    coll_ucx_end_t *ends;         /* [size] */
    coll_ucx_request_t *requests; /* [n_requests] */
    uint32_t n_requests;

    /* With a pump, everything above and every call of UCX is guarded by lock. */
    bool has_pump;
    bool is_ending;
    uint32_t sending; /* sends that are pending */
    pthread_mutex_t lock;
    pthread_cond_t wakes;
    pthread_t pump;
};

/* Copies of what was sent to one rank, until UCX has sent them. */
typedef struct coll_ucx_outbox {
    uint64_t sent;
    void *data[COLL_SEND_AHEAD];
    size_t room[COLL_SEND_AHEAD];
} coll_ucx_outbox_t;

struct coll_ucx {
    coll_t base;
    const ucx_functions_t *ucx;
    ucp_context_h context;
    coll_ucx_lane_t *lane;       /* the operations' */
    coll_ucx_lane_t *pairs;      /* sends' and receives' */
    coll_ucx_outbox_t *outboxes; /* [size] */
    size_t part_bytes;
    uint8_t *parts[2];    /* [size, part_bytes] each: what others sent, of this step and the next */
    const void **sources; /* [size]: what is being added */
    uint32_t one_way;     /* operations since the ranks have waited for each other */
};

static inline coll_ucx_t *coll_ucx_of(coll_t *coll)
{
    return (coll_ucx_t *)coll;
}

/* ---- coll_ucx_lane.c ------------------------------------------------------------------------- */

/*
 * Collective, by the exchange. is_star: only rank 0 has to do with others. With has_pump its user may
 * go away before what it sent has been. A failure of one rank is one of all.
 */
weft_status_t coll_ucx_lane_open(coll_ucx_t *coll, const coll_exchange_t *exchange,
                                 uint32_t n_requests, bool is_star, bool has_pump,
                                 weft_diag_t *diag, coll_ucx_lane_t **lane_out);
void coll_ucx_lane_close(coll_ucx_lane_t *lane); /* NULL is fine */

/* request, one of its lane that is not pending, until coll_ucx_wait; the memory is in use until then */
void coll_ucx_send(coll_ucx_request_t *request, uint32_t to, const void *data, size_t bytes);
void coll_ucx_receive(coll_ucx_request_t *request, uint32_t from, void *out, size_t bytes);

/*
 * Until these n requests of the lane have ended. False: the group has failed, and no memory of any
 * request of the lane is in use any more.
 */
bool coll_ucx_wait(coll_ucx_lane_t *lane, const coll_ucx_request_t *requests, uint32_t n);

/*
 * The same with a limit that is not the group's (UINT64_MAX: none): WEFT_ERR_TIMEOUT when it is over,
 * and the request still pending; another error: as false above.
 */
weft_status_t coll_ucx_wait_for(coll_ucx_lane_t *lane, const coll_ucx_request_t *requests,
                                uint32_t n, uint64_t limit_ns);

/* ---- coll_ucx_pump.c ------------------------------------------------------------------------- */

weft_status_t coll_ucx_pump_start(coll_ucx_lane_t *lane);
void coll_ucx_pump_stop(coll_ucx_lane_t *lane);

/* Does nothing without a pump. Unlocking wakes the pump if anything is still to be sent. */
void coll_ucx_lock(coll_ucx_lane_t *lane);
void coll_ucx_unlock(coll_ucx_lane_t *lane);

/* ---- coll_ucx_ops.c -------------------------------------------------------------------------- */

#define COLL_UCX_BATCHES 4 /* of requests at a time, two for each rank */

void coll_ucx_all_reduce(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                         coll_dtype_t dtype);
void coll_ucx_reduce_scatter(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                             coll_dtype_t dtype);
void coll_ucx_all_gather(coll_t *coll, weft_queue_t *queue, const void *in, void *out,
                         size_t bytes);
void coll_ucx_broadcast(coll_t *coll, weft_queue_t *queue, void *buffer, size_t bytes,
                        uint32_t root);
void coll_ucx_barrier(coll_t *coll, weft_queue_t *queue);

/* ---- coll_ucx_pair.c ------------------------------------------------------------------------- */

weft_status_t coll_ucx_pairs_open(coll_ucx_t *coll, weft_diag_t *diag);
void coll_ucx_pairs_close(coll_ucx_t *coll);
void coll_ucx_pair_send(coll_t *coll, weft_queue_t *queue, uint32_t to, const void *data,
                        size_t bytes);
void coll_ucx_pair_receive(coll_t *coll, weft_queue_t *queue, uint32_t from, void *out,
                           size_t bytes);

/* ---- coll_ucx_feed.c ------------------------------------------------------------------------- */

extern const coll_feed_ops_t coll_ucx_feed_ops;

#endif
