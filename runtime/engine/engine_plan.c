/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/memory_limit.h"
#include "runtime/engine/engine_kv_dtype.h"
#include "runtime/engine/engine_priv.h"

#define MIB ((double)(1 << 20))

/* Bytes that the engine takes, by what they are for. */
typedef struct needs {
    size_t weights;
    size_t activations;
    size_t steps;
    size_t scratch; /* of the stream, for whatever runs on it */
    size_t kv;
    size_t adapters;
    size_t backend; /* what it takes by itself */
    size_t host;    /* the tier there */
    size_t draft;   /* weights, activations and steps of the model that guesses */
} needs_t;

static size_t add(size_t a, size_t b)
{
    return a > SIZE_MAX - b ? SIZE_MAX : a + b;
}

static size_t sum_of(const needs_t *needs)
{
    const size_t steps = add(needs->steps, needs->scratch);
    return add(add(add(needs->weights, needs->activations), add(steps, needs->kv)),
               add(add(needs->adapters, needs->backend), add(needs->host, needs->draft)));
}

static weft_status_t check_options(const engine_options_t *o, const model_config_t *config,
                                   weft_diag_t *diag)
{
    const struct {
        const char *flag;
        uint32_t value;
        uint32_t min;
        uint32_t max;
    } counts[] = {
        {"max-num-seqs", o->max_num_seqs, 1, 1 << 16},
        {"max-num-batched-tokens", o->max_num_batched_tokens, 0, 1 << 20},
        {"max-num-queued-reqs", o->max_num_queued_reqs, 0, 1 << 20},
        {"block-size", o->block_size, 1, KV_HASH_MAX_TOKENS},
    };
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        if (counts[i].value < counts[i].min || counts[i].value > counts[i].max) {
            return weft_diag(diag, WEFT_ERR_INVALID, "--%s %u: %u to %u are possible",
                             counts[i].flag, counts[i].value, counts[i].min, counts[i].max);
        }
    }
    if ((o->block_size & (o->block_size - 1)) != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--block-size %u: not a power of two",
                         o->block_size);
    }
    if (o->step_time_target != -1 && o->step_time_target != 0 && !(o->step_time_target > 1)) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--step-time-target %g: above 1, 0 and -1 are possible",
                         o->step_time_target);
    }
    if (o->max_model_len > config->max_context) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--max-model-len %u: the model allows %u",
                         o->max_model_len, config->max_context);
    }
    return WEFT_OK;
}

static weft_status_t check_store_options(engine_plan_t *plan, const engine_options_t *o,
                                         weft_diag_t *diag)
{
    plan->admits_all = strcmp(o->kv_disk_admission, "all") == 0;
    if (!plan->admits_all && strcmp(o->kv_disk_admission, "reuse") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--kv-disk-admission %s: unknown; reuse and all are possible",
                         o->kv_disk_admission);
    }
    if ((o->kv_disk_bytes > 0) != (o->kv_disk_path[0] != '\0')) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--kv-disk-path and --kv-disk-bytes: give both or none");
    }
    if (!(o->kv_pin_quota >= 0 && o->kv_pin_quota <= 1)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--kv-pin-quota %g: 0 to 1 are possible",
                         o->kv_pin_quota);
    }
    if (!(o->kv_remote_wait > 0 && o->kv_remote_wait <= 60)) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--kv-remote-wait %g: above 0 and up to 60 seconds are possible",
                         o->kv_remote_wait);
    }
    return WEFT_OK;
}

/* Whether requests get embeddings: what the file says, unless told. */
static weft_status_t choose_runner(engine_plan_t *plan, const engine_options_t *options,
                                   const model_config_t *config, weft_diag_t *diag)
{
    const bool is_auto = strcmp(options->runner, "auto") == 0;
    plan->embeds =
        is_auto ? config->pooling != MODEL_POOL_NONE : strcmp(options->runner, "pooling") == 0;
    if (!is_auto && !plan->embeds && strcmp(options->runner, "generate") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--runner %s: unknown; auto, generate and pooling are possible",
                         options->runner);
    }
    if (plan->embeds && config->pooling == MODEL_POOL_OTHER) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "embeddings of this model are not its last token's hidden state, the only "
                         "pooling there is; --runner generate serves it as a language model");
    }
    return WEFT_OK;
}

