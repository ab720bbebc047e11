/* SPDX-License-Identifier: Apache-2.0 */
/*
 * route: a warp a row chooses experts; then a block an expert walks all choices in order, which gives
 * its slots. What a row chooses does not depend on the others.
 */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"
#include "kernels/cuda/k_cuda_tiles.h"

enum {
    ROUTE_WARPS = 4,
    PLACE_THREADS = 512,
    PLACE_WARPS = PLACE_THREADS / SIMT_WARP,
};

/* What is known of a row's experts while its warp chooses. */
typedef struct scores {
    float score[K_MAX_EXPERTS];
    float choice[K_MAX_EXPERTS]; /* score + bias; -inf: not to be chosen */
    float group[K_MAX_EXPERTS];
    bool is_kept[K_MAX_EXPERTS]; /* of groups */
} scores_t;

/* ---- scores ---------------------------------------------------------------------------------- */

SIMT_DEVICE void softmax(const float *logits, uint32_t n, float *score)
{
    float max = -INFINITY;
    float sum = 0;
    for (uint32_t e = (uint32_t)simt_lane(); e < n; e += SIMT_WARP) {
        max = fmaxf(max, logits[e]);
    }
    max = simt_warp_max(max);
    for (uint32_t e = (uint32_t)simt_lane(); e < n; e += SIMT_WARP) {
        score[e] = expf(logits[e] - max);
        sum += score[e];
    }
    sum = simt_warp_sum(sum);
    for (uint32_t e = (uint32_t)simt_lane(); e < n; e += SIMT_WARP) {
        score[e] /= sum;
    }
}

/* Each lane fills the experts lane, lane + 32, …; best_of() has it read the same ones. */
SIMT_DEVICE void score_row(const k_route_args_t &args, uint32_t row, scores_t *scores)
{
    const float *logits = args.logits + row * args.logits_stride;
    if (args.kind == K_ROUTE_SOFTMAX) {
        softmax(logits, args.experts, scores->score);
    }
    for (uint32_t e = (uint32_t)simt_lane(); e < args.experts; e += SIMT_WARP) {
        if (args.kind == K_ROUTE_SIGMOID) {
            scores->score[e] = 1.0f / (1.0f + expf(-logits[e]));
        }
        scores->choice[e] = clean(scores->score[e] + (args.bias == nullptr ? 0.0f : args.bias[e]));
    }
}

#define TAKEN NAN /* a value that is out of the choice; the others are clean */

/* The index of the largest of n values that are not taken, the lower of equals, in every lane. */
SIMT_DEVICE uint32_t best_of(const float *values, uint32_t n)
{
    standing_t best = 0;
    for (uint32_t i = (uint32_t)simt_lane(); i < n; i += SIMT_WARP) {
        const standing_t standing = isnan(values[i]) ? 0 : standing_of(values[i], i);
        best = standing > best ? standing : best;
    }
    return standing_token(warp_best(best));
}

/* ---- groups ---------------------------------------------------------------------------------- */

SIMT_DEVICE float score_group(const float *choice, uint32_t n, bool takes_two)
{
    float first = -INFINITY;
    float second = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        const float lower = fminf(choice[i], first);
        first = fmaxf(choice[i], first);
        second = fmaxf(second, lower);
    }
    return takes_two && n > 1 ? first + second : first;
}

/* Leaves the experts of the best groups. */
SIMT_DEVICE void keep_groups(const k_route_args_t &args, scores_t *scores)
{
    const uint32_t size = args.experts / args.n_groups;
    simt_sync_warp();
    for (uint32_t g = (uint32_t)simt_lane(); g < args.n_groups; g += SIMT_WARP) {
        scores->group[g] =
            clean(score_group(scores->choice + (size_t)g * size, size, args.bias != nullptr));
        scores->is_kept[g] = false;
    }
    for (uint32_t i = 0; i < args.groups_used; i++) {
        const uint32_t best = best_of(scores->group, args.n_groups);
        if (best % SIMT_WARP == (uint32_t)simt_lane()) {
            scores->is_kept[best] = true;
            scores->group[best] = TAKEN;
        }
    }
    simt_sync_warp();
    for (uint32_t e = (uint32_t)simt_lane(); e < args.experts; e += SIMT_WARP) {
        scores->choice[e] = scores->is_kept[e / size] ? scores->choice[e] : -INFINITY;
    }
}

/* ---- choices --------------------------------------------------------------------------------- */

