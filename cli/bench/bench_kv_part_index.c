/* SPDX-License-Identifier: Apache-2.0 */
/* The parts without content: pool, index, the look-up of a prompt, hashes. */
#include "base/alloc.h"
#include "base/clock.h"
#include "base/compiler.h"
#include "cli/bench/bench_kv_parts.h"
#include "cli/bench/bench_random.h"
#include "kvstore/kv_index.h"
#include "kvstore/kv_pool.h"

#define BATCH       4096                     /* hashes made between two measurements */
#define CHAIN       64                       /* blocks of an allocation */
#define REPEATS     20                       /* of a match */
#define ABSENT      (UINT64_C(1) << 62)      /* hashes from here on are never stored */
#define OF_A_PROMPT (ABSENT + (ABSENT >> 1)) /* and these are the prompt's */

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- pool ------------------------------------------------------------------------------------ */

static weft_status_t create_pool(const bench_kv_bench_t *bench, uint32_t n_blocks,
                                 kv_pool_t **pool_out)
{
    kv_pool_config_t config = {
        .device = bench->device,
        .layout = {.block_tokens = bench->block_tokens, .n_groups = 1},
        .n_blocks = n_blocks,
    };
    config.layout.block_bytes[0] = config.layout.strides[0].block = 1; /* content is not used */
    return kv_pool_create(&config, pool_out);
}

/* Chains end in any order, so that the free list leads all over the records. */
static void release_chains(kv_pool_t *pool, const kv_block_id_t *ids, uint32_t n)
{
    const uint32_t n_chains = (n + CHAIN - 1) / CHAIN;
    for (uint32_t i = 0; i < n_chains; i++) {
        const uint32_t first = bench_kv_shuffled(i, n_chains) * CHAIN;
        kv_pool_release(pool, ids + first, smaller(CHAIN, n - first));
    }
}

static weft_status_t alloc_chains(kv_pool_t *pool, kv_block_id_t *ids, uint32_t n)
{
    weft_status_t status = WEFT_OK;
    for (uint32_t first = 0; status >= 0 && first < n; first += CHAIN) {
        status = kv_pool_alloc(pool, smaller(CHAIN, n - first), ids + first);
    }
    return status;
}

static weft_status_t measure_pool(bench_kv_bench_t *bench, kv_pool_t *pool, kv_block_id_t *ids)
{
    const uint32_t n = bench->options->index_blocks;
    weft_status_t status = alloc_chains(pool, ids, n);
    const uint64_t start = weft_clock_ns();
    release_chains(pool, ids, n);
    const uint64_t middle = weft_clock_ns();
    status = status < 0 ? status : alloc_chains(pool, ids, n);
    const uint64_t end = weft_clock_ns();
    if (status >= 0) {
        status = bench_kv_note_rate(bench, "pool alloc", "blocks/s", n, end - middle);
    }
    if (status >= 0) {
        status = bench_kv_note_rate(bench, "pool release", "blocks/s", n, middle - start);
    }
    return status;
}

weft_status_t bench_kv_part_pool(bench_kv_bench_t *bench, weft_diag_t *diag)
{
    const uint32_t n = bench->options->index_blocks;
    kv_pool_t *pool = NULL;
    kv_block_id_t *ids = weft_calloc(n, sizeof(*ids), "bench_kv.ids");
    weft_status_t status = ids == NULL ? WEFT_ERR_NO_MEMORY : create_pool(bench, n, &pool);
    if (status >= 0) {
        status = measure_pool(bench, pool, ids);
    }
    kv_pool_destroy(pool);
    weft_free(ids);
    return status < 0 ? weft_diag(diag, status, "pool of %u blocks: %s", n, weft_strerror(status))
                      : WEFT_OK;
}

/* ---- index ----------------------------------------------------------------------------------- */

