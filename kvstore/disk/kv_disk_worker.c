/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/disk/kv_disk_worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/ring.h"

#define WEFT_LOG_MODULE "kvstore"
#include "base/log.h"

/* Jobs taken, and ends looked at, before the others get their turn. */
enum { BATCH = 8 };

struct kv_disk_worker {
    kv_disk_worker_config_t config;
    pthread_t thread;
    bool is_started;
    kv_io_t *io;
    weft_queue_t *queue;
    weft_ring_t *posted;
    weft_ring_t *ended;
    /*
     * How the thread sleeps without missing a call: it notes n_calls, does what there is to do, says
     * that it sleeps and looks at n_calls again. A caller counts its call first and looks whether
     * the thread sleeps then. All of these are sequentially consistent, so one of them sees the other.
     */
    atomic_uint_fast64_t n_calls;
    atomic_bool is_asleep;
    atomic_bool is_stopping;
    atomic_uint_fast64_t clear_below; /* set by clear, acted on by the thread */
    atomic_bool is_off;               /* set by the thread */
    /* The thread's alone: */
    uint64_t cleared_below;
    uint32_t n_flying; /* started with io */
    uint64_t last_end_ns;
};

/* ---- the engine's side ----------------------------------------------------------------------- */

static void call(kv_disk_worker_t *worker)
{
    atomic_fetch_add(&worker->n_calls, 1);
    if (atomic_exchange(&worker->is_asleep, false)) {
        worker->io->ops->wake(worker->io);
    }
}

void kv_disk_worker_post(kv_disk_worker_t *worker, kv_disk_job_t *job)
{
    (void)weft_ring_push(worker->posted, job); /* as long as max_jobs, so there is room */
    call(worker);
}

kv_disk_job_t *kv_disk_worker_take(kv_disk_worker_t *worker)
{
    return weft_ring_pop(worker->ended);
}

void kv_disk_worker_clear(kv_disk_worker_t *worker, uint64_t below_generation)
{
    atomic_store(&worker->clear_below, below_generation);
    call(worker);
}

bool kv_disk_worker_is_off(const kv_disk_worker_t *worker)
{
    return atomic_load_explicit(&worker->is_off, memory_order_acquire);
}

/* ---- ends ------------------------------------------------------------------------------------- */

static bool is_off(const kv_disk_worker_t *worker)
{
    return atomic_load_explicit(&worker->is_off,
                                memory_order_relaxed); /* this thread's own store */
}

static void wake_owner(const kv_disk_worker_t *worker)
{
    if (worker->config.wake != NULL) {
        worker->config.wake(worker->config.user);
    }
}

static void turn_off(kv_disk_worker_t *worker, const char *what, int cause)
{
    if (!is_off(worker)) {
        weft_log_warn("disk tier is off, requests go on without it: path=%s cause=\"%s: %s\"",
                      worker->config.path, what, strerror(cause));
        atomic_store_explicit(&worker->is_off, true, memory_order_release);
        wake_owner(worker);
    }
}

static void report(kv_disk_worker_t *worker, kv_disk_job_t *const *jobs, uint32_t n)
{
    if (n == 0) {
        return;
    }
    const uint64_t now = weft_clock_ns();
    for (uint32_t i = 0; i < n; i++) {
        kv_disk_job_t *job = jobs[i];
        const bool has_waited = job->taken_ns < worker->last_end_ns;
        job->busy_ns = (now - (has_waited ? worker->last_end_ns : job->taken_ns)) / n;
        (void)weft_ring_push(worker->ended, job); /* as long as max_jobs */
    }
    worker->last_end_ns = now;
    wake_owner(worker);
}

static void finish_write(kv_disk_worker_t *worker, kv_disk_job_t *job)
{
    kv_journal_stored(worker->config.journal, job->slot.slot, job->slot.generation, &job->name);
    job->status = WEFT_OK;
}

