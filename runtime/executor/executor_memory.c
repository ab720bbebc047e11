/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "runtime/executor/executor_priv.h"

/* The rank's share of the vocabulary, and the largest one. */
static void set_slices(slices_t *slices, const model_config_t *config, const model_shard_t *shard,
                       bool is_host)
{
    static const model_shard_t whole = {0};
    model_shard_t part = shard == NULL ? whole : *shard;
    slices->ranks = model_shard_is_cut(&part) ? part.tensor_size : 1;
    slices->rank = part.tensor_rank;
    slices->has_lists = is_host;
    slices->vocab = model_shard_vocab(&part, config);
    for (part.tensor_rank = 0; part.tensor_rank < slices->ranks; part.tensor_rank++) {
        const uint32_t n = model_shard_vocab(&part, config).n;
        slices->largest = slices->largest < n ? n : slices->largest;
    }
}

void executor_set_sizes(executor_t *executor, const step_limits_t *limits,
                        const model_config_t *config, const model_shard_t *shard,
                        uint32_t block_tokens, bool is_host)
{
    set_slices(&executor->slices, config, shard, is_host);
    executor->limits = *limits;
    executor->max_samples = step_limits_samples(limits);
    executor->vocab = config->vocab;
    executor->block_tokens = block_tokens;
    executor->table_blocks = limits->max_context / block_tokens + 1;
    executor->mask_words = (config->vocab + 31) / 32;
    executor->embedding_stride = config->hidden * sizeof(float); /* activations may be narrower */
}

/* As much as a step could put into it: counted as executor_stage.c takes it. */
static size_t measure_tail(const executor_t *executor)
{
    const step_limits_t *limits = &executor->limits;
    carve_t carve = {.base = NULL};
    (void)carve_take(&carve, limits->max_blocks + (size_t)limits->max_tokens, sizeof(k_word_t));
    (void)carve_take(&carve, limits->max_slots, sizeof(k_seq_t));
    (void)carve_take(&carve, limits->max_tokens, 2 * sizeof(uint32_t));
    (void)carve_take(&carve, limits->max_embeddings, sizeof(uint32_t));
    (void)carve_take(&carve, limits->max_bind_tokens, sizeof(int32_t));
    (void)carve_take(&carve, limits->max_biases, sizeof(k_bias_t));
    (void)carve_take(&carve, (size_t)limits->max_slots * executor->mask_words, sizeof(uint32_t));
    /* Each array and each mask begins aligned. */
    (void)carve_take(&carve, (size_t)limits->max_slots + 8, CARVE_ALIGNMENT);
    return carve.used;
}

static void lay_out_inputs(const executor_t *executor, carve_t *carve, inputs_t *inputs)
{
    const uint32_t slots = executor->limits.max_slots;
    inputs->seqs = carve_take(carve, slots, sizeof(k_seq_t));
    inputs->samples = carve_take(carve, executor->max_samples, sizeof(k_sample_row_t));
    inputs->sample_rows = carve_take(carve, executor->max_samples, sizeof(uint32_t));
    inputs->tail = carve_take(carve, executor->tail_bytes, 1);
}

uint32_t executor_widest(const executor_t *executor)
{
    const slices_t *slices = &executor->slices;
    return slices->vocab.n > slices->ranks ? slices->vocab.n : slices->ranks;
}

static void lay_out_device(const executor_t *executor, carve_t *carve, device_state_t *device)
{
    const step_limits_t *limits = &executor->limits;
    const size_t slots = limits->max_slots;
    const size_t outputs = limits->max_outputs;
    device->history = carve_take(carve, slots * (limits->max_context + 1), sizeof(int32_t));
    device->block_tables = carve_take(carve, slots * executor->table_blocks, sizeof(uint32_t));
    device->biases = carve_take(carve, slots * limits->max_biases, sizeof(k_bias_t));
    lay_out_inputs(executor, carve, &device->inputs);
    device->ids = carve_take(carve, limits->max_tokens, sizeof(int32_t));
    device->targets = carve_take(carve, limits->max_tokens, sizeof(int32_t));
    device->logits = carve_take(carve, outputs * executor->slices.vocab.n, sizeof(float));
    device->sampled = carve_take(carve, executor->max_samples, sizeof(k_sampled_t));
    device->prompt = carve_take(carve, limits->max_tokens, sizeof(k_sampled_t));
}

