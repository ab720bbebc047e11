/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_reuse.h"

#include <string.h>

#include "base/alloc.h"

#define WAYS 8

/* Newest tag first; 0: empty. */
typedef struct set {
    uint32_t tags[WAYS];
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
    return tag == 0 ? 1 : tag;
}

/* Other bytes than the tag's. */
static set_t *set_of(const kv_reuse_t *reuse, const kv_hash_t *hash)
{
    uint64_t where;
    memcpy(&where, hash->bytes + sizeof(uint32_t), sizeof(where));
    return &reuse->sets[where & reuse->mask];
}

static int way_of(const set_t *set, uint32_t tag)
{
    for (int way = 0; way < WAYS; way++) {
        if (set->tags[way] == tag) {
            return way;
        }
    }
    return -1;
}

bool kv_reuse_has(const kv_reuse_t *reuse, const kv_hash_t *hash)
{
    return way_of(set_of(reuse, hash), tag_of(hash)) >= 0;
}

void kv_reuse_note(kv_reuse_t *reuse, const kv_hash_t *hash)
{
    set_t *set = set_of(reuse, hash);
    const uint32_t tag = tag_of(hash);
    const int way = way_of(set, tag);
    const int older = way < 0 ? WAYS - 1 : way; /* this one's place is taken by those before it */
    memmove(set->tags + 1, set->tags, (size_t)older * sizeof(uint32_t));
    set->tags[0] = tag;
}
