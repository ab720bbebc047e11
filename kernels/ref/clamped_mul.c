/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static float clamped_mul(float gate, float up, float limit)
{
    const float g = fminf(gate, limit);
    const float u = fmaxf(fminf(up, limit), -limit);
    return (u + 1.0f) * (g / (1.0f + expf(-1.702f * g)));
}

static void clamped_mul_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_clamped_mul_args_t *args = arg;
    const float *gate = k_const_row(args->gate, row, args->gate_stride);
    const float *up = k_const_row(args->up, row, args->up_stride);
    float *y = k_row(args->y, row, args->y_stride);
    for (uint32_t i = 0; i < args->dim; i++) {
        y[i] = clamped_mul(gate[i], up[i], args->limit);
    }
}

void k_ref_clamped_mul(k_stream_t *stream, const k_clamped_mul_args_t *args)
{
    k_team_run(stream->team, args->rows, clamped_mul_row, args);
}