static void set_limits(engine_plan_t *plan, const engine_place_t *place, uint32_t max_tokens,
                       uint32_t block_tokens)
{
    plan->limits = sched_limits(plan->max_slots, max_tokens, plan->max_context, block_tokens,
                                plan->max_drafts);
    plan->limits.max_embeddings = plan->embeds ? plan->max_slots : 0;
    plan->model_limits = (model_limits_t){
        .max_rows = plan->limits.max_tokens,
        .max_outputs = plan->limits.max_outputs,
        .max_context = plan->max_context,
        .max_lora_rank = plan->max_lora_rank,
        .keeps_packed = plan->keeps_packed,
    };
    if (place->draft->source != NULL) {
        draft_model_plan_steps(&plan->draft_model, place->draft->source, &plan->limits,
                               place->draft->config.max_context);
    }
}

static weft_status_t parse_order(const engine_options_t *options, weft_diag_t *diag,
                                 kv_order_t *order_out)
{
    const weft_status_t status = kv_order_parse(options->kv_cache_layout, diag, order_out);
    if (status < 0) {
        weft_diag_prefix(diag, "--kv-cache-layout");
        return status;
    }
    const bool has_tiers =
        options->kv_host_bytes + options->kv_disk_bytes > 0 || engine_has_peers(options);
    if (!kv_order_is_whole(*order_out) && has_tiers) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "--kv-cache-layout %s: its blocks lie in pieces, which --kv-host-bytes, "
                         "--kv-disk-bytes and --kv-remote-* do not take; use BHLNC or BLHNC",
                         options->kv_cache_layout);
    }
    return WEFT_OK;
}

/* One KV block's layout; how many there will be is not known yet and does not matter to it. */
static weft_status_t set_layout(engine_plan_t *plan, const engine_options_t *options,
                                const model_source_t *source, const model_shard_t *shard,
                                weft_diag_t *diag)
{
    kv_order_t order;
    model_config_t local;
    weft_status_t status = parse_order(options, diag, &order);
    if (status >= 0) {
        status = model_local_config_of(source, shard, diag, &local);
    }
    if (status < 0) {
        return status;
    }
    plan->layout = (kv_layout_t){
        .order = order,
        .block_tokens = options->block_size,
        .element_bytes = k_dtype_info(plan->kv_dtype)->block_bytes,
        .scale_bytes = k_kv_scale_bytes(plan->kv_dtype),
        .n_groups = 1,
        /* The window is that of all layers, whichever are here: ranks free blocks alike. */
        .groups = {{.layers = local.layers,
                    .heads = local.kv_heads,
                    .head_dim = local.head_dim,
                    .window = model_kv_window(model_source_config(source))}},
    };
    return kv_layout_init(&plan->layout, 1, diag);
}

/* Of both models, before memory is taken and weights are read. */
static weft_status_t check_attention(const engine_plan_t *plan, const model_source_t *source,
                                     const engine_place_t *place, weft_diag_t *diag)
{
    const model_source_t *draft = place->draft->source;
    weft_status_t status =
        executor_check_attention(place->ops, &plan->layout, plan->kv_dtype,
                                 model_source_config(source)->mla.kv_latent, diag);
    if (status < 0 || draft == NULL) {
        return status;
    }
    status = executor_check_attention(place->ops, &plan->draft_model.layout, plan->kv_dtype,
                                      model_source_config(draft)->mla.kv_latent, diag);
    if (status < 0) {
        weft_diag_prefix(diag, "%s", model_source_path(draft));
    }
    return status;
}

/* Of the model that answers and of the one that guesses: both have as many blocks. */
static size_t block_bytes_of(const engine_plan_t *plan)
{
    const bool has_two = plan->draft_model.n_blocks > 0;
    return plan->layout.block_bytes[0] + (has_two ? plan->draft_model.layout.block_bytes[0] : 0);
}

