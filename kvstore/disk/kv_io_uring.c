/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "kvstore/disk/kv_io.h"

typedef struct uring_io {
    kv_io_t base;
    int fd;
    int wake_fd;
    bool is_watching; /* a poll of wake_fd is in the ring; its completion carries no op */
    struct io_uring ring;
} uring_io_t;

static void uring_close(kv_io_t *base)
{
    if (base != NULL) {
        uring_io_t *io = (uring_io_t *)base;
        io_uring_queue_exit(&io->ring);
        close(io->wake_fd);
        weft_free(io);
    }
}

/* Kernels before 5.6 have rings without these. */
static bool can_read_and_write(struct io_uring *ring)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    const bool can = probe != NULL && io_uring_opcode_supported(probe, IORING_OP_READ) &&
                     io_uring_opcode_supported(probe, IORING_OP_WRITE);
    io_uring_free_probe(probe);
    return can;
}

static weft_status_t uring_open(int fd, uint32_t depth, kv_io_t **io_out)
{
    uring_io_t *io = weft_zalloc(sizeof(*io), "kv_io.uring");
    if (io == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    io->base.ops = &kv_io_uring;
    io->fd = fd;
    io->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    /* One more for the poll. The completion queue is twice as long, so it never overflows. */
    if (io->wake_fd < 0 || io_uring_queue_init(depth + 1, &io->ring, 0) < 0) {
        if (io->wake_fd >= 0) {
            close(io->wake_fd);
        }
        weft_free(io);
        return WEFT_ERR_UNSUPPORTED;
    }
    if (!can_read_and_write(&io->ring)) {
        uring_close(&io->base);
        return WEFT_ERR_UNSUPPORTED;
    }
    *io_out = &io->base;
    return WEFT_OK;
}

/* There is always one: depth bounds what is in flight, and every wait submits all. */
static struct io_uring_sqe *take_entry(uring_io_t *io)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&io->ring);
    if (entry == NULL) {
        abort();
    }
    return entry;
}

static void uring_start(kv_io_t *base, kv_io_op_t *op)
{
    uring_io_t *io = (uring_io_t *)base;
    struct io_uring_sqe *entry = take_entry(io);
    if (op->is_write) {
        io_uring_prep_write(entry, io->fd, op->buffer, op->bytes, op->offset);
    } else {
        io_uring_prep_read(entry, io->fd, op->buffer, op->bytes, op->offset);
    }
    io_uring_sqe_set_data(entry, op);
}

static void watch(uring_io_t *io)
{
    if (!io->is_watching) {
        struct io_uring_sqe *entry = take_entry(io);
        io_uring_prep_poll_add(entry, io->wake_fd, POLLIN);
        io_uring_sqe_set_data(entry, NULL);
        io->is_watching = true;
    }
}

static void drain(uring_io_t *io)
{
    uint64_t count;
    io->is_watching = false;
    (void)!read(io->wake_fd, &count, sizeof(count)); /* it does not sleep */
}

/* Interrupted or short of memory for the moment passes; anything else is a ring that we broke. */
static void submit(uring_io_t *io, bool may_sleep)
{
    const int status = io_uring_submit_and_wait(&io->ring, may_sleep ? 1 : 0);
    if (status < 0 && status != -EINTR && status != -EAGAIN && status != -EBUSY) {
        abort();
    }
}

static uint32_t uring_wait(kv_io_t *base, bool may_sleep, kv_io_op_t **ended, uint32_t max)
{
    uring_io_t *io = (uring_io_t *)base;
    struct io_uring_cqe *completion;
    uint32_t n = 0;
    if (may_sleep) {
        watch(io);
    }
    submit(io, may_sleep);
    while (n < max && io_uring_peek_cqe(&io->ring, &completion) == 0) {
        kv_io_op_t *op = io_uring_cqe_get_data(completion);
        if (op == NULL) {
            drain(io);
        } else {
            op->result = completion->res;
            ended[n++] = op;
        }
        io_uring_cqe_seen(&io->ring, completion);
    }
    return n;
}

static void uring_wake(kv_io_t *base)
{
    const uint64_t one = 1;
    /* It can fail only when the counter is full, which wakes as well. */
    (void)!write(((uring_io_t *)base)->wake_fd, &one, sizeof(one));
}

const kv_io_ops_t kv_io_uring = {
    .name = "uring",
    .open = uring_open,
    .close = uring_close,
    .start = uring_start,
    .wait = uring_wait,
    .wake = uring_wake,
};
