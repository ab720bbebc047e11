/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/gguf_priv.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"

#define DEFAULT_ALIGNMENT 32
#define MAX_SHOWN         200 /* bytes of a name in an error line */
#define MIN_VALUE_BYTES   13  /* empty key, type, one byte */
#define MIN_TENSOR_BYTES  24  /* empty name, no dims, type, offset */
#define MAX_VALUES        65536
#define MAX_TENSORS       262144
#define MAX_NAME_BYTES    256

typedef struct parser {
    gguf_t *gguf;
    weft_diag_t *diag;
    const uint8_t *bytes;
    uint64_t length;
    uint64_t file_length;
    uint64_t at;
    uint64_t alignment;
    size_t names_bytes;
    char where[MAX_SHOWN + 64]; /* what is being read, for errors */
} parser_t;

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

static int shown(size_t length)
{
    return (int)(length < MAX_SHOWN ? length : MAX_SHOWN);
}

/* ---- reading ------------------------------------------------------------------------------- */

static weft_status_t malformed(parser_t *p, const char *reason)
{
    return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: %s: %s", p->gguf->name, p->where, reason);
}

static weft_status_t take(parser_t *p, uint64_t n, const uint8_t **out)
{
    if (n > p->file_length - p->at) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                         "%s: %s: needs %" PRIu64 " bytes at offset %" PRIu64
                         ", the file has %" PRIu64,
                         p->gguf->name, p->where, n, p->at, p->file_length);
    }
    if (n > p->length - p->at) {
        return WEFT_PENDING;
    }
    *out = p->bytes + p->at;
    p->at += n;
    return WEFT_OK;
}

static weft_status_t take_uint(parser_t *p, size_t bytes, uint64_t *out)
{
    const uint8_t *data;
    const weft_status_t status = take(p, bytes, &data);
    if (status == WEFT_OK) {
        *out = gguf_load_le(data, bytes);
    }
    return status;
}

static weft_status_t take_string(parser_t *p, gguf_string_t *out)
{
    uint64_t length;
    const uint8_t *data;
    weft_status_t status = take_uint(p, 8, &length);
    if (status == WEFT_OK) {
        status = take(p, length, &data);
    }
    if (status == WEFT_OK) {
        out->data = (const char *)data;
        out->length = (size_t)length;
    }
    return status;
}

/* The count of things that take at least min_bytes each. */
static weft_status_t take_count(parser_t *p, uint64_t min_bytes, uint64_t *out)
{
    uint64_t count;
    const weft_status_t status = take_uint(p, 8, &count);
    if (status != WEFT_OK) {
        return status;
    }
    if (count > (p->file_length - p->at) / min_bytes) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                         "%s: %s: %" PRIu64 " do not fit in the %" PRIu64 " bytes left",
                         p->gguf->name, p->where, count, p->file_length - p->at);
    }
    *out = count;
    return WEFT_OK;
}

/* ---- metadata ------------------------------------------------------------------------------ */

static weft_status_t take_type(parser_t *p, gguf_type_t *out)
{
    uint64_t type;
    const weft_status_t status = take_uint(p, 4, &type);
    if (status != WEFT_OK) {
        return status;
    }
    if (type >= GGUF_TYPE_COUNT) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: %s: unknown value type %" PRIu64,
                         p->gguf->name, p->where, type);
    }
    *out = (gguf_type_t)type;
    return WEFT_OK;
}

static weft_status_t take_strings(parser_t *p, uint64_t count)
{
    weft_status_t status = WEFT_OK;
    gguf_string_t unused;
    for (uint64_t i = 0; i < count && status == WEFT_OK; i++) {
        status = take_string(p, &unused);
    }
    return status;
}

static weft_status_t take_bools(parser_t *p, uint64_t count)
{
    const uint8_t *data;
    const weft_status_t status = take(p, count, &data);
    for (uint64_t i = 0; status == WEFT_OK && i < count; i++) {
        if (data[i] > 1) {
            return malformed(p, "a bool that is neither 0 nor 1");
        }
    }
    return status;
}

static weft_status_t take_elements(parser_t *p, gguf_value_t *value)
{
    const uint8_t *unused;
    value->data = p->bytes + p->at;
    switch (value->type) {
    case GGUF_STRING:
        return take_strings(p, value->count);
    case GGUF_BOOL:
        return take_bools(p, value->count);
    default: /* count × size cannot wrap: take_count() held it against the file */
        return take(p, value->count * gguf_type_bytes[value->type], &unused);
    }
}

static weft_status_t take_array_head(parser_t *p, gguf_value_t *value)
{
    weft_status_t status = take_type(p, &value->type);
    if (status != WEFT_OK) {
        return status;
    }
    if (value->type == GGUF_ARRAY) {
        return malformed(p, "an array of arrays");
    }
    value->is_array = true;
    return take_count(p, value->type == GGUF_STRING ? 8 : gguf_type_bytes[value->type],
                      &value->count);
}

