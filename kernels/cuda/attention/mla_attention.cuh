/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mla_attention: latent attention by mma.sync and cp.async (mla_attention.h), for every device.
 *
 * A block of 8 warps computes one item at a time, MT tiles of 16 packed rows. Chunks come through a
 * ring of tiles. Of a chunk each warp scores 8 tokens (of two tiles of rows: 16, for one of them), then,
 * with the weights shared, sums an eighth of the latents for all rows.
 */
#pragma once

#include "kernels/cuda/attention/attention_mma.cuh"
#include "kernels/cuda/attention/mla_attention.h"

enum {
    MLA_CHUNK = 64,
    MLA_WARPS = 8,
    MLA_THREADS = MLA_WARPS * SIMT_WARP,
    MLA_PARTS = MLA_CHUNK / 8, /* of the sum of weights */
    MLA_MAX_GROUP = 32,
    MLA_MAX_DIM = 576,
    MLA_MAX_LATENT = 512,
    MLA_SMALL_DIM = 128, /* of tests' models */
};

/* What is known of the cache beside attention_params_t: elements of a token, those that are summed. */
typedef struct mla_params {
    attention_params_t all;
    uint32_t dim;
    uint32_t latent;
} mla_params_t;

/* PK: panels of 64 elements of a token; PV: those that hold latents. */
template <int PK, int PV, int MT> struct mla_shape {
    static constexpr int rows = MT * 16;
    static constexpr int tile_bytes = PK * MLA_CHUNK * 128;
    static constexpr int q_bytes = PK * rows * 128;
    static constexpr int weight_bytes = rows * 128;
    static constexpr int fixed_bytes =
        q_bytes + weight_bytes + 2 * MMA_MAX_BLOCKS * 8 + 2 * MLA_PARTS * rows * 4;
    static constexpr int value_tiles = PV; /* of 8 latents, a warp */
};

/* Steps of q whose fragments stay in registers, as many as there is room for. */
template <int PK, int MT> constexpr int mla_held = MT > 1 ? 0 : PK * 4 < 20 ? PK * 4 : 20;

template <int PK, int PV, int MT> struct mla_state {
    uint32_t q[mla_held<PK, MT> > 0 ? mla_held<PK, MT> : 1][4];
    float score[MT][4]; /* MT tiles of 8 tokens, of one tile of rows */
    float part[MT][2];  /* of the sums: this lane's */
    float own_max[2];   /* of the rows that this warp scores: max of these */
    float o[MT][PV][4]; /* of this segment */
    float total[MT][PV][4];
    float max[MT][2]; /* of rows lane / 4 and + 8 in this segment */
    attention_running_t all[MT][2];
};

template <int ROWS> struct mla_shared {
    uint8_t *ring;
    uint8_t *q;
    uint8_t *weights;
    const char *(*blocks)[MMA_MAX_BLOCKS]; /* [2], by the segment's parity */
    float (*maxima)[ROWS];                 /* [MLA_PARTS] */
    float (*sums)[ROWS];                   /* [MLA_PARTS] */
};

template <int PK, int PV, int MT>
SIMT_DEVICE mla_shared<MT * 16> mla_carve(uint8_t *base, int stages)
{
    typedef mla_shape<PK, PV, MT> shape;
    mla_shared<MT * 16> s;
    s.ring = base;
    s.q = s.ring + stages * shape::tile_bytes;
    s.weights = s.q + shape::q_bytes;
    uint8_t *blocks = s.weights + shape::weight_bytes;
    s.blocks = reinterpret_cast<const char *(*)[MMA_MAX_BLOCKS]>(blocks);
    s.maxima = reinterpret_cast<float(*)[MT * 16]>(blocks + 2 * MMA_MAX_BLOCKS * 8);
    s.sums = s.maxima + MLA_PARTS;
    return s;
}

/* ---- loading -------------------------------------------------------------------------------- */

/* An E4M3 number, which bf16 holds: tiles are widened as they are read. */
struct mla_byte {
    uint8_t code;
};

