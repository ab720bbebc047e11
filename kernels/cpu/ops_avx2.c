/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/simd_avx2.h"

#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd_math.h"

#include "kernels/cpu/attention.inc"
#include "kernels/cpu/linear.inc"
#include "kernels/cpu/lora.inc"
#include "kernels/cpu/mla_attention.inc"
#include "kernels/cpu/rope_kv_write.inc"
#include "kernels/cpu/rows.inc"

static bool is_supported(void)
{
    return cpu_features_has_avx2();
}

#include "kernels/cpu/table.inc"
