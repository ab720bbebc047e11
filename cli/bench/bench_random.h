/* SPDX-License-Identifier: Apache-2.0 */
/* bench_random: numbers of a seed, the same on every machine. */
#pragma once

#include <stdint.h>

/* splitmix64 (Steele, Lea, Flood 2014); seed by assignment. */
typedef struct bench_random {
    uint64_t state;
} bench_random_t;

uint64_t bench_random_next(bench_random_t *random);
double bench_random_exponential(bench_random_t *random, double rate); /* seconds to an arrival */