SIMT_DEVICE uint4 mla_widen(const char *from)
{
    const uint2 codes = *reinterpret_cast<const uint2 *>(from);
    const uint16_t pairs[4] = {(uint16_t)codes.x, (uint16_t)(codes.x >> 16), (uint16_t)codes.y,
                               (uint16_t)(codes.y >> 16)};
    uint32_t wide[4];
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
        const float2 v = simt_unpack_e4m3(pairs[i]);
        wide[i] = simt_pack_bf16(v.x, v.y);
    }
    return make_uint4(wide[0], wide[1], wide[2], wide[3]);
}

/* 8 elements of a tile; zeroes when the token is not to be seen. */
template <class T> SIMT_DEVICE void mla_load_unit(uint8_t *to, const char *from, bool is_seen)
{
    if constexpr (sizeof(T) == 1) {
        *reinterpret_cast<uint4 *>(to) = is_seen ? mla_widen(from) : make_uint4(0, 0, 0, 0);
    } else {
        mma_load_unit<T>(to, from, is_seen);
    }
}

/* The tile of q; zeroes behind the last row and the last element. */
template <int PK, int MT, class T>
SIMT_DEVICE void mla_load_q(const mla_params_t &p, const attention_item_t &item, uint8_t *tile)
{
    constexpr int units = PK * 8;
    for (int i = (int)threadIdx.x; i < MT * 16 * units; i += MLA_THREADS) {
        const uint32_t row = (uint32_t)(i / units);
        const int unit = i % units;
        const bool is_there = item.first + row < item.packed && (uint32_t)unit * 8 < p.dim;
        const __nv_bfloat16 *from = p.all.q;
        if (is_there) {
            from += (item.seq.row + (item.first + row) / p.all.group) * p.all.q_stride +
                    (size_t)attention_head(p.all, item, row) * p.dim + unit * 8;
        }
        uint4 v = is_there ? simt_load_16(from) : make_uint4(0, 0, 0, 0);
        v = make_uint4(attention_pack_q<T>(v.x), attention_pack_q<T>(v.y), attention_pack_q<T>(v.z),
                       attention_pack_q<T>(v.w));
        *reinterpret_cast<uint4 *>(tile + attention_tile_at(MT * 16, (int)row, unit)) = v;
    }
}

/*
 * The chunk that begins at token `first`; zeroes for what is not to be seen. A warp has a few tokens, its
 * lanes have units of 8 elements of each.
 */
template <int PK, class T>
SIMT_DEVICE void mla_load_tile(const mla_params_t &p, const attention_item_t &item,
                               const char *const (*blocks)[MMA_MAX_BLOCKS], uint32_t first,
                               uint8_t *tile)
{
    constexpr int units = PK * 8;
    constexpr int tokens = MLA_CHUNK / MLA_WARPS;
    const char *const *table = blocks[first / K_CUDA_ATTENTION_SEGMENT % 2];
    const uint32_t in_segment = first % K_CUDA_ATTENTION_SEGMENT;
    const uint32_t mask = p.all.kv.block_tokens - 1;
    const int warp_token = simt_warp() * tokens;
    SIMT_UNROLL
    for (int j = 0; j < tokens; j++) {
        const uint32_t t = (uint32_t)(warp_token + j);
        const uint32_t token = first + t;
        const bool is_seen = token >= item.low && token < item.end;
        const char *from = static_cast<const char *>(p.all.kv.base);
        if (is_seen) {
            from = table[(in_segment + t) >> p.all.block_shift] +
                   (token & mask) * p.all.kv.token_stride;
        }
        SIMT_UNROLL
        for (int i = 0; i < units; i += SIMT_WARP) {
            const int unit = i + simt_lane();
            const bool has = is_seen && (uint32_t)unit * 8 < p.dim;
            if (i + SIMT_WARP <= units || unit < units) {
                mla_load_unit<T>(tile + attention_tile_at(MLA_CHUNK, (int)t, unit),
                                 from + (has ? unit * 8 * (int)sizeof(T) : 0), has);
            }
        }
    }
}

typedef struct mla_ring {
    int stages;
    int slot;         /* of the tile to be used next */
    uint32_t loading; /* first token of the chunk to be loaded next */
    int loading_slot;
} mla_ring_t;

