/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/engine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "runtime/engine/engine_priv.h"

#define WEFT_LOG_MODULE "engine"
#include "base/log.h"

/* vLLM's algorithms and its seed: blocks that both made have the same names. */
weft_status_t engine_create_hasher(engine_t *engine, const engine_options_t *options,
                                   weft_diag_t *diag)
{
    kv_hash_algo_t algo;
    weft_status_t status = kv_hash_algo_parse(options->hash_algo, diag, &algo);
    if (status < 0) {
        weft_diag_prefix(diag, "--prefix-caching-hash-algo");
        return status;
    }
    status = kv_hasher_create(algo, getenv("PYTHONHASHSEED"), &engine->hasher);
    return status < 0 ? weft_diag(diag, status, "no root for the hashes of PYTHONHASHSEED")
                      : status;
}

static weft_status_t create_publisher(engine_t *engine, const engine_options_t *options,
                                      weft_diag_t *diag)
{
    const char *int_hashes = getenv("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES");
    const kv_publisher_config_t config = {
        .events_config = options->kv_events_config,
        .encoding = options->kv_events_encoding,
        .data_parallel_rank = options->data_parallel_rank,
        .block_tokens = engine->plan.layout.block_tokens,
        .algo = kv_hasher_algo(engine->hasher),
        .has_int_hashes = int_hashes == NULL || strcmp(int_hashes, "0") != 0,
    };
    const weft_status_t status = kv_publisher_create(&config, diag, &engine->publisher);
    if (status == WEFT_OK && engine->publisher != NULL && !engine->is_caching) {
        weft_log_warn("--kv-events-config: no KV events without --enable-prefix-caching");
    }
    return status;
}

static void wake(void *user)
{
    mailbox_wake(&((engine_t *)user)->mailbox);
}

static void observe_read(void *user, kv_tier_id_t tier, uint64_t ns)
{
    const engine_observer_t *observer = &((engine_t *)user)->observer;
    if (observer->on_read != NULL) {
        observer->on_read(observer->user, tier, ns);
    }
}

static void warn_of_lost_tiers(const engine_t *engine, const engine_options_t *options)
{
    const bool has_peers = engine_has_peers(options);
    if (!engine->is_caching && (options->kv_host_bytes + options->kv_disk_bytes > 0 || has_peers)) {
        weft_log_warn("--kv-host-bytes, --kv-disk-bytes, --kv-remote-*: no tiers without "
                      "--enable-prefix-caching");
    }
    const kv_hash_algo_t algo = kv_hasher_algo(engine->hasher);
    const bool is_random = (algo == KV_HASH_ALGO_xxhash || algo == KV_HASH_ALGO_xxhash_cbor) &&
                           getenv("PYTHONHASHSEED") == NULL;
    if (is_random && options->kv_disk_bytes > 0) {
        weft_log_warn("--kv-disk-path: with --prefix-caching-hash-algo %s and PYTHONHASHSEED unset "
                      "blocks have other names after a restart: set it, or use a SHA-256 algorithm",
                      kv_hash_algo_name(algo));
    }
    if (is_random && has_peers) {
        weft_log_warn(
            "--kv-remote-*: with --prefix-caching-hash-algo %s and PYTHONHASHSEED unset "
            "blocks have other names in every process: set it, or use a SHA-256 algorithm",
            kv_hash_algo_name(algo));
    }
}

