/* SPDX-License-Identifier: Apache-2.0 */
/* simt_ptx_warp: simt_launch.h, simt_shared.h and simt_warp.h as nvcc compiles them. */
#pragma once

SIMT_FN void simt_wait_previous(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

SIMT_FN void simt_launch_next(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

SIMT_FN uint32_t simt_shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}

SIMT_FN int simt_lane(void)
{
    return (int)(threadIdx.x % SIMT_WARP);
}

SIMT_FN int simt_warp(void)
{
    return (int)(threadIdx.x / SIMT_WARP);
}

template <class T> SIMT_FN T simt_shfl(T v, int lane, uint32_t mask)
{
    return __shfl_sync(mask, v, lane);
}

template <class T> SIMT_FN T simt_shfl_xor(T v, int lane_bits, uint32_t mask)
{
    return __shfl_xor_sync(mask, v, lane_bits);
}

template <class T> SIMT_FN T simt_shfl_down(T v, int delta, uint32_t mask)
{
    return __shfl_down_sync(mask, v, (unsigned)delta);
}

template <class T> SIMT_FN T simt_shfl_up(T v, int delta, uint32_t mask)
{
    return __shfl_up_sync(mask, v, (unsigned)delta);
}

template <int N, class T> SIMT_FN void simt_shfl_xor_n(T (&v)[N], int lane_bits, uint32_t mask)
{
    SIMT_UNROLL
    for (int i = 0; i < N; i++) {
        v[i] = __shfl_xor_sync(mask, v[i], lane_bits);
    }
}

template <int N, class T> SIMT_FN void simt_shfl_n(T (&v)[N], int lane, uint32_t mask)
{
    SIMT_UNROLL
    for (int i = 0; i < N; i++) {
        v[i] = __shfl_sync(mask, v[i], lane);
    }
}

template <int N> SIMT_FN void simt_warp_sum_n(float (&v)[N], int lanes)
{
    for (int bits = lanes / 2; bits > 0; bits /= 2) {
        SIMT_UNROLL
        for (int i = 0; i < N; i++) {
            v[i] += __shfl_xor_sync(SIMT_ALL_LANES, v[i], bits);
        }
    }
}

template <int N> SIMT_FN void simt_warp_max_n(float (&v)[N], int lanes)
{
    for (int bits = lanes / 2; bits > 0; bits /= 2) {
        SIMT_UNROLL
        for (int i = 0; i < N; i++) {
            v[i] = fmaxf(v[i], __shfl_xor_sync(SIMT_ALL_LANES, v[i], bits));
        }
    }
}

SIMT_FN float simt_warp_sum(float v, int lanes)
{
    float one[1] = {v};
    simt_warp_sum_n(one, lanes);
    return one[0];
}

SIMT_FN float simt_warp_max(float v, int lanes)
{
    float one[1] = {v};
    simt_warp_max_n(one, lanes);
    return one[0];
}

SIMT_FN uint32_t simt_ballot(bool flag, uint32_t mask)
{
    return __ballot_sync(mask, flag);
}

SIMT_FN bool simt_any(bool flag, uint32_t mask)
{
    return __any_sync(mask, flag) != 0;
}

SIMT_FN bool simt_all(bool flag, uint32_t mask)
{
    return __all_sync(mask, flag) != 0;
}

SIMT_FN void simt_sync_warp(uint32_t mask)
{
    __syncwarp(mask);
}

SIMT_FN void simt_sync_block(void)
{
    __syncthreads();
}

SIMT_FN bool simt_sync_block_or(bool flag)
{
    return __syncthreads_or(flag) != 0;
}

SIMT_FN int simt_sync_block_count(bool flag)
{
    return __syncthreads_count(flag);
}

SIMT_FN void simt_barrier_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

SIMT_FN void simt_barrier_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
