/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention_decode_hopper: few rows of queries on Hopper, as fast as memory is.
 *
 * One block a multiprocessor, of caches of bytes two: a warp fetches tiles of K and V by TMA, across items, as far ahead as
 * shared memory holds; four warps turn K into weights, a quarter of a chunk's tokens each; four
 * others sum V, a quarter of the head dims each, a chunk or two behind. The products, and with them
 * the bits, are those of attention_mma.
 */
#pragma once

#include "kernels/cuda/attention/attention_mma.cuh"

enum { DECODE_ROWS = 16, DECODE_SLOTS = 2 };
enum { DECODE_GROUP = 128, DECODE_THREADS = 2 * DECODE_GROUP + SIMT_WARP };
enum { DECODE_BARRIER_SCORERS = 1 };

/* What the scoring warps hand on for one chunk. */
template <int D> struct decode_slot {
    uint8_t weights[attention_shape<D>::chunk / 64 * DECODE_ROWS * 128];
    float factor[DECODE_ROWS];             /* of o */
    float max[DECODE_ROWS];                /* of the segment, at its end */
    float sums[MMA_QUARTERS][DECODE_ROWS]; /* likewise */
    float maxima[MMA_QUARTERS][DECODE_ROWS];
};

/* Blocks of a multiprocessor: bytes are widened while others wait for theirs, as registers allow. */
template <int D, class T> constexpr int decode_blocks = sizeof(T) == 1 && D <= 192 ? 2 : 1;

/* 1024-byte tiles first. Tiles of K and of V: about 96 KiB each on a multiprocessor. */
template <int D, class T> struct decode_shared {
    static constexpr int tile_bytes = attention_tile<D, T>::bytes;
    static constexpr int of_block = 96 * 1024 / decode_blocks<D, T>;
    static constexpr int stages = of_block / tile_bytes < 8 ? of_block / tile_bytes : 8;
    uint8_t k[stages][tile_bytes];
    uint8_t v[stages][tile_bytes];
    uint8_t q[attention_shape<D>::panels * DECODE_ROWS * 128];
    alignas(16) float scales[attention_element<T>::has_scales ? stages : 1][2]
                            [attention_element<T>::has_scales ? attention_shape<D>::chunk : 4];
    decode_slot<D> slots[DECODE_SLOTS];
    simt_mbarrier_t k_full[stages];
    simt_mbarrier_t k_free[stages];
    simt_mbarrier_t v_full[stages];
    simt_mbarrier_t v_free[stages];
    simt_mbarrier_t slot_full[DECODE_SLOTS];
    simt_mbarrier_t slot_free[DECODE_SLOTS];
};

#if SIMT_HOPPER

typedef struct decode_ring {
    int slot;
    uint32_t parity;
} decode_ring_t;

template <int STAGES> SIMT_DEVICE void decode_step(decode_ring_t *ring)
{
    ring->slot++;
    if (ring->slot == STAGES) {
        ring->slot = 0;
        ring->parity ^= 1;
    }
}

/* A warp has read what the barrier guards. */
SIMT_DEVICE void decode_arrive(simt_mbarrier_t *barrier)
{
    simt_sync_warp();
    if (simt_lane() == 0) {
        simt_mbarrier_arrive(barrier);
    }
}

/* ---- the fetching warp ------------------------------------------------------------------------ */

/* The boxes of a chunk that some row sees: a panel of a block of the cache each. */
typedef struct decode_boxes {
    uint32_t first; /* box of the chunk */
    uint32_t n;
    uint32_t tokens; /* of a box */
} decode_boxes_t;

template <int D>
SIMT_DEVICE decode_boxes_t decode_boxes(const attention_params_t &p, const attention_item_t &item,
                                        uint32_t first)
{
    constexpr uint32_t chunk = attention_shape<D>::chunk;
    const uint32_t tokens = p.kv.block_tokens < chunk ? p.kv.block_tokens : chunk;
    const uint32_t until = item.end < first + chunk ? item.end : first + chunk;
    const uint32_t from = item.low > first ? (item.low - first) / tokens : 0;
    return {from, (until - first + tokens - 1) / tokens - from, tokens};
}

/* Lane i's block id: that of box first + i. */
SIMT_DEVICE uint32_t decode_block_of_lane(const attention_params_t &p, const attention_item_t &item,
                                          const decode_boxes_t &boxes, uint32_t first)
{
    const uint32_t token = first + (boxes.first + (uint32_t)simt_lane()) * boxes.tokens;
    return (uint32_t)simt_lane() < boxes.n
               ? simt_load_4_const(&item.seq.block_table[token >> p.block_shift])
               : 0;
}

