/* SPDX-License-Identifier: Apache-2.0 */
/* packing_source: the quantized blocks of a file, field by field. Layouts: see dequantize.c. */
#pragma once

#include <stdint.h>

#include "kernels/cpu/packing.h"

typedef struct packing_source {
    /* Quants of a unit of a block, as unsigned numbers (q8_0: two's complement). */
    void (*read_unit)(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT]);
    /* Scales in the order of the form: halfwords (little-endian), then bytes. */
    void (*read_scales)(const uint8_t *block, uint8_t *scales);
} packing_source_t;

enum { PACKING_MAX_SCALE_BYTES = 20 };

/* NULL members for plain types. */
const packing_source_t *packing_source_of(k_dtype_t dtype);