/* Inserts hashes first … first + n - 1 for blocks of the same numbers; the time it took. */
static uint64_t fill_index(const bench_kv_bench_t *bench, kv_index_t *index, uint32_t n)
{
    static kv_hash_t hashes[BATCH];
    uint64_t ns = 0;
    for (uint32_t first = 0; first < n; first += BATCH) {
        const uint32_t batch = smaller(BATCH, n - first);
        bench_kv_hashes(bench, first, batch, hashes);
        const uint64_t start = weft_clock_ns();
        for (uint32_t i = 0; i < batch; i++) {
            (void)kv_index_insert(index, &hashes[i], first + i);
        }
        ns += weft_clock_ns() - start;
    }
    return ns;
}

/* Looks n hashes up, from number `offset` on, in no order; how many were found. */
static uint32_t look_up(const bench_kv_bench_t *bench, const kv_index_t *index, uint32_t n,
                        uint64_t offset, uint64_t *ns_out)
{
    static kv_hash_t hashes[BATCH];
    uint32_t n_found = 0;
    *ns_out = 0;
    for (uint32_t first = 0; first < n; first += BATCH) {
        const uint32_t batch = smaller(BATCH, n - first);
        for (uint32_t i = 0; i < batch; i++) {
            bench_kv_hashes(bench, offset + bench_kv_shuffled(first + i, n), 1, &hashes[i]);
        }
        const uint64_t start = weft_clock_ns();
        for (uint32_t i = 0; i < batch; i++) {
            n_found += kv_index_find(index, &hashes[i]) != KV_BLOCK_NONE;
        }
        *ns_out += weft_clock_ns() - start;
    }
    return n_found;
}

static uint64_t evict_all(kv_index_t *index, uint32_t n)
{
    const uint64_t start = weft_clock_ns();
    for (uint32_t i = 0; i < n; i++) {
        kv_index_remove(index, bench_kv_shuffled(i, n));
    }
    return weft_clock_ns() - start;
}

static weft_status_t measure_index(bench_kv_bench_t *bench, kv_index_t *index)
{
    const uint32_t n = bench->options->index_blocks;
    uint64_t hit_ns;
    uint64_t miss_ns;
    const uint64_t insert_ns = fill_index(bench, index, n);
    const uint32_t n_hits = look_up(bench, index, n, 0, &hit_ns);
    const uint32_t n_misses = n - look_up(bench, index, n, ABSENT, &miss_ns);
    const uint64_t evict_ns = evict_all(index, n);
    const struct {
        const char *name;
        uint64_t ns;
    } rows[] = {{"index insert", insert_ns},
                {"index lookup, found", hit_ns},
                {"index lookup, absent", miss_ns},
                {"index evict", evict_ns}};
    weft_status_t status =
        n_hits == n && n_misses == n && kv_index_count(index) == 0 ? WEFT_OK : WEFT_ERR_INTERNAL;
    for (size_t i = 0; status >= 0 && i < WEFT_ARRAY_LEN(rows); i++) {
        status = bench_kv_note_rate(bench, rows[i].name, "blocks/s", n, rows[i].ns);
    }
    return status;
}

weft_status_t bench_kv_part_index(bench_kv_bench_t *bench, weft_diag_t *diag)
{
    const uint32_t n = bench->options->index_blocks;
    const size_t before = weft_alloc_live_bytes();
    kv_index_t *index = NULL;
    weft_status_t status = kv_index_create(n, &index);
    if (status >= 0) {
        const size_t bytes = weft_alloc_live_bytes() - before;
        status = bench_kv_note(bench, "index size", "B/block", (double)bytes / n);
    }
    if (status >= 0) {
        status = measure_index(bench, index);
    }
    kv_index_destroy(index);
    return status < 0 ? weft_diag(diag, status, "index of %u blocks: %s", n, weft_strerror(status))
                      : WEFT_OK;
}

/* ---- a long prompt --------------------------------------------------------------------------- */

