/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void narrow_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_narrow_args_t *args = arg;
    memcpy(k_row(args->y, row, args->y_stride), args->x + row * args->x_stride,
           args->dim * sizeof(float));
}

void k_ref_narrow(k_stream_t *stream, const k_narrow_args_t *args)
{
    k_team_run(stream->team, args->rows, narrow_row, args);
}
