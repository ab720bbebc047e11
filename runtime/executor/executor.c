/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/executor/executor.h"

#include "base/alloc.h"
#include "runtime/executor/executor_priv.h"

static void view_kv(const executor_config_t *config, uint32_t layers, k_kv_view_t *views)
{
    const kv_layout_t *layout = config->layout;
    const kv_strides_t *strides = &layout->strides[0];
    for (uint32_t i = 0; i < layers; i++) {
        views[i] = (k_kv_view_t){
            .base = (char *)config->kv_base + i * strides->layer,
            .dtype = config->kv_dtype,
            .block_tokens = layout->block_tokens,
            .heads = layout->groups[0].heads,
            .head_dim = layout->groups[0].head_dim,
            .block_stride = strides->block,
            .head_stride = strides->head,
            .token_stride = strides->token,
            .part_stride = strides->part,
            .scale_offset = strides->scales,
        };
    }
}

/* ---- life ---------------------------------------------------------------------------------- */

static weft_status_t check_config(const executor_config_t *config, weft_diag_t *diag)
{
    const step_limits_t *limits = &config->limits;
    const model_limits_t *model = model_limits(config->model);
    const model_config_t *shape = model_local_config(config->model);
    const kv_layout_t *layout = config->layout;
    const kv_group_t *group = &layout->groups[0];

    if (limits->max_slots == 0 || limits->max_tokens == 0 || limits->max_outputs == 0 ||
        limits->max_tokens > model->max_rows || limits->max_outputs > model->max_outputs ||
        limits->max_context > model->max_context) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "executor: limits of a step (%u slots, %u tokens, %u outputs, context %u) "
                         "do not fit the model's (%u tokens, %u outputs, context %u)",
                         limits->max_slots, limits->max_tokens, limits->max_outputs,
                         limits->max_context, model->max_rows, model->max_outputs,
                         model->max_context);
    }
    if (layout->n_groups != 1 || group->layers != shape->layers ||
        group->heads != shape->kv_heads || group->head_dim != shape->head_dim) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "executor: the KV layout (%u layers of %u heads of %u) is not the model's "
                         "(%u, %u, %u)",
                         group->layers, group->heads, group->head_dim, shape->layers,
                         shape->kv_heads, shape->head_dim);
    }
    return WEFT_OK;
}

weft_status_t executor_check_attention(const k_ops_t *ops, const kv_layout_t *layout,
                                       k_dtype_t kv_dtype, uint32_t latent, weft_diag_t *diag)
{
    const k_kv_view_t view = {
        .dtype = kv_dtype,
        .block_tokens = layout->block_tokens,
        .head_dim = layout->groups[0].head_dim,
    };
    return ops->can_attend == NULL || ops->can_attend(&view, latent)
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                           "kernels \"%s\" have no attention on this device for the model's %s of "
                           "%u elements in blocks of %u tokens (--block-size) of %s "
                           "(--kv-cache-dtype)",
                           ops->name, latent > 0 ? "latents" : "heads",
                           latent > 0 ? 2 * view.head_dim : view.head_dim, view.block_tokens,
                           k_dtype_info(kv_dtype)->name);
}

