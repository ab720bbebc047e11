/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/dtypes.h"

#include <assert.h>
#include <string.h>
#include <strings.h>

static const k_dtype_info_t dtypes[K_DTYPE_COUNT] = {
#define DTYPE(name, text, elements, bytes, gguf, safetensors)                                      \
    {text, elements, bytes, gguf, safetensors},
#include "kernels/dtypes.def"
#undef DTYPE
};

const k_dtype_info_t *k_dtype_info(k_dtype_t dtype)
{
    assert((unsigned)dtype < K_DTYPE_COUNT);
    return &dtypes[dtype];
}

weft_status_t k_dtype_from_gguf(uint32_t type, k_dtype_t *dtype_out)
{
    for (int i = 0; i < K_DTYPE_COUNT; i++) {
        if (dtypes[i].gguf_type >= 0 && (uint32_t)dtypes[i].gguf_type == type) {
            *dtype_out = (k_dtype_t)i;
            return WEFT_OK;
        }
    }
    return WEFT_ERR_NOT_FOUND;
}

weft_status_t k_dtype_from_safetensors(const char *name, k_dtype_t *dtype_out)
{
    for (int i = 0; i < K_DTYPE_COUNT; i++) {
        if (dtypes[i].safetensors[0] != '\0' && strcmp(dtypes[i].safetensors, name) == 0) {
            *dtype_out = (k_dtype_t)i;
            return WEFT_OK;
        }
    }
    return WEFT_ERR_NOT_FOUND;
}

weft_status_t k_dtype_from_name(const char *name, k_dtype_t *dtype_out)
{
    for (int i = 0; i < K_DTYPE_COUNT; i++) {
        if (strcasecmp(dtypes[i].name, name) == 0) {
            *dtype_out = (k_dtype_t)i;
            return WEFT_OK;
        }
    }
    return WEFT_ERR_NOT_FOUND;
}

weft_status_t k_dtype_row_bytes(k_dtype_t dtype, uint64_t columns, size_t *bytes_out)
{
    const k_dtype_info_t *info = k_dtype_info(dtype);
    if (columns % info->block_elements != 0) {
        return WEFT_ERR_INVALID;
    }
    const uint64_t blocks = columns / info->block_elements;
    if (blocks > SIZE_MAX / info->block_bytes) {
        return WEFT_ERR_TOO_LARGE;
    }
    *bytes_out = (size_t)blocks * info->block_bytes;
    return WEFT_OK;
}

static float float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

static uint32_t bits_of_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    return bits;
}

float k_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t exponent = (h >> 10) & 0x1f;
    const uint32_t mantissa = h & 0x3ff;
    if (exponent == 0x1f) { /* infinity, NaN with its payload */
        return float_of_bits(sign | 0x7f800000 | mantissa << 13);
    }
    if (exponent == 0) { /* zero, subnormal: mantissa × 2^-24, exact */
        const float magnitude = (float)mantissa * 0x1p-24f;
        return float_of_bits(sign | bits_of_float(magnitude));
    }
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* value >> shift, rounded to nearest, ties to even; 1 <= shift <= 31. */
static uint32_t shift_rounded(uint32_t value, uint32_t shift)
{
    const uint32_t half = UINT32_C(1) << (shift - 1);
    const uint32_t odd = (value >> shift) & 1;
    return (value + half - 1 + odd) >> shift;
}

uint16_t k_f32_to_f16(float f)
{
    const uint32_t bits = bits_of_float(f);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) { /* NaN: quiet, the payload's upper bits kept */
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    }
    if (magnitude >= 0x47800000) { /* 2^16 and above */
        return (uint16_t)(sign | 0x7c00);
    }
    if (magnitude >= 0x38800000) { /* normal; a carry out of the mantissa ends in the exponent */
        return (uint16_t)(sign | shift_rounded(magnitude - (UINT32_C(112) << 23), 13));
    }
    if (magnitude <= 0x33000000) { /* 2^-25 and below: the tie goes to zero */
        return sign;
    }
    const uint32_t exponent = magnitude >> 23;
    const uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
    return (uint16_t)(sign | shift_rounded(mantissa, 126 - exponent));
}

float k_bf16_to_f32(uint16_t h)
{
    return float_of_bits((uint32_t)h << 16);
}

uint16_t k_f32_to_bf16(float f)
{
    const uint32_t bits = bits_of_float(f);
    if ((bits & 0x7fffffff) > 0x7f800000) { /* NaN must not round to infinity */
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
