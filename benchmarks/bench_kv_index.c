/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kv_index [blocks] [matched blocks]: the index full of random digests: bytes a block, what an
 * insert, a hit, a miss and a removal cost, and the match of a prompt's chain (6250 blocks: 100,000
 * tokens by 16) whose blocks lie scattered in an index that the caches have forgotten, beside the
 * same chain looked up hash by hash. One JSON object; medians with their spread.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "kvstore/kv_index.h"

enum { ROUNDS = 21, LOOKUPS = 1000000 };

#define CACHE_BYTES ((size_t)256 << 20) /* more than caches hold */

typedef struct bench {
    kv_index_t *index;
    uint32_t n_blocks;
    uint32_t n_chain;
    kv_hash_t *chain;      /* [n_chain] */
    kv_block_id_t *blocks; /* [n_chain] */
    uint8_t *cache;        /* [CACHE_BYTES] */
} bench_t;

static volatile uint64_t sink;

static void fail(const char *what)
{
    fprintf(stderr, "bench_kv_index: %s\n", what);
    exit(1);
}

static void *take(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory == NULL) {
        fail("not enough memory");
    }
    return memory;
}

/* Sebastiano Vigna's splitmix64. */
static uint64_t mix(uint64_t n)
{
    uint64_t z = n * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* As random as a digest. */
static kv_hash_t hash_of(uint64_t n)
{
    kv_hash_t hash;
    for (size_t i = 0; i < KV_HASH_BYTES / sizeof(uint64_t); i++) {
        const uint64_t word = mix(n * 4 + i + 1);
        memcpy(hash.bytes + i * sizeof(word), &word, sizeof(word));
    }
    return hash;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const char *name, double *samples)
{
    qsort(samples, ROUNDS, sizeof(samples[0]), compare_doubles);
    printf(", \"%s\": %.3f, \"%s_min\": %.3f, \"%s_max\": %.3f", name, samples[ROUNDS / 2], name,
           samples[0], name, samples[ROUNDS - 1]);
}

static void fill(bench_t *bench)
{
    const uint64_t begin = weft_clock_ns();
    for (uint32_t i = 0; i < bench->n_blocks; i++) {
        const kv_hash_t hash = hash_of(i);
        if (kv_index_insert(bench->index, &hash, i) != i) {
            fail("two equal digests");
        }
    }
    printf(", \"insert_ns\": %.1f", (double)(weft_clock_ns() - begin) / bench->n_blocks);
}

/* Single lookups of random hashes, each after the one before: its result makes the next. */
static double find_many(const bench_t *bench, uint64_t seed, uint64_t first)
{
    uint64_t n = seed;
    const uint64_t begin = weft_clock_ns();
    for (uint32_t i = 0; i < LOOKUPS; i++) {
        const kv_hash_t hash = hash_of(first + n % bench->n_blocks);
        n = mix(n + kv_index_find(bench->index, &hash) + 1);
    }
    sink = n;
    return (double)(weft_clock_ns() - begin) / LOOKUPS;
}

static double replace_many(const bench_t *bench, uint64_t seed)
{
    const uint64_t begin = weft_clock_ns();
    for (uint32_t i = 0; i < LOOKUPS / 10; i++) {
        const kv_block_id_t block = (kv_block_id_t)(mix(seed + i) % bench->n_blocks);
        const kv_hash_t hash = hash_of(block);
        kv_index_remove(bench->index, block);
        (void)kv_index_insert(bench->index, &hash, block);
    }
    return (double)(weft_clock_ns() - begin) / (LOOKUPS / 10);
}

/* Scattered blocks as one chain, and caches full of something else. */
static void prepare_chain(bench_t *bench, uint64_t seed)
{
    uint64_t sum = 0;
    for (size_t at = 0; at < CACHE_BYTES; at += 64) {
        bench->cache[at]++;
        sum += bench->cache[at];
    }
    sink = sum;
    for (uint32_t i = 0; i < bench->n_chain; i++) {
        bench->chain[i] = hash_of(mix(seed + i) % bench->n_blocks);
    }
}

static double match_chain(bench_t *bench, uint64_t seed)
{
    prepare_chain(bench, seed);
    const uint64_t begin = weft_clock_ns();
    if (kv_index_match(bench->index, bench->chain, bench->n_chain, bench->blocks) !=
        bench->n_chain) {
        fail("a block is lost");
    }
    return (double)(weft_clock_ns() - begin) * 1e-6;
}

static double find_chain(bench_t *bench, uint64_t seed)
{
    prepare_chain(bench, seed);
    const uint64_t begin = weft_clock_ns();
    for (uint32_t i = 0; i < bench->n_chain; i++) {
        bench->blocks[i] = kv_index_find(bench->index, &bench->chain[i]);
    }
    return (double)(weft_clock_ns() - begin) * 1e-6;
}

static void measure(bench_t *bench)
{
    double hits[ROUNDS], misses[ROUNDS], replaced[ROUNDS], matches[ROUNDS], finds[ROUNDS];
    (void)find_many(bench, 1, 0);
    for (int round = 0; round < ROUNDS; round++) { /* in turns: all see the same machine */
        const uint64_t seed = (uint64_t)round * LOOKUPS * 2;
        hits[round] = find_many(bench, seed, 0);
        misses[round] = find_many(bench, seed, UINT64_C(1) << 40);
        replaced[round] = replace_many(bench, seed);
        matches[round] = match_chain(bench, seed);
        finds[round] = find_chain(bench, seed + LOOKUPS);
    }
    report("hit_ns", hits);
    report("miss_ns", misses);
    report("replace_ns", replaced);
    printf(", \"chain_blocks\": %u", bench->n_chain);
    report("cold_match_ms", matches);
    report("cold_finds_ms", finds);
}

int main(int argc, char **argv)
{
    bench_t bench = {
        .n_blocks = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 10000000,
        .n_chain = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 6250,
        .cache = take(CACHE_BYTES, 1),
    };
    const size_t before = weft_alloc_live_bytes();
    if (kv_index_create(bench.n_blocks, &bench.index) < 0) {
        fail("cannot make such an index");
    }
    const size_t bytes = weft_alloc_live_bytes() - before;
    bench.chain = take(bench.n_chain, sizeof(kv_hash_t));
    bench.blocks = take(bench.n_chain, sizeof(kv_block_id_t));
    printf("{\"blocks\": %u, \"bytes\": %zu, \"bytes_per_block\": %.1f", bench.n_blocks, bytes,
           (double)bytes / bench.n_blocks);
    fill(&bench);
    measure(&bench);
    printf("}\n");
    kv_index_destroy(bench.index);
    free(bench.chain);
    free(bench.blocks);
    free(bench.cache);
    return 0;
}
