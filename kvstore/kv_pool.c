/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_pool.h"

#include <assert.h>

#include "base/alloc.h"

/*
 * A block's record. Free blocks form a doubly linked list, so that a cached block found again
 * leaves it from the middle; the record at index n_blocks is the list's two ends.
 */
typedef struct block {
    uint32_t refs;
    uint32_t newer; /* meaningless while held or pinned */
    uint32_t older;
    bool is_pinned;
} block_t;

struct kv_pool {
    kv_pool_config_t config;
    weft_mem_t memory;
    uint32_t n_free;
    uint32_t n_held;
    block_t *blocks; /* [n_blocks + 1] */
};

static void list_push_newest(kv_pool_t *pool, kv_block_id_t id)
{
    const uint32_t ends = pool->config.n_blocks;
    const uint32_t newest = pool->blocks[ends].older;
    pool->blocks[id].older = newest;
    pool->blocks[id].newer = ends;
    pool->blocks[newest].newer = id;
    pool->blocks[ends].older = id;
    pool->n_free++;
}

static void list_remove(kv_pool_t *pool, kv_block_id_t id)
{
    const block_t *block = &pool->blocks[id];
    pool->blocks[block->older].newer = block->newer;
    pool->blocks[block->newer].older = block->older;
    pool->n_free--;
}

static void list_init(kv_pool_t *pool)
{
    const uint32_t ends = pool->config.n_blocks;
    pool->blocks[ends] = (block_t){.refs = 0, .newer = ends, .older = ends};
    for (kv_block_id_t id = 0; id < ends; id++) {
        list_push_newest(pool, id);
    }
}

weft_status_t kv_pool_create(const kv_pool_config_t *config, kv_pool_t **pool_out)
{
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    const size_t block_bytes = config->layout.block_bytes[0];
    if (config->n_blocks == 0 || config->n_blocks == KV_BLOCK_NONE || block_bytes == 0) {
        return WEFT_ERR_INVALID;
    }
    if (block_bytes > SIZE_MAX / config->n_blocks) {
        return WEFT_ERR_TOO_LARGE;
    }
    kv_pool_t *pool = weft_zalloc(sizeof(*pool), "kv_pool.pool");
    if (pool == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    pool->config = *config;
    pool->blocks = weft_calloc((size_t)config->n_blocks + 1, sizeof(block_t), "kv_pool.blocks");
    if (pool->blocks == NULL) {
        goto cleanup;
    }
    const uint32_t exportable = config->is_private ? 0 : WEFT_MEM_EXPORTABLE;
    status = config->device->ops->alloc(config->device, block_bytes * config->n_blocks,
                                        exportable | config->memory_flags, &pool->memory);
    if (status < 0) {
        goto cleanup;
    }
    list_init(pool);
    *pool_out = pool;
    pool = NULL; /* the caller owns it now */

cleanup:
    kv_pool_destroy(pool);
    return status;
}

void kv_pool_destroy(kv_pool_t *pool)
{
    if (pool == NULL) {
        return;
    }
    if (pool->memory.addr != NULL) {
        pool->config.device->ops->free(pool->config.device, &pool->memory);
    }
    weft_free(pool->blocks);
    weft_free(pool);
}

weft_status_t kv_pool_alloc(kv_pool_t *pool, uint32_t n, kv_block_id_t *ids_out)
{
    if (n > pool->n_free) {
        return WEFT_ERR_NO_BLOCKS;
    }
    for (uint32_t i = 0; i < n; i++) {
        const kv_block_id_t id = pool->blocks[pool->config.n_blocks].newer; /* the oldest */
        list_remove(pool, id);
        pool->blocks[id].refs = 1;
        pool->n_held++;
        if (pool->config.on_reuse != NULL) {
            pool->config.on_reuse(pool->config.user, id);
        }
        ids_out[i] = id;
    }
    if (n > 0 && pool->config.after_reuse != NULL) {
        pool->config.after_reuse(pool->config.user);
    }
    return WEFT_OK;
}

void kv_pool_acquire(kv_pool_t *pool, const kv_block_id_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        assert(ids[i] < pool->config.n_blocks);
        block_t *block = &pool->blocks[ids[i]];
        if (block->refs++ == 0) {
            pool->n_held++;
            if (!block->is_pinned) {
                list_remove(pool, ids[i]);
            }
        }
    }
}

void kv_pool_release(kv_pool_t *pool, const kv_block_id_t *ids, uint32_t n)
{
    for (uint32_t i = n; i-- > 0;) {
        block_t *block = &pool->blocks[ids[i]];
        assert(ids[i] < pool->config.n_blocks && block->refs > 0);
        if (--block->refs == 0) {
            pool->n_held--;
            if (!block->is_pinned) {
                list_push_newest(pool, ids[i]);
            }
        }
    }
}

void kv_pool_pin(kv_pool_t *pool, kv_block_id_t id)
{
    block_t *block = &pool->blocks[id];
    if (!block->is_pinned && block->refs == 0) {
        list_remove(pool, id);
    }
    block->is_pinned = true;
}

void kv_pool_unpin(kv_pool_t *pool, kv_block_id_t id)
{
    block_t *block = &pool->blocks[id];
    if (block->is_pinned && block->refs == 0) {
        list_push_newest(pool, id);
    }
    block->is_pinned = false;
}

bool kv_pool_is_pinned(const kv_pool_t *pool, kv_block_id_t id)
{
    return pool->blocks[id].is_pinned;
}

kv_block_id_t kv_pool_older(const kv_pool_t *pool, kv_block_id_t id)
{
    const uint32_t ends = pool->config.n_blocks;
    const uint32_t older = pool->blocks[id == KV_BLOCK_NONE ? ends : id].older;
    return older == ends ? KV_BLOCK_NONE : older;
}

uint32_t kv_pool_refs(const kv_pool_t *pool, kv_block_id_t id)
{
    return pool->blocks[id].refs;
}

uint32_t kv_pool_free_blocks(const kv_pool_t *pool)
{
    return pool->n_free;
}

uint32_t kv_pool_held_blocks(const kv_pool_t *pool)
{
    return pool->n_held;
}

uint32_t kv_pool_total_blocks(const kv_pool_t *pool)
{
    return pool->config.n_blocks;
}

const kv_layout_t *kv_pool_layout(const kv_pool_t *pool)
{
    return &pool->config.layout;
}

weft_device_t *kv_pool_device(const kv_pool_t *pool)
{
    return pool->config.device;
}

const weft_mem_t *kv_pool_memory(const kv_pool_t *pool)
{
    return &pool->memory;
}

void *kv_pool_block(const kv_pool_t *pool, kv_block_id_t id)
{
    return (char *)pool->memory.addr + pool->config.layout.strides[0].block * id;
}
