/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda_gated.h"

typedef struct clamped_mul {
    float limit;

    SIMT_FN float operator()(float gate, float up) const
    {
        const float slope_log2_e = 1.702f * 1.44269504f;
        const float g = fminf(gate, limit);
        const float u = fmaxf(fminf(up, limit), -limit);
        return (u + 1.0f) * (g * simt_rcp(1.0f + simt_exp2(-g * slope_log2_e)));
    }
} clamped_mul_t;

int k_cuda_clamped_mul(const k_cuda_launch_t *at, const k_clamped_mul_args_t *args)
{
    const k_silu_mul_args_t gated = {
        .gate = args->gate,
        .up = args->up,
        .y = args->y,
        .rows = args->rows,
        .dim = args->dim,
        .gate_stride = args->gate_stride,
        .up_stride = args->up_stride,
        .y_stride = args->y_stride,
    };
    return gated_launch(at, &gated, clamped_mul_t{args->limit});
}