template <int D, class T>
SIMT_DEVICE void decode_fetch(const attention_params_t &p, const simt_tensor_map_t *map,
                              const attention_item_t &item, const decode_boxes_t &boxes,
                              uint32_t id_of_lane, uint32_t first, int part, uint8_t *tile,
                              simt_mbarrier_t *full)
{
    typedef attention_tile<D, T> shape;
    constexpr int chunk = attention_shape<D>::chunk;
    const uint32_t all = boxes.n * shape::panels;
    const bool has_scales =
        attention_element<T>::has_scales && part == 0; /* K brings V's as well */
    if (simt_lane() == 0) {
        simt_mbarrier_arrive_expect(full, all * boxes.tokens * 128 +
                                              (has_scales ? boxes.n * boxes.tokens * 8 : 0));
    }
    simt_sync_warp();
    for (uint32_t base = 0; base < all; base += SIMT_WARP) {
        const uint32_t i = base + (uint32_t)simt_lane();
        const int panel = (int)(i % shape::panels);
        const uint32_t box = i / shape::panels;
        const uint32_t id = simt_shfl(id_of_lane, (int)(box % SIMT_WARP));
        const uint32_t t = (boxes.first + box) * boxes.tokens;
        if (i < all) {
            simt_tma_load_5d(tile + (panel * chunk + (int)t) * 128, map, panel * shape::columns,
                             (int)((first + t) & (p.kv.block_tokens - 1)), part, (int)item.kv_head,
                             (int)id, full, SIMT_L2_EVICT_FIRST);
        }
    }
}

/* The scales of K and V of a chunk; counted with K. */
template <int D>
SIMT_DEVICE void decode_fetch_scales(const attention_params_t &p, const attention_item_t &item,
                                     const decode_boxes_t &boxes, uint32_t id_of_lane,
                                     uint32_t first, float (&scales)[2][attention_shape<D>::chunk],
                                     simt_mbarrier_t *full)
{
    const uint32_t box = (uint32_t)simt_lane() / 2;
    const uint32_t part = (uint32_t)simt_lane() % 2;
    const uint32_t id = simt_shfl(id_of_lane, (int)box);
    const uint32_t t = (boxes.first + box) * boxes.tokens;
    if (box < boxes.n) {
        const uint32_t in_block = (first + t) & (p.kv.block_tokens - 1);
        const char *from = static_cast<const char *>(p.kv.base) + id * p.kv.block_stride +
                           item.kv_head * p.kv.head_stride + p.kv.scale_offset +
                           (part * p.kv.block_tokens + in_block) * sizeof(float);
        simt_tma_load(&scales[part][t], from, boxes.tokens * (uint32_t)sizeof(float), full,
                      SIMT_L2_EVICT_FIRST);
    }
}

/*
 * A warp. Tokens before a sequence's first new one are of earlier steps: those are fetched while the
 * kernel in front still runs.
 */
template <int D, class T>
SIMT_DEVICE void decode_produce(const attention_params_t &p, const simt_tensor_map_t *map,
                                decode_shared<D, T> &shared)
{
    constexpr uint32_t chunk = attention_shape<D>::chunk;
    constexpr int stages = decode_shared<D, T>::stages;
    attention_cursor_t cursor = {};
    attention_item_t item;
    decode_ring_t ring = {0, 1};
    bool has_waited = false;
    for (uint32_t k = 0;
         attention_find_item(p, (int)chunk, attention_item_of_block(k), &cursor, &item); k++) {
        decode_boxes_t boxes = decode_boxes<D>(p, item, item.begin);
        uint32_t id = item.begin < item.end ? decode_block_of_lane(p, item, boxes, item.begin) : 0;
        for (uint32_t first = item.begin; first < item.end; first += chunk) {
            const bool has_more = first + chunk < item.end;
            const decode_boxes_t next = decode_boxes<D>(p, item, has_more ? first + chunk : first);
            const uint32_t next_id =
                has_more ? decode_block_of_lane(p, item, next, first + chunk) : 0;
            if (!has_waited && first + chunk > item.seq.start) {
                simt_wait_previous();
                has_waited = true;
            }
            simt_mbarrier_wait(&shared.k_free[ring.slot], ring.parity);
            simt_sync_warp(); /* no lane may look when the phase is long past */
            decode_fetch<D, T>(p, map, item, boxes, id, first, 0, shared.k[ring.slot],
                               &shared.k_full[ring.slot]);
            if constexpr (attention_element<T>::has_scales) {
                decode_fetch_scales<D>(p, item, boxes, id, first, shared.scales[ring.slot],
                                       &shared.k_full[ring.slot]);
            }
            simt_mbarrier_wait(&shared.v_free[ring.slot], ring.parity);
            simt_sync_warp(); /* no lane may look when the phase is long past */
            decode_fetch<D, T>(p, map, item, boxes, id, first, 1, shared.v[ring.slot],
                               &shared.v_full[ring.slot]);
            decode_step<stages>(&ring);
            boxes = next;
            id = next_id;
        }
    }
}

