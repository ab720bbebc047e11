/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void sum_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_square_sums_args_t *args = arg;
    const float *x = k_const_row(args->x, row, args->x_stride);
    float sum = 0;
    for (uint32_t i = 0; i < args->dim; i++) {
        sum += x[i] * x[i];
    }
    args->sums[row * args->sums_stride] = sum;
}

void k_ref_square_sums(k_stream_t *stream, const k_square_sums_args_t *args)
{
    k_team_run(stream->team, args->rows, sum_row, args);
}
