/* SPDX-License-Identifier: Apache-2.0 */
/*
 * weight_formats: one struct for each way in which packed weights lie, for the mma kernels.
 *
 * A block is one unit (16 rows) × one k block (64 columns). Lane l of a warp, g = l / 4, t = l % 4,
 * holds rows g and g + 8; in step j (0..3) of a block it holds elements e = 0..3: columns 16j + 2t and
 * + 1, then those 8 further (weight_column), as simt_mma's fragments do: a[0], a[1] are e = 0, 1 in
 * rows g, g + 8; a[2], a[3] are e = 2, 3.
 *
 *   BYTES     of a block; STRIDE from one k block of a unit to the next
 *   PARTS     bf16 fragments whose sum is the weight (or its integer)
 *   GROUP     columns that share a scale; 0: no scales
 *   HAS_MIN   weight = scale · integer + offset
 *   OVER      fragments hold integers over this power of two: weight_plain.h
 *   raw       a block's registers in a lane; load() fetches them from global or shared memory
 *   fragment  PARTS fragments of step j
 *   scale     of group i of the block, for rows g and g + 8; offset likewise
 *   value     one element, bit-equal to k_dequantize
 *   pack      writes what thread t of 4 has of one row: its elements of k block kb from
 *             the source row src of `columns` elements; those past the end stay as they are
 */
#pragma once

#include "kernels/cuda/linear/weight_bytes.h"
#include "kernels/cuda/linear/weight_nibbles.h"
#include "kernels/cuda/linear/weight_plain.h"

/* Calls DO(dtype, its format) for every dtype; SCALED_FORMATS for those with scales. */
#define WEIGHT_FORMATS(DO)                                                                         \
    DO(K_BF16, weight_bf16)                                                                        \
    DO(K_F16, weight_f16)                                                                          \
    DO(K_F32, weight_f32)                                                                          \
    SCALED_FORMATS(DO)

#define SCALED_FORMATS(DO)                                                                         \
    DO(K_Q8_0, weight_q8_0)                                                                        \
    DO(K_Q4_0, weight_q4_0)                                                                        \
    DO(K_Q4_1, weight_q4_1)                                                                        \
    DO(K_Q4_K, weight_q4_k)                                                                        \
    DO(K_Q6_K, weight_q6_k)                                                                        \
    DO(K_I4_32, weight_i4_32)                                                                      \
    DO(K_MXFP4, weight_mxfp4)                                                                      \
    DO(K_F8_32, weight_f8_32)                                                                      \
    DO(K_F8_8X32, weight_f8_8x32)
