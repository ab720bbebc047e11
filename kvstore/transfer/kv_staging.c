/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_staging.h"

#include "base/alloc.h"

#define STAGING_BYTES (UINT64_C(64) << 20)
#define MIN_SLOTS     2
#define MAX_SLOTS     256

static void overlap(uint32_t first_a, uint32_t n_a, uint32_t first_b, uint32_t n_b,
                    uint32_t *first_out, uint32_t *n_out)
{
    const uint32_t first = first_a > first_b ? first_a : first_b;
    const uint32_t end = first_a + n_a < first_b + n_b ? first_a + n_a : first_b + n_b;
    *first_out = first;
    *n_out = end > first ? end - first : 0;
}

/* As the peer's, with what is needed of it alone, one layer behind the other. */
static kv_shape_t shape_of(const kv_shape_t *local, const kv_shape_t *peer)
{
    kv_shape_t shape = *peer;
    overlap(local->first_layer, local->layers, peer->first_layer, peer->layers, &shape.first_layer,
            &shape.layers);
    overlap(local->first_head, local->heads, peer->first_head, peer->heads, &shape.first_head,
            &shape.heads);
    shape.head_stride = (uint64_t)peer->block_tokens * peer->token_bytes;
    shape.block_stride = shape.head_stride * shape.heads * shape.layers;
    return shape;
}

static uint32_t count_slots(uint64_t slot_bytes, uint64_t peer_blocks)
{
    uint64_t n = STAGING_BYTES / slot_bytes;
    n = n < MIN_SLOTS ? MIN_SLOTS : n;
    n = n > MAX_SLOTS ? MAX_SLOTS : n;
    return (uint32_t)(n > peer_blocks ? peer_blocks : n);
}

static weft_status_t alloc_slots(kv_staging_t *staging, const kv_shape_t *peer, weft_diag_t *diag)
{
    kv_shape_t *shape = &staging->shape;
    staging->n_slots = count_slots(shape->block_stride, peer->n_blocks);
    const weft_status_t status = staging->device->ops->alloc(
        staging->device, staging->n_slots * shape->block_stride, 0, &staging->memory);
    if (status < 0) {
        return weft_diag(diag, status, "no memory to convert the peer's blocks in");
    }
    staging->layer_addrs =
        weft_calloc(shape->layers, sizeof(*staging->layer_addrs), "kv_staging.layers");
    staging->free = weft_calloc(staging->n_slots, sizeof(*staging->free), "kv_staging.free");
    if (staging->layer_addrs == NULL || staging->free == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < shape->layers; i++) {
        staging->layer_addrs[i] =
            (uint64_t)(uintptr_t)staging->memory.addr + i * shape->heads * shape->head_stride;
    }
    for (uint32_t i = 0; i < staging->n_slots; i++) {
        staging->free[i] = i;
    }
    staging->n_free = staging->n_slots;
    shape->n_blocks = staging->n_slots;
    shape->layer_addrs = staging->layer_addrs;
    return WEFT_OK;
}

xfer_space_t kv_staging_space(const weft_device_t *device)
{
    return device->ops->is_host ? XFER_DRAM : XFER_VRAM;
}

weft_status_t kv_staging_open(xfer_agent_t *agent, weft_device_t *device, const kv_shape_t *local,
                              const kv_shape_t *peer, weft_diag_t *diag, kv_staging_t *staging_out)
{
    kv_staging_t staging = {.agent = agent, .device = device, .shape = shape_of(local, peer)};
    staging.memory.fd = -1;
    if (staging.shape.layers == 0 || staging.shape.heads == 0) {
        return WEFT_ERR_NOT_FOUND;
    }
    weft_status_t status = alloc_slots(&staging, peer, diag);
    if (status >= 0) {
        const xfer_memory_t memory = {.space = kv_staging_space(device),
                                      .addr = (uint64_t)(uintptr_t)staging.memory.addr,
                                      .bytes = staging.memory.bytes,
                                      .device = (uint64_t)device->index,
                                      .fd = -1};
        status = xfer_register(agent, &memory, diag, &staging.region);
    }
    if (status < 0) {
        kv_staging_close(&staging);
        return status;
    }
    *staging_out = staging;
    return WEFT_OK;
}

void kv_staging_close(kv_staging_t *staging)
{
    if (staging->region != NULL) {
        xfer_deregister(staging->agent, staging->region);
    }
    if (staging->memory.addr != NULL) {
        staging->device->ops->free(staging->device, &staging->memory);
    }
    weft_free(staging->layer_addrs);
    weft_free(staging->free);
    *staging = (kv_staging_t){0};
}

uint32_t kv_staging_take(kv_staging_t *staging, uint32_t n, uint32_t *slots_out)
{
    uint32_t taken = 0;
    while (taken < n && staging->n_free > 0) {
        slots_out[taken++] = staging->free[--staging->n_free];
    }
    return taken;
}

void kv_staging_give(kv_staging_t *staging, const uint32_t *slots, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        staging->free[staging->n_free++] = slots[i];
    }
}

static uint64_t head_at(const kv_shape_t *shape, uint32_t layer, uint32_t head, uint32_t block)
{
    return shape->layer_addrs[layer - shape->first_layer] + block * shape->block_stride +
           (head - shape->first_head) * shape->head_stride;
}

void kv_staging_unpack(const kv_staging_t *staging, uint32_t slot, uint32_t first,
                       const kv_head_form_t *form, const kv_shape_t *local, uint32_t block,
                       uint32_t to_token, const kv_head_form_t *local_form, uint32_t n,
                       kv_landing_t *landing)
{
    const kv_shape_t *shape = &staging->shape;
    for (uint32_t layer = shape->first_layer; layer < shape->first_layer + shape->layers; layer++) {
        for (uint32_t head = shape->first_head; head < shape->first_head + shape->heads; head++) {
            const kv_head_move_t move = {.to = head_at(local, layer, head, block),
                                         .from = head_at(shape, layer, head, slot),
                                         .to_token = to_token,
                                         .from_token = first,
                                         .tokens = n};
            if (landing != NULL) {
                kv_landing_add(landing, form, &move);
            } else {
                kv_convert_head(form, (const void *)(uintptr_t)move.from, first, local_form,
                                (void *)(uintptr_t)move.to, to_token, n);
            }
        }
    }
}
