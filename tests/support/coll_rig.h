/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_rig: ranks as processes of their own, forked by a test, that meet over sockets.
 *
 * In a rank cmocka's assertions work: one that does not hold ends the rank, and with it the test.
 */
#pragma once

#include <sys/types.h>

#include "tests/support/check.h"
#include "transport/coll/coll.h"

#define COLL_RIG_MAX_RANKS    16
#define COLL_RIG_SHARED_BYTES 65536
#define COLL_RIG_TIMEOUT_NS   (60 * UINT64_C(1000000000))

/* A rank's own view. */
typedef struct coll_rig_rank {
    uint32_t rank;
    uint32_t size;
    weft_device_t *device; /* "cpu", or what coll_rig_use_device said */
    weft_queue_t *queue;
    coll_exchange_t exchange;
    const pid_t *pids; /* [size] of all ranks */
    void *shared;      /* [COLL_RIG_SHARED_BYTES] of all ranks and the test, zero at first */
    void *user;
    int sockets[COLL_RIG_MAX_RANKS]; /* rank 0: to each; others: [0], to rank 0 */
} coll_rig_rank_t;

typedef void coll_rig_fn(coll_rig_rank_t *self);

/* The device of ranks that are started from now on; static. */
void coll_rig_use_device(const char *name);

/* Runs fn in `size` processes and waits for their end; they must all come to it. */
void coll_rig_run(uint32_t size, coll_rig_fn *fn, void *user);

/* The same, but the ranks of the mask must be ended by SIGKILL. */
void coll_rig_run_with_deaths(uint32_t size, uint32_t killed_mask, coll_rig_fn *fn, void *user);

/*
 * Runs claim for each row of coll_backends.def that ranks on this host can use; the others are named.
 * WEFT_TEST_BACKEND=shm runs one row.
 */
void coll_rig_each_backend(void (*claim)(const char *backend));

/* For each of those: coll_rig_run_with_deaths with the row's name as `user`. */
void coll_rig_run_each(uint32_t size, uint32_t killed_mask, coll_rig_fn *fn);

/* Whether ranks on that device can use that row; if not, why is printed. */
bool coll_rig_has_backend(const char *device, const char *backend);

/* For fields to be changed before coll_create. */
coll_config_t coll_rig_config(const coll_rig_rank_t *self, const char *backend);

/* A group of all ranks. */
coll_t *coll_rig_create(const coll_rig_rank_t *self, const char *backend);

/* Until *word is at least n; words live in `shared`. */
void coll_rig_await(const _Atomic uint32_t *word, uint32_t n);
