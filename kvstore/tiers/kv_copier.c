/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/tiers/kv_copier.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "base/alloc.h"
#include "base/clock.h"

#define MAX_AT_ONCE 32 /* enqueued; a queue remembers more events than these */

typedef struct copy {
    void *dst;
    const void *src;
    size_t bytes;
    kv_copier_done_t done;
} copy_t;

/* Copies lie in one circle: polled ≤ finished ≤ posted; all three only grow. */
struct kv_copier {
    kv_copier_config_t config;
    weft_queue_t *queue;
    pthread_t thread;
    bool is_started;
    sem_t work; /* counts posts, and the wish to stop */
    atomic_bool is_stopping;
    uint64_t polled;
    atomic_uint_fast64_t posted;   /* released by post, acquired by the thread */
    atomic_uint_fast64_t finished; /* released by the thread, acquired by poll */
    copy_t *copies;                /* [max_copies] */
};

static copy_t *copy_at(kv_copier_t *copier, uint64_t count)
{
    return &copier->copies[count % copier->config.max_copies];
}

/*
 * A GPU gets all that is posted, so that it need not wait for us between two copies; a host copies while
 * we enqueue.
 */
static uint64_t enqueue(kv_copier_t *copier, uint64_t first, uint64_t end,
                        weft_event_t *events[MAX_AT_ONCE])
{
    const weft_device_ops_t *ops = copier->config.device->ops;
    const uint64_t most = ops->is_host ? 1 : MAX_AT_ONCE;
    const uint64_t n = end - first < most ? end - first : most;
    for (uint64_t i = 0; i < n; i++) {
        const copy_t *copy = copy_at(copier, first + i);
        ops->copy(copier->queue, copy->dst, copy->src, copy->bytes);
        events[i] = ops->record(copier->queue);
    }
    return n;
}

/* Those of [first, end) that are done at once; how many they were. */
static uint64_t do_copies(kv_copier_t *copier, uint64_t first, uint64_t end)
{
    weft_event_t *events[MAX_AT_ONCE];
    uint64_t begun = weft_clock_ns();
    const uint64_t n = enqueue(copier, first, end, events);
    for (uint64_t i = 0; i < n; i++) {
        copy_t *copy = copy_at(copier, first + i);
        copy->done.status = copier->config.device->ops->wait(events[i]);
        const uint64_t ended = weft_clock_ns();
        copy->done.copy_ns = ended - begun;
        begun = ended;
        atomic_store_explicit(&copier->finished, first + i + 1, memory_order_release);
        copier->config.wake(copier->config.user);
    }
    return n;
}

static void *run(void *arg)
{
    kv_copier_t *copier = arg;
    uint64_t next = 0;
    for (;;) {
        while (sem_wait(&copier->work) != 0) {
        }
        const uint64_t posted = atomic_load_explicit(&copier->posted, memory_order_acquire);
        if (next == posted) { /* done with one before it, or there is none to come */
            if (atomic_load(&copier->is_stopping)) {
                return NULL;
            }
            continue;
        }
        next += do_copies(copier, next, posted);
    }
}

weft_status_t kv_copier_create(const kv_copier_config_t *config, kv_copier_t **copier_out)
{
    kv_copier_t *copier = weft_zalloc(sizeof(*copier), "kv_copier.copier");
    if (copier == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    copier->config = *config;
    (void)sem_init(&copier->work, 0, 0); /* fails only for a value that is too large */
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    copier->copies = weft_calloc(config->max_copies, sizeof(copy_t), "kv_copier.copies");
    if (copier->copies == NULL) {
        goto cleanup;
    }
    status = config->device->ops->open_queue(config->device, &copier->queue);
    if (status < 0) {
        goto cleanup;
    }
    if (pthread_create(&copier->thread, NULL, run, copier) != 0) {
        status = WEFT_ERR_NO_MEMORY;
        goto cleanup;
    }
    copier->is_started = true;
    *copier_out = copier;
    copier = NULL; /* the caller owns it now */

cleanup:
    kv_copier_destroy(copier);
    return status;
}

void kv_copier_destroy(kv_copier_t *copier)
{
    if (copier == NULL) {
        return;
    }
    if (copier->is_started) {
        atomic_store(&copier->is_stopping, true);
        sem_post(&copier->work);
        pthread_join(copier->thread, NULL);
    }
    if (copier->queue != NULL) {
        copier->config.device->ops->close_queue(copier->queue);
    }
    sem_destroy(&copier->work);
    weft_free(copier->copies);
    weft_free(copier);
}

weft_status_t kv_copier_post(kv_copier_t *copier, void *dst, const void *src, size_t bytes,
                             void *tag)
{
    const uint64_t posted = atomic_load_explicit(&copier->posted, memory_order_relaxed);
    if (posted - copier->polled == copier->config.max_copies) {
        return WEFT_ERR_QUEUE_FULL;
    }
    *copy_at(copier, posted) =
        (copy_t){.dst = dst, .src = src, .bytes = bytes, .done = {.tag = tag}};
    atomic_store_explicit(&copier->posted, posted + 1, memory_order_release);
    sem_post(&copier->work);
    return WEFT_OK;
}

bool kv_copier_poll(kv_copier_t *copier, kv_copier_done_t *done_out)
{
    if (copier->polled == atomic_load_explicit(&copier->finished, memory_order_acquire)) {
        return false;
    }
    *done_out = copy_at(copier, copier->polled)->done;
    copier->polled++;
    return true;
}
