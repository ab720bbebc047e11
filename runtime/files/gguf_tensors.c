/* SPDX-License-Identifier: Apache-2.0 */
/* The descriptions of tensors, and where their data lies. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "runtime/files/gguf_priv.h"

#define MAX_NAME_BYTES 256

/* The format's own numbering; for a line that names what weft does not compute with. */
static const char *const ggml_type_names[] = {
    [0] = "F32",     [1] = "F16",      [2] = "Q4_0",   [3] = "Q4_1",    [6] = "Q5_0",
    [7] = "Q5_1",    [8] = "Q8_0",     [9] = "Q8_1",   [10] = "Q2_K",   [11] = "Q3_K",
    [12] = "Q4_K",   [13] = "Q5_K",    [14] = "Q6_K",  [15] = "Q8_K",   [16] = "IQ2_XXS",
    [17] = "IQ2_XS", [18] = "IQ3_XXS", [19] = "IQ1_S", [20] = "IQ4_NL", [21] = "IQ3_S",
    [22] = "IQ2_S",  [23] = "IQ4_XS",  [24] = "I8",    [25] = "I16",    [26] = "I32",
    [27] = "I64",    [28] = "F64",     [29] = "IQ1_M", [30] = "BF16",   [34] = "TQ1_0",
    [35] = "TQ2_0",  [39] = "MXFP4",   [40] = "NVFP4",
};

static weft_status_t take_dims(gguf_parser_t *p, gguf_tensor_t *tensor)
{
    uint64_t n_dims;
    weft_status_t status = gguf_take_uint(p, 4, &n_dims);
    if (status != WEFT_OK) {
        return status;
    }
    if (n_dims > GGUF_MAX_DIMS) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                         "%s: %s: %" PRIu64 " dimensions, the format allows %d", p->gguf->name,
                         p->where, n_dims, GGUF_MAX_DIMS);
    }
    tensor->n_dims = (uint32_t)n_dims;
    for (uint32_t i = 0; i < GGUF_MAX_DIMS; i++) {
        tensor->dims[i] = 1;
        if (i < n_dims) {
            status = gguf_take_uint(p, 8, &tensor->dims[i]);
        }
        if (status != WEFT_OK) {
            return status;
        }
        if (tensor->dims[i] == 0) {
            return gguf_malformed(p, "a dimension of 0");
        }
    }
    return WEFT_OK;
}

static weft_status_t take_dtype(gguf_parser_t *p, k_dtype_t *out)
{
    uint64_t type;
    const weft_status_t status = gguf_take_uint(p, 4, &type);
    if (status != WEFT_OK || k_dtype_from_gguf((uint32_t)type, out) == WEFT_OK) {
        return status;
    }
    if (type < WEFT_ARRAY_LEN(ggml_type_names) && ggml_type_names[type] != NULL) {
        return weft_diag(p->diag, WEFT_ERR_UNSUPPORTED, "%s: %s: type %s is not one of weights",
                         p->gguf->name, p->where, ggml_type_names[type]);
    }
    return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: %s: unknown tensor type %" PRIu64,
                     p->gguf->name, p->where, type);
}

static weft_status_t compute_bytes(gguf_parser_t *p, gguf_tensor_t *tensor)
{
    size_t bytes = 0;
    const k_dtype_info_t *info = k_dtype_info(tensor->dtype);
    const weft_status_t status = k_dtype_row_bytes(tensor->dtype, tensor->dims[0], &bytes);
    if (status == WEFT_ERR_INVALID) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                         "%s: %s: rows of %" PRIu64 " are not whole %s blocks of %" PRIu32,
                         p->gguf->name, p->where, tensor->dims[0], info->name,
                         info->block_elements);
    }
    bool is_too_large = status != WEFT_OK;
    for (uint32_t i = 1; i < GGUF_MAX_DIMS && !is_too_large; i++) {
        is_too_large = __builtin_mul_overflow(bytes, tensor->dims[i], &bytes);
    }
    if (is_too_large || bytes > p->file_length) {
        return gguf_malformed(p, "its shape is larger than the file");
    }
    tensor->bytes = bytes;
    return WEFT_OK;
}

