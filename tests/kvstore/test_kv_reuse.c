/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_reuse.h"

#include "tests/support/check.h"
#include "tests/support/random.h"

static kv_hash_t random_hash(test_random_t *random)
{
    kv_hash_t hash;
    for (size_t i = 0; i < sizeof(hash.bytes); i++) {
        hash.bytes[i] = (uint8_t)test_random_u64(random);
    }
    return hash;
}

static void what_was_noted_is_known_and_what_was_not_is_not(void **state)
{
    (void)state;
    enum { NOTED = 20000 };
    kv_reuse_t *reuse = NULL;
    const uint64_t seed = test_seed(3);
    test_random_t random = {seed};
    assert_status(kv_reuse_create(4 * NOTED, &reuse), WEFT_OK);
    for (uint32_t i = 0; i < NOTED; i++) {
        const kv_hash_t hash = random_hash(&random);
        assert_int_equal(kv_reuse_count(reuse, &hash), 0);
        kv_reuse_note(reuse, &hash, 1);
        assert_int_equal(kv_reuse_count(reuse, &hash), 1);
    }
    /* A set of 8 gets 2 of them on average: few sets have lost any. */
    uint32_t known = 0;
    random = (test_random_t){seed};
    for (uint32_t i = 0; i < NOTED; i++) {
        const kv_hash_t hash = random_hash(&random);
        known += kv_reuse_count(reuse, &hash);
    }
    assert_true(known > NOTED * 99 / 100);
    kv_reuse_destroy(reuse);
}

static void the_newest_of_a_full_set_stay(void **state)
{
    (void)state;
    kv_reuse_t *reuse = NULL;
    kv_hash_t hash = {0}; /* all in one set; the tag is most of the first four bytes */
    assert_status(kv_reuse_create(64, &reuse), WEFT_OK);
    for (uint8_t i = 1; i <= 8; i++) {
        hash.bytes[1] = i;
        kv_reuse_note(reuse, &hash, 1);
    }
    hash.bytes[1] = 1; /* noted again: the newest */
    kv_reuse_note(reuse, &hash, 1);
    hash.bytes[1] = 9;
    kv_reuse_note(reuse, &hash, 1);
    for (uint8_t i = 1; i <= 9; i++) {
        hash.bytes[1] = i;
        assert_int_equal(kv_reuse_count(reuse, &hash), i != 2);
    }
    kv_reuse_destroy(reuse);
}

static void counts_only_grow(void **state)
{
    (void)state;
    kv_reuse_t *reuse = NULL;
    const kv_hash_t hash = {{1, 2, 3}};
    assert_status(kv_reuse_create(64, &reuse), WEFT_OK);
    kv_reuse_note(reuse, &hash, 2);
    kv_reuse_note(reuse, &hash, 1);
    assert_int_equal(kv_reuse_count(reuse, &hash), 2);
    kv_reuse_note(reuse, &hash, 3);
    assert_int_equal(kv_reuse_count(reuse, &hash), 3);
    kv_reuse_destroy(reuse);
}

static void creation_survives_no_memory(void **state)
{
    (void)state;
    kv_reuse_t *reuse = NULL;
    for (uint64_t n = 1; n <= 2; n++) {
        weft_alloc_fail_nth(n);
        assert_status(kv_reuse_create(100, &reuse), WEFT_ERR_NO_MEMORY);
    }
    weft_alloc_fail_nth(0);
    kv_reuse_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_noted_is_known_and_what_was_not_is_not),
        cmocka_unit_test(the_newest_of_a_full_set_stay),
        cmocka_unit_test(counts_only_grow),
        cmocka_unit_test(creation_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
