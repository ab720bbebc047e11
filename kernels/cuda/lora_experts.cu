/* SPDX-License-Identifier: Apache-2.0 */
/* lora_experts: the kernels of rows, over slots. */
#include "kernels/cuda/k_cuda_lora.h"

int k_cuda_lora_experts(const k_cuda_launch_t *at, const k_lora_experts_args_t *args)
{
    const lora_rows_t slots = {
        .table = args->table,
        .seqs = args->seqs,
        .n_seqs = args->n_seqs,
        .rows = args->slots,
        .offsets = args->offsets,
        .row_of_slot = args->row_of_slot,
        .n_experts = args->n_experts,
        .places = args->places,
        .has_rows = args->has_rows,
    };
    const lora_shrink_t shrink = {
        .x = (const __nv_bfloat16 *)args->x,
        .x_stride = args->x_stride,
        .in = args->in,
        .low = args->low,
        .max_rank = args->max_rank,
    };
    const lora_expand_t expand = {
        .low = args->low,
        .parts = k_lora_parts(args->in),
        .max_rank = args->max_rank,
        .y = args->y,
        .y_dtype = K_BF16,
        .y_stride = args->y_stride,
        .out = args->out,
    };
    if (args->n_experts == 0) {
        return cudaSuccess;
    }
    const int error = k_cuda_lora_shrink_rows(at, &slots, &shrink);
    return error != cudaSuccess ? error : k_cuda_lora_expand_rows(at, &slots, &expand);
}
