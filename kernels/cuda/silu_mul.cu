/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda_gated.h"

typedef struct silu_mul {
    SIMT_FN float operator()(float gate, float up) const
    {
        const float log2_e = 1.44269504f;
        return gate * simt_rcp(1.0f + simt_exp2(-gate * log2_e)) * up;
    }
} silu_mul_t;

int k_cuda_silu_mul(const k_cuda_launch_t *at, const k_silu_mul_args_t *args)
{
    return gated_launch(at, args, silu_mul_t{});
}
