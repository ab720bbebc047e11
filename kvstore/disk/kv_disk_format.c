/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/disk/kv_disk_format.h"

#include <assert.h>
#include <endian.h>
#include <string.h>

#include <xxhash.h>

/* Both checksums stand behind the magic: what follows them is what they cover. */
typedef struct slot_header {
    char magic[8];
    uint64_t checksum; /* of the page behind this field */
    uint64_t content_checksum;
    uint32_t version;
    uint32_t block_tokens;
    uint64_t block_bytes;
    uint64_t generation;
    uint32_t slot;
    uint32_t unused;
    uint8_t fingerprint[KV_DISK_FINGERPRINT_BYTES];
    uint8_t hash[KV_HASH_BYTES];
} slot_header_t;

typedef struct journal_header {
    char magic[8];
    uint64_t checksum; /* of what follows */
    uint32_t version;
    uint32_t block_tokens;
    uint64_t block_bytes;
    uint64_t next_generation;
    uint8_t fingerprint[KV_DISK_FINGERPRINT_BYTES];
} journal_header_t;

typedef struct record_head {
    uint32_t bytes; /* of the whole record; a multiple of 8 */
    uint32_t type;
    uint64_t checksum; /* of what follows, seeded with bytes and type */
    uint64_t generation;
    uint32_t slot;
    uint32_t is_first;
} record_head_t;

enum { TEXTS = 3 }; /* salt, adapter's name, adapter's path */

/* Behind a STORED's head. Then tokens, then the texts with their ends, then zeros up to 8 bytes. */
typedef struct stored_body {
    uint8_t hash[KV_HASH_BYTES];
    uint8_t parent[KV_HASH_BYTES];
    uint32_t text_bytes[TEXTS]; /* 0: none */
    uint32_t unused;
} stored_body_t;

static_assert(sizeof(slot_header_t) == 120, "on disk");
static_assert(sizeof(journal_header_t) == KV_DISK_JOURNAL_HEADER_BYTES, "on disk");
static_assert(sizeof(record_head_t) == 32, "on disk");
static_assert(sizeof(stored_body_t) == 80, "on disk");

#define CHECKED_FROM 16 /* in each of the three */

static const char slot_magic[8] = {'w', 'e', 'f', 't', 'k', 'v', 's', 'l'};
static const char journal_magic[8] = {'w', 'e', 'f', 't', 'k', 'v', 'j', 'l'};

/* ---- a slot --------------------------------------------------------------------------------- */

size_t kv_disk_slot_bytes(uint64_t block_bytes)
{
    const uint64_t page = KV_DISK_PAGE_BYTES;
    return (size_t)(page + (block_bytes + page - 1) / page * page);
}

static slot_header_t slot_header(const kv_disk_identity_t *identity,
                                 const kv_disk_slot_name_t *name, uint64_t content_checksum)
{
    slot_header_t header = {
        .content_checksum = htole64(content_checksum),
        .version = htole32(KV_DISK_VERSION),
        .block_tokens = htole32(identity->block_tokens),
        .block_bytes = htole64(identity->block_bytes),
        .generation = htole64(name->generation),
        .slot = htole32(name->slot),
    };
    memcpy(header.magic, slot_magic, sizeof(header.magic));
    memcpy(header.fingerprint, identity->fingerprint, sizeof(header.fingerprint));
    memcpy(header.hash, name->hash.bytes, sizeof(header.hash));
    return header;
}

static uint64_t content_checksum(const kv_disk_identity_t *identity, const uint8_t *data)
{
    return XXH3_64bits(data + KV_DISK_PAGE_BYTES,
                       kv_disk_slot_bytes(identity->block_bytes) - KV_DISK_PAGE_BYTES);
}

static uint64_t page_checksum(const uint8_t *data)
{
    return htole64(XXH3_64bits(data + CHECKED_FROM, KV_DISK_PAGE_BYTES - CHECKED_FROM));
}

void kv_disk_slot_seal(const kv_disk_identity_t *identity, const kv_disk_slot_name_t *name,
                       uint8_t *data)
{
    const size_t end = KV_DISK_PAGE_BYTES + (size_t)identity->block_bytes;
    memset(data + end, 0, kv_disk_slot_bytes(identity->block_bytes) - end);
    slot_header_t header = slot_header(identity, name, content_checksum(identity, data));
    memset(data, 0, KV_DISK_PAGE_BYTES);
    memcpy(data, &header, sizeof(header));
    header.checksum = page_checksum(data);
    memcpy(data, &header, sizeof(header));
}

bool kv_disk_slot_is_whole(const kv_disk_identity_t *identity, const kv_disk_slot_name_t *name,
                           const uint8_t *data)
{
    slot_header_t header;
    memcpy(&header, data, sizeof(header));
    slot_header_t expected = slot_header(identity, name, le64toh(header.content_checksum));
    expected.checksum = page_checksum(data);
    return memcmp(&header, &expected, sizeof(header)) == 0 &&
           content_checksum(identity, data) == le64toh(header.content_checksum);
}

