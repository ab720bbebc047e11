/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_ranks_vectors: a block's copies of any alignment, and sums of what ranks have written. For .cu
 * files.
 */
#pragma once

#include "kernels/cuda/cuda_ranks_group.cuh"

enum { RANKS_UNROLL = 4 /* of copies */ };

/* ---- copies ---------------------------------------------------------------------------------- */

SIMT_DEVICE bool is_aligned(const void *a, const void *b, size_t unit)
{
    return (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % unit == 0;
}

SIMT_DEVICE uint4 load_word(const char *at, uint4)
{
    return simt_load_16(at);
}

template <class W> SIMT_DEVICE W load_word(const char *at, W)
{
    return *reinterpret_cast<const W *>(at);
}

SIMT_DEVICE void store_word(char *at, uint4 word)
{
    simt_store_16(at, word);
}

template <class W> SIMT_DEVICE void store_word(char *at, W word)
{
    *reinterpret_cast<W *>(at) = word;
}

/* dst(k): the k-th of `count` places to write to, aligned as src is. RANKS_UNROLL loads are on their
 * way. */
template <class W, class D>
SIMT_DEVICE void copy_words(D dst, uint32_t count, const char *src, size_t first, size_t last)
{
    const size_t stride = blockDim.x * sizeof(W);
    size_t at = first + threadIdx.x * sizeof(W);
    for (; at + (RANKS_UNROLL - 1) * stride + sizeof(W) <= last; at += RANKS_UNROLL * stride) {
        W words[RANKS_UNROLL];
        SIMT_UNROLL
        for (int i = 0; i < RANKS_UNROLL; i++) {
            words[i] = load_word(src + at + i * stride, W{});
        }
        for (uint32_t k = 0; k < count; k++) {
            SIMT_UNROLL
            for (int i = 0; i < RANKS_UNROLL; i++) {
                store_word(dst(k) + at + i * stride, words[i]);
            }
        }
    }
    for (; at + sizeof(W) <= last; at += stride) {
        const W word = load_word(src + at, W{});
        for (uint32_t k = 0; k < count; k++) {
            store_word(dst(k) + at, word);
        }
    }
}

template <class D>
SIMT_DEVICE void copy_to_each(D dst, uint32_t count, const char *like, const char *src,
                              size_t bytes)
{
    size_t done = 0;
    if (is_aligned(src, like, 16)) {
        copy_words<uint4>(dst, count, src, 0, bytes);
        done = bytes / 16 * 16;
    } else if (is_aligned(src, like, 4)) {
        copy_words<uint32_t>(dst, count, src, 0, bytes);
        done = bytes / 4 * 4;
    }
    copy_words<uint8_t>(dst, count, src, done, bytes);
}

SIMT_DEVICE void copy(char *dst, const char *src, size_t bytes)
{
    copy_to_each([dst](uint32_t) { return dst; }, 1, dst, src, bytes);
}

/* To this rank's place on every rank, and its own. */
SIMT_DEVICE void give_to_all(const cuda_ranks_t &g, uint32_t step, const void *src, size_t bytes)
{
    copy_to_each([&g, step](uint32_t rank) { return place_of(g, rank, step, g.rank); }, g.size,
                 nullptr, static_cast<const char *>(src), bytes);
}

/* ---- sums ------------------------------------------------------------------------------------ */

template <class T> constexpr int LANES = 16 / sizeof(T);
template <class T> constexpr bool IS_F16 = false;
template <> constexpr bool IS_F16<__half> = true;

template <class T> SIMT_DEVICE void unpack(uint4 v, float (&x)[4])
{
    x[0] = simt_bits_float(v.x);
    x[1] = simt_bits_float(v.y);
    x[2] = simt_bits_float(v.z);
    x[3] = simt_bits_float(v.w);
}

template <class T> SIMT_DEVICE void unpack(uint4 v, float (&x)[8])
{
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
        const float2 pair = IS_F16<T> ? simt_unpack_f16(words[i]) : simt_unpack_bf16(words[i]);
        x[2 * i] = pair.x;
        x[2 * i + 1] = pair.y;
    }
}

template <class T> SIMT_DEVICE uint4 pack(const float (&x)[4])
{
    return {simt_float_bits(x[0]), simt_float_bits(x[1]), simt_float_bits(x[2]),
            simt_float_bits(x[3])};
}

