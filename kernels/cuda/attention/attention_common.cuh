/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention_common: what all attention kernels do the same way, so that their results have the same
 * bits (attention.h): tiles in shared memory, softmax steps, and which work item is which.
 */
#pragma once

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/simt/simt.h"

#define ATTENTION_SPLIT_PACKED 64 /* sequences of at most so many packed rows are split */
#define ATTENTION_NO_UNIT      UINT32_MAX

template <int D> struct attention_shape {
    static constexpr int chunk = D <= 128 ? 128 : 64;
    static constexpr int panels = (D + 63) / 64;
    static constexpr int tile_bytes = panels * chunk * 128; /* K or V of a chunk */
    static constexpr int quarter = chunk / 4;               /* tokens of one part of the sum */
};

/* As kernels take it, by value. */
typedef struct attention_params {
    const __nv_bfloat16 *q;
    __nv_bfloat16 *o;
    size_t q_stride;
    size_t o_stride;
    uint32_t q_heads;
    uint32_t o_dim; /* elements of a head in o */
    uint32_t group; /* q heads of a KV head */
    float scale_log2;
    uint32_t window;    /* 1 << 31 when there is none */
    float cap_in_log2;  /* 2 log2(e) · scale / softcap */
    float cap_out;      /* softcap / scale; 0: none */
    const float *sinks; /* [q_heads], or NULL */
    float inverse_scale;
    k_kv_view_t kv;
    uint32_t block_shift; /* log2 of block_tokens */
    const k_seq_t *seqs;
    uint32_t n_seqs;
    /* Partial results of segments: unit u is one row of one segment. */
    float *partial_o;    /* [units][q_heads][o_dim] */
    float2 *partial_sum; /* [units][q_heads]: maximum, sum */
    uint32_t units;
    float4 *spread_scores; /* of attention_spread; NULL: not to be used */
    /* Sequences of this kernel: packed rows in min..max, in tiles of tile_rows. */
    uint32_t min_packed;
    uint32_t max_packed;
    uint32_t tile_rows;
} attention_params_t;

/* ---- element types -------------------------------------------------------------------------- */

/*
 * T: of the cache. The tensor cores compute in f16 for caches of f16 and E4M3, else in bf16; scores
 * (q_is_f16) of int8 in f16 as well.
 */
template <class T> struct attention_element {
    static constexpr bool is_f16 = false;
    static constexpr bool q_is_f16 = false;
    static constexpr bool has_scales = false;
};
template <> struct attention_element<__half> {
    static constexpr bool is_f16 = true;
    static constexpr bool q_is_f16 = true;
    static constexpr bool has_scales = false;
};
template <> struct attention_element<__nv_fp8_e4m3> {
    static constexpr bool is_f16 = true;
    static constexpr bool q_is_f16 = true;
    static constexpr bool has_scales = false;
};
template <> struct attention_element<int8_t> {
    static constexpr bool is_f16 = false;
    static constexpr bool q_is_f16 = true;
    static constexpr bool has_scales = true;
};

template <class T>
SIMT_DEVICE void attention_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    if constexpr (attention_element<T>::is_f16) {
        simt_mma_f16(d, a, b);
    } else {
        simt_mma_bf16(d, a, b);
    }
}

template <class T> SIMT_DEVICE uint32_t attention_pack(float lo, float hi)
{
    if constexpr (attention_element<T>::is_f16) {
        return simt_pack_f16(lo, hi);
    } else {
        return simt_pack_bf16(lo, hi);
    }
}

/* A pair of q, which is bf16, as the tensor cores take it. */
template <class T> SIMT_DEVICE uint32_t attention_pack_q(uint32_t pair)
{
    if constexpr (attention_element<T>::q_is_f16) {
        const float2 v = simt_unpack_bf16(pair);
        return simt_pack_f16(v.x, v.y);
    } else {
        return pair;
    }
}

/* ---- tiles ---------------------------------------------------------------------------------- */

/*
 * A tile of `rows` rows lies in panels of 64 columns (128 of bytes), [panel][row][128 bytes], its
 * 16-byte units swizzled within 8 rows as TMA and wgmma want it. Offset of unit u of a row.
 */
