/* SPDX-License-Identifier: Apache-2.0 */
#include "services/front/front_workers.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"

#define WEFT_LOG_MODULE "front"
#include "base/log.h"

#define CHECK_TIMEOUT_MS 5000
#define MAX_HEALTH_BYTES 4096

static_assert(FRONT_MAX_WORKERS <= 64, "a set of workers is a word");

static void on_checked(void *user, const weft_http_answer_t *answer)
{
    front_worker_t *worker = user;
    worker->check = NULL;
    if (answer->status < 0 || answer->http_status != 200) {
        front_worker_is_gone(worker, answer->status < 0 ? answer->error : "it says it is not well");
    } else if (!worker->is_up) {
        worker->is_up = true;
        weft_log_info("worker is up name=%s url=%s", worker->name, worker->url);
    }
}

static void check(front_worker_t *worker)
{
    char url[512];
    if (worker->check != NULL || worker->url == NULL ||
        (size_t)snprintf(url, sizeof(url), "%s/health", worker->url) >= sizeof(url)) {
        return;
    }
    const weft_http_request_t request = {.method = "GET",
                                         .url = url,
                                         .timeout_ms = CHECK_TIMEOUT_MS,
                                         .max_answer_bytes = MAX_HEALTH_BYTES};
    (void)weft_http_client_send(worker->workers->client, &request, on_checked, worker,
                                &worker->check); /* no memory: the next round tries again */
}

static void end_check(front_worker_t *worker)
{
    if (worker->check != NULL) {
        weft_http_client_cancel(worker->check);
        worker->check = NULL;
    }
}

static void on_timer(void *user)
{
    front_workers_t *workers = user;
    for (uint32_t i = 0; i < workers->n; i++) {
        check(&workers->all[i]);
    }
    weft_loop_timer_set(workers->timer, workers->interval_ms * WEFT_NS_PER_MS);
}

weft_status_t front_workers_init(front_workers_t *workers, weft_loop_t *loop,
                                 weft_http_client_t *client, uint32_t interval_ms)
{
    workers->client = client;
    workers->interval_ms = interval_ms;
    const weft_status_t status = weft_loop_timer_create(loop, on_timer, workers, &workers->timer);
    if (status == WEFT_OK) {
        weft_loop_timer_set(workers->timer, 0);
    }
    return status;
}

void front_workers_stop_checks(front_workers_t *workers)
{
    weft_loop_timer_clear(workers->timer);
    for (uint32_t i = 0; i < workers->n; i++) {
        end_check(&workers->all[i]);
    }
}

void front_workers_fini(front_workers_t *workers)
{
    weft_loop_timer_destroy(workers->timer);
    for (uint32_t i = 0; i < workers->n; i++) {
        front_worker_t *worker = &workers->all[i];
        end_check(worker);
        weft_free(worker->name);
        weft_free(worker->url);
    }
    workers->n = 0;
}

/* Another process, at another address; what was sent to the old one ends by itself. */
static weft_status_t move(front_worker_t *worker, const char *url)
{
    char *copy = weft_strdup(url, "front.worker");
    if (copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    end_check(worker);
    weft_free(worker->url);
    worker->url = copy;
    worker->is_up = false;
    check(worker);
    return WEFT_OK;
}

weft_status_t front_workers_add(front_workers_t *workers, front_role_t role, const char *name,
                                const char *url)
{
    front_worker_t *known = front_workers_find(workers, name);
    if (known != NULL) {
        return move(known, url);
    }
    if (workers->n == FRONT_MAX_WORKERS) {
        return WEFT_ERR_TOO_LARGE;
    }
    front_worker_t *worker = &workers->all[workers->n];
    *worker = (front_worker_t){.role = role,
                               .name = weft_strdup(name, "front.worker"),
                               .url = weft_strdup(url, "front.worker"),
                               .workers = workers};
    if (worker->name == NULL || worker->url == NULL) {
        weft_free(worker->name);
        weft_free(worker->url);
        return WEFT_ERR_NO_MEMORY;
    }
    workers->n++;
    check(worker);
    return WEFT_OK;
}

front_worker_t *front_workers_find(front_workers_t *workers, const char *name)
{
    for (uint32_t i = 0; i < workers->n; i++) {
        if (strcmp(workers->all[i].name, name) == 0) {
            return &workers->all[i];
        }
    }
    return NULL;
}

uint32_t front_workers_up_count(const front_workers_t *workers, front_role_t role)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < workers->n; i++) {
        n += workers->all[i].role == role && workers->all[i].is_up;
    }
    return n;
}

front_worker_t *front_workers_take(front_workers_t *workers, front_role_t role, uint64_t *tried)
{
    for (uint32_t step = 0; step < workers->n; step++) {
        const uint32_t i = (workers->next[role] + step) % workers->n;
        const uint64_t bit = UINT64_C(1) << i;
        front_worker_t *worker = &workers->all[i];
        if (worker->role == role && worker->is_up && (*tried & bit) == 0) {
            *tried |= bit;
            workers->next[role] = i + 1;
            return worker;
        }
    }
    return NULL;
}

void front_worker_is_gone(front_worker_t *worker, const char *why)
{
    if (worker->is_up) {
        worker->is_up = false;
        weft_log_warn("worker does not answer name=%s url=%s reason=\"%s\"", worker->name,
                      worker->url, why);
    }
}

/* An answer of its last moments may still be on its way, and its address may be somebody else's next. */
void front_worker_has_ended(front_worker_t *worker)
{
    front_worker_is_gone(worker, "its process has ended");
    end_check(worker);
    weft_free(worker->url);
    worker->url = NULL;
}
