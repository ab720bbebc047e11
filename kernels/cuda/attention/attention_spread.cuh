/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention_spread: few rows of few sequences, whose items would leave most multiprocessors idle.
 *
 * An item's segment is spread over blocks in two kernels. The first scores a chunk a block and leaves
 * masked scores in scratch. The second has a slice of the head dims a block: it turns all of the
 * segment's scores into weights, while V of the slice, on its way since before the scores were
 * there, arrives; then sums it. Maxima, weights and products are formed in the order of
 * attention_mma, which gives the same bits.
 */
#pragma once

#include "kernels/cuda/attention/attention_mma.cuh"

constexpr int SPREAD_ROWS = 16;
constexpr int SPREAD_THREADS = MMA_GROUP_THREADS;
constexpr int SPREAD_CHUNK = 128;
constexpr int SPREAD_CHUNKS = K_CUDA_ATTENTION_SEGMENT / SPREAD_CHUNK;
constexpr int SPREAD_TILES = SPREAD_CHUNK / MMA_QUARTERS / 8; /* of a warp's scores of a chunk */
constexpr int SPREAD_SLICE = 32;                              /* head dims */

/* The segment of an item, in chunks. */
typedef struct spread_range {
    uint32_t segment; /* first token */
    int first;        /* chunk */
    int last;
} spread_range_t;

SIMT_DEVICE spread_range_t spread_range(const attention_item_t &item)
{
    spread_range_t range;
    range.segment = item.begin / K_CUDA_ATTENTION_SEGMENT * K_CUDA_ATTENTION_SEGMENT;
    range.first = (int)((item.begin - range.segment) / SPREAD_CHUNK);
    range.last = (int)((item.end - range.segment + SPREAD_CHUNK - 1) / SPREAD_CHUNK);
    return range;
}

/* [begin, this) were there before the step, the other tokens are of the kernel in front. */
SIMT_DEVICE uint32_t spread_old_end(const attention_item_t &item)
{
    return item.seq.start < item.end ? item.seq.start : item.end;
}

/* A lane whose first row is none of the item's has scores that nobody looks at: they stay zero. */
SIMT_DEVICE bool spread_has_row(const attention_item_t &item)
{
    return item.first + (uint32_t)simt_lane() / 4 < item.packed;
}

/* This lane's four scores of tile n of its warp's quarter. */
SIMT_DEVICE float4 *spread_scores_at(const attention_params_t &p, uint32_t item, int chunk, int n)
{
    const size_t tile =
        (((size_t)item * SPREAD_CHUNKS + chunk) * MMA_QUARTERS + mma_quarter()) * SPREAD_TILES + n;
    return p.spread_scores + tile * SIMT_WARP + simt_lane();
}

/* ---- scores ------------------------------------------------------------------------------------ */

template <int D> struct spread_score_shared {
    uint8_t k[attention_shape<D>::tile_bytes];
    uint8_t q[attention_shape<D>::panels * SPREAD_ROWS * 128];
    const char *blocks[2][MMA_MAX_BLOCKS];
};

/* K of the chunk's new tokens, which the kernel in front wrote; all else has come. */
template <int D, class T>
SIMT_DEVICE void spread_load_new_keys(const attention_params_t &p, const attention_item_t &item,
                                      uint32_t first, spread_score_shared<D> &shared)
{
    constexpr uint32_t units = attention_tile<D, T>::units;
    const char *const *blocks = shared.blocks[first / K_CUDA_ATTENTION_SEGMENT % 2];
    const uint32_t from = item.seq.start > first ? item.seq.start : first;
    const uint32_t until = first + SPREAD_CHUNK < item.end ? first + SPREAD_CHUNK : item.end;
    for (uint32_t i = threadIdx.x; from + i / units < until; i += SPREAD_THREADS) {
        const uint32_t token = from + i / units;
        const char *block = blocks[token % K_CUDA_ATTENTION_SEGMENT >> p.block_shift];
        simt_cp_async<16>(
            shared.k + attention_tile_at(SPREAD_CHUNK, (int)(token - first), (int)(i % units)),
            block + (token & (p.kv.block_tokens - 1)) * p.kv.token_stride + i % units * 16);
    }
}

