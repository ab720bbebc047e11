/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_names.h"

#include <string.h>

#include "base/alloc.h"
#include "kvstore/kv_index.h"

typedef struct entry {
    kv_hash_t parent;
    kv_extra_t *extra; /* a reference, while named */
    bool is_first;
} entry_t;

struct kv_names {
    kv_index_t *index;
    uint32_t n_blocks;
    uint32_t block_tokens;
    entry_t *entries; /* [n_blocks] */
    int32_t *tokens;  /* [n_blocks][block_tokens] */
};

weft_status_t kv_names_create(uint32_t n_blocks, uint32_t block_tokens, kv_names_t **names_out)
{
    kv_names_t *names = weft_zalloc(sizeof(*names), "kv_names.names");
    if (names == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    names->n_blocks = n_blocks;
    names->block_tokens = block_tokens;
    const weft_status_t status = kv_index_create(n_blocks, &names->index);
    if (status < 0) {
        kv_names_destroy(names);
        return status;
    }
    names->entries = weft_calloc(n_blocks, sizeof(entry_t), "kv_names.entries");
    names->tokens =
        weft_calloc(n_blocks, (size_t)block_tokens * sizeof(int32_t), "kv_names.tokens");
    if (names->entries == NULL || names->tokens == NULL) {
        kv_names_destroy(names);
        return WEFT_ERR_NO_MEMORY;
    }
    *names_out = names;
    return WEFT_OK;
}

void kv_names_destroy(kv_names_t *names)
{
    if (names == NULL) {
        return;
    }
    if (names->entries != NULL) {
        kv_names_clear(names);
    }
    weft_free(names->tokens);
    weft_free(names->entries);
    kv_index_destroy(names->index);
    weft_free(names);
}

static int32_t *tokens_of(const kv_names_t *names, kv_block_id_t block)
{
    return names->tokens + (size_t)block * names->block_tokens;
}

kv_block_id_t kv_names_put(kv_names_t *names, const kv_name_t *name, kv_block_id_t block)
{
    const uint32_t before = kv_index_count(names->index);
    const kv_block_id_t led_to = kv_index_insert(names->index, &name->hash, block);
    if (kv_index_count(names->index) == before) {
        return led_to;
    }
    names->entries[block] = (entry_t){
        .parent = name->parent,
        .extra = kv_extra_acquire(name->extra),
        .is_first = name->is_first,
    };
    memcpy(tokens_of(names, block), name->tokens, names->block_tokens * sizeof(int32_t));
    return block;
}

kv_block_id_t kv_names_find(const kv_names_t *names, const kv_hash_t *hash)
{
    return kv_index_find(names->index, hash);
}

uint32_t kv_names_match(const kv_names_t *names, const kv_hash_t *hashes, uint32_t n,
                        kv_block_id_t *blocks_out)
{
    return kv_index_match(names->index, hashes, n, blocks_out);
}

bool kv_names_get(const kv_names_t *names, kv_block_id_t block, kv_name_t *name_out)
{
    const kv_hash_t *hash = kv_index_hash(names->index, block);
    if (hash == NULL) {
        return false;
    }
    const entry_t *entry = &names->entries[block];
    *name_out = (kv_name_t){
        .hash = *hash,
        .parent = entry->parent,
        .is_first = entry->is_first,
        .tokens = tokens_of(names, block),
        .extra = entry->extra,
    };
    return true;
}

static void forget_extra(kv_names_t *names, kv_block_id_t block)
{
    kv_extra_release(names->entries[block].extra);
    names->entries[block].extra = NULL;
}

void kv_names_remove(kv_names_t *names, kv_block_id_t block)
{
    kv_index_remove(names->index, block);
    forget_extra(names, block);
}

void kv_names_clear(kv_names_t *names)
{
    for (kv_block_id_t block = 0; block < names->n_blocks; block++) {
        forget_extra(names, block);
    }
    kv_index_clear(names->index);
}

uint32_t kv_names_count(const kv_names_t *names)
{
    return kv_index_count(names->index);
}