SIMT_DEVICE uint32_t attention_tile_at(int rows, int row, int unit)
{
    return (uint32_t)((unit / 8 * rows + row) * 128 + ((unit % 8) ^ (row % 8)) * 16);
}

/* K or V of a chunk as it waits in shared memory: bytes of a cache of bytes, else 16-bit elements. */
template <int D, class T> struct attention_tile {
    static constexpr int columns = sizeof(T) == 1 ? 128 : 64; /* of a panel */
    static constexpr int panels = (D + columns - 1) / columns;
    static constexpr int bytes = panels * attention_shape<D>::chunk * 128;
    static constexpr int units = D * 8 / columns; /* of 16 bytes in a row */
    /* The scales of a chunk, f32 [K, V][token]. */
    static constexpr int scale_bytes =
        attention_element<T>::has_scales ? 2 * attention_shape<D>::chunk * 4 : 0;
};

/* ---- softmax -------------------------------------------------------------------------------- */

/* The maximum as it is subtracted: finite even when nothing was seen. */
SIMT_DEVICE float attention_finite(float max)
{
    return max == -INFINITY ? 0.0f : max;
}

/* What a sum under maximum `from` is worth under `to`; exactly 1 when they are equal. */
SIMT_DEVICE float attention_factor(float from, float to, float scale_log2)
{
    return simt_exp2((from - attention_finite(to)) * scale_log2);
}

SIMT_DEVICE float attention_weight(float score, float max, float scale_log2)
{
    return simt_exp2(fmaf(score, scale_log2, -(attention_finite(max) * scale_log2)));
}

/* Softmax so far of one row: largest score, sum of weights. */
typedef struct attention_running {
    float max;
    float sum;
} attention_running_t;

/* Adds a segment to the total and tells by what o of both is to be multiplied. */
SIMT_DEVICE void attention_merge(attention_running_t *total, attention_running_t segment,
                                 float scale_log2, float *total_factor, float *segment_factor)
{
    const float max = fmaxf(total->max, segment.max);
    *total_factor = attention_factor(total->max, max, scale_log2);
    *segment_factor = attention_factor(segment.max, max, scale_log2);
    total->sum = fmaf(segment.sum, *segment_factor, total->sum * *total_factor);
    total->max = max;
}

SIMT_DEVICE float attention_merged(float total, float segment, float total_factor,
                                   float segment_factor)
{
    return fmaf(segment, segment_factor, total * total_factor);
}

/* A score under the cap: cap_out · tanh(score · scale / softcap), to f32's precision. */
SIMT_DEVICE float attention_capped(const attention_params_t &p, float score)
{
    return p.cap_out * (1.0f - 2.0f * simt_rcp(1.0f + simt_exp2(score * p.cap_in_log2)));
}

template <int N> SIMT_DEVICE void attention_cap(const attention_params_t &p, float (&score)[N])
{
    if (p.cap_out > 0) {
        SIMT_UNROLL
        for (int i = 0; i < N; i++) {
            score[i] = attention_capped(p, score[i]);
        }
    }
}

/* By what the sum over all segments is to be multiplied: the head's sink joins, then 1 / sum. */
SIMT_DEVICE float attention_finish(const attention_params_t &p, uint32_t head,
                                   attention_running_t all)
{
    float old = 1, added;
    if (p.sinks != nullptr) {
        attention_merge(&all, {p.sinks[head] * p.inverse_scale, 1}, p.scale_log2, &old, &added);
    }
    return old * (1.0f / all.sum);
}

/* ---- work items ----------------------------------------------------------------------------- */

/* One tile of packed rows of one KV head of one sequence, over a range of tokens. */
typedef struct attention_item {
    k_seq_t seq;
    uint32_t kv_head;
    uint32_t first;   /* packed row */
    uint32_t packed;  /* rows of the sequence, packed */
    uint32_t begin;   /* a chunk's first token */
    uint32_t end;     /* [begin, end) is walked */
    uint32_t low;     /* tokens below it are out of every row's sight */
    uint32_t low_pos; /* positions of the tile's first and last row */
    uint32_t high_pos;
    uint32_t unit; /* of the sequence's first row in this segment, or ATTENTION_NO_UNIT */
} attention_item_t;

