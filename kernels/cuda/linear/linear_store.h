/* SPDX-License-Identifier: Apache-2.0 */
/*
 * linear_store: what happens to a linear's sums: bias, SwiGLU, residual, conversion.
 *
 * One function for all kernels, without a product that feeds a sum, so that the compiler cannot
 * round one kernel's results otherwise than another's.
 */
#pragma once

#include "kernels/cuda/linear/cuda_linear.h"
#include "kernels/cuda/simt/simt.h"

typedef struct linear_store {
    void *y;
    const float *bias;
    size_t y_stride;
    uint32_t w_rows;
    uint32_t rows; /* of x and y */
    k_cuda_out_t out;
    bool pairs; /* elements 2i and 2i + 1 of a row of y may be written by one store of 4 bytes */
} linear_store_t;

constexpr bool linear_is_bf16(k_cuda_out_t out)
{
    return out == K_CUDA_OUT_BF16 || out == K_CUDA_OUT_SWIGLU;
}

inline linear_store_t linear_store_of(const k_cuda_linear_t *args)
{
    linear_store_t store = {};
    store.y = args->y;
    store.bias = args->bias;
    store.y_stride = args->y_stride;
    store.w_rows = args->w.rows;
    store.rows = args->rows;
    store.out = args->out;
    store.pairs = args->y_stride % 2 == 0 && (uintptr_t)args->y % 4 == 0;
    return store;
}

SIMT_DEVICE float linear_silu(float x)
{
    return x * simt_rcp(1.0f + simt_exp2(x * -1.4426950408889634f));
}

/*
 * A lane pair (lanes l and l ^ 4: neighbouring outputs o, o + 1) swaps, so that each lane writes two
 * neighbouring outputs of one token. v: tokens `token` and token + 1 of output o.
 */
SIMT_DEVICE void linear_store_bf16(const linear_store_t &s, uint32_t outputs, uint32_t o,
                                   uint32_t token, float v0, float v1)
{
    const uint32_t mine = simt_pack_bf16(v0, v1);
    const uint32_t other = simt_shfl_xor(mine, 4);
    const uint32_t is_odd = o & 1;
    const uint32_t pair =
        is_odd ? simt_byte_perm(other, mine, 0x7632) : simt_byte_perm(mine, other, 0x5410);
    token += is_odd;
    o &= ~1u;
    if (token >= s.rows || o >= outputs) {
        return;
    }
    uint16_t *y = static_cast<uint16_t *>(s.y) + token * s.y_stride + o;
    if (s.pairs && o + 1 < outputs) {
        *reinterpret_cast<uint32_t *>(y) = pair;
        return;
    }
    y[0] = (uint16_t)pair;
    if (o + 1 < outputs) {
        y[1] = (uint16_t)(pair >> 16);
    }
}

/* The bias of packed rows g and g + 8 of a unit. */
SIMT_DEVICE float2 linear_bias(const linear_store_t &s, uint32_t unit, uint32_t g)
{
    const bool is_gate_up = s.out == K_CUDA_OUT_SWIGLU;
    const uint32_t low = is_gate_up ? unit * 8 + g : unit * LINEAR_UNIT_ROWS + g;
    const uint32_t high = is_gate_up ? s.w_rows / 2 + low : low + 8;
    float2 bias = make_float2(0, 0);
    if (s.bias != nullptr) {
        bias.x = low < s.w_rows ? s.bias[low] : 0.0f;
        bias.y = high < s.w_rows ? s.bias[high] : 0.0f;
    }
    return bias;
}

/* The residual stream is added to in memory, by one atomic an element: nothing waits for a load. */
template <int N, bool ADDS>
SIMT_DEVICE void linear_store_f32(const linear_store_t &s, uint32_t row, uint32_t token,
                                  const float *d, float2 bias)
{
    float *const y = static_cast<float *>(s.y) + token * s.y_stride + row;
    SIMT_UNROLL
    for (int n = 0; n < 4 * N; n++) {
        const uint32_t step = n / 4 * 8 + n % 2;
        const uint32_t half = n % 4 / 2 * 8;
        const float v = d[n] + (half == 0 ? bias.x : bias.y);
        float *to = y + step * s.y_stride + half;
        if (token + step < s.rows && row + half < s.w_rows) {
            if constexpr (ADDS) {
                simt_atomic_add(to, v);
            } else {
                *to = v;
            }
        }
    }
}

/*
 * N fragments of one unit: d[4j + i] as simt_mma's d of tokens token + 8j...  All lanes call.
 */
template <int N>
SIMT_DEVICE void linear_store_fragments(const linear_store_t &s, uint32_t unit, uint32_t token,
                                        const float *d)
{
    const uint32_t g = (uint32_t)simt_lane() / 4;
    const uint32_t row = unit * LINEAR_UNIT_ROWS + g;
    const float2 bias = linear_bias(s, unit, g);
    token += (uint32_t)simt_lane() % 4 * 2;
    switch (s.out) {
    case K_CUDA_OUT_ADD:
        linear_store_f32<N, true>(s, row, token, d, bias);
        break;
    case K_CUDA_OUT_F32:
        linear_store_f32<N, false>(s, row, token, d, bias);
        break;
    case K_CUDA_OUT_BF16:
        SIMT_UNROLL
        for (int n = 0; n < N; n++) {
            const float *v = d + 4 * n;
            linear_store_bf16(s, s.w_rows, row, token + n * 8, v[0] + bias.x, v[1] + bias.x);
            linear_store_bf16(s, s.w_rows, row + 8, token + n * 8, v[2] + bias.y, v[3] + bias.y);
        }
        break;
    case K_CUDA_OUT_SWIGLU:
        SIMT_UNROLL
        for (int n = 0; n < N; n++) {
            const float *v = d + 4 * n;
            linear_store_bf16(s, s.w_rows / 2, unit * 8 + g, token + n * 8,
                              linear_silu(v[0] + bias.x) * (v[2] + bias.y),
                              linear_silu(v[1] + bias.x) * (v[3] + bias.y));
        }
        break;
    }
}
