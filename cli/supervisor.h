/* SPDX-License-Identifier: Apache-2.0 */
/*
 * supervisor: the frame of a service whose work is done by processes of its own: one loop, in which their
 * ends are seen and the signals that are meant for all of them. What follows from these is the owner's.
 *
 * Owns     loop, signals and processes
 * Threads  one; it calls back from supervisor_run
 */
#pragma once

#include "base/signal_pair.h"
#include "cli/children.h"

typedef struct supervisor_config {
    bool is_private; /* as of children_t */
    void (*on_listening)(void *user, child_t *child, const char *url);
    void (*on_up)(void *user); /* all that were started listen, for the first time */
    /* One has ended, though nobody asked it to; how: in words. It may be started again. */
    void (*on_death)(void *user, child_t *child, const char *how);
    void (*on_signal)(void *user, int number); /* the first one: stop */
    void (*on_kill)(void *user);               /* the second one: the processes are being killed */
    void *user;
} supervisor_config_t;

typedef struct supervisor {
    supervisor_config_t config;
    weft_loop_t *loop;
    int signal_fd;       /* a signalfd, nobody's until supervisor_run */
    children_t children; /* the owner starts them, all of them before supervisor_run */
    bool is_up;
    bool is_stopping;
    int early_signal; /* that stopped it before it was up; 0: none did */

    weft_loop_watch_t *signal_watch;
    weft_signal_pair_t signals;
    uint32_t n_listening;
} supervisor_t;

/* Blocks the signals: before any thread is made. What was made is fini's, also when it failed. */
weft_status_t supervisor_init(supervisor_t *supervisor, const supervisor_config_t *config);
void supervisor_fini(supervisor_t *supervisor); /* kills who is left; one of zeros is fine */

/* Until it stops and all processes have ended. */
weft_status_t supervisor_run(supervisor_t *supervisor);

/* From now on ends are expected. The processes are told so by supervisor_end, then or later. */
void supervisor_stop(supervisor_t *supervisor);
void supervisor_end(supervisor_t *supervisor);
