/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buffer.h"

#include <string.h>

#include "tests/support/check.h"
#include "tests/support/random.h"

static void appends_follow_each_other(void **state)
{
    (void)state;
    weft_buffer_t buffer = {0};
    size_t length = 7;
    weft_buffer_append(&buffer, NULL, 0);
    weft_buffer_puts(&buffer, "a");
    weft_buffer_printf(&buffer, "%d-%s", 12, "b");
    char *text = weft_buffer_take(&buffer, &length);
    assert_string_equal(text, "a12-b");
    assert_int_equal(length, 5);
    weft_free(text);
    text = weft_buffer_take(&buffer, NULL);
    assert_string_equal(text, "");
    weft_free(text);
}

static void random_appends_and_drops_agree_with_a_plain_array(void **state)
{
    (void)state;
    static char model[1 << 20];
    test_random_t random = {test_seed(11)};
    const size_t before = weft_alloc_live_bytes();
    weft_buffer_t buffer = {0};
    size_t length = 0;
    for (uint32_t i = 0; i < test_rounds(20000); i++) {
        if (test_random_below(&random, 3) == 0 || length > sizeof(model) - 4000) {
            const size_t n = test_random_below(&random, (uint32_t)length + 1);
            memmove(model, model + n, length - n);
            length -= n;
            weft_buffer_drop_front(&buffer, n);
        } else {
            const size_t n = test_random_below(&random, 4000);
            memset(model + length, (int)i, n);
            weft_buffer_append(&buffer, model + length, n);
            length += n;
        }
        assert_int_equal(buffer.length, length);
        assert_true(length == 0 || memcmp(buffer.data, model, length) == 0);
    }
    weft_buffer_drop_front(&buffer, buffer.length);
    assert_true(buffer.capacity < 1024); /* what it no longer needs went back */
    weft_buffer_free(&buffer);
    assert_int_equal(weft_alloc_live_bytes(), before);
}

static void a_failed_append_sticks_until_cleared(void **state)
{
    (void)state;
    weft_buffer_t buffer = {0};
    weft_alloc_fail_nth(1);
    weft_buffer_puts(&buffer, "lost");
    weft_alloc_fail_nth(0);
    weft_buffer_puts(&buffer, "also lost");
    assert_true(buffer.is_failed);
    assert_null(weft_buffer_take(&buffer, NULL));
    weft_buffer_puts(&buffer, "kept");
    assert_false(buffer.is_failed);
    weft_buffer_free(&buffer);
    weft_buffer_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(appends_follow_each_other),
        cmocka_unit_test(random_appends_and_drops_agree_with_a_plain_array),
        cmocka_unit_test(a_failed_append_sticks_until_cleared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
