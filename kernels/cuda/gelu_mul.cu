/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda_gated.h"

typedef struct gelu_mul {
    /* x/2 · (1 + tanh(t)) = x / (1 + exp(-2t)). */
    SIMT_FN float operator()(float gate, float up) const
    {
        const float twice_root_log2_e = 2 * 0.7978845608f * 1.44269504f; /* 2 √(2/π) log₂ e */
        const float t = gate * fmaf(0.044715f * gate, gate, 1.0f);
        return gate * simt_rcp(1.0f + simt_exp2(-t * twice_root_log2_e)) * up;
    }
} gelu_mul_t;

int k_cuda_gelu_mul(const k_cuda_launch_t *at, const k_gelu_mul_args_t *args)
{
    return gated_launch(at, args, gelu_mul_t{});
}