/* K of earlier steps' tokens comes while the kernel in front still runs. */
template <int D, class T>
SIMT_DEVICE void spread_score(const attention_params_t &p, const attention_item_t &item,
                              uint32_t first, float (&score)[1][SPREAD_TILES][4],
                              spread_score_shared<D> &shared)
{
    const uint32_t segment = first / K_CUDA_ATTENTION_SEGMENT;
    attention_item_t old = item;
    old.end = spread_old_end(item);
    mma_load_blocks(p, item, segment, shared.blocks[segment % 2]);
    simt_sync_block();
    mma_load_tile<D, SPREAD_THREADS, T>(p, old, shared.blocks, first, 0, shared.k);
    simt_cp_async_commit();
    const bool has_new = first + SPREAD_CHUNK > old.end;
    if (has_new) { /* zeroes where the new tokens go, before these and q come together */
        simt_cp_async_wait<0>();
        simt_sync_block();
    }
    simt_wait_previous();
    attention_load_q<D, T>(p, item, shared.q, SPREAD_ROWS, 0, SPREAD_ROWS, (int)threadIdx.x,
                           SPREAD_THREADS);
    if (has_new) {
        spread_load_new_keys<D, T>(p, item, first, shared);
    }
    simt_cp_async_commit();
    simt_cp_async_wait<0>();
    simt_sync_block();
    mma_scores<D, 1, T>(score, shared.q, SPREAD_ROWS, 0, shared.k);
}

/* Block: item blockIdx.x, chunk blockIdx.y of its segment. */
template <int D, class T>
static SIMT_KERNEL(SPREAD_THREADS, 3) attention_spread_scores(const attention_params_t p)
{
    SIMT_DYN_SHARED(uint8_t, base);
    attention_cursor_t cursor = {};
    attention_item_t item;
    simt_launch_next();
    const bool has_item = attention_find_item(p, SPREAD_CHUNK, blockIdx.x, &cursor, &item);
    const spread_range_t range = has_item ? spread_range(item) : spread_range_t{};
    const int chunk = (int)blockIdx.y;
    if (chunk < range.first || chunk >= range.last) {
        simt_wait_previous();
        return;
    }
    const uint32_t first = range.segment + (uint32_t)chunk * SPREAD_CHUNK;
    float score[1][SPREAD_TILES][4];
    spread_score<D, T>(p, item, first, score, *reinterpret_cast<spread_score_shared<D> *>(base));
    const uint32_t token =
        first + (uint32_t)(mma_quarter() * (SPREAD_CHUNK / MMA_QUARTERS) + simt_lane() % 4 * 2);
    const bool sees_all = attention_sees_all(p, item, first, SPREAD_CHUNK);
    SIMT_UNROLL
    for (int n = 0; n < SPREAD_TILES; n++) {
        float(&s)[4] = score[0][n];
        attention_cap(p, s);
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            const uint32_t row = (uint32_t)(i / 2 * 8 + simt_lane() / 4);
            if (!sees_all) {
                s[i] = attention_masked(s[i], attention_position(p, item, row),
                                        token + (uint32_t)(n * 8 + i % 2), p.window);
            }
        }
        if (spread_has_row(item)) {
            *spread_scores_at(p, blockIdx.x, chunk, n) = make_float4(s[0], s[1], s[2], s[3]);
        }
    }
}

/* ---- values ------------------------------------------------------------------------------------ */

