/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda_adjust.h"
#include "kernels/cuda/sample/k_cuda_slices.h"

typedef struct slice_max_job {
    k_slice_max_args_t args;
    uint32_t tiles;     /* of a row */
    slice_best_t *best; /* [rows][tiles] */
} slice_max_job_t;

/* Whether the largest logit, as it is, decides. */
SIMT_DEVICE bool is_plain(const k_sample_row_t *params)
{
    return params == nullptr || (is_greedy(params) && params->mask == nullptr &&
                                 params->n_bias == 0 && !has_penalties(params));
}

SIMT_DEVICE const k_sample_row_t *row_params(const slice_max_job_t &job, uint32_t row)
{
    return job.args.params == nullptr ? nullptr : &job.args.params[row];
}

/* Rows begin where they do: 16 bytes at a time is for few. */
SIMT_DEVICE void store_tile(float *row, uint32_t tokens, uint32_t tile, const float (&z)[TILE_HELD])
{
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        const uint32_t at = tile_token(tile, i);
        if (at < tokens) {
            row[at] = z[i];
        }
    }
}

SIMT_DEVICE slice_best_t find_best(const slice_max_job_t &job, uint32_t row, uint32_t tile,
                                   adjust_space_t *space)
{
    const k_slice_max_args_t &args = job.args;
    const k_sample_row_t *params = row_params(job, row);
    float z[TILE_HELD];
    tile_load(args.logits + row * args.stride, args.tokens, tile, z);
    slice_best_t best;
    best.logit = tile_best(z, args.first_token, tile, space->partial);
    best.z = best.logit;
    if (is_plain(params)) {
        return best;
    }
    adjust_held(params, args.first_token, args.tokens, tile, space, z);
    if (!is_greedy(params)) {
        store_tile(args.z + row * args.stride, args.tokens, tile, z);
    }
    simt_sync_block(); /* everyone has read partial */
    best.z = tile_best(z, args.first_token, tile, space->partial);
    return best;
}

static SIMT_KERNEL(TILE_THREADS, 2) slice_max_tiles(slice_max_job_t job)
{
    SIMT_SHARED(adjust_space_t, space, [1]);
    const uint32_t row = blockIdx.y;
    simt_launch_next();
    simt_wait_previous();
    for (uint32_t tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
        const slice_best_t best = find_best(job, row, tile, space);
        if (threadIdx.x == 0) {
            job.best[(size_t)row * job.tiles + tile] = best;
        }
        simt_sync_block();
    }
}

/* The lowest token of the slice that the mask allows, -1 when it allows none; the warp calls. */
SIMT_DEVICE int32_t find_allowed(const uint32_t *mask, uint32_t first, uint32_t tokens)
{
    const uint32_t none = 0x7fffffffu;
    uint32_t lowest = none;
    for (uint32_t i = (uint32_t)simt_lane(); i < tokens && lowest == none; i += SIMT_WARP) {
        const uint32_t token = first + i;
        lowest = (mask[token / 32] >> token % 32 & 1) != 0 ? token : none;
    }
    for (int bits = SIMT_WARP / 2; bits > 0; bits /= 2) {
        const uint32_t other = simt_shfl_xor(lowest, bits);
        lowest = other < lowest ? other : lowest;
    }
    return lowest == none ? -1 : (int32_t)lowest;
}

/* The best over the tiles of a row, in every lane. */
SIMT_DEVICE slice_best_t row_best(const slice_best_t *tiles, uint32_t n)
{
    slice_best_t best = {0, 0};
    for (uint32_t i = (uint32_t)simt_lane(); i < n; i += SIMT_WARP) {
        best.logit = tiles[i].logit > best.logit ? tiles[i].logit : best.logit;
        best.z = tiles[i].z > best.z ? tiles[i].z : best.z;
    }
    return {warp_best(best.logit), warp_best(best.z)};
}

static SIMT_KERNEL(SIMT_WARP, 16) slice_max_rows(slice_max_job_t job)
{
    const k_slice_max_args_t &args = job.args;
    const uint32_t row = blockIdx.x;
    simt_launch_next();
    simt_wait_previous();
    const k_sample_row_t *params = row_params(job, row);
    const float *logits = args.logits + row * args.stride;
    const slice_best_t best = row_best(job.best + (size_t)row * job.tiles, job.tiles);
    k_slice_max_t out = {};
    out.max_logit = standing_value(best.logit);
    out.max_token = (int32_t)standing_token(best.logit);
    out.z = standing_value(best.z);
    out.token = (int32_t)standing_token(best.z);
    out.logit = slice_logit(logits, args.first_token, args.tokens, out.token);
    out.allowed = -1;
    if (out.z == -INFINITY && params != nullptr && params->mask != nullptr) {
        out.allowed = find_allowed(params->mask, args.first_token, args.tokens);
    }
    out.allowed_logit = slice_logit(logits, args.first_token, args.tokens, out.allowed);
    out.target_logit = params != nullptr
                           ? -INFINITY
                           : slice_logit(logits, args.first_token, args.tokens, args.targets[row]);
    if (simt_lane() == 0) {
        args.out[row] = out;
    }
}

size_t k_cuda_slices_scratch_bytes(uint32_t rows, uint32_t tokens)
{
    return (size_t)rows * (tiles_of(tokens) * SLICE_TILE_BYTES + sizeof(uint64_t));
}

int k_cuda_slice_max(const k_cuda_launch_t *at, const k_slice_max_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    if (!slice_fits(at, args->rows, args->tokens)) {
        return cudaErrorInvalidValue;
    }
    const slice_max_job_t job = {*args, tiles_of(args->tokens), (slice_best_t *)at->scratch};
    const cudaError_t error =
        simt_launch(slice_max_tiles, slice_tile_grid(at, args->rows, args->tokens), job);
    return error != cudaSuccess ? error
                                : simt_launch(slice_max_rows, slice_row_grid(at, args->rows), job);
}
