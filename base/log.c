/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};
static atomic_int current_level = WEFT_LOG_INFO;

void weft_log_set_level(weft_log_level_t level)
{
    atomic_store_explicit(&current_level, (int)level, memory_order_relaxed);
}

bool weft_log_enabled(weft_log_level_t level)
{
    return (int)level <= atomic_load_explicit(&current_level, memory_order_relaxed);
}

weft_status_t weft_log_level_parse(const char *text, weft_diag_t *diag, weft_log_level_t *level_out)
{
    for (int i = 0; i < (int)WEFT_ARRAY_LEN(level_names); i++) {
        if (strcasecmp(text, level_names[i]) == 0) {
            *level_out = (weft_log_level_t)i;
            return WEFT_OK;
        }
    }
    if (strcasecmp(text, "warning") == 0) {
        *level_out = WEFT_LOG_WARN;
        return WEFT_OK;
    }
    if (strcasecmp(text, "critical") == 0) {
        *level_out = WEFT_LOG_ERROR;
        return WEFT_OK;
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "\"%s\" is none of error, warn, info, debug and trace",
                     text);
}

/* Lines hold names that come from outside: none begins a line of its own. */
static void hide_control(char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] < ' ' || text[i] == 0x7f) {
            text[i] = '?';
        }
    }
}

void weft_log(weft_log_level_t level, const char *module, const char *format, ...)
{
    if (!weft_log_enabled(level)) {
        return;
    }
    char line[2048];
    const uint64_t now = weft_wallclock_ns();
    const time_t seconds = (time_t)(now / WEFT_NS_PER_SECOND);
    struct tm utc;
    gmtime_r(&seconds, &utc);
    size_t n = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &utc);
    n += (size_t)snprintf(line + n, sizeof(line) - n,
                          ".%03uZ %-5s %s: ", (unsigned)(now / WEFT_NS_PER_MS % 1000),
                          level_names[level], module);

    va_list args;
    va_start(args, format);
    const int body = vsnprintf(line + n, sizeof(line) - n, format, args);
    va_end(args);
    n += body > 0 ? (size_t)body : 0;
    if (n > sizeof(line) - 1) {
        n = sizeof(line) - 1;
    }
    hide_control(line, n);
    line[n++] = '\n';
    /* One write, so that lines of several threads never mix. A lost log line is not an error. */
    if (write(STDERR_FILENO, line, n) < 0) {
        return;
    }
}

void weft_log_listening(const char *module, const char *url, const char *more, bool is_chosen)
{
    if (weft_log_enabled(WEFT_LOG_INFO)) {
        weft_log(WEFT_LOG_INFO, module, "listening on %s %s", url, more);
    } else if (is_chosen) {
        fprintf(stderr, "listening on %s\n", url);
    }
}
