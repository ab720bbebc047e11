/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sample: four kernels of some blocks a row, then the report of logprobs.cu.
 *
 *   adjust   z = logits after mask, bias and penalties; the best of each tile
 *   count    tokens and weights by bucket, for rows with top_k or top_p
 *   draw     noise for tokens that are surely kept, a list of those that the cut may spare
 *   choose   the cut through the list; the winner of all; one block a row
 *
 * Which of them a row needs is read on the device: a block of a row that does not ends at once.
 * The logits are left alone; z is scratch.
 */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_adjust.h"
#include "kernels/cuda/sample/k_cuda_noise.h"
#include "kernels/cuda/sample/k_cuda_report.h"
#include "kernels/cuda/sample/k_cuda_select.h"

typedef struct sample_job {
    k_sample_args_t args;
    uint32_t tiles;     /* of a row */
    float *z;           /* [rows][tiles · TILE] */
    uint32_t *listed;   /* [rows][tiles · TILE], n_listed[row] are valid */
    uint32_t *n_listed; /* [rows] */
    standing_t *best;   /* [rows][tiles], by z */
    winner_t *winners;  /* [rows][tiles], of the tokens surely kept */
    uint32_t *counts;   /* [rows][BUCKETS] */
    uint64_t *weights;  /* [rows][BUCKETS] */
    void *report_scratch;
} sample_job_t;

SIMT_DEVICE standing_t row_best(const sample_job_t &job, uint32_t row)
{
    return best_of_tiles(job.best + (size_t)row * job.tiles, job.tiles);
}

SIMT_DEVICE size_t row_start(const sample_job_t &job, uint32_t row)
{
    return (size_t)row * job.tiles * TILE;
}

/* ---- adjust ---------------------------------------------------------------------------------- */

SIMT_DEVICE void store_z(float *row, uint32_t tile, const float (&z)[TILE_HELD])
{
    SIMT_UNROLL
    for (int at = 0; at < TILE_HELD; at += 4) {
        const uint4 raw = {simt_float_bits(z[at]), simt_float_bits(z[at + 1]),
                           simt_float_bits(z[at + 2]), simt_float_bits(z[at + 3])};
        simt_store_16(row + tile_token(tile, at), raw);
    }
}

/* The sums of count begin at 0; each tile clears a part of its row's. */
SIMT_DEVICE void clear_sums(const sample_job_t &job, uint32_t row, uint32_t tile)
{
    for (uint32_t b = tile * TILE_THREADS + threadIdx.x; b < BUCKETS;
         b += job.tiles * TILE_THREADS) {
        job.counts[(size_t)row * BUCKETS + b] = 0;
        job.weights[(size_t)row * BUCKETS + b] = 0;
    }
    if (tile == 0 && threadIdx.x == 0) {
        job.n_listed[row] = 0;
    }
}

SIMT_DEVICE void adjust_tile(const sample_job_t &job, uint32_t row, uint32_t tile,
                             adjust_space_t *space)
{
    const uint32_t vocab = job.args.vocab;
    const k_sample_row_t *params = &job.args.params[row];
    float z[TILE_HELD];
    tile_load(job.args.logits + row * job.args.logits_stride, vocab, tile, z);
    adjust_held(params, 0, vocab, tile, space, z);
    if (!is_greedy(params)) {
        store_z(job.z + row_start(job, row), tile, z);
        clear_sums(job, row, tile);
    }
    const standing_t best = tile_best(z, 0, tile, space->partial);
    if (threadIdx.x == 0) {
        job.best[(size_t)row * job.tiles + tile] = best;
    }
}

static SIMT_KERNEL(TILE_THREADS, 2) sample_adjust(sample_job_t job)
{
    SIMT_SHARED(adjust_space_t, space, [1]);
    simt_launch_next();
    simt_wait_previous();
    for (uint32_t tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
        adjust_tile(job, blockIdx.y, tile, space);
        simt_sync_block();
    }
}

/* ---- count ----------------------------------------------------------------------------------- */

SIMT_DEVICE void load_scaled(const sample_job_t &job, uint32_t row, uint32_t tile, float max,
                             float (&scaled)[TILE_HELD])
{
    tile_load(job.z + row_start(job, row), job.tiles * TILE, tile, scaled);
    scale_held(&job.args.params[row], max, scaled);
}

