/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/executor/executor_priv.h"

#define WEFT_LOG_MODULE "engine"
#include "base/log.h"

static void *device_at(const executor_t *executor, size_t offset)
{
    return executor->device.inputs.tail + offset;
}

/* ---- before the model ---------------------------------------------------------------------- */

/* What the step says, in one copy: the tail lies behind the arrays at fixed addresses. */
static void send_inputs(executor_t *executor, const step_t *step)
{
    char *to = (char *)executor->device.inputs.seqs;
    const char *from = (const char *)step->inputs->seqs;
    executor_copy(executor, to, from, (size_t)(step->inputs->tail - from) + step->tail.used);
}

static void fill_slots(executor_t *executor, const step_plan_t *plan, const step_t *step)
{
    const int32_t *tokens = device_at(executor, step->tail.tokens);
    const k_bias_t *biases = device_at(executor, step->tail.biases);
    for (uint32_t i = 0; i < plan->n_binds; i++) {
        const step_bind_t *bind = &plan->binds[i];
        executor_copy(executor, executor_history(executor, bind->slot), tokens + bind->first_token,
                      bind->n_tokens * sizeof(int32_t));
        executor_copy(executor, executor_biases(executor, bind->slot), biases + bind->first_bias,
                      bind->n_bias * sizeof(k_bias_t));
    }
    if (step->n_words > 0) {
        const k_write_words_args_t args = {.words = device_at(executor, step->tail.words),
                                           .n_words = step->n_words};
        executor->stream->ops->write_words(executor->stream, &args);
    }
}

static void gather(executor_t *executor, const k_seq_t *seqs, uint32_t n, int32_t *ids)
{
    const k_gather_tokens_args_t args = {.seqs = seqs, .n_seqs = n, .ids = ids};
    executor->stream->ops->gather_tokens(executor->stream, &args);
}

/* ---- the model and what follows ------------------------------------------------------------ */

static void run_model(executor_t *executor, uint32_t rows, uint32_t n_seqs, uint32_t max_tokens,
                      uint32_t max_rows, uint32_t adapter_targets)
{
    const device_state_t *device = &executor->device;
    gather(executor, device->inputs.seqs, n_seqs, device->ids);
    const model_batch_t batch = {
        .ids = device->ids,
        .rows = rows,
        .seqs = device->inputs.seqs,
        .n_seqs = n_seqs,
        .max_tokens = max_tokens,
        .max_rows = max_rows,
        .kv = executor->kv,
        .adapter_targets = adapter_targets,
    };
    model_forward(executor->model, executor->stream, &batch);
}

static void run_prompt_logprobs(executor_t *executor, const step_t *step)
{
    const device_state_t *device = &executor->device;
    const uint32_t n = step->n_prompt;
    const uint32_t *rows = device_at(executor, step->tail.prompt_rows);
    const uint32_t *tops = device_at(executor, step->tail.prompt_tops);
    if (n > 0) {
        gather(executor, device_at(executor, step->tail.prompt_seqs), step->n_prompt_seqs,
               device->targets);
    }
    if (executor->slices.ranks > 1) {
        executor_slices_prompt(executor, step);
        return;
    }
    for (uint32_t i = 0; i < n; i += executor_turn(executor, i, n)) {
        const k_logprobs_args_t args = {
            .logits = device->logits,
            .targets = device->targets + i,
            .n_top = tops + i,
            .out = device->prompt + i,
            .rows = executor_turn(executor, i, n),
            .vocab = executor->vocab,
            .logits_stride = executor->vocab,
        };
        model_logits(executor->model, executor->stream, rows + i, args.rows, device->logits);
        executor->stream->ops->logprobs(executor->stream, &args);
    }
}

static void run_sampling(executor_t *executor, uint32_t n)
{
    const device_state_t *device = &executor->device;
    for (uint32_t i = 0; i < n; i += executor_turn(executor, i, n)) {
        const k_sample_args_t args = {
            .logits = device->logits,
            .params = device->inputs.samples + i,
            .out = device->sampled + i,
            .rows = executor_turn(executor, i, n),
            .vocab = executor->vocab,
            .logits_stride = executor->vocab,
        };
        model_logits(executor->model, executor->stream, device->inputs.sample_rows + i, args.rows,
                     device->logits);
        executor->stream->ops->sample(executor->stream, &args);
    }
}

/* Straight to the host: each turn overwrites the one before on the device. */
static void run_embeddings(executor_t *executor, const step_t *step)
{
    const uint32_t *rows = device_at(executor, step->tail.embed_rows);
    const uint32_t n = step->n_embeddings;
    const size_t bytes = k_dtype_info(executor->stream->ops->act)->block_bytes;
    char *to = executor->outputs[executor->n_launched % executor->depth].embeddings;
    for (uint32_t i = 0; i < n; i += executor_turn(executor, i, n)) {
        size_t stride = 0;
        const uint32_t in_turn = executor_turn(executor, i, n);
        const char *hidden =
            model_hidden(executor->model, executor->stream, rows + i, in_turn, &stride);
        for (uint32_t j = 0; j < in_turn; j++) {
            executor_copy(executor, to + (i + j) * executor->embedding_stride,
                          hidden + j * stride * bytes, executor->embedding_bytes);
        }
    }
}

