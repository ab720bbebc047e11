/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention_hopper: long sequences of queries by wgmma and TMA: prefill. Head dims 64 and 128.
 *
 * A block is three warp groups. One warp of the first fetches chunks of K and V by TMA, a box a
 * panel of a block of the cache, into two places each; of E4M3 all its warps load them and write f16
 * there. The other two have 64 packed rows each: the
 * scores of a chunk are computed while the weights of the one before are multiplied with V, after
 * which o is scaled. What earlier segments gave waits in shared memory, out of the registers' way.
 *
 * Shao et al. 2024, FlashAttention-3, algorithm 2; the order of sums is that of attention.h.
 */
#include "kernels/cuda/attention/attention_bytes.cuh"

enum { HOPPER_ROWS = 64, HOPPER_CONSUMERS = 2, HOPPER_TILE = HOPPER_ROWS * HOPPER_CONSUMERS };
enum { HOPPER_GROUP = 128, HOPPER_THREADS = HOPPER_GROUP * (HOPPER_CONSUMERS + 1) };
enum { HOPPER_STAGES = 2, HOPPER_ITEMS = 2, HOPPER_PARTS = 4, HOPPER_AT_ONCE = 4 };
/* Named barriers: of a group of consumers, two of them; of all consumers. */
enum { HOPPER_BARRIER_GROUP = 1, HOPPER_BARRIER_ALL = 3 };

template <int D> struct hopper_shared {
    typedef attention_shape<D> shape;
    static constexpr int q_bytes = shape::panels * HOPPER_TILE * 128;
    static constexpr int total_bytes = HOPPER_TILE * D * 4;
    static constexpr int bytes = q_bytes + 2 * HOPPER_STAGES * shape::tile_bytes + total_bytes +
                                 4 * HOPPER_STAGES * 8 + 2 * HOPPER_ITEMS * 8 +
                                 HOPPER_ITEMS * (int)sizeof(attention_item_t);
    uint8_t *q; /* [panel][128 rows][128 bytes] */
    uint8_t *k; /* [HOPPER_STAGES][panel][chunk][128 bytes] */
    uint8_t *v;
    float *total;            /* [D / 2][256 threads] */
    simt_mbarrier_t *k_full; /* [HOPPER_STAGES] each */
    simt_mbarrier_t *k_free;
    simt_mbarrier_t *v_full;
    simt_mbarrier_t *v_free;
    simt_mbarrier_t *item_full; /* [HOPPER_ITEMS] each */
    simt_mbarrier_t *item_free;
    attention_item_t *items; /* what the producer has found; packed 0: no more */
};

template <int D> SIMT_DEVICE hopper_shared<D> hopper_carve(uint8_t *base)
{
    typedef hopper_shared<D> shared_t;
    constexpr int ring_bytes = HOPPER_STAGES * attention_shape<D>::tile_bytes;
    shared_t s;
    s.q = base;
    s.k = s.q + shared_t::q_bytes;
    s.v = s.k + ring_bytes;
    s.total = reinterpret_cast<float *>(s.v + ring_bytes);
    s.k_full = reinterpret_cast<simt_mbarrier_t *>(s.v + ring_bytes + shared_t::total_bytes);
    s.k_free = s.k_full + HOPPER_STAGES;
    s.v_full = s.k_free + HOPPER_STAGES;
    s.v_free = s.v_full + HOPPER_STAGES;
    s.item_full = s.v_free + HOPPER_STAGES;
    s.item_free = s.item_full + HOPPER_ITEMS;
    s.items = reinterpret_cast<attention_item_t *>(s.item_free + HOPPER_ITEMS);
    return s;
}

#if SIMT_HOPPER

static constexpr int consumer_threads = HOPPER_THREADS - HOPPER_GROUP;

/* ---- the producer ---------------------------------------------------------------------------- */

/* The place of the ring that is next, and the parity of its turn. */
typedef struct hopper_ring {
    int slot;
    uint32_t parity;
} hopper_ring_t;

SIMT_DEVICE void hopper_ring_step(hopper_ring_t *ring)
{
    static_assert(HOPPER_STAGES == HOPPER_ITEMS);
    ring->slot++;
    if (ring->slot == HOPPER_STAGES) {
        ring->slot = 0;
        ring->parity ^= 1;
    }
}

