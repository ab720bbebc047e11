/* SPDX-License-Identifier: Apache-2.0 */
/*
 * packing: how a weight matrix lies in memory for the SIMD kernels.
 *
 * `lanes` consecutive output rows make a group, so that one vector lane owns one output row and no
 * sum ever crosses lanes. Missing rows of the last group are zero. A group of a plain type is
 * [column][lane]. A group of a quantized type is its quants, then its scales:
 *
 *   unit     32 columns. Quants of a unit are words of 4 bytes, [word][lane]: for 4-bit types word j
 *            holds columns 4j.. in the low and 16 + 4j.. in the high nibbles; for q8_0 columns 4j..;
 *            for q6_k four words as for 4 bits, then two words h of bit pairs: pair p of byte i is
 *            the top of column 16h + 4p + i
 *   scales   q4_0, q8_0: f16 d [lane] a unit; q4_1: f16 d [lane], m [lane] a unit
 *            q4_k, each 8 units: f16 d [lane], dmin [lane], u8 scale [8][lane], u8 min [8][lane]
 *            q6_k, each 8 units: f16 d [lane], i8 scale [16][lane]
 *
 * q8_0 for 16 lanes is stored with 128 added (as u8: what VNNI multiplies).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define PACKING_UNIT 32

typedef struct packing {
    k_dtype_t dtype;
    uint32_t lanes;
    uint32_t columns;
    size_t scales_at; /* bytes from the start of a group */
    size_t group_bytes;
} packing_t;

/*
 * Whether the SIMD kernels have a form for it. Matrices of other types stay as the file has them,
 * and the plain ops compute from them.
 */
bool packing_has(k_dtype_t dtype);

packing_t packing_of(k_dtype_t dtype, uint32_t columns, uint32_t lanes);

/* Bytes of a matrix of `rows` rows. */
size_t packing_bytes(const packing_t *packing, uint32_t rows);

/* Packs parts one after the other into dst, groups shared out over the stream's team. */
void packing_pack(const packing_t *packing, k_stream_t *stream, const k_weight_part_t *parts,
                  uint32_t n_parts, void *dst);

/* One row of the matrix as f32, bit-equal to k_dequantize of the source. y [columns] */
void packing_unpack_row(const packing_t *packing, const void *data, uint32_t row, float *y);
