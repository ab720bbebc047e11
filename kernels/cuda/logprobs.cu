/* SPDX-License-Identifier: Apache-2.0 */
/*
 * logprobs: each tile's maximum, sum, count of better tokens and best tokens; then a warp a row puts
 * the tiles together in their order.
 */
#include "kernels/cuda/k_cuda_report.h"
#include "kernels/cuda/k_cuda_tiles.h"

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

/* The warp's n best of what its lanes hold go to top, in order; a slot without one gets 0. */
SIMT_DEVICE void warp_top(standing_t (&held)[TILE_HELD], uint32_t n, standing_t *top)
{
    for (uint32_t rank = 0; rank < n; rank++) {
        standing_t mine = 0;
        SIMT_UNROLL
        for (int i = 0; i < TILE_HELD; i++) {
            mine = held[i] > mine ? held[i] : mine;
        }
        const standing_t best = warp_best(mine);
        SIMT_UNROLL
        for (int i = 0; i < TILE_HELD; i++) {
            held[i] = held[i] == best ? 0 : held[i];
        }
        if (simt_lane() == 0) {
            top[rank] = best;
        }
    }
}

/*
 * Merges sorted lists, list i at lists + i · stride, n entries each, into one; the warp calls, give(rank,
 * standing) is called by all lanes.
 */
template <class F>
SIMT_DEVICE void warp_merge(const standing_t *lists, size_t stride, uint32_t n_lists, uint32_t n,
                            F give)
{
    /* Standings are unique: what is worse than the last one given is what is left. */
    standing_t last = ~(standing_t)0;
    for (uint32_t rank = 0; rank < n; rank++) {
        standing_t mine = 0;
        for (uint32_t list = (uint32_t)simt_lane(); list < n_lists; list += SIMT_WARP) {
            const standing_t *entries = lists + list * stride;
            uint32_t at = 0;
            while (at < n && entries[at] >= last) {
                at++;
            }
            mine = at < n && entries[at] > mine ? entries[at] : mine;
        }
        last = warp_best(mine);
        give(rank, last);
    }
}

static SIMT_KERNEL(TILE_THREADS, 2) report_tiles(report_job_t job)
{
    SIMT_SHARED(standing_t, partial, [TILE_WARPS]);
    SIMT_SHARED(double, partial_sum, [TILE_WARPS]);
    SIMT_SHARED(uint32_t, partial_count, [TILE_WARPS]);
    SIMT_SHARED(standing_t, tops, [TILE_WARPS][K_MAX_LOGPROBS]);
    const uint32_t tile = blockIdx.x;
    const uint32_t row = blockIdx.y;
    simt_launch_next();
    simt_wait_previous();
    const wish_t wish = row_wish(job.report, row);
    if (!wish.is_any) {
        return;
    }
    const float *logits = job.report.logits + row * job.report.logits_stride;
    tile_report_t *report = &job.tile_reports[(size_t)row * job.tiles + tile];
    const standing_t target = standing_of(clean(logits[wish.target]), wish.target);

    float v[TILE_HELD];
    tile_load(logits, job.report.vocab, tile, v);
    standing_t held[TILE_HELD];
    standing_t best = 0;
    uint32_t n_better = 0;
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        const uint32_t token = tile_token(tile, i);
        held[i] = token < job.report.vocab ? standing_of(v[i], token) : 0;
        best = held[i] > best ? held[i] : best;
        n_better += held[i] > target ? 1 : 0;
    }
    const float max = standing_value(block_best(best, partial));
    double sum = 0;
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        sum += v[i] > -INFINITY ? (double)expf(v[i] - max) : 0.0;
    }
    sum = block_total(sum, partial_sum);
    n_better = block_total(n_better, partial_count);
    if (threadIdx.x == 0) {
        report->sum = sum;
        report->max = max;
        report->n_better = n_better;
    }
    if (wish.n_top == 0) {
        return;
    }
    warp_top(held, wish.n_top, tops[simt_warp()]);
    simt_sync_block();
    if (simt_warp() == 0) {
        warp_merge(tops[0], K_MAX_LOGPROBS, TILE_WARPS, wish.n_top,
                   [=](uint32_t rank, standing_t standing) {
                       if (simt_lane() == 0) {
                           report->top[rank] = standing;
                       }
                   });
    }
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
    float max = -INFINITY;
    uint32_t n_better = 0;
    for (uint32_t i = (uint32_t)simt_lane(); i < job.tiles; i += SIMT_WARP) {
        max = fmaxf(max, tiles[i].max);
        n_better += tiles[i].n_better;
    }
    max = simt_warp_max(max);
    n_better = warp_total(n_better);
    double sum = 0;
    for (uint32_t i = (uint32_t)simt_lane(); i < job.tiles; i += SIMT_WARP) {
        sum += tiles[i].sum > 0 ? tiles[i].sum * exp((double)tiles[i].max - (double)max) : 0.0;
    }
    sum = warp_total(sum);
    /* A row of nothing but -inf: every log-probability is -inf. */
    const double log_sum = max == -INFINITY ? (double)INFINITY : log(sum) + (double)max;

    k_sampled_t *out = &job.report.out[row];
    if (simt_lane() == 0) {
        const float *logits = job.report.logits + row * job.report.logits_stride;
        const double chosen = clean(logits[wish.target]);
        out->chosen = {(int32_t)wish.target, n_better + 1, (float)(chosen - log_sum)};
        out->n_top = wish.n_top;
    }
    warp_merge(tiles[0].top, sizeof(tile_report_t) / sizeof(standing_t), job.tiles, wish.n_top,
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
    simt_grid_t grid = {.grid = {job.tiles, report->rows},
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
