/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 whose linear multiplies bf16 weights as bf16; everything else is AVX-512's. */
#define ISA_NAME avx512_bf16
#define ISA_BASE avx512

#include "kernels/cpu/simd_avx512.h"

#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd_math.h"

#include "kernels/cpu/linear.inc"

static bool is_supported(void)
{
    return cpu_features_has_avx512_bf16();
}

#include "kernels/cpu/table.inc"