static SIMT_KERNEL(ROUTE_WARPS *SIMT_WARP, 4) route_rows(k_route_args_t args, uint32_t *choices)
{
    SIMT_SHARED(scores_t, all_scores, [ROUTE_WARPS]);
    simt_launch_next();
    simt_wait_previous();
    const uint32_t row = blockIdx.x * ROUTE_WARPS + (uint32_t)simt_warp();
    if (row >= args.rows) {
        return;
    }
    scores_t *scores = &all_scores[simt_warp()];
    uint32_t *chosen = choices + (size_t)row * args.used;
    float *weights = args.weights + (size_t)row * args.used;
    score_row(args, row, scores);
    if (args.n_groups > 1) {
        keep_groups(args, scores);
    }
    simt_sync_warp();
    float sum = 0;
    for (uint32_t j = 0; j < args.used; j++) {
        const uint32_t best = best_of(scores->choice, args.experts);
        const float score = scores->score[best];
        sum += score;
        if (best % SIMT_WARP == (uint32_t)simt_lane()) {
            scores->choice[best] = TAKEN;
            chosen[j] = best;
            weights[j] = score;
        }
    }
    simt_sync_warp();
    for (uint32_t j = (uint32_t)simt_lane(); j < args.used; j += SIMT_WARP) {
        weights[j] = (args.renormalizes ? weights[j] / sum : weights[j]) * args.scale;
    }
}

/* ---- slots ----------------------------------------------------------------------------------- */

/* Choices of the expert before this thread's, and of the whole block; partial: one a warp, shared. */
SIMT_DEVICE uint32_t count_before(bool is_mine, uint32_t *partial, uint32_t *total)
{
    const uint32_t lanes = simt_ballot(is_mine);
    simt_sync_block();
    if (simt_lane() == 0) {
        partial[simt_warp()] = (uint32_t)simt_popcount(lanes);
    }
    simt_sync_block();
    uint32_t before = (uint32_t)simt_popcount(lanes & ((1u << simt_lane()) - 1));
    *total = 0;
    for (int warp = 0; warp < PLACE_WARPS; warp++) {
        before += warp < simt_warp() ? partial[warp] : 0;
        *total += partial[warp];
    }
    return before;
}

static SIMT_KERNEL(PLACE_THREADS, 2) place_slots(k_route_args_t args, const uint32_t *choices)
{
    SIMT_SHARED(uint32_t, partial, [PLACE_WARPS]);
    const uint32_t expert = blockIdx.x;
    const uint32_t slots = args.rows * args.used;
    simt_launch_next();
    simt_wait_previous();
    int n_lower = 0; /* slots of experts before this one */
    for (uint32_t first = 0; first < slots; first += PLACE_THREADS) {
        const uint32_t i = first + threadIdx.x;
        n_lower += simt_sync_block_count(i < slots && choices[i] < expert);
    }
    uint32_t next = (uint32_t)n_lower;
    for (uint32_t first = 0; first < slots; first += PLACE_THREADS) {
        const uint32_t i = first + threadIdx.x;
        const bool is_mine = i < slots && choices[i] == expert;
        uint32_t total;
        const uint32_t slot = next + count_before(is_mine, partial, &total);
        if (is_mine) {
            args.row_of_slot[slot] = i / args.used;
            args.slot_of[i] = slot;
        }
        next += total;
    }
    if (threadIdx.x == 0) {
        args.offsets[expert] = (uint32_t)n_lower;
        if (expert + 1 == args.experts) {
            args.offsets[args.experts] = slots;
        }
    }
}

/* ---- host ------------------------------------------------------------------------------------ */

int k_cuda_route(const k_cuda_launch_t *at, const k_route_args_t *args)
{
    const size_t slots = (size_t)args->rows * args->used;
    if (args->experts > K_MAX_EXPERTS || args->used > args->experts ||
        slots * sizeof(uint32_t) > at->scratch_bytes) {
        return cudaErrorInvalidValue;
    }
    uint32_t *choices = (uint32_t *)at->scratch; /* the expert of each of a row's choices */
    if (args->rows > 0) {
        const cudaError_t error = simt_launch(route_rows,
                                              {.grid = {k_rows_ceil_div(args->rows, ROUTE_WARPS)},
                                               .block = {ROUTE_WARPS * SIMT_WARP},
                                               .stream = at->stream,
                                               .overlaps_previous = true},
                                              *args, choices);
        if (error != cudaSuccess) {
            return error;
        }
    }
    return simt_launch(place_slots,
                       {.grid = {args->experts},
                        .block = {PLACE_THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args, choices);
}