static void finish_read(kv_disk_worker_t *worker, kv_disk_job_t *job)
{
    const kv_disk_identity_t *identity = &worker->config.identity;
    if (!kv_disk_slot_is_whole(identity, &job->slot, job->data)) {
        kv_journal_removed(worker->config.journal, job->slot.slot);
        job->status = WEFT_ERR_MALFORMED;
        return;
    }
    worker->config.device->ops->copy(worker->queue, job->dst, job->data + KV_DISK_PAGE_BYTES,
                                     identity->block_bytes);
    job->status = WEFT_OK;
}

/* False: it goes on, the disk has done a part. */
static bool is_over(kv_disk_worker_t *worker, kv_disk_job_t *job)
{
    kv_io_op_t *op = &job->op;
    const char *what = op->is_write ? "write" : "read";
    if (op->result == -EINTR || op->result == -EAGAIN) {
        op->result = 0;
    } else if (op->result < 0) {
        turn_off(worker, what, -op->result);
    } else if (op->result < KV_DISK_PAGE_BYTES) {
        turn_off(worker, op->is_write ? what : "read behind the end: the file was cut", EIO);
    }
    if ((uint32_t)op->result == op->bytes || is_off(worker)) {
        return true;
    }
    /* O_DIRECT goes on at whole pages. */
    const uint32_t done = (uint32_t)op->result / KV_DISK_PAGE_BYTES * KV_DISK_PAGE_BYTES;
    op->buffer = (uint8_t *)op->buffer + done;
    op->offset += done;
    op->bytes -= done;
    worker->io->ops->start(worker->io, op);
    return false;
}

/* Nothing is reported before the journal says so, and copies are done. */
static void finish_all(kv_disk_worker_t *worker, kv_disk_job_t *const *jobs, uint32_t n)
{
    for (uint32_t i = 0; i < n && !is_off(worker); i++) {
        if (jobs[i]->op.is_write) {
            finish_write(worker, jobs[i]);
        } else {
            finish_read(worker, jobs[i]);
        }
    }
    if (!is_off(worker) && kv_journal_flush(worker->config.journal) < 0) {
        turn_off(worker, "journal", kv_journal_errno(worker->config.journal));
    }
    const weft_status_t copied = worker->config.device->ops->sync(worker->queue);
    for (uint32_t i = 0; i < n; i++) {
        if (is_off(worker)) {
            jobs[i]->status = WEFT_ERR_IO;
        } else if (copied < 0 && !jobs[i]->op.is_write) {
            jobs[i]->status = copied;
        }
    }
    report(worker, jobs, n);
}

static void take_ended(kv_disk_worker_t *worker, bool may_sleep)
{
    kv_io_op_t *ended[BATCH];
    kv_disk_job_t *jobs[BATCH];
    uint32_t n_jobs = 0;
    const uint32_t n = worker->io->ops->wait(worker->io, may_sleep, ended, BATCH);
    for (uint32_t i = 0; i < n; i++) {
        kv_disk_job_t *job = WEFT_CONTAINER(ended[i], kv_disk_job_t, op);
        if (is_over(worker, job)) {
            jobs[n_jobs++] = job;
        }
    }
    worker->n_flying -= n_jobs;
    if (n_jobs > 0) {
        finish_all(worker, jobs, n_jobs);
    }
}

/* ---- beginnings ------------------------------------------------------------------------------- */

static void prepare(kv_disk_worker_t *worker, kv_disk_job_t *job)
{
    const size_t slot_bytes = kv_disk_slot_bytes(worker->config.identity.block_bytes);
    job->taken_ns = weft_clock_ns();
    job->op.buffer = job->data;
    job->op.bytes = (uint32_t)slot_bytes;
    job->op.offset = (uint64_t)job->slot.slot * slot_bytes;
    if (job->op.is_write && !is_off(worker)) {
        kv_disk_slot_seal(&worker->config.identity, &job->slot, job->data);
        kv_journal_begin(worker->config.journal, job->slot.slot);
    }
}

