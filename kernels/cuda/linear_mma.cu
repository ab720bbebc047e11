/* SPDX-License-Identifier: Apache-2.0 */
/*
 * y = x Wᵀ by mma.sync, any dtype, any GPU since sm_80.
 *
 * Few tokens: a block of 8 warps makes one unit of 16 rows of W × NT groups of 8 tokens. Each warp
 * walks one of the fixed parts of K alone, from registers to registers: a lane loads its fragments
 * of W, which were packed for it, several k blocks ahead, and its pieces of x. The parts are added
 * in order. Many tokens: each warp has a unit of its own and all of K; x is shared.
 */
#include "kernels/cuda/cuda_linear_priv.h"
#include "kernels/cuda/linear_store.h"
#include "kernels/cuda/simt.h"
#include "kernels/cuda/weight_formats.h"

#define SPLITS LINEAR_MMA_SPLITS

typedef struct linear_mma {
    const void *weights;
    const uint16_t *x;
    size_t x_stride;
    uint32_t columns;
    uint32_t k_blocks;
    uint32_t units;
    bool x_pieces; /* 8-byte loads of x are aligned */
    bool x_chunks; /* 16-byte ones */
    linear_store_t store;
} linear_mma_t;

/* x[token][k .. k + 3], zeroes outside. */
SIMT_DEVICE uint2 load_x(const linear_mma_t &p, uint32_t token, uint32_t k)
{
    if (token >= p.store.rows || k >= p.columns) {
        return make_uint2(0, 0);
    }
    const uint16_t *x = p.x + token * p.x_stride + k;
    if (p.x_pieces && k + 4 <= p.columns) {
        return *reinterpret_cast<const uint2 *>(x);
    }
    uint32_t v[4] = {x[0], 0, 0, 0};
    for (uint32_t i = 1; i < 4 && k + i < p.columns; i++) {
        v[i] = x[i];
    }
    return make_uint2(v[0] | v[1] << 16, v[2] | v[3] << 16);
}

/* acc += the block's part of the sum; x(n, j) gives a lane's b of token group n in step j. */
template <class W, int NT, class X>
SIMT_DEVICE void multiply(const typename W::raw &w, float (&acc)[NT][4], X x)
{
    const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    constexpr int STEPS = W::GROUP == 0 ? 4 : W::GROUP / 16; /* of a group */
    SIMT_UNROLL
    for (int group = 0; group < 4 / STEPS; group++) {
        uint32_t a[STEPS][W::PARTS][4];
        SIMT_UNROLL
        for (int j = 0; j < STEPS; j++) {
            W::fragment(w, group * STEPS + j, a[j]);
        }
        float2 scale, offset;
        if constexpr (W::GROUP != 0) {
            scale = W::scale(w, group);
            offset = W::offset(w, group);
        }
        SIMT_UNROLL
        for (int n = 0; n < NT; n++) {
            float sum[4] = {0, 0, 0, 0}, x_sum[4] = {0, 0, 0, 0};
            float(&to)[4] = W::GROUP == 0 ? acc[n] : sum;
            SIMT_UNROLL
            for (int j = 0; j < STEPS; j++) {
                const uint2 piece = x(n, group * STEPS + j);
                const uint32_t b[2] = {piece.x, piece.y};
                SIMT_UNROLL
                for (int part = 0; part < W::PARTS; part++) {
                    simt_mma_bf16(to, a[j][part], b);
                }
                if constexpr (W::HAS_MIN != 0) {
                    simt_mma_bf16(x_sum, ones, b);
                }
            }
            if constexpr (W::GROUP != 0) {
                SIMT_UNROLL
                for (int i = 0; i < 4; i++) {
                    acc[n][i] = fmaf(i < 2 ? scale.x : scale.y, sum[i], acc[n][i]);
                    if constexpr (W::HAS_MIN != 0) {
                        acc[n][i] = fmaf(i < 2 ? offset.x : offset.y, x_sum[i], acc[n][i]);
                    }
                }
            }
        }
    }
}

/* ---- few tokens ------------------------------------------------------------------------------ */