static void lay_out_host(executor_t *executor, uint32_t layers, carve_t *carve)
{
    const step_limits_t *limits = &executor->limits;
    const size_t slots = limits->max_slots;
    executor->slots = carve_take(carve, slots, sizeof(slot_t));
    executor->masks = carve_take(carve, slots * executor->mask_words, sizeof(uint32_t));
    executor->kv = carve_take(carve, layers, sizeof(k_kv_view_t));
    for (uint32_t i = 0; i < executor->depth; i++) {
        outputs_t *outputs = &executor->outputs[i];
        lay_out_inputs(executor, carve, &executor->inputs[i]);
        outputs->rows = carve_take(carve, executor->max_samples, sizeof(k_sampled_t));
        outputs->drafted = carve_take(carve, executor->max_samples - slots, sizeof(k_sampled_t));
        outputs->prompt = carve_take(carve, limits->max_tokens, sizeof(k_sampled_t));
        outputs->embeddings = carve_take(carve, limits->max_embeddings, executor->embedding_stride);
        outputs->n_samples = carve_take(carve, slots, sizeof(uint32_t));
    }
}

static void measure(executor_t *executor, uint32_t layers, size_t *device_out, size_t *host_out)
{
    carve_t device = {.base = NULL};
    carve_t host = {.base = NULL};
    executor->tail_bytes = measure_tail(executor);
    lay_out_device(executor, &device, &executor->device);
    executor_slices_lay_out(executor, &device, &executor->slices);
    lay_out_host(executor, layers, &host);
    *device_out = device.used;
    *host_out = host.used;
}

size_t executor_memory(const step_limits_t *limits, const model_config_t *config,
                       const model_shard_t *shard, uint32_t block_tokens, uint32_t depth,
                       bool is_host)
{
    executor_t executor = {.depth = depth > 0 ? depth : EXECUTOR_MIN_DEPTH};
    size_t device;
    size_t host;
    executor_set_sizes(&executor, limits, config, shard, block_tokens, is_host);
    measure(&executor, config->layers, &device, &host);
    host = is_host ? host : 0;
    return device > SIZE_MAX - host ? SIZE_MAX : device + host;
}

size_t executor_scratch(const step_limits_t *limits, const model_config_t *config,
                        const model_shard_t *shard, const k_ops_t *ops, uint32_t threads,
                        bool is_host)
{
    executor_t executor = {0};
    set_slices(&executor.slices, config, shard, is_host);
    return ops->scratch_bytes(limits->max_outputs, executor_widest(&executor), threads);
}

weft_status_t executor_take_memory(executor_t *executor, uint32_t layers, weft_diag_t *diag)
{
    weft_device_t *device = executor->stream->device;
    size_t device_bytes;
    size_t host_bytes;
    measure(executor, layers, &device_bytes, &host_bytes);

    weft_status_t status = device->ops->alloc(device, device_bytes, 0, &executor->memory);
    if (status >= 0) {
        status = device->ops->alloc(device, host_bytes, WEFT_MEM_HOST, &executor->host_memory);
    }
    if (status < 0) {
        return weft_diag(
            diag, status,
            "not enough memory: steps of %u sequences of up to %u tokens take %zu MiB; "
            "lower max-num-seqs or max-model-len",
            executor->limits.max_slots, executor->limits.max_context,
            (device_bytes >> 20) + (host_bytes >> 20) + 1);
    }
    carve_t carve = {.base = executor->memory.addr};
    lay_out_device(executor, &carve, &executor->device);
    executor_slices_lay_out(executor, &carve, &executor->slices);
    carve = (carve_t){.base = executor->host_memory.addr};
    lay_out_host(executor, layers, &carve);
    return WEFT_OK;
}

void executor_free_memory(executor_t *executor)
{
    weft_device_t *device = executor->stream->device;
    if (executor->memory.addr != NULL) {
        device->ops->free(device, &executor->memory);
    }
    if (executor->host_memory.addr != NULL) {
        device->ops->free(device, &executor->host_memory);
    }
}
