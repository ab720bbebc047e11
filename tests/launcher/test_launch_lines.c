/* SPDX-License-Identifier: Apache-2.0 */
/* Streams cut into lines (launch_lines) and brought together in one file (launch_sink). */
#include "launcher/job/launch_lines.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "launcher/job/launch_sink.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

#define MAX_TEXT ((size_t)1 << 20)

/* Pieces put together again. */
typedef struct gathered {
    weft_buffer_t all;
    uint32_t n_pieces;
    bool is_within;
} gathered_t;

static void gather(void *user, const launch_piece_t *piece)
{
    gathered_t *gathered = user;
    assert_true(piece->length > 0);
    assert_int_equal(piece->begins_line, !gathered->is_within);
    assert_int_equal(piece->ends_line, piece->bytes[piece->length - 1] == '\n');
    const char *newline = memchr(piece->bytes, '\n', piece->length);
    assert_true(newline == NULL || newline == piece->bytes + piece->length - 1);
    weft_buffer_append(&gathered->all, piece->bytes, piece->length);
    gathered->is_within = !piece->ends_line;
    gathered->n_pieces++;
}

/* Bytes of every kind; newlines are common, long lines are not rare. */
static size_t make_text(test_random_t *random, char *text)
{
    const size_t length = test_random_below(random, 200000);
    const uint32_t rarity = test_random_below(random, 3) == 0 ? 100000 : 40;
    for (size_t i = 0; i < length; i++) {
        text[i] =
            test_random_below(random, rarity) == 0 ? '\n' : (char)test_random_below(random, 256);
    }
    return length;
}

static void pieces_are_the_stream_whatever_the_chunks(void **state)
{
    static char text[MAX_TEXT];
    test_random_t random = {test_seed(3)};
    (void)state;
    for (int round = 0; round < 20; round++) {
        const size_t length = make_text(&random, text);
        launch_lines_t lines = {0};
        gathered_t gathered = {0};
        for (size_t at = 0; at < length;) {
            size_t n = 1 + test_random_below(&random, 70000);
            n = n < length - at ? n : length - at;
            assert_status(launch_lines_take(&lines, text + at, n, gather, &gathered), WEFT_OK);
            at += n;
        }
        launch_lines_end(&lines, gather, &gathered);
        assert_int_equal(gathered.all.length, length);
        assert_true(length == 0 || memcmp(gathered.all.data, text, length) == 0);
        weft_buffer_free(&gathered.all);
        launch_lines_fini(&lines);
    }
}

static void a_line_waits_for_its_newline_up_to_a_bound(void **state)
{
    static char text[LAUNCH_LINE_BYTES + 1];
    launch_lines_t lines = {0};
    gathered_t gathered = {0};
    (void)state;
    memset(text, 'x', sizeof(text));
    assert_status(launch_lines_take(&lines, text, LAUNCH_LINE_BYTES, gather, &gathered), WEFT_OK);
    assert_int_equal(gathered.n_pieces, 0);
    assert_status(launch_lines_take(&lines, text, 1, gather, &gathered), WEFT_OK);
    assert_int_equal(gathered.n_pieces, 1);
    assert_status(launch_lines_take(&lines, "y", 1, gather, &gathered), WEFT_OK);
    assert_int_equal(gathered.n_pieces, 2);
    assert_status(launch_lines_take(&lines, "\n", 1, gather, &gathered), WEFT_OK);
    assert_int_equal(gathered.n_pieces, 3);
    assert_false(gathered.is_within);
    weft_buffer_free(&gathered.all);
    launch_lines_fini(&lines);
}

static void the_last_line_may_lack_its_newline(void **state)
{
    launch_lines_t lines = {0};
    gathered_t gathered = {0};
    (void)state;
    assert_status(launch_lines_take(&lines, "a\nb", 3, gather, &gathered), WEFT_OK);
    assert_int_equal(gathered.all.length, 2);
    launch_lines_end(&lines, gather, &gathered);
    assert_memory_equal(gathered.all.data, "a\nb", 3);
    launch_lines_end(&lines, gather, &gathered);
    assert_int_equal(gathered.all.length, 3);
    weft_buffer_free(&gathered.all);
    launch_lines_fini(&lines);
}

/* ---- several into one sink ------------------------------------------------------------------- */

typedef struct rig {
    weft_loop_t *loop;
    launch_sink_t *sink;
    int fds[2]; /* a pipe */
    int error;  /* why it broke; 0: it did not */
} rig_t;