static weft_status_t create_store(engine_t *engine, const engine_options_t *options,
                                  const model_source_t *source, weft_diag_t *diag)
{
    const engine_plan_t *plan = &engine->plan;
    uint8_t fingerprint[ENGINE_FINGERPRINT_BYTES] = {0}; /* memory needs none: it dies with us */
    if (options->kv_disk_bytes > 0) {
        const weft_status_t status = engine_fingerprint(engine, source, fingerprint);
        if (status < 0) {
            return status;
        }
    }
    warn_of_lost_tiers(engine, options);
    kv_remote_config_t remote;
    const weft_status_t remote_status = engine_remote_config(engine, options, source, &remote);
    if (remote_status < 0) {
        return remote_status;
    }
    const kv_store_config_t config = {
        .device = engine->device,
        .layout = plan->layout,
        .n_blocks = plan->n_blocks,
        .is_caching = engine->is_caching,
        .is_private = engine_keeps_blocks(engine, options),
        .max_pinned_blocks = plan->max_pinned_blocks,
        .host_bytes = options->kv_host_bytes,
        .disk_bytes = options->kv_disk_bytes,
        .disk_path = engine->kv.disk_path != NULL ? engine->kv.disk_path : options->kv_disk_path,
        .remote = &remote,
        .admits_all = plan->admits_all,
        .fingerprint = fingerprint,
        .publisher = engine->publisher,
        .crew = engine->kv.crew,
        .wake = wake,
        .on_read = observe_read,
        .user = engine,
    };
    return kv_store_create(&config, diag, &engine->store);
}

static weft_status_t create_scheduler(engine_t *engine, weft_diag_t *diag)
{
    const sched_config_t config = {
        .store = engine->store,
        .hasher = engine->hasher,
        .limits = engine->plan.limits,
        .stages = engine->n_ranks > 0 ? engine->group.ranks.shard.stages : 1,
        .events = engine_events(engine),
        .mover = engine->transfer == NULL ? NULL : &engine->mover,
    };
    const weft_status_t status = sched_create(&config, &engine->sched);
    return status < 0 ? weft_diag(diag, status, "no memory for the scheduler") : WEFT_OK;
}

static weft_status_t create_grammars(engine_t *engine, const text_tokenizer_t *tokenizer,
                                     weft_diag_t *diag)
{
    const model_config_t *config = &engine->model_config;
    if (tokenizer == NULL) {
        return WEFT_OK;
    }
    const weft_status_t status = text_grammar_factory_create(
        tokenizer, config->vocab, config->eos, config->n_eos, diag, &engine->grammars);
    return status < 0 ? status
                      : constraint_worker_create(engine_on_mask_made, engine, &engine->worker);
}

