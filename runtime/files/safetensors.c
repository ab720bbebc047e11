/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/files/safetensors.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/compiler.h"
#include "runtime/files/json_input.h"

#define MAX_SHOWN 200 /* bytes of a name in an error line */

struct safetensors {
    weft_arena_t arena;
    safetensors_tensor_t *tensors; /* [n_tensors], by place in the file */
    size_t n_tensors;
};

typedef struct parser {
    safetensors_t *file;
    const char *name;
    weft_diag_t *diag;
    uint64_t data_start;
    uint64_t data_bytes;
} parser_t;

typedef struct type_row {
    const char *name;
    uint32_t bits;
} type_row_t;

static const type_row_t types[] = {
    {"BOOL", 8},    {"U8", 8},   {"I8", 8},      {"F8_E5M2", 8}, {"F8_E4M3", 8},
    {"F8_E8M0", 8}, {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"I16", 16},
    {"U16", 16},    {"F16", 16}, {"BF16", 16},   {"I32", 32},    {"U32", 32},
    {"F32", 32},    {"F64", 64}, {"I64", 64},    {"U64", 64},    {"C64", 64},
};

static const type_row_t *find_type(const char *name)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(types); i++) {
        if (strcmp(types[i].name, name) == 0) {
            return &types[i];
        }
    }
    return NULL;
}

static weft_status_t refuse(parser_t *p, const char *tensor, const char *reason)
{
    return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: tensor %.*s: %s", p->name, MAX_SHOWN, tensor,
                     reason);
}

/* ---- one tensor ---------------------------------------------------------------------------- */

static weft_status_t read_type(parser_t *p, const json_t *info, safetensors_tensor_t *tensor,
                               uint32_t *bits_out)
{
    const char *name = json_string_value(json_object_get(info, "dtype"));
    if (name == NULL) {
        return refuse(p, tensor->name, "dtype missing or not a string");
    }
    const type_row_t *type = find_type(name);
    if (type == NULL) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: tensor %.*s: unknown dtype %.*s",
                         p->name, MAX_SHOWN, tensor->name, MAX_SHOWN, name);
    }
    tensor->type = type->name;
    tensor->is_computable = k_dtype_from_safetensors(type->name, &tensor->dtype) == WEFT_OK;
    *bits_out = type->bits;
    return WEFT_OK;
}

static weft_status_t read_shape(parser_t *p, const json_t *info, safetensors_tensor_t *tensor,
                                uint64_t *elements_out)
{
    const json_t *shape = json_object_get(info, "shape");
    uint64_t elements = 1;
    if (!json_is_array(shape)) {
        return refuse(p, tensor->name, "shape missing or not an array");
    }
    if (json_array_size(shape) > SAFETENSORS_MAX_DIMS) {
        return refuse(p, tensor->name, "more than 8 dimensions");
    }
    tensor->n_dims = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < tensor->n_dims; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0) {
            return refuse(p, tensor->name, "a dimension is not an integer of 0 or more");
        }
        tensor->dims[i] = (uint64_t)json_integer_value(dim);
        if (__builtin_mul_overflow(elements, tensor->dims[i], &elements)) {
            return refuse(p, tensor->name, "its shape has more than 2^64 elements");
        }
    }
    *elements_out = elements;
    return WEFT_OK;
}

/* Leaves offset relative to the data. */
static weft_status_t read_range(parser_t *p, const json_t *info, safetensors_tensor_t *tensor)
{
    const json_t *range = json_object_get(info, "data_offsets");
    const json_t *begin = json_array_get(range, 0);
    const json_t *end = json_array_get(range, 1);
    if (json_array_size(range) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0) {
        return refuse(p, tensor->name, "data_offsets missing or not two offsets");
    }
    if (json_integer_value(end) < json_integer_value(begin)) {
        return refuse(p, tensor->name, "data_offsets end before they begin");
    }
    if ((uint64_t)json_integer_value(end) > p->data_bytes) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                         "%s: tensor %.*s: ends at %" JSON_INTEGER_FORMAT ", the data has %" PRIu64
                         " bytes",
                         p->name, MAX_SHOWN, tensor->name, json_integer_value(end), p->data_bytes);
    }
    tensor->offset = (uint64_t)json_integer_value(begin);
    tensor->bytes = (size_t)(json_integer_value(end) - json_integer_value(begin));
    return WEFT_OK;
}

static weft_status_t read_tensor(parser_t *p, const char *name, const json_t *info,
                                 safetensors_tensor_t *tensor)
{
    uint32_t type_bits = 0;
    uint64_t elements = 0;
    uint64_t bits;
    tensor->name = weft_arena_strdup(&p->file->arena, name);
    if (tensor->name == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = read_type(p, info, tensor, &type_bits);
    if (status == WEFT_OK) {
        status = read_shape(p, info, tensor, &elements);
    }
    if (status == WEFT_OK) {
        status = read_range(p, info, tensor);
    }
    if (status != WEFT_OK) {
        return status;
    }
    if (__builtin_mul_overflow(elements, type_bits, &bits) || bits % 8 != 0 ||
        bits / 8 != tensor->bytes) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                         "%s: tensor %.*s: %" PRIu64 " elements of %s do not take %zu bytes",
                         p->name, MAX_SHOWN, name, elements, tensor->type, tensor->bytes);
    }
    return WEFT_OK;
}

