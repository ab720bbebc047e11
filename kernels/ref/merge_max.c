/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling_priv.h"
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

/* The record of rank r about a row. */
static const k_slice_max_t *record(const k_merge_max_args_t *args, uint32_t r, uint32_t row)
{
    return &args->maxima[(size_t)r * args->rows + row];
}

/* The first rank with the largest of everything has the lowest token of that size. */
static k_slice_max_t merge(const k_merge_max_args_t *args, uint32_t row)
{
    k_slice_max_t all = *record(args, 0, row);
    for (uint32_t r = 1; r < args->ranks; r++) {
        const k_slice_max_t *one = record(args, r, row);
        if (one->max_logit > all.max_logit) {
            all.max_logit = one->max_logit;
            all.max_token = one->max_token;
        }
        if (one->z > all.z) {
            all.z = one->z;
            all.token = one->token;
            all.logit = one->logit;
        }
        if (all.allowed < 0) {
            all.allowed = one->allowed;
            all.allowed_logit = one->allowed_logit;
        }
        all.target_logit =
            one->target_logit > all.target_logit ? one->target_logit : all.target_logit;
    }
    return all;
}

static void sample(const k_sample_row_t *params, const k_slice_max_t *all, k_slice_row_t *state)
{
    state->best = all->token;
    state->max_z = all->z;
    state->n_top = params->n_top < K_MAX_LOGPROBS ? params->n_top : K_MAX_LOGPROBS;
    state->wants_logprob = params->wants_logprob || params->n_top > 0;
    if (all->z == -INFINITY) {
        const bool is_allowed = all->allowed >= 0;
        state->token = is_allowed ? all->allowed : all->max_token;
        state->logit = is_allowed ? all->allowed_logit : all->max_logit;
    } else if (!(params->temperature > 0)) {
        state->token = all->token;
        state->logit = all->logit;
    }
}

static void merge_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_merge_max_args_t *args = arg;
    const k_slice_max_t all = merge(args, row);
    k_slice_row_t state = {.token = -1, .max_logit = all.max_logit};
    if (args->params != NULL) {
        sample(&args->params[row], &all, &state);
        if (state.token >= 0 && args->params[row].append_to != NULL) {
            *args->params[row].append_to = state.token;
        }
    } else {
        state.token = args->targets[row];
        state.logit = all.target_logit;
        state.n_top = args->n_top[row] < K_MAX_LOGPROBS ? args->n_top[row] : K_MAX_LOGPROBS;
        state.wants_logprob = true;
    }
    args->state[row] = state;
    args->out[row].chosen = (k_logprob_t){.token = state.token};
    args->out[row].n_top = 0;
}

void k_ref_merge_max(k_stream_t *stream, const k_merge_max_args_t *args)
{
    k_team_run(stream->team, args->rows, merge_row, args);
}
