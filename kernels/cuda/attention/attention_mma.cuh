/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention_mma: attention by mma.sync and cp.async, for every device.
 *
 * A block computes one item at a time, GROUPS groups of 4 warps with MT · 16 packed rows each. Of a
 * chunk each warp of a group scores a quarter of the tokens, then, with the weights shared, sums a
 * quarter of the head dims: K and V are read from shared memory once a group. K and V of chunks come through a ring of tiles, K and V in turn.
 */
#pragma once

#include "kernels/cuda/attention/attention_bytes.cuh"

enum { MMA_QUARTERS = 4, MMA_GROUP_THREADS = MMA_QUARTERS * SIMT_WARP };
enum { MMA_MIN_STAGES = 2, MMA_MAX_STAGES = 4, MMA_MAX_BLOCKS = K_CUDA_ATTENTION_SEGMENT / 8 };

/* Tiles of 8 head dims that a warp sums; of a cache of bytes, whose dims go by 16, pairs of them. */
template <int D, class T>
constexpr int mma_value_tiles = sizeof(T) == 1 ? (D / 16 + MMA_QUARTERS - 1) / MMA_QUARTERS * 2
                                               : (D / 8 + MMA_QUARTERS - 1) / MMA_QUARTERS;

/* Register fragments of a warp: MT tiles of 16 rows. */
template <int D, int MT, int GROUPS, class T> struct mma_state {
    typedef attention_shape<D> shape;
    static constexpr int rows = GROUPS * MT * 16;
    static constexpr int threads = GROUPS * MMA_GROUP_THREADS;
    static constexpr int score_tiles = shape::quarter / 8;
    static constexpr int value_tiles = mma_value_tiles<D, T>;
    float score[MT][score_tiles][4];
    float o[MT][value_tiles][4]; /* of this segment */
    float total[MT][value_tiles][4];
    attention_running_t segment[MT][2]; /* of rows lane / 4 and + 8; its sum: this warp's part */
    attention_running_t all[MT][2];
    uint32_t position[MT][2];
};

/* Shared memory of a block, carved from SIMT_DYN_SHARED. */
template <int D, int MT, int GROUPS> struct mma_shared {
    static constexpr int rows = GROUPS * MT * 16;
    static constexpr int q_bytes = attention_shape<D>::panels * rows * 128;
    static constexpr int weight_bytes = attention_shape<D>::chunk / 64 * rows * 128;
    static constexpr int fixed_bytes =
        q_bytes + weight_bytes + 2 * MMA_MAX_BLOCKS * 8 + MMA_QUARTERS * rows * 4;
    uint8_t *ring;
    uint8_t *q;
    uint8_t *weights;
    const char *(*blocks)[MMA_MAX_BLOCKS]; /* [2], by the segment's parity: where a block begins */
    float (*maxima)[rows];                 /* [MMA_QUARTERS] */
    float (*sums)[rows];                   /* in the place of a segment's last maxima */
};

/* A place of the ring: a tile and, where there are any, the scales of its chunk. */
template <int D, class T>
constexpr int mma_slot_bytes = attention_tile<D, T>::bytes + attention_tile<D, T>::scale_bytes;

template <int D, int MT, int GROUPS, class T>
SIMT_DEVICE mma_shared<D, MT, GROUPS> mma_carve(uint8_t *base, int stages)
{
    typedef mma_shared<D, MT, GROUPS> shared_t;
    shared_t s;
    s.ring = base;
    s.q = s.ring + stages * mma_slot_bytes<D, T>;
    s.weights = s.q + shared_t::q_bytes;
    uint8_t *blocks = s.weights + shared_t::weight_bytes;
    s.blocks = reinterpret_cast<const char *(*)[MMA_MAX_BLOCKS]>(blocks);
    uint8_t *maxima = blocks + 2 * MMA_MAX_BLOCKS * 8;
    s.maxima = reinterpret_cast<float(*)[shared_t::rows]>(maxima);
    s.sums = s.maxima;
    return s;
}

/* ---- loading -------------------------------------------------------------------------------- */

