/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void softcap_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_softcap_args_t *args = arg;
    float *x = args->x + row * args->x_stride;
    for (uint32_t i = 0; i < args->dim; i++) {
        x[i] = args->cap * tanhf(x[i] / args->cap);
    }
}

void k_ref_softcap(k_stream_t *stream, const k_softcap_args_t *args)
{
    k_team_run(stream->team, args->rows, softcap_row, args);
}
