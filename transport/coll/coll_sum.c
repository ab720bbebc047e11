/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/coll/coll_sum.h"

#include <stdatomic.h>

#include "base/compiler.h"
#include "transport/coll/coll_half.h"
#include "transport/coll/coll_sum_priv.h"

size_t coll_dtype_bytes(coll_dtype_t dtype)
{
    return dtype == COLL_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* ---- one by one -------------------------------------------------------------------------------- */

static float load_f32(const float *from)
{
    return *from;
}

static float load_f16(const uint16_t *from)
{
    return coll_f32_of_f16(*from);
}

static float load_bf16(const uint16_t *from)
{
    return coll_f32_of_bf16(*from);
}

static float round_f32(float value)
{
    return value;
}

#define SUM_PLAIN(type, element_t, round)                                                          \
    static size_t sum_##type(void *out, void *copy, const void *const *in, uint32_t count,         \
                             size_t first, size_t n)                                               \
    {                                                                                              \
        for (; first < n; first++) {                                                               \
            float sum = load_##type((const element_t *)in[0] + first);                             \
            for (uint32_t k = 1; k < count; k++) {                                                 \
                sum += load_##type((const element_t *)in[k] + first);                              \
            }                                                                                      \
            const element_t rounded = round(sum);                                                  \
            ((element_t *)out)[first] = rounded;                                                   \
            if (copy != NULL) {                                                                    \
                ((element_t *)copy)[first] = rounded;                                              \
            }                                                                                      \
        }                                                                                          \
        return n;                                                                                  \
    }

SUM_PLAIN(f32, float, round_f32)
SUM_PLAIN(f16, uint16_t, coll_f16_of_f32)
SUM_PLAIN(bf16, uint16_t, coll_bf16_of_f32)

const coll_sum_way_t coll_sum_plain = {.name = "plain", .sums = {sum_f32, sum_f16, sum_bf16}};

/* ---- the best way here ------------------------------------------------------------------------- */

#if defined(__x86_64__)
static const coll_sum_way_t *const ways[] = {&coll_sum_avx512, &coll_sum_avx2, &coll_sum_plain,
                                             NULL};

static size_t find_first(void)
{
    /* F16C, which clang has no name for, is in every processor with AVX2. */
    const bool has_avx2 = weft_cpu_has("avx2");
    const bool has_avx512 = has_avx2 && weft_cpu_has("avx512f") && weft_cpu_has("avx512bw") &&
                            weft_cpu_has("avx512dq") && weft_cpu_has("avx512vl");
    return has_avx512 ? 0 : has_avx2 ? 1 : 2;
}
#else
static const coll_sum_way_t *const ways[] = {&coll_sum_plain, NULL};

static size_t find_first(void)
{
    return 0;
}
#endif

const coll_sum_way_t *const *coll_sum_ways(void)
{
    static atomic_size_t found; /* 1 + the index: whoever asks first comes to the same */
    size_t first = atomic_load_explicit(&found, memory_order_relaxed);
    if (first == 0) {
        first = 1 + find_first();
        atomic_store_explicit(&found, first, memory_order_relaxed);
    }
    return &ways[first - 1];
}

void coll_sum_by(const coll_sum_way_t *way, coll_dtype_t dtype, void *out, void *copy,
                 const void *const *in, uint32_t count, size_t n)
{
    const size_t done = way->sums[dtype](out, copy, in, count, 0, n);
    if (done < n) {
        (void)coll_sum_plain.sums[dtype](out, copy, in, count, done, n);
    }
}

void coll_sum(coll_dtype_t dtype, void *out, void *copy, const void *const *in, uint32_t count,
              size_t n)
{
    coll_sum_by(coll_sum_ways()[0], dtype, out, copy, in, count, n);
}