/* Addresses of the blocks of one segment, for this item's head. */
SIMT_DEVICE void mma_load_blocks(const attention_params_t &p, const attention_item_t &item,
                                 uint32_t segment, const char **blocks)
{
    const uint32_t first = segment * K_CUDA_ATTENTION_SEGMENT;
    const uint32_t n = K_CUDA_ATTENTION_SEGMENT >> p.block_shift;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        const uint32_t token = first + (i << p.block_shift);
        if (token < item.end && token + p.kv.block_tokens > item.low) {
            const uint32_t id = simt_load_4_const(&item.seq.block_table[token >> p.block_shift]);
            blocks[i] = static_cast<const char *>(p.kv.base) + id * p.kv.block_stride +
                        item.kv_head * p.kv.head_stride;
        }
    }
}

/* 8 f32 as 8 bf16. */
SIMT_DEVICE uint4 mma_narrow(const void *from)
{
    const float4 *v = static_cast<const float4 *>(from);
    const float4 a = v[0];
    const float4 b = v[1];
    return make_uint4(simt_pack_bf16(a.x, a.y), simt_pack_bf16(a.z, a.w), simt_pack_bf16(b.x, b.y),
                      simt_pack_bf16(b.z, b.w));
}

/* One 16-byte unit of a tile; zeroes when the token is not to be seen. */
template <class T> SIMT_DEVICE void mma_load_unit(uint8_t *to, const char *from, bool is_seen)
{
    if constexpr (sizeof(T) <= 2) {
        simt_cp_async_zfill<16>(to, from, is_seen ? 16 : 0);
    } else {
        *reinterpret_cast<uint4 *>(to) = is_seen ? mma_narrow(from) : make_uint4(0, 0, 0, 0);
    }
}

/* K (part 0) or V (part 1) of the chunk that begins at token `first`. */
template <int D, int THREADS, class T>
SIMT_DEVICE void mma_load_tile(const attention_params_t &p, const attention_item_t &item,
                               const char *const (*blocks)[MMA_MAX_BLOCKS], uint32_t first,
                               uint32_t part, uint8_t *tile)
{
    constexpr int chunk = attention_shape<D>::chunk;
    constexpr int units = attention_tile<D, T>::units;
    constexpr int steps = (chunk * units + THREADS - 1) / THREADS;
    constexpr bool is_even = chunk * units % THREADS == 0;
    constexpr int at_once = steps % 4 == 0   ? 4
                            : steps % 2 == 0 ? 2
                                             : 1; /* addresses in registers */
    static_assert(is_even || sizeof(T) == 1);
    const char *const *table = blocks[first / K_CUDA_ATTENTION_SEGMENT % 2];
    const uint32_t in_segment = first % K_CUDA_ATTENTION_SEGMENT;
    const uint32_t mask = p.kv.block_tokens - 1;
    for (int step = 0; step < steps; step += at_once) {
        SIMT_UNROLL
        for (int j = 0; j < at_once; j++) {
            const int i = (step + j) * THREADS + (int)threadIdx.x;
            const uint32_t t = (uint32_t)(i / units);
            const int unit = i % units;
            const uint32_t token = first + t;
            const bool is_seen = token >= item.low && token < item.end;
            if (!is_even && i >= chunk * units) {
                break;
            }
            const char *from = static_cast<const char *>(p.kv.base);
            if (is_seen) {
                from = table[(in_segment + t) >> p.block_shift] +
                       (token & mask) * p.kv.token_stride + part * p.kv.part_stride +
                       (size_t)unit * (sizeof(T) == 4 ? 32 : 16);
            }
            mma_load_unit<T>(tile + attention_tile_at(chunk, (int)t, unit), from, is_seen);
        }
    }
}

/*
 * The scales of K and V of the chunk that begins at token `first`, four tokens at a time; 0 where none
 * of the four is to be seen.
 */
template <int D>
SIMT_DEVICE void mma_load_scales(const attention_params_t &p, const attention_item_t &item,
                                 const char *const (*blocks)[MMA_MAX_BLOCKS], uint32_t first,
                                 uint8_t *scales)
{
    constexpr int units = attention_shape<D>::chunk / 4;
    const int i = (int)threadIdx.x;
    if (i >= 2 * units) {
        return;
    }
    const uint32_t token = first + (uint32_t)(i % units * 4);
    const bool is_seen = token + 3 >= item.low && token < item.end;
    const char *from = static_cast<const char *>(p.kv.base);
    if (is_seen) {
        const uint32_t in_block = token & (p.kv.block_tokens - 1);
        const uint32_t part = (uint32_t)(i / units);
        from = blocks[token / K_CUDA_ATTENTION_SEGMENT % 2]
                     [token % K_CUDA_ATTENTION_SEGMENT >> p.block_shift] +
               p.kv.scale_offset + (part * p.kv.block_tokens + in_block) * sizeof(float);
    }
    simt_cp_async_zfill<16>(scales + i * 16, from, is_seen ? 16 : 0);
}

