/* SPDX-License-Identifier: Apache-2.0 */
#include <stdatomic.h>

#include "base/clock.h"
#include "transport/xfer/shm/xfer_shm_copy.h"
#include "transport/xfer/shm/xfer_shm_priv.h"

#define PIECE_BYTES ((uint64_t)256 << 10) /* copied between two looks at the clock */
#define STREAM_FROM ((uint64_t)12 << 20)  /* an op's bytes that the caches would not hold anyway */

enum { PHASE_GUARD, PHASE_DATA, PHASE_LANDING, PHASE_GUARD_AGAIN, PHASE_NOTIFY };

static xfer_op_list_t *list_of(xfer_shm_link_t *link, uint64_t place)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)link->base.port;
    switch (place) {
    case XFER_SHM_AT_WAITING:
        return &link->waiting;
    case XFER_SHM_AT_UNSENT:
        return &link->unsent;
    case XFER_SHM_AT_FLYING:
        return &port->flying;
    default:
        return &port->roomless;
    }
}

static void put(xfer_shm_link_t *link, xfer_op_t *op, uint64_t place)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)link->base.port;
    op->words[XFER_SHM_PLACE] = place;
    if (place == XFER_SHM_AT_READY) {
        xfer_op_queue_append(&port->ready, op);
    } else {
        xfer_op_list_append(list_of(link, place), op);
    }
}

static void take(xfer_shm_link_t *link, xfer_op_t *op)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)link->base.port;
    if (op->words[XFER_SHM_PLACE] == XFER_SHM_AT_READY) {
        xfer_op_queue_remove(&port->ready, op);
    } else {
        xfer_op_list_remove(list_of(link, op->words[XFER_SHM_PLACE]), op);
    }
}

void xfer_shm_move_put(xfer_op_t *op, uint64_t place)
{
    xfer_shm_link_t *link = (xfer_shm_link_t *)op->link;
    take(link, op);
    put(link, op, place);
}

static void end(xfer_op_t *op, weft_status_t status)
{
    take((xfer_shm_link_t *)op->link, op);
    xfer_op_end(op, status);
}

static weft_status_t fate(const xfer_op_t *op)
{
    return (weft_status_t)(int64_t)op->words[XFER_SHM_FATE];
}

void xfer_shm_post(xfer_link_t *base, xfer_op_t *op)
{
    xfer_shm_link_t *link = (xfer_shm_link_t *)base;
    op->link = base;
    op->position = 0;
    op->offset = 0;
    op->words[XFER_SHM_PHASE] = op->has_guard ? PHASE_GUARD : PHASE_DATA;
    op->words[XFER_SHM_BATCH] = 0;
    op->words[XFER_SHM_FATE] = WEFT_OK;
    ((xfer_shm_port_t *)base->port)->looked_ns = 0; /* first see what was taken back meanwhile */
    if (link->state == XFER_SHM_CLOSED) {
        xfer_op_end(op, WEFT_ERR_PEER_GONE);
        return;
    }
    put(link, op, link->state == XFER_SHM_OPEN ? XFER_SHM_AT_READY : XFER_SHM_AT_WAITING);
}

/* Between two slices nothing of it goes on, but for what a GPU was given. */
void xfer_shm_cancel(xfer_op_t *op)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)op->link->port;
    if (fate(op) == WEFT_OK) {
        op->words[XFER_SHM_FATE] = (uint64_t)(int64_t)WEFT_ERR_CANCELLED;
        if (xfer_shm_vram_land(port, op) != WEFT_PENDING) {
            end(op, WEFT_ERR_CANCELLED);
        }
    }
}

static xfer_op_t *first_of(const xfer_op_list_t *list, const xfer_link_t *link)
{
    xfer_op_t *op = list->first;
    while (op != NULL && op->link != link) {
        op = op->next;
    }
    return op;
}

static xfer_op_t *any_of(const xfer_shm_link_t *link)
{
    const xfer_shm_port_t *port = (const xfer_shm_port_t *)link->base.port;
    const xfer_op_list_t *const lists[] = {&link->waiting, &link->unsent, &port->flying,
                                           &port->roomless};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(lists); i++) {
        xfer_op_t *op = first_of(lists[i], &link->base);
        if (op != NULL) {
            return op;
        }
    }
    return xfer_op_queue_find(&port->ready, &link->base);
}

