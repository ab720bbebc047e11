/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_ranges.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

#define FIRST_CAPACITY 16

static int compare(const xfer_range_t *a, const xfer_range_t *b)
{
    if (a->space != b->space) {
        return a->space < b->space ? -1 : 1;
    }
    if (a->device != b->device) {
        return a->device < b->device ? -1 : 1;
    }
    return a->addr == b->addr ? 0 : a->addr < b->addr ? -1 : 1;
}

static int compare_items(const void *a, const void *b)
{
    return compare(*(xfer_range_t *const *)a, *(xfer_range_t *const *)b);
}

/* How many lie at or before key's address. */
static size_t count_up_to(const xfer_ranges_t *set, const xfer_range_t *key)
{
    size_t low = 0;
    size_t high = set->n;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (compare(set->items[middle], key) <= 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static bool is_overlap(const xfer_range_t *a, const xfer_range_t *b)
{
    return a->space == b->space && a->device == b->device && a->addr < b->addr + b->bytes &&
           b->addr < a->addr + a->bytes;
}

void xfer_ranges_fini(xfer_ranges_t *set)
{
    weft_free(set->items);
    *set = (xfer_ranges_t){0};
}

weft_status_t xfer_ranges_reserve(xfer_ranges_t *set, size_t more)
{
    size_t capacity = set->capacity == 0 ? FIRST_CAPACITY : set->capacity;
    while (capacity < set->n + more) {
        capacity *= 2;
    }
    if (capacity == set->capacity) {
        return WEFT_OK;
    }
    xfer_range_t **items = weft_realloc(set->items, capacity * sizeof(*items), "xfer.ranges");
    if (items == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    set->items = items;
    set->capacity = capacity;
    return WEFT_OK;
}

void xfer_ranges_append(xfer_ranges_t *set, xfer_range_t *range)
{
    assert(set->n < set->capacity);
    set->items[set->n++] = range;
}

void xfer_ranges_sort(xfer_ranges_t *set)
{
    if (set->n > 1) {
        qsort(set->items, set->n, sizeof(*set->items), compare_items);
    }
}

const xfer_range_t *xfer_ranges_clash(const xfer_ranges_t *set)
{
    for (size_t i = 1; i < set->n; i++) {
        if (is_overlap(set->items[i - 1], set->items[i])) {
            return set->items[i];
        }
    }
    return NULL;
}

void xfer_ranges_add(xfer_ranges_t *set, xfer_range_t *range)
{
    const size_t at = count_up_to(set, range);
    xfer_ranges_append(set, range);
    memmove(&set->items[at + 1], &set->items[at], (set->n - 1 - at) * sizeof(*set->items));
    set->items[at] = range;
}

void xfer_ranges_add_all(xfer_ranges_t *set, xfer_ranges_t *fresh)
{
    for (size_t i = 0; i < fresh->n; i++) {
        xfer_ranges_append(set, fresh->items[i]);
    }
    fresh->n = 0;
    xfer_ranges_sort(set);
}

void xfer_ranges_remove(xfer_ranges_t *set, const xfer_range_t *range)
{
    const size_t at = count_up_to(set, range) - 1;
    assert(set->items[at] == range);
    set->n--;
    memmove(&set->items[at], &set->items[at + 1], (set->n - at) * sizeof(*set->items));
}

xfer_range_t *xfer_ranges_find(const xfer_ranges_t *set, int32_t space, uint64_t device,
                               uint64_t addr, uint64_t bytes)
{
    const xfer_range_t key = {.space = space, .device = device, .addr = addr, .bytes = bytes};
    const size_t n = count_up_to(set, &key);
    if (n == 0) {
        return NULL;
    }
    xfer_range_t *range = set->items[n - 1];
    if (range->space != space || range->device != device || bytes > range->bytes ||
        addr - range->addr > range->bytes - bytes) {
        return NULL;
    }
    return range;
}

xfer_range_t *xfer_ranges_overlap(const xfer_ranges_t *set, const xfer_range_t *range)
{
    const size_t n = count_up_to(set, range);
    if (n > 0 && is_overlap(set->items[n - 1], range)) {
        return set->items[n - 1];
    }
    if (n < set->n && is_overlap(set->items[n], range)) {
        return set->items[n];
    }
    return NULL;
}