/* Until all but the `pending` newest tiles are there. */
SIMT_DEVICE void mma_wait(int pending)
{
    switch (pending) {
    case 0:
        return simt_cp_async_wait<0>();
    case 1:
        return simt_cp_async_wait<1>();
    default:
        static_assert(MMA_MAX_STAGES == 4);
        return simt_cp_async_wait<2>();
    }
}

/* The tiles of an item in order: K and V of each chunk. */
typedef struct mma_ring {
    int stages;
    int slot;         /* of the tile to be used next */
    uint32_t loading; /* first token of the chunk to be loaded next */
    uint32_t part;    /* … and which of K and V */
    int loading_slot;
} mma_ring_t;

/* Starts the next tile, if the item has one; a group of copies in any case. */
template <int D, int MT, int GROUPS, class T>
SIMT_DEVICE void mma_ring_load(const attention_params_t &p, const attention_item_t &item,
                               const mma_shared<D, MT, GROUPS> &shared, mma_ring_t *ring)
{
    if (ring->loading < item.end) {
        uint8_t *slot = shared.ring + ring->loading_slot * mma_slot_bytes<D, T>;
        mma_load_tile<D, mma_state<D, MT, GROUPS, T>::threads, T>(p, item, shared.blocks,
                                                                  ring->loading, ring->part, slot);
        if constexpr (attention_element<T>::has_scales) {
            if (ring->part == 0) {
                mma_load_scales<D>(p, item, shared.blocks, ring->loading,
                                   slot + attention_tile<D, T>::bytes);
            }
        }
        ring->loading += ring->part * attention_shape<D>::chunk;
        ring->part ^= 1;
        ring->loading_slot = ring->loading_slot + 1 == ring->stages ? 0 : ring->loading_slot + 1;
    }
    simt_cp_async_commit();
}

/* The next tile; all threads have done with the one before it, whose place is filled again. */
template <int D, int MT, int GROUPS, class T>
SIMT_DEVICE const uint8_t *mma_ring_next(const attention_params_t &p, const attention_item_t &item,
                                         const mma_shared<D, MT, GROUPS> &shared, mma_ring_t *ring)
{
    const uint8_t *tile = shared.ring + ring->slot * mma_slot_bytes<D, T>;
    ring->slot = ring->slot + 1 == ring->stages ? 0 : ring->slot + 1;
    mma_wait(ring->stages - 2);
    simt_sync_block();
    mma_ring_load<D, MT, GROUPS, T>(p, item, shared, ring);
    return tile;
}

/* ---- computing ------------------------------------------------------------------------------- */

/* This warp's quarter of tokens or head dims, and its group's first row. */
SIMT_DEVICE int mma_quarter(void)
{
    return simt_warp() % MMA_QUARTERS;
}

template <int MT> SIMT_DEVICE int mma_first_row(void)
{
    return simt_warp() / MMA_QUARTERS * MT * 16;
}

/* Rows lane % 16 and halves lane / 16 of a 16 × 16 tile: addresses for the four matrices of a. */
SIMT_DEVICE const uint8_t *mma_a_row(const uint8_t *tile, int rows, int row, int unit)
{
    return tile + attention_tile_at(rows, row + simt_lane() % 16, unit + simt_lane() / 16);
}

