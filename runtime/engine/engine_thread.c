/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's one thread: commands, then a step; it sleeps when neither is there. */
#include <string.h>

#include "base/clock.h"
#include "base/compiler.h"
#include "runtime/engine/engine_priv.h"

#define PREFILL_TOKENS 64  /* a step of so many tells what a prompt's tokens cost */
#define RANKS_POLL_MS  100 /* an idle group is looked at */

#define WEFT_LOG_MODULE "engine"
#include "base/log.h"

/* ---- what others see ---- */

static void set(atomic_uint *gauge, uint32_t value)
{
    atomic_store_explicit(gauge, value, memory_order_relaxed);
}

static void set_64(atomic_uint_fast64_t *counter, uint64_t value)
{
    atomic_store_explicit(counter, value, memory_order_relaxed);
}

static void publish_store(engine_t *engine)
{
    const kv_store_stats_t stats = kv_store_stats(engine->store);
    uint64_t words[ENGINE_STORE_WORDS];
    memcpy(words, &stats, sizeof(words));
    for (size_t i = 0; i < ENGINE_STORE_WORDS; i++) {
        set_64(&engine->gauges.store[i], words[i]);
    }
}

static void publish_gauges(engine_t *engine)
{
    const sched_stats_t stats = sched_stats(engine->sched);
    engine_gauges_t *g = &engine->gauges;
    publish_store(engine);
    set_64(&g->steps, stats.steps);
    set_64(&g->prompt_tokens, stats.prompt_tokens);
    set_64(&g->generation_tokens, stats.sampled_tokens);
    set_64(&g->prefix_queries, stats.prefix_queries);
    set_64(&g->prefix_hits, stats.prefix_hits);
    set_64(&g->pull_queries, stats.pull_queries);
    set_64(&g->pull_hits, stats.pull_hits);
    set_64(&g->preemptions, stats.preemptions);
    set_64(&g->drafts, stats.drafts);
    set_64(&g->draft_tokens, stats.draft_tokens);
    for (uint32_t i = 0; i < STEP_MAX_DRAFTS; i++) {
        set_64(&g->accepted[i], stats.accepted[i]);
    }
    /* Last: who sees that nothing runs has all of it counted. */
    set(&g->free_blocks, kv_pool_free_blocks(kv_store_pool(engine->store)));
    set(&g->held_blocks, kv_pool_held_blocks(kv_store_pool(engine->store)));
    set(&g->waiting, stats.waiting);
    set(&g->running, stats.running);
    if (engine->transfer != NULL) {
        kv_transfer_publish(engine->transfer);
    }
}

static void publish(engine_t *engine)
{
    publish_gauges(engine);
    engine_client_tell(engine);
}

/* Before what takes its time: nobody is to wait for that. */
static void publish_news(engine_t *engine)
{
    if (engine->untold != NULL) {
        publish(engine);
    }
}

/* ---- commands ---- */

void engine_post(engine_t *engine, engine_command_t *command, engine_command_kind_t kind)
{
    command->kind = kind;
    mailbox_post(&engine->mailbox, &command->item);
}

weft_status_t engine_call(engine_t *engine, engine_call_t *call)
{
    call->status = WEFT_ERR_STOPPING;
    call->is_done = false;
    pthread_mutex_lock(&engine->call_lock);
    if (!engine->is_closed) {
        engine_post(engine, &call->command, ENGINE_COMMAND_CALL);
        while (!call->is_done) {
            pthread_cond_wait(&engine->call_done, &engine->call_lock);
        }
    }
    pthread_mutex_unlock(&engine->call_lock);
    return call->status;
}

static void do_call(engine_t *engine, engine_call_t *call)
{
    pthread_mutex_lock(&engine->call_lock);
    call->status = call->fn(engine, call);
    publish(engine);
    call->is_done = true;
    pthread_cond_broadcast(&engine->call_done);
    pthread_mutex_unlock(&engine->call_lock);
}

