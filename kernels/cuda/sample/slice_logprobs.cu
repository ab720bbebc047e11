/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/sample/k_cuda_select.h"
#include "kernels/cuda/sample/k_cuda_slices.h"

typedef struct tally_job {
    k_slice_logprobs_args_t args;
    uint32_t tiles;
    slice_tally_t *tallies; /* [rows][tiles] */
} tally_job_t;

/* Shared memory of tally_tiles. */
typedef struct tally_space {
    uint64_t partial_weight[TILE_WARPS];
    uint32_t partial_count[TILE_WARPS];
    tops_space_t tops;
} tally_space_t;

SIMT_DEVICE void tally_tile(const tally_job_t &job, uint32_t row, uint32_t tile,
                            tally_space_t *space, slice_tally_t *out)
{
    const k_slice_logprobs_args_t &args = job.args;
    const k_slice_row_t *state = &args.state[row];
    const standing_t target = standing_of(state->logit, (uint32_t)state->token);
    float v[TILE_HELD];
    tile_load(args.logits + row * args.stride, args.tokens, tile, v);
    standing_t held[TILE_HELD];
    uint64_t weight = 0;
    uint32_t larger = 0;
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        const uint32_t at = tile_token(tile, i);
        held[i] = at < args.tokens ? standing_of(v[i], args.first_token + at) : 0;
        larger += held[i] > target ? 1 : 0;
        weight += v[i] > -INFINITY ? weight_of(v[i] - state->max_logit) : 0;
    }
    weight = block_total(weight, space->partial_weight);
    larger = block_total(larger, space->partial_count);
    if (threadIdx.x == 0) {
        out->weight = weight;
        out->larger = larger;
    }
    if (state->n_top > 0) {
        tile_top(held, state->n_top, &space->tops, out->top);
    }
}

static SIMT_KERNEL(TILE_THREADS, 2) tally_tiles(tally_job_t job)
{
    SIMT_SHARED(tally_space_t, space, [1]);
    const uint32_t row = blockIdx.y;
    simt_launch_next();
    simt_wait_previous();
    if (!job.args.state[row].wants_logprob) {
        return;
    }
    for (uint32_t tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
        tally_tile(job, row, tile, space, &job.tallies[(size_t)row * job.tiles + tile]);
        simt_sync_block();
    }
}

static SIMT_KERNEL(SIMT_WARP, 16) tally_rows(tally_job_t job)
{
    const uint32_t row = blockIdx.x;
    simt_launch_next();
    simt_wait_previous();
    const k_slice_row_t *state = &job.args.state[row];
    const uint32_t n_tiles = state->wants_logprob ? job.tiles : 0;
    const slice_tally_t *tallies = job.tallies + (size_t)row * job.tiles;
    k_tally_t *out = (k_tally_t *)((char *)job.args.out +
                                   row * (sizeof(*out) + job.args.max_top * sizeof(k_top_t)));
    uint64_t weight = 0;
    uint32_t larger = 0;
    for (uint32_t i = (uint32_t)simt_lane(); i < n_tiles; i += SIMT_WARP) {
        weight += tallies[i].weight;
        larger += tallies[i].larger;
    }
    weight = warp_total(weight);
    larger = warp_total(larger);
    uint32_t n_top = n_tiles > 0 ? state->n_top : 0;
    n_top = n_top < job.args.tokens ? n_top : job.args.tokens;
    if (simt_lane() == 0) {
        out->weight = weight;
        out->larger = larger;
        out->n_top = n_top;
    }
    warp_merge(
        n_tiles, n_top, [=](uint32_t tile, uint32_t i) { return tallies[tile].top[i]; },
        [=](uint32_t rank, standing_t standing) {
            if (simt_lane() == 0) {
                out->top[rank] = {standing_value(standing), (int32_t)standing_token(standing)};
            }
        });
}

int k_cuda_slice_logprobs(const k_cuda_launch_t *at, const k_slice_logprobs_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    if (!slice_fits(at, args->rows, args->tokens)) {
        return cudaErrorInvalidValue;
    }
    const tally_job_t job = {*args, tiles_of(args->tokens), (slice_tally_t *)at->scratch};
    const cudaError_t error =
        simt_launch(tally_tiles, slice_tile_grid(at, args->rows, args->tokens), job);
    return error != cudaSuccess ? error
                                : simt_launch(tally_rows, slice_row_grid(at, args->rows), job);
}