/*
 * Together: a lane that looked only after another one's copies had been used and freed would wait
 * for the wrong phase.
 */
SIMT_DEVICE void hopper_await_free(simt_mbarrier_t *free, const hopper_ring_t &ring)
{
    simt_mbarrier_wait(free, ring.parity);
    simt_sync_warp();
}

/* K or V of the chunk at token `first`: only boxes that some row sees. The whole warp calls. */
template <int D>
SIMT_DEVICE void hopper_fetch(const attention_params_t &p, const simt_tensor_map_t *map,
                              const attention_item_t &item, uint32_t first, int part, uint8_t *tile,
                              simt_mbarrier_t *full)
{
    typedef attention_shape<D> shape;
    const uint32_t box = p.kv.block_tokens < shape::chunk ? p.kv.block_tokens : shape::chunk;
    const uint32_t until = item.end < first + shape::chunk ? item.end : first + shape::chunk;
    const uint32_t from = item.low > first ? (item.low - first) / box : 0;
    const uint32_t boxes = (until - first + box - 1) / box - from;
    if (simt_lane() == 0) {
        simt_mbarrier_arrive_expect(full, boxes * shape::panels * box * 128);
    }
    simt_sync_warp();
    for (uint32_t i = (uint32_t)simt_lane(); i < boxes * shape::panels; i += SIMT_WARP) {
        const int panel = (int)(i % shape::panels);
        const uint32_t t = (from + i / shape::panels) * box;
        const uint32_t token = first + t;
        const uint32_t id = simt_load_4_const(&item.seq.block_table[token >> p.block_shift]);
        simt_tma_load_5d(tile + (panel * shape::chunk + (int)t) * 128, map, panel * 64,
                         (int)(token & (p.kv.block_tokens - 1)), part, (int)item.kv_head, (int)id,
                         full);
    }
}

/* Tells the consumers of an item; one of packed 0 is the last. */
template <int D>
SIMT_DEVICE void hopper_publish(const hopper_shared<D> &shared, const attention_item_t &item,
                                hopper_ring_t *ring)
{
    hopper_await_free(&shared.item_free[ring->slot], *ring);
    if (simt_lane() == 0) {
        shared.items[ring->slot] = item;
        simt_mbarrier_arrive(&shared.item_full[ring->slot]);
    }
    simt_sync_warp();
    hopper_ring_step(ring);
}

/* 16 numbers of a token as 32 bytes of f16: K as attention_bytes.cuh says, V in their order. */
template <class T> SIMT_DEVICE void hopper_widen(const uint4 &raw, int part, uint4 (&wide)[2])
{
    const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
    uint32_t low[4];
    uint32_t high[4];
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
        low[i] = attention_widen_k<T>(word[i], 0, 1);
        high[i] = attention_widen_k<T>(word[i], 2, 3);
    }
    if (part == 0) {
        wide[0] = make_uint4(low[0], low[1], low[2], low[3]);
        wide[1] = make_uint4(high[0], high[1], high[2], high[3]);
    } else {
        wide[0] = make_uint4(low[0], high[0], low[1], high[1]);
        wide[1] = make_uint4(low[2], high[2], low[3], high[3]);
    }
}