static void on_written(void *user)
{
    const rig_t *rig = user;
    if (launch_sink_pending(rig->sink) == 0) {
        weft_loop_stop(rig->loop);
    }
}

static void on_broken(void *user, int error)
{
    rig_t *rig = user;
    rig->error = error;
    weft_loop_stop(rig->loop);
}

static void open_rig(rig_t *rig)
{
    *rig = (rig_t){0};
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(pipe(rig->fds), 0);
    assert_status(weft_loop_create(&rig->loop), WEFT_OK);
    assert_status(launch_sink_create(rig->loop, rig->fds[1],
                                     &(launch_sink_events_t){on_written, on_broken, rig},
                                     &rig->sink),
                  WEFT_OK);
}

static void close_rig(rig_t *rig)
{
    launch_sink_destroy(rig->sink);
    weft_loop_destroy(rig->loop);
    close(rig->fds[0]);
    close(rig->fds[1]);
}

static void put(rig_t *rig, uint64_t owner, const char *tag, const char *text)
{
    const size_t length = strlen(text);
    const launch_piece_t piece = {text, length, true, text[length - 1] == '\n'};
    launch_sink_put(rig->sink, owner, tag, &piece);
}

static void assert_written(rig_t *rig, const char *expected)
{
    char text[256] = "";
    assert_status(weft_loop_run(rig->loop), WEFT_OK);
    assert_true(read(rig->fds[0], text, sizeof(text) - 1) > 0);
    assert_string_equal(text, expected);
}

static void an_unfinished_line_is_ended_before_anothers(void **state)
{
    rig_t rig;
    (void)state;
    open_rig(&rig);
    put(&rig, 1, "[1] ", "whole\n");
    put(&rig, 1, "[1] ", "part");
    put(&rig, 2, "[2] ", "other\n");
    assert_written(&rig, "[1] whole\n[1] part\n[2] other\n");
    const launch_piece_t rest = {"rest\n", 5, false, true};
    put(&rig, 1, "[1] ", "part ");
    launch_sink_put(rig.sink, 1, "[1] ", &rest);
    launch_sink_end_line(rig.sink);
    assert_written(&rig, "[1] part rest\n");
    close_rig(&rig);
}

static void a_full_pipe_keeps_the_rest_and_blocks_nobody(void **state)
{
    static char line[MAX_TEXT];
    static char got[MAX_TEXT];
    rig_t rig;
    (void)state;
    open_rig(&rig);
    for (size_t i = 0; i < sizeof(line); i++) {
        line[i] = (char)('a' + i % 23);
    }
    launch_sink_put_raw(rig.sink, line, sizeof(line)); /* far more than a pipe holds */
    assert_int_equal(launch_sink_pending(rig.sink), sizeof(line));
    size_t n = 0;
    fcntl(rig.fds[0], F_SETFL, O_NONBLOCK);
    weft_loop_timer_t *timer;
    assert_status(weft_loop_timer_create(rig.loop, (weft_loop_fn)weft_loop_stop, rig.loop, &timer),
                  WEFT_OK);
    while (n < sizeof(line)) {
        weft_loop_timer_set(timer, 0);
        assert_status(weft_loop_run(rig.loop), WEFT_OK);
        const ssize_t some = read(rig.fds[0], got + n, 5000);
        n += some > 0 ? (size_t)some : 0;
    }
    assert_int_equal(launch_sink_pending(rig.sink), 0);
    assert_memory_equal(got, line, sizeof(line));
    close_rig(&rig);
}

static void a_reader_that_went_is_told_once_and_the_rest_dropped(void **state)
{
    rig_t rig;
    (void)state;
    open_rig(&rig);
    close(rig.fds[0]);
    put(&rig, 1, "", "nobody reads this\n");
    assert_status(weft_loop_run(rig.loop), WEFT_OK);
    assert_int_equal(rig.error, EPIPE);
    put(&rig, 1, "", "nor this\n");
    assert_int_equal(launch_sink_pending(rig.sink), 0);
    rig.fds[0] = open("/dev/null", O_RDONLY);
    close_rig(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_are_the_stream_whatever_the_chunks),
        cmocka_unit_test(a_line_waits_for_its_newline_up_to_a_bound),
        cmocka_unit_test(the_last_line_may_lack_its_newline),
        cmocka_unit_test(an_unfinished_line_is_ended_before_anothers),
        cmocka_unit_test(a_full_pipe_keeps_the_rest_and_blocks_nobody),
        cmocka_unit_test(a_reader_that_went_is_told_once_and_the_rest_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
