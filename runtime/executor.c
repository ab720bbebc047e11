/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "executor"

#include "runtime/executor.h"

#include <assert.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "runtime/carve.h"

#define STEPS_IN_FLIGHT 2

/* What the host knows of a sequence; its tokens and block table lie on the device. */
typedef struct slot {
    uint32_t n_tokens; /* of its history; a sampled token counts from its launch on */
    uint32_t prompt_tokens;
    uint32_t n_blocks; /* of its block table */
    uint32_t n_bias;
    step_sampling_t sampling;
    uint64_t step; /* the last one with a row of it */
} slot_t;

/* What a step tells the device: written on the host, then copied to the same struct there. */
typedef struct inputs {
    k_seq_t *seqs;           /* [max_slots] */
    k_sample_row_t *samples; /* [max_slots] */
    uint32_t *prompt_rows;   /* [max_tokens] model rows whose tokens' successors are known */
    uint32_t *prompt_tops;   /* [max_tokens] */
    uint32_t *sample_rows;   /* [max_slots] model rows that sample */
} inputs_t;

typedef struct device_state {
    int32_t *history;       /* [max_slots][max_context + 1] */
    uint32_t *block_tables; /* [max_slots][table_blocks] */
    k_bias_t *biases;       /* [max_slots][max_biases] */
    uint32_t *masks;        /* [max_slots][mask_words] */
    inputs_t inputs;
    int32_t *ids;         /* [max_tokens] */
    int32_t *targets;     /* [max_tokens] */
    float *logits;        /* [max_outputs, vocab] */
    k_sampled_t *sampled; /* [max_slots], of sample_rows */
    k_sampled_t *prompt;  /* [max_tokens], of prompt_rows */
} device_state_t;

/* What a step answers, on the host. */
typedef struct outputs {
    uint64_t step;
    weft_event_t *done;
    uint32_t n_rows;
    uint32_t n_sampled;
    uint32_t n_prompt;
    k_sampled_t *rows;   /* [max_slots] */
    k_sampled_t *prompt; /* [max_tokens] */
    bool *is_sampled;    /* [max_slots] */
} outputs_t;

/* Counts of the step being made. */
typedef struct step {
    uint32_t n_tokens;   /* rows of the model */
    uint32_t max_tokens; /* the longest sequence, this step's tokens counted */
    uint32_t n_seqs;
    uint32_t n_prompt;
    uint32_t n_sampled;
} step_t;

struct executor {
    model_t *model;
    k_stream_t *stream;
    step_limits_t limits;
    uint32_t vocab;
    uint32_t block_tokens;
    uint32_t table_blocks;
    uint32_t mask_words;

    weft_mem_t memory;
    device_state_t device;

    void *host_memory;
    slot_t *slots;          /* [max_slots] */
    uint32_t *block_tables; /* the device's, mirrored */
    uint32_t *masks;
    k_kv_view_t *kv; /* [layers] */
    inputs_t inputs;
    outputs_t outputs[STEPS_IN_FLIGHT];
    uint64_t n_launched;
    uint64_t n_collected;
};

/* ---- memory -------------------------------------------------------------------------------- */

static void set_sizes(executor_t *executor, const step_limits_t *limits,
                      const model_config_t *config, uint32_t block_tokens)
{
    executor->limits = *limits;
    executor->vocab = config->vocab;
    executor->block_tokens = block_tokens;
    executor->table_blocks = limits->max_context / block_tokens + 1;
    executor->mask_words = (config->vocab + 31) / 32;
}

static void lay_out_inputs(const step_limits_t *limits, carve_t *carve, inputs_t *inputs)
{
    inputs->seqs = carve_take(carve, limits->max_slots, sizeof(k_seq_t));
    inputs->samples = carve_take(carve, limits->max_slots, sizeof(k_sample_row_t));
    inputs->prompt_rows = carve_take(carve, limits->max_tokens, sizeof(uint32_t));
    inputs->prompt_tops = carve_take(carve, limits->max_tokens, sizeof(uint32_t));
    inputs->sample_rows = carve_take(carve, limits->max_slots, sizeof(uint32_t));
}