/* Where a warp stands in the list of items: it moves forward only. */
typedef struct attention_cursor {
    uint32_t seq; /* of lane 0 */
    uint32_t items_before;
    uint32_t units_before;
} attention_cursor_t;

SIMT_DEVICE uint32_t attention_low(const attention_params_t &p, uint32_t position)
{
    return position < p.window ? 0 : position - p.window + 1;
}

SIMT_DEVICE uint32_t attention_first_segment(const attention_params_t &p, const k_seq_t &seq)
{
    return attention_low(p, seq.start) / K_CUDA_ATTENTION_SEGMENT;
}

SIMT_DEVICE uint32_t attention_segments(const attention_params_t &p, const k_seq_t &seq)
{
    return (seq.start + seq.rows - 1) / K_CUDA_ATTENTION_SEGMENT - attention_first_segment(p, seq) +
           1;
}

/* What a sequence takes of partial results, if it is split. */
SIMT_DEVICE uint32_t attention_units(const attention_params_t &p, const k_seq_t &seq)
{
    if (seq.rows == 0 || seq.rows * p.group > ATTENTION_SPLIT_PACKED) {
        return 0;
    }
    const uint32_t segments = attention_segments(p, seq);
    return segments > 1 ? segments * seq.rows : 0;
}

SIMT_DEVICE uint32_t attention_scan(uint32_t v)
{
    for (int delta = 1; delta < SIMT_WARP; delta *= 2) {
        const uint32_t below = simt_shfl_up(v, delta);
        v += simt_lane() >= delta ? below : 0;
    }
    return v;
}

/* Sequence at + lane, of 0 rows where there is none. */
SIMT_DEVICE k_seq_t attention_seq_of_lane(const attention_params_t &p, uint32_t at)
{
    const uint32_t index = at + (uint32_t)simt_lane();
    k_seq_t seq = {};
    if (index < p.n_seqs) {
        seq = p.seqs[index];
    }
    return seq;
}

SIMT_DEVICE uint32_t attention_tiles(const attention_params_t &p, const k_seq_t &seq)
{
    const uint32_t packed = seq.rows * p.group;
    const bool is_mine = packed > 0 && packed >= p.min_packed && packed <= p.max_packed;
    return is_mine ? (packed + p.tile_rows - 1) / p.tile_rows : 0;
}

/* Item `rest` of a sequence: the last tile, which sees most, comes first. */
SIMT_DEVICE void attention_fill_item(const attention_params_t &p, int chunk, uint32_t rest,
                                     uint32_t unit, attention_item_t *item)
{
    const k_seq_t &seq = item->seq;
    const uint32_t tiles = attention_tiles(p, seq);
    item->kv_head = rest % p.kv.heads;
    const uint32_t tile = tiles - 1 - rest / p.kv.heads % tiles;
    const uint32_t segment = rest / p.kv.heads / tiles;
    item->packed = seq.rows * p.group;
    item->first = tile * p.tile_rows;
    const uint32_t behind = item->first + p.tile_rows;
    item->low_pos = seq.start + item->first / p.group;
    item->high_pos = seq.start + ((behind < item->packed ? behind : item->packed) - 1) / p.group;
    item->low = attention_low(p, item->low_pos);
    item->begin = item->low;
    item->end = item->high_pos + 1;
    item->unit = unit;
    if (unit != ATTENTION_NO_UNIT) {
        const uint32_t first =
            (attention_first_segment(p, seq) + segment) * K_CUDA_ATTENTION_SEGMENT;
        const uint32_t last = first + K_CUDA_ATTENTION_SEGMENT;
        item->begin = item->begin > first ? item->begin : first;
        item->end = item->end < last ? item->end : last;
        item->unit = unit + segment * seq.rows;
    }
    item->begin = item->begin / (uint32_t)chunk * (uint32_t)chunk;
}

