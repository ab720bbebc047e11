/* SPDX-License-Identifier: Apache-2.0 */
/* y = x Wᵀ by wgmma, weights with scales on Hopper. */
#include "kernels/cuda/linear/linear_scaled.cuh"

/* The rows of one matrix. */
struct whole_rows {
    enum { READS_FIRST = 1 };
    const void *weights;
    linear_store_t store;

    SIMT_FN bool rows_of(uint32_t tile, uint32_t tokens, scaled_rows_t *rows) const
    {
        const uint32_t first = tile * tokens;
        const size_t y_bytes = linear_is_bf16(store.out) ? 2 : 4;
        rows->weights = weights;
        rows->token = first;
        rows->column = 0;
        rows->store = store;
        rows->store.y = static_cast<char *>(store.y) + first * store.y_stride * y_bytes;
        rows->store.rows = store.rows - first;
        return true;
    }
};

template <class W>
static cudaError_t launch(const linear_scaled_t &p, const whole_rows &rows,
                          linear_scaled_shape_t shape, const simt_tensor_map_t &x,
                          cudaStream_t stream)
{
    switch (shape) {
#define SHAPE(name, tokens, spans, shares)                                                         \
    case LINEAR_SCALED_##name:                                                                     \
        return scaled_launch_shape<W, scaled_shape<W, tokens, spans, shares>>(                     \
            p, rows, (rows.store.rows + tokens - 1) / tokens, x, stream);
        LINEAR_SCALED_SHAPES(SHAPE)
#undef SHAPE
    case LINEAR_SCALED_SHAPE_COUNT:
        break;
    }
    return cudaErrorNotSupported;
}

static uint32_t shape_tokens(linear_scaled_shape_t shape)
{
    switch (shape) {
#define SHAPE(name, tokens, spans, shares)                                                         \
    case LINEAR_SCALED_##name:                                                                     \
        return tokens;
        LINEAR_SCALED_SHAPES(SHAPE)
#undef SHAPE
    case LINEAR_SCALED_SHAPE_COUNT:
        break;
    }
    return 0;
}

extern "C" int k_cuda_linear_scaled(const k_cuda_linear_t *args, linear_scaled_shape_t shape,
                                    cudaStream_t stream)
{
    const linear_scaled_t p = {linear_k_blocks(args->w.columns),
                               linear_units(args->w.is_gate_up, args->w.rows)};
    const whole_rows rows = {args->w.data, linear_store_of(args)};
    simt_tensor_map_t x;
    const cudaError_t error =
        scaled_map_x(args->x, args->rows, args->w.columns, args->x_stride, shape_tokens(shape), &x);
    if (error != cudaSuccess) {
        return error;
    }
    switch (args->w.dtype) {
#define DO(dtype, format)                                                                          \
    case dtype:                                                                                    \
        return launch<format>(p, rows, shape, x, stream);
        SCALED_FORMATS(DO)
#undef DO
    default:
        return cudaErrorNotSupported;
    }
}