static void lay_out_device(const executor_t *executor, carve_t *carve, device_state_t *device)
{
    const step_limits_t *limits = &executor->limits;
    const size_t slots = limits->max_slots;
    const size_t outputs = limits->max_outputs;
    device->history = carve_take(carve, slots * (limits->max_context + 1), sizeof(int32_t));
    device->block_tables = carve_take(carve, slots * executor->table_blocks, sizeof(uint32_t));
    device->biases = carve_take(carve, slots * limits->max_biases, sizeof(k_bias_t));
    device->masks = carve_take(carve, slots * executor->mask_words, sizeof(uint32_t));
    lay_out_inputs(limits, carve, &device->inputs);
    device->ids = carve_take(carve, limits->max_tokens, sizeof(int32_t));
    device->targets = carve_take(carve, limits->max_tokens, sizeof(int32_t));
    device->logits = carve_take(carve, outputs * executor->vocab, sizeof(float));
    device->sampled = carve_take(carve, slots, sizeof(k_sampled_t));
    device->prompt = carve_take(carve, limits->max_tokens, sizeof(k_sampled_t));
}

static void lay_out_host(executor_t *executor, uint32_t layers, carve_t *carve)
{
    const step_limits_t *limits = &executor->limits;
    const size_t slots = limits->max_slots;
    executor->slots = carve_take(carve, slots, sizeof(slot_t));
    executor->block_tables = carve_take(carve, slots * executor->table_blocks, sizeof(uint32_t));
    executor->masks = carve_take(carve, slots * executor->mask_words, sizeof(uint32_t));
    executor->kv = carve_take(carve, layers, sizeof(k_kv_view_t));
    lay_out_inputs(limits, carve, &executor->inputs);
    for (uint32_t i = 0; i < STEPS_IN_FLIGHT; i++) {
        outputs_t *outputs = &executor->outputs[i];
        outputs->rows = carve_take(carve, slots, sizeof(k_sampled_t));
        outputs->prompt = carve_take(carve, limits->max_tokens, sizeof(k_sampled_t));
        outputs->is_sampled = carve_take(carve, slots, sizeof(bool));
    }
}

static void measure(executor_t *executor, uint32_t layers, size_t *device_out, size_t *host_out)
{
    carve_t device = {.base = NULL};
    carve_t host = {.base = NULL};
    lay_out_device(executor, &device, &executor->device);
    lay_out_host(executor, layers, &host);
    *device_out = device.used;
    *host_out = host.used;
}

size_t executor_memory(const step_limits_t *limits, const model_config_t *config,
                       uint32_t block_tokens)
{
    executor_t executor = {0};
    size_t device;
    size_t host;
    set_sizes(&executor, limits, config, block_tokens);
    measure(&executor, config->layers, &device, &host);
    return device > SIZE_MAX - host ? SIZE_MAX : device + host;
}

static weft_status_t take_memory(executor_t *executor, uint32_t layers, weft_diag_t *diag)
{
    weft_device_t *device = executor->stream->device;
    size_t device_bytes;
    size_t host_bytes;
    measure(executor, layers, &device_bytes, &host_bytes);

    weft_status_t status = device->ops->alloc(device, device_bytes, 0, &executor->memory);
    if (status >= 0) {
        executor->host_memory =
            weft_alloc_aligned(CARVE_ALIGNMENT, host_bytes, "runtime.executor_steps");
        status = executor->host_memory == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    if (status < 0) {
        return weft_diag(
            diag, status,
            "not enough memory: steps of %u sequences of up to %u tokens take %zu MiB; "
            "lower max-num-seqs or max-model-len",
            executor->limits.max_slots, executor->limits.max_context,
            (device_bytes >> 20) + (host_bytes >> 20) + 1);
    }
    memset(executor->host_memory, 0, host_bytes);
    carve_t carve = {.base = executor->memory.addr};
    lay_out_device(executor, &carve, &executor->device);
    carve = (carve_t){.base = executor->host_memory};
    lay_out_host(executor, layers, &carve);
    return WEFT_OK;
}

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
        };
    }
}

