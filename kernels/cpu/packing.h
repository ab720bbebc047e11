/* SPDX-License-Identifier: Apache-2.0 */
/*
 * packing: how a weight matrix lies in memory for the SIMD kernels.
 *
 * `lanes` consecutive output rows make a group, so that one vector lane owns one output row and no
 * sum ever crosses lanes. Missing rows of the last group are zero. A group is read from its first
 * byte to its last, and the groups of a matrix lie one behind the other: one stream.
 *
 *   plain      f32, f16: [column][lane]; bf16: [column pair][lane][2], an odd last column with 0;
 *              f8_32: 32 columns, [column][lane], then their f32 scales [lane]
 *   quantized  blocks of `block_units` units of 32 columns: the units' quants, then their scales
 *   quants     of a unit: planes of words of 4 bytes, [word][lane]. Byte i of word j of
 *                8 bits  column 4j + i
 *                4 bits  columns 4j + i (low) and 16 + 4j + i (high), j < 4
 *                2 bits  pair p: column 16j + 4p + i, j < 2
 *                1 bit   bit b: column 4b + i
 *              in this order; a wider value has its low bits in the first plane it has
 *   scales     of a block: f16 [field][lane], then bytes [field][lane]; fields in the order of
 *              packing_scales_t
 *
 * 8 bits for 16 lanes are stored with 128 added (as u8: what VNNI multiplies).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define PACKING_UNIT    32
#define PACKING_K_UNITS 8 /* units of a block of the k types */

/* What a block's scales are; a weight is step · (quant − offset), less or more what is said. */
typedef enum packing_scales {
    PACKING_D,      /* f16 d: the step */
    PACKING_D_M,    /* f16 d, m: plus m */
    PACKING_K_MIN,  /* f16 d, dmin; u8 scale [8], min [8]: step d · scale, minus dmin · min */
    PACKING_K_HALF, /* f16 d; i8 scale [16]: step d · scale of each 16 columns */
    /* f16 d, dmin; u8 scale + 16 · min [16]: as K_MIN, of each 16 columns */
    PACKING_K_HALF_MIN,
    PACKING_K_SIGNED, /* f16 d; i8 scale [8]: step d · scale */
    PACKING_EXPONENT, /* u8 e: step 2^(e - 128) */
    PACKING_D_ZERO,   /* f16 d; u8 zero: step d, minus d · zero */
} packing_scales_t;

/* What a quant stands for before it is scaled. */
typedef enum packing_levels {
    PACKING_NUMBER, /* itself, less the offset */
    PACKING_IQ4,    /* k_iq4_levels */
    PACKING_E2M1,   /* k_e2m1_doubled */
} packing_levels_t;

typedef struct packing_form {
    uint8_t bits; /* of a quant; 0: plain, or no form */
    uint8_t offset;
    uint8_t scales; /* packing_scales_t */
    uint8_t levels; /* packing_levels_t */
} packing_form_t;

/* In the header so that kernels of one dtype are compiled for its numbers. */
static const packing_form_t packing_forms[K_DTYPE_COUNT] = {
    [K_Q4_0] = {4, 8, PACKING_D, PACKING_NUMBER},
    [K_Q4_1] = {4, 0, PACKING_D_M, PACKING_NUMBER},
    [K_Q5_0] = {5, 16, PACKING_D, PACKING_NUMBER},
    [K_Q5_1] = {5, 0, PACKING_D_M, PACKING_NUMBER},
    [K_Q8_0] = {8, 0, PACKING_D, PACKING_NUMBER},
    [K_Q2_K] = {2, 0, PACKING_K_HALF_MIN, PACKING_NUMBER},
    [K_Q3_K] = {3, 4, PACKING_K_HALF, PACKING_NUMBER},
    [K_Q4_K] = {4, 0, PACKING_K_MIN, PACKING_NUMBER},
    [K_Q5_K] = {5, 0, PACKING_K_MIN, PACKING_NUMBER},
    [K_Q6_K] = {6, 32, PACKING_K_HALF, PACKING_NUMBER},
    [K_IQ4_NL] = {4, 0, PACKING_D, PACKING_IQ4},
    [K_IQ4_XS] = {4, 0, PACKING_K_SIGNED, PACKING_IQ4},
    [K_MXFP4] = {4, 0, PACKING_EXPONENT, PACKING_E2M1},
    [K_I4_32] = {4, 0, PACKING_D_ZERO, PACKING_NUMBER},
};

