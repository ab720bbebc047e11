/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/faulty_io.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "base/alloc.h"

faulty_io_plan_t faulty_io_plan;

typedef struct faulty {
    kv_io_t base;
    int fd;
    uint32_t n_reads;
    uint32_t n_writes;
    kv_io_op_t *first;
    kv_io_op_t **end;
    kv_io_t *sleeper; /* a pread row without work: it sleeps and is woken */
} faulty_t;

static faulty_t *opened;

static weft_status_t faulty_open(int fd, uint32_t depth, kv_io_t **io_out)
{
    faulty_t *io = weft_zalloc(sizeof(*io), "faulty_io");
    if (io == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const weft_status_t status = kv_io_pread.open(fd, depth, &io->sleeper);
    if (status < 0) {
        weft_free(io);
        return status;
    }
    io->base.ops = &kv_io_faulty;
    io->fd = fd;
    io->end = &io->first;
    opened = io;
    *io_out = &io->base;
    return WEFT_OK;
}

static void faulty_close(kv_io_t *base)
{
    if (base != NULL) {
        kv_io_pread.close(((faulty_t *)base)->sleeper);
        weft_free(base);
        opened = NULL;
    }
}

static void faulty_start(kv_io_t *base, kv_io_op_t *op)
{
    faulty_t *io = (faulty_t *)base;
    op->next = NULL;
    *io->end = op;
    io->end = &op->next;
}

static int32_t write_op(faulty_t *io, const kv_io_op_t *op, size_t bytes)
{
    const uint32_t number = ++io->n_writes;
    if (number == faulty_io_plan.fail_write) {
        return -faulty_io_plan.error;
    }
    const bool is_torn = number == faulty_io_plan.tear_write;
    const ssize_t n =
        pwrite(io->fd, op->buffer, is_torn ? bytes / 2 / 4096 * 4096 : bytes, (off_t)op->offset);
    if (is_torn && faulty_io_plan.dies) {
        kill(getpid(), SIGKILL);
    }
    return n < 0 ? -errno : is_torn ? (int32_t)bytes : (int32_t)n;
}

static int32_t read_op(faulty_t *io, const kv_io_op_t *op, size_t bytes)
{
    if (++io->n_reads == faulty_io_plan.fail_read) {
        return -faulty_io_plan.error;
    }
    const ssize_t n = pread(io->fd, op->buffer, bytes, (off_t)op->offset);
    return n < 0 ? -errno : (int32_t)n;
}

static uint32_t faulty_wait(kv_io_t *base, bool may_sleep, kv_io_op_t **ended, uint32_t max)
{
    faulty_t *io = (faulty_t *)base;
    kv_io_op_t *op = io->first;
    if (op == NULL || max == 0 || atomic_load(&faulty_io_plan.is_holding)) {
        return kv_io_pread.wait(io->sleeper, may_sleep, ended, max);
    }
    io->first = op->next;
    io->end = io->first == NULL ? &io->first : io->end;
    const size_t bytes = faulty_io_plan.is_short && op->bytes > 4096 ? 4096 : op->bytes;
    op->result = op->is_write ? write_op(io, op, bytes) : read_op(io, op, bytes);
    ended[0] = op;
    return 1;
}

static void faulty_wake(kv_io_t *base)
{
    kv_io_pread.wake(((faulty_t *)base)->sleeper);
}

void faulty_io_release(void)
{
    atomic_store(&faulty_io_plan.is_holding, false);
    faulty_wake(&opened->base);
}

const kv_io_ops_t kv_io_faulty = {
    .name = "faulty",
    .open = faulty_open,
    .close = faulty_close,
    .start = faulty_start,
    .wait = faulty_wait,
    .wake = faulty_wake,
};