/* As hopper_fetch, of a cache of bytes; zeroes where no row sees. All warps of the group call. */
template <int D, class T>
SIMT_DEVICE void hopper_load(const attention_params_t &p, const attention_item_t &item,
                             uint32_t first, int part, uint8_t *tile, simt_mbarrier_t *full)
{
    constexpr int chunk = attention_shape<D>::chunk;
    constexpr int units = D / 16; /* of 16 numbers */
    constexpr int steps = chunk * units / HOPPER_GROUP;
    static_assert(steps % HOPPER_AT_ONCE == 0);
    const int unit = (int)threadIdx.x % units;
    const char *base = static_cast<const char *>(p.kv.base) + item.kv_head * p.kv.head_stride +
                       part * p.kv.part_stride + unit * 16;
    for (int step = 0; step < steps; step += HOPPER_AT_ONCE) {
        uint4 raw[HOPPER_AT_ONCE] = {};
        SIMT_UNROLL
        for (int j = 0; j < HOPPER_AT_ONCE; j++) {
            const int row = ((step + j) * HOPPER_GROUP + (int)threadIdx.x) / units;
            const uint32_t token = first + (uint32_t)row;
            if (token >= item.low && token < item.end) {
                const uint32_t id =
                    simt_load_4_const(&item.seq.block_table[token >> p.block_shift]);
                raw[j] = simt_load_16(base + id * p.kv.block_stride +
                                      (token & (p.kv.block_tokens - 1)) * p.kv.token_stride);
            }
        }
        SIMT_UNROLL
        for (int j = 0; j < HOPPER_AT_ONCE; j++) {
            const int row = ((step + j) * HOPPER_GROUP + (int)threadIdx.x) / units;
            uint4 wide[2];
            hopper_widen<T>(raw[j], part, wide);
            SIMT_UNROLL
            for (int i = 0; i < 2; i++) {
                *reinterpret_cast<uint4 *>(tile + attention_tile_at(chunk, row, 2 * unit + i)) =
                    wide[i];
            }
        }
    }
    simt_fence_async_shared();
    simt_sync_warp();
    if (simt_lane() == 0) {
        simt_mbarrier_arrive(full);
    }
}

/* Whether K and V are loaded by all warps of the group, so many arrivals at a tile's barrier. */
template <class T> struct hopper_loads {
    static constexpr bool is_widened = sizeof(T) == 1;
    static constexpr int warps = is_widened ? HOPPER_GROUP / SIMT_WARP : 1;
};

template <int D, class T>
SIMT_DEVICE void hopper_bring(const attention_params_t &p, const simt_tensor_map_t *map,
                              const attention_item_t &item, uint32_t first, int part, uint8_t *tile,
                              simt_mbarrier_t *full)
{
    if constexpr (hopper_loads<T>::is_widened) {
        hopper_load<D, T>(p, item, first, part, tile, full);
    } else {
        hopper_fetch<D>(p, map, item, first, part, tile, full);
    }
}

/* Each warp finds the items for itself; the first one tells of them. */
template <int D, class T>
SIMT_DEVICE void hopper_produce(const attention_params_t &p, const simt_tensor_map_t *map,
                                const hopper_shared<D> &shared)
{
    constexpr int chunk = attention_shape<D>::chunk;
    constexpr int tile_bytes = attention_shape<D>::tile_bytes;
    attention_cursor_t cursor = {};
    attention_item_t item;
    hopper_ring_t ring = {0, 1};
    hopper_ring_t items = {0, 1};
    for (uint32_t k = 0; attention_find_item(p, chunk, attention_item_of_block(k), &cursor, &item);
         k++) {
        if (simt_warp() == 0) {
            hopper_publish(shared, item, &items);
        }
        for (uint32_t first = item.begin; first < item.end; first += chunk) {
            hopper_await_free(&shared.k_free[ring.slot], ring);
            hopper_bring<D, T>(p, map, item, first, 0, shared.k + ring.slot * tile_bytes,
                               &shared.k_full[ring.slot]);
            hopper_await_free(&shared.v_free[ring.slot], ring);
            hopper_bring<D, T>(p, map, item, first, 1, shared.v + ring.slot * tile_bytes,
                               &shared.v_full[ring.slot]);
            hopper_ring_step(&ring);
        }
    }
    item.packed = 0;
    if (simt_warp() == 0) {
        hopper_publish(shared, item, &items);
    }
}

/* ---- consumers ------------------------------------------------------------------------------- */

/* The softmax of a segment so far, of rows lane / 4 and + 8. */
typedef struct hopper_sums {
    float max[2];
    float sum[2][HOPPER_PARTS];
} hopper_sums_t;

template <int D> struct hopper_state {
    static constexpr int chunk = attention_shape<D>::chunk;
    float o[D / 2];
    uint32_t weights[chunk / 16][4]; /* as wgmma's a */
    hopper_sums_t segment;
    attention_running_t all[2];
    uint32_t position[2];
};

