/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_index.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "tests/support/random.h"

#define PLAIN_KEY 1 /* a tag is the second half of the digest's first word */

/*
 * With the plain key, few tags and homes, so that probe sequences run into each other and around
 * the table's end.
 */
static kv_hash_t crowded_hash(uint32_t n)
{
    kv_hash_t hash = {0};
    const uint32_t tag = n % 3 == 0 ? UINT32_MAX - n % 2 : (n % 5) << 27 | n % 2;
    const uint64_t word = (uint64_t)tag << 32;
    memcpy(hash.bytes, &word, sizeof(word));
    memcpy(hash.bytes + 8, &n, sizeof(n));
    return hash;
}

enum { BLOCKS = 24, NAMES = 40 };

typedef struct naive {
    kv_block_id_t block_of[NAMES]; /* KV_BLOCK_NONE: unknown */
    bool is_named[BLOCKS];
    uint32_t count;
} naive_t;

static void naive_insert(naive_t *naive, uint32_t name, kv_block_id_t block)
{
    if (naive->block_of[name] == KV_BLOCK_NONE) {
        naive->block_of[name] = block;
        naive->is_named[block] = true;
        naive->count++;
    }
}

static void naive_remove(naive_t *naive, kv_block_id_t block)
{
    for (uint32_t i = 0; i < NAMES; i++) {
        if (naive->block_of[i] == block) {
            naive->block_of[i] = KV_BLOCK_NONE;
            naive->is_named[block] = false;
            naive->count--;
        }
    }
}

static void assert_same(const kv_index_t *index, const naive_t *naive)
{
    assert_int_equal(kv_index_count(index), naive->count);
    for (uint32_t i = 0; i < NAMES; i++) {
        const kv_hash_t hash = crowded_hash(i);
        assert_int_equal(kv_index_find(index, &hash), naive->block_of[i]);
    }
}

static void random_use_equals_a_naive_table(void **state)
{
    (void)state;
    test_random_t random = {test_seed(7)};
    kv_index_t *index = NULL;
    naive_t naive = {0};
    memset(naive.block_of, 0xff, sizeof(naive.block_of));
    assert_int_equal(kv_index_create_keyed(BLOCKS, PLAIN_KEY, &index), WEFT_OK);
    for (int i = 0; i < 20000; i++) {
        const uint32_t name = test_random_below(&random, NAMES);
        const kv_block_id_t block = test_random_below(&random, BLOCKS);
        const kv_hash_t hash = crowded_hash(name);
        if (test_random_below(&random, 2) == 0) {
            kv_index_remove(index, block);
            naive_remove(&naive, block);
        } else if (!naive.is_named[block]) {
            const kv_block_id_t led_to = kv_index_insert(index, &hash, block);
            naive_insert(&naive, name, block);
            assert_int_equal(led_to, naive.block_of[name]);
        }
        assert_same(index, &naive);
    }
    kv_index_clear(index);
    assert_int_equal(kv_index_count(index), 0);
    kv_index_destroy(index);
}

static void first_block_with_a_content_keeps_its_name(void **state)
{
    (void)state;
    kv_index_t *index = NULL;
    const kv_hash_t hash = crowded_hash(1);
    assert_int_equal(kv_index_create(4, &index), WEFT_OK);
    assert_int_equal(kv_index_insert(index, &hash, 2), 2);
    assert_int_equal(kv_index_insert(index, &hash, 3), 2);
    kv_index_remove(index, 3);
    assert_int_equal(kv_index_find(index, &hash), 2);
    kv_index_remove(index, 2);
    assert_int_equal(kv_index_find(index, &hash), KV_BLOCK_NONE);
    kv_index_destroy(index);
}

