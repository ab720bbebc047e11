/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_lines.h"

#include <string.h>

static void give(launch_lines_t *lines, const char *bytes, size_t length, bool ends_line,
                 launch_piece_fn fn, void *user)
{
    const launch_piece_t piece = {bytes, length, !lines->is_within, ends_line};
    lines->is_within = !ends_line;
    fn(user, &piece);
}

/* Bytes that end a line, most often with nothing kept before them. */
static void take_end(launch_lines_t *lines, const char *bytes, size_t n, launch_piece_fn fn,
                     void *user)
{
    if (lines->part.length == 0) {
        give(lines, bytes, n, true, fn, user);
        return;
    }
    weft_buffer_append(&lines->part, bytes, n);
    give(lines, lines->part.data, lines->part.length, true, fn, user);
    lines->part.length = 0;
}

static void take_part(launch_lines_t *lines, const char *bytes, size_t n, launch_piece_fn fn,
                      void *user)
{
    weft_buffer_append(&lines->part, bytes, n);
    if (lines->part.length > LAUNCH_LINE_BYTES || (lines->is_within && lines->part.length > 0)) {
        give(lines, lines->part.data, lines->part.length, false, fn, user);
        lines->part.length = 0;
    }
}

weft_status_t launch_lines_take(launch_lines_t *lines, const char *bytes, size_t n,
                                launch_piece_fn fn, void *user)
{
    const char *end = bytes + n;
    const char *newline;
    while (bytes < end && (newline = memchr(bytes, '\n', (size_t)(end - bytes))) != NULL) {
        take_end(lines, bytes, (size_t)(newline + 1 - bytes), fn, user);
        bytes = newline + 1;
    }
    if (bytes < end) {
        take_part(lines, bytes, (size_t)(end - bytes), fn, user);
    }
    if (lines->part.is_failed) {
        lines->part.is_failed = false;
        return WEFT_ERR_NO_MEMORY;
    }
    return WEFT_OK;
}

void launch_lines_end(launch_lines_t *lines, launch_piece_fn fn, void *user)
{
    if (lines->part.length > 0) {
        give(lines, lines->part.data, lines->part.length, false, fn, user);
    }
    lines->part.length = 0;
    lines->is_within = false;
}

void launch_lines_fini(launch_lines_t *lines)
{
    weft_buffer_free(&lines->part);
}
