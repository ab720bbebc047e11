/* SPDX-License-Identifier: Apache-2.0 */
#include "base/crc32c.h"

#include <string.h>

#include "base/clock.h"
#include "base/crc32c_priv.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

/* RFC 3720, B.4, and the usual check value. */
static void sums_are_those_of_rfc_3720(void **state)
{
    (void)state;
    uint8_t bytes[32];
    memset(bytes, 0, sizeof(bytes));
    assert_int_equal(weft_crc32c(0, bytes, sizeof(bytes)), 0x8a9136aa);
    memset(bytes, 0xff, sizeof(bytes));
    assert_int_equal(weft_crc32c(0, bytes, sizeof(bytes)), 0x62a8ab43);
    for (uint8_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = i;
    }
    assert_int_equal(weft_crc32c(0, bytes, sizeof(bytes)), 0x46dd794e);
    for (uint8_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t)(31 - i);
    }
    assert_int_equal(weft_crc32c(0, bytes, sizeof(bytes)), 0x113fdb5c);
    assert_int_equal(weft_crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(weft_crc32c(0, NULL, 0), 0);
}

static void every_way_agrees_with_the_table_at_every_length_and_alignment(void **state)
{
    (void)state;
    static uint8_t bytes[100000];
    test_random_t random = {test_seed(weft_clock_ns())};
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t)test_random_u64(&random);
    }
    for (const weft_crc32c_way_t *way = weft_crc32c_ways(); way->name != NULL; way++) {
        for (size_t n = 0; n + 64 < sizeof(bytes); n += n < 1100 ? 1 : 97 + n / 64) {
            const uint8_t *data = bytes + n % 64;
            const uint32_t begin = (uint32_t)test_random_u64(&random);
            assert_int_equal(way->update(begin, data, n), weft_crc32c_table(begin, data, n));
        }
    }
}

static void a_sum_goes_on_where_another_ended(void **state)
{
    (void)state;
    static uint8_t bytes[20000];
    test_random_t random = {test_seed(weft_clock_ns())};
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t)test_random_u64(&random);
    }
    const uint32_t whole = weft_crc32c(0, bytes, sizeof(bytes));
    for (int round = 0; round < 200; round++) {
        uint32_t sum = 0;
        for (size_t at = 0; at < sizeof(bytes);) {
            const size_t left = sizeof(bytes) - at;
            const size_t n = 1 + test_random_below(&random, (uint32_t)left);
            sum = weft_crc32c(sum, bytes + at, n);
            at += n;
        }
        assert_int_equal(sum, whole);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_those_of_rfc_3720),
        cmocka_unit_test(every_way_agrees_with_the_table_at_every_length_and_alignment),
        cmocka_unit_test(a_sum_goes_on_where_another_ended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