/* Fields of a block's scales, and the units it has. */
typedef struct packing_scale_form {
    uint8_t halfwords;
    uint8_t bytes;
    uint8_t block_units;
} packing_scale_form_t;

static const packing_scale_form_t packing_scale_forms[] = {
    [PACKING_D] = {1, 0, 1},
    [PACKING_D_M] = {2, 0, 1},
    [PACKING_K_MIN] = {2, 16, PACKING_K_UNITS},
    [PACKING_K_HALF] = {1, 16, PACKING_K_UNITS},
    [PACKING_K_HALF_MIN] = {2, 16, PACKING_K_UNITS},
    [PACKING_K_SIGNED] = {1, 8, PACKING_K_UNITS},
    [PACKING_EXPONENT] = {0, 1, 1},
    [PACKING_D_ZERO] = {1, 1, 1},
};

typedef struct packing {
    k_dtype_t dtype;
    uint32_t lanes;
    uint32_t columns;
    uint32_t block_units; /* 0: plain */
    size_t quant_bytes;   /* of a unit */
    size_t block_bytes;   /* of all lanes; plain: of a step */
    size_t group_bytes;
} packing_t;

/*
 * Whether the SIMD kernels have a form for it. Matrices of other types stay as the file has them,
 * and the plain ops compute from them.
 */
static inline bool packing_has(k_dtype_t dtype)
{
    return dtype == K_F32 || dtype == K_F16 || dtype == K_BF16 || dtype == K_F8_32 ||
           packing_forms[dtype].bits > 0;
}

/* Columns of a plain type that lie together. */
static inline uint32_t packing_step(k_dtype_t dtype)
{
    return dtype == K_BF16 ? 2 : dtype == K_F8_32 ? PACKING_UNIT : 1;
}

packing_t packing_of(k_dtype_t dtype, uint32_t columns, uint32_t lanes);

/* Groups of a matrix; those of form K_WEIGHT_GATE_UP are of gate and of up by turns. */
uint32_t packing_groups(k_weight_form_t form, uint32_t rows, uint32_t lanes);

/*
 * Groups to an item of a job over `groups` of each of n matrices: enough items to even out threads that
 * are slowed down, few enough to be cheap to claim, each of `least` groups at least: an even number, as
 * gate and up stay together. A matrix is packed in the items that few rows are multiplied with it in: what a
 * thread reads it has written first, and the system put it on its node.
 */
static inline uint32_t packing_item_groups(uint32_t groups, uint32_t n, uint32_t least,
                                           uint32_t threads)
{
    const uint32_t each = n * groups / (threads * 8) / least * least;
    const uint32_t whole = each < least ? least : each < groups ? each : groups;
    return whole + whole % 2;
}

/* The least of an item of few rows: short tiles of a plain type want more. */
static inline uint32_t packing_least_groups(const packing_t *packing)
{
    return packing->block_units == 0 ? 4 : 2;
}

/* Bytes of a matrix of `rows` rows. */
size_t packing_bytes(const packing_t *packing, k_weight_form_t form, uint32_t rows);

/* Packs parts one after the other into dst, shared out over the stream's team. */
void packing_pack(const packing_t *packing, k_weight_form_t form, k_stream_t *stream,
                  const k_weight_part_t *parts, uint32_t n_parts, void *dst);

/* One row of a matrix of form K_WEIGHT_ROWS as f32, bit-equal to k_dequantize of the source. y [columns] */
void packing_unpack_row(const packing_t *packing, const void *data, uint32_t row, float *y);