SIMT_DEVICE void count_tile(const sample_job_t &job, uint32_t row, uint32_t tile, float max,
                            histogram_t *histogram)
{
    const bool weighs = job.args.params[row].top_p < 1.0f;
    float scaled[TILE_HELD];
    load_scaled(job, row, tile, max, scaled);
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        if (scaled[i] > -INFINITY) {
            histogram_add(histogram, bucket_of(scaled[i]), 1, weighs ? weight_of(scaled[i]) : 0);
        }
    }
}

SIMT_DEVICE void add_to_row(const sample_job_t &job, uint32_t row, const histogram_t *histogram)
{
    for (uint32_t b = threadIdx.x; b < BUCKETS; b += TILE_THREADS) {
        const uint64_t weight = histogram_weight(histogram, b);
        if (histogram->count[b] != 0) {
            simt_atomic_add(&job.counts[(size_t)row * BUCKETS + b], histogram->count[b]);
        }
        if (weight != 0) {
            simt_atomic_add(&job.weights[(size_t)row * BUCKETS + b], weight);
        }
    }
}

static SIMT_KERNEL(TILE_THREADS, 2) sample_count(sample_job_t job)
{
    SIMT_SHARED(histogram_t, histogram, [1]);
    const uint32_t row = blockIdx.y;
    simt_launch_next();
    simt_wait_previous();
    if (!selects(&job.args.params[row])) {
        return;
    }
    const float max = standing_value(row_best(job, row));
    if (max == -INFINITY) {
        return;
    }
    histogram_clear(histogram);
    simt_sync_block();
    for (uint32_t tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
        count_tile(job, row, tile, max, histogram);
    }
    simt_sync_block();
    add_to_row(job, row, histogram);
}

/* ---- draw ------------------------------------------------------------------------------------ */

/* Shared memory of row_range. */
typedef struct range_space {
    mass_t partial[TILE_WARPS];
    crossing_t found[3];
} range_space_t;

SIMT_DEVICE range_t row_range(const sample_job_t &job, uint32_t row, range_space_t *space)
{
    const k_sample_row_t *params = &job.args.params[row];
    held_buckets_t held;
    SIMT_UNROLL
    for (int i = 0; i < BUCKETS_HELD; i++) {
        const size_t b = (size_t)row * BUCKETS + held_bucket(i);
        held.in[i] = {job.weights[b], job.counts[b]};
    }
    held_scan(&held, space->partial);
    return find_range(held, params->top_k, params->top_p, space->found);
}

/* Appends the tokens whose flag is set, in any order. */
SIMT_DEVICE void append_listed(const sample_job_t &job, uint32_t row, uint32_t tile,
                               const bool (&is_listed)[TILE_HELD])
{
    uint32_t *listed = job.listed + row_start(job, row);
    const uint32_t lanes_below = (1u << simt_lane()) - 1;
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        const uint32_t lanes = simt_ballot(is_listed[i]);
        uint32_t start = 0;
        if (lanes != 0 && simt_lane() == 0) {
            start = simt_atomic_add(&job.n_listed[row], (uint32_t)simt_popcount(lanes));
        }
        start = simt_shfl(start, 0);
        if (is_listed[i]) {
            listed[start + (uint32_t)simt_popcount(lanes & lanes_below)] = tile_token(tile, i);
        }
    }
}

/* Shared memory of sample_draw. */
typedef struct draw_range_space {
    range_space_t range;
    draw_space_t draw;
} draw_range_space_t;

/* Lists the tokens that range leaves open, and leaves those that it keeps. */
SIMT_DEVICE void split_tile(const sample_job_t &job, uint32_t row, uint32_t tile,
                            const range_t &range, float (&scaled)[TILE_HELD])
{
    bool is_listed[TILE_HELD];
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        const uint32_t bucket = bucket_of(scaled[i]);
        is_listed[i] = scaled[i] > -INFINITY &&
                       ((bucket >= range.first && bucket <= range.last) || bucket == range.kth);
        scaled[i] = bucket < range.first ? scaled[i] : -INFINITY;
    }
    append_listed(job, row, tile, is_listed);
}