static void refuse_sample(engine_sample_t *sample, engine_finish_t reason)
{
    sample->seq.state = SCHED_SEQ_DONE;
    sample->seq.finish = reason;
    engine_sample_finish(sample, reason);
    engine_sample_retire(sample);
}

static void do_submit(engine_t *engine, engine_request_t *r)
{
    const engine_health_t health = engine_health(engine);
    const bool is_served = health == ENGINE_UP || health == ENGINE_FORMING;
    const uint32_t n = r->n_samples; /* r may be gone after its last sample is refused */
    engine_sample_t *samples = r->samples;
    const bool is_stopping = atomic_load(&engine->is_stopping);
    const bool is_wanted = is_served && !is_stopping && engine_transfer_begin(engine, r);
    for (uint32_t i = 0; i < n; i++) {
        engine_sample_t *sample = &samples[i];
        if (!is_wanted) {
            if (health == ENGINE_LOST) {
                sample->reason = engine->loss.text;
            }
            refuse_sample(sample, is_stopping             ? ENGINE_FINISH_ABORT
                                  : health == ENGINE_LOST ? ENGINE_FINISH_LOST
                                                          : ENGINE_FINISH_ERROR);
            continue;
        }
        if (sample->constraint.matcher != NULL) {
            atomic_fetch_add(&r->refs, 1);
            constraint_advance(engine->worker, &sample->constraint, -1);
        }
        if (sched_submit(engine->sched, &sample->seq) < 0) {
            refuse_sample(sample, ENGINE_FINISH_ERROR);
        }
    }
}

static void do_abort(engine_t *engine, engine_request_t *r)
{
    for (uint32_t i = 0; i < r->n_samples; i++) {
        sched_abort(engine->sched, &r->samples[i].seq, ENGINE_FINISH_ABORT);
    }
    engine_request_unref(r);
}

static void do_abort_sample(engine_t *engine, engine_sample_t *sample)
{
    engine_request_t *r = sample->request;
    sched_abort(engine->sched, &sample->seq, ENGINE_FINISH_ABORT);
    engine_request_unref(r);
}

static void do_give_up_pull(engine_t *engine, engine_request_t *r)
{
    sched_give_up_pull(engine->sched, &r->samples[0].seq);
    engine_request_unref(r);
}

static void do_commands(engine_t *engine)
{
    mailbox_item_t *item = mailbox_take(&engine->mailbox);
    while (item != NULL) {
        engine_command_t *command = WEFT_CONTAINER(item, engine_command_t, item);
        item = item->next;
        switch (command->kind) {
        case ENGINE_COMMAND_SUBMIT:
            do_submit(engine, WEFT_CONTAINER(command, engine_request_t, submit_command));
            break;
        case ENGINE_COMMAND_ABORT:
            do_abort(engine, WEFT_CONTAINER(command, engine_request_t, abort_command));
            break;
        case ENGINE_COMMAND_ABORT_SAMPLE:
            do_abort_sample(engine, WEFT_CONTAINER(command, engine_sample_t, abort_command));
            break;
        case ENGINE_COMMAND_GIVE_UP_PULL:
            do_give_up_pull(engine, WEFT_CONTAINER(command, engine_request_t, give_up_command));
            break;
        case ENGINE_COMMAND_DECLINE:
            engine_do_decline(engine, command);
            break;
        case ENGINE_COMMAND_CALL:
            do_call(engine, WEFT_CONTAINER(command, engine_call_t, command));
            break;
        }
    }
}

/* ---- steps ---- */

void engine_fail(engine_t *engine, weft_status_t status)
{
    if (engine_has_lost_rank(engine)) {
        engine_lose_rank(engine);
        return;
    }
    weft_log_error("a step failed, the engine stops status=%s", weft_strerror(status));
    if (engine->n_ranks > 0 && engine->group.ranks.fail != NULL) {
        engine->group.ranks.fail(engine->group.ranks.user, weft_strerror(status));
    }
    engine_set_health(engine, ENGINE_FAILED);
    sched_abort_all(engine->sched, ENGINE_FINISH_ERROR);
    sched_forget_flights(engine->sched);
}