/* Starts the next tile, if the item has one; a group of copies in any case. */
template <int PK, int PV, int MT, class T>
SIMT_DEVICE void mla_ring_load(const mla_params_t &p, const attention_item_t &item,
                               const mla_shared<MT * 16> &shared, mla_ring_t *ring)
{
    if (ring->loading < item.end) {
        mla_load_tile<PK, T>(p, item, shared.blocks, ring->loading,
                             shared.ring + ring->loading_slot * mla_shape<PK, PV, MT>::tile_bytes);
        ring->loading += MLA_CHUNK;
        ring->loading_slot = ring->loading_slot + 1 == ring->stages ? 0 : ring->loading_slot + 1;
    }
    simt_cp_async_commit();
}

/* ---- computing ------------------------------------------------------------------------------- */

/* The tile of rows whose scores are this warp's, and its first part of the chunk's tokens. */
template <int MT> SIMT_DEVICE int mla_row_tile(void)
{
    return MT == 1 ? 0 : simt_warp() / (MLA_WARPS / MT);
}

template <int MT> SIMT_DEVICE int mla_first_part(void)
{
    return simt_warp() % (MLA_WARPS / MT) * MT;
}

/* Row `half` of this lane among those that it scores. */
template <int MT> SIMT_DEVICE int mla_own_row(int half)
{
    return mla_row_tile<MT>() * 16 + half * 8 + simt_lane() / 4;
}

/* The fragments of one step of this warp's tile of q. */
template <int MT> SIMT_DEVICE void mla_fragment(const uint8_t *q, int step, uint32_t (&a)[4])
{
    simt_ldmatrix_x4(a, mma_a_row(q, MT * 16, mla_row_tile<MT>() * 16, step * 2));
}

template <int PK, int PV, int MT>
SIMT_DEVICE void mla_hold_q(mla_state<PK, PV, MT> &state, const uint8_t *q)
{
    SIMT_UNROLL
    for (int step = 0; step < mla_held<PK, MT>; step++) {
        mla_fragment<MT>(q, step, state.q[step]);
    }
}

template <int PK, int PV, int MT, class T>
SIMT_DEVICE void mla_scores(mla_state<PK, PV, MT> &state, const uint8_t *q, const uint8_t *tile)
{
    const int token = mla_first_part<MT>() * 8 + simt_lane() % 8;
    float chains[2][MT][4] = {};
    SIMT_UNROLL
    for (int step = 0; step < PK * 4; step += 2) {
        uint32_t a[2][4], b[MT][4];
        SIMT_UNROLL
        for (int i = 0; i < 2; i++) {
            if (step + i < mla_held<PK, MT>) {
                a[i][0] = state.q[step + i][0], a[i][1] = state.q[step + i][1];
                a[i][2] = state.q[step + i][2], a[i][3] = state.q[step + i][3];
            } else {
                mla_fragment<MT>(q, step + i, a[i]);
            }
        }
        SIMT_UNROLL
        for (int n = 0; n < MT; n++) {
            simt_ldmatrix_x4(b[n], tile + attention_tile_at(MLA_CHUNK, token + n * 8,
                                                            step * 2 + simt_lane() / 8));
        }
        SIMT_UNROLL
        for (int n = 0; n < MT; n++) {
            attention_mma<T>(chains[0][n], a[0], {b[n][0], b[n][1]});
            attention_mma<T>(chains[1][n], a[1], {b[n][2], b[n][3]});
        }
    }
    SIMT_UNROLL
    for (int i = 0; i < MT * 4; i++) {
        state.score[i / 4][i % 4] = chains[0][i / 4][i % 4] + chains[1][i / 4][i % 4];
    }
}

