/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_remote_message.h"

#include <string.h>

#include "kvstore/remote/kv_remote_fabric.h"
#include "tests/support/check.h"

static weft_status_t decode_packed(const kv_remote_message_t *message)
{
    const size_t n = weft__remote__message__get_packed_size(message);
    uint8_t *bytes = test_malloc(n + 1);
    kv_remote_message_t *again = NULL;
    weft__remote__message__pack(message, bytes);
    const weft_status_t status = kv_remote_message_decode(bytes, n, &again);
    if (status == WEFT_OK) {
        assert_int_equal(again->body_case, message->body_case);
    }
    kv_remote_message_free(again);
    test_free(bytes);
    return status;
}

static weft_status_t decode_found(size_t shelves, size_t blocks, size_t epochs)
{
    static uint32_t numbers[KV_REMOTE_MAX_HASHES + 1];
    static uint64_t words[KV_REMOTE_MAX_HASHES + 1];
    Weft__Remote__Found found = WEFT__REMOTE__FOUND__INIT;
    found.shelves = found.blocks = numbers;
    found.epochs = words;
    found.n_shelves = shelves;
    found.n_blocks = blocks;
    found.n_epochs = epochs;
    const kv_remote_message_t message = KV_REMOTE_MESSAGE(FOUND, found, &found);
    return decode_packed(&message);
}

static weft_status_t decode_lookup(size_t bytes)
{
    static uint8_t hashes[(KV_REMOTE_MAX_HASHES + 1) * KV_HASH_BYTES];
    Weft__Remote__Lookup lookup = WEFT__REMOTE__LOOKUP__INIT;
    lookup.hashes.data = hashes;
    lookup.hashes.len = bytes;
    const kv_remote_message_t message = KV_REMOTE_MESSAGE(LOOKUP, lookup, &lookup);
    return decode_packed(&message);
}

static weft_status_t decode_shelf(Weft__Remote__Shelf shelf)
{
    Weft__Remote__Shelf *shelves[] = {&shelf};
    Weft__Remote__Welcome welcome = WEFT__REMOTE__WELCOME__INIT;
    welcome.agent.data = (uint8_t *)"agent";
    welcome.agent.len = 5;
    welcome.shelves = shelves;
    welcome.n_shelves = 1;
    const kv_remote_message_t message = KV_REMOTE_MESSAGE(WELCOME, welcome, &welcome);
    return decode_packed(&message);
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    kv_remote_message_t *message;
    assert_status(kv_remote_message_decode("", 0, &message), WEFT_ERR_MALFORMED);
    assert_status(kv_remote_message_decode("\xff\xff\xff", 3, &message), WEFT_ERR_MALFORMED);
    assert_status(decode_found(2, 2, 2), WEFT_OK);
    assert_status(decode_found(2, 2, 1), WEFT_ERR_MALFORMED);
    assert_status(decode_found(1, 2, 2), WEFT_ERR_MALFORMED);
    assert_status(decode_found(KV_REMOTE_MAX_HASHES, KV_REMOTE_MAX_HASHES, KV_REMOTE_MAX_HASHES),
                  WEFT_OK);
    assert_status(
        decode_found(KV_REMOTE_MAX_HASHES + 1, KV_REMOTE_MAX_HASHES + 1, KV_REMOTE_MAX_HASHES + 1),
        WEFT_ERR_MALFORMED);
    assert_status(decode_lookup(3 * KV_HASH_BYTES), WEFT_OK);
    assert_status(decode_lookup(3 * KV_HASH_BYTES + 1), WEFT_ERR_MALFORMED);
    assert_status(decode_lookup((KV_REMOTE_MAX_HASHES + 1) * KV_HASH_BYTES), WEFT_ERR_MALFORMED);
}

static Weft__Remote__Shelf shelf_of(uint64_t addr, uint64_t bytes, uint64_t blocks, uint64_t words)
{
    Weft__Remote__Shelf shelf = WEFT__REMOTE__SHELF__INIT;
    shelf.addr = addr;
    shelf.block_bytes = bytes;
    shelf.blocks = blocks;
    shelf.words = words;
    return shelf;
}

