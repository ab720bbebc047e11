/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_compat.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

/* ---- JSON as Python's json.dumps(..., sort_keys=True) writes it ------------------------------- */

static uint32_t code_point(const char *at, size_t length)
{
    static const uint8_t masks[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t point = (uint8_t)at[0] & masks[length];
    for (size_t i = 1; i < length; i++) {
        point = point << 6 | ((uint8_t)at[i] & 0x3f);
    }
    return point;
}

static void put_escaped(weft_buffer_t *out, uint32_t point)
{
    if (point >= 0x10000) {
        weft_buffer_printf(out, "\\u%04x\\u%04x", 0xd800 + ((point - 0x10000) >> 10),
                           0xdc00 + ((point - 0x10000) & 0x3ff));
    } else {
        weft_buffer_printf(out, "\\u%04x", point);
    }
}

static void put_ascii(weft_buffer_t *out, char c)
{
    static const char plain[] = "\"\\\b\f\n\r\t";
    static const char letters[] = "\"\\bfnrt";
    const char *found = c == '\0' ? NULL : strchr(plain, c);
    if (found != NULL) {
        weft_buffer_printf(out, "\\%c", letters[found - plain]);
    } else if ((uint8_t)c < 0x20 || c == 0x7f) {
        put_escaped(out, (uint8_t)c);
    } else {
        weft_buffer_append(out, &c, 1);
    }
}

static void put_text(weft_buffer_t *out, const char *key, const char *text)
{
    weft_buffer_printf(out, "\"%s\": \"", key);
    const char *end = text + strlen(text);
    while (text < end) {
        const size_t length = weft_utf8_length(text, (size_t)(end - text));
        if (length == 1) {
            put_ascii(out, *text);
        } else if (length == 0) {
            put_escaped(out,
                        0xdc00 + (uint8_t)*text); /* an argument that is not UTF-8, in Python */
        } else {
            put_escaped(out, code_point(text, length));
        }
        text += length == 0 ? 1 : length;
    }
    weft_buffer_puts(out, "\"");
}

/* ---- hashes ---------------------------------------------------------------------------------- */

static weft_status_t hash_of(weft_buffer_t *json, char hash_out[KV_COMPAT_HASH_BYTES])
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    const bool is_hashed = !json->is_failed && EVP_Digest(json->data, json->length, digest, &length,
                                                          EVP_sha256(), NULL) == 1;
    weft_buffer_free(json);
    for (unsigned i = 0; i < length; i++) {
        snprintf(hash_out + 2 * (size_t)i, 3, "%02x", digest[i]);
    }
    return is_hashed ? WEFT_OK : WEFT_ERR_NO_MEMORY;
}

weft_status_t kv_compat_vllm_hash(const kv_vllm_identity_t *identity,
                                  char hash_out[KV_COMPAT_HASH_BYTES])
{
    weft_buffer_t json = {0};
    weft_buffer_puts(&json, "{");
    put_text(&json, "attn_backend_name", identity->attn_backend_name);
    weft_buffer_puts(&json, ", ");
    put_text(&json, "cache_dtype", identity->cache_dtype);
    weft_buffer_puts(&json, ", ");
    put_text(&json, "dtype", identity->dtype);
    weft_buffer_printf(&json, ", \"head_size\": %llu, \"is_hma_enabled\": %s, ",
                       (unsigned long long)identity->head_size,
                       identity->is_hma_enabled ? "true" : "false");
    put_text(&json, "model", identity->model);
    weft_buffer_printf(&json,
                       ", \"nixl_connector_version\": %llu, \"num_hidden_layers\": %llu, "
                       "\"num_kv_heads\": %llu, \"speculative_config\": null, ",
                       (unsigned long long)identity->nixl_connector_version,
                       (unsigned long long)identity->num_hidden_layers,
                       (unsigned long long)identity->num_kv_heads);
    put_text(&json, "transfer_mode",
             identity->transfer_mode == NULL ? "pull" : identity->transfer_mode);
    weft_buffer_puts(&json, ", ");
    put_text(&json, "vllm_version", identity->vllm_version);
    weft_buffer_puts(&json, "}");
    return hash_of(&json, hash_out);
}

weft_status_t kv_compat_weft_hash(const kv_weft_meta_t *meta, char hash_out[KV_COMPAT_HASH_BYTES])
{
    weft_buffer_t json = {0};
    weft_buffer_puts(&json, "{\"fingerprint\": \"");
    for (uint32_t i = 0; i < meta->fingerprint.length; i++) {
        weft_buffer_printf(&json, "%02x", (uint8_t)meta->fingerprint.data[i]);
    }
    weft_buffer_printf(&json,
                       "\", \"head_dim\": %llu, \"total_heads\": %llu, \"total_layers\": %llu, "
                       "\"weft\": %llu}",
                       (unsigned long long)meta->head_dim, (unsigned long long)meta->total_heads,
                       (unsigned long long)meta->total_layers, (unsigned long long)meta->version);
    return hash_of(&json, hash_out);
}

/* ---- comparing ------------------------------------------------------------------------------- */

static bool is_equal(kv_msgpack_span_t a, kv_msgpack_span_t b)
{
    return a.length == b.length && memcmp(a.data, b.data, a.length) == 0;
}

static weft_status_t check_number(const char *what, uint64_t ours, uint64_t theirs,
                                  weft_diag_t *diag)
{
    return ours == theirs ? WEFT_OK
                          : weft_diag(diag, WEFT_ERR_INVALID, "%s: %llu there, %llu here", what,
                                      (unsigned long long)theirs, (unsigned long long)ours);
}

static weft_status_t check_model(const kv_weft_meta_t *ours, const kv_weft_meta_t *theirs,
                                 weft_diag_t *diag)
{
    if (is_equal(ours->fingerprint, theirs->fingerprint)) {
        return WEFT_OK;
    }
    return is_equal(ours->model, theirs->model)
               ? weft_diag(diag, WEFT_ERR_INVALID, "model: the same name, %.*s, but other weights",
                           (int)ours->model.length, ours->model.data)
               : weft_diag(diag, WEFT_ERR_INVALID, "model: %.*s there, %.*s here",
                           (int)theirs->model.length, theirs->model.data, (int)ours->model.length,
                           ours->model.data);
}

weft_status_t kv_compat_check(const kv_weft_meta_t *ours, const kv_weft_meta_t *theirs,
                              weft_diag_t *diag)
{
    weft_status_t status = check_number("weft wire version", ours->version, theirs->version, diag);
    if (status >= 0) {
        status = check_model(ours, theirs, diag);
    }
    if (status >= 0) {
        status = check_number("layers", ours->total_layers, theirs->total_layers, diag);
    }
    if (status >= 0) {
        status = check_number("KV heads", ours->total_heads, theirs->total_heads, diag);
    }
    if (status >= 0) {
        status = check_number("head size", ours->head_dim, theirs->head_dim, diag);
    }
    return status;
}
