/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_output: what the ranks of a job write, brought to our standard output and error by whole lines, and
 * to a file for each rank and stream where a folder is given.
 *
 * What one rank alone writes, untagged, passes through as it comes. Else a line appears when it has ended;
 * one longer than LAUNCH_LINE_BYTES in parts, which others' lines may part. A folder gets the bytes as
 * they are: rank-0.stdout, rank-0.stderr.
 *
 * Threads  the loop's
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "base/loop.h"

typedef struct launch_output launch_output_t;

typedef enum launch_stream {
    LAUNCH_STDOUT,
    LAUNCH_STDERR,
    LAUNCH_STREAMS /* how many */
} launch_stream_t;

typedef struct launch_output_config {
    uint32_t n_ranks;
    bool is_tagged;                 /* "[3]<stdout>: " before a line */
    const char *folder;             /* made if it is not there; "": none */
    void (*on_written)(void *user); /* less is pending than before */
    void (*on_broken)(void *user, launch_stream_t stream, int error); /* what comes is dropped */
    void *user;
} launch_output_config_t;

weft_status_t launch_output_create(weft_loop_t *loop, const launch_output_config_t *config,
                                   weft_diag_t *diag, launch_output_t **output_out);
void launch_output_destroy(launch_output_t *output); /* NULL is fine; what is pending is dropped */

void launch_output_take(launch_output_t *output, uint32_t rank, launch_stream_t stream,
                        const char *bytes, size_t n);
/* The stream has ended; it may begin again. */
void launch_output_end(launch_output_t *output, uint32_t rank, launch_stream_t stream);

/* A line of the launcher's own, on standard error: "weft launch: …". */
void launch_output_say(launch_output_t *output, const char *format, ...) WEFT_PRINTF(2, 3);

/* While false, whoever sends us output should wait. */
bool launch_output_has_room(const launch_output_t *output);

/* Bytes that our readers have not taken yet. */
size_t launch_output_pending(const launch_output_t *output);

/* The job has ended: a tagged last line gets its newline. */
void launch_output_finish(launch_output_t *output);