/* ---- the scoring warps ------------------------------------------------------------------------ */

SIMT_DEVICE void decode_sync_scorers(void)
{
    simt_barrier_sync(DECODE_BARRIER_SCORERS, DECODE_GROUP);
}

template <int D> struct decode_scores {
    static constexpr int tiles = attention_shape<D>::quarter / 8;
    float score[1][tiles][4];
    attention_running_t segment[2]; /* of rows lane / 4 and + 8 */
    uint32_t position[2];
};

/* Masks this warp's scores and tells the other three its maxima. */
template <int D>
SIMT_DEVICE void decode_maxima(const attention_params_t &p, const attention_item_t &item,
                               uint32_t first, decode_scores<D> &state, decode_slot<D> &slot)
{
    const uint32_t token =
        first + (uint32_t)(mma_quarter() * attention_shape<D>::quarter + simt_lane() % 4 * 2);
    const bool sees_all = attention_sees_all(p, item, first, attention_shape<D>::chunk);
    float maxima[2] = {-INFINITY, -INFINITY};
    SIMT_UNROLL
    for (int n = 0; n < decode_scores<D>::tiles; n++) {
        attention_cap(p, state.score[0][n]);
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            float &score = state.score[0][n][i];
            if (!sees_all) {
                score = attention_masked(score, state.position[i / 2],
                                         token + (uint32_t)(n * 8 + i % 2), p.window);
            }
            maxima[i / 2] = fmaxf(maxima[i / 2], score);
        }
    }
    simt_warp_max_n(maxima, 4);
    if (simt_lane() % 4 == 0) {
        slot.maxima[mma_quarter()][simt_lane() / 4] = maxima[0];
        slot.maxima[mma_quarter()][simt_lane() / 4 + 8] = maxima[1];
    }
}

/* Scores to weights in the slot, and the factor by which o comes to the new maximum. */
template <int D, class T>
SIMT_DEVICE void decode_weights(const attention_params_t &p, decode_scores<D> &state,
                                const mma_scales<D, T> &v_scales, decode_slot<D> &slot)
{
    const int unit = mma_quarter() * attention_shape<D>::quarter / 8;
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        const int row = half * 8 + simt_lane() / 4;
        attention_running_t *running = &state.segment[half];
        const float max = fmaxf(running->max, mma_max_of_warps<DECODE_ROWS>(slot.maxima, row));
        const float factor = attention_factor(running->max, max, p.scale_log2);
        float sum = 0;
        SIMT_UNROLL
        for (int n = 0; n < decode_scores<D>::tiles; n++) {
            const float lo = attention_weight(state.score[0][n][half * 2], max, p.scale_log2);
            const float hi = attention_weight(state.score[0][n][half * 2 + 1], max, p.scale_log2);
            sum += lo;
            sum += hi;
            *reinterpret_cast<uint32_t *>(
                slot.weights + attention_tile_at(DECODE_ROWS, row, unit + n) +
                simt_lane() % 4 * 4) = mma_pack_weights<D, T>(v_scales, n, lo, hi);
        }
        running->sum = fmaf(running->sum, factor, sum);
        running->max = max;
        if (mma_quarter() == 0 && simt_lane() % 4 == 0) {
            slot.factor[row] = factor;
        }
    }
}

/* The segment's maxima and this warp's parts of its sums; then a new one begins. */
template <int D> SIMT_DEVICE void decode_end_scores(decode_scores<D> &state, decode_slot<D> &slot)
{
    float sums[2] = {state.segment[0].sum, state.segment[1].sum};
    simt_warp_sum_n(sums, 4);
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        const int row = half * 8 + simt_lane() / 4;
        if (simt_lane() % 4 == 0) {
            slot.sums[mma_quarter()][row] = sums[half];
        }
        if (simt_lane() % 4 == 0 && mma_quarter() == 0) {
            slot.max[row] = state.segment[half].max; /* all four warps have the same */
        }
        state.segment[half] = {-INFINITY, 0};
    }
}

