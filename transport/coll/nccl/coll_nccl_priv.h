/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_nccl: collectives of ranks on GPUs of any hosts, by NCCL.
 *
 * Sums    NCCL's own follow its rings and trees: with is_deterministic parts are gathered by NCCL and
 *         added by our kernel, in rank order
 * Waits   NCCL has no timeouts. Every operation counts up before it begins and when it has ended, on
 *         the device, so that those of a graph count, too; a thread of the group watches the two
 *         numbers, and the communicator's errors, and aborts it when the first does not follow the second
 *         in time or the group has failed. Whose fault it is NCCL does not say: COLL_NO_RANK
 * Sends   wait in the queue for who receives them, but for what NCCL buffers (some 100 KiB)
 */
#pragma once

#include <pthread.h>

#include "transport/coll/coll_backend.h"
#include "transport/coll/nccl/coll_nccl_library.h"

/* In pinned memory, counted by kernels. */
typedef struct coll_nccl_counts {
    uint32_t begun;
    uint32_t ended;
} coll_nccl_counts_t;

typedef struct coll_nccl {
    coll_t base;
    const nccl_functions_t *nccl;
    weft_mem_t scratch; /* of sums, then what a barrier gathers, then counts on the device */
    weft_mem_t told;    /* coll_nccl_counts_t */

    pthread_mutex_t lock; /* of everything that NCCL is asked, and of what follows */
    nccl_comm_t *comm;    /* NULL: not yet, or aborted */
    pthread_cond_t wake;  /* the watcher, to end */
    bool is_leaving;
    pthread_t watcher;
    bool is_watched; /* the thread runs */
} coll_nccl_t;

#define COLL_NCCL_SCRATCH_BYTES ((size_t)32 << 20)
#define COLL_NCCL_EXTRA_BYTES   ((size_t)65536) /* behind it: COLL_MAX_RANKS words, counts */

/* The device's own counts, behind the barrier's words. */
coll_nccl_counts_t *coll_nccl_counts(const coll_nccl_t *group);
void *coll_nccl_barrier_words(const coll_nccl_t *group);

/*
 * With the lock. Whether a call has succeeded, at once or in the background, which is waited for up to
 * the group's timeout with the lock let go meanwhile; else the group fails. what: the call.
 */
bool coll_nccl_settle(coll_nccl_t *group, int result, const char *what);

weft_status_t coll_nccl_watch_start(coll_nccl_t *group);
void coll_nccl_watch_stop(coll_nccl_t *group);

/* ---- operations ---- */

void coll_nccl_all_reduce(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                          coll_dtype_t dtype);
void coll_nccl_reduce_scatter(coll_t *coll, weft_queue_t *queue, const void *in, void *out,
                              size_t n, coll_dtype_t dtype);
void coll_nccl_all_gather(coll_t *coll, weft_queue_t *queue, const void *in, void *out,
                          size_t bytes);
void coll_nccl_broadcast(coll_t *coll, weft_queue_t *queue, void *buffer, size_t bytes,
                         uint32_t root);
void coll_nccl_barrier(coll_t *coll, weft_queue_t *queue);
void coll_nccl_send(coll_t *coll, weft_queue_t *queue, uint32_t to, const void *data, size_t bytes);
void coll_nccl_receive(coll_t *coll, weft_queue_t *queue, uint32_t from, void *out, size_t bytes);