SIMT_DEVICE void hopper_begin_segment(hopper_sums_t &segment)
{
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        segment.max[half] = -INFINITY;
        SIMT_UNROLL
        for (int i = 0; i < HOPPER_PARTS; i++) {
            segment.sum[half][i] = 0;
        }
    }
}

/* This group's index among the consumers, and a thread's among all of theirs. */
SIMT_DEVICE int hopper_consumer(void)
{
    return simt_warp() / 4 - 1;
}

SIMT_DEVICE void hopper_sync_group(void)
{
    simt_barrier_sync(HOPPER_BARRIER_GROUP + hopper_consumer(), HOPPER_GROUP);
}

template <int D, class T>
SIMT_DEVICE void hopper_scores(float (&score)[attention_shape<D>::chunk / 2], const uint8_t *q,
                               const uint8_t *k)
{
    constexpr int chunk = attention_shape<D>::chunk;
    simt_wgmma_fence();
    SIMT_UNROLL
    for (int step = 0; step < D / 16; step++) {
        const uint64_t a = simt_wgmma_desc_k(q + step / 4 * HOPPER_TILE * 128 + step % 4 * 32);
        const uint64_t b = simt_wgmma_desc_k(k + step / 4 * chunk * 128 + step % 4 * 32);
        if constexpr (attention_element<T>::is_f16) {
            simt_wgmma_f16<chunk>(score, a, b, step > 0);
        } else {
            simt_wgmma_bf16<chunk>(score, a, b, step > 0);
        }
    }
    simt_wgmma_commit();
}

/* o = weights · V, plus o when `adds`. */
template <int D, class T>
SIMT_DEVICE void hopper_values(hopper_state<D> &state, const uint8_t *v, bool adds)
{
    constexpr int chunk = attention_shape<D>::chunk;
    simt_wgmma_fence();
    SIMT_UNROLL
    for (int step = 0; step < chunk / 16; step++) {
        const uint64_t b = simt_wgmma_desc_mn(v + step * 16 * 128, chunk * 128);
        if constexpr (attention_element<T>::is_f16) {
            simt_wgmma_f16<D, true>(state.o, state.weights[step], b, step > 0 || adds);
        } else {
            simt_wgmma_bf16<D, true>(state.o, state.weights[step], b, step > 0 || adds);
        }
    }
    simt_wgmma_commit();
}

/*
 * Tokens of a chunk that no row sees were not fetched: their V may be anything, NaN too. All
 * consumers call: each group clears half of the head dims.
 */
template <int D>
SIMT_DEVICE void hopper_clear_unseen(const attention_item_t &item, uint32_t first, uint8_t *v)
{
    constexpr int chunk = attention_shape<D>::chunk;
    constexpr int units = D / 8 / HOPPER_CONSUMERS;
    if (first >= item.low && first + chunk <= item.end) {
        return;
    }
    const int row = (int)threadIdx.x % chunk;
    const uint32_t token = first + (uint32_t)row;
    if (token < item.low || token >= item.end) {
        for (int i = hopper_consumer() * units; i < (hopper_consumer() + 1) * units; i++) {
            *reinterpret_cast<uint4 *>(v + attention_tile_at(chunk, row, i)) =
                make_uint4(0, 0, 0, 0);
        }
    }
    simt_fence_async_shared();
    simt_barrier_sync(HOPPER_BARRIER_ALL, consumer_threads);
}

/* Masks the scores of a chunk and returns each row's maximum. */
template <int D>
SIMT_DEVICE void hopper_maxima(const attention_params_t &p, const attention_item_t &item,
                               uint32_t first, const hopper_state<D> &state,
                               float (&score)[attention_shape<D>::chunk / 2], float (&max)[2])
{
    constexpr int chunk = attention_shape<D>::chunk;
    const uint32_t token = first + (uint32_t)(simt_lane() % 4 * 2);
    attention_cap(p, score);
    if (!attention_sees_all(p, item, first, chunk)) {
        SIMT_UNROLL
        for (int i = 0; i < chunk / 2; i++) {
            score[i] = attention_masked(score[i], state.position[i / 2 % 2],
                                        token + (uint32_t)(i / 4 * 8 + i % 2), p.window);
        }
    }
    max[0] = max[1] = -INFINITY;
    SIMT_UNROLL
    for (int i = 0; i < chunk / 2; i++) {
        max[i / 2 % 2] = fmaxf(max[i / 2 % 2], score[i]);
    }
    simt_warp_max_n(max, 4);
}

