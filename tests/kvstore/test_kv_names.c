/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_names.h"

#include <string.h>

#include "tests/support/check.h"

enum { TOKENS = 2 };

static kv_name_t name_of(uint8_t n, const int32_t tokens[TOKENS], kv_extra_t *extra)
{
    kv_name_t name = {.is_first = n == 1, .tokens = tokens, .extra = extra};
    memset(name.hash.bytes, n, sizeof(name.hash.bytes));
    memset(name.parent.bytes, n - 1, sizeof(name.parent.bytes));
    return name;
}

static void a_name_is_kept_whole(void **state)
{
    (void)state;
    kv_names_t *names = NULL;
    kv_extra_t *extra = NULL;
    int32_t tokens[TOKENS] = {5, 6};
    kv_name_t found;
    assert_status(kv_names_create(4, TOKENS, &names), WEFT_OK);
    assert_status(kv_extra_create("salt", NULL, NULL, &extra), WEFT_OK);
    const kv_name_t name = name_of(1, tokens, extra);
    assert_false(kv_names_get(names, 3, &found));
    assert_int_equal(kv_names_put(names, &name, 3), 3);
    kv_extra_release(extra); /* the name has its own reference */
    tokens[0] = tokens[1] = 0;
    assert_int_equal(kv_names_find(names, &name.hash), 3);
    assert_true(kv_names_get(names, 3, &found));
    assert_memory_equal(&found.hash, &name.hash, sizeof(name.hash));
    assert_true(found.is_first);
    assert_int_equal(found.tokens[0], 5);
    assert_int_equal(found.tokens[1], 6);
    assert_string_equal(kv_extra_salt(found.extra), "salt");
    kv_names_remove(names, 3);
    assert_int_equal(kv_names_find(names, &name.hash), KV_BLOCK_NONE);
    assert_int_equal(kv_names_count(names), 0);
    kv_names_destroy(names);
}

static void a_content_has_one_block(void **state)
{
    (void)state;
    kv_names_t *names = NULL;
    kv_extra_t *extra = NULL;
    kv_name_t found;
    const int32_t tokens[TOKENS] = {0};
    const size_t before = weft_alloc_live_bytes();
    assert_status(kv_names_create(4, TOKENS, &names), WEFT_OK);
    assert_status(kv_extra_create(NULL, "lora", "/path", &extra), WEFT_OK);
    const kv_name_t name = name_of(2, tokens, extra);
    assert_int_equal(kv_names_put(names, &name, 0), 0);
    assert_int_equal(kv_names_put(names, &name, 1), 0);
    assert_false(kv_names_get(names, 1, &found));
    assert_int_equal(kv_names_count(names), 1);
    kv_names_clear(names);
    assert_int_equal(kv_names_find(names, &name.hash), KV_BLOCK_NONE);
    assert_int_equal(kv_names_put(names, &name, 1), 1);
    kv_names_destroy(names);
    kv_extra_release(extra);
    assert_int_equal(weft_alloc_live_bytes(), before); /* every reference was given back */
}

static void a_beginning_is_matched_as_far_as_it_goes(void **state)
{
    (void)state;
    kv_names_t *names = NULL;
    kv_hash_t hashes[3];
    kv_block_id_t blocks[3] = {9, 9, 9};
    const int32_t tokens[TOKENS] = {0};
    assert_status(kv_names_create(4, TOKENS, &names), WEFT_OK);
    for (uint8_t i = 0; i < 3; i++) {
        const kv_name_t name = name_of((uint8_t)(i + 1), tokens, NULL);
        hashes[i] = name.hash;
        if (i != 1) {
            kv_names_put(names, &name, i);
        }
    }
    assert_int_equal(kv_names_match(names, hashes, 3, blocks), 1);
    assert_int_equal(blocks[0], 0);
    kv_names_destroy(names);
}

static void creation_survives_no_memory(void **state)
{
    (void)state;
    kv_names_t *names = NULL;
    uint64_t used = 1;
    for (uint64_t n = 1; used >= n; n++) {
        weft_alloc_fail_nth(n);
        const weft_status_t status = kv_names_create(4, TOKENS, &names);
        used = weft_alloc_fail_nth(0);
        assert_status(status, used >= n ? WEFT_ERR_NO_MEMORY : WEFT_OK);
    }
    kv_names_destroy(names);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_name_is_kept_whole),
        cmocka_unit_test(a_content_has_one_block),
        cmocka_unit_test(a_beginning_is_matched_as_far_as_it_goes),
        cmocka_unit_test(creation_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
