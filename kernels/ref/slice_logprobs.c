/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling_priv.h"
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void slice_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_slice_logprobs_args_t *args = arg;
    const k_slice_row_t *state = &args->state[row];
    k_tally_t *out = (k_tally_t *)((char *)args->out + row * k_tally_bytes(args->max_top));
    *out = (k_tally_t){0};
    if (state->wants_logprob) {
        k_sampling_tally(args->logits + row * args->stride, args->first_token, args->tokens,
                         state->max_logit, (k_top_t){state->logit, state->token}, state->n_top,
                         out);
    }
}

void k_ref_slice_logprobs(k_stream_t *stream, const k_slice_logprobs_args_t *args)
{
    k_team_run(stream->team, args->rows, slice_row, args);
}
