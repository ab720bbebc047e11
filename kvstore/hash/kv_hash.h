/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_hash: the name of a full block: a digest of all tokens up to its end.
 *
 * hash_i = H(serialize((hash_{i-1}, tokens_i, extra_i))), equal to vLLM 0.32's bytes for each of
 * its algorithms: H is SHA-256 or XXH3-128 (seed 0, big-endian), the serializer canonical CBOR
 * (RFC 7049) or Python's pickle protocol 5. extra_i is null or a tuple of
 * ("lora", name, path) and, in the first block only, ("cache_salt", salt).
 * hash_{-1} = H(serialize(seed text)): PYTHONHASHSEED, or, when unset, "vllm-none-hash" for the
 * SHA-256 algorithms and 64 random hex digits for the others. Only full blocks have a hash.
 *
 * Trust    XXH3 does not claim to withstand a search for collisions, and a digest is a block's only
 *          name: two prompts made to collide would be answered from each other's blocks. A random
 *          root hides names but is no key, as XXH3 adds up what it makes of each piece of its
 *          input: that makes the search harder, not hopeless. Users who do not trust each other
 *          need a SHA-256 algorithm. Slowing the index down by aimed digests is in nobody's power:
 *          it has a key of its own (kv_index.c)
 * Threads  a hasher belongs to one thread at a time; hashing allocates nothing
 */
#pragma once

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kvstore/hash/kv_extra.h"

#define KV_HASH_BYTES      32
#define KV_HASH_MAX_TOKENS 4096 /* in a block */

typedef enum kv_hash_algo {
#define ALGO(name, ...) KV_HASH_ALGO_##name,
#include "kvstore/hash/kv_hash_algos.def"
#undef ALGO
    KV_HASH_ALGO_COUNT
} kv_hash_algo_t;

typedef struct kv_hash {
    uint8_t bytes[KV_HASH_BYTES]; /* a shorter digest is followed by zeros */
} kv_hash_t;

typedef struct kv_hasher kv_hasher_t;

/* WEFT_ERR_INVALID: the known names are in diag. */
weft_status_t kv_hash_algo_parse(const char *name, weft_diag_t *diag, kv_hash_algo_t *algo_out);
const char *kv_hash_algo_name(kv_hash_algo_t algo);
uint32_t kv_hash_algo_bytes(kv_hash_algo_t algo); /* of a digest */

/* seed NULL: unset. WEFT_ERR_TOO_LARGE: longer than KV_EXTRA_MAX_BYTES. */
weft_status_t kv_hasher_create(kv_hash_algo_t algo, const char *seed, kv_hasher_t **hasher_out);
/*
 * One that gives the same hashes, for another thread (a random root is the same, too). hasher may
 * be at work on its own meanwhile.
 */
weft_status_t kv_hasher_clone(const kv_hasher_t *hasher, kv_hasher_t **hasher_out);
void kv_hasher_destroy(kv_hasher_t *hasher); /* NULL is fine */

/*
 * tokens [n], none negative, n ≤ KV_HASH_MAX_TOKENS. parent NULL: the first block of a chain; only
 * there the salt counts. extra may be NULL. hash_out may be parent.
 */
void kv_hasher_block(kv_hasher_t *hasher, const kv_hash_t *parent, const int32_t *tokens,
                     uint32_t n, const kv_extra_t *extra, kv_hash_t *hash_out);

/* The parent that first blocks get. */
const kv_hash_t *kv_hasher_root(const kv_hasher_t *hasher);
kv_hash_algo_t kv_hasher_algo(const kv_hasher_t *hasher);

/* What events carry by default: the digest's last 8 bytes, big-endian. */
uint64_t kv_hash_u64(const kv_hash_t *hash, kv_hash_algo_t algo);
