/* SPDX-License-Identifier: Apache-2.0 */
#include "base/alloc.h"

#include <pthread.h>
#include <string.h>

#include "tests/support/check.h"
#include "tests/support/random.h"

static void memory_is_aligned_zeroed_when_asked_and_counted(void **state)
{
    (void)state;
    const size_t before = weft_alloc_live_bytes();
    char *zeroed = weft_zalloc(1000, "test.alloc");
    char *array = weft_calloc(10, 100, "test.alloc");
    void *aligned = weft_alloc_aligned(4096, 10, "test.alloc");
    assert_int_equal((uintptr_t)zeroed % 16, 0);
    assert_int_equal((uintptr_t)aligned % 4096, 0);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(zeroed[i], 0);
        assert_int_equal(array[i], 0);
    }
    assert_int_equal(weft_alloc_live_bytes(), before + 2010);
    weft_free(aligned);
    weft_free(array);
    weft_free(zeroed);
    weft_free(NULL);
    assert_int_equal(weft_alloc_live_bytes(), before);
}

static void sizes_that_overflow_give_null(void **state)
{
    (void)state;
    const volatile size_t huge = SIZE_MAX; /* not for the compiler to judge */
    assert_null(weft_alloc(huge, "test.alloc"));
    assert_null(weft_zalloc(huge - 8, "test.alloc"));
    assert_null(weft_calloc(huge / 2, 3, "test.alloc"));
    assert_null(weft_alloc_aligned(64, huge - 64, "test.alloc"));
    char *kept = weft_strdup("kept", "test.alloc");
    assert_null(weft_realloc(kept, huge, "test.alloc"));
    assert_string_equal(kept, "kept");
    weft_free(kept);
}

static void random_reallocations_keep_the_bytes_and_the_count(void **state)
{
    (void)state;
    test_random_t random = {test_seed(7)};
    const size_t before = weft_alloc_live_bytes();
    char *blocks[32] = {NULL};
    size_t sizes[32] = {0};
    size_t total = 0;
    for (uint32_t i = 0; i < test_rounds(100000); i++) {
        const uint32_t k = test_random_below(&random, 32);
        const size_t size = test_random_below(&random, 3000);
        const size_t kept = size < sizes[k] ? size : sizes[k];
        char *block = weft_realloc(blocks[k], size, "test.realloc");
        assert_non_null(block);
        for (size_t at = 0; at < kept; at++) {
            assert_int_equal(block[at], (char)k);
        }
        memset(block, (int)k, size);
        total += size - sizes[k];
        blocks[k] = block;
        sizes[k] = size;
        assert_int_equal(weft_alloc_live_bytes(), before + total);
    }
    for (int k = 0; k < 32; k++) {
        weft_free(blocks[k]);
    }
    assert_int_equal(weft_alloc_live_bytes(), before);
}

static void only_the_nth_allocation_fails(void **state)
{
    (void)state;
    weft_alloc_fail_nth(3);
    char *a = weft_alloc(1, "test.fail");
    char *b = weft_strndup("bcd", 1, "test.fail");
    char *c = weft_zalloc(1, "test.fail");
    char *d = weft_alloc_aligned(64, 1, "test.fail");
    assert_int_equal(weft_alloc_fail_nth(0), 4);
    assert_non_null(a);
    assert_string_equal(b, "b");
    assert_null(c);
    assert_non_null(d);
    weft_alloc_fail_nth(1);
    assert_null(weft_realloc(a, 10, "test.fail"));
    weft_alloc_fail_nth(0);
    weft_free(a);
    weft_free(b);
    weft_free(d);
}

static void *churn(void *user)
{
    for (int i = 0; i < 2000; i++) {
        weft_free(weft_alloc((size_t)i, user));
    }
    return NULL;
}

static void many_threads_leave_nothing_behind(void **state)
{
    (void)state;
    static char names[4][16];
    pthread_t threads[4];
    const size_t before = weft_alloc_live_bytes();
    for (int i = 0; i < 4; i++) {
        snprintf(names[i], sizeof(names[i]), "test.churn%d", i % 2); /* equal text, other address */
        assert_int_equal(pthread_create(&threads[i], NULL, churn, names[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(weft_alloc_live_bytes(), before);
}

static void the_report_names_who_holds_what_largest_first(void **state)
{
    (void)state;
    char *text = NULL;
    size_t length = 0;
    void *small = weft_alloc(10, "test.small");
    void *large = weft_alloc(100000, "test.large");
    void *more = weft_alloc(100000, "test.large");
    FILE *file = open_memstream(&text, &length);
    weft_alloc_report(file);
    fclose(file);
    const char *first = strstr(text, "200000 bytes        2 blocks  test.large\n");
    const char *second = strstr(text, "10 bytes        1 blocks  test.small\n");
    assert_non_null(first);
    assert_non_null(second);
    assert_true(first < second);
    free(text);
    weft_free(small);
    weft_free(large);
    weft_free(more);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_aligned_zeroed_when_asked_and_counted),
        cmocka_unit_test(sizes_that_overflow_give_null),
        cmocka_unit_test(random_reallocations_keep_the_bytes_and_the_count),
        cmocka_unit_test(only_the_nth_allocation_fails),
        cmocka_unit_test(many_threads_leave_nothing_behind),
        cmocka_unit_test(the_report_names_who_holds_what_largest_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
