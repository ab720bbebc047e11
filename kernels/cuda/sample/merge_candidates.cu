/* SPDX-License-Identifier: Apache-2.0 */
/* merge_candidates: the best of one candidate of each rank, as slice_candidates.cu makes them. */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/simt/simt.h"

enum { THREADS = 64 };

static SIMT_KERNEL(THREADS, 8) merge_candidates(k_merge_candidates_args_t args)
{
    const uint32_t row = blockIdx.x * THREADS + threadIdx.x;
    const size_t bytes = sizeof(k_candidates_t) + sizeof(k_candidate_t);
    simt_launch_next();
    simt_wait_previous();
    if (row >= args.rows || args.state[row].token >= 0) {
        return;
    }
    const k_candidate_t *best = nullptr;
    for (uint32_t r = 0; r < args.ranks; r++) {
        const k_candidates_t *one = (const k_candidates_t *)((const char *)args.candidates +
                                                             ((size_t)r * args.rows + row) * bytes);
        /* Equal ones of lower ranks have lower ids. */
        if (one->n > 0 && (best == nullptr || one->best[0].value > best->value)) {
            best = &one->best[0];
        }
    }
    if (best == nullptr) {
        return;
    }
    args.state[row].token = best->token;
    args.state[row].logit = best->logit;
    args.out[row].chosen.token = best->token;
    if (args.params[row].append_to != nullptr) {
        *args.params[row].append_to = best->token;
    }
}

int k_cuda_merge_candidates(const k_cuda_launch_t *at, const k_merge_candidates_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    if (!args->is_cut || args->most != 1) {
        return cudaErrorInvalidValue;
    }
    return simt_launch(merge_candidates,
                       {.grid = {(args->rows + THREADS - 1) / THREADS},
                        .block = {THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args);
}
