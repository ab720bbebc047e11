/* SPDX-License-Identifier: Apache-2.0 */
/*
 * random: seeded randomness for property tests. The seed is printed and taken back: WEFT_TEST_SEED=n.
 * A campaign of several rounds takes the seeds from n on; WEFT_TEST_ROUNDS=1 runs the first alone.
 * WEFT_TEST_LONG=1 asks for the whole campaign instead of a twentieth.
 */
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct test_random {
    uint64_t state;
} test_random_t;

/* Sebastiano Vigna's splitmix64. */
static inline uint64_t test_random_u64(test_random_t *random)
{
    uint64_t z = (random->state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* 0 … below - 1 */
static inline uint32_t test_random_below(test_random_t *random, uint32_t below)
{
    return (uint32_t)(test_random_u64(random) % below);
}

static inline uint32_t test_random_between(test_random_t *random, uint32_t low, uint32_t high)
{
    return low + test_random_below(random, high - low + 1);
}

/* WEFT_TEST_SEED when given, else fallback. */
static inline uint64_t test_seed(uint64_t fallback)
{
    const char *text = getenv("WEFT_TEST_SEED");
    const uint64_t seed = text == NULL ? fallback : strtoull(text, NULL, 0);
    printf("seed %llu\n", (unsigned long long)seed);
    return seed;
}

/* ThreadSanitizer looks at who touches what, for which a fifth is as good. */
#ifdef __SANITIZE_THREAD__
#define TEST_SLOWNESS 5
#else
#define TEST_SLOWNESS 1
#endif

/* all under WEFT_TEST_LONG=1, else a twentieth. */
static inline uint32_t test_scaled(uint32_t all_rounds)
{
    const char *is_long = getenv("WEFT_TEST_LONG");
    const uint32_t all = (all_rounds + TEST_SLOWNESS - 1) / TEST_SLOWNESS;
    return is_long != NULL && is_long[0] == '1' ? all : (all + 19) / 20;
}

/* How many rounds of a campaign of `all` to run now: WEFT_TEST_ROUNDS when given. */
static inline uint32_t test_rounds(uint32_t all)
{
    const char *text = getenv("WEFT_TEST_ROUNDS");
    return text == NULL ? test_scaled(all) : (uint32_t)strtoul(text, NULL, 0);
}
