/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/ref/ref_ops.h"

void k_ref_head_linear(k_stream_t *stream, const k_head_linear_args_t *args)
{
    for (uint32_t h = 0; h < args->n_heads; h++) {
        const k_linear_args_t linear = {
            .w = &args->heads[h],
            .x = (const float *)args->x + (size_t)h * args->x_dim,
            .y = (float *)args->y + (size_t)h * args->y_dim,
            .y_dtype = K_F32,
            .out = K_OUT_STORE,
            .rows = args->rows,
            .x_stride = args->x_stride,
            .y_stride = args->y_stride,
        };
        stream->ops->linear(stream, &linear);
    }
}
