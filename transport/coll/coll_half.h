/* SPDX-License-Identifier: Apache-2.0 */
/* coll_half: f16 and bf16 to f32 and back, to nearest even, without the processor's help. */
#pragma once

#include <stdint.h>
#include <string.h>

static inline uint32_t coll_bits_of_f32(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float coll_f32_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline float coll_f32_of_bf16(uint16_t half)
{
    return coll_f32_of_bits((uint32_t)half << 16);
}

static inline uint16_t coll_bf16_of_f32(float value)
{
    const uint32_t bits = coll_bits_of_f32(value);
    if ((bits & UINT32_C(0x7fffffff)) > UINT32_C(0x7f800000)) {
        return (uint16_t)(bits >> 16 | 0x40); /* a NaN stays one, and becomes quiet */
    }
    return (uint16_t)((bits + UINT32_C(0x7fff) + (bits >> 16 & 1)) >> 16);
}

static inline float coll_f32_of_f16(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t magnitude = half & 0x7fff;
    if (magnitude >= 0x7c00) { /* infinite, or NaN made quiet as the processor does */
        const uint32_t quiet = magnitude > 0x7c00 ? UINT32_C(0x400000) : 0;
        return coll_f32_of_bits(sign | UINT32_C(0x7f800000) | (magnitude & 0x3ff) << 13 | quiet);
    }
    if (magnitude < 0x400) { /* subnormal: a whole number of 2^-24 */
        const float value = (float)magnitude * 0x1p-24f;
        return sign != 0 ? -value : value;
    }
    return coll_f32_of_bits(sign | ((magnitude << 13) + (UINT32_C(112) << 23)));
}

static inline uint16_t coll_f16_of_f32(float value)
{
    const uint32_t bits = coll_bits_of_f32(value);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & UINT32_C(0x7fffffff);
    if (magnitude > UINT32_C(0x7f800000)) {
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    }
    if (magnitude >= UINT32_C(0x477ff000)) { /* rounds past 65504 */
        return (uint16_t)(sign | 0x7c00);
    }
    if (magnitude < UINT32_C(0x38800000)) { /* subnormal: adding 0.5 leaves multiples of 2^-24 */
        const float shifted = coll_f32_of_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (coll_bits_of_f32(shifted) - coll_bits_of_f32(0.5f)));
    }
    const uint32_t rebased = magnitude - (UINT32_C(112) << 23);
    return (uint16_t)(sign | (rebased + 0xfff + (rebased >> 13 & 1)) >> 13);
}
