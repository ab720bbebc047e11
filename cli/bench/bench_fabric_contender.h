/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fabric_contender: ways for the blocks of one size to move: transfers of the fabric, and the
 * floors they are held against. A contender of a size is made once and run by turns with the others.
 */
#pragma once

#include "cli/bench/bench_fabric_rig.h"
#include "cli/bench/bench_samples.h"

typedef struct bench_fabric_contender bench_fabric_contender_t;

typedef struct bench_fabric_contender_ops {
    const char *name;     /* as in --floors */
    bool moves_no_blocks; /* but as many other bytes: there is nothing to check */

    weft_status_t (*create)(const bench_fabric_rig_t *rig, weft_diag_t *diag,
                            bench_fabric_contender_t **contender_out);
    void (*destroy)(bench_fabric_contender_t *contender); /* NULL is fine */
    /* n transfers; the seconds of each are added to times. */
    weft_status_t (*run)(bench_fabric_contender_t *contender, uint64_t n, bench_samples_t *times,
                         weft_diag_t *diag);
} bench_fabric_contender_ops_t;

struct bench_fabric_contender {
    const bench_fabric_contender_ops_t *ops;
};

extern const bench_fabric_contender_ops_t bench_fabric_transfers;
extern const bench_fabric_contender_ops_t bench_fabric_memcpy;
extern const bench_fabric_contender_ops_t bench_fabric_readv;
extern const bench_fabric_contender_ops_t bench_fabric_copy;

/* Of the last transfer that ended. */
xfer_request_stats_t bench_fabric_transfers_stats(const bench_fabric_contender_t *contender);