static SIMT_KERNEL(TILE_THREADS, 2) sample_draw(sample_job_t job)
{
    SIMT_SHARED(draw_range_space_t, space, [1]);
    const uint32_t row = blockIdx.y;
    const k_sample_row_t *params = &job.args.params[row];
    simt_launch_next();
    simt_wait_previous();
    if (is_greedy(params)) {
        return;
    }
    const float max = standing_value(row_best(job, row));
    if (max == -INFINITY) {
        return;
    }
    const noise_source_t source = {params->seed, params->output_index};
    const bool is_split = selects(params);
    range_t range = {};
    if (is_split) {
        range = row_range(job, row, &space->range);
    }
    for (uint32_t tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
        float scaled[TILE_HELD];
        load_scaled(job, row, tile, max, scaled);
        if (is_split) {
            split_tile(job, row, tile, range, scaled);
        }
        const winner_t winner = draw_held(source, 0, tile, scaled, &space->draw);
        if (threadIdx.x == 0) {
            job.winners[(size_t)row * job.tiles + tile] = winner;
        }
        simt_sync_block();
    }
}

/* ---- choose ---------------------------------------------------------------------------------- */

/* Shared memory of sample_choose. */
typedef struct choose_space {
    range_space_t range;
    cut_space_t cut;
    uint64_t partial_weight[TILE_WARPS];
    float partial_max[TILE_WARPS];
    winner_t partial_winner[TILE_WARPS];
    standing_t partial_best[TILE_WARPS];
} choose_space_t;

/* Weight of the listed tokens up to a place. */
SIMT_DEVICE uint64_t listed_weight(const listed_t &listed, place_t cut, uint64_t *partial)
{
    uint64_t weight = 0;
    for (uint32_t i = threadIdx.x; i < listed.n; i += TILE_THREADS) {
        const float scaled = listed_scaled(listed, listed.tokens[i]);
        weight += place_of(scaled, listed.tokens[i]) <= cut ? weight_of(scaled) : 0;
    }
    return block_total(weight, partial);
}

/* The last place that top_k and then top_p keep. */
SIMT_DEVICE place_t row_cut(const k_sample_row_t *params, const range_t &range,
                            const listed_t &listed, choose_space_t *space)
{
    place_t cut = ~(place_t)0;
    uint64_t total = range.total;
    if (params->top_k > 0) {
        const uint32_t k = (uint32_t)params->top_k;
        cut = find_cut(listed, range.before_kth, cut, &space->cut,
                       [=](mass_t upto) { return upto.count >= k; });
        total = range.before_kth.weight + listed_weight(listed, cut, space->partial_weight);
    }
    if (params->top_p < 1.0f) {
        const double goal = fmax((double)params->top_p * (double)total, 1.0); /* a token at least */
        cut = find_cut(listed, range.before, cut, &space->cut,
                       [=](mass_t upto) { return (double)upto.weight >= goal; });
    }
    return cut;
}

/* The winner among the listed tokens up to a place. */
SIMT_DEVICE winner_t draw_listed(const noise_source_t &source, const listed_t &listed, place_t cut,
                                 choose_space_t *space)
{
    float best = -INFINITY;
    for (uint32_t i = threadIdx.x; i < listed.n; i += TILE_THREADS) {
        const uint32_t token = listed.tokens[i];
        const float scaled = listed_scaled(listed, token);
        if (place_of(scaled, token) <= cut) {
            best = fmaxf(best, scaled + noise_estimate(noise_word(source, token)));
        }
    }
    const float worth = worth_computing(block_max(best, space->partial_max));
    winner_t winner = nobody();
    for (uint32_t i = threadIdx.x; i < listed.n; i += TILE_THREADS) {
        const uint32_t token = listed.tokens[i];
        const float scaled = listed_scaled(listed, token);
        if (place_of(scaled, token) <= cut &&
            scaled + noise_estimate(noise_word(source, token)) >= worth) {
            winner = better(winner, compute_exactly(source, scaled, token));
        }
    }
    return block_winner(winner, space->partial_winner);
}

SIMT_DEVICE uint32_t choose_drawn(const sample_job_t &job, uint32_t row, float max,
                                  choose_space_t *space)
{
    const k_sample_row_t *params = &job.args.params[row];
    winner_t winner = nobody();
    for (uint32_t i = (uint32_t)simt_lane(); i < job.tiles; i += SIMT_WARP) {
        winner = better(winner, job.winners[(size_t)row * job.tiles + i]);
    }
    winner = warp_winner(winner);
    if (selects(params)) {
        const range_t range = row_range(job, row, &space->range);
        const listed_t listed = {job.listed + row_start(job, row), job.n_listed[row],
                                 job.z + row_start(job, row), max, params->temperature};
        const place_t cut = row_cut(params, range, listed, space);
        const noise_source_t source = {params->seed, params->output_index};
        winner = better(winner, draw_listed(source, listed, cut, space));
    }
    return winner.token;
}

