/* SPDX-License-Identifier: Apache-2.0 */
/* attention_instance: the kernels of one head dim but those of attention_hopper.cu. */
#pragma once

#include "kernels/cuda/attention/attention_decode_hopper.cuh"
#include "kernels/cuda/attention/attention_mma.cuh"
#include "kernels/cuda/attention/attention_spread.cuh"

template <int D> cudaError_t attention_mma_launch(const attention_launch_t &launch, bool is_small)
{
    constexpr int tiles = attention_mma_tile<D> / 32; /* two groups of so many times 16 rows */
    if constexpr (attention_can_spread(D)) {
        if (is_small && launch.params.spread_scores != nullptr) {
            return launch.kv == K_F16 ? attention_spread_launch<D, __half>(launch)
                                      : attention_spread_launch<D, __nv_bfloat16>(launch);
        }
    }
    if constexpr (D >= 64) {
        if (is_small && launch.uses_hopper && launch.kv == K_BF16) {
            return attention_decode_launch<D, __nv_bfloat16>(launch);
        }
        if (is_small && launch.uses_hopper && launch.kv == K_F16) {
            return attention_decode_launch<D, __half>(launch);
        }
        if (is_small && launch.uses_hopper && launch.kv == K_F8) {
            return attention_decode_launch<D, __nv_fp8_e4m3>(launch);
        }
        if (is_small && launch.uses_hopper && launch.kv == K_I8) {
            return attention_decode_launch<D, int8_t>(launch);
        }
    }
    return is_small ? attention_mma_launch_rows<D, 1, 1>(launch)
                    : attention_mma_launch_rows<D, tiles, 2>(launch);
}
