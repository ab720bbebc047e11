/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void norm_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_rms_norm_args_t *args = arg;
    for (uint32_t g = 0; g < args->groups; g++) {
        const float *x = k_const_row(args->x, row, args->x_stride) + (size_t)g * args->dim;
        float *y = k_row(args->y, row, args->y_stride) + (size_t)g * args->dim;
        float sum = 0;
        for (uint32_t i = 0; i < args->dim; i++) {
            sum += x[i] * x[i];
        }
        const bool is_part = args->sums != NULL;
        const float all = is_part ? args->sums[row * args->sums_stride] : sum;
        const float n = (float)(is_part ? args->sums_dim : args->dim);
        const float scale = 1.0f / sqrtf(all / n + args->eps);
        for (uint32_t i = 0; i < args->dim; i++) {
            y[i] = x[i] * scale * args->w[i];
        }
    }
}

void k_ref_rms_norm(k_stream_t *stream, const k_rms_norm_args_t *args)
{
    k_team_run(stream->team, args->rows, norm_row, args);
}