static weft_status_t take_value(parser_t *p, uint64_t index, gguf_value_t *value)
{
    snprintf(p->where, sizeof(p->where), "metadata key %" PRIu64, index);
    weft_status_t status = take_string(p, &value->key);
    if (status != WEFT_OK) {
        return status;
    }
    snprintf(p->where, sizeof(p->where), "key %.*s", shown(value->key.length), value->key.data);
    value->count = 1;
    status = take_type(p, &value->type);
    if (status == WEFT_OK && value->type == GGUF_ARRAY) {
        status = take_array_head(p, value);
    }
    return status == WEFT_OK ? take_elements(p, value) : status;
}

static weft_status_t parse_values(parser_t *p)
{
    gguf_t *g = p->gguf;
    g->values = weft_calloc(g->n_values + 1, sizeof(*g->values), "gguf.values");
    if (g->values == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint64_t i = 0; i < g->n_values; i++) {
        const weft_status_t status = take_value(p, i, &g->values[i]);
        if (status != WEFT_OK) {
            return status;
        }
    }
    qsort(g->values, g->n_values, sizeof(*g->values), gguf_by_key);
    for (uint64_t i = 1; i < g->n_values; i++) {
        const gguf_string_t key = g->values[i].key;
        if (gguf_compare_strings(g->values[i - 1].key, key) == 0) {
            return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: key %.*s: appears twice", g->name,
                             shown(key.length), key.data);
        }
    }
    return WEFT_OK;
}

static weft_status_t parse_alignment(parser_t *p)
{
    uint64_t alignment = DEFAULT_ALIGNMENT;
    const weft_status_t status = gguf_get_u64(p->gguf, "general.alignment", p->diag, &alignment);
    if (status < 0 && status != WEFT_ERR_NOT_FOUND) {
        return status;
    }
    if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > UINT32_MAX) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                         "%s: key general.alignment: %" PRIu64 " is not a power of two",
                         p->gguf->name, alignment);
    }
    p->alignment = alignment;
    return WEFT_OK;
}

/* ---- tensors ------------------------------------------------------------------------------- */

static weft_status_t take_dims(parser_t *p, gguf_tensor_t *tensor)
{
    uint64_t n_dims;
    weft_status_t status = take_uint(p, 4, &n_dims);
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
            status = take_uint(p, 8, &tensor->dims[i]);
        }
        if (status != WEFT_OK) {
            return status;
        }
        if (tensor->dims[i] == 0) {
            return malformed(p, "a dimension of 0");
        }
    }
    return WEFT_OK;
}

static weft_status_t take_dtype(parser_t *p, k_dtype_t *out)
{
    uint64_t type;
    const weft_status_t status = take_uint(p, 4, &type);
    if (status != WEFT_OK || k_dtype_from_gguf((uint32_t)type, out) == WEFT_OK) {
        return status;
    }
    if (type < WEFT_ARRAY_LEN(ggml_type_names) && ggml_type_names[type] != NULL) {
        return weft_diag(p->diag, WEFT_ERR_UNSUPPORTED,
                         "%s: %s: type %s is not supported (supported: "
                         "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q4_K Q6_K)",
                         p->gguf->name, p->where, ggml_type_names[type]);
    }
    return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: %s: unknown tensor type %" PRIu64,
                     p->gguf->name, p->where, type);
}

static weft_status_t compute_bytes(parser_t *p, gguf_tensor_t *tensor)
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
        return malformed(p, "its shape is larger than the file");
    }
    tensor->bytes = bytes;
    return WEFT_OK;
}

/* Leaves offset as the file says it: from the start of the data. */
static weft_status_t take_tensor(parser_t *p, uint64_t index, gguf_tensor_t *tensor)
{
    gguf_string_t name;
    snprintf(p->where, sizeof(p->where), "tensor description %" PRIu64, index);
    weft_status_t status = take_string(p, &name);
    if (status != WEFT_OK) {
        return status;
    }
    snprintf(p->where, sizeof(p->where), "tensor %.*s", shown(name.length), name.data);
    if (memchr(name.data, '\0', name.length) != NULL) {
        return malformed(p, "a zero byte in its name");
    }
    if (name.length > MAX_NAME_BYTES) {
        return malformed(p, "its name is too long");
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
        status = take_uint(p, 8, &tensor->offset);
    }
    if (status == WEFT_OK && tensor->offset % p->alignment != 0) {
        return malformed(p, "its offset is not aligned");
    }
    return status;
}

/* Turns data-relative offsets into offsets in the file. */
static weft_status_t place_tensor(parser_t *p, uint64_t data_start, gguf_tensor_t *tensor)
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
                         p->gguf->name, MAX_SHOWN, tensor->name, tensor->bytes, tensor->offset,
                         p->file_length);
    }
    tensor->offset = begin;
    return WEFT_OK;
}

/* Names point into the file, where nothing ends them: copy them once their sum is known. */
static weft_status_t copy_names(parser_t *p)
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

