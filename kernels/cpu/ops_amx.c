/* SPDX-License-Identifier: Apache-2.0 */
/* avx512_bf16 whose linear multiplies rows by the sixteen in tiles, for quantized weights. */
#ifndef ISA_NAME
#define ISA_NAME amx
#endif
#define ISA_BASE avx512

#include "kernels/cpu/simd_avx512.h"

#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd_amx.h"
#include "kernels/cpu/simd_math.h"

#include "kernels/cpu/linear.inc"

static bool is_supported(void)
{
    return cpu_features_has_amx();
}

#include "kernels/cpu/table.inc"
