/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_pair: pieces of two lists, paired and merged to as few extents as they allow.
 *
 * Pairs merge where they go on in memory on both sides. Their order is free, so pairs that would
 * merge in another order do so too: they are then sorted by where they lie at the peer.
 */
#pragma once

#include "transport/xfer/xfer_backend.h"
#include "transport/xfer/xfer_list_priv.h"

typedef struct xfer_pairs {
    const xfer_list_t *local;
    const xfer_list_t *peer;
    const uint32_t *local_ids; /* [n]; NULL: 0, 1, 2, ... */
    const uint32_t *peer_ids;
    size_t n;
} xfer_pairs_t;

typedef struct xfer_extents {
    xfer_extent_t *items; /* [n]; weft_free */
    size_t n;
    size_t capacity;
    uint64_t bytes; /* of all */
} xfer_extents_t;

/* WEFT_ERR_INVALID: sizes differ or an id is too large; diag says which. No extent is empty. */
weft_status_t xfer_pair(const xfer_pairs_t *pairs, weft_diag_t *diag, xfer_extents_t *extents_out);