/* This warp's quarter of the chunk's scores, of MT · 16 rows of q from first_row on, added to score. */
template <int D, int MT, class T>
SIMT_DEVICE void mma_add_scores(float (&score)[MT][attention_shape<D>::quarter / 8][4],
                                const uint8_t *q, int rows, int first_row, const uint8_t *k)
{
    constexpr int chunk = attention_shape<D>::chunk;
    constexpr int tiles = attention_shape<D>::quarter / 8;
    const int first = mma_quarter() * attention_shape<D>::quarter;
    const int row = first + simt_lane() % 8 + simt_lane() / 16 * 8;
    const int half = simt_lane() / 8 % 2;
    SIMT_UNROLL
    for (int step = 0; step < D / 16; step++) {
        uint32_t a[MT][4];
        SIMT_UNROLL
        for (int m = 0; m < MT; m++) {
            simt_ldmatrix_x4(a[m], mma_a_row(q, rows, first_row + m * 16, step * 2));
        }
        SIMT_UNROLL
        for (int n = 0; n < tiles; n += 2) {
            uint32_t b[4];
            simt_ldmatrix_x4(b, k + attention_tile_at(chunk, row + n * 8, step * 2 + half));
            SIMT_UNROLL
            for (int m = 0; m < MT; m++) {
                attention_mma<T>(score[m][n], a[m], {b[0], b[1]});
                attention_mma<T>(score[m][n + 1], a[m], {b[2], b[3]});
            }
        }
    }
}

/* The same, of a cache of any type. */
template <int D, int MT, class T>
SIMT_DEVICE void mma_scores(float (&score)[MT][attention_shape<D>::quarter / 8][4],
                            const uint8_t *q, int rows, int first_row, const uint8_t *k)
{
    SIMT_UNROLL
    for (int m = 0; m < MT; m++) {
        SIMT_UNROLL
        for (int n = 0; n < attention_shape<D>::quarter / 8; n++) {
            SIMT_UNROLL
            for (int i = 0; i < 4; i++) {
                score[m][n][i] = 0;
            }
        }
    }
    if constexpr (sizeof(T) == 1) {
        attention_bytes_scores<D, MT, T>(score, q, rows, first_row, mma_quarter(), k);
    } else {
        mma_add_scores<D, MT, T>(score, q, rows, first_row, k);
    }
}

/* Masks the scores and tells the other warps this one's maxima. */
template <int D, int MT, int GROUPS, class T>
SIMT_DEVICE void mma_maxima(const attention_params_t &p, const attention_item_t &item,
                            uint32_t first, mma_state<D, MT, GROUPS, T> &state,
                            mma_shared<D, MT, GROUPS> &shared)
{
    typedef mma_state<D, MT, GROUPS, T> state_t;
    const uint32_t token =
        first + (uint32_t)(mma_quarter() * attention_shape<D>::quarter + simt_lane() % 4 * 2);
    const bool sees_all = attention_sees_all(p, item, first, attention_shape<D>::chunk);
    float maxima[MT * 2];
    SIMT_UNROLL
    for (int m = 0; m < MT; m++) {
        SIMT_UNROLL
        for (int n = 0; n < state_t::score_tiles; n++) {
            attention_cap(p, state.score[m][n]);
        }
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            float max = -INFINITY;
            SIMT_UNROLL
            for (int n = 0; n < state_t::score_tiles; n++) {
                SIMT_UNROLL
                for (int i = 0; i < 2; i++) {
                    float &score = state.score[m][n][half * 2 + i];
                    if (!sees_all) {
                        score = attention_masked(score, state.position[m][half],
                                                 token + (uint32_t)(n * 8 + i), p.window);
                    }
                    max = fmaxf(max, score);
                }
            }
            maxima[m * 2 + half] = max;
        }
    }
    simt_warp_max_n(maxima, 4);
    if (simt_lane() % 4 == 0) {
        SIMT_UNROLL
        for (int i = 0; i < MT * 2; i++) {
            shared.maxima[mma_quarter()][mma_first_row<MT>() + i * 8 + simt_lane() / 4] = maxima[i];
        }
    }
}

/* Row `row`'s maximum of four warps. */
template <int ROWS> SIMT_DEVICE float mma_max_of_warps(const float (*maxima)[ROWS], int row)
{
    return fmaxf(fmaxf(maxima[0][row], maxima[1][row]), fmaxf(maxima[2][row], maxima[3][row]));
}

/* The scales of V at this warp's columns of scores; nothing where there are none. */
template <int D, class T> struct mma_scales {
    float2 v[attention_element<T>::has_scales ? attention_shape<D>::quarter / 8 : 1];
};

/* Multiplies scores with the scales of K. scales [2][chunk], of the scores' chunk, or NULL. */
template <int D, int MT, class T>
SIMT_DEVICE void mma_take_scales(float (&score)[MT][attention_shape<D>::quarter / 8][4],
                                 const float *scales, mma_scales<D, T> &v_scales)
{
    if constexpr (attention_element<T>::has_scales) {
        attention_load_scales<D>(scales, mma_quarter(), v_scales.v);
        attention_scale_scores<D, MT>(score, v_scales.v);
        attention_load_scales<D>(scales + attention_shape<D>::chunk, mma_quarter(), v_scales.v);
    }
}

