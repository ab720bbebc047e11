/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_group: the ranks of one job meet, agree that they are one, and hear when one is lost.
 *
 * Rank 0 leads: it listens; followers join and retry until the leader is there. Messages are
 * protobuf (proto/rendezvous.proto) over ZeroMQ, under CURVE when there is a secret; without one
 * only loopback and private addresses are taken, which the log says. Whoever differs in version or
 * in what must agree is refused with the difference named; strangers, garbage and a second process
 * of one rank are refused and logged, and the group lives.
 *
 * While it lasts, a thread of the group exchanges heartbeats. on_lost is called once, on that
 * thread, with the rank that went: because its connection ended, its heartbeats stopped, or it said
 * so (launch_group_fail). A group that has lost a rank stays lost: leave it, and join again. Each time
 * it forms it has an epoch of its own, and what belongs to another one is not heard.
 *
 * Threads  any, one at a time; launch_group_fail at any time, also from on_lost
 */
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "launcher/launch_place.h"

typedef struct launch_group launch_group_t;

/* What every rank must have alike: refused joins name the key and both values. */
typedef struct launch_fact {
    const char *key;
    const char *value;
} launch_fact_t;

typedef struct launch_group_config {
    launch_place_t place;
    const char *secret_file;    /* "": none. Any bytes, at least 16; readable by nobody else */
    const launch_fact_t *facts; /* besides weft's version */
    uint32_t n_facts;
    uint32_t join_timeout_s;         /* until all are there */
    uint32_t lost_after_s;           /* without a heartbeat */
    const atomic_bool *is_cancelled; /* ends a join when it becomes true; may be NULL */
    void (*on_lost)(void *user, uint32_t rank, const char *why);
    void *user;
} launch_group_config_t;

/*
 * Returns when all ranks have joined. WEFT_ERR_DENIED: secret or facts differ (diag: how).
 * WEFT_ERR_TIMEOUT: diag names the ranks that did not come. WEFT_ERR_IN_USE: the leader's port, or
 * this rank, is taken. WEFT_ERR_CANCELLED. What config points to is not used afterwards, but for user.
 */
weft_status_t launch_group_join(const launch_group_config_t *config, weft_diag_t *diag,
                                launch_group_t **group_out);

/* Says goodbye, so that nobody takes the end for a loss. Not from on_lost. NULL is fine. */
void launch_group_leave(launch_group_t *group);

/*
 * Every rank's bytes to every rank, in rank order: all_out [size * bytes]. All must call it; it waits
 * join_timeout_s at most. Of the form that coll_exchange_t takes; group is the launch_group_t.
 * WEFT_ERR_PEER_GONE: a rank was lost meanwhile, or has left.
 */
weft_status_t launch_group_all_gather(void *group, const void *mine, size_t bytes, void *all_out,
                                      weft_diag_t *diag);

/* Tells the others that this rank cannot go on; this one's on_lost is not called. */
void launch_group_fail(launch_group_t *group, const char *why);

uint32_t launch_group_rank(const launch_group_t *group);
uint32_t launch_group_size(const launch_group_t *group);
