/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "engine"
#include "runtime/engine/engine_follower.h"

#include "base/alloc.h"
#include "base/log.h"
#include "runtime/engine/engine_priv.h"

/* Of an engine it has what every rank has: no scheduler, no doors, no thread. */
typedef struct follower {
    engine_t *engine;
    kv_pool_t *pool; /* the leader says what is in which block: engine_kv.c */
    uint32_t in_flight;
} follower_t;

/* ---- steps ----------------------------------------------------------------------------------- */

static weft_status_t collect(follower_t *follower)
{
    step_result_t result;
    const weft_status_t status = executor_collect(follower->engine->executor, &result);
    follower->in_flight--;
    return status;
}

static weft_status_t launch(follower_t *follower)
{
    engine_t *engine = follower->engine;
    weft_status_t status = WEFT_OK;
    if (follower->in_flight == engine->max_depth) {
        status = collect(follower);
    }
    if (status >= 0 && engine->kv.crew != NULL) {
        kv_crew_see_reports(engine->kv.crew);
    }
    if (status >= 0) {
        status = executor_launch(engine->executor, engine->step);
    }
    if (status < 0) {
        return status;
    }
    follower->in_flight++;
    /* On the host it is done already. */
    return engine->device->ops->is_host ? collect(follower) : WEFT_OK;
}

/* Of a group that failed: what is in flight means nothing, but its buffers are free again. */
static void forget_steps(follower_t *follower)
{
    if (follower->engine->executor != NULL) {
        executor_forget(follower->engine->executor);
    }
    follower->in_flight = 0;
}

static weft_status_t obey(void *user, step_wire_kind_t kind, const void *orders, size_t bytes,
                          weft_diag_t *diag)
{
    engine_t *engine = ((follower_t *)user)->engine;
    if (kind == STEP_WIRE_ADAPTER) {
        return engine_adapters_obey(engine, orders, bytes, diag);
    }
    return engine->kv.member == NULL
               ? weft_diag(diag, WEFT_ERR_MALFORMED, "orders for KV blocks, and none are kept here")
               : kv_member_obey(engine->kv.member, orders, bytes, diag);
}

/*
 * The next plan. Steps that end meanwhile are collected: the leader may wait for what they gave, and
 * a failure of the device is everybody's.
 */
static weft_status_t receive(follower_t *follower, weft_diag_t *diag, bool *is_stop_out)
{
    engine_t *engine = follower->engine;
    uint32_t *masks = executor_mask(engine->executor, 0);
    weft_status_t status = WEFT_ERR_TIMEOUT;
    while (status == WEFT_ERR_TIMEOUT && follower->in_flight > 0) {
        status = engine_group_receive(&engine->group, 0, diag, engine->step, masks, is_stop_out,
                                      obey, follower);
        if (status == WEFT_ERR_TIMEOUT && executor_is_ready(engine->executor)) {
            const weft_status_t collected = collect(follower);
            status = collected < 0 ? collected : status;
        }
    }
    return status != WEFT_ERR_TIMEOUT ? status
                                      : engine_group_receive(&engine->group, -1, diag, engine->step,
                                                             masks, is_stop_out, obey, follower);
}

/* Until the leader stops, this rank fails or the group does. */
static weft_status_t follow(follower_t *follower, weft_diag_t *diag)
{
    engine_t *engine = follower->engine;
    bool is_stop = false;
    for (;;) {
        weft_status_t status = receive(follower, diag, &is_stop);
        if (status >= 0 && is_stop) {
            return WEFT_OK;
        }
        if (status >= 0) {
            status = launch(follower);
        }
        if (status < 0 || engine_has_lost_rank(engine)) {
            return status < 0 ? status : WEFT_ERR_PEER_GONE;
        }
    }
}

/* ---- life ------------------------------------------------------------------------------------ */

static weft_status_t create_pool(follower_t *follower, const engine_options_t *options)
{
    const engine_t *engine = follower->engine;
    const kv_pool_config_t config = {
        .device = engine->device,
        .layout = engine->plan.layout,
        .n_blocks = engine->plan.n_blocks,
        .is_private = engine_keeps_blocks(engine, options),
    };
    return kv_pool_create(&config, &follower->pool);
}

