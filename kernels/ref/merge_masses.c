/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling_priv.h"
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

/* A row as all ranks see it. */
typedef struct row {
    const k_merge_masses_args_t *args;
    uint32_t index;
    double goal; /* tokens or weight that are to be kept */
} row_t;

static const k_masses_t *record(const row_t *row, uint32_t r)
{
    return &row->args->masses[(size_t)r * row->args->rows + row->index];
}

static k_slice_cut_t sum(const row_t *row, uint32_t digit)
{
    k_slice_cut_t all = {0};
    for (uint32_t r = 0; r < row->args->ranks; r++) {
        all.count += record(row, r)->count[digit];
        all.weight += record(row, r)->weight[digit];
    }
    return all;
}

static bool is_reached(const row_t *row, uint32_t count, uint64_t weight)
{
    return row->args->by_top_p ? (double)weight >= row->goal : count >= row->goal;
}

static void set_goal(row_t *row, const k_slice_cuts_t *cuts)
{
    const k_sample_row_t *params = &row->args->params[row->index];
    /* At least a token, whatever top_p is. */
    row->goal = row->args->by_top_p ? fmax((double)params->top_p * (double)cuts->top_p.kept, 1.0)
                                    : (double)params->top_k;
}

/* Moves the cut on to the digit in which the goal is reached; returns what has it. */
static k_slice_cut_t find_digit(const row_t *row, k_slice_cut_t *cut)
{
    const uint32_t n = 1U << k_cut_bits(row->args->round);
    k_slice_cut_t in = sum(row, 0);
    uint32_t digit = 0;
    while (digit + 1 < n && !is_reached(row, cut->count + in.count, cut->weight + in.weight)) {
        cut->count += in.count;
        cut->weight += in.weight;
        in = sum(row, ++digit);
    }
    cut->below = cut->below << k_cut_bits(row->args->round) | digit;
    return in;
}

/* Of tokens that are all alike, the first that reach the goal: of this rank, what lower ones leave. */
static void share_ties(const row_t *row, const k_slice_cut_t *in, k_slice_cut_t *cut)
{
    const k_merge_masses_args_t *args = row->args;
    const uint32_t digit = cut->below & ((1U << k_cut_bits(args->round)) - 1);
    const uint64_t each = in->count > 0 ? in->weight / in->count : 0;
    uint32_t wanted = in->count > 0 ? 1 : 0;
    while (wanted < in->count &&
           !is_reached(row, cut->count + wanted, cut->weight + wanted * each)) {
        wanted++;
    }
    cut->kept = cut->weight + wanted * each;
    for (uint32_t r = 0; r < args->rank; r++) {
        const uint32_t lower = record(row, r)->count[digit];
        wanted -= lower < wanted ? lower : wanted;
    }
    cut->equal = record(row, args->rank)->count[digit];
    cut->ties = wanted < cut->equal ? wanted : cut->equal;
}

/* Begins a cut; false: there is none, all tokens are kept. */
static bool begin(row_t *row, k_slice_cuts_t *cuts)
{
    const k_merge_masses_args_t *args = row->args;
    const bool has_top_k = args->params[row->index].top_k > 0;
    k_slice_cut_t all = {0};
    for (uint32_t digit = 0; digit < K_CUT_VALUES; digit++) {
        const k_slice_cut_t in = sum(row, digit);
        all.count += in.count;
        all.weight += in.weight;
    }
    k_slice_cut_t *cut = args->by_top_p ? &cuts->top_p : &cuts->top_k;
    *cut = (k_slice_cut_t){.kept = all.weight};
    if (args->by_top_p && has_top_k) {
        cut->kept = cuts->top_k.kept;
    }
    set_goal(row, cuts);
    return is_reached(row, all.count, all.weight);
}

static void merge_row(const void *arg, uint32_t index, uint32_t member)
{
    (void)member;
    const k_merge_masses_args_t *args = arg;
    k_slice_cuts_t *cuts = &args->cuts[index];
    k_slice_cut_t *cut = args->by_top_p ? &cuts->top_p : &cuts->top_k;
    row_t row = {.args = args, .index = index};
    if (!k_cut_is_wanted(&args->params[index], &args->state[index], args->by_top_p)) {
        return;
    }
    if (args->round == 0 && !begin(&row, cuts)) {
        cut->below = K_CUT_WHOLE;
    }
    if (cut->below == K_CUT_WHOLE) {
        return;
    }
    set_goal(&row, cuts);
    const k_slice_cut_t in = find_digit(&row, cut);
    if (args->round + 1 == K_CUT_ROUNDS) {
        share_ties(&row, &in, cut);
    }
}

void k_ref_merge_masses(k_stream_t *stream, const k_merge_masses_args_t *args)
{
    k_team_run(stream->team, args->rows, merge_row, args);
}
