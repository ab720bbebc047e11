/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void gather_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_gather_rows_args_t *args = arg;
    memcpy(args->y + row * args->y_stride, args->x + args->index[row] * args->x_stride,
           args->dim * sizeof(float));
}

void k_ref_gather_rows(k_stream_t *stream, const k_gather_rows_args_t *args)
{
    k_team_run(stream->team, args->rows, gather_row, args);
}
