/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling_priv.h"
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

typedef struct job {
    k_stream_t *stream;
    const k_slice_candidates_args_t *args;
} job_t;

/* A row of the slice. */
typedef struct part {
    const k_sample_row_t *params;
    const k_slice_cut_t *cut; /* NULL: all tokens may be sampled */
    const float *logits;
    const float *scaled;
    k_winner_t best; /* the largest of all ranks, with its noise: what others have to come over */
    uint32_t first;
    uint32_t n;
} part_t;

static k_candidate_t candidate(const part_t *part, float scaled, int32_t token, double value)
{
    return (k_candidate_t){
        .value = value,
        .scaled = scaled,
        .weight = expf(scaled),
        .logit = k_clean_logit(part->logits[(uint32_t)token - part->first]),
        .token = token,
    };
}

static bool keeps(const k_slice_cut_t *cut, float scaled, uint32_t *ties)
{
    const uint32_t below = k_below_of(scaled);
    if (cut == NULL || below < cut->below) {
        return true;
    }
    const bool is_tie = below == cut->below && *ties > 0;
    *ties -= is_tie;
    return is_tie;
}

/*
 * One candidate, or none where another rank's best is more. A cut may leave the best one out, where
 * others are as likely by rounding.
 */
static void find_winner(const part_t *part, k_candidates_t *out)
{
    k_winner_t winner = part->cut == NULL ? part->best : (k_winner_t){-INFINITY, INT32_MAX};
    uint32_t ties = part->cut == NULL ? 0 : part->cut->ties;
    for (uint32_t t = 0; t < part->n; t++) {
        if (keeps(part->cut, part->scaled[t], &ties)) {
            k_sampling_compete(part->params, part->scaled[t], (int32_t)(part->first + t), &winner);
        }
    }
    const uint32_t at = (uint32_t)winner.token - part->first;
    out->n = at < part->n && winner.value > -INFINITY ? 1 : 0;
    out->possible = out->n;
    if (out->n > 0) {
        out->best[0] = candidate(part, part->scaled[at], winner.token, winner.value);
    }
}

static uint32_t count_possible(const part_t *part)
{
    uint32_t possible = 0;
    for (uint32_t t = 0; t < part->n; t++) {
        possible += part->scaled[t] > -INFINITY;
    }
    return possible;
}

/*
 * -inf where the best one's is larger: wherever this one is kept the best is too, unless it is as
 * likely by rounding.
 */
static double value_of(const part_t *part, float scaled, int32_t token)
{
    k_winner_t winner = scaled < 0 ? part->best : (k_winner_t){-INFINITY, token};
    k_sampling_compete(part->params, scaled, token, &winner);
    return winner.token == token ? winner.value : -INFINITY;
}

static void list_best(const part_t *part, uint32_t most, const k_sampling_scratch_t *scratch,
                      k_candidates_t *out)
{
    const k_choice_t *choices;
    out->n = k_sampling_best(part->scaled, part->first, part->n, most, scratch, &choices);
    out->possible = count_possible(part);
    for (uint32_t i = 0; i < out->n; i++) {
        const float scaled = k_scaled_of(choices[i].below);
        const int32_t token = choices[i].token;
        out->best[i] = candidate(part, scaled, token, value_of(part, scaled, token));
    }
    out->weight = part->params->top_k > 0 ? 0 : k_sampling_total(part->scaled, part->n);
}

/* Of a row that asks for one. */
static const k_slice_cut_t *cut_of(const k_sample_row_t *params, const k_slice_cuts_t *cuts)
{
    return cuts == NULL           ? NULL
           : params->top_p < 1.0f ? &cuts->top_p
           : params->top_k > 0    ? &cuts->top_k
                                  : NULL;
}

static void slice_row(const void *arg, uint32_t row, uint32_t member)
{
    const job_t *job = arg;
    const k_slice_candidates_args_t *args = job->args;
    const k_sample_row_t *params = &args->params[row];
    const k_slice_row_t *state = &args->state[row];
    k_candidates_t *out =
        (k_candidates_t *)((char *)args->out + row * k_candidates_bytes(args->most));
    *out = (k_candidates_t){0};
    if (state->token >= 0) {
        return;
    }
    float *z = args->z + row * args->stride;
    if (!args->is_again) {
        k_sampling_scale(params, state->max_z, args->tokens, z);
    }
    part_t part = {.params = params,
                   .cut = cut_of(params, args->cuts == NULL ? NULL : &args->cuts[row]),
                   .logits = args->logits + row * args->stride,
                   .scaled = z,
                   .best = {-INFINITY, state->best},
                   .first = args->first_token,
                   .n = args->tokens};
    k_sampling_compete(params, 0, state->best, &part.best);
    if (args->cuts != NULL || !k_sampling_selects(params)) {
        find_winner(&part, out);
        return;
    }
    void *memory = k_stream_scratch(job->stream, member, k_sampling_scratch_bytes(args->tokens));
    const k_sampling_scratch_t scratch = k_sampling_split(memory, args->tokens);
    list_best(&part, args->most, &scratch, out);
}

void k_ref_slice_candidates(k_stream_t *stream, const k_slice_candidates_args_t *args)
{
    const job_t job = {stream, args};
    k_team_run(stream->team, args->rows, slice_row, &job);
}
