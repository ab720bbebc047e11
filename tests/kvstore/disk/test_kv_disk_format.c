/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/disk/kv_disk_format.h"

#include <string.h>

#include "tests/support/check.h"
#include "tests/support/random.h"

enum { TOKENS = 3, BLOCK_BYTES = 5000 };

static const kv_disk_identity_t identity = {
    .fingerprint = "model", .block_tokens = TOKENS, .block_bytes = BLOCK_BYTES};

static kv_disk_slot_name_t slot_name(void)
{
    return (kv_disk_slot_name_t){.slot = 7, .generation = 9, .hash = {.bytes = "hash"}};
}

static void seal(uint8_t *data, size_t bytes)
{
    const kv_disk_slot_name_t name = slot_name();
    memset(data, 0xa5, bytes);
    kv_disk_slot_seal(&identity, &name, data);
}

static void a_sealed_slot_is_whole_under_its_name_alone(void **state)
{
    (void)state;
    static uint8_t data[3 * KV_DISK_PAGE_BYTES];
    const kv_disk_slot_name_t name = slot_name();
    assert_int_equal(kv_disk_slot_bytes(BLOCK_BYTES), sizeof(data));
    assert_int_equal(kv_disk_slot_bytes(KV_DISK_PAGE_BYTES), 2 * KV_DISK_PAGE_BYTES);
    seal(data, sizeof(data));
    assert_true(kv_disk_slot_is_whole(&identity, &name, data));
    kv_disk_slot_name_t other = name;
    other.slot++;
    assert_false(kv_disk_slot_is_whole(&identity, &other, data));
    other = name;
    other.generation++;
    assert_false(kv_disk_slot_is_whole(&identity, &other, data));
    other = name;
    other.hash.bytes[31] ^= 1;
    assert_false(kv_disk_slot_is_whole(&identity, &other, data));
    kv_disk_identity_t stranger = identity;
    stranger.fingerprint[31] ^= 1;
    assert_false(kv_disk_slot_is_whole(&stranger, &name, data));
}

static void any_flipped_bit_of_a_slot_shows(void **state)
{
    (void)state;
    static uint8_t data[3 * KV_DISK_PAGE_BYTES];
    const kv_disk_slot_name_t name = slot_name();
    seal(data, sizeof(data));
    for (size_t at = 0; at < sizeof(data); at++) {
        const uint8_t bit = (uint8_t)(1u << at % 8);
        data[at] ^= bit;
        assert_false(kv_disk_slot_is_whole(&identity, &name, data));
        data[at] ^= bit;
    }
    assert_true(kv_disk_slot_is_whole(&identity, &name, data));
}

static void a_journal_header_comes_back_and_any_other_byte_shows(void **state)
{
    (void)state;
    uint8_t data[KV_DISK_JOURNAL_HEADER_BYTES];
    const kv_disk_journal_header_t header = {.identity = identity, .next_generation = 12};
    kv_disk_journal_header_t back;
    uint32_t version = 0;
    kv_disk_journal_header_encode(&header, data);
    assert_memory_equal(data, "weftkvjl", 8);
    assert_memory_equal(data + 16, "\1\0\0\0", 4); /* the version stays here */
    assert_status(kv_disk_journal_header_decode(data, sizeof(data), &back, &version), WEFT_OK);
    assert_int_equal(back.next_generation, 12);
    assert_int_equal(back.identity.block_bytes, BLOCK_BYTES);
    assert_int_equal(back.identity.block_tokens, TOKENS);
    assert_memory_equal(back.identity.fingerprint, identity.fingerprint, 32);
    for (size_t n = 0; n < sizeof(data); n++) {
        assert_status(kv_disk_journal_header_decode(data, n, &back, &version), WEFT_ERR_MALFORMED);
        data[n] ^= 0x20;
        const weft_status_t status =
            kv_disk_journal_header_decode(data, sizeof(data), &back, &version);
        assert_status(status, n / 4 == 4 ? WEFT_ERR_UNSUPPORTED : WEFT_ERR_MALFORMED);
        data[n] ^= 0x20;
    }
    data[16] = 2;
    assert_status(kv_disk_journal_header_decode(data, sizeof(data), &back, &version),
                  WEFT_ERR_UNSUPPORTED);
    assert_int_equal(version, 2);
}

