/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Four-bit checkpoints of GPTQ and AWQ: W[n][k] = (q[k][n] − zero[group of k][n]) · scale[…][n].
 * q, zeros and scales lie side by side with k (or its groups) outermost; eight numbers a word of 32
 * bits, along k in GPTQ's qweight, along n elsewhere. Layouts: AutoGPTQ and AutoAWQ.
 */
#include <string.h>

#include "runtime/model/model_source_priv.h"

enum { BLOCK = 32, BLOCK_BYTES = 19, WORD = 8, TILE = 16 };

/* Where in its word AWQ keeps number n. */
static const uint8_t awq_place[WORD] = {0, 4, 1, 5, 2, 6, 3, 7};

static weft_status_t refuse(const model_source_t *source, const model_tensor_t *tensor,
                            weft_diag_t *diag, weft_status_t status, const char *reason)
{
    return weft_diag(diag, status, "%s: tensor %s: %s", source->path, tensor->name, reason);
}

static uint32_t load_word(const void *words, uint64_t index)
{
    uint32_t word;
    memcpy(&word, (const char *)words + index * sizeof(word), sizeof(word));
    return word;
}

static uint64_t group_of(const model_tensor_t *tensor, uint64_t column)
{
    return tensor->tile_columns == 0 ? 0 : column / tensor->tile_columns;
}

/* Columns that were sorted before they were grouped would have to be sorted back. */
static bool is_in_order(const model_tensor_t *tensor, const model_tensor_t *order)
{
    if (order->dtype != K_I32 || order->rows * order->columns != tensor->columns) {
        return false;
    }
    for (uint64_t k = 0; k < tensor->columns; k++) {
        if (load_word(order->data, k) != group_of(tensor, k)) {
            return false;
        }
    }
    return true;
}

/* Whether words, zeros and scales are of one matrix [rows, columns]. */
static bool fits(const model_tensor_t *tensor, const model_tensor_t *words,
                 const model_tensor_t *zeros, const model_tensor_t *scales)
{
    const uint64_t groups = group_of(tensor, tensor->columns - 1) + 1;
    const bool is_awq = tensor->packing == MODEL_INT4_AWQ;
    return words->dtype == K_I32 && zeros->dtype == K_I32 && scales->dtype == K_F16 &&
           tensor->columns % BLOCK == 0 && tensor->rows % WORD == 0 &&
           (is_awq ? words->rows == tensor->columns && words->columns * WORD == tensor->rows
                   : words->rows * WORD == tensor->columns && words->columns == tensor->rows) &&
           zeros->rows == groups && zeros->columns * WORD == tensor->rows &&
           scales->rows == groups && scales->columns == tensor->rows;
}

weft_status_t model_source_find_int4(const model_source_t *source, const char *name,
                                     weft_diag_t *diag, model_tensor_t *tensor_out)
{
    const model_config_t *config = &source->config;
    const model_tensor_t *words = model_source_beside(source, name, ".weight", ".qweight");
    const model_tensor_t *zeros = model_source_beside(source, name, ".weight", ".qzeros");
    const model_tensor_t *scales = model_source_beside(source, name, ".weight", ".scales");
    const model_tensor_t *order = model_source_beside(source, name, ".weight", ".g_idx");
    if (config->int4 == MODEL_INT4_NONE || words == NULL) {
        return WEFT_ERR_NOT_FOUND;
    }
    if (zeros == NULL || scales == NULL) {
        return refuse(source, words, diag, WEFT_ERR_MALFORMED, "has no zeros or no scales");
    }
    const bool is_awq = config->int4 == MODEL_INT4_AWQ;
    model_tensor_t tensor = {
        .name = words->name,
        .dtype = K_I4_32,
        .rows = is_awq ? words->columns * WORD : words->columns,
        .columns = is_awq ? words->rows : words->rows * WORD,
        .data = words->data,
        .bytes = words->bytes,
        .form = MODEL_FORM_INT4,
        .stride = is_awq ? words->columns * WORD : words->columns,
        .scales_name = scales->name,
        .scales = scales->data,
        .scales_dtype = scales->dtype,
        .tile_columns = config->int4_group,
        .packing = config->int4,
        .zeros_name = zeros->name,
        .zeros = zeros->data,
        .order_name = order == NULL ? NULL : order->name,
    };
    if (!fits(&tensor, words, zeros, scales)) {
        return refuse(source, words, diag, WEFT_ERR_MALFORMED,
                      "and its zeros and scales (F16) do not fit together");
    }
    if (order != NULL && !is_in_order(&tensor, order)) {
        return refuse(source, words, diag, WEFT_ERR_UNSUPPORTED,
                      "groups in another order (desc_act) are not supported");
    }
    *tensor_out = tensor;
    return WEFT_OK;
}

/* ---- reading: row and column are those of the file, of which the tensor may be a slice -------- */

static uint32_t number_at(const model_tensor_t *tensor, uint64_t row, uint64_t column)
{
    if (tensor->packing == MODEL_INT4_AWQ) {
        const uint32_t word =
            load_word(tensor->data, column * (tensor->stride / WORD) + row / WORD);
        return word >> (4 * awq_place[row % WORD]) & 15;
    }
    return load_word(tensor->data, column / WORD * tensor->stride + row) >> (4 * (column % WORD)) &
           15;
}

static uint8_t zero_at(const model_tensor_t *tensor, uint64_t row, uint64_t group)
{
    const uint32_t word = load_word(tensor->zeros, group * (tensor->stride / WORD) + row / WORD);
    const uint32_t place =
        tensor->packing == MODEL_INT4_AWQ ? awq_place[row % WORD] : (uint32_t)(row % WORD);
    return (uint8_t)((word >> (4 * place) & 15) + (tensor->packing == MODEL_INT4_GPTQ));
}

static void read_block(const model_tensor_t *tensor, uint64_t row, uint64_t column, uint8_t *out)
{
    const uint64_t group = group_of(tensor, column);
    memcpy(out, (const uint8_t *)tensor->scales + (group * tensor->stride + row) * 2, 2);
    out[2] = zero_at(tensor, row, group);
    for (uint32_t i = 0; i < BLOCK / 2; i++) {
        const uint32_t low = number_at(tensor, row, column + i);
        const uint32_t high = number_at(tensor, row, column + i + BLOCK / 2);
        out[3 + i] = (uint8_t)(low | high << 4);
    }
}

/* Some rows at a time: neighbours share the words, or at least their cache lines. */
void model_source_read_int4(const model_tensor_t *tensor, uint64_t first, uint64_t n, uint8_t *out)
{
    const uint64_t row_bytes = tensor->columns / BLOCK * BLOCK_BYTES;
    first += tensor->first_row;
    for (uint64_t tile = 0; tile < n; tile += TILE) {
        const uint64_t rows = n - tile < TILE ? n - tile : TILE;
        for (uint64_t b = 0; b < tensor->columns / BLOCK; b++) {
            for (uint64_t r = tile; r < tile + rows; r++) {
                read_block(tensor, first + r, tensor->first_column + b * BLOCK,
                           out + r * row_bytes + b * BLOCK_BYTES);
            }
        }
    }
}