/* Weights of the columns of tile n as they are multiplied with V. */
template <int D, class T>
SIMT_DEVICE uint32_t mma_pack_weights(const mma_scales<D, T> &v_scales, int n, float lo, float hi)
{
    if constexpr (attention_element<T>::has_scales) {
        return attention_pack<T>(attention_scaled_weight(lo, v_scales.v[n].x),
                                 attention_scaled_weight(hi, v_scales.v[n].y));
    } else {
        return attention_pack<T>(lo, hi);
    }
}

/* Scores to weights, in shared memory for all warps; o and the sums are brought to the new maxima. */
template <int D, int MT, int GROUPS, class T>
SIMT_DEVICE void mma_weights(const attention_params_t &p, mma_state<D, MT, GROUPS, T> &state,
                             mma_shared<D, MT, GROUPS> &shared, const mma_scales<D, T> &v_scales)
{
    typedef mma_state<D, MT, GROUPS, T> state_t;
    const int column = mma_quarter() * attention_shape<D>::quarter;
    SIMT_UNROLL
    for (int m = 0; m < MT; m++) {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const int row = mma_first_row<MT>() + m * 16 + half * 8 + simt_lane() / 4;
            attention_running_t *running = &state.segment[m][half];
            const float max =
                fmaxf(running->max, mma_max_of_warps<state_t::rows>(shared.maxima, row));
            const float factor = attention_factor(running->max, max, p.scale_log2);
            float sum = 0;
            SIMT_UNROLL
            for (int n = 0; n < state_t::score_tiles; n++) {
                float *score = &state.score[m][n][half * 2];
                const float lo = attention_weight(score[0], max, p.scale_log2);
                const float hi = attention_weight(score[1], max, p.scale_log2);
                sum += lo;
                sum += hi;
                *reinterpret_cast<uint32_t *>(
                    shared.weights + attention_tile_at(state_t::rows, row, column / 8 + n) +
                    simt_lane() % 4 * 4) = mma_pack_weights<D, T>(v_scales, n, lo, hi);
            }
            running->sum = fmaf(running->sum, factor, sum);
            running->max = max;
            SIMT_UNROLL
            for (int n = 0; n < state_t::value_tiles; n++) {
                state.o[m][n][half * 2] *= factor;
                state.o[m][n][half * 2 + 1] *= factor;
            }
        }
    }
}

/* o += weights · V for this warp's head dims, of MT · 16 rows of weights from first_row on. */
template <int D, int MT, class T>
SIMT_DEVICE void mma_add_values(float (&o)[MT][mma_value_tiles<D, T>][4], const uint8_t *weights,
                                int rows, int first_row, const uint8_t *v)
{
    constexpr int chunk = attention_shape<D>::chunk;
    constexpr int tiles = mma_value_tiles<D, T>;
    const int first = mma_quarter() * tiles;
    SIMT_UNROLL
    for (int step = 0; step < chunk / 16; step++) {
        uint32_t a[MT][4];
        SIMT_UNROLL
        for (int m = 0; m < MT; m++) {
            simt_ldmatrix_x4(a[m], mma_a_row(weights, rows, first_row + m * 16, step * 2));
        }
        SIMT_UNROLL
        for (int n = 0; n < tiles; n += 2) {
            const bool has_two = n + 1 < tiles && first + n + 1 < D / 8;
            if (first + n >= D / 8) {
                continue;
            }
            uint32_t b[2][2] = {};
            if (has_two) {
                uint32_t four[4];
                simt_ldmatrix_x4_trans(four, mma_a_row(v, chunk, step * 16, first + n));
                b[0][0] = four[0], b[0][1] = four[1], b[1][0] = four[2], b[1][1] = four[3];
            } else {
                const int row = step * 16 + simt_lane() % 16;
                simt_ldmatrix_x2_trans(b[0], v + attention_tile_at(chunk, row, first + n));
            }
            SIMT_UNROLL
            for (int m = 0; m < MT; m++) {
                attention_mma<T>(o[m][n], a[m], b[0]);
                if (has_two) {
                    attention_mma<T>(o[m][n + 1 < tiles ? n + 1 : n], a[m], b[1]);
                }
            }
        }
    }
}

