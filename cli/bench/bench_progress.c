/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_progress.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"

void bench_progress_show(bench_progress_t *progress, const char *format, ...)
{
    const bool is_terminal = isatty(STDERR_FILENO) != 0;
    const uint64_t now = weft_clock_ns();
    const uint64_t pause = is_terminal ? WEFT_NS_PER_SECOND / 4 : 15 * WEFT_NS_PER_SECOND;
    const bool is_first = progress->shown_ns == 0;
    if (!is_first && now - progress->shown_ns < pause) {
        return;
    }
    progress->shown_ns = now;
    if (is_first && !is_terminal) {
        return; /* what is short needs no line */
    }
    va_list args;
    va_start(args, format);
    fputs(is_terminal ? "\r\033[K" : "", stderr);
    vfprintf(stderr, format, args);
    fputs(is_terminal ? "" : "\n", stderr);
    va_end(args);
}

void bench_progress_end(const bench_progress_t *progress)
{
    if (progress->shown_ns != 0 && isatty(STDERR_FILENO)) {
        fputs("\r\033[K", stderr);
    }
}