static weft_status_t check_neighbours(parser_t *p, const gguf_tensor_t **order)
{
    const gguf_t *g = p->gguf;
    qsort(order, g->n_tensors, sizeof(order[0]), by_name);
    for (uint64_t i = 1; i < g->n_tensors; i++) {
        if (strcmp(order[i - 1]->name, order[i]->name) == 0) {
            return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: tensor %.*s: appears twice", g->name,
                             MAX_SHOWN, order[i]->name);
        }
    }
    qsort(order, g->n_tensors, sizeof(order[0]), by_offset);
    for (uint64_t i = 1; i < g->n_tensors; i++) {
        if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset) {
            return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                             "%s: tensor %.*s: its data overlaps that of tensor %.*s", g->name,
                             MAX_SHOWN, order[i]->name, MAX_SHOWN, order[i - 1]->name);
        }
    }
    return WEFT_OK;
}

static weft_status_t check_tensors(parser_t *p)
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

static weft_status_t parse_tensors(parser_t *p)
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

/* ---- the file ------------------------------------------------------------------------------ */

static weft_status_t parse_version(parser_t *p)
{
    uint64_t version;
    const weft_status_t status = take_uint(p, 4, &version);
    if (status != WEFT_OK) {
        return status;
    }
    if (version != 0 && (version & 0xffff) == 0) {
        return weft_diag(p->diag, WEFT_ERR_UNSUPPORTED,
                         "%s: big-endian GGUF files are not supported", p->gguf->name);
    }
    if (version != 2 && version != 3) {
        return weft_diag(p->diag, WEFT_ERR_UNSUPPORTED,
                         "%s: GGUF version %" PRIu64 " is not supported (2 and 3 are)",
                         p->gguf->name, version);
    }
    return WEFT_OK;
}

static weft_status_t parse_header(parser_t *p)
{
    const uint8_t *magic;
    snprintf(p->where, sizeof(p->where), "header");
    weft_status_t status = take(p, 4, &magic);
    if (status == WEFT_OK && memcmp(magic, "GGUF", 4) != 0) {
        return malformed(p, "is not a GGUF file");
    }
    if (status == WEFT_OK) {
        status = parse_version(p);
    }
    if (status == WEFT_OK) {
        snprintf(p->where, sizeof(p->where), "header: tensors");
        status = take_count(p, MIN_TENSOR_BYTES, &p->gguf->n_tensors);
    }
    if (status == WEFT_OK) {
        snprintf(p->where, sizeof(p->where), "header: metadata keys");
        status = take_count(p, MIN_VALUE_BYTES, &p->gguf->n_values);
    }
    if (status == WEFT_OK && (p->gguf->n_tensors > MAX_TENSORS || p->gguf->n_values > MAX_VALUES)) {
        return weft_diag(
            p->diag, WEFT_ERR_TOO_LARGE,
            "%s: header: %" PRIu64 " tensors and %" PRIu64 " keys; at most %d and %d are read",
            p->gguf->name, p->gguf->n_tensors, p->gguf->n_values, MAX_TENSORS, MAX_VALUES);
    }
    return status;
}

static weft_status_t parse_all(parser_t *p)
{
    weft_status_t status = parse_header(p);
    if (status == WEFT_OK) {
        status = parse_values(p);
    }
    if (status == WEFT_OK) {
        status = parse_alignment(p);
    }
    return status == WEFT_OK ? parse_tensors(p) : status;
}

weft_status_t gguf_parse(const void *bytes, size_t length, uint64_t file_length, const char *name,
                         weft_diag_t *diag, gguf_t **gguf_out)
{
    assert(length <= file_length && file_length <= INT64_MAX);
    parser_t p = {.diag = diag, .bytes = bytes, .length = length, .file_length = file_length};
    weft_status_t status = WEFT_ERR_NO_MEMORY;

    p.gguf = weft_zalloc(sizeof(*p.gguf), "gguf");
    if (p.gguf != NULL) {
        p.gguf->name = weft_strdup(name, "gguf.name");
    }
    if (p.gguf != NULL && p.gguf->name != NULL) {
        status = parse_all(&p);
    }
    if (status == WEFT_OK) {
        *gguf_out = p.gguf;
        return WEFT_OK;
    }
    if (status == WEFT_ERR_NO_MEMORY) {
        weft_diag(diag, status, "%s: out of memory for its descriptions", name);
    }
    gguf_destroy(p.gguf);
    return status;
}

void gguf_destroy(gguf_t *gguf)
{
    if (gguf == NULL) {
        return;
    }
    weft_free(gguf->names);
    weft_free(gguf->tensors);
    weft_free(gguf->values);
    weft_free(gguf->name);
    weft_free(gguf);
}

size_t gguf_tensor_count(const gguf_t *gguf)
{
    return (size_t)gguf->n_tensors;
}

const gguf_tensor_t *gguf_tensor_at(const gguf_t *gguf, size_t index)
{
    assert(index < gguf->n_tensors);
    return &gguf->tensors[index];
}