/* Sums K blocks [first, last) of unit blockIdx.y, ring blocks ahead. */
template <class W, int NT>
SIMT_DEVICE void walk(const linear_mma_t &p, uint32_t token, uint32_t first, uint32_t last,
                      float (&acc)[NT][4])
{
    const uint32_t g = (uint32_t)simt_lane() / 4;
    const uint32_t t = (uint32_t)simt_lane() % 4;
    typename W::raw ring[W::DEPTH] = {};
    SIMT_UNROLL
    for (uint32_t i = 0; i < W::DEPTH; i++) {
        if (first + i < last) {
            ring[i] = W::load(W::block(p.weights, blockIdx.y, first + i, p.k_blocks), g, t);
        }
    }
    simt_wait_previous(); /* x and y are its; the weights are nobody's */
    for (uint32_t base = first; base < last; base += W::DEPTH) {
        SIMT_UNROLL
        for (uint32_t i = 0; i < W::DEPTH; i++) {
            const uint32_t kb = base + i;
            if (kb < last) {
                const typename W::raw w = ring[i];
                if (kb + W::DEPTH < last) {
                    ring[i] =
                        W::load(W::block(p.weights, blockIdx.y, kb + W::DEPTH, p.k_blocks), g, t);
                }
                multiply<W, NT>(w, acc, [&](int n, int j) {
                    return load_x(p, token + n * 8 + g, kb * LINEAR_K_BLOCK + j * 16 + 4 * t);
                });
            }
        }
    }
}

template <class W, int NT>
static SIMT_KERNEL(32 * SPLITS, NT <= 2 ? 2 : 1) linear_mma_kernel(const linear_mma_t p)
{
    SIMT_SHARED(float, parts, [SPLITS][NT][4][SIMT_WARP]);
    const uint32_t token = blockIdx.x * NT * 8;
    const uint32_t split = (uint32_t)simt_warp();
    const uint32_t lane = (uint32_t)simt_lane();
    float acc[NT][4] = {};

    simt_launch_next();
    walk<W, NT>(p, token, p.k_blocks * split / SPLITS, p.k_blocks * (split + 1) / SPLITS, acc);
    SIMT_UNROLL
    for (int i = 0; i < 4 * NT; i++) {
        parts[split][i / 4][i % 4][lane] = acc[i / 4][i % 4];
    }
    simt_sync_block();
    for (uint32_t n = split; n < NT; n += SPLITS) {
        float sum[4];
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            sum[i] = parts[0][n][i][lane];
            SIMT_UNROLL
            for (int s = 1; s < SPLITS; s++) {
                sum[i] += parts[s][n][i][lane];
            }
        }
        linear_store_fragments<1>(p.store, blockIdx.y, token + n * 8, sum);
    }
}

/* ---- many tokens ----------------------------------------------------------------------------- */

#define WIDE_UNITS  8 /* a warp each */
#define WIDE_TOKENS 64
#define WIDE_STAGES 4
#define WIDE_STAGE  (WIDE_TOKENS * 128)

/* Where 16-byte chunk c of a token's k block lies: lanes that read together meet no bank twice. */
SIMT_DEVICE uint32_t wide_chunk(uint32_t token, uint32_t c)
{
    return token * 128 + (c ^ token % 4 * 2) * 16;
}

/* Begins to copy k block kb of the tokens from `token` on to a stage; zeroes outside of x. */
SIMT_DEVICE void wide_copy(const linear_mma_t &p, uint8_t *stage, uint32_t token, uint32_t kb)
{
    for (uint32_t i = threadIdx.x; i < WIDE_TOKENS * 8 && kb < p.k_blocks; i += 32 * WIDE_UNITS) {
        const uint32_t at = token + i / 8;
        const uint32_t k = kb * LINEAR_K_BLOCK + i % 8 * 8;
        const uint32_t left = at < p.store.rows && k < p.columns ? (p.columns - k) * 2 : 0;
        const uint16_t *from = left != 0 ? p.x + at * p.x_stride + k : p.x;
        simt_cp_async_zfill<16>(stage + wide_chunk(i / 8, i % 8), from, left < 16 ? left : 16);
    }
    simt_cp_async_commit();
}

/*
 * 8 units of W × 64 tokens. A warp walks all parts of K one after the other: the same sums as
 * those of 8 warps that take a part each.
 */