/* What other threads meet the engine's by. */
static weft_status_t create_doors(engine_t *engine)
{
    if (pthread_mutex_init(&engine->call_lock, NULL) != 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    (void)pthread_cond_init(&engine->call_done, NULL); /* cannot fail without attributes */
    engine->has_call_lock = true;
    return mailbox_init(&engine->mailbox);
}

/* What only the leader has, once it knows its sizes. */
static weft_status_t create_parts(engine_t *engine, const engine_options_t *options,
                                  const model_source_t *source, const text_tokenizer_t *tokenizer,
                                  weft_diag_t *diag)
{
    weft_status_t status = engine_create_hasher(engine, options, diag);
    engine->max_requests = engine->plan.max_slots + options->max_num_queued_reqs;
    engine->pace.target = options->step_time_target != -1 ? options->step_time_target
                          : engine->device->ops->is_host  ? 3
                                                          : 0;
    if (status == WEFT_OK) {
        status = create_doors(engine);
    }
    if (status == WEFT_OK) {
        status = create_publisher(engine, options, diag);
    }
    if (status == WEFT_OK) {
        status = engine_kv_open(engine, options, diag);
    }
    if (status == WEFT_OK) {
        status = create_store(engine, options, source, diag);
    }
    if (status == WEFT_OK) {
        status = engine_transfer_create(engine, source, diag);
    }
    if (status == WEFT_OK) {
        status = engine_kv_lead(engine, diag);
    }
    if (status == WEFT_OK) {
        status = engine_load_rank(engine, source, kv_store_pool(engine->store), diag);
    }
    if (status == WEFT_OK) {
        status = engine_draft_create(engine, tokenizer, diag);
    }
    if (status == WEFT_OK) {
        status = engine_adapters_init(engine, options, source, diag);
    }
    if (status == WEFT_OK) {
        status = create_scheduler(engine, diag);
    }
    return status < 0 ? status : create_grammars(engine, tokenizer, diag);
}

static weft_status_t create_all(engine_t *engine, const engine_options_t *options,
                                const model_source_t *source, const text_tokenizer_t *tokenizer,
                                const engine_ranks_t *ranks, weft_diag_t *diag)
{
    weft_status_t status = engine_open_rank(engine, options, source, ranks, diag);
    if (status < 0) {
        return status;
    }
    status = create_parts(engine, options, source, tokenizer, diag);
    status = engine_join_ranks(engine, status, diag);
    if (status >= 0) {
        status = engine_kv_meet(engine, diag);
    }
    return status < 0 ? status : engine_thread_start(engine);
}

weft_status_t engine_create(const engine_options_t *options, const model_source_t *source,
                            const text_tokenizer_t *tokenizer, const engine_ranks_t *ranks,
                            weft_diag_t *diag, engine_t **engine_out)
{
    assert(ranks == NULL || (ranks->shard.tensor_rank == 0 && ranks->shard.stage == 0));
    engine_t *engine = weft_zalloc(sizeof(*engine), "engine.engine");
    if (engine == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory for the engine");
    }
    atomic_init(&engine->refs, 1);
    atomic_init(&engine->health, ENGINE_UP);
    engine->model_config = *model_source_config(source);
    engine->mask_words = step_wire_mask_words(engine->model_config.vocab);
    engine->is_caching = options->enable_prefix_caching;
    engine->seed = options->seed;
    const weft_status_t status = create_all(engine, options, source, tokenizer, ranks, diag);
    if (status < 0) {
        engine_explain_refusal(engine, status, diag);
        engine_destroy(engine);
        return status;
    }
    const engine_plan_t *plan = &engine->plan;
    weft_log_info(
        "engine is up ranks=%u isa=%s threads=%u max_model_len=%u max_num_seqs=%u kv_blocks=%u "
        "kv_mib=%zu",
        ranks == NULL ? 1 : engine->n_ranks, engine->stream->ops->name,
        k_stream_threads(engine->stream), plan->max_context, plan->max_slots, plan->n_blocks,
        (plan->layout.block_bytes[0] * plan->n_blocks) >> 20);
    *engine_out = engine;
    return WEFT_OK;
}

void engine_unref(engine_t *engine)
{
    if (atomic_fetch_sub(&engine->refs, 1) > 1) {
        return;
    }
    mailbox_fini(&engine->mailbox);
    if (engine->has_call_lock) {
        pthread_cond_destroy(&engine->call_done);
        pthread_mutex_destroy(&engine->call_lock);
    }
    weft_free(engine);
}

void engine_destroy(engine_t *engine)
{
    if (engine == NULL) {
        return;
    }
    engine_thread_stop(engine);
    constraint_worker_destroy(engine->worker); /* it wakes the mailbox: before that goes */
    text_grammar_factory_destroy(engine->grammars);
    sched_destroy(engine->sched);
    engine_draft_close(engine);
    step_plan_destroy(engine->step);
    executor_destroy(engine->executor);
    model_destroy(engine->model);
    engine_adapters_fini(engine);
    kv_transfer_destroy(engine->transfer); /* it holds blocks, and wakes the mailbox */
    kv_store_destroy(engine->store);       /* it wakes the mailbox, and tells the publisher */
    engine_kv_close(engine);
    kv_transfer_config_fini(&engine->transfer_config);
    kv_publisher_destroy(engine->publisher);
    kv_hasher_destroy(engine->hasher);
    engine_group_part(&engine->group); /* its collectives work on the device's memory */
    k_stream_destroy(engine->stream);
    weft_device_close(engine->device);
    engine_unref(engine);
}

void engine_drain(engine_t *engine)
{
    atomic_store(&engine->is_draining, true);
}

bool engine_embeds(const engine_t *engine)
{
    return engine->plan.embeds;
}

const model_config_t *engine_model_config(const engine_t *engine)
{
    return &engine->model_config;
}

uint32_t engine_max_context(const engine_t *engine)
{
    return engine->plan.max_context;
}

bool engine_is_healthy(const engine_t *engine)
{
    return atomic_load(&engine->health) == ENGINE_UP;
}

text_grammar_factory_t *engine_grammar_factory(engine_t *engine)
{
    return engine->grammars;
}

void engine_observe(engine_t *engine, const engine_observer_t *observer)
{
    engine->observer = *observer;
}

engine_stats_t engine_stats(const engine_t *engine)
{
    const engine_gauges_t *g = &engine->gauges;
    uint64_t store[ENGINE_STORE_WORDS];
    for (size_t i = 0; i < ENGINE_STORE_WORDS; i++) {
        store[i] = atomic_load_explicit(&g->store[i], memory_order_relaxed);
    }
    engine_stats_t stats = {
        .running = atomic_load(&g->running),
        .waiting = atomic_load(&g->waiting),
        .total_blocks = engine->plan.n_blocks,
        .free_blocks = atomic_load(&g->free_blocks),
        .referenced_blocks = atomic_load(&g->held_blocks),
        .steps = atomic_load(&g->steps),
        .prompt_tokens = atomic_load(&g->prompt_tokens),
        .generation_tokens = atomic_load(&g->generation_tokens),
        .prefix_queries = atomic_load(&g->prefix_queries),
        .prefix_hits = atomic_load(&g->prefix_hits),
        .pull_queries = atomic_load(&g->pull_queries),
        .pull_hits = atomic_load(&g->pull_hits),
        .preemptions = atomic_load(&g->preemptions),
        .max_drafts = engine->plan.max_drafts,
        .drafts = atomic_load(&g->drafts),
        .draft_tokens = atomic_load(&g->draft_tokens),
        .ranks = engine->n_ranks > 0 ? engine->n_ranks : 1,
        .rank_losses = atomic_load(&g->rank_losses),
        .rank_timeouts = atomic_load(&g->rank_timeouts),
        .regroupings = atomic_load(&g->regroupings),
        .events = kv_publisher_stats(engine->publisher),
    };
    memcpy(&stats.store, store, sizeof(stats.store));
    static_assert(ENGINE_MAX_DRAFTS == STEP_MAX_DRAFTS, "one for each place");
    for (uint32_t i = 0; i < ENGINE_MAX_DRAFTS; i++) {
        stats.accepted[i] = atomic_load(&g->accepted[i]);
    }
    for (uint32_t i = 0; i < ENGINE_STEP_KINDS; i++) {
        stats.device[i] = (engine_device_stats_t){
            .busy_ns = atomic_load(&g->device[i].busy_ns),
            .gap_ns = atomic_load(&g->device[i].gap_ns),
            .gaps = atomic_load(&g->device[i].gaps),
        };
    }
    return stats;
}

typedef struct reset {
    engine_call_t call;
    bool with_tiers;
    bool preempts;
} reset_t;

static weft_status_t clear_store(engine_t *engine, engine_call_t *call)
{
    const reset_t *reset = WEFT_CONTAINER(call, reset_t, call);
    if (reset->preempts) {
        sched_preempt_all(engine->sched);
    } else if (!sched_is_empty(engine->sched)) {
        return WEFT_ERR_IN_USE;
    }
    kv_store_clear(engine->store, reset->with_tiers);
    return WEFT_OK;
}

weft_status_t engine_reset_prefix_cache(engine_t *engine, bool with_tiers, bool preempt)
{
    reset_t reset = {.call = {.fn = clear_store}, .with_tiers = with_tiers, .preempts = preempt};
    return engine_call(engine, &reset.call);
}

const kv_publisher_t *engine_publisher(const engine_t *engine)
{
    return engine->publisher;
}
