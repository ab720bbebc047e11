/* SPDX-License-Identifier: Apache-2.0 */
/*
 * serve_local: the other ranks of a `weft serve -tp 2` that nobody else starts: this program again, on
 * this host, told by its environment which rank it is.
 *
 * Owns     the processes: they end with this one, however it ends
 * Threads  create and destroy on one, before others are made; a thread of its own starts the
 *          processes and waits for their ends, on_end is called there
 */
#pragma once

#include "base/diag.h"
#include "base/status.h"
#include "launcher/launch_place.h"

typedef struct serve_local serve_local_t;

#define SERVE_LOCAL_MAX 256 /* ranks */

typedef struct serve_local_config {
    uint32_t size;      /* ranks, this one counted */
    uint32_t restarts;  /* times that a rank which has ended is started again */
    char *const *words; /* [n_words] of the command line, the subcommand first */
    int n_words;
    /* A rank has ended and is not started again; how: in words. */
    void (*on_end)(void *user, uint32_t rank, const char *how);
    void *user;
} serve_local_config_t;

/* place_out: where this process, rank 0, stands among them. */
weft_status_t serve_local_create(const serve_local_config_t *config, weft_diag_t *diag,
                                 launch_place_t *place_out, serve_local_t **local_out);

/* grace_s: that they get to end by themselves, having been told to stop. NULL is fine. */
void serve_local_destroy(serve_local_t *local, uint32_t grace_s);