/* What the other ranks have to know before the next plan. */
static weft_status_t flush(engine_t *engine)
{
    const weft_status_t status = engine_adapters_flush(engine);
    return status < 0 ? status : engine_kv_flush(engine);
}

static weft_status_t launch(engine_t *engine)
{
    const sched_stats_t stats = sched_stats(engine->sched);
    weft_status_t status = flush(engine);
    engine->launched[engine->n_launched++ % SCHED_MAX_IN_FLIGHT] =
        (engine_launched_t){.tokens = stats.last_step_tokens,
                            .prompt_tokens = stats.last_step_prompt,
                            .begun_ns = weft_clock_ns()};
    if (status >= 0 && engine->n_ranks > 0) {
        /* First, so that the others begin with us. */
        status =
            engine_group_send(&engine->group, engine->step, executor_mask(engine->executor, 0));
    }
    if (status < 0) {
        return status;
    }
    return executor_launch(engine->executor, engine->step);
}

/* A step begins when the one before it has ended, if that is later than its launch. */
static void note_compute(engine_t *engine)
{
    const engine_launched_t *step = &engine->launched[engine->n_collected++ % SCHED_MAX_IN_FLIGHT];
    const uint64_t before = engine->collected_ns;
    const uint64_t begun = step->begun_ns > before ? step->begun_ns : before;
    engine->collected_ns = weft_clock_ns();
    step_pace_note(&engine->pace, step->tokens - step->prompt_tokens, step->prompt_tokens,
                   engine->collected_ns - begun);
    sched_set_prompt_tokens(engine->sched, step_pace_tokens(&engine->pace));
    if (step->tokens >= PREFILL_TOKENS) {
        kv_store_note_compute(engine->store, step->tokens, engine->collected_ns - begun);
    }
}

