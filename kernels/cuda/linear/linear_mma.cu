/* SPDX-License-Identifier: Apache-2.0 */
/*
 * y = x Wᵀ by mma.sync, any dtype, any GPU since sm_80.
 *
 * Few tokens: a block of 8 warps makes one unit of 16 rows of W after the other. Each warp walks one
 * of the fixed parts of K: its ring in shared memory has several k blocks of W on their way, which were
 * packed as lanes want their fragments; its part of x lies beside. The parts are added in order.
 *
 * Many tokens: each warp has a unit of its own and all of K; stages of x are shared.
 */
#include "kernels/cuda/linear/linear_mma.cuh"

/* ---- few tokens ------------------------------------------------------------------------------ */

template <class W>
SIMT_DEVICE void begin_unit(const linear_mma_t &p, const part_t &part, ahead_t &at, uint32_t unit)
{
    at.unit = unit;
    at.left = unit < p.units ? (int)(part.last - part.first) : 0;
    at.from = W::block(p.weights, unit, part.first, p.k_blocks);
}

/* Units blockIdx.x, + gridDim.x, … IS_ONE: of one token. */
template <class W, int NT, bool IS_ONE>
static SIMT_KERNEL(32 * SPLITS, (few_blocks<W, NT>())) linear_mma_few(const linear_mma_t p)
{
    constexpr int STEP = IS_ONE ? 2 : 1;
    SIMT_SHARED(float, parts, [2][SPLITS][NT][4 / STEP][SIMT_WARP]);
    SIMT_DYN_SHARED(uint8_t, shared);
    const uint32_t split = (uint32_t)simt_warp();
    const part_t part = part_of(p, split, p.store.rows, shared + SPLITS * ring_bytes<W>());
    const auto next = [&](ahead_t &at) { begin_unit<W>(p, part, at, at.unit + gridDim.x); };
    block_ring_t ring = ring_at(shared + split * ring_bytes<W>());
    const uint8_t *x[NT];
    float acc[NT][4] = {};
    ahead_t ahead = {};

    simt_launch_next();
    point_x<NT>(part, p.store.rows, x);
    begin_unit<W>(p, part, ahead, blockIdx.x);
    ring_begin<W>(ring, ahead, next);
    simt_wait_previous(); /* x and y are its; the weights are nobody's */
    if constexpr (IS_ONE) {
        copy_x_row(p, part);
    } else {
        copy_x(p, part, p.store.rows, [&](uint32_t row) { return p.x + row * p.x_stride; });
    }
    uint32_t turn = 0;
    for (uint32_t unit = blockIdx.x; unit < p.units; unit += gridDim.x, turn++) {
        multiply_part<W, NT>(part, ring, ahead, x, acc, next);
        finish<W, NT, STEP>(p.store, parts[turn % 2], unit, turn * NT, acc);
    }
}

/* ---- many tokens ----------------------------------------------------------------------------- */

/* A unit of W for each warp × 64 tokens. */
template <class W> static SIMT_KERNEL(32 * WIDE_UNITS, 1) linear_mma_wide(const linear_mma_t p)
{
    SIMT_DYN_SHARED(uint8_t, stages);
    const uint32_t token = blockIdx.x * WIDE_TOKENS;
    const uint32_t unit = blockIdx.y * (blockDim.x / SIMT_WARP) + (uint32_t)simt_warp();
    const uint32_t at = unit < p.units ? unit : p.units - 1; /* read and dropped */
    float sum[WIDE_TOKENS / 2] = {};

    simt_launch_next();
    const typename W::raw first = load_block<W>(W::block(p.weights, at, 0, p.k_blocks));
    simt_wait_previous();
    wide_multiply<W>(p, stages, at, first, sum, [&](uint32_t i) {
        return token + i < p.store.rows ? p.x + (token + i) * p.x_stride : nullptr;
    });
    if (unit < p.units) {
        wide_store(p.store, unit, token, sum);
    }
}

/* ---- host ------------------------------------------------------------------------------------ */

template <class W, int NT, bool IS_ONE>
static cudaError_t launch_few(const linear_mma_t &p, const linear_device_t &device,
                              cudaStream_t stream)
{
    const uint32_t x_bytes = shared_x_bytes(p.store.rows, p.k_blocks);
    const uint32_t shared = SPLITS * ring_bytes<W>() + x_bytes;
    const uint32_t fit = device.shared_bytes / (few_parts_bytes<NT>() + shared);
    const uint32_t most = few_blocks<W, NT>();
    const uint32_t blocks = device.processors * (fit < 1 ? 1 : fit < most ? fit : most);
    return simt_launch((linear_mma_few<W, NT, IS_ONE>),
                       {.grid = {p.units < blocks ? p.units : blocks},
                        .block = {32 * SPLITS},
                        .shared_bytes = shared,
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
        error = p.store.rows == 1   ? launch_few<W, 1, true>(p, device, stream)
                : p.store.rows <= 8 ? launch_few<W, 1, false>(p, device, stream)
                                    : launch_few<W, 2, false>(p, device, stream);
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
