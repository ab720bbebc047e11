/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "kvstore/disk/kv_io.h"

typedef struct queue {
    kv_io_op_t *first;
    kv_io_op_t **end; /* where the next one goes */
} queue_t;

typedef struct pread_io {
    kv_io_t base;
    int fd;
    int wake_fd;
    queue_t reads; /* before writes: somebody waits for them */
    queue_t writes;
} pread_io_t;

static void pread_close(kv_io_t *base)
{
    if (base != NULL) {
        close(((pread_io_t *)base)->wake_fd);
        weft_free(base);
    }
}

static weft_status_t pread_open(int fd, uint32_t depth, kv_io_t **io_out)
{
    (void)depth;
    const int wake_fd = eventfd(0, EFD_CLOEXEC);
    if (wake_fd < 0) {
        return WEFT_ERR_UNSUPPORTED;
    }
    pread_io_t *io = weft_zalloc(sizeof(*io), "kv_io.pread");
    if (io == NULL) {
        close(wake_fd);
        return WEFT_ERR_NO_MEMORY;
    }
    io->base.ops = &kv_io_pread;
    io->fd = fd;
    io->wake_fd = wake_fd;
    io->reads.end = &io->reads.first;
    io->writes.end = &io->writes.first;
    *io_out = &io->base;
    return WEFT_OK;
}

static void pread_start(kv_io_t *base, kv_io_op_t *op)
{
    pread_io_t *io = (pread_io_t *)base;
    queue_t *queue = op->is_write ? &io->writes : &io->reads;
    op->next = NULL;
    *queue->end = op;
    queue->end = &op->next;
}

static kv_io_op_t *take(queue_t *queue)
{
    kv_io_op_t *op = queue->first;
    if (op != NULL) {
        queue->first = op->next;
        queue->end = queue->first == NULL ? &queue->first : queue->end;
    }
    return op;
}

static void carry_out(const pread_io_t *io, kv_io_op_t *op)
{
    ssize_t done;
    do {
        done = op->is_write ? pwrite(io->fd, op->buffer, op->bytes, (off_t)op->offset)
                            : pread(io->fd, op->buffer, op->bytes, (off_t)op->offset);
    } while (done < 0 && errno == EINTR);
    op->result = done < 0 ? -errno : (int32_t)done;
}

/* One at a time, so that what ended is reported before the next one takes its time. */
static uint32_t pread_wait(kv_io_t *base, bool may_sleep, kv_io_op_t **ended, uint32_t max)
{
    pread_io_t *io = (pread_io_t *)base;
    kv_io_op_t *op = max == 0 ? NULL : take(&io->reads);
    if (op == NULL && max > 0) {
        op = take(&io->writes);
    }
    if (op != NULL) {
        carry_out(io, op);
        ended[0] = op;
        return 1;
    }
    uint64_t count;
    if (may_sleep && read(io->wake_fd, &count, sizeof(count)) < 0) {
        return 0; /* interrupted; the caller looks around and comes again */
    }
    return 0;
}

static void pread_wake(kv_io_t *base)
{
    const uint64_t one = 1;
    /* It can fail only when the counter is full, which wakes as well. */
    (void)!write(((pread_io_t *)base)->wake_fd, &one, sizeof(one));
}

const kv_io_ops_t kv_io_pread = {
    .name = "pread",
    .open = pread_open,
    .close = pread_close,
    .start = pread_start,
    .wait = pread_wait,
    .wake = pread_wake,
};
