/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_hash.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

/* Major types of RFC 7049, section 2.1, in the upper three bits of an item's first byte. */
#define CBOR_UINT  0x00
#define CBOR_BYTES 0x40
#define CBOR_TEXT  0x60
#define CBOR_ARRAY 0x80

#define BUFFER_BYTES 512 /* a block of 64 tokens, so that the digest is fed once */

static const uint8_t cbor_null = 0xf6;

struct kv_hasher {
    EVP_MD_CTX *context;
    kv_hash_t root;
    size_t used; /* of buffer */
    uint8_t buffer[BUFFER_BYTES];
};

/* With a digest that init accepted, SHA-256 over memory fails only if memory itself is broken. */
static void require(int openssl_result)
{
    if (openssl_result != 1) {
        abort();
    }
}

static void flush(kv_hasher_t *hasher)
{
    require(EVP_DigestUpdate(hasher->context, hasher->buffer, hasher->used));
    hasher->used = 0;
}

static void put_bytes(kv_hasher_t *hasher, const void *data, size_t length)
{
    if (length > BUFFER_BYTES - hasher->used) {
        flush(hasher);
    }
    if (length > BUFFER_BYTES) {
        require(EVP_DigestUpdate(hasher->context, data, length));
        return;
    }
    memcpy(hasher->buffer + hasher->used, data, length);
    hasher->used += length;
}

/* The shortest form, as canonical CBOR asks for (RFC 7049, section 3.9). */
static void put_head(kv_hasher_t *hasher, uint8_t major, uint32_t value)
{
    uint8_t head[5] = {0};
    if (value < 24) {
        head[0] = (uint8_t)(major | value);
        put_bytes(hasher, head, 1);
        return;
    }
    const unsigned log2_bytes = value <= UINT8_MAX ? 0 : value <= UINT16_MAX ? 1 : 2;
    const unsigned bytes = 1u << log2_bytes;
    head[0] = (uint8_t)(major | (24 + log2_bytes));
    for (unsigned i = 0; i < bytes; i++) {
        head[1 + i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
    }
    put_bytes(hasher, head, 1 + bytes);
}

static void put_string(kv_hasher_t *hasher, uint8_t major, const void *data, size_t length)
{
    put_head(hasher, major, (uint32_t)length);
    put_bytes(hasher, data, length);
}

static void finish(kv_hasher_t *hasher, kv_hash_t *hash_out)
{
    flush(hasher);
    require(EVP_DigestFinal_ex(hasher->context, hash_out->bytes, NULL));
    /* NULL keeps the digest and its state's memory. */
    require(EVP_DigestInit_ex(hasher->context, NULL, NULL));
}

weft_status_t kv_hasher_create(const char *seed, kv_hasher_t **hasher_out)
{
    kv_hasher_t *hasher = weft_zalloc(sizeof(*hasher), "kv_hash.hasher");
    if (hasher == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    hasher->context = EVP_MD_CTX_new();
    if (hasher->context == NULL || EVP_DigestInit_ex(hasher->context, EVP_sha256(), NULL) != 1) {
        kv_hasher_destroy(hasher);
        return WEFT_ERR_NO_MEMORY;
    }
    const char *text = seed == NULL ? "vllm-none-hash" : seed;
    put_string(hasher, CBOR_TEXT, text, strlen(text));
    finish(hasher, &hasher->root);
    *hasher_out = hasher;
    return WEFT_OK;
}

void kv_hasher_destroy(kv_hasher_t *hasher)
{
    if (hasher == NULL) {
        return;
    }
    EVP_MD_CTX_free(hasher->context);
    weft_free(hasher);
}

/* (("cache_salt", salt),) */
static void put_salt(kv_hasher_t *hasher, const char *salt)
{
    static const char tag[] = "cache_salt";
    put_head(hasher, CBOR_ARRAY, 1);
    put_head(hasher, CBOR_ARRAY, 2);
    put_string(hasher, CBOR_TEXT, tag, sizeof(tag) - 1);
    put_string(hasher, CBOR_TEXT, salt, strlen(salt));
}

void kv_hasher_block(kv_hasher_t *hasher, const kv_hash_t *parent, const int32_t *tokens,
                     uint32_t n, const char *salt, kv_hash_t *hash_out)
{
    const kv_hash_t *above = parent == NULL ? &hasher->root : parent;
    put_head(hasher, CBOR_ARRAY, 3);
    put_string(hasher, CBOR_BYTES, above->bytes, KV_HASH_BYTES);
    put_head(hasher, CBOR_ARRAY, n);
    for (uint32_t i = 0; i < n; i++) {
        put_head(hasher, CBOR_UINT, (uint32_t)tokens[i]);
    }
    if (parent == NULL && salt != NULL) {
        put_salt(hasher, salt);
    } else {
        put_bytes(hasher, &cbor_null, 1);
    }
    finish(hasher, hash_out);
}

const kv_hash_t *kv_hasher_root(const kv_hasher_t *hasher)
{
    return &hasher->root;
}