static void match_stops_at_the_first_unknown_hash(void **state)
{
    (void)state;
    kv_index_t *index = NULL;
    const kv_hash_t hashes[4] = {crowded_hash(0), crowded_hash(1), crowded_hash(2),
                                 crowded_hash(3)};
    kv_block_id_t blocks[4] = {0};
    assert_int_equal(kv_index_create(4, &index), WEFT_OK);
    assert_int_equal(kv_index_match(index, hashes, 4, blocks), 0);
    kv_index_insert(index, &hashes[0], 3);
    kv_index_insert(index, &hashes[1], 1);
    kv_index_insert(index, &hashes[3], 0);
    assert_int_equal(kv_index_match(index, hashes, 4, blocks), 2);
    assert_int_equal(blocks[0], 3);
    assert_int_equal(blocks[1], 1);
    kv_index_destroy(index);
}

static void match_finds_beginnings_of_every_length(void **state)
{
    (void)state;
    enum { CHAIN = 100 };
    kv_index_t *index = NULL;
    kv_hash_t hashes[CHAIN];
    kv_block_id_t blocks[CHAIN];
    test_random_t random = {test_seed(11)};
    assert_int_equal(kv_index_create(CHAIN, &index), WEFT_OK);
    for (uint32_t i = 0; i < CHAIN; i++) {
        for (size_t at = 0; at < sizeof(hashes[i]); at++) {
            hashes[i].bytes[at] = (uint8_t)test_random_below(&random, 256);
        }
        assert_int_equal(kv_index_insert(index, &hashes[i], CHAIN - 1 - i), CHAIN - 1 - i);
    }
    for (uint32_t known = CHAIN; known > 0; known--) {
        for (uint32_t n = 0; n <= CHAIN; n += 9) {
            const uint32_t expected = n < known ? n : known;
            assert_int_equal(kv_index_match(index, hashes, n, blocks), expected);
            for (uint32_t i = 0; i < expected; i++) {
                assert_int_equal(blocks[i], CHAIN - 1 - i);
            }
        }
        kv_index_remove(index, CHAIN - known);
    }
    kv_index_destroy(index);
}

/* As unlike a digest as can be: the key alone scatters them. */
static kv_hash_t counted_hash(uint32_t n)
{
    kv_hash_t hash = {0};
    memcpy(hash.bytes, &n, sizeof(n));
    return hash;
}

static void large_indexes_lose_nothing(void **state)
{
    (void)state;
    enum { MANY = 200000 };
    kv_index_t *index = NULL;
    assert_int_equal(kv_index_create(MANY, &index), WEFT_OK);
    for (uint32_t i = 0; i < MANY; i++) {
        const kv_hash_t hash = counted_hash(i);
        assert_int_equal(kv_index_find(index, &hash), KV_BLOCK_NONE);
        assert_int_equal(kv_index_insert(index, &hash, MANY - 1 - i), MANY - 1 - i);
    }
    for (uint32_t i = 0; i < MANY; i += 2) {
        kv_index_remove(index, MANY - 1 - i);
    }
    assert_int_equal(kv_index_count(index), MANY / 2);
    for (uint32_t i = 0; i < MANY; i++) {
        const kv_hash_t hash = counted_hash(i);
        assert_int_equal(kv_index_find(index, &hash), i % 2 == 0 ? KV_BLOCK_NONE : MANY - 1 - i);
    }
    kv_index_destroy(index);
}

static void creation_survives_no_memory(void **state)
{
    (void)state;
    kv_index_t *index = NULL;
    for (uint64_t n = 1; n <= 3; n++) {
        weft_alloc_fail_nth(n);
        assert_int_equal(kv_index_create(8, &index), WEFT_ERR_NO_MEMORY);
    }
    weft_alloc_fail_nth(0);
    assert_null(index);
    assert_int_equal(kv_index_create(0, &index), WEFT_ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_use_equals_a_naive_table),
        cmocka_unit_test(first_block_with_a_content_keeps_its_name),
        cmocka_unit_test(match_stops_at_the_first_unknown_hash),
        cmocka_unit_test(match_finds_beginnings_of_every_length),
        cmocka_unit_test(large_indexes_lose_nothing),
        cmocka_unit_test(creation_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