template <int D, class T>
SIMT_DEVICE void decode_score_item(const attention_params_t &p, const attention_item_t &item,
                                   decode_shared<D, T> &shared, decode_ring_t *ring,
                                   decode_ring_t *slots)
{
    constexpr int chunk = attention_shape<D>::chunk;
    decode_scores<D> state;
    decode_sync_scorers(); /* the item before has read its q */
    attention_load_q<D, T>(p, item, shared.q, DECODE_ROWS, 0, DECODE_ROWS, (int)threadIdx.x,
                           DECODE_GROUP);
    simt_cp_async_commit();
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        state.position[half] = attention_position(p, item, (uint32_t)(half * 8 + simt_lane() / 4));
        state.segment[half] = {-INFINITY, 0};
    }
    simt_cp_async_wait<0>();
    decode_sync_scorers();
    for (uint32_t first = item.begin; first < item.end; first += chunk) {
        decode_slot<D> &slot = shared.slots[slots->slot];
        simt_mbarrier_wait(&shared.k_full[ring->slot], ring->parity);
        mma_scores<D, 1, T>(state.score, shared.q, DECODE_ROWS, 0, shared.k[ring->slot]);
        mma_scales<D, T> v_scales;
        mma_take_scales<D, 1, T>(
            state.score, &shared.scales[attention_element<T>::has_scales ? ring->slot : 0][0][0],
            v_scales);
        decode_arrive(&shared.k_free[ring->slot]);
        decode_step<decode_shared<D, T>::stages>(ring);
        simt_mbarrier_wait(&shared.slot_free[slots->slot], slots->parity);
        decode_maxima<D>(p, item, first, state, slot);
        decode_sync_scorers();
        decode_weights<D, T>(p, state, v_scales, slot);
        if (attention_ends_segment(item, first, chunk)) {
            decode_end_scores<D>(state, slot);
        }
        decode_arrive(&shared.slot_full[slots->slot]);
        decode_step<DECODE_SLOTS>(slots);
    }
}

/* ---- the summing warps ------------------------------------------------------------------------ */

template <int D, class T> struct decode_sums {
    static constexpr int tiles = mma_value_tiles<D, T>;
    float o[1][tiles][4];
    float total[tiles][4];
    attention_running_t all[2];
};

/* V of tokens that no row sees was not fetched: this warp's columns of it become zero. */
template <int D, class T>
SIMT_DEVICE void decode_clear_unseen(const attention_item_t &item, uint32_t first, uint8_t *v)
{
    constexpr int chunk = attention_shape<D>::chunk;
    constexpr int units = decode_sums<D, T>::tiles / (sizeof(T) == 1 ? 2 : 1);
    if (first >= item.low && first + chunk <= item.end) {
        return;
    }
    for (int row = simt_lane(); row < chunk; row += SIMT_WARP) {
        const uint32_t token = first + (uint32_t)row;
        for (int n = 0; n < units; n++) {
            const int unit = mma_quarter() * units + n;
            if ((token < item.low || token >= item.end) && unit < attention_tile<D, T>::units) {
                *reinterpret_cast<uint4 *>(v + attention_tile_at(chunk, row, unit)) =
                    make_uint4(0, 0, 0, 0);
            }
        }
    }
    simt_fence_async_shared(); /* before TMA writes there again */
    simt_sync_warp();
}

template <int D, class T>
SIMT_DEVICE void decode_end_sums(const attention_params_t &p, decode_sums<D, T> &state,
                                 const decode_slot<D> &slot)
{
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        const int row = half * 8 + simt_lane() / 4;
        const float sum = mma_sum_of_warps<DECODE_ROWS>(slot.sums, row);
        float old, added;
        attention_merge(&state.all[half], {slot.max[row], sum}, p.scale_log2, &old, &added);
        SIMT_UNROLL
        for (int n = 0; n < decode_sums<D, T>::tiles; n++) {
            SIMT_UNROLL
            for (int i = half * 2; i < half * 2 + 2; i++) {
                state.total[n][i] =
                    attention_merged(state.total[n][i], state.o[0][n][i], old, added);
                state.o[0][n][i] = 0;
            }
        }
    }
}