weft_status_t executor_create(const executor_config_t *config, weft_diag_t *diag,
                              executor_t **executor_out)
{
    const model_config_t *shape = model_local_config(config->model);
    weft_status_t status = check_config(config, diag);
    if (status >= 0) {
        status = executor_check_attention(config->stream->ops, config->layout, config->kv_dtype,
                                          shape->mla.kv_latent, diag);
    }
    if (status < 0) {
        return status;
    }
    executor_t *executor = weft_zalloc(sizeof(*executor), "runtime.executor");
    if (executor == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    executor->model = config->model;
    executor->stream = config->stream;
    executor->is_timed = config->is_timed;
    executor->depth = config->depth > 0 ? config->depth : EXECUTOR_MIN_DEPTH;
    executor_set_sizes(executor, &config->limits, shape, model_shard(config->model),
                       config->layout->block_tokens, config->stream->device->ops->is_host);
    executor->embedding_bytes = shape->hidden * k_dtype_info(config->stream->ops->act)->block_bytes;

    status = executor_take_memory(executor, shape->layers, diag);
    if (status >= 0) {
        status =
            k_stream_reserve(config->stream, config->limits.max_outputs, executor_widest(executor));
    }
    if (status < 0) {
        executor_destroy(executor);
        return status;
    }
    view_kv(config, shape->layers, executor->kv);
    executor_graphs_init(executor);
    *executor_out = executor;
    return WEFT_OK;
}

void executor_destroy(executor_t *executor)
{
    if (executor == NULL) {
        return;
    }
    k_stream_sync(executor->stream); /* steps nobody collected still write to our memory */
    executor_graphs_drop(executor);
    executor_free_memory(executor);
    weft_free(executor);
}

/* ---- steps --------------------------------------------------------------------------------- */

/* Sampled tokens have become their slots' newest, on the device. */
static void count_sampled(executor_t *executor, const step_plan_t *plan)
{
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        const step_row_t *row = &plan->rows[i];
        if ((row->flags & STEP_ROW_SAMPLE) != 0) {
            executor->slots[row->slot].n_tokens += 1 + row->n_drafts;
            executor->slots[row->slot].n_unsure = row->n_drafts;
        }
    }
}

/* ---- between stages: what the last one sampled is the leader's, rank 0 ---- */

static bool is_leader_of_stages(const model_shard_t *shard)
{
    return shard->stages > 1 && shard->stage == 0 && shard->tensor_rank == 0;
}

static bool is_sender_of_stages(const model_shard_t *shard)
{
    return shard->stages > 1 && model_shard_is_last(shard) && shard->tensor_rank == 0;
}

typedef struct piece {
    void *at;
    size_t bytes; /* 0: nothing to send */
} piece_t;

/* What goes from the last stage to the leader. */
enum { OUTPUT_PIECES = 3 };

static void list_pieces(const executor_t *executor, const outputs_t *outputs, piece_t *pieces)
{
    pieces[0] = (piece_t){outputs->rows, outputs->n_sampled * sizeof(k_sampled_t)};
    pieces[1] = (piece_t){outputs->prompt, outputs->n_prompt * sizeof(k_sampled_t)};
    pieces[2] = (piece_t){outputs->embeddings, outputs->n_embeddings * executor->embedding_stride};
}

/* The last stage's first rank, when the step is done. */
static void send_outputs(const executor_t *executor, const outputs_t *outputs)
{
    const model_shard_t *shard = model_shard(executor->model);
    coll_t *results = model_shard_results(shard);
    piece_t pieces[OUTPUT_PIECES];
    if (shard->stages <= 1 || !model_shard_holds(shard) || !is_sender_of_stages(shard)) {
        return;
    }
    list_pieces(executor, outputs, pieces);
    for (uint32_t i = 0; i < OUTPUT_PIECES; i++) {
        if (pieces[i].bytes > 0) {
            coll_send(results, executor->stream->queue, 0, pieces[i].at, pieces[i].bytes);
        }
    }
}

/* Waits until the step has gone through all stages. */
static weft_status_t receive_outputs(const executor_t *executor, const outputs_t *outputs)
{
    const model_shard_t *shard = model_shard(executor->model);
    coll_t *results = model_shard_results(shard);
    piece_t pieces[OUTPUT_PIECES];
    if (!is_leader_of_stages(shard)) {
        return WEFT_OK;
    }
    const uint32_t last = model_shard_rank(shard, shard->stages - 1);
    list_pieces(executor, outputs, pieces);
    for (uint32_t i = 0; i < OUTPUT_PIECES; i++) {
        if (pieces[i].bytes > 0) {
            coll_receive(results, executor->stream->queue, last, pieces[i].at, pieces[i].bytes);
        }
    }
    return coll_status(results, NULL);
}

