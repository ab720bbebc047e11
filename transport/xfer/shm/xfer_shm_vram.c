/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of GPUs. A port has one GPU, that whose memory was mapped first; it maps what peers export
 * and moves all that has such memory on one side. Operations wait in two lists: for their last batch,
 * or for room to begin another one.
 */
#include <sys/epoll.h>

#include "base/clock.h"
#include "transport/xfer/shm/xfer_shm_priv.h"

#define HOST_BYTES ((uint64_t)512 << 10) /* of memory that the host may have to copy, in one go */

/* ---- the port's GPU -------------------------------------------------------------------------- */

static void on_timer(xfer_shm_watch_t *what, uint32_t events)
{
    xfer_shm_port_t *port = WEFT_CONTAINER(what, xfer_shm_port_t, vram_watch);
    (void)events;
    xfer_vram_clear(port->vram);
}

weft_status_t xfer_shm_vram_open(xfer_shm_port_t *port, uint64_t device)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &port->vram_watch};
    if (port->vram != NULL) {
        return xfer_vram_device(port->vram) == device ? WEFT_OK : WEFT_ERR_UNSUPPORTED;
    }
    weft_status_t status = xfer_vram_open(device, &port->vram);
    if (status < 0) {
        return status;
    }
    port->vram_watch.on_events = on_timer;
    if (epoll_ctl(port->epoll_fd, EPOLL_CTL_ADD, xfer_vram_fd(port->vram), &event) != 0) {
        xfer_shm_vram_close(port);
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

void xfer_shm_vram_close(xfer_shm_port_t *port)
{
    xfer_vram_close(port->vram);
    port->vram = NULL;
}

/* ---- a peer's memory ------------------------------------------------------------------------- */

weft_status_t xfer_shm_vram_map(xfer_shm_import_t *import, int fd, uint64_t offset)
{
    weft_device_t *device = xfer_vram_space(import->port->vram);
    if (offset > UINT64_MAX - import->bytes) {
        return WEFT_ERR_MALFORMED;
    }
    const weft_status_t status =
        device->ops->import(device, fd, offset + import->bytes, &import->vram);
    if (status < 0) {
        return status == WEFT_ERR_MALFORMED ? status : WEFT_ERR_UNSUPPORTED;
    }
    import->base = (char *)import->vram.addr + offset;
    import->is_writable = true;
    import->state = XFER_SHM_MAPPED;
    return WEFT_OK;
}

void xfer_shm_vram_unmap(xfer_shm_import_t *import)
{
    xfer_vram_t *vram = import->port->vram;
    if (import->vram.addr != NULL) {
        xfer_vram_wait_all(vram); /* for copies that still use it */
        weft_device_t *device = xfer_vram_space(vram);
        device->ops->free(device, &import->vram);
    }
}

/* ---- moving ---------------------------------------------------------------------------------- */

bool xfer_shm_vram_has(const xfer_op_t *op, const xfer_extent_t *extent)
{
    const xfer_shm_region_t *region = op->local_handles[extent->local_region];
    const xfer_shm_import_t *import = op->peer_handles[extent->peer_region];
    return region->is_vram || import->is_vram;
}

static bool is_ours(const xfer_op_t *op)
{
    if (op->position == op->n_extents) {
        return false;
    }
    const xfer_extent_t *extent = &op->extents[op->position];
    const xfer_shm_import_t *import = op->peer_handles[extent->peer_region];
    return import->state == XFER_SHM_MAPPED && xfer_shm_vram_has(op, extent);
}

/* As much of the next extent as a batch may have of it. */
static uint64_t add_next(xfer_vram_t *vram, xfer_op_t *op, bool *is_host_out)
{
    const xfer_extent_t *extent = &op->extents[op->position];
    const xfer_shm_region_t *region = op->local_handles[extent->local_region];
    const xfer_shm_import_t *import = op->peer_handles[extent->peer_region];
    const bool is_host = !region->is_vram || !import->is_vram;
    const uint64_t most = is_host ? HOST_BYTES : XFER_VRAM_PIECE_MAX;
    const uint64_t left = extent->bytes - op->offset;
    const uint64_t bytes = left < most ? left : most;
    const uint64_t local = extent->local + op->offset;
    const uint64_t peer =
        (uint64_t)(uintptr_t)import->base + (extent->peer - import->addr) + op->offset;
    const bool is_read = op->direction == XFER_READ;
    xfer_vram_add(vram, is_read ? local : peer, is_read ? peer : local, bytes,
                  is_host ? XFER_VRAM_HOST : XFER_VRAM_DEVICE);
    op->offset += bytes;
    if (op->offset == extent->bytes) {
        op->offset = 0;
        op->position++;
    }
    *is_host_out = is_host;
    return bytes;
}

static bool may_write(const xfer_op_t *op)
{
    const xfer_shm_import_t *import = op->peer_handles[op->extents[op->position].peer_region];
    return op->direction == XFER_READ || import->is_writable;
}

/* One batch of op's next extents; there is room. */
static weft_status_t begin_batch(xfer_vram_t *vram, xfer_op_t *op)
{
    uint64_t of_host = 0;
    weft_status_t status = WEFT_OK;
    while (is_ours(op) && !xfer_vram_is_full(vram) && of_host < HOST_BYTES && status == WEFT_OK) {
        bool is_host = false;
        if (may_write(op)) {
            const uint64_t bytes = add_next(vram, op, &is_host);
            of_host += is_host ? bytes : 0;
        } else {
            status = WEFT_ERR_DENIED;
        }
    }
    op->words[XFER_SHM_BATCH] = xfer_vram_commit(vram);
    return status;
}

weft_status_t xfer_shm_vram_move(xfer_shm_port_t *port, xfer_op_t *op, uint64_t until_ns)
{
    while (is_ours(op)) {
        if (!xfer_vram_has_room(port->vram)) {
            xfer_shm_move_put(op, XFER_SHM_AT_ROOMLESS);
            return WEFT_PENDING;
        }
        const weft_status_t status = begin_batch(port->vram, op);
        if (status < 0) {
            return status;
        }
        if (is_ours(op) && weft_clock_ns() >= until_ns) {
            return WEFT_PENDING;
        }
    }
    return WEFT_OK;
}

weft_status_t xfer_shm_vram_land(xfer_shm_port_t *port, xfer_op_t *op)
{
    if (op->words[XFER_SHM_BATCH] == 0) {
        return WEFT_OK;
    }
    const weft_status_t status = xfer_vram_state(port->vram, op->words[XFER_SHM_BATCH]);
    if (status == WEFT_PENDING && op->words[XFER_SHM_PLACE] != XFER_SHM_AT_FLYING) {
        xfer_shm_move_put(op, XFER_SHM_AT_FLYING);
    }
    return status;
}

bool xfer_shm_vram_progress(xfer_shm_port_t *port)
{
    if (port->vram == NULL || !xfer_vram_poll(port->vram)) {
        return false;
    }
    for (xfer_op_t *op = port->flying.first, *next; op != NULL; op = next) {
        next = op->next;
        if (xfer_vram_state(port->vram, op->words[XFER_SHM_BATCH]) != WEFT_PENDING) {
            xfer_shm_move_put(op, XFER_SHM_AT_READY);
        }
    }
    while (port->roomless.first != NULL) { /* whose turn it is takes the room, or comes back */
        xfer_shm_move_put(port->roomless.first, XFER_SHM_AT_READY);
    }
    return true;
}
