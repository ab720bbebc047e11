/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void shrink(const k_lora_t *lora, const float *x, uint32_t in, float *low)
{
    for (uint32_t r = 0; r < lora->rank; r++) {
        low[r] = 0;
        for (uint32_t i = 0; i < in; i++) {
            low[r] += lora->a[(size_t)r * in + i] * x[i];
        }
    }
}

static void add_slot(const void *arg, uint32_t slot, uint32_t member)
{
    (void)member;
    const k_lora_experts_args_t *args = arg;
    const k_lora_t *lora = k_lora_of_slot(args, slot);
    const uint32_t row = args->has_rows ? args->row_of_slot[slot] : slot;
    float *y = k_row(args->y, slot, args->y_stride);
    float low[K_LORA_MAX_RANK];
    if (lora == NULL) {
        return;
    }
    shrink(lora, k_const_row(args->x, row, args->x_stride), args->in, low);
    for (uint32_t i = 0; i < args->out; i++) {
        float sum = 0;
        for (uint32_t r = 0; r < lora->rank; r++) {
            sum += low[r] * lora->b[(size_t)r * args->out + i];
        }
        y[i] += lora->scale * sum;
    }
}

void k_ref_lora_experts(k_stream_t *stream, const k_lora_experts_args_t *args)
{
    k_team_run(stream->team, args->slots, add_slot, args);
}