/* ---- the journal's header ------------------------------------------------------------------- */

static uint64_t header_checksum(const journal_header_t *header)
{
    return htole64(
        XXH3_64bits((const uint8_t *)header + CHECKED_FROM, sizeof(*header) - CHECKED_FROM));
}

void kv_disk_journal_header_encode(const kv_disk_journal_header_t *header,
                                   uint8_t out[KV_DISK_JOURNAL_HEADER_BYTES])
{
    journal_header_t wire = {
        .version = htole32(KV_DISK_VERSION),
        .block_tokens = htole32(header->identity.block_tokens),
        .block_bytes = htole64(header->identity.block_bytes),
        .next_generation = htole64(header->next_generation),
    };
    memcpy(wire.magic, journal_magic, sizeof(wire.magic));
    memcpy(wire.fingerprint, header->identity.fingerprint, sizeof(wire.fingerprint));
    wire.checksum = header_checksum(&wire);
    memcpy(out, &wire, sizeof(wire));
}

/* Magic, checksum and version keep their places in every version. */
weft_status_t kv_disk_journal_header_decode(const uint8_t *data, size_t size,
                                            kv_disk_journal_header_t *header_out,
                                            uint32_t *version_out)
{
    journal_header_t wire;
    if (size < sizeof(wire)) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(&wire, data, sizeof(wire));
    if (memcmp(wire.magic, journal_magic, sizeof(wire.magic)) != 0) {
        return WEFT_ERR_MALFORMED;
    }
    if (le32toh(wire.version) != KV_DISK_VERSION) {
        *version_out = le32toh(wire.version);
        return WEFT_ERR_UNSUPPORTED;
    }
    if (wire.checksum != header_checksum(&wire)) {
        return WEFT_ERR_MALFORMED;
    }
    *header_out = (kv_disk_journal_header_t){
        .identity = {.block_tokens = le32toh(wire.block_tokens),
                     .block_bytes = le64toh(wire.block_bytes)},
        .next_generation = le64toh(wire.next_generation),
    };
    memcpy(header_out->identity.fingerprint, wire.fingerprint, sizeof(wire.fingerprint));
    return WEFT_OK;
}

/* ---- the journal's records ------------------------------------------------------------------ */

static size_t round_up_8(size_t bytes)
{
    return (bytes + 7) / 8 * 8;
}

static size_t tokens_bytes(uint32_t block_tokens)
{
    return sizeof(int32_t) * (size_t)block_tokens;
}

size_t kv_disk_record_bytes_plain(uint32_t block_tokens)
{
    return round_up_8(sizeof(record_head_t) + sizeof(stored_body_t) + tokens_bytes(block_tokens));
}

size_t kv_disk_record_bytes_max(uint32_t block_tokens)
{
    return round_up_8(kv_disk_record_bytes_plain(block_tokens) + KV_EXTRA_MAX_BYTES);
}

static size_t text_bytes(const char *text)
{
    return text == NULL ? 0 : strlen(text) + 1;
}

static uint64_t record_checksum(const record_head_t *head, const uint8_t *data)
{
    const uint64_t seed = (uint64_t)le32toh(head->type) << 32 | le32toh(head->bytes);
    return htole64(
        XXH3_64bits_withSeed(data + CHECKED_FROM, le32toh(head->bytes) - CHECKED_FROM, seed));
}

/* Returns where it ended. */
static uint8_t *encode_stored(const kv_name_t *name, uint32_t block_tokens, uint8_t *out)
{
    const char *texts[TEXTS] = {kv_extra_salt(name->extra), kv_extra_lora_name(name->extra),
                                kv_extra_lora_path(name->extra)};
    stored_body_t body = {0};
    memcpy(body.hash, name->hash.bytes, sizeof(body.hash));
    if (!name->is_first) {
        memcpy(body.parent, name->parent.bytes, sizeof(body.parent));
    }
    for (int i = 0; i < TEXTS; i++) {
        body.text_bytes[i] = htole32((uint32_t)text_bytes(texts[i]));
    }
    memcpy(out, &body, sizeof(body));
    out += sizeof(body);
    for (uint32_t i = 0; i < block_tokens; i++, out += sizeof(uint32_t)) {
        const uint32_t token = htole32((uint32_t)name->tokens[i]);
        memcpy(out, &token, sizeof(token));
    }
    for (int i = 0; i < TEXTS; i++) {
        const size_t bytes = text_bytes(texts[i]);
        if (bytes > 0) {
            memcpy(out, texts[i], bytes);
        }
        out += bytes;
    }
    return out;
}

