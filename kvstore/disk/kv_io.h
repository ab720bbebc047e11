/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_io: reads and writes of one file, many at a time, as a table of functions.
 *
 * Rows: uring (io_uring: the kernel works on all of them at once), pread (pread and pwrite, one
 * after the other, in wait: the caller's thread is theirs).
 *
 * Threads  all but wake: one thread
 * Memory   all made at open
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct kv_io kv_io_t;

/* Belongs to the row from start until wait gives it back. */
typedef struct kv_io_op {
    bool is_write;
    uint32_t bytes;
    uint64_t offset;
    void *buffer;   /* [bytes]; aligned as the file asks for */
    int32_t result; /* how many bytes, which may be fewer; or -errno */
    struct kv_io_op *next;
} kv_io_op_t;

typedef struct kv_io_ops {
    const char *name;

    /* fd: borrowed. depth: at most so many are started and not given back.
     * WEFT_ERR_UNSUPPORTED: not on this machine, take another row. */
    weft_status_t (*open)(int fd, uint32_t depth, kv_io_t **io_out);
    void (*close)(kv_io_t *io); /* nothing is in flight; NULL is fine */

    void (*start)(kv_io_t *io, kv_io_op_t *op); /* sleeps never */
    /* How many ended ones were written to ended [max]. may_sleep: until there is one, or wake. */
    uint32_t (*wait)(kv_io_t *io, bool may_sleep, kv_io_op_t **ended, uint32_t max);
    void (*wake)(kv_io_t *io); /* any thread: a wait that sleeps, or the next that would, returns */
} kv_io_ops_t;

/* The base of every row's struct. */
struct kv_io {
    const kv_io_ops_t *ops;
};

extern const kv_io_ops_t kv_io_uring;
extern const kv_io_ops_t kv_io_pread;
