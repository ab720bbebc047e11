/* SPDX-License-Identifier: Apache-2.0 */
/* Canonical CBOR (RFC 7049, section 3.9): shortest heads, definite lengths. */
#include <endian.h>
#include <string.h>

#include "kvstore/hash/kv_hash_priv.h"

/* Major types (section 2.1), in the upper three bits of an item's first byte. */
#define CBOR_UINT  0x00
#define CBOR_BYTES 0x40
#define CBOR_TEXT  0x60
#define CBOR_ARRAY 0x80

#define CBOR_NULL 0xf6

/* Without a branch: the lengths of token ids are past predicting. */
static inline uint8_t *put_head(uint8_t *out, uint8_t major, uint32_t value)
{
    /* For values up to 23, 8 bits, 16, 32: what the first byte adds, where the value goes. */
    static const uint8_t infos[] = {0, 24, 25, 26};
    static const uint8_t shifts[] = {56, 48, 40, 24};
    static const uint8_t lengths[] = {1, 2, 3, 5};
    const unsigned size = (value > 23) + (value > UINT8_MAX) + (value > UINT16_MAX);
    const uint64_t first = major | infos[size];
    const uint64_t item = htobe64(first << 56 | (uint64_t)value << shifts[size]);
    memcpy(out, &item, sizeof(item));
    return out + lengths[size];
}

static uint8_t *put_string(uint8_t *out, uint8_t major, const void *data, size_t bytes)
{
    out = put_head(out, major, (uint32_t)bytes);
    memcpy(out, data, bytes);
    return out + bytes;
}

uint8_t *kv_hash_cbor_text(uint8_t *out, const char *text)
{
    return put_string(out, CBOR_TEXT, text, strlen(text));
}

/* (("lora", name, path), ("cache_salt", salt)), without what there is none of. */
static uint8_t *put_extra(uint8_t *out, const kv_hash_input_t *input)
{
    const uint32_t items = (input->lora_name != NULL) + (input->salt != NULL);
    if (items == 0) {
        *out++ = CBOR_NULL;
        return out;
    }
    out = put_head(out, CBOR_ARRAY, items);
    if (input->lora_name != NULL) {
        out = put_head(out, CBOR_ARRAY, 3);
        out = kv_hash_cbor_text(out, "lora");
        out = kv_hash_cbor_text(out, input->lora_name);
        out = kv_hash_cbor_text(out, input->lora_path);
    }
    if (input->salt != NULL) {
        out = put_head(out, CBOR_ARRAY, 2);
        out = kv_hash_cbor_text(out, "cache_salt");
        out = kv_hash_cbor_text(out, input->salt);
    }
    return out;
}

uint8_t *kv_hash_cbor_block(uint8_t *out, const kv_hash_input_t *input)
{
    out = put_head(out, CBOR_ARRAY, 3);
    out = put_string(out, CBOR_BYTES, input->parent, input->parent_bytes);
    out = put_head(out, CBOR_ARRAY, input->n_tokens);
    for (uint32_t i = 0; i < input->n_tokens; i++) {
        out = put_head(out, CBOR_UINT, (uint32_t)input->tokens[i]);
    }
    return put_extra(out, input);
}
