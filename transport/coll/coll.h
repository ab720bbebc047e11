/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll: collective operations of a group of ranks, each a process of its own.
 *
 * Every rank calls the same operations with the same sizes in the same order. An operation is
 * enqueued on a queue of the group's device and reads and writes that device's memory; where the
 * device is the host it is done when the call returns. Elsewhere nothing blocks the host, what a queue
 * records (a graph) may hold operations, and a group's operations run one behind the other: on one
 * queue, or on queues that follow each other.
 *
 * Sums      are added in rank order, 0 first, whatever the size and the algorithm: the same bits on
 *           every rank and in every run. f16 and bf16 are added in f32 and rounded once. (A group
 *           made with is_deterministic false may use its backend's own reductions.)
 * Errors    operations return nothing: the first failure sticks, later ones do nothing and leave
 *           their outputs as they are, coll_status says what and whose. A peer that does not come
 *           within the timeout is lost: no operation waits longer. After a failure the group can
 *           only be destroyed
 * Threads   a group belongs to one thread; coll_abort and coll_status are for any
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/device.h"
#include "base/diag.h"
#include "base/status.h"

#define COLL_MAX_RANKS 1024
#define COLL_NO_RANK   UINT32_MAX

typedef struct coll coll_t;

typedef enum coll_dtype { COLL_F32, COLL_F16, COLL_BF16 } coll_dtype_t;

/* How ranks meet before there is a group: what launch_group offers, or a test. */
typedef struct coll_exchange {
    void *user;
    /*
     * Every rank gives `bytes` bytes and gets those of all, in rank order: all_out [size * bytes].
     * Blocks; the timeout is the exchange's own.
     */
    weft_status_t (*all_gather)(void *user, const void *mine, size_t bytes, void *all_out,
                                weft_diag_t *diag);
} coll_exchange_t;

typedef struct coll_config {
    const char
        *backend; /* a row of coll_backends.def, or "auto": the best that reaches all ranks */
    uint32_t rank;
    uint32_t size;
    weft_device_t *device; /* borrowed */
    uint64_t timeout_ns;   /* that an operation waits for a peer */
    bool is_deterministic;
    coll_exchange_t exchange; /* used by coll_create, coll_split and coll_feed_create alone */
} coll_config_t;

/* Of a row of coll_backends.def, or "auto"; else WEFT_ERR_NOT_FOUND, and diag lists what there is. */
weft_status_t coll_check_backend_name(const char *name, weft_diag_t *diag);

/* A collective call itself. Backends that cannot be had here: diag says why, of each. */
weft_status_t coll_create(const coll_config_t *config, weft_diag_t *diag, coll_t **coll_out);
void coll_destroy(coll_t *coll); /* not collective; NULL is fine */

/*
 * Collective. The ranks that give the same color make a group of their own, in the order of their ranks
 * here, with a backend of its own where that is "auto". Meets over the exchange of coll_create. A part
 * cannot be split again.
 */
weft_status_t coll_split(coll_t *coll, uint32_t color, weft_diag_t *diag, coll_t **part_out);

uint32_t coll_rank(const coll_t *coll);
uint32_t coll_size(const coll_t *coll);
const char *coll_backend_name(const coll_t *coll);

/* out[i] = in_0[i] + in_1[i] + …; in, out [n], out may be in */
void coll_all_reduce(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                     coll_dtype_t dtype);

/*
 * x, f32 [rows, dim], as coll_all_reduce; then y, bf16 [rows, dim], from it as k_ops' rms_norm does:
 * both to the bit. For backends that do it in one go; false, on every rank alike: not for this group or
 * size, and nothing has happened. Addresses and strides are multiples of 16 bytes.
 */
typedef struct coll_norm {
    float *x;
    const float *w; /* [dim] */
    void *y;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride; /* elements */
    size_t y_stride;
    float eps;
} coll_norm_t;
bool coll_all_reduce_norm(coll_t *coll, weft_queue_t *queue, const coll_norm_t *norm);

/* in [size, n] of every rank are added, rank r gets the sum's part r: out [n] */
void coll_reduce_scatter(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                         coll_dtype_t dtype);

/* out [size, bytes], in rank order; in may be its place in out */
void coll_all_gather(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t bytes);

/* buffer [bytes] of root to every rank's */
void coll_broadcast(coll_t *coll, weft_queue_t *queue, void *buffer, size_t bytes, uint32_t root);

/* Returns (on the host) or lets the queue go on when every rank has called it. */
void coll_barrier(coll_t *coll, weft_queue_t *queue);

/*
 * From one rank to another, in order for each pair; not collective. A send returns before it is
 * received as long as COLL_SEND_AHEAD sends to that rank have not been; data may be written again
 * when it returns (on the host) or when the queue is there.
 */
#define COLL_SEND_AHEAD 2
void coll_send(coll_t *coll, weft_queue_t *queue, uint32_t to, const void *data, size_t bytes);
void coll_receive(coll_t *coll, weft_queue_t *queue, uint32_t from, void *out, size_t bytes);

/* WEFT_OK, or why the group failed; rank_out: whose fault, COLL_NO_RANK when nobody's in particular. */
weft_status_t coll_status(const coll_t *coll, uint32_t *rank_out);

/* The group fails now with WEFT_ERR_PEER_GONE of `rank`; operations that wait return. Any thread. */
void coll_abort(coll_t *coll, uint32_t rank);
