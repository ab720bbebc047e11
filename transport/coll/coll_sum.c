/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/coll/coll_sum.h"

#include "transport/coll/coll_half.h"

size_t coll_dtype_bytes(coll_dtype_t dtype)
{
    return dtype == COLL_F32 ? sizeof(float) : sizeof(uint16_t);
}

static void sum_f32(float *out, float *copy, const void *const *in, uint32_t count, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float sum = ((const float *)in[0])[i];
        for (uint32_t k = 1; k < count; k++) {
            sum += ((const float *)in[k])[i];
        }
        out[i] = sum;
        if (copy != NULL) {
            copy[i] = sum;
        }
    }
}

#define SUM_HALVES(type)                                                                           \
    static void sum_##type(uint16_t *out, uint16_t *copy, const void *const *in, uint32_t count,   \
                           size_t n)                                                               \
    {                                                                                              \
        for (size_t i = 0; i < n; i++) {                                                           \
            float sum = coll_f32_of_##type(((const uint16_t *)in[0])[i]);                          \
            for (uint32_t k = 1; k < count; k++) {                                                 \
                sum += coll_f32_of_##type(((const uint16_t *)in[k])[i]);                           \
            }                                                                                      \
            out[i] = coll_##type##_of_f32(sum);                                                    \
            if (copy != NULL) {                                                                    \
                copy[i] = out[i];                                                                  \
            }                                                                                      \
        }                                                                                          \
    }

SUM_HALVES(f16)
SUM_HALVES(bf16)

void coll_sum(coll_dtype_t dtype, void *out, void *copy, const void *const *in, uint32_t count,
              size_t n)
{
    switch (dtype) {
    case COLL_F32:
        sum_f32(out, copy, in, count, n);
        break;
    case COLL_F16:
        sum_f16(out, copy, in, count, n);
        break;
    case COLL_BF16:
        sum_bf16(out, copy, in, count, n);
        break;
    }
}
