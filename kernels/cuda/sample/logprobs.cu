/* SPDX-License-Identifier: Apache-2.0 */
/*
 * logprobs: each tile's maximum, sum, count of better tokens and best tokens; then a warp a row puts
 * the tiles together in their order. Vocabularies of up to 524288 tokens.
 */
#include "kernels/cuda/sample/k_cuda_report.h"
#include "kernels/cuda/sample/k_cuda_tops.h"

typedef struct tile_report {
    double sum; /* of exp(logit - max) */
    float max;
    uint32_t n_better; /* than the target */
    standing_t top[K_MAX_LOGPROBS];
} tile_report_t;

typedef struct report_job {
    k_cuda_report_t report;
    uint32_t tiles;              /* of a row */
    tile_report_t *tile_reports; /* [rows][tiles] */
} report_job_t;

/* What a row wants. */
typedef struct wish {
    uint32_t target;
    uint32_t n_top;
    bool is_any;
} wish_t;

SIMT_DEVICE wish_t row_wish(const k_cuda_report_t &report, uint32_t row)
{
    wish_t wish;
    if (report.params != nullptr) {
        const k_sample_row_t *params = &report.params[row];
        wish.target = (uint32_t)report.out[row].chosen.token;
        wish.n_top = params->n_top;
        wish.is_any = params->wants_logprob || params->n_top > 0;
    } else {
        wish.target = (uint32_t)report.targets[row];
        wish.n_top = report.n_top[row];
        wish.is_any = true;
    }
    wish.n_top = wish.n_top < K_MAX_LOGPROBS ? wish.n_top : K_MAX_LOGPROBS;
    wish.n_top = wish.n_top < report.vocab ? wish.n_top : report.vocab;
    return wish;
}

/* Shared memory of report_tiles. */
typedef struct report_space {
    standing_t partial[TILE_WARPS];
    double partial_sum[TILE_WARPS];
    uint32_t partial_count[TILE_WARPS];
    tops_space_t tops;
} report_space_t;

SIMT_DEVICE void report_tile(const k_cuda_report_t &job, const float *logits, uint32_t tile,
                             const wish_t &wish, report_space_t *space, tile_report_t *report)
{
    const standing_t target = standing_of(clean(logits[wish.target]), wish.target);
    float v[TILE_HELD];
    tile_load(logits, job.vocab, tile, v);
    standing_t held[TILE_HELD];
    standing_t best = 0;
    uint32_t n_better = 0;
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        const uint32_t token = tile_token(tile, i);
        held[i] = token < job.vocab ? standing_of(v[i], token) : 0;
        best = held[i] > best ? held[i] : best;
        n_better += held[i] > target ? 1 : 0;
    }
    const float max = standing_value(block_best(best, space->partial));
    double sum = 0;
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        sum += v[i] > -INFINITY ? (double)expf(v[i] - max) : 0.0;
    }
    sum = block_total(sum, space->partial_sum);
    n_better = block_total(n_better, space->partial_count);
    if (threadIdx.x == 0) {
        report->sum = sum;
        report->max = max;
        report->n_better = n_better;
    }
    if (wish.n_top > 0) {
        tile_top(held, wish.n_top, &space->tops, report->top);
    }
}

static SIMT_KERNEL(TILE_THREADS, 2) report_tiles(report_job_t job)
{
    SIMT_SHARED(report_space_t, space, [1]);
    const uint32_t row = blockIdx.y;
    simt_launch_next();
    simt_wait_previous();
    const wish_t wish = row_wish(job.report, row);
    if (!wish.is_any) {
        return;
    }
    const float *logits = job.report.logits + row * job.report.logits_stride;
    for (uint32_t tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
        report_tile(job.report, logits, tile, wish, space,
                    &job.tile_reports[(size_t)row * job.tiles + tile]);
        simt_sync_block();
    }
}