struct spread_value_shared {
    uint8_t v[K_CUDA_ATTENTION_SEGMENT * SPREAD_SLICE * 2];
    uint8_t weights[SPREAD_CHUNKS][SPREAD_CHUNK / 64 * SPREAD_ROWS * 128];
    float maxima[SPREAD_CHUNKS][MMA_QUARTERS][SPREAD_ROWS];
    union {
        const char *blocks[MMA_MAX_BLOCKS];    /* until V has been asked for */
        float sums[MMA_QUARTERS][SPREAD_ROWS]; /* once the maxima are there */
    };
};
static_assert(sizeof(spread_value_shared) <= SIMT_LEAST_SHARED_BYTES);

/* 16-byte unit u of a token's 64 bytes: eight that ldmatrix reads together meet no bank twice. */
SIMT_DEVICE uint32_t spread_value_at(uint32_t token, uint32_t u)
{
    return token * (SPREAD_SLICE * 2) + (u ^ token / 2 % 4) * 16;
}

/* Begins to load V of the slice, of tokens [from, until) of the segment; zeroes for those out of sight. */
SIMT_DEVICE void spread_load_values(const attention_params_t &p, const attention_item_t &item,
                                    const spread_range_t &range, uint32_t slice, uint32_t from,
                                    uint32_t until, spread_value_shared &shared)
{
    const uint32_t units = SPREAD_SLICE / 8;
    for (uint32_t i = from * units + threadIdx.x; i < until * units; i += SPREAD_THREADS) {
        const uint32_t token = range.segment + i / units;
        const bool is_seen = token >= item.low && token < item.end;
        const char *at = static_cast<const char *>(p.kv.base);
        if (is_seen) {
            at = shared.blocks[i / units >> p.block_shift] +
                 (token & (p.kv.block_tokens - 1)) * p.kv.token_stride + p.kv.part_stride +
                 (slice * SPREAD_SLICE + i % units * 8) * 2;
        }
        simt_cp_async_zfill<16>(shared.v + spread_value_at(i / units, i % units), at,
                                is_seen ? 16 : 0);
    }
    simt_cp_async_commit();
}

/* Where in the segment the walk's tokens begin and end, and the new ones among them begin. */
struct spread_tokens {
    uint32_t first;
    uint32_t first_new;
    uint32_t last;
};

SIMT_DEVICE spread_tokens spread_tokens_of(const attention_item_t &item,
                                           const spread_range_t &range)
{
    spread_tokens of = {(uint32_t)range.first * SPREAD_CHUNK, 0,
                        (uint32_t)range.last * SPREAD_CHUNK};
    const uint32_t old_end = spread_old_end(item);
    of.first_new = old_end > range.segment ? old_end - range.segment : 0;
    of.first_new = of.first_new > of.first ? of.first_new : of.first;
    return of;
}

/* A warp's scores of the segment, and what follows from them for rows lane / 4 and + 8. */
struct spread_state {
    float4 score[SPREAD_CHUNKS][SPREAD_TILES];
    float factor[SPREAD_CHUNKS][2]; /* of o before the chunk */
    attention_running_t segment[2];
};

SIMT_DEVICE void spread_load_scores(const attention_params_t &p, uint32_t item,
                                    const spread_range_t &range, bool has_row, spread_state &state)
{
    SIMT_UNROLL
    for (int c = 0; c < SPREAD_CHUNKS; c++) {
        SIMT_UNROLL
        for (int n = 0; n < SPREAD_TILES; n++) {
            if (c >= range.first && c < range.last && has_row) {
                state.score[c][n] = *spread_scores_at(p, item, c, n);
            }
        }
    }
}

/* Each chunk's maxima of this warp's quarter. */
SIMT_DEVICE void spread_maxima(const spread_range_t &range, const spread_state &state,
                               spread_value_shared &shared)
{
    SIMT_UNROLL
    for (int c = 0; c < SPREAD_CHUNKS; c++) {
        if (c < range.first || c >= range.last) {
            continue;
        }
        float maxima[2] = {-INFINITY, -INFINITY};
        SIMT_UNROLL
        for (int n = 0; n < SPREAD_TILES; n++) {
            const float4 s = state.score[c][n];
            maxima[0] = fmaxf(maxima[0], fmaxf(s.x, s.y));
            maxima[1] = fmaxf(maxima[1], fmaxf(s.z, s.w));
        }
        simt_warp_max_n(maxima, 4);
        if (simt_lane() % 4 == 0) {
            shared.maxima[c][mma_quarter()][simt_lane() / 4] = maxima[0];
            shared.maxima[c][mma_quarter()][simt_lane() / 4 + 8] = maxima[1];
        }
    }
}

