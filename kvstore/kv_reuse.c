/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_reuse.h"

#include <string.h>

#include "base/alloc.h"

#define WAYS       8
#define COUNT_MASK UINT32_C(3) /* the count is below the tag */

/* Newest first; 0: empty. */
typedef struct set {
    uint32_t entries[WAYS];
} set_t;

struct kv_reuse {
    uint64_t mask; /* sets - 1 */
    set_t *sets;
};

weft_status_t kv_reuse_create(uint64_t contents, kv_reuse_t **reuse_out)
{
    uint64_t n_sets = 1;
    while (n_sets * WAYS < contents && n_sets < UINT64_C(1) << 40) {
        n_sets *= 2;
    }
    kv_reuse_t *reuse = weft_zalloc(sizeof(*reuse), "kv_reuse.reuse");
    if (reuse == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    reuse->mask = n_sets - 1;
    reuse->sets = weft_calloc(n_sets, sizeof(set_t), "kv_reuse.sets");
    if (reuse->sets == NULL) {
        kv_reuse_destroy(reuse);
        return WEFT_ERR_NO_MEMORY;
    }
    *reuse_out = reuse;
    return WEFT_OK;
}

void kv_reuse_destroy(kv_reuse_t *reuse)
{
    if (reuse != NULL) {
        weft_free(reuse->sets);
        weft_free(reuse);
    }
}

static uint32_t tag_of(const kv_hash_t *hash)
{
    uint32_t tag;
    memcpy(&tag, hash->bytes, sizeof(tag));
    return tag & ~COUNT_MASK;
}

/* Other bytes than the tag's. */
static set_t *set_of(const kv_reuse_t *reuse, const kv_hash_t *hash)
{
    uint64_t where;
    memcpy(&where, hash->bytes + sizeof(uint32_t), sizeof(where));
    return &reuse->sets[where & reuse->mask];
}

/* WAYS: not there. */
static uint32_t way_of(const set_t *set, uint32_t tag)
{
    uint32_t way = 0;
    while (way < WAYS && (set->entries[way] == 0 || (set->entries[way] & ~COUNT_MASK) != tag)) {
        way++;
    }
    return way;
}

uint32_t kv_reuse_count(const kv_reuse_t *reuse, const kv_hash_t *hash)
{
    const set_t *set = set_of(reuse, hash);
    const uint32_t way = way_of(set, tag_of(hash));
    return way == WAYS ? 0 : set->entries[way] & COUNT_MASK;
}

void kv_reuse_note(kv_reuse_t *reuse, const kv_hash_t *hash, uint32_t count)
{
    set_t *set = set_of(reuse, hash);
    const uint32_t tag = tag_of(hash);
    const uint32_t way = way_of(set, tag);
    const uint32_t known = way == WAYS ? 0 : set->entries[way] & COUNT_MASK;
    const uint32_t newer = way == WAYS ? WAYS - 1 : way; /* entries move back to its place */
    memmove(set->entries + 1, set->entries, newer * sizeof(uint32_t));
    set->entries[0] = tag | (count > known ? count : known);
}
