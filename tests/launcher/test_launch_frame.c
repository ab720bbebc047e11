/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_frame.h"

#include <string.h>

#include "base/compiler.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

static weft_buffer_t out;
static weft_diag_t diag;

static int forget(void **state)
{
    (void)state;
    weft_buffer_free(&out);
    diag = (weft_diag_t){0};
    return 0;
}

/* The one frame in out. */
static launch_frame_t decode_one(void)
{
    launch_frame_t frame;
    size_t used;
    assert_status(launch_frame_decode(out.data, out.length, &diag, &frame, &used), WEFT_OK);
    assert_int_equal(used, out.length);
    return frame;
}

static void the_bytes_of_a_frame_are_fixed(void **state)
{
    static const uint8_t expected[] = {'W', 'L', 1, 71, 2, 1, 0, 0, 8, 0,
                                       0,   0,   7, 0,  0, 0, 9, 0, 0, 0};
    (void)state;
    launch_exit_append(&out, 0x102, (launch_exit_t){.code = 7, .signal = 9});
    assert_int_equal(out.length, sizeof(expected));
    assert_memory_equal(out.data, expected, sizeof(expected));
}

static void every_beginning_of_a_frame_waits_for_more(void **state)
{
    launch_frame_t frame;
    size_t used;
    (void)state;
    launch_frame_append(&out, LAUNCH_FRAME_OUT, 3, "some bytes", 10);
    for (size_t n = 0; n < out.length; n++) {
        assert_status(launch_frame_decode(out.data, n, &diag, &frame, &used), WEFT_PENDING);
    }
    frame = decode_one();
    assert_int_equal(frame.kind, LAUNCH_FRAME_OUT);
    assert_int_equal(frame.rank, 3);
    assert_int_equal(frame.length, 10);
    assert_memory_equal(frame.payload, "some bytes", 10);
}

static void a_start_comes_back_as_it_was(void **state)
{
    char *argv[] = {"program", "", "two words", NULL};
    char *environment[] = {"A=", "B=x=y", NULL};
    const launch_start_t start = {.bind_to = 2,
                                  .map_by = 3,
                                  .has_input = 1,
                                  .local_rank = 5,
                                  .folder = "/tmp",
                                  .argv = argv,
                                  .environment = environment,
                                  .argc = 3,
                                  .n_environment = 2};
    launch_start_t got;
    (void)state;
    assert_status(launch_start_append(&out, 9, &start), WEFT_OK);
    launch_frame_t frame = decode_one();
    assert_status(launch_start_decode(&frame, &got), WEFT_OK);
    assert_int_equal(got.bind_to, 2);
    assert_int_equal(got.map_by, 3);
    assert_int_equal(got.has_input, 1);
    assert_int_equal(got.local_rank, 5);
    assert_string_equal(got.folder, "/tmp");
    for (int i = 0; i < 3; i++) {
        assert_string_equal(got.argv[i], argv[i]);
    }
    assert_null(got.argv[3]);
    assert_string_equal(got.environment[1], "B=x=y");
    assert_null(got.environment[2]);
    launch_start_fini(&got);

    frame.length--; /* the last text has no end */
    assert_status(launch_start_decode(&frame, &got), WEFT_ERR_MALFORMED);
    uint8_t *flags = (uint8_t *)out.data + LAUNCH_FRAME_HEADER;
    frame.length++;
    flags[8] = 0xff; /* more arguments than there are texts */
    assert_status(launch_start_decode(&frame, &got), WEFT_ERR_MALFORMED);
    flags[8] = 0;
    assert_status(launch_start_decode(&frame, &got), WEFT_ERR_MALFORMED);
}

static void a_variable_without_a_name_is_refused(void **state)
{
    char *argv[] = {"program", NULL};
    char *environment[] = {"=x", NULL};
    const launch_start_t start = {
        .folder = "", .argv = argv, .environment = environment, .argc = 1, .n_environment = 1};
    launch_start_t got;
    (void)state;
    assert_status(launch_start_append(&out, 0, &start), WEFT_OK);
    const launch_frame_t frame = decode_one();
    assert_status(launch_start_decode(&frame, &got), WEFT_ERR_MALFORMED);
}

static void arguments_larger_than_a_frame_are_refused(void **state)
{
    char *huge = weft_alloc(LAUNCH_FRAME_MAX_BYTES, "test.huge");
    (void)state;
    assert_non_null(huge);
    memset(huge, 'x', LAUNCH_FRAME_MAX_BYTES);
    huge[LAUNCH_FRAME_MAX_BYTES - 1] = '\0';
    char *argv[] = {huge, NULL};
    const launch_start_t start = {.folder = "", .argv = argv, .argc = 1};
    assert_status(launch_start_append(&out, 0, &start), WEFT_ERR_TOO_LARGE);
    assert_int_equal(out.length, 0);
    weft_free(huge);
}

