/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda_rows: rows of elements as f32 in registers, N at a time: 16-byte accesses where N is 4 or 8
 * (f32) or 8 (bf16), single elements where N is 1. For .cu files.
 */
#pragma once

#include "kernels/cuda/simt.h"

/* ---- loads and stores ---------------------------------------------------------------------- */

template <int N> SIMT_DEVICE void k_rows_load(const float *from, float (&v)[N])
{
    if constexpr (N == 1) {
        v[0] = from[0];
    } else {
        SIMT_UNROLL
        for (int i = 0; i < N; i += 4) {
            const uint4 raw = simt_load_16(from + i);
            v[i] = simt_bits_float(raw.x);
            v[i + 1] = simt_bits_float(raw.y);
            v[i + 2] = simt_bits_float(raw.z);
            v[i + 3] = simt_bits_float(raw.w);
        }
    }
}

template <int N> SIMT_DEVICE void k_rows_load(const __nv_bfloat16 *from, float (&v)[N])
{
    static_assert(N == 1 || N == 4 || N == 8, "single elements, 8 or 16 bytes");
    if constexpr (N == 1) {
        v[0] = __bfloat162float(from[0]);
    } else if constexpr (N == 4) {
        const uint2 raw = *reinterpret_cast<const uint2 *>(from);
        const float2 low = simt_unpack_bf16(raw.x);
        const float2 high = simt_unpack_bf16(raw.y);
        v[0] = low.x;
        v[1] = low.y;
        v[2] = high.x;
        v[3] = high.y;
    } else {
        const uint4 raw = simt_load_16(from);
        const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            const float2 pair = simt_unpack_bf16(pairs[i]);
            v[2 * i] = pair.x;
            v[2 * i + 1] = pair.y;
        }
    }
}

template <int N> SIMT_DEVICE void k_rows_store(float *to, const float (&v)[N])
{
    if constexpr (N == 1) {
        to[0] = v[0];
    } else {
        SIMT_UNROLL
        for (int i = 0; i < N; i += 4) {
            const uint4 raw = {simt_float_bits(v[i]), simt_float_bits(v[i + 1]),
                               simt_float_bits(v[i + 2]), simt_float_bits(v[i + 3])};
            simt_store_16(to + i, raw);
        }
    }
}

/* Rounded to nearest even. */
template <int N> SIMT_DEVICE void k_rows_store(__nv_bfloat16 *to, const float (&v)[N])
{
    static_assert(N == 1 || N == 4 || N == 8, "single elements, 8 or 16 bytes");
    if constexpr (N == 1) {
        to[0] = __float2bfloat16_rn(v[0]);
    } else if constexpr (N == 4) {
        const uint2 raw = {simt_pack_bf16(v[0], v[1]), simt_pack_bf16(v[2], v[3])};
        *reinterpret_cast<uint2 *>(to) = raw;
    } else {
        const uint4 raw = {simt_pack_bf16(v[0], v[1]), simt_pack_bf16(v[2], v[3]),
                           simt_pack_bf16(v[4], v[5]), simt_pack_bf16(v[6], v[7])};
        simt_store_16(to, raw);
    }
}

/* ---- reductions ---------------------------------------------------------------------------- */

/*
 * The sum over the block's threads, the same bits in each: lanes by simt_warp_sum, then warps in the
 * same way. partial: 32 floats of shared memory, not in use; blocks of at most 1024 threads.
 */
SIMT_DEVICE float k_rows_block_sum(float v, float *partial)
{
    v = simt_warp_sum(v);
    if (simt_lane() == 0) {
        partial[simt_warp()] = v;
    }
    simt_sync_block();
    const int warps = (int)(blockDim.x / SIMT_WARP);
    return simt_warp_sum(simt_lane() < warps ? partial[simt_lane()] : 0.0f);
}

/* ---- host ---------------------------------------------------------------------------------- */

/* The array can be accessed 16 bytes at a time, n elements, from the start of any row. */
inline bool k_rows_are_wide(const void *at, size_t stride, size_t element_bytes)
{
    return (uintptr_t)at % 16 == 0 && stride * element_bytes % 16 == 0;
}

inline uint32_t k_rows_ceil_div(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}