/* Leaves offset as the file says it: from the start of the data. */
static weft_status_t take_tensor(gguf_parser_t *p, uint64_t index, gguf_tensor_t *tensor)
{
    gguf_string_t name;
    snprintf(p->where, sizeof(p->where), "tensor description %" PRIu64, index);
    weft_status_t status = gguf_take_string(p, &name);
    if (status != WEFT_OK) {
        return status;
    }
    snprintf(p->where, sizeof(p->where), "tensor %.*s", gguf_shown(name.length), name.data);
    if (memchr(name.data, '\0', name.length) != NULL) {
        return gguf_malformed(p, "a zero byte in its name");
    }
    if (name.length > MAX_NAME_BYTES) {
        return gguf_malformed(p, "its name is too long");
    }
    tensor->name = name.data;
    p->names_bytes += name.length + 1;

    status = take_dims(p, tensor);
    if (status == WEFT_OK) {
        status = take_dtype(p, &tensor->dtype);
    }
    if (status == WEFT_OK) {
        status = compute_bytes(p, tensor);
    }
    if (status == WEFT_OK) {
        status = gguf_take_uint(p, 8, &tensor->offset);
    }
    if (status == WEFT_OK && tensor->offset % p->alignment != 0) {
        return gguf_malformed(p, "its offset is not aligned");
    }
    return status;
}

/* Turns data-relative offsets into offsets in the file. */
static weft_status_t place_tensor(gguf_parser_t *p, uint64_t data_start, gguf_tensor_t *tensor)
{
    uint64_t begin;
    uint64_t end;
    if (__builtin_add_overflow(data_start, tensor->offset, &begin) ||
        __builtin_add_overflow(begin, tensor->bytes, &end)) {
        end = UINT64_MAX;
    }
    if (end > p->file_length) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                         "%s: tensor %.*s: its %zu bytes at offset %" PRIu64
                         " of the data end past the file of %" PRIu64 " bytes",
                         p->gguf->name, GGUF_MAX_SHOWN, tensor->name, tensor->bytes, tensor->offset,
                         p->file_length);
    }
    tensor->offset = begin;
    return WEFT_OK;
}

/* Names point into the file, where nothing ends them: copy them once their sum is known. */
static weft_status_t copy_names(gguf_parser_t *p)
{
    gguf_t *g = p->gguf;
    g->names = weft_alloc(p->names_bytes + 1, "gguf.names");
    if (g->names == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    char *end = g->names;
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const char *in_file = g->tensors[i].name;
        const size_t length = (size_t)gguf_load_le((const uint8_t *)in_file - 8, 8);
        memcpy(end, in_file, length);
        end[length] = '\0';
        g->tensors[i].name = end;
        end += length + 1;
    }
    return WEFT_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const gguf_tensor_t *const *)a)->name,
                  (*(const gguf_tensor_t *const *)b)->name);
}

static int by_offset(const void *a, const void *b)
{
    const uint64_t x = (*(const gguf_tensor_t *const *)a)->offset;
    const uint64_t y = (*(const gguf_tensor_t *const *)b)->offset;
    return (x > y) - (x < y);
}

static weft_status_t check_neighbours(gguf_parser_t *p, const gguf_tensor_t **order)
{
    const gguf_t *g = p->gguf;
    qsort(order, g->n_tensors, sizeof(order[0]), by_name);
    for (uint64_t i = 1; i < g->n_tensors; i++) {
        if (strcmp(order[i - 1]->name, order[i]->name) == 0) {
            return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: tensor %.*s: appears twice", g->name,
                             GGUF_MAX_SHOWN, order[i]->name);
        }
    }
    qsort(order, g->n_tensors, sizeof(order[0]), by_offset);
    for (uint64_t i = 1; i < g->n_tensors; i++) {
        if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset) {
            return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                             "%s: tensor %.*s: its data overlaps that of tensor %.*s", g->name,
                             GGUF_MAX_SHOWN, order[i]->name, GGUF_MAX_SHOWN, order[i - 1]->name);
        }
    }
    return WEFT_OK;
}

static weft_status_t check_tensors(gguf_parser_t *p)
{
    gguf_t *g = p->gguf;
    const gguf_tensor_t **order =
        weft_calloc(g->n_tensors + 1, sizeof(const gguf_tensor_t *), "gguf.order");
    if (order == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        order[i] = &g->tensors[i];
    }
    const weft_status_t status = check_neighbours(p, order);
    weft_free(order);
    return status;
}

weft_status_t gguf_parse_tensors(gguf_parser_t *p)
{
    gguf_t *g = p->gguf;
    weft_status_t status = WEFT_OK;
    g->tensors = weft_calloc(g->n_tensors + 1, sizeof(*g->tensors), "gguf.tensors");
    if (g->tensors == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint64_t i = 0; i < g->n_tensors && status == WEFT_OK; i++) {
        status = take_tensor(p, i, &g->tensors[i]);
    }
    if (status == WEFT_OK) {
        status = copy_names(p);
    }
    const uint64_t data_start = (p->at + p->alignment - 1) / p->alignment * p->alignment;
    for (uint64_t i = 0; i < g->n_tensors && status == WEFT_OK; i++) {
        status = place_tensor(p, data_start, &g->tensors[i]);
    }
    return status == WEFT_OK ? check_tensors(p) : status;
}
