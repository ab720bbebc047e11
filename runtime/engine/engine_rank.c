/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "engine"
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kernels/k_cores.h"
#include "runtime/engine/engine_priv.h"
#include "runtime/engine/engine_share.h"

/* ---- what ranks are asked for ---------------------------------------------------------------- */

static weft_status_t check_ranks(const engine_options_t *options, weft_diag_t *diag)
{
    if (options->tensor_parallel_size == 0 || options->pipeline_parallel_size == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--%s-parallel-size 0: 1 and more are possible",
                         options->tensor_parallel_size == 0 ? "tensor" : "pipeline");
    }
    if (options->pipeline_parallel_size > EXECUTOR_MAX_DEPTH) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "--pipeline-parallel-size %u: at most %u, a step in flight for each",
                         options->pipeline_parallel_size, EXECUTOR_MAX_DEPTH);
    }
    if (engine_has_peers(options) &&
        (options->tensor_parallel_size > 1 || options->pipeline_parallel_size > 1)) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "--%s: each rank has its part of a block, and only rank 0 could exchange "
                         "its own: leave it out with more than one rank",
                         options->kv_remote_peers[0] != '\0' ? "kv-remote-peers"
                                                             : "kv-remote-listen");
    }
    return WEFT_OK;
}

static weft_status_t check_memory_part(const engine_options_t *options, weft_diag_t *diag)
{
    const double part = options->gpu_memory_utilization;
    return part > 0 && part <= 1
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID,
                           "--gpu-memory-utilization %g: above 0 and up to 1 is possible", part);
}

weft_status_t engine_options_check(const engine_options_t *options, weft_diag_t *diag)
{
    weft_status_t status = check_ranks(options, diag);
    if (status >= 0) {
        status = check_memory_part(options, diag);
    }
    if (status >= 0) {
        status = engine_remote_check(options, diag);
    }
    if (status >= 0) {
        status = engine_adapters_check(options, diag);
    }
    return status < 0 ? status : engine_draft_check(options, diag);
}

/* What of the model is here; NULL: all. Its collectives are those of the links that there are. */
static const model_shard_t *shard_of(const engine_t *engine)
{
    return engine->n_ranks > 0 ? &engine->group.ranks.shard : NULL;
}

/*
 * Steps in flight: one for each stage, so that all have work. The cpu's work is done when launch
 * returns: nothing else to overlap.
 */
