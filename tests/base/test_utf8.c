/* SPDX-License-Identifier: Apache-2.0 */
#include "base/utf8.h"

#include <stdbool.h>
#include <string.h>

#include "tests/support/check.h"

/* The definition itself: 1..4 bytes that decode to a scalar value in its shortest form. */
static size_t plain_length(const unsigned char *s, size_t available)
{
    const uint32_t lowest[] = {0, 0, 0x80, 0x800, 0x10000};
    const size_t n = available == 0        ? 0
                     : s[0] < 0x80         ? 1
                     : (s[0] >> 5) == 0x6  ? 2
                     : (s[0] >> 4) == 0xe  ? 3
                     : (s[0] >> 3) == 0x1e ? 4
                                           : 0;
    if (n == 0 || n > available) {
        return 0;
    }
    uint32_t value = n == 1 ? s[0] : s[0] & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return 0;
        }
        value = value << 6 | (s[i] & 0x3f);
    }
    const bool is_surrogate = value >= 0xd800 && value <= 0xdfff;
    return value < lowest[n] || value > 0x10ffff || is_surrogate ? 0 : n;
}

static void every_start_of_four_bytes_agrees_with_the_definition(void **state)
{
    (void)state;
    /* Third and fourth bytes only at the borders of what they may be. */
    static const unsigned char borders[] = {0x00, 0x7f, 0x80, 0x8f, 0x90,
                                            0x9f, 0xa0, 0xbf, 0xc0, 0xff};
    for (uint32_t pair = 0; pair < 0x10000; pair++) {
        for (size_t i = 0; i < 10; i++) {
            for (size_t k = 0; k < 10; k++) {
                const unsigned char s[] = {(unsigned char)(pair >> 8), (unsigned char)pair,
                                           borders[i], borders[k]};
                for (size_t available = 0; available <= 4; available++) {
                    if (weft_utf8_length((const char *)s, available) !=
                        plain_length(s, available)) {
                        fail_msg("%02x %02x %02x %02x of %zu", s[0], s[1], s[2], s[3], available);
                    }
                }
            }
        }
    }
}

static void a_text_is_valid_when_every_character_is(void **state)
{
    (void)state;
    assert_true(weft_utf8_valid("", 0));
    assert_true(weft_utf8_valid("a\0b", 3));
    assert_true(weft_utf8_valid("\xf0\x9f\x98\x80\xc3\xa9", 6));
    assert_false(weft_utf8_valid("\xf0\x9f\x98\x80\xc3", 5));
    assert_false(weft_utf8_valid("abc\xff", 4));
}

static void pieces_count_together_as_the_whole_does(void **state)
{
    (void)state;
    static const char text[] = "a\xc3\xa9\xf0\x9f\x98\x80z";
    const size_t length = sizeof(text) - 1;
    for (size_t cut = 0; cut <= length; cut++) {
        assert_int_equal(weft_utf8_count(text, cut) + weft_utf8_count(text + cut, length - cut), 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_start_of_four_bytes_agrees_with_the_definition),
        cmocka_unit_test(a_text_is_valid_when_every_character_is),
        cmocka_unit_test(pieces_count_together_as_the_whole_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