/* Scores to weights under the new maxima, and their sums; factor: what o is to be multiplied by. */
template <int D, class T>
SIMT_DEVICE void hopper_softmax(const attention_params_t &p, hopper_state<D> &state,
                                float (&score)[attention_shape<D>::chunk / 2],
                                const float (&chunk_max)[2], float (&factor)[2])
{
    constexpr int chunk = attention_shape<D>::chunk;
    constexpr int tiles = chunk / 8 / HOPPER_PARTS;
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        const float max = fmaxf(state.segment.max[half], chunk_max[half]);
        factor[half] = attention_factor(state.segment.max[half], max, p.scale_log2);
        state.segment.max[half] = max;
        const float shift = -(attention_finite(max) * p.scale_log2);
        SIMT_UNROLL
        for (int part = 0; part < HOPPER_PARTS; part++) {
            float sum = 0;
            SIMT_UNROLL
            for (int n = part * tiles; n < (part + 1) * tiles; n++) {
                float *pair = &score[n * 4 + half * 2];
                pair[0] = simt_exp2(fmaf(pair[0], p.scale_log2, shift));
                pair[1] = simt_exp2(fmaf(pair[1], p.scale_log2, shift));
                sum += pair[0];
                sum += pair[1];
            }
            float *all = &state.segment.sum[half][part];
            *all = fmaf(*all, factor[half], sum);
        }
    }
}

/* The fragments of d are those of a, two tiles of 8 columns to a step of 16. */
template <int D, class T>
SIMT_DEVICE void hopper_pack(hopper_state<D> &state,
                             const float (&weight)[attention_shape<D>::chunk / 2])
{
    SIMT_UNROLL
    for (int step = 0; step < attention_shape<D>::chunk / 16; step++) {
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            const float *pair = &weight[step * 8 + i * 2];
            state.weights[step][i] = attention_pack<T>(pair[0], pair[1]);
        }
    }
}

template <int D> SIMT_DEVICE void hopper_scale(hopper_state<D> &state, const float (&factor)[2])
{
    if (!simt_any(factor[0] != 1.0f || factor[1] != 1.0f)) {
        return;
    }
    SIMT_UNROLL
    for (int i = 0; i < D / 2; i++) {
        state.o[i] *= factor[i / 2 % 2];
    }
}

/* By what o of the segments before, and of the one that ended, are to be multiplied. */
typedef struct hopper_factors {
    float old[2];
    float added[2];
} hopper_factors_t;

/* Adds the segment that ended to state.all; a new one begins. */
template <int D>
SIMT_DEVICE hopper_factors_t hopper_end_segment(const attention_params_t &p, hopper_state<D> &state)
{
    hopper_factors_t factors;
    float sums[2 * HOPPER_PARTS];
    SIMT_UNROLL
    for (int i = 0; i < 2 * HOPPER_PARTS; i++) {
        sums[i] = state.segment.sum[i / HOPPER_PARTS][i % HOPPER_PARTS];
    }
    simt_warp_sum_n(sums, 4);
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        const float *part = &sums[half * HOPPER_PARTS];
        const float sum = (part[0] + part[1]) + (part[2] + part[3]);
        attention_merge(&state.all[half], {state.segment.max[half], sum}, p.scale_log2,
                        &factors.old[half], &factors.added[half]);
    }
    hopper_begin_segment(state.segment);
    return factors;
}

/*
 * o of the segments before waits in shared memory, unless the one that ended `is_first`; the new one
 * goes there as well, or stays in state.o when it `is_last`.
 */
template <int D>
SIMT_DEVICE void hopper_merge(hopper_state<D> &state, const hopper_factors_t &factors,
                              bool is_first, bool is_last, float *total)
{
    total += (int)threadIdx.x - HOPPER_GROUP;
    SIMT_UNROLL
    for (int i = 0; i < D / 2; i++) {
        const int half = i / 2 % 2;
        const float before = is_first ? 0.0f : total[i * consumer_threads];
        state.o[i] = attention_merged(before, state.o[i], factors.old[half], factors.added[half]);
        if (!is_last) {
            total[i * consumer_threads] = state.o[i];
        }
    }
}

