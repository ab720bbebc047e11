/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"

enum { THREADS = 128 };

/* A block a sequence: most are decodes of one row. */
static SIMT_KERNEL(THREADS, 1) gather_tokens(k_gather_tokens_args_t args)
{
    simt_launch_next();
    simt_wait_previous();
    const k_seq_t *seq = &args.seqs[blockIdx.x];
    int32_t *to = args.ids + seq->row;
    const int32_t *from = seq->history + seq->start;
    for (uint32_t i = threadIdx.x; i < seq->rows; i += THREADS) {
        to[i] = from[i];
    }
}

int k_cuda_gather_tokens(const k_cuda_launch_t *at, const k_gather_tokens_args_t *args)
{
    if (args->n_seqs == 0) {
        return cudaSuccess;
    }
    return simt_launch(gather_tokens,
                       {.grid = {args->n_seqs},
                        .block = {THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args);
}