/* False: there are not so many items. The whole warp calls, with ascending indices. */
SIMT_DEVICE bool attention_find_item(const attention_params_t &p, int chunk, uint32_t index,
                                     attention_cursor_t *cursor, attention_item_t *item)
{
    while (cursor->seq < p.n_seqs) {
        k_seq_t seq = attention_seq_of_lane(p, cursor->seq);
        const uint32_t units = attention_units(p, seq);
        const uint32_t units_until = cursor->units_before + attention_scan(units);
        const bool is_split = units > 0 && units_until <= p.units;
        const uint32_t items =
            attention_tiles(p, seq) * p.kv.heads * (is_split ? attention_segments(p, seq) : 1);
        const uint32_t items_until = cursor->items_before + attention_scan(items);
        const uint32_t found = simt_ballot(index < items_until);
        if (found != 0) {
            const int lane = simt_lowest_bit(found);
            item->seq.row = simt_shfl(seq.row, lane);
            item->seq.rows = simt_shfl(seq.rows, lane);
            item->seq.start = simt_shfl(seq.start, lane);
            item->seq.block_table = reinterpret_cast<const uint32_t *>(
                simt_shfl(reinterpret_cast<uintptr_t>(seq.block_table), lane));
            item->seq.history = nullptr;
            const uint32_t rest = index - simt_shfl(items_until - items, lane);
            const uint32_t unit =
                simt_shfl(is_split ? units_until - units : ATTENTION_NO_UNIT, lane);
            attention_fill_item(p, chunk, rest, unit, item);
            return true;
        }
        cursor->items_before = simt_shfl(items_until, SIMT_WARP - 1);
        cursor->units_before = simt_shfl(units_until, SIMT_WARP - 1);
        cursor->seq += SIMT_WARP;
    }
    return false;
}

