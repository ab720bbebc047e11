/* SPDX-License-Identifier: Apache-2.0 */
/* coll_sum_priv: the ways that coll_sum has of adding, by instruction set. */
#pragma once

#include "transport/coll/coll_sum.h"

/* Adds elements first … of [n] and returns the one it stopped before, at most n. */
typedef size_t coll_sum_fn(void *out, void *copy, const void *const *in, uint32_t count,
                           size_t first, size_t n);

typedef struct coll_sum_way {
    const char *name;
    coll_sum_fn *sums[3]; /* by coll_dtype_t */
} coll_sum_way_t;

extern const coll_sum_way_t coll_sum_plain; /* comes to n */
#if defined(__x86_64__)
extern const coll_sum_way_t coll_sum_avx2;
extern const coll_sum_way_t coll_sum_avx512;
#endif

/* Those that this processor can, best first; NULL behind the last, which is coll_sum_plain. */
const coll_sum_way_t *const *coll_sum_ways(void);

void coll_sum_by(const coll_sum_way_t *way, coll_dtype_t dtype, void *out, void *copy,
                 const void *const *in, uint32_t count, size_t n);
