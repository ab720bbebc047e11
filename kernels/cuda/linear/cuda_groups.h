/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_groups: products with many matrices of one shape, each of which has rows of its own: the
 * experts of a layer, or the heads of latent attention. Matrices are packed as cuda_linear.h says.
 *
 * Which rows are whose may be known to the device alone: launches depend on how many there can be, so
 * that a graph holds for every choice. Blocks read the offsets and share out the tiles that there
 * are, (matrix, up to so many of its rows, units of the matrix): of experts that nobody chose
 * nothing is read.
 *
 * Decision 7: as cuda_linear.h, for one (dtype, rows, columns) of a matrix; the tiles, which follow
 * from the number of rows, change no bit.
 */
#pragma once

#include "kernels/cuda/linear/cuda_linear.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GROUPS_MAX K_MAX_EXPERTS

typedef struct k_cuda_groups {
    k_cuda_weight_t w; /* the first matrix; of plain form */
    size_t w_step;     /* bytes from one matrix's data to the next's */
    uint32_t n;
    const float *bias; /* [n, w.rows] f32, or NULL */

    /*
     * offsets [n + 1]: rows [offsets[g], offsets[g + 1]) of y are matrix g's, `rows` the most that all
     * have together, shared with those that are elsewhere: all_n in all (0: n).
     * NULL: each has `rows`, matrix g's x_step and y_step elements behind the one before.
     */
    const uint32_t *offsets;
    uint32_t rows;
    uint32_t all_n;
    size_t x_step;
    size_t y_step;

    const void *x;          /* bf16 */
    const uint32_t *row_of; /* row i of y is made of row row_of[i] of x; NULL: of row i */
    void *gathered;         /* [rows, x_stride] scratch of the wgmma kernel; used with row_of */
    void *y;                /* bf16 */
    size_t x_stride;        /* elements */
    size_t y_stride;
    k_cuda_linear_path_t path;
} k_cuda_groups_t;

int k_cuda_groups(const k_cuda_groups_t *args, cudaStream_t stream);

/*
 * The same of n weights in any memory, of plain form and one shape: a launch for each run of equal type
 * and distance. groups' w, w_step and n are not read.
 */
int k_cuda_groups_of(const k_weight_t *weights, uint32_t n, const k_cuda_groups_t *groups,
                     cudaStream_t stream);

#ifdef __cplusplus
}
#endif
