/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slice_candidates: with cuts, that is the winner of what a slice keeps. Lists of candidates, which
 * the host would have to look at, are for CPUs.
 */
#include "kernels/cuda/k_cuda_adjust.h"
#include "kernels/cuda/sample/k_cuda_noise.h"
#include "kernels/cuda/sample/k_cuda_slices.h"

typedef struct draw_job {
    k_slice_candidates_args_t args;
    uint32_t tiles;
    winner_t *winners; /* [rows][tiles] */
    uint32_t *ends;    /* [rows]: tokens before it are kept where they are where the cut ends */
} draw_job_t;

static_assert(sizeof(winner_t) <= SLICE_TILE_BYTES, "of slice_candidates");

/* Of a row that asks for one, else NULL. */
SIMT_DEVICE const k_slice_cut_t *row_cut(const k_slice_candidates_args_t &args, uint32_t row)
{
    const k_sample_row_t *params = &args.params[row];
    return params->top_p < 1.0f ? &args.cuts[row].top_p
           : params->top_k > 0  ? &args.cuts[row].top_k
                                : nullptr;
}

SIMT_DEVICE bool is_open(const k_slice_candidates_args_t &args, uint32_t row)
{
    return args.state[row].token < 0;
}

SIMT_DEVICE float scale(const k_slice_candidates_args_t &args, uint32_t row, uint32_t at)
{
    return (args.z[row * args.stride + at] - args.state[row].max_z) / args.params[row].temperature;
}

/* ---- ties ------------------------------------------------------------------------------------ */

/* The place behind the ties-th token of those where the cut ends; the block calls. */
SIMT_DEVICE uint32_t find_end(const k_slice_candidates_args_t &args, uint32_t row,
                              const k_slice_cut_t &cut, bool *flags)
{
    uint32_t left = cut.ties;
    for (uint32_t base = 0; base < args.tokens; base += TILE_THREADS) {
        const uint32_t at = base + threadIdx.x;
        const bool is_equal = at < args.tokens && below_of(scale(args, row, at)) == cut.below;
        flags[threadIdx.x] = is_equal;
        const uint32_t n = (uint32_t)simt_sync_block_count(is_equal);
        for (uint32_t i = 0; n >= left && i < TILE_THREADS; i++) {
            left -= flags[i] ? 1 : 0;
            if (left == 0) {
                return base + i + 1;
            }
        }
        left -= n;
        simt_sync_block();
    }
    return args.tokens;
}

static SIMT_KERNEL(TILE_THREADS, 1) slice_ties(draw_job_t job)
{
    SIMT_SHARED(bool, flags, [TILE_THREADS]);
    const uint32_t row = blockIdx.x;
    simt_launch_next();
    simt_wait_previous();
    const k_slice_cut_t *cut = row_cut(job.args, row);
    if (!is_open(job.args, row) || cut == nullptr || cut->below == K_CUT_WHOLE) {
        return;
    }
    uint32_t end = cut->ties == 0 ? 0 : job.args.tokens;
    if (cut->ties > 0 && cut->ties < cut->equal) {
        end = find_end(job.args, row, *cut, flags);
    }
    if (threadIdx.x == 0) {
        job.ends[row] = end;
    }
}

/* ---- draw ------------------------------------------------------------------------------------ */

SIMT_DEVICE void drop_cut(const k_slice_cut_t &cut, uint32_t end, uint32_t tile,
                          float (&scaled)[TILE_HELD])
{
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        const uint32_t below = below_of(scaled[i]);
        const bool is_kept = below < cut.below || (below == cut.below && tile_token(tile, i) < end);
        scaled[i] = is_kept ? scaled[i] : -INFINITY;
    }
}

static SIMT_KERNEL(TILE_THREADS, 2) slice_draw(draw_job_t job)
{
    SIMT_SHARED(draw_space_t, space, [1]);
    const k_slice_candidates_args_t &args = job.args;
    const uint32_t row = blockIdx.y;
    simt_launch_next();
    simt_wait_previous();
    if (!is_open(args, row)) {
        return;
    }
    const k_sample_row_t *params = &args.params[row];
    const k_slice_cut_t *cut = row_cut(args, row);
    const bool is_cut = cut != nullptr && cut->below != K_CUT_WHOLE;
    const noise_source_t source = {params->seed, params->output_index};
    for (uint32_t tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
        float scaled[TILE_HELD];
        tile_load(args.z + row * args.stride, args.tokens, tile, scaled);
        scale_held(params, args.state[row].max_z, scaled);
        if (is_cut) {
            drop_cut(*cut, job.ends[row], tile, scaled);
        }
        const winner_t winner = draw_held(source, args.first_token, tile, scaled, space);
        if (threadIdx.x == 0) {
            job.winners[(size_t)row * job.tiles + tile] = winner;
        }
        simt_sync_block();
    }
}

SIMT_DEVICE k_candidate_t candidate_of(const k_slice_candidates_args_t &args, uint32_t row,
                                       const winner_t &winner)
{
    const uint32_t at = winner.token - args.first_token;
    const float scaled = scale(args, row, at);
    return {winner.value, scaled, expf(scaled), clean(args.logits[row * args.stride + at]),
            (int32_t)winner.token};
}

static SIMT_KERNEL(SIMT_WARP, 16) slice_winner(draw_job_t job)
{
    const k_slice_candidates_args_t &args = job.args;
    const uint32_t row = blockIdx.x;
    simt_launch_next();
    simt_wait_previous();
    winner_t winner = nobody();
    if (is_open(args, row)) {
        for (uint32_t i = (uint32_t)simt_lane(); i < job.tiles; i += SIMT_WARP) {
            winner = better(winner, job.winners[(size_t)row * job.tiles + i]);
        }
        winner = warp_winner(winner);
    }
    k_candidates_t *out =
        (k_candidates_t *)((char *)args.out + row * (sizeof(*out) + sizeof(k_candidate_t)));
    if (simt_lane() == 0) {
        const bool is_there = winner.value > -(double)INFINITY;
        out->weight = 0;
        out->n = is_there ? 1 : 0;
        out->possible = out->n;
        out->best[0] = is_there ? candidate_of(args, row, winner) : k_candidate_t{};
    }
}

/* ---- host ------------------------------------------------------------------------------------ */

int k_cuda_slice_candidates(const k_cuda_launch_t *at, const k_slice_candidates_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    if (args->cuts == nullptr || args->most != 1 || !slice_fits(at, args->rows, args->tokens)) {
        return cudaErrorInvalidValue;
    }
    draw_job_t job;
    job.args = *args;
    job.tiles = tiles_of(args->tokens);
    job.winners = (winner_t *)at->scratch;
    job.ends = (uint32_t *)(job.winners + (size_t)args->rows * job.tiles);
    simt_grid_t ties = slice_row_grid(at, args->rows);
    ties.block = {TILE_THREADS};
    cudaError_t error = simt_launch(slice_ties, ties, job);
    if (error == cudaSuccess) {
        error = simt_launch(slice_draw, slice_tile_grid(at, args->rows, args->tokens), job);
    }
    return error != cudaSuccess ? error
                                : simt_launch(slice_winner, slice_row_grid(at, args->rows), job);
}
