/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void silu_mul_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_silu_mul_args_t *args = arg;
    const float *gate = k_const_row(args->gate, row, args->gate_stride);
    const float *up = k_const_row(args->up, row, args->up_stride);
    float *y = k_row(args->y, row, args->y_stride);
    for (uint32_t i = 0; i < args->dim; i++) {
        y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    }
}

void k_ref_silu_mul(k_stream_t *stream, const k_silu_mul_args_t *args)
{
    k_team_run(stream->team, args->rows, silu_mul_row, args);
}
