/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gguf: the container format of llama.cpp, versions 2 and 3, little-endian: key-value metadata and
 * descriptions of tensors. Source: docs/gguf.md of ggml-org/ggml.
 *
 * Works on the first bytes of a file, wherever they come from (a mapping, a download under way):
 * tensor data is never read, only its place in the file is checked. Every length and count is held
 * against the bytes that are left before memory is taken for it.
 *
 * Owns     the tables; strings and values are borrowed from the caller's bytes
 * Threads  immutable after parse
 * Errors   one line in diag: name, key or tensor, reason
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/dtypes.h"

#define GGUF_MAX_DIMS 4

typedef struct gguf gguf_t;

typedef enum gguf_type {
    GGUF_UINT8,
    GGUF_INT8,
    GGUF_UINT16,
    GGUF_INT16,
    GGUF_UINT32,
    GGUF_INT32,
    GGUF_FLOAT32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_UINT64,
    GGUF_INT64,
    GGUF_FLOAT64,
    GGUF_TYPE_COUNT
} gguf_type_t;

/* Not terminated; may hold any byte. */
typedef struct gguf_string {
    const char *data;
    size_t length;
} gguf_string_t;

typedef struct gguf_value {
    gguf_string_t key;
    gguf_type_t type; /* of the elements when is_array; never GGUF_ARRAY */
    bool is_array;
    uint64_t count;      /* 1 unless is_array */
    const uint8_t *data; /* little-endian, unaligned; strings: u64 length and bytes, one by one */
} gguf_value_t;

typedef struct gguf_tensor {
    const char *name; /* terminated */
    k_dtype_t dtype;
    uint32_t n_dims;
    uint64_t dims[GGUF_MAX_DIMS]; /* dims[0] is contiguous; unused ones are 1 */
    uint64_t offset;              /* of the data, from the start of the file */
    size_t bytes;
} gguf_tensor_t;

/*
 * bytes [length]: the beginning of a file of file_length bytes (length == file_length: all of it),
 * borrowed until destroy. name: how errors call the file.
 * WEFT_PENDING: sound so far, but the descriptions reach past length; call again with more.
 * WEFT_ERR_UNSUPPORTED: version, byte order or a tensor type that weft does not compute with.
 */
weft_status_t gguf_parse(const void *bytes, size_t length, uint64_t file_length, const char *name,
                         weft_diag_t *diag, gguf_t **gguf_out);
void gguf_destroy(gguf_t *gguf); /* NULL is fine */

size_t gguf_tensor_count(const gguf_t *gguf);
const gguf_tensor_t *gguf_tensor_at(const gguf_t *gguf, size_t index); /* file order */

/* NULL when there is none. */
const gguf_value_t *gguf_find(const gguf_t *gguf, const char *key);

/*
 * One value. WEFT_ERR_NOT_FOUND leaves diag and *out alone, so an optional key keeps its default.
 * WEFT_ERR_MALFORMED: of another type (any integer type that holds the value will do for u64).
 */
weft_status_t gguf_get_u64(const gguf_t *gguf, const char *key, weft_diag_t *diag, uint64_t *out);
weft_status_t gguf_get_f64(const gguf_t *gguf, const char *key, weft_diag_t *diag, double *out);
weft_status_t gguf_get_bool(const gguf_t *gguf, const char *key, weft_diag_t *diag, bool *out);
weft_status_t gguf_get_string(const gguf_t *gguf, const char *key, weft_diag_t *diag,
                              gguf_string_t *out);

/* An array whose elements are of type. */
weft_status_t gguf_get_array(const gguf_t *gguf, const char *key, gguf_type_t type,
                             weft_diag_t *diag, const gguf_value_t **out);

/* Walks a string array: *cursor starts as value->data; at most value->count calls. */
gguf_string_t gguf_next_string(const uint8_t **cursor);