/* The same, of a cache of any type. */
template <int D, int MT, class T>
SIMT_DEVICE void mma_values(float (&o)[MT][mma_value_tiles<D, T>][4], const uint8_t *weights,
                            int rows, int first_row, const uint8_t *v)
{
    if constexpr (sizeof(T) == 1) {
        attention_bytes_values<D, MT, T>(o, weights, rows, first_row, mma_quarter(), v);
    } else {
        mma_add_values<D, MT, T>(o, weights, rows, first_row, v);
    }
}

/* This warp's parts of the sums, added over the columns of a row, for the others. */
template <int D, int MT, int GROUPS, class T>
SIMT_DEVICE void mma_share_sums(mma_state<D, MT, GROUPS, T> &state,
                                mma_shared<D, MT, GROUPS> &shared)
{
    float sums[MT * 2];
    SIMT_UNROLL
    for (int i = 0; i < MT * 2; i++) {
        sums[i] = state.segment[i / 2][i % 2].sum;
    }
    simt_warp_sum_n(sums, 4);
    if (simt_lane() % 4 == 0) {
        SIMT_UNROLL
        for (int i = 0; i < MT * 2; i++) {
            shared.sums[mma_quarter()][mma_first_row<MT>() + i * 8 + simt_lane() / 4] = sums[i];
        }
    }
}

template <int ROWS> SIMT_DEVICE float mma_sum_of_warps(const float (*sums)[ROWS], int row)
{
    return (sums[0][row] + sums[1][row]) + (sums[2][row] + sums[3][row]);
}

template <int D, int MT, int GROUPS, class T>
SIMT_DEVICE void mma_begin_segment(mma_state<D, MT, GROUPS, T> &state)
{
    SIMT_UNROLL
    for (int m = 0; m < MT; m++) {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            state.segment[m][half] = {-INFINITY, 0};
        }
        SIMT_UNROLL
        for (int n = 0; n < mma_state<D, MT, GROUPS, T>::value_tiles; n++) {
            SIMT_UNROLL
            for (int i = 0; i < 4; i++) {
                state.o[m][n][i] = 0;
            }
        }
    }
}

template <int D, int MT, int GROUPS, class T>
SIMT_DEVICE void mma_begin_item(const attention_params_t &p, const attention_item_t &item,
                                mma_state<D, MT, GROUPS, T> &state)
{
    SIMT_UNROLL
    for (int m = 0; m < MT; m++) {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const uint32_t row =
                (uint32_t)(mma_first_row<MT>() + m * 16 + half * 8 + simt_lane() / 4);
            state.position[m][half] = attention_position(p, item, row);
            state.all[m][half] = {-INFINITY, 0};
        }
        SIMT_UNROLL
        for (int n = 0; n < mma_state<D, MT, GROUPS, T>::value_tiles; n++) {
            SIMT_UNROLL
            for (int i = 0; i < 4; i++) {
                state.total[m][n][i] = 0;
            }
        }
    }
    mma_begin_segment(state);
}

template <int D, int MT, int GROUPS, class T>
SIMT_DEVICE void mma_end_segment(const attention_params_t &p, mma_state<D, MT, GROUPS, T> &state,
                                 const mma_shared<D, MT, GROUPS> &shared)
{
    typedef mma_state<D, MT, GROUPS, T> state_t;
    SIMT_UNROLL
    for (int m = 0; m < MT; m++) {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const int row = mma_first_row<MT>() + m * 16 + half * 8 + simt_lane() / 4;
            const float sum = mma_sum_of_warps<state_t::rows>(shared.sums, row);
            float old, added;
            attention_merge(&state.all[m][half], {state.segment[m][half].max, sum}, p.scale_log2,
                            &old, &added);
            SIMT_UNROLL
            for (int n = 0; n < state_t::value_tiles; n++) {
                SIMT_UNROLL
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    state.total[m][n][i] =
                        attention_merged(state.total[m][n][i], state.o[m][n][i], old, added);
                }
            }
        }
    }
    mma_begin_segment(state);
}

/* ---- results -------------------------------------------------------------------------------- */

