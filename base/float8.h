/* SPDX-License-Identifier: Apache-2.0 */
/*
 * float8: E4M3 numbers of one byte: a sign, four bits of exponent, three of mantissa, no infinities.
 * Micikevicius et al. 2022, "FP8 formats for deep learning".
 *
 * Threads  none of its own
 */
#pragma once

#include <stdint.h>
#include <string.h>

#define WEFT_F8_NAN 0x7f
#define WEFT_F8_MAX 0x7e /* 448 */

static inline float weft_f8_to_f32(uint8_t code)
{
    const uint32_t sign = (uint32_t)(code & 0x80) << 24;
    const uint32_t magnitude = code & 0x7f;
    const float small = (float)magnitude * 0x1p-9f; /* exact where the exponent is 0 */
    uint32_t bits = (magnitude << 20) + (UINT32_C(120) << 23);
    if (magnitude < 8) {
        memcpy(&bits, &small, sizeof(bits));
    } else if (magnitude == WEFT_F8_NAN) {
        bits = 0x7fc00000;
    }
    bits |= sign;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* To nearest, ties to even; what is too large becomes the largest, NaN stays NaN. */
static inline uint8_t weft_f32_to_f8(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    const uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return sign | WEFT_F8_NAN;
    }
    if (magnitude >= 0x43e00000) { /* 448 */
        return sign | WEFT_F8_MAX;
    }
    if (magnitude < 0x3c800000) { /* 2^-6: multiples of 2^-9; adding 2^14 rounds to them */
        const float absolute = value < 0 ? -value : value;
        const float shifted = absolute + 0x1p14f;
        uint32_t rounded;
        memcpy(&rounded, &shifted, sizeof(rounded));
        return sign | (uint8_t)(rounded & 15);
    }
    const uint32_t odd = magnitude >> 20 & 1;
    return sign | (uint8_t)(((magnitude + 0x7ffff + odd) >> 20) - (120 << 3));
}
