/* SPDX-License-Identifier: Apache-2.0 */
/* Products with many matrices of weights with scales by wgmma: linear_scaled.cuh's kernel. */
#include "kernels/cuda/linear/group_walk.cuh"
#include "kernels/cuda/linear/linear_scaled.cuh"

struct group_rows {
    enum { READS_FIRST = 0 };
    const char *data;
    size_t w_step;
    group_walk_t walk;

    SIMT_FN bool rows_of(uint32_t index, uint32_t, scaled_rows_t *rows) const
    {
        GROUP_WALK_SHARED(before);
        if (index >= walk_begin(walk, before)) {
            return false;
        }
        const group_tile_t tile = walk_tile(walk, before, index);
        rows->weights = data + tile.group * w_step;
        rows->token = tile.first;
        rows->column = tile.group * (uint32_t)walk.x_step;
        rows->store = walk_store(walk, tile);
        return true;
    }
};

/* So that most matrices of few rows have one tile; two shapes are enough, and each takes long to compile. */
static uint32_t tile_rows(const k_cuda_groups_t *args)
{
    return groups_mean_rows(args) <= 16 ? 32 : 128;
}

template <class W>
static cudaError_t launch(const linear_scaled_t &p, const group_rows &rows, uint32_t n_tiles,
                          const simt_tensor_map_t &x, cudaStream_t stream)
{
    if (rows.walk.tile_rows == 32) {
        return scaled_launch_shape<W, scaled_shape<W, 32, 1, 4>>(p, rows, n_tiles, x, stream);
    }
    return scaled_launch_shape<W, scaled_shape<W, 128, 2, 1>>(p, rows, n_tiles, x, stream);
}

extern "C" int k_cuda_groups_scaled(const k_cuda_groups_t *args, const linear_device_t *device,
                                    cudaStream_t stream)
{
    k_cuda_groups_t in_order = *args;
    const int gathered = k_cuda_groups_gather(&in_order, device, stream);
    if (gathered != cudaSuccess) {
        return gathered;
    }
    const linear_scaled_t p = {linear_k_blocks(args->w.columns), linear_units(false, args->w.rows)};
    group_rows rows = {};
    rows.data = static_cast<const char *>(args->w.data);
    rows.w_step = args->w_step;
    rows.walk = group_walk_of(&in_order, tile_rows(args));
    const uint32_t n_tiles = groups_most_tiles(args, rows.walk.tile_rows);

    simt_tensor_map_t x;
    const uint32_t columns = (uint32_t)((args->n - 1) * args->x_step) + args->w.columns;
    const cudaError_t error =
        scaled_map_x(in_order.x, args->rows, columns, args->x_stride, rows.walk.tile_rows, &x);
    if (error != cudaSuccess) {
        return error;
    }
    switch (args->w.dtype) {
#define DO(dtype, format)                                                                          \
    case dtype:                                                                                    \
        return launch<format>(p, rows, n_tiles, x, stream);
        SCALED_FORMATS(DO)
#undef DO
    default:
        return cudaErrorNotSupported;
    }
}