template <int D>
SIMT_DEVICE void hopper_store(const attention_params_t &p, const attention_item_t &item,
                              const hopper_state<D> &state)
{
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        const uint32_t row = (uint32_t)(hopper_consumer() * HOPPER_ROWS + simt_warp() % 4 * 16 +
                                        half * 8 + simt_lane() / 4);
        if (item.first + row >= item.packed) {
            continue;
        }
        const float inverse = attention_finish(p, attention_head(p, item, row), state.all[half]);
        __nv_bfloat16 *o = p.o + attention_row_at(p, item, row, p.o_stride) + simt_lane() % 4 * 2;
        SIMT_UNROLL
        for (int n = 0; n < D / 8; n++) {
            const float *v = &state.o[n * 4 + half * 2];
            *reinterpret_cast<uint32_t *>(o + n * 8) =
                simt_pack_bf16(v[0] * inverse, v[1] * inverse);
        }
    }
}

/* One thread for the group: it has read the tile to its end. */
SIMT_DEVICE void hopper_release(simt_mbarrier_t *barrier)
{
    if (threadIdx.x % HOPPER_GROUP == 0) {
        simt_mbarrier_arrive(barrier);
    }
}

/* Where a consumer stands in both rings. */
typedef struct hopper_rings {
    hopper_ring_t k;
    hopper_ring_t v;
} hopper_rings_t;

template <int D, class T>
SIMT_DEVICE void hopper_issue_scores(const hopper_shared<D> &shared, const hopper_rings_t &rings,
                                     float (&score)[attention_shape<D>::chunk / 2])
{
    const uint8_t *q = shared.q + hopper_consumer() * HOPPER_ROWS * 128;
    simt_mbarrier_wait(&shared.k_full[rings.k.slot], rings.k.parity);
    hopper_scores<D, T>(score, q, shared.k + rings.k.slot * attention_shape<D>::tile_bytes);
}

/* V of the chunk at token `first`. */
template <int D, class T>
SIMT_DEVICE void hopper_issue_values(const hopper_shared<D> &shared, const hopper_rings_t &rings,
                                     const attention_item_t &item, uint32_t first, bool adds,
                                     hopper_state<D> &state)
{
    uint8_t *v = shared.v + rings.v.slot * attention_shape<D>::tile_bytes;
    simt_mbarrier_wait(&shared.v_full[rings.v.slot], rings.v.parity);
    if constexpr (!hopper_loads<T>::is_widened) {
        hopper_clear_unseen<D>(item, first, v);
    }
    hopper_values<D, T>(state, v, adds);
}

SIMT_DEVICE void hopper_done(simt_mbarrier_t *free, hopper_ring_t *ring)
{
    hopper_release(&free[ring->slot]);
    hopper_ring_step(ring);
}

/* The scores at hand to weights; factor: what o is to be multiplied by. */
template <int D, class T>
SIMT_DEVICE void hopper_weigh(const attention_params_t &p, const attention_item_t &item,
                              uint32_t first, hopper_state<D> &state,
                              float (&score)[attention_shape<D>::chunk / 2], float (&factor)[2])
{
    float max[2];
    hopper_maxima<D>(p, item, first, state, score, max);
    hopper_softmax<D, T>(p, state, score, max, factor);
}

/*
 * All chunks of an item; on return state.o and state.all hold the result. `q_is_read` is called
 * once, when the last scores are there.
 */
