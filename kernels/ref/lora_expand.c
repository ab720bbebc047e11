/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void expand_row(const void *arg, uint32_t item, uint32_t member)
{
    (void)member;
    const k_lora_expand_args_t *args = arg;
    const uint32_t head = item / args->of.rows;
    const uint32_t row = item % args->of.rows;
    const k_lora_t *lora = k_lora_of_head(&args->of, head, row);
    const float *low = args->low + (size_t)item * args->max_rank;
    /* f32 either way */
    float *y = k_row(args->y, row, args->y_stride) + (size_t)head * args->y_step;
    for (uint32_t i = 0; lora != NULL && i < args->out; i++) {
        float sum = 0;
        for (uint32_t r = 0; r < lora->rank; r++) {
            sum += low[r] * lora->b[(size_t)r * args->out + i];
        }
        y[i] += lora->scale * sum;
    }
}

void k_ref_lora_expand(k_stream_t *stream, const k_lora_expand_args_t *args)
{
    k_team_run(stream->team, args->of.n_heads * args->of.rows, expand_row, args);
}
