/* SPDX-License-Identifier: Apache-2.0 */
/* Bounded reading: nothing past the file, nothing past the bytes that are there. */
#include <inttypes.h>

#include "runtime/files/gguf_priv.h"

int gguf_shown(size_t length)
{
    return (int)(length < GGUF_MAX_SHOWN ? length : GGUF_MAX_SHOWN);
}

weft_status_t gguf_malformed(gguf_parser_t *p, const char *reason)
{
    return weft_diag(p->diag, WEFT_ERR_MALFORMED, "%s: %s: %s", p->gguf->name, p->where, reason);
}

weft_status_t gguf_take(gguf_parser_t *p, uint64_t n, const uint8_t **out)
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

weft_status_t gguf_take_uint(gguf_parser_t *p, size_t bytes, uint64_t *out)
{
    const uint8_t *data;
    const weft_status_t status = gguf_take(p, bytes, &data);
    if (status == WEFT_OK) {
        *out = gguf_load_le(data, bytes);
    }
    return status;
}

weft_status_t gguf_take_string(gguf_parser_t *p, gguf_string_t *out)
{
    uint64_t length;
    const uint8_t *data;
    weft_status_t status = gguf_take_uint(p, 8, &length);
    if (status == WEFT_OK) {
        status = gguf_take(p, length, &data);
    }
    if (status == WEFT_OK) {
        out->data = (const char *)data;
        out->length = (size_t)length;
    }
    return status;
}

weft_status_t gguf_take_count(gguf_parser_t *p, uint64_t min_bytes, uint64_t *out)
{
    uint64_t count;
    const weft_status_t status = gguf_take_uint(p, 8, &count);
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
