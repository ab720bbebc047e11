/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_commands.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* What was handled, as text. */
typedef struct seen {
    weft_buffer_t text;
    const char *good; /* the only metadata that are some; NULL: all are */
} seen_t;

static bool see_load(void *user, const void *metadata, size_t bytes)
{
    seen_t *seen = user;
    const bool is_good = seen->good == NULL ||
                         (strlen(seen->good) == bytes && memcmp(seen->good, metadata, bytes) == 0);
    if (is_good) {
        weft_buffer_printf(&seen->text, "load %.*s;", (int)bytes, (const char *)metadata);
    }
    return is_good;
}

static void see_send(void *user)
{
    weft_buffer_puts(&((seen_t *)user)->text, "send;");
}

static void see_invalidate(void *user, const void *name, size_t bytes)
{
    weft_buffer_printf(&((seen_t *)user)->text, "gone %.*s;", (int)bytes, (const char *)name);
}

static void assert_seen(const char *frame, const char *good, weft_status_t status,
                        const char *expected)
{
    seen_t seen = {.good = good};
    const xfer_commands_t commands = {
        .load = see_load, .send = see_send, .invalidate = see_invalidate, .user = &seen};

    assert_int_equal(xfer_commands_run(frame, strlen(frame), &commands), status);
    weft_buffer_append(&seen.text, "", 1);
    assert_string_equal(seen.text.data, expected);
    weft_buffer_free(&seen.text);
}

static void xfer_commands_of_a_frame_run_in_order(void **state)
{
    (void)state;
    assert_seen("NIXLCOMM:LOADabcNIXLCOMM:SENDNIXLCOMM:INVLagent", NULL, WEFT_OK,
                "load abc;send;gone agent;");
    assert_seen("", NULL, WEFT_OK, "");
}

static void xfer_commands_in_metadata_are_part_of_them(void **state)
{
    (void)state;
    assert_seen("NIXLCOMM:LOADaNIXLCOMM:SENDbNIXLCOMM:INVLx", "aNIXLCOMM:SENDb", WEFT_OK,
                "load aNIXLCOMM:SENDb;gone x;");
}

static void xfer_commands_that_are_none_end_the_frame(void **state)
{
    (void)state;
    assert_seen("NIXLCOMM:SENDNIXLCOMM:WHAT", NULL, WEFT_ERR_MALFORMED, "send;");
    assert_seen("NIXLCOMM:SE", NULL, WEFT_ERR_MALFORMED, "");
    assert_seen("NIXLCOMM:SENDx", NULL, WEFT_ERR_MALFORMED, "");
    assert_seen("NIXLCOMM:INVL", NULL, WEFT_ERR_MALFORMED, "");
    assert_seen("xNIXLCOMM:SEND", NULL, WEFT_ERR_MALFORMED, "");
    assert_seen("NIXLCOMM:LOADabc", "nothing", WEFT_ERR_MALFORMED, "");
}

static void xfer_commands_frame_waits_for_its_last_byte(void **state)
{
    weft_buffer_t out = {0};
    size_t bytes = 0;
    (void)state;

    xfer_commands_encode("INVL", "name", 4, &out);
    assert_int_equal(out.length, 8 + 9 + 4 + 4);
    for (size_t n = 0; n < out.length; n++) {
        assert_int_equal(xfer_commands_frame(out.data, n, &bytes), WEFT_PENDING);
    }
    assert_int_equal(xfer_commands_frame(out.data, out.length, &bytes), WEFT_OK);
    assert_int_equal(bytes, 17);
    assert_memory_equal(out.data + 8, "NIXLCOMM:INVLname", 17);
    weft_buffer_free(&out);
}

static void xfer_commands_frame_of_any_size_is_not_waited_for(void **state)
{
    const unsigned char huge[8] = {0, 0, 0, 0, 0, 0, 0, 0x40};
    size_t bytes;
    (void)state;
    assert_int_equal(xfer_commands_frame(huge, sizeof(huge), &bytes), WEFT_ERR_TOO_LARGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(xfer_commands_of_a_frame_run_in_order),
        cmocka_unit_test(xfer_commands_in_metadata_are_part_of_them),
        cmocka_unit_test(xfer_commands_that_are_none_end_the_frame),
        cmocka_unit_test(xfer_commands_frame_waits_for_its_last_byte),
        cmocka_unit_test(xfer_commands_frame_of_any_size_is_not_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
