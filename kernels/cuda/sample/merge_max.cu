/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda_adjust.h"

enum { THREADS = 64 };

/* The first rank with the largest of everything has the lowest token of that size. */
SIMT_DEVICE void take_larger(k_slice_max_t *all, const k_slice_max_t &one)
{
    if (one.max_logit > all->max_logit) {
        all->max_logit = one.max_logit;
        all->max_token = one.max_token;
    }
    if (one.z > all->z) {
        all->z = one.z;
        all->token = one.token;
        all->logit = one.logit;
    }
    if (all->allowed < 0) {
        all->allowed = one.allowed;
        all->allowed_logit = one.allowed_logit;
    }
    all->target_logit = fmaxf(all->target_logit, one.target_logit);
}

SIMT_DEVICE k_slice_row_t sampled_state(const k_sample_row_t *params, const k_slice_max_t &all)
{
    k_slice_row_t state = {};
    state.token = -1;
    state.max_logit = all.max_logit;
    state.best = all.token;
    state.max_z = all.z;
    state.n_top = params->n_top < K_MAX_LOGPROBS ? params->n_top : K_MAX_LOGPROBS;
    state.wants_logprob = params->wants_logprob || params->n_top > 0;
    if (all.z == -INFINITY) {
        const bool is_allowed = all.allowed >= 0;
        state.token = is_allowed ? all.allowed : all.max_token;
        state.logit = is_allowed ? all.allowed_logit : all.max_logit;
    } else if (is_greedy(params)) {
        state.token = all.token;
        state.logit = all.logit;
    }
    return state;
}

SIMT_DEVICE k_slice_row_t target_state(int32_t target, uint32_t n_top, const k_slice_max_t &all)
{
    k_slice_row_t state = {};
    state.token = target;
    state.logit = all.target_logit;
    state.max_logit = all.max_logit;
    state.n_top = n_top < K_MAX_LOGPROBS ? n_top : K_MAX_LOGPROBS;
    state.wants_logprob = true;
    return state;
}

static SIMT_KERNEL(THREADS, 8) merge_max(k_merge_max_args_t args)
{
    const uint32_t row = blockIdx.x * THREADS + threadIdx.x;
    simt_launch_next();
    simt_wait_previous();
    if (row >= args.rows) {
        return;
    }
    k_slice_max_t all = args.maxima[row];
    for (uint32_t r = 1; r < args.ranks; r++) {
        take_larger(&all, args.maxima[(size_t)r * args.rows + row]);
    }
    k_slice_row_t state;
    if (args.params != nullptr) {
        const k_sample_row_t *params = &args.params[row];
        state = sampled_state(params, all);
        if (state.token >= 0 && params->append_to != nullptr) {
            *params->append_to = state.token;
        }
    } else {
        state = target_state(args.targets[row], args.n_top[row], all);
    }
    args.state[row] = state;
    args.out[row].chosen = {state.token, 0, 0.0f};
    args.out[row].n_top = 0;
}

int k_cuda_merge_max(const k_cuda_launch_t *at, const k_merge_max_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    return simt_launch(merge_max,
                       {.grid = {(args->rows + THREADS - 1) / THREADS},
                        .block = {THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args);
}