template <int D, class T, class F>
SIMT_DEVICE void hopper_chunks(const attention_params_t &p, const attention_item_t &item,
                               const hopper_shared<D> &shared, hopper_rings_t *rings,
                               hopper_state<D> &state, F q_is_read)
{
    constexpr int chunk = attention_shape<D>::chunk;
    float score[chunk / 2];
    float factor[2];
    bool is_first = true; /* nothing is in shared.total */
    bool adds = false;    /* o holds earlier chunks of the segment */

    hopper_issue_scores<D, T>(shared, *rings, score);
    simt_wgmma_wait<0>();
    simt_wgmma_hold(score);
    hopper_done(shared.k_free, &rings->k);
    hopper_weigh<D, T>(p, item, item.begin, state, score, factor);
    hopper_pack<D, T>(state, score);
    for (uint32_t first = item.begin + chunk; first < item.end; first += chunk) {
        const bool begins = first % K_CUDA_ATTENTION_SEGMENT == 0;
        hopper_factors_t ended;
        hopper_issue_scores<D, T>(shared, *rings, score);
        hopper_issue_values<D, T>(shared, *rings, item, first - chunk, adds, state);
        simt_wgmma_wait<1>();
        simt_wgmma_hold(score);
        hopper_done(shared.k_free, &rings->k);
        if (begins) {
            ended = hopper_end_segment(p, state);
        }
        hopper_weigh<D, T>(p, item, first, state, score, factor);
        simt_wgmma_wait<0>();
        simt_wgmma_hold(state.o);
        hopper_done(shared.v_free, &rings->v);
        if (begins) {
            hopper_merge(state, ended, is_first, false, shared.total);
            is_first = false;
        } else {
            hopper_scale(state, factor);
        }
        adds = !begins;
        hopper_pack<D, T>(state, score);
    }
    q_is_read();
    const uint32_t last = (item.end - 1) / chunk * chunk;
    hopper_issue_values<D, T>(shared, *rings, item, last, adds, state);
    simt_wgmma_wait<0>();
    simt_wgmma_hold(state.o);
    hopper_done(shared.v_free, &rings->v);
    hopper_merge(state, hopper_end_segment(p, state), is_first, true, shared.total);
}

/* Starts loading q of the next item that the producer found, if there is one. */
template <int D, class T>
SIMT_DEVICE void hopper_load_q(const attention_params_t &p, const hopper_shared<D> &shared,
                               const hopper_ring_t &items)
{
    simt_mbarrier_wait(&shared.item_full[items.slot], items.parity);
    const attention_item_t item = shared.items[items.slot];
    if (item.packed > 0) {
        attention_load_q<D, T>(p, item, shared.q, HOPPER_TILE, hopper_consumer() * HOPPER_ROWS,
                               HOPPER_ROWS, (int)threadIdx.x % HOPPER_GROUP, HOPPER_GROUP);
    }
    simt_cp_async_commit();
}

/* The item whose q was loaded begins; the one before it ends. */
template <int D>
SIMT_DEVICE void hopper_begin_item(const attention_params_t &p, const hopper_shared<D> &shared,
                                   const attention_item_t &item, int slot, bool is_first,
                                   hopper_state<D> &state)
{
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        const uint32_t row = (uint32_t)(hopper_consumer() * HOPPER_ROWS + simt_warp() % 4 * 16 +
                                        half * 8 + simt_lane() / 4);
        state.position[half] = item.packed > 0 ? attention_position(p, item, row) : 0;
        state.all[half] = {-INFINITY, 0};
    }
    hopper_begin_segment(state.segment);
    simt_cp_async_wait<0>();
    simt_fence_async_shared();
    hopper_sync_group();
    if (!is_first) {
        hopper_release(&shared.item_free[slot ^ 1]);
    }
}

/* The items stay in shared memory, out of the registers' way, until the next begins. */
template <int D, class T>
SIMT_DEVICE void hopper_consume(const attention_params_t &p, const hopper_shared<D> &shared)
{
    hopper_rings_t rings = {};
    hopper_ring_t items = {};
    hopper_state<D> state;
    hopper_load_q<D, T>(p, shared, items);
    for (bool is_first = true;; is_first = false) {
        const attention_item_t &item = shared.items[items.slot];
        hopper_begin_item(p, shared, item, items.slot, is_first, state);
        if (item.packed == 0) {
            break;
        }
        hopper_ring_step(&items);
        hopper_chunks<D, T>(p, item, shared, &rings, state, [&] {
            hopper_sync_group(); /* all have read q */
            hopper_load_q<D, T>(p, shared, items);
        });
        hopper_store<D>(p, item, state);
    }
}

