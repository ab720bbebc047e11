/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void add_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_add_args_t *args = arg;
    const float *x = k_const_row(args->x, row, args->x_stride);
    float *y = args->y + row * args->y_stride;
    for (uint32_t i = 0; i < args->dim; i++) {
        y[i] += args->scale * x[i];
    }
}

void k_ref_add(k_stream_t *stream, const k_add_args_t *args)
{
    k_team_run(stream->team, args->rows, add_row, args);
}
