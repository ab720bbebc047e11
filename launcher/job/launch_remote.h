/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_remote: the launcher's end of an agent (launch_agent.h): started on this machine, in a network
 * namespace of it or by an ssh, and spoken to by frames.
 *
 * Threads  the loop's
 */
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include "base/loop.h"
#include "launcher/job/launch_frame.h"
#include "launcher/job/launch_process.h"

typedef struct launch_remote launch_remote_t;

typedef struct launch_remote_config {
    const char *name;  /* of the host, for people */
    char *const *argv; /* what is run here, NULL behind it */
    const char *file;  /* instead of argv[0], or NULL */
    int netns_fd;      /* to run it in, or -1 */
    int death_signal;  /* when we end; 0 for an agent, which must end what it started first */
    struct rlimit open_files;
    void (*on_frame)(void *user, const launch_frame_t *frame);
    /* A line that ssh or the agent wrote on its standard error. */
    void (*on_line)(void *user, const char *line);
    /*
     * Once: it has ended, or speaks no sense. Frames that came before were given. why: for people,
     * "" after launch_remote_end.
     */
    void (*on_lost)(void *user, const char *why);
    void *user;
} launch_remote_config_t;

/* Keeps argv no longer than the call. */
weft_status_t launch_remote_create(weft_loop_t *loop, const launch_remote_config_t *config,
                                   weft_diag_t *diag, launch_remote_t **remote_out);
void launch_remote_destroy(launch_remote_t *remote); /* NULL is fine; kills what it ran */

/* Frames to it are appended here, then launch_remote_wake. */
weft_buffer_t *launch_remote_out(launch_remote_t *remote);
void launch_remote_wake(launch_remote_t *remote);
/* Writes what can be written at once; for who stops right after. */
void launch_remote_flush(launch_remote_t *remote);

/* Asks it to end; what it ran ends then. */
void launch_remote_end(launch_remote_t *remote);
void launch_remote_kill(launch_remote_t *remote);

pid_t launch_remote_pid(const launch_remote_t *remote); /* 0: it has ended */
/* After SIGCHLD: the news is of its process. */
void launch_remote_take_news(launch_remote_t *remote, const launch_news_t *news);