static weft_status_t load(follower_t *follower, const engine_options_t *options,
                          const model_source_t *source, weft_diag_t *diag)
{
    engine_t *engine = follower->engine;
    weft_status_t status = create_pool(follower, options);
    if (status < 0) {
        status = weft_diag(diag, status, "no memory for %u KV blocks", engine->plan.n_blocks);
    } else {
        status = engine_load_rank(engine, source, follower->pool, diag);
    }
    if (status >= 0) {
        status = engine_adapters_init(engine, options, source, diag);
    }
    if (status >= 0) {
        status = engine_kv_follow(engine, options, source, follower->pool, diag);
    }
    return engine_join_ranks(engine, status, diag);
}

static void say_up(const follower_t *follower)
{
    const engine_t *engine = follower->engine;
    const engine_group_t *group = &engine->group;
    weft_log_info("rank is up rank=%u ranks=%u isa=%s threads=%u max_model_len=%u kv_blocks=%u "
                  "kv_mib=%zu",
                  group->rank, group->size, engine->stream->ops->name,
                  k_stream_threads(engine->stream), engine->plan.max_context, engine->plan.n_blocks,
                  (engine->plan.layout.block_bytes[0] * engine->plan.n_blocks) >> 20);
}

static weft_status_t create(follower_t *follower, const engine_options_t *options,
                            const model_source_t *source, const engine_ranks_t *ranks,
                            weft_diag_t *diag)
{
    engine_t *engine = weft_zalloc(sizeof(*engine), "engine.follower");
    if (engine == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory for the engine");
    }
    follower->engine = engine;
    atomic_init(&engine->refs, 1);
    engine->model_config = *model_source_config(source);
    engine->mask_words = step_wire_mask_words(engine->model_config.vocab);
    weft_status_t status = engine_open_rank(engine, options, source, ranks, diag);
    if (status >= 0) {
        status = load(follower, options, source, diag);
    }
    if (status >= 0) {
        say_up(follower);
    }
    engine_explain_refusal(engine, status, diag);
    return status;
}

static void destroy(follower_t *follower)
{
    engine_t *engine = follower->engine;
    if (engine == NULL) {
        return;
    }
    forget_steps(follower);
    executor_destroy(engine->executor); /* steps write to the pool's memory */
    engine->executor = NULL;
    engine_kv_close(engine);
    kv_pool_destroy(follower->pool);
    engine_destroy(engine);
}

/* ---- after a loss ---------------------------------------------------------------------------- */

static weft_status_t rejoin(follower_t *follower, weft_diag_t *diag)
{
    engine_t *engine = follower->engine;
    weft_log_warn("%s restarts_left=%u", diag->text, engine->restarts_left);
    forget_steps(follower);
    engine_kv_lose(engine);
    engine->restarts_left--;
    *diag = (weft_diag_t){0};
    const weft_status_t status = engine_rejoin_ranks(engine, diag);
    if (status >= 0) {
        say_up(follower);
    }
    return status;
}

/* WEFT_OK: it follows again. */
static weft_status_t recover(follower_t *follower, weft_status_t status, weft_diag_t *diag)
{
    engine_t *engine = follower->engine;
    uint32_t rank = COLL_NO_RANK;
    const weft_status_t loss = engine_group_cause(&engine->group, &rank);
    if (loss >= 0) { /* it is this rank */
        const char *why = diag->text[0] != '\0' ? diag->text : weft_strerror(status);
        weft_log_error("rank=%u cannot go on: %s", engine->group.rank, why);
        if (engine->group.ranks.fail != NULL) {
            engine->group.ranks.fail(engine->group.ranks.user, why);
        }
        return status;
    }
    engine_describe_loss(loss, rank, diag);
    status = loss;
    bool may_rejoin = engine->restarts_left > 0;
    while (
        may_rejoin) { /* and again when a rank is lost on the way; one that does not come is not */
        status = rejoin(follower, diag);
        may_rejoin = status == WEFT_ERR_PEER_GONE && engine->restarts_left > 0;
    }
    return status;
}

weft_status_t engine_follow(const engine_options_t *options, const model_source_t *source,
                            const engine_ranks_t *ranks, weft_diag_t *diag)
{
    follower_t follower = {0};
    bool is_stopped = false;
    weft_status_t status = create(&follower, options, source, ranks, diag);
    while (status >= 0 && !is_stopped) {
        status = follow(&follower, diag);
        is_stopped = status >= 0;
        if (!is_stopped) {
            status = recover(&follower, status, diag);
        }
    }
    if (is_stopped) {
        engine_group_stop(&follower.engine->group, follower.engine->stream);
    }
    destroy(&follower);
    return status;
}