/* ---- the header ---------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b)
{
    const safetensors_tensor_t *x = a;
    const safetensors_tensor_t *y = b;
    if (x->offset != y->offset) {
        return x->offset < y->offset ? -1 : 1;
    }
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* The tensors, in order, are the data: no byte is unnamed or named twice. */
static weft_status_t check_cover(parser_t *p)
{
    safetensors_t *file = p->file;
    uint64_t at = 0;
    qsort(file->tensors, file->n_tensors, sizeof(*file->tensors), by_place);
    for (size_t i = 0; i < file->n_tensors; i++) {
        safetensors_tensor_t *tensor = &file->tensors[i];
        if (tensor->offset < at) {
            return refuse(p, tensor->name, "its data overlaps that of the tensor before");
        }
        if (tensor->offset > at) {
            return refuse(p, tensor->name, "unnamed bytes before its data");
        }
        at += tensor->bytes;
        tensor->offset += p->data_start;
    }
    if (at != p->data_bytes) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                         "%s: its tensors take %" PRIu64 " bytes, the file has %" PRIu64
                         " for them",
                         p->name, at, p->data_bytes);
    }
    return WEFT_OK;
}

static weft_status_t read_tensors(parser_t *p, json_t *root)
{
    const char *name;
    json_t *info;
    safetensors_t *file = p->file;
    file->tensors =
        weft_arena_calloc(&file->arena, json_object_size(root) + 1, sizeof(*file->tensors));
    if (file->tensors == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    json_object_foreach(root, name, info)
    {
        if (strcmp(name, "__metadata__") == 0) {
            continue;
        }
        const weft_status_t status = read_tensor(p, name, info, &file->tensors[file->n_tensors++]);
        if (status != WEFT_OK) {
            return status;
        }
    }
    return check_cover(p);
}

static weft_status_t parse_header(parser_t *p, const char *text, size_t length)
{
    json_t *root = NULL;
    if (length == 0 || text[0] != '{') {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: header: is not a JSON object", p->name);
    }
    weft_status_t status = json_input_parse(text, length, SAFETENSORS_MAX_HEADER_BYTES,
                                            JSON_REJECT_DUPLICATES, p->name, p->diag, &root);
    if (status == WEFT_OK) {
        status = read_tensors(p, root);
    }
    json_decref(root);
    return status;
}

static uint64_t load_u64(const uint8_t *p)
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) {
        value |= (uint64_t)p[i] << (8 * i);
    }
    return value;
}

static weft_status_t parse_all(parser_t *p, const uint8_t *bytes, size_t length,
                               uint64_t file_length)
{
    if (file_length < 8) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: is too short for a safetensors file",
                         p->name);
    }
    if (length < 8) {
        return WEFT_PENDING;
    }
    const uint64_t header_bytes = load_u64(bytes);
    if (header_bytes > file_length - 8) {
        return weft_diag(p->diag, WEFT_ERR_MALFORMED,
                         "%s: header: claims %" PRIu64 " bytes, the file has %" PRIu64, p->name,
                         header_bytes, file_length - 8);
    }
    if (header_bytes > SAFETENSORS_MAX_HEADER_BYTES) {
        return weft_diag(p->diag, WEFT_ERR_TOO_LARGE,
                         "%s: header: %" PRIu64 " bytes, at most %d are read", p->name,
                         header_bytes, SAFETENSORS_MAX_HEADER_BYTES);
    }
    if (header_bytes > length - 8) {
        return WEFT_PENDING;
    }
    p->data_start = 8 + header_bytes;
    p->data_bytes = file_length - p->data_start;
    return parse_header(p, (const char *)bytes + 8, (size_t)header_bytes);
}

weft_status_t safetensors_parse(const void *bytes, size_t length, uint64_t file_length,
                                const char *name, weft_diag_t *diag, safetensors_t **file_out)
{
    assert(length <= file_length && file_length <= INT64_MAX);
    parser_t p = {.name = name, .diag = diag};
    weft_status_t status = WEFT_ERR_NO_MEMORY;

    p.file = weft_zalloc(sizeof(*p.file), "safetensors");
    if (p.file != NULL) {
        status = parse_all(&p, bytes, length, file_length);
    }
    if (status == WEFT_OK) {
        *file_out = p.file;
        return WEFT_OK;
    }
    if (status == WEFT_ERR_NO_MEMORY) {
        weft_diag(diag, status, "%s: out of memory for its header", name);
    }
    safetensors_destroy(p.file);
    return status;
}

void safetensors_destroy(safetensors_t *file)
{
    if (file != NULL) {
        weft_arena_free(&file->arena);
        weft_free(file);
    }
}

size_t safetensors_tensor_count(const safetensors_t *file)
{
    return file->n_tensors;
}

const safetensors_tensor_t *safetensors_tensor_at(const safetensors_t *file, size_t index)
{
    assert(index < file->n_tensors);
    return &file->tensors[index];
}
