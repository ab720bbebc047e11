/* SPDX-License-Identifier: Apache-2.0 */
/* attention_combine: the merge of what the segments of split sequences came to. */
#pragma once

#include "kernels/cuda/attention/attention_common.cuh"

enum { COMBINE_WARPS = 4 };

/* ---- merging segments ------------------------------------------------------------------------ */

/* The first unit of sequence `index`, ATTENTION_NO_UNIT when it is not split. */
SIMT_DEVICE uint32_t combine_first_unit(const attention_params_t &p, uint32_t index)
{
    uint32_t before = 0;
    for (uint32_t at = 0;; at += SIMT_WARP) {
        const k_seq_t seq = attention_seq_of_lane(p, at);
        const uint32_t units = attention_units(p, seq);
        const uint32_t until = before + attention_scan(units);
        if (index < at + SIMT_WARP) {
            const bool is_split = units > 0 && until <= p.units;
            return simt_shfl(is_split ? until - units : ATTENTION_NO_UNIT, (int)(index - at));
        }
        before = simt_shfl(until, SIMT_WARP - 1);
    }
}

/* One row and head of at most D elements, by a warp. */
template <int D>
SIMT_DEVICE void combine_head(const attention_params_t &p, const k_seq_t &seq, uint32_t unit,
                              uint32_t segments, uint32_t row, uint32_t head)
{
    constexpr int each = (D + SIMT_WARP - 1) / SIMT_WARP;
    attention_running_t all = {-INFINITY, 0};
    float total[each] = {};
    for (uint32_t s = 0; s < segments; s++) {
        const size_t at = (size_t)(unit + s * seq.rows + row) * p.q_heads + head;
        const float2 sum = p.partial_sum[at];
        float old, added;
        attention_merge(&all, {sum.x, sum.y}, p.scale_log2, &old, &added);
        SIMT_UNROLL
        for (int i = 0; i < each; i++) {
            const int d = i * SIMT_WARP + simt_lane();
            if (d < (int)p.o_dim) {
                total[i] = attention_merged(total[i], p.partial_o[at * p.o_dim + d], old, added);
            }
        }
    }
    const float inverse = attention_finish(p, head, all);
    __nv_bfloat16 *o = p.o + (size_t)(seq.row + row) * p.o_stride + (size_t)head * p.o_dim;
    SIMT_UNROLL
    for (int i = 0; i < each; i++) {
        const int d = i * SIMT_WARP + simt_lane();
        if (d < (int)p.o_dim) {
            o[d] = __float2bfloat16(total[i] * inverse);
        }
    }
}

/* Blocks of a (sequence, KV head) share out its packed rows. */
template <int D>
static SIMT_KERNEL(COMBINE_WARPS *SIMT_WARP, 4) attention_combine_kernel(const attention_params_t p)
{
    simt_launch_next();
    const uint32_t unit = combine_first_unit(p, blockIdx.x);
    const k_seq_t seq = p.seqs[blockIdx.x]; /* a step's inputs: no kernel in front writes those */
    simt_wait_previous();
    if (unit == ATTENTION_NO_UNIT) {
        return;
    }
    const uint32_t segments = attention_segments(p, seq);
    const uint32_t first = blockIdx.z * COMBINE_WARPS + (uint32_t)simt_warp();
    for (uint32_t i = first; i < seq.rows * p.group; i += gridDim.z * COMBINE_WARPS) {
        combine_head<D>(p, seq, unit, segments, i / p.group, blockIdx.y * p.group + i % p.group);
    }
}

template <int D> static cudaError_t attention_combine_launch(const attention_launch_t &launch)
{
    const simt_grid_t grid = {
        .grid = {launch.params.n_seqs, launch.params.kv.heads,
                 (launch.params.group + COMBINE_WARPS - 1) / COMBINE_WARPS},
        .block = {COMBINE_WARPS * SIMT_WARP},
        .shared_bytes = 0,
        .stream = launch.stream,
        .overlaps_previous = true,
    };
    return simt_launch(attention_combine_kernel<D>, grid, launch.params);
}