/* The logarithm of the row's sum, and how many tokens are better than the target; the warp calls. */
SIMT_DEVICE double join_tiles(const tile_report_t *tiles, uint32_t n, uint32_t *n_better_out)
{
    float max = -INFINITY;
    uint32_t n_better = 0;
    for (uint32_t i = (uint32_t)simt_lane(); i < n; i += SIMT_WARP) {
        max = fmaxf(max, tiles[i].max);
        n_better += tiles[i].n_better;
    }
    max = simt_warp_max(max);
    double sum = 0;
    for (uint32_t i = (uint32_t)simt_lane(); i < n; i += SIMT_WARP) {
        sum += tiles[i].sum > 0 ? tiles[i].sum * exp((double)tiles[i].max - (double)max) : 0.0;
    }
    sum = warp_total(sum);
    *n_better_out = warp_total(n_better);
    /* A row of nothing but -inf: every log-probability is -inf. */
    return max == -INFINITY ? (double)INFINITY : log(sum) + (double)max;
}

/* A warp a row. */
static SIMT_KERNEL(SIMT_WARP, 16) report_rows(report_job_t job)
{
    const uint32_t row = blockIdx.x;
    simt_launch_next();
    simt_wait_previous();
    const wish_t wish = row_wish(job.report, row);
    if (!wish.is_any) {
        return;
    }
    const tile_report_t *tiles = job.tile_reports + (size_t)row * job.tiles;
    uint32_t n_better = 0;
    const double log_sum = join_tiles(tiles, job.tiles, &n_better);
    k_sampled_t *out = &job.report.out[row];
    simt_sync_warp(); /* every lane has read the target that is written over */
    if (simt_lane() == 0) {
        const float *logits = job.report.logits + row * job.report.logits_stride;
        const double chosen = clean(logits[wish.target]);
        out->chosen = {(int32_t)wish.target, n_better + 1, (float)(chosen - log_sum)};
        out->n_top = wish.n_top;
    }
    warp_merge(
        job.tiles, wish.n_top, [=](uint32_t tile, uint32_t i) { return tiles[tile].top[i]; },
        [=](uint32_t rank, standing_t standing) {
            if (simt_lane() == 0) {
                out->top[rank] = {(int32_t)standing_token(standing), rank + 1,
                                  (float)((double)standing_value(standing) - log_sum)};
            }
        });
}

size_t k_cuda_report_scratch_bytes(uint32_t rows, uint32_t vocab)
{
    return (size_t)rows * tiles_of(vocab) * sizeof(tile_report_t);
}

int k_cuda_report(const k_cuda_launch_t *at, const k_cuda_report_t *report, void *scratch)
{
    const report_job_t job = {*report, tiles_of(report->vocab), (tile_report_t *)scratch};
    if (job.tiles > MAX_LISTS) {
        return cudaErrorInvalidValue;
    }
    simt_grid_t grid = {
        .grid = {tile_blocks(report->rows, job.tiles, at->multiprocessors), report->rows},
        .block = {TILE_THREADS},
        .stream = at->stream,
        .overlaps_previous = true};
    const cudaError_t error = simt_launch(report_tiles, grid, job);
    if (error != cudaSuccess) {
        return error;
    }
    grid.grid = {report->rows};
    grid.block = {SIMT_WARP};
    return simt_launch(report_rows, grid, job);
}

int k_cuda_logprobs(const k_cuda_launch_t *at, const k_logprobs_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    if (k_cuda_report_scratch_bytes(args->rows, args->vocab) > at->scratch_bytes) {
        return cudaErrorInvalidValue;
    }
    const k_cuda_report_t report = {
        .logits = args->logits,
        .params = nullptr,
        .targets = args->targets,
        .n_top = args->n_top,
        .out = args->out,
        .rows = args->rows,
        .vocab = args->vocab,
        .logits_stride = args->logits_stride,
    };
    return k_cuda_report(at, &report, at->scratch);
}