/* Masks the scores and tells the other warps this one's maxima. */
template <int PK, int PV, int MT>
SIMT_DEVICE void mla_maxima(const mla_params_t &p, const attention_item_t &item, uint32_t first,
                            mla_state<PK, PV, MT> &state, mla_shared<MT * 16> &shared)
{
    const uint32_t token = first + (uint32_t)(mla_first_part<MT>() * 8 + simt_lane() % 4 * 2);
    const bool sees_all = attention_sees_all(p.all, item, first, MLA_CHUNK);
    float maxima[2];
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        const uint32_t position = attention_position(p.all, item, (uint32_t)mla_own_row<MT>(half));
        maxima[half] = -INFINITY;
        SIMT_UNROLL
        for (int n = 0; n < MT; n++) {
            SIMT_UNROLL
            for (int i = 0; i < 2; i++) {
                float &score = state.score[n][half * 2 + i];
                if (!sees_all) {
                    score = attention_masked(score, position, token + (uint32_t)(n * 8 + i),
                                             p.all.window);
                }
                maxima[half] = fmaxf(maxima[half], score);
            }
        }
    }
    simt_warp_max_n(maxima, 4);
    if (simt_lane() % 4 == 0) {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            shared.maxima[mla_first_part<MT>() / MT][mla_own_row<MT>(half)] = maxima[half];
        }
    }
}

/* Row `row`'s maximum, from `max` on. */
template <int MT>
SIMT_DEVICE float mla_max_of_warps(const float (*maxima)[MT * 16], int row, float max)
{
    SIMT_UNROLL
    for (int i = 0; i < MLA_WARPS / MT; i++) {
        max = fmaxf(max, maxima[i][row]);
    }
    return max;
}

/* All rows' maxima move to those of the chunk, and o with them. */
template <int PK, int PV, int MT>
SIMT_DEVICE void mla_move_maxima(const mla_params_t &p, mla_state<PK, PV, MT> &state,
                                 const mla_shared<MT * 16> &shared)
{
    SIMT_UNROLL
    for (int m = 0; m < MT; m++) {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const int row = m * 16 + half * 8 + simt_lane() / 4;
            const float max = mla_max_of_warps<MT>(shared.maxima, row, state.max[m][half]);
            const float factor = attention_factor(state.max[m][half], max, p.all.scale_log2);
            state.max[m][half] = max;
            SIMT_UNROLL
            for (int n = 0; n < PV; n++) {
                state.o[m][n][half * 2] *= factor;
                state.o[m][n][half * 2 + 1] *= factor;
            }
        }
    }
}

/* This warp's scores to weights, in shared memory for all warps; their sums move with the maxima. */
template <int PK, int PV, int MT, class T>
SIMT_DEVICE void mla_weights(const mla_params_t &p, mla_state<PK, PV, MT> &state,
                             mla_shared<MT * 16> &shared)
{
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        const int row = mla_own_row<MT>(half);
        const float max = mla_max_of_warps<MT>(shared.maxima, row, state.own_max[half]);
        const float factor = attention_factor(state.own_max[half], max, p.all.scale_log2);
        state.own_max[half] = max;
        SIMT_UNROLL
        for (int n = 0; n < MT; n++) {
            const float lo = attention_weight(state.score[n][half * 2], max, p.all.scale_log2);
            const float hi = attention_weight(state.score[n][half * 2 + 1], max, p.all.scale_log2);
            state.part[n][half] = fmaf(state.part[n][half], factor, lo + hi);
            uint8_t *to =
                shared.weights + attention_tile_at(MT * 16, row, mla_first_part<MT>() + n);
            *reinterpret_cast<uint32_t *>(to + simt_lane() % 4 * 4) = attention_pack<T>(lo, hi);
        }
    }
}

/* o += weights · latents for this warp's PV tiles of 8 latents. */
template <int PK, int PV, int MT, class T>
SIMT_DEVICE void mla_values(mla_state<PK, PV, MT> &state, const uint8_t *weights,
                            const uint8_t *tile)
{
    static_assert(PV % 2 == 0);
    const int first = simt_warp() * PV;
    SIMT_UNROLL
    for (int step = 0; step < MLA_CHUNK / 16; step++) {
        uint32_t a[MT][4];
        SIMT_UNROLL
        for (int m = 0; m < MT; m++) {
            simt_ldmatrix_x4(a[m], mma_a_row(weights, MT * 16, m * 16, step * 2));
        }
        SIMT_UNROLL
        for (int n = 0; n < PV; n += 2) {
            uint32_t b[4];
            simt_ldmatrix_x4_trans(b, mma_a_row(tile, MLA_CHUNK, step * 16, first + n));
            SIMT_UNROLL
            for (int m = 0; m < MT; m++) {
                attention_mma<T>(state.o[m][n], a[m], {b[0], b[1]});
                attention_mma<T>(state.o[m][n + 1], a[m], {b[2], b[3]});
            }
        }
    }
}

