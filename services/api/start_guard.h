/* SPDX-License-Identifier: Apache-2.0 */
/*
 * start_guard: ends the process when a signal comes while a model loads, before a loop hears it.
 *
 * A start can take minutes, and has nothing yet that would have to be finished. The process exits
 * by itself rather than by the signal, which the first process of a container would not die of.
 *
 * Threads  begin and end from one thread
 */
#pragma once

#include "base/status.h"

typedef struct start_guard start_guard_t;

/* signal_fd: a signalfd of blocked signals, borrowed. */
weft_status_t start_guard_begin(int signal_fd, start_guard_t **guard_out);

/* A signal that comes from now on stays in signal_fd. NULL is fine. */
void start_guard_end(start_guard_t *guard);
