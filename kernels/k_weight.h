/* SPDX-License-Identifier: Apache-2.0 */
/* k_weight: a matrix as a backend keeps it, and the rows of the source that it is packed from. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/dtypes.h"

#define K_PACKING 2 /* rises with what weight_pack makes of the same weights */

/* How a weight's rows lie beside one another. */
typedef enum k_weight_form {
    K_WEIGHT_ROWS,    /* as in the source */
    K_WEIGHT_GATE_UP, /* two parts of equal rows, row i of both side by side: for K_OUT_SWIGLU */
} k_weight_form_t;

/*
 * A matrix [rows, columns] as a backend keeps it: out = W x has `rows` outputs. Packed by
 * weight_pack into memory of weight_bytes(); `data` may instead point into the mapped file when
 * the backend computes straight from it (weight_bytes says 0).
 */
typedef struct k_weight {
    k_dtype_t dtype; /* of the source */
    k_weight_form_t form;
    uint32_t rows;
    uint32_t columns;
    const void *data;
} k_weight_t;

/* Row ranges of the source, in order, that make one weight; parts share dtype and columns. */
typedef struct k_weight_part {
    const void *data; /* [rows][row bytes] in file order */
    uint32_t rows;
    size_t
        stride; /* bytes from one row to the next, where k_ops.packs_slices; 0: as many as it has */
} k_weight_part_t;