static void ready_comes_back_as_it_was(void **state)
{
    launch_ready_t got;
    (void)state;
    launch_ready_append(&out, &(launch_ready_t){77, 29401, "1.2.3", "10.0.0.2", "10.0.0.1"});
    launch_frame_t frame = decode_one();
    assert_status(launch_ready_decode(&frame, &got), WEFT_OK);
    assert_int_equal(got.pid, 77);
    assert_int_equal(got.port, 29401);
    assert_string_equal(got.version, "1.2.3");
    assert_string_equal(got.own, "10.0.0.2");
    assert_string_equal(got.launcher, "10.0.0.1");
    for (uint32_t n = 0; n < frame.length; n++) {
        launch_frame_t part = frame;
        part.length = n;
        assert_status(launch_ready_decode(&part, &got), WEFT_ERR_MALFORMED);
    }
}

static void what_is_no_frame_is_said_as_it_reads(void **state)
{
    static const char greeting[] = "Welcome to node-7\r\nlast login: never\n";
    launch_frame_t frame;
    size_t used;
    (void)state;
    assert_status(launch_frame_decode(greeting, 1, &diag, &frame, &used), WEFT_PENDING);
    assert_status(launch_frame_decode(greeting, sizeof(greeting), &diag, &frame, &used),
                  WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, "said \"Welcome to node-7?\""));
    assert_status(launch_frame_decode("WL\x02", 3, &diag, &frame, &used), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "version 2"));
    assert_status(launch_frame_decode("WL\x01\x00", 4, &diag, &frame, &used), WEFT_ERR_MALFORMED);
    assert_status(
        launch_frame_decode("WL\x01\x43\0\0\0\0\xff\xff\xff\xff", 12, &diag, &frame, &used),
        WEFT_ERR_MALFORMED);
}

static void exits_and_numbers_out_of_range_are_refused(void **state)
{
    launch_exit_t end;
    uint32_t value;
    (void)state;
    launch_exit_append(&out, 0, (launch_exit_t){.code = 256});
    launch_frame_t frame = decode_one();
    assert_status(launch_exit_decode(&frame, &end), WEFT_ERR_MALFORMED);
    frame.length = 4;
    assert_status(launch_exit_decode(&frame, &end), WEFT_ERR_MALFORMED);
    assert_status(launch_frame_u32(&frame, &value), WEFT_OK);
    assert_int_equal(value, 256);
    frame.length = 5;
    assert_status(launch_frame_u32(&frame, &value), WEFT_ERR_MALFORMED);
    frame.payload = "ab\0";
    frame.length = 3;
    assert_string_equal(launch_frame_text(&frame), "ab");
    frame.length = 2;
    assert_null(launch_frame_text(&frame));
}

/* Bytes turned at random: a status each time, never more taken than there is. */
static void damaged_frames_are_refused_or_read_within_their_bytes(void **state)
{
    test_random_t random = {test_seed(11)};
    char *argv[] = {"program", "word", NULL};
    char *environment[] = {"A=b", NULL};
    const launch_start_t start = {
        .folder = "/", .argv = argv, .environment = environment, .argc = 2, .n_environment = 1};
    (void)state;
    for (int round = 0; round < 2000; round++) {
        weft_buffer_clear(&out);
        assert_status(launch_start_append(&out, 1, &start), WEFT_OK);
        for (uint32_t n = test_random_between(&random, 1, 3); n > 0; n--) {
            out.data[test_random_below(&random, (uint32_t)out.length)] =
                (char)test_random_below(&random, 256);
        }
        const size_t length = out.length - test_random_below(&random, 4);
        char *exact =
            weft_alloc(length, "test.exact"); /* a sanitizer sees what is read behind it */
        memcpy(exact, out.data, length);
        launch_frame_t frame;
        size_t used = 0;
        if (launch_frame_decode(exact, length, &diag, &frame, &used) == WEFT_OK) {
            launch_start_t got;
            assert_true(used <= length);
            if (launch_start_decode(&frame, &got) == WEFT_OK) {
                assert_true(got.argc > 0 && got.argv[got.argc] == NULL);
                launch_start_fini(&got);
            }
        }
        weft_free(exact);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(the_bytes_of_a_frame_are_fixed, forget),
        cmocka_unit_test_teardown(every_beginning_of_a_frame_waits_for_more, forget),
        cmocka_unit_test_teardown(a_start_comes_back_as_it_was, forget),
        cmocka_unit_test_teardown(a_variable_without_a_name_is_refused, forget),
        cmocka_unit_test_teardown(arguments_larger_than_a_frame_are_refused, forget),
        cmocka_unit_test_teardown(ready_comes_back_as_it_was, forget),
        cmocka_unit_test_teardown(what_is_no_frame_is_said_as_it_reads, forget),
        cmocka_unit_test_teardown(exits_and_numbers_out_of_range_are_refused, forget),
        cmocka_unit_test_teardown(damaged_frames_are_refused_or_read_within_their_bytes, forget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
