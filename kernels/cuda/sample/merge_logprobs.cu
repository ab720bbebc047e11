/* SPDX-License-Identifier: Apache-2.0 */
/* merge_logprobs: a warp a row; each lane has the lists of some ranks. Up to 128 ranks. */
#include "kernels/cuda/sample/k_cuda_slices.h"

SIMT_DEVICE const k_tally_t *tally_of(const k_merge_logprobs_args_t &args, uint32_t r, uint32_t row)
{
    return (const k_tally_t *)((const char *)args.tallies +
                               ((size_t)r * args.rows + row) *
                                   (sizeof(k_tally_t) + args.max_top * sizeof(k_top_t)));
}

static SIMT_KERNEL(SIMT_WARP, 16) merge_logprobs(k_merge_logprobs_args_t args)
{
    const uint32_t row = blockIdx.x;
    simt_launch_next();
    simt_wait_previous();
    const k_slice_row_t *state = &args.state[row];
    if (!state->wants_logprob) {
        return;
    }
    uint64_t weight = 0;
    uint32_t larger = 0;
    uint32_t n_top = 0;
    for (uint32_t r = (uint32_t)simt_lane(); r < args.ranks; r += SIMT_WARP) {
        weight += tally_of(args, r, row)->weight;
        larger += tally_of(args, r, row)->larger;
        n_top += tally_of(args, r, row)->n_top;
    }
    weight = warp_total(weight);
    larger = warp_total(larger);
    n_top = warp_total(n_top);
    n_top = n_top < state->n_top ? n_top : state->n_top;
    /* A row of nothing but -inf: every log-probability is -inf. */
    const double log_sum = state->max_logit == -INFINITY
                               ? (double)INFINITY
                               : log((double)weight * 0x1p-44) + (double)state->max_logit;
    k_sampled_t *out = &args.out[row];
    if (simt_lane() == 0) {
        out->chosen = {state->token, larger + 1, (float)((double)state->logit - log_sum)};
        out->n_top = n_top;
    }
    warp_merge(
        args.ranks, n_top,
        [=](uint32_t r, uint32_t i) {
            const k_tally_t *one = tally_of(args, r, row);
            return i < one->n_top ? standing_of(one->top[i].logit, (uint32_t)one->top[i].token) : 0;
        },
        [=](uint32_t rank, standing_t standing) {
            if (simt_lane() == 0) {
                out->top[rank] = {(int32_t)standing_token(standing), rank + 1,
                                  (float)((double)standing_value(standing) - log_sum)};
            }
        });
}

int k_cuda_merge_logprobs(const k_cuda_launch_t *at, const k_merge_logprobs_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    if (args->ranks > MAX_LISTS) {
        return cudaErrorInvalidValue;
    }
    return simt_launch(merge_logprobs, slice_row_grid(at, args->rows), *args);
}
