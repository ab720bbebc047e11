/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs are taken one by one and join the one before while that goes on at the same distance; a run
 * that nothing joins any more is looked up among the regions, and cut where it leaves one.
 */
#include "transport/xfer/xfer_list_priv.h"

#include <string.h>

#include "base/alloc.h"
#include "transport/xfer/xfer_peer_priv.h"

#define FIRST_CAPACITY 8

typedef struct builder {
    const xfer_ranges_t *set;
    xfer_space_t space;
    weft_diag_t *diag;
    xfer_list_run_t *runs;
    size_t n_runs;
    size_t run_capacity;
    xfer_range_t **ranges; /* distinct; the mark of each is its number */
    size_t n_ranges;
    size_t range_capacity;
    uint64_t pieces;
    xfer_run_t open; /* may still grow; count 0: none */
} builder_t;

/* ---- growing --------------------------------------------------------------------------------- */

/* *items has room for one more than n. */
static weft_status_t make_room(void **items, size_t n, size_t *capacity, size_t item_bytes)
{
    if (n < *capacity) {
        return WEFT_OK;
    }
    const size_t more = *capacity == 0 ? FIRST_CAPACITY : *capacity * 2;
    void *grown = weft_realloc(*items, more * item_bytes, "xfer.list");
    if (grown == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *items = grown;
    *capacity = more;
    return WEFT_OK;
}

/* A mark that is no number of a range of this list, or of another one, was left by another list. */
static bool is_numbered(const builder_t *builder, const xfer_range_t *range)
{
    return range->mark < builder->n_ranges && builder->ranges[range->mark] == range;
}

static weft_status_t number_range(builder_t *builder, xfer_range_t *range)
{
    if (is_numbered(builder, range)) {
        return WEFT_OK;
    }
    void *ranges = builder->ranges;
    weft_status_t status =
        make_room(&ranges, builder->n_ranges, &builder->range_capacity, sizeof(*builder->ranges));
    builder->ranges = ranges;
    if (status == WEFT_OK) {
        range->mark = (uint32_t)builder->n_ranges;
        builder->ranges[builder->n_ranges++] = range;
    }
    return status;
}

static weft_status_t add_run(builder_t *builder, const xfer_run_t *run, uint64_t count,
                             const xfer_range_t *range)
{
    void *runs = builder->runs;
    weft_status_t status =
        make_room(&runs, builder->n_runs, &builder->run_capacity, sizeof(*builder->runs));
    builder->runs = runs;
    if (status == WEFT_OK) {
        builder->runs[builder->n_runs++] = (xfer_list_run_t){.addr = run->addr,
                                                             .bytes = run->bytes,
                                                             .stride = run->stride,
                                                             .count = count,
                                                             .first = builder->pieces,
                                                             .region = range->mark};
        builder->pieces += count;
    }
    return status;
}

/* ---- looking up ------------------------------------------------------------------------------ */

static bool is_within(const xfer_range_t *range, const xfer_run_t *run)
{
    return range->device == run->device && run->addr >= range->addr && run->bytes <= range->bytes &&
           run->addr - range->addr <= range->bytes - run->bytes;
}

/* Pieces come in the order of memory more often than not. */
static xfer_range_t *find_range(const builder_t *builder, const xfer_run_t *run)
{
    if (builder->n_runs > 0) {
        xfer_range_t *last = builder->ranges[builder->runs[builder->n_runs - 1].region];
        if (run->bytes > 0 && is_within(last, run)) {
            return last;
        }
    }
    return xfer_ranges_find(builder->set, (int32_t)builder->space, run->device, run->addr,
                            run->bytes);
}

/* How many pieces from the first on lie within range, which has the first. */
static uint64_t count_within(const xfer_range_t *range, const xfer_run_t *run)
{
    const uint64_t last = range->bytes - run->bytes - (run->addr - range->addr);
    if (run->count == 1 || run->stride == 0 || last / run->stride >= run->count - 1) {
        return run->count;
    }
    return last / run->stride + 1;
}

static weft_status_t not_found(const builder_t *builder, const xfer_run_t *run)
{
    return weft_diag(builder->diag, WEFT_ERR_NOT_FOUND,
                     "piece %llu, %llu bytes at 0x%llx of device %llu, is in no region",
                     (unsigned long long)builder->pieces, (unsigned long long)run->bytes,
                     (unsigned long long)run->addr, (unsigned long long)run->device);
}

static weft_status_t close_run(builder_t *builder)
{
    xfer_run_t *run = &builder->open;
    while (run->count > 0) {
        xfer_range_t *range = find_range(builder, run);
        if (range == NULL) {
            return not_found(builder, run);
        }
        const uint64_t count = count_within(range, run);
        weft_status_t status = number_range(builder, range);
        if (status == WEFT_OK) {
            status = add_run(builder, run, count, range);
        }
        if (status < 0) {
            return status;
        }
        run->count -= count;
        const uint64_t last = run->addr + run->stride * (count - 1);
        if (run->count > 0 && last > UINT64_MAX - run->stride) {
            return not_found(builder, run);
        }
        run->addr = last + run->stride;
    }
    return WEFT_OK;
}

/* ---- joining --------------------------------------------------------------------------------- */

/* Whether run goes on where the open one ends; strides of one piece are free. Where sums overflow
 * the open run is found to be in no region. */
static bool join(xfer_run_t *open, const xfer_run_t *run)
{
    if (open->count == 0 || open->bytes != run->bytes || open->device != run->device) {
        return false;
    }
    if (open->count == 1 && run->count == 1 && run->addr >= open->addr) {
        open->stride = run->addr - open->addr;
    } else if (open->count == 1 && run->count > 1 && open->addr + run->stride == run->addr) {
        open->stride = run->stride;
    } else if (open->count == 1 || open->addr + open->stride * open->count != run->addr ||
               (run->count > 1 && open->stride != run->stride)) {
        return false;
    }
    open->count += run->count;
    return true;
}

static weft_status_t add_runs(builder_t *builder, const xfer_run_t *runs, size_t n)
{
    uint64_t pieces = 0;
    for (size_t i = 0; i < n; i++) {
        const xfer_run_t *run = &runs[i];
        if (run->count == 0) {
            return weft_diag(builder->diag, WEFT_ERR_INVALID, "run %zu has no piece", i);
        }
        if (run->count > UINT32_MAX - pieces) {
            return weft_diag(builder->diag, WEFT_ERR_TOO_LARGE, "more than %lu pieces",
                             (unsigned long)UINT32_MAX);
        }
        pieces += run->count;
        if (join(&builder->open, run)) {
            continue;
        }
        weft_status_t status = close_run(builder);
        if (status < 0) {
            return status;
        }
        builder->open = *run;
    }
    return close_run(builder);
}

/* ---- the list -------------------------------------------------------------------------------- */

static weft_status_t list_create(xfer_agent_t *agent, xfer_peer_t *peer, builder_t *builder,
                                 xfer_list_t **list_out)
{
    xfer_list_t *list = weft_zalloc(sizeof(*list), "xfer.list");
    if (list == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status =
        xfer_cover_create(agent, peer, builder->ranges, builder->n_ranges, &list->cover);
    if (status < 0) {
        weft_free(list);
        return status;
    }
    list->space = builder->space;
    list->pieces = builder->pieces;
    list->n_runs = builder->n_runs;
    list->runs = builder->runs;
    builder->runs = NULL;
    *list_out = list;
    return WEFT_OK;
}

weft_status_t xfer_list_create(xfer_agent_t *agent, xfer_peer_t *peer, xfer_space_t space,
                               const xfer_run_t *runs, size_t n, weft_diag_t *diag,
                               xfer_list_t **list_out)
{
    builder_t builder = {
        .set = peer == NULL ? &agent->regions : &peer->regions, .space = space, .diag = diag};
    pthread_mutex_lock(&agent->tables);
    weft_status_t status = add_runs(&builder, runs, n);
    if (status == WEFT_OK) {
        status = list_create(agent, peer, &builder, list_out);
    }
    pthread_mutex_unlock(&agent->tables);
    weft_free(builder.runs);
    weft_free(builder.ranges);
    return status;
}

void xfer_list_destroy(xfer_list_t *list)
{
    if (list != NULL) {
        xfer_cover_release(list->cover);
        weft_free(list->runs);
        weft_free(list);
    }
}

uint64_t xfer_list_pieces(const xfer_list_t *list)
{
    return list->pieces;
}

static bool run_has(const xfer_list_run_t *run, uint64_t id)
{
    return id >= run->first && id - run->first < run->count;
}

const xfer_list_run_t *xfer_list_run_of(const xfer_list_t *list, uint64_t id, size_t *hint)
{
    if (run_has(&list->runs[*hint], id)) {
        return &list->runs[*hint];
    }
    if (*hint + 1 < list->n_runs && run_has(&list->runs[*hint + 1], id)) {
        return &list->runs[++*hint];
    }
    size_t low = 0;
    size_t high = list->n_runs - 1; /* the answer is in [low, high] */
    while (low < high) {
        const size_t middle = low + (high - low + 1) / 2;
        if (list->runs[middle].first <= id) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    *hint = low;
    return &list->runs[low];
}
