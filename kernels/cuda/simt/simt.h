/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt: the only CUDA header that a .cu file includes. One name for each idea of the machine; a
 * .cu holds no asm, no __shared__, no <<<>>> and no intrinsic that is not named here.
 *
 * The same .cu is compiled by nvcc (the names are inline PTX, simt_ptx_*.h) and by g++ (the names
 * are functions of tests/cuda_emu/, where the threads of a block are fibers). What a kernel may
 * count on is what these headers say; the emulation is as late and as hostile as they allow.
 *
 *   simt_launch.h   launching a kernel; programmatic dependent launch
 *   simt_shared.h   shared memory
 *   simt_warp.h     lanes, shuffles, votes, barriers
 *   simt_memory.h   16-byte loads with hints, fences, atomics, flags between blocks and GPUs
 *   simt_async.h    cp.async: copies to shared memory that end later
 *   simt_math.h     fast functions, packed element types, bit tricks
 *   simt_mma.h      ldmatrix and mma.sync, the tensor cores of every GPU since sm_80
 *   simt_mbarrier.h, simt_tma.h, simt_wgmma.h   Hopper (sm_90a), inside #if SIMT_HOPPER only
 *
 * Element types are CUDA's own: __nv_bfloat16, __half, __nv_fp8_e4m3 with their conversions;
 * threadIdx, blockIdx, blockDim, gridDim, uint4, float4, make_float4 are as ever.
 *
 * A kernel:
 *
 *   static SIMT_KERNEL(256, 2) scale_rows(const float *x, float *y, unsigned n)
 *   {
 *       SIMT_SHARED(float, sums, [8]);
 *       simt_wait_previous();
 *       …
 *   }
 *
 *   int k_cuda_scale_rows(const float *x, float *y, unsigned n, cudaStream_t stream) // extern "C"
 *   {
 *       return simt_launch(scale_rows, {.grid = {rows}, .block = {256}, .stream = stream}, x, y, n);
 *   }
 *
 * A Hopper kernel exists on every architecture, with its body inside #if SIMT_HOPPER … #endif; its
 * launcher asks simt_is_hopper(). Do not keep pointers to shared memory in global memory, do
 * not use __device__ or __constant__ variables, and do not spin on another block but through
 * simt_spin().
 */
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>
#include <vector_functions.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

/*
 * SIMT_DEVICE marks a function that kernels call; SIMT_KERNEL(threads, blocks) a kernel of at most
 * so many threads, of which so many blocks should fit a multiprocessor (this bounds registers).
 * SIMT_HOPPER: the instructions of sm_90a may be used here. Host code of a Hopper kernel asks
 * simt_is_hopper() at run time.
 */
#ifdef __CUDACC__
#define SIMT_DEVICE                  static __device__ __forceinline__
#define SIMT_FN                      __device__ __forceinline__
#define SIMT_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define SIMT_GRID_CONSTANT           __grid_constant__
#define SIMT_UNROLL                  _Pragma("unroll")
#define SIMT_NO_UNROLL               _Pragma("unroll 1")
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SIMT_HOPPER 1
#else
#define SIMT_HOPPER 0
#endif
#else
#define SIMT_DEVICE static inline
#define SIMT_FN
#define SIMT_KERNEL(threads, blocks) __attribute__((noinline)) void
#define SIMT_GRID_CONSTANT
#define SIMT_UNROLL    _Pragma("GCC unroll 16")
#define SIMT_NO_UNROLL _Pragma("GCC unroll 1")
#define SIMT_HOPPER    1
#endif

#define SIMT_WARP      32
#define SIMT_ALL_LANES 0xffffffffu

// clang-format off
#ifndef __CUDACC__
#include "tests/cuda_emu/emu_device.h"
#endif
#include "kernels/cuda/simt/simt_launch.h"
#include "kernels/cuda/simt/simt_shared.h"
#include "kernels/cuda/simt/simt_warp.h"
#include "kernels/cuda/simt/simt_memory.h"
#include "kernels/cuda/simt/simt_async.h"
#include "kernels/cuda/simt/simt_math.h"
#include "kernels/cuda/simt/simt_mma.h"
#include "kernels/cuda/simt/simt_mbarrier.h"
#include "kernels/cuda/simt/simt_tma.h"
#include "kernels/cuda/simt/simt_wgmma.h"
#ifdef __CUDACC__
#include "kernels/cuda/simt/simt_ptx_warp.h"
#include "kernels/cuda/simt/simt_ptx_memory.h"
#include "kernels/cuda/simt/simt_ptx_mma.h"
#include "kernels/cuda/simt/simt_ptx_hopper.h"
#include "kernels/cuda/simt/simt_ptx_wgmma.h"
#else
#include "tests/cuda_emu/emu_templates.h"
#endif
// clang-format on
