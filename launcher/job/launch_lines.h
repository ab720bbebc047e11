/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_lines: a stream of bytes, cut into lines that can be written beside those of others.
 *
 * Any bytes are fine. A line is kept until its newline has come; of one longer than LAUNCH_LINE_BYTES what has come
 * is given out, and the rest of it as it comes. Zeroed memory is a stream of which nothing has come.
 *
 * Threads  none of its own
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/buffer.h"
#include "base/status.h"

#define LAUNCH_LINE_BYTES ((size_t)64 << 10)

typedef struct launch_lines {
    weft_buffer_t part; /* of a line that has not ended */
    bool is_within;     /* the beginning of that line was given out */
} launch_lines_t;

typedef struct launch_piece {
    const char *bytes; /* [length], with the newline if it ends a line */
    size_t length;
    bool begins_line;
    bool ends_line;
} launch_piece_t;

typedef void (*launch_piece_fn)(void *user, const launch_piece_t *piece);

/* Calls fn for each piece that these bytes complete. WEFT_ERR_NO_MEMORY: some are lost. */
weft_status_t launch_lines_take(launch_lines_t *lines, const char *bytes, size_t n,
                                launch_piece_fn fn, void *user);

/* The stream has ended: what is left is given out as it is, without a newline. */
void launch_lines_end(launch_lines_t *lines, launch_piece_fn fn, void *user);
void launch_lines_fini(launch_lines_t *lines);
