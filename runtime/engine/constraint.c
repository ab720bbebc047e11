/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/constraint.h"

#include <pthread.h>
#include <stdbool.h>

#include "base/alloc.h"
#include "base/compiler.h"

struct constraint_worker {
    void (*on_done)(void *user, constraint_t *constraint);
    void *user;
    mailbox_t jobs;
    atomic_bool is_stopping;
    bool is_started;
    pthread_t thread;
};

static weft_status_t make_mask(constraint_t *c)
{
    weft_status_t status = WEFT_OK;
    if (c->token >= 0) {
        status = text_matcher_advance(c->matcher, c->token, c->diag);
    }
    return status < 0 ? status : text_matcher_mask(c->matcher, c->mask, c->words, c->diag);
}

static void do_jobs(constraint_worker_t *worker)
{
    mailbox_item_t *item = mailbox_take(&worker->jobs);
    while (item != NULL) {
        constraint_t *constraint = WEFT_CONTAINER(item, constraint_t, item);
        item = item->next;
        constraint->status = make_mask(constraint);
        atomic_store_explicit(&constraint->state,
                              constraint->status >= 0 ? CONSTRAINT_READY : CONSTRAINT_FAILED,
                              memory_order_release);
        worker->on_done(worker->user, constraint);
    }
}

static void *run(void *arg)
{
    constraint_worker_t *worker = arg;
    while (!atomic_load(&worker->is_stopping)) {
        mailbox_wait(&worker->jobs, -1);
        do_jobs(worker);
    }
    do_jobs(worker);
    return NULL;
}

weft_status_t constraint_worker_create(void (*on_done)(void *user, constraint_t *constraint),
                                       void *user, constraint_worker_t **worker_out)
{
    constraint_worker_t *worker = weft_zalloc(sizeof(*worker), "constraint.worker");
    if (worker == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    worker->on_done = on_done;
    worker->user = user;
    weft_status_t status = mailbox_init(&worker->jobs);
    if (status == WEFT_OK && pthread_create(&worker->thread, NULL, run, worker) != 0) {
        status = WEFT_ERR_NO_MEMORY;
    }
    worker->is_started = status == WEFT_OK;
    if (status < 0) {
        constraint_worker_destroy(worker);
        return status;
    }
    *worker_out = worker;
    return WEFT_OK;
}

void constraint_worker_destroy(constraint_worker_t *worker)
{
    if (worker == NULL) {
        return;
    }
    if (worker->is_started) {
        atomic_store(&worker->is_stopping, true);
        mailbox_wake(&worker->jobs);
        pthread_join(worker->thread, NULL);
    }
    mailbox_fini(&worker->jobs);
    weft_free(worker);
}

void constraint_advance(constraint_worker_t *worker, constraint_t *constraint, int32_t token)
{
    constraint->token = token;
    atomic_store_explicit(&constraint->state, CONSTRAINT_BUSY, memory_order_relaxed);
    mailbox_post(&worker->jobs, &constraint->item);
}

constraint_state_t constraint_state(const constraint_t *constraint)
{
    return (constraint_state_t)atomic_load_explicit(&constraint->state, memory_order_acquire);
}

void constraint_fini(constraint_t *constraint)
{
    text_matcher_destroy(constraint->matcher);
    constraint->matcher = NULL;
}
