/* SPDX-License-Identifier: Apache-2.0 */
/* merge_masses: a block a row adds up the ranks' records and finds the digit where the cut lies. */
#include "kernels/cuda/k_cuda_adjust.h"
#include "kernels/cuda/sample/k_cuda_select.h"

/* What has to be kept. */
typedef struct masses_goal {
    bool by_weight;
    double weight;
    uint32_t count;
} masses_goal_t;

SIMT_DEVICE bool is_reached(const masses_goal_t &goal, mass_t kept)
{
    return goal.by_weight ? (double)kept.weight >= goal.weight : kept.count >= goal.count;
}

SIMT_DEVICE masses_goal_t goal_of(const k_merge_masses_args_t &args, uint32_t row, uint64_t kept)
{
    const k_sample_row_t *params = &args.params[row];
    /* At least a token, whatever top_p is. */
    return {args.by_top_p, fmax((double)params->top_p * (double)kept, 1.0),
            (uint32_t)params->top_k};
}

/* Sums over the ranks, and over the threads before this one. */
SIMT_DEVICE void gather_masses(const k_merge_masses_args_t &args, uint32_t row,
                               held_buckets_t *held, mass_t *partial)
{
    SIMT_UNROLL
    for (int i = 0; i < BUCKETS_HELD; i++) {
        held->in[i] = {0, 0};
    }
    for (uint32_t r = 0; r < args.ranks; r++) {
        const k_masses_t *record = &args.masses[(size_t)r * args.rows + row];
        SIMT_UNROLL
        for (int i = 0; i < BUCKETS_HELD; i++) {
            const uint32_t b = held_bucket(i);
            held->in[i] = held->in[i] + mass_t{record->weight[b], record->count[b]};
        }
    }
    held_scan(held, partial);
}

/* How many of n tokens that weigh the same reach the goal with what is kept; one at least. */
SIMT_DEVICE uint32_t count_ties(const masses_goal_t &goal, mass_t kept, mass_t in)
{
    const uint64_t each = in.count > 0 ? in.weight / in.count : 0;
    uint32_t low = in.count > 0 ? 1 : 0;
    uint32_t high = in.count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (is_reached(goal, kept + mass_t{middle * each, middle})) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* Of the tokens where the cut ends this rank keeps what lower ranks leave. */
SIMT_DEVICE void share_ties(const k_merge_masses_args_t &args, uint32_t row,
                            const masses_goal_t &goal, const crossing_t &at, k_slice_cut_t *cut)
{
    const mass_t before = {cut->weight, cut->count};
    uint32_t wanted = count_ties(goal, before, at.in);
    cut->kept = cut->weight + (at.in.count > 0 ? wanted * (at.in.weight / at.in.count) : 0);
    for (uint32_t r = 0; r < args.rank; r++) {
        const uint32_t lower = args.masses[(size_t)r * args.rows + row].count[at.bucket];
        wanted -= lower < wanted ? lower : wanted;
    }
    cut->equal = args.masses[(size_t)args.rank * args.rows + row].count[at.bucket];
    cut->ties = wanted < cut->equal ? wanted : cut->equal;
}

/* Shared memory of merge_masses. */
typedef struct masses_space {
    mass_t partial[TILE_WARPS];
    crossing_t found;
} masses_space_t;

static SIMT_KERNEL(TILE_THREADS, 1) merge_masses(k_merge_masses_args_t args, int bits)
{
    SIMT_SHARED(masses_space_t, space, [1]);
    const uint32_t row = blockIdx.x;
    k_slice_cuts_t *cuts = &args.cuts[row];
    simt_launch_next();
    simt_wait_previous();
    if (!is_cut_wanted(&args.params[row], &args.state[row], args.by_top_p)) {
        return;
    }
    k_slice_cut_t *to = args.by_top_p ? &cuts->top_p : &cuts->top_k;
    k_slice_cut_t cut = *to;
    held_buckets_t held;
    gather_masses(args, row, &held, space->partial);
    if (args.round == 0) {
        cut = {};
        cut.kept = held.total.weight;
        if (args.by_top_p && args.params[row].top_k > 0) {
            cut.kept = cuts->top_k.kept;
        }
    }
    const masses_goal_t goal = goal_of(args, row, cut.kept);
    if (args.round == 0 && !is_reached(goal, held.total)) {
        cut.below = K_CUT_WHOLE;
    }
    if (cut.below != K_CUT_WHOLE) {
        const mass_t before = {cut.weight, cut.count};
        const crossing_t at = find_crossing(
            held, &space->found, [=](mass_t upto) { return is_reached(goal, before + upto); });
        cut.below = cut.below << bits | at.bucket;
        cut.count += at.before.count;
        cut.weight += at.before.weight;
        if (args.round + 1 == K_CUT_ROUNDS) {
            share_ties(args, row, goal, at, &cut);
        }
    }
    simt_sync_block(); /* everyone has read the cut */
    if (threadIdx.x == 0) {
        *to = cut;
    }
}

int k_cuda_merge_masses(const k_cuda_launch_t *at, const k_merge_masses_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    return simt_launch(merge_masses,
                       {.grid = {args->rows},
                        .block = {TILE_THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args, k_cut_bits(args->round));
}
