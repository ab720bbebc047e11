/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_offer.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "kvstore/kv_index.h"

#define FOUND_UNDER_LOCK 64 /* blocks, so that the engine does not wait for long */

typedef struct shelf {
    kv_offer_shelf_t shape;
    kv_index_t *index;
    weft_mem_t words;
} shelf_t;

struct kv_offer {
    weft_device_t *host;
    weft_mem_t probe;
    shelf_t shelves[KV_REMOTE_MAX_SHELVES];
    uint32_t n_shelves;
    pthread_mutex_t lock;
    uint64_t next_epoch; /* guarded by lock, as the indexes and the writing of words */
};

weft_status_t kv_offer_create(kv_offer_t **offer_out)
{
    kv_offer_t *offer = weft_zalloc(sizeof(*offer), "kv_offer");
    if (offer == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    pthread_mutex_init(&offer->lock, NULL);
    weft_status_t status =
        getrandom(&offer->next_epoch, sizeof(offer->next_epoch), 0) == sizeof(offer->next_epoch)
            ? WEFT_OK
            : WEFT_ERR_IO;
    if (status >= 0) {
        status = weft_device_open("cpu", 0, NULL, &offer->host);
    }
    if (status >= 0) {
        status = offer->host->ops->alloc(offer->host, KV_OFFER_PROBE_BYTES, WEFT_MEM_EXPORTABLE,
                                         &offer->probe);
    }
    if (status >= 0) {
        memset(offer->probe.addr, 0,
               KV_OFFER_PROBE_BYTES); /* the first touch is not to be measured */
    }
    if (status < 0) {
        kv_offer_destroy(offer);
        return status;
    }
    *offer_out = offer;
    return WEFT_OK;
}

void kv_offer_destroy(kv_offer_t *offer)
{
    if (offer == NULL) {
        return;
    }
    for (uint32_t i = 0; i < offer->n_shelves; i++) {
        kv_index_destroy(offer->shelves[i].index);
        offer->host->ops->free(offer->host, &offer->shelves[i].words);
    }
    if (offer->probe.addr != NULL) {
        offer->host->ops->free(offer->host, &offer->probe);
    }
    weft_device_close(offer->host);
    pthread_mutex_destroy(&offer->lock);
    weft_free(offer);
}

/* ---- epochs ---------------------------------------------------------------------------------- */

static _Atomic uint64_t *word_of(const shelf_t *shelf, kv_block_id_t block)
{
    return (_Atomic uint64_t *)shelf->words.addr + block;
}

/*
 * Sequentially consistent, so that it is there before anybody writes to the block: a reader who saw
 * any of that writing sees the new epoch behind it. Zero is what memory holds by itself.
 */
static void change_epoch(kv_offer_t *offer, shelf_t *shelf, kv_block_id_t block)
{
    offer->next_epoch += offer->next_epoch == UINT64_MAX ? 2 : 1;
    atomic_store(word_of(shelf, block), offer->next_epoch);
    atomic_thread_fence(memory_order_seq_cst);
}

/* ---- shelves --------------------------------------------------------------------------------- */

weft_status_t kv_offer_add_shelf(kv_offer_t *offer, const kv_offer_shelf_t *shape,
                                 uint32_t *shelf_out)
{
    assert(offer->n_shelves < KV_REMOTE_MAX_SHELVES);
    shelf_t *shelf = &offer->shelves[offer->n_shelves];
    weft_status_t status = kv_index_create(shape->n_blocks, &shelf->index);
    if (status >= 0) {
        status = offer->host->ops->alloc(offer->host, shape->n_blocks * sizeof(uint64_t),
                                         WEFT_MEM_EXPORTABLE, &shelf->words);
    }
    if (status < 0) {
        kv_index_destroy(shelf->index);
        *shelf = (shelf_t){0};
        return status;
    }
    shelf->shape = *shape;
    pthread_mutex_lock(&offer->lock);
    for (kv_block_id_t block = 0; block < shape->n_blocks; block++) {
        change_epoch(offer, shelf, block);
    }
    pthread_mutex_unlock(&offer->lock);
    *shelf_out = offer->n_shelves++;
    return WEFT_OK;
}

uint32_t kv_offer_shelves(const kv_offer_t *offer)
{
    return offer->n_shelves;
}

const kv_offer_shelf_t *kv_offer_shelf(const kv_offer_t *offer, uint32_t shelf)
{
    return &offer->shelves[shelf].shape;
}

const weft_mem_t *kv_offer_words(const kv_offer_t *offer, uint32_t shelf)
{
    return &offer->shelves[shelf].words;
}

const weft_mem_t *kv_offer_probe(const kv_offer_t *offer)
{
    return &offer->probe;
}

/* ---- blocks ---------------------------------------------------------------------------------- */

void kv_offer_put(kv_offer_t *offer, uint32_t shelf, kv_block_id_t block, const kv_hash_t *hash)
{
    if (offer == NULL) {
        return;
    }
    pthread_mutex_lock(&offer->lock);
    (void)kv_index_insert(offer->shelves[shelf].index, hash, block);
    pthread_mutex_unlock(&offer->lock);
}

void kv_offer_take_back(kv_offer_t *offer, uint32_t shelf, kv_block_id_t block)
{
    if (offer == NULL) {
        return;
    }
    pthread_mutex_lock(&offer->lock);
    kv_index_remove(offer->shelves[shelf].index, block);
    change_epoch(offer, &offer->shelves[shelf], block);
    pthread_mutex_unlock(&offer->lock);
}

void kv_offer_clear(kv_offer_t *offer, uint32_t shelf)
{
    if (offer == NULL) {
        return;
    }
    shelf_t *cleared = &offer->shelves[shelf];
    pthread_mutex_lock(&offer->lock);
    kv_index_clear(cleared->index);
    for (kv_block_id_t block = 0; block < cleared->shape.n_blocks; block++) {
        change_epoch(offer, cleared, block);
    }
    pthread_mutex_unlock(&offer->lock);
}

/* Under lock. */
static bool find_place(kv_offer_t *offer, const kv_hash_t *hash, kv_offer_place_t *place_out)
{
    for (uint32_t i = 0; i < offer->n_shelves; i++) {
        const kv_block_id_t block = kv_index_find(offer->shelves[i].index, hash);
        if (block != KV_BLOCK_NONE) {
            *place_out = (kv_offer_place_t){i, block, *word_of(&offer->shelves[i], block)};
            return true;
        }
    }
    return false;
}

uint32_t kv_offer_find(kv_offer_t *offer, const kv_hash_t *hashes, uint32_t n,
                       kv_offer_place_t *places_out)
{
    bool is_there = true;
    uint32_t found = 0;
    while (is_there && found < n) {
        pthread_mutex_lock(&offer->lock);
        for (uint32_t i = 0; is_there && found < n && i < FOUND_UNDER_LOCK; i++) {
            is_there = find_place(offer, &hashes[found], &places_out[found]);
            found += is_there;
        }
        pthread_mutex_unlock(&offer->lock);
    }
    return found;
}

uint64_t kv_offer_blocks(kv_offer_t *offer)
{
    uint64_t n = 0;
    pthread_mutex_lock(&offer->lock);
    for (uint32_t i = 0; i < offer->n_shelves; i++) {
        n += kv_index_count(offer->shelves[i].index);
    }
    pthread_mutex_unlock(&offer->lock);
    return n;
}
