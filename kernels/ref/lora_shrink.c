/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void shrink_row(const void *arg, uint32_t item, uint32_t member)
{
    (void)member;
    const k_lora_shrink_args_t *args = arg;
    const uint32_t head = item / args->of.rows;
    const uint32_t row = item % args->of.rows;
    const k_lora_t *lora = k_lora_of_head(&args->of, head, row);
    const float *x = k_const_row(args->x, row, args->x_stride) + (size_t)head * args->x_step;
    for (uint32_t r = 0; lora != NULL && r < lora->rank; r++) {
        const float *a = lora->a + (size_t)r * args->in;
        float sum = 0;
        for (uint32_t i = 0; i < args->in; i++) {
            sum += a[i] * x[i];
        }
        args->low[(size_t)item * args->max_rank + r] = sum;
    }
}

void k_ref_lora_shrink(k_stream_t *stream, const k_lora_shrink_args_t *args)
{
    k_team_run(stream->team, args->of.n_heads * args->of.rows, shrink_row, args);
}
