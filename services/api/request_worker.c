/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/request_worker.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "services/api/api_routes.h"

#define SMALL_BODY_BYTES (256 * 1024)

typedef struct call_queue {
    api_call_t *first;
    api_call_t *last;
} call_queue_t;

typedef struct worker {
    request_workers_t *pool;
    pthread_t thread;
    bool is_started;
    bool takes_large;
} worker_t;

struct request_workers {
    request_workers_config_t config;
    pthread_mutex_t lock;
    pthread_cond_t has_work;
    call_queue_t small; /* guarded by lock, so for the next five */
    call_queue_t large;
    call_queue_t done;
    uint32_t n_queued;
    size_t queued_bytes;
    bool is_stopping;
    int done_fd;
    weft_loop_watch_t *watch;
    worker_t *workers; /* [config.n_threads] */
};

static void push_call(call_queue_t *queue, api_call_t *call)
{
    call->next_job = NULL;
    if (queue->last == NULL) {
        queue->first = call;
    } else {
        queue->last->next_job = call;
    }
    queue->last = call;
}

static api_call_t *pop_call(call_queue_t *queue)
{
    api_call_t *call = queue->first;

    if (call != NULL) {
        queue->first = call->next_job;
        queue->last = queue->first == NULL ? NULL : queue->last;
    }
    return call;
}

static api_call_t *next_call_locked(worker_t *worker)
{
    api_call_t *call = worker->takes_large ? pop_call(&worker->pool->large) : NULL;

    return call != NULL ? call : pop_call(&worker->pool->small);
}

static void finish_call_locked(request_workers_t *pool, api_call_t *call, size_t bytes)
{
    pool->n_queued--;
    pool->queued_bytes -= bytes;
    push_call(&pool->done, call);
    eventfd_write(pool->done_fd, 1);
}

static void *run_worker(void *argument)
{
    worker_t *worker = argument;
    request_workers_t *pool = worker->pool;

    pthread_mutex_lock(&pool->lock);
    while (!pool->is_stopping) {
        api_call_t *call = next_call_locked(worker);
        if (call == NULL) {
            pthread_cond_wait(&pool->has_work, &pool->lock);
            continue;
        }
        pthread_mutex_unlock(&pool->lock);
        size_t bytes = call->body_length;
        if (!atomic_load_explicit(&call->is_cancelled, memory_order_relaxed)) {
            call->route->prepare(call);
        }
        pthread_mutex_lock(&pool->lock);
        finish_call_locked(pool, call, bytes);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static void take_done(void *user, uint32_t events)
{
    request_workers_t *pool = user;
    eventfd_t count;

    (void)events;
    eventfd_read(pool->done_fd, &count);
    pthread_mutex_lock(&pool->lock);
    call_queue_t done = pool->done;
    pool->done = (call_queue_t){0};
    pthread_mutex_unlock(&pool->lock);
    for (api_call_t *call = pop_call(&done); call != NULL; call = pop_call(&done)) {
        pool->config.on_done(call);
    }
}

static weft_status_t start_threads(request_workers_t *pool)
{
    for (uint32_t i = 0; i < pool->config.n_threads; i++) {
        worker_t *worker = &pool->workers[i];
        *worker = (worker_t){.pool = pool, .takes_large = i > 0 || pool->config.n_threads == 1};
        if (pthread_create(&worker->thread, NULL, run_worker, worker) != 0) {
            return WEFT_ERR_NO_MEMORY;
        }
        worker->is_started = true;
    }
    return WEFT_OK;
}

weft_status_t request_workers_create(const request_workers_config_t *config,
                                     request_workers_t **workers_out)
{
    request_workers_t *pool = weft_zalloc(sizeof(*pool), "api.workers");

    if (pool == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    pool->config = *config;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->has_work, NULL);
    pool->done_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    pool->workers = weft_calloc(config->n_threads, sizeof(*pool->workers), "api.workers");
    weft_status_t status = pool->done_fd < 0 || pool->workers == NULL
                               ? WEFT_ERR_NO_MEMORY
                               : weft_loop_watch(config->loop, pool->done_fd, WEFT_LOOP_READ,
                                                 take_done, pool, &pool->watch);
    if (status == WEFT_OK) {
        status = start_threads(pool);
    }
    if (status < 0) {
        request_workers_destroy(pool);
        return status;
    }
    *workers_out = pool;
    return WEFT_OK;
}

void request_workers_destroy(request_workers_t *pool)
{
    if (pool == NULL) {
        return;
    }
    pthread_mutex_lock(&pool->lock);
    pool->is_stopping = true;
    pthread_cond_broadcast(&pool->has_work);
    pthread_mutex_unlock(&pool->lock);
    for (uint32_t i = 0; pool->workers != NULL && i < pool->config.n_threads; i++) {
        if (pool->workers[i].is_started) {
            pthread_join(pool->workers[i].thread, NULL);
        }
    }
    weft_loop_unwatch(pool->watch);
    if (pool->done_fd >= 0) {
        close(pool->done_fd);
    }
    pthread_cond_destroy(&pool->has_work);
    pthread_mutex_destroy(&pool->lock);
    weft_free(pool->workers);
    weft_free(pool);
}

weft_status_t request_workers_post(request_workers_t *pool, api_call_t *call)
{
    weft_status_t status = WEFT_OK;

    pthread_mutex_lock(&pool->lock);
    if (pool->n_queued >= pool->config.max_queued ||
        pool->queued_bytes + call->body_length > pool->config.max_queued_bytes) {
        status = WEFT_ERR_QUEUE_FULL;
    } else {
        pool->n_queued++;
        pool->queued_bytes += call->body_length;
        push_call(call->body_length > SMALL_BODY_BYTES ? &pool->large : &pool->small, call);
        pthread_cond_broadcast(&pool->has_work);
    }
    pthread_mutex_unlock(&pool->lock);
    return status;
}