size_t kv_disk_record_encode(kv_disk_record_type_t type, uint32_t slot, uint64_t generation,
                             const kv_name_t *name, uint32_t block_tokens, uint8_t *out)
{
    uint8_t *end = out + sizeof(record_head_t);
    if (name != NULL) {
        end = encode_stored(name, block_tokens, end);
    }
    const size_t used = (size_t)(end - out);
    const size_t bytes = round_up_8(used);
    memset(end, 0, bytes - used);
    const record_head_t head = {
        .bytes = htole32((uint32_t)bytes),
        .type = htole32(type),
        .generation = htole64(generation),
        .slot = htole32(slot),
        .is_first = htole32(name != NULL && name->is_first ? 1 : 0),
    };
    memcpy(out, &head, sizeof(head));
    (void)kv_disk_record_reseal(out, bytes);
    return bytes;
}

/* A text of exactly these bytes, its end included; NULL when there are none. */
static bool decode_text(const uint8_t **cursor, uint32_t bytes, const char **text_out)
{
    const char *text = (const char *)*cursor;
    *text_out = bytes == 0 ? NULL : text;
    *cursor += bytes;
    return bytes == 0 || strnlen(text, bytes) == bytes - 1;
}

static bool is_zero(const uint8_t *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (data[i] != 0) {
            return false;
        }
    }
    return true;
}

/* data [bytes]: a STORED whose checksum is right. */
static bool decode_stored(const uint8_t *data, size_t bytes, uint32_t block_tokens,
                          kv_disk_record_t *record)
{
    const size_t plain = sizeof(record_head_t) + sizeof(stored_body_t) + tokens_bytes(block_tokens);
    stored_body_t body;
    if (bytes < plain) {
        return false;
    }
    memcpy(&body, data + sizeof(record_head_t), sizeof(body));
    size_t used = plain;
    for (int i = 0; i < TEXTS; i++) {
        body.text_bytes[i] = le32toh(body.text_bytes[i]);
        if (body.text_bytes[i] > KV_EXTRA_MAX_BYTES) {
            return false;
        }
        used += body.text_bytes[i];
    }
    if (round_up_8(used) != bytes || used > plain + KV_EXTRA_MAX_BYTES || body.unused != 0) {
        return false;
    }
    memcpy(record->hash.bytes, body.hash, sizeof(body.hash));
    memcpy(record->parent.bytes, body.parent, sizeof(body.parent));
    record->tokens = data + sizeof(record_head_t) + sizeof(body);
    const uint8_t *cursor = data + plain;
    return decode_text(&cursor, body.text_bytes[0], &record->salt) &&
           decode_text(&cursor, body.text_bytes[1], &record->lora_name) &&
           decode_text(&cursor, body.text_bytes[2], &record->lora_path) &&
           is_zero(data + used, bytes - used) &&
           (!record->is_first || is_zero(body.parent, sizeof(body.parent)));
}

weft_status_t kv_disk_record_decode(const uint8_t *data, size_t size, uint32_t block_tokens,
                                    kv_disk_record_t *record_out, size_t *bytes_out)
{
    record_head_t head;
    if (size < sizeof(head)) {
        return WEFT_PENDING;
    }
    memcpy(&head, data, sizeof(head));
    const uint32_t bytes = le32toh(head.bytes);
    const uint32_t type = le32toh(head.type);
    const uint32_t is_first = le32toh(head.is_first);
    if (bytes % 8 != 0 || bytes < sizeof(head) || bytes > kv_disk_record_bytes_max(block_tokens) ||
        type < KV_DISK_BEGIN || type > KV_DISK_CLEARED) {
        return WEFT_ERR_MALFORMED;
    }
    if (bytes > size) {
        return WEFT_PENDING;
    }
    if (head.checksum != record_checksum(&head, data)) {
        return WEFT_ERR_MALFORMED;
    }
    kv_disk_record_t record = {
        .type = (kv_disk_record_type_t)type,
        .slot = le32toh(head.slot),
        .generation = le64toh(head.generation),
        .is_first = is_first == 1,
    };
    const bool is_right = type == KV_DISK_STORED
                              ? is_first <= 1 && decode_stored(data, bytes, block_tokens, &record)
                              : is_first == 0 && bytes == sizeof(head);
    if (!is_right) {
        return WEFT_ERR_MALFORMED;
    }
    *record_out = record;
    *bytes_out = bytes;
    return WEFT_OK;
}

bool kv_disk_record_reseal(uint8_t *data, size_t size)
{
    record_head_t head;
    if (size < sizeof(head)) {
        return false;
    }
    memcpy(&head, data, sizeof(head));
    const uint32_t bytes = le32toh(head.bytes);
    if (bytes < sizeof(head) || bytes > size) {
        return false;
    }
    head.checksum = record_checksum(&head, data);
    memcpy(data, &head, sizeof(head));
    return true;
}

void kv_disk_tokens_decode(const uint8_t *tokens, uint32_t n, int32_t *tokens_out)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t token;
        memcpy(&token, tokens + sizeof(token) * i, sizeof(token));
        tokens_out[i] = (int32_t)le32toh(token);
    }
}