static weft_status_t lay_out_blocks(engine_plan_t *plan, uint32_t n_blocks, weft_diag_t *diag)
{
    plan->n_blocks = n_blocks;
    if (plan->draft_model.n_blocks > 0) {
        plan->draft_model.n_blocks = n_blocks;
    }
    return kv_layout_init(&plan->layout, n_blocks, diag);
}

static size_t blocks_for(uint32_t tokens, uint32_t block_tokens)
{
    return tokens / block_tokens + (tokens % block_tokens != 0);
}

/*
 * What the device may be asked for: a host is shared, a GPU has a part that is ours, as far as
 * others have left it. Ranks with the same device have yet to take theirs, all alike.
 */
static size_t budget_of(const engine_place_t *place, const engine_options_t *options)
{
    const weft_device_t *device = place->device;
    const size_t available = device->ops->memory_available(device);
    if (device->ops->is_host) {
        return available / place->on_device;
    }
    const size_t total = device->ops->memory_total(device);
    const size_t spare = total / 50; /* of what nobody plans: modules, the context */
    const size_t left = available > spare ? available - spare : 0;
    const size_t part = (size_t)(options->gpu_memory_utilization * (double)total);
    return (part < left ? part : left) / place->on_device;
}

/* As many as all slots could fill, within what the rest leaves; of a host, a third at most. */
static size_t default_blocks(const engine_plan_t *plan, const needs_t *others, size_t available,
                             bool is_host)
{
    const size_t block_bytes = block_bytes_of(plan);
    const size_t wanted =
        plan->max_slots * blocks_for(plan->max_context, plan->layout.block_tokens);
    const size_t taken = sum_of(others);
    const size_t rest = available > taken ? available - taken : 0;
    const size_t left = is_host ? rest / 10 * 9 : rest;
    const size_t bytes = is_host && left > available / 3 ? available / 3 : left;
    return wanted < bytes / block_bytes ? wanted : bytes / block_bytes;
}

static weft_status_t count_blocks(engine_plan_t *plan, const engine_options_t *options,
                                  const needs_t *others, size_t available, bool is_host,
                                  weft_diag_t *diag)
{
    const size_t block_bytes = block_bytes_of(plan);
    size_t n = options->num_gpu_blocks > 0   ? options->num_gpu_blocks
               : options->kv_cache_bytes > 0 ? options->kv_cache_bytes / block_bytes
                                             : default_blocks(plan, others, available, is_host);
    const size_t most = UINT32_C(1) << 30;
    n = n < most ? n : most;
    const size_t tokens = n * plan->layout.block_tokens;
    const size_t one_sequence =
        blocks_for(plan->max_context, plan->layout.block_tokens) * block_bytes;
    if (n == 0 || (options->max_model_len > 0 && tokens < plan->max_context)) {
        return weft_diag(
            diag, WEFT_ERR_NO_MEMORY,
            "the KV cache would hold %zu tokens in %.1f MiB, less than one sequence of "
            "%u: give it %.1f MiB (--kv-cache-memory-bytes)%s or lower --max-model-len; "
            "%.1f MiB are available, %.1f MiB of them for the rest",
            tokens, (double)(n * block_bytes) / MIB, plan->max_context, (double)one_sequence / MIB,
            is_host ? "" : ", raise --gpu-memory-utilization", (double)available / MIB,
            (double)sum_of(others) / MIB);
    }
    plan->max_context = tokens < plan->max_context ? (uint32_t)tokens : plan->max_context;
    return lay_out_blocks(plan, (uint32_t)n, diag);
}

/* The stream has one, for the widest of all that runs on it. */
static weft_status_t measure_scratch(const engine_plan_t *plan, const model_source_t *source,
                                     const model_config_t *local, const engine_place_t *place,
                                     weft_diag_t *diag, size_t *bytes_out)
{
    const bool is_host = place->device->ops->is_host;
    const size_t steps =
        executor_scratch(&plan->limits, local, place->shard, place->ops, place->threads, is_host);
    size_t model = 0;
    size_t draft = 0;
    weft_status_t status = model_scratch(source, place->shard, &plan->model_limits, place->ops,
                                         place->threads, diag, &model);
    if (status >= 0 && place->draft->source != NULL) {
        status = draft_model_scratch(&plan->draft_model, place->draft->source, place->ops,
                                     place->threads, is_host, diag, &draft);
    }
    const size_t own = model > steps ? model : steps;
    *bytes_out = own > draft ? own : draft;
    return status;
}

