/* SPDX-License-Identifier: Apache-2.0 */
/*
 * serve_signals: SIGTERM and SIGINT of a rank that follows. Whoever ends a job tells all its ranks at
 * once; this one goes on meanwhile, so that rank 0 can finish what runs.
 *
 * Threads  one of its own; begin and end from one thread, before others are made
 */
#pragma once

#include "runtime/engine/engine_ranks.h"

typedef struct serve_signals serve_signals_t;

/* After the second signal, or that long after the first, the process ends. ranks outlive it. */
weft_status_t serve_signals_begin(const engine_ranks_t *ranks, uint32_t shutdown_timeout_s,
                                  serve_signals_t **signals_out);
void serve_signals_end(serve_signals_t *signals); /* NULL is fine */