/* A row's two neighbours to weights; returns them as the tensor cores take them. */
template <class T>
SIMT_DEVICE uint32_t spread_pair(const attention_params_t &p, float a, float b, float max,
                                 float *sum)
{
    const float lo = attention_weight(a, max, p.scale_log2);
    const float hi = attention_weight(b, max, p.scale_log2);
    *sum += lo;
    *sum += hi;
    return attention_pack<T>(lo, hi);
}

/* Scores to weights, in shared memory for all warps. */
template <class T>
SIMT_DEVICE void spread_weights(const attention_params_t &p, const spread_range_t &range,
                                spread_state &state, spread_value_shared &shared)
{
    const int unit = mma_quarter() * SPREAD_TILES;
    state.segment[0] = state.segment[1] = {-INFINITY, 0};
    SIMT_UNROLL
    for (int c = 0; c < SPREAD_CHUNKS; c++) {
        if (c < range.first || c >= range.last) {
            continue;
        }
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const int row = half * 8 + simt_lane() / 4;
            attention_running_t *running = &state.segment[half];
            const float max =
                fmaxf(running->max, mma_max_of_warps<SPREAD_ROWS>(shared.maxima[c], row));
            float sum = 0;
            SIMT_UNROLL
            for (int n = 0; n < SPREAD_TILES; n++) {
                const float4 s = state.score[c][n];
                *reinterpret_cast<uint32_t *>(shared.weights[c] +
                                              attention_tile_at(SPREAD_ROWS, row, unit + n) +
                                              simt_lane() % 4 * 4) =
                    spread_pair<T>(p, half == 0 ? s.x : s.z, half == 0 ? s.y : s.w, max, &sum);
            }
            state.factor[c][half] = attention_factor(running->max, max, p.scale_log2);
            running->sum = fmaf(running->sum, state.factor[c][half], sum);
            running->max = max;
        }
    }
    float sums[2] = {state.segment[0].sum, state.segment[1].sum};
    simt_warp_sum_n(sums, 4);
    if (simt_lane() % 4 == 0) {
        shared.sums[mma_quarter()][simt_lane() / 4] = sums[0];
        shared.sums[mma_quarter()][simt_lane() / 4 + 8] = sums[1];
    }
}

/* o of this warp's 8 head dims. */
template <class T>
SIMT_DEVICE void spread_sum(const spread_range_t &range, const spread_state &state,
                            const spread_value_shared &shared, float (&o)[4])
{
    SIMT_UNROLL
    for (int c = 0; c < SPREAD_CHUNKS; c++) {
        if (c < range.first || c >= range.last) {
            continue;
        }
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            o[i] *= state.factor[c][i / 2];
        }
        SIMT_UNROLL
        for (int step = 0; step < SPREAD_CHUNK / 16; step++) {
            const uint32_t token = (uint32_t)(c * SPREAD_CHUNK + step * 16 + simt_lane() % 16);
            uint32_t a[4], b[2];
            simt_ldmatrix_x4(a, mma_a_row(shared.weights[c], SPREAD_ROWS, 0, step * 2));
            simt_ldmatrix_x2_trans(b, shared.v + spread_value_at(token, (uint32_t)mma_quarter()));
            attention_mma<T>(o, a, b);
        }
    }
}

