/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "services/api/api_keys.h"
#include "services/api/api_trace.h"

static bool continues(const char *header)
{
    static const uint8_t none[API_SPAN_ID_BYTES];
    static const uint8_t no_trace[API_TRACE_ID_BYTES];
    api_trace_t trace;

    api_trace_init(&trace, header);
    assert_memory_not_equal(trace.span_id, none, sizeof(none));
    assert_memory_not_equal(trace.trace_id, no_trace, sizeof(no_trace));
    return memcmp(trace.parent_id, none, sizeof(none)) != 0;
}

static void a_valid_traceparent_is_continued(void **state)
{
    (void)state;
    api_trace_t trace;

    api_trace_init(&trace, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_int_equal(trace.trace_id[0], 0x0a);
    assert_int_equal(trace.trace_id[15], 0x9c);
    assert_int_equal(trace.parent_id[7], 0x31);
    assert_true(trace.is_sampled);
    api_trace_init(&trace, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
    assert_false(trace.is_sampled);
    assert_true(continues("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"));
}

static void anything_else_starts_a_trace(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "",
        "00",
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
    };

    assert_false(continues(NULL));
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_false(continues(wrong[i]));
    }
}

static void any_of_several_keys_opens(void **state)
{
    (void)state;
    const char *items[] = {"first", "second"};
    const weft_list_t keys = {items, 2};
    const weft_list_t none = {NULL, 0};

    assert_true(api_keys_accept(&none, NULL));
    assert_true(api_keys_accept(&keys, "Bearer first"));
    assert_true(api_keys_accept(&keys, "bearer second"));
    assert_false(api_keys_accept(&keys, "Bearer third"));
    assert_false(api_keys_accept(&keys, "Bearer "));
    assert_false(api_keys_accept(&keys, "second"));
    assert_false(api_keys_accept(&keys, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_valid_traceparent_is_continued),
        cmocka_unit_test(anything_else_starts_a_trace),
        cmocka_unit_test(any_of_several_keys_opens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
