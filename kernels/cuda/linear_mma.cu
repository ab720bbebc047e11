/* SPDX-License-Identifier: Apache-2.0 */
/*
 * y = x Wᵀ by mma.sync, any dtype, any GPU since sm_80.
 *
 * Few tokens: a block of 8 warps makes one unit of 16 rows of W after the other. Each warp walks one
 * of the fixed parts of K: its ring in shared memory has several k blocks of W on their way, which
 * were packed as lanes want their fragments; its part of x lies beside. The parts are added
 * in order. Many tokens: each warp has a unit of its own and all of K; stages of x are shared.
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

/* A warp's part of K of the tokens, in shared memory. */
typedef struct part {
    uint32_t first; /* k block */
    uint32_t last;
    uint8_t *x; /* [rows][row_bytes] */
    uint32_t row_bytes;
} part_t;

/* Bytes of x in shared memory: rows are 32 bytes apart beyond a multiple of 128, so that lanes that
 * read together meet no bank twice. */
static uint32_t shared_x_bytes(uint32_t rows, uint32_t k_blocks)
{
    return rows * (k_blocks * 128 + SPLITS * 32);
}

SIMT_DEVICE part_t part_of(const linear_mma_t &p, uint32_t split, uint8_t *shared)
{
    part_t part;
    part.first = p.k_blocks * split / SPLITS;
    part.last = p.k_blocks * (split + 1) / SPLITS;
    part.row_bytes = (part.last - part.first) * 128 + 32;
    part.x = shared + p.store.rows * (part.first * 128 + split * 32);
    return part;
}

/* Copies the warp's part of x; a piece is 4 elements. */
SIMT_DEVICE void copy_x(const linear_mma_t &p, const part_t &part)
{
    const uint32_t pieces = (part.last - part.first) * 16;
    for (uint32_t i = (uint32_t)simt_lane(); i < pieces * p.store.rows; i += SIMT_WARP) {
        const uint32_t row = i / pieces;
        const uint32_t k = part.first * LINEAR_K_BLOCK + i % pieces * 4;
        uint8_t *to = part.x + row * part.row_bytes + i % pieces * 8;
        if (p.x_pieces && k + 4 <= p.columns) {
            simt_cp_async<8>(to, p.x + row * p.x_stride + k);
        } else {
            *reinterpret_cast<uint2 *>(to) = load_x(p, row, k);
        }
    }
    simt_cp_async_commit();
    simt_cp_async_wait<0>();
    simt_sync_warp();
}

/* Adds the parts of a unit in order and stores; the warps take turns. acc begins anew. */
template <int NT>
SIMT_DEVICE void finish(const linear_mma_t &p, float (&parts)[SPLITS][NT][4][SIMT_WARP],
                        uint32_t unit, uint32_t turn, float (&acc)[NT][4])
{
    const uint32_t split = (uint32_t)simt_warp();
    const uint32_t lane = (uint32_t)simt_lane();
    SIMT_UNROLL
    for (int i = 0; i < 4 * NT; i++) {
        parts[split][i / 4][i % 4][lane] = acc[i / 4][i % 4];
        acc[i / 4][i % 4] = 0;
    }
    simt_sync_block();
    const uint32_t n = (split + turn) % SPLITS;
    if (n < NT) {
        float sum[4];
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            sum[i] = parts[0][n][i][lane];
            SIMT_UNROLL
            for (int s = 1; s < SPLITS; s++) {
                sum[i] += parts[s][n][i][lane];
            }
        }
        linear_store_fragments<1>(p.store, unit, n * 8, sum);
    }
}

/* Blocks of a warp's own ring: all but one are on their way. */
template <class W> constexpr uint32_t ring_depth()
{
    return W::BYTES <= 1152 ? 8 : 8192 / W::BYTES;
}

/* Where the ring's copies have come to in the walk over all of this block's units. */
typedef struct ahead {
    const uint8_t *from;
    uint32_t unit;
    uint32_t kb;
    uint32_t stage;
} ahead_t;

template <class W>
SIMT_DEVICE void ahead_begin(const linear_mma_t &p, const part_t &part, ahead_t &at, uint32_t unit)
{
    at.unit = unit;
    at.kb = part.first;
    at.from = W::block(p.weights, unit, part.first, p.k_blocks);
}

