/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crc32c_priv: the ways to compute it. Each takes and gives the register as it is between bytes: the
 * sum's complement.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef struct weft_crc32c_way {
    const char *name;
    uint32_t (*update)(uint32_t state, const uint8_t *data, size_t bytes);
} weft_crc32c_way_t;

/* Those that this processor can, best first; name is NULL behind the last. The table is one. */
const weft_crc32c_way_t *weft_crc32c_ways(void);

uint32_t weft_crc32c_table(uint32_t state, const uint8_t *data, size_t bytes);

#define WEFT_CRC32C_MACHINE_WAYS 2

/* Fills in what the machine has, best first; returns how many. */
size_t weft_crc32c_machine_ways(weft_crc32c_way_t ways_out[WEFT_CRC32C_MACHINE_WAYS]);

/*
 * Three streams at a time hide the instruction's latency; then the sums of the first two are moved
 * behind what follows them. x^n mod P with its bits reversed, n as the names say; the 33 are lost to
 * the reversed product (1 bit) and to the instruction that reduces it (32 bits).
 */
#define WEFT_CRC32C_LONG         1360 /* bytes a stream; three of them are almost 4 KiB */
#define WEFT_CRC32C_SHORT        136
#define WEFT_CRC32C_SHIFT_LONG   UINT32_C(0x3f70cc6f) /* 8 × 1360 - 33 */
#define WEFT_CRC32C_SHIFT_LONG2  UINT32_C(0x5aa1f3cf) /* 8 × 2720 - 33 */
#define WEFT_CRC32C_SHIFT_SHORT  UINT32_C(0x6992cea2) /* 8 × 136 - 33 */
#define WEFT_CRC32C_SHIFT_SHORT2 UINT32_C(0x18b33a4e) /* 8 × 272 - 33 */
