/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling_priv.h"
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

typedef struct job {
    k_stream_t *stream;
    const k_merge_candidates_args_t *args;
} job_t;

/* All ranks' candidates of a row as one list, best first. */
typedef struct walk {
    const k_merge_candidates_args_t *args;
    uint32_t row;
    uint32_t *next; /* [ranks] */
} walk_t;

static const k_candidates_t *record(const walk_t *walk, uint32_t r)
{
    const k_merge_candidates_args_t *args = walk->args;
    return (const k_candidates_t *)((const char *)args->candidates +
                                    ((size_t)r * args->rows + walk->row) *
                                        k_candidates_bytes(args->most));
}

static void restart(walk_t *walk)
{
    memset(walk->next, 0, walk->args->ranks * sizeof(*walk->next));
}

/*
 * The next candidate, NULL at the end. *is_open_out: a rank whose list has ended has more tokens,
 * which may come before it. Equal ones of lower ranks have lower ids.
 */
static const k_candidate_t *step(walk_t *walk, bool *is_open_out)
{
    const k_candidate_t *best = NULL;
    uint32_t owner = 0;
    for (uint32_t r = 0; r < walk->args->ranks; r++) {
        const k_candidates_t *one = record(walk, r);
        const uint32_t at = walk->next[r];
        if (at < one->n && at < walk->args->most) {
            if (best == NULL || one->best[at].scaled > best->scaled) {
                best = &one->best[at];
                owner = r;
            }
        } else if (one->n < one->possible) {
            *is_open_out = true;
            return NULL;
        }
    }
    walk->next[owner] += best != NULL;
    return best;
}

static uint64_t weight_of(const k_candidate_t *candidate)
{
    return (uint64_t)(candidate->weight * (float)K_WEIGHT_ONE);
}

static uint64_t sum_weights(const walk_t *walk)
{
    uint64_t total = 0;
    for (uint32_t r = 0; r < walk->args->ranks; r++) {
        total += record(walk, r)->weight;
    }
    return total;
}

/* Weight of the first top_k. */
static uint64_t sum_first(walk_t *walk, uint32_t top_k, bool *is_open_out)
{
    uint64_t total = 0;
    const k_candidate_t *one = NULL;
    restart(walk);
    for (uint32_t i = 0; i < top_k && (one = step(walk, is_open_out)) != NULL; i++) {
        total += weight_of(one);
    }
    return total;
}

/* The winner among those that top_k and top_p keep; NULL: of none, or it cannot be told yet. */
static const k_candidate_t *choose(walk_t *walk, const k_sample_row_t *params, bool *is_open_out)
{
    const uint32_t most = params->top_k > 0 ? (uint32_t)params->top_k : UINT32_MAX;
    const bool has_top_p = params->top_p < 1.0f;
    double wanted = 0;
    if (has_top_p) {
        const uint64_t total =
            params->top_k > 0 ? sum_first(walk, most, is_open_out) : sum_weights(walk);
        wanted = (double)params->top_p * (double)total;
    }
    const k_candidate_t *winner = NULL;
    const k_candidate_t *one = NULL;
    uint64_t kept = 0;
    restart(walk);
    for (uint32_t i = 0; i < most && (i == 0 || !has_top_p || (double)kept < wanted) &&
                         (one = step(walk, is_open_out)) != NULL;
         i++) {
        kept += weight_of(one);
        if (winner == NULL || one->value > winner->value ||
            (one->value == winner->value && one->token < winner->token)) {
            winner = one;
        }
    }
    return *is_open_out ? NULL : winner;
}

/* With cuts: the best of each rank's one; equal ones of lower ranks have lower ids. */
static const k_candidate_t *find_best(const walk_t *walk)
{
    const k_candidate_t *best = NULL;
    for (uint32_t r = 0; r < walk->args->ranks; r++) {
        const k_candidates_t *one = record(walk, r);
        if (one->n > 0 && (best == NULL || one->best[0].value > best->value)) {
            best = &one->best[0];
        }
    }
    return best;
}

static void merge_row(const void *arg, uint32_t row, uint32_t member)
{
    const job_t *job = arg;
    const k_merge_candidates_args_t *args = job->args;
    const k_sample_row_t *params = &args->params[row];
    k_slice_row_t *state = &args->state[row];
    if (state->token >= 0) {
        return;
    }
    walk_t walk = {args, row,
                   k_stream_scratch(job->stream, member, args->ranks * sizeof(uint32_t))};
    bool is_open = false;
    const k_candidate_t *winner = args->is_cut ? find_best(&walk) : choose(&walk, params, &is_open);
    if (winner == NULL) {
        return;
    }
    state->token = winner->token;
    state->logit = winner->logit;
    args->out[row].chosen.token = winner->token;
    if (params->append_to != NULL) {
        *params->append_to = winner->token;
    }
}

void k_ref_merge_candidates(k_stream_t *stream, const k_merge_candidates_args_t *args)
{
    const job_t job = {stream, args};
    k_team_run(stream->team, args->rows, merge_row, &job);
}
