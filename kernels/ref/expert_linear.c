/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void gather_slot(const void *arg, uint32_t item, uint32_t member)
{
    (void)member;
    const k_expert_linear_args_t *args = arg;
    const uint32_t slot = args->offsets[0] + item;
    const uint32_t columns = args->experts[0].columns;
    memcpy(k_row(args->gathered, slot, args->x_stride),
           k_const_row(args->x, args->row_of_slot[slot], args->x_stride), columns * sizeof(float));
}

/* The rows of an expert lie together: each expert is a linear of its own. */
void k_ref_expert_linear(k_stream_t *stream, const k_expert_linear_args_t *args)
{
    const void *x = args->x;
    if (args->row_of_slot != NULL) {
        const uint32_t slots = args->offsets[args->n_experts] - args->offsets[0];
        k_team_run(stream->team, slots, gather_slot, args);
        x = args->gathered;
    }
    for (uint32_t e = 0; e < args->n_experts; e++) {
        const k_weight_t *w = &args->experts[e];
        const uint32_t first = args->offsets[e];
        const k_linear_args_t linear = {
            .w = w,
            .bias = args->bias == NULL ? NULL : args->bias + (size_t)e * w->rows,
            .x = k_const_row(x, first, args->x_stride),
            .y = k_row(args->y, first, args->y_stride),
            .y_dtype = K_F32,
            .out = K_OUT_STORE,
            .rows = args->offsets[e + 1] - first,
            .x_stride = args->x_stride,
            .y_stride = args->y_stride,
        };
        if (linear.rows > 0) {
            stream->ops->linear(stream, &linear);
        }
    }
}