void xfer_shm_move_end_all(xfer_shm_link_t *link, weft_status_t status)
{
    const xfer_shm_port_t *port = (const xfer_shm_port_t *)link->base.port;
    xfer_op_t *op;
    while ((op = any_of(link)) != NULL) {
        if (op->words[XFER_SHM_BATCH] > 0) {
            (void)xfer_vram_wait(port->vram, op->words[XFER_SHM_BATCH]);
        }
        end(op, status);
    }
}

void xfer_shm_move_waiting(xfer_shm_link_t *link)
{
    while (link->waiting.first != NULL) {
        xfer_shm_move_put(link->waiting.first, XFER_SHM_AT_READY);
    }
}

/* WEFT_PENDING: it waits, for that import. */
static weft_status_t wait_for(const xfer_shm_import_t *import, xfer_op_t *op)
{
    if (import->state == XFER_SHM_LOST) {
        return import->status;
    }
    xfer_shm_move_put(op, XFER_SHM_AT_WAITING);
    return WEFT_PENDING;
}

static weft_status_t check_guard(xfer_op_t *op)
{
    const xfer_shm_import_t *import = op->guard_handle;
    uint64_t word;
    if (import->state == XFER_SHM_MAPPED) {
        const char *at = import->base + (op->guard.addr - import->addr);
        word =
            atomic_load_explicit((const _Atomic uint64_t *)(const void *)at, memory_order_acquire);
    } else if (import->state == XFER_SHM_KERNEL) {
        const weft_status_t status =
            xfer_shm_kernel_read_word(import->link->pid, op->guard.addr, &word);
        if (status < 0) {
            return status;
        }
        atomic_thread_fence(memory_order_acquire);
    } else {
        return wait_for(import, op);
    }
    return word == op->guard.expected ? WEFT_OK : WEFT_ERR_STALE;
}

/* Where an extent's bytes are on both sides, from offset on. The import is mapped. */
static xfer_shm_next_t place_extent(const xfer_op_t *op, const xfer_extent_t *extent,
                                    uint64_t offset)
{
    const xfer_shm_import_t *import = op->peer_handles[extent->peer_region];
    char *local = (char *)(uintptr_t)extent->local + offset;
    char *peer = import->base + (extent->peer - import->addr) + offset;
    return op->direction == XFER_READ ? (xfer_shm_next_t){.dst = local, .src = peer}
                                      : (xfer_shm_next_t){.dst = peer, .src = local};
}

/* OK: can be copied here. NOT_FOUND: is of another kind. */
static weft_status_t check_mapped(const xfer_op_t *op, size_t position)
{
    if (position == op->n_extents) {
        return WEFT_ERR_NOT_FOUND;
    }
    const xfer_extent_t *extent = &op->extents[position];
    const xfer_shm_import_t *import = op->peer_handles[extent->peer_region];
    if (import->state != XFER_SHM_MAPPED || xfer_shm_vram_has(op, extent)) {
        return WEFT_ERR_NOT_FOUND;
    }
    return op->direction == XFER_READ || import->is_writable ? WEFT_OK : WEFT_ERR_DENIED;
}

/* Mapped extents from here on, until another kind follows (OK) or time is up (PENDING). */
static weft_status_t move_mapped(xfer_op_t *op, uint64_t until_ns)
{
    const bool is_streamed = op->bytes >= STREAM_FROM;
    weft_status_t status = check_mapped(op, op->position);
    uint64_t unclocked = 0;
    while (status == WEFT_OK) {
        const xfer_extent_t *extent = &op->extents[op->position];
        const xfer_shm_next_t now = place_extent(op, extent, op->offset);
        const uint64_t left = extent->bytes - op->offset;
        const uint64_t bytes = left < PIECE_BYTES ? left : PIECE_BYTES;
        op->offset += bytes;
        if (op->offset == extent->bytes) {
            op->offset = 0;
            op->position++;
            status = check_mapped(op, op->position);
        }
        const xfer_shm_next_t next =
            status == WEFT_OK ? place_extent(op, &op->extents[op->position], op->offset) : now;
        if (is_streamed) {
            xfer_shm_copy_streamed(now.dst, now.src, bytes, next);
        } else {
            xfer_shm_copy(now.dst, now.src, bytes, next);
        }
        unclocked += bytes;
        if (unclocked >= PIECE_BYTES && status == WEFT_OK) {
            unclocked = 0;
            if (weft_clock_ns() >= until_ns) {
                return WEFT_PENDING;
            }
        }
    }
    return status == WEFT_ERR_NOT_FOUND ? WEFT_OK : status;
}

