/* SPDX-License-Identifier: Apache-2.0 */
/* lora_sum: a thread adds up the parts of one sum, a row's of a rank. */
#include "kernels/cuda/k_cuda_lora.h"

enum {
    THREADS = 256,
    AHEAD = 16, /* parts on their way at a time */
};

static SIMT_KERNEL(THREADS, 4) lora_sum(lora_rows_t rows, lora_expand_t expand, float *sums)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    const uint32_t row = i / expand.max_rank;
    const uint32_t rank = i % expand.max_rank;
    const size_t at = (size_t)blockIdx.y * rows.rows * expand.max_rank + i;
    simt_launch_next();
    if (rows.offsets != nullptr) {
        simt_wait_previous();
    }
    const uint32_t entry = row < rows.rows ? lora_entry_of(rows, blockIdx.y, row) : 0;
    const bool is_there = entry > 0 && rank < rows.table[entry - 1].rank;
    simt_wait_previous();
    if (is_there) {
        const float *const first[1] = {expand.low + at};
        float sum[1] = {};
        lora_sum_parts<AHEAD>(first, expand.parts, lora_part_step(rows, expand.max_rank), sum);
        sums[at] = sum[0];
    }
}

int k_cuda_lora_sum_rows(const k_cuda_launch_t *at, const lora_rows_t *rows,
                         const lora_expand_t *expand, float *sums)
{
    return simt_launch(
        lora_sum,
        {.grid = {k_rows_ceil_div(rows->rows * expand->max_rank, THREADS), rows->n_heads},
         .block = {THREADS},
         .stream = at->stream,
         .overlaps_previous = true},
        *rows, *expand, sums);
}
