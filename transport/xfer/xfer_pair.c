/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_pair.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

#define FIRST_CAPACITY 4

/* ---- extents --------------------------------------------------------------------------------- */

static bool continues(const xfer_extent_t *a, const xfer_extent_t *b)
{
    return a->peer + a->bytes == b->peer && a->local + a->bytes == b->local &&
           a->peer_region == b->peer_region && a->local_region == b->local_region;
}

static weft_status_t add_extent(xfer_extents_t *extents, const xfer_extent_t *extent)
{
    if (extent->bytes == 0) {
        return WEFT_OK;
    }
    extents->bytes += extent->bytes;
    xfer_extent_t *last = extents->n == 0 ? NULL : &extents->items[extents->n - 1];
    if (last != NULL && continues(last, extent)) {
        last->bytes += extent->bytes;
        return WEFT_OK;
    }
    if (extents->n == extents->capacity) {
        const size_t capacity = extents->capacity == 0 ? FIRST_CAPACITY : extents->capacity * 2;
        xfer_extent_t *items =
            weft_realloc(extents->items, capacity * sizeof(*items), "xfer.extents");
        if (items == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
        extents->items = items;
        extents->capacity = capacity;
    }
    extents->items[extents->n++] = *extent;
    return WEFT_OK;
}

/* ---- pairing --------------------------------------------------------------------------------- */

/* One side's next pieces: the first is number `within` of its run. */
typedef struct side {
    const xfer_list_t *list;
    const uint32_t *ids;
    size_t hint;
    const xfer_list_run_t *run;
    uint64_t within;
} side_t;

static bool find_piece(side_t *side, size_t i)
{
    const uint64_t id = side->ids == NULL ? i : side->ids[i];
    if (id >= side->list->pieces) {
        return false;
    }
    side->run = xfer_list_run_of(side->list, id, &side->hint);
    side->within = id - side->run->first;
    return true;
}

static uint64_t left_in_run(const side_t *side)
{
    return side->run->count - side->within;
}

static bool goes_on(const side_t *side, size_t i, uint64_t count)
{
    return side->ids == NULL || side->ids[i + count] == side->ids[i] + count;
}

/* Pairs from pair i on whose pieces follow each other by number on both sides, each in one run. */
static uint64_t count_pairs(const side_t *local, const side_t *peer, size_t i, size_t n)
{
    uint64_t most = left_in_run(local) < left_in_run(peer) ? left_in_run(local) : left_in_run(peer);
    most = n - i < most ? n - i : most;
    if (local->ids == NULL && peer->ids == NULL) {
        return most;
    }
    uint64_t count = 1;
    while (count < most && goes_on(local, i, count) && goes_on(peer, i, count)) {
        count++;
    }
    return count;
}

static bool is_dense(const side_t *side)
{
    return side->run->stride == side->run->bytes;
}

/* count pieces of both sides, each within one run. */
static weft_status_t add_pieces(const side_t *local, const side_t *peer, uint64_t count,
                                xfer_extents_t *extents)
{
    const bool is_one = count > 1 && is_dense(local) && is_dense(peer);
    const uint64_t bytes = local->run->bytes * (is_one ? count : 1);
    const uint64_t n = is_one ? 1 : count;
    for (uint64_t k = 0; k < n; k++) {
        const xfer_extent_t extent = {
            .local = local->run->addr + local->run->stride * (local->within + k),
            .peer = peer->run->addr + peer->run->stride * (peer->within + k),
            .bytes = bytes,
            .local_region = local->run->region,
            .peer_region = peer->run->region,
        };
        weft_status_t status = add_extent(extents, &extent);
        if (status < 0) {
            return status;
        }
    }
    return WEFT_OK;
}

static weft_status_t bad_id(const char *which, const side_t *side, size_t i, weft_diag_t *diag)
{
    return weft_diag(diag, WEFT_ERR_INVALID, "pair %zu: %s piece %llu of %llu", i, which,
                     (unsigned long long)(side->ids == NULL ? i : side->ids[i]),
                     (unsigned long long)side->list->pieces);
}

static weft_status_t pair_all(const xfer_pairs_t *pairs, weft_diag_t *diag, xfer_extents_t *extents)
{
    side_t local = {.list = pairs->local, .ids = pairs->local_ids};
    side_t peer = {.list = pairs->peer, .ids = pairs->peer_ids};
    for (size_t i = 0; i < pairs->n;) {
        if (!find_piece(&local, i)) {
            return bad_id("local", &local, i, diag);
        }
        if (!find_piece(&peer, i)) {
            return bad_id("peer", &peer, i, diag);
        }
        if (local.run->bytes != peer.run->bytes) {
            return weft_diag(diag, WEFT_ERR_INVALID, "pair %zu: %llu bytes here, %llu there", i,
                             (unsigned long long)local.run->bytes,
                             (unsigned long long)peer.run->bytes);
        }
        const uint64_t count = count_pairs(&local, &peer, i, pairs->n);
        weft_status_t status = add_pieces(&local, &peer, count, extents);
        if (status < 0) {
            return status;
        }
        i += count;
    }
    return WEFT_OK;
}

/* ---- another order --------------------------------------------------------------------------- */

static int compare_at_peer(const void *a, const void *b)
{
    const xfer_extent_t *x = a;
    const xfer_extent_t *y = b;
    if (x->peer_region != y->peer_region) {
        return x->peer_region < y->peer_region ? -1 : 1;
    }
    return x->peer == y->peer ? 0 : x->peer < y->peer ? -1 : 1;
}

static bool is_ordered(const xfer_extents_t *extents)
{
    for (size_t i = 1; i < extents->n; i++) {
        if (compare_at_peer(&extents->items[i - 1], &extents->items[i]) > 0) {
            return false;
        }
    }
    return true;
}

static size_t hash_place(uint64_t local, uint64_t peer, size_t mask)
{
    const uint64_t mixed =
        (local ^ peer * UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xd6e8feb86659fd93);
    return (size_t)(mixed >> 32) & mask;
}

/*
 * Whether some extent goes on where another ends: a look into a table of all ends, which is several
 * times faster than sorting in vain.
 */
static bool would_merge(const xfer_extents_t *extents, uint32_t *table, size_t mask)
{
    for (size_t i = 0; i < extents->n; i++) {
        const xfer_extent_t *item = &extents->items[i];
        size_t at = hash_place(item->local + item->bytes, item->peer + item->bytes, mask);
        while (table[at] != 0) {
            at = (at + 1) & mask;
        }
        table[at] = (uint32_t)i + 1;
    }
    for (size_t i = 0; i < extents->n; i++) {
        const xfer_extent_t *item = &extents->items[i];
        size_t at = hash_place(item->local, item->peer, mask);
        for (; table[at] != 0; at = (at + 1) & mask) {
            if (continues(&extents->items[table[at] - 1], item)) {
                return true;
            }
        }
    }
    return false;
}

static void merge_neighbours(xfer_extents_t *extents)
{
    size_t kept = 0;
    for (size_t i = 0; i < extents->n; i++) {
        const xfer_extent_t *item = &extents->items[i];
        if (kept > 0 && continues(&extents->items[kept - 1], item)) {
            extents->items[kept - 1].bytes += item->bytes;
        } else {
            extents->items[kept++] = *item;
        }
    }
    extents->n = kept;
}

static weft_status_t reorder(xfer_extents_t *extents)
{
    if (extents->n < 2 || extents->n >= UINT32_MAX || is_ordered(extents)) {
        return WEFT_OK;
    }
    size_t slots = 4;
    while (slots < 2 * extents->n) {
        slots *= 2;
    }
    uint32_t *table = weft_calloc(slots, sizeof(*table), "xfer.extents");
    if (table == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const bool is_worth_it = would_merge(extents, table, slots - 1);
    weft_free(table);
    if (is_worth_it) {
        qsort(extents->items, extents->n, sizeof(*extents->items), compare_at_peer);
        merge_neighbours(extents);
    }
    return WEFT_OK;
}

weft_status_t xfer_pair(const xfer_pairs_t *pairs, weft_diag_t *diag, xfer_extents_t *extents_out)
{
    xfer_extents_t extents = {0};
    weft_status_t status = pair_all(pairs, diag, &extents);
    if (status == WEFT_OK) {
        status = reorder(&extents);
    }
    if (status < 0) {
        weft_free(extents.items);
        return status;
    }
    *extents_out = extents;
    return WEFT_OK;
}
