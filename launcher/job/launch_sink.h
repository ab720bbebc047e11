/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_sink: a file descriptor that many streams are written to by whole lines, at the pace of who
 * reads it, without ever blocking the loop.
 *
 * The descriptor is not made non-blocking, since a terminal or a pipe may be shared with others: no more is written
 * than it surely takes.
 *
 * Threads  the loop's
 */
#pragma once

#include "base/loop.h"
#include "launcher/job/launch_lines.h"

typedef struct launch_sink launch_sink_t;

typedef struct launch_sink_events {
    void (*on_written)(void *user); /* less is pending than before */
    void (*on_broken)(void *user,
                      int error); /* nobody reads any more: what is put from now on is dropped */
    void *user;
} launch_sink_events_t;

/* fd stays the caller's. */
weft_status_t launch_sink_create(weft_loop_t *loop, int fd, const launch_sink_events_t *events,
                                 launch_sink_t **sink_out);
void launch_sink_destroy(launch_sink_t *sink); /* NULL is fine; what is pending is dropped */

/*
 * Writes the piece, with tag before it where a line of this owner begins. A line that another owner has left
 * unfinished is ended first.
 */
void launch_sink_put(launch_sink_t *sink, uint64_t owner, const char *tag,
                     const launch_piece_t *piece);

/* As they are, whatever stands there. */
void launch_sink_put_raw(launch_sink_t *sink, const char *bytes, size_t n);

/* Ends a line that was left unfinished. */
void launch_sink_end_line(launch_sink_t *sink);

size_t launch_sink_pending(const launch_sink_t *sink);