/* Two head dims, the second 2 behind the first. */
SIMT_DEVICE void mma_store_apart(float *part, __nv_bfloat16 *o, bool is_part, float inverse,
                                 float lo, float hi)
{
    if (is_part) {
        part[0] = lo;
        part[2] = hi;
    } else {
        o[0] = __float2bfloat16(lo * inverse);
        o[2] = __float2bfloat16(hi * inverse);
    }
}

/* This warp's head dims of row `row` of the tile, which is row lane / 4 + 8 · half of the fragments. */
template <int D, class T>
SIMT_DEVICE void mma_store_row(const attention_params_t &p, const attention_item_t &item,
                               uint32_t row, attention_running_t all,
                               const float (&total)[mma_value_tiles<D, T>][4], int half)
{
    if (item.first + row >= item.packed) {
        return;
    }
    const int first = mma_quarter() * mma_value_tiles<D, T>;
    const bool is_part = item.unit != ATTENTION_NO_UNIT;
    const size_t unit = is_part ? attention_partial_at(p, item, row) : 0;
    const float inverse = attention_finish(p, attention_head(p, item, row), all);
    float *part = p.partial_o + unit * D;
    __nv_bfloat16 *o = p.o + attention_row_at(p, item, row, p.o_stride);
    SIMT_UNROLL
    for (int n = 0; n < mma_value_tiles<D, T>; n++) {
        const float lo = total[n][half * 2];
        const float hi = total[n][half * 2 + 1];
        if (first + n >= D / 8) {
            continue;
        }
        if constexpr (sizeof(T) == 1) {
            const int at = attention_bytes_dim(first + n, simt_lane() % 4);
            mma_store_apart(part + at, o + at, is_part, inverse, lo, hi);
        } else {
            const int at = (first + n) * 8 + simt_lane() % 4 * 2;
            if (is_part) {
                *reinterpret_cast<float2 *>(part + at) = make_float2(lo, hi);
            } else {
                *reinterpret_cast<uint32_t *>(o + at) = simt_pack_bf16(lo * inverse, hi * inverse);
            }
        }
    }
    if (is_part && first == 0 && simt_lane() % 4 == 0) {
        p.partial_sum[unit] = make_float2(all.max, all.sum);
    }
}

template <int D, int MT, int GROUPS, class T>
SIMT_DEVICE void mma_item(const attention_params_t &p, const attention_item_t &item, int stages,
                          mma_shared<D, MT, GROUPS> &shared)
{
    constexpr int chunk = attention_shape<D>::chunk;
    mma_state<D, MT, GROUPS, T> state;
    mma_ring_t ring = {stages, 0, item.begin, 0, 0};
    const uint32_t segment = item.begin / K_CUDA_ATTENTION_SEGMENT;

    simt_sync_block(); /* the item before has read its last */
    mma_load_blocks(p, item, segment, shared.blocks[segment % 2]);
    mma_load_blocks(p, item, segment + 1, shared.blocks[(segment + 1) % 2]);
    constexpr int rows = mma_state<D, MT, GROUPS, T>::rows;
    attention_load_q<D, T>(p, item, shared.q, rows, 0, rows, (int)threadIdx.x, (int)blockDim.x);
    simt_cp_async_commit(); /* older than the first tile: there when that is */
    simt_sync_block();
    for (int i = 0; i + 1 < stages; i++) {
        mma_ring_load<D, MT, GROUPS, T>(p, item, shared, &ring);
    }
    mma_begin_item(p, item, state);
    for (uint32_t first = item.begin; first < item.end; first += chunk) {
        const bool ends = attention_ends_segment(item, first, chunk);
        const uint8_t *k = mma_ring_next<D, MT, GROUPS, T>(p, item, shared, &ring);
        mma_scores<D, MT, T>(state.score, shared.q, rows, mma_first_row<MT>(), k);
        mma_scales<D, T> v_scales;
        mma_take_scales<D, MT, T>(state.score,
                                  reinterpret_cast<const float *>(k + attention_tile<D, T>::bytes),
                                  v_scales);
        mma_maxima<D, MT, GROUPS>(p, item, first, state, shared);
        simt_sync_block();
        mma_weights<D, MT, GROUPS, T>(p, state, shared, v_scales);
        const uint8_t *v = mma_ring_next<D, MT, GROUPS, T>(p, item, shared, &ring);
        if (ends) { /* all have read the maxima */
            mma_share_sums(state, shared);
        }
        mma_values<D, MT, T>(state.o, shared.weights, rows, mma_first_row<MT>(), v);
        if (ends) {
            const uint32_t ended = first / K_CUDA_ATTENTION_SEGMENT;
            simt_sync_block();
            mma_end_segment(p, state, shared);
            mma_load_blocks(p, item, ended + 2, shared.blocks[ended % 2]);
        }
    }
    simt_cp_async_wait<0>();
    SIMT_UNROLL
    for (int i = 0; i < MT * 2; i++) {
        const uint32_t row = (uint32_t)(mma_first_row<MT>() + i * 8 + simt_lane() / 4);
        mma_store_row<D, T>(p, item, row, state.all[i / 2][i % 2], state.total[i / 2], i % 2);
    }
}

