/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products with many matrices by mma.sync, in the steps of linear_mma.cuh.
 *
 * Few rows a matrix: blocks share out (tile of rows, unit) evenly, each a run of neighbours, so that it
 * seldom takes other rows of x; its loads of weights run on over the ends of units and matrices.
 * Many: a block has 64 rows and a unit for each warp.
 */
#include "kernels/cuda/linear/group_walk.cuh"
#include "kernels/cuda/linear/linear_mma.cuh"

typedef struct group_mma {
    linear_mma_t one; /* the first matrix; x and store are the walk's */
    size_t w_step;
    group_walk_t walk;
} group_mma_t;

/* ---- few rows -------------------------------------------------------------------------------- */

/* Where a block's walk over (tile, unit) stands. */
typedef struct item {
    uint32_t left; /* items of this block, this one included */
    uint32_t unit;
    uint32_t tile;
    uint32_t group;
} item_t;

SIMT_DEVICE item_t first_item(const group_mma_t &p, const uint32_t (&before)[GROUPS_MAX + 1],
                              uint32_t tiles)
{
    const uint64_t items = (uint64_t)tiles * p.one.units;
    const uint32_t first = (uint32_t)(items * blockIdx.x / gridDim.x);
    item_t item = {(uint32_t)(items * (blockIdx.x + 1) / gridDim.x) - first, first % p.one.units,
                   first / p.one.units, 0};
    if (item.left > 0) {
        item.group = walk_group_of(p.walk, before, item.tile);
    }
    return item;
}

SIMT_DEVICE void next_item(const group_mma_t &p, const uint32_t (&before)[GROUPS_MAX + 1],
                           item_t *item)
{
    if (--item->left > 0 && ++item->unit == p.one.units) {
        item->unit = 0;
        item->tile++;
        while (before[item->group + 1] <= item->tile) {
            item->group++;
        }
    }
}

template <class W>
SIMT_DEVICE void begin_item(const group_mma_t &p, const part_t &part, const item_t &item,
                            ahead_t &at)
{
    const void *weights = static_cast<const char *>(p.one.weights) + item.group * p.w_step;
    at.left = item.left > 0 ? (int)(part.last - part.first) : 0;
    at.from = W::block(weights, item.unit, part.first, p.one.k_blocks);
}

/* Blocks that should share a multiprocessor: the walk takes registers too. */
template <class W, int NT> constexpr int group_blocks()
{
    return few_blocks<W, NT>() < 2 ? few_blocks<W, NT>() : 2;
}

template <class W, int NT>
static SIMT_KERNEL(32 * SPLITS, (group_blocks<W, NT>())) group_mma_few(const group_mma_t p)
{
    SIMT_SHARED(float, parts, [2][SPLITS][NT][4][SIMT_WARP]);
    GROUP_WALK_SHARED(before);
    SIMT_DYN_SHARED(uint8_t, shared);
    const uint32_t split = (uint32_t)simt_warp();
    const part_t part = part_of(p.one, split, p.walk.tile_rows, shared + SPLITS * ring_bytes<W>());
    block_ring_t ring = ring_at(shared + split * ring_bytes<W>());
    const uint8_t *x[NT];
    float acc[NT][4] = {};
    ahead_t ahead = {};
    linear_store_t store = {};

    simt_launch_next();
    simt_wait_previous();
    item_t item = first_item(p, before, walk_begin(p.walk, before));
    item_t coming = item;
    const auto next = [&](ahead_t &at) {
        next_item(p, before, &coming);
        begin_item<W>(p, part, coming, at);
    };
    begin_item<W>(p, part, coming, ahead);
    ring_begin<W>(ring, ahead, next);
    for (uint32_t turn = 0; item.left > 0; next_item(p, before, &item), turn++) {
        if (turn == 0 || item.unit == 0) {
            const group_tile_t tile = walk_tile(p.walk, before, item.tile);
            simt_sync_warp(); /* the rows before are read */
            copy_x(p.one, part, tile.rows, [&](uint32_t i) { return walk_x(p.walk, tile, i); });
            point_x<NT>(part, tile.rows, x);
            store = walk_store(p.walk, tile);
        }
        multiply_part<W, NT>(part, ring, ahead, x, acc, next);
        finish<W, NT, 1>(store, parts[turn % 2], item.unit, turn * NT, acc);
    }
}

/* ---- many rows ------------------------------------------------------------------------------- */

