/* SPDX-License-Identifier: Apache-2.0 */
/* What people get to read: diag, status and log. */
#include "base/diag.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/utf8.h"
#include "tests/support/check.h"

static void a_diag_is_one_line_and_gives_back_the_status(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    assert_status(weft_diag(&diag, WEFT_ERR_MALFORMED, "%s: %d", "a\nb\x1b[31m\x7f", 3),
                  WEFT_ERR_MALFORMED);
    assert_string_equal(diag.text, "a?b?[31m?: 3");
    assert_status(weft_diag(NULL, WEFT_ERR_INVALID, "nobody listens"), WEFT_ERR_INVALID);
    weft_diag_prefix(&diag, "file %s", "x\xff\xc3\xa9");
    assert_string_equal(diag.text, "file x?\xc3\xa9: a?b?[31m?: 3");
    weft_diag_prefix(NULL, "nobody listens");
}

static void a_long_diag_is_cut_with_dots_and_stays_utf8(void **state)
{
    (void)state;
    static char text[4 * WEFT_DIAG_BYTES];
    for (size_t shift = 0; shift < 4; shift++) {
        memset(text, 'x', shift);
        for (size_t i = shift; i + 3 < sizeof(text); i += 3) {
            memcpy(text + i, "\xe2\x82\xac", 4);
        }
        weft_diag_t diag = {0};
        weft_diag(&diag, WEFT_ERR_INVALID, "%s", text);
        assert_true(strlen(diag.text) < WEFT_DIAG_BYTES);
        assert_string_equal(diag.text + strlen(diag.text) - 3, "...");
        assert_true(weft_utf8_valid(diag.text, strlen(diag.text)));
        weft_diag_prefix(&diag, "%s", text);
        assert_string_equal(diag.text + strlen(diag.text) - 3, "...");
        assert_true(weft_utf8_valid(diag.text, strlen(diag.text)));
    }
}

static void every_status_has_its_own_name_and_text(void **state)
{
    (void)state;
    static const weft_status_t all[] = {
#define STATUS(name, value, text) WEFT_##name,
#include "base/status.def"
#undef STATUS
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(all); i++) {
        for (size_t k = 0; k < i; k++) {
            assert_string_not_equal(weft_strerror(all[i]), weft_strerror(all[k]));
            assert_string_not_equal(weft_status_name(all[i]), weft_status_name(all[k]));
        }
    }
    assert_string_equal(weft_status_name(WEFT_ERR_NO_BLOCKS), "ERR_NO_BLOCKS");
    assert_string_equal(weft_strerror((weft_status_t)-999), "unknown status");
    assert_string_equal(weft_status_name((weft_status_t)-999), "UNKNOWN");
}

static void levels_are_read_by_weft_s_and_vllm_s_names(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        weft_log_level_t level;
    } names[] = {{"ERROR", WEFT_LOG_ERROR},   {"warning", WEFT_LOG_WARN}, {"Warn", WEFT_LOG_WARN},
                 {"info", WEFT_LOG_INFO},     {"DEBUG", WEFT_LOG_DEBUG},  {"trace", WEFT_LOG_TRACE},
                 {"CRITICAL", WEFT_LOG_ERROR}};
    weft_log_level_t level = WEFT_LOG_INFO;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        assert_status(weft_log_level_parse(names[i].text, NULL, &level), WEFT_OK);
        assert_int_equal(level, names[i].level);
    }
    weft_diag_t diag = {0};
    assert_status(weft_log_level_parse("loud", &diag, &level), WEFT_ERR_INVALID);
    assert_string_equal(diag.text, "\"loud\" is none of error, warn, info, debug and trace");
    assert_status(weft_log_level_parse("", &diag, &level), WEFT_ERR_INVALID);
}

/* What stderr gets while fn runs. */
static const char *capture(void (*fn)(void))
{
    static char text[8192];
    int pipe_fds[2];
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    const int saved = dup(STDERR_FILENO);
    dup2(pipe_fds[1], STDERR_FILENO);
    fn();
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(pipe_fds[1]);
    const ssize_t n = read(pipe_fds[0], text, sizeof(text) - 1);
    close(pipe_fds[0]);
    text[n < 0 ? 0 : n] = '\0';
    return text;
}

static void log_at_each_level(void)
{
    weft_log(WEFT_LOG_INFO, "test", "seen a=%d", 1);
    weft_log(WEFT_LOG_DEBUG, "test", "not seen");
}

static void log_a_long_line(void)
{
    weft_log(WEFT_LOG_ERROR, "test", "%5000d", 1);
}

static void a_log_line_is_whole_and_below_the_level_silent(void **state)
{
    (void)state;
    weft_log_set_level(WEFT_LOG_INFO);
    const char *text = capture(log_at_each_level);
    assert_non_null(strstr(text, "Z info  test: seen a=1\n"));
    assert_null(strstr(text, "not seen"));
    assert_int_equal(text[4], '-'); /* 2026-… */
    text = capture(log_a_long_line);
    assert_int_equal(text[strlen(text) - 1], '\n');
    assert_true(strlen(text) <= 2048);
    assert_true(weft_log_enabled(WEFT_LOG_WARN));
    assert_false(weft_log_enabled(WEFT_LOG_TRACE));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_diag_is_one_line_and_gives_back_the_status),
        cmocka_unit_test(a_long_diag_is_cut_with_dots_and_stays_utf8),
        cmocka_unit_test(every_status_has_its_own_name_and_text),
        cmocka_unit_test(levels_are_read_by_weft_s_and_vllm_s_names),
        cmocka_unit_test(a_log_line_is_whole_and_below_the_level_silent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
