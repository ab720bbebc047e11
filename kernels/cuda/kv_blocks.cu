/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/kv_blocks.h"

#include "kernels/cuda/attention/kv_bytes.h"

enum { COPY_THREADS = 256, COPY_UNROLL = 8, COPY_BYTES = COPY_THREADS * COPY_UNROLL * 16 };
enum { CONVERT_THREADS = 256 };

/* ---- extents --------------------------------------------------------------------------------- */

/* Block (piece of COPY_BYTES, extent). */
static SIMT_KERNEL(COPY_THREADS, 4) copy_extents_kernel(const k_cuda_extent_t *extents, uint32_t n)
{
    simt_wait_previous();
    simt_launch_next();
    for (uint32_t e = blockIdx.y; e < n; e += gridDim.y) {
        const k_cuda_extent_t extent = extents[e];
        const char *from = reinterpret_cast<const char *>(extent.from);
        char *to = reinterpret_cast<char *>(extent.to);
        const uint64_t first = (uint64_t)blockIdx.x * COPY_BYTES + threadIdx.x * 16;
        uint4 v[COPY_UNROLL];
        SIMT_UNROLL
        for (int i = 0; i < COPY_UNROLL; i++) {
            const uint64_t at = first + (uint64_t)i * COPY_THREADS * 16;
            v[i] = at < extent.bytes ? simt_load_16_once(from + at) : make_uint4(0, 0, 0, 0);
        }
        SIMT_UNROLL
        for (int i = 0; i < COPY_UNROLL; i++) {
            const uint64_t at = first + (uint64_t)i * COPY_THREADS * 16;
            if (at < extent.bytes) {
                simt_store_16_once(to + at, v[i]);
            }
        }
    }
}

int k_cuda_copy_extents(const k_cuda_extent_t *extents, uint32_t n, uint64_t max_bytes,
                        cudaStream_t stream)
{
    if (n == 0 || max_bytes == 0) {
        return cudaSuccess;
    }
    const simt_grid_t grid = {
        .grid = {(unsigned)((max_bytes + COPY_BYTES - 1) / COPY_BYTES), n < 65535 ? n : 65535},
        .block = {COPY_THREADS},
        .shared_bytes = 0,
        .stream = stream,
        .overlaps_previous = true,
    };
    return simt_launch(copy_extents_kernel, grid, extents, n);
}

/* base/device.h's weft_copy_t is a k_cuda_extent_t by another name. */
extern "C" int weft_device_cuda_copy_many(const void *copies, uint32_t n, uint64_t max_bytes,
                                          void *stream)
{
    return k_cuda_copy_extents(static_cast<const k_cuda_extent_t *>(copies), n, max_bytes,
                               static_cast<cudaStream_t>(stream));
}

/* ---- heads ----------------------------------------------------------------------------------- */

/* Index of element `i` of part `part` of a token in its head. */
SIMT_DEVICE size_t element_at(const k_cuda_head_form_t &form, uint32_t token, uint32_t part,
                              uint32_t i)
{
    const size_t dim = form.head_dim;
    if (!form.is_transposed) {
        return (token * 2 + part) * dim + i;
    }
    return part == 0 ? i * (size_t)form.block_tokens + token
                     : (form.block_tokens + token) * dim + i;
}

/* Where the scale of a part of a token lies. */
SIMT_DEVICE float *scale_at(const k_cuda_head_form_t &form, uint64_t head, uint32_t token,
                            uint32_t part)
{
    const uint64_t codes = (uint64_t)form.block_tokens * 2 * form.head_dim;
    return reinterpret_cast<float *>(head + codes) + part * form.block_tokens + token;
}

SIMT_DEVICE float read_element(const k_cuda_head_form_t &form, uint64_t head, uint32_t token,
                               uint32_t part, uint32_t i)
{
    const size_t at = element_at(form, token, part, i);
    switch (form.element) {
    case K_F16:
        return __half2float(reinterpret_cast<const __half *>(head)[at]);
    case K_BF16:
        return __bfloat162float(reinterpret_cast<const __nv_bfloat16 *>(head)[at]);
    case K_F8:
        return kv_f8_value(reinterpret_cast<const uint8_t *>(head)[at]);
    case K_I8:
        return (float)reinterpret_cast<const int8_t *>(head)[at] *
               *scale_at(form, head, token, part);
    default:
        return reinterpret_cast<const float *>(head)[at];
    }
}