static uint32_t depth_of(const engine_t *engine)
{
    const uint32_t least = engine->device->ops->is_host ? 1 : EXECUTOR_MIN_DEPTH;
    const uint32_t stages = engine->n_ranks > 0 ? engine->group.ranks.shard.stages : 1;
    const uint32_t most = EXECUTOR_MAX_DEPTH;
    return stages <= least ? least : stages < most ? stages : most;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* Ranks that may use just the same cores divide them, unless told how many each has. */
static uint32_t threads_of(const engine_t *engine, const engine_options_t *options)
{
    const uint32_t sharers = engine->group.on_cores;
    if (options->threads > 0 || sharers < 2) {
        return options->threads;
    }
    const uint32_t cores = k_cores_usable();
    return cores > sharers ? cores / sharers : 1;
}

static weft_status_t open_device(engine_t *engine, const engine_options_t *options,
                                 const engine_ranks_t *ranks, weft_diag_t *diag)
{
    const uint32_t index =
        ranks == NULL ? engine_share_index(options->data_parallel_rank, 1, 0) : ranks->device_index;
    return weft_device_open(options->device, (int)index, diag, &engine->device);
}

static engine_terms_t terms_of(const engine_t *engine)
{
    const engine_plan_t *plan = &engine->plan;
    const char *engine_id = engine->transfer_config.engine_id;
    engine_terms_t terms = {
        .n_blocks = plan->n_blocks,
        .max_context = plan->max_context,
        .max_slots = plan->max_slots,
        .max_tokens = plan->limits.max_tokens,
        .block_tokens = plan->layout.block_tokens,
        .kv_dtype = (uint32_t)plan->kv_dtype,
        .vocab = engine->model_config.vocab,
    };
    snprintf(terms.engine_id, sizeof(terms.engine_id), "%s", engine_id == NULL ? "" : engine_id);
    return terms;
}

/* Peers know all ranks by rank 0's. */
static weft_status_t take_engine_id(engine_t *engine, const engine_terms_t *terms,
                                    weft_diag_t *diag)
{
    kv_transfer_config_t *config = &engine->transfer_config;
    if (config->engine_id == NULL || strcmp(config->engine_id, terms->engine_id) == 0) {
        return WEFT_OK;
    }
    char *engine_id = weft_strdup(terms->engine_id, "engine.engine_id");
    if (engine_id == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory to meet the other ranks");
    }
    weft_free(config->engine_id);
    config->engine_id = engine_id;
    return WEFT_OK;
}

static engine_place_t place_of(const engine_t *engine)
{
    return (engine_place_t){
        .shard = shard_of(engine),
        .device = engine->device,
        .ops = engine->stream->ops,
        .threads = k_stream_threads(engine->stream),
        .on_device = engine->n_ranks > 0 ? engine->group.on_device : 1,
        .depth = engine->max_depth,
        .draft = &engine->draft,
    };
}

static weft_status_t agree(engine_t *engine, const model_source_t *source, weft_status_t status,
                           weft_diag_t *diag)
{
    engine_terms_t terms = terms_of(engine);
    status = engine_group_agree(&engine->group, status, diag, &terms);
    if (status < 0) {
        return status;
    }
    const engine_place_t place = place_of(engine);
    status =
        engine_plan_settle(&engine->plan, source, &place, terms.n_blocks, terms.max_context, diag);
    if (status >= 0) {
        status = take_engine_id(engine, &terms, diag);
    }
    /* The others have agreed: they hear it where all say that they are loaded. */
    return status < 0 ? engine_join_ranks(engine, status, diag) : WEFT_OK;
}

static void advise(const engine_t *engine, const char *refused, weft_diag_t *diag)
{
    const bool is_gpu = engine->device != NULL && !engine->device->ops->is_host;
    weft_diag(diag, WEFT_ERR_NO_MEMORY,
              "%s: %zu MiB are needed, and some for tokenizer, threads and requests; lower "
              "--kv-cache-memory-bytes, --max-num-seqs, --max-num-batched-tokens or "
              "--max-model-len%s",
              refused, engine->plan.needs_bytes >> 20,
              is_gpu ? ", or --gpu-memory-utilization" : "");
}

void engine_explain_refusal(const engine_t *engine, weft_status_t status, weft_diag_t *diag)
{
    if (status != WEFT_ERR_NO_MEMORY || diag == NULL || strstr(diag->text, "--") != NULL) {
        return; /* who names an option knows better */
    }
    const weft_diag_t refused = *diag;
    advise(engine, refused.text[0] == '\0' ? "the system refused memory" : refused.text, diag);
}

weft_status_t engine_open_rank(engine_t *engine, const engine_options_t *options,
                               const model_source_t *source, const engine_ranks_t *ranks,
                               weft_diag_t *diag)
{
    model_shard_t alone;
    weft_status_t status = engine_options_check(options, diag);
    if (status >= 0 && ranks == NULL) {
        status = engine_shard(options, 0, 1, diag, &alone);
    }
    if (status >= 0) {
        status = open_device(engine, options, ranks, diag);
    }
    if (status >= 0 && ranks != NULL) {
        engine->group.ranks = *ranks;
        engine->restarts_left = ranks->restarts;
        status = engine_group_form(&engine->group, engine->device, false, diag);
        engine->n_ranks = engine->group.size;
    }
    if (status < 0) {
        return status;
    }
    engine->depth = depth_of(engine);
    engine->max_depth = engine->depth < EXECUTOR_MIN_DEPTH ? EXECUTOR_MIN_DEPTH : engine->depth;
    status = k_stream_create(engine->device, options->cpu_isa, threads_of(engine, options), diag,
                             &engine->stream);
    if (status >= 0) {
        status = engine_draft_open(engine, options, diag);
    }
    if (status >= 0) {
        const engine_place_t place = place_of(engine);
        status = engine_plan_init(&engine->plan, options, source, &place, diag);
    }
    if (status >= 0) {
        status = engine_transfer_parse(engine, options, diag);
    }
    return ranks == NULL ? status : agree(engine, source, status, diag);
}

/* By the rank that tells of it; a model that guesses has steps of its own between those. */
static bool is_timed(const engine_t *engine)
{
    return engine->device->ops->elapsed_ns != NULL && engine->group.rank == 0 &&
           engine->plan.draft_model.n_blocks == 0;
}

weft_status_t engine_load_rank(engine_t *engine, const model_source_t *source,
                               const kv_pool_t *pool, weft_diag_t *diag)
{
    const engine_plan_t *plan = &engine->plan;
    weft_status_t status = model_create(source, shard_of(engine), &plan->model_limits,
                                        engine->stream, diag, &engine->model);
    if (status < 0) {
        return status;
    }
    const executor_config_t config = {
        .model = engine->model,
        .stream = engine->stream,
        .limits = plan->limits,
        .layout = kv_pool_layout(pool),
        .kv_dtype = plan->kv_dtype,
        .kv_base = kv_pool_memory(pool)->addr,
        .depth = engine->max_depth,
        .is_timed = is_timed(engine),
    };
    status = executor_create(&config, diag, &engine->executor);
    if (status >= 0 && step_plan_create(&plan->limits, &engine->step) < 0) {
        status = weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory for the plan of a step");
    }
    return status;
}

/* ---- meeting --------------------------------------------------------------------------------- */

static step_wire_bounds_t bounds_of(const engine_t *engine)
{
    return (step_wire_bounds_t){
        .limits = engine->plan.limits,
        .vocab = engine->model_config.vocab,
        .n_blocks = engine->plan.n_blocks,
    };
}

weft_status_t engine_join_ranks(engine_t *engine, weft_status_t status, weft_diag_t *diag)
{
    if (!engine_group_is_formed(&engine->group)) {
        return status;
    }
    const step_wire_bounds_t bounds = bounds_of(engine);
    status = engine_kv_share(engine, status, diag);
    status = engine_adapters_share(engine, status, diag);
    if (status >= 0 && engine->group.rank > 0) { /* the leader when its engine's thread can */
        status = engine_kv_meet(engine, diag);
    }
    return engine_group_open(&engine->group, status, &bounds, diag);
}

/* Blocks and context were settled when this rank was loaded: a rank that is new takes them. */
static weft_status_t agree_again(engine_t *engine, weft_diag_t *diag)
{
    engine_terms_t terms = terms_of(engine);
    terms.is_settled = 1;
    const weft_status_t status = engine_group_agree(&engine->group, WEFT_OK, diag, &terms);
    return status < 0 || engine->group.rank == 0 ? status : take_engine_id(engine, &terms, diag);
}

weft_status_t engine_rejoin_ranks(engine_t *engine, weft_diag_t *diag)
{
    engine_group_t *group = &engine->group;
    engine_adapters_part(engine);
    engine_group_part(group);
    weft_status_t status = engine_group_form(group, engine->device, true, diag);
    if (status < 0) {
        return status;
    }
    model_set_groups(engine->model, &group->ranks.shard);
    status = agree_again(engine, diag);
    return engine_join_ranks(engine, status, diag);
}

void engine_describe_loss(weft_status_t status, uint32_t rank, weft_diag_t *diag)
{
    if (rank == COLL_NO_RANK) {
        weft_diag(diag, status, "the group of ranks failed: %s", weft_strerror(status));
    } else {
        weft_diag(diag, status, "rank %u was lost: %s", rank, weft_strerror(status));
    }
}
