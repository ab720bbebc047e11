/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_frame: what a launcher and its agent on a host say to each other over a pair of pipes, most
 * often those of an ssh.
 *
 *   bytes 0-1  "WL"
 *   byte  2    version
 *   byte  3    kind, of launch_frames.def
 *   bytes 4-7  rank; LAUNCH_ALL where a frame is of none or of all
 *   bytes 8-11 bytes that follow, at most LAUNCH_FRAME_MAX_BYTES
 *
 * Numbers are little-endian. Texts are UTF-8 or whatever the system's are, and end in a zero byte. An agent
 * speaks first, with READY. Output and input flow by credit: each side sends no more bytes than the
 * other has room for, so that whoever reads a pipe here slowly holds up no exit and no signal.
 *
 * Threads  none of its own
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/diag.h"
#include "base/status.h"

#define LAUNCH_FRAME_VERSION   1
#define LAUNCH_FRAME_HEADER    12
#define LAUNCH_FRAME_MAX_BYTES (UINT32_C(4) << 20) /* a START with a large environment */
#define LAUNCH_ALL             UINT32_MAX

/* Bytes of output that an agent may send ahead of CREDIT, and of input that a launcher may. */
#define LAUNCH_WINDOW (UINT32_C(256) << 10)

typedef enum launch_frame_kind {
#define FRAME(name, value, about) LAUNCH_FRAME_##name = value,
#include "launcher/job/launch_frames.def"
#undef FRAME
} launch_frame_kind_t;

typedef struct launch_frame {
    launch_frame_kind_t kind;
    uint32_t rank;
    const char *payload; /* [length], within the bytes decoded */
    uint32_t length;
} launch_frame_t;

/* length is at most LAUNCH_FRAME_MAX_BYTES. */
void launch_frame_append(weft_buffer_t *out, launch_frame_kind_t kind, uint32_t rank,
                         const void *payload, size_t length);
void launch_frame_append_u32(weft_buffer_t *out, launch_frame_kind_t kind, uint32_t rank,
                             uint32_t value);

/*
 * The frame at the start of bytes [n]; used_out: how long it is. WEFT_PENDING: it has not come whole.
 * WEFT_ERR_MALFORMED: these bytes begin no frame; WEFT_ERR_UNSUPPORTED: one of another version. diag
 * says what they are instead.
 */
weft_status_t launch_frame_decode(const void *bytes, size_t n, weft_diag_t *diag,
                                  launch_frame_t *frame_out, size_t *used_out);

/* Of a frame whose payload is one number. */
weft_status_t launch_frame_u32(const launch_frame_t *frame, uint32_t *value_out);

/* Its payload is exactly one text, which this is; NULL: it is not. */
const char *launch_frame_text(const launch_frame_t *frame);

/* ---- READY ----------------------------------------------------------------------------------- */

typedef struct launch_ready {
    uint32_t pid;
    uint16_t port;        /* kept for rank 0; 0: none */
    const char *version;  /* of weft */
    const char *own;      /* address at which the launcher reached this host; "": not known */
    const char *launcher; /* the launcher's as seen from here; "" */
} launch_ready_t;

void launch_ready_append(weft_buffer_t *out, const launch_ready_t *ready);
/* The texts lie within the frame. */
weft_status_t launch_ready_decode(const launch_frame_t *frame, launch_ready_t *ready_out);

/* ---- START ----------------------------------------------------------------------------------- */

typedef struct launch_start {
    uint8_t bind_to;   /* launch_bind_to_t */
    uint8_t map_by;    /* launch_map_by_t */
    uint8_t has_input; /* its standard input is fed by INPUT; else it is /dev/null */
    uint32_t local_rank;
    const char *folder; /* to run in; where it does not exist, wherever the agent is */
    char **argv;        /* [argc + 1], NULL behind it */
    char **environment; /* [n_environment + 1] "NAME=value", added to the agent's own */
    uint32_t argc;
    uint32_t n_environment;
} launch_start_t;

/* WEFT_ERR_TOO_LARGE: arguments and environment are more than a frame holds. */
weft_status_t launch_start_append(weft_buffer_t *out, uint32_t rank, const launch_start_t *start);
/* Texts lie within the frame, lists in memory that launch_start_fini frees. */
weft_status_t launch_start_decode(const launch_frame_t *frame, launch_start_t *start_out);
void launch_start_fini(launch_start_t *start);

/* ---- EXITED ---------------------------------------------------------------------------------- */

typedef struct launch_exit {
    uint32_t code;   /* when signal is 0 */
    uint32_t signal; /* that ended it; 0: none did */
} launch_exit_t;

void launch_exit_append(weft_buffer_t *out, uint32_t rank, launch_exit_t end);
weft_status_t launch_exit_decode(const launch_frame_t *frame, launch_exit_t *end_out);
