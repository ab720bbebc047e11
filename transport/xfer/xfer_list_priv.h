/* SPDX-License-Identifier: Apache-2.0 */
/* xfer_list_priv: pieces as runs, and the regions they lie in. */
#pragma once

#include "transport/xfer/xfer_agent_priv.h"

/*
 * The regions of a list's pieces, numbered, with a row of handles for each way. Shared by the list
 * and all requests made of it, so that a request needs no table of its own.
 */
typedef struct xfer_cover {
    atomic_uint references;
    xfer_agent_t *agent;
    xfer_peer_t *peer;              /* held; NULL: regions of ours */
    uint32_t ways;                  /* bit w: all regions can be had by way w; guarded by lock */
    uint64_t epochs[XFER_MAX_WAYS]; /* of the link that row w is good for; ours: 1. As below */
    void **handles;                 /* [ways][n], guarded by lock */
    size_t n;
    xfer_range_t *ranges[]; /* [n]: xfer_region_t, or xfer_peer_region_t */
} xfer_cover_t;

/* Pieces that are equally far apart, within one region. */
typedef struct xfer_list_run {
    uint64_t addr;
    uint64_t bytes;
    uint64_t stride;
    uint64_t count;
    uint64_t first;  /* number of its first piece */
    uint32_t region; /* in the cover */
} xfer_list_run_t;

struct xfer_list {
    xfer_cover_t *cover;
    xfer_space_t space;
    uint64_t pieces;
    xfer_list_run_t *runs; /* [n_runs] */
    size_t n_runs;
};

/* Of ranges [n], which are distinct; tables is held. peer is then held too. */
weft_status_t xfer_cover_create(xfer_agent_t *agent, xfer_peer_t *peer, xfer_range_t *const *ranges,
                                size_t n, xfer_cover_t **cover_out);
void xfer_cover_acquire(xfer_cover_t *cover);
void xfer_cover_release(xfer_cover_t *cover); /* takes tables; NULL is fine */

/* The run that piece id is of, at or after *hint if it can be told so; id < pieces. */
const xfer_list_run_t *xfer_list_run_of(const xfer_list_t *list, uint64_t id, size_t *hint);