static void shelves_that_overflow_are_refused(void **state)
{
    (void)state;
    assert_status(decode_shelf(shelf_of(4096, 64, 10, 8192)), WEFT_OK);
    assert_status(decode_shelf(shelf_of(4096, 64, 10, 8193)), WEFT_ERR_MALFORMED);
    assert_status(decode_shelf(shelf_of(4096, 0, 10, 8192)), WEFT_ERR_MALFORMED);
    assert_status(decode_shelf(shelf_of(4096, 64, 0, 8192)), WEFT_ERR_MALFORMED);
    assert_status(decode_shelf(shelf_of(4096, 64, UINT64_MAX / 2, 8192)), WEFT_ERR_MALFORMED);
    assert_status(decode_shelf(shelf_of(UINT64_MAX - 8, 64, 10, 8192)), WEFT_ERR_MALFORMED);
    assert_status(decode_shelf(shelf_of(4096, 64, 10, UINT64_MAX - 7)), WEFT_ERR_MALFORMED);
}

static void check_against(kv_remote_facts_t *ours, const char *key, const char *value,
                          const char *expected)
{
    Weft__Remote__Fact fact = WEFT__REMOTE__FACT__INIT;
    Weft__Remote__Fact *facts[] = {&fact};
    Weft__Remote__Hello hello = WEFT__REMOTE__HELLO__INIT;
    weft_diag_t diag = {0};
    fact.key = (char *)key;
    fact.value = (char *)value;
    hello.protocol = KV_REMOTE_PROTOCOL;
    hello.facts = facts;
    hello.n_facts = 1;
    assert_status(kv_remote_facts_check(ours, &hello, &diag),
                  expected == NULL ? WEFT_OK : WEFT_ERR_INVALID);
    assert_string_equal(diag.text, expected == NULL ? "" : expected);
}

static void what_a_stranger_writes_is_fit_for_a_log(void **state)
{
    (void)state;
    uint8_t bytes[64];
    char reason[] = "a\nb\x1b[2Jc\xc3\xa9";
    kv_remote_message_t *again = NULL;
    Weft__Remote__Refuse refuse = WEFT__REMOTE__REFUSE__INIT;
    refuse.reason = reason;
    const kv_remote_message_t message = KV_REMOTE_MESSAGE(REFUSE, refuse, &refuse);
    const size_t n = weft__remote__message__pack(&message, bytes);
    assert_status(kv_remote_message_decode(bytes, n, &again), WEFT_OK);
    assert_string_equal(again->refuse->reason, "a?b?[2Jc??");
    kv_remote_message_free(again);
}

static void a_difference_has_a_name(void **state)
{
    (void)state;
    kv_remote_facts_t ours = {0};
    kv_remote_facts_add(&ours, "layers", "%d", 30);
    check_against(&ours, "layers", "30", NULL);
    check_against(&ours, "layers", "32", "layers: 32 there, 30 here");
    check_against(&ours, "heads", "30", "layers: not said there, 30 here");
}

static void assert_endpoint(const char *text, const char *endpoint, const char *host)
{
    char endpoint_out[KV_REMOTE_MAX_ENDPOINT];
    char host_out[KV_REMOTE_MAX_ENDPOINT];
    weft_diag_t diag = {0};
    const weft_status_t status =
        kv_remote_endpoint(text, strlen(text), 3, &diag, endpoint_out, host_out);
    assert_status(status, endpoint == NULL ? WEFT_ERR_INVALID : WEFT_OK);
    if (endpoint == NULL) {
        assert_non_null(strstr(diag.text, text));
    } else {
        assert_string_equal(endpoint_out, endpoint);
        assert_string_equal(host_out, host);
    }
}

static void addresses_are_read_as_people_write_them(void **state)
{
    (void)state;
    assert_endpoint("10.0.0.7:5800", "tcp://10.0.0.7:5803", "10.0.0.7");
    assert_endpoint("[::1]:0", "tcp://[::1]:0", "::1");
    assert_endpoint("*:5800", "tcp://*:5803", "");
    assert_endpoint("gpu-1.local:1", "tcp://gpu-1.local:4", "gpu-1.local");
    assert_endpoint("5800", NULL, NULL);
    assert_endpoint(":5800", NULL, NULL);
    assert_endpoint("a b:5800", NULL, NULL);
    assert_endpoint("host:", NULL, NULL);
    assert_endpoint("host:70000", NULL, NULL);
    assert_endpoint("host:65535", NULL, NULL);
    assert_endpoint("host:58x", NULL, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(shelves_that_overflow_are_refused),
        cmocka_unit_test(what_a_stranger_writes_is_fit_for_a_log),
        cmocka_unit_test(a_difference_has_a_name),
        cmocka_unit_test(addresses_are_read_as_people_write_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