/* The segment is all there is of the row, or one of its parts. */
template <int D>
SIMT_DEVICE void spread_store(const attention_params_t &p, const attention_item_t &item,
                              uint32_t slice, const spread_state &state,
                              const spread_value_shared &shared, const float (&o)[4])
{
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        const uint32_t row = (uint32_t)(half * 8 + simt_lane() / 4);
        const float sum = mma_sum_of_warps<SPREAD_ROWS>(shared.sums, (int)row);
        attention_running_t all = {-INFINITY, 0};
        float old, added;
        attention_merge(&all, {state.segment[half].max, sum}, p.scale_log2, &old, &added);
        const float lo = attention_merged(0, o[half * 2], old, added);
        const float hi = attention_merged(0, o[half * 2 + 1], old, added);
        const uint32_t at =
            slice * SPREAD_SLICE + (uint32_t)(mma_quarter() * 8) + (uint32_t)(simt_lane() % 4 * 2);
        if (item.first + row >= item.packed) {
            continue;
        }
        if (item.unit == ATTENTION_NO_UNIT) {
            const float inverse = attention_finish(p, attention_head(p, item, row), all);
            *reinterpret_cast<uint32_t *>(p.o + attention_row_at(p, item, row, p.o_stride) + at) =
                simt_pack_bf16(lo * inverse, hi * inverse);
            continue;
        }
        const size_t unit = attention_partial_at(p, item, row);
        *reinterpret_cast<float2 *>(p.partial_o + unit * D + at) = make_float2(lo, hi);
        if (at == 0) {
            p.partial_sum[unit] = make_float2(all.max, all.sum);
        }
    }
}

/* Block: item blockIdx.x, 32 head dims blockIdx.y. */
template <int D, class T>
static SIMT_KERNEL(SPREAD_THREADS, 1) attention_spread_values(const attention_params_t p)
{
    SIMT_DYN_SHARED(uint8_t, base);
    spread_value_shared &shared = *reinterpret_cast<spread_value_shared *>(base);
    attention_cursor_t cursor = {};
    attention_item_t item;
    spread_state state = {};
    float o[4] = {};
    simt_launch_next();
    const bool has_item = attention_find_item(p, SPREAD_CHUNK, blockIdx.x, &cursor, &item);
    if (!has_item) {
        simt_wait_previous();
        return;
    }
    const spread_range_t range = spread_range(item);
    const spread_tokens tokens = spread_tokens_of(item, range);
    mma_load_blocks(p, item, range.segment / K_CUDA_ATTENTION_SEGMENT, shared.blocks);
    simt_sync_block();
    spread_load_values(p, item, range, blockIdx.y, tokens.first, tokens.first_new, shared);
    simt_wait_previous(); /* the scores, and the new tokens */
    spread_load_values(p, item, range, blockIdx.y, tokens.first_new, tokens.last, shared);
    spread_load_scores(p, blockIdx.x, range, spread_has_row(item), state);
    spread_maxima(range, state, shared);
    simt_sync_block();
    spread_weights<T>(p, range, state, shared);
    simt_cp_async_wait<0>();
    simt_sync_block();
    spread_sum<T>(range, state, shared, o);
    spread_store<D>(p, item, blockIdx.y, state, shared, o);
}

/* ---- host -------------------------------------------------------------------------------------- */

template <int D, class T>
static inline cudaError_t attention_spread_launch(const attention_launch_t &launch)
{
    const cudaError_t error = simt_launch((attention_spread_scores<D, T>),
                                          {.grid = {launch.items, SPREAD_CHUNKS},
                                           .block = {SPREAD_THREADS},
                                           .shared_bytes = sizeof(spread_score_shared<D>),
                                           .stream = launch.stream,
                                           .overlaps_previous = true},
                                          launch.params);
    if (error != cudaSuccess) {
        return error;
    }
    return simt_launch((attention_spread_values<D, T>),
                       {.grid = {launch.items, D / SPREAD_SLICE},
                        .block = {SPREAD_THREADS},
                        .shared_bytes = sizeof(spread_value_shared),
                        .stream = launch.stream,
                        .overlaps_previous = true},
                       launch.params);
}
