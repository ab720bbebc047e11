/* SPDX-License-Identifier: Apache-2.0 */
/* small_codes: integers -2 … 2 in every element type, of which all sums of products are exact. */
#pragma once

#include <stdint.h>

static const uint16_t small_bf16[] = {0xc000, 0xbf80, 0, 0x3f80, 0x4000};
static const uint16_t small_f16[] = {0xc000, 0xbc00, 0, 0x3c00, 0x4000};
static const uint8_t small_e4m3[] = {0xc0, 0xb8, 0, 0x38, 0x40};
static const uint8_t small_s8[] = {0xfe, 0xff, 0, 1, 2};

/* By position, -2 … 2. */
static inline int small_value(uint32_t row, uint32_t column)
{
    uint32_t hash = (row * 2654435761u) ^ (column * 40503u + 77u);
    hash ^= hash >> 13;
    hash *= 0x5bd1e995u;
    return (int)((hash >> 16) % 5) - 2;
}