static void count(atomic_uint_fast64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* Of the step whose result is taken next. */
static void count_device(engine_t *engine, const step_result_t *result)
{
    const engine_launched_t *step = &engine->launched[engine->n_collected % SCHED_MAX_IN_FLIGHT];
    engine_device_counters_t *device =
        &engine->gauges.device[step->prompt_tokens > 0 ? ENGINE_STEP_PROMPT : ENGINE_STEP_DECODE];
    count(&device->busy_ns, result->busy_ns);
    count(&device->gap_ns, result->gap_ns);
    count(&device->gaps, result->has_gap);
}

static weft_status_t take_result(engine_t *engine)
{
    step_result_t result;
    const weft_status_t status = executor_collect(engine->executor, &result);
    if (status < 0 || engine_has_lost_rank(engine)) { /* then what it holds is not a result */
        return status < 0 ? status : WEFT_ERR_PEER_GONE;
    }
    count_device(engine, &result);
    note_compute(engine);
    sched_commit(engine->sched, &result);
    return WEFT_OK;
}

weft_status_t engine_collect_all(engine_t *engine)
{
    weft_status_t status = WEFT_OK;
    while (status >= 0 && engine->n_launched > engine->n_collected) {
        status = take_result(engine);
    }
    return status;
}

static bool collect(engine_t *engine)
{
    const weft_status_t status = take_result(engine);
    if (status < 0) {
        engine_fail(engine, status);
    }
    return status >= 0;
}

/* False when there is nothing to compute now. */
static bool do_step(engine_t *engine)
{
    engine_kv_poll(engine);
    if (engine->transfer != NULL) {
        (void)kv_transfer_poll(engine->transfer); /* the plan looks at what it brought */
    }
    const uint32_t rows = sched_plan(engine->sched, engine->step);
    publish_news(engine);
    const uint32_t tokens = rows == 0 ? 0 : sched_stats(engine->sched).last_step_tokens;
    const weft_status_t status = rows > 0 ? launch(engine) : flush(engine);
    if (status < 0) {
        engine_fail(engine, status);
        return false;
    }
    if (rows > 0) {
        if (engine->observer.on_step != NULL) {
            engine->observer.on_step(engine->observer.user, tokens);
        }
    }
    const uint32_t in_flight = sched_in_flight(engine->sched);
    /* When nothing can be planned, one result may change that: stages are not left without work. */
    const uint32_t most = rows > 0 ? engine->depth - 1 : in_flight > 0 ? in_flight - 1 : 0;
    for (uint32_t i = most; i < in_flight; i++) {
        if (!collect(engine)) {
            return false;
        }
    }
    const bool did_something = rows > 0 || in_flight > 0;
    if (!did_something || sched_is_empty(engine->sched)) {
        executor_rest(engine->executor);
    }
    return did_something;
}

/* ---- disturbing, for tests ---- */

static uint64_t draw(engine_t *engine)
{
    uint64_t x = atomic_load_explicit(&engine->chaos, memory_order_relaxed);
    const uint64_t before = x;
    x ^= x << 13; /* Marsaglia's xorshift64: never 0 */
    x ^= x >> 7;
    x ^= x << 17;
    uint64_t expected = before;
    atomic_compare_exchange_strong(&engine->chaos, &expected, x);
    return x;
}

static void disturb(engine_t *engine)
{
    if (atomic_load_explicit(&engine->chaos, memory_order_relaxed) == 0) {
        return;
    }
    sched_check(engine->sched);
    if (draw(engine) % 6 == 0) {
        sched_preempt_nth(engine->sched, (uint32_t)(draw(engine) >> 33));
    }
    if (draw(engine) % 4 == 0) {
        sched_set_budget(engine->sched,
                         1 + (uint32_t)(draw(engine) % engine->plan.limits.max_tokens));
    }
    engine->depth = 1 + (uint32_t)(draw(engine) % engine->max_depth);
    sched_check(engine->sched);
}

void engine_set_chaos(engine_t *engine, uint64_t seed)
{
    atomic_store(&engine->chaos, seed);
}

/* ---- the thread ---- */

static void close_down(engine_t *engine)
{
    sched_abort_all(engine->sched, ENGINE_FINISH_ABORT);
    while (sched_in_flight(engine->sched) > 0 && collect(engine)) {
    }
    publish_news(engine);
    engine_kv_save(engine);
    engine_end_ranks(engine);
    pthread_mutex_lock(&engine->call_lock);
    engine->is_closed = true;
    pthread_mutex_unlock(&engine->call_lock);
    do_commands(engine);
    publish(engine);
}

/* False when there is nothing to do until somebody wakes the mailbox, or a rank is lost. */
static bool work(engine_t *engine)
{
    switch (engine_health(engine)) {
    case ENGINE_UP:
        if (engine_has_lost_rank(engine)) {
            engine_lose_rank(engine);
            return true;
        }
        disturb(engine);
        return do_step(engine);
    case ENGINE_FORMING:
        return engine_regain_ranks(engine);
    case ENGINE_LOST:
    case ENGINE_FAILED:
        break;
    }
    return false;
}

static void *run(void *arg)
{
    engine_t *engine = arg;
    while (!atomic_load(&engine->is_stopping)) {
        do_commands(engine);
        publish_news(engine);
        const bool did_something = work(engine);
        publish(engine);
        /* Looked at again: do_commands may have taken the wake that came with it. */
        if (!did_something && !atomic_load(&engine->is_stopping)) {
            mailbox_wait(&engine->mailbox, engine->n_ranks > 0 ? RANKS_POLL_MS : -1);
        }
    }
    close_down(engine);
    return NULL;
}

weft_status_t engine_thread_start(engine_t *engine)
{
    publish_gauges(engine);
    if (pthread_create(&engine->thread, NULL, run, engine) != 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    engine->is_thread_started = true;
    return WEFT_OK;
}

void engine_thread_stop(engine_t *engine)
{
    if (engine->is_thread_started) {
        atomic_store(&engine->is_draining, true);
        atomic_store(&engine->is_stopping, true);
        mailbox_wake(&engine->mailbox);
        pthread_join(engine->thread, NULL);
        engine->is_thread_started = false;
    }
}