/* ---- life ---------------------------------------------------------------------------------- */

static weft_status_t check_config(const executor_config_t *config, weft_diag_t *diag)
{
    const step_limits_t *limits = &config->limits;
    const model_limits_t *model = model_limits(config->model);
    const model_config_t *shape = model_config(config->model);
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

weft_status_t executor_create(const executor_config_t *config, weft_diag_t *diag,
                              executor_t **executor_out)
{
    const model_config_t *shape = model_config(config->model);
    weft_status_t status = check_config(config, diag);
    if (status < 0) {
        return status;
    }
    executor_t *executor = weft_zalloc(sizeof(*executor), "runtime.executor");
    if (executor == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    executor->model = config->model;
    executor->stream = config->stream;
    set_sizes(executor, &config->limits, shape, config->layout->block_tokens);

    status = take_memory(executor, shape->layers, diag);
    if (status >= 0) {
        status = k_stream_reserve(config->stream, config->limits.max_outputs, shape->vocab);
    }
    if (status < 0) {
        executor_destroy(executor);
        return status;
    }
    view_kv(config, shape->layers, executor->kv);
    *executor_out = executor;
    return WEFT_OK;
}

void executor_destroy(executor_t *executor)
{
    if (executor == NULL) {
        return;
    }
    k_stream_sync(executor->stream); /* steps nobody collected still write to our memory */
    if (executor->memory.addr != NULL) {
        executor->stream->device->ops->free(executor->stream->device, &executor->memory);
    }
    weft_free(executor->host_memory);
    weft_free(executor);
}

/* ---- slots --------------------------------------------------------------------------------- */

static void copy(executor_t *executor, void *dst, const void *src, size_t bytes)
{
    executor->stream->device->ops->copy(executor->stream->queue, dst, src, bytes);
}

static int32_t *history_of(const executor_t *executor, uint32_t slot)
{
    return executor->device.history + (size_t)slot * (executor->limits.max_context + 1);
}

static k_bias_t *biases_of(const executor_t *executor, uint32_t slot)
{
    return executor->device.biases + (size_t)slot * executor->limits.max_biases;
}

static uint32_t *device_mask_of(const executor_t *executor, uint32_t slot)
{
    return executor->device.masks + (size_t)slot * executor->mask_words;
}

uint32_t *executor_mask(executor_t *executor, uint32_t slot)
{
    assert(slot < executor->limits.max_slots);
    return executor->masks + (size_t)slot * executor->mask_words;
}

static void bind_slot(executor_t *executor, const step_plan_t *plan, const step_bind_t *bind)
{
    executor->slots[bind->slot] = (slot_t){
        .n_tokens = bind->n_tokens,
        .prompt_tokens = bind->prompt_tokens,
        .n_bias = bind->n_bias,
        .sampling = bind->sampling,
    };
    copy(executor, history_of(executor, bind->slot), plan->tokens + bind->first_token,
         bind->n_tokens * sizeof(int32_t));

    static_assert(sizeof(step_bias_t) == sizeof(k_bias_t), "biases are copied as they are");
    copy(executor, biases_of(executor, bind->slot), plan->biases + bind->first_bias,
         bind->n_bias * sizeof(k_bias_t));
}

/* The blocks from plan->blocks[first] on that follow one another in one table: one copy. */
static uint32_t append_run(executor_t *executor, const step_plan_t *plan, uint32_t first)
{
    const step_block_t *run = &plan->blocks[first];
    const size_t at = (size_t)run->slot * executor->table_blocks + run->index;
    uint32_t n = 0;
    do {
        executor->block_tables[at + n] = run[n].block;
        n++;
    } while (first + n < plan->n_blocks && run[n].slot == run->slot &&
             run[n].index == run->index + n);

    copy(executor, executor->device.block_tables + at, executor->block_tables + at,
         n * sizeof(uint32_t));
    return n;
}

static weft_status_t append_blocks(executor_t *executor, const step_plan_t *plan)
{
    for (uint32_t i = 0; i < plan->n_blocks; i++) {
        const step_block_t *block = &plan->blocks[i];
        slot_t *slot = &executor->slots[block->slot];
        if (block->index > slot->n_blocks || block->index >= executor->table_blocks) {
            weft_log_error("step=%llu slot=%u block index %u after %u blocks",
                           (unsigned long long)plan->step, block->slot, block->index,
                           slot->n_blocks);
            return WEFT_ERR_INVALID;
        }
        if (block->index == slot->n_blocks) {
            slot->n_blocks++;
        }
    }
    for (uint32_t i = 0; i < plan->n_blocks;) {
        i += append_run(executor, plan, i);
    }
    return WEFT_OK;
}

/* ---- rows ---------------------------------------------------------------------------------- */

/* A row stays within its slot's history and blocks, samples at the end only, and comes once. */
static weft_status_t check_row(executor_t *executor, const step_plan_t *plan, const step_row_t *row)
{
    slot_t *slot = &executor->slots[row->slot];
    const uint32_t end = row->start + row->n_tokens;
    const bool must_end = (row->flags & (STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT)) != 0;
    const uint64_t room = (uint64_t)slot->n_blocks * executor->block_tokens;
    if (end > slot->n_tokens || (must_end && end < slot->n_tokens) || end > room ||
        slot->step == plan->step) {
        weft_log_error("step=%llu slot=%u row of tokens %u..%u does not fit a history of %u in %u "
                       "blocks, or comes twice",
                       (unsigned long long)plan->step, row->slot, row->start, end, slot->n_tokens,
                       slot->n_blocks);
        return WEFT_ERR_INVALID;
    }
    slot->step = plan->step;
    return WEFT_OK;
}

static void stage_prompt_rows(executor_t *executor, const step_row_t *row, step_t *step)
{
    const slot_t *slot = &executor->slots[row->slot];
    const uint32_t known = slot->n_tokens - row->start - 1; /* successors of the row's tokens */
    const uint32_t n = known < row->n_tokens ? known : row->n_tokens;
    for (uint32_t i = 0; i < n; i++) {
        executor->inputs.prompt_rows[step->n_prompt + i] = step->n_tokens + i;
        executor->inputs.prompt_tops[step->n_prompt + i] = slot->sampling.n_prompt_top;
    }
    copy(executor, executor->device.targets + step->n_prompt,
         history_of(executor, row->slot) + row->start + 1, n * sizeof(int32_t));
    step->n_prompt += n;
}

static bool has_penalties(const step_sampling_t *sampling)
{
    return sampling->repetition_penalty != 1.0f || sampling->frequency_penalty != 0.0f ||
           sampling->presence_penalty != 0.0f;
}

static void stage_sample(executor_t *executor, const step_row_t *row, step_t *step)
{
    const slot_t *slot = &executor->slots[row->slot];
    const step_sampling_t *sampling = &slot->sampling;
    const bool is_masked = (row->flags & STEP_ROW_MASKED) != 0;

    executor->inputs.samples[step->n_sampled] = (k_sample_row_t){
        .temperature = sampling->temperature,
        .top_p = sampling->top_p,
        .min_p = sampling->min_p,
        .top_k = sampling->top_k,
        .repetition_penalty = sampling->repetition_penalty,
        .frequency_penalty = sampling->frequency_penalty,
        .presence_penalty = sampling->presence_penalty,
        .n_top = sampling->n_top,
        .wants_logprob = sampling->wants_logprob != 0,
        .seed = sampling->seed,
        .output_index = row->output_index,
        .history = has_penalties(sampling) ? history_of(executor, row->slot) : NULL,
        .history_tokens = slot->n_tokens,
        .prompt_tokens = slot->prompt_tokens,
        .bias = slot->n_bias > 0 ? biases_of(executor, row->slot) : NULL,
        .n_bias = slot->n_bias,
        .mask = is_masked ? device_mask_of(executor, row->slot) : NULL,
        .append_to = history_of(executor, row->slot) + slot->n_tokens,
    };
    if (is_masked) {
        copy(executor, device_mask_of(executor, row->slot), executor_mask(executor, row->slot),
             executor->mask_words * sizeof(uint32_t));
    }
    executor->inputs.sample_rows[step->n_sampled] = step->n_tokens + row->n_tokens - 1;
    step->n_sampled++;
}

static void stage_row(executor_t *executor, const step_row_t *row, step_t *step)
{
    executor->inputs.seqs[step->n_seqs++] = (k_seq_t){
        .row = step->n_tokens,
        .rows = row->n_tokens,
        .start = row->start,
        .block_table = executor->device.block_tables + (size_t)row->slot * executor->table_blocks,
        /* It holds sampled tokens as soon as they are: STEP_ROW_FROM_SLOT needs no more. */
        .history = history_of(executor, row->slot),
    };
    const uint32_t end = row->start + row->n_tokens;
    step->max_tokens = step->max_tokens < end ? end : step->max_tokens;
    if ((row->flags & STEP_ROW_PROMPT_LOGPROBS) != 0) {
        stage_prompt_rows(executor, row, step);
    }
    if ((row->flags & STEP_ROW_SAMPLE) != 0) {
        stage_sample(executor, row, step);
    }
    step->n_tokens += row->n_tokens;
}

static void send_inputs(executor_t *executor, const step_t *step)
{
    const inputs_t *from = &executor->inputs;
    const inputs_t *to = &executor->device.inputs;
    copy(executor, to->seqs, from->seqs, step->n_seqs * sizeof(k_seq_t));
    copy(executor, to->samples, from->samples, step->n_sampled * sizeof(k_sample_row_t));
    copy(executor, to->prompt_rows, from->prompt_rows, step->n_prompt * sizeof(uint32_t));
    copy(executor, to->prompt_tops, from->prompt_tops, step->n_prompt * sizeof(uint32_t));
    copy(executor, to->sample_rows, from->sample_rows, step->n_sampled * sizeof(uint32_t));
}

/* ---- ops of a step ------------------------------------------------------------------------- */

static void run_model(executor_t *executor, const step_t *step)
{
    const k_gather_tokens_args_t gather = {
        .seqs = executor->device.inputs.seqs,
        .n_seqs = step->n_seqs,
        .ids = executor->device.ids,
    };
    executor->stream->ops->gather_tokens(executor->stream, &gather);
    const model_batch_t batch = {
        .ids = executor->device.ids,
        .rows = step->n_tokens,
        .seqs = executor->device.inputs.seqs,
        .n_seqs = step->n_seqs,
        .max_tokens = step->max_tokens,
        .kv = executor->kv,
    };
    model_forward(executor->model, executor->stream, &batch);
}

/* How many of the rows from `first` on are done in one turn. */
static uint32_t turn(const executor_t *executor, uint32_t first, uint32_t n)
{
    return n - first < executor->limits.max_outputs ? n - first : executor->limits.max_outputs;
}

static void run_prompt_logprobs(executor_t *executor, uint32_t n)
{
    const device_state_t *device = &executor->device;
    for (uint32_t i = 0; i < n; i += turn(executor, i, n)) {
        const k_logprobs_args_t args = {
            .logits = device->logits,
            .targets = device->targets + i,
            .n_top = device->inputs.prompt_tops + i,
            .out = device->prompt + i,
            .rows = turn(executor, i, n),
            .vocab = executor->vocab,
            .logits_stride = executor->vocab,
        };
        model_logits(executor->model, executor->stream, device->inputs.prompt_rows + i, args.rows,
                     device->logits);
        executor->stream->ops->logprobs(executor->stream, &args);
    }
}

static void run_sampling(executor_t *executor, uint32_t n)
{
    const device_state_t *device = &executor->device;
    for (uint32_t i = 0; i < n; i += turn(executor, i, n)) {
        const k_sample_args_t args = {
            .logits = device->logits,
            .params = device->inputs.samples + i,
            .out = device->sampled + i,
            .rows = turn(executor, i, n),
            .vocab = executor->vocab,
            .logits_stride = executor->vocab,
        };
        model_logits(executor->model, executor->stream, device->inputs.sample_rows + i, args.rows,
                     device->logits);
        executor->stream->ops->sample(executor->stream, &args);
    }
}

/* Sampled tokens have become their slots' newest, on the device. */
static void count_sampled(executor_t *executor, const step_plan_t *plan)
{
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        const step_row_t *row = &plan->rows[i];
        if ((row->flags & STEP_ROW_SAMPLE) != 0) {
            executor->slots[row->slot].n_tokens++;
        }
    }
}

static void fetch_outputs(executor_t *executor, const step_plan_t *plan, const step_t *step)
{
    outputs_t *outputs = &executor->outputs[executor->n_launched % STEPS_IN_FLIGHT];
    outputs->step = plan->step;
    outputs->n_rows = plan->n_rows;
    outputs->n_sampled = step->n_sampled;
    outputs->n_prompt = step->n_prompt;
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        outputs->is_sampled[i] = (plan->rows[i].flags & STEP_ROW_SAMPLE) != 0;
    }
    copy(executor, outputs->rows, executor->device.sampled, step->n_sampled * sizeof(k_sampled_t));
    copy(executor, outputs->prompt, executor->device.prompt, step->n_prompt * sizeof(k_sampled_t));
    outputs->done = executor->stream->device->ops->record(executor->stream->queue);
}

