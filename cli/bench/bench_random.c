/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_random.h"

#include <math.h>

uint64_t bench_random_next(bench_random_t *random)
{
    uint64_t z = (random->state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

double bench_random_exponential(bench_random_t *random, double rate)
{
    const double uniform = (double)(bench_random_next(random) >> 11) * 0x1p-53; /* [0, 1) */
    return -log1p(-uniform) / rate;
}
