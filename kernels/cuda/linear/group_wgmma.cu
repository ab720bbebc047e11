/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products with many matrices by wgmma: linear_wgmma.cuh's kernel over their tiles. Rows that do not lie
 * as they are wanted are brought together first, for TMA to copy.
 */
#include "kernels/cuda/linear/group_walk.cuh"
#include "kernels/cuda/linear/linear_wgmma.cuh"

struct group_tiles {
    const uint8_t *data;
    size_t w_step;
    group_walk_t walk;
    bool reads_once;

#if SIMT_HOPPER
    struct known {
        const group_tiles &all;
        const uint32_t (&before)[GROUPS_MAX + 1];
        uint32_t n;

        /* Matrix by matrix; of one, all its tiles of rows meet a span of W before the next. */
        SIMT_FN wgmma_tile_t at(const linear_wgmma_t &p, uint32_t index) const
        {
            const uint32_t group = walk_group_of(all.walk, before, index / p.spans);
            const uint32_t inside = index - before[group] * p.spans;
            const uint32_t width = before[group + 1] - before[group];
            const uint32_t first = all.walk.offsets == nullptr ? 0 : all.walk.offsets[group];
            wgmma_tile_t tile = {};
            tile.unit = inside / width * p.plan.span;
            tile.units = p.units - tile.unit < p.plan.span ? p.units - tile.unit : p.plan.span;
            tile.token = first + inside % width * p.plan.tokens;
            tile.group = group;
            return tile;
        }
        SIMT_FN const uint8_t *weights(const wgmma_tile_t &tile) const
        {
            return all.data + tile.group * all.w_step;
        }
        SIMT_FN uint32_t column(const wgmma_tile_t &tile) const
        {
            return tile.group * (uint32_t)all.walk.x_step;
        }
        SIMT_FN linear_store_t store(const wgmma_tile_t &tile) const
        {
            const group_walk_t &w = all.walk;
            linear_store_t store = w.store;
            store.y = w.y + tile.group * w.y_step;
            store.bias = w.bias == nullptr ? nullptr : w.bias + (size_t)tile.group * store.w_rows;
            store.rows = w.offsets == nullptr ? w.rows : w.offsets[tile.group + 1];
            return store;
        }
        SIMT_FN bool streams() const
        {
            return all.reads_once;
        }
    };

    SIMT_FN known begin(const linear_wgmma_t &p) const
    {
        GROUP_WALK_SHARED(before);
        simt_wait_previous();
        const uint32_t n = walk_begin(walk, before);
        return {*this, before, n * p.spans};
    }
#endif
};

/* ---- rows brought together ------------------------------------------------------------------- */

enum { GATHER_THREADS = 128, GATHER_BLOCKS = 4 }; /* blocks a processor */

/* Row i of `to` = row row_of[i] of x, of the slots that are here; a block a row, 16 bytes a thread. */
static SIMT_KERNEL(GATHER_THREADS, 8)
    gather_slots(const uint16_t *x, const uint32_t *row_of, const uint32_t *offsets, uint32_t n,
                 uint16_t *to, size_t stride, uint32_t columns)
{
    simt_launch_next();
    simt_wait_previous();
    const uint32_t end = offsets[n];
    for (uint32_t row = offsets[0] + blockIdx.x; row < end; row += gridDim.x) {
        const uint16_t *from = x + row_of[row] * stride;
        for (uint32_t i = threadIdx.x * 8; i < columns; i += GATHER_THREADS * 8) {
            simt_store_16(to + row * stride + i, simt_load_16(from + i));
        }
    }
}

extern "C" int k_cuda_groups_gather(k_cuda_groups_t *args, const linear_device_t *device,
                                    cudaStream_t stream)
{
    const uint32_t blocks = device->processors * GATHER_BLOCKS;
    if (args->row_of == nullptr) {
        return cudaSuccess;
    }
    const uint16_t *x = static_cast<const uint16_t *>(args->x);
    const uint32_t *row_of = args->row_of;
    args->x = args->gathered;
    args->row_of = nullptr;
    return simt_launch(gather_slots,
                       {.grid = {args->rows < blocks ? args->rows : blocks},
                        .block = {GATHER_THREADS},
                        .stream = stream,
                        .overlaps_previous = true},
                       x, row_of, args->offsets, args->n, static_cast<uint16_t *>(args->gathered),
                       args->x_stride, args->w.columns);
}

/* ---- host ------------------------------------------------------------------------------------ */

extern "C" int k_cuda_groups_wgmma(const k_cuda_groups_t *args, const linear_device_t *device,
                                   cudaStream_t stream)
{
    k_cuda_groups_t in_order = *args;
    const int gathered = k_cuda_groups_gather(&in_order, device, stream);
    if (gathered != cudaSuccess) {
        return gathered;
    }
    linear_wgmma_t p = {};
    p.k_blocks = linear_k_blocks(args->w.columns);
    p.units = linear_units(false, args->w.rows);
    p.plan = linear_wgmma_plan_groups(p.units, p.k_blocks, groups_rows(args), args->n,
                                      device->processors);
    p.spans = (p.units + p.plan.span - 1) / p.plan.span;
    const uint32_t most = groups_most_tiles(args, p.plan.tokens) * p.spans;
    p.plan.blocks = most < p.plan.blocks ? most : p.plan.blocks;

    group_tiles tiles = {};
    tiles.data = static_cast<const uint8_t *>(args->w.data);
    tiles.w_step = args->w_step;
    tiles.walk = group_walk_of(&in_order, p.plan.tokens);
    tiles.reads_once = groups_mean_rows(args) <= p.plan.tokens;

    simt_tensor_map_t x;
    const uint32_t columns = (uint32_t)((args->n - 1) * args->x_step) + args->w.columns;
    const cudaError_t error =
        wgmma_map_x(in_order.x, args->rows, columns, args->x_stride, p.plan.tokens, &x);
    return error != cudaSuccess ? error : wgmma_launch(p, tiles, x, stream);
}
