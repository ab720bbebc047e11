/* SPDX-License-Identifier: Apache-2.0 */
/* gguf_priv: what the parser (gguf.c, gguf_reader.c, gguf_tensors.c) and gguf_values.c share. */
#pragma once

#include "runtime/files/gguf.h"

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

#define GGUF_MAX_SHOWN 200 /* bytes of a name in an error line */

typedef struct gguf_parser {
    gguf_t *gguf;
    weft_diag_t *diag;
    const uint8_t *bytes;
    uint64_t length;
    uint64_t file_length;
    uint64_t at;
    uint64_t alignment;
    size_t names_bytes;
    char where[GGUF_MAX_SHOWN + 64]; /* what is being read, for errors */
} gguf_parser_t;

/* WEFT_ERR_MALFORMED with "file: where: reason". */
weft_status_t gguf_malformed(gguf_parser_t *p, const char *reason);

/* The precision that shows at most GGUF_MAX_SHOWN bytes. */
int gguf_shown(size_t length);

/*
 * The next n bytes. WEFT_ERR_MALFORMED: past the end of the file. WEFT_PENDING: past the bytes that
 * are there; so for each.
 */
weft_status_t gguf_take(gguf_parser_t *p, uint64_t n, const uint8_t **out);
weft_status_t gguf_take_uint(gguf_parser_t *p, size_t bytes, uint64_t *out);
weft_status_t gguf_take_string(gguf_parser_t *p, gguf_string_t *out);

/* The count of things that take at least min_bytes each, which the rest of the file must hold. */
weft_status_t gguf_take_count(gguf_parser_t *p, uint64_t min_bytes, uint64_t *out);

/* Descriptions from p->at on, once the counts and the alignment are known. */
weft_status_t gguf_parse_tensors(gguf_parser_t *p);