template <class T> SIMT_DEVICE uint4 pack(const float (&x)[8])
{
    uint32_t words[4];
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
        words[i] = IS_F16<T> ? simt_pack_f16(x[2 * i], x[2 * i + 1])
                             : simt_pack_bf16(x[2 * i], x[2 * i + 1]);
    }
    return {words[0], words[1], words[2], words[3]};
}

/* vector(k): part k's, added in the order of k. */
template <class T, class V> SIMT_DEVICE uint4 add_vectors(V vector, uint32_t n_parts)
{
    float sum[LANES<T>];
    unpack<T>(vector(0u), sum);
    for (uint32_t part = 1; part < n_parts; part++) {
        float x[LANES<T>];
        unpack<T>(vector(part), x);
        SIMT_UNROLL
        for (int k = 0; k < LANES<T>; k++) {
            sum[k] += x[k];
        }
    }
    return pack<T>(sum);
}

/* What lies at the ranks' places of this rank at the step, vector i of it. */
template <class T> SIMT_DEVICE uint4 sum_vector(const cuda_ranks_t &g, uint32_t step, size_t i)
{
    return add_vectors<T>(
        [&g, step, i](uint32_t rank) {
            return simt_load_16(place_of(g, g.rank, step, rank) + i * 16);
        },
        g.size);
}

/* Vector i of an array [count] of any alignment, zeroes behind its end. */
template <class T> SIMT_DEVICE uint4 load_vector(const char *array, size_t i, size_t count)
{
    const size_t at = i * LANES<T>;
    uint32_t words[4] = {};
    if (at + LANES<T> <= count && is_aligned(array, nullptr, 16)) {
        return simt_load_16(array + i * 16);
    }
    SIMT_UNROLL
    for (int k = 0; k < LANES<T>; k++) {
        if (at + k >= count) {
            continue;
        }
        if constexpr (sizeof(T) == 4) {
            words[k] = reinterpret_cast<const uint32_t *>(array)[at + k];
        } else {
            words[k / 2] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t *>(array)[at + k])
                            << k % 2 * 16;
        }
    }
    return {words[0], words[1], words[2], words[3]};
}

/* Vector i of out [count], which may end within it. */
template <class T> SIMT_DEVICE void store_vector(T *out, size_t i, size_t count, uint4 v)
{
    const size_t at = i * LANES<T>;
    if (at + LANES<T> <= count && is_aligned(out, nullptr, 16)) {
        simt_store_16(out + at, v);
        return;
    }
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    SIMT_UNROLL
    for (int k = 0; k < LANES<T>; k++) {
        if (at + k >= count) {
            continue;
        }
        if constexpr (sizeof(T) == 4) {
            out[at + k] = simt_bits_float(words[k]);
        } else {
            reinterpret_cast<uint16_t *>(out)[at + k] =
                static_cast<uint16_t>(words[k / 2] >> k % 2 * 16);
        }
    }
}

template <class T>
SIMT_DEVICE void sum_places(const cuda_ranks_t &g, uint32_t step, T *out, size_t count)
{
    size_t i = threadIdx.x;
    for (; (i + blockDim.x) * LANES<T> < count; i += 2 * blockDim.x) { /* two on their way */
        const uint4 v = sum_vector<T>(g, step, i);
        const uint4 next = sum_vector<T>(g, step, i + blockDim.x);
        store_vector(out, i, count, v);
        store_vector(out, i + blockDim.x, count, next);
    }
    if (i * LANES<T> < count) {
        store_vector(out, i, count, sum_vector<T>(g, step, i));
    }
}

/* The same, and the sum goes to this rank's place of the next step on every rank. */
template <class T>
SIMT_DEVICE void sum_and_give(const cuda_ranks_t &g, uint32_t step, T *out, size_t count)
{
    for (size_t i = threadIdx.x; i * LANES<T> < count; i += blockDim.x) {
        const uint4 v = sum_vector<T>(g, step, i);
        store_vector(out, i, count, v);
        for (uint32_t rank = 0; rank < g.size; rank++) {
            if (rank != g.rank) {
                simt_store_16(place_of(g, rank, step + 1, g.rank) + i * 16, v);
            }
        }
    }
}

/* ---- host ------------------------------------------------------------------------------------ */

/* launch(element): an element of the type, of which only that counts. */
template <class F> static cudaError_t launch_of_type(cuda_ranks_dtype_t dtype, F launch)
{
    switch (dtype) {
    case CUDA_RANKS_F32:
        return launch(float{});
    case CUDA_RANKS_F16:
        return launch(__half{});
    case CUDA_RANKS_BF16:
        break;
    }
    return launch(__nv_bfloat16{});
}