/* Nothing is possible: the lowest allowed token, or the best when the mask allows nothing. */
SIMT_DEVICE uint32_t choose_impossible(const sample_job_t &job, uint32_t row, standing_t *partial)
{
    const uint32_t *mask = job.args.params[row].mask;
    const float *logits = job.args.logits + row * job.args.logits_stride;
    standing_t best = 0;
    for (uint32_t t = threadIdx.x; t < job.args.vocab; t += TILE_THREADS) {
        const bool is_allowed = mask != nullptr && (mask[t / 32] >> t % 32 & 1) != 0;
        /* Above every logit, the lowest id first. */
        const standing_t standing = standing_of(is_allowed ? INFINITY : clean(logits[t]), t);
        best = standing > best ? standing : best;
    }
    return standing_token(block_best(best, partial));
}

static SIMT_KERNEL(TILE_THREADS, 1) sample_choose(sample_job_t job)
{
    SIMT_SHARED(choose_space_t, space, [1]);
    const uint32_t row = blockIdx.x;
    const k_sample_row_t *params = &job.args.params[row];
    simt_launch_next();
    simt_wait_previous();
    const standing_t best = row_best(job, row);
    const float max = standing_value(best);
    uint32_t token = standing_token(best);
    if (max == -INFINITY) {
        token = choose_impossible(job, row, space->partial_best);
    } else if (!is_greedy(params)) {
        token = choose_drawn(job, row, max, space);
    }
    if (threadIdx.x == 0) {
        job.args.out[row].chosen = {(int32_t)token, 0, 0.0f};
        job.args.out[row].n_top = 0;
        if (params->append_to != nullptr) {
            *params->append_to = (int32_t)token;
        }
    }
}

/* ---- host ------------------------------------------------------------------------------------ */

/* Lays the arrays of a job out from `at` on (or counts them when it is NULL); returns the bytes. */
static size_t lay_out(uint32_t rows, uint32_t vocab, void *at, sample_job_t *job)
{
    size_t bytes = 0;
    const auto take = [&](size_t n, size_t element) {
        void *array = at == nullptr ? nullptr : (char *)at + bytes;
        bytes += (n * element + 255) / 256 * 256;
        return array;
    };
    const size_t n_tiles = (size_t)rows * tiles_of(vocab);
    job->tiles = tiles_of(vocab);
    job->z = (float *)take(n_tiles * TILE, sizeof(float));
    job->listed = (uint32_t *)take(n_tiles * TILE, sizeof(uint32_t));
    job->n_listed = (uint32_t *)take(rows, sizeof(uint32_t));
    job->best = (standing_t *)take(n_tiles, sizeof(standing_t));
    job->winners = (winner_t *)take(n_tiles, sizeof(winner_t));
    job->counts = (uint32_t *)take((size_t)rows * BUCKETS, sizeof(uint32_t));
    job->weights = (uint64_t *)take((size_t)rows * BUCKETS, sizeof(uint64_t));
    job->report_scratch = take(k_cuda_report_scratch_bytes(rows, vocab), 1);
    return bytes;
}

size_t k_cuda_sample_scratch_bytes(uint32_t rows, uint32_t vocab)
{
    sample_job_t job;
    return lay_out(rows, vocab, nullptr, &job);
}

int k_cuda_sample(const k_cuda_launch_t *at, const k_sample_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    sample_job_t job;
    job.args = *args;
    if (lay_out(args->rows, args->vocab, at->scratch, &job) > at->scratch_bytes) {
        return cudaErrorInvalidValue;
    }
    simt_grid_t grid = {
        .grid = {tile_blocks(args->rows, job.tiles, at->multiprocessors), args->rows},
        .block = {TILE_THREADS},
        .stream = at->stream,
        .overlaps_previous = true};
    cudaError_t error = simt_launch(sample_adjust, grid, job);
    if (error == cudaSuccess) {
        error = simt_launch(sample_count, grid, job);
    }
    if (error == cudaSuccess) {
        error = simt_launch(sample_draw, grid, job);
    }
    if (error == cudaSuccess) {
        grid.grid = {args->rows};
        error = simt_launch(sample_choose, grid, job);
    }
    if (error != cudaSuccess) {
        return error;
    }
    const k_cuda_report_t report = {
        .logits = args->logits,
        .params = args->params,
        .targets = nullptr,
        .n_top = nullptr,
        .out = args->out,
        .rows = args->rows,
        .vocab = args->vocab,
        .logits_stride = args->logits_stride,
    };
    return k_cuda_report(at, &report, job.report_scratch);
}
