/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_hash.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"

static void assert_hash_is(const kv_hash_t *hash, const char *hex)
{
    char text[2 * KV_HASH_BYTES + 1];
    for (size_t i = 0; i < KV_HASH_BYTES; i++) {
        snprintf(text + 2 * i, 3, "%02x", hash->bytes[i]);
    }
    assert_string_equal(text, hex);
}

static void check_case(const json_t *vector)
{
    const uint32_t size = (uint32_t)json_integer_value(json_object_get(vector, "block_size"));
    const json_t *tokens = json_object_get(vector, "tokens");
    const json_t *hashes = json_object_get(vector, "hashes");
    const char *salt = json_string_value(json_object_get(vector, "salt"));
    kv_hasher_t *hasher = NULL;
    assert_int_equal(kv_hasher_create(json_string_value(json_object_get(vector, "seed")), &hasher),
                     WEFT_OK);
    assert_hash_is(kv_hasher_root(hasher), json_string_value(json_object_get(vector, "root")));

    kv_hash_t hash = {0};
    for (size_t block = 0; block < json_array_size(hashes); block++) {
        int32_t ids[64];
        assert_true(size <= 64);
        for (size_t i = 0; i < size; i++) {
            ids[i] = (int32_t)json_integer_value(json_array_get(tokens, block * size + i));
        }
        kv_hasher_block(hasher, block == 0 ? NULL : &hash, ids, size, salt, &hash);
        assert_hash_is(&hash, json_string_value(json_array_get(hashes, block)));
    }
    kv_hasher_destroy(hasher);
}

static void chains_equal_vllms(void **state)
{
    (void)state;
    json_t *cases = json_load_file(WEFT_TEST_VECTORS "/block_hash/sha256_cbor.json", 0, NULL);
    assert_true(json_array_size(cases) >= 18);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        check_case(json_array_get(cases, i));
    }
    json_decref(cases);
}

static void large_blocks_hash_as_the_sum_of_their_tokens(void **state)
{
    (void)state;
    enum { N = 4096 };
    static int32_t tokens[N];
    kv_hasher_t *hasher = NULL;
    assert_int_equal(kv_hasher_create(NULL, &hasher), WEFT_OK);
    for (int i = 0; i < N; i++) {
        tokens[i] = i * 524287;
    }
    kv_hash_t first, again, changed;
    kv_hasher_block(hasher, NULL, tokens, N, NULL, &first);
    kv_hasher_block(hasher, NULL, tokens, N, NULL, &again);
    tokens[N - 1] ^= 1;
    kv_hasher_block(hasher, NULL, tokens, N, NULL, &changed);
    assert_memory_equal(&first, &again, sizeof(first));
    assert_memory_not_equal(&first, &changed, sizeof(first));
    kv_hasher_destroy(hasher);
}

static void a_salt_of_any_length_separates_chains(void **state)
{
    (void)state;
    const int32_t tokens[2] = {1, 2};
    char salt[1025];
    memset(salt, 'x', sizeof(salt) - 1);
    salt[1024] = '\0';
    kv_hasher_t *hasher = NULL;
    assert_int_equal(kv_hasher_create(NULL, &hasher), WEFT_OK);
    kv_hash_t plain, salted, other, later, unsalted_later;
    kv_hasher_block(hasher, NULL, tokens, 2, NULL, &plain);
    kv_hasher_block(hasher, NULL, tokens, 2, salt, &salted);
    salt[1023] = 'y';
    kv_hasher_block(hasher, NULL, tokens, 2, salt, &other);
    assert_memory_not_equal(&plain, &salted, sizeof(plain));
    assert_memory_not_equal(&other, &salted, sizeof(plain));
    kv_hasher_block(hasher, &plain, tokens, 2, salt, &later);
    kv_hasher_block(hasher, &plain, tokens, 2, NULL, &unsalted_later);
    assert_memory_equal(&later, &unsalted_later, sizeof(later));
    kv_hasher_destroy(hasher);
}

static void creation_survives_no_memory(void **state)
{
    (void)state;
    kv_hasher_t *hasher = NULL;
    weft_alloc_fail_nth(1);
    assert_int_equal(kv_hasher_create("0", &hasher), WEFT_ERR_NO_MEMORY);
    weft_alloc_fail_nth(0);
    assert_null(hasher);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chains_equal_vllms),
        cmocka_unit_test(large_blocks_hash_as_the_sum_of_their_tokens),
        cmocka_unit_test(a_salt_of_any_length_separates_chains),
        cmocka_unit_test(creation_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
