/* SPDX-License-Identifier: Apache-2.0 */
/*
 * linear_store: what happens to a linear's sums: bias, SwiGLU, residual, conversion.
 *
 * One function for all kernels, without a product that feeds a sum, so that the compiler cannot
 * round one kernel's results otherwise than another's.
 */
#pragma once

#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/simt.h"

typedef struct linear_store {
    void *y;
    const float *bias;
    size_t y_stride;
    uint32_t w_rows;
    uint32_t rows; /* of x and y */
    k_cuda_out_t out;
    bool pairs; /* elements 2i and 2i + 1 of a row of y may be written by one store of 4 bytes */
} linear_store_t;

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
    const bool is_odd = (o & 1) != 0;
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

SIMT_DEVICE void linear_add_bias(const linear_store_t &s, uint32_t unit, float (&v)[4])
{
    if (s.bias == nullptr) {
        return;
    }
    const uint32_t g = (uint32_t)simt_lane() / 4;
    const bool is_gate_up = s.out == K_CUDA_OUT_SWIGLU;
    SIMT_UNROLL
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t source = is_gate_up ? unit * 8 + g + half * (s.w_rows / 2)
                                           : unit * LINEAR_UNIT_ROWS + g + half * 8;
        const float bias = source < s.w_rows ? s.bias[source] : 0.0f;
        v[2 * half] += bias;
        v[2 * half + 1] += bias;
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
    const uint32_t t = (uint32_t)simt_lane() % 4;
    const uint32_t row = unit * LINEAR_UNIT_ROWS + g;
    float *const y = static_cast<float *>(s.y) + row;
    float old[N][4];
    if (s.out == K_CUDA_OUT_ADD) { /* all loads first: none waits for a store */
        SIMT_UNROLL
        for (int n = 0; n < 4 * N; n++) {
            const uint32_t at = token + n / 4 * 8 + 2 * t + n % 2;
            const uint32_t half = n % 4 / 2 * 8;
            old[n / 4][n % 4] =
                at < s.rows && row + half < s.w_rows ? y[at * s.y_stride + half] : 0;
        }
    }
    SIMT_UNROLL
    for (int n = 0; n < N; n++) {
        float v[4] = {d[4 * n], d[4 * n + 1], d[4 * n + 2], d[4 * n + 3]};
        const uint32_t at = token + n * 8 + 2 * t;
        linear_add_bias(s, unit, v);
        if (s.out == K_CUDA_OUT_SWIGLU) {
            linear_store_bf16(s, s.w_rows / 2, unit * 8 + g, at, linear_silu(v[0]) * v[2],
                              linear_silu(v[1]) * v[3]);
        } else if (s.out == K_CUDA_OUT_BF16) {
            linear_store_bf16(s, s.w_rows, row, at, v[0], v[1]);
            linear_store_bf16(s, s.w_rows, row + 8, at, v[2], v[3]);
        } else {
            SIMT_UNROLL
            for (int i = 0; i < 4; i++) {
                if (at + i % 2 < s.rows && row + i / 2 * 8 < s.w_rows) {
                    float *to = y + (at + i % 2) * s.y_stride + i / 2 * 8;
                    *to = s.out == K_CUDA_OUT_ADD ? old[n][i] + v[i] : v[i];
                }
            }
        }
    }
}
