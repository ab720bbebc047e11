/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_disk_worker: the thread of a disk tier: seals, writes, reads, checks, keeps the journal.
 *
 * The first error of the disk, or of the journal, turns it off for good, with one warning: what is
 * posted then comes back with WEFT_ERR_IO. A block that is not what was put is no error of the disk:
 * its job ends with WEFT_ERR_MALFORMED, and the journal no longer has it.
 *
 * Threads  post, take, clear, is_off: one thread, the engine's
 * Memory   all made at start; jobs are the engine's, each out at most once
 */
#pragma once

#include "base/device.h"
#include "kvstore/disk/kv_io.h"
#include "kvstore/disk/kv_journal.h"

typedef struct kv_disk_worker kv_disk_worker_t;

/* The worker's from post to take. */
typedef struct kv_disk_job {
    kv_io_op_t op; /* the worker's; is_write says what is wanted */
    kv_disk_slot_name_t slot;
    uint8_t
        *data; /* [slot_bytes], aligned: a page for the header, then the content to be written */
    kv_name_t name;  /* writes: for the journal; its tokens are these: */
    int32_t *tokens; /* [block_tokens] */
    void *dst;       /* reads: [block_bytes] of the device */
    weft_status_t status;
    uint64_t taken_ns; /* when the worker had it */
    uint64_t busy_ns;  /* its share of the worker's time: what went on beside it counts for that */
    /* The owner's: */
    struct kv_disk_job *next;
    uint64_t posted_ns;
    void *tag;
} kv_disk_job_t;

typedef struct kv_disk_worker_config {
    int fd; /* of the slots; borrowed, so for each */
    const char *path;
    kv_disk_identity_t identity;
    kv_journal_t *journal; /* the worker's until stop */
    weft_device_t *device;
    const kv_io_ops_t *io;
    uint32_t max_jobs; /* out at a time */
    void (*wake)(void *user);
    void *user;
} kv_disk_worker_config_t;

/* WEFT_ERR_UNSUPPORTED: io does not work on this machine. */
weft_status_t kv_disk_worker_start(const kv_disk_worker_config_t *config,
                                   kv_disk_worker_t **worker_out);
void kv_disk_worker_stop(
    kv_disk_worker_t *worker); /* what was posted is done first; NULL is fine */

void kv_disk_worker_post(kv_disk_worker_t *worker, kv_disk_job_t *job);
kv_disk_job_t *kv_disk_worker_take(kv_disk_worker_t *worker); /* one that ended; NULL: none */
/* The journal forgets what has a lower generation, jobs under way included. */
void kv_disk_worker_clear(kv_disk_worker_t *worker, uint64_t below_generation);
bool kv_disk_worker_is_off(const kv_disk_worker_t *worker);
