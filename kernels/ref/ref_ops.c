/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/ref/ref_ops.h"

#include <string.h>

#include "kernels/k_sampling.h"

static bool is_supported(void)
{
    return true;
}

static size_t weight_bytes(k_dtype_t dtype, k_weight_form_t form, uint32_t rows, uint32_t columns)
{
    if (form != K_WEIGHT_ROWS) {
        return SIZE_MAX;
    }
    size_t row_bytes = 0;
    k_dtype_row_bytes(dtype, columns, &row_bytes);
    return rows * row_bytes;
}

/* The rows as the file has them, the parts one after the other. */
static void weight_pack(k_stream_t *stream, k_dtype_t dtype, k_weight_form_t form, uint32_t columns,
                        const k_weight_part_t *parts, uint32_t n_parts, void *dst)
{
    (void)stream;
    (void)form; /* K_WEIGHT_ROWS: weight_bytes refuses others */
    size_t row_bytes = 0;
    k_dtype_row_bytes(dtype, columns, &row_bytes);
    char *to = dst;
    for (uint32_t i = 0; i < n_parts; i++) {
        memcpy(to, parts[i].data, parts[i].rows * row_bytes);
        to += parts[i].rows * row_bytes;
    }
}

static size_t scratch_bytes(uint32_t rows, uint32_t width, uint32_t threads)
{
    (void)rows;
    return threads * k_sampling_scratch_bytes(width);
}

const k_ops_t k_ops_ref = {
    .name = "ref",
    .is_supported = is_supported,
    .act = K_F32,
    .weight_bytes = weight_bytes,
    .weight_pack = weight_pack,
    .scratch_bytes = scratch_bytes,
#define OP(op) .op = k_ref_##op,
#include "kernels/ops.def"
#undef OP
};
