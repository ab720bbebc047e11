/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/json_writer.h"
#include "tests/support/random.h"

static void assert_written(weft_buffer_t *buffer, const char *expected)
{
    assert_false(buffer->is_failed);
    assert_int_equal(buffer->length, strlen(expected));
    assert_memory_equal(buffer->data, expected, buffer->length);
}

static void commas_stand_between_values_and_nowhere_else(void **state)
{
    (void)state;
    weft_buffer_t buffer = {0};
    weft_json_t json;

    weft_json_init(&json, &buffer);
    weft_json_begin_object(&json);
    weft_json_key(&json, "a");
    weft_json_begin_array(&json);
    weft_json_i64(&json, -1);
    weft_json_u64(&json, UINT64_MAX);
    weft_json_begin_object(&json);
    weft_json_end_object(&json);
    weft_json_end_array(&json);
    weft_json_put_bool(&json, "b", true);
    weft_json_put_null(&json, "c");
    weft_json_put_string(&json, "d", NULL);
    weft_json_end_object(&json);
    assert_written(&buffer,
                   "{\"a\":[-1,18446744073709551615,{}],\"b\":true,\"c\":null,\"d\":null}");
    weft_buffer_free(&buffer);
}

static void any_bytes_become_a_string_that_a_parser_takes(void **state)
{
    (void)state;
    srand((unsigned)test_seed(1));
    for (int round = 0; round < 2000; round++) {
        char bytes[32];
        size_t length = (size_t)rand() % sizeof(bytes);
        for (size_t i = 0; i < length; i++) {
            bytes[i] = (char)(rand() % 256);
        }
        weft_buffer_t buffer = {0};
        weft_json_t json;
        weft_json_init(&json, &buffer);
        weft_json_text(&json, bytes, length);
        json_t *parsed =
            json_loadb(buffer.data, buffer.length, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        assert_non_null(parsed);
        json_decref(parsed);
        weft_buffer_free(&buffer);
    }
}

static void escapes_are_those_of_json(void **state)
{
    (void)state;
    weft_buffer_t buffer = {0};
    weft_json_t json;

    weft_json_init(&json, &buffer);
    weft_json_text(&json, "\"\\\n\t\x01\x00é\xff", 9);
    assert_written(&buffer, "\"\\\"\\\\\\n\\t\\u0001\\u0000é\xef\xbf\xbd\"");
    weft_buffer_free(&buffer);
}

static void numbers_come_back_exactly(void **state)
{
    (void)state;
    static const double values[] = {0.1, 1e300, -1.0 / 3, 5e-324, 0};
    weft_buffer_t buffer = {0};
    weft_json_t json;

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        weft_buffer_clear(&buffer);
        weft_json_init(&json, &buffer);
        weft_json_f64(&json, values[i]);
        weft_buffer_append(&buffer, "", 1);
        assert_true(strtod(buffer.data, NULL) == values[i]);
    }
    weft_buffer_clear(&buffer);
    weft_json_init(&json, &buffer);
    weft_json_f64(&json, NAN);
    weft_json_f32(&json, -INFINITY);
    weft_json_f32(&json, 0.1f);
    assert_written(&buffer, "null,null,0.1");
    weft_buffer_free(&buffer);
}

static void a_failed_allocation_sticks_until_cleared(void **state)
{
    (void)state;
    weft_buffer_t buffer = {0};

    weft_alloc_fail_nth(1);
    weft_buffer_puts(&buffer, "lost");
    weft_alloc_fail_nth(0);
    assert_true(buffer.is_failed);
    weft_buffer_printf(&buffer, "%d", 1);
    assert_int_equal(buffer.length, 0);
    weft_buffer_clear(&buffer);
    weft_buffer_printf(&buffer, "%d", 12);
    assert_written(&buffer, "12");
    weft_buffer_free(&buffer);
}

static void an_arena_gives_zeroed_aligned_memory(void **state)
{
    (void)state;
    weft_arena_t arena = {0};

    for (size_t size = 0; size < 20000; size = size * 3 + 1) {
        char *memory = weft_arena_alloc(&arena, size);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % _Alignof(max_align_t), 0);
        for (size_t i = 0; i < size; i++) {
            assert_int_equal(memory[i], 0);
        }
        memset(memory, 0xa5, size);
    }
    assert_string_equal(weft_arena_printf(&arena, "%s-%d", "x", 7), "x-7");
    assert_string_equal(weft_arena_strndup(&arena, "abc", 2), "ab");
    assert_null(weft_arena_calloc(&arena, SIZE_MAX / 2, 4));
    weft_arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commas_stand_between_values_and_nowhere_else),
        cmocka_unit_test(any_bytes_become_a_string_that_a_parser_takes),
        cmocka_unit_test(escapes_are_those_of_json),
        cmocka_unit_test(numbers_come_back_exactly),
        cmocka_unit_test(a_failed_allocation_sticks_until_cleared),
        cmocka_unit_test(an_arena_gives_zeroed_aligned_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
