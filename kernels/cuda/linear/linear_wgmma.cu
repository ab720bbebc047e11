/* SPDX-License-Identifier: Apache-2.0 */
/* y = x Wᵀ by wgmma, BF16 weights on Hopper. */
#include "kernels/cuda/linear/linear_wgmma.cuh"

/* The tiles of one matrix. */
struct whole_tiles {
    const uint8_t *data;
    uint32_t token_blocks; /* tiles along x */
    uint32_t
        token_group; /* token blocks that a span of W meets before the next span: they fit in L2 */
    linear_store_t to;

#if SIMT_HOPPER
    struct known {
        const whole_tiles &all;
        uint32_t n;

        SIMT_FN wgmma_tile_t at(const linear_wgmma_t &p, uint32_t index) const
        {
            const uint32_t group = index / (p.spans * all.token_group);
            const uint32_t inside = index % (p.spans * all.token_group);
            const uint32_t left = all.token_blocks - group * all.token_group;
            const uint32_t width = left < all.token_group ? left : all.token_group;
            wgmma_tile_t tile = {};
            tile.unit = inside / width * p.plan.span;
            tile.units = p.units - tile.unit < p.plan.span ? p.units - tile.unit : p.plan.span;
            tile.token = (group * all.token_group + inside % width) * p.plan.tokens;
            return tile;
        }
        SIMT_FN const uint8_t *weights(const wgmma_tile_t &) const
        {
            return all.data;
        }
        SIMT_FN uint32_t column(const wgmma_tile_t &) const
        {
            return 0;
        }
        SIMT_FN const linear_store_t &store(const wgmma_tile_t &) const
        {
            return all.to;
        }
        SIMT_FN bool streams() const
        {
            return all.token_blocks == 1;
        }
    };

    SIMT_FN known begin(const linear_wgmma_t &p) const
    {
        return {*this, p.spans * token_blocks};
    }
#endif
};

extern "C" int k_cuda_linear_wgmma(const k_cuda_linear_t *args, const linear_wgmma_plan_t *plan,
                                   cudaStream_t stream)
{
    linear_wgmma_t p = {};
    p.plan = *plan;
    p.k_blocks = linear_k_blocks(args->w.columns);
    p.units = linear_units(args->w.is_gate_up, args->w.rows);
    p.spans = (p.units + plan->span - 1) / plan->span;
    whole_tiles tiles = {};
    tiles.data = static_cast<const uint8_t *>(args->w.data);
    tiles.token_blocks = (args->rows + plan->tokens - 1) / plan->tokens;
    tiles.token_group = tiles.token_blocks < 8 ? tiles.token_blocks : 8;
    tiles.to = linear_store_of(args);

    simt_tensor_map_t x;
    const cudaError_t error =
        wgmma_map_x(args->x, args->rows, args->w.columns, args->x_stride, plan->tokens, &x);
    return error != cudaSuccess ? error : wgmma_launch(p, tiles, x, stream);
}
