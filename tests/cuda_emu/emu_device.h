/* SPDX-License-Identifier: Apache-2.0 */
/*
 * emu_device: what a .cu file finds under g++ before the simt_ headers: the built-in variables and
 * the doors to the emulator that macros and templates use. Include kernels/cuda/simt/simt.h instead.
 */
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <tuple>

/* One kernel runs at a time; every switch to another thread sets them. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

/* ---- shared memory -------------------------------------------------------------------------- */

/* The block's array of a SIMT_SHARED, known by its tag; made by the first thread that asks. */
void *emu_shared_slot(const void *tag, size_t bytes, const char *name);
void *emu_shared_dynamic(void);

/* ---- launching ------------------------------------------------------------------------------ */

typedef struct emu_launch {
    const char *text; /* of simt_launch's arguments; static */
    dim3 grid;
    dim3 block;
    size_t shared_bytes;
    cudaStream_t stream;
    bool overlaps_previous;
    bool is_checked;                  /* the kernel was compiled with access hooks */
    void (*run)(const void *closure); /* one thread of the kernel */
    std::shared_ptr<const void> closure;
} emu_launch_t;

cudaError_t emu_enqueue(const emu_launch_t &launch);

#ifdef __SANITIZE_THREAD__
#define EMU_IS_CHECKED true
#else
#define EMU_IS_CHECKED false
#endif

/* ---- what the templates of emu_templates.h call --------------------------------------------- */

typedef enum emu_shuffle { EMU_FROM_LANE, EMU_FROM_XOR, EMU_FROM_DOWN, EMU_FROM_UP } emu_shuffle_t;

/* Replaces the caller's `bytes` at value by those of its source lane. */
void emu_shuffle_bytes(emu_shuffle_t how, void *value, size_t bytes, int argument, uint32_t mask);
/* The butterfly of simt_warp_sum_n (is_max: …max_n), as one exchange. */
void emu_butterfly(float *v, int n, int lanes, bool is_max);

void emu_cp_async(void *shared, const void *global, uint32_t bytes, uint32_t valid);
void emu_cp_async_wait(int newest);
void emu_tma_store_wait(int newest);
void emu_registers(int registers);
void emu_wgmma_wait(int newest);

typedef enum emu_wgmma_type { EMU_WGMMA_BF16, EMU_WGMMA_F16, EMU_WGMMA_E4M3 } emu_wgmma_type_t;

typedef struct emu_wgmma_call {
    emu_wgmma_type_t type;
    int n;
    bool is_b_mn;
    bool adds;
    const uint32_t *a_registers; /* NULL: a_desc */
    uint64_t a_desc;
    uint64_t b_desc;
    float *d; /* the caller's [n / 2] */
} emu_wgmma_t;

void emu_wgmma(const emu_wgmma_t &call);
