/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_tma: bulk copies between global and shared memory by one thread. Hopper only: device parts
 * inside #if SIMT_HOPPER. Part of simt.h.
 *
 * Loads count their bytes at an mbarrier, which was told to expect them; parts of a box outside the
 * tensor arrive as zeroes and count as bytes. Stores are grouped like cp.async; their shared source
 * was written before a simt_fence_async_shared() and a barrier.
 */
#pragma once

/* How L2 treats the lines; the encodings are the hardware's. */
#define SIMT_L2_NORMAL      UINT64_C(0x1000000000000000)
#define SIMT_L2_EVICT_FIRST UINT64_C(0x12F0000000000000)
#define SIMT_L2_EVICT_LAST  UINT64_C(0x14F0000000000000)

/* ---- host: describing a tensor -------------------------------------------------------------- */

typedef enum simt_swizzle { SIMT_SWIZZLE_NONE, SIMT_SWIZZLE_128 } simt_swizzle_t;

/*
 * A tensor in global memory and the box of it that one load copies. Dimension 0 is the innermost,
 * contiguous one. With SIMT_SWIZZLE_128 a row of the box (box[0] elements) is at most 128 bytes, and
 * 16-byte chunk c of row r lands at chunk c ^ (r % 8) of row r.
 */
typedef struct simt_tensor {
    void *data;             /* device address, 16-byte aligned */
    uint32_t element_bytes; /* 1, 2 or 4 */
    uint32_t rank;          /* 1..5 */
    uint64_t dims[5];       /* elements */
    uint64_t strides[4]; /* bytes from one index of dimension 1..4 to the next; multiples of 16 */
    uint32_t box[5];     /* elements, each at most 256; box[0] a multiple of 16 bytes */
    simt_swizzle_t swizzle;
} simt_tensor_t;

/* Passed to a kernel by value, as `const SIMT_GRID_CONSTANT simt_tensor_map_t map`. */
typedef CUtensorMap simt_tensor_map_t;

/* Only writes *map_out; any thread. cudaErrorInvalidValue: the hardware cannot do it. */
cudaError_t simt_tensor_map_encode(const simt_tensor_t *tensor, simt_tensor_map_t *map_out);

/* ---- device: loads -------------------------------------------------------------------------- */

/* bytes, shared and global: multiples of 16. */
SIMT_FN void simt_tma_load(void *shared, const void *global, uint32_t bytes,
                           simt_mbarrier_t *barrier, uint64_t l2 = SIMT_L2_NORMAL);
/* The box whose first element is (x, y, …); coordinates may be negative. shared: 128-byte aligned,
 * 1024 when swizzled. */
SIMT_FN void simt_tma_load_2d(void *shared, const simt_tensor_map_t *map, int x, int y,
                              simt_mbarrier_t *barrier, uint64_t l2 = SIMT_L2_NORMAL);
SIMT_FN void simt_tma_load_3d(void *shared, const simt_tensor_map_t *map, int x, int y, int z,
                              simt_mbarrier_t *barrier, uint64_t l2 = SIMT_L2_NORMAL);
SIMT_FN void simt_tma_load_4d(void *shared, const simt_tensor_map_t *map, int x, int y, int z,
                              int w, simt_mbarrier_t *barrier, uint64_t l2 = SIMT_L2_NORMAL);
SIMT_FN void simt_tma_load_5d(void *shared, const simt_tensor_map_t *map, int x, int y, int z,
                              int w, int v, simt_mbarrier_t *barrier, uint64_t l2 = SIMT_L2_NORMAL);
SIMT_FN void simt_tma_prefetch_map(const simt_tensor_map_t *map);
/* Brings bytes (a multiple of 16) to L2. */
SIMT_FN void simt_tma_prefetch_l2(const void *global, uint32_t bytes);

/* ---- device: stores ------------------------------------------------------------------------- */

SIMT_FN void simt_tma_store(void *global, const void *shared, uint32_t bytes);
SIMT_FN void simt_tma_store_2d(const simt_tensor_map_t *map, int x, int y, const void *shared);
SIMT_FN void simt_tma_store_3d(const simt_tensor_map_t *map, int x, int y, int z,
                               const void *shared);
SIMT_FN void simt_tma_store_commit(void);
/* All but the N newest groups have read their source: shared memory may be written again. */
template <int N> SIMT_FN void simt_tma_store_wait_read(void);
/* All but the N newest groups are in global memory. */
template <int N> SIMT_FN void simt_tma_store_wait(void);
