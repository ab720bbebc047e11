/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/cuda_recode.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { GROUP = 32, F16_BYTES = 2, Q8_0_BYTES = F16_BYTES + GROUP };

/* Blocks of 32 that begin with their scale: each number is a code of a byte times it, exactly. */
static void recode_q8_0(k_dtype_t dtype, const uint8_t *src, uint8_t *dst)
{
    float numbers[GROUP];
    uint16_t bits;
    memcpy(&bits, src, F16_BYTES);
    memcpy(dst, src, F16_BYTES);
    const float scale = k_f16_to_f32(bits);
    k_dequantize(dtype, src, numbers, GROUP);
    for (int i = 0; i < GROUP; i++) {
        const float code = scale != 0 ? numbers[i] / scale : 0;
        dst[F16_BYTES + i] = (uint8_t)(int8_t)(isfinite(code) ? code : 0);
    }
}

void cuda_recode(k_dtype_t dtype, const void *src, void *dst, size_t n)
{
    const k_dtype_info_t *from = k_dtype_info(dtype);
    if (cuda_recode_type(dtype) == K_F32) {
        k_dequantize(dtype, src, dst, n);
        return;
    }
    assert(cuda_recode_type(dtype) == K_Q8_0 && from->block_elements == GROUP);
    for (size_t i = 0; i < n / GROUP; i++) {
        recode_q8_0(dtype, (const uint8_t *)src + i * from->block_bytes,
                    (uint8_t *)dst + i * Q8_0_BYTES);
    }
}
