/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_mma: warp-wide matrix products, sm_80 and newer. Part of simt.h.
 *
 * All 32 lanes call. With g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments for mma"):
 *
 *   d [16, 8] f32 or s32   d[0..1] row g, columns 2t, 2t+1;  d[2..3] row g + 8
 *   a [16, 16] 16-bit      a[0] row g, columns 2t, 2t+1;  a[1] row g + 8;  a[2], a[3] columns + 8
 *   b [16, 8] 16-bit       b[0] rows 2t, 2t+1 of column g;  b[1] rows + 8
 *   a [16, 32] 8-bit       a[0] row g, columns 4t..4t+3;  a[1] row g + 8;  a[2], a[3] columns + 16
 *   b [32, 8] 8-bit        b[0] rows 4t..4t+3 of column g;  b[1] rows + 16
 */
#pragma once

/* d += a · b, products summed in f32 (s32) in an order of the hardware's own, the same always. */
SIMT_FN void simt_mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
SIMT_FN void simt_mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
SIMT_FN void simt_mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
/* sm_89 and newer: not in code that sm_80 compiles, see SIMT_HOPPER. */
SIMT_FN void simt_mma_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

/*
 * Loads 1, 2 or 4 matrices of 8 rows of 16 bytes (8x8 of 16-bit elements) from shared memory. Lane
 * i passes the address (a multiple of 16) of row i % 8 of matrix i / 8; those of lanes past the
 * last matrix are ignored. r[m] of a lane: row lane / 4, elements 2·(lane % 4) and the next of
 * matrix m; _trans: of the transposed matrix.
 */
SIMT_FN void simt_ldmatrix_x1(uint32_t (&r)[1], const void *shared_row);
SIMT_FN void simt_ldmatrix_x2(uint32_t (&r)[2], const void *shared_row);
SIMT_FN void simt_ldmatrix_x4(uint32_t (&r)[4], const void *shared_row);
SIMT_FN void simt_ldmatrix_x1_trans(uint32_t (&r)[1], const void *shared_row);
SIMT_FN void simt_ldmatrix_x2_trans(uint32_t (&r)[2], const void *shared_row);
SIMT_FN void simt_ldmatrix_x4_trans(uint32_t (&r)[4], const void *shared_row);
