/* SPDX-License-Identifier: Apache-2.0 */
/* dtypes: element types of tensors, and how many bytes a row of them takes. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef enum k_dtype {
#define DTYPE(name, text, elements, bytes, gguf, safetensors) K_##name,
#include "kernels/dtypes.def"
#undef DTYPE
    K_DTYPE_COUNT
} k_dtype_t;

typedef struct k_dtype_info {
    const char *name;        /* "q4_1" */
    uint32_t block_elements; /* 1 for plain types */
    uint32_t block_bytes;
    int32_t gguf_type;       /* -1: not a GGUF type */
    const char *safetensors; /* "": not a safetensors type */
} k_dtype_info_t;

const k_dtype_info_t *k_dtype_info(k_dtype_t dtype);

/* WEFT_ERR_NOT_FOUND for a type that we do not compute with. */
weft_status_t k_dtype_from_gguf(uint32_t type, k_dtype_t *dtype_out);
weft_status_t k_dtype_from_safetensors(const char *name, k_dtype_t *dtype_out);
weft_status_t k_dtype_from_name(const char *name, k_dtype_t *dtype_out);

/*
 * Bytes of `columns` elements.
 * WEFT_ERR_INVALID: not whole blocks. WEFT_ERR_TOO_LARGE: does not fit in size_t.
 */
weft_status_t k_dtype_row_bytes(k_dtype_t dtype, uint64_t columns, size_t *bytes_out);

/*
 * n elements (whole blocks) of src to f32. Plain C, bit-equal to the format's definition: products
 * formed as float(scale) × integer scale × value − offset, never fused.
 */
void k_dequantize(k_dtype_t dtype, const void *src, float *dst, size_t n);

float k_f16_to_f32(uint16_t h);
uint16_t k_f32_to_f16(float f); /* round to nearest even */
float k_bf16_to_f32(uint16_t h);
uint16_t k_f32_to_bf16(float f); /* round to nearest even */