/* ---- graphs -------------------------------------------------------------------------------- */

/* 1, 2, 4, 8, then steps of an eighth to a half of the size: an eighth is what padding may cost. */
static uint32_t next_batch(uint32_t batch)
{
    return batch < 8     ? 2 * batch
           : batch < 32  ? batch + 8
           : batch < 64  ? batch + 16
           : batch < 320 ? batch + 32
                         : batch + batch / 64 * 8;
}

void executor_graphs_init(executor_t *executor)
{
    graphs_t *graphs = &executor->graphs;
    const uint32_t max_batch = executor->max_samples < executor->limits.max_tokens
                                   ? executor->max_samples
                                   : executor->limits.max_tokens;
    if (!k_stream_has_graphs(executor->stream)) {
        return;
    }
    for (uint32_t n = 1; n < max_batch && graphs->n_batches + 1 < MAX_BATCH_BUCKETS;
         n = next_batch(n)) {
        graphs->batches[graphs->n_batches++] = n;
    }
    graphs->batches[graphs->n_batches++] = max_batch;
    for (uint32_t n = FIRST_CONTEXT_BUCKET;
         n < executor->limits.max_context && graphs->n_contexts + 1 < MAX_CONTEXT_BUCKETS; n *= 2) {
        graphs->contexts[graphs->n_contexts++] = n;
    }
    graphs->contexts[graphs->n_contexts++] = executor->limits.max_context;
}

/* Of kinds with all of these bits. */
static void drop_kinds(executor_t *executor, uint32_t bits, k_graph_t **kinds)
{
    for (uint32_t kind = 0; kind < GRAPH_KINDS; kind++) {
        if ((kind & bits) == bits) {
            k_graph_destroy(executor->stream, kinds[kind]);
            kinds[kind] = NULL;
        }
    }
}

static void drop_graphs(executor_t *executor, uint32_t bits)
{
    graphs_t *graphs = &executor->graphs;
    for (uint32_t i = 0; i < graphs->n_batches; i++) {
        for (uint32_t j = 0; j < graphs->n_contexts; j++) {
            drop_kinds(executor, bits, graphs->made[i][j]);
        }
    }
}

void executor_graphs_drop(executor_t *executor)
{
    drop_graphs(executor, 0);
}

/* Graphs do not add to what no adapter added to when they were made. */
static void heed_adapters(executor_t *executor, step_t *step)
{
    graphs_t *graphs = &executor->graphs;
    step->adapter_targets = step->has_adapters ? model_adapter_targets(executor->model) : 0;
    if (step->has_adapters && graphs->adapter_targets != step->adapter_targets) {
        drop_graphs(executor, GRAPH_HAS_ADAPTERS);
        graphs->adapter_targets = step->adapter_targets;
    }
}

/* The first bucket that holds `value`; n: none does. */
static uint32_t bucket_of(const uint32_t *buckets, uint32_t n, uint32_t value)
{
    uint32_t i = 0;
    while (i < n && buckets[i] < value) {
        i++;
    }
    return i;
}

/*
 * Each row is sampled, in the same order, and nothing else: a sequence has no more samples than rows, and
 * as many only if one row is a token and the others drafts.
 */
static bool is_decode(const step_t *step)
{
    return step->n_seqs > 0 && step->n_sampled == step->n_tokens && step->n_prompt == 0 &&
           step->n_embeddings == 0;
}

/* What a graph is made for, or a decode step without one. */
typedef struct decode {
    uint32_t rows; /* as many samples */
    uint32_t seqs;
    uint32_t max_rows; /* of a sequence */
    uint32_t max_tokens;
} decode_t;

/* Sequences without rows, and rows of nobody; what is computed for these is not looked at. */
static void pad(executor_t *executor, step_t *step, const decode_t *decode)
{
    inputs_t *inputs = step->inputs;
    for (uint32_t i = step->n_seqs; i < decode->seqs; i++) {
        inputs->seqs[i] = (k_seq_t){
            .row = step->n_tokens,
            .block_table = executor->device.block_tables,
            .history = executor->device.history,
        };
    }
    for (uint32_t i = step->n_sampled; i < decode->rows; i++) {
        inputs->samples[i] = (k_sample_row_t){.top_p = 1.0f, .repetition_penalty = 1.0f};
        inputs->sample_rows[i] = i;
    }
}

