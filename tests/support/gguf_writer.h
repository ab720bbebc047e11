/* SPDX-License-Identifier: Apache-2.0 */
/* gguf_writer: GGUF files for tests, written a field at a time, right or deliberately wrong. */
#pragma once

#include <stdint.h>
#include <string.h>

#include "base/buffer.h"
#include "runtime/files/gguf.h"

static inline void gguf_write_uint(weft_buffer_t *file, uint64_t value, size_t bytes)
{
    uint8_t data[8];
    for (size_t i = 0; i < bytes; i++) {
        data[i] = (uint8_t)(value >> (8 * i));
    }
    weft_buffer_append(file, data, bytes);
}

static inline void gguf_write_string(weft_buffer_t *file, const char *text)
{
    gguf_write_uint(file, strlen(text), 8);
    weft_buffer_puts(file, text);
}

static inline void gguf_write_header(weft_buffer_t *file, uint32_t version, uint64_t n_tensors,
                                     uint64_t n_values)
{
    weft_buffer_puts(file, "GGUF");
    gguf_write_uint(file, version, 4);
    gguf_write_uint(file, n_tensors, 8);
    gguf_write_uint(file, n_values, 8);
}

static inline void gguf_write_key(weft_buffer_t *file, const char *key, gguf_type_t type)
{
    gguf_write_string(file, key);
    gguf_write_uint(file, type, 4);
}

static inline void gguf_write_key_u32(weft_buffer_t *file, const char *key, uint32_t value)
{
    gguf_write_key(file, key, GGUF_UINT32);
    gguf_write_uint(file, value, 4);
}

static inline void gguf_write_key_f32(weft_buffer_t *file, const char *key, float value)
{
    gguf_write_key(file, key, GGUF_FLOAT32);
    weft_buffer_append(file, &value, sizeof(value));
}

static inline void gguf_write_key_string(weft_buffer_t *file, const char *key, const char *value)
{
    gguf_write_key(file, key, GGUF_STRING);
    gguf_write_string(file, value);
}

/* The elements follow, each by gguf_write_string or gguf_write_uint. */
static inline void gguf_write_key_array(weft_buffer_t *file, const char *key, gguf_type_t type,
                                        uint64_t count)
{
    gguf_write_key(file, key, GGUF_ARRAY);
    gguf_write_uint(file, type, 4);
    gguf_write_uint(file, count, 8);
}

/* rows 0: a vector. type: the format's number. */
static inline void gguf_write_tensor(weft_buffer_t *file, const char *name, uint64_t columns,
                                     uint64_t rows, uint32_t type, uint64_t offset)
{
    gguf_write_string(file, name);
    gguf_write_uint(file, rows > 0 ? 2 : 1, 4);
    gguf_write_uint(file, columns, 8);
    if (rows > 0) {
        gguf_write_uint(file, rows, 8);
    }
    gguf_write_uint(file, type, 4);
    gguf_write_uint(file, offset, 8);
}

/* Zeros up to a multiple of alignment, then `bytes` more: the data. */
static inline void gguf_write_data(weft_buffer_t *file, size_t alignment, size_t bytes)
{
    while (file->length % alignment != 0) {
        gguf_write_uint(file, 0, 1);
    }
    for (size_t i = 0; i < bytes; i++) {
        gguf_write_uint(file, i, 1);
    }
}
