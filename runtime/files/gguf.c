/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/files/gguf_priv.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"

#define DEFAULT_ALIGNMENT 32
#define MIN_VALUE_BYTES   13 /* empty key, type, one byte */
#define MIN_TENSOR_BYTES  24 /* empty name, no dims, type, offset */
#define MAX_VALUES        65536
#define MAX_TENSORS       262144

/* ---- metadata ------------------------------------------------------------------------------ */

static weft_status_t take_type(gguf_parser_t *p, gguf_type_t *out)
{
    uint64_t type;
    const weft_status_t status = gguf_take_uint(p, 4, &type);
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

static weft_status_t take_strings(gguf_parser_t *p, uint64_t count)
{
    weft_status_t status = WEFT_OK;
    gguf_string_t unused;
    for (uint64_t i = 0; i < count && status == WEFT_OK; i++) {
        status = gguf_take_string(p, &unused);
    }
    return status;
}

static weft_status_t take_bools(gguf_parser_t *p, uint64_t count)
{
    const uint8_t *data;
    const weft_status_t status = gguf_take(p, count, &data);
    for (uint64_t i = 0; status == WEFT_OK && i < count; i++) {
        if (data[i] > 1) {
            return gguf_malformed(p, "a bool that is neither 0 nor 1");
        }
    }
    return status;
}

static weft_status_t take_elements(gguf_parser_t *p, gguf_value_t *value)
{
    const uint8_t *unused;
    value->data = p->bytes + p->at;
    switch (value->type) {
    case GGUF_STRING:
        return take_strings(p, value->count);
    case GGUF_BOOL:
        return take_bools(p, value->count);
    default: /* count × size cannot wrap: gguf_take_count() held it against the file */
        return gguf_take(p, value->count * gguf_type_bytes[value->type], &unused);
    }
}

static weft_status_t take_array_head(gguf_parser_t *p, gguf_value_t *value)
{
    weft_status_t status = take_type(p, &value->type);
    if (status != WEFT_OK) {
        return status;
    }
    if (value->type == GGUF_ARRAY) {
        return gguf_malformed(p, "an array of arrays");
    }
    value->is_array = true;
    return gguf_take_count(p, value->type == GGUF_STRING ? 8 : gguf_type_bytes[value->type],
                           &value->count);
}

static weft_status_t take_value(gguf_parser_t *p, uint64_t index, gguf_value_t *value)
{
    snprintf(p->where, sizeof(p->where), "metadata key %" PRIu64, index);
    weft_status_t status = gguf_take_string(p, &value->key);
    if (status != WEFT_OK) {
        return status;
    }
    snprintf(p->where, sizeof(p->where), "key %.*s", gguf_shown(value->key.length),
             value->key.data);
    value->count = 1;
    status = take_type(p, &value->type);
    if (status == WEFT_OK && value->type == GGUF_ARRAY) {
        status = take_array_head(p, value);
    }
    return status == WEFT_OK ? take_elements(p, value) : status;
}

static weft_status_t parse_values(gguf_parser_t *p)
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
                             gguf_shown(key.length), key.data);
        }
    }
    return WEFT_OK;
}

static weft_status_t parse_alignment(gguf_parser_t *p)
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

/* ---- the file ------------------------------------------------------------------------------ */

static weft_status_t parse_version(gguf_parser_t *p)
{
    uint64_t version;
    const weft_status_t status = gguf_take_uint(p, 4, &version);
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

static weft_status_t parse_header(gguf_parser_t *p)
{
    const uint8_t *magic;
    snprintf(p->where, sizeof(p->where), "header");
    weft_status_t status = gguf_take(p, 4, &magic);
    if (status == WEFT_OK && memcmp(magic, "GGUF", 4) != 0) {
        return gguf_malformed(p, "is not a GGUF file");
    }
    if (status == WEFT_OK) {
        status = parse_version(p);
    }
    if (status == WEFT_OK) {
        snprintf(p->where, sizeof(p->where), "header: tensors");
        status = gguf_take_count(p, MIN_TENSOR_BYTES, &p->gguf->n_tensors);
    }
    if (status == WEFT_OK) {
        snprintf(p->where, sizeof(p->where), "header: metadata keys");
        status = gguf_take_count(p, MIN_VALUE_BYTES, &p->gguf->n_values);
    }
    if (status == WEFT_OK && (p->gguf->n_tensors > MAX_TENSORS || p->gguf->n_values > MAX_VALUES)) {
        return weft_diag(
            p->diag, WEFT_ERR_TOO_LARGE,
            "%s: header: %" PRIu64 " tensors and %" PRIu64 " keys; at most %d and %d are read",
            p->gguf->name, p->gguf->n_tensors, p->gguf->n_values, MAX_TENSORS, MAX_VALUES);
    }
    return status;
}

static weft_status_t parse_all(gguf_parser_t *p)
{
    weft_status_t status = parse_header(p);
    if (status == WEFT_OK) {
        status = parse_values(p);
    }
    if (status == WEFT_OK) {
        status = parse_alignment(p);
    }
    return status == WEFT_OK ? gguf_parse_tensors(p) : status;
}

weft_status_t gguf_parse(const void *bytes, size_t length, uint64_t file_length, const char *name,
                         weft_diag_t *diag, gguf_t **gguf_out)
{
    assert(length <= file_length && file_length <= INT64_MAX);
    gguf_parser_t p = {.diag = diag, .bytes = bytes, .length = length, .file_length = file_length};
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
