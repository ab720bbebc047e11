/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_shm: collectives of ranks on one host, over memory that all of them map.
 *
 * The segment is a memfd of rank 0, sparse: what is never written takes no memory, so that there is
 * room for a channel of each pair and for feeds without asking again. It is in no folder and goes with
 * the last process that has it.
 *
 * Steps    every rank counts the same steps. At each it may write its slot, then says so in its line,
 *          then reads the slots of others that have. There are two lines and two slots, by the step's
 *          parity: what was written at step s may be written over at s + 2, and that is safe once all
 *          have said s + 1, because a rank says s + 1 only when it has read what it wants of s
 * Death    every rank holds a lock on its byte of the file, which the kernel lets go when the process
 *          ends, however it does and whatever pid namespace it is in
 */
#pragma once

#include <sys/types.h>

#include "base/compiler.h"
#include "transport/coll/coll_backend.h"

#define COLL_SHM_TINY_BYTES 60 /* of a step that go in its line */

/* What a rank says of a step, and what needs no slot: one cache line moves both. */
typedef struct coll_shm_line {
    _Alignas(WEFT_CACHE_LINE) char data[COLL_SHM_TINY_BYTES];
    atomic_uint step; /* released by coll_shm_say, acquired by coll_shm_wait */
} coll_shm_line_t;

_Static_assert(sizeof(coll_shm_line_t) == WEFT_CACHE_LINE, "a line is a cache line");

/* The head of the segment, all zero at first. */
typedef struct coll_shm_head {
    _Alignas(WEFT_CACHE_LINE)
        atomic_uint_fast64_t failure;               /* as coll's; of the first rank to fail */
    _Alignas(WEFT_CACHE_LINE) atomic_uint n_asleep; /* threads that a say has to wake */
} coll_shm_head_t;

typedef struct coll_shm_pair coll_shm_pair_t;
#define COLL_SHM_PAIR_BYTES ((size_t)129 << 20) /* its place in the file */

/* One direction between two ranks as this rank has it mapped. */
typedef struct coll_shm_channel {
    coll_shm_pair_t *shared; /* NULL: not used yet */
    uint32_t n_done;         /* messages sent or received */
} coll_shm_channel_t;

typedef struct coll_shm {
    coll_t base;
    int fd;
    uint32_t spins;     /* looks before the processor is offered to others */
    size_t slot_bytes;  /* a multiple of 4096 */
    size_t feed_offset; /* in the file, of the next feed: the same on all ranks */
    coll_shm_head_t *head;
    size_t mapped_bytes;
    coll_shm_line_t *lines;   /* [size, 2] */
    char *slots;              /* [size, 2, slot_bytes] */
    uint32_t step;            /* last said */
    uint32_t settled;         /* that all are known to have said */
    const void **sources;     /* [size], of a sum */
    coll_shm_channel_t *to;   /* [size] */
    coll_shm_channel_t *from; /* [size] */
} coll_shm_t;

#define COLL_SHM_MAX_DEPTH   UINT32_C(0x10000) /* of a feed */
#define COLL_SHM_MAX_MESSAGE ((size_t)1 << 30)

/* ---- segment ---- */

weft_status_t coll_shm_probe(const coll_config_t *config, weft_diag_t *diag);

/* Collective. Makes, passes round and maps the segment; what fails on one rank fails on all. */
weft_status_t coll_shm_meet(coll_shm_t *shm, weft_diag_t *diag);
void coll_shm_leave(coll_shm_t *shm); /* half-met is fine */

/* A range of the file, page aligned; NULL when there is no memory. */
void *coll_shm_map(const coll_shm_t *shm, size_t offset, size_t bytes);
size_t coll_shm_pair_offset(const coll_shm_t *shm, uint32_t from, uint32_t to);
size_t coll_shm_feeds_left(const coll_shm_t *shm); /* bytes of the file that no feed has yet */
bool coll_shm_is_alive(const coll_shm_t *shm, uint32_t rank);

/* ---- waiting ---- */

/* Until *word has come to target (as counters do, wrapping). False: the group has failed. */
bool coll_shm_wait(coll_shm_t *shm, atomic_uint *word, uint32_t target, uint32_t rank);

/* After a store to word: wakes those who sleep on it. */
void coll_shm_wake(coll_shm_t *shm, atomic_uint *word);

/* Fails the group here and, through the segment, on the other ranks. */
void coll_shm_fail(coll_shm_t *shm, weft_status_t status, uint32_t rank);

/* The other ranks hear of this one's failure, if it has one. */
void coll_shm_tell_failure(coll_shm_t *shm);

/* Whether this rank knows of a failure; one of another rank becomes its own. Any thread. */
bool coll_shm_has_failed(coll_shm_t *shm);

/* ---- steps ---- */

/* This rank's line and slot of the next step may be written. False: the group has failed. */
bool coll_shm_begin(coll_shm_t *shm);

WEFT_INLINE coll_shm_line_t *coll_shm_line(const coll_shm_t *shm, uint32_t rank, uint32_t step)
{
    return &shm->lines[2 * (size_t)rank + step % 2];
}

WEFT_INLINE char *coll_shm_slot(const coll_shm_t *shm, uint32_t rank, uint32_t step)
{
    return shm->slots + (2 * (size_t)rank + step % 2) * shm->slot_bytes;
}

/* Says that this rank is at the step which was begun. */
void coll_shm_say(coll_shm_t *shm);

/* Until rank, or every rank, has said what this one said last. False: the group has failed. */
bool coll_shm_await(coll_shm_t *shm, uint32_t rank);
bool coll_shm_await_all(coll_shm_t *shm);

/* ---- operations ---- */

void coll_shm_all_reduce(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                         coll_dtype_t dtype);
void coll_shm_reduce_scatter(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                             coll_dtype_t dtype);
void coll_shm_all_gather(coll_t *coll, weft_queue_t *queue, const void *in, void *out,
                         size_t bytes);
void coll_shm_broadcast(coll_t *coll, weft_queue_t *queue, void *buffer, size_t bytes,
                        uint32_t root);
void coll_shm_barrier(coll_t *coll, weft_queue_t *queue);
void coll_shm_send(coll_t *coll, weft_queue_t *queue, uint32_t to, const void *data, size_t bytes);
void coll_shm_receive(coll_t *coll, weft_queue_t *queue, uint32_t from, void *out, size_t bytes);
void coll_shm_close_channels(coll_shm_t *shm);

extern const coll_feed_ops_t coll_shm_feed_ops;