template <int PK, int PV, int MT>
SIMT_DEVICE void mla_share_sums(mla_state<PK, PV, MT> &state, mla_shared<MT * 16> &shared)
{
    float sums[MT * 2];
    SIMT_UNROLL
    for (int i = 0; i < MT * 2; i++) {
        sums[i] = state.part[i / 2][i % 2];
    }
    simt_warp_sum_n(sums, 4);
    if (simt_lane() % 4 == 0) {
        SIMT_UNROLL
        for (int i = 0; i < MT * 2; i++) {
            shared.sums[mla_first_part<MT>() + i / 2][mla_own_row<MT>(i % 2)] = sums[i];
        }
    }
}

template <int ROWS> SIMT_DEVICE float mla_sum_of_parts(const float (*sums)[ROWS], int row)
{
    return ((sums[0][row] + sums[1][row]) + (sums[2][row] + sums[3][row])) +
           ((sums[4][row] + sums[5][row]) + (sums[6][row] + sums[7][row]));
}

template <int PK, int PV, int MT> SIMT_DEVICE void mla_begin_segment(mla_state<PK, PV, MT> &state)
{
    SIMT_UNROLL
    for (int m = 0; m < MT; m++) {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            state.max[m][half] = -INFINITY;
            state.own_max[half] = -INFINITY;
            state.part[m][half] = 0;
        }
        SIMT_UNROLL
        for (int i = 0; i < PV * 4; i++) {
            state.o[m][i / 4][i % 4] = 0;
        }
    }
}

template <int PK, int PV, int MT> SIMT_DEVICE void mla_begin_item(mla_state<PK, PV, MT> &state)
{
    SIMT_UNROLL
    for (int m = 0; m < MT; m++) {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            state.all[m][half] = {-INFINITY, 0};
        }
        SIMT_UNROLL
        for (int i = 0; i < PV * 4; i++) {
            state.total[m][i / 4][i % 4] = 0;
        }
    }
    mla_begin_segment(state);
}

template <int PK, int PV, int MT>
SIMT_DEVICE void mla_end_segment(const mla_params_t &p, mla_state<PK, PV, MT> &state,
                                 const mla_shared<MT * 16> &shared)
{
    SIMT_UNROLL
    for (int m = 0; m < MT; m++) {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const int row = m * 16 + half * 8 + simt_lane() / 4;
            const float sum = mla_sum_of_parts<MT * 16>(shared.sums, row);
            float old, added;
            attention_merge(&state.all[m][half], {state.max[m][half], sum}, p.all.scale_log2, &old,
                            &added);
            SIMT_UNROLL
            for (int n = 0; n < PV; n++) {
                SIMT_UNROLL
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    state.total[m][n][i] =
                        attention_merged(state.total[m][n][i], state.o[m][n][i], old, added);
                }
            }
        }
    }
    mla_begin_segment(state);
}

/* ---- results -------------------------------------------------------------------------------- */

/* This warp's latents of row `row` of the tile, which is row lane / 4 + 8 · half of the fragments. */
template <int PV>
SIMT_DEVICE void mla_store_row(const mla_params_t &p, const attention_item_t &item, uint32_t row,
                               attention_running_t all, const float (&total)[PV][4], int half)
{
    if (item.first + row >= item.packed) {
        return;
    }
    const uint32_t first = (uint32_t)(simt_warp() * PV * 8 + simt_lane() % 4 * 2);
    const bool is_part = item.unit != ATTENTION_NO_UNIT;
    const size_t unit = is_part ? attention_partial_at(p.all, item, row) : 0;
    const uint32_t head = attention_head(p.all, item, row);
    const float inverse = attention_finish(p.all, head, all);
    float *part = p.all.partial_o + unit * p.latent;
    __nv_bfloat16 *o = p.all.o +
                       (item.seq.row + (item.first + row) / p.all.group) * p.all.o_stride +
                       (size_t)head * p.latent;
    SIMT_UNROLL
    for (int n = 0; n < PV; n++) {
        const uint32_t at = first + (uint32_t)n * 8;
        const float lo = total[n][half * 2];
        const float hi = total[n][half * 2 + 1];
        if (at < p.latent && is_part) {
            *reinterpret_cast<float2 *>(part + at) = make_float2(lo, hi);
        } else if (at < p.latent) {
            *reinterpret_cast<uint32_t *>(o + at) = simt_pack_bf16(lo * inverse, hi * inverse);
        }
    }
    if (is_part && first == 0) {
        p.all.partial_sum[unit] = make_float2(all.max, all.sum);
    }
}

