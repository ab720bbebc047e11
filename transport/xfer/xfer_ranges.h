/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_ranges: ranges of memory that do not overlap, found by an address within. Registered regions
 * and those of a peer begin with an xfer_range_t; the set knows no more of them.
 *
 * Threads  the caller's lock
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct xfer_range {
    int32_t space; /* xfer_space_t */
    uint64_t device;
    uint64_t addr;
    uint64_t bytes; /* ≥ 1; addr + bytes does not overflow */
    uint32_t ways;  /* bit w: by the agent's way w its bytes can be reached */
    uint32_t mark;  /* scratch of whoever holds the lock; holds anything */
} xfer_range_t;

/* Zeroed memory is an empty set. */
typedef struct xfer_ranges {
    xfer_range_t **items; /* [n], by space, device, address */
    size_t n;
    size_t capacity;
} xfer_ranges_t;

void xfer_ranges_fini(xfer_ranges_t *set); /* not what is in it */

/* Makes room for more of them, so that adding cannot fail. */
weft_status_t xfer_ranges_reserve(xfer_ranges_t *set, size_t more);
void xfer_ranges_add(xfer_ranges_t *set, xfer_range_t *range); /* room was made; overlaps none */
/* The same for all of `fresh`, which is emptied; faster than one by one. */
void xfer_ranges_add_all(xfer_ranges_t *set, xfer_ranges_t *fresh);
void xfer_ranges_remove(xfer_ranges_t *set, const xfer_range_t *range);

/* Appends, out of order; then, with all in place, orders them. */
void xfer_ranges_append(xfer_ranges_t *set, xfer_range_t *range); /* room was made */
void xfer_ranges_sort(xfer_ranges_t *set);
/* Of a sorted set in which some may overlap: one that overlaps its neighbour; NULL: none does. */
const xfer_range_t *xfer_ranges_clash(const xfer_ranges_t *set);

/* The one that holds all of [addr, addr + bytes); NULL: none. */
xfer_range_t *xfer_ranges_find(const xfer_ranges_t *set, int32_t space, uint64_t device,
                               uint64_t addr, uint64_t bytes);
/* One that shares a byte with range; NULL: none. */
xfer_range_t *xfer_ranges_overlap(const xfer_ranges_t *set, const xfer_range_t *range);
