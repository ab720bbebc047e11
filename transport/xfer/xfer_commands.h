/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_commands: what NIXL's agents say to each other over a socket.
 *
 *     frame    u64 length, little-endian, then so many bytes: commands
 *     command  "NIXLCOMM:", a verb of four letters, the body up to the next command
 *     LOAD     metadata of the sender: learn it
 *     SEND     no body: answer with LOAD on the same connection
 *     INVL     an agent's name: it is gone
 *
 * A body has no length, and metadata are binary: they may hold "NIXLCOMM:" themselves. So whoever
 * handles LOAD says whether it was metadata, and gets the body again, longer, if not.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/buffer.h"
#include "base/status.h"

#define XFER_MAX_FRAME ((size_t)64 * 1024 * 1024) /* NIXL takes 1 GiB; we need not */

typedef struct xfer_commands {
    bool (*load)(void *user, const void *metadata, size_t bytes); /* false: it is not metadata */
    void (*send)(void *user);
    void (*invalidate)(void *user, const void *name, size_t bytes);
    void *user;
} xfer_commands_t;

/* Appends a frame with one command. verb: "LOAD", … */
void xfer_commands_encode(const char *verb, const void *body, size_t bytes, weft_buffer_t *out);

/*
 * data [n] is what came so far. OK: the first frame is complete, its commands are at
 * data + 8 [bytes_out]. PENDING: more has to come. WEFT_ERR_TOO_LARGE.
 */
weft_status_t xfer_commands_frame(const void *data, size_t n, size_t *bytes_out);

/* Handles the commands of a frame. WEFT_ERR_MALFORMED: something in it was none. */
weft_status_t xfer_commands_run(const void *data, size_t n, const xfer_commands_t *commands);