template <int PK, int PV, int MT, class T>
SIMT_DEVICE void mla_item(const mla_params_t &p, const attention_item_t &item, int stages,
                          mla_shared<MT * 16> &shared)
{
    typedef mla_shape<PK, PV, MT> shape;
    mla_state<PK, PV, MT> state;
    mla_ring_t ring = {stages, 0, item.begin, 0};
    const uint32_t segment = item.begin / K_CUDA_ATTENTION_SEGMENT;

    simt_sync_block(); /* the item before has read its last */
    mma_load_blocks(p.all, item, segment, shared.blocks[segment % 2]);
    mma_load_blocks(p.all, item, segment + 1, shared.blocks[(segment + 1) % 2]);
    mla_load_q<PK, MT, T>(p, item, shared.q);
    simt_sync_block();
    mla_hold_q(state, shared.q);
    for (int i = 0; i + 1 < stages; i++) {
        mla_ring_load<PK, PV, MT, T>(p, item, shared, &ring);
    }
    mla_begin_item(state);
    for (uint32_t first = item.begin; first < item.end; first += MLA_CHUNK) {
        const bool ends = attention_ends_segment(item, first, MLA_CHUNK);
        const uint8_t *tile = shared.ring + ring.slot * shape::tile_bytes;
        ring.slot = ring.slot + 1 == stages ? 0 : ring.slot + 1;
        if (stages == 1) {
            simt_sync_block(); /* the tile before is read: its place is the only one */
            mla_ring_load<PK, PV, MT, T>(p, item, shared, &ring);
        }
        mma_wait(stages == 1 ? 0 : stages - 2);
        simt_sync_block(); /* the tile is there; the one before and its weights are read */
        if (stages > 1) {
            mla_ring_load<PK, PV, MT, T>(p, item, shared, &ring);
        }
        mla_scores<PK, PV, MT, T>(state, shared.q, tile);
        mla_maxima(p, item, first, state, shared);
        simt_sync_block();
        mla_move_maxima(p, state, shared);
        mla_weights<PK, PV, MT, T>(p, state, shared);
        if (ends) {
            mla_share_sums(state, shared);
        }
        simt_sync_block();
        mla_values<PK, PV, MT, T>(state, shared.weights, tile);
        if (ends) {
            const uint32_t ended = first / K_CUDA_ATTENTION_SEGMENT;
            mla_end_segment(p, state, shared);
            mma_load_blocks(p.all, item, ended + 2, shared.blocks[ended % 2]);
        }
    }
    simt_cp_async_wait<0>();
    SIMT_UNROLL
    for (int i = 0; i < MT * 2; i++) {
        const uint32_t row = (uint32_t)(i * 8 + simt_lane() / 4);
        mla_store_row<PV>(p, item, row, state.all[i / 2][i % 2], state.total[i / 2], i % 2);
    }
}

template <int PK, int PV, int MT, class T>
static SIMT_KERNEL(MLA_THREADS, 1) mla_attention_kernel(const mla_params_t p, int stages)
{
    SIMT_DYN_SHARED(uint8_t, base);
    mla_shared<MT * 16> shared = mla_carve<PK, PV, MT>(base, stages);
    attention_cursor_t cursor = {};
    attention_item_t item;
    simt_wait_previous();
    simt_launch_next();
    for (uint32_t k = 0;
         attention_find_item(p.all, MLA_CHUNK, attention_item_of_block(k), &cursor, &item); k++) {
        mla_item<PK, PV, MT, T>(p, item, stages, shared);
    }
}