static weft_status_t measure(const engine_plan_t *plan, const model_source_t *source,
                             const engine_place_t *place, weft_diag_t *diag, needs_t *needs_out)
{
    model_config_t local;
    weft_status_t status = model_local_config_of(source, place->shard, diag, &local);
    if (status >= 0 && place->draft->source != NULL) {
        status = draft_model_memory(&plan->draft_model, place->draft->source, place->ops,
                                    place->device->ops->is_host, diag, &needs_out->draft);
    }
    if (status >= 0) {
        status = measure_scratch(plan, source, &local, place, diag, &needs_out->scratch);
    }
    if (status < 0) {
        return status;
    }
    needs_out->steps =
        executor_memory(&plan->limits, &local, place->shard, plan->layout.block_tokens,
                        place->depth, place->device->ops->is_host);
    needs_out->adapters = plan->adapter_bytes;
    needs_out->backend = place->ops->own_bytes;
    return model_memory(source, place->shard, &plan->model_limits, place->ops, diag,
                        &needs_out->weights, &needs_out->activations);
}

static weft_status_t check_memory(const needs_t *needs, size_t available, bool is_host,
                                  weft_diag_t *diag)
{
    if (sum_of(needs) <= available) {
        return WEFT_OK;
    }
    return weft_diag(
        diag, WEFT_ERR_NO_MEMORY,
        "needs %.1f MiB of memory (weights %.1f, activations %.1f, steps %.1f, scratch %.1f, KV "
        "cache %.1f, adapters %.1f, a model that guesses %.1f, the device's own %.1f, host tier "
        "%.1f) "
        "but %.1f MiB are available: lower --kv-host-bytes, --kv-cache-memory-bytes, "
        "--num-gpu-blocks-override, --max-num-seqs, --max-num-batched-tokens or --max-model-len%s",
        (double)sum_of(needs) / MIB, (double)needs->weights / MIB, (double)needs->activations / MIB,
        (double)needs->steps / MIB, (double)needs->scratch / MIB, (double)needs->kv / MIB,
        (double)needs->adapters / MIB, (double)needs->draft / MIB, (double)needs->backend / MIB,
        (double)needs->host / MIB, (double)available / MIB,
        is_host ? "" : ", or raise --gpu-memory-utilization");
}

/* The tier's memory where it is not part of what the device has. */
static weft_status_t check_host_tier(const engine_options_t *options, weft_diag_t *diag)
{
    const size_t available = weft_memory_available("");
    if (options->kv_host_bytes > available) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY,
                         "--kv-host-bytes: %.1f MiB, but the host has %.1f MiB available",
                         (double)options->kv_host_bytes / MIB, (double)available / MIB);
    }
    return WEFT_OK;
}

uint32_t engine_step_tokens(const engine_options_t *options, const weft_device_t *device)
{
    return options->max_num_batched_tokens > 0 ? options->max_num_batched_tokens
           : device->ops->is_host              ? 256
                                               : 2048;
}

/* More adapters come as far as the device has some left. */
static weft_status_t plan_adapters(engine_plan_t *plan, const engine_options_t *options,
                                   const model_source_t *source, const engine_place_t *place,
                                   weft_diag_t *diag)
{
    model_cut_t cut;
    model_config_t local;
    const adapter_model_t model = {
        .config = model_source_config(source),
        .cut = &cut,
        .max_rank = options->max_lora_rank,
    };
    if (!options->enable_lora) {
        return WEFT_OK;
    }
    weft_status_t status = model_source_cut(source, place->shard, diag, &cut);
    if (status >= 0) {
        status = model_local_config_of(source, place->shard, diag, &local);
    }
    plan->max_lora_rank = options->max_lora_rank;
    return status < 0
               ? status
               : engine_adapters_measure(options, &model, &local, diag, &plan->adapter_bytes);
}