static size_t encode_stored(uint8_t *data, const char *salt, const char *lora)
{
    static const int32_t tokens[TOKENS] = {1, -2, 0x7fffffff};
    kv_name_t name = {.hash = {.bytes = "hash"}, .parent = {.bytes = "parent"}, .tokens = tokens};
    assert_status(kv_extra_create(salt, lora, lora, &name.extra), WEFT_OK);
    const size_t bytes = kv_disk_record_encode(KV_DISK_STORED, 5, 77, &name, TOKENS, data);
    kv_extra_release(name.extra);
    return bytes;
}

static void a_stored_record_comes_back(void **state)
{
    (void)state;
    uint8_t data[256];
    kv_disk_record_t record;
    size_t bytes = 0;
    int32_t tokens[TOKENS];
    const size_t size = encode_stored(data, "", "adapter");
    assert_int_equal(size % 8, 0);
    assert_status(kv_disk_record_decode(data, size, TOKENS, &record, &bytes), WEFT_OK);
    assert_int_equal(bytes, size);
    assert_int_equal(record.type, KV_DISK_STORED);
    assert_int_equal(record.slot, 5);
    assert_int_equal(record.generation, 77);
    assert_false(record.is_first);
    assert_string_equal((const char *)record.hash.bytes, "hash");
    assert_string_equal((const char *)record.parent.bytes, "parent");
    kv_disk_tokens_decode(record.tokens, TOKENS, tokens);
    assert_int_equal(tokens[1], -2);
    assert_int_equal(tokens[2], 0x7fffffff);
    assert_string_equal(record.salt, ""); /* which is not none */
    assert_string_equal(record.lora_name, "adapter");
    assert_string_equal(record.lora_path, "adapter");
    assert_int_equal(encode_stored(data, NULL, NULL), kv_disk_record_bytes_plain(TOKENS));
    assert_status(kv_disk_record_decode(data, sizeof(data), TOKENS, &record, &bytes), WEFT_OK);
    assert_null(record.salt);
    assert_null(record.lora_path);
}

static void a_cut_record_is_pending_and_a_changed_one_malformed(void **state)
{
    (void)state;
    uint8_t data[256];
    kv_disk_record_t record;
    size_t bytes = 0;
    const size_t size = encode_stored(data, "salt", NULL);
    for (size_t n = 0; n < size; n++) {
        assert_status(kv_disk_record_decode(data, n, TOKENS, &record, &bytes), WEFT_PENDING);
        for (int bit = 0; bit < 8; bit++) {
            data[n] ^= (uint8_t)(1 << bit);
            const weft_status_t status = kv_disk_record_decode(data, size, TOKENS, &record, &bytes);
            /* A length that grew may say that there is more to come. */
            assert_true(status == WEFT_ERR_MALFORMED || (n < 4 && status == WEFT_PENDING));
            data[n] ^= (uint8_t)(1 << bit);
        }
    }
    /* Records of blocks of another size are no records. */
    assert_status(kv_disk_record_decode(data, size, 4 * TOKENS, &record, &bytes),
                  WEFT_ERR_MALFORMED);
    memset(data, 0, sizeof(data)); /* a file's tail after a power cut */
    assert_status(kv_disk_record_decode(data, sizeof(data), TOKENS, &record, &bytes),
                  WEFT_ERR_MALFORMED);
}

static void short_records_come_back(void **state)
{
    (void)state;
    const kv_disk_record_type_t types[] = {KV_DISK_BEGIN, KV_DISK_REMOVED, KV_DISK_CLEARED};
    for (size_t i = 0; i < 3; i++) {
        uint8_t data[64];
        kv_disk_record_t record;
        size_t bytes = 0;
        const size_t size = kv_disk_record_encode(types[i], 3, 4, NULL, TOKENS, data);
        assert_status(kv_disk_record_decode(data, size, TOKENS, &record, &bytes), WEFT_OK);
        assert_int_equal(bytes, size);
        assert_int_equal(record.type, types[i]);
        assert_int_equal(record.slot, 3);
        assert_int_equal(record.generation, 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sealed_slot_is_whole_under_its_name_alone),
        cmocka_unit_test(any_flipped_bit_of_a_slot_shows),
        cmocka_unit_test(a_journal_header_comes_back_and_any_other_byte_shows),
        cmocka_unit_test(a_stored_record_comes_back),
        cmocka_unit_test(a_cut_record_is_pending_and_a_changed_one_malformed),
        cmocka_unit_test(short_records_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