template <int D, int MT, int GROUPS, class T>
static SIMT_KERNEL(GROUPS *MMA_GROUP_THREADS, GROUPS == 1 ? 2 : 1)
    attention_mma_kernel(const attention_params_t p, int stages)
{
    SIMT_DYN_SHARED(uint8_t, base);
    constexpr int chunk = attention_shape<D>::chunk;
    mma_shared<D, MT, GROUPS> shared = mma_carve<D, MT, GROUPS, T>(base, stages);
    attention_cursor_t cursor = {};
    attention_item_t item;
    simt_wait_previous();
    simt_launch_next();
    for (uint32_t k = 0; attention_find_item(p, chunk, attention_item_of_block(k), &cursor, &item);
         k++) {
        mma_item<D, MT, GROUPS, T>(p, item, stages, shared);
    }
}

/* ---- host ----------------------------------------------------------------------------------- */

/* Tiles in the ring: as many as let the wanted blocks, or fewer, run on a multiprocessor. */
static inline int attention_mma_stages(int fixed_bytes, int tile_bytes, int wanted, int *blocks_out)
{
    int device = 0, of_block = 0, of_all = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaDeviceGetAttribute(&of_all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    const int reserved = 1 << 10;
    for (int blocks = wanted; blocks > 0; blocks--) {
        const int limit =
            of_all / blocks - reserved < of_block ? of_all / blocks - reserved : of_block;
        const int stages = (limit - fixed_bytes) / tile_bytes;
        if (stages >= MMA_MIN_STAGES) {
            *blocks_out = blocks;
            return stages < MMA_MAX_STAGES ? stages : MMA_MAX_STAGES;
        }
    }
    return 0;
}

template <int D, int MT, int GROUPS, class T>
static inline cudaError_t attention_mma_launch_type(const attention_launch_t &launch)
{
    typedef mma_shared<D, MT, GROUPS> shared_t;
    int blocks = 0, device = 0, multiprocessors = 0;
    constexpr int tile = mma_slot_bytes<D, T>;
    static_assert(shared_t::fixed_bytes + MMA_MIN_STAGES * tile <= SIMT_LEAST_SHARED_BYTES);
    const int stages =
        attention_mma_stages(shared_t::fixed_bytes, tile, GROUPS == 1 ? 2 : 1, &blocks);
    if (stages == 0) {
        return cudaErrorNotSupported;
    }
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    const uint32_t room = (uint32_t)(blocks * multiprocessors);
    const simt_grid_t grid = {
        .grid = {room < launch.items ? room : launch.items},
        .block = {(unsigned)(GROUPS * MMA_GROUP_THREADS)},
        .shared_bytes = (size_t)(stages * tile + shared_t::fixed_bytes),
        .stream = launch.stream,
        .overlaps_previous = true,
    };
    return simt_launch((attention_mma_kernel<D, MT, GROUPS, T>), grid, launch.params, stages);
}

template <int D, int MT, int GROUPS>
static inline cudaError_t attention_mma_launch_rows(const attention_launch_t &launch)
{
    switch (launch.kv) {
    case K_BF16:
        return attention_mma_launch_type<D, MT, GROUPS, __nv_bfloat16>(launch);
    case K_F16:
        return attention_mma_launch_type<D, MT, GROUPS, __half>(launch);
    case K_F32:
        return attention_mma_launch_type<D, MT, GROUPS, float>(launch);
    case K_F8:
        return attention_mma_launch_type<D, MT, GROUPS, __nv_fp8_e4m3>(launch);
    case K_I8:
        return attention_mma_launch_type<D, MT, GROUPS, int8_t>(launch);
    default:
        return cudaErrorNotSupported;
    }
}
