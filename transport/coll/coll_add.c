/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/coll/coll_add.h"

#include <assert.h>
#include <string.h>

/* Added at a time: the sums stay in the first cache while the parts are walked through. */
#define BLOCK 1024

size_t coll_dtype_bytes(coll_dtype_t dtype)
{
    return dtype == COLL_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* ---- between f32 and the halves ---------------------------------------------------------------- */

static inline float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline uint32_t bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float widen_bf16(uint16_t half)
{
    return float_of_bits((uint32_t)half << 16);
}

static inline uint16_t round_bf16(float value)
{
    const uint32_t bits = bits_of_float(value);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const uint32_t quiet = bits >> 16 | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

/* The exponents of a half are 112 below those of a float; a product by 2^112 moves subnormals too. */
static inline float widen_f16(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
    const float value = float_of_bits(magnitude) * 0x1p112F;
    const uint32_t special = magnitude | 0x7f800000;
    return float_of_bits(sign | ((half & 0x7c00) == 0x7c00 ? special : bits_of_float(value)));
}

static inline uint16_t round_f16(float value)
{
    const uint32_t bits = bits_of_float(value);
    const uint32_t sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude - (112U << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    /* Below 2^-14 a half has a fixed point at 2^-24: the sum with 0.5 rounds there. */
    const uint32_t small = bits_of_float(float_of_bits(magnitude) + 0.5F) - 0x3f000000;
    uint32_t half = magnitude < 0x38800000 ? small : normal;

    half = magnitude >= 0x477ff000 ? 0x7c00 : half; /* rounds to infinity */
    half = magnitude > 0x7f800000 ? 0x7e00 | (magnitude >> 13 & 0x3ff) : half;
    return (uint16_t)(sign | half);
}

/* ---- a block ----------------------------------------------------------------------------------- */

static void add_f32(float *out, const void *const *parts, uint32_t n_parts, size_t first, size_t n)
{
    float sum[BLOCK];

    memcpy(sum, (const float *)parts[0] + first, n * sizeof(*sum));
    for (uint32_t part = 1; part < n_parts; part++) {
        const float *in = (const float *)parts[part] + first;
        for (size_t i = 0; i < n; i++) {
            sum[i] += in[i];
        }
    }
    memcpy(out + first, sum, n * sizeof(*sum));
}

static void add_bf16(uint16_t *out, const void *const *parts, uint32_t n_parts, size_t first,
                     size_t n)
{
    float sum[BLOCK];

    for (uint32_t part = 0; part < n_parts; part++) {
        const uint16_t *in = (const uint16_t *)parts[part] + first;
        for (size_t i = 0; i < n; i++) {
            sum[i] = part == 0 ? widen_bf16(in[i]) : sum[i] + widen_bf16(in[i]);
        }
    }
    for (size_t i = 0; i < n; i++) {
        out[first + i] = round_bf16(sum[i]);
    }
}

static void add_f16(uint16_t *out, const void *const *parts, uint32_t n_parts, size_t first,
                    size_t n)
{
    float sum[BLOCK];

    for (uint32_t part = 0; part < n_parts; part++) {
        const uint16_t *in = (const uint16_t *)parts[part] + first;
        for (size_t i = 0; i < n; i++) {
            sum[i] = part == 0 ? widen_f16(in[i]) : sum[i] + widen_f16(in[i]);
        }
    }
    for (size_t i = 0; i < n; i++) {
        out[first + i] = round_f16(sum[i]);
    }
}

void coll_add(void *out, const void *const *parts, uint32_t n_parts, size_t n, coll_dtype_t dtype)
{
    assert(n_parts > 0);
    for (size_t first = 0; first < n; first += BLOCK) {
        const size_t block = n - first < BLOCK ? n - first : BLOCK;
        switch (dtype) {
        case COLL_F32:
            add_f32(out, parts, n_parts, first, block);
            break;
        case COLL_F16:
            add_f16(out, parts, n_parts, first, block);
            break;
        case COLL_BF16:
            add_bf16(out, parts, n_parts, first, block);
            break;
        }
    }
}
