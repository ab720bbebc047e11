/* SPDX-License-Identifier: Apache-2.0 */
/*
 * int8: numbers of one byte that share a scale, symmetric about 0: x is about code · scale.
 *
 *   scale = m / 127, m the largest |x|
 *   code  = x · (127 / m), to nearest, ties to even: -127 … 127
 *
 * m below 2^-100 counts as 0: scale and codes are 0. With an infinity or NaN among the x the scale is
 * NaN, and the codes mean nothing.
 *
 * Threads  none of its own
 */
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct weft_i8_scale {
    float scale;
    float inverse; /* by what x is multiplied before it is rounded */
} weft_i8_scale_t;

/* Of the largest |x|, or of anything that is not finite where an x is not. */
static inline weft_i8_scale_t weft_i8_scale_of(float largest)
{
    if (!isfinite(largest)) {
        return (weft_i8_scale_t){NAN, 0};
    }
    if (largest < 0x1p-100f) {
        return (weft_i8_scale_t){0, 0};
    }
    return (weft_i8_scale_t){largest / 127, 127 / largest};
}

/* The largest |x| of n, infinite where an x is not finite. */
static inline float weft_i8_largest(const float *x, size_t n)
{
    float largest = 0;
    for (size_t i = 0; i < n; i++) {
        const float size = fabsf(x[i]);
        largest = size <= largest ? largest : isfinite(size) ? size : INFINITY;
    }
    return largest;
}

/* |scaled| is at most 127.5, or it is NaN: then any code. */
static inline int8_t weft_f32_to_i8(float scaled)
{
    const float shifted = scaled + 0x1.8p23f; /* the integer is in the lowest bits, rounded */
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof(bits));
    const uint8_t code = (uint8_t)bits;
    return (int8_t)code;
}
