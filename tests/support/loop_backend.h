/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop_backend: a way for bytes between agents of one process, by plain copies under one lock. For
 * tests of what is above backends, and as the shortest example of one. Ops are done in steps, one
 * a call of progress, so that a test can cancel and overtake.
 */
#pragma once

#include "transport/xfer/xfer_backend.h"

#define LOOP_STEP_BYTES ((uint64_t)64 * 1024)

uint64_t loop_backend_rounds(void); /* calls of progress so far, of all ports */

extern const xfer_backend_t loop_backend;
extern const xfer_backend_t loop_backend_two;           /* the same by another name */
extern const xfer_backend_t *const loop_backends[];     /* a table of the first */
extern const xfer_backend_t *const loop_backends_two[]; /* of both */
extern const xfer_backend_t *const loop_rails[];        /* of two that a request can take at once */

/* Rails, by their numbers from 1 on; 0: none. A stalled one moves nothing, a lost one loses links. */
#define LOOP_BOTH 3
void loop_backend_stall(int rail);
void loop_backend_lose(int rail);