/* With the KV blocks that the plan has. */
static weft_status_t measure_all(engine_plan_t *plan, const model_source_t *source,
                                 const engine_place_t *place, weft_diag_t *diag, needs_t *needs)
{
    plan->max_pinned_blocks = (uint32_t)(plan->pin_quota * plan->n_blocks);
    needs->kv = block_bytes_of(plan) * plan->n_blocks;
    const weft_status_t status = measure(plan, source, place, diag, needs);
    plan->needs_bytes = sum_of(needs);
    return status < 0 ? status
                      : check_memory(needs, plan->budget_bytes, place->device->ops->is_host, diag);
}

weft_status_t engine_plan_settle(engine_plan_t *plan, const model_source_t *source,
                                 const engine_place_t *place, uint32_t n_blocks,
                                 uint32_t max_context, weft_diag_t *diag)
{
    needs_t needs = {.host = place->device->ops->is_host ? plan->host_bytes : 0};
    plan->max_context = max_context;
    set_limits(plan, place, plan->limits.max_tokens, plan->layout.block_tokens);
    const weft_status_t status = lay_out_blocks(plan, n_blocks, diag);
    return status < 0 ? status : measure_all(plan, source, place, diag, &needs);
}

weft_status_t engine_plan_init(engine_plan_t *plan, const engine_options_t *options,
                               const model_source_t *source, const engine_place_t *place,
                               weft_diag_t *diag)
{
    const model_config_t *config = model_source_config(source);
    const weft_device_t *device = place->device;
    const size_t available = budget_of(place, options);
    const uint32_t step_tokens = engine_step_tokens(options, device);
    needs_t needs = {.host = device->ops->is_host ? options->kv_host_bytes : 0};
    weft_status_t status = check_options(options, config, diag);
    if (status == WEFT_OK && !device->ops->is_host) {
        status = check_host_tier(options, diag);
    }
    if (status < 0) {
        return status;
    }
    *plan = (engine_plan_t){
        /* Every running sequence decodes one token in each step. */
        .max_slots = options->max_num_seqs < step_tokens ? options->max_num_seqs : step_tokens,
        .max_context = options->max_model_len > 0 ? options->max_model_len : config->max_context,
        .budget_bytes = available,
        .host_bytes = options->kv_host_bytes,
        .max_drafts = place->draft->config.n_tokens,
        .keeps_packed = options->keep_packed_weights,
    };
    status = check_store_options(plan, options, diag);
    if (status == WEFT_OK) {
        status = plan_adapters(plan, options, source, place, diag);
    }
    if (status == WEFT_OK) {
        status = choose_runner(plan, options, config, diag);
    }
    if (status == WEFT_OK) {
        /* Half precision costs no quality and half the memory; GPUs compute with bf16 anyway. */
        const k_dtype_t if_auto = place->ops->act == K_BF16 ? K_BF16 : K_F16;
        status = engine_kv_dtype_parse(options->kv_cache_dtype, if_auto, diag, &plan->kv_dtype);
    }
    if (status == WEFT_OK) {
        status = engine_kv_dtype_check(plan->kv_dtype, config, diag);
    }
    if (status == WEFT_OK) {
        status = set_layout(plan, options, source, place->shard, diag);
    }
    if (status == WEFT_OK && place->draft->source != NULL) {
        status = draft_model_plan_init(&plan->draft_model, place->draft->source,
                                       options->block_size, plan->kv_dtype, diag);
    }
    if (status == WEFT_OK) {
        status = check_attention(plan, source, place, diag);
    }
    if (status < 0) {
        return status;
    }
    set_limits(plan, place, step_tokens, options->block_size);
    status = measure(plan, source, place, diag, &needs);
    if (status == WEFT_OK) {
        status = count_blocks(plan, options, &needs, available, device->ops->is_host, diag);
    }
    if (status < 0) {
        return status;
    }
    set_limits(plan, place, step_tokens, options->block_size);
    plan->pin_quota = options->kv_pin_quota;
    return measure_all(plan, source, place, diag, &needs);
}
