/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "base/clock.h"
#include "transport/xfer/shm/xfer_shm_priv.h"

/* Of one call: as much as takes about a slice of time, which depends on what the caches hold. */
#define MIN_BYTES ((uint64_t)256 << 10)
#define MAX_BYTES ((uint64_t)4 << 20)

static weft_status_t status_of_errno(void)
{
    switch (errno) {
    case EFAULT:
        return WEFT_ERR_NOT_FOUND; /* the peer has taken the memory back */
    case ESRCH:
        return WEFT_ERR_PEER_GONE;
    case EPERM:
    case ENOSYS:
        return WEFT_ERR_UNSUPPORTED;
    case ENOMEM:
        return WEFT_ERR_NO_MEMORY;
    default:
        return WEFT_ERR_IO;
    }
}

static weft_status_t read_bytes(pid_t pid, uint64_t addr, void *data_out, size_t bytes)
{
    const struct iovec local = {.iov_base = data_out, .iov_len = bytes};
    const struct iovec peer = {.iov_base = (void *)(uintptr_t)addr, .iov_len = bytes};
    const ssize_t n = process_vm_readv(pid, &local, 1, &peer, 1, 0);
    if (n < 0) {
        return status_of_errno();
    }
    return (size_t)n == bytes ? WEFT_OK : WEFT_ERR_NOT_FOUND;
}

weft_status_t xfer_shm_kernel_probe(pid_t pid, uint64_t addr)
{
    char byte;
    return pid == 0 ? WEFT_ERR_UNSUPPORTED : read_bytes(pid, addr, &byte, 1);
}

weft_status_t xfer_shm_kernel_read_word(pid_t pid, uint64_t addr, uint64_t *word_out)
{
    return read_bytes(pid, addr, word_out, sizeof(*word_out));
}

typedef struct batch {
    struct iovec *local; /* [n_local] */
    struct iovec *peer;  /* [n_peer] */
    size_t n_local;
    size_t n_peer;
    uint64_t bytes;
} batch_t;

static struct iovec make_piece(uint64_t addr, uint64_t bytes)
{
    return (struct iovec){.iov_base = (void *)(uintptr_t)addr, .iov_len = (size_t)bytes};
}

/* A piece that continues the one before becomes part of it: the kernel pays by the piece. */
static void gather(const xfer_op_t *op, uint64_t max_bytes, batch_t *batch)
{
    uint64_t offset = op->offset;
    uint64_t local_end = 0;
    uint64_t peer_end = 0;
    size_t n_local = 0;
    size_t n_peer = 0;
    uint64_t total = 0;
    for (size_t i = op->position; i < op->n_extents && total < max_bytes &&
                                  n_local < XFER_SHM_MAX_PIECES && n_peer < XFER_SHM_MAX_PIECES;
         i++) {
        const xfer_extent_t *extent = &op->extents[i];
        const xfer_shm_import_t *import = op->peer_handles[extent->peer_region];
        const uint64_t left = extent->bytes - offset;
        const uint64_t bytes = left < max_bytes - total ? left : max_bytes - total;
        if (import->state != XFER_SHM_KERNEL) {
            break;
        }
        if (n_local > 0 && extent->local + offset == local_end) {
            batch->local[n_local - 1].iov_len += bytes;
        } else {
            batch->local[n_local++] = make_piece(extent->local + offset, bytes);
        }
        if (n_peer > 0 && extent->peer + offset == peer_end) {
            batch->peer[n_peer - 1].iov_len += bytes;
        } else {
            batch->peer[n_peer++] = make_piece(extent->peer + offset, bytes);
        }
        local_end = extent->local + offset + bytes;
        peer_end = extent->peer + offset + bytes;
        total += bytes;
        offset = 0;
    }
    batch->n_local = n_local;
    batch->n_peer = n_peer;
    batch->bytes = total;
}

static void advance(xfer_op_t *op, uint64_t bytes)
{
    while (bytes > 0) {
        const uint64_t left = op->extents[op->position].bytes - op->offset;
        if (bytes < left) {
            op->offset += bytes;
            return;
        }
        bytes -= left;
        op->offset = 0;
        op->position++;
    }
}

static void adapt(xfer_shm_port_t *port, uint64_t took_ns)
{
    /* Far apart: one that was interrupted does not make many small ones. */
    if (took_ns > 4 * XFER_SHM_SLICE_NS && port->kernel_bytes > MIN_BYTES) {
        port->kernel_bytes /= 2;
    } else if (took_ns < XFER_SHM_SLICE_NS && port->kernel_bytes < MAX_BYTES) {
        port->kernel_bytes *= 2;
    }
}

weft_status_t xfer_shm_kernel_move(xfer_shm_port_t *port, pid_t pid, xfer_op_t *op)
{
    batch_t batch = {.local = port->local, .peer = port->peer};
    port->kernel_bytes = port->kernel_bytes == 0 ? MAX_BYTES / 4 : port->kernel_bytes;
    gather(op, port->kernel_bytes, &batch);
    const uint64_t begin_ns = weft_clock_ns();
    const ssize_t n =
        op->direction == XFER_READ
            ? process_vm_readv(pid, batch.local, batch.n_local, batch.peer, batch.n_peer, 0)
            : process_vm_writev(pid, batch.local, batch.n_local, batch.peer, batch.n_peer, 0);
    if (n < 0) {
        return status_of_errno();
    }
    if (n == 0) {
        return WEFT_ERR_NOT_FOUND;
    }
    if (batch.bytes == port->kernel_bytes) { /* less says nothing of how much fits */
        adapt(port, weft_clock_ns() - begin_ns);
    }
    advance(op, (uint64_t)n);
    return WEFT_OK;
}
