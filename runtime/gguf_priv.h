/* SPDX-License-Identifier: Apache-2.0 */
/* gguf_priv: what the parser (gguf.c) and the readers of values (gguf_values.c) share. */
#pragma once

#include "runtime/gguf.h"

struct gguf {
    char *name;           /* of the file, for errors */
    gguf_value_t *values; /* [n_values], sorted by key */
    uint64_t n_values;
    gguf_tensor_t *tensors; /* [n_tensors], file order */
    uint64_t n_tensors;
    char *names; /* every tensor's name, terminated */
};

/* Bytes of one value; 0 for strings and arrays. */
extern const uint8_t gguf_type_bytes[GGUF_TYPE_COUNT];

uint64_t gguf_load_le(const uint8_t *p, size_t n);

/* Byte order, the shorter first. */
int gguf_compare_strings(gguf_string_t a, gguf_string_t b);

int gguf_by_key(const void *a, const void *b); /* for qsort over gguf_value_t */
