/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_recode: weights of types that no kernel multiplies are kept as a type that one does, with the
 * same numbers: whole codes with one f16 scale as Q8_0, everything else as the f32 of k_dequantize.
 */
#pragma once

#include "kernels/dtypes.h"

/* The type that weights of this one are kept as: mostly itself. */
static inline k_dtype_t cuda_recode_type(k_dtype_t dtype)
{
    switch (dtype) {
    case K_Q5_0:
    case K_IQ4_NL:
        return K_Q8_0;
    case K_Q5_1:
    case K_Q2_K:
    case K_Q3_K:
    case K_Q5_K:
    case K_IQ2_XXS:
    case K_IQ2_XS:
    case K_IQ3_XXS:
    case K_IQ1_S:
    case K_IQ3_S:
    case K_IQ2_S:
    case K_IQ4_XS:
    case K_IQ1_M:
    case K_TQ1_0:
    case K_TQ2_0:
    case K_NVFP4:
        return K_F32;
    default:
        return dtype;
    }
}

/* Of a type that is not kept as itself: n elements, whole blocks of both. */
void cuda_recode(k_dtype_t dtype, const void *src, void *dst, size_t n);