/* Begins to copy the next block; past the end a group of no copies. */
template <class W>
SIMT_DEVICE void ring_copy(const linear_mma_t &p, const part_t &part, uint8_t *ring, ahead_t &at)
{
    if (at.unit < p.units) {
        uint8_t *to = ring + at.stage * W::BYTES;
        SIMT_UNROLL
        for (uint32_t i = 0; i < W::BYTES; i += 16 * SIMT_WARP) {
            const uint32_t piece = i + (uint32_t)simt_lane() * 16;
            if (i + 16 * SIMT_WARP <= W::BYTES || piece < W::BYTES) {
                simt_cp_async<16>(to + piece, at.from + piece);
            }
        }
        at.stage = (at.stage + 1) % ring_depth<W>();
        at.from += W::STRIDE;
        if (++at.kb == part.last) {
            ahead_begin<W>(p, part, at, at.unit + gridDim.x);
        }
    }
    simt_cp_async_commit();
}

/* Blocks that should share a multiprocessor. */
template <class W> constexpr int few_blocks()
{
    return W::PARTS > 1 ? 1 : W::BYTES <= 640 ? 4 : W::BYTES <= 1152 ? 3 : 2;
}

/* Units blockIdx.x, + gridDim.x, …; each warp's ring runs on over their ends. */
template <class W, int NT>
static SIMT_KERNEL(32 * SPLITS, NT == 1 ? few_blocks<W>() : 1) linear_mma_few(const linear_mma_t p)
{
    constexpr uint32_t DEPTH = ring_depth<W>();
    SIMT_SHARED(float, parts, [2][SPLITS][NT][4][SIMT_WARP]);
    SIMT_DYN_SHARED(uint8_t, shared);
    const uint32_t split = (uint32_t)simt_warp();
    const uint32_t g = (uint32_t)simt_lane() / 4;
    const uint32_t t = (uint32_t)simt_lane() % 4;
    uint8_t *ring = shared + split * DEPTH * W::BYTES;
    const part_t part = part_of(p, split, shared + SPLITS * DEPTH * W::BYTES);
    const uint8_t *x[NT]; /* of a token that is not there any other's: its sums are dropped */
    float acc[NT][4] = {};
    ahead_t ahead = {};
    uint32_t stage = 0;

    simt_launch_next();
    SIMT_UNROLL
    for (uint32_t n = 0; n < NT; n++) {
        const uint32_t row = n * 8 + g < p.store.rows ? n * 8 + g : 0;
        x[n] = part.x + row * part.row_bytes + t * 8;
    }
    ahead_begin<W>(p, part, ahead, part.first < part.last ? blockIdx.x : p.units);
    for (uint32_t i = 0; i + 1 < DEPTH; i++) {
        ring_copy<W>(p, part, ring, ahead);
    }
    simt_wait_previous(); /* x and y are its; the weights are nobody's */
    copy_x(p, part);
    uint32_t turn = 0;
    for (uint32_t unit = blockIdx.x; unit < p.units; unit += gridDim.x, turn++) {
        for (uint32_t kb = 0; kb < part.last - part.first; kb++) {
            simt_cp_async_wait<DEPTH - 2>();
            simt_sync_warp(); /* the block is there for all lanes; the stage before is free */
            ring_copy<W>(p, part, ring, ahead);
            const typename W::raw w = W::load(ring + stage * W::BYTES, g, t);
            multiply<W, NT>(w, acc, [&](int n, int j) {
                return *reinterpret_cast<const uint2 *>(x[n] + kb * 128 + j * 32);
            });
            stage = (stage + 1) % DEPTH;
        }
        finish<NT>(p, parts[turn % 2], unit, turn * NT, acc);
    }
}

/* ---- many tokens ----------------------------------------------------------------------------- */

#define WIDE_UNITS  8 /* at most; a warp each */
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
    for (uint32_t i = threadIdx.x; i < WIDE_TOKENS * 8 && kb < p.k_blocks; i += blockDim.x) {
        const uint32_t at = token + i / 8;
        const uint32_t k = kb * LINEAR_K_BLOCK + i % 8 * 8;
        uint8_t *to = stage + wide_chunk(i / 8, i % 8);
        if (p.x_chunks) {
            const uint32_t left = at < p.store.rows && k < p.columns ? (p.columns - k) * 2 : 0;
            const uint16_t *from = left != 0 ? p.x + at * p.x_stride + k : p.x;
            simt_cp_async_zfill<16>(to, from, left < 16 ? left : 16);
        } else {
            *reinterpret_cast<uint2 *>(to) = load_x(p, at, k);
            *reinterpret_cast<uint2 *>(to + 8) = load_x(p, at, k + 4);
        }
    }
    simt_cp_async_commit();
}

