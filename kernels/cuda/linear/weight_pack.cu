/* SPDX-License-Identifier: Apache-2.0 */
/* Source rows to packed blocks, and packed rows back to f32 (embeddings tied to the output). */
#include "kernels/cuda/linear/cuda_linear_priv.h"
#include "kernels/cuda/linear/weight_formats.h"
#include "kernels/cuda/simt/simt.h"

typedef struct pack {
    const uint8_t *src;
    uint8_t *dst;
    size_t row_bytes;
    uint32_t first; /* row of the source at src */
    uint32_t rows;
    uint32_t w_rows;
    uint32_t columns;
    uint32_t k_blocks;
    bool is_gate_up;
} pack_t;

/* Thread: lane t of one row's k block; x along K, y along rows. */
template <class W> static SIMT_KERNEL(256, 1) pack_kernel(const pack_t p)
{
    const uint32_t piece = blockIdx.x * 256 + threadIdx.x;
    const uint32_t kb = piece / 4;
    if (kb >= p.k_blocks) {
        return;
    }
    for (uint32_t i = blockIdx.y; i < p.rows; i += gridDim.y) {
        const uint32_t row = weight_packed_row(p.first + i, p.is_gate_up, p.w_rows);
        const uint8_t *block = W::block(p.dst, row / LINEAR_UNIT_ROWS, kb, p.k_blocks);
        W::pack(const_cast<uint8_t *>(block), row % LINEAR_UNIT_ROWS, piece % 4,
                p.src + i * p.row_bytes, kb, p.columns);
    }
}

template <class W> static cudaError_t pack_rows(const pack_t &p, cudaStream_t stream)
{
    const uint32_t height = p.rows < 65535 ? p.rows : 65535;
    return simt_launch(
        pack_kernel<W>,
        {.grid = {(p.k_blocks * 4 + 255) / 256, height}, .block = {256}, .stream = stream}, p);
}

extern "C" int k_cuda_weight_pack_rows(const k_cuda_weight_t *w, const void *src, uint32_t first,
                                       uint32_t n, cudaStream_t stream)
{
    pack_t p = {};
    if (k_dtype_row_bytes(w->dtype, w->columns, &p.row_bytes) != WEFT_OK) {
        return cudaErrorInvalidValue;
    }
    if (n == 0) {
        return cudaSuccess;
    }
    p.src = static_cast<const uint8_t *>(src);
    p.dst = static_cast<uint8_t *>(const_cast<void *>(w->data));
    p.first = first;
    p.rows = n;
    p.w_rows = w->rows;
    p.columns = w->columns;
    p.k_blocks = linear_k_blocks(w->columns);
    p.is_gate_up = w->is_gate_up;
    switch (w->dtype) {
#define DO(dtype, format)                                                                          \
    case dtype:                                                                                    \
        return pack_rows<format>(p, stream);
        WEIGHT_FORMATS(DO)
#undef DO
    default:
        return cudaErrorNotSupported;
    }
}

typedef struct embed {
    const void *data;
    const int32_t *ids;
    float *y;
    size_t y_stride;
    uint32_t first_id;
    uint32_t w_rows;
    uint32_t columns;
    uint32_t k_blocks;
    float scale;
    bool is_gate_up;
} embed_t;

/*
 * Block: row blockIdx.x of y. Nothing behind it begins before all in front has ended, so that the
 * step's other kernels find its inputs and the blocks of earlier steps without waiting.
 */
template <class W> static SIMT_KERNEL(256, 1) embed_kernel(const embed_t p)
{
    simt_wait_previous();
    simt_launch_next();
    const uint32_t id = (uint32_t)p.ids[blockIdx.x] - p.first_id;
    const uint32_t row = weight_packed_row(id, p.is_gate_up, p.w_rows);
    float *const y = p.y + blockIdx.x * p.y_stride;
    if (id >= p.w_rows) {
        for (uint32_t k = threadIdx.x; k < p.columns; k += 256) {
            y[k] = 0;
        }
        return;
    }
    for (uint32_t k = threadIdx.x; k < p.columns; k += 256) {
        const uint8_t *block =
            W::block(p.data, row / LINEAR_UNIT_ROWS, k / LINEAR_K_BLOCK, p.k_blocks);
        y[k] = weight_mul(W::value(block, row % LINEAR_UNIT_ROWS, k % LINEAR_K_BLOCK), p.scale);
    }
}

extern "C" int k_cuda_embed(const k_cuda_weight_t *w, const int32_t *ids, uint32_t first_id,
                            float *y, uint32_t n, size_t y_stride, float scale, cudaStream_t stream)
{
    embed_t p = {};
    p.data = w->data;
    p.ids = ids;
    p.y = y;
    p.y_stride = y_stride;
    p.first_id = first_id;
    p.w_rows = w->rows;
    p.columns = w->columns;
    p.k_blocks = linear_k_blocks(w->columns);
    p.scale = scale;
    p.is_gate_up = w->is_gate_up;
    if (n == 0) {
        return cudaSuccess;
    }
    const simt_grid_t grid = {
        .grid = {n}, .block = {256}, .stream = stream, .overlaps_previous = true};
    switch (w->dtype) {
#define DO(dtype, format)                                                                          \
    case dtype:                                                                                    \
        return simt_launch(embed_kernel<format>, grid, p);
        WEIGHT_FORMATS(DO)
#undef DO
    default:
        return cudaErrorNotSupported;
    }
}