template <class W> static SIMT_KERNEL(32 * WIDE_UNITS, 1) linear_mma_wide(const linear_mma_t p)
{
    constexpr int NT = WIDE_TOKENS / 8;
    SIMT_DYN_SHARED(uint8_t, stages);
    const uint32_t g = (uint32_t)simt_lane() / 4;
    const uint32_t t = (uint32_t)simt_lane() % 4;
    const uint32_t token = blockIdx.x * WIDE_TOKENS;
    const uint32_t unit = blockIdx.y * WIDE_UNITS + (uint32_t)simt_warp();
    const uint32_t at = unit < p.units ? unit : p.units - 1; /* read and dropped */
    float acc[NT][4] = {}, sum[NT * 4] = {};

    simt_launch_next();
    typename W::raw next = W::load(W::block(p.weights, at, 0, p.k_blocks), g, t);
    simt_wait_previous();
    for (uint32_t kb = 0; kb < WIDE_STAGES - 1; kb++) {
        wide_copy(p, stages + kb * WIDE_STAGE, token, kb);
    }
    for (uint32_t split = 0, kb = 0; split < SPLITS; split++) {
        for (; kb < p.k_blocks * (split + 1) / SPLITS; kb++) {
            const typename W::raw w = next;
            if (kb + 1 < p.k_blocks) {
                next = W::load(W::block(p.weights, at, kb + 1, p.k_blocks), g, t);
            }
            simt_cp_async_wait<WIDE_STAGES - 2>();
            simt_sync_block(); /* the stage is there for all; the one before is free */
            const uint32_t ahead = kb + WIDE_STAGES - 1;
            wide_copy(p, stages + ahead % WIDE_STAGES * WIDE_STAGE, token, ahead);
            const uint8_t *stage = stages + kb % WIDE_STAGES * WIDE_STAGE;
            multiply<W, NT>(w, acc, [&](int n, int j) {
                return *reinterpret_cast<const uint2 *>(
                    stage + wide_chunk(n * 8 + g, j * 2 + t / 2) + t % 2 * 8);
            });
        }
        SIMT_UNROLL
        for (int i = 0; i < 4 * NT; i++) {
            float &part = acc[i / 4][i % 4];
            sum[i] = split == 0 ? part : sum[i] + part;
            part = 0;
        }
    }
    if (unit < p.units) {
        SIMT_UNROLL
        for (int n = 0; n < NT; n += 4) {
            linear_store_fragments<4>(p.store, unit, token + n * 8, sum + n * 4);
        }
    }
}

/* ---- host ------------------------------------------------------------------------------------ */

template <class W, int NT> static cudaError_t launch(const linear_mma_t &p, cudaStream_t stream)
{
    return simt_launch(linear_mma_kernel<W, NT>,
                       {.grid = {(p.store.rows + NT * 8 - 1) / (NT * 8), p.units},
                        .block = {32 * SPLITS},
                        .stream = stream,
                        .overlaps_previous = true},
                       p);
}

template <class W>
static cudaError_t launch_rows(const linear_mma_t &p, uint32_t processors, cudaStream_t stream)
{
    const uint32_t tokens = (p.store.rows + WIDE_TOKENS - 1) / WIDE_TOKENS;
    const uint32_t units = (p.units + WIDE_UNITS - 1) / WIDE_UNITS;
    /* too few blocks of the wide kernel leave processors idle: the other makes more */
    if (p.x_chunks && p.store.rows > 16 && tokens * units >= processors / 2) {
        return simt_launch(linear_mma_wide<W>,
                           {.grid = {tokens, units},
                            .block = {32 * WIDE_UNITS},
                            .shared_bytes = WIDE_STAGES * WIDE_STAGE,
                            .stream = stream,
                            .overlaps_previous = true},
                           p);
    }
    if (p.store.rows <= 8) {
        return launch<W, 1>(p, stream);
    }
    if (p.store.rows <= 16) {
        return launch<W, 2>(p, stream);
    }
    return p.store.rows <= 32 ? launch<W, 4>(p, stream) : launch<W, 8>(p, stream);
}

extern "C" int k_cuda_linear_mma(const k_cuda_linear_t *args, uint32_t processors,
                                 cudaStream_t stream)
{
    linear_mma_t p = {};
    p.weights = args->w.data;
    p.x = static_cast<const uint16_t *>(args->x);
    p.x_stride = args->x_stride;
    p.columns = args->w.columns;
    p.k_blocks = linear_k_blocks(args->w.columns);
    p.units = linear_units(args->w.is_gate_up, args->w.rows);
    p.x_pieces = args->x_stride % 4 == 0 && (uintptr_t)args->x % 8 == 0;
    p.x_chunks = args->x_stride % 8 == 0 && (uintptr_t)args->x % 16 == 0;
    p.store = linear_store_of(args);
    switch (args->w.dtype) {
#define DO(dtype, format)                                                                          \
    case dtype:                                                                                    \
        return launch_rows<format>(p, processors, stream);
        WEIGHT_FORMATS(DO)
#undef DO
    default:
        return cudaErrorNotSupported;
    }
}