template <class W> static SIMT_KERNEL(32 * WIDE_UNITS, 1) group_mma_wide(const group_mma_t p)
{
    GROUP_WALK_SHARED(before);
    SIMT_DYN_SHARED(uint8_t, stages);
    const uint32_t unit = blockIdx.y * (blockDim.x / SIMT_WARP) + (uint32_t)simt_warp();
    const uint32_t at = unit < p.one.units ? unit : p.one.units - 1; /* read and dropped */
    float sum[WIDE_TOKENS / 2] = {};

    simt_launch_next();
    simt_wait_previous();
    if (blockIdx.x >= walk_begin(p.walk, before)) {
        return;
    }
    const group_tile_t tile = walk_tile(p.walk, before, blockIdx.x);
    linear_mma_t one = p.one;
    one.weights = static_cast<const char *>(p.one.weights) + tile.group * p.w_step;
    const typename W::raw first = load_block<W>(W::block(one.weights, at, 0, one.k_blocks));
    wide_multiply<W>(one, stages, at, first, sum,
                     [&](uint32_t i) { return i < tile.rows ? walk_x(p.walk, tile, i) : nullptr; });
    if (unit < one.units) {
        wide_store(walk_store(p.walk, tile), unit, 0, sum);
    }
}

/* ---- host ------------------------------------------------------------------------------------ */

static group_mma_t params_of(const k_cuda_groups_t *args, uint32_t tile_rows)
{
    group_mma_t p = {};
    p.one.weights = args->w.data;
    p.one.x = static_cast<const uint16_t *>(args->x);
    p.one.x_stride = args->x_stride;
    p.one.columns = args->w.columns;
    p.one.k_blocks = linear_k_blocks(args->w.columns);
    p.one.units = linear_units(false, args->w.rows);
    p.one.x_pieces =
        args->x_stride % 4 == 0 && args->x_step % 4 == 0 && (uintptr_t)args->x % 8 == 0;
    p.one.x_chunks =
        args->x_stride % 8 == 0 && args->x_step % 8 == 0 && (uintptr_t)args->x % 16 == 0;
    p.w_step = args->w_step;
    p.walk = group_walk_of(args, tile_rows);
    return p;
}

template <class W, int NT>
static cudaError_t launch_few(const group_mma_t &p, uint32_t most_tiles,
                              const linear_device_t &device, cudaStream_t stream)
{
    const uint32_t shared =
        SPLITS * ring_bytes<W>() + shared_x_bytes(p.walk.tile_rows, p.one.k_blocks);
    const uint32_t fit = device.shared_bytes / (few_parts_bytes<NT>() + GROUP_WALK_BYTES + shared);
    const uint32_t most = group_blocks<W, NT>();
    const uint32_t blocks = device.processors * (fit < 1 ? 1 : fit < most ? fit : most);
    const uint64_t items = (uint64_t)most_tiles * p.one.units;
    return simt_launch(group_mma_few<W, NT>,
                       {.grid = {items < blocks ? (uint32_t)items : blocks},
                        .block = {32 * SPLITS},
                        .shared_bytes = shared,
                        .stream = stream,
                        .overlaps_previous = true},
                       p);
}

template <class W>
static cudaError_t launch_wide(const k_cuda_groups_t *args, const linear_device_t &device,
                               cudaStream_t stream)
{
    const group_mma_t p = params_of(args, WIDE_TOKENS);
    const uint32_t tiles = groups_most_tiles(args, WIDE_TOKENS);
    uint32_t units = WIDE_UNITS; /* fewer a block when that keeps more processors busy */
    while (units > 2 && tiles * ((p.one.units + units - 1) / units) < device.processors) {
        units /= 2;
    }
    return simt_launch(group_mma_wide<W>,
                       {.grid = {tiles, (p.one.units + units - 1) / units},
                        .block = {32 * units},
                        .shared_bytes = WIDE_STAGES * WIDE_STAGE,
                        .stream = stream,
                        .overlaps_previous = true},
                       p);
}

/* Twice what a matrix has on average, so that most have one tile, but no more than fit beside it. */
template <class W>
static cudaError_t launch(const k_cuda_groups_t *args, const linear_device_t &device,
                          cudaStream_t stream)
{
    const uint32_t mean = groups_mean_rows(args);
    const uint32_t fit =
        few_rows<W>(linear_k_blocks(args->w.columns), device.shared_bytes - GROUP_WALK_BYTES);
    if (mean > 16 || fit == 0) {
        return launch_wide<W>(args, device, stream);
    }
    uint32_t rows = 1;
    while (rows < 16 && rows < 2 * mean && rows * 2 <= fit) {
        rows *= 2;
    }
    const group_mma_t p = params_of(args, rows);
    const uint32_t tiles = groups_most_tiles(args, rows);
    return rows <= 8 ? launch_few<W, 1>(p, tiles, device, stream)
                     : launch_few<W, 2>(p, tiles, device, stream);
}

extern "C" int k_cuda_groups_mma(const k_cuda_groups_t *args, const linear_device_t *device,
                                 cudaStream_t stream)
{
    switch (args->w.dtype) {
#define DO(dtype, format)                                                                          \
    case dtype:                                                                                    \
        return launch<format>(args, *device, stream);
        WEIGHT_FORMATS(DO)
#undef DO
    default:
        return cudaErrorNotSupported;
    }
}