/* The prompt's blocks lie anywhere among those of others. */
static weft_status_t measure_match(bench_kv_bench_t *bench, kv_index_t *index, uint32_t n,
                                   kv_hash_t *hashes, kv_block_id_t *blocks)
{
    const uint32_t n_others = bench->options->index_blocks;
    bench_kv_hashes(bench, OF_A_PROMPT, n, hashes);
    (void)fill_index(bench, index, n_others);
    for (uint32_t i = 0; i < n; i++) {
        (void)kv_index_insert(index, &hashes[i], n_others + bench_kv_shuffled(i, n));
    }
    uint64_t n_found = 0;
    const uint64_t start = weft_clock_ns();
    for (int i = 0; i < REPEATS; i++) {
        n_found += kv_index_match(index, hashes, n, blocks);
    }
    const double seconds = (double)(weft_clock_ns() - start) / (double)WEFT_NS_PER_SECOND;
    return n_found == (uint64_t)REPEATS * n
               ? bench_kv_note(bench, "match of the prompt", "s", seconds / REPEATS)
               : WEFT_ERR_INTERNAL;
}

weft_status_t bench_kv_part_match(bench_kv_bench_t *bench, weft_diag_t *diag)
{
    const uint32_t n = bench->options->prompt_tokens / bench->block_tokens;
    kv_hash_t *hashes = weft_calloc(n, sizeof(*hashes), "bench_kv.hashes");
    kv_block_id_t *blocks = weft_calloc(n, sizeof(*blocks), "bench_kv.blocks");
    kv_index_t *index = NULL;
    weft_status_t status = hashes == NULL || blocks == NULL
                               ? WEFT_ERR_NO_MEMORY
                               : kv_index_create(bench->options->index_blocks + n, &index);
    if (status >= 0) {
        status = measure_match(bench, index, n, hashes, blocks);
    }
    kv_index_destroy(index);
    weft_free(blocks);
    weft_free(hashes);
    return status < 0 ? weft_diag(diag, status, "match: %s", weft_strerror(status)) : WEFT_OK;
}

/* tokens [n * block_tokens] */
static weft_status_t measure_hash(bench_kv_bench_t *bench, kv_hash_algo_t algo, const char *name,
                                  const int32_t *tokens, uint32_t n)
{
    const uint32_t size = bench->block_tokens;
    kv_hasher_t *hasher = NULL;
    kv_hash_t hash;
    const weft_status_t status = kv_hasher_create(algo, "0", &hasher);
    if (status < 0) {
        return status;
    }
    const uint64_t start = weft_clock_ns();
    for (uint32_t i = 0; i < n; i++) {
        kv_hasher_block(hasher, i == 0 ? NULL : &hash, tokens + (size_t)i * size, size, NULL,
                        &hash);
    }
    const uint64_t ns = weft_clock_ns() - start;
    kv_hasher_destroy(hasher);
    return bench_kv_note_rate(bench, name, "tokens/s", (uint64_t)n * size, ns);
}

weft_status_t bench_kv_part_hash(bench_kv_bench_t *bench, weft_diag_t *diag)
{
    static const char *const names[] = {
#define ALGO(name, ...) "hash " #name,
#include "kvstore/hash/kv_hash_algos.def"
#undef ALGO
    };
    const uint32_t n = bench->options->prompt_tokens / bench->block_tokens;
    const size_t n_tokens = (size_t)n * bench->block_tokens;
    bench_random_t random = {.state = bench->seed};
    int32_t *tokens = weft_calloc(n_tokens, sizeof(*tokens), "bench_kv.tokens");
    weft_status_t status = tokens == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    for (size_t i = 0; status >= 0 && i < n_tokens; i++) {
        tokens[i] = (int32_t)(bench_random_next(&random) >> 48);
    }
    for (kv_hash_algo_t algo = 0; status >= 0 && algo < KV_HASH_ALGO_COUNT; algo++) {
        status = measure_hash(bench, algo, names[algo], tokens, n);
    }
    weft_free(tokens);
    return status < 0 ? weft_diag(diag, status, "hash: %s", weft_strerror(status)) : WEFT_OK;
}
