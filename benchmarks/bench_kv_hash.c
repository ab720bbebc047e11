/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kv_hash [prefill tokens/s] [block size] [vocabulary]: what naming the blocks of a prompt of
 * 100,000 random ids costs, by algorithm, beside digests of as many bytes alone: the serializer's
 * share. One JSON object a line, medians with their spread; prefill_share is hashing's part of the
 * time that a prefill at the given rate takes.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "kvstore/hash/kv_hash.h"

enum { PROMPT_TOKENS = 100000, ROUNDS = 21 };

typedef struct bench {
    double prefill_rate; /* tokens/s */
    uint32_t block_tokens;
    uint32_t n_blocks;
    int32_t *tokens;   /* [n_blocks * block_tokens] */
    kv_hash_t *hashes; /* [n_blocks] */
} bench_t;

static void *take(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory == NULL) {
        fputs("bench_kv_hash: not enough memory\n", stderr);
        exit(1);
    }
    return memory;
}

static void fill(bench_t *bench, uint32_t vocab)
{
    uint64_t state = 1;
    for (uint32_t i = 0; i < bench->n_blocks * bench->block_tokens; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        bench->tokens[i] = (int32_t)((state >> 33) % vocab);
    }
}

/* Nanoseconds of one prompt's chain. */
static double hash_prompt(const bench_t *bench, kv_hasher_t *hasher)
{
    const uint64_t begin = weft_clock_ns();
    for (uint32_t i = 0; i < bench->n_blocks; i++) {
        kv_hasher_block(hasher, i == 0 ? NULL : &bench->hashes[i - 1],
                        bench->tokens + (size_t)i * bench->block_tokens, bench->block_tokens, NULL,
                        &bench->hashes[i]);
    }
    return (double)(weft_clock_ns() - begin);
}

/* What a request pays before its first block. */
static double clone_hasher(const kv_hasher_t *hasher)
{
    const uint64_t begin = weft_clock_ns();
    kv_hasher_t *clone;
    if (kv_hasher_clone(hasher, &clone) < 0) {
        exit(1);
    }
    kv_hasher_destroy(clone);
    return (double)(weft_clock_ns() - begin);
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const bench_t *bench, kv_hash_algo_t algo, double *rounds, double *clones)
{
    qsort(rounds, ROUNDS, sizeof(rounds[0]), compare_doubles);
    qsort(clones, ROUNDS, sizeof(clones[0]), compare_doubles);
    const double median = rounds[ROUNDS / 2];
    const double tokens = (double)bench->n_blocks * bench->block_tokens;
    printf("{\"algo\": \"%s\", \"block_tokens\": %u, \"block_ns\": %.1f, \"prompt_tokens\": %.0f, "
           "\"prompt_ms\": %.3f, \"prompt_ms_min\": %.3f, \"prompt_ms_max\": %.3f, "
           "\"clone_ns\": %.0f, \"prefill_tokens_s\": %.0f, \"prefill_share\": %.7f}\n",
           kv_hash_algo_name(algo), bench->block_tokens, median / bench->n_blocks, tokens,
           median * 1e-6, rounds[0] * 1e-6, rounds[ROUNDS - 1] * 1e-6, clones[ROUNDS / 2],
           bench->prefill_rate, median * 1e-9 / (tokens / bench->prefill_rate));
}

int main(int argc, char **argv)
{
    bench_t bench = {
        .prefill_rate = argc > 1 ? strtod(argv[1], NULL) : 1151,
        .block_tokens = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 16,
    };
    const uint32_t vocab = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 151936;
    if (bench.block_tokens == 0 || bench.block_tokens > KV_HASH_MAX_TOKENS || vocab == 0) {
        fputs("bench_kv_hash: a block has 1 to 4096 tokens, a vocabulary at least one\n", stderr);
        return 2;
    }
    bench.n_blocks = PROMPT_TOKENS / bench.block_tokens;
    bench.tokens = take(PROMPT_TOKENS, sizeof(int32_t));
    bench.hashes = take(bench.n_blocks, sizeof(kv_hash_t));
    fill(&bench, vocab);
    double rounds[KV_HASH_ALGO_COUNT][ROUNDS];
    double clones[KV_HASH_ALGO_COUNT][ROUNDS];
    kv_hasher_t *hashers[KV_HASH_ALGO_COUNT];
    for (int algo = 0; algo < KV_HASH_ALGO_COUNT; algo++) {
        if (kv_hasher_create((kv_hash_algo_t)algo, "0", &hashers[algo]) < 0) {
            return 1;
        }
        (void)hash_prompt(&bench, hashers[algo]);
    }
    for (int round = 0; round < ROUNDS; round++) { /* in turns: all see the same machine */
        for (int algo = 0; algo < KV_HASH_ALGO_COUNT; algo++) {
            rounds[algo][round] = hash_prompt(&bench, hashers[algo]);
            clones[algo][round] = clone_hasher(hashers[algo]);
        }
    }
    for (int algo = 0; algo < KV_HASH_ALGO_COUNT; algo++) {
        report(&bench, (kv_hash_algo_t)algo, rounds[algo], clones[algo]);
        kv_hasher_destroy(hashers[algo]);
    }
    free(bench.tokens);
    free(bench.hashes);
    return 0;
}
