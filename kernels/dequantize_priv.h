/* SPDX-License-Identifier: Apache-2.0 */
/* dequantize_priv: one block to f32, a function a type; fields are little-endian. */
#pragma once

#include <stdint.h>

#include "kernels/dtypes.h"

static inline uint16_t k_load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t k_load_u32(const uint8_t *p)
{
    return k_load_u16(p) | (uint32_t)k_load_u16(p + 2) << 16;
}

static inline float k_load_f16(const uint8_t *p)
{
    return k_f16_to_f32(k_load_u16(p));
}

extern const int8_t k_e2m1_doubled[16];
extern const int8_t k_iq4_levels[16];

/* Half of 2^(e - 127): a subnormal for 0 and 1. */
float k_e8m0_half(uint8_t e);

void k_dequantize_iq1_m(const uint8_t *block, float *y);
void k_dequantize_iq1_s(const uint8_t *block, float *y);
void k_dequantize_iq2_s(const uint8_t *block, float *y);
void k_dequantize_iq2_xs(const uint8_t *block, float *y);
void k_dequantize_iq2_xxs(const uint8_t *block, float *y);
void k_dequantize_iq3_s(const uint8_t *block, float *y);
void k_dequantize_iq3_xxs(const uint8_t *block, float *y);
void k_dequantize_iq4_nl(const uint8_t *block, float *y);
void k_dequantize_iq4_xs(const uint8_t *block, float *y);