template <int D, class T>
SIMT_DEVICE void decode_sum_item(const attention_params_t &p, const attention_item_t &item,
                                 decode_shared<D, T> &shared, decode_ring_t *ring,
                                 decode_ring_t *slots)
{
    constexpr int chunk = attention_shape<D>::chunk;
    decode_sums<D, T> state = {};
    state.all[0] = state.all[1] = {-INFINITY, 0};
    for (uint32_t first = item.begin; first < item.end; first += chunk) {
        decode_slot<D> &slot = shared.slots[slots->slot];
        uint8_t *v = shared.v[ring->slot];
        simt_mbarrier_wait(&shared.v_full[ring->slot], ring->parity);
        decode_clear_unseen<D, T>(item, first, v);
        simt_mbarrier_wait(&shared.slot_full[slots->slot], slots->parity);
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const float factor = slot.factor[half * 8 + simt_lane() / 4];
            SIMT_UNROLL
            for (int n = 0; n < decode_sums<D, T>::tiles; n++) {
                state.o[0][n][half * 2] *= factor;
                state.o[0][n][half * 2 + 1] *= factor;
            }
        }
        mma_values<D, 1, T>(state.o, slot.weights, DECODE_ROWS, 0, v);
        decode_arrive(&shared.v_free[ring->slot]);
        decode_step<decode_shared<D, T>::stages>(ring);
        if (attention_ends_segment(item, first, chunk)) {
            decode_end_sums<D, T>(p, state, slot);
        }
        decode_arrive(&shared.slot_free[slots->slot]);
        decode_step<DECODE_SLOTS>(slots);
    }
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        mma_store_row<D, T>(p, item, (uint32_t)(half * 8 + simt_lane() / 4), state.all[half],
                            state.total, half);
    }
}

template <int D, class T> SIMT_DEVICE void decode_init_barriers(decode_shared<D, T> &shared)
{
    for (int i = 0; i < decode_shared<D, T>::stages; i++) {
        simt_mbarrier_init(&shared.k_full[i], 1);
        simt_mbarrier_init(&shared.k_free[i], MMA_QUARTERS);
        simt_mbarrier_init(&shared.v_full[i], 1);
        simt_mbarrier_init(&shared.v_free[i], MMA_QUARTERS);
    }
    for (int i = 0; i < DECODE_SLOTS; i++) {
        simt_mbarrier_init(&shared.slot_full[i], MMA_QUARTERS);
        simt_mbarrier_init(&shared.slot_free[i], MMA_QUARTERS);
    }
    simt_mbarrier_fence_init();
}

#endif /* SIMT_HOPPER */

template <int D, class T>
static SIMT_KERNEL(DECODE_THREADS, (decode_blocks<D, T>))
    attention_decode_kernel(const attention_params_t p,
                            const SIMT_GRID_CONSTANT simt_tensor_map_t map)
{
#if SIMT_HOPPER
    SIMT_DYN_SHARED(uint8_t, base);
    decode_shared<D, T> &shared = *reinterpret_cast<decode_shared<D, T> *>(base);
    if (threadIdx.x == 0) {
        decode_init_barriers(shared);
    }
    simt_launch_next();
    simt_sync_block();
    if (threadIdx.x >= 2 * DECODE_GROUP) {
        return decode_produce<D, T>(p, &map, shared);
    }
    simt_wait_previous();
    constexpr int chunk = attention_shape<D>::chunk;
    const bool scores = threadIdx.x < DECODE_GROUP;
    attention_cursor_t cursor = {};
    attention_item_t item;
    decode_ring_t ring = {0, 0};
    decode_ring_t slots = {0, scores ? 1u : 0u};
    for (uint32_t k = 0; attention_find_item(p, chunk, attention_item_of_block(k), &cursor, &item);
         k++) {
        if (scores) {
            decode_score_item<D, T>(p, item, shared, &ring, &slots);
        } else {
            decode_sum_item<D, T>(p, item, shared, &ring, &slots);
        }
    }
#else
    (void)p;
    (void)map;
#endif
}

template <int D, class T>
static inline cudaError_t attention_decode_launch(const attention_launch_t &launch)
{
    simt_tensor_map_t map;
    cudaError_t error = attention_encode_map(launch.params.kv, attention_shape<D>::chunk, &map);
    if (error != cudaSuccess) {
        return error;
    }
    int device = 0, multiprocessors = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    const uint32_t room = (uint32_t)(multiprocessors * decode_blocks<D, T>);
    const simt_grid_t grid = {
        .grid = {room < launch.items ? room : launch.items},
        .block = {DECODE_THREADS},
        .shared_bytes = sizeof(decode_shared<D, T>),
        .stream = launch.stream,
        .overlaps_previous = true,
    };
    return simt_launch((attention_decode_kernel<D, T>), grid, launch.params, map);
}