static weft_status_t move_data(xfer_shm_port_t *port, xfer_op_t *op, uint64_t until_ns)
{
    while (op->position < op->n_extents) {
        const xfer_extent_t *extent = &op->extents[op->position];
        const xfer_shm_import_t *import = op->peer_handles[extent->peer_region];
        weft_status_t status;
        if (import->state == XFER_SHM_MAPPED && xfer_shm_vram_has(op, extent)) {
            status = xfer_shm_vram_move(port, op, until_ns);
        } else if (import->state == XFER_SHM_MAPPED) {
            status = move_mapped(op, until_ns);
        } else if (import->state == XFER_SHM_KERNEL && xfer_shm_vram_has(op, extent)) {
            status = WEFT_ERR_UNSUPPORTED; /* the device cannot reach it */
        } else if (import->state == XFER_SHM_KERNEL) {
            status = xfer_shm_kernel_move(port, import->link->pid, op);
            if (status == WEFT_OK && op->position < op->n_extents && weft_clock_ns() >= until_ns) {
                status = WEFT_PENDING;
            }
        } else {
            status = wait_for(import, op);
        }
        if (status != WEFT_OK) {
            return status;
        }
    }
    return WEFT_OK;
}

static weft_status_t send_notification(xfer_op_t *op)
{
    xfer_shm_link_t *link = (xfer_shm_link_t *)op->link;
    if (op->notification == NULL) {
        return WEFT_OK;
    }
    const xfer_shm_frame_t note = xfer_shm_frame(XFER_SHM_NOTE, 0, op->notification_bytes);
    const weft_status_t status = xfer_shm_conn_try(&link->conn, &note, op->notification, -1);
    if (status == WEFT_PENDING) {
        xfer_shm_move_put(op, XFER_SHM_AT_UNSENT);
    }
    return status;
}

/* WEFT_PENDING: it goes on later, from where it stands. */
static weft_status_t move_on(xfer_shm_port_t *port, xfer_op_t *op, uint64_t until_ns)
{
    weft_status_t status;
    if (fate(op) != WEFT_OK) {
        status = xfer_shm_vram_land(port, op);
        return status == WEFT_PENDING ? status : fate(op);
    }
    if (op->words[XFER_SHM_PHASE] == PHASE_GUARD) {
        status = check_guard(op);
        if (status != WEFT_OK) {
            return status;
        }
        op->words[XFER_SHM_PHASE] = PHASE_DATA;
    }
    if (op->words[XFER_SHM_PHASE] == PHASE_DATA) {
        status = move_data(port, op, until_ns);
        if (status != WEFT_OK) {
            return status;
        }
        op->words[XFER_SHM_PHASE] = PHASE_LANDING;
    }
    if (op->words[XFER_SHM_PHASE] == PHASE_LANDING) {
        status = xfer_shm_vram_land(port, op);
        if (status != WEFT_OK) {
            return status;
        }
        /* Data before the second look at the guard, and before the word that they are there. */
        atomic_thread_fence(memory_order_seq_cst);
        op->words[XFER_SHM_PHASE] = op->has_guard ? PHASE_GUARD_AGAIN : PHASE_NOTIFY;
    }
    if (op->words[XFER_SHM_PHASE] == PHASE_GUARD_AGAIN) {
        status = check_guard(op);
        if (status != WEFT_OK) {
            return status;
        }
        op->words[XFER_SHM_PHASE] = PHASE_NOTIFY;
    }
    return send_notification(op);
}

bool xfer_shm_move(xfer_shm_port_t *port, uint64_t until_ns)
{
    xfer_op_t *op = xfer_op_queue_first(&port->ready);
    if (op == NULL) {
        return false;
    }
    do {
        weft_status_t status = move_on(port, op, until_ns);
        if (status < 0 && xfer_shm_vram_land(port, op) == WEFT_PENDING) {
            op->words[XFER_SHM_FATE] = (uint64_t)(int64_t)status;
            status = WEFT_PENDING;
        }
        if (status != WEFT_PENDING) {
            end(op, status);
        }
        op = xfer_op_queue_first(&port->ready);
    } while (op != NULL && weft_clock_ns() < until_ns);
    return true;
}

void xfer_shm_move_unsent(xfer_shm_link_t *link)
{
    while (link->unsent.first != NULL) {
        /* Whose turn it is sends it, or puts it back. */
        xfer_shm_move_put(link->unsent.first, XFER_SHM_AT_READY);
    }
}