static void start(kv_disk_worker_t *worker, kv_disk_job_t *const *jobs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        prepare(worker, jobs[i]);
    }
    /* The journal says that slots change before they do. */
    if (!is_off(worker) && kv_journal_flush(worker->config.journal) < 0) {
        turn_off(worker, "journal", kv_journal_errno(worker->config.journal));
    }
    if (is_off(worker)) {
        finish_all(worker, jobs, n);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        worker->io->ops->start(worker->io, &jobs[i]->op);
    }
    worker->n_flying += n;
}

static void clear_if_called(kv_disk_worker_t *worker)
{
    const uint64_t below = atomic_load(&worker->clear_below);
    if (below != worker->cleared_below) {
        worker->cleared_below = below;
        kv_journal_clear(worker->config.journal, below);
        (void)kv_journal_flush(worker->config.journal); /* its error is seen with the next job */
    }
}

/* True: there may be more. */
static bool take_posted(kv_disk_worker_t *worker)
{
    kv_disk_job_t *jobs[BATCH];
    uint32_t n = 0;
    while (n < BATCH) {
        kv_disk_job_t *job = weft_ring_pop(worker->posted);
        if (job == NULL) {
            break;
        }
        jobs[n++] = job;
    }
    start(worker, jobs, n);
    return n == BATCH;
}

static void tidy(kv_disk_worker_t *worker)
{
    if (!is_off(worker) && kv_journal_tidy(worker->config.journal) < 0) {
        turn_off(worker, "journal", kv_journal_errno(worker->config.journal));
    }
}

static void *run(void *user)
{
    kv_disk_worker_t *worker = user;
    for (;;) {
        const uint64_t n_calls = atomic_load(&worker->n_calls);
        const bool is_stopping = atomic_load(&worker->is_stopping);
        clear_if_called(worker);
        const bool is_more = take_posted(worker);
        if (is_stopping && !is_more && worker->n_flying == 0) {
            return NULL;
        }
        tidy(worker);
        atomic_store(&worker->is_asleep, true);
        const bool may_sleep = !is_more && atomic_load(&worker->n_calls) == n_calls;
        take_ended(worker, may_sleep);
        atomic_store(&worker->is_asleep, false);
    }
}

/* ---- start and stop --------------------------------------------------------------------------- */

/* It takes no signals: those are for the loops. SIGXFSZ is one: a write past the process's limit
 * for files becomes an error like others. */
static weft_status_t start_thread(kv_disk_worker_t *worker)
{
    sigset_t every;
    sigset_t before;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    worker->is_started = pthread_create(&worker->thread, NULL, run, worker) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!worker->is_started) {
        return WEFT_ERR_NO_MEMORY;
    }
    pthread_setname_np(worker->thread, "weft-kv-disk");
    return WEFT_OK;
}

weft_status_t kv_disk_worker_start(const kv_disk_worker_config_t *config,
                                   kv_disk_worker_t **worker_out)
{
    kv_disk_worker_t *worker = weft_zalloc(sizeof(*worker), "kv_disk_worker.worker");
    if (worker == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    worker->config = *config;
    weft_status_t status = config->io->open(config->fd, config->max_jobs, &worker->io);
    if (status == WEFT_OK) {
        status = weft_ring_create(config->max_jobs, &worker->posted);
    }
    if (status == WEFT_OK) {
        status = weft_ring_create(config->max_jobs, &worker->ended);
    }
    if (status == WEFT_OK) {
        status = config->device->ops->open_queue(config->device, &worker->queue);
    }
    if (status == WEFT_OK) {
        status = start_thread(worker);
    }
    if (status < 0) {
        kv_disk_worker_stop(worker);
        return status;
    }
    *worker_out = worker;
    return WEFT_OK;
}

void kv_disk_worker_stop(kv_disk_worker_t *worker)
{
    if (worker == NULL) {
        return;
    }
    if (worker->is_started) {
        atomic_store(&worker->is_stopping, true);
        call(worker);
        pthread_join(worker->thread, NULL);
    }
    if (worker->queue != NULL) {
        worker->config.device->ops->close_queue(worker->queue);
    }
    if (worker->io != NULL) {
        worker->io->ops->close(worker->io);
    }
    weft_ring_destroy(worker->ended);
    weft_ring_destroy(worker->posted);
    weft_free(worker);
}