static void fetch_outputs(executor_t *executor, const step_plan_t *plan, const step_t *step)
{
    outputs_t *outputs = &executor->outputs[executor->n_launched % executor->depth];
    outputs->step = plan->step;
    outputs->n_rows = plan->n_rows;
    outputs->n_sampled = step->n_sampled;
    outputs->n_prompt = step->n_prompt;
    outputs->n_embeddings = step->n_embeddings;
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        const bool is_sampled = (plan->rows[i].flags & STEP_ROW_SAMPLE) != 0;
        outputs->n_samples[i] = is_sampled ? 1 + plan->rows[i].n_drafts : 0;
    }
    if (model_shard_is_last(model_shard(executor->model))) {
        executor_copy(executor, outputs->rows, executor->device.sampled,
                      step->n_sampled * sizeof(k_sampled_t));
        executor_copy(executor, outputs->prompt, executor->device.prompt,
                      step->n_prompt * sizeof(k_sampled_t));
    }
    outputs->done = executor->stream->device->ops->record(executor->stream->queue);
}

weft_status_t executor_launch(executor_t *executor, const step_plan_t *plan)
{
    if (executor->n_launched - executor->n_collected == executor->depth) {
        return WEFT_ERR_QUEUE_FULL;
    }
    step_t step;
    weft_status_t status = executor_stage(executor, plan, &step);
    if (status >= 0) {
        status = executor_run(executor, plan, &step);
    }
    if (status < 0) {
        return status;
    }
    count_sampled(executor, plan);
    fetch_outputs(executor, plan, &step);
    executor->n_launched++;
    return WEFT_OK;
}

/* What follows drafts moves out from among the rows' first samples. */
static uint32_t part_drafted(outputs_t *outputs)
{
    uint32_t n = 0;
    uint32_t n_drafted = 0;
    uint32_t at = 0;
    for (uint32_t i = 0; i < outputs->n_rows; i++) {
        for (uint32_t j = 0; j < outputs->n_samples[i]; j++, at++) {
            k_sampled_t *to = j == 0 ? &outputs->rows[n++] : &outputs->drafted[n_drafted++];
            *to = outputs->rows[at];
        }
    }
    return n;
}

/* The sampled rows lie packed at the front; from the last on, each moves to its row's place. */
static void spread_rows(outputs_t *outputs)
{
    uint32_t sampled = part_drafted(outputs);
    for (uint32_t i = outputs->n_rows; i-- > 0;) {
        if (outputs->n_samples[i] > 0) {
            sampled--;
            outputs->rows[i] = outputs->rows[sampled];
        }
    }
}

weft_status_t executor_collect(executor_t *executor, step_result_t *result_out)
{
    if (executor->n_collected == executor->n_launched) {
        return WEFT_ERR_NOT_FOUND;
    }
    outputs_t *outputs = &executor->outputs[executor->n_collected % executor->depth];
    weft_status_t status = executor->stream->device->ops->wait(outputs->done);
    if (status < 0) {
        return status;
    }
    executor->n_collected++; /* also of a step whose results will not come: its buffers are free */
    send_outputs(executor, outputs);
    status = receive_outputs(executor, outputs);
    if (status < 0) {
        return status;
    }
    spread_rows(outputs);
    const weft_device_ops_t *device = executor->stream->device->ops;
    const bool is_timed = outputs->begun != NULL;
    const bool has_gap = is_timed && executor->ended != NULL;
    *result_out = (step_result_t){
        .busy_ns = is_timed ? device->elapsed_ns(outputs->begun, outputs->ended) : 0,
        .has_gap = has_gap,
        .gap_ns = has_gap ? device->elapsed_ns(executor->ended, outputs->begun) : 0,
        .step = outputs->step,
        .n_rows = outputs->n_rows,
        .rows = outputs->rows,
        .drafted = outputs->drafted,
        .prompt = outputs->prompt,
        .n_prompt = outputs->n_prompt,
        .embeddings = outputs->embeddings,
        .embedding_stride = executor->embedding_stride,
        .n_embeddings = outputs->n_embeddings,
    };
    executor->ended = outputs->ended;
    return WEFT_OK;
}

void executor_rest(executor_t *executor)
{
    executor->ended = NULL;
}

bool executor_is_ready(const executor_t *executor)
{
    const outputs_t *outputs = &executor->outputs[executor->n_collected % executor->depth];
    return executor->n_collected == executor->n_launched ||
           executor->stream->device->ops->is_done(outputs->done);
}

void executor_forget(executor_t *executor)
{
    (void)k_stream_sync(executor->stream);
    executor_graphs_drop(executor); /* they hold the lost group's collectives */
    executor->n_collected = executor->n_launched;
    executor_rest(executor);
}