/*
 * A unit of W for each warp × 64 tokens. A warp walks all parts of K one after the other: the same
 * sums as those of 8 warps that take a part each.
 */
template <class W> static SIMT_KERNEL(32 * WIDE_UNITS, 1) linear_mma_wide(const linear_mma_t p)
{
    constexpr int NT = WIDE_TOKENS / 8;
    SIMT_DYN_SHARED(uint8_t, stages);
    const uint32_t g = (uint32_t)simt_lane() / 4;
    const uint32_t t = (uint32_t)simt_lane() % 4;
    const uint32_t token = blockIdx.x * WIDE_TOKENS;
    const uint32_t unit = blockIdx.y * (blockDim.x / SIMT_WARP) + (uint32_t)simt_warp();
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

/* Rows whose x a block's shared memory can hold beside the ring and the parts. */
template <class W> static uint32_t few_rows(uint32_t k_blocks, uint32_t shared_bytes)
{
    const uint32_t parts = 2 * SPLITS * 2 * 4 * SIMT_WARP * 4;
    const uint32_t taken = SPLITS * ring_depth<W>() * W::BYTES + parts;
    return taken < shared_bytes ? (shared_bytes - taken) / shared_x_bytes(1, k_blocks) : 0;
}

template <class W, int NT>
static cudaError_t launch_few(const linear_mma_t &p, const linear_device_t &device,
                              cudaStream_t stream)
{
    const uint32_t blocks = device.processors * (NT == 1 ? few_blocks<W>() : 1);
    return simt_launch(linear_mma_few<W, NT>,
                       {.grid = {p.units < blocks ? p.units : blocks},
                        .block = {32 * SPLITS},
                        .shared_bytes = SPLITS * ring_depth<W>() * W::BYTES +
                                        shared_x_bytes(p.store.rows, p.k_blocks),
                        .stream = stream,
                        .overlaps_previous = true},
                       p);
}

template <class W>
static cudaError_t launch_wide(const linear_mma_t &p, const linear_device_t &device,
                               cudaStream_t stream)
{
    const uint32_t tokens = (p.store.rows + WIDE_TOKENS - 1) / WIDE_TOKENS;
    uint32_t units = WIDE_UNITS; /* fewer a block when that keeps more processors busy */
    while (units > 2 && tokens * ((p.units + units - 1) / units) < device.processors) {
        units /= 2;
    }
    return simt_launch(linear_mma_wide<W>,
                       {.grid = {tokens, (p.units + units - 1) / units},
                        .block = {32 * units},
                        .shared_bytes = WIDE_STAGES * WIDE_STAGE,
                        .stream = stream,
                        .overlaps_previous = true},
                       p);
}

/* Few rows, in several launches where shared memory cannot hold them all. */
template <class W>
static cudaError_t launch_rows(linear_mma_t p, const linear_device_t &device, cudaStream_t stream)
{
    const uint32_t rows = p.store.rows;
    const uint32_t fit = few_rows<W>(p.k_blocks, device.shared_bytes);
    if (rows > 16 || fit == 0) {
        return launch_wide<W>(p, device, stream);
    }
    const size_t y_bytes = linear_is_bf16(p.store.out) ? 2 : 4;
    cudaError_t error = cudaSuccess;
    for (uint32_t row = 0; row < rows && error == cudaSuccess; row += p.store.rows) {
        p.store.rows = rows - row < fit ? rows - row : fit;
        error = p.store.rows <= 8 ? launch_few<W, 1>(p, device, stream)
                                  : launch_few<W, 2>(p, device, stream);
        p.x += p.store.rows * p.x_stride;
        p.store.y = static_cast<char *>(p.store.y) + p.store.rows * p.store.y_stride * y_bytes;
    }
    return error;
}

extern "C" int k_cuda_linear_mma(const k_cuda_linear_t *args, const linear_device_t *device,
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
        return launch_rows<format>(p, *device, stream);
        WEIGHT_FORMATS(DO)
#undef DO
    default:
        return cudaErrorNotSupported;
    }
}