SIMT_DEVICE void write_element(const k_cuda_head_form_t &form, uint64_t head, uint32_t token,
                               uint32_t part, uint32_t i, float v)
{
    const size_t at = element_at(form, token, part, i);
    switch (form.element) {
    case K_F8:
        reinterpret_cast<uint8_t *>(head)[at] = kv_f8_of(v);
        break;
    case K_F16:
        reinterpret_cast<__half *>(head)[at] = __float2half(v);
        break;
    case K_BF16:
        reinterpret_cast<__nv_bfloat16 *>(head)[at] = __float2bfloat16(v);
        break;
    default:
        reinterpret_cast<float *>(head)[at] = v;
    }
}

/* A block a move; neighbouring threads write neighbours. */
static SIMT_KERNEL(CONVERT_THREADS, 4)
    convert_heads_kernel(k_cuda_head_form_t to, k_cuda_head_form_t from,
                         const k_cuda_head_move_t *moves)
{
    simt_wait_previous();
    simt_launch_next();
    const k_cuda_head_move_t move = moves[blockIdx.x];
    const uint32_t dim = to.head_dim;
    const uint32_t of_part = move.tokens * dim;
    for (uint32_t i = threadIdx.x; i < 2 * of_part; i += CONVERT_THREADS) {
        const uint32_t part = i / of_part;
        const uint32_t rest = i % of_part;
        const bool by_token = to.is_transposed && part == 0;
        const uint32_t token = by_token ? rest % move.tokens : rest / dim;
        const uint32_t element = by_token ? rest / move.tokens : rest % dim;
        const float v = read_element(from, move.from, move.from_token + token, part, element);
        write_element(to, move.to, move.to_token + token, part, element, v);
    }
}

/* One part of a token to codes, by a warp; codes stay what they are. */
SIMT_DEVICE void convert_to_codes(const k_cuda_head_form_t &to, const k_cuda_head_form_t &from,
                                  const k_cuda_head_move_t &move, uint32_t t, uint32_t part)
{
    const uint32_t from_token = move.from_token + t;
    const uint32_t to_token = move.to_token + t;
    int8_t *codes = reinterpret_cast<int8_t *>(move.to) + element_at(to, to_token, part, 0);
    const bool is_same = from.element == K_I8;
    kv_i8_scale_t scale = {};
    if (is_same) {
        scale.scale = *scale_at(from, move.from, from_token, part);
    } else {
        float largest = 0;
        for (uint32_t i = (uint32_t)simt_lane(); i < to.head_dim; i += SIMT_WARP) {
            largest =
                fmaxf(largest, kv_i8_size(read_element(from, move.from, from_token, part, i)));
        }
        scale = kv_i8_scale_of(simt_warp_max(largest));
    }
    const int8_t *same =
        reinterpret_cast<const int8_t *>(move.from) + element_at(from, from_token, part, 0);
    for (uint32_t i = (uint32_t)simt_lane(); i < to.head_dim; i += SIMT_WARP) {
        codes[i] =
            is_same ? same[i] : kv_i8_of(read_element(from, move.from, from_token, part, i), scale);
    }
    if (simt_lane() == 0) {
        *scale_at(to, move.to, to_token, part) = scale.scale;
    }
}

/* A block a move, a warp a part of a token. */
static SIMT_KERNEL(CONVERT_THREADS, 4)
    convert_to_codes_kernel(k_cuda_head_form_t to, k_cuda_head_form_t from,
                            const k_cuda_head_move_t *moves)
{
    simt_wait_previous();
    simt_launch_next();
    const k_cuda_head_move_t move = moves[blockIdx.x];
    const uint32_t warps = CONVERT_THREADS / SIMT_WARP;
    for (uint32_t row = (uint32_t)simt_warp(); row < 2 * move.tokens; row += warps) {
        convert_to_codes(to, from, move, row / 2, row % 2);
    }
}

int k_cuda_convert_heads(k_cuda_head_form_t to, k_cuda_head_form_t from,
                         const k_cuda_head_move_t *moves, uint32_t n, cudaStream_t stream)
{
    const simt_grid_t grid = {
        .grid = {n},
        .block = {CONVERT_THREADS},
        .shared_bytes = 0,
        .stream = stream,
        .overlaps_previous = true,
    };
    if (n == 0) {
        return cudaSuccess;
    }
    if ((to.element == K_I8 && to.is_transposed) || (from.element == K_I8 && from.is_transposed)) {
        return cudaErrorNotSupported;
    }
    return to.element == K_I8 ? simt_launch(convert_to_codes_kernel, grid, to, from, moves)
                              : simt_launch(convert_heads_kernel, grid, to, from, moves);
}
