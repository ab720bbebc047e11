/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "engine"
#include "base/compiler.h"
#include "base/log.h"
#include "runtime/engine/engine_priv.h"

void engine_set_health(engine_t *engine, engine_health_t health)
{
    atomic_store(&engine->health, (int)health);
    if (engine->on_health != NULL) {
        engine->on_health(engine->health_user, health);
    }
}

typedef struct watch {
    engine_call_t call;
    void (*on_change)(void *user, engine_health_t health);
    void *user;
} watch_t;

static weft_status_t set_watch(engine_t *engine, engine_call_t *call)
{
    const watch_t *watch = WEFT_CONTAINER(call, watch_t, call);
    engine->on_health = watch->on_change;
    engine->health_user = watch->user;
    if (engine_health(engine) != ENGINE_UP) {
        watch->on_change(watch->user, engine_health(engine)); /* it was too early for the watch */
    }
    return WEFT_OK;
}

void engine_watch_health(engine_t *engine, void (*on_change)(void *user, engine_health_t health),
                         void *user)
{
    watch_t watch = {.call = {.fn = set_watch}, .on_change = on_change, .user = user};
    (void)engine_call(engine, &watch.call);
}

engine_health_t engine_health(const engine_t *engine)
{
    return (engine_health_t)atomic_load(&engine->health);
}

bool engine_has_lost_rank(const engine_t *engine)
{
    uint32_t rank;
    return engine->n_ranks > 0 && engine_group_is_formed(&engine->group) &&
           engine_group_state(&engine->group, &rank) < 0;
}

/* ---- losing ---------------------------------------------------------------------------------- */

static void note_loss(engine_t *engine)
{
    uint32_t rank = COLL_NO_RANK;
    const weft_status_t status = engine_group_cause(&engine->group, &rank);
    engine_describe_loss(status, rank, &engine->loss);
    atomic_fetch_add(status == WEFT_ERR_TIMEOUT ? &engine->gauges.rank_timeouts
                                                : &engine->gauges.rank_losses,
                     1);
    const sched_stats_t stats = sched_stats(engine->sched);
    weft_log_error("%s running=%u waiting=%u restarts_left=%u", engine->loss.text, stats.running,
                   stats.waiting, engine->restarts_left);
}

/* What was launched and not collected says nothing any more. */
static void forget_steps(engine_t *engine)
{
    executor_forget(engine->executor);
    engine->n_collected = engine->n_launched;
    sched_forget_flights(engine->sched);
}

static void give_up(engine_t *engine)
{
    engine_set_health(engine, ENGINE_LOST);
    sched_abort_all(engine->sched, ENGINE_FINISH_LOST);
}

static void *regroup(void *arg)
{
    engine_t *engine = arg;
    engine_regroup_t *again = &engine->regroup;
    again->diag = (weft_diag_t){0};
    again->status = engine_rejoin_ranks(engine, &again->diag);
    atomic_store_explicit(&again->is_done, true, memory_order_release);
    mailbox_wake(&engine->mailbox);
    return NULL;
}

/*
 * Every sequence is computed again from what it has said so far, as after a preemption: the same
 * tokens follow. What ranks held of blocks is worth nothing once one of them has lost its part.
 */
static bool begin_regrouping(engine_t *engine)
{
    engine_regroup_t *again = &engine->regroup;
    sched_preempt_all(engine->sched);
    kv_store_clear(engine->store, true);
    engine->restarts_left--;
    atomic_store(&again->is_done, false);
    again->is_running = pthread_create(&again->thread, NULL, regroup, engine) == 0;
    return again->is_running;
}

void engine_lose_rank(engine_t *engine)
{
    note_loss(engine);
    forget_steps(engine);
    engine_kv_lose(engine);
    if (engine->restarts_left == 0 || atomic_load(&engine->is_stopping) ||
        !begin_regrouping(engine)) {
        give_up(engine);
        return;
    }
    engine_set_health(engine, ENGINE_FORMING);
}

/* ---- regaining ------------------------------------------------------------------------------- */

static void join_regrouping(engine_t *engine)
{
    if (engine->regroup.is_running) {
        pthread_join(engine->regroup.thread, NULL);
        engine->regroup.is_running = false;
    }
}

/* A rank that is lost on the way is a loss like any other. */
static void end_failed_regrouping(engine_t *engine)
{
    const engine_regroup_t *again = &engine->regroup;
    const bool may_begin = again->status == WEFT_ERR_PEER_GONE && engine->restarts_left > 0 &&
                           !atomic_load(&engine->is_stopping);
    weft_log_error("the group of ranks does not form again: %s restarts_left=%u",
                   again->diag.text[0] != '\0' ? again->diag.text : weft_strerror(again->status),
                   engine->restarts_left);
    atomic_fetch_add(&engine->gauges.rank_losses, again->status == WEFT_ERR_PEER_GONE);
    if (!may_begin || !begin_regrouping(engine)) {
        give_up(engine);
    }
}

bool engine_regain_ranks(engine_t *engine)
{
    engine_regroup_t *again = &engine->regroup;
    if (!atomic_load_explicit(&again->is_done, memory_order_acquire)) {
        return false;
    }
    join_regrouping(engine);
    if (again->status >= 0) {
        again->status = engine_kv_meet(engine, &again->diag);
    }
    if (again->status < 0) {
        end_failed_regrouping(engine);
        return true;
    }
    weft_log_info("the group of ranks has formed again ranks=%u restarts_left=%u",
                  engine->group.size, engine->restarts_left);
    atomic_fetch_add(&engine->gauges.regroupings, 1);
    engine_set_health(engine, ENGINE_UP);
    return true;
}

/* cancel ends a form alone; fail, what may follow it: ranks that wait for one another's word. */
static void cancel_regrouping(engine_t *engine)
{
    const engine_ranks_t *ranks = &engine->group.ranks;
    ranks->cancel(ranks->user);
    if (!atomic_load(&engine->regroup.is_done) && ranks->fail != NULL) {
        ranks->fail(ranks->user, "it ends");
    }
}

void engine_end_ranks(engine_t *engine)
{
    if (engine->n_ranks == 0) {
        return;
    }
    if (engine->regroup.is_running) {
        cancel_regrouping(engine);
        join_regrouping(engine);
    }
    /* After a failure of its own the others have heard that, and gone. */
    const bool has_told =
        engine_health(engine) == ENGINE_FAILED && engine->group.ranks.fail != NULL;
    if (engine_group_is_formed(&engine->group) && engine->group.feed != NULL && !has_told &&
        !engine_has_lost_rank(engine)) {
        engine_group_stop(&engine->group, engine->stream);
    }
}