/* Of what the last stage computes after the model. */
static void sample_rows(executor_t *executor, const step_t *step)
{
    if (executor->slices.ranks > 1) {
        executor_slices_sample(executor, step);
    } else {
        run_sampling(executor, step->n_sampled);
    }
}

static void run_decode(executor_t *executor, const decode_t *decode, const step_t *step)
{
    step_t full = *step;
    full.n_sampled = decode->rows;
    run_model(executor, decode->rows, decode->seqs, decode->max_tokens, decode->max_rows,
              step->adapter_targets);
    if (model_shard_is_last(model_shard(executor->model))) {
        sample_rows(executor, &full);
    }
}

/* WEFT_ERR_NO_MEMORY: the device has none left for a graph; nothing else is wrong. */
static weft_status_t make_graph(executor_t *executor, const decode_t *decode, const step_t *step,
                                k_graph_t **graph_out)
{
    const weft_status_t status = k_stream_capture(executor->stream);
    if (status < 0) {
        return status;
    }
    run_decode(executor, decode, step);
    return k_stream_end_capture(executor->stream, graph_out);
}

/* ---- a step -------------------------------------------------------------------------------- */

static weft_event_t *mark(const executor_t *executor)
{
    return executor->is_timed ? executor->stream->device->ops->record(executor->stream->queue)
                              : NULL;
}

static void run_plainly(executor_t *executor, const step_t *step)
{
    if (step->n_tokens == 0) {
        return;
    }
    run_model(executor, step->n_tokens, step->n_seqs, step->max_tokens, step->max_rows,
              step->adapter_targets);
    if (model_shard_is_last(model_shard(executor->model))) {
        run_prompt_logprobs(executor, step);
        sample_rows(executor, step);
        run_embeddings(executor, step);
    }
}

/* Which graph is that of a decode step, if one is. */
typedef struct bucket {
    bool is_decode;
    decode_t size;
    k_graph_t **graph;
} bucket_t;

static bucket_t find_bucket(executor_t *executor, const step_t *step)
{
    graphs_t *graphs = &executor->graphs;
    const uint32_t batch = bucket_of(graphs->batches, graphs->n_batches, step->n_tokens);
    const uint32_t context = bucket_of(graphs->contexts, graphs->n_contexts, step->max_tokens);
    const uint32_t slots = executor->limits.max_slots;
    const bool has_drafts = step->n_tokens > step->n_seqs;
    if (!is_decode(step) || batch == graphs->n_batches || context == graphs->n_contexts) {
        return (bucket_t){.is_decode = false};
    }
    const uint32_t kind = step->sampling | (step->has_adapters ? GRAPH_HAS_ADAPTERS : 0) |
                          (has_drafts ? GRAPH_HAS_DRAFTS : 0);
    const uint32_t rows = graphs->batches[batch];
    return (bucket_t){
        .is_decode = true,
        .size = {.rows = rows,
                 .seqs = rows < slots ? rows : slots,
                 .max_rows = has_drafts ? 1 + executor->limits.max_drafts : 1,
                 .max_tokens = graphs->contexts[context]},
        .graph = &graphs->made[batch][context][kind],
    };
}

/* The bucket's graph, made when first needed; NULL: there is no memory for it. */
static weft_status_t find_graph(executor_t *executor, const bucket_t *bucket, const step_t *step,
                                const k_graph_t **graph_out)
{
    graphs_t *graphs = &executor->graphs;
    *graph_out = NULL;
    if (*bucket->graph == NULL && !graphs->is_full) {
        const weft_status_t status = make_graph(executor, &bucket->size, step, bucket->graph);
        graphs->is_full = status == WEFT_ERR_NO_MEMORY;
        if (graphs->is_full) {
            weft_log_warn("no memory for another graph of steps: those without one are launched op "
                          "by op from now on; a lower --gpu-memory-utilization leaves more");
        } else if (status < 0) {
            return status;
        }
    }
    *graph_out = *bucket->graph;
    return WEFT_OK;
}

weft_status_t executor_run(executor_t *executor, const step_plan_t *plan, step_t *step)
{
    outputs_t *outputs = &executor->outputs[executor->n_launched % executor->depth];
    heed_adapters(executor, step);
    const bucket_t bucket = find_bucket(executor, step);
    const k_graph_t *graph = NULL;
    if (bucket.is_decode) {
        const weft_status_t status = find_graph(executor, &bucket, step, &graph);
        if (status < 0) {
            return status;
        }
        pad(executor, step, &bucket.size);
    }
    send_inputs(executor, step);
    fill_slots(executor, plan, step);
    outputs->begun = mark(executor);
    if (graph != NULL) {
        k_graph_launch(executor->stream, graph);
    } else if (bucket.is_decode) { /* as the graphs of other ranks are */
        run_decode(executor, &bucket.size, step);
    } else {
        run_plainly(executor, step);
    }
    outputs->ended = mark(executor);
    return WEFT_OK;
}
