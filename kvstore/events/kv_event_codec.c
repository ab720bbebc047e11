/* SPDX-License-Identifier: Apache-2.0 */
/* kv_event_codec: the tables, and writing. Reading is in kv_event_decode.c. */
#include "kvstore/events/kv_event_codec.h"

#include <assert.h>
#include <msgpack/pack.h>
#include <string.h>

#include "base/compiler.h"

static const kv_event_encoding_t encodings[] = {
#define ENCODING(name, is_map, stored, removed) {name, is_map, {stored, removed, 0}},
#include "kvstore/events/kv_event_encodings.def"
#undef ENCODING
};

#define ROW(field, type, is_required)                                                              \
    {#field, sizeof(#field) - 1, KV_EVENT_TYPE_##type, is_required, offsetof(kv_event_t, field)},
#define SKIP(field, type, is_required)

static const kv_event_field_t stored_fields[] = {
#define FIELD(event, ...) FIELD_##event(__VA_ARGS__)
#define FIELD_STORED      ROW
#define FIELD_REMOVED     SKIP
#include "kvstore/events/kv_event_fields.def"
#undef FIELD_STORED
#undef FIELD_REMOVED
};

static const kv_event_field_t removed_fields[] = {
#define FIELD_STORED  SKIP
#define FIELD_REMOVED ROW
#include "kvstore/events/kv_event_fields.def"
#undef FIELD_STORED
#undef FIELD_REMOVED
#undef FIELD
};

static const struct kind {
    const char *name;
    const kv_event_field_t *fields;
    uint32_t n_fields;
} kinds[] = {
    [KV_EVENT_STORED] = {"BlockStored", stored_fields, WEFT_ARRAY_LEN(stored_fields)},
    [KV_EVENT_REMOVED] = {"BlockRemoved", removed_fields, WEFT_ARRAY_LEN(removed_fields)},
    [KV_EVENT_CLEARED] = {"AllBlocksCleared", NULL, 0},
};

const char *kv_event_kind_name(kv_event_kind_t kind)
{
    return kinds[kind].name;
}

const kv_event_field_t *kv_event_fields(kv_event_kind_t kind, uint32_t *n_out)
{
    *n_out = kinds[kind].n_fields;
    return kinds[kind].fields;
}

const kv_event_encoding_t *kv_event_encoding_at(uint32_t index)
{
    return index < WEFT_ARRAY_LEN(encodings) ? &encodings[index] : NULL;
}

weft_status_t kv_event_encoding_parse(const char *name, weft_diag_t *diag,
                                      const kv_event_encoding_t **encoding_out)
{
    char known[256] = "";
    for (size_t i = 0; i < WEFT_ARRAY_LEN(encodings); i++) {
        if (strcmp(name, encodings[i].name) == 0) {
            *encoding_out = &encodings[i];
            return WEFT_OK;
        }
        const size_t length = strlen(known);
        snprintf(known + length, sizeof(known) - length, "%s%s", i == 0 ? "" : ", ",
                 encodings[i].name);
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "no encoding \"%s\" of KV events; there are: %s", name,
                     known);
}

/* ---- values ---------------------------------------------------------------------------------- */

kv_event_hash_t kv_event_hash_number(uint64_t number)
{
    kv_event_hash_t hash = {.n_bytes = sizeof(number), .is_number = true};
    for (unsigned i = 0; i < sizeof(number); i++) {
        hash.bytes[i] = (uint8_t)(number >> (56 - 8 * i));
    }
    return hash;
}

kv_event_hash_t kv_event_hash_bytes(const uint8_t *bytes, uint32_t n)
{
    assert(n <= KV_HASH_BYTES);
    kv_event_hash_t hash = {.n_bytes = (uint8_t)n};
    memcpy(hash.bytes, bytes, n);
    return hash;
}

kv_event_text_t kv_event_text(const char *text)
{
    return (kv_event_text_t){text, text == NULL ? 0 : (uint32_t)strlen(text)};
}

bool kv_event_text_equal(kv_event_text_t a, kv_event_text_t b)
{
    return a.length == b.length && (a.data == NULL) == (b.data == NULL) &&
           (a.length == 0 || memcmp(a.data, b.data, a.length) == 0);
}

/* ---- writing --------------------------------------------------------------------------------- */

static int append(void *user, const char *data, size_t length)
{
    weft_buffer_append(user, data, length);
    return 0;
}

static msgpack_packer packer_to(weft_buffer_t *out)
{
    return (msgpack_packer){.data = out, .callback = append};
}

static void pack_text(msgpack_packer *packer, kv_event_text_t text)
{
    if (text.data == NULL) {
        msgpack_pack_nil(packer);
        return;
    }
    msgpack_pack_str(packer, text.length);
    msgpack_pack_str_body(packer, text.data, text.length);
}

static void pack_items(msgpack_packer *packer, kv_event_items_t items)
{
    if (items.data == NULL) {
        msgpack_pack_nil(packer);
        return;
    }
    append(packer->data, items.data, items.length);
}

static void pack_number_hash(msgpack_packer *packer, kv_event_width_t width,
                             const kv_event_hash_t *hash)
{
    uint64_t number = 0;
    for (unsigned i = 0; i < sizeof(number); i++) {
        number = number << 8 | hash->bytes[i];
    }
    if (width == KV_EVENT_WIDE) {
        msgpack_pack_fix_uint64(packer, number);
    } else {
        msgpack_pack_uint64(packer, number);
    }
}

static void pack_hash(msgpack_packer *packer, kv_event_width_t width, const kv_event_hash_t *hash)
{
    if (hash->n_bytes == 0) {
        msgpack_pack_nil(packer);
    } else if (hash->is_number) {
        pack_number_hash(packer, width, hash);
    } else {
        msgpack_pack_bin(packer, hash->n_bytes);
        msgpack_pack_bin_body(packer, hash->bytes, hash->n_bytes);
    }
}

static void pack_int(msgpack_packer *packer, kv_event_int_t number)
{
    if (number.is_set) {
        msgpack_pack_int64(packer, number.value);
    } else {
        msgpack_pack_nil(packer);
    }
}

static void pack_hashes(msgpack_packer *packer, kv_event_width_t width, kv_event_hashes_t hashes)
{
    msgpack_pack_array(packer, hashes.count);
    for (uint32_t i = 0; i < hashes.count; i++) {
        pack_hash(packer, width, &hashes.items[i]);
    }
}

/* The shortest form of number, at most 5 bytes. Returns what is behind it. */
static char *put_number(char *at, uint32_t number)
{
    if (number < 0x80) {
        *at++ = (char)number;
        return at;
    }
    const unsigned log2_bytes = number <= UINT8_MAX ? 0 : number <= UINT16_MAX ? 1 : 2;
    *at++ = (char)(0xcc + log2_bytes);
    for (unsigned shift = 8u << log2_bytes; shift > 0; shift -= 8) {
        *at++ = (char)(number >> (shift - 8));
    }
    return at;
}

/* Most of a message: written in pieces, not number by number through the packer. */
static void pack_tokens(msgpack_packer *packer, kv_event_tokens_t tokens)
{
    char piece[64 * 5];
    msgpack_pack_array(packer, tokens.count);
    for (uint32_t i = 0; i < tokens.count;) {
        char *at = piece;
        for (; i < tokens.count && at <= piece + sizeof(piece) - 5; i++) {
            at = put_number(at, tokens.items[i]);
        }
        append(packer->data, piece, (size_t)(at - piece));
    }
}

static void pack_field(msgpack_packer *packer, kv_event_width_t width, const kv_event_t *event,
                       const kv_event_field_t *field)
{
    const void *value = (const char *)event + field->offset;
    switch (field->type) {
    case KV_EVENT_TYPE_HASHES:
        pack_hashes(packer, width, *(const kv_event_hashes_t *)value);
        break;
    case KV_EVENT_TYPE_HASH:
        pack_hash(packer, width, value);
        break;
    case KV_EVENT_TYPE_TOKENS:
        pack_tokens(packer, *(const kv_event_tokens_t *)value);
        break;
    case KV_EVENT_TYPE_SIZE:
        msgpack_pack_uint32(packer, *(const uint32_t *)value);
        break;
    case KV_EVENT_TYPE_INT:
        pack_int(packer, *(const kv_event_int_t *)value);
        break;
    case KV_EVENT_TYPE_TEXT:
        pack_text(packer, *(const kv_event_text_t *)value);
        break;
    case KV_EVENT_TYPE_EXTRAS:
    case KV_EVENT_TYPE_LISTS:
        pack_items(packer, *(const kv_event_items_t *)value);
        break;
    }
}

bool kv_event_field_is_default(const kv_event_t *event, const kv_event_field_t *field)
{
    const void *value = (const char *)event + field->offset;
    switch (field->type) {
    case KV_EVENT_TYPE_INT:
        return !((const kv_event_int_t *)value)->is_set;
    case KV_EVENT_TYPE_TEXT:
    case KV_EVENT_TYPE_EXTRAS:
    case KV_EVENT_TYPE_LISTS:
        return ((const kv_msgpack_span_t *)value)->data == NULL;
    case KV_EVENT_TYPE_HASH:
        return ((const kv_event_hash_t *)value)->n_bytes == 0;
    case KV_EVENT_TYPE_HASHES:
    case KV_EVENT_TYPE_TOKENS:
    case KV_EVENT_TYPE_SIZE:
        break;
    }
    return false;
}

static bool is_in_map(const kv_event_t *event, const kv_event_field_t *field)
{
    return field->is_required || !kv_event_field_is_default(event, field);
}

static void pack_map_header(msgpack_packer *packer, uint32_t pairs, uint32_t most)
{
    if (most <= 15) {
        msgpack_pack_map(packer, pairs);
        return;
    }
    const char header[] = {(char)0xde, 0, (char)pairs};
    append(packer->data, header, sizeof(header));
}

static void pack_map(msgpack_packer *packer, const struct kind *kind, uint32_t n_fields,
                     kv_event_width_t width, const kv_event_t *event)
{
    uint32_t pairs = 1;
    for (uint32_t i = 0; i < n_fields; i++) {
        pairs += is_in_map(event, &kind->fields[i]);
    }
    pack_map_header(packer, pairs, 1 + n_fields);
    pack_text(packer, kv_event_text("type"));
    pack_text(packer, kv_event_text(kind->name));
    for (uint32_t i = 0; i < n_fields; i++) {
        if (is_in_map(event, &kind->fields[i])) {
            pack_text(packer, (kv_event_text_t){kind->fields[i].name, kind->fields[i].name_length});
            pack_field(packer, width, event, &kind->fields[i]);
        }
    }
}

void kv_event_encode(weft_buffer_t *out, const kv_event_encoding_t *encoding,
                     kv_event_width_t width, const kv_event_t *event)
{
    const struct kind *kind = &kinds[event->kind];
    const uint32_t n_fields = encoding->fields[event->kind];
    msgpack_packer packer = packer_to(out);
    if (encoding->is_map) {
        pack_map(&packer, kind, n_fields, width, event);
        return;
    }
    msgpack_pack_array(&packer, 1 + n_fields);
    pack_text(&packer, kv_event_text(kind->name));
    for (uint32_t i = 0; i < n_fields; i++) {
        pack_field(&packer, width, event, &kind->fields[i]);
    }
}

void kv_event_batch_begin(weft_buffer_t *out, double ts, uint32_t n)
{
    msgpack_packer packer = packer_to(out);
    msgpack_pack_array(&packer, 3);
    msgpack_pack_double(&packer, ts);
    msgpack_pack_array(&packer, n);
}

void kv_event_batch_end(weft_buffer_t *out, kv_event_int_t rank)
{
    msgpack_packer packer = packer_to(out);
    pack_int(&packer, rank);
}

void kv_event_put_array(weft_buffer_t *out, uint32_t n)
{
    msgpack_packer packer = packer_to(out);
    msgpack_pack_array(&packer, n);
}

void kv_event_put_nil(weft_buffer_t *out)
{
    msgpack_packer packer = packer_to(out);
    msgpack_pack_nil(&packer);
}

void kv_event_put_text(weft_buffer_t *out, kv_event_text_t text)
{
    msgpack_packer packer = packer_to(out);
    pack_text(&packer, text);
}

void kv_event_put_bytes(weft_buffer_t *out, const void *data, uint32_t length)
{
    msgpack_packer packer = packer_to(out);
    msgpack_pack_bin(&packer, length);
    msgpack_pack_bin_body(&packer, data, length);
}

void kv_event_put_int(weft_buffer_t *out, int64_t value)
{
    msgpack_packer packer = packer_to(out);
    msgpack_pack_int64(&packer, value);
}
