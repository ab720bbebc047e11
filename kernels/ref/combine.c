/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

/* Whether the slot's expert is here. */
static bool counts(const k_combine_args_t *args, uint32_t slot)
{
    return args->offsets == NULL ||
           (slot >= args->offsets[0] && slot < args->offsets[args->n_experts]);
}

static void combine_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_combine_args_t *args = arg;
    const float *weights = args->weights + (size_t)row * args->used;
    const uint32_t *slots = args->slot_of + (size_t)row * args->used;
    float *y = args->y + row * args->y_stride;
    for (uint32_t i = 0; i < args->dim; i++) {
        float sum = 0;
        for (uint32_t j = 0; j < args->used; j++) {
            if (counts(args, slots[j])) {
                sum += weights[j] * k_const_row(args->x, slots[j], args->x_stride)[i];
            }
        }
        y[i] = args->replaces ? sum : y[i] + sum;
    }
}

void k_ref_combine(k_stream_t *stream, const k_combine_args_t *args)
{
    k_team_run(stream->team, args->rows, combine_row, args);
}
