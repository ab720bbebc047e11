/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_wgmma: matrix products of a warp group (4 warps, the first a multiple of 4). Hopper only:
 * inside #if SIMT_HOPPER. Part of simt.h.
 *
 * All 128 threads call. The product is asynchronous: d and a's registers must not be touched, and
 * tiles in shared memory not be written, until simt_wgmma_wait says so.
 *
 *   simt_wgmma_fence();                        before the first, when d was written by other code
 *   simt_wgmma_bf16<128>(d, a_desc, b_desc);   …more, k by k
 *   simt_wgmma_commit();
 *   simt_wgmma_wait<0>(); simt_wgmma_hold(d);
 *
 * d [64, N] f32: warp w of the group has rows 16w..16w+15, in each the fragments of simt_mma's d:
 * d[4j + i] is element i of columns 8j..8j+7. a in registers: simt_mma's a of those 16 rows.
 */
#pragma once

SIMT_FN void simt_wgmma_fence(void);
SIMT_FN void simt_wgmma_commit(void);
template <int N> SIMT_FN void simt_wgmma_wait(void); /* all but the N newest commits have ended */
/* Keeps the compiler from moving uses of d across the waits and fences around. */
template <int N> SIMT_FN void simt_wgmma_hold(float (&d)[N]);

/*
 * A tile in shared memory with 128-byte swizzle, as TMA writes it: rows of 128 bytes, 8 rows
 * to a 1024-byte group, at a multiple of 1024.
 *
 * _k: the row is a line of K (64 16-bit or 128 8-bit elements), the row's index that of M or N;
 *     groups lie one behind the other. Step by 16 (32) of K: advance `tile` by 32 bytes.
 * _mn: the row is a line of 64 16-bit elements of M or N, the row's index that of K; wider tiles
 *     have further panels of 64, panel_bytes apart. Step by 16 of K: advance `tile` by 2048 bytes.
 */
SIMT_FN uint64_t simt_wgmma_desc_k(const void *tile);
SIMT_FN uint64_t simt_wgmma_desc_mn(const void *tile, uint32_t panel_bytes);
/* That of the tile `bytes` further, a multiple of 16: one addition. */
SIMT_FN uint64_t simt_wgmma_desc_add(uint64_t desc, uint32_t bytes);

/*
 * d = a · b, plus d when `adds`. N: 8, 16, 32, 64, 80, 96, 128, 192, 256. K is 16 (32 for e4m3).
 * B_MN: b's descriptor is _mn instead of _k. a is always _k.
 */
template <int N, bool B_MN = false>
SIMT_FN void simt_wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, bool adds = true);
template <int N, bool B_MN = false>
SIMT_FN void simt_wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,
                             bool adds = true);
template <int N, bool B_MN = false>
SIMT_FN void simt_wgmma_f16(float (&d)[N / 2], uint64_t a, uint64_t b, bool adds = true);
template <int N, bool B_MN = false>
SIMT_FN void simt_wgmma_f16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,
                            bool adds = true);
template <int N>
SIMT_FN void simt_wgmma_e4m3(float (&d)[N / 2], uint64_t a, uint64_t b, bool adds = true);
template <int N>
SIMT_FN void simt_wgmma_e4m3(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,
                             bool adds = true);