SIMT_DEVICE void hopper_init_barriers(simt_mbarrier_t *k_full, int warps)
{
    for (int i = 0; i < HOPPER_STAGES; i++) {
        simt_mbarrier_init(&k_full[i], warps);
        simt_mbarrier_init(&k_full[HOPPER_STAGES + i], HOPPER_CONSUMERS);
        simt_mbarrier_init(&k_full[2 * HOPPER_STAGES + i], warps);
        simt_mbarrier_init(&k_full[3 * HOPPER_STAGES + i], HOPPER_CONSUMERS);
    }
    for (int i = 0; i < HOPPER_ITEMS; i++) {
        simt_mbarrier_init(&k_full[4 * HOPPER_STAGES + i], 1);
        simt_mbarrier_init(&k_full[4 * HOPPER_STAGES + HOPPER_ITEMS + i], HOPPER_CONSUMERS);
    }
    simt_mbarrier_fence_init();
}

#endif /* SIMT_HOPPER */

/* Of the 168 that each of three groups begins with: short heads leave the consumers some to spare. */
template <int D, class T> struct hopper_registers {
    static constexpr int producer = sizeof(T) == 1 && D == 64 ? 88 : 56;
    static constexpr int consumer = (3 * simt_launch_registers(HOPPER_THREADS) - producer) / 2;
};

template <int D, class T>
static SIMT_KERNEL(HOPPER_THREADS, 1)
    attention_hopper_kernel(const attention_params_t p,
                            const SIMT_GRID_CONSTANT simt_tensor_map_t map)
{
#if SIMT_HOPPER
    SIMT_DYN_SHARED(uint8_t, base);
    const hopper_shared<D> shared = hopper_carve<D>(base);
    if (threadIdx.x == 0) {
        hopper_init_barriers(shared.k_full, hopper_loads<T>::warps);
    }
    simt_sync_block();
    simt_wait_previous();
    simt_launch_next();
    if (simt_warp() < 4) {
        simt_registers_lower<hopper_registers<D, T>::producer>();
        if (simt_warp() < hopper_loads<T>::warps) {
            hopper_produce<D, T>(p, &map, shared);
        }
    } else {
        simt_registers_raise<hopper_registers<D, T>::consumer>();
        hopper_consume<D, T>(p, shared);
    }
#else
    (void)p;
    (void)map;
#endif
}

/* ---- host ------------------------------------------------------------------------------------ */

bool attention_hopper_can(const attention_params_t &params, k_dtype_t kv)
{
    const bool has_shape = params.kv.head_dim == 64 || params.kv.head_dim == 128;
    return has_shape && (kv == K_BF16 || kv == K_F16 || kv == K_F8) && simt_is_hopper();
}

template <int D, class T> static cudaError_t launch_type(const attention_launch_t &launch)
{
    simt_tensor_map_t map = {};
    const cudaError_t error =
        sizeof(T) == 1 ? cudaSuccess
                       : attention_encode_map(launch.params.kv, attention_shape<D>::chunk, &map);
    if (error != cudaSuccess) {
        return error;
    }
    int device = 0, multiprocessors = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    const simt_grid_t grid = {
        .grid = {(unsigned)multiprocessors},
        .block = {HOPPER_THREADS},
        .shared_bytes = hopper_shared<D>::bytes,
        .stream = launch.stream,
        .overlaps_previous = true,
    };
    return simt_launch((attention_hopper_kernel<D, T>), grid, launch.params, map);
}

template <int D> static cudaError_t launch_dim(const attention_launch_t &launch)
{
    switch (launch.kv) {
    case K_F16:
        return launch_type<D, __half>(launch);
    case K_F8:
        return launch_type<D, __nv_fp8_e4m3>(launch);
    default:
        return launch_type<D, __nv_bfloat16>(launch);
    }
}

cudaError_t attention_hopper_launch(const attention_launch_t &all)
{
    attention_launch_t launch = all;
    launch.params.min_packed = ATTENTION_SPLIT_PACKED + 1;
    launch.params.max_packed = UINT32_MAX;
    launch.params.tile_rows = HOPPER_TILE;
    return launch.params.kv.head_dim == 64 ? launch_dim<64>(launch) : launch_dim<128>(launch);
}
