/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling_priv.h"
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

typedef union room {
    k_tally_t tally;
    char bytes[sizeof(k_tally_t) + K_MAX_LOGPROBS * sizeof(k_top_t)];
} room_t;

static const k_tally_t *record(const k_merge_logprobs_args_t *args, uint32_t r, uint32_t row)
{
    return (const k_tally_t *)((const char *)args->tallies +
                               ((size_t)r * args->rows + row) * k_tally_bytes(args->max_top));
}

static void merge_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_merge_logprobs_args_t *args = arg;
    const k_slice_row_t *state = &args->state[row];
    if (!state->wants_logprob) {
        return;
    }
    room_t all = {.tally = {0}};
    for (uint32_t r = 0; r < args->ranks; r++) {
        const k_tally_t *one = record(args, r, row);
        all.tally.weight += one->weight;
        all.tally.larger += one->larger;
        for (uint32_t i = 0; i < one->n_top && i < args->max_top; i++) {
            k_sampling_insert_top(&all.tally, state->n_top, one->top[i]);
        }
    }
    k_sampling_fill_report(&all.tally, state->max_logit, (k_top_t){state->logit, state->token},
                           &args->out[row]);
}

void k_ref_merge_logprobs(k_stream_t *stream, const k_merge_logprobs_args_t *args)
{
    k_team_run(stream->team, args->rows, merge_row, args);
}
