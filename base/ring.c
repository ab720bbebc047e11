/* SPDX-License-Identifier: Apache-2.0 */
#include "base/ring.h"

#include <stdatomic.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/compiler.h"

/* turn == position: free for the push of that position; position + 1: filled, for its pop. */
typedef struct cell {
    atomic_size_t turn;
    void *item; /* released by turn in push, acquired by turn in pop */
} cell_t;

struct weft_ring {
    _Alignas(WEFT_CACHE_LINE) atomic_size_t tail; /* next push; shared by the producers */
    _Alignas(WEFT_CACHE_LINE) size_t head;        /* next pop; the consumer's alone */
    _Alignas(WEFT_CACHE_LINE) size_t mask;
    cell_t *cells; /* [mask + 1] */
};

weft_status_t weft_ring_create(size_t capacity, weft_ring_t **ring_out)
{
    size_t n = 2;
    while (n < capacity && n <= SIZE_MAX / 2 / sizeof(cell_t)) {
        n *= 2;
    }
    if (n < capacity) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_ring_t *ring = weft_alloc_aligned(WEFT_CACHE_LINE, sizeof(*ring), "ring");
    cell_t *cells = weft_calloc(n, sizeof(*cells), "ring.cells");
    if (ring == NULL || cells == NULL) {
        weft_free(cells);
        weft_free(ring);
        return WEFT_ERR_NO_MEMORY;
    }
    for (size_t i = 0; i < n; i++) {
        atomic_init(&cells[i].turn, i);
    }
    atomic_init(&ring->tail, 0);
    ring->head = 0;
    ring->mask = n - 1;
    ring->cells = cells;
    *ring_out = ring;
    return WEFT_OK;
}

void weft_ring_destroy(weft_ring_t *ring)
{
    if (ring != NULL) {
        weft_free(ring->cells);
        weft_free(ring);
    }
}

weft_status_t weft_ring_push(weft_ring_t *ring, void *item)
{
    size_t position = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    for (;;) {
        cell_t *cell = &ring->cells[position & ring->mask];
        const size_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
        const ptrdiff_t ahead = (ptrdiff_t)(turn - position);
        if (ahead < 0) {
            return WEFT_ERR_QUEUE_FULL; /* the pop of one round ago has not been */
        }
        if (ahead > 0) {
            position = atomic_load_explicit(&ring->tail, memory_order_relaxed);
        } else if (atomic_compare_exchange_weak_explicit(&ring->tail, &position, position + 1,
                                                         memory_order_relaxed,
                                                         memory_order_relaxed)) {
            cell->item = item;
            atomic_store_explicit(&cell->turn, position + 1, memory_order_release);
            return WEFT_OK;
        }
    }
}

void *weft_ring_pop(weft_ring_t *ring)
{
    cell_t *cell = &ring->cells[ring->head & ring->mask];
    if (atomic_load_explicit(&cell->turn, memory_order_acquire) != ring->head + 1) {
        return NULL;
    }
    void *item = cell->item;
    atomic_store_explicit(&cell->turn, ring->head + ring->mask + 1, memory_order_release);
    ring->head++;
    return item;
}