static weft_status_t prepare(executor_t *executor, const step_plan_t *plan)
{
    weft_diag_t diag = {0};
    weft_status_t status = step_plan_check(plan, &executor->limits, &diag);
    if (status < 0) {
        weft_log_error("%s", diag.text);
        return status;
    }
    for (uint32_t i = 0; i < plan->n_binds; i++) {
        bind_slot(executor, plan, &plan->binds[i]);
    }
    status = append_blocks(executor, plan);
    for (uint32_t i = 0; status >= 0 && i < plan->n_rows; i++) {
        status = check_row(executor, plan, &plan->rows[i]);
    }
    return status;
}

weft_status_t executor_launch(executor_t *executor, const step_plan_t *plan)
{
    if (executor->n_launched - executor->n_collected == STEPS_IN_FLIGHT) {
        return WEFT_ERR_QUEUE_FULL;
    }
    const weft_status_t status = prepare(executor, plan);
    if (status < 0) {
        return status;
    }
    step_t step = {0};
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        stage_row(executor, &plan->rows[i], &step);
    }
    send_inputs(executor, &step);
    if (step.n_tokens > 0) {
        run_model(executor, &step);
        run_prompt_logprobs(executor, step.n_prompt);
        run_sampling(executor, step.n_sampled);
    }
    count_sampled(executor, plan);
    fetch_outputs(executor, plan, &step);
    executor->n_launched++;
    return WEFT_OK;
}

/* The sampled rows lie packed at the front; from the last on, each moves to its row's place. */
static void spread_rows(outputs_t *outputs)
{
    uint32_t sampled = outputs->n_sampled;
    for (uint32_t i = outputs->n_rows; i-- > 0;) {
        if (outputs->is_sampled[i]) {
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
    outputs_t *outputs = &executor->outputs[executor->n_collected % STEPS_IN_FLIGHT];
    if (!executor->stream->device->ops->is_done(outputs->done)) {
        const weft_status_t status = k_stream_sync(executor->stream);
        if (status < 0) {
            return status;
        }
    }
    executor->n_collected++;
    spread_rows(outputs);
    *result_out = (step_result_t){
        .step = outputs->step,
        .n_rows = outputs->n_rows,
        .rows = outputs->rows,
        .prompt = outputs->prompt,
        .n_prompt = outputs->n_prompt,
    };
    return WEFT_OK;
}