/* The k-th item of a block: back and forth, so that blocks get like sums of descending items. */
SIMT_DEVICE uint32_t attention_item_of_block(uint32_t k)
{
    return k * gridDim.x + (k % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
}

/* Every row of the item sees all tokens of the chunk. */
SIMT_DEVICE bool attention_sees_all(const attention_params_t &p, const attention_item_t &item,
                                    uint32_t first, int chunk)
{
    return first + (uint32_t)chunk <= item.low_pos + 1 && first + p.window > item.high_pos;
}

/* The item's last chunk, or the last one of its segment. */
SIMT_DEVICE bool attention_ends_segment(const attention_item_t &item, uint32_t first, int chunk)
{
    const uint32_t next = first + (uint32_t)chunk;
    return next >= item.end || next % K_CUDA_ATTENTION_SEGMENT == 0;
}

/* The position of packed row `row` of the item's tile; rows behind the last see what it sees. */
SIMT_DEVICE uint32_t attention_position(const attention_params_t &p, const attention_item_t &item,
                                        uint32_t row)
{
    const uint32_t position = item.seq.start + (item.first + row) / p.group;
    return position < item.high_pos ? position : item.high_pos;
}

/* A score as seen from a position. */
SIMT_DEVICE float attention_masked(float score, uint32_t position, uint32_t token, uint32_t window)
{
    return position - token < window ? score : -INFINITY;
}

SIMT_DEVICE uint32_t attention_head(const attention_params_t &p, const attention_item_t &item,
                                    uint32_t row)
{
    return item.kv_head * p.group + (item.first + row) % p.group;
}

/* Where packed row `row` of the tile keeps head dims in q and o. */
SIMT_DEVICE size_t attention_row_at(const attention_params_t &p, const attention_item_t &item,
                                    uint32_t row, size_t stride)
{
    const uint32_t in_seq = (item.first + row) / p.group;
    return (size_t)(item.seq.row + in_seq) * stride +
           (size_t)attention_head(p, item, row) * p.kv.head_dim;
}

/* Unit and head of packed row `row` of the tile among the partial results. */
SIMT_DEVICE size_t attention_partial_at(const attention_params_t &p, const attention_item_t &item,
                                        uint32_t row)
{
    const uint32_t in_seq = (item.first + row) / p.group;
    return (size_t)(item.unit + in_seq) * p.q_heads + attention_head(p, item, row);
}

/*
 * Rows [first_row, first_row + rows) of the item's tile of q to shared memory, by `threads` threads;
 * there after simt_cp_async_wait<0>() and a barrier.
 */
template <int D, class T>
SIMT_DEVICE void attention_load_q(const attention_params_t &p, const attention_item_t &item,
                                  uint8_t *tile, int tile_rows, int first_row, int rows, int thread,
                                  int threads)
{
    constexpr int units = D / 8;
    for (int i = thread; i < rows * units; i += threads) {
        const int row = first_row + i / units;
        const int unit = i % units;
        const bool is_row = item.first + (uint32_t)row < item.packed;
        uint8_t *to = tile + attention_tile_at(tile_rows, row, unit);
        const __nv_bfloat16 *from = p.q;
        if (is_row) {
            from += attention_row_at(p, item, (uint32_t)row, p.q_stride) + unit * 8;
        }
        if constexpr (attention_element<T>::q_is_f16) {
            uint4 v = is_row ? simt_load_16(from) : make_uint4(0, 0, 0, 0);
            v = make_uint4(attention_pack_q<T>(v.x), attention_pack_q<T>(v.y),
                           attention_pack_q<T>(v.z), attention_pack_q<T>(v.w));
            if constexpr (sizeof(T) == 1) { /* as attention_bytes.cuh says */
                uint8_t *low = tile + attention_tile_at(tile_rows, row, unit / 2 * 2);
                uint8_t *high = tile + attention_tile_at(tile_rows, row, unit / 2 * 2 + 1);
                *reinterpret_cast<uint2 *>(low + unit % 2 * 8) = make_uint2(v.x, v.z);
                *reinterpret_cast<uint2 *>(high + unit % 2 * 8) = make_uint2(v.y, v.w);
            } else {
                *reinterpret_cast<uint4 *>(to) = v;
            }
        } else {
            simt_cp_async_zfill<16>(to, from, is_row ? 16 : 0);
        }
    }
}

/* ---- launchers of the kernels, one file a head dim ------------------------------------------- */

typedef struct attention_launch {
    attention_params_t params;
    k_dtype_t kv;
    bool uses_hopper;
    uint32_t items; /* at most so many, UINT32_MAX: not known */
    cudaStream_t stream;
} attention_launch_t;

/* The cache as (column, token, part, head, block); what blocks there are is not known here. */
static inline cudaError_t attention_encode_map(const k_kv_view_t &kv, uint32_t chunk,
                                               simt_tensor_map_t *map_out)
{
    simt_tensor_t tensor = {};
    tensor.data = kv.base;
    tensor.element_bytes = kv.dtype == K_F8 || kv.dtype == K_I8 ? 1 : 2;
    tensor.rank = 5;
    const uint64_t dims[5] = {kv.head_dim, kv.block_tokens, 2, kv.heads, UINT32_C(1) << 31};
    const uint64_t strides[4] = {kv.token_stride, kv.part_stride, kv.head_stride, kv.block_stride};
    for (int i = 0; i < 5; i++) {
        tensor.dims[i] = dims[i];
        tensor.box[i] = 1;
    }
    for (int i = 0; i < 4; i++) {
        tensor.strides[i] = strides[i];
    }
    tensor.box[0] = 128 / tensor.element_bytes;
    tensor.box[1] = kv.block_tokens < chunk ? kv.block_tokens : chunk;
    tensor.swizzle = SIMT_SWIZZLE_128;
    return simt_tensor_map_encode(&tensor, map_out);
}

/* Items of so many bytes of scores a segment: attention_spread has kernels for these head dims. */
#define ATTENTION_SPREAD_BYTES ((size_t)16 * K_CUDA_ATTENTION_SEGMENT * sizeof(float))
constexpr bool attention_can_spread(uint32_t head_dim)
{
    return head_dim >= 64 && head_dim <= 128 && head_dim % 32 == 0;
}

/* Tiles of 16 packed rows, for decode; of attention_mma_tile, for everything longer. */
enum { ATTENTION_MMA_SMALL_TILE = 16 };
template <int D> constexpr int attention_mma_tile = D <= 192 ? 64 : 32; /* as registers allow */
template <int D> cudaError_t attention_mma_launch(const attention_launch_t &launch, bool is_small);

/* Tiles of 128 packed rows by wgmma. False: this view or device does not allow it. */
bool attention_hopper_can(const attention_params_t &params, k_dtype_t kv);
cudaError_t attention_hopper_launch(const attention_launch_t &launch);
