/* SPDX-License-Identifier: Apache-2.0 */
/* kv_bytes: values as caches of bytes keep them: E4M3 (base/float8.h) and int8 (base/int8.h). */
#pragma once

#include "kernels/cuda/simt/simt.h"

/* To nearest even; what is too large becomes the largest. */
SIMT_DEVICE uint8_t kv_f8_of(float v)
{
    return (uint8_t)simt_pack_e4m3(v, 0);
}

SIMT_DEVICE float kv_f8_value(uint8_t code)
{
    return simt_unpack_e4m3(code).x;
}

/* |v|, infinite where v is not finite: to be maximized over what shares a scale. */
SIMT_DEVICE float kv_i8_size(float v)
{
    const float size = fabsf(v);
    return size < INFINITY ? size : INFINITY;
}

typedef struct kv_i8_scale {
    float scale;
    float inverse;
} kv_i8_scale_t;

SIMT_DEVICE kv_i8_scale_t kv_i8_scale_of(float largest)
{
    if (largest == INFINITY) {
        return {simt_bits_float(0x7fc00000u), 0};
    }
    if (largest < 0x1p-100f) {
        return {0, 0};
    }
    return {largest / 127, 127 / largest};
}

SIMT_DEVICE int8_t kv_i8_of(float v, const kv_i8_scale_t &scale)
{
    return (int8_t)(int)rintf(v * scale.inverse);
}
