/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/hash/kv_hash.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "kvstore/hash/kv_hash_priv.h"

#define RANDOM_BYTES 32

typedef struct algo {
    const char *name;
    uint32_t bytes;
    const char *root_seed; /* when none is given; NULL: a random one */
    uint8_t *(*put_text)(uint8_t *out, const char *text);
    uint8_t *(*put_block)(uint8_t *out, const kv_hash_input_t *input);
    void (*digest)(const uint8_t *data, size_t bytes, kv_hash_t *hash_out);
} algo_t;

struct kv_hasher {
    const algo_t *algo; /* like the root constant after create: clone reads nothing else */
    kv_hash_t root;
    uint8_t preimage[KV_HASH_PREIMAGE_BYTES];
};

/* ---- algorithms ---- */

#define ROOT_SEED_sha256   "vllm-none-hash"
#define ROOT_SEED_xxh3_128 NULL

static const algo_t algos[] = {
#define ALGO(name, serializer, digest, bytes)                                                      \
    {#name,                                                                                        \
     bytes,                                                                                        \
     ROOT_SEED_##digest,                                                                           \
     kv_hash_##serializer##_text,                                                                  \
     kv_hash_##serializer##_block,                                                                 \
     kv_hash_##digest},
#include "kvstore/hash/kv_hash_algos.def"
#undef ALGO
};

weft_status_t kv_hash_algo_parse(const char *name, weft_diag_t *diag, kv_hash_algo_t *algo_out)
{
    for (int i = 0; i < KV_HASH_ALGO_COUNT; i++) {
        if (strcmp(name, algos[i].name) == 0) {
            *algo_out = (kv_hash_algo_t)i;
            return WEFT_OK;
        }
    }
    static const char known[] =
#define ALGO(known_name, ...) " " #known_name
#include "kvstore/hash/kv_hash_algos.def"
#undef ALGO
        ;
    return weft_diag(diag, WEFT_ERR_INVALID, "unknown hash algorithm '%s', there are:%s", name,
                     known);
}

const char *kv_hash_algo_name(kv_hash_algo_t algo)
{
    return algos[algo].name;
}

uint32_t kv_hash_algo_bytes(kv_hash_algo_t algo)
{
    return algos[algo].bytes;
}

/* ---- hashers ---- */

/* The digest of the pre-image that ends at end. */
static void finish(kv_hasher_t *hasher, const uint8_t *end, kv_hash_t *hash_out)
{
    const size_t bytes = (size_t)(end - hasher->preimage);
    hasher->algo->digest(hasher->preimage, bytes, hash_out);
}

static weft_status_t allocate(const algo_t *algo, kv_hasher_t **hasher_out)
{
    kv_hasher_t *hasher = weft_alloc(sizeof(*hasher), "kv_hash.hasher");
    if (hasher == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    hasher->algo = algo;
    *hasher_out = hasher;
    return WEFT_OK;
}

/* Text of 64 hex digits, as Python's bytes.hex() of 32 random bytes. */
static weft_status_t draw_seed(char *text_out)
{
    uint8_t bytes[RANDOM_BYTES];
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes)) {
        return WEFT_ERR_IO;
    }
    for (size_t i = 0; i < sizeof(bytes); i++) {
        snprintf(text_out + 2 * i, 3, "%02x", bytes[i]);
    }
    return WEFT_OK;
}

weft_status_t kv_hasher_create(kv_hash_algo_t algo, const char *seed, kv_hasher_t **hasher_out)
{
    char drawn[2 * RANDOM_BYTES + 1];
    const char *text = seed != NULL ? seed : algos[algo].root_seed;
    kv_hasher_t *hasher = NULL;
    if (text == NULL) {
        const weft_status_t status = draw_seed(drawn);
        if (status < 0) {
            return status;
        }
        text = drawn;
    }
    if (strlen(text) > KV_EXTRA_MAX_BYTES) {
        return WEFT_ERR_TOO_LARGE;
    }
    const weft_status_t status = allocate(&algos[algo], &hasher);
    if (status < 0) {
        return status;
    }
    const uint8_t *end = hasher->algo->put_text(hasher->preimage, text);
    finish(hasher, end, &hasher->root);
    *hasher_out = hasher;
    return WEFT_OK;
}

weft_status_t kv_hasher_clone(const kv_hasher_t *hasher, kv_hasher_t **hasher_out)
{
    kv_hasher_t *clone = NULL;
    const weft_status_t status = allocate(hasher->algo, &clone);
    if (status < 0) {
        return status;
    }
    clone->root = hasher->root;
    *hasher_out = clone;
    return WEFT_OK;
}

void kv_hasher_destroy(kv_hasher_t *hasher)
{
    weft_free(hasher);
}

void kv_hasher_block(kv_hasher_t *hasher, const kv_hash_t *parent, const int32_t *tokens,
                     uint32_t n, const kv_extra_t *extra, kv_hash_t *hash_out)
{
    assert(n <= KV_HASH_MAX_TOKENS);
    const kv_hash_input_t input = {
        .parent = parent == NULL ? hasher->root.bytes : parent->bytes,
        .parent_bytes = hasher->algo->bytes,
        .tokens = tokens,
        .n_tokens = n,
        .lora_name = kv_extra_lora_name(extra),
        .lora_path = kv_extra_lora_path(extra),
        .salt = parent == NULL ? kv_extra_salt(extra) : NULL,
    };
    finish(hasher, hasher->algo->put_block(hasher->preimage, &input), hash_out);
}

const kv_hash_t *kv_hasher_root(const kv_hasher_t *hasher)
{
    return &hasher->root;
}

kv_hash_algo_t kv_hasher_algo(const kv_hasher_t *hasher)
{
    return (kv_hash_algo_t)(hasher->algo - algos);
}

uint64_t kv_hash_u64(const kv_hash_t *hash, kv_hash_algo_t algo)
{
    const uint8_t *last = hash->bytes + algos[algo].bytes - sizeof(uint64_t);
    uint64_t value = 0;
    for (size_t i = 0; i < sizeof(uint64_t); i++) {
        value = value << 8 | last[i];
    }
    return value;
}
