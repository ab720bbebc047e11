/* SPDX-License-Identifier: Apache-2.0 */
/* slice_masses: blocks count their tiles in shared memory, then add to the row's record. */
#include "kernels/cuda/k_cuda_adjust.h"
#include "kernels/cuda/sample/k_cuda_select.h"

static_assert((int)BUCKETS == K_CUT_VALUES, "a histogram has a bucket for each value of a digit");

/* What one round counts of a row. */
typedef struct masses_round {
    uint32_t prefix; /* the digits that are known */
    int shift;
    int bits;
    bool is_first;
    bool has_limit; /* what top_k drops does not count */
    uint32_t limit; /* below of the last that it keeps */
    uint32_t ties;  /* of which this slice has so many */
} masses_round_t;

/* What the round counts of a row, besides its digit's bits. */
SIMT_DEVICE masses_round_t round_of(const k_slice_masses_args_t &args, uint32_t row,
                                    masses_round_t round)
{
    const k_slice_cuts_t *cuts = &args.cuts[row];
    if (!round.is_first) {
        round.prefix = args.by_top_p ? cuts->top_p.below : cuts->top_k.below;
    }
    round.has_limit = args.by_top_p && args.params[row].top_k > 0;
    if (round.has_limit) {
        round.limit = cuts->top_k.below;
        round.ties = cuts->top_k.below != K_CUT_WHOLE ? cuts->top_k.ties : 0;
    }
    return round;
}

SIMT_DEVICE void count_below(const masses_round_t &round, uint32_t below, uint32_t n,
                             histogram_t *histogram)
{
    const uint32_t digits = below >> round.shift;
    if (round.is_first || digits >> round.bits == round.prefix) {
        const uint64_t weight = weight_of(-simt_bits_float(below));
        histogram_add(histogram, digits & ((1u << round.bits) - 1), n, n * weight);
    }
}

SIMT_DEVICE void add_to_record(const histogram_t *histogram, k_masses_t *record)
{
    for (uint32_t b = threadIdx.x; b < BUCKETS; b += TILE_THREADS) {
        const uint64_t weight = histogram_weight(histogram, b);
        if (histogram->count[b] != 0) {
            simt_atomic_add(&record->count[b], histogram->count[b]);
        }
        if (weight != 0) {
            simt_atomic_add(&record->weight[b], weight);
        }
    }
}

static SIMT_KERNEL(TILE_THREADS, 2)
    slice_masses(k_slice_masses_args_t args, uint32_t tiles, masses_round_t digit)
{
    SIMT_SHARED(histogram_t, histogram, [1]);
    const uint32_t row = blockIdx.y;
    simt_launch_next();
    simt_wait_previous();
    if (!is_cut_wanted(&args.params[row], &args.state[row], args.by_top_p)) {
        return;
    }
    const masses_round_t round = round_of(args, row, digit);
    histogram_clear(histogram);
    simt_sync_block();
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float scaled[TILE_HELD];
        tile_load(args.z + row * args.stride, args.tokens, tile, scaled);
        scale_held(&args.params[row], args.state[row].max_z, scaled);
        SIMT_UNROLL
        for (int i = 0; i < TILE_HELD; i++) {
            const uint32_t below = below_of(scaled[i]);
            if (scaled[i] > -INFINITY && !(round.has_limit && below >= round.limit)) {
                count_below(round, below, 1, histogram);
            }
        }
    }
    if (round.has_limit && round.ties > 0 && blockIdx.x == 0 && threadIdx.x == 0) {
        count_below(round, round.limit, round.ties, histogram);
    }
    simt_sync_block();
    add_to_record(histogram, &args.out[row]);
}

int k_cuda_slice_masses(const k_cuda_launch_t *at, const k_slice_masses_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    const uint32_t tiles = tiles_of(args->tokens);
    masses_round_t digit = {};
    digit.shift = k_cut_shift(args->round);
    digit.bits = k_cut_bits(args->round);
    digit.is_first = args->round == 0;
    const cudaError_t error =
        cudaMemsetAsync(args->out, 0, args->rows * sizeof(*args->out), at->stream);
    return error != cudaSuccess
               ? error
               : simt_launch(
                     slice_masses,
                     {.grid = {tile_blocks(args->rows, tiles, at->multiprocessors), args->rows},
                      .block = {TILE_THREADS},
                      .stream = at->stream},
                     *args, tiles, digit);
}
